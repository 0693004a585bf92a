"""Connections that we dial: `PeerServer.dial` against a node of our own and against worse."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from peerstore import server as server_module
from peerstore.connection import Authenticated, Connection
from peerstore.errors import DialError
from peerstore.policy import EVERYONE, Policy
from peerstore.server import PeerConnection, PeerServer
from peerstore.store.base import Quotas
from peerstore.store.sqlite import Clocks, SqliteStore
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import BackupKind, Network, NodeAddress, NodeId, Slot
from peerstore.wire import features
from peerstore.wire.messages import (
    Init,
    Message,
    PeerStorage,
    PeerStorageRetrieval,
    Ping,
    Pong,
    WarningMessage,
)
from tests.store_contract import Recorder, turns
from tests.test_server import (
    CHAIN,
    INIT,
    KEPT,
    KEY,
    OTHER_CHAIN,
    OTHER_KEY,
    PATIENT,
    SOON,
    Node,
    Peer,
    assert_nothing_changed,
    dialed,
    opened,
    serving,
)

WANTING = Init(features.OURS | 1 << 41, (CHAIN,))
"""Of a peer that stores by bolts pull request 881 too."""


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """The node that dials; it keeps KEPT for KEY."""
    async with serving(tmp_path) as node:
        yield node


@pytest.fixture(autouse=True)
def quiet_loop() -> Iterator[list[structlog.typing.EventDict]]:
    """What the server told its operator."""
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as events:
        yield events


Script = Callable[[Peer], Awaitable[None]]


@contextlib.asynccontextmanager
async def scripted(script: Script, key: KeyPair = KEY) -> AsyncIterator[NodeAddress]:
    """A peer that waits to be dialed and then does as it likes, once for each connection."""
    failures: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(Peer(reader, writer, Connection(key)))
        except Exception as error:  # told to the test, which waits for something else
            failures.append(error)
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield NodeAddress(key.node_id, *listener.sockets[0].getsockname()[:2])
    finally:
        listener.close()
    assert failures == []


async def shake_hands(peer: Peer) -> None:
    """The three acts, as who is dialed; act two goes out."""
    peer.connection.receive_data(await peer.reader.readexactly(50))
    assert peer.connection.next_event() is None
    peer.writer.write(peer.connection.data_to_send())
    peer.connection.receive_data(await peer.reader.readexactly(66))
    assert isinstance(peer.connection.next_event(), Authenticated)


async def until_closed(peer: Peer) -> list[Message]:
    """What comes until the node closes."""
    return await peer.hear_all()


@contextlib.contextmanager
def refused(*words: str) -> Iterator[None]:
    """A dial that fails and says so in one line."""
    with pytest.raises(DialError) as caught:
        yield
    line = str(caught.value)
    assert line.isprintable()
    for word in words:
        assert word in line


async def until_nobody_is_connected(node: Node) -> None:
    while node.server.connections:
        await turns(node.store, 1)


async def assert_nobody_is_left(node: Node) -> None:
    """No connection stays behind a dial that failed."""
    await until_nobody_is_connected(node)
    assert node.server.peers == {}
    await assert_nothing_changed(node)


# It works


@contextlib.asynccontextmanager
async def another(directory: Path) -> AsyncIterator[Node]:
    """Another node, whose key is KEY: that is for whom the first one keeps something."""
    database = directory / "other.db"
    store = await SqliteStore.open(
        database,
        node_id=KEY.node_id,
        network=Network.REGTEST,
        clocks=Clocks(time.time, time.monotonic),
        quotas=Quotas(min_free_space=0),
    )
    server = PeerServer(key=KEY, network=Network.REGTEST, store=store, limits=PATIENT)
    try:
        await server.listen([("127.0.0.1", 0)])
        yield Node(server, store, database)
    finally:
        await server.close(SOON)
        await store.close()


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Node]:
    """See `another`."""
    async with another(tmp_path) as node:
        yield node


async def test_two_nodes_meet_and_each_knows_who_has_dialed(node: Node, other: Node) -> None:
    connection = await node.server.dial(other.address)
    assert connection.met
    assert node.server.peers == {KEY.node_id: connection}
    (theirs,) = other.server.peers.values()
    described, inverse = connection.describe(), theirs.describe()
    assert described["node_id"] == KEY.node_id.hex()
    assert described["address"] == str(other.address).partition("@")[2]
    assert (described["inbound"], inverse["inbound"]) == (False, True)
    assert inverse["node_id"] == node.server.key.node_id.hex()
    assert isinstance(described["seconds"], int)


async def test_the_other_side_is_told_as_by_any_connection(node: Node) -> None:
    heard: list[Message] = []
    told = asyncio.Event()

    async def script(peer: Peer) -> None:
        await shake_hands(peer)
        peer.say(INIT, PeerStorage(b"new"), Ping(0))
        heard.extend(await peer.hear_pong())
        told.set()
        heard.extend(await until_closed(peer))

    async with scripted(script) as address:
        connection = await node.server.dial(address)
        await told.wait()
        assert heard == [INIT, PeerStorageRetrieval(KEPT), Pong(b"")]
        connection.close("enough")
        await until_nobody_is_connected(node)
    assert await node.given_back(KEY) == b"new"


async def test_who_dials_never_waits_with_its_init_and_shows_no_node_backup(node: Node) -> None:
    lease = await node.store.open_lease(KEY.node_id, Recorder())
    lease.put(1, Slot(KEY.node_id, BackupKind.NODE_BACKUP), b"node")
    await node.store.settle()
    lease.close()
    firsts: list[Message | None] = []
    told = asyncio.Event()

    async def script(peer: Peer) -> None:
        await shake_hands(peer)
        firsts.append(await peer.hear())
        peer.say(WANTING, Ping(0))
        firsts.extend(await peer.hear_pong())
        told.set()
        await until_closed(peer)

    async with scripted(script) as address:
        connection = await node.server.dial(address)
        await told.wait()
        connection.close("enough")
        await until_nobody_is_connected(node)
    assert firsts == [INIT, PeerStorageRetrieval(KEPT), Pong(b"")]
    assert isinstance(firsts[0], Init)
    assert firsts[0].node_backup is None


async def test_a_dialed_peer_is_served_by_the_policy(node: Node) -> None:
    node.server.set_policy(Policy(deny=frozenset({KEY.node_id})))
    heard: list[Message] = []
    told = asyncio.Event()

    async def script(peer: Peer) -> None:
        await shake_hands(peer)
        peer.say(INIT, PeerStorage(b"refused"), Ping(0))
        heard.extend(await peer.hear_pong())
        told.set()

    async with scripted(script) as address:
        await node.server.dial(address)
        await told.wait()
    our_init, retrieval, warning, _pong = heard
    assert isinstance(our_init, Init)
    assert not features.offers(our_init.features, features.OPTION_PROVIDE_STORAGE)
    assert retrieval == PeerStorageRetrieval(KEPT)
    assert isinstance(warning, WarningMessage)
    node.server.set_policy(EVERYONE)
    await assert_nobody_is_left(node)


async def test_where_a_dialed_peer_is_and_its_features_are_noted(node: Node) -> None:
    async def script(peer: Peer) -> None:
        await shake_hands(peer)
        peer.say(WANTING)
        await until_closed(peer)

    async with scripted(script) as address:
        connection = await node.server.dial(address)
        await node.store.save_visits()
        (known,) = [each async for each in node.store.reader.peers()]
        assert known.address == f"{address.host}:{address.port}"
        assert features.decode_features(known.features) == WANTING.features
        connection.close("enough")
        await until_nobody_is_connected(node)


# Who is connected already


async def test_a_connection_that_is_there_is_enough(node: Node) -> None:
    async with opened(node) as peer:
        (there,) = node.server.connections
        # Nobody listens at this address.
        found = await node.server.dial(NodeAddress(KEY.node_id, "127.0.0.1", 1))
        assert found is there
        assert found.describe()["inbound"] is True
        peer.say(Ping(0))
        assert await peer.hear_pong() == [Pong(b"")]
        assert node.server.connections == {there}


async def test_a_dialed_connection_is_enough_for_the_next_dial(node: Node, other: Node) -> None:
    first = await node.server.dial(other.address)
    assert await node.server.dial(other.address) is first
    assert len(node.server.connections) == 1


async def test_a_dialed_connection_replaces_an_older_one_that_has_not_said_init(
    node: Node,
) -> None:
    async def script(peer: Peer) -> None:
        await shake_hands(peer)
        peer.say(INIT)
        await until_closed(peer)

    async with scripted(script) as address, dialed(node) as older:
        await older.shake_hands()
        older.say()
        assert await older.hear() == INIT
        (inbound,) = node.server.connections
        connection = await node.server.dial(address)
        assert connection is not inbound
        assert node.server.peers == {KEY.node_id: connection}
        assert await older.hear_all() == []
        connection.close("enough")
        await until_nobody_is_connected(node)
    await assert_nobody_is_left(node)


async def test_an_inbound_connection_that_comes_later_replaces_a_dialed_one(node: Node) -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await shake_hands(peer)
        peer.say(INIT)
        await until_closed(peer)
        closed.set()

    async with scripted(script) as address:
        dialed_connection = await node.server.dial(address)
        async with opened(node):
            await closed.wait()
            (inbound,) = node.server.peers.values()
            assert inbound is not dialed_connection
    await assert_nobody_is_left(node)


async def test_who_comes_by_itself_while_it_is_dialed_stays(node: Node) -> None:
    arrived, let_go = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await shake_hands(peer)
        arrived.set()
        await let_go.wait()
        await until_closed(peer)

    async with scripted(script) as address:
        dialing = asyncio.create_task(node.server.dial(address))
        await arrived.wait()
        while not node.server.peers:
            await turns(node.store, 1)
        async with opened(node) as peer:
            let_go.set()
            with refused():
                await dialing
            peer.say(Ping(0))
            assert await peer.hear_pong() == [Pong(b"")]
    await assert_nobody_is_left(node)


async def test_a_renewed_connection_replaces_the_one_that_is_there(node: Node, other: Node) -> None:
    first = await node.server.dial(other.address)
    second = await node.server.dial(other.address, renew=True)
    assert second is not first
    assert first.closing
    assert node.server.connected(KEY.node_id) is second
    while len(other.server.connections) > 1 or len(node.server.connections) > 1:
        await turns(node.store, 1)
    assert node.server.connections == {second}


async def test_the_old_connection_stays_when_it_can_not_be_renewed(node: Node, other: Node) -> None:
    first = await node.server.dial(other.address)
    with refused("can't connect"):
        await node.server.dial(NodeAddress(KEY.node_id, "127.0.0.1", dead_port()), renew=True)
    assert node.server.connected(KEY.node_id) is first
    assert not first.closing


async def test_a_connection_that_is_about_to_end_is_not_enough(node: Node, other: Node) -> None:
    first = await node.server.dial(other.address)
    first.close("enough")
    assert node.server.connected(KEY.node_id) is None
    second = await node.server.dial(other.address)
    assert second is not first
    assert node.server.connected(KEY.node_id) is second


async def test_it_is_told_when_a_peer_is_there_and_when_its_last_connection_is_gone(
    node: Node, other: Node
) -> None:
    told: list[tuple[NodeId, bool]] = []
    server = node.server
    server.peer_changed = lambda node_id: told.append(
        (node_id, server.connected(node_id) is not None)
    )
    await server.dial(other.address)
    connection = await server.dial(other.address, renew=True)
    while len(server.connections) > 1:
        await turns(node.store, 1)
    connection.close("enough")
    await until_nobody_is_connected(node)
    assert told == [(KEY.node_id, True), (KEY.node_id, True), (KEY.node_id, False)]


async def test_a_dial_that_is_cancelled_leaves_nobody_connected(node: Node) -> None:
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await shake_hands(peer)
        arrived.set()
        await until_closed(peer)
        closed.set()

    async with scripted(script) as address:
        dialing = asyncio.create_task(node.server.dial(address))
        await arrived.wait()
        dialing.cancel()
        await closed.wait()
        await assert_nobody_is_left(node)


# It does not work


async def test_we_do_not_dial_ourselves(node: Node) -> None:
    with refused(str(node.address), "itself"):
        await node.server.dial(node.address)
    await assert_nobody_is_left(node)


def dead_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


async def test_a_dead_port_is_an_error(node: Node) -> None:
    address = NodeAddress(KEY.node_id, "127.0.0.1", dead_port())
    with refused(str(address), "can't connect"):
        await node.server.dial(address)
    await assert_nobody_is_left(node)


@pytest.mark.parametrize(
    "host",
    ["a..b", ".", f"{'a' * 64}.example", "é" * 64, "a\0b", "\udc80"],
    ids=lambda host: ascii(host)[:12],
)
async def test_a_host_that_is_none_is_an_error(node: Node, host: str) -> None:
    with pytest.raises(DialError, match=KEY.node_id.hex()):
        await node.server.dial(NodeAddress(KEY.node_id, host, 9735))
    await assert_nobody_is_left(node)


async def test_every_address_of_a_name_is_tried(
    node: Node, other: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, alive = ("127.0.0.1", dead_port()), other.server.addresses[0]
    address = NodeAddress(KEY.node_id, "node.example.com", other.address.port)

    def with_addresses(*addresses: tuple[str, int]) -> None:
        async def look_up(*_: object, **__: object) -> list[tuple[object, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in addresses]

        monkeypatch.setattr(node.server.loop, "getaddrinfo", look_up)

    for addresses in ([dead, alive], [alive, dead]):
        with_addresses(*addresses)
        connection = await node.server.dial(address)
        assert connection.describe()["address"] == str(other.address).partition("@")[2]
        connection.close("enough")
        await until_nobody_is_connected(node)
    with_addresses(dead, ("127.0.0.2", dead[1]))
    with refused(str(address), "can't connect"):
        await node.server.dial(address)
    monkeypatch.undo()
    await assert_nobody_is_left(node)


async def test_a_peer_is_told_its_address_only_where_it_has_dialed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    # BOLT 1 has the one who was dialed say it.
    monkeypatch.setattr(ipaddress.IPv4Address, "is_global", True)
    async with dialed(node) as peer:
        await peer.shake_hands()
        peer.say()
        told = await peer.hear()
        assert isinstance(told, Init)
        assert told.remote_addr is not None
    await until_nobody_is_connected(node)
    firsts: list[Message | None] = []

    async def script(peer: Peer) -> None:
        await shake_hands(peer)
        firsts.append(await peer.hear())
        peer.say(INIT)

    async with scripted(script) as address:
        await node.server.dial(address)
    assert firsts == [INIT]
    await until_nobody_is_connected(node)


async def test_a_node_id_that_is_no_point_is_an_error(node: Node) -> None:
    no_point = NodeId(b"\x02" + b"\xff" * 32)
    with refused(no_point.hex(), "no point"):
        await node.server.dial(NodeAddress(no_point, *node.server.addresses[0]))
    await assert_nobody_is_left(node)


async def test_another_node_at_the_address_is_an_error(node: Node, other: Node) -> None:
    address = NodeAddress(OTHER_KEY.node_id, other.address.host, other.address.port)
    with refused(str(address)):
        await node.server.dial(address)
    await assert_nobody_is_left(node)


async def says_nothing(peer: Peer) -> None:
    await peer.bytes_until_closed()


async def says_act_two_alone(peer: Peer) -> None:
    await shake_hands(peer)
    await peer.bytes_until_closed()


async def says_half_of_act_two(peer: Peer) -> None:
    peer.connection.receive_data(await peer.reader.readexactly(50))
    assert peer.connection.next_event() is None
    peer.writer.write(peer.connection.data_to_send()[:25])
    await peer.bytes_until_closed()


@pytest.mark.parametrize("script", [says_nothing, says_half_of_act_two, says_act_two_alone])
async def test_a_peer_that_says_too_little_is_given_up(
    node: Node, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "DIAL_SECONDS", SOON)
    async with scripted(script) as address:
        with refused(str(address), "no answer"):
            await node.server.dial(address)
        await assert_nobody_is_left(node)


async def closes_at_once(peer: Peer) -> None:
    await peer.reader.readexactly(50)


async def closes_behind_the_handshake(peer: Peer) -> None:
    await shake_hands(peer)


async def says_garbage(peer: Peer) -> None:
    await peer.reader.readexactly(50)
    peer.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(30))
    await peer.bytes_until_closed()


async def says_no_init(peer: Peer) -> None:
    await shake_hands(peer)
    peer.say(Ping(1))
    await until_closed(peer)


async def refuses_our_init(peer: Peer) -> None:
    await shake_hands(peer)
    assert await peer.hear() == INIT
    peer.say(WarningMessage.about("I do not like you"))
    await until_closed(peer)


async def asks_for_what_there_is_not(peer: Peer) -> None:
    await shake_hands(peer)
    peer.say(Init(features.OURS | 1 << 1000, (CHAIN,)))
    assert isinstance((await until_closed(peer))[-1], WarningMessage)


async def is_on_another_network(peer: Peer) -> None:
    await shake_hands(peer)
    peer.say(Init(features.OURS, (OTHER_CHAIN,)))
    assert isinstance((await until_closed(peer))[-1], WarningMessage)


@pytest.mark.parametrize(
    "script",
    [
        closes_at_once,
        closes_behind_the_handshake,
        says_garbage,
        says_no_init,
        refuses_our_init,
        asks_for_what_there_is_not,
        is_on_another_network,
    ],
)
async def test_a_peer_that_does_not_go_along_is_an_error_at_once(
    node: Node, script: Script
) -> None:
    async with scripted(script) as address:
        with refused(str(address)):
            await node.server.dial(address)
        await assert_nobody_is_left(node)


@pytest.mark.parametrize(
    "script", [says_garbage, says_no_init, asks_for_what_there_is_not, is_on_another_network]
)
async def test_it_is_not_the_peer_that_is_said_to_have_closed_when_we_did(
    node: Node, script: Script
) -> None:
    async with scripted(script) as address:
        with pytest.raises(DialError) as caught:
            await node.server.dial(address)
        assert "the peer closed" not in str(caught.value)
        await assert_nobody_is_left(node)


async def test_a_peer_that_leaves_behind_its_init_was_met_and_is_gone(node: Node) -> None:
    async def script(peer: Peer) -> None:
        await shake_hands(peer)
        peer.say(INIT, WarningMessage.about("I do not like you"))

    async with scripted(script) as address:
        connection = await node.server.dial(address)
        assert connection.describe()["node_id"] == KEY.node_id.hex()
        await assert_nobody_is_left(node)


async def test_a_store_that_can_not_be_read_ends_a_dial(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise OSError("told to fail")

    with monkeypatch.context() as patched:
        patched.setattr(node.store, "open_lease", fail)
        async with scripted(says_act_two_alone) as address:
            with refused(str(address)):
                await node.server.dial(address)
    await assert_nobody_is_left(node)


async def test_a_dial_that_failed_is_no_obstacle_to_the_next_one(node: Node) -> None:
    attempts = 0

    async def script(peer: Peer) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            return
        await shake_hands(peer)
        peer.say(INIT)
        await until_closed(peer)

    async with scripted(script) as address:
        with refused(str(address)):
            await node.server.dial(address)
        connection = await node.server.dial(address)
        assert connection.met
        connection.close("enough")
        await assert_nobody_is_left(node)


async def test_an_end_of_the_server_ends_a_dial(node: Node) -> None:
    started = asyncio.Event()

    async def script(peer: Peer) -> None:
        started.set()
        await peer.bytes_until_closed()

    async with scripted(script) as address:
        dialing = asyncio.create_task(node.server.dial(address))
        await started.wait()
        await node.server.close(SOON)
        with refused(str(address)):
            await dialing
        assert node.server.connections == set()


async def test_a_dial_that_comes_through_when_the_server_is_closed_has_failed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = node.server.loop.create_connection

    async def close_first(*arguments: Any, **keywords: Any) -> object:
        await node.server.close(SOON)
        return await connect(*arguments, **keywords)

    monkeypatch.setattr(node.server.loop, "create_connection", close_first)
    async with scripted(says_nothing) as address:
        with refused(str(address), "shutting down"):
            await node.server.dial(address)
    while node.server.connections:
        await turns(node.store, 1)


async def test_what_nobody_waits_for_any_more_is_no_error_of_the_loop(node: Node) -> None:
    problems: list[dict[str, object]] = []
    node.server.loop.set_exception_handler(lambda _, context: problems.append(context))

    async def script(peer: Peer) -> None:
        await shake_hands(peer)
        hands_shaken.set()
        await go_on.wait()

    hands_shaken, go_on = asyncio.Event(), asyncio.Event()
    async with scripted(script) as address:
        dialing = asyncio.create_task(node.server.dial(address))
        await hands_shaken.wait()
        dialing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await dialing
        go_on.set()
        await assert_nobody_is_left(node)
    assert problems == []


async def test_a_connection_that_was_never_made_can_be_aborted(node: Node) -> None:
    made = PeerConnection(node.server, OTHER_KEY.node_id, node.server.loop.create_future())
    made.abort()
    assert node.server.connections == set()
