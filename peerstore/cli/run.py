"""`peerstore run`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from peerstore.cli.common import App, json_option, pass_app

if TYPE_CHECKING:
    from peerstore.daemon import Daemon


@click.command()
@json_option
@pass_app
def run(app: App) -> None:
    """Serve peers in the foreground until SIGTERM or Ctrl-C.

    In an empty data directory the key and the database are made first. Keep the key safe: without
    it no peer finds its backup again.
    """
    import asyncio

    from peerstore import daemon, log

    app.for_command = False
    loaded = app.loaded
    log.configure(loaded.config.log.level, loaded.config.log.format)

    def ready(started: Daemon) -> None:
        node_id = started.key.node_id.hex()
        app.emit(
            {"node_id": node_id, "uris": started.uris},
            lambda: "\n".join(["Peers connect to:", *(f"  {uri}" for uri in started.uris)]),
        )

    asyncio.run(daemon.run(loaded, app.data_dir, os.environ, ready))
