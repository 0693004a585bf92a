"""What an operator does to stored backups; each runs inside one transaction of the writer.

Every operation takes the writer's connection and the times, and returns the peers whose holdings
it changed. They raise StoreError when there is nothing to do it to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from peerstore.channels.base import KnownChannel
from peerstore.errors import StoreError
from peerstore.store import deletion
from peerstore.store.base import KEPT_SAMPLES, SAMPLE_SECONDS, Due, Retention
from peerstore.store.database import Database
from peerstore.store.due import NOT_KEPT, Place, next_due
from peerstore.store.plan import PIN_AUTOMATIC, PIN_OPERATOR
from peerstore.store.times import Moment
from peerstore.types import BackupKind, NodeId, Slot


@dataclass(frozen=True, slots=True)
class Transaction:
    """The writer's connection, the wall clock, and the times that decide."""

    connection: Database
    now: int
    moment: Moment

    async def all(self, sql: str, *parameters: object) -> list[Any]:
        """Run a statement; its rows."""
        return list(await self.connection.execute_fetchall(sql, parameters))


Operation = Callable[[Transaction], Awaitable[set[NodeId]]]

_SLOT = "node_id = ? AND kind = ? AND channel_id = ?"


def pin(slot: Slot, revision: int) -> Operation:
    """Keep a version from being thinned until it is unpinned."""

    async def operation(tx: Transaction) -> set[NodeId]:
        row_id = await _row_id(tx, slot, revision)
        await tx.all(f"UPDATE backup SET pins = pins | {PIN_OPERATOR} WHERE id = ?", row_id)
        return {slot.node_id}

    return operation


def unpin(slot: Slot, revision: int) -> Operation:
    """Undo every pin of a version; the next thinning may take it."""

    async def operation(tx: Transaction) -> set[NodeId]:
        row_id = await _row_id(tx, slot, revision)
        await tx.all("UPDATE backup SET pins = 0 WHERE id = ?", row_id)
        return {slot.node_id}

    return operation


def hold(slot: Slot, revision: int, seconds: int | None) -> Operation:
    """Give a version back in place of the current one, for so long as the daemon sees pass."""

    async def operation(tx: Transaction) -> set[NodeId]:
        row_id = await _row_id(tx, slot, revision)
        until = None if seconds is None else tx.moment.seen + seconds
        await set_hold(tx, slot, row_id, operator=True, until=until)
        if slot.kind is BackupKind.NODE_BACKUP:
            # Whoever holds it wants it given back.
            await tx.all("UPDATE peer SET forgone = 0 WHERE node_id = ?", slot.node_id)
        return {slot.node_id}

    return operation


def release(slot: Slot) -> Operation:
    """Give the current version back again."""

    async def operation(tx: Transaction) -> set[NodeId]:
        if not await tx.all(f"DELETE FROM hold WHERE {_SLOT} RETURNING backup_id", *_key(slot)):
            raise StoreError(f"no version of {slot.label} is held for {slot.node_id.hex()}")
        return {slot.node_id}

    return operation


def delete(slot: Slot, revision: int) -> Operation:
    """Delete a version; the one before the current one becomes current in its place."""

    async def operation(tx: Transaction) -> set[NodeId]:
        row_id = await _row_id(tx, slot, revision)
        await tx.connection.call(
            lambda connection: deletion.delete_versions(
                connection, [slot], "id = :id", {"id": row_id}
            )
        )
        return {slot.node_id}

    return operation


def forgo(node_id: NodeId, still_so: Callable[[], bool]) -> Operation:
    """Don't show a peer its node backup until it stores one anew."""

    async def operation(tx: Transaction) -> set[NodeId]:
        if still_so():
            await tx.all("UPDATE peer SET forgone = 1 WHERE node_id = ?", node_id)
        return set()

    return operation


def set_rule(node_id: NodeId, rule: str, *, undo: bool) -> Operation:
    """Serve a peer whatever the policy says ("allow"), or never ("deny"), or take that back."""

    async def operation(tx: Transaction) -> set[NodeId]:
        if not undo:
            await tx.all(
                "INSERT OR REPLACE INTO rule (node_id, rule, set_at) VALUES (?, ?, ?)",
                node_id, rule, tx.now,
            )  # fmt: skip
        elif not await tx.all(
            "DELETE FROM rule WHERE node_id = ? AND rule = ? RETURNING 1", node_id, rule
        ):
            raise StoreError(f"there is no rule to {rule} {node_id.hex()}")
        return set()

    return operation


