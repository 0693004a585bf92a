"""Peers that are kept connected: when they are dialed, and when they are left alone.

Most tests here have a server without sockets and a clock that the test moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from peerstore.dialer import (
    DIALS_AT_ONCE,
    ENDED_EARLY,
    LONGEST_PAUSE_SECONDS,
    Clock,
    Dialer,
    Kept,
    Link,
    _wait,
)
from peerstore.errors import DialError, HopelessDialError
from peerstore.server import PeerConnection
from peerstore.types import NodeAddress, NodeId
from peerstore.wire.messages import PeerStorage, PeerStorageRetrieval, Ping
from tests.helpers import key_pair
from tests.store_contract import turns
from tests.test_dial import another, dead_port, scripted, shake_hands
from tests.test_server import INIT, KEPT, KEY, Node, Peer, opened, serving

HOUR, DAY = 3600.0, 86400.0
ALICE, BOB = (NodeAddress(key_pair(fill).node_id, "192.0.2.1", fill) for fill in (0x41, 0x42))
ALICE_ONION = NodeAddress(ALICE.node_id, "a.onion", 9735)


class FakeLink:
    """A connection without a socket."""

    def __init__(self, *, inbound: bool, opened_at: float) -> None:
        self.inbound = inbound
        self.opened_at = opened_at

    def describe(self) -> dict[str, Any]:
        return {"inbound": self.inbound}


class World:
    """Time, chance, and peers that can be reached or not."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.chance = 0.0
        self.dials: list[tuple[float, NodeAddress]] = []
        """When which address was dialed; times count from the start."""
        self.links: dict[NodeId, FakeLink] = {}
        self.errors: dict[NodeAddress, Exception] = {}
        """The addresses that can't be reached."""
        self.hangs_up = False
        """Whether peers end a connection as soon as it is made."""
        self.hold: asyncio.Event | None = None
        """What dials wait for."""
        self.peer_changed: Callable[[NodeId], None] = lambda _: None
        self._timers: list[tuple[float, asyncio.Future[None]]] = []

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, lambda: self.chance, self._wait)

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        timer = (self.now + seconds, asyncio.get_running_loop().create_future())
        waiter = asyncio.create_task(event.wait())
        self._timers.append(timer)
        try:
            await asyncio.wait((timer[1], waiter), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
            self._timers.remove(timer)

    async def settle(self) -> None:
        """Let everybody do what can be done now."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def go(self, seconds: float) -> None:
        """Let time pass."""
        await self.settle()
        end = self.now + seconds
        while self._timers and (first := min(self._timers, key=lambda timer: timer[0]))[0] <= end:
            self.now = first[0]
            first[1].set_result(None)
            await self.settle()
        self.now = end

    # The server

    async def dial(self, address: NodeAddress, *, renew: bool = False) -> Link:
        self.dials.append((round(self.now - 1000, 3), address))
        if self.hold is not None:
            await self.hold.wait()
        if address in self.errors:
            raise self.errors[address]
        there = self.links.get(address.node_id)
        if there is not None and not renew:
            return there
        link = FakeLink(inbound=False, opened_at=self.now)
        self.links[address.node_id] = link
        self.peer_changed(address.node_id)
        if self.hangs_up:
            self.end(address.node_id)
        return link

    def connected(self, node_id: NodeId) -> Link | None:
        return self.links.get(node_id)

    # The peers

    def come(self, node_id: NodeId) -> None:
        """A peer connects by itself."""
        self.links[node_id] = FakeLink(inbound=True, opened_at=self.now)
        self.peer_changed(node_id)

    def end(self, node_id: NodeId) -> None:
        """A connection ends."""
        del self.links[node_id]
        self.peer_changed(node_id)

    def can_not_reach(self, *addresses: NodeAddress) -> None:
        for address in addresses:
            self.errors[address] = DialError(f"{address}: can't connect: refused")

    @property
    def times(self) -> list[float]:
        """When was dialed, in seconds from the start."""
        return [when for when, _ in self.dials]

    def take_dials(self) -> list[tuple[float, NodeAddress]]:
        dials, self.dials = self.dials, []
        return dials


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def dialer(world: World) -> AsyncIterator[Dialer]:
    dialer = Dialer(world, world.clock)
    yield dialer
    await dialer.close()


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[structlog.typing.EventDict]]:
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as events:
        yield events


# When there is no connection


async def test_a_peer_is_dialed_once_and_then_left_in_peace(world: World, dialer: Dialer) -> None:
    dialer.configure([ALICE, BOB], 0)
    await world.go(30 * DAY)
    assert world.dials == [(0, ALICE), (0, BOB)]


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.5), (0.5, 0.75), (1 - 1e-12, 1.0)])
async def test_failures_double_the_pause_up_to_ten_minutes_with_jitter(
    world: World, dialer: Dialer, chance: float, share: float
) -> None:
    world.chance = chance
    world.can_not_reach(ALICE)
    dialer.configure([ALICE], DAY)
    await world.go(2 * HOUR)
    pauses = [later - earlier for earlier, later in zip(world.times, world.times[1:], strict=False)]
    doubling = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]
    assert world.times[0] == 0
    assert pauses[:12] == pytest.approx([share * pause for pause in doubling], abs=0.01)


async def test_a_peer_that_could_not_be_reached_for_a_week_is_still_tried(
    world: World, dialer: Dialer
) -> None:
    world.can_not_reach(ALICE)
    dialer.configure([ALICE], DAY)
    await world.go(7 * DAY)
    assert len(world.dials) > 1024  # 2.0 to that power is no float
    world.errors.clear()
    await world.go(LONGEST_PAUSE_SECONDS)
    assert ALICE.node_id in world.links
    # The next pause is a short one again.
    await world.go(60)
    world.end(ALICE.node_id)
    world.take_dials()
    await world.go(1)
    assert len(world.dials) == 1


async def test_a_peer_that_hangs_up_is_not_dialed_in_a_loop(
    world: World, dialer: Dialer, logged: list[structlog.typing.EventDict]
) -> None:
    world.hangs_up = True
    dialer.configure([ALICE], DAY)
    await world.go(63)
    assert world.times == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert [event["event"] for event in logged] == ["dialed", "dial_failed"]
    assert logged[1]["error"] == ENDED_EARLY


@pytest.mark.parametrize(("seconds", "pause"), [(59.9, 2.0), (60.0, 0.5)])
async def test_only_a_connection_that_lasted_a_minute_makes_the_pause_short_again(
    world: World, dialer: Dialer, seconds: float, pause: float
) -> None:
    world.can_not_reach(ALICE)
    dialer.configure([ALICE], DAY)
    await world.go(1.0)
    world.errors.clear()
    await world.go(0.5)
    assert world.times == [0, 0.5, 1.5]
    await world.go(seconds)
    world.end(ALICE.node_id)
    ended = world.now - 1000
    await world.go(10)
    assert world.times[3:] == [pytest.approx(ended + pause, abs=0.01)]


async def test_a_connection_from_the_other_side_is_enough(world: World, dialer: Dialer) -> None:
    world.come(ALICE.node_id)
    dialer.configure([ALICE], 1.0)
    await world.go(DAY)
    world.come(ALICE.node_id)  # again, in place of the first
    await world.go(DAY)
    assert world.dials == []
    world.end(ALICE.node_id)
    await world.go(0.4)
    assert world.dials == []
    await world.go(0.1)
    assert world.times == [2 * DAY + 0.5]


async def test_who_comes_by_itself_during_a_pause_is_not_dialed(
    world: World, dialer: Dialer
) -> None:
    world.can_not_reach(ALICE)
    dialer.configure([ALICE], DAY)
    await world.go(10)
    world.take_dials()
    world.come(ALICE.node_id)
    await world.go(HOUR)
    assert world.dials == []


async def test_who_stayed_a_while_during_a_long_pause_is_dialed_soon_after(
    world: World, dialer: Dialer
) -> None:
    world.can_not_reach(ALICE)
    dialer.configure([ALICE], DAY)
    await world.go(HOUR)
    world.take_dials()
    world.come(ALICE.node_id)
    await world.go(60)
    world.end(ALICE.node_id)
    await world.go(0.5)
    assert world.times == [HOUR + 60.5]


async def test_who_comes_and_goes_during_a_pause_does_not_make_it_shorter(
    world: World, dialer: Dialer
) -> None:
    world.can_not_reach(ALICE)
    dialer.configure([ALICE], DAY)
    await world.go(3.5)
    assert world.take_dials()[-1] == (3.5, ALICE)  # the next would be at 7.5
    for _ in range(6):
        world.come(ALICE.node_id)
        world.end(ALICE.node_id)
        await world.go(0.5)
    assert world.dials == []


async def test_several_addresses_of_a_peer_are_tried_in_their_order(
    world: World, dialer: Dialer, logged: list[structlog.typing.EventDict]
) -> None:
    world.can_not_reach(ALICE, ALICE_ONION)
    dialer.configure([ALICE, BOB, ALICE_ONION], DAY)
    await world.go(0.5)
    assert [dial for dial in world.take_dials() if dial[1] != BOB] == [
        (when, address) for when in (0, 0.5) for address in (ALICE, ALICE_ONION)
    ]
    (failed,) = [event for event in logged if event["event"] == "dial_failed"]
    assert failed["addresses"] == [f"{ALICE.host}:{ALICE.port}", "a.onion:9735"]
    assert str(ALICE) in failed["error"]
    assert str(ALICE_ONION) in failed["error"]
    del world.errors[ALICE_ONION]
    await world.go(1)
    assert ALICE.node_id in world.links
    assert logged[-1] == {
        "event": "dialed",
        "log_level": "info",
        "node_id": ALICE.node_id.hex(),
        "address": "a.onion:9735",
        "renewed": False,
    }


async def test_what_can_never_be_dialed_is_said_once_and_not_tried_again(
    world: World, dialer: Dialer, logged: list[structlog.typing.EventDict]
) -> None:
    world.errors[ALICE] = HopelessDialError(f"{ALICE} is this node itself")
    dialer.configure([ALICE], DAY)
    await world.go(DAY)
    assert world.times == [0]
    assert [(event["event"], event["error"], event["retry_seconds"]) for event in logged] == [
        ("dial_failed", f"{ALICE} is this node itself", None)
    ]
    (kept,) = dialer.kept()
    assert "itself" in kept.error


async def test_a_mistake_of_ours_does_not_end_the_keeping(
    world: World, dialer: Dialer, logged: list[structlog.typing.EventDict]
) -> None:
    world.errors[ALICE] = RuntimeError("a mistake")
    dialer.configure([ALICE], DAY)
    await world.settle()
    assert [event["event"] for event in logged] == ["dial_broken", "dial_failed"]
    world.errors.clear()
    await world.go(1)
    assert ALICE.node_id in world.links


async def test_a_crowd_of_peers_is_not_dialed_all_at_once(world: World, dialer: Dialer) -> None:
    world.hold = asyncio.Event()
    peers = [
        NodeAddress(NodeId(b"\x02" + bytes((n,)) * 32), "h", 1) for n in range(DIALS_AT_ONCE + 5)
    ]
    dialer.configure(peers, DAY)
    await world.settle()
    assert len(world.dials) == DIALS_AT_ONCE
    world.hold.set()
    await world.settle()
    assert len(world.links) == len(peers)


# Renewal


@pytest.mark.parametrize(("chance", "age"), [(0.0, DAY), (0.5, 0.95 * DAY), (1 - 1e-12, 0.9 * DAY)])
async def test_a_connection_that_we_dialed_is_renewed_when_it_is_old(
    world: World, dialer: Dialer, chance: float, age: float
) -> None:
    world.chance = chance
    dialer.configure([ALICE], DAY)
    await world.go(3.5 * age)
    assert world.times == pytest.approx([0, age, 2 * age, 3 * age], abs=0.01)


async def test_a_renewed_connection_is_a_new_one_and_is_logged(
    world: World, dialer: Dialer, logged: list[structlog.typing.EventDict]
) -> None:
    dialer.configure([ALICE], DAY)
    await world.settle()
    first = world.links[ALICE.node_id]
    await world.go(DAY)
    assert world.links[ALICE.node_id] is not first
    assert [(event["event"], event["renewed"]) for event in logged] == [
        ("dialed", False),
        ("dialed", True),
    ]


async def test_a_renewal_that_fails_leaves_the_connection_and_is_tried_again(
    world: World, dialer: Dialer, logged: list[structlog.typing.EventDict]
) -> None:
    dialer.configure([ALICE], DAY)
    await world.settle()
    first = world.links[ALICE.node_id]
    world.can_not_reach(ALICE)
    await world.go(DAY + 4)
    assert world.times == [0, DAY, DAY + 0.5, DAY + 1.5, DAY + 3.5]
    assert world.links[ALICE.node_id] is first
    assert [event["event"] for event in logged] == ["dialed", "dial_failed"]
    assert dialer.kept() == [Kept(ALICE.node_id, (ALICE,), "")]  # it is connected
    world.errors.clear()
    await world.go(10)
    assert world.times[5:] == [DAY + 7.5]
    second = world.links[ALICE.node_id]
    assert second is not first
    await world.go(DAY - 3)
    assert world.times[6:] == [DAY + 7.5 + DAY]


async def test_a_peer_that_has_connected_itself_meanwhile_is_not_renewed(
    world: World, dialer: Dialer
) -> None:
    dialer.configure([ALICE], DAY)
    await world.go(DAY - 1)
    world.come(ALICE.node_id)
    await world.go(3 * DAY)
    assert world.times == [0]


async def test_who_connects_itself_between_two_addresses_is_not_dialed_at_the_second(
    world: World, dialer: Dialer
) -> None:
    dialer.configure([ALICE, ALICE_ONION], DAY)
    await world.go(DAY - 1)
    world.can_not_reach(ALICE)
    world.hold = asyncio.Event()
    await world.go(1)
    world.come(ALICE.node_id)
    world.hold.set()
    await world.go(DAY)
    assert [address for _, address in world.dials] == [ALICE, ALICE]
    assert world.links[ALICE.node_id].inbound


# What is logged


async def test_the_same_failure_is_logged_once_an_hour(
    world: World, dialer: Dialer, logged: list[structlog.typing.EventDict]
) -> None:
    world.can_not_reach(ALICE)
    dialer.configure([ALICE], DAY)
    await world.settle()
    assert logged == [
        {
            "event": "dial_failed",
            "log_level": "warning",
            "node_id": ALICE.node_id.hex(),
            "addresses": [f"{ALICE.host}:{ALICE.port}"],
            "error": f"{ALICE}: can't connect: refused",
            "retry_seconds": 0.5,
        }
    ]
    await world.go(24 * HOUR)
    assert 20 <= len(logged) <= 25
    logged.clear()
    world.errors[ALICE] = DialError("something else")
    await world.go(LONGEST_PAUSE_SECONDS)
    assert [event["error"] for event in logged] == ["something else"]


async def test_a_failure_after_a_success_is_logged_again(
    world: World, dialer: Dialer, logged: list[structlog.typing.EventDict]
) -> None:
    dialer.configure([ALICE], DAY)
    for _ in range(2):
        world.can_not_reach(ALICE)
        await world.go(1)
        world.errors.clear()
        await world.go(60)
        if ALICE.node_id in world.links:
            await world.go(60)
            world.end(ALICE.node_id)
    assert [event["event"] for event in logged[:4]] == ["dial_failed", "dialed"] * 2


async def test_who_was_found_connected_was_not_dialed(
    world: World, dialer: Dialer, logged: list[structlog.typing.EventDict]
) -> None:
    world.hold = asyncio.Event()
    dialer.configure([ALICE], DAY)
    await world.settle()
    world.come(ALICE.node_id)
    world.hold.set()
    await world.settle()
    assert logged == []


# peers connect, peers disconnect


async def test_who_was_connected_by_command_is_kept_from_then_on(
    world: World, dialer: Dialer
) -> None:
    link = await dialer.connect(ALICE)
    assert link is world.links[ALICE.node_id]
    assert dialer.kept() == [Kept(ALICE.node_id, (ALICE,), "")]
    await world.go(60)
    world.end(ALICE.node_id)
    await world.go(1)
    assert world.times == [0, 60.5]
    dialer.configure([], 0)  # a reload takes nothing of it back
    await world.go(DAY)
    world.end(ALICE.node_id)
    await world.go(1)
    assert world.times == [0, 60.5, DAY + 61.5]


async def test_who_could_not_be_connected_by_command_is_not_kept(
    world: World, dialer: Dialer
) -> None:
    world.can_not_reach(ALICE)
    with pytest.raises(DialError, match="refused"):
        await dialer.connect(ALICE)
    assert dialer.kept() == []
    await world.go(DAY)
    assert world.times == [0]


async def test_a_command_that_failed_takes_nothing_away(world: World, dialer: Dialer) -> None:
    world.can_not_reach(ALICE, ALICE_ONION)
    dialer.configure([ALICE], DAY)
    await world.go(10)
    world.take_dials()
    with pytest.raises(DialError):
        await dialer.connect(ALICE_ONION)
    await world.settle()
    assert world.take_dials() == [(10, ALICE_ONION), (10, ALICE)]
    assert [kept.addresses for kept in dialer.kept()] == [(ALICE,)]


async def test_the_address_of_a_command_comes_first(world: World, dialer: Dialer) -> None:
    dialer.configure([ALICE], DAY)
    await dialer.connect(ALICE_ONION)
    (kept,) = dialer.kept()
    assert kept.addresses == (ALICE_ONION, ALICE)
    await dialer.connect(ALICE)
    (kept,) = dialer.kept()
    assert kept.addresses == (ALICE,)


async def test_a_command_does_not_wait_for_the_dial_that_is_under_way(
    world: World, dialer: Dialer
) -> None:
    world.hold = asyncio.Event()
    dialer.configure([ALICE], DAY)
    await world.settle()
    assert world.dials == [(0, ALICE)]
    world.hold = None
    assert await dialer.connect(ALICE_ONION) is world.links[ALICE.node_id]


async def test_who_is_disconnected_by_command_is_left_alone(world: World, dialer: Dialer) -> None:
    await dialer.connect(ALICE)
    assert dialer.leave_alone(ALICE.node_id)
    assert dialer.kept() == []
    world.end(ALICE.node_id)
    await world.go(DAY)
    assert world.times == [0]
    assert not dialer.leave_alone(ALICE.node_id)


async def test_a_peer_that_is_not_connected_can_be_left_alone_too(
    world: World, dialer: Dialer
) -> None:
    world.hold = asyncio.Event()
    dialer.configure([ALICE], DAY)
    await world.settle()
    assert dialer.leave_alone(ALICE.node_id)
    await world.settle()
    world.hold.set()
    await world.go(DAY)
    assert world.links == {}
    assert world.times == [0]


@pytest.mark.parametrize("how", ["connect", "configure"])
async def test_a_configured_peer_is_left_alone_until_it_is_wanted_again(
    world: World, dialer: Dialer, how: str
) -> None:
    dialer.configure([ALICE], DAY)
    await world.go(60)
    dialer.leave_alone(ALICE.node_id)
    world.end(ALICE.node_id)
    await world.go(DAY)
    assert world.take_dials() == [(0, ALICE)]
    if how == "connect":
        await dialer.connect(ALICE)
    else:
        dialer.configure([ALICE], DAY)
    await world.go(60)
    world.end(ALICE.node_id)
    await world.go(1)
    assert len(world.take_dials()) == 2


# Another configuration


async def test_new_peers_are_dialed_and_others_are_kept_no_longer(
    world: World, dialer: Dialer
) -> None:
    dialer.configure([ALICE], DAY)
    await world.go(60)
    dialer.configure([BOB], DAY)
    await world.settle()
    assert world.take_dials() == [(0, ALICE), (60, BOB)]
    assert world.links.keys() == {ALICE.node_id, BOB.node_id}
    world.end(ALICE.node_id)
    await world.go(DAY - 1)
    assert world.dials == []


async def test_whoever_is_waited_for_is_tried_at_once(world: World, dialer: Dialer) -> None:
    world.can_not_reach(ALICE)
    dialer.configure([ALICE], DAY)
    await world.go(HOUR)
    world.take_dials()
    dialer.configure([ALICE], DAY)
    await world.go(0.5)
    assert world.times == [HOUR, HOUR + 0.5]


@pytest.mark.parametrize(("refresh", "times"), [(0, []), (HOUR, [2 * HOUR, 3 * HOUR])])
async def test_another_refresh_is_for_connections_that_are_there_too(
    world: World, dialer: Dialer, refresh: float, times: list[float]
) -> None:
    dialer.configure([ALICE], DAY)
    await world.go(2 * HOUR)
    world.take_dials()
    dialer.configure([ALICE], refresh)
    await world.go(1.5 * HOUR)
    assert world.times == times


async def test_after_the_close_nobody_is_dialed(world: World, dialer: Dialer) -> None:
    world.hold = asyncio.Event()
    dialer.configure([ALICE, BOB], DAY)
    await world.settle()
    world.take_dials()
    await dialer.close()
    world.hold.set()
    dialer.configure([ALICE, BOB], DAY)
    await world.go(DAY)
    assert world.dials == []
    assert world.links == {}


async def test_a_wait_ends_with_the_event_or_the_time() -> None:
    event = asyncio.Event()
    await _wait(event, 0.001)
    event.set()
    await _wait(event, math.inf)


@pytest.mark.parametrize("turns_of_the_loop", range(4))
async def test_a_wait_that_is_about_to_end_can_be_cancelled(turns_of_the_loop: int) -> None:
    event = asyncio.Event()
    task = asyncio.create_task(_wait(event, 1000.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    event.set()
    for _ in range(turns_of_the_loop):
        await asyncio.sleep(0)
    # Python 3.11's wait_for would forget of it.
    if task.cancel():
        with pytest.raises(asyncio.CancelledError):
            await task


# Over sockets; pauses are cut short


HURRY = Clock(wait=lambda event, seconds: _wait(event, seconds / 50))
"""A clock that lets nobody wait long."""


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node that keeps KEPT for KEY."""
    async with serving(tmp_path) as node:
        yield node


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Node]:
    """Another one, whose key is KEY."""
    async with another(tmp_path) as node:
        yield node


