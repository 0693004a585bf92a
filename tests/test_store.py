"""The store on SQLite: the contract of every store, and what only a file can do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from peerstore.errors import DamagedBackupError, StoreError
from peerstore.store import operations
from peerstore.store import sqlite as sqlite_store
from peerstore.store.base import Alarm, Counts, Due, Quotas, Retention, Revision
from peerstore.store.database import Database
from peerstore.store.operations import Transaction
from peerstore.store.plan import LAST_SEEN_SECONDS
from peerstore.store.reader import SqliteReader
from peerstore.store.sqlite import CONGESTED_BYTES, Clocks, SqliteStore
from peerstore.types import BackupKind, Network, NodeId, Slot
from tests.helpers import failing_commits, key_pair, quick
from tests.store_contract import (
    ALICE,
    ALICES,
    ALICES_NODE,
    BOB,
    BOBS,
    LARGEST,
    START,
    Backend,
    Clock,
    Recorder,
    StoreContract,
    all_of,
    backup_of,
    blob_of,
    congested,
    holds,
    newest_revision,
    peer,
    slots_of,
    stored_revisions,
    turns,
)

NODE_ID = key_pair(0x11).node_id
"""Whose store it is."""

ROOMY = Quotas(min_free_space=0, max_bytes_per_peer=1 << 30)
"""Nothing is refused, whatever disk the tests run on."""


async def prune(store: SqliteStore, retention: Retention, *, dry_run: bool = False) -> list[Due]:
    """All that retention deletes now, or would."""
    return [due async for due in store.prune(retention, dry_run=dry_run)]


class SqliteBackend:
    """A database file."""

    def __init__(self, directory: Path, quotas: Quotas = ROOMY) -> None:
        self.clock = Clock()
        self.quotas = quotas
        self.path = directory / "peerstore.db"
        self._opened: list[SqliteStore] = []

    async def open(self, *, aging: bool = True) -> SqliteStore:
        store = await SqliteStore.open(
            self.path,
            node_id=NODE_ID,
            network=Network.REGTEST,
            clocks=Clocks(wall=self.clock, monotonic=lambda: self.clock.monotonic),
            quotas=self.quotas,
            aging=aging,
        )
        self._opened.append(store)
        return store

    @contextlib.asynccontextmanager
    async def hold_writes(self) -> AsyncIterator[None]:
        with edited(self.path) as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                database.rollback()

    @contextlib.asynccontextmanager
    async def fail_writes(self) -> AsyncIterator[None]:
        with edited(self.path) as database:
            for event in ("INSERT", "UPDATE", "DELETE"):
                database.execute(
                    f"CREATE TRIGGER fail_{event} BEFORE {event} ON backup"
                    " BEGIN SELECT RAISE(ABORT, 'told to fail'); END"
                )
            try:
                yield
            finally:
                for event in ("INSERT", "UPDATE", "DELETE"):
                    database.execute(f"DROP TRIGGER fail_{event}")

    async def dispose(self) -> None:
        for store in self._opened:
            # A test that failed may have left it in any state; its threads must end.
            with contextlib.suppress(Exception):
                await store.close()
            await store.reader.close()
            await store._writer.close()


class TestSqliteStore(StoreContract):
    """The contract."""

    def make_backend(self, directory: Path) -> Backend:
        return SqliteBackend(directory)


@contextlib.contextmanager
def edited(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, opened behind the store's back; what is done is committed at once."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        # An operator's mistake or a bad disk asks for no permission.
        database.execute("PRAGMA ignore_check_constraints = ON")
        yield database


async def write(store: SqliteStore, *updates: tuple[Slot, bytes]) -> None:
    """Store blobs one after the other, each by a connection of its own."""
    for slot, blob in updates:
        lease = await store.open_lease(slot.node_id, Recorder())
        lease.put(1, slot, blob)
        await store.settle()


async def alarms(store: SqliteStore) -> list[Alarm]:
    """The alarms that stand, with those that are just being raised."""

    async def nothing(_: Transaction) -> set[NodeId]:
        return set()

    await store.run(nothing)
    return await store.reader.alarms(acknowledged=False)


# Group commit


async def transactions(store: SqliteStore) -> list[set[str]]:
    """A list that will hold what each transaction did that the writer commits, as SQL's verbs."""
    committed: list[set[str]] = []
    current: set[str] | None = None

    def trace(statement: str) -> None:
        # Called in the writer's thread.
        nonlocal current
        verb = statement.split()[0].upper()
        if verb == "BEGIN":
            current = set()
        elif verb == "ROLLBACK":
            current = None
        elif verb == "COMMIT":
            assert current is not None
            committed.append(current)
            current = None
        elif current is not None:
            current.add(verb)
        elif verb in ("INSERT", "REPLACE", "UPDATE", "DELETE"):
            committed.append({verb})

    await store._writer.set_trace_callback(trace)
    return committed


