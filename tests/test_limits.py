"""What keeps a crowd, or one peer that wants too much, from costing the others: over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import tomllib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import msgspec
import pytest
import structlog
import structlog.testing
import structlog.typing

from peerstore import server as server_module
from peerstore.admission import DoorLimits
from peerstore.config import load
from peerstore.connection import Connection
from peerstore.daemon import _limits as limits_of
from peerstore.policy import Policy
from peerstore.server import WRITE_AHEAD, Limits, Rates
from peerstore.session import Timeouts
from peerstore.transport.secp256k1 import KeyPair
from peerstore.wire.messages import (
    PeerStorage,
    PeerStorageRetrieval,
    Ping,
    Pong,
    WarningMessage,
)
from tests.helpers import key_pair
from tests.store_contract import turns
from tests.test_server import (
    FULL_SIZE,
    INIT,
    KEPT,
    KEY,
    NEVER,
    OTHER_KEY,
    PATIENT,
    SOON,
    Node,
    Peer,
    authenticated,
    dialed,
    opened,
    serving,
)

THIRD_KEY = key_pair(0x33)

FRAME_OVERHEAD = 38
"""Bytes of a message on the wire beside its blob: type, length, and BOLT 8's own."""


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[structlog.typing.EventDict]]:
    """What the server told its operator."""
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as events:
        yield events


def door(**limits: object) -> Limits:
    """Patient limits, but for who may come in; nobody is exempt."""
    return replace(PATIENT, door=DoorLimits(**{"exempt": (), **limits}))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def limited(tmp_path: Path, limits: Limits) -> AsyncIterator[Node]:
    """A node on which no time passes as far as rates of arrivals go."""
    async with serving(tmp_path) as node:
        await nobody_is_connected(node)
        node.server.set_limits(limits)
        arrive = node.server.door.arrive
        node.server.door.arrive = lambda host, _now: arrive(host, 1000.0)  # type: ignore[method-assign,assignment]
        yield node
        node.server.set_limits(PATIENT)


async def nobody_is_connected(node: Node) -> None:
    while node.server.connections:
        await turns(node.store, 1)


@contextlib.asynccontextmanager
async def coming_from(node: Node, source: str) -> AsyncIterator[Peer]:
    """A connection from another loopback address, on which nothing was said yet."""
    address = node.address
    reader, writer = await asyncio.open_connection(
        address.host, address.port, local_addr=(source, 0)
    )
    try:
        yield Peer(reader, writer, Connection(KEY, remote_node_id=address.node_id))
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def is_let_in(peer: Peer) -> bool:
    """Whether act one is answered."""
    peer.writer.write(peer.connection.data_to_send())
    try:
        return len(await peer.reader.readexactly(50)) == 50
    except (asyncio.IncompleteReadError, ConnectionError):
        return False


def refusals(logged: list[structlog.typing.EventDict]) -> list[tuple[str, str]]:
    """Address and reason of each refusal in the log."""
    return [
        (event["address"], event["reason"])
        for event in logged
        if event["event"] == "connection_refused"
    ]


# Who may come in


async def test_an_address_that_is_too_fast_is_shed_and_its_neighbours_are_not(
    tmp_path: Path, logged: list[structlog.typing.EventDict]
) -> None:
    async with limited(tmp_path, door(handshakes_per_second_per_ip=2)) as node:
        for expected in (True, True, False, False):
            async with coming_from(node, "127.0.0.5") as peer:
                assert await is_let_in(peer) is expected
        async with coming_from(node, "127.0.0.6") as peer:
            assert await is_let_in(peer)
        assert refusals(logged) == [("127.0.0.5", "handshakes_per_ip")]
        assert node.server.tally.connections_refused["handshakes_per_ip"] == 2


async def test_a_network_that_is_too_fast_is_shed_and_others_are_not(tmp_path: Path) -> None:
    async with limited(tmp_path, door(handshakes_per_second_per_ip=1)) as node:
        for number in range(12):
            async with coming_from(node, f"127.0.5.{number + 1}") as peer:
                assert await is_let_in(peer) is (number < 10)
        async with coming_from(node, "127.0.6.1") as peer:
            assert await is_let_in(peer)


