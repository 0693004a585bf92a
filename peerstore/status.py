"""What the status page shows, gathered from the parts of the daemon."""

from __future__ import annotations

from collections.abc import Sequence

from peerstore import __version__
from peerstore.config import Config
from peerstore.health import Problem
from peerstore.server import PeerServer
from peerstore.status_page import ShownAlarm, ShownRefusal, ShownSource, Status
from peerstore.store.base import Alarm, Sample
from peerstore.store.sqlite import SqliteStore
from peerstore.watch import ChannelWatch

SHOWN_SECONDS = 31 * 86400
"""How much of what was noted over time can be seen."""

SHOWN_ALARMS = 20

_REASONS = {
    "handshakes_per_ip": "too many handshakes a second from this address",
    "handshakes_per_group": "too many handshakes a second from its network",
    "connections_per_ip": "too many connections from this address",
    "handshakes": "too many handshakes at once: it gave way",
    "full": "too many connections: it gave way",
    "bad_handshake": "its handshake was wrong",
    "handshake_timeout": "its handshake took too long",
}
"""The reasons of refused connections in words; the log has the names."""


async def status_of(
    *,
    config: Config,
    server: PeerServer,
    store: SqliteStore,
    watch: ChannelWatch | None,
    uris: Sequence[str],
    running: float,
    now: float,
    problems: Sequence[Problem],
    disk_free: int | None,
    alarms: Sequence[Alarm],
    standing: int,
    activity: Sequence[Sample],
) -> Status:
    """The status at `now`, in Unix seconds, after `running` seconds; of `standing` alarms `alarms`
    are the newest."""
    counts = await store.counts()
    return Status(
        now=now,
        running=running,
        alias=str(config.alias),
        network=config.network.value,
        version=__version__,
        uris=uris,
        announced=bool(config.listen.announce),
        problems=tuple(problem.text for problem in problems),
        connections=len(server.connections),
        peers=counts.peers,
        backups=counts.backups,
        bytes=counts.bytes,
        max_bytes=config.store.max_bytes,
        disk_free=disk_free,
        source=None if watch is None else _source(config.channels.source, watch),
        activity=activity,
        refusals=_refusals(server),
        alarms=[_alarm(alarm) for alarm in alarms],
        standing=standing,
    )


def _source(kind: str, watch: ChannelWatch) -> ShownSource:
    said = watch.describe()
    return ShownSource(kind, said["error"] or "", said["height"], said["open"], said["channels"])


def _refusals(server: PeerServer) -> list[ShownRefusal]:
    now = server.loop.time()
    return [
        ShownRefusal(
            noted.who, _REASONS.get(noted.reason, noted.reason), noted.count, now - noted.last_at
        )
        for noted in server.refusals.newest()
    ]


def _alarm(alarm: Alarm) -> ShownAlarm:
    node_id = "" if alarm.slot is None else alarm.slot.node_id.hex()
    return ShownAlarm(
        alarm.number, alarm.kind, alarm.text, node_id, alarm.raised_at, alarm.last_at, alarm.count
    )
