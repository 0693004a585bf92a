"""`peerstore backups`."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from peerstore.cli.common import (
    App,
    ago,
    change,
    confirm,
    filter_option,
    json_option,
    limit_option,
    node_id_argument,
    pass_app,
    resolve_channel_id,
    resolve_node_id,
    seconds_of,
    sort_option,
    stdout_is_terminal,
    yes_option,
)
from peerstore.cli.output import (
    Column,
    Row,
    facts,
    limited,
    nothing_fits,
    one_of,
    pairs,
    show_list,
    yes_or_no,
)
from peerstore.errors import ConfigError, StoreError
from peerstore.types import BackupKind, parse_slot
from peerstore.words import size

if TYPE_CHECKING:
    from peerstore.store.base import Version
    from peerstore.types import ChannelState, Slot

KINDS = tuple(kind.label for kind in BackupKind)
DELETE_DIGITS = 8
FILTERS = ("kind", "held", "pinned", "age")

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def slot_options(command: Decorated) -> Decorated:
    """What names a slot: ID, --kind, --channel-id."""
    for decorate in (
        click.option(
            "--channel-id",
            metavar="C",
            default="",
            help="Of a channel backup; the beginning will do where it fits one channel only.",
        ),
        click.option(
            "--kind",
            type=click.Choice(KINDS),
            help=f"[default: {KINDS[0]}; with --channel-id {KINDS[2]}]",
        ),
        node_id_argument(),
    ):
        command = decorate(command)
    return command


def revision_option(text: str, *, required: bool) -> Callable[[Decorated], Decorated]:
    """`--revision`, with what it is without."""
    return click.option("--revision", type=int, metavar="N", required=required, help=text)


@click.group(short_help="What is stored: list, export, hold, pin, delete.")
@json_option
def backups() -> None:
    """Look at what is stored, take it out, keep or give back an older version.

    A peer is named by its node id or the beginning of it.
    """


@backups.command("list", short_help="The current backup of every slot.")
@node_id_argument("[ID]")
@filter_option(
    f"kind={'|'.join(KINDS)}, held=yes|no, pinned=yes|no, or age=TIME: not replaced for so long."
)
@sort_option(("node_id", "size", "stored_at", "revision"))
@limit_option
@json_option
@pass_app
def list_(
    app: App, node_id: str | None, filters: tuple[str, ...], sort: str, limit: int | None
) -> None:
    """The current backup of every slot, or those of the peer ID.

    A slot is held when an older version is given back in place of the current one.
    """
    import asyncio

    wanted = [_condition(key, value) for key, value in pairs(filters, FILTERS)]

    async def run() -> None:
        # What a filter leaves out does not count.
        most = None if wanted else limit
        rows = limited(_rows(app, node_id, wanted, sort, most), limit)
        nothing = nothing_fits("Nothing is stored yet.", filters)
        await show_list(app, rows, columns(time.time()), nothing)

    asyncio.run(run())


@backups.command(short_help="Every version of a backup that is kept.")
@slot_options
@json_option
@pass_app
def history(app: App, node_id: str, kind: str | None, channel_id: str) -> None:
    """Every version that is kept of a backup of the peer ID, the current one last."""
    import asyncio

    from peerstore.documents import version_document
    from peerstore.store.reader import SqliteReader

    slot = find_slot(app, node_id, kind, channel_id)

    async def rows() -> AsyncGenerator[Row]:
        async with await SqliteReader.open(app.database) as reader:
            async for version in reader.versions(slot.node_id):
                if version.revision.slot == slot:
                    yield version_document(version, history=True)

    nothing = f"No {slot.label} is stored for {slot.node_id.hex()}."
    asyncio.run(show_list(app, rows(), columns(time.time(), history=True, peer=False), nothing))


@backups.command(short_help="What is known of a version.")
@slot_options
@revision_option("Not what the peer gets back, but this version.", required=False)
@json_option
@pass_app
def show(app: App, node_id: str, kind: str | None, channel_id: str, revision: int | None) -> None:
    """What is known of a backup of the peer ID: size, age, digest, pins."""
    from peerstore.documents import version_document

    version, _ = read(app, find_slot(app, node_id, kind, channel_id), revision, with_blob=False)
    document = version_document(version, history=True)
    if version.revision.slot.kind is BackupKind.CHANNEL_BACKUP:
        document["channel"] = _channel(app, version.revision.slot)
    if version.revision.slot.kind is BackupKind.NODE_BACKUP:
        document["withheld"] = _withheld(app, version.revision.slot)
    shown = {key: value for key, value in document.items() if key != "channel"}
    shown |= {f"channel {key}": value for key, value in document.get("channel", {}).items()}
    app.emit(document, lambda: facts((key, _plain(value)) for key, value in shown.items()))


def _plain(value: object) -> str:
    """A value of a document for people."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    return str(value)


