"""What retention deletes now: found piece by piece, in the order of the keys.

The rules are told in retention.py. A piece takes its time from what it looks at, not from all that
is due. Run inside the writer's transaction it says what may go at that very moment; run by a
reader, what would.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from peerstore.store.base import Due, Retention
from peerstore.store.plan import PIN_OPERATOR
from peerstore.store.times import Moment
from peerstore.types import BackupKind, NodeId, Slot

Run = Callable[[str, dict[str, object]], Awaitable[list[Any]]]
"""Runs a statement with named values; its rows."""

PRUNED_AT_ONCE = 64
"""Channels, or peers, of one piece."""

PRUNED_BYTES = 4 << 20
"""Bytes with which a piece is large enough: every other writer waits for it."""

_VERSION_BYTES = 16 << 10
"""What a version counts for beside its blob: the page that it stands on."""

NOT_KEPT = f"""
    NOT pins & {PIN_OPERATOR} AND id NOT IN (
        SELECT backup_id FROM hold WHERE hold.node_id = backup.node_id
                                         AND operator AND (until IS NULL OR until > :seen))
"""
"""What of a peer's versions an operator has neither pinned nor holds."""

CLOSING = """
    iif(n.node_id IS NULL, c.closed, n.closed) AS closed,
    iif(n.node_id IS NULL, c.closed_height, n.closed_height) AS closed_height,
    iif(n.node_id IS NULL, c.closed_at, n.closed_at) AS closed_at
"""
"""The closing of a channel `c`, which the routing node knows as `n`, or not: what that says, else
its own messages. `closed` is null while it is open."""

_CLOSINGS = f"""
    SELECT c.node_id, c.channel_id, {CLOSING}
    FROM channel AS c LEFT JOIN node_channel AS n USING (node_id, channel_id)
"""
"""The closing of each channel that has a backup."""

LAST_CLOSINGS = """
    SELECT node_id, iif(max(open), NULL, max(closed)) AS closed, max(closed_height) AS closed_height
    FROM node_channel
"""
"""The last closing of each peer with which the routing node has had channels, GROUP BY node_id;
`closed` is null while one is open."""

_OVER = """
    CASE WHEN k.closed_height IS NOT NULL AND :height IS NOT NULL
         THEN k.closed IS NOT NULL AND :height - max(k.closed_height, p.last_height) >= :blocks
         ELSE :aged - max(k.closed, p.last_aged) >= :after_close END IS TRUE
"""
"""Whether the time after the closing `k` and the last visit of the peer `p` is over."""

STANDS = f"""
    EXISTS (SELECT 1 FROM ({_CLOSINGS} WHERE c.node_id = p.node_id AND n.node_id IS NULL) AS k
            WHERE NOT {_OVER})
"""
"""Whether a channel of the peer `p` that the routing node does not know stands in the way."""

_CLOSED = f"""
    SELECT d.node_id, d.channel_id, count(backup.id), sum(backup.size)
    FROM (
        SELECT k.node_id, k.channel_id
        FROM ({_CLOSINGS} WHERE (c.node_id, c.channel_id) > (:node_id, :channel_id)) AS k
        JOIN peer AS p USING (node_id)
        WHERE {_OVER} ORDER BY k.node_id, k.channel_id LIMIT {PRUNED_AT_ONCE}
    ) AS d
    LEFT JOIN backup ON (backup.node_id, backup.kind, backup.channel_id)
                        = (d.node_id, {int(BackupKind.CHANNEL_BACKUP)}, d.channel_id)
                        AND {NOT_KEPT}
    GROUP BY d.node_id, d.channel_id ORDER BY d.node_id, d.channel_id
"""

