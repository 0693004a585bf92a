"""Finding who may give way when the store is full; room.py decides who of them does.

Read inside the transaction that deletes them. Strangers are found by indexes and the table `crowd`,
so that a full store costs each transaction the same, however many there are. Only peers that have
been away for long are looked for among all, and that at most every ten minutes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from peerstore.store.crowd import Crowds, Group, Stranger
from peerstore.store.due import NOT_KEPT
from peerstore.store.operations import Transaction
from peerstore.store.room import Candidates, Displaced, Spare
from peerstore.types import NodeId

SPARE_ROWS = 256
"""Kept versions of strangers that one transaction may delete to make room."""

DISPLACED_AT_ONCE = 128
"""Peers that one transaction may displace."""

DISPLACED_VERSIONS = 2048
"""Versions of theirs after which it displaces no further one."""

AWAY_SECONDS = 180 * 86400
"""How long an established peer must have been away to give way."""

LOOK_SECONDS = 600
"""How often at most such peers are looked for."""

LONG_AWAY_ROWS = 1024
"""How many of them are remembered."""

ON_PROBATION = "on probation"
AWAY = "away for 180 days"

_GROUPS_PAGE = 32
_SPARE_PAGE = 256

_LAST = (1 << 63) - 1
_FIRST_KEY = (_LAST, _LAST, "")

_GROUPS = f"""
    SELECT c.address_group, c.strangers, c.newest, p.node_id, p.first_seen, p.last_height
    FROM (
        SELECT address_group, strangers, newest FROM crowd
        WHERE (strangers, newest, address_group) < (?, ?, ?)
        ORDER BY strangers DESC, newest DESC, address_group DESC LIMIT {_GROUPS_PAGE}
    ) AS c
    LEFT JOIN peer AS p ON p.node_id = (
        SELECT q.node_id FROM peer AS q
        WHERE q.address_group = c.address_group AND q.established = 0
        ORDER BY q.first_seen DESC, q.node_id DESC LIMIT 1)
    ORDER BY c.strangers DESC, c.newest DESC, c.address_group DESC
"""

_MEMBERS = """
    SELECT node_id, address_group, first_seen, last_height FROM peer
    WHERE address_group = ? AND established = 0 AND (first_seen, node_id) < (?, ?)
    ORDER BY first_seen DESC, node_id DESC LIMIT ?
"""

_WITH_SPARE = f"""
    SELECT node_id, first_seen, last_height FROM peer
    WHERE established = 0 AND spare > 0 AND (first_seen, node_id) < (?, ?)
    ORDER BY first_seen DESC, node_id DESC LIMIT {_SPARE_PAGE}
"""

_SPARE = """
    SELECT id, size FROM backup
    WHERE node_id = ? AND replaced IS NOT NULL AND pins = 0
          AND NOT EXISTS (SELECT 1 FROM hold WHERE hold.backup_id = backup.id
                                             AND hold.node_id = backup.node_id)
    ORDER BY id LIMIT ?
"""

_STORED = f"""
    SELECT count(*), coalesce(sum(versions), 0), coalesce(sum(bytes), 0), coalesce(max(kept), 0)
    FROM (
        SELECT count(*) AS versions, sum(size) AS bytes, max(NOT ({NOT_KEPT})) AS kept
        FROM backup WHERE node_id = :node_id GROUP BY kind, channel_id
    )
"""
"""How much a peer has stored, and whether an operator keeps something of it."""

_LONG_AWAY = """
    SELECT node_id, last_height FROM peer
    WHERE established <> 0 AND last_seen <= ? ORDER BY last_seen, node_id