async def test_who_is_shed_costs_no_curve_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        limited(tmp_path, door(handshakes_per_second_per_ip=1)) as node,
        coming_from(node, "127.0.0.5") as peer,
    ):
        assert await is_let_in(peer)
        async with coming_from(node, "127.0.0.5") as shed:
            act_one = shed.connection.data_to_send()
            with monkeypatch.context() as patched:
                patched.setattr(server_module, "Connection", None)  # the first thing it would take
                shed.writer.write(act_one)
                assert await shed.bytes_until_closed() == b""


async def test_an_address_may_hold_so_many_connections(
    tmp_path: Path, logged: list[structlog.typing.EventDict]
) -> None:
    async with limited(tmp_path, door(max_connections_per_ip=2)) as node:
        async with (
            coming_from(node, "127.0.0.5") as first,
            coming_from(node, "127.0.0.5") as second,
        ):
            assert await is_let_in(first)
            assert await is_let_in(second)
            async with coming_from(node, "127.0.0.5") as third:
                assert not await is_let_in(third)
            async with coming_from(node, "127.0.0.6") as neighbour:
                assert await is_let_in(neighbour)
        await nobody_is_connected(node)
        async with coming_from(node, "127.0.0.5") as again:
            assert await is_let_in(again)
        assert refusals(logged) == [("127.0.0.5", "connections_per_ip")]