_WITHOUT_CHANNELS = f"""
    SELECT d.node_id, backup.kind, backup.channel_id, count(backup.id), sum(backup.size)
    FROM (
        SELECT k.node_id FROM ({LAST_CLOSINGS} WHERE node_id > :node_id GROUP BY node_id) AS k
        JOIN peer AS p USING (node_id)
        WHERE {_OVER} AND NOT {STANDS} ORDER BY k.node_id LIMIT {PRUNED_AT_ONCE}
    ) AS d
    LEFT JOIN backup ON backup.node_id = d.node_id AND backup.kind IN (1, 2) AND {NOT_KEPT}
    GROUP BY d.node_id, backup.kind, backup.channel_id ORDER BY d.node_id
"""

_INACTIVE = f"""
    SELECT d.node_id, backup.kind, backup.channel_id, count(backup.id), sum(backup.size)
    FROM (
        SELECT p.node_id FROM peer AS p
        WHERE p.node_id > :node_id AND p.last_aged <= :inactive AND NOT {STANDS}
              AND NOT EXISTS (SELECT 1 FROM node_channel AS n WHERE n.node_id = p.node_id)
              AND NOT EXISTS (SELECT 1 FROM channel AS c JOIN backup USING (node_id, channel_id)
                              WHERE c.node_id = p.node_id AND backup.kind = 3 AND NOT ({NOT_KEPT}))
        ORDER BY p.node_id LIMIT {PRUNED_AT_ONCE}
    ) AS d
    LEFT JOIN backup ON backup.node_id = d.node_id AND backup.kind IN (1, 2, 3) AND {NOT_KEPT}
         AND NOT EXISTS (SELECT 1 FROM channel AS c WHERE backup.kind = 3
                         AND (c.node_id, c.channel_id) = (backup.node_id, backup.channel_id))
    GROUP BY d.node_id, backup.kind, backup.channel_id ORDER BY d.node_id
"""


@dataclass(frozen=True, slots=True)
class Place:
    """How far the search has come: which rule, and the key behind which it goes on."""

    rule: int = 0
    node_id: bytes = b""
    channel_id: bytes = b""


async def next_due(
    run: Run, retention: Retention, moment: Moment, place: Place
) -> tuple[list[Due], Place | None]:
    """The next piece of what is due, and where the next one begins; None behind the last.

    Who is connected was seen: see that it is written before.
    """
    values: dict[str, object] = {
        "node_id": place.node_id,
        "channel_id": place.channel_id,
        "inactive": moment.aged - retention.inactive,
        **values_of(retention, moment),
    }
    sql, reason = _RULES[place.rule]
    rows = await run(sql, values)
    of_channels = place.rule == 0
    if of_channels:
        kind = BackupKind.CHANNEL_BACKUP
        rows = [(node_id, kind, *rest) for node_id, *rest in rows]
    rows = _not_too_many(rows, parted=of_channels)
    found = [
        Due(Slot(NodeId(node_id), BackupKind(kind), channel_id), count, size, reason)
        for node_id, kind, channel_id, count, size in rows
        if count
    ]
    if rows:
        return found, replace(place, node_id=rows[-1][0], channel_id=rows[-1][2] or b"")
    following = place.rule + 1
    last = len(_RULES) if retention.inactive else len(_RULES) - 1
    return [], Place(following) if following < last else None


def _not_too_many(rows: list[Any], *, parted: bool) -> list[Any]:
    """The first rows, of PRUNED_BYTES or a little more; those of a peer may be `parted` or not."""
    weight = 0
    for index, (row, following) in enumerate(itertools.pairwise(rows), 1):
        count, size = row[3:]
        weight += (size or 0) + count * _VERSION_BYTES
        if weight >= PRUNED_BYTES and (parted or following[0] != row[0]):
            return rows[:index]
    return rows


def values_of(retention: Retention, moment: Moment) -> dict[str, object]:
    """The named values of what stands above."""
    return {
        "seen": moment.seen,
        "aged": moment.aged,
        "height": moment.height,
        "blocks": retention.blocks,
        "after_close": retention.after_close,
    }


_RULES = (
    (_CLOSED, "the channel is closed"),
    (_WITHOUT_CHANNELS, "all channels with the peer are closed"),
    (_INACTIVE, "the peer has been away for inactive_time"),
)