def forget(node_id: NodeId) -> Operation:
    """Delete all that is stored for a peer and known of it, but not a rule about it."""

    async def operation(tx: Transaction) -> set[NodeId]:
        if not await tx.all("SELECT 1 FROM peer WHERE node_id = ?", node_id):
            raise StoreError(f"nothing is stored for a peer {node_id.hex()}")
        await delete_peers(tx, [node_id])
        return {node_id}

    return operation


async def delete_peers(tx: Transaction, node_ids: Sequence[NodeId]) -> None:
    """Delete all of some peers within a transaction; alarms about them are acknowledged."""
    await tx.connection.call(lambda connection: deletion.delete_peers(connection, node_ids, tx.now))


def learn(channels: Iterable[KnownChannel]) -> Operation:
    """Remember what the routing node says of channels."""

    async def operation(tx: Transaction) -> set[NodeId]:
        await tx.connection.executemany(
            "INSERT OR REPLACE INTO node_channel (node_id, channel_id, open, closed_height,"
            " unsettled, closed, closed_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (*c.key, int(c.open), c.closed_height, int(c.unsettled), c.closed, c.closed_at)
                for c in channels
            ],
        )
        return set()

    return operation


def learn_node(node_id: NodeId, height: int) -> Operation:
    """Remember which node tells of the channels; an alarm when it is another one than before."""

    async def operation(tx: Transaction) -> set[NodeId]:
        ((before,),) = await tx.all("SELECT routing_node FROM meta")
        await tx.all("UPDATE meta SET routing_node = ?", node_id)
        if before is not None and before != node_id:
            text = (
                f"the routing node is {node_id.hex()} now, it was {before.hex()}: the channels that"
                f" it does not know count as closed at height {height}; if that is a"
                " mistake, correct [channels] and restart"
            )
            await add_alarm(tx, "source", text, None, None)
        return set()

    return operation


def renew_visits() -> Operation:
    """Take every peer to have been here just now, where it is not known who was."""

    async def operation(tx: Transaction) -> set[NodeId]:
        await tx.all("UPDATE peer SET last_height = NULL, last_aged = ?", tx.moment.aged)
        return set()

    return operation


def date_visits(limit: int) -> tuple[Operation, list[int]]:
    """Give a height to visits of a time when none was known: the one now, for it is no lower.

    With it comes a list that takes how many there were; at most `limit`.
    """
    dated: list[int] = []

    async def operation(tx: Transaction) -> set[NodeId]:
        height = tx.moment.height
        rows = await tx.all(
            "UPDATE peer SET last_height = ? WHERE node_id IN"
            " (SELECT node_id FROM peer WHERE last_height IS NULL LIMIT ?) RETURNING 1",
            height, limit if height is not None else 0,
        )  # fmt: skip
        dated.append(len(rows))
        return set()

    return operation, dated


def prune(
    retention: Retention, place: Place, reserve: Callable[[Iterable[NodeId]], set[NodeId]]
) -> tuple[Operation, list[Due], list[Place | None]]:
    """Delete the next piece of what is due by retention, but what an operator has pinned or holds.

    With it come two lists that take what was deleted, and where the next piece begins. What is due
    is found inside the transaction; `reserve` leaves out who is here, or was since that was written
    last, and lets nobody of the others in until the end: no one who comes back loses what it was
    given back.
    """
    pruned: list[Due] = []
    following: list[Place | None] = []

    async def operation(tx: Transaction) -> set[NodeId]:
        if not tx.moment.aging:
            following.append(None)  # the routing node was lost meanwhile
            return set()

        async def run(sql: str, values: dict[str, object]) -> list[Any]:
            return list(await tx.connection.execute_fetchall(sql, values))

        due, further = await next_due(run, retention, tx.moment, place)
        following.append(further)
        away = reserve({each.slot.node_id for each in due})
        pruned.extend(each for each in due if each.slot.node_id in away)
        slots, values = [each.slot for each in pruned], {"seen": tx.moment.seen}
        if slots:
            await tx.connection.call(
                lambda connection: deletion.delete_versions(connection, slots, NOT_KEPT, values)
            )
        return {slot.node_id for slot in slots}

    return operation, pruned, following


