"""What an operator does to stored backups; each runs inside one transaction of the writer.

Every operation takes the writer's connection and the times, and returns the peers whose holdings
it changed. They raise StoreError when there is nothing to do it to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiosqlite

from peerstore.errors import StoreError
from peerstore.store.plan import PIN_AUTOMATIC, PIN_OPERATOR
from peerstore.types import BackupKind, NodeId, Slot


@dataclass(frozen=True, slots=True)
class Transaction:
    """The writer's connection, the wall clock, and the seconds that daemons have seen pass."""

    connection: aiosqlite.Connection
    now: int
    seen: int

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
        until = None if seconds is None else tx.seen + seconds
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
        await tx.all("DELETE FROM hold WHERE backup_id = ?", row_id)
        size = (await tx.all("DELETE FROM backup WHERE id = ? RETURNING size", row_id))[0][0]
        await tx.all(
            f"UPDATE backup SET replaced = NULL WHERE replaced IS NOT NULL AND id ="
            f" (SELECT max(id) FROM backup WHERE {_SLOT})",
            *_key(slot),
        )
        await tx.all(
            "DELETE FROM channel WHERE node_id = ? AND channel_id = ?"
            f" AND NOT EXISTS (SELECT 1 FROM backup WHERE {_SLOT})",
            slot.node_id,
            slot.channel_id,
            *_key(slot),
        )
        gone = await tx.all(
            "DELETE FROM peer WHERE node_id = ?"
            " AND NOT EXISTS (SELECT 1 FROM backup AS b WHERE b.node_id = peer.node_id)"
            " RETURNING 1",
            slot.node_id,
        )
        await tx.all(
            "UPDATE meta SET versions = versions - 1, bytes = bytes - ?, peers = peers - ?,"
            f" backups = backups - NOT EXISTS (SELECT 1 FROM backup WHERE {_SLOT})",
            size,
            len(gone),
            *_key(slot),
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