async def test_exempt_addresses_are_not_counted(tmp_path: Path) -> None:
    strict = DoorLimits(max_connections_per_ip=1, handshakes_per_second_per_ip=1)
    async with (
        limited(tmp_path, replace(PATIENT, door=strict)) as node,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(5):
            peer = await stack.enter_async_context(dialed(node))
            assert await is_let_in(peer)


async def test_the_most_crowded_network_gives_up_its_oldest_handshake(
    tmp_path: Path, logged: list[structlog.typing.EventDict]
) -> None:
    async with (
        limited(tmp_path, door(max_handshakes=3)) as node,
        coming_from(node, "127.0.5.1") as alone,
        coming_from(node, "127.0.6.1") as oldest,
        coming_from(node, "127.0.6.2") as newer,
        coming_from(node, "127.0.7.1") as newcomer,
    ):
        assert await oldest.bytes_until_closed() == b""
        for peer in (alone, newer, newcomer):
            assert await is_let_in(peer)
        assert refusals(logged) == [("127.0.6.1", "handshakes")]


async def test_a_handshake_that_is_done_needs_no_place(tmp_path: Path) -> None:
    async with (
        limited(tmp_path, door(max_handshakes=1)) as node,
        opened(node, KEY) as first,
        opened(node, OTHER_KEY) as second,
    ):
        for peer in (first, second):
            peer.say(Ping(0))
            assert await peer.hear_pong() == [Pong(b"")]
        assert len(node.server.places) == 0


@pytest.mark.parametrize(
    ("data", "limits", "reason"),
    [
        (bytes(50), PATIENT, "bad_handshake"),
        (b"\1", PATIENT, "bad_handshake"),
        (b"", Limits(SOON, PATIENT.session), "handshake_timeout"),
    ],
)
async def test_a_failed_handshake_is_logged_with_its_address(
    tmp_path: Path,
    logged: list[structlog.typing.EventDict],
    data: bytes,
    limits: Limits,
    reason: str,
) -> None:
    async with serving(tmp_path, limits) as node, coming_from(node, "127.0.0.5") as peer:
        peer.writer.write(data)
        assert await peer.bytes_until_closed() == b""
        assert refusals(logged) == [("127.0.0.5", reason)]


async def test_who_leaves_during_the_handshake_is_no_refusal(
    node: Node, logged: list[structlog.typing.EventDict]
) -> None:
    async with dialed(node) as peer:
        peer.writer.write_eof()
        assert await peer.bytes_until_closed() == b""
    assert refusals(logged) == []


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with serving(tmp_path) as node:
        yield node


# When all is full


async def answers(peer: Peer) -> bool:
    """Whether a peer is still served."""
    try:
        peer.say(Ping(0))
        return isinstance((await peer.hear_pong())[-1], Pong)
    except (AssertionError, ConnectionError):
        return False


async def test_the_idlest_stranger_gives_way_and_is_told(
    tmp_path: Path, logged: list[structlog.typing.EventDict]
) -> None:
    async with (
        limited(tmp_path, door(max_connections=2)) as node,
        opened(node, KEY) as first,
        opened(node, OTHER_KEY) as second,
    ):
        first.say(Ping(0))
        await first.hear_pong()
        async with opened(node, THIRD_KEY) as third:
            (warning,) = await second.hear_all()
            assert isinstance(warning, WarningMessage)
            assert "too many connections" in warning.text
            assert not warning.text.startswith("storage:")
            assert [await answers(first), await answers(third)] == [True, True]
        assert refusals(logged) == [("127.0.0.1", "full")]


@pytest.mark.parametrize("how", ["allowed", "established", "channel"])
async def test_who_is_known_does_not_give_way(tmp_path: Path, how: str) -> None:
    class Channels:
        answered = True

        def within(self, node_id: object, _visit: object) -> bool:
            return node_id == KEY.node_id

    async with limited(tmp_path, door(max_connections=2)) as node:
        if how == "allowed":
            node.server.set_policy(Policy(allow=frozenset({KEY.node_id})))
        elif how == "channel":
            node.server.set_policy(Policy(channels=Channels()))
        else:
            node.damage("UPDATE peer SET established = 1")
        async with (
            opened(node, KEY) as known,
            opened(node, OTHER_KEY) as stranger,
            opened(node, THIRD_KEY) as third,
        ):
            assert await answers(known)
            assert await answers(third)
            assert not await answers(stranger)


async def test_among_those_who_are_known_only_who_is_allowed_still_comes_in(
    tmp_path: Path,
) -> None:
    async with limited(tmp_path, door(max_connections=1)) as node:
        node.damage("UPDATE peer SET established = 1")
        async with (
            opened(node, KEY) as known,
            dialed(node, OTHER_KEY) as stranger,
        ):
            await stranger.shake_hands()
            stranger.say()
            assert await stranger.hear() is None
            node.server.set_policy(Policy(allow=frozenset({OTHER_KEY.node_id})))
            async with opened(node, OTHER_KEY) as allowed:
                assert await answers(allowed)
                assert await answers(known)


async def test_who_is_known_stays_when_the_policy_changes_while_there_are_too_many(
    tmp_path: Path,
) -> None:
    async with limited(tmp_path, door(max_connections=1)) as node:
        node.damage("UPDATE peer SET established = 1")
        allowing = Policy(allow=frozenset({OTHER_KEY.node_id}))
        node.server.set_policy(allowing)
        async with opened(node, KEY) as known, opened(node, OTHER_KEY) as allowed:
            node.server.set_policy(allowing)
            assert [await answers(known), await answers(allowed)] == [True, True]


async def test_a_lower_limit_sends_strangers_away_at_once(tmp_path: Path) -> None:
    async with (
        limited(tmp_path, PATIENT) as node,
        opened(node, KEY) as first,
        opened(node, OTHER_KEY) as second,
    ):
        node.server.set_limits(door(max_connections=1))
        assert [await answers(first), await answers(second)] == [False, True]


async def test_a_peer_that_comes_again_takes_the_place_of_its_older_connection(
    tmp_path: Path,
) -> None:
    async with limited(tmp_path, door(max_connections=1)) as node:
        node.damage("UPDATE peer SET established = 1")
        async with opened(node, KEY) as older, opened(node, KEY) as newer:
            assert await older.hear_all() == []
            assert await answers(newer)


async def test_who_becomes_known_while_it_is_here_no_longer_gives_way(tmp_path: Path) -> None:
    async with (
        limited(tmp_path, door(max_connections=2)) as node,
        opened(node, KEY) as first,
        opened(node, OTHER_KEY) as second,
    ):
        node.server.set_policy(Policy(allow=frozenset({KEY.node_id})))
        async with opened(node, THIRD_KEY):
            assert await answers(first)
            assert not await answers(second)
            node.server.set_policy(Policy())
        await nobody_but(node, 1)
        async with opened(node, OTHER_KEY), opened(node, THIRD_KEY):
            assert not await answers(first)


async def nobody_but(node: Node, count: int) -> None:
    while len(node.server.connections) > count:
        await turns(node.store, 1)


async def test_a_crowd_that_is_turned_away_is_cut_when_it_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LEAVING", 0)
    monkeypatch.setattr(server_module, "CLOSE_SECONDS", NEVER)
    async with limited(tmp_path, door(max_connections=1)) as node, opened(node, KEY) as first:
        node.server.leaving += 1  # another one that takes its time
        node.server.connections.add(None)  # type: ignore[arg-type]
        async with opened(node, OTHER_KEY):
            assert await first.bytes_until_closed() == b""
        node.server.connections.discard(None)
        node.server.leaving -= 1


# Out of descriptors


async def test_running_out_of_descriptors_is_survived_quietly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logged: list[structlog.typing.EventDict],
) -> None:
    """The pause ends by itself; meanwhile nothing turns in circles, and one line says why."""
    monkeypatch.setattr(server_module, "ACCEPT_PAUSE", SOON)
    calls = 0
    enough = asyncio.Event()

    def exhausted(_listener: socket.socket) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            enough.set()
        raise OSError(errno.EMFILE, "Too many open files")

    async with serving(tmp_path) as node, opened(node, OTHER_KEY) as idlest:
        accepted = socket.socket.accept
        monkeypatch.setattr(socket.socket, "accept", exhausted)
        async with dialed(node) as waiting:
            await enough.wait()
            # A stranger has given its descriptor up, for what it is worth.
            assert isinstance((await idlest.hear_all())[-1], WarningMessage)
            monkeypatch.setattr(socket.socket, "accept", accepted)
            assert await is_let_in(waiting)
        failed = [event for event in logged if event["event"] == "accept_failed"]
        assert [event["error"] for event in failed] == ["Too many open files"]


