"""Ends that nobody chose: kill -9 and SIGTERM under load, a reconnect into a commit, two daemons.

The peers here believe what a `pong` says (PROTOCOL.md, section 5): what one confirmed must be there
after the next start, or a newer version, and whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from peerstore.client import Client, ConnectionClosedError, StorageRefusedError
from peerstore.errors import ProbeError, StoreClosedError
from peerstore.store.base import Quotas
from peerstore.store.sqlite import READERS, Clocks, SqliteStore
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import BackupKind, Network, NodeAddress, Slot
from peerstore.wire.messages import PeerStorage, QueryChannelRange, ReplyChannelRange
from tests.daemon import HANG, LOOPBACK, UNPACED, Daemon, command_line, environment
from tests.helpers import key_pair

CYCLES, LONG_CYCLES = 8, 1000
"""Kills in the suite, and with --long."""


@pytest.fixture
def daemon(data_dir: Path) -> Iterator[Daemon]:
    """A daemon whose peers are held back by nothing but the disk."""
    daemon = Daemon(data_dir, UNPACED)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


PEER_SIZES = (60, 60, 1_000, 8_000, 32_000, 32_000)
"""The smallest blob of each peer; none is more than twice as large, which would look like data
loss when a smaller one follows (DESIGN.md, Pins and holds)."""

LARGEST = 65531
HEAD = 12 + 32


def make_blob(number: int, counter: int, size: int) -> bytes:
    """A backup that says whose and which it is, and shows whether it is whole."""
    filler = os.urandom(size - HEAD)
    name = number.to_bytes(4, "big") + counter.to_bytes(8, "big")
    return name + hashlib.sha256(name + filler).digest() + filler


def read_blob(blob: bytes) -> tuple[int, int]:
    """A blob's number and counter; fails for one that is not whole."""
    name, digest, filler = blob[:12], blob[12:HEAD], blob[HEAD:]
    assert hashlib.sha256(name + filler).digest() == digest
    return int.from_bytes(name[:4], "big"), int.from_bytes(name[4:], "big")


@dataclass
class Peer:
    """A peer over all the daemon's lives; counters of the updates it sent and had confirmed."""

    number: int
    key: KeyPair = field(default_factory=KeyPair.generate)
    sent: int = 0
    confirmed: int = 0
    confirmations: int = 0

    async def live(self, address: NodeAddress, happened: Callable[[], None]) -> None:
        """Check what comes back, then store until the daemon is gone, reconnecting at times.

        `happened` is called for each thing done.
        """
        lots = random.Random()  # noqa: S311 - nothing secret
        with contextlib.suppress(ConnectionClosedError):
            while True:
                try:
                    client = await Client.connect(address, self.key)
                except ProbeError:
                    return  # it is gone
                async with client:
                    await client.init(Network.REGTEST)
                    happened()
                    await self.check(client)
                    for _ in range(lots.randint(1, 30)):
                        for _ in range(lots.choice((1, 1, 1, 2, 5))):
                            await self.store(client, lots)
                            happened()
                        happened()
                        with contextlib.suppress(StorageRefusedError):  # this disk is slow
                            await client.confirm()
                            self.confirmed = self.sent
                            self.confirmations += 1

    async def store(self, client: Client, lots: random.Random) -> None:
        """Send the next update."""
        smallest = PEER_SIZES[self.number]
        size = lots.randint(smallest, min(2 * smallest, LARGEST))
        self.sent += 1
        await client.store(make_blob(self.number, self.sent, size))

    async def check(self, client: Client) -> None:
        """What comes back is ours, whole, and at least as new as what was confirmed last."""
        blob = await client.retrieve()
        if blob is None:
            assert self.confirmed == 0
        else:
            number, counter = read_blob(blob)
            assert number == self.number
            assert self.confirmed <= counter <= self.sent
            # It was there at a start: it can't go any more.
            self.confirmed = counter


async def under_load(
    daemon: Daemon, peers: list[Peer], moment: int, end: Callable[[], Awaitable[None]]
) -> None:
    """Have all peers store, and `end` the daemon after so many things were done."""
    reached = asyncio.Event()
    done = 0

    def happened() -> None:
        nonlocal done
        done += 1
        if done == moment:
            reached.set()

    async with asyncio.TaskGroup() as group:
        for peer in peers:
            group.create_task(peer.live(daemon.address, happened))
        await reached.wait()
        await end()


