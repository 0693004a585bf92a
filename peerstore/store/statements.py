"""The SQL of the writer: setting a database up, and writing what was planned."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sqlite3
from dataclasses import asdict
from pathlib import Path

import aiosqlite

from peerstore.errors import SchemaError
from peerstore.ownership import give_to_owner, new_file
from peerstore.store import operations
from peerstore.store.base import Counts, channel_digest
from peerstore.store.history import Kept
from peerstore.store.lease import MAX_REASONS
from peerstore.store.migrate import migrate, schema_version
from peerstore.store.operations import Transaction
from peerstore.store.plan import PIN_AUTOMATIC, KeptRow, Loss, Plan
from peerstore.store.room import Totals
from peerstore.types import BackupKind, ChannelState, Network, NodeId, Slot

ROWS = 128
"""Rows of one statement. Python's sqlite3 gives up the GIL and takes it again for every execution;
with the event loop busy beside it that costs more than the row, so many rows go in one."""

CACHED = 2 * ROWS
"""Statements that the writer's connection keeps prepared: each number of rows has its own."""

PRAGMAS = (
    # Fixed at creation. Larger pages mean fewer links in the chain that a 65 KB blob becomes.
    "PRAGMA page_size = 16384",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    # In pages: a checkpoint every 32 MiB, not within every transaction of large blobs.
    "PRAGMA wal_autocheckpoint = 2048",
    "PRAGMA busy_timeout = 5000",
)


@functools.cache
def _write_sql(rows: int) -> str:
    """Write so many rows: a new one, or the one that is there in place."""
    values = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"] * rows)
    return f"""
        INSERT INTO backup (id, node_id, kind, channel_id, revision, size, sha256, digest,
                            stored_at, last_seen_at, opened, blob)
        VALUES {values}
        ON CONFLICT (id) DO UPDATE SET
            revision = excluded.revision, size = excluded.size, sha256 = excluded.sha256,
            digest = excluded.digest, stored_at = excluded.stored_at,
            last_seen_at = excluded.last_seen_at, blob = excluded.blob
    """


_CHANNEL_SQL = """
    INSERT INTO channel (node_id, channel_id, commitments, revocations, last_secret, whole,
                         shutdown, closing, digest, closed, closed_at, closed_height)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (node_id, channel_id) DO UPDATE SET
        commitments = excluded.commitments, revocations = excluded.revocations,
        last_secret = excluded.last_secret, whole = excluded.whole,
        shutdown = excluded.shutdown, closing = excluded.closing, digest = excluded.digest,
        closed = iif(excluded.closed IS NULL, NULL, coalesce(closed, excluded.closed)),
        closed_at = iif(excluded.closed IS NULL, NULL, coalesce(closed_at, excluded.closed_at)),
        closed_height = CASE WHEN excluded.closed IS NULL THEN NULL
                             WHEN closed IS NULL THEN excluded.closed_height
                             ELSE closed_height END
"""


_TIMES = "UPDATE meta SET seen = :seen, aged = :aged, height = iif(:aging, :height, height)"


def _channel_row(slot: Slot, state: ChannelState, tx: Transaction) -> tuple[object, ...]:
    return (
        slot.node_id,
        slot.channel_id,
        state.commitments,
        state.revocations,
        state.last_secret,
        state.whole,
        state.shutdown,
        state.closing,
        channel_digest(slot, state),
        tx.moment.aged if state.closed else None,
        tx.now if state.closed else None,
        tx.moment.height if state.closed else None,
    )


async def write(plan: Plan, tx: Transaction, totals: Totals) -> None:
    """Write a plan and commit it; raises sqlite3.Error."""
    if plan.displaced:
        await operations.delete_peers(tx, [peer.node_id for peer in plan.displaced])
    for loss in plan.losses:
        await _mark_loss(loss, tx)
    await tx.connection.call(lambda connection: _write_and_commit(connection, plan, tx, totals))


