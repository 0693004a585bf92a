"""What a peer sees over a socket, above all one that does not play by the rules.

The server, its store and the peers share one process and one event loop. A test waits for what
the peer sees, most often the end of the connection; limits that a test does not mean to reach are
longer than pytest's own timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
import structlog.testing
import structlog.typing

from peerstore.client import Client, StorageRefusedError
from peerstore.connection import Authenticated, Connection
from peerstore.errors import ListenError
from peerstore.server import (
    READ_AHEAD,
    READ_BUFFER,
    UNLIMITED,
    Limits,
    PeerConnection,
    PeerServer,
)
from peerstore.session import Timeouts
from peerstore.store import reader
from peerstore.store.base import Counts, Quotas, Revision
from peerstore.store.database import Database
from peerstore.store.sqlite import Clocks, SqliteStore
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import Network, NodeAddress
from peerstore.wire.features import OURS
from peerstore.wire.messages import (
    Init,
    Message,
    PeerStorage,
    PeerStorageRetrieval,
    Ping,
    Pong,
    WarningMessage,
    decode_message,
)
from tests.helpers import failing_commits, key_pair
from tests.store_contract import turns

NEVER = 1000.0
"""Seconds; longer than any test may take."""
PATIENT = Limits(
    handshake=NEVER,
    session=Timeouts(init=NEVER, ping=NEVER, idle=2 * NEVER),
    rates=UNLIMITED,
)
SOON = 0.05
"""Seconds of a timeout that a test waits for."""

CHAIN = Network.REGTEST.chain_hash
OTHER_CHAIN = Network.BITCOIN.chain_hash
INIT = Init(OURS, (CHAIN,))
NO_CHANNEL = bytes(32)
FULL_SIZE = 65531

KEY = key_pair(0x31)
"""The key of the peer that misbehaves."""
OTHER_KEY = key_pair(0x32)
KEPT = b"kept before" * 100
"""What is stored for KEY before a test begins."""


@dataclass
class Node:
    """A server that listens, and its store."""

    server: PeerServer
    store: SqliteStore
    database: Path

    @property
    def address(self) -> NodeAddress:
        host, port = self.server.addresses[0]
        return NodeAddress(self.server.key.node_id, host, port)

    async def client(self, key: KeyPair) -> Client:
        """A well-behaved peer after init."""
        client = await Client.connect(self.address, key)
        await client.init(Network.REGTEST)
        return client

    async def keep(self, key: KeyPair, blob: bytes) -> None:
        """Store as a well-behaved peer."""
        async with await self.client(key) as client:
            await client.store(blob)
            await client.confirm()

    async def given_back(self, key: KeyPair) -> bytes | None:
        """What a well-behaved peer gets back."""
        async with await self.client(key) as client:
            return await client.retrieve()

    def damage(self, sql: str, *parameters: object) -> None:
        """Change the database behind the store's back."""
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            assert database.execute(sql, parameters).rowcount == 1
            database.commit()


@contextlib.asynccontextmanager
async def serving(directory: Path, limits: Limits = PATIENT) -> AsyncIterator[Node]:
    """A node on 127.0.0.1 that keeps KEPT for KEY."""
    key = key_pair(0x30)
    database = directory / "peerstore.db"
    store = await SqliteStore.open(
        database,
        node_id=key.node_id,
        network=Network.REGTEST,
        clocks=Clocks(time.time, time.monotonic),
        # Here the newest is what comes back, however small.
        quotas=Quotas(hold_on_shrink=0, min_free_space=0),
    )
    server = PeerServer(key=key, network=Network.REGTEST, store=store, limits=PATIENT)
    try:
        await server.listen([("127.0.0.1", 0)])
        node = Node(server, store, database)
        await node.keep(KEY, KEPT)
        server.limits = limits
        yield node
    finally:
        await server.close(SOON)
        await store.close()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A patient node; after the test it still has what it kept, unless the test changed it."""
    async with serving(tmp_path) as node:
        yield node


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[structlog.typing.EventDict]]:
    """What the server told its operator."""
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as events:
        yield events


class Peer:
    """One connection that can say whatever it likes."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection
    ) -> None:
        self.connection = connection
        self.reader = reader
        self.writer = writer

    async def bytes_until_closed(self) -> bytes:
        """All that comes until the server closes."""
        received = bytearray()
        # A reset is a close too: the server had not read all that it was sent.
        with contextlib.suppress(ConnectionError):
            while data := await self.reader.read(1 << 16):
                received += data
        return bytes(received)

    async def shake_hands(self) -> None:
        """The three acts; act three lies in `connection` until something is said."""
        self.writer.write(self.connection.data_to_send())
        self.connection.receive_data(await self.reader.readexactly(50))
        assert isinstance(self.connection.next_event(), Authenticated)

    @property
    def transport(self) -> asyncio.Transport:
        transport = self.writer.transport
        assert isinstance(transport, asyncio.Transport)
        return transport

    def encrypt(self, *messages: Message | bytes) -> bytes:
        """The next bytes of this side."""
        for message in messages:
            self.connection.send_message(
                message if isinstance(message, bytes) else message.encode()
            )
        return self.connection.data_to_send()

    def say(self, *messages: Message | bytes) -> None:
        """Send messages in one write."""
        self.writer.write(self.encrypt(*messages))

    async def hear(self) -> Message | None:
        """The next message, None when the server has closed."""
        while (event := self.connection.next_event()) is None:
            try:
                data = await self.reader.read(1 << 16)
            except ConnectionError:
                data = b""
            if not data:
                return None
            self.connection.receive_data(data)
        assert isinstance(event, bytes)
        return decode_message(event)

    async def hear_all(self) -> list[Message]:
        """Every message until the server closes."""
        messages: list[Message] = []
        while (message := await self.hear()) is not None:
            messages.append(message)
        return messages

    async def hear_pong(self) -> list[Message]:
        """Every message up to and with the next pong."""
        messages: list[Message] = []
        while not messages or not isinstance(messages[-1], Pong):
            message = await self.hear()
            assert message is not None, f"closed after {messages}"
            messages.append(message)
        return messages


