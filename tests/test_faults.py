"""Disks that fail under a running daemon, and files that were damaged while none ran.

Calls are made to fail by a library that is preloaded into the daemon (tests/powerloss/faults.c).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from peerstore.client import Client, StorageRefusedError
from peerstore.errors import OperatorError
from peerstore.store.base import Quotas
from peerstore.store.snapshot import verify
from peerstore.store.sqlite import Clocks, SqliteStore
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import BackupKind, Network, NodeAddress, Slot
from tests.daemon import UNPACED, Daemon, run_command
from tests.helpers import key_pair
from tests.powerloss.shim import Faults, build

SIZE = 65531


async def connect(address: NodeAddress, key: KeyPair) -> Client:
    """A peer that has connected and exchanged init."""
    client = await Client.connect(address, key)
    await client.init(Network.REGTEST)
    return client


async def given_back(address: NodeAddress, key: KeyPair) -> bytes | None:
    """Connect, see what comes back, close."""
    async with await connect(address, key) as client:
        return await client.retrieve()


async def store(address: NodeAddress, key: KeyPair, blob: bytes) -> None:
    """Connect, store, wait for the confirmation, close; raises StorageRefusedError."""
    async with await connect(address, key) as client:
        await client.store(blob)
        await client.confirm()


# Calls that fail


@pytest.fixture
def faults(tmp_path: Path, data_dir: Path) -> Iterator[Faults]:
    """The controls of the daemon's disk."""
    data_dir.mkdir(0o700)
    library = build("faults", tmp_path)
    with contextlib.closing(Faults(library, data_dir, tmp_path / "control")) as faults:
        yield faults


@pytest.fixture
def failing(data_dir: Path, faults: Faults) -> Iterator[Daemon]:
    """A daemon whose disk fails on command."""
    daemon = Daemon(data_dir, UNPACED)
    with faults.preloaded():
        daemon.start()
    try:
        yield daemon
    finally:
        faults.clear()
        daemon.close()


WAL = "-wal"

KINDS: dict[str, dict[str, Any]] = {
    "a full disk": {"extend": errno.ENOSPC, "create": errno.ENOSPC},
    "a full disk where nothing can be written": {"write": errno.ENOSPC},
    "a quota": {"extend": errno.EDQUOT, "create": errno.EDQUOT},
    "write errors": {"write": errno.EIO},
    "write errors in the write-ahead log": {"write": errno.EIO, "name": WAL},
    "sync errors": {"sync": errno.EIO},
    "sync errors in the write-ahead log": {"sync": errno.EIO, "name": WAL},
    "everything": {
        "write": errno.EIO,
        "sync": errno.EIO,
        "truncate": errno.EIO,
        "create": errno.EIO,
    },
}


@pytest.mark.parametrize("kind", KINDS)
async def test_what_cannot_be_written_is_refused_and_the_last_good_version_stays(
    failing: Daemon, faults: Faults, kind: str
) -> None:
    address, process_id = failing.address, failing.process_id
    alice, bob, carol = (KeyPair.generate() for _ in range(3))
    alices, bobs = os.urandom(SIZE), os.urandom(SIZE)
    await store(address, alice, alices)
    await store(address, bob, bobs)
    async with await connect(address, alice) as staying:
        faults.set(**KINDS[kind])
        for _ in range(3):
            # Each interval has its own warning, before its pong.
            await staying.store(os.urandom(SIZE))
            with pytest.raises(StorageRefusedError, match="storage: not stored"):
                await staying.confirm()
        with pytest.raises(StorageRefusedError):
            await store(address, bob, os.urandom(SIZE))
        with pytest.raises(StorageRefusedError):
            await store(address, carol, os.urandom(SIZE))  # nobody has seen her before
        assert faults.failed
        for _ in range(3):
            assert await given_back(address, bob) == bobs
        assert await given_back(address, carol) is None
        # Nothing may be stuck in a transaction that failed.
        await staying.store(alices)
        await staying.confirm()
        faults.clear()
        alices = os.urandom(SIZE)
        await staying.store(alices)
        await staying.confirm()
    assert await given_back(address, alice) == alices
    bobs = os.urandom(SIZE)
    await store(address, bob, bobs)
    assert failing.process_id == process_id
    assert verify(failing.data_dir / "peerstore.db").sound
    failing.kill()
    failing.start()
    assert await given_back(failing.address, alice) == alices
    assert await given_back(failing.address, bob) == bobs
    assert await given_back(failing.address, carol) is None
    assert verify(failing.data_dir / "peerstore.db").sound


