"""What the commands share: the options of the program, and how results are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from peerstore.errors import (
    AddressError,
    ControlError,
    DeclinedError,
    NotRunningError,
    StoreError,
)
from peerstore.words import age

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from peerstore.config import Loaded
    from peerstore.documents import Live
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
        return self.read_config()

    def read_config(self) -> Loaded:
        """The configuration as it is now; raises ConfigError."""
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


def prefix_of(text: str, what: str, longest: int, digits: int) -> str:
    """The beginning of an id as it may be given; raises AddressError.

    `digits` is how many there must be at least: more where something is deleted.
    """
    prefix = text.lower()
    if not prefix or len(prefix) > longest or set(prefix) - set("0123456789abcdef"):
        raise AddressError(
            f"{text!r:.100} is not a {what} id or the beginning of one, in hexadecimal"
        )
    if len(prefix) < digits:
        raise AddressError(f"{text!r}: give at least {digits} digits of the {what} id here")
    return prefix


def only_one(found: Collection[str], text: str, what: str, nothing: str) -> str:
    """The one id that was found; raises AddressError when there is none or another."""
    if not found:
        raise AddressError(nothing)
    if len(found) > 1:
        raise AddressError(f"more than one {what}'s id begins with {text}: give more digits")
    (only,) = found
    return only


async def resolve_node_id(
    reader: SqliteReader, text: str, *, digits: int = 1, others: Iterable[str] = ()
) -> NodeId:
    """The peer whose id begins with `text`; raises AddressError unless it is exactly one.

    `others` are ids that count beside those with something stored.
    """
    from peerstore.types import parse_node_id

    prefix = prefix_of(text, "node", 66, digits)
    found = {node_id.hex() for node_id in await reader.node_ids(prefix, 2)}
    found |= {other for other in others if other.startswith(prefix)}
    nothing = f"nothing is stored for a peer {text}: see `peerstore backups list`"
    return parse_node_id(only_one(found, text, "peer", nothing))


async def resolve_channel_id(
    reader: SqliteReader, node_id: NodeId, text: str, *, digits: int = 1
) -> str:
    """The channel of a peer whose id begins with `text`, in hexadecimal, "" for ""; raises
    AddressError unless it is exactly one."""
    if not text:
        return ""
    prefix = prefix_of(text, "channel", 64, digits)
    found = {
        channel_id
        async for version in reader.versions(node_id, current_only=True)
        if (channel_id := version.revision.slot.channel_id.hex()).startswith(prefix)
    }
    nothing = f"nothing is stored of a channel {text} for {node_id.hex()}"
    return only_one(found, text, "channel", nothing)


def ask(app: App, method: str, **parameters: Any) -> Any:
    """Have the running daemon do something; raises NotRunningError when none runs."""
    from peerstore.control import call
    from peerstore.datadir import LOCK_NAME, SOCKET_NAME, is_locked

    try:
        return call(app.data_dir / SOCKET_NAME, method, **parameters)
    except (FileNotFoundError, ConnectionRefusedError):
        if is_locked(app.data_dir / LOCK_NAME):
            raise ControlError(
                f"the daemon runs, but its control socket {app.data_dir / SOCKET_NAME} is gone or"
                " was never made: see its log, and restart it"
            ) from None
        raise NotRunningError(
            f"this needs the daemon, and none runs on {app.data_dir}: start `peerstore run`"
        ) from None


def change(app: App, method: str, **parameters: Any) -> Any:
    """Have a method done: by the daemon when it runs, else here under its lock.

    Raises OperatorError when it is refused.
    """
    try:
        return ask(app, method, **parameters)
    except NotRunningError:
        import asyncio

        from peerstore.configured import lock_paths
        from peerstore.datadir import locked

        if not app.database.exists():
            raise StoreError(
                f"there is no database at {app.database}: run `peerstore init`"
            ) from None
        with locked(*lock_paths(app.data_dir, app.loaded.config)):
            return asyncio.run(_change_here(app, method, parameters))


def live(app: App) -> Live:
    """Who is connected and who is kept connected; nobody where no daemon runs.

    What the daemon knows of peers is in the database when this returns.
    """
    from peerstore.documents import Live

    try:
        connections = {row["node_id"]: row for row in ask(app, "peers.list")["items"]}
        kept = {row["node_id"]: row["error"] for row in ask(app, "peers.kept")["items"]}
    except NotRunningError:
        return Live({}, {})
    except ControlError as error:
        click.echo(f"Warning: who is connected is not known: {error}", err=True)
        return Live(None, {})
    return Live(connections, kept)


def _node_ids(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from peerstore.cli.completion import node_ids

    return node_ids(context, parameter, incomplete)


def node_id_argument(metavar: str = "ID") -> Callable[[Decorated], Decorated]:
    """ID, or [ID] where it may be left out; the shell completes it."""
    return click.argument(
        "node_id", metavar=metavar, required=metavar == "ID", shell_complete=_node_ids
    )


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is gone for good; raises OperatorError unless the answer is yes."""
    if yes:
        return
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise  # Ctrl-C
        click.echo(err=True)
        raise DeclinedError("nothing is deleted: say --yes where nobody can answer") from None
    if not agreed and not sys.stdin.isatty():
        click.echo(err=True)  # nobody has ended the line of the question
    if not agreed:
        raise DeclinedError("nothing is deleted")


yes_option = click.option("--yes", is_flag=True, help="Don't ask.")

limit_option = click.option(
    "--limit", type=click.IntRange(1, 1 << 40), metavar="N", help="At most so many."
)


def sort_option(keys: tuple[str, ...]) -> Callable[[Decorated], Decorated]:
    """`--sort` by one of the keys; the first is the default."""
    return click.option(
        "--sort", type=click.Choice(keys), default=keys[0], show_default=True, help="In what order."
    )


def filter_option(text: str) -> Callable[[Decorated], Decorated]:
    """`--filter KEY=VALUE`, which may be repeated; `text` says what there is."""
    return click.option("--filter", "filters", metavar="KEY=VALUE", multiple=True, help=text)


def seconds_of(key: str, value: str) -> float:
    """A filter's time, as in 7d; raises click.BadParameter."""
    from peerstore.config_values import Duration

    try:
        return Duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{key}={value}: {error}.", param_hint="--filter") from None


async def _change_here(app: App, method: str, parameters: dict[str, Any]) -> Any:
    import time

    from peerstore import log
    from peerstore.configured import quotas, retention
    from peerstore.methods import methods
    from peerstore.store.reader import SqliteReader
    from peerstore.store.sqlite import Clocks, SqliteStore

    log.configure("warning", "console")
    async with await SqliteReader.open(app.database) as reader:
        meta = await reader.meta()
    store = await SqliteStore.open(
        app.database,
        node_id=meta.node_id,
        network=meta.network,
        clocks=Clocks(time.time, time.monotonic),
        quotas=quotas(app.loaded.config),
        aging=app.loaded.config.channels.source == "none",
    )
    try:
        config = app.loaded.config
        return await methods(store, lambda: retention(config))[method](**parameters)
    finally:
        await store.close()


def ago(now: float, at: str | None) -> str:
    """How long ago a time of a JSON document was."""
    return "" if at is None else age(max(0.0, now - datetime.fromisoformat(at).timestamp()))


def stdout_is_terminal() -> bool:
    """Whether a person would see what is written to stdout."""
    return sys.stdout.isatty()