def _write_and_commit(
    connection: sqlite3.Connection, plan: Plan, tx: Transaction, totals: Totals
) -> None:
    """What nearly every plan has, in one go."""
    if plan.drops:
        # First, so that their pages can be used again at once.
        connection.executemany(
            "DELETE FROM backup WHERE id = ?", [(row_id,) for row_id in plan.drops]
        )
        # A hold that has run out no longer keeps its version, and goes with it.
        connection.executemany(
            "DELETE FROM hold WHERE backup_id = ? AND until <= ?",
            [(row_id, tx.moment.seen) for row_id in plan.drops],
        )
    for start in range(0, len(plan.rows), ROWS):
        part = plan.rows[start : start + ROWS]
        connection.execute(_write_sql(len(part)), tuple(itertools.chain.from_iterable(part)))
    for sql, rows in (
        ("UPDATE backup SET replaced = ?, burst = ? WHERE id = ?", plan.replaced),
        ("UPDATE backup SET last_seen_at = ? WHERE id = ?", plan.seen_again),
        (
            "INSERT INTO peer (node_id, first_seen, first_seen_at, last_seen_at, last_seen,"
            " address_group, last_aged, last_height) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            [(*peer, tx.moment.aged, tx.moment.height) for peer in plan.new_peers],
        ),
        (_CHANNEL_SQL, [_channel_row(slot, state, tx) for _, slot, state in plan.channels]),
        (
            "UPDATE peer SET forgone = 0 WHERE node_id = ?",
            [(lease.node_id,) for lease in plan.stored_anew],
        ),
    ):
        if rows:
            connection.executemany(sql, rows)
    connection.execute(
        f"{_TIMES}, last_revision = :last_revision, peers = :peers, backups = :backups,"
        " versions = :versions, bytes = :bytes",
        {**asdict(tx.moment), **asdict(totals)},
    )
    connection.commit()


async def _mark_loss(loss: Loss, tx: Transaction) -> None:
    """Pin and hold the good version, and raise the alarm."""
    if loss.pin:
        await tx.all(
            f"UPDATE backup SET pins = pins | {PIN_AUTOMATIC} WHERE id = ?",
            loss.row_id,
        )
    if loss.hold_until is not None:
        await operations.set_hold(tx, loss.slot, loss.row_id, operator=False, until=loss.hold_until)
    text = (
        f"{loss.slot.node_id.hex()} was given back {loss.given_size} bytes"
        f" ({loss.slot.label}) and then sent {loss.size}: it may have lost its data;"
        f" revision {loss.good.revision} was good"
    )
    await operations.add_alarm(tx, "shrink", text, loss.slot, loss.good.revision)


async def write_times(tx: Transaction, last_revision: int | None = None) -> None:
    """Write how far the times have come, and the revisions if given."""
    await tx.connection.execute(
        f"{_TIMES}, last_revision = coalesce(:last_revision, last_revision)",
        {**asdict(tx.moment), "last_revision": last_revision},
    )


def commit_counted(connection: sqlite3.Connection) -> Counts:
    """Commit, and return how much is stored then; run on the connection's thread."""
    counts = connection.execute("SELECT peers, backups, bytes, versions FROM meta").fetchone()
    connection.commit()
    return Counts(*counts)


async def write_visits(
    tx: Transaction,
    visits: list[dict[str, object]],
    refusals: list[dict[str, object]],
) -> None:
    """Write when peers were here and what is known of them, and why updates were refused.

    `visits` have node_id, at, seen, aged, height, established, address,
    address_group and features; `refusals`
    node_id and the fields of Refusal.
    """
    await tx.connection.executemany(
        "UPDATE peer SET last_seen_at = max(last_seen_at, :at), last_seen = max(last_seen, :seen),"
        " last_aged = max(last_aged, :aged), last_height = :height,"
        " established = max(established, :established),"
        " address = iif(:address = '', address, :address),"
        " address_group = iif(:address = '', address_group, :address_group),"
        " features = iif(:address = '', features, :features) WHERE node_id = :node_id",
        visits,
    )
    if not refusals:
        return
    await tx.connection.executemany(
        "INSERT INTO refusal (node_id, reason, count, first_at, last_at)"
        " SELECT :node_id, :reason, :count, :first_at, :last_at"
        " WHERE EXISTS (SELECT 1 FROM peer WHERE node_id = :node_id)"
        " ON CONFLICT (node_id, reason) DO UPDATE SET"
        " count = count + excluded.count, last_at = excluded.last_at",
        refusals,
    )
    # The newest reasons stay.
    await tx.connection.executemany(
        "DELETE FROM refusal WHERE node_id = :node_id AND reason NOT IN (SELECT reason FROM refusal"
        f" WHERE node_id = :node_id ORDER BY last_at DESC, reason LIMIT {MAX_REASONS})",
        refusals,
    )