async def test_the_disk_running_low_is_refused_with_a_reason_and_ends_by_itself(
    failing: Daemon, faults: Faults
) -> None:
    key, first, second = KeyPair.generate(), os.urandom(SIZE), os.urandom(SIZE)
    await store(failing.address, key, first)
    async with await connect(failing.address, key) as client:
        faults.set(no_space=1)
        await client.store(second)
        with pytest.raises(StorageRefusedError, match="storage: the disk is nearly full"):
            await client.confirm()
        assert await given_back(failing.address, key) == first
    faults.clear()
    await store(failing.address, key, second)
    assert await given_back(failing.address, key) == second


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=lambda end: end.name)
async def test_a_full_disk_at_the_end_and_at_the_next_start_costs_nothing(
    failing: Daemon, faults: Faults, end: signal.Signals
) -> None:
    """SQLite can't open its WAL without a little room: the start says so, and where."""
    key, blob = KeyPair.generate(), os.urandom(SIZE)
    await store(failing.address, key, blob)
    faults.set(**KINDS["a full disk"], no_space=1)
    failing.stop(end)
    with faults.preloaded():
        result = run_command(failing.data_dir, "run")
        assert result.code == 1
        one_line(result.stderr, failing.data_dir)
        faults.clear()
        failing.start()
    assert await given_back(failing.address, key) == blob
    blob = os.urandom(SIZE)
    await store(failing.address, key, blob)
    assert await given_back(failing.address, key) == blob