@contextlib.asynccontextmanager
async def dialed(node: Node, key: KeyPair = KEY) -> AsyncIterator[Peer]:
    """A TCP connection on which nothing was said yet."""
    reader, writer = await asyncio.open_connection(node.address.host, node.address.port)
    try:
        yield Peer(reader, writer, Connection(key, remote_node_id=node.address.node_id))
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def authenticated(node: Node, key: KeyPair = KEY) -> AsyncIterator[Peer]:
    """A connection whose three acts were exchanged."""
    async with dialed(node, key) as peer:
        await peer.shake_hands()
        peer.say()
        assert await peer.hear() == INIT
        yield peer


@contextlib.asynccontextmanager
async def opened(node: Node, key: KeyPair = KEY) -> AsyncIterator[Peer]:
    """A connection after both inits and what is given back."""
    async with authenticated(node, key) as peer:
        peer.say(INIT, Ping(0))
        await peer.hear_pong()
        yield peer


async def assert_nothing_changed(node: Node) -> None:
    """Good peers are served, and KEY's backup is what it was, alone in the store."""
    assert await node.given_back(KEY) == KEPT
    assert await node.store.counts() == Counts(peers=1, backups=1, bytes=len(KEPT), versions=1)


def warning_in(messages: list[Message]) -> str:
    """The text of the one warning, which must name no channel and be the last word."""
    assert [type(message) for message in messages] == [WarningMessage]
    (warning,) = messages
    assert isinstance(warning, WarningMessage)
    assert warning.channel_id == NO_CHANNEL
    return warning.text


# Acts


def flip(data: bytes, index: int) -> bytes:
    return data[:index] + bytes((data[index] ^ 1,)) + data[index + 1 :]


async def test_no_answer_waits_for_an_acknowledgement(node: Node) -> None:
    """A small message behind another one would, for as long as the peer delays its own."""
    async with await node.client(KEY):
        (connection,) = node.server.connections
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("index", [1, 2, 33, 34, 49])
async def test_a_tampered_act_one_is_not_answered(node: Node, index: int) -> None:
    async with dialed(node) as peer:
        peer.writer.write(flip(peer.connection.data_to_send(), index))
        assert await peer.bytes_until_closed() == b""
    await assert_nothing_changed(node)


@pytest.mark.parametrize("index", [1, 33, 49, 50, 65])
async def test_a_tampered_act_three_is_not_answered(node: Node, index: int) -> None:
    async with dialed(node) as peer:
        await peer.shake_hands()
        peer.writer.write(flip(peer.connection.data_to_send(), index))
        assert await peer.bytes_until_closed() == b""
    await assert_nothing_changed(node)


@pytest.mark.parametrize("size", [0, 1, 49])
async def test_a_short_act_one_is_not_answered(node: Node, size: int) -> None:
    async with dialed(node) as peer:
        peer.writer.write(peer.connection.data_to_send()[:size])
        peer.writer.write_eof()
        assert await peer.bytes_until_closed() == b""
    await assert_nothing_changed(node)