async def kept_versions(
    writer: aiosqlite.Connection, slots: list[Slot], seen: int
) -> dict[Slot, list[KeptRow]]:
    """The kept versions of the slots, in the order of their revisions."""
    kept: dict[Slot, list[KeptRow]] = {}
    for start in range(0, len(slots), ROWS):
        part = slots[start : start + ROWS]
        keys = [(slot.node_id, int(slot.kind), slot.channel_id) for slot in part]
        rows = await writer.execute_fetchall(
            _kept_sql(len(part)), (*itertools.chain.from_iterable(keys), seen)
        )
        for row in rows:
            row_id, sha256, opened, replaced, burst, pins, held, size = row[3:]
            version = Kept(row_id, sha256, opened, replaced, burst, fixed=bool(pins or held))
            slot = Slot(NodeId(row[0]), BackupKind(row[1]), row[2])
            kept.setdefault(slot, []).append(KeptRow(version, size, pins))
    return kept


@functools.cache
def _kept_sql(slots: int) -> str:
    """The kept versions of so many slots, in the order of their revisions."""
    values = ", ".join(["(?, ?, ?)"] * slots)
    return f"""
        WITH slot (node_id, kind, channel_id) AS (VALUES {values})
        SELECT b.node_id, b.kind, b.channel_id, b.id, b.sha256, b.opened, b.replaced, b.burst,
               b.pins, h.backup_id IS b.id AND (h.until IS NULL OR h.until > ?), b.size
        FROM slot CROSS JOIN backup AS b USING (node_id, kind, channel_id)
        LEFT JOIN hold AS h USING (node_id, kind, channel_id)
        WHERE b.replaced IS NOT NULL ORDER BY b.id
    """


def check_header(path: Path) -> None:
    """Raise SchemaError for damage of the file's header that SQLite itself would go along with.

    Before SQLite opens the file: closing it later would drop SQLite's locks on it.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        return
    wal = path.with_name(f"{path.name}-wal")
    settled = not wal.exists() or wal.stat().st_size == 0
    page_size = int.from_bytes(header[16:18], "big")
    pages = int.from_bytes(header[28:32], "big")
    current = header[24:28] == header[92:96]
    if header[20] or (settled and current and page_size > 1 and pages * page_size != size):
        raise SchemaError(f"{path}: its header is damaged: keep the file, and restore a snapshot")


def make_file(path: Path) -> None:
    """Make the empty file of a new database, which then belongs to whom its directory belongs."""
    with contextlib.suppress(FileExistsError):
        descriptor = new_file(path)
        try:
            give_to_owner(descriptor, path.parent)
        finally:
            os.close(descriptor)


async def prepare(
    path: Path,
    writer: aiosqlite.Connection,
    node_id: NodeId,
    network: Network,
    now: int,
) -> None:
    """Set up the writer's connection and the schema."""
    # Before anything is set: another program's file stays as it is.
    await schema_version(writer)
    for pragma in PRAGMAS:
        await writer.execute(pragma)
    for pragma, expected in (("journal_mode", "wal"), ("synchronous", 2)):
        rows = list(await writer.execute_fetchall(f"PRAGMA {pragma}"))
        if rows[0][0] != expected:
            raise SchemaError(f"{pragma} is {rows[0][0]}, not {expected}: is it on a network disk?")
    await migrate(path, writer, now)
    rows = list(await writer.execute_fetchall("SELECT node_id, network, epoch FROM meta"))
    if not rows:
        await writer.execute(
            "INSERT INTO meta (id, node_id, network, created_at, last_revision, epoch)"
            " VALUES (1, ?, ?, ?, 0, randomblob(16))",
            (node_id, network.value, now),
        )
        await writer.commit()
        return
    stored_id, stored_network, epoch = rows[0]
    check_owner(stored_id, stored_network, node_id, network)
    if not epoch:
        await writer.execute("UPDATE meta SET epoch = randomblob(16)")
        await writer.commit()


def check_owner(stored_id: bytes, stored_network: str, node_id: NodeId, network: Network) -> None:
    """Raise SchemaError unless a database is that of this key and network."""
    if stored_id != node_id:
        raise SchemaError(
            f"it belongs to node {stored_id.hex()}, but the key file is that of {node_id.hex()}:"
            " put the right key file back, or start in another data directory"
        )
    if stored_network != network.value:
        raise SchemaError(
            f"it was made for the network {stored_network}, not {network.value}:"
            " set `network` back, or start in another data directory"
        )
