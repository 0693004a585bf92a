"""The store on SQLite: one writer connection, one writer task, readers apart.

Updates are handed in without waiting and gathered per lease and slot, the newest winning. The
writer task takes what has gathered, plans it (plan.py), writes it in one transaction, commits with
synchronous=FULL, and then tells each lease: one commit for many updates, a few thread hops for
each transaction and none for an update. While one transaction is written the next one gathers, so
there is no delay to choose. What an operator does (operations.py) goes through the same task.

Time is told twice: by the wall clock, for people, and by times.py, for every decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog

from peerstore.errors import (
    DamagedBackupError,
    MissingBackupError,
    SchemaError,
    StoreClosedError,
    StoreError,
)
from peerstore.store import operations, statements
from peerstore.store.base import (
    Backup,
    Counts,
    Due,
    Listener,
    Quotas,
    Retention,
    Revision,
    Version,
)
from peerstore.store.database import Database
from peerstore.store.displaced_log import DisplacedLog
from peerstore.store.due import Place
from peerstore.store.giving_way import LOOK_SECONDS, GivingWay
from peerstore.store.lease import Change, SqliteLease, Update
from peerstore.store.mark import Mark, mark_path, read_mark, write_mark
from peerstore.store.operations import Operation, Transaction
from peerstore.store.plan import NOBODY, KeptRow, Plan, Planner
from peerstore.store.reader import SqliteReader, disk_free, is_damage
from peerstore.store.room import Candidates, Totals
from peerstore.store.times import Moment, Times
from peerstore.store.visits import Visits
from peerstore.tally import Reason, Tally, UpdateResult
from peerstore.turns import in_turns
from peerstore.types import BackupKind, Network, NodeId, Slot

CONGESTED_BYTES = 32 << 20
"""Blobs that may wait to be written before peers are read no further."""

BATCH_BYTES = 2 << 20
"""Blobs of one transaction: while the disk takes it the next one is received, and with much more in
one, peers and disk wait for each other in turn. Half as much costs more in syncs than it gains."""

READERS = 2

FLUSH_SECONDS = 60.0
"""How often what is known of peers and time is written when nothing else is."""

RETRY_SECONDS = 10.0
"""The same while the database can't be written: so that it shows when it can."""

REPEAT_SECONDS = 3600.0
"""How often at most the same failure is logged while it lasts."""

MARK_SECONDS = 1.0
"""How old the commit mark may get."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Clocks:
    """Where time comes from: the wall, in Unix seconds, and one that never goes back."""

    wall: Callable[[], float]
    monotonic: Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one transaction writes: per lease, the newest change of each slot."""

    leases: list[tuple[SqliteLease, int, dict[Slot, Change]]]

    def updates(self) -> Iterator[tuple[SqliteLease, Slot, Update]]:
        """The new blobs among it."""
        for lease, _, changes in self.leases:
            for slot, change in changes.items():
                if change.update is not None:
                    yield lease, slot, change.update