@pytest.mark.parametrize("size", [0, 1, 65])
async def test_a_short_act_three_is_not_answered(node: Node, size: int) -> None:
    async with dialed(node) as peer:
        await peer.shake_hands()
        peer.writer.write(peer.connection.data_to_send()[:size])
        peer.writer.write_eof()
        assert await peer.bytes_until_closed() == b""
    await assert_nothing_changed(node)


@pytest.mark.parametrize("excess", [b"\x01", bytes(66)], ids=["a version", "an act of zeros"])
async def test_what_is_too_much_of_act_one_is_taken_for_act_three(
    node: Node, excess: bytes
) -> None:
    async with dialed(node) as peer:
        peer.writer.write(peer.connection.data_to_send() + excess)
        # Act two may have gone out before the excess was looked at; nothing comes after it.
        assert len(await peer.bytes_until_closed()) in (0, 50)
    await assert_nothing_changed(node)


async def test_what_is_too_much_of_act_three_is_taken_for_a_message(node: Node) -> None:
    async with dialed(node) as peer:
        await peer.shake_hands()
        peer.writer.write(peer.connection.data_to_send() + bytes(18))
        assert await peer.hear_all() in ([], [INIT])
    await assert_nothing_changed(node)


async def test_a_replayed_act_three_authenticates_nobody(node: Node) -> None:
    async with dialed(node) as peer:
        act_one = peer.connection.data_to_send()
        peer.writer.write(act_one)
        peer.connection.receive_data(await peer.reader.readexactly(50))
        assert isinstance(peer.connection.next_event(), Authenticated)
        act_three = peer.connection.data_to_send()
        peer.writer.write(act_three)
        assert await peer.hear() == INIT
    async with dialed(node) as thief:
        thief.writer.write(act_one)
        assert len(await thief.reader.readexactly(50)) == 50
        thief.writer.write(act_three)
        assert await thief.bytes_until_closed() == b""
    await assert_nothing_changed(node)


async def test_act_one_in_the_place_of_act_three_is_not_answered(node: Node) -> None:
    async with dialed(node) as peer:
        act_one = peer.connection.data_to_send()
        peer.writer.write(act_one)
        await peer.reader.readexactly(50)
        peer.writer.write(act_one + act_one[:16])
        assert await peer.bytes_until_closed() == b""
    await assert_nothing_changed(node)


@pytest.mark.parametrize("version", [1, 2, 0x16, 0x47, 0xFF])
async def test_a_wrong_version_is_closed_on_at_its_first_byte(node: Node, version: int) -> None:
    async with dialed(node) as peer:
        peer.writer.write(bytes((version,)))
        assert await peer.bytes_until_closed() == b""
    await assert_nothing_changed(node)


async def test_a_wrong_version_of_act_three_is_closed_on_at_its_first_byte(node: Node) -> None:
    async with dialed(node) as peer:
        await peer.shake_hands()
        peer.writer.write(b"\x01")
        assert await peer.bytes_until_closed() == b""
    await assert_nothing_changed(node)


async def test_who_looks_for_another_node_id_is_not_answered(node: Node) -> None:
    async with dialed(node) as peer:
        peer.connection = Connection(KEY, remote_node_id=OTHER_KEY.node_id)
        peer.writer.write(peer.connection.data_to_send())
        assert await peer.bytes_until_closed() == b""
    await assert_nothing_changed(node)


# Frames


async def test_garbage_after_the_handshake_closes_without_a_word(node: Node) -> None:
    async with opened(node) as peer:
        peer.writer.write(bytes(18))
        assert await peer.hear_all() == []
    await assert_nothing_changed(node)


@pytest.mark.parametrize("index", [0, 17, 18, -1])
async def test_a_tampered_message_closes_without_a_word_and_is_not_stored(
    node: Node, index: int
) -> None:
    async with opened(node) as peer:
        frame = peer.encrypt(PeerStorage(b"tampered with"))
        peer.writer.write(flip(frame, index % len(frame)))
        assert await peer.hear_all() == []
    await assert_nothing_changed(node)


async def test_a_replayed_message_closes_without_a_word(node: Node) -> None:
    async with opened(node) as peer:
        frame = peer.encrypt(PeerStorage(KEPT))
        peer.writer.write(frame)
        peer.say(Ping(0))
        await peer.hear_pong()
        peer.writer.write(frame)
        assert await peer.hear_all() == []
    await assert_nothing_changed(node)


async def test_a_message_cut_short_by_the_end_is_not_stored(node: Node) -> None:
    async with opened(node) as peer:
        peer.writer.write(peer.encrypt(PeerStorage(b"cut short"))[:-1])
        peer.writer.write_eof()
        assert await peer.hear_all() == []
    await assert_nothing_changed(node)


# init