# One peer that wants much


async def test_pongs_beyond_the_budget_come_later_and_nobody_else_waits(tmp_path: Path) -> None:
    limits = replace(PATIENT, rates=Rates(pong_bytes=1 << 16))
    async with (
        serving(tmp_path, limits) as node,
        opened(node, KEY) as greedy,
        opened(node, OTHER_KEY) as modest,
    ):
        greedy.say(*[Ping(20_000)] * 50, PeerStorage(b"last"))
        for _ in range(3):
            modest.say(Ping(1))
            assert await modest.hear_pong() == [Pong(b"\0")]
        # A second's worth and one more at once, the next ones by and by: none is lost.
        connection = node.server.peers[KEY.node_id]
        assert connection._session is not None
        assert not connection._session.ready
        assert len([await greedy.hear() for _ in range(5)]) == 5


async def test_a_peer_with_a_name_is_not_held_back(tmp_path: Path) -> None:
    slow = Rates(commits=1, bytes=1, pong_bytes=1)
    async with serving(tmp_path) as node:
        node.server.set_limits(replace(PATIENT, rates=slow))
        node.server.set_policy(Policy(allow=frozenset({KEY.node_id})))
        async with opened(node, KEY) as peer:
            for number in range(20):
                peer.say(PeerStorage(bytes((number,)) * 60_000), Ping(60_000))
                assert await peer.hear_pong() == [Pong(bytes(60_000))]
        assert await node.given_back(KEY) == bytes((19,)) * 60_000


async def test_a_peer_that_sends_too_much_is_read_more_slowly(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, replace(PATIENT, rates=Rates(bytes=1 << 20))) as node,
        opened(node, KEY) as flood,
        opened(node, OTHER_KEY) as other,
    ):
        gossip = (258).to_bytes(2, "big") + bytes(60_000)
        flood.say(*[gossip] * 10)
        connection = node.server.peers[KEY.node_id]
        while connection._reading:
            await turns(node.store, 1)
        other.say(Ping(0))
        assert await other.hear_pong() == [Pong(b"")]
        flood.say(Ping(1))
        assert await flood.hear_pong() == [Pong(b"\0")]  # all the same, and reading goes on


async def test_updates_above_the_rate_are_merged_and_all_are_confirmed(tmp_path: Path) -> None:
    """Reading goes on: every ping is answered, and the newest is what is stored."""
    async with serving(tmp_path, replace(PATIENT, rates=Rates(commits=2))) as node:
        before = (await node.store.reader.meta()).last_revision
        async with opened(node, KEY) as peer:
            for number in range(200):
                peer.say(PeerStorage(number.to_bytes(2, "big") * 100))
            peer.say(Ping(0))
            assert await peer.hear_pong() == [Pong(b"")]
        assert await node.given_back(KEY) == (199).to_bytes(2, "big") * 100
        commits = (await node.store.reader.meta()).last_revision - before
        assert commits <= 3