class SqliteStore:
    """See the module's docstring. `open` makes the database where there is none."""

    def __init__(
        self,
        path: Path,
        writer: Database,
        reader: SqliteReader,
        quotas: Quotas,
        clocks: Clocks,
        times: Times,
        tally: Tally,
    ) -> None:
        self.path = path
        self.reader = reader
        self.quotas = quotas
        self.protects: Callable[[NodeId, int | None], bool] = lambda node_id, last_height: False
        """Whether a peer is no stranger by the policy; `last_height` is that of its last visit."""
        self.certain: Callable[[], bool] = lambda: True
        """Whether that is known: as long as it is not, no peer is displaced."""
        self.write_error = ""
        """Why the database can't be written, "" when the last time it could."""
        self._told_at = 0.0
        """When that was logged."""
        self._writing_since: float | None = None
        self._writer = writer
        self._tally = tally
        self._clocks = clocks
        self._times = times
        self._epoch = b""
        self._totals = Totals(0, 0, 0, 0, 0)
        self._leases: dict[NodeId, SqliteLease] = {}
        # Leases with something to write, first come, first served, and those that must wait so as
        # not to be written too often.
        self._waiting: dict[SqliteLease, None] = {}
        self._paced: dict[SqliteLease, asyncio.TimerHandle] = {}
        self._waiting_bytes = 0
        self._operations_done = 0
        self._operations: deque[tuple[Operation, asyncio.Future[None]]] = deque()
        self._visits = Visits(clocks.wall, times, lambda: self.quotas.probation)
        self._late_visits = False
        # Peers of which something is just being deleted, and the event of its end.
        self._reserved: set[NodeId] = set()
        self._unreserved = asyncio.Event()
        # Peers that must not be shown their node backup, while the database does not say so yet.
        self._forgone: set[NodeId] = set()
        self._flushed = clocks.monotonic()
        self._marked = Mark(b"", -1)
        self._marked_at = float("-inf")
        self._mark_timer: asyncio.TimerHandle | None = None
        self._giving_way = GivingWay()
        self._looked_for_room = False
        self._no_room_until = 0
        self._displaced_log = DisplacedLog(clocks.monotonic)
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
        aging: bool = True,
        tally: Tally | None = None,
    ) -> Self:
        """Open or make the database; the caller holds its lock.

        Without `aging` nothing ages until `trust` says so. What is done is counted in `tally`.

        Raises StoreError when it can't be opened or written, SchemaError when it belongs to
        another key, network or a newer program.
        """
        try:
            statements.check_header(path)
            statements.make_file(path)
            # Tried here first: aiosqlite's thread would outlive a failure.
            sqlite3.connect(path).close()
            writer = await Database.open(
                path, isolation_level="IMMEDIATE", cached_statements=statements.CACHED
            )
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path}: {error}") from error
        try:
            await statements.prepare(path, writer, node_id, network, int(clocks.wall()))
            reader = await SqliteReader.open(path, connections=READERS)
        except (sqlite3.Error, SchemaError) as error:
            await writer.close()
            kind = SchemaError if isinstance(error, SchemaError) else StoreError
            raise kind(str(error) if str(path) in str(error) else f"{path}: {error}") from error
        except BaseException:
            await writer.close()
            raise
        times = Times(clocks.monotonic, aging=aging)
        store = cls(path, writer, reader, quotas or Quotas(), clocks, times, tally or Tally())
        try:
            await store._start()
        except BaseException:
            await store.close()
            raise
        return store

    @property
    def congested(self) -> bool:
        return self._waiting_bytes > CONGESTED_BYTES

    @property
    def writing_for(self) -> float:
        """Seconds since what is just being written was begun, 0 when nothing is."""
        began = self._writing_since
        return 0.0 if began is None else self._clocks.monotonic() - began

    @property
    def seen(self) -> int:
        """Seconds that daemons on this database have seen pass."""
        return self._times.now.seen

    @property
    def moment(self) -> Moment:
        """The times that decide."""
        return self._times.now

    def trust(self, height: int | None) -> None:
        """The routing node is at this height; None while it can't be trusted: nothing ages."""
        self._times.trust(height)

    async def open_lease(
        self, node_id: NodeId, listener: Listener, *, soon: BackupKind | None = None
    ) -> SqliteLease:
        while node_id in self._reserved:
            await self._unreserved.wait()  # what it gets back is fixed when that is over
        if self._closing:
            raise StoreClosedError("the store is closed")
        predecessor = self._leases.get(node_id)
        if predecessor is not None:
            predecessor.fence()
            self._hurry(predecessor)
        lease = self._leases[node_id] = SqliteLease(self, node_id, listener, predecessor)
        try:
            if predecessor is not None:
                await predecessor.settled()
            while True:
                done = self._operations_done
                lease.holdings = await self.reader.holdings(node_id, self.seen, soon=soon)
                if done == self._operations_done:
                    break  # else an operator may have changed what was read
        except BaseException:
            lease.close()
            raise
        lease.holdings.forgone |= node_id in self._forgone
        for channel_id, state in lease.holdings.channels.items():
            if state is None:
                self._tell_of_damaged_channel(Slot(node_id, BackupKind.CHANNEL_BACKUP, channel_id))
        self.visit(lease)
        if self._visits.is_late(lease):
            self._late_visits = True
            self._work.set()
        return lease

    def submit(self, lease: SqliteLease, slot: Slot, change: Change) -> None:
        """Take a change from a lease; the newest of a slot wins."""
        if self._closing:
            raise StoreClosedError("the store is closed")
        replaced = lease.waiting.get(slot)
        if replaced is not None:
            if replaced.update is not None and change.update is not None:
                self._tally.updates[slot.kind, UpdateResult.REPLACED] += 1
            self._waiting_bytes -= replaced.weight
            change = change.over(replaced)
        lease.waiting[slot] = change
        self._waiting_bytes += change.weight
        if lease in self._waiting or lease in self._paced:
            return
        early = lease.due_at - self._clocks.monotonic() if lease.pause else 0.0
        if early > 0:
            later = asyncio.get_running_loop().call_later(early, self._hurry, lease)
            self._paced[lease] = later
        else:
            self._waiting[lease] = None
            self._work.set()

    def _hurry(self, lease: SqliteLease) -> None:
        """Write what a lease has handed in with the next transaction."""
        paced = self._paced.pop(lease, None)
        if paced is not None:
            paced.cancel()
            self._waiting[lease] = None
            self._work.set()

    def release(self, lease: SqliteLease) -> None:
        """A lease was closed; what it handed in stays."""
        self._hurry(lease)
        if self._leases.get(lease.node_id) is not lease or lease.resolved < lease.received:
            return
        self.visit(lease)
        older = lease.undecided_predecessor()
        if older is None:
            del self._leases[lease.node_id]
        else:
            # The next connection still has to wait for what that one handed in.
            self._leases[lease.node_id] = older

    def forgo(self, node_id: NodeId) -> None:
        """A peer hung up when it was shown its node backup: not again until it stores one."""
        self._forgone.add(node_id)
        if not self._closing:
            # By the time it is done the peer may have stored one anew.
            forgo = operations.forgo(node_id, lambda: node_id in self._forgone)
            done = self._submit_operation(forgo)
            done.add_done_callback(
                lambda done: self._forgone.discard(node_id) if done.exception() is None else None
            )

    async def read_sound(self, lease: SqliteLease, slot: Slot) -> Backup | None:
        """What was fixed for the lease; where that is damaged, the newest sound version."""
        given = lease.holdings.given.get(slot)
        if given is None:
            current = lease.holdings.current.get(slot)
            if current is None:
                return None
            given = (current.row_id, current.revision)
        row_id, revision = given
        along = lease.holdings.read_along
        if along is not None and along.revision == revision:
            lease.holdings.read_along = None
            self._note(lease, row_id, revision, damaged=False)
            return along
        with contextlib.suppress(DamagedBackupError):
            return await self._read(lease, row_id, revision)
        others = [
            version
            async for version in self.reader.versions(slot.node_id)
            if version.revision.slot == slot and version.row_id != row_id
        ]
        # What is older than a held version was good as well; what is newer may be what it is held
        # against.
        others.sort(key=lambda version: (version.row_id < row_id, version.row_id), reverse=True)
        for version in others:
            try:
                backup = await self._read(lease, version.row_id, version.revision)
            except DamagedBackupError:
                continue
            lease.holdings.given[slot] = (version.row_id, version.revision)
            return backup
        return None

    async def prune(self, retention: Retention, *, dry_run: bool = False) -> AsyncIterator[Due]:
        """Delete what is due, piece by piece, or say what would be; raises StoreError.

        Who is connected is never away. While the routing node can't be trusted nothing is due.
        """
        if not self.moment.aging:
            return
        await self.save_visits()
        place: Place | None = Place()
        while place is not None:
            if dry_run:
                due, place = await self._would_prune(retention, place)
            else:
                due, place = await self._prune(retention, place)
            for each in due:
                yield each

    async def _would_prune(
        self, retention: Retention, place: Place
    ) -> tuple[list[Due], Place | None]:
        if not self.moment.aging:
            return [], None
        due, following = await self.reader.next_due(retention, self.moment, place)
        return [each for each in due if each.slot.node_id not in self._leases], following

    async def _prune(self, retention: Retention, place: Place) -> tuple[list[Due], Place | None]:
        prune, pruned, following = operations.prune(retention, place, self._reserve)
        await self.run(prune)
        for each in pruned:
            _log.info(
                "pruned", node_id=each.slot.node_id.hex(), kind=each.slot.kind.label,
                channel_id=each.slot.channel_id.hex(), versions=each.versions,
                bytes=each.bytes, reason=each.reason,
            )  # fmt: skip
            self._tally.pruned_backups += 1
            self._tally.pruned_bytes += each.bytes
        return pruned, following[0]

    def _reserve(self, node_ids: Iterable[NodeId]) -> set[NodeId]:
        """Those of the peers that are away; who of them comes now waits until it is over."""
        self._unreserved.clear()
        away = {n for n in node_ids if n not in self._leases and n not in self._visits}
        self._reserved |= away
        return away

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
        return Counts(
            self._totals.peers,
            self._totals.backups,
            self._totals.bytes,
            self._totals.versions,
        )

    async def settle(self) -> None:
        for lease in list(self._paced):
            self._hurry(lease)
        for lease in list(self._leases.values()):
            await lease.settled()

    async def close(self) -> None:
        self._closing = True
        for lease in list(self._paced):
            self._hurry(lease)
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
        self._times.go_on(meta.moment)
        self._epoch = meta.epoch
        self._totals = self._counted(meta.counts, meta.last_revision)
        mark = read_mark(mark_path(self.path))
        self._task = asyncio.create_task(self._write(), name="store writer")
        if mark is None:
            return
        text = ""
        if mark.epoch != meta.epoch:
            text = (
                "the commit mark beside the database is that of another one: was the database"
                " replaced, or lost and made anew? Use `peerstore restore` to put one back"
            )
        elif mark.revision > meta.last_revision:
            text = (
                f"the database is at revision {meta.last_revision}, but was at {mark.revision}"
                " before: commits are missing; was an old copy put back, or a file damaged?"
            )
        if text:
            _log.error(
                "behind_commit_mark",
                revision=meta.last_revision,
                mark_revision=mark.revision,
                error=text,
            )
            # No number is used twice, also not for what is lost.
            self._totals.last_revision = max(self._totals.last_revision, mark.revision)
            # Not waited for: peers are served also where it can't be written now. The mark stays
            # ahead until it is.
            self._submit_operation(operations.raise_alarm("behind", text, None, mark.revision))
            self._submit_operation(operations.renew_visits())

    @staticmethod
    def _counted(counts: Counts, last_revision: int) -> Totals:
        return Totals(
            last_revision=last_revision,
            peers=counts.peers,
            backups=counts.backups,
            versions=counts.versions,
            bytes=counts.bytes,
        )

    # The writer task

    async def _write(self) -> None:
        """Runs until the store is closed and nothing waits."""
        while not (self._closing and not self._waiting and not self._operations):
            try:
                async with asyncio.timeout(RETRY_SECONDS if self.write_error else FLUSH_SECONDS):
                    await self._work.wait()
            except TimeoutError:
                await self._flush()
            self._work.clear()
            while self._waiting or self._operations or self._late_visits:
                self._writing_since = self._clocks.monotonic()
                if self._clocks.monotonic() - self._flushed >= FLUSH_SECONDS:
                    await self._flush()
                elif self._late_visits:
                    await self._save_times()
                if self._operations:
                    await self._operate(*self._operations.popleft())
                if self._waiting:
                    await self._write_batch(self._take_batch())
            self._writing_since = None
        await self._flush()

    async def _write_batch(self, batch: _Batch) -> None:
        failure: str | None = None
        refused: dict[SqliteLease, dict[Slot, str]] = {}
        try:
            refused = await self._commit(batch)
        except Exception as error:
            failure = await self._failed(error)
            if len(batch.leases) > 1 and isinstance(error, sqlite3.Error | StoreError):
                # What one peer's rows or size stand in the way of is not the others' trouble.
                for part in batch.leases:
                    await self._write_batch(_Batch([part]))
                return
            if self._pass_over_damage(batch, error):
                await self._write_batch(batch)
                return
            for _, slot, _ in batch.updates():
                self._tally.refuse(slot.kind, Reason.NOT_WRITTEN)
        for lease, sequence, changes in batch.leases:
            reasons = refused.get(lease, {})
            nothing = failure or (
                reasons[next(iter(changes))] if len(reasons) == len(changes) else None
            )
            parts = [(changes[slot].sequences, reason) for slot, reason in reasons.items()]
            try:
                lease.resolve(sequence, nothing, parts)
            except Exception as error:  # one listener's mistake must not stop the others
                _log.exception("listener_failed", node_id=lease.node_id.hex(), error=str(error))

    def _pass_over_damage(self, batch: _Batch, error: Exception) -> bool:
        """Leave rows alone that can't be written any more, so that new ones can be opened.

        Returns whether there is anything else to try.
        """
        damage = is_damage(error) or is_damage(error.__cause__)
        if damage and self._looked_for_room:
            # It may be of what would have given way: who needs no room goes on without that.
            self._no_room_until = self.seen + LOOK_SECONDS
            return True
        passed = False
        for lease, _, changes in batch.leases:
            for slot in changes:
                current = lease.holdings.current.get(slot)
                if current is None or not (damage or current.damaged):
                    continue
                del lease.holdings.current[slot]
                passed = True
                number = current.revision.revision
                text = (
                    f"revision {number} ({slot.label}) of {slot.node_id.hex()} stands on a"
                    " damaged page: run `peerstore verify`, and restore a snapshot"
                )
                _log.error(
                    "damaged_page", node_id=slot.node_id.hex(), kind=slot.kind.label,
                    channel_id=slot.channel_id.hex(), revision=number, error=text,
                )  # fmt: skip
                self._submit_operation(operations.raise_alarm("damaged", text, slot, number))
        return passed

    def _take_batch(self) -> _Batch:
        leases: list[tuple[SqliteLease, int, dict[Slot, Change]]] = []
        size = 0
        for lease in self._waiting:
            leases.append((lease, lease.received, lease.waiting))
            size += sum(change.weight for change in lease.waiting.values())
            lease.waiting = {}
            if size >= BATCH_BYTES:
                break
        now = self._clocks.monotonic()
        for lease, _, _ in leases:
            lease.due_at = now + lease.pause
            del self._waiting[lease]
        self._waiting_bytes -= size
        return _Batch(leases)

    async def _commit(self, batch: _Batch) -> dict[SqliteLease, dict[Slot, str]]:
        """Write a batch in one transaction.

        Returns what was refused and why. Raises sqlite3.Error, and then nothing is changed.
        """
        await self._verify_repeated(batch)
        try:
            return await self._commit_now(batch)
        finally:
            self._end_reservations()

    async def _commit_now(self, batch: _Batch) -> dict[SqliteLease, dict[Slot, str]]:
        began = self._clocks.monotonic()
        tx = self._transaction()
        seen = tx.moment.seen
        revision_before = self._totals.last_revision
        self._looked_for_room = False
        planner = Planner(
            self.quotas,
            self._totals,
            now=tx.now,
            seen=seen,
            kept=await self._kept(batch, seen),
            candidates=await self._candidates(batch, tx),
            protected=lambda lease: self.protects(lease.node_id, lease.last_height),
            space_low=await self._space_low(),
        )
        for lease, _, changes in batch.leases:
            self._visits.establish(lease, seen)
            for slot, change in changes.items():
                planner.add(lease, slot, change)
        plan = planner.plan
        if plan.empty:
            if self._writer.in_transaction:
                await self._writer.rollback()  # who gives way was looked for
        else:
            await statements.write(plan, tx, planner.totals)
            self._written()
            self._tally.committed(self._clocks.monotonic() - began, len(plan.outcomes))
            self._totals = planner.totals
            for each in plan.displaced:
                self._visits.drop(each.node_id)  # nobody has come back yet
            for lease, slot, current in plan.current:
                holdings = lease.holdings
                holdings.current[slot] = current
                if current.row_id not in holdings.rows:
                    holdings.rows |= {current.row_id}
                if holdings.first_seen is None:
                    holdings.first_seen = seen
                    self.visit(lease)
            for lease, size in plan.sizes.items():
                lease.holdings.size = size
            for lease, slot, state in plan.channels:
                lease.holdings.channels[slot.channel_id] = state
            for lease in plan.stored_anew:
                lease.holdings.forgone = False
                self._forgone.discard(lease.node_id)
            for loss in plan.losses:
                owner = self._leases.get(loss.slot.node_id)
                if loss.hold_until is not None and owner is not None:
                    owner.holdings.held[loss.slot] = loss.hold_until
            self._mark()
        for lease, slot, _ in batch.updates():
            if slot not in lease.sent and slot not in plan.refused.get(lease, ()):
                lease.sent |= {slot}
        self._count(plan)
        if plan.rows:
            self._log_stored(plan, revision_before)
        self._displaced_log.add(plan.displaced)
        for loss in plan.losses:
            _log.warning(
                "backup_shrank", node_id=loss.slot.node_id.hex(), kind=loss.slot.kind.label,
                channel_id=loss.slot.channel_id.hex(),
                revision=loss.good.revision, given_size=loss.given_size, size=loss.size,
            )  # fmt: skip
        return plan.refused

    def _count(self, plan: Plan) -> None:
        """What became of a batch."""
        for kind, outcome in plan.outcomes:
            if isinstance(outcome, Reason):
                self._tally.refuse(kind, outcome)
            else:
                self._tally.updates[kind, outcome] += 1
        self._tally.evicted_peers += len(plan.displaced)
        self._tally.evicted_bytes += sum(each.bytes for each in plan.displaced)

    @staticmethod
    def _log_stored(plan: Plan, revision_before: int) -> None:
        """Say what a transaction has stored, where that is wanted."""
        if not _log.is_enabled_for(logging.DEBUG):
            return
        for _, slot, current in plan.current:
            revision = current.revision
            if revision.revision > revision_before:  # else the bytes were there already
                _log.debug(
                    "stored", node_id=slot.node_id.hex(), kind=slot.kind.label,
                    channel_id=slot.channel_id.hex(), revision=revision.revision,
                    size=revision.size,
                )  # fmt: skip

    async def _operate(self, operation: Operation, done: asyncio.Future[None]) -> None:
        tx = self._transaction()
        seen = tx.moment.seen
        try:
            # What the totals are in memory, the operation finds in the database.
            await statements.write_times(tx, self._totals.last_revision)
            touched = await operation(tx)
            counts = await self._writer.call(statements.commit_counted)
            self._written()
            self._visits.written()
            self._totals = self._counted(counts, self._totals.last_revision)
            self._operations_done += 1
            for node_id in touched:
                newest = self._leases.get(node_id)  # it may close while others are reloaded
                # The older ones may have updates that are still to be written.
                for lease in list(newest.chain()) if newest is not None else ():
                    await self._reload(lease, seen)
        except Exception as error:
            self._visits.not_written()
            text = str(error) if isinstance(error, StoreError) else await self._failed(error)
            if isinstance(error, StoreError):
                await self._writer.rollback()
            if not done.done():
                done.set_exception(StoreError(text))
        else:
            if not done.done():
                done.set_result(None)
        finally:
            self._end_reservations()

    def _end_reservations(self) -> None:
        self._reserved.clear()
        self._unreserved.set()

    def _transaction(self) -> Transaction:
        return Transaction(self._writer, int(self._clocks.wall()), self.moment)

    async def _reload(self, lease: SqliteLease, seen: int) -> None:
        """An operator changed what a connected peer has."""
        before = lease.holdings
        lease.holdings = await self.reader.holdings(lease.node_id, seen)
        lease.holdings.forgone |= lease.node_id in self._forgone
        for slot, current in lease.holdings.current.items():
            old = before.current.get(slot)
            if old is not None and old.row_id == current.row_id:
                lease.holdings.current[slot] = current._replace(
                    opened_here=old.opened_here, damaged=old.damaged
                )
        # What this connection was given back does not change by what comes after, unless it is
        # gone.
        for slot, (row_id, revision) in before.given.items():
            # A hold that the operator has just ended is one that no mark of loss may renew.
            released = slot in before.held and slot not in lease.holdings.held
            if row_id in lease.holdings.rows and not released:
                lease.holdings.given[slot] = (row_id, revision)

    async def _kept(self, batch: _Batch, seen: int) -> dict[Slot, list[KeptRow]]:
        """The kept versions of the slots that are replaced for the first time, or need room."""
        room = self.quotas.max_bytes_per_peer
        slots = [
            slot
            for lease, slot, update in batch.updates()
            if (current := lease.holdings.current.get(slot)) is not None
            and current.revision.sha256 != update.sha256
            and (not current.opened_here or lease.holdings.size + len(update.blob) > room)
        ]
        return await statements.kept_versions(self._writer, slots, seen)

    async def _verify_repeated(self, batch: _Batch) -> None:
        """A blob that came again counts as stored only where the stored one is sound."""
        for lease, slot, update in batch.updates():
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
        except MissingBackupError:
            raise  # no damage: an operator has deleted it
        except DamagedBackupError as error:
            slot = revision.slot
            _log.error(
                "damaged_backup", node_id=slot.node_id.hex(), kind=slot.kind.label,
                channel_id=slot.channel_id.hex(), revision=revision.revision, error=str(error),
            )  # fmt: skip
            self._note(lease, row_id, revision, damaged=True)
            self._submit_operation(
                operations.raise_alarm("damaged", str(error), slot, revision.revision)
            )
            raise
        self._note(lease, row_id, revision, damaged=False)
        return backup

    def _tell_of_damaged_channel(self, slot: Slot) -> None:
        text = (
            f"the state of channel {slot.channel_id.hex()} of {slot.node_id.hex()} does not match"
            " its digest: its backup is not given back; `peerstore backups export` has it"
        )
        _log.error(
            "damaged_channel",
            node_id=slot.node_id.hex(),
            channel_id=slot.channel_id.hex(),
            error=text,
        )
        self._submit_operation(operations.raise_alarm("damaged", text, slot, None))

    @staticmethod
    def _note(lease: SqliteLease, row_id: int, revision: Revision, *, damaged: bool) -> None:
        current = lease.holdings.current.get(revision.slot)
        if current is not None and (current.row_id, current.revision) == (row_id, revision):
            lease.holdings.current[revision.slot] = current._replace(
                damaged=damaged, verified=not damaged
            )

    async def _candidates(self, batch: _Batch, tx: Transaction) -> Candidates:
        """Who may give way to a batch, if the store may be too full for it."""
        size = self._totals.bytes - self.quotas.max_bytes
        newcomers: set[NodeId] = set()
        for lease, slot, update in batch.updates():
            current = lease.holdings.current.get(slot)
            added = len(update.blob)
            if current is not None and (
                current.opened_here or current.revision.sha256 == update.sha256
            ):
                added = max(0, added - current.revision.size)
            size += added
            if lease.holdings.first_seen is None:
                newcomers.add(lease.node_id)
        places = self._totals.peers + len(newcomers) - self.quotas.max_peers if newcomers else 0
        full = size > 0 or places > 0
        if not full or not self.certain() or tx.moment.seen < self._no_room_until:
            return NOBODY
        self._looked_for_room = True
        # From here to the commit nothing else is written.
        await self._writer.execute("BEGIN IMMEDIATE")
        return await self._giving_way.find(tx, self, size=size, places=places)

    # Who may give way; see giving_way.Doorkeeper.

    def stays(self, node_id: NodeId, last_height: int | None) -> bool:
        """Whether a peer is connected, was here since that was written, or is protected."""
        return (
            node_id in self._leases
            or self._visits.established(node_id)
            or self.protects(node_id, last_height)
        )

    def close_door(self, node_id: NodeId) -> None:
        """Have whoever it is wait until what is being deleted is gone."""
        self._unreserved.clear()
        self._reserved.add(node_id)

    async def _space_low(self) -> bool:
        """Whether less than min_free_space is left, the free pages inside the file counted in."""
        wanted = self.quotas.min_free_space
        return disk_free(self.path) < wanted and await self.reader.free_space() < wanted

    def _written(self) -> None:
        """A transaction was committed."""
        if self.write_error:
            _log.info("commits_resumed", error=self.write_error)
        self.write_error = ""

    async def _failed(self, error: Exception) -> str:
        known = isinstance(error, sqlite3.Error)
        now = self._clocks.monotonic()
        # It is tried again every few seconds, with every peer's update.
        if not known or str(error) != self.write_error or now - self._told_at >= REPEAT_SECONDS:
            self._told_at = now
            _log.error("commit_failed", error=str(error), exc_info=not known)
        self.write_error = str(error)
        try:
            await self._writer.rollback()
        except sqlite3.Error as rollback_error:
            _log.error("rollback_failed", error=str(rollback_error))
        return "not stored, the database can't be written now; the backup before it is kept"

    # What is known of peers

    def visit(self, lease: SqliteLease) -> None:
        """A peer that has something here came, went, or said something about itself."""
        self._visits.note(lease)

    async def save_visits(self) -> None:
        """Write what is known of peers now, for who reads the database; raises StoreError."""
        await self._note_who_is_here()
        await self.run(self._visits.write)

    async def _note_who_is_here(self) -> None:
        async for lease in in_turns(self._leases.values()):
            self.visit(lease)

    async def _flush(self) -> None:
        """Write what is known of peers and time."""
        self._flushed = self._writing_since = self._clocks.monotonic()
        await self._note_who_is_here()
        self._displaced_log.flush()
        await self._save_times()
        self._mark()

    async def _save_times(self) -> None:
        self._late_visits = False
        try:
            tx = self._transaction()
            await statements.write_times(tx)
            await self._visits.write(tx)
            await self._writer.commit()
        except Exception as error:
            self._visits.not_written()
            await self._failed(error)
        else:
            self._written()
            self._visits.written()

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
