"""A database's schema and owner: made, completed, brought up to date, refused and left alone."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from peerstore.errors import SchemaError, StoreError
from peerstore.store import migrate as migrate_module
from peerstore.store import reader as reader_module
from peerstore.store.base import Counts, Quotas
from peerstore.store.migrate import APPLICATION_ID, migrations
from peerstore.store.reader import SqliteReader
from peerstore.store.sqlite import Clocks, SqliteStore
from peerstore.store.times import Moment
from peerstore.types import BackupKind, Network, NodeId, Slot
from tests.helpers import key_pair

NODE_ID = key_pair(0x11).node_id
OTHER_NODE_ID = key_pair(0x21).node_id
PEER = Slot(NodeId(b"\x02" + bytes(32)), BackupKind.PEER_STORAGE)
CREATED_AT = 1_700_000_000


class Nobody:
    """A listener that does not care."""

    def stored(self, sequence: int) -> None:
        pass

    def refused(self, sequences: Sequence[int], reason: str) -> None:
        raise AssertionError(f"{sequences}: {reason}")

    def not_stored(self, sequence: int, reason: str) -> None:
        pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database will be, under a name that a URI must quote."""
    directory = tmp_path / "a b#c?d%41&é"
    directory.mkdir()
    return directory / "peerstore.db"


@contextlib.asynccontextmanager
async def opened(
    path: Path, node_id: NodeId = NODE_ID, network: Network = Network.REGTEST
) -> AsyncIterator[SqliteStore]:
    """A store, closed in the end."""
    store = await SqliteStore.open(
        path,
        node_id=node_id,
        network=network,
        clocks=Clocks(wall=lambda: CREATED_AT + 0.9, monotonic=lambda: 5.0),
        quotas=Quotas(min_free_space=0),
    )
    try:
        yield store
    finally:
        await store.close()


@contextlib.contextmanager
def plain(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, without peerstore."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        yield database


def ask(path: Path, sql: str) -> object:
    """The one value that a query gives."""
    with plain(path) as database:
        (value,) = database.execute(sql).fetchone()
    return value


def schema(path: Path) -> list[tuple[str, str]]:
    """Every table, index and trigger with its SQL."""
    with plain(path) as database:
        return database.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()


def dump(path: Path) -> list[str]:
    """All that a database holds, as SQL."""
    with plain(path) as database:
        return list(database.iterdump())


def make_file(path: Path, content: bytes = b"") -> None:
    """Put something where the database will be."""
    path.write_bytes(content)


def files(directory: Path) -> dict[str, bytes]:
    """What is in a directory."""
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}


def end_other_threads(before: list[threading.Thread]) -> None:
    """Wait for the end of the threads that were not there before."""
    for thread in threading.enumerate():
        if thread not in before:
            thread.join()


async def put(store: SqliteStore, blob: bytes) -> None:
    """Store a peer's backup."""
    lease = await store.open_lease(PEER.node_id, Nobody())
    lease.put(1, PEER, blob)
    await store.settle()


async def found(reader: SqliteReader) -> bytes:
    """What the peer would get back."""
    version = await reader.find(PEER)
    assert version is not None
    return (await reader.read(version.row_id, version.revision)).blob


async def refusal(
    path: Path,
    kind: type[StoreError] = SchemaError,
    node_id: NodeId = NODE_ID,
    network: Network = Network.REGTEST,
) -> str:
    """The one line that says why a database is refused; nothing is changed by it."""
    before = files(path.parent)
    with pytest.raises(StoreError) as caught:
        async with opened(path, node_id, network):
            pass
    assert type(caught.value) is kind
    line = str(caught.value)
    assert line.isprintable(), line
    assert str(path) in line
    assert files(path.parent) == before, "the file was touched"
    return line