async def check_all(address: NodeAddress, peers: list[Peer]) -> None:
    """Each peer connects once more and looks at what it gets."""
    for peer in peers:
        async with await Client.connect(address, peer.key) as client:
            await client.init(Network.REGTEST)
            await peer.check(client)


@pytest.fixture
def peers() -> list[Peer]:
    """Peers that have never connected."""
    return [Peer(number) for number in range(len(PEER_SIZES))]


@pytest.mark.timeout(7200)  # for --long
async def test_kill_9_under_load_loses_nothing_that_was_confirmed(
    daemon: Daemon,
    peers: list[Peer],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cycles = LONG_CYCLES if request.config.getoption("--long", default=False) else CYCLES
    lots = random.Random()  # noqa: S311 - nothing secret

    async def kill() -> None:
        for _ in range(lots.randrange(50)):
            await asyncio.sleep(0)  # the daemon goes on meanwhile
        os.kill(daemon.process_id, signal.SIGKILL)
        await asyncio.to_thread(daemon.kill)

    for _ in range(cycles):
        # Peers check what they get back as they connect: that is the test.
        await under_load(daemon, peers, lots.choice((1, 10, 100, 400)) + lots.randrange(100), kill)
        await asyncio.to_thread(daemon.start)
    await check_all(daemon.address, peers)
    verified = await asyncio.to_thread(daemon.command, "--json", "verify")
    assert verified.document["ok"], verified.output
    assert all(peer.confirmations for peer in peers)
    # Behind its own mark it would be had a commit been lost.
    alarms = await asyncio.to_thread(daemon.command, "--json", "alarms", "list")
    assert alarms.document == {"items": []}
    with capsys.disabled():
        print(  # noqa: T201 - the counts are what the run is for
            f"\nkill -9: cycles={cycles} updates_sent={sum(peer.sent for peer in peers)}"
            f" confirmations={sum(peer.confirmations for peer in peers)}"
            f" confirmed_up_to={sum(peer.confirmed for peer in peers)} lost=0"
        )


async def test_sigterm_under_load_loses_nothing_that_was_confirmed(
    daemon: Daemon, peers: list[Peer]
) -> None:
    async def stop() -> None:
        assert await asyncio.to_thread(daemon.stop) == 0

    for moment in (20, 200, 400):
        await under_load(daemon, peers, moment, stop)
        # All of the write-ahead log is in the database.
        assert not (daemon.data_dir / "peerstore.db-wal").exists()
        await asyncio.to_thread(daemon.start)
    await check_all(daemon.address, peers)
    assert (await asyncio.to_thread(daemon.command, "verify")).code == 0


# A reconnect while the older connection's update is being written


@contextlib.contextmanager
def commits_held_up(database: Path) -> Iterator[None]:
    """No other connection can commit until the block is left."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


@dataclass
class Listener:
    """A connection, as the store sees it."""

    told: list[tuple[int, str]] = field(default_factory=list)

    def stored(self, sequence: int) -> None:
        self.told.append((sequence, ""))

    def refused(self, sequences: Sequence[int], reason: str) -> None:
        raise AssertionError(f"{sequences}: {reason}")

    def not_stored(self, sequence: int, reason: str) -> None:
        self.told.append((sequence, reason))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """An empty store."""
    store = await SqliteStore.open(
        tmp_path / "peerstore.db",
        node_id=key_pair(1).node_id,
        network=Network.REGTEST,
        clocks=Clocks(time.time, time.monotonic),
        quotas=Quotas(min_free_space=0),
    )
    try:
        yield store
    finally:
        await store.close()


async def test_a_newer_lease_waits_for_what_the_older_one_has_in_the_writer(
    store: SqliteStore,
) -> None:
    slot = Slot(key_pair(2).node_id, BackupKind.PEER_STORAGE)
    listener = Listener()
    older = await store.open_lease(slot.node_id, listener)
    older.put(1, slot, b"first")
    await store.settle()
    with commits_held_up(store.path):
        older.put(2, slot, b"second")
        newer = asyncio.create_task(store.open_lease(slot.node_id, Listener()))
        for _ in range(20):
            # Each goes through the readers, as the newer lease would have done by now.
            await store.reader.meta()
        assert not newer.done()
        assert listener.told == [(1, "")]
        with pytest.raises(StoreClosedError):
            older.put(3, slot, b"third")
    lease = await newer
    backup = await lease.read(slot)
    assert backup is not None
    assert backup.blob == b"second"
    assert listener.told == [(1, ""), (2, "")]


async def test_a_newer_lease_is_not_shown_an_older_state_by_a_listing_in_progress(
    store: SqliteStore,
) -> None:
    slot = Slot(key_pair(2).node_id, BackupKind.PEER_STORAGE)
    for number in range(2, 200):
        other = Slot(key_pair(number).node_id, BackupKind.PEER_STORAGE)
        (await store.open_lease(other.node_id, Listener())).put(1, other, b"first")
    await store.settle()
    # One on each of the store's readers.
    listings = [store.reader.versions() for _ in range(READERS)]
    try:
        for listing in listings:
            await anext(listing)
        (await store.open_lease(slot.node_id, Listener())).put(1, slot, b"second")
        newer = await store.open_lease(slot.node_id, Listener())
        backup = await newer.read(slot)
        assert backup is not None
        assert backup.blob == b"second"
    finally:
        for listing in listings:
            await listing.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("gone", [False, True], ids=["replaced", "hung up"])
async def test_a_newer_connection_gets_what_the_older_one_has_in_the_writer(
    daemon: Daemon, gone: bool
) -> None:
    key, chain_hash = KeyPair.generate(), Network.REGTEST.chain_hash

    async def connect() -> Client:
        client = await Client.connect(daemon.address, key)
        await client.init(Network.REGTEST)
        return client

    async with await connect() as older:
        await older.store(b"first")
        await older.confirm()
        with commits_held_up(daemon.data_dir / "peerstore.db"):
            query = QueryChannelRange(chain_hash, 0, 1)
            await older.send_raw(PeerStorage(b"second").encode(), query.encode())
            # The query's answer waits for no commit, and says that the update was taken.
            assert isinstance(await older.receive(), ReplyChannelRange)
            if gone:
                await older.close()
            connecting = asyncio.create_task(connect())
            if not gone:
                with pytest.raises(ConnectionClosedError):
                    await older.receive()
            async with await Client.connect(daemon.address, KeyPair.generate()) as other:
                # Meanwhile others are served.
                await other.init(Network.REGTEST)
                assert await other.retrieve() is None
            assert not connecting.done()
        async with await connecting as newer:
            assert await newer.retrieve() == b"second"
            assert newer.warnings == []


# Two daemons


def refused_start(daemon: Daemon, data_dir: Path, *settings: str) -> str:
    """Start a second daemon, which must not come up beside the first; returns what it says."""
    process = subprocess.Popen(
        [*command_line(data_dir, [*LOOPBACK, *settings]), "run"],
        env=environment(data_dir),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    came_up = process.stdout.readline()
    if came_up:
        process.kill()
    _, said = process.communicate(timeout=HANG)
    assert came_up == ""
    assert process.returncode == 1
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert f"process {daemon.process_id}" in line
    return line


async def test_a_second_daemon_on_a_data_directory_says_who_holds_it(daemon: Daemon) -> None:
    line = refused_start(daemon, daemon.data_dir)
    assert str(daemon.data_dir / "peerstore.lock") in line
    await check_all(daemon.address, [Peer(0)])


@pytest.mark.parametrize("way", ["the same url", "a linked directory", "a linked file"])
async def test_a_second_daemon_on_a_database_says_who_holds_it(
    daemon: Daemon, tmp_path: Path, way: str
) -> None:
    database = daemon.data_dir / "peerstore.db"
    second = tmp_path / "second"
    second.mkdir(0o700)
    # With another key it would be refused for the key.
    shutil.copy(daemon.data_dir / "node.key", second)
    if way == "the same url":
        url = f"sqlite:///{database}"
    elif way == "a linked directory":
        (tmp_path / "link").symlink_to(daemon.data_dir)
        url = f"sqlite:///{tmp_path}/link/peerstore.db"
    else:
        (second / "peerstore.db").symlink_to(database)
        url = "sqlite:///peerstore.db"
    line = refused_start(daemon, second, f"store.url={url}")
    assert "peerstore.lock" in line
    await check_all(daemon.address, [Peer(0)])