@backups.command(short_help="Write the raw bytes of a version.")
@slot_options
@revision_option("Not what the peer gets back, but this version.", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="The file to write; it must not exist. [default: stdout, unless that is a terminal]",
)
@json_option
@pass_app
def export(
    app: App,
    node_id: str,
    kind: str | None,
    channel_id: str,
    revision: int | None,
    output: Path | None,
) -> None:
    """Write the raw bytes of a backup of the peer ID, as the peer sent them.

    With --json and without -o the bytes stand in the document, in hexadecimal.
    """
    from peerstore.documents import version_document

    version, blob = read(app, find_slot(app, node_id, kind, channel_id), revision, with_blob=True)
    document = version_document(version, history=True)
    if output is not None and str(output) != "-":
        _write_new(output, blob)
        document["file"] = str(output)
        app.emit(document, lambda: f"{size(len(blob))} written to {output}")
    elif app.json:
        app.emit({**document, "blob": blob.hex()}, str)
    elif stdout_is_terminal() and output is None:
        raise click.UsageError("a backup is binary: name a file with -o, or pipe the output")
    else:
        sys.stdout.buffer.write(blob)
        sys.stdout.buffer.flush()


@backups.command(short_help="Give an older version back.")
@slot_options
@revision_option("The version to give back.", required=True)
@click.option(
    "--for", "span", metavar="TIME", help="For so long, as in 7d. [default: until release]"
)
@json_option
@pass_app
def hold(
    app: App, node_id: str, kind: str | None, channel_id: str, revision: int, span: str | None
) -> None:
    """Give an older version back to the peer ID, in place of the current one.

    New updates are stored as ever. The time is that which the daemon sees pass.
    """
    from peerstore.config_values import Duration

    seconds = None
    if span is not None:
        try:
            seconds = math.ceil(Duration(span))
        except ValueError as error:
            raise ConfigError(f"--for {span}: {error}") from None
    slot = find_slot(app, node_id, kind, channel_id)
    _change_version(app, "backups.hold", slot, revision=revision, seconds=seconds)
    until = "until it is released" if seconds is None else f"for {span}"
    _done(app, slot, f"Revision {revision} is given back {until}.", revision=revision)


@backups.command(short_help="Give the newest version back again.")
@slot_options
@json_option
@pass_app
def release(app: App, node_id: str, kind: str | None, channel_id: str) -> None:
    """Give the current version back to the peer ID again."""
    slot = find_slot(app, node_id, kind, channel_id)
    _change_version(app, "backups.release", slot)
    _done(app, slot, "The newest version is given back again.")


@backups.command(short_help="Keep a version from being thinned.")
@slot_options
@revision_option("The version to keep.", required=True)
@json_option
@pass_app
def pin(app: App, node_id: str, kind: str | None, channel_id: str, revision: int) -> None:
    """Keep a version of the peer ID until it is unpinned."""
    slot = find_slot(app, node_id, kind, channel_id)
    _change_version(app, "backups.pin", slot, revision=revision)
    _done(app, slot, f"Revision {revision} is pinned.", revision=revision)


@backups.command(short_help="Undo the pins of a version.")
@slot_options
@revision_option("The version to unpin.", required=True)
@json_option
@pass_app
def unpin(app: App, node_id: str, kind: str | None, channel_id: str, revision: int) -> None:
    """Undo the pins of a version of the peer ID, the automatic ones too."""
    slot = find_slot(app, node_id, kind, channel_id)
    _change_version(app, "backups.unpin", slot, revision=revision)
    _done(app, slot, f"Revision {revision} is not pinned any more.", revision=revision)


@backups.command(short_help="Delete a version for good.")
@slot_options
@revision_option("The version to delete.", required=True)
@yes_option
@json_option
@pass_app
def delete(
    app: App, node_id: str, kind: str | None, channel_id: str, revision: int, yes: bool
) -> None:
    """Delete one version of a backup of the peer ID, for good."""
    slot = find_slot(app, node_id, kind, channel_id, digits=DELETE_DIGITS)
    version, _ = read(app, slot, revision, with_blob=False)
    confirm(
        f"Delete revision {revision} ({size(version.revision.size)}) of {slot.node_id.hex()}"
        " for good?",
        yes=yes,
    )
    _change_version(app, "backups.delete", slot, revision=revision)
    _done(app, slot, f"Revision {revision} is deleted.", revision=revision)