def feature_field(*bits: int) -> bytes:
    number = sum(1 << bit for bit in bits)
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def init_with(*bits: int, tlvs: bytes = b"\x01\x20" + CHAIN) -> bytes:
    field = feature_field(*bits)
    return b"\x00\x10" + bytes(2) + len(field).to_bytes(2, "big") + field + tlvs


@pytest.mark.parametrize(
    "first",
    [
        Ping(1).encode(),
        PeerStorage(b"too early").encode(),
        WarningMessage.about("hello").encode(),
        b"\x80\x01unknown and odd",
        b"\x80\x02unknown and even",
        b"\x00",
        b"",
    ],
    ids=["ping", "peer_storage", "warning", "odd", "even", "one byte", "empty"],
)
async def test_who_does_not_begin_with_init_is_closed_on_without_a_word(
    node: Node, first: bytes
) -> None:
    async with authenticated(node) as peer:
        peer.say(first, INIT, PeerStorage(b"too late"), Ping(1))
        assert await peer.hear_all() == []
    await assert_nothing_changed(node)


@pytest.mark.parametrize(
    ("init", "text"),
    [
        (init_with(1, 100), "feature bit 100 is even"),
        (init_with(2), "feature bit 2 is even"),
        (b"\x00\x10\x00\x01\x04" + bytes(2), "feature bit 2 is even"),
        (init_with(17), "payment_secret"),
        (init_with(50, 14), "option_scid_alias"),
        (init_with(61), "option_shutdown_anysegwit"),
        (init_with(tlvs=b"\x01\x20" + OTHER_CHAIN), "chain"),
        (init_with(tlvs=b"\x01\x00"), "chain"),
        (init_with(tlvs=b"\x01\x1f" + CHAIN[:31]), "networks"),
        (init_with(tlvs=b"\x01\xfd\x00\x20" + CHAIN), "minimal"),
        (init_with(tlvs=b"\xfd\x00\x01\x20" + CHAIN), "minimal"),
        (init_with(tlvs=b"\x01\x20" + CHAIN + b"\x01\x20" + CHAIN), "TLV type 1 comes after 1"),
        (init_with(tlvs=b"\x05\x00\x01\x20" + CHAIN), "TLV type 1 comes after 5"),
        (init_with(tlvs=b"\x04\x00"), "TLV type 4 is even"),
        (init_with(tlvs=b"\x01\x20" + CHAIN[:31]), "truncated"),
        (b"\x00\x10\x00", "too short"),
        (b"\x00\x10\x00\x00\x00\x05\x01", "too short"),
    ],
    ids=[
        "an unknown even feature",
        "an unassigned even feature",
        "an unknown even feature in globalfeatures",
        "basic_mpp without payment_secret",
        "zeroconf without scid_alias",
        "simple_close without shutdown_anysegwit",
        "another chain",
        "no chain",
        "half a chain hash",
        "a length that is not minimal",
        "a type that is not minimal",
        "networks twice",
        "falling types",
        "an unknown even TLV",
        "a TLV cut short",
        "cut in its first length",
        "features cut short",
    ],
)
async def test_a_wrong_init_is_told_and_closed_on_and_nothing_is_given_back(
    node: Node, init: bytes, text: str
) -> None:
    async with authenticated(node) as peer:
        peer.say(init, PeerStorage(b"after a wrong init"), Ping(1))
        assert text in warning_in(await peer.hear_all())
    await assert_nothing_changed(node)


@pytest.mark.parametrize(
    "init",
    [
        init_with(),
        init_with(tlvs=b""),
        init_with(99, 1001),
        init_with(0, 1, 42, 43),
        init_with(17, 15),
        init_with(tlvs=b"\x01\x40" + OTHER_CHAIN + CHAIN),
        init_with(tlvs=b"\x03\x01\xff\x05\x00"),
    ],
    ids=[
        "no features",
        "no TLVs",
        "unknown odd features",
        "both bits of a pair",
        "a dependency that is there",
        "two chains",
        "odd TLVs, a malformed address among them",
    ],
)
async def test_what_an_init_may_hold_is_served(node: Node, init: bytes) -> None:
    async with authenticated(node) as peer:
        peer.say(init, Ping(0))
        assert await peer.hear_pong() == [PeerStorageRetrieval(KEPT), Pong()]
    await assert_nothing_changed(node)


async def test_a_second_init_is_told_and_closed_on(node: Node) -> None:
    async with opened(node) as peer:
        peer.say(INIT, PeerStorage(b"after a second init"), Ping(1))
        assert "second" in warning_in(await peer.hear_all())
    await assert_nothing_changed(node)


