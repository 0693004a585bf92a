"""Hostile crowds, and the honest peer that is measured beside them; each in a process of its own.

Run as `python -m tests.benchmarks.attacks JSON`; prints `ready`, waits for a line, and prints one
JSON document at the end. Crowds come from other loopback addresses than the honest peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from peerstore.client import Client
from peerstore.connection import Connection
from peerstore.errors import ProbeError
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import Network, NodeAddress
from peerstore.wire.messages import Pong
from tests.benchmarks.load import PING, Peer, go, percentile

BLOB = 65531


@dataclass(frozen=True)
class Attack:
    """What to do: `kind` is honest, half_open, bad_acts, lingering or gossip.

    `rate` is in connections a second; `sources` are addresses to come from, in turn; who was closed
    comes again after about `pause` seconds.
    """

    kind: str
    uri: str
    seconds: float = 0.0
    count: int = 0
    rate: float = 0.0
    sources: tuple[str, ...] = ("127.0.0.1",)
    key: str = ""
    pause: float = 1.0


async def honest(attack: Attack) -> dict[str, Any]:
    """Connect, get the backup back, store the next one, confirm, leave; at a steady rate."""
    address = NodeAddress.parse(attack.uri)
    key = KeyPair.from_private_bytes(bytes.fromhex(attack.key))
    stored = os.urandom(BLOB)
    async with await Client.connect(address, key) as client:
        await client.init(Network.REGTEST)
        await client.store(stored)
        await client.confirm()
    go()
    latencies: list[float] = []
    failures = 0
    begun = time.perf_counter()
    for number in itertools.count():
        due = begun + number / attack.rate
        if due >= begun + attack.seconds:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        # From when it was due: what a late one before it has cost counts as well.
        try:
            async with await Client.connect(address, key) as client:
                await client.init(Network.REGTEST)
                back = await client.retrieve()
                latencies.append(time.perf_counter() - due)
                if back != stored:
                    raise SystemExit("what came back is not what was stored")
                stored = os.urandom(BLOB)
                await client.store(stored)
                await client.confirm()
        except ProbeError:
            failures += 1
    latencies.sort()
    return {
        "count": len(latencies),
        "failures": failures,
        "p50": percentile(latencies, 0.5),
        "p99": percentile(latencies, 0.99),
        "worst": latencies[-1],
    }


class _Mute(asyncio.Protocol):
    """Connects, says `greeting`, and nothing more."""

    def __init__(self, greeting: bytes = b"") -> None:
        self.greeting = greeting
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self.greeting:
            transport.write(self.greeting)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


async def _connect(attack: Attack, sources: Iterator[str], protocol: asyncio.Protocol) -> bool:
    address = NodeAddress.parse(attack.uri)
    try:
        await asyncio.get_running_loop().create_connection(
            lambda: protocol, address.host, address.port, local_addr=(next(sources), 0)
        )
    except OSError:
        return False
    return True


async def half_open(attack: Attack) -> dict[str, Any]:
    """Hold `count` connections that say nothing; what is closed is opened again."""
    sources = itertools.cycle(attack.sources)

    async def mute() -> asyncio.Future[None] | None:
        protocol = _Mute()
        return protocol.lost if await _connect(attack, sources, protocol) else None

    return await _hold(attack, mute)


async def lingering(attack: Attack) -> dict[str, Any]:
    """Hold `count` connections of strangers that have said `init`; closed ones come again."""

    async def stranger() -> asyncio.Future[None] | None:
        peer = Peer(NodeAddress.parse(attack.uri), KeyPair.generate())
        if not await _connect(attack, itertools.cycle(attack.sources), peer):
            return None
        with contextlib.suppress(ConnectionError):
            await peer.ready
        return peer.lost

    return await _hold(attack, stranger)


async def _hold(
    attack: Attack, connect: Callable[[], Awaitable[asyncio.Future[None] | None]]
) -> dict[str, Any]:
    """Keep `count` connections open, each opened again a while after it was lost."""
    opened = 0
    all_opened = asyncio.Event()

    async def hold() -> None:
        nonlocal opened
        while True:
            lost = await connect()
            if lost is not None:
                opened += 1
                if opened >= attack.count:
                    all_opened.set()
                await lost
            await asyncio.sleep(attack.pause * random.uniform(0.5, 1.5))  # noqa: S311 - not all at once

    holders = [asyncio.create_task(hold()) for _ in range(attack.count)]
    await all_opened.wait()
    go()
    await asyncio.sleep(attack.seconds)
    for holder in holders:
        holder.cancel()
    return {"opened": opened}


async def bad_acts(attack: Attack) -> dict[str, Any]:
    """An act one with a wrong MAC on a new connection, `rate` times a second come what may."""
    sources = itertools.cycle(attack.sources)
    address = NodeAddress.parse(attack.uri)
    act = Connection(KeyPair.generate(), remote_node_id=address.node_id).data_to_send()
    act = act[:-1] + bytes((act[-1] ^ 1,))
    pending: set[asyncio.Task[bool]] = set()
    go()
    begun = time.perf_counter()
    sent = 0
    while (elapsed := time.perf_counter() - begun) < attack.seconds:
        while sent < elapsed * attack.rate:
            task = asyncio.create_task(_connect(attack, sources, _Mute(act)))
            pending.add(task)
            task.add_done_callback(pending.discard)
            sent += 1
        await asyncio.sleep(0.001)
    for task in list(pending):
        task.cancel()
    return {"sent": sent, "seconds": time.perf_counter() - begun}


class _Gossiper(Peer):
    """Says init, then as much gossip as is taken."""

    def __init__(self, address: NodeAddress, key: KeyPair) -> None:
        super().__init__(address, key)
        self.confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writable = asyncio.Event()
        self.writable.set()

    def on_message(self, data: bytes) -> None:
        super().on_message(data)
        if data[1] == Pong.TYPE:
            self.confirmed.set_result(None)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()


GOSSIP = ((256, 430), (257, 150), (258, 138), (258, 138), (258, 138), (513, 1400))
"""Types and sizes: announcements, updates above all, now and then an onion message."""


async def gossip(attack: Attack) -> dict[str, Any]:
    """Send `count` bytes of gossip, encrypted beforehand, as fast as it is taken."""
    address = NodeAddress.parse(attack.uri)
    peer = _Gossiper(address, KeyPair.from_private_bytes(bytes.fromhex(attack.key)))
    await asyncio.get_running_loop().create_connection(lambda: peer, address.host, address.port)
    await peer.ready
    pieces: list[bytes] = []
    messages = size = 0
    kinds = itertools.cycle(GOSSIP)
    while size < attack.count:
        for kind, length in itertools.islice(kinds, 200):
            peer.connection.send_message(kind.to_bytes(2, "big") + os.urandom(length - 2))
            messages += 1
        pieces.append(peer.connection.data_to_send())
        size += len(pieces[-1])
    go()
    begun = time.perf_counter()
    for piece in pieces:
        await peer.writable.wait()
        peer.transport.write(piece)
    peer.connection.send_message(PING)
    peer.flush()
    await peer.confirmed
    return {"bytes": size, "messages": messages, "seconds": time.perf_counter() - begun}


def main() -> None:
    """Do the one thing that is given as JSON."""
    attack = Attack(**json.loads(sys.argv[1]))
    kinds = {f.__name__: f for f in (honest, half_open, bad_acts, lingering, gossip)}
    print(json.dumps(asyncio.run(kinds[attack.kind](attack))), flush=True)


if __name__ == "__main__":
    main()
