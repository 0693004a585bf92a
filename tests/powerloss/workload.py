"""The process whose power fails: the real store, used as a daemon uses it.

`python -m tests.powerloss.workload DIRECTORY SEED FIRST ROUNDS SYNCHRONOUS`, with `durable.c`
preloaded. Several peers connect, hand updates in, reconnect; what the store confirms is noted in
the log of `durable.c` as a Confirmed, in the moment in which the store says so.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from peerstore.store.base import Quotas
from peerstore.store.lease import SqliteLease
from peerstore.store.reader import SqliteReader
from peerstore.store.sqlite import Clocks, SqliteStore
from peerstore.types import BackupKind, Network, NodeId, Slot

OWNER = NodeId(b"\x03" + bytes(32))
PEERS = 6
CHECKPOINT_PAGES = 40
"""Often enough that most of what a checkpoint does lies between some two cuts."""

SIZES = (60, 300, 2_000, 9_000, 30_000)


def slots(peer: int) -> list[Slot]:
    """The slots that a peer uses."""
    node_id = NodeId(b"\x02" + peer.to_bytes(32, "big"))
    return [
        Slot(node_id, BackupKind.PEER_STORAGE),
        Slot(node_id, BackupKind.CHANNEL_BACKUP, bytes((peer,)) * 32),
    ]


SLOTS = [slot for peer in range(PEERS) for slot in slots(peer)]


def blob(slot: int, counter: int, filler: bytes) -> bytes:
    """A backup that says whose and which it is, and shows whether it is whole."""
    head = slot.to_bytes(4, "big") + counter.to_bytes(8, "big")
    return head + hashlib.sha256(head + filler).digest() + filler


def read_blob(data: bytes) -> tuple[int, int]:
    """The slot and the counter of a blob; raises ValueError for one that is not whole."""
    slot, counter = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:12], "big")
    if blob(slot, counter, data[44:]) != data:
        raise ValueError("the blob is not whole")
    return slot, counter


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A slot holds the update with this counter or a newer one.

    `kept` is the counter of what was current when the connection came, or 0: it was kept.
    """

    slot: int
    counter: int
    kept: int


async def open_store(directory: Path) -> SqliteStore:
    """The store of the workload."""
    return await SqliteStore.open(
        directory / "peerstore.db",
        node_id=OWNER,
        network=Network.REGTEST,
        clocks=Clocks(time.time, time.monotonic),
        # How full this machine's disk is, is none of our business.
        quotas=Quotas(min_free_space=0),
    )


async def counters(reader: SqliteReader, slot: Slot) -> tuple[int, set[int]]:
    """The counter of a slot's current version (0: none), and those of all its versions.

    Raises StoreError for a version that is damaged, ValueError for one that is not whole.
    """
    current, found = 0, set()
    for version in [version async for version in reader.versions(slot.node_id)]:
        if version.revision.slot != slot:
            continue
        backup = await reader.read(version.row_id, version.revision)
        owner, counter = read_blob(backup.blob)
        if SLOTS[owner] != slot:
            raise ValueError("it is another peer's")
        found.add(counter)
        if version.current:
            current = counter
    return current, found


@dataclass
class Listener:
    """A connection, as the store sees it: notes what is confirmed."""

    kept: dict[int, int]
    mark: Callable[[Confirmed], None]
    pending: dict[int, tuple[int, int]] = field(default_factory=dict)
    decided: asyncio.Event = field(default_factory=asyncio.Event)

    def stored(self, sequence: int) -> None:
        for number in sorted(self.pending):
            if number <= sequence:
                slot, counter = self.pending.pop(number)
                self.mark(Confirmed(slot, counter, self.kept[slot]))
        self.decided.set()

    def refused(self, sequences: Sequence[int], reason: str) -> None:
        raise AssertionError(f"{sequences}: {reason}")

    def not_stored(self, sequence: int, reason: str) -> None:
        raise AssertionError(reason)


@dataclass
class Peer:
    """One peer and its updates."""

    number: int
    store: SqliteStore
    random: random.Random
    mark: Callable[[Confirmed], None]
    counter: int

    async def live(self, connections: int) -> None:
        """Connect so many times, and hand in some updates each time."""
        own = [SLOTS.index(slot) for slot in slots(self.number)]
        lease: SqliteLease | None = None
        for _ in range(connections):
            if lease is not None and self.random.random() < 0.5:
                lease.close()  # else the next connection finds it there
            listener = Listener({}, self.mark)
            lease = await self.store.open_lease(slots(self.number)[0].node_id, listener)
            # A connection of its own: a listing must not share a snapshot with the store's reads.
            async with await SqliteReader.open(self.store.path) as reader:
                for index in own:
                    listener.kept[index], _ = await counters(reader, SLOTS[index])
            data = b""
            for sequence in range(1, self.random.randint(2, 9)):
                index = self.random.choice(own)
                if not data or self.random.random() > 0.1:  # else the same once more
                    self.counter += 1
                    size = self.random.randint(0, self.random.choice(SIZES))
                    data = blob(index, self.counter, self.random.randbytes(size))
                slot, counter = read_blob(data)
                listener.pending[sequence] = (slot, counter)
                lease.put(sequence, SLOTS[slot], data)
                listener.decided.clear()
                if self.random.random() < 0.7:
                    await listener.decided.wait()


async def main(directory: Path, seed: int, first: int, rounds: int, synchronous: str) -> None:
    """Work; each round opens the store anew."""
    library = ctypes.CDLL(None)

    def mark(confirmed: Confirmed) -> None:
        data = json.dumps(asdict(confirmed)).encode()
        library.durable_mark(data, ctypes.c_size_t(len(data)))

    lots = random.Random(seed)  # noqa: S311 - nothing secret
    for number in range(rounds):
        store = await open_store(directory)
        try:
            for pragma in (
                f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
                f"synchronous = {synchronous}",
            ):
                await store._writer.execute_fetchall(f"PRAGMA {pragma}")
            counter = (first + number) * 1_000_000
            peers = [
                Peer(peer, store, random.Random(lots.random()), mark, counter)  # noqa: S311 - as above
                for peer in range(PEERS)
            ]
            async with asyncio.TaskGroup() as group:
                for peer in peers:
                    group.create_task(peer.live(8))
            await store.settle()
        finally:
            await store.close()


if __name__ == "__main__":
    _, where, *numbers, setting = sys.argv
    seed, first, rounds = map(int, numbers)
    asyncio.run(main(Path(where), seed, first, rounds, setting))