async def test_a_warning_reaches_a_peer_that_is_in_the_middle_of_much_more(node: Node) -> None:
    async with opened(node) as peer:
        peer.say(INIT, *[PeerStorage(bytes(FULL_SIZE))] * 200)
        assert "second" in warning_in(await peer.hear_all())
    await assert_nothing_changed(node)


# Messages


@pytest.mark.parametrize("number", [22, 122, 1000, 0x8000, 0xFFFE])
async def test_an_unknown_even_message_is_told_and_closed_on(node: Node, number: int) -> None:
    async with opened(node) as peer:
        peer.say(number.to_bytes(2, "big") + b"?", PeerStorage(b"too late"), Ping(1))
        text = warning_in(await peer.hear_all())
        assert str(number) in text
        assert not text.startswith("storage:")
    await assert_nothing_changed(node)


@pytest.mark.parametrize("number", [3, 21, 39409, 0xFFFF])
async def test_an_unknown_odd_message_is_ignored(node: Node, number: int) -> None:
    async with opened(node) as peer:
        peer.say(number.to_bytes(2, "big") + b"?", Ping(2))
        assert await peer.hear() == Pong(bytes(2))
    await assert_nothing_changed(node)


@pytest.mark.parametrize(
    "message",
    [b"", b"\x00", b"\x00\x12", b"\x00\x12\x00\x01\x00\x02a", b"\x00\x13\x00", b"\x00\x01" * 17],
    ids=["empty", "half a type", "a type alone", "a short ping", "a short pong", "a short warning"],
)
async def test_a_message_too_short_for_its_content_is_told_and_closed_on(
    node: Node, message: bytes
) -> None:
    async with opened(node) as peer:
        peer.say(message, PeerStorage(b"too late"), Ping(1))
        assert warning_in(await peer.hear_all())
    await assert_nothing_changed(node)


# Blobs


@pytest.mark.parametrize(
    "message",
    [
        b"\x00\x07",
        b"\x00\x07\x00",
        b"\x00\x07\x00\x05four",
        b"\x00\x07\xff\xff" + bytes(FULL_SIZE),
        b"\x00\x07\x00\x04four\x02\x00",
        b"\x00\x07\x00\x04four\x01",
        b"\x00\x07\x00\x04four\x01\xfd\x00\x00",
        b"\x00\x07\x00\x04four\x03\x00\x01\x00",
        b"\x00\x07\x00\x00" + bytes(FULL_SIZE),
    ],
    ids=[
        "no length",
        "half a length",
        "one byte too few",
        "65535 declared of 65531",
        "an even trailer",
        "a trailer cut short",
        "a trailer that is not minimal",
        "falling trailers",
        "a length of 0 before 65531 bytes",
    ],
)
async def test_a_blob_of_wrong_length_is_refused_told_and_closed_on(
    node: Node, message: bytes
) -> None:
    async with opened(node) as peer:
        peer.say(message, Ping(1))
        assert warning_in(await peer.hear_all()).startswith("storage:")
    await assert_nothing_changed(node)


async def test_what_stands_behind_the_declared_bytes_is_a_trailer_and_not_stored(
    node: Node,
) -> None:
    async with opened(node) as peer:
        peer.say(b"\x00\x07\x00\x04four\x01\x02ab\x03\x00", Ping(1))
        assert await peer.hear() == Pong(bytes(1))
    assert await node.given_back(KEY) == b"four"


@pytest.mark.parametrize("size", [0, 1, 57, 65530, FULL_SIZE])
async def test_a_blob_of_any_size_comes_back(node: Node, size: int) -> None:
    blob = bytes(itertools.islice(itertools.cycle(range(251)), size))
    await node.keep(KEY, blob)
    assert await node.given_back(KEY) == blob


async def test_a_blob_in_any_pieces_is_stored(node: Node) -> None:
    """The socket's pieces, not the peer's writes, decide what the server reads at once."""
    async with opened(node) as peer:
        frame = peer.encrypt(PeerStorage(b"in pieces"), Ping(0))
        for index in range(len(frame)):
            peer.writer.write(frame[index : index + 1])
            await peer.writer.drain()
        assert await peer.hear() == Pong()
    assert await node.given_back(KEY) == b"in pieces"


@pytest.mark.parametrize("missing", [1, 15, 16, 33, 34, 65535])
async def test_the_end_of_a_message_of_full_size_may_come_late(node: Node, missing: int) -> None:
    blob = bytes(FULL_SIZE)
    async with opened(node) as peer:
        frame = peer.encrypt(PeerStorage(blob))
        peer.writer.write(frame[:-missing])
        connection = node.server.peers[KEY.node_id]._connection
        while connection.buffered < len(frame) - missing:
            await turns(node.store, 1)
        peer.writer.write(frame[-missing:] + peer.encrypt(Ping(0)))
        assert await peer.hear() == Pong()
    assert await node.given_back(KEY) == blob