def columns(now: float, *, history: bool = False, peer: bool = True) -> list[Column]:
    """How a list of versions looks, with the peer or without."""

    def marks(row: Row) -> str:
        current = "current" if history and row["current"] else ""
        pinned = f"pinned ({row['pinned_by']})" if row["pinned"] else ""
        return ", ".join(filter(None, (current, pinned, "held" if row["held"] else "")))

    return [
        *([Column("NODE ID", lambda row: row["node_id"], 66, id=True)] if peer else []),
        Column("KIND", lambda row: row["kind"], 14, drop=1),
        Column("CHANNEL ID", lambda row: row["channel_id"] or "", 64, drop=2, id=True),
        # In a history it is what other commands want to know.
        Column(
            "REVISION", lambda row: str(row["revision"]), 8, drop=0 if history else 3, right=True
        ),
        Column("SIZE", lambda row: size(row["size"]), 10, right=True),
        Column("AGE", lambda row: ago(now, row["stored_at"]), 7),
        Column("", marks, 30),
    ]


def _condition(key: str, value: str) -> Callable[[Version], bool]:
    """A --filter of a list of versions; raises click.BadParameter."""
    if key == "kind":
        kind = one_of(key, value, KINDS)
        return lambda version: version.revision.slot.kind.label == kind
    if key == "age":
        oldest = time.time() - seconds_of(key, value)
        return lambda version: version.revision.stored_at <= oldest
    wanted = yes_or_no(key, value)
    if key == "held":
        return lambda version: version.slot_held == wanted
    return lambda version: bool(version.pinned) == wanted


async def _rows(
    app: App,
    node_id: str | None,
    wanted: list[Callable[[Version], bool]],
    sort: str,
    limit: int | None,
) -> AsyncGenerator[Row]:
    from peerstore.documents import version_document
    from peerstore.store.reader import SqliteReader

    async with await SqliteReader.open(app.database) as reader:
        peer = None if node_id is None else await resolve_node_id(reader, node_id)
        async for version in reader.versions(peer, current_only=True, order=sort, limit=limit):
            if all(fits(version) for fits in wanted):
                yield version_document(version)


def find_slot(
    app: App, node_id: str, kind: str | None, channel_id: str, *, digits: int = 1
) -> Slot:
    """The slot of a peer that is named by the beginning of its id; raises AddressError."""
    import asyncio

    from peerstore.store.reader import SqliteReader

    async def resolve() -> tuple[str, str]:
        async with await SqliteReader.open(app.database) as reader:
            peer = await resolve_node_id(reader, node_id, digits=digits)
            return peer.hex(), await resolve_channel_id(reader, peer, channel_id, digits=digits)

    peer, channel = asyncio.run(resolve())
    return parse_slot(peer, kind or KINDS[2 if channel_id else 0], channel)


def read(app: App, slot: Slot, revision: int | None, *, with_blob: bool) -> tuple[Version, bytes]:
    """A version and, if asked for, its bytes; raises StoreError, DamagedBackupError."""
    import asyncio

    from peerstore.store.reader import SqliteReader

    async def find() -> tuple[Version | None, bytes]:
        async with await SqliteReader.open(app.database) as reader, reader.unchanging():
            version = await reader.find(slot, revision)
            if version is None or not with_blob:
                return version, b""
            return version, (await reader.read(version.row_id, version.revision)).blob

    version, blob = asyncio.run(find())
    if version is None:
        which = f"revision {revision} of " if revision is not None else ""
        raise StoreError(f"{which}{slot.label} is not stored for {slot.node_id.hex()}")
    return version, blob


def _withheld(app: App, slot: Slot) -> bool:
    """Whether a peer's node backup is not shown to it, because it hung up on it."""
    import asyncio

    from peerstore.store.reader import SqliteReader

    async def find() -> bool:
        async with await SqliteReader.open(app.database) as reader:
            return (await reader.holdings(slot.node_id, 0)).forgone

    return asyncio.run(find())


def _channel(app: App, slot: Slot) -> dict[str, Any]:
    """What the messages of a channel have said, as the JSON documents show it."""
    import asyncio

    from peerstore.documents import iso
    from peerstore.store.reader import SqliteReader

    async def find() -> tuple[ChannelState | None, int | None]:
        async with await SqliteReader.open(app.database) as reader:
            return await reader.channel(slot)

    state, closed_at = asyncio.run(find())
    return {
        "sound": state is not None,
        "commitments": state and state.commitments,
        "revocations": state and state.revocations,
        "seen_whole": state and state.whole,
        "shutdown": state and state.shutdown,
        "closing": state and state.closing,
        "closed_at": None if closed_at is None else iso(closed_at),
    }


def _change_version(app: App, method: str, slot: Slot, **parameters: Any) -> None:
    change(
        app,
        method,
        node_id=slot.node_id.hex(),
        kind=slot.kind.label,
        channel_id=slot.channel_id.hex(),
        **parameters,
    )


def _done(app: App, slot: Slot, text: str, **more: Any) -> None:
    from peerstore.documents import slot_document

    document = {**slot_document(slot), **more, "done": True}
    app.emit(document, lambda: text)


def _write_new(path: Path, data: bytes) -> None:
    """Somebody's backup: for the operator's eyes only, and never over another file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise StoreError(f"{path} exists already: choose another name") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
