"""The store on SQLite: one writer connection, one writer task, readers apart.

Updates are handed in without waiting and gathered per lease and slot, the newest winning. The
writer task takes what has gathered, plans it (plan.py), writes it in one transaction, commits with
synchronous=FULL, and then tells each lease: one commit for many updates, a few thread hops for
each transaction and none for an update. While one transaction is written the next one gathers, so
there is no delay to choose. What an operator does (operations.py) goes through the same task.

Time is told twice: by the wall clock, for people, and by the seconds that daemons on this
database have seen pass, for every decision. The second one is kept in the database and moves only
while a daemon runs, whatever clocks do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import aiosqlite
import structlog

from peerstore.errors import DamagedBackupError, SchemaError, StoreClosedError, StoreError
from peerstore.store import operations
from peerstore.store.base import Backup, Counts, Listener, Quotas, Revision, Version
from peerstore.store.history import Kept
from peerstore.store.lease import SqliteLease, Update
from peerstore.store.mark import Mark, mark_path, read_mark, write_mark
from peerstore.store.migrate import migrate, schema_version
from peerstore.store.operations import Operation, Transaction
from peerstore.store.plan import PIN_AUTOMATIC, KeptRow, Plan, Planner, Totals
from peerstore.store.reader import SqliteReader
from peerstore.types import BackupKind, Network, NodeId, Slot

CONGESTED_BYTES = 32 << 20
"""Blobs that may wait to be written before peers are read no further."""

BATCH_BYTES = 16 << 20
"""Blobs of one transaction."""

READERS = 2

FLUSH_SECONDS = 60.0
"""How often what is known of peers and time is written when nothing else is."""

MARK_SECONDS = 1.0
"""How old the commit mark may get."""

SPARE_ROWS = 256
"""Kept versions of strangers that one transaction may delete to make room."""

ROWS = 128
"""Rows of one statement. Python's sqlite3 gives up the GIL and takes it again for every execution;
with the event loop busy beside it that costs more than the row, so many rows go in one."""

_PRAGMAS = (
    # Fixed at creation. Larger pages mean fewer links in the chain that a 65 KB blob becomes.
    "PRAGMA page_size = 16384",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    # In pages: a checkpoint every 32 MiB, not within every transaction of large blobs.
    "PRAGMA wal_autocheckpoint = 2048",
    "PRAGMA busy_timeout = 5000",
)

_log = structlog.get_logger()


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


@dataclass(frozen=True, slots=True)
class Clocks:
    """Where time comes from: the wall, in Unix seconds, and one that never goes back."""

    wall: Callable[[], float]
    monotonic: Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one transaction writes: per lease, the newest update of each slot."""

    leases: list[tuple[SqliteLease, int, dict[Slot, Update]]]