# Peers that are slow or silent


async def test_who_says_nothing_is_closed_on_after_the_handshake_timeout(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(SOON, PATIENT.session)) as node:
        async with dialed(node) as peer:
            assert await peer.bytes_until_closed() == b""
        node.server.limits = PATIENT
        await assert_nothing_changed(node)


async def test_who_stops_within_act_one_is_closed_on(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(SOON, PATIENT.session)) as node, dialed(node) as peer:
        peer.writer.write(peer.connection.data_to_send()[:49])
        assert await peer.bytes_until_closed() == b""


async def test_who_stops_after_act_two_is_closed_on(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(SOON, PATIENT.session)) as node, dialed(node) as peer:
        peer.writer.write(peer.connection.data_to_send())
        assert len(await peer.bytes_until_closed()) == 50


async def test_who_never_sends_init_is_closed_on_after_the_init_timeout(tmp_path: Path) -> None:
    limits = Limits(NEVER, Timeouts(init=SOON, ping=NEVER, idle=NEVER))
    async with serving(tmp_path, limits) as node:
        async with authenticated(node) as peer:
            assert await peer.hear_all() == []
        node.server.limits = PATIENT
        await assert_nothing_changed(node)


async def test_a_store_that_hangs_costs_a_peer_its_connection_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(NEVER, Timeouts(init=SOON, ping=NEVER, idle=NEVER))
    async with serving(tmp_path, limits) as node:

        async def hang(*_: object) -> None:
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(node.store, "open_lease", hang)
            async with dialed(node) as peer:
                await peer.shake_hands()
                peer.say(INIT)
                assert await peer.hear_all() == []
        node.server.limits = PATIENT
        await assert_nothing_changed(node)


async def test_a_silent_peer_is_pinged_once_and_then_closed_on(tmp_path: Path) -> None:
    limits = Limits(NEVER, Timeouts(init=NEVER, ping=SOON, idle=2 * SOON))
    async with serving(tmp_path, limits) as node:
        async with authenticated(node) as peer:
            peer.say(INIT)
            assert await peer.hear() == PeerStorageRetrieval(KEPT)
            messages = await peer.hear_all()
            assert [type(message) for message in messages] == [Ping]
        node.server.limits = PATIENT
        await assert_nothing_changed(node)


async def test_a_peer_that_answers_pings_stays(tmp_path: Path) -> None:
    limits = Limits(NEVER, Timeouts(init=NEVER, ping=SOON, idle=NEVER))
    async with serving(tmp_path, limits) as node, authenticated(node) as peer:
        peer.say(INIT)
        assert await peer.hear() == PeerStorageRetrieval(KEPT)
        for _ in range(4):
            ping = await peer.hear()
            assert isinstance(ping, Ping)
            peer.say(Pong(bytes(ping.num_pong_bytes)))


# Peers that don't read

BOUND = 8 * 65535
"""Bytes that may wait for one peer that does not read: some messages, not all it asked for."""

DEAF_PINGS = 400
"""Pings for 65531 bytes each: 26 MB of pongs, many times what the kernel's buffers take."""


@dataclass
class Deaf:
    """A peer that has asked for much and reads nothing, as the server sees it."""

    peer: Peer
    connection: PeerConnection

    def waiting(self) -> int:
        """Bytes that wait to be written to it."""
        return self.connection._transport.get_write_buffer_size()

    def buffered(self) -> int:
        """Bytes that it sent and nobody has looked at."""
        return self.connection._connection.buffered


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when the server has noticed that a peer does not read."""
    event = asyncio.Event()
    pause_writing = PeerConnection.pause_writing

    def noticed(connection: PeerConnection) -> None:
        pause_writing(connection)
        event.set()

    monkeypatch.setattr(PeerConnection, "pause_writing", noticed)
    return event


@contextlib.asynccontextmanager
async def deaf_peer(node: Node, paused: asyncio.Event) -> AsyncIterator[Deaf]:
    """KEY's peer, which asks for many pongs at once and does not read them."""
    async with opened(node) as peer:
        # asyncio's own reading stops too, after little.
        peer.transport.pause_reading()
        peer.say(*[Ping(FULL_SIZE)] * DEAF_PINGS)
        await paused.wait()
        yield Deaf(peer, node.server.peers[KEY.node_id])


