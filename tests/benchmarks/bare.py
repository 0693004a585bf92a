"""The bare loops that peerstore is measured against: what its parts can do with nothing around.

Run as `python -m tests.benchmarks.bare NAME ARGUMENTS...`; each prints one JSON document, but
`receiver`, `keeper` and `retriever`, which print their URI and serve until stdin closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import json
import os
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import cast

import aiosqlite

from peerstore.connection import Authenticated, Connection
from peerstore.store.statements import PRAGMAS
from peerstore.transport.cipher import SendCipher
from peerstore.transport.handshake import Handshake
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import NodeAddress
from peerstore.wire.messages import Init, PeerStorage, PeerStorageRetrieval, Ping, Pong
from tests.benchmarks.load import INIT

PONG = Pong(b"\0").encode()

SLOTS = 64
"""Blobs that are read."""


def upserting(file: Path) -> sqlite3.Connection:
    """A new database, with the pages and checkpoints that peerstore has."""
    database = sqlite3.connect(file, isolation_level=None)
    for pragma in PRAGMAS:
        database.execute(pragma)
    database.execute("CREATE TABLE backup (slot INTEGER PRIMARY KEY, blob BLOB)")
    return database


def upsert(database: sqlite3.Connection, rows: list[tuple[int, bytes]]) -> None:
    """Write rows in one transaction."""
    sql = "INSERT INTO backup VALUES (?, ?) ON CONFLICT DO UPDATE SET blob = excluded.blob"
    database.execute("BEGIN")
    database.executemany(sql, rows)
    database.execute("COMMIT")


def upserts(directory: str, size: int, together: int, seconds: float) -> dict[str, float]:
    """SQLite upserts, so many to a transaction, WAL, synchronous=FULL: rows a second."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        database = upserting(Path(folder) / "bare.db")
        # In turns: what is there already SQLite does not write.
        rows, others = ([(slot, os.urandom(size)) for slot in range(together)] for _ in range(2))
        count = 0
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            upsert(database, rows)
            count += len(rows)
            rows, others = others, rows
        rate = count / (time.perf_counter() - begun)
        database.close()
    return {"rate": rate}


