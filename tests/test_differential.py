"""Our transport against others' at all sizes, in all pieces: Electrum's, and BOLT 8's vectors."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from peerstore.connection import Authenticated, Connection
from peerstore.transport.cipher import ReceiveCipher, SendCipher
from peerstore.types import NodeAddress
from tests.daemon import HANG, environment
from tests.exchanged import cuts, messages
from tests.helpers import key_pair, load_vectors, take_events
from tests.test_electrum import PYTHON, electrum_is_missing

SCRIPT = Path(__file__).parent / "electrum_transport.py"

MESSAGES = 2600
"""Each way; keys rotate every 500."""

KEY = key_pair(0x31)


def seed_of_run() -> int:
    """CI exchanges the same messages each time; elsewhere other ones are tried."""
    return 0 if os.environ.get("CI") else random.SystemRandom().randrange(1 << 32)


class Side:
    """Our side: a connection on a socket, read and written in pieces."""

    def __init__(self, connection: Connection, seed: int, count: int) -> None:
        self.connection = connection
        self.expected = messages(seed, "electrum", count)
        self.own = messages(seed, "peerstore", count)
        self.cuts = cuts(seed)
        self.left = count
        self.remote = b""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Exchange all messages."""
        # Acts go out whole: Electrum takes what one read gives it for act two.
        writer.write(self.connection.data_to_send())
        while not self.connection.authenticated:
            await self.read(reader)
            writer.write(self.connection.data_to_send())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.say_all(writer))
            while self.left:
                await self.read(reader)

    async def read(self, reader: asyncio.StreamReader) -> None:
        """One piece, and what it makes whole."""
        data = await reader.read(next(self.cuts))
        assert data, f"Electrum hung up with {self.left} messages left"
        self.connection.receive_data(data)
        for event in take_events(self.connection):
            if isinstance(event, Authenticated):
                self.remote = event.node_id
            else:
                assert event == next(self.expected)
                self.left -= 1

    async def say_all(self, writer: asyncio.StreamWriter) -> None:
        """All of ours, several at a time."""
        for number, message in enumerate(self.own):
            self.connection.send_message(message)
            if number % 3 == 0:
                await self.write(writer)
        await self.write(writer)

    async def write(self, writer: asyncio.StreamWriter) -> None:
        """What has to go out, in pieces."""
        data = self.connection.data_to_send()
        start = 0
        while start < len(data):
            end = start + max(next(self.cuts), len(data) // 100)
            writer.write(data[start:end])
            await writer.drain()
            start = end


@asynccontextmanager
async def electrum(
    home: Path, role: str, address: str, seed: int, count: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Electrum's transport in a process."""
    if electrum_is_missing():
        pytest.skip(f"{PYTHON} can't import electrum: apt-get install python3-electrum")
    variables = environment(home)
    # The system's Python must find its own packages, not ours.
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        variables.pop(name, None)
    process = await asyncio.create_subprocess_exec(
        *(PYTHON, str(SCRIPT), role, address, str(seed), str(count)),
        env=variables,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def check_report(process: asyncio.subprocess.Process, count: int) -> str:
    """Electrum has got all of ours as they were; whom it takes us for."""
    assert process.stdout is not None
    async with asyncio.timeout(HANG):
        report = json.loads(await process.stdout.read())
    assert (report["received"], report["equal"]) == (count, count)
    return str(report["remote"])


def count_of(request: pytest.FixtureRequest) -> int:
    return MESSAGES * (10 if request.config.getoption("--long", default=False) else 1)


@pytest.mark.timeout(3600)  # for --long
async def test_electrum_as_the_initiator_reads_and_is_read(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed, count = seed_of_run(), count_of(request)
    print(f"seed {seed}")  # noqa: T201 - shown where the test fails
    side = Side(Connection(KEY), seed, count)
    done = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await side.talk(reader, writer)
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    address = str(NodeAddress(KEY.node_id, host, port))
    async with electrum(tmp_path, "initiator", address, seed, count) as process:
        await done
        assert await check_report(process, count) == KEY.node_id.hex()
    assert len(side.remote) == 33
    server.close()
    await server.wait_closed()


@pytest.mark.timeout(3600)  # for --long
async def test_electrum_as_the_responder_reads_and_is_read(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed, count = seed_of_run(), count_of(request)
    print(f"seed {seed}")  # noqa: T201 - shown where the test fails
    async with electrum(tmp_path, "responder", "-", seed, count) as process:
        assert process.stdout is not None
        address = NodeAddress.parse((await process.stdout.readline()).decode().strip())
        side = Side(Connection(KEY, remote_node_id=address.node_id), seed, count)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        await side.talk(reader, writer)
        assert await check_report(process, count) == KEY.node_id.hex()
        writer.close()
        await writer.wait_closed()
    assert side.remote == address.node_id


# BOLT 8, Appendix A: Message Encryption Tests

VECTORS = load_vectors("bolt08_transport.json")["messages"]
HELLO = bytes.fromhex(VECTORS["plaintext"])


def published_keys() -> tuple[bytes, bytes]:
    return bytes.fromhex(VECTORS["sk"]), bytes.fromhex(VECTORS["ck"])


def receiver() -> Connection:
    """A connection after the vectors' handshake."""
    connection = Connection(KEY)
    connection._handshake = None
    connection._receive = ReceiveCipher(*published_keys())
    return connection


@pytest.mark.parametrize("offset", range(4))
def test_bolt8_frames_are_the_published_ones_whatever_stands_between(offset: int) -> None:
    # The keys and nonces go by the count of the messages, not by what is in them.
    seed = seed_of_run() + offset
    print(f"seed {seed}")  # noqa: T201 - shown where the test fails
    published = {int(number): bytes.fromhex(frame) for number, frame in VECTORS["outputs"].items()}
    sent = [
        HELLO if number in published else message
        for number, message in enumerate(messages(seed, "vectors", max(published) + 1))
    ]
    sender = SendCipher(*published_keys())
    frames = [sender.encrypt(message) for message in sent]
    for number, frame in published.items():
        assert frames[number] == frame
    stream, connection, pieces = b"".join(frames), receiver(), cuts(seed)
    got, start = [], 0
    while start < len(stream):
        end = start + next(pieces)
        connection.receive_data(stream[start:end])
        got += take_events(connection)
        start = end
    assert got == sent