class SqliteStore:
    """See the module's docstring. `open` makes the database where there is none."""

    def __init__(
        self,
        path: Path,
        writer: aiosqlite.Connection,
        reader: SqliteReader,
        quotas: Quotas,
        clocks: Clocks,
    ) -> None:
        self.path = path
        self.reader = reader
        self.quotas = quotas
        self._writer = writer
        self._clocks = clocks
        self._started = clocks.monotonic()
        self._seen_before = 0
        self._epoch = b""
        self._totals = Totals(0, 0, 0, 0)
        self._leases: dict[NodeId, SqliteLease] = {}
        # Leases with something to write, first come, first served.
        self._waiting: dict[SqliteLease, None] = {}
        self._waiting_bytes = 0
        self._operations: deque[tuple[Operation, asyncio.Future[None]]] = deque()
        # Peers that were here: when, and whether they are established now.
        self._visits: dict[NodeId, tuple[int, bool]] = {}
        self._flushed = self._started
        self._marked = Mark(b"", -1)
        self._marked_at = float("-inf")
        self._mark_timer: asyncio.TimerHandle | None = None
        self._no_spare_until = float("-inf")
        self._work = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        node_id: NodeId,
        network: Network,
        clocks: Clocks,
        quotas: Quotas | None = None,
    ) -> Self:
        """Open or make the database; the caller holds its lock.

        Raises StoreError when it can't be opened or written, SchemaError when it belongs to
        another key, network or a newer program.
        """
        try:
            # Tried here first: aiosqlite's thread would outlive a failure.
            sqlite3.connect(path).close()
            writer = await aiosqlite.connect(
                path, isolation_level="IMMEDIATE", cached_statements=2 * ROWS
            )
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}") from error
        try:
            await _prepare(path, writer, node_id, network, clocks)
            reader = await SqliteReader.open(path, connections=READERS)
        except (sqlite3.Error, SchemaError) as error:
            await writer.close()
            kind = SchemaError if isinstance(error, SchemaError) else StoreError
            raise kind(str(error) if str(path) in str(error) else f"{path}: {error}") from error
        except BaseException:
            await writer.close()
            raise
        store = cls(path, writer, reader, quotas or Quotas(), clocks)
        await store._start()
        return store

    @property
    def congested(self) -> bool:
        return self._waiting_bytes > CONGESTED_BYTES

    @property
    def seen(self) -> int:
        """Seconds that daemons on this database have seen pass."""
        return self._seen_before + int(self._clocks.monotonic() - self._started)

    async def open_lease(self, node_id: NodeId, listener: Listener) -> SqliteLease:
        if self._closing:
            raise StoreClosedError("the store is closed")
        predecessor = self._leases.get(node_id)
        if predecessor is not None:
            predecessor.fence()
        lease = self._leases[node_id] = SqliteLease(self, node_id, listener, predecessor)
        try:
            if predecessor is not None:
                await predecessor.settled()
            lease.holdings = await self.reader.holdings(node_id, self.seen)
        except BaseException:
            lease.close()
            raise
        self._visit(lease)
        return lease

    def submit(self, lease: SqliteLease, slot: Slot, update: Update) -> None:
        """Take an update from a lease; the newest of a slot wins."""
        if self._closing:
            raise StoreClosedError("the store is closed")
        replaced = lease.waiting.get(slot)
        if replaced is not None:
            self._waiting_bytes -= len(replaced.blob)
        lease.waiting[slot] = update
        self._waiting_bytes += len(update.blob)
        self._waiting[lease] = None
        self._work.set()

    def release(self, lease: SqliteLease) -> None:
        """A lease was closed; what it handed in stays."""
        if self._leases.get(lease.node_id) is not lease or lease.resolved < lease.received:
            return
        self._visit(lease)
        older = lease.undecided_predecessor()
        if older is None:
            del self._leases[lease.node_id]
        else:
            # The next connection still has to wait for what that one handed in.
            self._leases[lease.node_id] = older

    async def read_sound(self, lease: SqliteLease, slot: Slot) -> Backup | None:
        """What was fixed for the lease; where that is damaged, the newest sound version."""
        given = lease.holdings.given.get(slot)
        if given is None:
            return None
        row_id, revision = given
        with contextlib.suppress(DamagedBackupError):
            return await self._read(lease, row_id, revision)
        others = [
            version
            async for version in self.reader.versions(slot.node_id)
            if version.revision.slot == slot and version.row_id != row_id
        ]
        for version in reversed(others):
            try:
                backup = await self._read(lease, version.row_id, version.revision)
            except DamagedBackupError:
                continue
            lease.holdings.given[slot] = (version.row_id, version.revision)
            return backup
        return None

    async def run(self, operation: Operation) -> None:
        """Do what an operator asks for, in a transaction of its own; raises StoreError."""
        if self._closing:
            raise StoreClosedError("the store is closed")
        await self._submit_operation(operation)

    def _submit_operation(self, operation: Operation) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody may be waiting for it; what went wrong is logged.
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._operations.append((operation, done))
        self._work.set()
        return done

    async def versions(self, node_id: NodeId | None = None) -> AsyncIterator[Version]:
        async for version in self.reader.versions(node_id):
            yield version

    async def counts(self) -> Counts:
        return Counts(self._totals.peers, self._totals.backups, self._totals.bytes)

    async def settle(self) -> None:
        for lease in list(self._leases.values()):
            await lease.settled()

    async def close(self) -> None:
        self._closing = True
        self._work.set()
        try:
            if self._task is not None:
                await self._task
            if self._mark_timer is not None:
                self._mark_timer.cancel()
            self._write_mark()
        finally:
            await self.reader.close()
            # The last connection to close writes the WAL back into the database.
            await self._writer.close()

    # Starting

    async def _start(self) -> None:
        meta = await self.reader.meta()
        self._seen_before = meta.seen
        self._epoch = meta.epoch
        self._totals = Totals(
            meta.last_revision, meta.counts.peers, meta.counts.backups, meta.counts.bytes
        )
        mark = read_mark(mark_path(self.path))
        behind = mark.revision if mark is not None and mark.epoch == meta.epoch else 0
        self._task = asyncio.create_task(self._write(), name="store writer")
        if behind > meta.last_revision:
            text = (
                f"the database is at revision {meta.last_revision}, but was at {behind} before:"
                " commits are missing; was an old copy put back, or a file damaged?"
            )
            _log.error("behind_commit_mark", revision=meta.last_revision, mark=behind)
            # No number is used twice, also not for what is lost.
            self._totals.last_revision = behind
            await self.run(operations.raise_alarm("behind", text, None, behind))

    # The writer task

    async def _write(self) -> None:
        """Runs until the store is closed and nothing waits."""
        while not (self._closing and not self._waiting and not self._operations):
            try:
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._work.wait()
            except TimeoutError:
                await self._flush()
            self._work.clear()
            while self._waiting or self._operations:
                if self._operations:
                    await self._operate(*self._operations.popleft())
                if self._waiting:
                    await self._write_batch(self._take_batch())
        await self._flush()

    async def _write_batch(self, batch: _Batch) -> None:
        failure: str | None = None
        refused: dict[SqliteLease, str] = {}
        try:
            refused = await self._commit(batch)
        except Exception as error:
            failure = await self._failed(error)
        for lease, sequence, _ in batch.leases:
            try:
                lease.resolve(sequence, failure or refused.get(lease))
            except Exception:  # one listener's mistake must not stop the others
                _log.exception("listener_failed", node_id=lease.node_id.hex())

    def _take_batch(self) -> _Batch:
        leases: list[tuple[SqliteLease, int, dict[Slot, Update]]] = []
        size = 0
        for lease in self._waiting:
            leases.append((lease, lease.received, lease.waiting))
            size += sum(len(update.blob) for update in lease.waiting.values())
            lease.waiting = {}
            if size >= BATCH_BYTES:
                break
        for lease, _, _ in leases:
            del self._waiting[lease]
        self._waiting_bytes -= size
        return _Batch(leases)

    async def _commit(self, batch: _Batch) -> dict[SqliteLease, str]:
        """Write a batch in one transaction.

        Returns what was refused and why. Raises sqlite3.Error, and then nothing is changed.
        """
        now, seen = int(self._clocks.wall()), self.seen
        await self._verify_repeated(batch)
        planner = Planner(
            self.quotas,
            self._totals,
            now=now,
            seen=seen,
            kept=await self._kept(batch, seen),
            spare=await self._spare(batch),
            space_low=await self._space_low(),
        )
        for lease, _, updates in batch.leases:
            self._establish(lease, seen)
            for slot, update in updates.items():
                planner.add(lease, slot, update)
        plan = planner.plan
        if not plan.empty:
            await self._execute(plan, Transaction(self._writer, now, seen), planner.totals)
            self._totals = planner.totals
            for lease, slot, current in plan.current:
                lease.holdings.current[slot] = current
                lease.holdings.given.setdefault(slot, (current.row_id, current.revision))
                if lease.holdings.first_seen is None:
                    lease.holdings.first_seen = seen
            for lease, size in plan.sizes.items():
                lease.holdings.size = size
            self._mark()
        for loss in plan.losses:
            _log.warning(
                "backup_shrank", node_id=loss.slot.node_id.hex(), kind=loss.slot.kind.label,
                given=loss.given.size, size=loss.size, revision=loss.given.revision,
            )  # fmt: skip
        return plan.refused

    async def _execute(self, plan: Plan, tx: Transaction, totals: Totals) -> None:
        writer = self._writer
        if plan.drops:
            # First, so that their pages can be used again at once.
            await writer.executemany(
                "DELETE FROM backup WHERE id = ?", [(row_id,) for row_id in plan.drops]
            )
        for start in range(0, len(plan.rows), ROWS):
            part = plan.rows[start : start + ROWS]
            await writer.execute(_write_sql(len(part)), tuple(itertools.chain.from_iterable(part)))
        for sql, rows in (
            ("UPDATE backup SET replaced = ? WHERE id = ?", plan.replaced),
            ("UPDATE backup SET last_seen_at = ? WHERE id = ?", plan.seen_again),
            (
                "INSERT INTO peer (node_id, first_seen, first_seen_at, last_seen_at)"
                " VALUES (?, ?, ?, ?)",
                plan.new_peers,
            ),
        ):
            if rows:
                await writer.executemany(sql, rows)
        for loss in plan.losses:
            if loss.pin:
                await tx.all(
                    f"UPDATE backup SET pins = pins | {PIN_AUTOMATIC} WHERE id = ?",
                    loss.row_id,
                )
            if loss.hold_until is not None:
                await operations.set_hold(
                    tx, loss.slot, loss.row_id, operator=False, until=loss.hold_until
                )
            text = (
                f"{loss.slot.node_id.hex()} was given back {loss.given.size} bytes"
                f" ({loss.slot.kind.label}, revision {loss.given.revision}) and then sent"
                f" {loss.size}: it may have lost its data"
            )
            await operations.add_alarm(tx, "shrink", text, loss.slot, loss.given.revision)
        await writer.execute(
            "UPDATE meta SET last_revision = ?, seen = ?, peers = ?, backups = ?, bytes = ?",
            (totals.last_revision, tx.seen, totals.peers, totals.backups, totals.bytes),
        )
        await writer.commit()

    async def _operate(self, operation: Operation, done: asyncio.Future[None]) -> None:
        now, seen = int(self._clocks.wall()), self.seen
        try:
            # What the totals are in memory, the operation finds in the database.
            await self._writer.execute(
                "UPDATE meta SET last_revision = ?, seen = ?", (self._totals.last_revision, seen)
            )
            touched = await operation(Transaction(self._writer, now, seen))
            await self._writer.commit()
            counts = (await self.reader.meta()).counts
            self._totals = replace(
                self._totals, peers=counts.peers, backups=counts.backups, bytes=counts.bytes
            )
            for node_id in touched & self._leases.keys():
                await self._reload(self._leases[node_id], seen)
        except Exception as error:
            text = str(error) if isinstance(error, StoreError) else await self._failed(error)
            if isinstance(error, StoreError):
                await self._writer.rollback()
            if not done.done():
                done.set_exception(StoreError(text))
        else:
            if not done.done():
                done.set_result(None)

    async def _reload(self, lease: SqliteLease, seen: int) -> None:
        """An operator changed what a connected peer has."""
        before = lease.holdings
        lease.holdings = await self.reader.holdings(lease.node_id, seen)
        for slot, current in lease.holdings.current.items():
            old = before.current.get(slot)
            if old is not None and old.row_id == current.row_id:
                lease.holdings.current[slot] = replace(
                    current, opened_here=old.opened_here, damaged=old.damaged
                )
            # What this connection was given back does not change by what comes after.
            if slot in before.given:
                lease.holdings.given[slot] = before.given[slot]

    async def _kept(self, batch: _Batch, seen: int) -> dict[Slot, list[KeptRow]]:
        """The kept versions of the slots that are replaced for the first time."""
        slots = [
            slot
            for lease, _, updates in batch.leases
            for slot, update in updates.items()
            if (current := lease.holdings.current.get(slot)) is not None
            and not current.opened_here
            and current.revision.sha256 != update.sha256
        ]
        kept: dict[Slot, list[KeptRow]] = {}
        for start in range(0, len(slots), ROWS):
            part = slots[start : start + ROWS]
            keys = [(slot.node_id, int(slot.kind), slot.channel_id) for slot in part]
            rows = await self._writer.execute_fetchall(
                _kept_sql(len(part)), (*itertools.chain.from_iterable(keys), seen)
            )
            for row in rows:
                row_id, sha256, opened, replaced, pins, held, size = row[3:]
                version = Kept(row_id, sha256, opened, replaced, fixed=bool(pins or held))
                slot = Slot(NodeId(row[0]), BackupKind(row[1]), row[2])
                kept.setdefault(slot, []).append(KeptRow(version, size, pins))
        return kept

    async def _verify_repeated(self, batch: _Batch) -> None:
        """A blob that came again counts as stored only where the stored one is sound."""
        for lease, _, updates in batch.leases:
            for slot, update in updates.items():
                current = lease.holdings.current.get(slot)
                if (
                    current is not None
                    and current.revision.sha256 == update.sha256
                    and not (current.verified or current.damaged)
                ):
                    with contextlib.suppress(DamagedBackupError):
                        await self._read(lease, current.row_id, current.revision)

    async def _read(self, lease: SqliteLease, row_id: int, revision: Revision) -> Backup:
        """Read a version and remember whether it is sound; raises DamagedBackupError."""
        try:
            backup = await self.reader.read(row_id, revision)
        except DamagedBackupError as error:
            _log.error("damaged_backup", error=str(error))
            self._note(lease, row_id, revision, damaged=True)
            self._submit_operation(
                operations.raise_alarm("damaged", str(error), revision.slot, revision.revision)
            )
            raise
        self._note(lease, row_id, revision, damaged=False)
        return backup

    @staticmethod
    def _note(lease: SqliteLease, row_id: int, revision: Revision, *, damaged: bool) -> None:
        current = lease.holdings.current.get(revision.slot)
        if current is not None and (current.row_id, current.revision) == (row_id, revision):
            lease.holdings.current[revision.slot] = replace(
                current, damaged=damaged, verified=not damaged
            )

    async def _spare(self, batch: _Batch) -> list[tuple[int, int]]:
        """Kept versions of strangers that are not connected, when the store is nearly full."""
        size = sum(len(u.blob) for _, _, updates in batch.leases for u in updates.values())
        if self._totals.bytes + size <= self.quotas.max_bytes or self.seen < self._no_spare_until:
            return []
        rows = await self._writer.execute_fetchall(
            "SELECT b.id, b.size, b.node_id FROM backup AS b JOIN peer AS p USING (node_id)"
            " WHERE b.replaced IS NOT NULL AND b.pins = 0 AND NOT p.established"
            " AND NOT EXISTS (SELECT 1 FROM hold AS h WHERE h.backup_id = b.id) LIMIT ?",
            (SPARE_ROWS,),
        )
        spare = [(row[0], row[1]) for row in rows if row[2] not in self._leases]
        if not spare:
            self._no_spare_until = self.seen + FLUSH_SECONDS
        return spare

    async def _space_low(self) -> bool:
        """Whether less than min_free_space is left, the free pages inside the file counted in."""
        wanted = self.quotas.min_free_space
        disk = os.statvfs(self.path.parent)
        free = disk.f_bavail * disk.f_frsize
        if free >= wanted:
            return False
        ((inside,),) = await self._writer.execute_fetchall(
            "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
        )
        return bool(free + inside < wanted)

    async def _failed(self, error: Exception) -> str:
        _log.error("commit_failed", error=str(error), exc_info=not isinstance(error, sqlite3.Error))
        try:
            await self._writer.rollback()
        except sqlite3.Error as rollback_error:
            _log.error("rollback_failed", error=str(rollback_error))
        return "not stored, the database can't be written now; the backup before it is kept"

    # What is known of peers

    def _visit(self, lease: SqliteLease) -> None:
        """A peer that has something here came or went."""
        if lease.holdings.first_seen is not None:
            self._establish(lease, self.seen)
            self._visits[lease.node_id] = (int(self._clocks.wall()), lease.holdings.established)

    def _establish(self, lease: SqliteLease, seen: int) -> None:
        holdings = lease.holdings
        if holdings.first_seen is not None and not holdings.established:
            holdings.established = seen - holdings.first_seen >= self.quotas.probation

    async def _flush(self) -> None:
        """Write what is known of peers and time."""
        visits, self._visits = self._visits, {}
        try:
            await self._writer.executemany(
                "UPDATE peer SET last_seen_at = max(last_seen_at, ?),"
                " established = max(established, ?) WHERE node_id = ?",
                [(at, int(established), node_id) for node_id, (at, established) in visits.items()],
            )
            await self._writer.execute("UPDATE meta SET seen = ?", (self.seen,))
            await self._writer.commit()
        except Exception as error:
            await self._failed(error)
            self._visits = visits | self._visits
        self._mark()

    # The commit mark

    def _mark(self) -> None:
        """See that the mark is at most MARK_SECONDS behind."""
        if self._mark_timer is None:
            since = self._clocks.monotonic() - self._marked_at
            delay = max(0.0, MARK_SECONDS - since)
            loop = asyncio.get_running_loop()
            self._mark_timer = loop.call_later(delay, self._write_mark)

    def _write_mark(self) -> None:
        self._mark_timer = None
        mark = Mark(self._epoch, self._totals.last_revision)
        if mark == self._marked:
            return
        self._marked_at = self._clocks.monotonic()
        try:
            write_mark(mark_path(self.path), mark)
            self._marked = mark
        except OSError as error:
            _log.warning("mark_failed", error=error.strerror)