def disk(directory: str, size: int, count: int) -> dict[str, float]:
    """Bytes on disk of a table of so many blobs, without anything beside."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        file = Path(folder) / "bare.db"
        with closing(sqlite3.connect(file)) as database:
            database.execute("CREATE TABLE backup (slot INTEGER PRIMARY KEY, blob BLOB)")
            rows = ((slot, bytes(size)) for slot in range(count))
            database.executemany("INSERT INTO backup VALUES (?, ?)", rows)
            database.commit()
        return {"bytes": float(file.stat().st_size)}


def deletions(database: str) -> dict[str, float]:
    """Delete the backups of who was away longest, 64 peers to a transaction."""
    begun = time.perf_counter()
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        away = connection.execute("SELECT node_id FROM peer WHERE last_aged = 0").fetchall()
        for start in range(0, len(away), 64):
            some = away[start : start + 64]
            connection.execute("BEGIN")
            connection.executemany("DELETE FROM backup WHERE node_id = ? AND kind = 1", some)
            connection.executemany("DELETE FROM peer WHERE node_id = ?", some)
            connection.execute("COMMIT")
    return {"seconds": time.perf_counter() - begun, "peers": len(away)}


def scan(database: str) -> dict[str, float]:
    """Look at when each peer was here last."""
    begun = time.perf_counter()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("SELECT count(*) FROM peer WHERE last_aged < 0").fetchall()
    return {"seconds": time.perf_counter() - begun}


def listing(database: str) -> dict[str, float]:
    """Read what a list shows of every backup, and write it as it comes."""
    sql = (
        "SELECT hex(node_id), kind, channel_id, revision, size, stored_at FROM backup"
        " WHERE replaced IS NULL"
    )
    begun = time.perf_counter()
    with Path(os.devnull).open("w") as out, closing(sqlite3.connect(database)) as connection:
        for row in connection.execute(sql):
            print(*row, file=out)
    return {"seconds": time.perf_counter() - begun}


class Receiver(asyncio.BufferedProtocol):
    """Receives, decrypts, hashes; answers pings, so that the same load can drive it."""

    def __init__(self, key: KeyPair, buffer: memoryview) -> None:
        self.connection = Connection(key)
        self.buffer = buffer
        self.transport = cast("asyncio.Transport", None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.connection.receive_data(self.buffer[:nbytes])
        while (event := self.connection.next_event()) is not None:
            if isinstance(event, Authenticated):
                self.connection.send_message(INIT)
            else:
                self.on_message(event)
        self.flush()

    def on_message(self, message: bytes) -> None:
        if message[1] == PeerStorage.TYPE:
            hashlib.sha256(message).digest()
        elif message[1] == Ping.TYPE:
            self.connection.send_message(PONG)

    def flush(self) -> None:
        data = self.connection.data_to_send()
        if data:
            self.transport.write(data)


class Retriever(Receiver):
    """Reads a blob, hashes it and gives it back, when the other side has said `init`."""

    def __init__(self, key: KeyPair, buffer: memoryview, database: aiosqlite.Connection) -> None:
        super().__init__(key, buffer)
        self.database = database
        self.task: asyncio.Task[None] | None = None

    def on_message(self, message: bytes) -> None:
        if message[1] == Init.TYPE:
            self.task = asyncio.get_running_loop().create_task(self.give_back())

    async def give_back(self) -> None:
        blob = await read_blob(self.database)
        hashlib.sha256(blob).digest()
        self.connection.send_message(PeerStorageRetrieval(blob).encode())
        self.flush()


class Keeper(Receiver):
    """Receives, hashes, and answers the ping when its blob is written."""

    def __init__(self, key: KeyPair, buffer: memoryview, writer: Writer) -> None:
        super().__init__(key, buffer)
        self.slot = next(writer.slots)
        self.writer = writer

    def on_message(self, message: bytes) -> None:
        if message[1] == PeerStorage.TYPE:
            hashlib.sha256(message).digest()
            self.writer.put(self, message)
        elif message[1] == Ping.TYPE and not self.writer.has(self):
            self.connection.send_message(PONG)

    def kept(self) -> None:
        self.connection.send_message(PONG)
        self.flush()


class Writer(threading.Thread):
    """Writes whatever waits in one transaction, again and again."""

    def __init__(self, directory: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(daemon=True)
        self.slots = itertools.count()
        self._file = Path(directory) / "bare.db"
        self._loop = loop
        self._waiting: dict[Keeper, bytes] = {}
        self._written: dict[Keeper, bytes] = {}
        self._work = threading.Event()
        self._lock = threading.Lock()

    def put(self, keeper: Keeper, blob: bytes) -> None:
        with self._lock:
            self._waiting[keeper] = blob
        self._work.set()

    def has(self, keeper: Keeper) -> bool:
        with self._lock:
            return keeper in self._waiting or keeper in self._written

    def run(self) -> None:
        database = upserting(self._file)
        while self._work.wait():
            self._work.clear()
            with self._lock:
                self._waiting, self._written = {}, self._waiting
            upsert(database, [(keeper.slot, blob) for keeper, blob in self._written.items()])
            written, self._written = self._written, {}
            self._loop.call_soon_threadsafe(self._tell, list(written))

    @staticmethod
    def _tell(keepers: list[Keeper]) -> None:
        for keeper in keepers:
            keeper.kept()


async def keeper(directory: str) -> None:
    """Keep updates until stdin closes."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        writer = Writer(folder, asyncio.get_running_loop())
        writer.start()
        await serve(functools.partial(Keeper, writer=writer))


async def receiver() -> None:
    """Receive updates until stdin closes."""
    await serve(Receiver)


async def retriever(directory: str, size: int) -> None:
    """Give blobs of a size back until stdin closes."""
    async with blobs(directory, size) as database:
        await serve(functools.partial(Retriever, database=database))