async def test_what_waits_for_a_peer_that_does_not_read_is_bounded(
    node: Node, paused: asyncio.Event
) -> None:
    async with deaf_peer(node, paused) as deaf:
        assert 0 < deaf.waiting() <= BOUND
        # However much more it sends, it is not read, and others are served meanwhile.
        deaf.peer.say(*[Ping(FULL_SIZE)] * (8 << 20 >> 6))
        for number in range(3):
            await node.keep(OTHER_KEY, bytes(FULL_SIZE - number))
            assert deaf.waiting() <= BOUND
            assert deaf.buffered() <= READ_AHEAD + READ_BUFFER
        assert await node.given_back(OTHER_KEY) == bytes(FULL_SIZE - 2)
    assert await node.given_back(KEY) == KEPT


async def test_a_peer_that_reads_again_gets_every_pong(node: Node, paused: asyncio.Event) -> None:
    async with deaf_peer(node, paused) as deaf:
        deaf.peer.transport.resume_reading()
        for _ in range(DEAF_PINGS):
            assert await deaf.peer.hear() == Pong(bytes(FULL_SIZE))
        deaf.peer.say(PeerStorage(b"after the flood"), Ping(0))
        assert await deaf.peer.hear() == Pong()
    assert await node.given_back(KEY) == b"after the flood"