async def test_a_peer_that_reconnects_does_not_wait_for_its_next_turn(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, replace(PATIENT, rates=Rates(commits=1))) as node,
        opened(node, KEY) as peer,
    ):
        peer.say(PeerStorage(b"one"), Ping(0))
        await peer.hear_pong()
        peer.say(PeerStorage(b"two"))
        while node.store._paced == {}:
            await turns(node.store, 1)
        async with opened_again(node, KEY) as retrieval:
            assert retrieval == PeerStorageRetrieval(b"two")


@contextlib.asynccontextmanager
async def opened_again(node: Node, key: object) -> AsyncIterator[object]:
    """What comes behind `init` on a newer connection."""
    async with dialed(node, key) as peer:  # type: ignore[arg-type]
        await peer.shake_hands()
        peer.say(INIT)
        assert await peer.hear() == INIT
        yield await peer.hear()


async def test_a_peer_that_does_not_read_holds_its_own_buffer_alone(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, PATIENT) as node,
        opened(node, KEY) as deaf,
        opened(node, OTHER_KEY) as other,
    ):
        deaf.transport.pause_reading()
        deaf.say(*[Ping(60_000)] * 200)
        connection = node.server.peers[KEY.node_id]
        while connection._writable:
            await turns(node.store, 1)
        other.say(PeerStorage(b"mine"), Ping(0))
        assert await other.hear_pong() == [Pong(b"")]
        held = connection._transport.get_write_buffer_size() + connection._connection.outgoing
        assert held < 4 * server_module.WRITE_AHEAD
        deaf.transport.resume_reading()
        for _ in range(200):
            assert isinstance(await deaf.hear(), Pong)


async def test_replays_to_many_deaf_peers_hold_one_message_each(tmp_path: Path) -> None:
    """All come back at once and none reads: what waits for each is its own replay, no more."""
    keys = [KeyPair.generate() for _ in range(50)]
    async with serving(tmp_path, PATIENT) as node:
        for key in keys:
            await node.keep(key, bytes(FULL_SIZE))
        await nobody_is_connected(node)
        async with contextlib.AsyncExitStack() as stack:
            for key in keys:
                peer = await stack.enter_async_context(authenticated(node, key))
                peer.transport.pause_reading()
                # Behind the replay it asks for more than any kernel takes off our hands.
                peer.say(INIT, *[Ping(60_000)] * 200)
            connections = [*node.server.peers.values()]
            while any(each._writable for each in connections):
                await turns(node.store, 1)
            held = [
                each._transport.get_write_buffer_size() + each._connection.outgoing
                for each in connections
            ]
            # What was being written when it was full, and the pongs of one flush.
            assert max(held) <= WRITE_AHEAD + 2 * (FULL_SIZE + FRAME_OVERHEAD)
            assert await node.given_back(KEY) == KEPT


# What the configuration has


def test_every_limit_of_the_configuration_is_one_of_the_servers(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        """[limits]
max_connections = 1001
max_connections_per_ip = 102
handshakes_per_second_per_ip = 103
max_handshakes = 104
exempt_networks = ["192.0.2.0/24", "2001:db8::/32"]
handshake_timeout = "6s"
init_timeout = "7s"
idle_timeout = "80s"
commits_per_second = 109
bytes_per_second = "110MiB"
pong_bytes_per_second = "111KiB"
"""
    )
    config = load(tmp_path, None, {}).config
    keys = {field.name for field in msgspec.structs.fields(type(config.limits))}
    assert keys == set(tomllib.loads(file.read_text())["limits"])
    assert limits_of(config) == Limits(
        handshake=6.0,
        session=Timeouts(init=7.0, ping=40.0, idle=80.0),
        door=DoorLimits(
            max_connections=1001,
            max_connections_per_ip=102,
            handshakes_per_second_per_ip=103,
            max_handshakes=104,
            exempt=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")),
        ),
        rates=Rates(commits=109, bytes=110 << 20, pong_bytes=111 << 10),
    )


async def test_the_exempt_networks_are_those_of_the_limits(tmp_path: Path) -> None:
    exempt = DoorLimits(handshakes_per_second_per_ip=1, exempt=(ip_network("127.0.5.0/24"),))
    async with limited(tmp_path, replace(PATIENT, door=exempt)) as node:
        for source, expected in (("127.0.5.1", True), ("127.0.6.1", False)):
            for number in range(3):
                async with coming_from(node, source) as peer:
                    assert await is_let_in(peer) is (expected or number == 0)
