"""`peerstore init`."""

from __future__ import annotations

import os
import time

import click

from peerstore.cli.common import App, json_option, pass_app


@click.command(short_help="Make key, config.toml and database; show the URI.")
@json_option
@pass_app
def init(app: App) -> None:
    """Make data directory, key, config.toml and database, and show the URI.

    What is there already stays as it is.
    """
    import asyncio

    from peerstore.configured import lock_paths, uris
    from peerstore.daemon import open_data_directory
    from peerstore.datadir import locked
    from peerstore.ownership import give_to_owner, new_file
    from peerstore.store.migrate import packaged
    from peerstore.store.sqlite import Clocks, SqliteStore

    app.for_command = False
    config = app.loaded.config
    key, new = open_data_directory(app.data_dir, config, os.environ)
    config_path = app.data_dir / "config.toml"
    if app.config_file is None and not config_path.exists():
        with os.fdopen(new_file(config_path), "w", encoding="utf-8") as file:
            file.write(packaged("config.example.toml").read_text(encoding="utf-8"))
            give_to_owner(file.fileno(), app.data_dir)

    async def make_database() -> None:
        store = await SqliteStore.open(
            app.database,
            node_id=key.node_id,
            network=config.network,
            clocks=Clocks(time.time, time.monotonic),
        )
        await store.close()

    with locked(*lock_paths(app.data_dir, config)):
        asyncio.run(make_database())
    addresses = [(address.host, address.port) for address in config.listen.addresses]
    shown = uris(config, key.node_id, addresses)
    key_file = str(config.node_key_file.path(app.data_dir))
    app.emit(
        {
            "node_id": key.node_id.hex(),
            "uris": shown,
            "data_dir": str(app.data_dir),
            "node_key_file": key_file,
            "key_made": new,
        },
        lambda: (
            "Peers will connect to:\n"
            + "\n".join(f"  {uri}" for uri in shown)
            + f"\n\nKeep a copy of {key_file} in a safe place: without this key no peer finds its"
            " backup again.\nNext: peerstore run"
        ),
    )