@pytest.mark.timeout(7200)  # for --long
async def test_faults_that_come_and_go_lose_nothing_that_was_confirmed(
    failing: Daemon,
    faults: Faults,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each peer has the last version confirmed, or one refused since: a write that failed late
    may turn out to be there after a crash, and is newer."""
    lots = random.Random(1)  # noqa: S311 - nothing secret
    keys = [KeyPair.generate() for _ in range(4)]
    may_have: dict[KeyPair, list[bytes | None]] = {key: [None] for key in keys}
    confirmed = refused = 0
    # The long one writes enough to meet checkpoints too.
    long = request.config.getoption("--long", default=False)
    for number in range(3000 if long else 100):
        if number % 5 == 0:
            faults.set(**lots.choice([*KINDS.values(), {}, {}, {}, {}]))
        if number % 50 == 49:
            failing.kill()
            faults.clear()
            with faults.preloaded():
                failing.start()
        key = lots.choice(keys)
        async with await connect(failing.address, key) as client:
            back = await client.retrieve()
            assert back in may_have[key]
            # What was refused after it may still turn up; what was before it can't any more.
            del may_have[key][: may_have[key].index(back)]
            for _ in range(3):
                # So large that no later one looks like data loss.
                blob = lots.randbytes(lots.randint(SIZE // 2 + 1, SIZE))
                await client.store(blob)
                try:
                    await client.confirm()
                except StorageRefusedError:
                    may_have[key].append(blob)
                    refused += 1
                else:
                    may_have[key] = [blob]
                    confirmed += 1
    faults.clear()
    assert confirmed
    assert refused
    assert verify(failing.data_dir / "peerstore.db").sound
    with capsys.disabled():
        print(  # noqa: T201 - the counts are what the run is for
            f"\nfaults: calls_failed={faults.failed} updates_confirmed={confirmed}"
            f" refused={refused} lost=0"
        )


# Files that were damaged


@dataclass
class Site:
    """A data directory that no daemon uses: what each peer stored, oldest first, and where the
    write-ahead log ended after each."""

    directory: Path
    keys: list[KeyPair]
    stored: dict[KeyPair, list[bytes]]
    ends: list[tuple[int, KeyPair, bytes]]

    @property
    def database(self) -> Path:
        return self.directory / "peerstore.db"

    @property
    def wal(self) -> Path:
        return self.directory / "peerstore.db-wal"


async def fill(data_dir: Path) -> Site:
    """A database with a first version of each peer in it, and later ones in its WAL."""
    daemon = Daemon(data_dir)
    keys = [KeyPair.generate() for _ in range(3)]
    stored: dict[KeyPair, list[bytes]] = {key: [os.urandom(SIZE)] for key in keys}
    ends: list[tuple[int, KeyPair, bytes]] = []
    daemon.start()
    for key in keys:
        await store(daemon.address, key, stored[key][0])
    assert daemon.stop() == 0
    daemon.start()
    site = Site(data_dir, keys, stored, ends)
    for _ in range(3):
        for key in keys:
            blob = os.urandom(SIZE)
            stored[key].append(blob)
            await store(daemon.address, key, blob)
            ends.append((site.wal.stat().st_size, key, blob))
    # A reader that is still there, so that the daemon leaves the WAL behind as it stops; its
    # commit mark it writes in full.
    with contextlib.closing(sqlite3.connect(f"{site.database.as_uri()}?mode=ro", uri=True)) as ours:
        ours.execute("SELECT * FROM meta").fetchall()
        daemon.close()
    assert site.wal.stat().st_size >= ends[-1][0]
    return site


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Made once; every test damages a copy of its own."""
    return asyncio.run(fill(tmp_path_factory.mktemp("filled") / "data"))


@pytest.fixture
def site(filled: Site, data_dir: Path) -> Site:
    """See `fill`."""
    left_out = shutil.ignore_patterns("*.sock", "*.lock", "*-shm")
    shutil.copytree(filled.directory, data_dir, ignore=left_out, dirs_exist_ok=True)
    return replace(filled, directory=data_dir)


def flip(path: Path, offset: int, mask: int = 0xFF) -> None:
    """Change a byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ mask,)))


async def served_after(site: Site, sound: int) -> None:
    """Start on a WAL of which only the first `sound` bytes can be used; see what is served."""
    expected = {key: stored[0] for key, stored in site.stored.items()}
    expected |= {key: blob for end, key, blob in site.ends if end <= sound}
    daemon = Daemon(site.directory)
    daemon.start()
    try:
        for key in site.keys:
            assert await given_back(daemon.address, key) == expected[key]
        alarms = daemon.command("--json", "alarms", "list").document["items"]
        assert [alarm["kind"] for alarm in alarms] == ["behind"]
        assert "behind_commit_mark" in {event["event"] for event in daemon.events}
        # It serves on, and what comes now is kept beside what there is.
        again = os.urandom(SIZE)
        await store(daemon.address, site.keys[0], again)
        assert await given_back(daemon.address, site.keys[0]) == again
        assert verify(site.database).sound
        # The alarm stands until it is acknowledged, over a restart too.
        daemon.kill()
        daemon.start()
        assert await given_back(daemon.address, site.keys[0]) == again
        alarms = daemon.command("--json", "info").document["alarms"]
        assert [(alarm["kind"], alarm["count"]) for alarm in alarms] == [("behind", 1)]
    finally:
        daemon.close()


FRAME = 24 + 16384
WAL_HEADER = 32


@pytest.mark.parametrize("where", ["header", "first frame", "a frame's header", "middle", "last"])
async def test_a_flipped_byte_in_the_wal_costs_only_what_comes_after_it(
    site: Site, where: str
) -> None:
    size = site.ends[-1][0]
    offset = {
        "header": 17,
        "first frame": WAL_HEADER + 1000,
        "a frame's header": WAL_HEADER + 7 * FRAME + 3,
        "middle": size // 2,
        "last": size - 1,
    }[where]
    flip(site.wal, offset)
    await served_after(site, offset)


@pytest.mark.parametrize("left", ["nothing", "part of the header", "middle", "all but a byte"])
async def test_a_truncated_wal_costs_only_what_was_cut_off(site: Site, left: str) -> None:
    size = site.ends[-1][0]
    length = {
        "nothing": 0,
        "part of the header": 20,
        "middle": size // 2,
        "all but a byte": size - 1,
    }[left]
    os.truncate(site.wal, length)
    await served_after(site, length)


async def test_a_wal_that_is_gone_is_noticed(site: Site) -> None:
    site.wal.unlink()
    await served_after(site, 0)


async def test_a_start_that_cannot_write_its_alarm_gives_back_what_there_is(
    faults: Faults, site: Site
) -> None:
    """Were it to fail, or to hang, all peers would be without their backups."""
    os.truncate(site.wal, site.ends[3][0])
    daemon = Daemon(site.directory)
    faults.set(**KINDS["write errors in the write-ahead log"])
    try:
        with faults.preloaded():
            daemon.start()
        assert await given_back(daemon.address, site.keys[0]) == site.stored[site.keys[0]][2]
        assert await given_back(daemon.address, site.keys[1]) == site.stored[site.keys[1]][1]
        faults.clear()
        await store(daemon.address, site.keys[1], os.urandom(SIZE))
    finally:
        faults.clear()
        daemon.close()


@pytest.fixture
def closed(site: Site) -> Site:
    """The same with all of the WAL in the database: a WAL would bring the header back."""
    with contextlib.closing(sqlite3.connect(site.database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert not site.wal.exists()
    return site


def one_line(said: str, path: Path) -> None:
    """A program's last word to its operator."""
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("Error: ")
    assert str(path) in last


MAGIC, PAGE_SIZE, WRITE_VERSION, READ_VERSION, SCHEMA_FORMAT, APPLICATION_ID = 0, 16, 18, 19, 47, 70
"""Offsets in the header of an SQLite database (https://www.sqlite.org/fileformat2.html, 1.3)."""


@pytest.mark.parametrize(
    "offset", [MAGIC, PAGE_SIZE, READ_VERSION, SCHEMA_FORMAT, APPLICATION_ID], ids=str
)
def test_a_damaged_database_header_is_one_clear_line_and_exit_code_1(
    closed: Site, offset: int
) -> None:
    flip(closed.database, offset)
    before = closed.database.read_bytes()
    for command in ("run", "info", "verify"):
        result = run_command(closed.directory, command)
        assert result.code == 1, (command, result)
        one_line(result.stderr, closed.database)
    assert closed.database.read_bytes() == before


async def test_a_database_that_its_header_makes_read_only_is_given_back_from(
    closed: Site,
) -> None:
    """That one byte stops only what writes; peers still get what they have."""
    flip(closed.database, WRITE_VERSION)
    daemon = Daemon(closed.directory)
    daemon.start()
    try:
        for key in closed.keys:
            assert await given_back(daemon.address, key) == closed.stored[key][-1]
            with pytest.raises(StorageRefusedError):
                await store(daemon.address, key, os.urandom(SIZE))
            assert await given_back(daemon.address, key) == closed.stored[key][-1]
    finally:
        daemon.close()


HEADER = 100


async def test_a_flipped_byte_anywhere_in_the_header_is_harmless_or_refused_in_one_line(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Nothing that is served can be wrong, whichever byte it is."""
    slot = Slot(key_pair(2).node_id, BackupKind.PEER_STORAGE)
    database = tmp_path / "peerstore.db"
    await make_database(database, slot)
    original = database.read_bytes()
    long = request.config.getoption("--long", default=False)
    refusals: list[str] = []
    served = 0
    for offset in range(HEADER):
        for mask in [1 << bit for bit in range(8)] if long else [1 << offset % 8]:
            database.write_bytes(original)
            flip(database, offset, mask)
            try:
                backup = await read_once(database, slot)
            except OperatorError as error:
                refusals.append(str(error))
            else:
                assert backup == NEWEST
                served += 1
    assert served
    assert refusals
    for refusal in refusals:
        assert str(database) in refusal
        assert refusal.isprintable()


OLDER, NEWEST = b"before" * 5000, b"newest" * 5000


class _Listener:
    """Is told nothing that matters."""

    def stored(self, sequence: int) -> None:
        """See store.base.Listener."""

    def refused(self, sequences: Sequence[int], reason: str) -> None:
        raise AssertionError(f"{sequences}: {reason}")

    def not_stored(self, sequence: int, reason: str) -> None:
        """See store.base.Listener."""


async def open_store(database: Path) -> SqliteStore:
    """The store on a database."""
    return await SqliteStore.open(
        database,
        node_id=key_pair(1).node_id,
        network=Network.REGTEST,
        clocks=Clocks(time.time, time.monotonic),
        quotas=Quotas(min_free_space=0),
    )


async def make_database(database: Path, slot: Slot) -> None:
    """A database with two versions of a slot, closed."""
    store = await open_store(database)
    for blob in (OLDER, NEWEST):
        lease = await store.open_lease(slot.node_id, _Listener())
        lease.put(1, slot, blob)
        await store.settle()
    await store.close()


async def read_once(database: Path, slot: Slot) -> bytes | None:
    """Open a database, see what a peer gets back, close."""
    store = await open_store(database)
    try:
        lease = await store.open_lease(slot.node_id, _Listener())
        backup = await lease.read(slot)
        return None if backup is None else backup.blob
    finally:
        await store.close()
