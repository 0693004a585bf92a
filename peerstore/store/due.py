"""What retention deletes now: found piece by piece, in the order of the keys.

A piece takes its time from what it looks at, not from all that is due. Run inside the writer's
transaction it says what may go at that very moment; run by a reader, what would.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from peerstore.store.base import Due, Retention
from peerstore.store.plan import PIN_OPERATOR
from peerstore.types import BackupKind, NodeId, Slot

Run = Callable[[str, dict[str, object]], Awaitable[list[Any]]]
"""Runs a statement with named values; its rows."""

PRUNED_AT_ONCE = 64
"""Channels, or peers, of one piece."""

NOT_KEPT = f"""
    NOT pins & {PIN_OPERATOR} AND id NOT IN (
        SELECT backup_id FROM hold WHERE hold.node_id = backup.node_id
                                         AND operator AND (until IS NULL OR until > :seen))
"""
"""What of a peer's versions an operator has neither pinned nor holds."""

_CLOSED = f"""
    SELECT c.node_id, c.channel_id, count(backup.id), sum(backup.size)
    FROM (
        SELECT c.node_id, c.channel_id FROM channel AS c JOIN peer AS p USING (node_id)
        WHERE (c.node_id, c.channel_id) > (:node_id, :channel_id)
              AND c.closed <= :closed AND p.last_seen <= :closed
        ORDER BY c.node_id, c.channel_id LIMIT {PRUNED_AT_ONCE}
    ) AS c
    LEFT JOIN backup ON (backup.node_id, backup.kind, backup.channel_id)
                        = (c.node_id, {int(BackupKind.CHANNEL_BACKUP)}, c.channel_id)
                        AND {NOT_KEPT}
    GROUP BY c.node_id, c.channel_id ORDER BY c.node_id, c.channel_id
"""

_INACTIVE = f"""
    SELECT p.node_id, backup.kind, backup.channel_id, count(backup.id), sum(backup.size)
    FROM (
        SELECT node_id FROM peer AS p
        WHERE node_id > :node_id AND last_seen <= :inactive
              AND NOT EXISTS (
                  SELECT 1 FROM channel AS c WHERE c.node_id = p.node_id
                  AND (c.closed <= :closed AND p.last_seen <= :closed AND NOT EXISTS (
                      SELECT 1 FROM backup WHERE backup.node_id = c.node_id
                      AND backup.kind = 3 AND backup.channel_id = c.channel_id
                      AND NOT ({NOT_KEPT}))) IS NOT TRUE)
        ORDER BY node_id LIMIT {PRUNED_AT_ONCE}
    ) AS p
    LEFT JOIN backup ON backup.node_id = p.node_id AND backup.kind IN (1, 2, 3) AND {NOT_KEPT}
         AND NOT EXISTS (SELECT 1 FROM channel AS c WHERE backup.kind = 3
                         AND (c.node_id, c.channel_id) = (backup.node_id, backup.channel_id))
    GROUP BY p.node_id, backup.kind, backup.channel_id ORDER BY p.node_id
"""


@dataclass(frozen=True, slots=True)
class Place:
    """How far the search has come: which rule, and the key behind which it goes on."""

    rule: int = 0
    node_id: bytes = b""
    channel_id: bytes = b""


async def next_due(
    run: Run, retention: Retention, seen: int, place: Place
) -> tuple[list[Due], Place | None]:
    """The next piece of what is due, and where the next one begins; None behind the last.

    `seen` is the seconds that daemons have seen pass. Who is connected was seen: see that it is
    written before.
    """
    values: dict[str, object] = {
        "seen": seen,
        "node_id": place.node_id,
        "channel_id": place.channel_id,
        "closed": seen - retention.after_close,
        "inactive": seen - retention.inactive,
    }
    if place.rule == 0:
        rows = await run(_CLOSED, values)
        found = [
            Due(Slot(NodeId(node_id), BackupKind.CHANNEL_BACKUP, channel_id), count, size, _CHANNEL)
            for node_id, channel_id, count, size in rows
            if count
        ]
        if rows:
            return found, replace(place, node_id=rows[-1][0], channel_id=rows[-1][1])
        return [], Place(rule=1) if retention.inactive else None
    rows = await run(_INACTIVE, values)
    found = [
        Due(Slot(NodeId(node_id), BackupKind(kind), channel_id), count, size, _AWAY)
        for node_id, kind, channel_id, count, size in rows
        if count
    ]
    return found, replace(place, node_id=rows[-1][0]) if rows else None


_CHANNEL = "the channel is closed"
_AWAY = "the peer has been away for inactive_time"
