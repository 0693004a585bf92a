"""The load: peers in a process of their own, as light as they can be made.

Run as `python -m tests.benchmarks.load JSON`; prints one JSON document. All but the shaking of
hands is done before the clock starts.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, cast

from peerstore.connection import Authenticated, Connection
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import Network, NodeAddress
from peerstore.wire.features import OURS
from peerstore.wire.messages import PONG_LIMIT, Init, PeerStorage, PeerStorageRetrieval, Ping, Pong

INIT = Init(OURS, (Network.REGTEST.chain_hash,)).encode()
PING = Ping(1).encode()
PONG_FRAME = len(Pong(b"\0").encode()) + 34
"""Bytes of the pong on the wire: length, two MACs, message."""

FRAME_OVERHEAD = 4 + 34 + len(PING) + 34
PREPARED_BYTES = 1 << 30
PREPARED_A_SECOND = 20_000
"""How many updates are encrypted beforehand, of all connections of a process together."""


@dataclass(frozen=True)
class Task:
    """What to do: `kind` is updates, reconnects, handshakes or idle.

    `in_flight` is how many updates of a connection wait for their pongs; `identical` has it send
    the same blob again and again.
    """

    kind: str
    uri: str
    connections: int
    size: int = 0
    seconds: float = 0.0
    keys: tuple[str, ...] = ()
    """Hexadecimal keys to connect with; new ones where there are none."""
    in_flight: int = 1
    identical: bool = False


class Peer(asyncio.Protocol):
    """Connects, says init, answers pings, and calls `on_message` for every message."""

    def __init__(self, address: NodeAddress, key: KeyPair) -> None:
        self.connection = Connection(key, remote_node_id=address.node_id)
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport = cast("asyncio.Transport", None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():  # who waited for it may have been cancelled
            self.lost.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(exc or ConnectionError("closed by the server"))

    def data_received(self, data: bytes) -> None:
        self.connection.receive_data(data)
        while (event := self.connection.next_event()) is not None:
            if isinstance(event, Authenticated):
                self.authenticated()
            else:
                self.on_message(event)
        self.flush()

    def authenticated(self) -> None:
        self.connection.send_message(INIT)

    def on_message(self, data: bytes) -> None:
        if data[1] == Init.TYPE and not self.ready.done():
            self.ready.set_result(None)
        elif data[1] == Ping.TYPE and (size := int.from_bytes(data[2:4], "big")) < PONG_LIMIT:
            self.connection.send_message(Pong(bytes(size)).encode())

    def flush(self) -> None:
        self.transport.write(self.connection.data_to_send())


class Updater(Peer):
    """Sends an update and a ping, and again when the pong has come.

    What can be is done before or after the clock runs: updates are encrypted beforehand as far as
    PREPARED_BYTES reach, and pongs are counted by their size and decrypted afterwards.
    """

    def __init__(self, address: NodeAddress, key: KeyPair) -> None:
        super().__init__(address, key)
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def settle(self) -> None:
        """Wait until what is given back has come: from then on only pongs do."""
        self.connection.send_message(PING)
        self.flush()
        await self.settled

    def on_message(self, data: bytes) -> None:
        super().on_message(data)
        if data[1] == Pong.TYPE:
            self.settled.set_result(None)

    def prepare(self, task: Task) -> None:
        """Encrypt updates as the task has them."""
        self.size = task.size
        self.identical = task.identical
        self.confirmed = 0
        self.sent_at: deque[float] = deque()
        self.latencies: list[float] = []
        self.running = True
        self.received: list[bytes] = []
        self.partial = 0
        self.bodies = deque(os.urandom(task.size - 8) for _ in range(2))
        most = PREPARED_BYTES // (task.size + FRAME_OVERHEAD)
        count = min(most, int(PREPARED_A_SECOND * task.seconds)) // task.connections
        self.prepared = deque(self.frame() for _ in range(count))

    def frame(self) -> bytes:
        """An update and a ping, on the wire."""
        if self.identical:
            blob = bytes(self.size)
        else:
            # Eight new bytes make another blob of it, but SQLite writes only pages that differ.
            self.bodies.rotate()
            blob = os.urandom(8) + self.bodies[0]
        self.connection.send_message(PeerStorage(blob).encode())
        self.connection.send_message(PING)
        return self.connection.data_to_send()

    def data_received(self, data: bytes) -> None:
        if not self.settled.done():
            super().data_received(data)
            return
        self.received.append(data)
        self.partial += len(data)
        while self.partial >= PONG_FRAME:
            self.partial -= PONG_FRAME
            self.confirmed += 1
            self.latencies.append(time.monotonic() - self.sent_at.popleft())
            if self.running:
                self.update()

    def update(self) -> None:
        self.sent_at.append(time.monotonic())
        self.transport.write(self.prepared.popleft() if self.prepared else self.frame())

    def others(self) -> int:
        """Decrypt what was received; how many messages were something else than a pong."""
        self.connection.receive_data(b"".join(self.received))
        count = 0
        while isinstance(event := self.connection.next_event(), bytes):
            count += event[1] != Pong.TYPE
        return count


class Retriever(Peer):
    """Waits for what is given back."""

    def __init__(self, address: NodeAddress, key: KeyPair) -> None:
        super().__init__(address, key)
        self.retrieved: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.ready.exception() is None and not self.retrieved.done():
            self.retrieved.set_exception(ConnectionError("closed before anything was given back"))

    def on_message(self, data: bytes) -> None:
        super().on_message(data)
        if data[1] == PeerStorageRetrieval.TYPE and not self.retrieved.done():
            self.retrieved.set_result(len(data) - 4)


async def _connect(kind: type[Peer], task: Task, index: int) -> Any:
    address = NodeAddress.parse(task.uri)
    key = (
        KeyPair.from_private_bytes(bytes.fromhex(task.keys[index % len(task.keys)]))
        if task.keys
        else KeyPair.generate()
    )
    peer = kind(address, key)
    await asyncio.get_running_loop().create_connection(lambda: peer, address.host, address.port)
    await peer.ready
    return peer


async def updates(task: Task) -> dict[str, Any]:
    """Updates for so many seconds; what was confirmed, and how long each took.

    `begun` is of the monotonic clock.
    """
    peers = [await _connect(Updater, task, index) for index in range(task.connections)]
    for peer in peers:
        await peer.settle()
        peer.prepare(task)
    go()
    begun = time.monotonic()
    for peer in peers:
        for _ in range(task.in_flight):
            peer.update()
    await asyncio.sleep(task.seconds)
    confirmed = sum(peer.confirmed for peer in peers)
    seconds = time.monotonic() - begun
    latencies = sorted(latency for peer in peers for latency in peer.latencies)
    if any(peer.lost.done() for peer in peers):
        raise SystemExit("a connection was lost, so too few updates were confirmed")
    for peer in peers:
        peer.running = False
        peer.transport.close()
    return {
        "confirmed": confirmed,
        "begun": begun,
        "seconds": seconds,
        "refused": sum(peer.others() for peer in peers),
        "p50": percentile(latencies, 0.5),
        "p99": percentile(latencies, 0.99),
    }


async def reconnects(task: Task) -> dict[str, Any]:
    """Connect, get the backup back, close; `connections` at a time, for so many seconds."""
    latencies: list[float] = []
    end = 0.0
    again = 0

    async def come(index: int) -> Retriever:
        """Connect until it works: in a crowd a handshake may lose its place."""
        nonlocal again
        while True:
            try:
                peer: Retriever = await _connect(Retriever, task, index)
            except ConnectionError:
                again += 1
                await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - as nodes do
            else:
                return peer

    async def one(worker: int) -> None:
        index = worker
        while time.monotonic() < end:
            begun = time.monotonic()
            peer = await come(index)
            size = await peer.retrieved
            latencies.append(time.monotonic() - begun)
            assert size == task.size
            peer.transport.close()
            await peer.lost
            index += task.connections

    go()
    begun = time.monotonic()
    end = begun + task.seconds
    await asyncio.gather(*(one(worker) for worker in range(task.connections)))
    seconds = time.monotonic() - begun
    latencies.sort()
    return {
        "count": len(latencies),
        "again": again,
        "seconds": seconds,
        "p50": percentile(latencies, 0.5),
        "p99": percentile(latencies, 0.99),
    }


async def handshakes(task: Task) -> dict[str, Any]:
    """Connect until `init` has come, and close; `connections` at a time, for so many seconds."""
    count = 0
    end = 0.0

    async def one(worker: int) -> None:
        nonlocal count
        while time.monotonic() < end:
            peer = await _connect(Peer, task, worker)
            count += 1
            peer.transport.abort()
            await peer.lost

    go()
    begun = time.monotonic()
    end = begun + task.seconds
    await asyncio.gather(*(one(worker) for worker in range(task.connections)))
    return {"count": count, "seconds": time.monotonic() - begun}


async def idle(task: Task) -> dict[str, Any]:
    """Open so many connections, say so, and hold them until stdin closes."""
    peers = [await _connect(Peer, task, index) for index in range(task.connections)]
    go()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    return {"open": sum(not peer.lost.done() for peer in peers)}


def go() -> None:
    """Everything is prepared: say so, and wait for the word of the one that measures."""
    print("ready", flush=True)
    sys.stdin.readline()


def percentile(ordered: list[float], share: float) -> float:
    """What that share of the values is not above, 0 where there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def main() -> None:
    """Do the one task that is given as JSON."""
    task = Task(**json.loads(sys.argv[1]))
    kinds = {f.__name__: f for f in (updates, reconnects, handshakes, idle)}
    print(json.dumps(asyncio.run(kinds[task.kind](task))), flush=True)


if __name__ == "__main__":
    main()