def acknowledge(number: int) -> Operation:
    """Take note of an alarm; what the store did of itself because of it is undone."""

    async def operation(tx: Transaction) -> set[NodeId]:
        rows = await tx.all(
            "UPDATE alarm SET acknowledged_at = ? WHERE id = ? AND acknowledged_at IS NULL"
            " RETURNING kind, node_id, backup_kind, channel_id",
            tx.now,
            number,
        )
        if not rows:
            raise StoreError(f"there is no alarm {number} that stands: see `peerstore alarms list`")
        kind, *slot = rows[0]
        if kind != "shrink":
            return set()
        await tx.all(f"DELETE FROM hold WHERE {_SLOT} AND NOT operator", *slot)
        await tx.all(f"UPDATE backup SET pins = pins & ~{PIN_AUTOMATIC} WHERE {_SLOT}", *slot)
        return {NodeId(slot[0])}

    return operation


def raise_alarm(kind: str, text: str, slot: Slot | None, revision: int | None) -> Operation:
    """Raise an alarm, or count it again when the same one stands."""

    async def operation(tx: Transaction) -> set[NodeId]:
        await add_alarm(tx, kind, text, slot, revision)
        return set()

    return operation


def note_activity(updates: int) -> Operation:
    """Note how much is stored and how many updates came since this was done last.

    What is noted, and what goes because it is old, is told by the time that daemons have seen
    pass: a clock that jumps takes no place of another sample and makes none grow old.
    """

    async def operation(tx: Transaction) -> set[NodeId]:
        period = tx.moment.seen // SAMPLE_SECONDS
        await tx.all(
            "INSERT INTO activity (period, at, bytes, updates) SELECT ?, ?, bytes, ? FROM meta"
            # A daemon that was started anew within the period; WHERE is for SQLite's parser.
            " WHERE TRUE ON CONFLICT (period) DO UPDATE SET"
            " at = excluded.at, bytes = excluded.bytes, updates = updates + excluded.updates",
            period, tx.now, updates,
        )  # fmt: skip
        await tx.all("DELETE FROM activity WHERE period <= ?", period - KEPT_SAMPLES)
        return set()

    return operation


async def add_alarm(
    tx: Transaction, kind: str, text: str, slot: Slot | None, revision: int | None
) -> None:
    """Raise an alarm within a transaction, or count it again when the same one stands."""
    key = (None, None, None) if slot is None else _key(slot)
    counted = await tx.all(
        "UPDATE alarm SET count = count + 1, last_at = ?, text = ?, revision = ?"
        " WHERE acknowledged_at IS NULL"
        " AND kind = ? AND node_id IS ? AND backup_kind IS ? AND channel_id IS ? RETURNING id",
        tx.now, text, revision, kind, *key,
    )  # fmt: skip
    if not counted:
        await tx.all(
            "INSERT INTO alarm (kind, node_id, backup_kind, channel_id, revision, text, raised_at,"
            " last_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            kind, *key, revision, text, tx.now, tx.now,
        )  # fmt: skip


async def set_hold(
    tx: Transaction, slot: Slot, row_id: int, *, operator: bool, until: int | None
) -> None:
    """Hold a version within a transaction."""
    await tx.all(
        "INSERT OR REPLACE INTO hold (node_id, kind, channel_id, backup_id, operator, until)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        *_key(slot), row_id, int(operator), until,
    )  # fmt: skip


def _key(slot: Slot) -> tuple[object, ...]:
    return slot.node_id, int(slot.kind), slot.channel_id


async def _row_id(tx: Transaction, slot: Slot, revision: int) -> int:
    rows = await tx.all(
        f"SELECT id FROM backup WHERE {_SLOT} AND revision = ?", *_key(slot), revision
    )
    if not rows:
        raise StoreError(
            f"{slot.node_id.hex()} has no {slot.label} of revision {revision}:"
            " see `peerstore backups history`"
        )
    return int(rows[0][0])