"""


class Doorkeeper(Protocol):
    """What the database does not know of peers."""

    def stays(self, node_id: NodeId, last_height: int | None) -> bool:
        """Whether a peer may not give way; `last_height` is that of its last visit there."""

    def close_door(self, node_id: NodeId) -> None:
        """Keep a peer away until the transaction has ended."""


class GivingWay:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._long_away: deque[NodeId] = deque()
        self._look_again = 0

    async def find(
        self, tx: Transaction, door: Doorkeeper, *, size: int, places: int
    ) -> Candidates:
        """Who may go, so that at least `size` bytes and `places` peers would be free.

        Fewer where there are no more, or too many for one transaction. Raises sqlite3.Error.
        """
        spare = await _spare(tx, door, size)
        of_peers = dict.fromkeys((each.node_id for each in spare), 0)
        for each in spare:
            of_peers[each.node_id] += each.size
        size -= sum(of_peers.values())
        found: list[Displaced] = []
        versions = 0
        strangers = Crowds(
            _Rows(tx),
            lambda each: door.stays(each.node_id, each.last_height),
            lambda each: _claimed(tx, door, each),
        )
        while size > 0 or places > 0:
            if len(found) == DISPLACED_AT_ONCE or versions >= DISPLACED_VERSIONS:
                return Candidates(spare, found, more=True)
            peer = await strangers.next()
            if peer is None and strangers.gave_up:
                return Candidates(spare, found, more=True)
            peer = peer or await self._next_away(tx, door, found)
            if peer is None:
                break
            found.append(peer)
            versions += peer.versions
            size -= peer.bytes - of_peers.get(peer.node_id, 0)
            places -= 1
        return Candidates(spare, found, more=len(spare) == SPARE_ROWS)

    async def _next_away(
        self, tx: Transaction, door: Doorkeeper, found: Sequence[Displaced]
    ) -> Displaced | None:
        """The peer that has been away the longest, of those that are not found yet."""
        known = {each.node_id for each in found}
        while True:
            for node_id in [n for n in self._long_away if n not in known]:
                rows = await tx.all(
                    "SELECT last_height, address_group FROM peer WHERE node_id = ?"
                    " AND established <> 0 AND last_seen <= ?",
                    node_id, tx.moment.seen - AWAY_SECONDS,
                )  # fmt: skip
                for height, group in rows:
                    if not door.stays(node_id, height):
                        door.close_door(node_id)
                        peer = await _stored(tx, node_id, group, AWAY)
                        if peer is not None:
                            return peer
                self._long_away.remove(node_id)  # it is gone, has come back, or has to stay
            if self._long_away or tx.moment.seen < self._look_again:
                return None
            self._look_again = tx.moment.seen + LOOK_SECONDS
            await self._look(tx, door)

    async def _look(self, tx: Transaction, door: Doorkeeper) -> None:
        """Remember those that have been away the longest; reads all that were away for long."""
        limit = tx.moment.seen - AWAY_SECONDS
        async with tx.connection.execute(_LONG_AWAY, (limit,)) as cursor:
            while len(self._long_away) < LONG_AWAY_ROWS:
                rows = list(await cursor.fetchmany(LONG_AWAY_ROWS))
                if not rows:
                    return
                self._long_away += [
                    NodeId(node_id) for node_id, height in rows if not door.stays(node_id, height)
                ]


class _Rows:
    """The strangers in the database; see crowd.Strangers."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx

    async def groups(self, after: Group | None) -> Sequence[Group]:
        key = _FIRST_KEY if after is None else (after.strangers, after.newest, after.address_group)
        return [
            Group(
                group,
                strangers,
                newest,
                None if node_id is None else Stranger(NodeId(node_id), group, first_seen, height),
            )
            for group, strangers, newest, node_id, first_seen, height in await self._tx.all(
                _GROUPS, *key
            )
        ]

    async def members(self, after: Stranger, limit: int) -> Sequence[Stranger]:
        rows = await self._tx.all(
            _MEMBERS, after.address_group, after.first_seen, after.node_id, limit
        )
        return [Stranger(NodeId(node_id), *rest) for node_id, *rest in rows]


async def _claimed(tx: Transaction, door: Doorkeeper, stranger: Stranger) -> Displaced | None:
    """A stranger with what it has stored, if it may give way."""
    if door.stays(stranger.node_id, stranger.last_height):
        return None  # it has come since it was read
    door.close_door(stranger.node_id)
    return await _stored(tx, stranger.node_id, stranger.address_group, ON_PROBATION)


async def _stored(
    tx: Transaction, node_id: NodeId, address_group: str, reason: str
) -> Displaced | None:
    """What a peer has stored; None where an operator keeps some of it."""
    values = {"node_id": node_id, "seen": tx.moment.seen}
    ((backups, versions, size, kept),) = await tx.connection.execute_fetchall(_STORED, values)
    if kept or not versions:
        return None
    return Displaced(node_id, backups, versions, size, address_group, reason)


async def _spare(tx: Transaction, door: Doorkeeper, size: int) -> list[Spare]:
    """Kept versions of strangers of so many bytes, those of the newest first."""
    found: list[Spare] = []
    key = (_LAST, b"\xff")
    peers: list[Any] = [None]
    while size > 0 and peers:
        peers = await tx.all(_WITH_SPARE, *key)
        for node_id, first_seen, height in peers:
            key = (first_seen, node_id)
            if door.stays(node_id, height):
                continue
            door.close_door(node_id)
            for row_id, bytes_ in await tx.all(_SPARE, node_id, SPARE_ROWS):
                if size <= 0 or len(found) == SPARE_ROWS:
                    return found
                found.append(Spare(row_id, bytes_, NodeId(node_id)))
                size -= bytes_
    return found
