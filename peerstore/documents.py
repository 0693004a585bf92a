"""What the JSON documents of commands and of the control socket are made of.

Keys stay as they are: scripts read them. Times are ISO 8601 in UTC, ids are hexadecimal, sizes are
bytes; what is not known is null.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

from peerstore.store.base import Alarm, ChannelRow, Due, Peer, Refusal, Retention, Version
from peerstore.types import Slot
from peerstore.wire import features

_LAST_SECOND = 253402300799
"""Of the year 9999."""


def iso(seconds: float) -> str:
    """A time in Unix seconds; one that no calendar has is shown as the nearest that it has."""
    shown = datetime.fromtimestamp(min(max(seconds, 0), _LAST_SECOND), UTC)
    return shown.isoformat().replace("+00:00", "Z")


def _iso_or_none(seconds: float | None) -> str | None:
    return None if seconds is None else iso(seconds)


def slot_document(slot: Slot) -> dict[str, Any]:
    """What names a slot."""
    return {
        "node_id": slot.node_id.hex(),
        "kind": slot.kind.label,
        "channel_id": slot.channel_id.hex() or None,
    }


def version_document(version: Version, *, history: bool = False) -> dict[str, Any]:
    """A version of a backup.

    `held` says in a history that this version is given back in place of the current one, in a
    list of current versions that another one is.
    """
    revision = version.revision
    document: dict[str, Any] = {
        **slot_document(revision.slot),
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


def alarm_document(alarm: Alarm) -> dict[str, Any]:
    """An alarm; what it is about is null where that is the whole database."""
    slot = alarm.slot
    return {
        "number": alarm.number,
        "kind": alarm.kind,
        "text": alarm.text,
        "node_id": None if slot is None else slot.node_id.hex(),
        "backup_kind": None if slot is None else slot.kind.label,
        "channel_id": None if slot is None else slot.channel_id.hex() or None,
        "revision": alarm.revision,
        "raised_at": iso(alarm.raised_at),
        "last_at": iso(alarm.last_at),
        "count": alarm.count,
        "acknowledged_at": _iso_or_none(alarm.acknowledged_at),
    }


def due_document(due: Due) -> dict[str, Any]:
    """What retention deletes."""
    return {
        **slot_document(due.slot),
        "versions": due.versions,
        "bytes": due.bytes,
        "reason": due.reason,
    }


def refusal_document(refusal: Refusal) -> dict[str, Any]:
    """Why updates were refused."""
    return {
        "reason": refusal.reason,
        "count": refusal.count,
        "first_at": iso(refusal.first_at),
        "last_at": iso(refusal.last_at),
    }


def channel_document(channel: ChannelRow, retention: Retention) -> dict[str, Any]:
    """A channel, what the routing node and its own messages have said, and when its backup goes.

    `peer_deleted_in_…` is for what else the peer has stored. Either is in blocks or, where no
    height is known, in seconds that age things; both null: never, as things are.
    """
    state = channel.state
    blocks, seconds = retention.left(channel.passed)
    peer_blocks, peer_seconds = retention.left(channel.peer_passed)
    return {
        "node_id": channel.slot.node_id.hex(),
        "channel_id": channel.slot.channel_id.hex(),
        "state": _channel_state(channel),
        "known_to_routing_node": bool(channel.node_says),
        "has_backup": channel.has_backup,
        "commitments": state and state.commitments,
        "revocations": state and state.revocations,
        "seen_whole": state and state.whole,
        "closed_height": channel.closed_height,
        "closed_at": _iso_or_none(channel.closed_at),
        "deleted_in_blocks": blocks,
        "deleted_in_seconds": seconds,
        "peer_deleted_in_blocks": peer_blocks,
        "peer_deleted_in_seconds": peer_seconds,
    }


def _channel_state(channel: ChannelRow) -> str:
    if channel.node_says:
        return channel.node_says
    state = channel.state
    if state is None:
        return "unknown"
    return "closed" if state.closed else "closing" if state.shutdown else "open"


class Live(NamedTuple):
    """What the daemon alone knows of peers, by node id.

    `connections` are as it describes them, None where they are not known. `kept` says of each peer
    that is kept connected why it is not, None where it is connected or was not tried yet.
    """

    connections: dict[str, dict[str, Any]] | None
    kept: dict[str, str | None]

    @property
    def connected(self) -> dict[str, dict[str, Any]]:
        """Who is connected, as far as is known."""
        return self.connections or {}


def peer_document(peer: Peer, live: Live) -> dict[str, Any]:
    """A peer that has something stored."""
    return {
        **stranger_document(peer.node_id.hex(), peer.rule, live),
        **({} if peer.node_id.hex() in live.connected else _last_known(peer)),
        "first_seen_at": iso(peer.first_seen_at),
        "last_seen_at": iso(peer.last_seen_at),
        "away_seconds": 0 if peer.node_id.hex() in live.connected else peer.away,
        "established": peer.established,
        "backups": peer.backups,
        "bytes": peer.bytes,
    }


def _last_known(peer: Peer) -> dict[str, Any]:
    """What is only known from a peer's last connection."""
    return {"address": peer.address or None, "client": _client(peer.features)}


def _client(field: bytes) -> str | None:
    return features.client(features.decode_features(field)) or None


def stranger_document(node_id: str, rule: str, live: Live) -> dict[str, Any]:
    """A peer that has nothing stored: it is connected or kept, or there is a rule about it."""
    connection = live.connected.get(node_id)
    return {
        "node_id": node_id,
        "connected": None if live.connections is None else connection is not None,
        "kept": None if live.connections is None else node_id in live.kept,
        "address": connection["address"] if connection else None,
        "first_seen_at": None,
        "last_seen_at": None,
        "away_seconds": 0 if connection else None,
        "established": False,
        "rule": rule or None,
        "client": None if connection is None else _client(bytes.fromhex(connection["features"])),
        "backups": 0,
        "bytes": 0,
    }
