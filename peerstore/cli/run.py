"""`peerstore run` and `reload`."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import click

from peerstore.cli.common import App, ask, json_option, pass_app

if TYPE_CHECKING:
    from peerstore.daemon import Daemon


@click.command()
@click.option(
    "--loop",
    type=click.Choice(["auto", "asyncio", "uvloop"]),
    default="auto",
    show_default=True,
    help="The event loop; auto is uvloop where it is installed.",
)
@json_option
@pass_app
def run(app: App, loop: str) -> None:
    """Serve peers in the foreground until SIGTERM or Ctrl-C.

    In an empty data directory the key and the database are made first. Keep the key safe: without
    it no peer finds its backup again.
    """
    # Until it is up the configuration is being read anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    import asyncio

    from peerstore import daemon, log
    from peerstore.event_loop import loop_factory

    app.for_command = False
    loaded = app.loaded
    log.configure(loaded.config.log.level, loaded.config.log.format)
    log.take_in_strays()
    factory = loop_factory(loop)

    def ready(started: Daemon) -> None:
        node_id = started.key.node_id.hex()
        app.emit(
            {"node_id": node_id, "uris": started.uris},
            lambda: "\n".join(["Peers connect to:", *(f"  {uri}" for uri in started.uris)]),
        )

    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(daemon.run(app.read_config, app.data_dir, os.environ, ready))
    finally:
        log.finish()


@click.command()
@json_option
@pass_app
def reload(app: App) -> None:
    """Have the daemon read its configuration again, as SIGHUP does.

    It follows all of it but what needs a restart, which is named. Needs the daemon.
    """
    done = ask(app, "daemon.reload")
    app.emit({**done, "done": True}, lambda: _words(done))


def _words(done: dict[str, Any]) -> str:
    if not done["changed"]:
        return "Nothing has changed."
    restart = done["needs_restart"]
    lines = [f"In force: {key}" for key in done["changed"] if key not in restart]
    return "\n".join([*lines, *(f"Needs a restart: {key}" for key in restart)])