@contextlib.asynccontextmanager
async def dialing(
    node: Node, *addresses: NodeAddress, clock: Clock = HURRY
) -> AsyncIterator[Dialer]:
    dialer = Dialer(node.server, clock)
    dialer.configure(addresses, DAY)
    try:
        yield dialer
    finally:
        await dialer.close()


class Changes:
    """Wakes a test whenever something has changed with a peer of a node."""

    def __init__(self, node: Node) -> None:
        self._server = node.server
        self._event = asyncio.Event()
        told = node.server.peer_changed

        def changed(node_id: NodeId) -> None:
            told(node_id)
            self._event.set()

        node.server.peer_changed = changed

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._event.clear()
            await self._event.wait()


async def test_a_peer_is_dialed_again_when_it_has_closed(node: Node, other: Node) -> None:
    async with dialing(node, other.address):
        changes = Changes(other)
        seen = []
        for _ in range(3):
            await changes.until(lambda: bool(other.server.peers))
            (theirs,) = other.server.peers.values()
            seen.append(theirs)
            assert theirs.inbound
            theirs.close("enough")
            await changes.until(lambda: not other.server.peers)
        assert len(set(seen)) == 3


async def test_a_peer_that_was_not_there_is_dialed_until_it_is(
    node: Node, tmp_path: Path, logged: list[structlog.typing.EventDict]
) -> None:
    port = dead_port()
    async with dialing(node, NodeAddress(KEY.node_id, "127.0.0.1", port)) as dialer:
        changes = Changes(node)
        while not any(event["event"] == "dial_failed" for event in logged):
            await turns(node.store, 1)
        (kept,) = dialer.kept()
        assert "can't connect" in kept.error
        async with another(tmp_path) as other:
            await other.server.listen([("127.0.0.1", port)])
            await changes.until(lambda: KEY.node_id in node.server.peers)
            (kept,) = dialer.kept()
            assert kept.error == ""