async def test_what_waits_is_written_in_one_transaction(store: SqliteStore) -> None:
    recorders = [Recorder() for _ in range(50)]
    leases = [await store.open_lease(peer(n), recorder) for n, recorder in enumerate(recorders)]
    committed = await transactions(store)
    for round_ in range(1, 5):
        for number, lease in enumerate(leases):
            for index, slot in enumerate(slots_of(peer(number))):
                lease.put(round_ * 4 + index, slot, f"{round_} {number} {index}".encode())
    await store.settle()
    assert committed == [{"INSERT", "UPDATE"}]
    assert [recorder.told for recorder in recorders] == [[(19, None)]] * 50
    for number in range(50):
        lease = await store.open_lease(peer(number), Recorder())
        assert await all_of(lease) == {
            slot: f"4 {number} {index}".encode()
            for index, slot in enumerate(slots_of(peer(number)))
        }


async def test_what_comes_during_a_transaction_is_written_in_the_next_one(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    committed = await transactions(store)
    async with backend.hold_writes():
        for sequence in range(1, 10):
            lease.put(sequence, ALICES, str(sequence).encode())
            await turns(store, 3)
    await store.settle()
    assert len(committed) == 2
    assert recorder.told == [(1, None), (9, None)]


async def test_nothing_new_needs_no_transaction(backend: SqliteBackend, store: SqliteStore) -> None:
    await write(store, (ALICES, b"same"))
    lease = await store.open_lease(ALICE, Recorder())
    committed = await transactions(store)
    lease.put(1, ALICES, b"same")
    await store.settle()
    lease.put(2, ALICES, b"other")
    lease.put(3, ALICES, b"same")
    await store.settle()
    assert committed == []


async def test_what_a_listener_was_told_survives_a_kill(
    backend: SqliteBackend, store: SqliteStore, tmp_path: Path
) -> None:
    # The files as they are while the store is open are what a killed process leaves.
    survivor = SqliteBackend(tmp_path / "survivor")
    survivor.path.parent.mkdir()
    revisions: list[Revision] = []

    class Copier(Recorder):
        def stored(self, sequence: int) -> None:
            super().stored(sequence)
            for suffix in ("", "-wal"):
                shutil.copy(f"{backend.path}{suffix}", f"{survivor.path}{suffix}")

    lease = await store.open_lease(ALICE, Copier())
    try:
        for sequence, blob in enumerate((b"one", b"\x02" * LARGEST, b""), 1):
            lease.put(sequence, ALICES, blob)
            await store.settle()
            reopened = await survivor.open()
            assert await all_of(await reopened.open_lease(ALICE, Recorder())) == {ALICES: blob}
            revisions += await stored_revisions(reopened)
            await reopened.close()
    finally:
        await survivor.dispose()
    numbers = [revision.revision for revision in revisions]
    assert numbers == sorted(set(numbers))


# Revisions


async def test_a_revision_is_not_used_again_when_rows_have_gone(backend: SqliteBackend) -> None:
    newest = 0
    for blob in (b"one", b"two", b"three"):
        store = await backend.open()
        await write(store, (ALICES, blob), (BOBS, blob))
        for slot in (ALICES, BOBS):
            assert await newest_revision(store, slot) > newest
        newest = await newest_revision(store, BOBS)
        await store.close()
        with edited(backend.path) as database:
            database.execute("DELETE FROM backup")


async def test_a_row_that_goes_while_the_store_is_open_can_be_written_again(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await write(store, (ALICES, b"one"))
    newest = await newest_revision(store, ALICES)
    lease = await store.open_lease(ALICE, Recorder())
    with edited(backend.path) as database:
        database.execute("DELETE FROM backup")
    lease.put(1, ALICES, b"two")
    await store.settle()
    assert await newest_revision(store, ALICES) > newest
    assert await holds(store, ALICES, b"two")


async def test_a_peer_whose_only_row_is_gone_stores_again_and_harms_nobody(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    # A bit that flipped in the key of its only row hides the row from it.
    await write(store, (ALICES, b"one"))
    await store.close()
    with edited(backend.path) as database:
        database.execute("UPDATE backup SET node_id = ?", (flipped(ALICE),))
    store = await backend.open()
    recorders = {ALICE: Recorder(), BOB: Recorder()}
    leases = {id_: await store.open_lease(id_, recorder) for id_, recorder in recorders.items()}
    for slot in (ALICES, BOBS):
        leases[slot.node_id].put(1, slot, b"new")
    await store.settle()
    assert {id_: recorder.told for id_, recorder in recorders.items()} == {
        ALICE: [(1, None)],
        BOB: [(1, None)],
    }


async def test_last_seen_moves_once_a_minute(backend: SqliteBackend, store: SqliteStore) -> None:
    def last_seen() -> int:
        with edited(backend.path) as database:
            (seconds,) = database.execute(
                "SELECT last_seen_at FROM backup WHERE replaced IS NULL"
            ).fetchone()
        assert isinstance(seconds, int)
        return seconds

    lease = await store.open_lease(ALICE, Recorder())
    lease.put(1, ALICES, b"same")
    await store.settle()
    (before,) = await stored_revisions(store)
    assert last_seen() == START
    for passed, seen in (
        (0, 0),
        (LAST_SEEN_SECONDS - 1, 0),
        (LAST_SEEN_SECONDS, 60),
        (LAST_SEEN_SECONDS + 1, 60),
        (2 * LAST_SEEN_SECONDS - 1, 60),
        (1000, 1000),
        # The clock was set back.
        (500, 1000),
        (1000 + LAST_SEEN_SECONDS, 1060),
    ):
        backend.clock.now = START + passed
        lease.put(2 + passed, ALICES, b"same")
        await store.settle()
        assert last_seen() == START + seen, passed
    lease = await store.open_lease(ALICE, Recorder())
    backend.clock.now += LAST_SEEN_SECONDS - 1
    lease.put(1, ALICES, b"same")
    await store.settle()
    assert last_seen() == START + 1060
    assert await stored_revisions(store) == [before]
    lease.put(2, ALICES, b"other")
    await store.settle()
    assert last_seen() == backend.clock.now


async def test_nothing_is_remembered_of_connections_that_are_gone(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    async with backend.hold_writes():
        for number in range(20):
            lease = await store.open_lease(peer(number), Recorder())
            if number % 2:
                lease.put(1, backup_of(peer(number)), b"x")
            if number % 3:
                lease.close()
            else:
                opening = asyncio.create_task(store.open_lease(peer(number), Recorder()))
                await turns(store, 3)
                lease.close()
                opening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    (await opening).close()
    await store.settle()
    await turns(store)
    assert (await store.counts()).backups == 10
    assert not store._leases


# Failure


async def test_a_full_disk_loses_nothing_old_and_writing_resumes(store: SqliteStore) -> None:
    async def allow(pages: int) -> None:
        await store._writer.execute_fetchall(f"PRAGMA max_page_count = {pages}")

    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    lease.put(1, ALICES, b"kept")
    await store.settle()
    before = await stored_revisions(store)
    await allow(1)  # never less than there are
    lease.put(2, ALICES, b"\x03" * LARGEST)
    await store.settle()
    assert recorder.lost() == 2
    assert await stored_revisions(store) == before
    assert await blob_of(lease, ALICES) == b"kept"
    await allow(1_000_000)
    lease.put(3, ALICES, b"\x03" * LARGEST)
    await store.settle()
    assert recorder.told[-1] == (3, None)
    assert await holds(store, ALICES, b"\x03" * LARGEST)
    assert await newest_revision(store, ALICES) > before[0].revision


async def test_a_commit_that_fails_changes_nothing(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    lease.put(1, ALICES, b"kept")
    await store.settle()
    before = await stored_revisions(store)
    with failing_commits(store):
        lease.put(2, ALICES, b"lost")
        lease.put(3, slots_of(ALICE)[1], b"lost")
        await store.settle()
    assert recorder.lost() == 3
    assert await stored_revisions(store) == before
    assert await all_of(lease) == {ALICES: b"kept"}
    # Nobody else is kept out by a transaction that was left open.
    with edited(backend.path) as database:
        database.execute("BEGIN IMMEDIATE")
        database.rollback()
    lease.put(4, ALICES, b"new")
    await store.settle()
    assert recorder.told[-1] == (4, None)
    assert await newest_revision(store, ALICES) > before[0].revision
    await store.close()
    store = await backend.open()
    assert await all_of(await store.open_lease(ALICE, Recorder())) == {ALICES: b"new"}


async def test_the_same_failure_is_logged_once_an_hour_and_its_end_once(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    def told() -> list[str]:
        return [f"{log['log_level']} {log['event']}: {log['error']}" for log in logs]

    failed = "error commit_failed: disk I/O error"
    lease = await store.open_lease(ALICE, Recorder())
    with capture_logs() as logs:
        with failing_commits(store):
            for number, seconds in enumerate((0, 1, 3598, 1, 1), 1):
                backend.clock.advance(seconds)
                lease.put(number, ALICES, b"lost")
                await store.settle()
                # From the hour on once more.
                assert told() == [failed] * (1 if number < 4 else 2)
        for number in (6, 7):
            lease.put(number, ALICES, b"kept %d" % number)
            await store.settle()
        assert told()[2:] == ["info commits_resumed: disk I/O error"]
        with failing_commits(store):
            lease.put(8, ALICES, b"lost again")
            await store.settle()
        assert told()[3:] == [failed]


@pytest.mark.parametrize(
    "when", ["BEFORE INSERT ON backup WHEN new.kind = 3", "AFTER UPDATE ON meta"]
)
async def test_a_transaction_that_fails_half_way_leaves_nothing(
    backend: SqliteBackend, store: SqliteStore, when: str
) -> None:
    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    with edited(backend.path) as database:
        database.execute(f"CREATE TRIGGER fail {when} BEGIN SELECT RAISE(ABORT, 'no'); END")
        for sequence, slot in enumerate(slots_of(ALICE), 1):
            lease.put(sequence, slot, b"lost")
        await store.settle()
        database.execute("DROP TRIGGER fail")
    assert recorder.lost() == 4
    assert await store.counts() == Counts(0, 0, 0, versions=0)
    assert await all_of(await store.open_lease(ALICE, Recorder())) == {}


async def test_a_database_that_cannot_be_read_is_a_store_error(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await write(store, (ALICES, b"one"))
    with edited(backend.path) as database:
        database.execute("ALTER TABLE backup RENAME TO gone")
        with pytest.raises(StoreError):
            await store.open_lease(ALICE, Recorder())
        database.execute("ALTER TABLE gone RENAME TO backup")
    # The failure is over with the lease that had it.
    assert await all_of(await store.open_lease(ALICE, Recorder())) == {ALICES: b"one"}


# Backpressure


async def test_it_is_congested_above_32_mib(backend: SqliteBackend, store: SqliteStore) -> None:
    assert CONGESTED_BYTES == 32 << 20
    lease = await store.open_lease(ALICE, Recorder())
    other = await store.open_lease(BOB, Recorder())
    # Twice, as nothing of what was written may be counted on.
    for fill in (b"\x01", b"\x02"):
        async with backend.hold_writes():
            lease.put(1, ALICES, fill * CONGESTED_BYTES)
            assert not congested(store)
            other.put(1, BOBS, fill)
            assert congested(store)
            other.put(2, BOBS, b"")
            assert not congested(store)
            other.put(3, BOBS, fill)
            assert congested(store)
        await store.settle()
        assert not congested(store)
        lease = await store.open_lease(ALICE, Recorder())
        other = await store.open_lease(BOB, Recorder())


async def test_a_batch_has_a_limit_and_the_order_is_first_come_first_served(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "BATCH_BYTES", 10)
    recorders = [Recorder() for _ in range(6)]
    leases = [await store.open_lease(peer(n), recorder) for n, recorder in enumerate(recorders)]
    committed = await transactions(store)
    for number, lease in enumerate(leases):
        lease.put(1, backup_of(peer(number)), bytes(5))
    await store.settle()
    assert len(committed) == 3
    assert [recorder.told for recorder in recorders] == [[(1, None)]] * 6
    revisions = {revision.slot: revision.revision for revision in await stored_revisions(store)}
    numbers = [revisions[backup_of(peer(number))] for number in range(6)]
    assert numbers == sorted(numbers)


# Reading beside the writer


async def test_a_version_that_is_replaced_while_it_is_looked_up_is_not_called_damaged(
    backend: SqliteBackend, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `backups export` beside a daemon that is just storing a newer backup of the same slot.
    lease = await store.open_lease(ALICE, Recorder())
    lease.put(1, ALICES, b"old")
    await store.settle()
    async with await SqliteReader.open(backend.path) as reader, reader.unchanging():
        version = await reader.find(ALICES)
        assert version is not None
        # The same connection overwrites the row in place.
        lease.put(2, ALICES, b"new")
        await store.settle()
        assert (await reader.read(version.row_id, version.revision)).blob == b"old"
        assert await reader.find(ALICES) == version
    assert await holds(store, ALICES, b"new")


along = pytest.mark.parametrize("soon", [None, BackupKind.PEER_STORAGE], ids=["", "read along"])


@along
async def test_a_lease_reads_what_was_there_when_it_was_opened(
    store: SqliteStore, soon: BackupKind | None
) -> None:
    await write(store, (ALICES, b"old"))
    lease = await store.open_lease(ALICE, Recorder(), soon=soon)
    for sequence, blob in enumerate((b"new", b"newer", b"newest"), 1):
        lease.put(sequence, ALICES, blob)
        await store.settle()
        assert await blob_of(lease, ALICES) == b"old"
    assert await all_of(await store.open_lease(ALICE, Recorder())) == {ALICES: b"newest"}
    assert await alarms(store) == []


async def test_what_is_read_along_costs_no_second_look(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, (ALICES, b"storage"), (ALICES_NODE, b"node"))

    async def broken(*_: object) -> None:
        raise sqlite3.OperationalError("looked")

    lease = await store.open_lease(ALICE, Recorder(), soon=BackupKind.PEER_STORAGE)
    with monkeypatch.context() as patch:
        patch.setattr(Database, "call", broken)
        assert await blob_of(lease, ALICES) == b"storage"
        with pytest.raises(StoreError):  # it is given out once, and kept no longer
            await lease.read(ALICES)
    assert await blob_of(lease, ALICES) == b"storage"
    lease = await store.open_lease(ALICE, Recorder(), soon=BackupKind.PEER_STORAGE)
    with monkeypatch.context() as patch:
        patch.setattr(Database, "call", broken)
        with pytest.raises(StoreError):
            await lease.read(ALICES_NODE)
        assert await blob_of(lease, ALICES) == b"storage"
    assert await all_of(lease) == {ALICES: b"storage", ALICES_NODE: b"node"}


async def test_what_is_read_along_is_not_given_back_once_an_operator_has_deleted_it(
    store: SqliteStore,
) -> None:
    await write(store, (ALICES, b"old"))
    await write(store, (ALICES, b"new"))
    lease = await store.open_lease(ALICE, Recorder(), soon=BackupKind.PEER_STORAGE)
    await store.run(operations.delete(ALICES, await newest_revision(store, ALICES)))
    assert await blob_of(lease, ALICES) == b"old"


async def test_what_is_held_is_what_is_read_along(store: SqliteStore) -> None:
    await write(store, (ALICES, b"old"))
    held = await newest_revision(store, ALICES)
    await write(store, (ALICES, b"new"))
    await store.run(operations.hold(ALICES, held, None))
    lease = await store.open_lease(ALICE, Recorder(), soon=BackupKind.PEER_STORAGE)
    assert await blob_of(lease, ALICES) == b"old"


async def test_a_lease_reads_a_slot_that_it_filled_itself_without_a_false_alarm(
    store: SqliteStore,
) -> None:
    lease = await store.open_lease(ALICE, Recorder())
    for sequence, blob in enumerate((b"one", b"two", b"three"), 1):
        lease.put(sequence, ALICES, blob)
        await store.settle()
        # base.Lease.slots: "or were written since".
        assert await blob_of(lease, ALICES) in (None, blob)
    assert await alarms(store) == []


async def test_a_lease_reads_its_slot_also_at_the_moment_when_it_is_replaced(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, (ALICES, b"old"))
    lease = await store.open_lease(ALICE, Recorder())
    call = store._writer.call
    during: list[bytes | Exception | None] = []

    async def call_and_read(work: Callable[[sqlite3.Connection], object]) -> object:
        result = await call(work)
        # Committed, and the writer task has not run since.
        try:
            during.append(await blob_of(lease, ALICES))
        except StoreError as error:
            during.append(error)
        return result

    monkeypatch.setattr(store._writer, "call", call_and_read)
    lease.put(1, ALICES, b"new")
    await store.settle()
    assert during == [b"old"]


async def test_the_reader_finds_a_slot_by_its_newest_or_a_named_revision(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await write(store, (ALICES, b"one"), (BOBS, b"two"), (ALICES, b"three"))
    newest = await newest_revision(store, ALICES)
    async with await SqliteReader.open(backend.path) as reader:
        version = await reader.find(ALICES)
        assert version is not None
        assert version.current
        assert version.revision.revision == newest
        assert (await reader.read(version.row_id, version.revision)).blob == b"three"
        assert await reader.find(ALICES, newest) == version
        older = await reader.find(ALICES, 1)
        assert older is not None
        assert not older.current
        assert (await reader.read(older.row_id, older.revision)).blob == b"one"
        assert await reader.find(ALICES, newest + 1) is None
        assert await reader.find(BOBS, newest) is None
        assert await reader.find(Slot(ALICE, BackupKind.NODE_BACKUP)) is None
        assert await reader.find(backup_of(peer(3))) is None


async def test_the_reader_finds_peers_by_the_beginning_of_their_id(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    ids = [NodeId(bytes.fromhex(text)) for text in ("02" + "ab" * 32, "02" + "ac" * 32)]
    for node_id in ids:
        await write(store, *((slot, b"x") for slot in slots_of(node_id)))
    async with await SqliteReader.open(backend.path) as reader:
        assert sorted(await reader.node_ids("", 9)) == ids
        assert sorted(await reader.node_ids("02a", 9)) == ids
        assert len(await reader.node_ids("02a", 1)) == 1
        assert await reader.node_ids("02ac", 9) == ids[1:]
        assert await reader.node_ids(ids[0].hex(), 9) == ids[:1]
        assert await reader.node_ids("02ad", 9) == []
        assert await reader.node_ids("03", 9) == []


# Digests

CHANNELS = slots_of(ALICE)[2]
CONTENT = {ALICES: b"of alice", BOBS: b"of bob", CHANNELS: b"of a channel"}
SLOTS = [slot for node_id in (ALICE, BOB) for slot in slots_of(node_id)]


def in_slot(slot: Slot) -> tuple[str, tuple[bytes, int, bytes]]:
    """A condition that holds for the row of a slot, and its parameters."""
    condition = "node_id = ? AND kind = ? AND channel_id = ?"
    return condition, (slot.node_id, int(slot.kind), slot.channel_id)


def flipped(data: bytes, bit: int = 0) -> bytes:
    """The same with one bit flipped."""
    flip = 1 << bit % (8 * len(data))
    return (int.from_bytes(data, "big") ^ flip).to_bytes(len(data), "big")


def flip_first(column: str) -> Callable[[sqlite3.Row], object]:
    return lambda row: flipped(row[column])


# What becomes of a column of a row, by the row as it was.
ALTERATIONS: dict[str, tuple[str, Callable[[sqlite3.Row], object]]] = {
    "node_id: one bit": ("node_id", flip_first("node_id")),
    "node_id: another peer's": ("node_id", lambda row: BOB if row["node_id"] == ALICE else ALICE),
    "node_id: empty": ("node_id", lambda _: b""),
    "kind: another": ("kind", lambda row: row["kind"] % 3 + 1),
    "kind: none there is": ("kind", lambda _: 7),
    "kind: zero": ("kind", lambda _: 0),
    "kind: huge": ("kind", lambda _: 1 << 60),
    "channel_id: other": ("channel_id", lambda row: flipped(row["channel_id"] or bytes(32))),
    "channel_id: none": ("channel_id", lambda _: b""),
    "channel_id: long": ("channel_id", lambda _: bytes(256)),
    "revision: higher": ("revision", lambda row: row["revision"] + 1),
    "revision: lower": ("revision", lambda row: row["revision"] - 1),
    "revision: one bit": ("revision", lambda row: row["revision"] ^ 1 << 40),
    "revision: negative": ("revision", lambda row: -row["revision"]),
    "size: higher": ("size", lambda row: row["size"] + 1),
    "size: zero": ("size", lambda _: 0),
    "size: negative": ("size", lambda row: -row["size"]),
    "sha256: one bit": ("sha256", flip_first("sha256")),
    "sha256: empty": ("sha256", lambda _: b""),
    "digest: one bit": ("digest", flip_first("digest")),
    "digest: empty": ("digest", lambda _: b""),
    "blob: one bit": ("blob", flip_first("blob")),
    "blob: cut short": ("blob", lambda row: row["blob"][:-1]),
    "blob: longer": ("blob", lambda row: row["blob"] + b"\0"),
    "blob: empty": ("blob", lambda _: b""),
}
COLUMNS = {column for column, _ in ALTERATIONS.values()}


_template: list[bytes] = []


async def written(backend: SqliteBackend) -> None:
    """Make a database that holds CONTENT, closed."""
    if not _template:
        store = await backend.open()
        await write(store, *CONTENT.items())
        await store.close()
        _template.append(backend.path.read_bytes())
    backend.path.write_bytes(_template[0])


def alter(path: Path, slot: Slot, column: str, change: Callable[[sqlite3.Row], object]) -> None:
    """Change a column of the row of a slot."""
    where, parameters = in_slot(slot)
    with edited(path) as database:
        database.row_factory = sqlite3.Row
        row = database.execute(f"SELECT * FROM backup WHERE {where}", parameters).fetchone()  # noqa: S608
        value = change(row)
        assert value != row[column] or value == b"", "nothing would be altered"
        database.execute(
            f"UPDATE backup SET {column} = ? WHERE {where}",  # noqa: S608
            (value, *parameters),
        )


async def assert_nothing_false_is_found(path: Path) -> None:
    """What a command finds in a slot is what was stored in it, or nothing, or an error."""
    async with await SqliteReader.open(path) as reader:
        for slot in SLOTS:
            for revision in (None, 1, 2, 3, 4):
                version = await reader.find(slot, revision)
                if version is None:
                    continue
                try:
                    backup = await reader.read(version.row_id, version.revision)
                except DamagedBackupError:
                    continue
                assert backup.revision.slot == slot
                assert backup.blob == CONTENT.get(slot)


async def assert_nothing_false_is_replayed(store: SqliteStore) -> None:
    """What a peer gets back is what it stored, or nothing."""
    for node_id in (ALICE, BOB):
        lease = await store.open_lease(node_id, Recorder())
        for slot in {*lease.slots, *SLOTS}:
            blob = await blob_of(lease, slot)
            assert blob is None or blob == CONTENT.get(slot)


def test_every_column_that_the_digest_covers_is_altered(tmp_path: Path) -> None:
    with edited(tmp_path / "a.db") as database:
        root = Path(__file__).parent.parent
        database.executescript((root / "migrations" / "0001_backup.sql").read_text())
        columns = {row[1] for row in database.execute("PRAGMA table_info(backup)")}
    assert columns - COLUMNS == {
        "id", "stored_at", "last_seen_at", "opened", "replaced", "burst", "pins",
    }  # fmt: skip


altered = pytest.mark.parametrize(
    ("slot", "name"),
    [
        pytest.param(slot, name, id=f"{slot.kind.label}: {name}")
        for name, (column, _) in ALTERATIONS.items()
        for slot in (ALICES, CHANNELS)
        if (name != "channel_id: none" if slot is ALICES else column in ("kind", "channel_id"))
    ],
)


@altered
async def test_an_altered_row_is_never_replayed(
    backend: SqliteBackend, slot: Slot, name: str
) -> None:
    await written(backend)
    alter(backend.path, slot, *ALTERATIONS[name])
    store = await backend.open()
    await assert_nothing_false_is_replayed(store)
    # The peer is served on, and its next update mends what can be mended.
    lease = await store.open_lease(slot.node_id, Recorder())
    lease.put(1, slot, b"new")
    await store.settle()
    lease = await store.open_lease(slot.node_id, Recorder())
    assert await blob_of(lease, slot) == b"new"


@altered
async def test_an_altered_row_is_never_found(backend: SqliteBackend, slot: Slot, name: str) -> None:
    await written(backend)
    alter(backend.path, slot, *ALTERATIONS[name])
    await assert_nothing_false_is_found(backend.path)


@altered
async def test_an_altered_row_does_not_hide_the_others_from_a_list(
    backend: SqliteBackend, slot: Slot, name: str
) -> None:
    await written(backend)
    alter(backend.path, slot, *ALTERATIONS[name])
    async with await SqliteReader.open(backend.path) as reader:
        listed = {version.revision.slot async for version in reader.versions()}
    assert listed >= CONTENT.keys() - {slot}


@altered
async def test_a_row_that_is_altered_under_a_lease_is_not_replayed(
    backend: SqliteBackend, store: SqliteStore, slot: Slot, name: str
) -> None:
    await write(store, *CONTENT.items())
    lease = await store.open_lease(slot.node_id, Recorder())
    alter(backend.path, slot, *ALTERATIONS[name])
    assert await lease.read(slot) is None
    (alarm,) = await alarms(store)
    assert alarm.kind == "damaged"
    assert alarm.slot == slot
    assert alarm.text.isprintable()
    assert slot.node_id.hex() in alarm.text


@pytest.mark.parametrize(
    "columns",
    [
        ("node_id",),
        ("blob",),
        ("blob", "sha256", "size"),
        ("blob", "sha256", "size", "digest"),
        ("blob", "sha256", "size", "digest", "revision"),
    ],
    ids="+".join,
)
@along
async def test_what_two_peers_have_is_not_mistaken_when_their_rows_are_swapped(
    backend: SqliteBackend, columns: tuple[str, ...], soon: BackupKind | None
) -> None:
    await written(backend)
    with edited(backend.path) as database:
        select = f"SELECT {', '.join(columns)} FROM backup WHERE kind = 1 AND node_id = ?"  # noqa: S608
        rows = [database.execute(select, (node_id,)).fetchone() for node_id in (ALICE, BOB)]
        (ids,) = [database.execute("SELECT id FROM backup WHERE kind = 1 ORDER BY id").fetchall()]
        assignment = ", ".join(f"{column} = ?" for column in columns)
        for (row_id,), row in zip(ids, reversed(rows), strict=True):
            database.execute(f"UPDATE backup SET {assignment} WHERE id = ?", (*row, row_id))  # noqa: S608
    store = await backend.open()
    for slot in (ALICES, BOBS):
        lease = await store.open_lease(slot.node_id, Recorder(), soon=soon)
        assert await lease.read(slot) is None
        version = await store.reader.find(slot)
        assert version is not None
        with pytest.raises(DamagedBackupError):
            await store.reader.read(version.row_id, version.revision)
    assert len(await alarms(store)) == 2


async def test_a_size_that_is_not_that_of_the_bytes_is_damage(backend: SqliteBackend) -> None:
    # The bytes are right, but what is listed and counted is not.
    await written(backend)
    alter(backend.path, ALICES, "size", lambda row: row["size"] + 1)
    async with await SqliteReader.open(backend.path) as reader:
        version = await reader.find(ALICES)
        assert version is not None
        with pytest.raises(DamagedBackupError):
            await reader.read(version.row_id, version.revision)


@pytest.mark.parametrize("replayed", [True, False])
async def test_the_same_bytes_again_mend_a_damaged_row(
    backend: SqliteBackend, replayed: bool
) -> None:
    # "An identical blob is not written again when the stored row verifies."
    await written(backend)
    alter(backend.path, ALICES, "blob", flip_first("blob"))
    store = await backend.open()
    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    if replayed:
        assert await lease.read(ALICES) is None
    lease.put(1, ALICES, CONTENT[ALICES])
    await store.settle()
    assert recorder.told == [(1, None)]
    lease = await store.open_lease(ALICE, Recorder())
    assert await blob_of(lease, ALICES) == CONTENT[ALICES]


@quick
@given(
    slot=st.sampled_from(list(CONTENT)),
    column=st.sampled_from(["node_id", "channel_id", "sha256", "digest", "blob"]),
    bit=st.integers(min_value=0),
)
async def test_no_flipped_bit_goes_unseen(
    tmp_path_factory: pytest.TempPathFactory, slot: Slot, column: str, bit: int
) -> None:
    backend = SqliteBackend(tmp_path_factory.mktemp("flipped"))
    try:
        await written(backend)
        if column == "channel_id":
            slot = CHANNELS
        alter(backend.path, slot, column, lambda row: flipped(row[column], bit))
        await assert_nothing_false_is_found(backend.path)
    finally:
        await backend.dispose()


# A bad page


def damage_a_page_of(path: Path, blob: bytes) -> None:
    """Write nonsense over the link to the next page in a page that holds a part of the blob."""
    data = bytearray(path.read_bytes())
    page_size = int.from_bytes(data[16:18], "big")
    pages = [
        start
        for start in range(0, len(data), page_size)
        if data[start + 4 : start + page_size] == blob[: page_size - 4]
    ]
    # SQLite, Database File Format, 1.7: an overflow page begins with the next one's number.
    data[pages[1] : pages[1] + 4] = b"\xff" * 4
    path.write_bytes(data)


async def with_a_bad_page(backend: SqliteBackend) -> SqliteStore:
    """A store in which a page of the current backup of ALICE is bad; the one before is sound."""
    blob = b"\xa5" * LARGEST
    store = await backend.open()
    await write(store, (ALICES, b"before"), (ALICES, blob), (BOBS, b"of bob"))
    await store.close()
    damage_a_page_of(backend.path, blob)
    return await backend.open()


async def test_a_bad_page_is_a_store_error_to_a_reader(backend: SqliteBackend) -> None:
    store = await with_a_bad_page(backend)
    version = await store.reader.find(ALICES)
    assert version is not None
    with pytest.raises(StoreError):
        await store.reader.read(version.row_id, version.revision)
    assert await all_of(await store.open_lease(BOB, Recorder())) == {BOBS: b"of bob"}


@along
async def test_the_newest_sound_version_is_given_back_in_place_of_one_with_a_bad_page(
    backend: SqliteBackend, soon: BackupKind | None
) -> None:
    store = await with_a_bad_page(backend)
    lease = await store.open_lease(ALICE, Recorder(), soon=soon)
    assert await blob_of(lease, ALICES) == b"before"
    assert [alarm.kind for alarm in await alarms(store)] == ["damaged"]


async def test_a_bad_page_of_one_peer_refuses_no_other_peers_update(
    backend: SqliteBackend,
) -> None:
    store = await with_a_bad_page(backend)
    recorders = {ALICE: Recorder(), BOB: Recorder()}
    leases = {id_: await store.open_lease(id_, recorder) for id_, recorder in recorders.items()}
    async with backend.hold_writes():
        # Both wait for the same transaction.
        leases[ALICE].put(1, ALICES, b"\xa5" * LARGEST)
        leases[BOB].put(1, BOBS, b"new of bob")
        await turns(store)
    await store.settle()
    assert recorders[BOB].told == [(1, None)]
    assert await holds(store, BOBS, b"new of bob")


async def test_a_bad_page_does_not_keep_its_peer_from_storing(backend: SqliteBackend) -> None:
    store = await with_a_bad_page(backend)
    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    lease.put(1, ALICES, b"new")
    await store.settle()
    assert recorder.told == [(1, None)]
    assert await all_of(await store.open_lease(ALICE, Recorder())) == {ALICES: b"new"}


def _varint(number: int) -> bytes:
    """SQLite's integer in the header of a record (File Format, 2.1)."""
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.insert(0, number & 0x7F | 0x80)
    return bytes(digits)


@along
@pytest.mark.parametrize("read", [True, False], ids=["", "not read"])
@pytest.mark.parametrize(
    ("column", "bit"),
    [("blob", 0x80), ("blob", 0x01), ("sha256", 0x01), ("digest", 0x01)],
    ids=["blob: a number", "blob: a text", "sha256: a text", "digest: a text"],
)
async def test_bytes_that_a_flipped_bit_made_something_else_keep_nobody_out(
    backend: SqliteBackend, column: str, bit: int, soon: BackupKind | None, read: bool
) -> None:
    blob = os.urandom(LARGEST)
    store = await backend.open()
    await write(store, (ALICES, b"sound"))
    await write(store, (ALICES, blob))
    await store.close()
    raw = bytearray(backend.path.read_bytes())
    of_blob = _varint(12 + 2 * len(blob))
    at = raw.rfind(of_blob, 0, raw.find(blob[:64]))
    if column == "blob":
        raw[at if bit == 0x80 else at + len(of_blob) - 1] ^= bit
    else:
        both = raw.rfind(_varint(12 + 2 * 32) * 2, 0, at)  # sha256, then digest
        raw[both + (column == "digest")] ^= bit
    backend.path.write_bytes(raw)
    store = await backend.open()
    lease = await store.open_lease(ALICE, Recorder(), soon=soon)
    if read:
        assert await blob_of(lease, ALICES) == b"sound"
    lease.put(1, ALICES, b"new")
    await store.settle()
    lease = await store.open_lease(ALICE, Recorder(), soon=soon)
    assert await blob_of(lease, ALICES) == b"new"


async def test_a_kept_version_whose_hash_became_a_text_keeps_nobody_from_storing(
    backend: SqliteBackend,
) -> None:
    blob = os.urandom(LARGEST)
    store = await backend.open()
    await write(store, (ALICES, blob))
    await write(store, (ALICES, b"newest"))
    await store.close()
    raw = bytearray(backend.path.read_bytes())
    at = raw.rfind(_varint(12 + 2 * len(blob)), 0, raw.find(blob[:64]))
    raw[raw.rfind(_varint(12 + 2 * 32) * 2, 0, at)] ^= 0x01
    backend.path.write_bytes(raw)
    store = await backend.open()
    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    lease.put(1, ALICES, b"new")
    await store.settle()
    assert recorder.told == [(1, None)]
    assert await all_of(await store.open_lease(ALICE, Recorder())) == {ALICES: b"new"}


async def test_a_transaction_with_updates_is_one_hop_to_the_writers_thread(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, (ALICES, b"old"), (BOBS, b"old"))
    leases = [await store.open_lease(slot.node_id, Recorder()) for slot in (ALICES, BOBS)]
    hops: list[object] = []
    execute: Callable[..., Awaitable[object]] = store._writer._execute

    async def counting(function: Callable[..., object], *arguments: object) -> object:
        hops.append(function)
        return await execute(function, *arguments)

    for number in (1, 2):
        # The first replacement of each connection looks for kept versions besides.
        for lease, slot in zip(leases, (ALICES, BOBS), strict=True):
            lease.put(number, slot, b"new %d" % number)
        await store.settle()
        monkeypatch.setattr(store._writer, "_execute", counting)
    assert len(hops) == 1