@functools.cache
def _kept_sql(slots: int) -> str:
    """The kept versions of so many slots, in the order of their revisions."""
    values = ", ".join(["(?, ?, ?)"] * slots)
    return f"""
        WITH slot (node_id, kind, channel_id) AS (VALUES {values})
        SELECT b.node_id, b.kind, b.channel_id, b.id, b.sha256, b.opened, b.replaced, b.pins,
               h.backup_id IS b.id AND (h.until IS NULL OR h.until > ?), b.size
        FROM slot CROSS JOIN backup AS b USING (node_id, kind, channel_id)
        LEFT JOIN hold AS h USING (node_id, kind, channel_id)
        WHERE b.replaced IS NOT NULL ORDER BY b.id
    """


async def _prepare(
    path: Path,
    writer: aiosqlite.Connection,
    node_id: NodeId,
    network: Network,
    clocks: Clocks,
) -> None:
    """Set up the writer's connection and the schema."""
    # Before anything is set: another program's file stays as it is.
    await schema_version(writer)
    for pragma in _PRAGMAS:
        await writer.execute(pragma)
    for pragma, expected in (("journal_mode", "wal"), ("synchronous", 2)):
        rows = list(await writer.execute_fetchall(f"PRAGMA {pragma}"))
        if rows[0][0] != expected:
            raise SchemaError(f"{pragma} is {rows[0][0]}, not {expected}: is it on a network disk?")
    await migrate(path, writer, int(clocks.wall()))
    rows = list(await writer.execute_fetchall("SELECT node_id, network, epoch FROM meta"))
    if not rows:
        await writer.execute(
            "INSERT INTO meta (id, node_id, network, created_at, last_revision, epoch)"
            " VALUES (1, ?, ?, ?, 0, randomblob(16))",
            (node_id, network.value, int(clocks.wall())),
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
