"""What the commands share: the options of the program, and how results are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from peerstore.errors import AddressError

if TYPE_CHECKING:
    from peerstore.config import Loaded
    from peerstore.store.reader import SqliteReader
    from peerstore.types import NodeId

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@dataclass
class App:
    """The options given before the command, and what follows from them."""

    flag_data_dir: Path | None = None
    config_file: Path | None = None
    overrides: tuple[str, ...] = ()
    json: bool = False
    for_command: bool = True
    """False for `run` and `init`, which never fall back to /var/lib/peerstore."""

    @cached_property
    def data_dir(self) -> Path:
        """The data directory, absolute; it may not exist."""
        from peerstore.config import data_directory

        home = Path(os.environ.get("HOME") or "/")
        return data_directory(
            self.flag_data_dir, os.environ, home=home, for_command=self.for_command
        ).absolute()

    @cached_property
    def loaded(self) -> Loaded:
        """The configuration; raises ConfigError."""
        from peerstore.config import load

        return load(self.data_dir, self.config_file, os.environ, self.overrides)

    @property
    def database(self) -> Path:
        """The database file."""
        return self.loaded.config.store.url.path(self.data_dir)

    def emit(self, document: dict[str, Any], human: Callable[[], str]) -> None:
        """Show a result: as JSON where that was asked for, else as `human` words it."""
        if self.json:
            import json

            click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        else:
            click.echo(human())


pass_app = click.make_pass_decorator(App, ensure=True)


def json_option(command: Decorated) -> Decorated:
    """`--json`, before the command or after it."""

    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            context.ensure_object(App).json = True

    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="One JSON document on stdout.",
    )(command)


async def resolve_node_id(reader: SqliteReader, text: str, *, digits: int = 1) -> NodeId:
    """The peer whose id begins with `text`; raises AddressError unless it is exactly one.

    `digits` is how many must be given at least: more where something is deleted.
    """
    prefix = text.lower()
    if not prefix or len(prefix) > 66 or set(prefix) - set("0123456789abcdef"):
        raise AddressError(f"{text!r} is not a node id or the beginning of one, in hexadecimal")
    if len(prefix) < digits:
        raise AddressError(f"{text!r}: give at least {digits} digits of the node id here")
    found = await reader.node_ids(prefix, 2)
    if not found:
        raise AddressError(f"nothing is stored for a peer {text}: see `peerstore backups list`")
    if len(found) > 1:
        raise AddressError(f"more than one peer's id begins with {text}: give more digits")
    return found[0]


async def resolve_channel_id(
    reader: SqliteReader, node_id: NodeId, text: str, *, digits: int = 1
) -> str:
    """The channel of a peer whose id begins with `text`, in hexadecimal, "" for ""; raises
    AddressError unless it is exactly one."""
    if not text:
        return ""
    prefix = text.lower()
    if len(prefix) > 64 or set(prefix) - set("0123456789abcdef"):
        raise AddressError(f"{text!r} is not a channel id or the beginning of one, in hexadecimal")
    if len(prefix) < digits:
        raise AddressError(f"{text!r}: give at least {digits} digits of the channel id here")
    found = {
        channel_id
        async for version in reader.versions(node_id, current_only=True)
        if (channel_id := version.revision.slot.channel_id.hex()).startswith(prefix)
    }
    if not found:
        raise AddressError(f"nothing is stored of a channel {text} for {node_id.hex()}")
    if len(found) > 1:
        raise AddressError(f"more than one channel's id begins with {text}: give more digits")
    return found.pop()


def change(app: App, method: str, **parameters: Any) -> Any:
    """Have a method done: by the daemon when it runs, else here under its lock.

    Raises OperatorError when it is refused.
    """
    from peerstore.control import call
    from peerstore.daemon import lock_paths
    from peerstore.datadir import SOCKET_NAME, locked

    try:
        return call(app.data_dir / SOCKET_NAME, method, **parameters)
    except (FileNotFoundError, ConnectionRefusedError):
        import asyncio

        with locked(*lock_paths(app.data_dir, app.loaded.config)):
            return asyncio.run(_change_here(app, method, parameters))


async def _change_here(app: App, method: str, parameters: dict[str, Any]) -> Any:
    import time

    from peerstore.daemon import quotas
    from peerstore.methods import methods
    from peerstore.store.reader import SqliteReader
    from peerstore.store.sqlite import Clocks, SqliteStore

    async with await SqliteReader.open(app.database) as reader:
        meta = await reader.meta()
    store = await SqliteStore.open(
        app.database,
        node_id=meta.node_id,
        network=meta.network,
        clocks=Clocks(time.time, time.monotonic),
        quotas=quotas(app.loaded.config),
    )
    try:
        return await methods(store)[method](**parameters)
    finally:
        await store.close()


def iso(seconds: float) -> str:
    """A time for JSON: ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def age(seconds: float) -> str:
    """A span of time for people, in its largest unit: `5 min`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Bytes for people: `64.0 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.1f} TiB"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns for people, as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines)


def stdout_is_terminal() -> bool:
    """Whether a person would see what is written to stdout."""
    return sys.stdout.isatty()
