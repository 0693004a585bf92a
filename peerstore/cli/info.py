"""`peerstore info`."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from peerstore import __version__
from peerstore.cli.common import App, ask, json_option, pass_app
from peerstore.cli.output import facts, wrapped
from peerstore.health import Condition, problems
from peerstore.words import counted, size

ALARMS = 100
"""How many alarms the document has at most, the newest."""

ALARMS_SHOWN = 20
"""How many are shown to people."""


@click.command()
@click.option(
    "--running",
    is_flag=True,
    help="Fail unless the daemon runs and answers, with 3 when it does not run.",
)
@json_option
@pass_app
def info(app: App, running: bool) -> None:
    """Whether all is well, who this node is, and what it keeps."""
    import asyncio

    live = ask(app, "daemon.info") if running else None
    found = asyncio.run(_gather(app, live))
    app.emit(found, lambda: _words(found))


async def _gather(app: App, live: dict[str, Any] | None) -> dict[str, Any]:
    """What there is to say; the live part is asked for where it is not given."""
    from peerstore.clock import clock_problem
    from peerstore.configured import uris
    from peerstore.control import call
    from peerstore.datadir import LOCK_NAME, SOCKET_NAME, is_locked
    from peerstore.documents import alarm_document
    from peerstore.errors import ControlError
    from peerstore.store.reader import SqliteReader

    config = app.loaded.config
    async with await SqliteReader.open(app.database) as reader:
        meta = await reader.meta()
        newest_at = await reader.newest_at()
        standing = sum((await reader.alarm_counts()).values())
        alarms = await reader.newest_alarms(ALARMS)
        free = await reader.free_space()
    running = is_locked(app.data_dir / LOCK_NAME)
    if live is None:
        live = {}
        with contextlib.suppress(OSError, ControlError):  # not running, or without its socket
            live = call(app.data_dir / SOCKET_NAME, "daemon.info")
    addresses = [(address.host, address.port) for address in config.listen.addresses]
    found = {
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
        "status_page": live.get("status_page"),
        # What the routing node says, and whether that can be trusted; null where none is asked.
        "channel_source": live.get("channel_source"),
        "peers": meta.counts.peers,
        "backups": meta.counts.backups,
        "versions": meta.counts.versions,
        "bytes": meta.counts.bytes,
        "max_bytes": int(config.store.max_bytes),
        "alarms_count": standing,
        # The newest of them, the last one last.
        "alarms": [alarm_document(alarm) for alarm in reversed(alarms)],
        "data_dir": str(app.data_dir),
        "disk_free": shutil.disk_usage(app.database.parent).free,
    }
    condition = Condition(
        alarms=standing,
        disk_free=free,
        min_free_space=int(config.store.min_free_space),
        bytes=meta.counts.bytes,
        max_bytes=int(config.store.max_bytes),
        clock_error=clock_problem(time.time(), newest_at) or "",
    )
    trouble = _problems(found, live, condition)
    return {"well": not trouble, "problems": trouble, **found}


def _problems(found: dict[str, Any], live: dict[str, Any], condition: Condition) -> list[str]:
    """What is not well, each in a few words with what to do; a daemon that answers knows best."""
    told = live.get("problems")
    if told is not None:
        return list(told)
    if not found["running"]:
        trouble = f"the daemon does not run: {how_to_start(Path(found['data_dir']))}"
    else:
        trouble = "the daemon's control socket does not answer: see its log"
    return [trouble, *(problem.text for problem in problems(condition))]


def how_to_start(data_dir: Path) -> str:
    """What starts a daemon on the directory; said where there is that of the service too."""
    from peerstore import config

    service = config.SYSTEM_DATA_DIRECTORY
    if data_dir == service:
        return "`systemctl start peerstore`"
    if os.access(service, os.F_OK):
        return f"`peerstore run`, or say --data-dir {service} for the service"
    return "`peerstore run`"


def _words(found: dict[str, Any]) -> str:
    if not found["running"]:
        state = "not running"
    elif found["connections"] is None:
        state = "running, its control socket does not answer"
    else:
        state = f"running, {counted(found['connections'], 'connection')}"
    events = found["events"] or {}
    source = found["channel_source"]
    trouble = "; ".join(found["problems"])
    end = "" if trouble.endswith("?") else "."
    well = "All is well." if found["well"] else f"Not well: {trouble}{end}"
    lines = [
        ("State", state),
        *([("Alias", found["alias"])] if found["alias"] else []),
        ("Node id", found["node_id"]),
        *(("URI", uri) for uri in found["uris"]),
        *([("Status page", found["status_page"])] if found["status_page"] else []),
        ("Network", found["network"]),
        ("Version", f"{found['version']}, schema {found['schema_version']}"),
        (
            "Stored",
            f"{counted(found['backups'], 'backup')} of {counted(found['peers'], 'peer')},"
            f" {size(found['bytes'])} with kept versions, of at most {size(found['max_bytes'])}",
        ),
        *([("Channels", _source_words(source))] if source else []),
        ("Directory", f"{found['data_dir']}, {size(found['disk_free'])} free"),
        *_alarm_lines(found["alarms_count"], found["alarms"][-ALARMS_SHOWN:]),
        *(("Event", f"{name}: {n} since the start") for name, n in sorted(events.items())),
    ]
    return f"{wrapped(well)}\n\n{facts(lines)}"


def _alarm_lines(standing: int, shown: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for alarm in shown:
        yield "ALARM", f"{alarm['number']} ({alarm['kind']}): {alarm['text']}"
    if standing > len(shown):
        yield "ALARM", f"{standing - len(shown):,} more, older ones: `peerstore alarms list`"


def _source_words(source: dict[str, Any]) -> str:
    height = "no height yet" if source["height"] is None else f"height {source['height']}"
    return (
        f"{source['open']} open of {source['channels']} known, {height},"
        f" routing node {source['node_id'] or 'not known yet'}"
    )
