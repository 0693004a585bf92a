"""`peerstore info`."""

from __future__ import annotations

import contextlib
import shutil
from typing import Any

import click

from peerstore import __version__
from peerstore.cli.alarms import document
from peerstore.cli.common import App, json_option, pass_app, size


@click.command()
@json_option
@pass_app
def info(app: App) -> None:
    """Who this node is, what it keeps, and whether it runs."""
    import asyncio

    facts = asyncio.run(_gather(app))
    app.emit(facts, lambda: _words(facts))


async def _gather(app: App) -> dict[str, Any]:
    from peerstore.control import call
    from peerstore.daemon import uris
    from peerstore.datadir import LOCK_NAME, SOCKET_NAME, is_locked
    from peerstore.errors import ControlError
    from peerstore.store.reader import SqliteReader

    config = app.loaded.config
    async with await SqliteReader.open(app.database) as reader:
        meta = await reader.meta()
        alarms = await reader.alarms(acknowledged=False)
    live: dict[str, Any] = {}
    running = is_locked(app.data_dir / LOCK_NAME)
    with contextlib.suppress(OSError, ControlError):  # not running, or without its socket
        live = call(app.data_dir / SOCKET_NAME, "daemon.info")
    addresses = [(address.host, address.port) for address in config.listen.addresses]
    return {
        "node_id": meta.node_id.hex(),
        "alias": str(config.alias),
        "uris": live.get("uris", uris(config, meta.node_id, addresses)),
        "network": meta.network.value,
        "version": live.get("version", __version__),
        "schema_version": meta.schema_version,
        "running": running or bool(live),
        "connections": live.get("connections"),
        # What was told of peers since the start, by event: refusals, warnings, dropped backups.
        "events": live.get("events"),
        "peers": meta.counts.peers,
        "backups": meta.counts.backups,
        "versions": meta.counts.versions,
        "bytes": meta.counts.bytes,
        "alarms": [document(alarm) for alarm in alarms],
        "data_dir": str(app.data_dir),
        "disk_free": shutil.disk_usage(app.database.parent).free,
    }


def _words(facts: dict[str, Any]) -> str:
    if not facts["running"]:
        state = "not running"
    elif facts["connections"] is None:
        state = "running, its control socket does not answer"
    else:
        state = f"running, {facts['connections']} connections"
    lines = [
        ("State", state),
        ("Node id", facts["node_id"]),
        *(("URI", uri) for uri in facts["uris"]),
        ("Network", facts["network"]),
        ("Version", f"{facts['version']}, schema {facts['schema_version']}"),
        (
            "Stored",
            f"{facts['backups']} backups of {facts['peers']} peers, {size(facts['bytes'])}",
        ),
        ("Data directory", f"{facts['data_dir']}, {size(facts['disk_free'])} free"),
    ]
    for alarm in facts["alarms"]:
        lines.insert(1, ("ALARM", f"{alarm['number']} ({alarm['kind']}): {alarm['text']}"))
    if facts["alias"]:
        lines.insert(1, ("Alias", facts["alias"]))
    return "\n".join(f"{name:<15} {value}" for name, value in lines)