async def test_a_peer_that_does_not_read_is_given_up_when_it_is_silent(
    tmp_path: Path, paused: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstore.server.CLOSE_SECONDS", SOON)
    limits = Limits(NEVER, Timeouts(init=NEVER, ping=0.3, idle=0.6))
    async with serving(tmp_path, limits) as node, deaf_peer(node, paused) as deaf:
        gone = lost(deaf.connection, monkeypatch)
        await gone.wait()
        assert deaf.connection not in node.server.connections


async def test_a_peer_that_does_not_read_is_replaced_by_its_newer_connection(
    node: Node, paused: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstore.server.CLOSE_SECONDS", SOON)
    async with deaf_peer(node, paused) as deaf:
        gone = lost(deaf.connection, monkeypatch)
        await assert_nothing_changed(node)
        await gone.wait()
        assert deaf.connection not in node.server.connections


async def test_a_peer_that_does_not_read_holds_no_stop_up(
    node: Node, paused: asyncio.Event
) -> None:
    async with deaf_peer(node, paused):
        await node.server.close(SOON)
        assert not node.server.connections


def lost(connection: PeerConnection, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when the server has lost the connection."""
    event = asyncio.Event()
    connection_lost = PeerConnection.connection_lost

    def noticed(which: PeerConnection, exc: Exception | None) -> None:
        connection_lost(which, exc)
        if which is connection:
            event.set()

    monkeypatch.setattr(PeerConnection, "connection_lost", noticed)
    return event


# A store in trouble


@contextlib.asynccontextmanager
async def full(store: SqliteStore) -> AsyncIterator[None]:
    """SQLite itself finds that the disk is full: the database may not grow by a page."""
    await store._writer.execute("PRAGMA max_page_count = 1")
    yield
    await store._writer.execute("PRAGMA max_page_count = 4294967294")


@contextlib.asynccontextmanager
async def failing(store: SqliteStore) -> AsyncIterator[None]:
    """The disk fails when a transaction is committed."""
    with failing_commits(store):
        yield


@pytest.mark.parametrize("trouble", [full, failing])
async def test_a_store_that_can_not_write_warns_before_the_pong_and_keeps_the_old(
    node: Node, trouble: Callable[[SqliteStore], AbstractAsyncContextManager[None]]
) -> None:
    blob = bytes(FULL_SIZE)
    async with opened(node) as peer, trouble(node.store):
        # Each interval has its own warning, also when the same was said before.
        for _ in range(2):
            peer.say(PeerStorage(blob), Ping(1))
            warning, pong = await peer.hear_pong()
            assert warning_in([warning]).startswith("storage:")
            assert pong == Pong(bytes(1))
        # An interval without an update has nothing to warn of.
        peer.say(Ping(1))
        assert await peer.hear_pong() == [Pong(bytes(1))]
        async with await node.client(OTHER_KEY) as other:
            await other.store(blob)
            with pytest.raises(StorageRefusedError, match="storage:"):
                await other.confirm()
        await assert_nothing_changed(node)
    await node.keep(KEY, blob)
    assert await node.given_back(KEY) == blob
    assert await node.given_back(OTHER_KEY) is None


async def test_storing_goes_on_for_a_connection_that_was_refused(node: Node) -> None:
    blob = bytes(FULL_SIZE)
    async with await node.client(KEY) as client:
        async with full(node.store):
            await client.store(blob)
            with pytest.raises(StorageRefusedError, match="storage:"):
                await client.confirm()
        await client.store(blob)
        await client.confirm()
    assert await node.given_back(KEY) == blob


async def test_a_peer_whose_backups_can_not_be_looked_up_is_closed_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "call", broken)
        async with dialed(node) as peer:
            await peer.shake_hands()
            peer.say(INIT, PeerStorage(b"too early"), Ping(1))
            assert await peer.hear_all() == []
    await assert_nothing_changed(node)


@pytest.mark.parametrize(
    ("first", "reads"),
    [(INIT, 1), (PeerStorage(b"early"), 0), (Ping(1), 0), (b"", 0)],
    ids=["init", "peer_storage", "ping", "nothing in it"],
)
async def test_only_an_init_with_the_last_act_has_the_backup_read_along(
    node: Node, monkeypatch: pytest.MonkeyPatch, first: Message | bytes, reads: int
) -> None:
    async with opened(node) as peer:
        peer.say(PeerStorage(b"kept"), Ping(1))
        assert await peer.hear() == Pong(bytes(1))
    read: list[int] = []
    sound_blob = reader._sound_blob

    def counting(connection: sqlite3.Connection, row_id: int, expected: Revision) -> bytes | None:
        read.append(row_id)
        return sound_blob(connection, row_id, expected)

    monkeypatch.setattr(reader, "_sound_blob", counting)
    async with dialed(node) as peer:
        await peer.shake_hands()
        peer.say(first)
        while (message := await peer.hear()) is not None:
            if message == PeerStorageRetrieval(b"kept"):
                break
    assert len(read) == reads


async def test_a_peer_whose_backup_can_not_be_read_is_not_left_hanging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    # Who is left hanging sees nothing but the ping for a silent peer.
    limits = Limits(NEVER, Timeouts(init=NEVER, ping=5.0, idle=NEVER))
    async with serving(tmp_path, limits) as node:
        async with authenticated(node) as peer:
            with monkeypatch.context() as patch:
                patch.setattr(Database, "call", broken)
                peer.say(INIT, Ping(1))
                assert await peer.hear() in (None, Pong(bytes(1)))
        node.server.limits = PATIENT
        await assert_nothing_changed(node)


DAMAGE = {
    "a byte of the blob": "blob = CAST(zeroblob(1) || substr(blob, 2) AS BLOB)",
    "the blob's end": "blob = substr(blob, 1, length(blob) - 1)",
    "its hash": "sha256 = zeroblob(32)",
    "its digest": "digest = zeroblob(32)",
    "its revision": "revision = revision + 1",
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
async def test_a_damaged_backup_is_not_given_back_and_the_peer_is_served(
    node: Node, change: str, logged: list[structlog.typing.EventDict]
) -> None:
    node.damage(f"UPDATE backup SET {change}")  # noqa: S608 - one of the above
    async with authenticated(node) as peer:
        peer.say(INIT, Ping(0))
        assert await peer.hear_pong() == [Pong()]
        assert [event["log_level"] for event in logged if "error" in event] == ["error"]
        peer.say(PeerStorage(b"sound"), Ping(0))
        assert await peer.hear_pong() == [Pong()]
    assert await node.given_back(KEY) == b"sound"


async def test_a_damaged_backup_is_written_anew_when_the_peer_sends_it_again(node: Node) -> None:
    node.damage(f"UPDATE backup SET {DAMAGE['a byte of the blob']}")  # noqa: S608 - see above
    await node.keep(KEY, KEPT)
    await assert_nothing_changed(node)


async def test_a_backup_under_a_wrong_node_id_goes_to_nobody(node: Node) -> None:
    node.damage("UPDATE backup SET node_id = ?", OTHER_KEY.node_id)
    assert await node.given_back(OTHER_KEY) is None
    assert await node.given_back(KEY) is None
    await node.keep(OTHER_KEY, b"of its own")
    assert await node.given_back(OTHER_KEY) == b"of its own"


# Listening


async def test_a_port_in_use_is_an_error_that_says_so(node: Node) -> None:
    server = PeerServer(
        key=node.server.key, network=Network.REGTEST, store=node.store, limits=PATIENT
    )
    with pytest.raises(ListenError, match=f"127.0.0.1:{node.address.port} is in use"):
        await server.listen([("127.0.0.1", 0), ("127.0.0.1", node.address.port)])
    await assert_nothing_changed(node)


async def test_every_address_is_listened_on(node: Node) -> None:
    await node.server.listen([("127.0.0.1", 0), ("127.0.0.2", 0)])
    assert [host for host, _ in node.server.addresses] == ["127.0.0.1", "127.0.0.1", "127.0.0.2"]
    for host, port in node.server.addresses:
        address = NodeAddress(node.server.key.node_id, host, port)
        async with await Client.connect(address, KEY) as client:
            await client.init(Network.REGTEST)
            assert await client.retrieve() == KEPT