async def serve(protocol: Callable[[KeyPair, memoryview], Receiver]) -> None:
    """Serve until stdin closes."""
    loop = asyncio.get_running_loop()
    key = KeyPair.generate()
    buffer = memoryview(bytearray(128 << 10))
    server = await loop.create_server(lambda: protocol(key, buffer), "127.0.0.1", 0)
    print(NodeAddress(key.node_id, "127.0.0.1", server.sockets[0].getsockname()[1]), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    server.close()


async def accepts(seconds: float) -> dict[str, float]:
    """CPU seconds of one accept and close in asyncio, the client's side taken out by a fork."""
    loop = asyncio.get_running_loop()
    count = 0

    class Closer(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal count
            count += 1
            transport.close()

    server = await loop.create_server(Closer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CONNECT, str(port), str(seconds)
    )
    used = time.process_time()
    await client.wait()
    used = time.process_time() - used
    server.close()
    return {"cpu": used / count}


_CONNECT = """
import socket, sys, time
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
        s.recv(1)
"""


@contextlib.asynccontextmanager
async def blobs(directory: str, size: int) -> AsyncIterator[aiosqlite.Connection]:
    """A database of so many blobs of a size as `read_blob` reads from."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        async with aiosqlite.connect(Path(folder) / "bare.db") as database:
            await database.execute("PRAGMA journal_mode = WAL")
            await database.execute("CREATE TABLE backup (slot INTEGER PRIMARY KEY, blob BLOB)")
            rows = [(slot, os.urandom(size)) for slot in range(SLOTS)]
            await database.executemany("INSERT INTO backup VALUES (?, ?)", rows)
            await database.commit()
            yield database


async def read_blob(database: aiosqlite.Connection) -> bytes:
    """One of them, through aiosqlite."""
    sql = "SELECT blob FROM backup WHERE slot = ?"
    ((blob,),) = await database.execute_fetchall(sql, (random.randrange(SLOTS),))  # noqa: S311
    return bytes(blob)


async def reads(directory: str, size: int) -> dict[str, float]:
    """CPU seconds of reading one blob through aiosqlite."""
    async with blobs(directory, size) as database:
        used = time.process_time()
        for _ in range(2000):
            await read_blob(database)
        used = time.process_time() - used
    return {"cpu": used / 2000}


def handshake_cpu(rounds: int) -> dict[str, float]:
    """CPU seconds of the responder's side of a handshake."""
    local = KeyPair.generate()
    remote = KeyPair.generate()
    used = 0.0
    for _ in range(rounds):
        initiator = Handshake(remote, remote_node_id=local.node_id)
        act_one = initiator.act_one()
        begun = time.process_time()
        responder = Handshake(local)
        act_two = responder.receive_act(act_one)
        used += time.process_time() - begun
        act_three = initiator.receive_act(act_two)
        begun = time.process_time()
        responder.receive_act(act_three)
        used += time.process_time() - begun
    return {"cpu": used / rounds}


def hash_and_encrypt(size: int, rounds: int) -> dict[str, float]:
    """CPU seconds of SHA-256 and BOLT 8 encryption of one blob."""
    blob = os.urandom(size)
    cipher = SendCipher(bytes(32), bytes(32))
    used = time.process_time()
    for _ in range(rounds):
        hashlib.sha256(blob).digest()
        cipher.encrypt(blob)
    return {"cpu": (time.process_time() - used) / rounds}


def main() -> None:
    """Run the loop that is named."""
    name, *arguments = sys.argv[1:]
    if name == "receiver":
        asyncio.run(receiver())
        return
    if name == "keeper":
        asyncio.run(keeper(arguments[0]))
        return
    if name == "retriever":
        asyncio.run(retriever(arguments[0], int(arguments[1])))
        return
    loops: dict[str, Callable[[], dict[str, float]]] = {
        "upserts": lambda: upserts(
            arguments[0], int(arguments[1]), int(arguments[2]), float(arguments[3])
        ),
        "disk": lambda: disk(arguments[0], int(arguments[1]), int(arguments[2])),
        "deletions": lambda: deletions(arguments[0]),
        "scan": lambda: scan(arguments[0]),
        "accepts": lambda: asyncio.run(accepts(float(arguments[0]))),
        "listing": lambda: listing(arguments[0]),
        "reads": lambda: asyncio.run(reads(arguments[0], int(arguments[1]))),
        "handshake_cpu": lambda: handshake_cpu(int(arguments[0])),
        "hash_and_encrypt": lambda: hash_and_encrypt(int(arguments[0]), int(arguments[1])),
    }
    print(json.dumps(loops[name]()))


if __name__ == "__main__":
    main()
