"""`peerstore backups`."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from peerstore.cli.common import (
    App,
    age,
    change,
    iso,
    json_option,
    pass_app,
    resolve_channel_id,
    resolve_node_id,
    size,
    stdout_is_terminal,
    table,
)
from peerstore.errors import ConfigError, StoreError
from peerstore.types import BackupKind

if TYPE_CHECKING:
    from peerstore.store.base import Version
    from peerstore.types import ChannelState, Slot

KINDS = tuple(kind.label for kind in BackupKind)
DELETE_DIGITS = 8

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
        click.argument("node_id", metavar="ID"),
    ):
        command = decorate(command)
    return command


def revision_option(text: str, *, required: bool) -> Callable[[Decorated], Decorated]:
    """`--revision`, with what it is without."""
    return click.option("--revision", type=int, metavar="N", required=required, help=text)


@click.group()
def backups() -> None:
    """Look at what is stored, take it out, keep or give back an older version.

    A peer is named by its node id or the beginning of it.
    """


@backups.command("list")
@click.argument("node_id", metavar="[ID]", required=False)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many.")
@json_option
@pass_app
def list_(app: App, node_id: str | None, limit: int | None) -> None:
    """The current backup of every slot, or those of the peer ID.

    A slot is held when an older version is given back in place of the current one.
    """
    show_versions(app, _versions(app, node_id, current_only=True, limit=limit))


@backups.command()
@slot_options
@json_option
@pass_app
def history(app: App, node_id: str, kind: str | None, channel_id: str) -> None:
    """Every version that is kept of a backup of the peer ID, the current one last."""
    slot = find_slot(app, node_id, kind, channel_id)
    versions = _versions(app, node_id, current_only=False, limit=None)
    show_versions(app, [v for v in versions if v.revision.slot == slot], history=True)


@backups.command()
@slot_options
@revision_option("Not what the peer gets back, but this version.", required=False)
@json_option
@pass_app
def show(app: App, node_id: str, kind: str | None, channel_id: str, revision: int | None) -> None:
    """What is known of a backup of the peer ID: size, age, digest, pins."""
    version, _ = read(app, find_slot(app, node_id, kind, channel_id), revision, with_blob=False)
    document = row(version, history=True)
    if version.revision.slot.kind is BackupKind.CHANNEL_BACKUP:
        document["channel"] = _channel(app, version.revision.slot)
    if version.revision.slot.kind is BackupKind.NODE_BACKUP:
        document["withheld"] = _withheld(app, version.revision.slot)
    shown = {key: value for key, value in document.items() if key != "channel"}
    shown |= {f"channel {key}": value for key, value in document.get("channel", {}).items()}
    width = max(map(len, shown))
    app.emit(document, lambda: "\n".join(f"{key:<{width}} {v}" for key, v in shown.items()))


@backups.command()
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
    version, blob = read(app, find_slot(app, node_id, kind, channel_id), revision, with_blob=True)
    document = row(version, history=True)
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


@backups.command()
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


@backups.command()
@slot_options
@json_option
@pass_app
def release(app: App, node_id: str, kind: str | None, channel_id: str) -> None:
    """Give the current version back to the peer ID again."""
    slot = find_slot(app, node_id, kind, channel_id)
    _change_version(app, "backups.release", slot)
    _done(app, slot, "The newest version is given back again.")


@backups.command()
@slot_options
@revision_option("The version to keep.", required=True)
@json_option
@pass_app
def pin(app: App, node_id: str, kind: str | None, channel_id: str, revision: int) -> None:
    """Keep a version of the peer ID until it is unpinned."""
    slot = find_slot(app, node_id, kind, channel_id)
    _change_version(app, "backups.pin", slot, revision=revision)
    _done(app, slot, f"Revision {revision} is pinned.", revision=revision)


@backups.command()
@slot_options
@revision_option("The version to unpin.", required=True)
@json_option
@pass_app
def unpin(app: App, node_id: str, kind: str | None, channel_id: str, revision: int) -> None:
    """Undo the pins of a version of the peer ID, the automatic ones too."""
    slot = find_slot(app, node_id, kind, channel_id)
    _change_version(app, "backups.unpin", slot, revision=revision)
    _done(app, slot, f"Revision {revision} is not pinned any more.", revision=revision)


@backups.command()
@slot_options
@revision_option("The version to delete.", required=True)
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
@pass_app
def delete(
    app: App, node_id: str, kind: str | None, channel_id: str, revision: int, yes: bool
) -> None:
    """Delete one version of a backup of the peer ID, for good."""
    slot = find_slot(app, node_id, kind, channel_id, digits=DELETE_DIGITS)
    version, _ = read(app, slot, revision, with_blob=False)
    if not yes:
        click.confirm(
            f"Delete revision {revision} ({size(version.revision.size)}) of"
            f" {slot.node_id.hex()} for good?",
            abort=True,
            err=True,
        )
    _change_version(app, "backups.delete", slot, revision=revision)
    _done(app, slot, f"Revision {revision} is deleted.", revision=revision)


def show_versions(app: App, versions: list[Version], *, history: bool = False) -> None:
    """A list of versions, as a table or as JSON."""
    now = time.time()

    def marks(version: Version) -> str:
        held = version.held if history else version.slot_held
        current = "current" if history and version.current else ""
        pinned = f"pinned ({version.pinned})" if version.pinned else ""
        return ", ".join(filter(None, (current, pinned, "held" if held else "")))

    # Most peers have none, and 64 digits are a wide column.
    channels = any(version.revision.slot.channel_id for version in versions)

    def cells(version: Version) -> tuple[str, ...]:
        slot = version.revision.slot
        return (
            slot.node_id.hex(),
            slot.kind.label,
            *((slot.channel_id.hex(),) if channels else ()),
            str(version.revision.revision),
            size(version.revision.size),
            age(now - version.revision.stored_at),
            marks(version),
        )

    header = ("NODE ID", "KIND", *(("CHANNEL ID",) if channels else ()))
    app.emit(
        {"items": [row(version, history=history) for version in versions]},
        lambda: table((*header, "REVISION", "SIZE", "AGE", ""), [cells(v) for v in versions]),
    )


def row(version: Version, *, history: bool = False) -> dict[str, Any]:
    """A version as the JSON documents show it.

    `held` says in a history that this version is given back in place of the current one, in a
    list of current versions that another one is.
    """
    revision = version.revision
    slot = revision.slot
    document: dict[str, Any] = {
        "node_id": slot.node_id.hex(),
        "kind": slot.kind.label,
        "channel_id": slot.channel_id.hex() or None,
        "revision": revision.revision,
        "size": revision.size,
        "sha256": revision.sha256.hex(),
        "stored_at": iso(revision.stored_at),
        "pinned": bool(version.pinned),
        "pinned_by": version.pinned or None,
        "held": version.held if history else version.slot_held,
    }
    if history:
        document["current"] = version.current
    return document


def find_slot(
    app: App, node_id: str, kind: str | None, channel_id: str, *, digits: int = 1
) -> Slot:
    """The slot of a peer that is named by the beginning of its id; raises AddressError."""
    import asyncio

    from peerstore.methods import parse_slot
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


def _versions(
    app: App, node_id: str | None, *, current_only: bool, limit: int | None
) -> list[Version]:
    import asyncio

    from peerstore.store.reader import SqliteReader

    async def gather() -> list[Version]:
        async with await SqliteReader.open(app.database) as reader:
            peer = None if node_id is None else await resolve_node_id(reader, node_id)
            found = reader.versions(peer, current_only=current_only, limit=limit)
            return [version async for version in found]

    return asyncio.run(gather())


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
    document = {
        "node_id": slot.node_id.hex(),
        "kind": slot.kind.label,
        "channel_id": slot.channel_id.hex() or None,
        **more,
        "done": True,
    }
    app.emit(document, lambda: text)


def _write_new(path: Path, data: bytes) -> None:
    """Somebody's backup: for the operator's eyes only, and never over another file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise StoreError(f"{path} exists already: choose another name") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