def with_migration(monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    """A program that knows one migration more."""
    found = migrations()
    for module in (migrate_module, reader_module):
        monkeypatch.setattr(module, "migrations", lambda: [*found, (len(found) + 1, sql)])


# A new database


async def test_a_new_database_has_the_newest_version_and_knows_its_owner(path: Path) -> None:
    async with opened(path) as store:
        assert await store.counts() == Counts(0, 0, 0, versions=0)
        async with await SqliteReader.open(path) as reader:
            meta = await reader.meta()
    assert len(meta.epoch) == 16
    nothing = Counts(0, 0, 0, versions=0)
    assert meta == reader_module.Meta(
        NODE_ID, Network.REGTEST, len(migrations()), 0, meta.epoch, Moment(0, 0), nothing
    )
    assert ask(path, "PRAGMA user_version") == len(migrations())
    assert ask(path, "PRAGMA application_id") == APPLICATION_ID
    assert APPLICATION_ID.to_bytes(4, "big") == b"pstr"
    assert ask(path, "SELECT created_at FROM meta") == CREATED_AT
    assert ask(path, "PRAGMA integrity_check") == "ok"
    # Closed, it is one file and its mark.
    assert sorted(files(path.parent)) == [path.name, path.with_suffix(".mark").name]


async def test_two_databases_have_two_epochs(path: Path) -> None:
    other = path.with_name("other.db")
    for each in (path, other):
        async with opened(each):
            pass
    assert ask(path, "SELECT epoch FROM meta") != ask(other, "SELECT epoch FROM meta")


async def test_the_writer_has_a_wal_and_waits_for_the_disk(path: Path) -> None:
    async with opened(path) as store:
        for pragma, expected in (("journal_mode", "wal"), ("synchronous", 2)):
            ((value,),) = await store._writer.execute_fetchall(f"PRAGMA {pragma}")
            assert value == expected, pragma
        assert path.with_name(f"{path.name}-wal").exists()
    assert ask(path, "PRAGMA journal_mode") == "wal"
    # Also when it is opened again, where neither is the default of the connection.
    async with opened(path) as store:
        ((value,),) = await store._writer.execute_fetchall("PRAGMA synchronous")
        assert value == 2


async def test_opening_again_changes_nothing(path: Path) -> None:
    async with opened(path) as store:
        await put(store, b"kept")
    before = dump(path)
    mark = path.with_suffix(".mark").read_bytes()
    async with opened(path) as store:
        assert await store.counts() == Counts(1, 1, 4, versions=1)
    assert dump(path) == before
    assert path.with_suffix(".mark").read_bytes() == mark


def test_the_migrations_are_numbered_without_gaps() -> None:
    numbers = [number for number, _ in migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_gap_in_the_migrations_is_a_broken_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "packaged", lambda _: tmp_path)
    for name in ("0001_one.sql", "0003_three.sql"):
        (tmp_path / name).write_text("")
    with pytest.raises(SchemaError, match="install"):
        migrations()
    (tmp_path / "0002_two.sql").write_text("-- two")
    (tmp_path / "README.md").write_text("no migration")
    assert migrations() == [(1, ""), (2, "-- two"), (3, "")]


# A creation that was interrupted


async def test_an_empty_file_is_a_new_database(path: Path) -> None:
    make_file(path)
    async with opened(path) as store:
        await put(store, b"stored")
        assert await store.counts() == Counts(1, 1, 6, versions=1)


async def test_a_creation_that_stopped_before_the_schema_is_completed(path: Path) -> None:
    with plain(path) as database:
        database.execute("PRAGMA page_size = 8192")
        database.execute("PRAGMA journal_mode = WAL")
    async with opened(path) as store:
        await put(store, b"stored")
    assert ask(path, "PRAGMA user_version") == len(migrations())
    assert ask(path, "SELECT node_id FROM meta") == NODE_ID


async def test_a_creation_that_stopped_before_the_owner_was_noted_is_completed(path: Path) -> None:
    async with opened(path):
        pass
    complete = schema(path)
    with plain(path) as database:
        database.execute("DELETE FROM meta")
    async with await SqliteReader.open(path) as reader:
        with pytest.raises(StoreError, match="peerstore init"):
            await reader.meta()
    async with opened(path) as store:
        await put(store, b"stored")
        assert await store.counts() == Counts(1, 1, 6, versions=1)
    assert schema(path) == complete
    assert ask(path, "SELECT node_id FROM meta") == NODE_ID
    assert ask(path, "SELECT count(*) FROM meta") == 1


# Upgrades


async def test_a_migration_keeps_what_is_stored(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as store:
        await put(store, b"kept")
    with_migration(monkeypatch, "CREATE TABLE extra (x); INSERT INTO extra VALUES (7);")
    for _ in range(2):  # and is applied once
        async with opened(path) as store:
            assert (await store.reader.meta()).schema_version == len(migrations()) + 1
            lease = await store.open_lease(PEER.node_id, Nobody())
            backup = await lease.read(PEER)
            assert backup is not None
            assert backup.blob == b"kept"
    assert ask(path, "SELECT group_concat(x) FROM extra") == "7"
    assert ask(path, "PRAGMA user_version") == len(migrations()) + 1


@pytest.mark.parametrize(
    "failing",
    ["INSERT INTO nowhere VALUES (1);", "not SQL", "INSERT INTO meta (id) VALUES (2);"],
)
async def test_a_migration_that_fails_half_way_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    async with opened(path) as store:
        await put(store, b"kept")
    before = schema(path)
    with monkeypatch.context() as patch:
        with_migration(patch, f"CREATE TABLE extra (x); DELETE FROM backup; {failing}")  # noqa: S608
        with pytest.raises(StoreError) as caught:
            async with opened(path):
                pass
        assert str(caught.value).isprintable()
    assert schema(path) == before
    assert ask(path, "PRAGMA user_version") == len(migrations())
    async with opened(path) as store:
        assert await store.counts() == Counts(1, 1, 4, versions=1)


async def test_a_creation_that_fails_half_way_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for module in (migrate_module, reader_module):
            patch.setattr(module, "migrations", lambda: [(1, "CREATE TABLE a (x); oh no;")])
        with pytest.raises(StoreError):
            async with opened(path):
                pass
    assert schema(path) == []
    assert ask(path, "PRAGMA user_version") == 0
    async with opened(path) as store:
        await put(store, b"stored")


# What is refused


async def test_a_newer_schema_is_refused(path: Path) -> None:
    async with opened(path) as store:
        await put(store, b"kept")
    newer = len(migrations()) + 1
    with plain(path) as database:
        database.execute(f"PRAGMA user_version = {newer}")
    line = await refusal(path)
    assert f"version {newer}" in line
    assert "newer peerstore" in line
    with pytest.raises(SchemaError, match="newer peerstore") as caught:
        await SqliteReader.open(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize(
    "sql",
    ["CREATE TABLE invoices (id INTEGER)", "PRAGMA user_version = 3"],
    ids=["with a table", "with a version only"],
)
async def test_the_database_of_another_program_is_refused(path: Path, sql: str, mode: str) -> None:
    with plain(path) as database:
        database.execute(f"PRAGMA journal_mode = {mode}")
        database.execute(sql)
    assert "not one of peerstore" in await refusal(path)
    with pytest.raises(SchemaError, match="not one of peerstore"):
        await SqliteReader.open(path)


@pytest.mark.parametrize(
    "content",
    [b"x\n", b"# notes\n" * 1000, bytes(8192), bytes(range(256)) * 64, b"SQLite format 3\0"],
    ids=["a line", "text", "zeros", "junk", "a header cut short"],
)
async def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    make_file(path, content)
    await refusal(path, StoreError)
    with pytest.raises(StoreError) as caught:
        await SqliteReader.open(path)
    assert str(path) in str(caught.value)
    assert files(path.parent) == {path.name: content}


async def test_a_place_where_no_file_can_be_is_refused(path: Path) -> None:
    before = threading.enumerate()
    for place in (path.parent, path / "missing" / "peerstore.db"):
        with pytest.raises(StoreError) as caught:
            async with opened(place):
                pass
        assert str(place) in str(caught.value)
        assert str(caught.value).isprintable()
        with pytest.raises(StoreError, match="no database"):
            await SqliteReader.open(place)
    end_other_threads(before)


def test_a_refusal_leaves_no_thread_that_dies_with_a_traceback(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A command ends its event loop as soon as it is refused; a thread of aiosqlite that still
    # wants to report to the loop then writes a traceback on the operator's terminal.
    async def refused() -> None:
        with pytest.raises(StoreError):
            async with opened(path.parent):
                pass

    tracebacks: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    before = threading.enumerate()
    for _ in range(100):
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(refused())
        end_other_threads(before)
    assert not tracebacks, f"{len(tracebacks)} of 100 times"


async def test_another_nodes_database_is_refused(path: Path) -> None:
    async with opened(path) as store:
        await put(store, b"kept")
    line = await refusal(path, node_id=OTHER_NODE_ID)
    assert NODE_ID.hex() in line
    assert OTHER_NODE_ID.hex() in line
    assert "put the right key file back" in line
    async with opened(path) as store:
        assert await store.counts() == Counts(1, 1, 4, versions=1)


async def test_another_networks_database_is_refused(path: Path) -> None:
    async with opened(path) as store:
        await put(store, b"kept")
    line = await refusal(path, network=Network.BITCOIN)
    assert "regtest, not bitcoin" in line
    assert "set `network` back" in line
    async with opened(path) as store:
        assert await store.counts() == Counts(1, 1, 4, versions=1)


# Readers


async def test_a_reader_makes_no_database(path: Path) -> None:
    with pytest.raises(StoreError, match="peerstore run") as caught:
        await SqliteReader.open(path)
    assert str(path) in str(caught.value)
    assert files(path.parent) == {}


async def test_a_reader_of_an_empty_file_says_what_to_do(path: Path) -> None:
    make_file(path)
    with pytest.raises(SchemaError, match="peerstore init") as caught:
        await SqliteReader.open(path)
    assert str(path) in str(caught.value)
    assert files(path.parent) == {path.name: b""}


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM backup",
        "INSERT INTO meta SELECT * FROM meta",
        "UPDATE backup SET revision = 0",
        "CREATE TABLE extra (x)",
        "PRAGMA user_version = 9",
    ],
)
async def test_a_reader_cannot_write(path: Path, sql: str) -> None:
    async with opened(path) as store:
        await put(store, b"kept")
        readers = await SqliteReader.open(path, connections=2)
        async with readers, store.reader:
            for connection in (*readers._connections, *store.reader._connections):
                with pytest.raises(sqlite3.OperationalError, match="readonly"):
                    await connection.execute_fetchall(sql)
        assert ask(path, "SELECT count(*) FROM backup") == 1


async def test_a_reader_beside_the_daemon_leaves_the_wal_alone(path: Path) -> None:
    async with opened(path) as store:
        await put(store, b"in the WAL")
        before = files(path.parent)
        async with await SqliteReader.open(path, connections=2) as reader:
            assert (await reader.meta()).counts == Counts(1, 1, 10, versions=1)
            assert await found(reader) == b"in the WAL"
        after = files(path.parent)
        for name in (path.name, f"{path.name}-wal"):
            assert after[name] == before[name]
        await put(store, b"newer")
        async with await SqliteReader.open(path) as reader:
            # And what it replaced.
            assert (await reader.meta()).counts == Counts(1, 1, 15, versions=2)
            assert await found(reader) == b"newer"


async def test_a_reader_after_a_kill_sees_the_wal_and_leaves_it_alone(
    path: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed" / path.name
    killed.parent.mkdir()
    wal = killed.with_name(f"{path.name}-wal")
    async with opened(path) as store:
        await put(store, b"in the WAL")
        shutil.copy(path, killed)
        shutil.copy(path.with_name(wal.name), wal)
    before = killed.read_bytes(), wal.read_bytes()
    assert b"in the WAL" not in before[0]
    async with await SqliteReader.open(killed, connections=2) as reader:
        assert await found(reader) == b"in the WAL"
    assert (killed.read_bytes(), wal.read_bytes()) == before
    async with opened(killed) as store:
        assert await store.counts() == Counts(1, 1, 10, versions=1)
    assert sorted(files(killed.parent)) == [path.name, path.with_suffix(".mark").name]