async def test_a_connection_that_a_peer_has_made_is_left_as_it_is(node: Node) -> None:
    nobody = NodeAddress(KEY.node_id, "127.0.0.1", dead_port())
    async with opened(node) as peer:
        (there,) = node.server.connections
        async with dialing(node, nobody) as dialer:
            assert await dialer.connect(nobody) is there
            assert await node.given_back(key_pair(0x33)) is None  # time for a dial, if there were
            assert node.server.connected(KEY.node_id) is there
            assert dialer.kept()[0].error == ""
            peer.writer.close()


async def test_a_renewal_leaves_no_gap_and_the_peer_is_served_on_the_newer_connection(
    node: Node,
) -> None:
    now = node.server.loop.time()
    given_back: list[bytes] = []
    heard = asyncio.Event()

    async def script(peer: Peer) -> None:
        await shake_hands(peer)
        peer.say(INIT, PeerStorage(b"stored %d" % len(given_back)), Ping(0))
        _init, retrieval, _pong = await peer.hear_pong()
        assert isinstance(retrieval, PeerStorageRetrieval)
        given_back.append(retrieval.blob)
        heard.set()
        await peer.hear_all()

    clock = Clock(lambda: now, lambda: 0.0)
    async with scripted(script) as address, dialing(node, address, clock=clock):
        told, gaps = node.server.peer_changed, []

        def changed(node_id: NodeId) -> None:
            told(node_id)
            gaps.append(node.server.connected(node_id) is None)

        node.server.peer_changed = changed
        for _ in range(3):
            await heard.wait()
            heard.clear()
            connection = node.server.connected(KEY.node_id)
            assert connection is not None
            now = connection.opened_at + DAY
            node.server.peer_changed(KEY.node_id)  # it looks at the clock again
        await heard.wait()
        assert gaps
        assert not any(gaps)
        connection = node.server.connected(KEY.node_id)
        assert connection is not None
        assert not connection.inbound
        connection.close("enough")
        while node.server.connections:
            await turns(node.store, 1)
    assert given_back == [KEPT, b"stored 0", b"stored 1", b"stored 2"]


async def test_two_nodes_that_dial_each_other_come_to_rest(node: Node, other: Node) -> None:
    def ends() -> list[PeerConnection | None]:
        return [
            node.server.connected(other.server.key.node_id),
            other.server.connected(node.server.key.node_id),
        ]

    async with dialing(node, other.address), dialing(other, node.address):
        calm, before = 0, ends()
        while calm < 100:
            await turns(node.store, 1)
            now = ends()
            calm = calm + 1 if now == before and all(end and end.met for end in now) else 0
            before = now
        assert len(node.server.connections) == len(other.server.connections) == 1
        one, two = now
        assert one is not None
        assert two is not None
        assert one.inbound is not two.inbound
