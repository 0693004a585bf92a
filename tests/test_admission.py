"""Who may come in: addresses and their groups, rates, places for handshakes, what is logged."""

from __future__ import annotations

import itertools
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstore.addresses import group_of, holder_of, parse_ip
from peerstore.admission import (
    LINES_PER_SECOND,
    Door,
    DoorLimits,
    Origin,
    Places,
    RefusalLog,
    fitting,
)
from tests.helpers import quick

# Addresses


@pytest.mark.parametrize(
    ("host", "holder", "group"),
    [
        ("203.0.113.5", "203.0.113.5", "203.0.113.0/24"),
        ("1.0.0.0", "1.0.0.0", "1.0.0.0/24"),
        ("255.255.255.255", "255.255.255.255", "255.255.255.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("2001:0DB8:1:2::", "2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("::1", "::/64", "::/48"),
        ("fe80::1%eth0", "fe80::/64", "fe80::/48"),
        ("::ffff:203.0.113.5", "203.0.113.5", "203.0.113.0/24"),
    ],
)
def test_an_address_has_a_holder_and_a_group(host: str, holder: str, group: str) -> None:
    address = parse_ip(host)
    assert address is not None
    assert (holder_of(address), group_of(address)) == (holder, group)


@pytest.mark.parametrize("host", ["", "example.com", "203.0.113", "203.0.113.5:9735", "::g"])
def test_what_is_no_ip_address_has_none(host: str) -> None:
    assert parse_ip(host) is None


@given(st.ip_addresses())
@quick
def test_every_address_is_in_its_group(address: object) -> None:
    parsed = parse_ip(str(address))
    assert parsed is not None
    assert parsed in ip_network(group_of(parsed))
    if parsed.version == 6:
        assert ip_network(holder_of(parsed)).subnet_of(ip_network(group_of(parsed)))  # type: ignore[arg-type]


# The door


def door(**limits: object) -> Door:
    """A door without exemptions."""
    return Door(DoorLimits(**{"exempt": (), **limits}))  # type: ignore[arg-type]


def arrivals(door: Door, hosts: list[str], now: float = 0.0) -> list[str]:
    """ "" for each that came in, else why it did not."""
    came = [door.arrive(host, now) for host in hosts]
    return [each if isinstance(each, str) else "" for each in came]


def test_an_address_may_make_so_many_handshakes_a_second() -> None:
    limits = door(handshakes_per_second_per_ip=20)
    assert arrivals(limits, ["192.0.2.1"] * 21) == [""] * 20 + ["handshakes_per_ip"]
    # A twentieth of a second later there is one more, and after a second as many as before.
    assert arrivals(limits, ["192.0.2.1"] * 2, 0.05) == ["", "handshakes_per_ip"]
    assert arrivals(limits, ["192.0.2.1"] * 21, 1.05) == [""] * 20 + ["handshakes_per_ip"]


def test_who_is_too_fast_takes_nothing_from_neighbours_or_from_itself_later() -> None:
    limits = door(handshakes_per_second_per_ip=1)
    assert arrivals(limits, ["192.0.2.1"] * 1000)[1:] == ["handshakes_per_ip"] * 999
    assert arrivals(limits, [f"192.0.2.{n}" for n in range(2, 11)]) == [""] * 9
    assert arrivals(limits, ["192.0.2.1"], 1.0) == [""]


@pytest.mark.parametrize("host", ["192.0.2.{}", "2001:db8:7:{}::1"], ids=["IPv4 /24", "IPv6 /48"])
def test_a_group_may_make_ten_times_as_many(host: str) -> None:
    limits = door(handshakes_per_second_per_ip=2)
    crowd = [host.format(n) for n in range(30)]
    assert arrivals(limits, crowd) == [""] * 20 + ["handshakes_per_group"] * 10
    assert arrivals(limits, ["198.51.100.1", "2001:db8:8::1"]) == ["", ""]


def test_the_addresses_of_a_64_are_one() -> None:
    limits = door(handshakes_per_second_per_ip=1)
    hosts = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
    assert arrivals(limits, hosts) == ["", "handshakes_per_ip", ""]


def test_an_address_may_have_so_many_connections() -> None:
    limits = door(max_connections_per_ip=2)
    first = limits.arrive("192.0.2.1", 0.0)
    assert isinstance(first, Origin)
    assert arrivals(limits, ["192.0.2.1"] * 2 + ["192.0.2.2"]) == ["", "connections_per_ip", ""]
    limits.leave(first.holder)
    assert arrivals(limits, ["192.0.2.1"] * 2) == ["", "connections_per_ip"]


def test_exempt_networks_come_in_as_they_like() -> None:
    limits = Door(DoorLimits(max_connections_per_ip=1, handshakes_per_second_per_ip=1))
    for host in ("127.0.0.1", "127.255.0.1", "::1", "::ffff:127.0.0.1"):
        assert arrivals(limits, [host] * 300) == [""] * 300
    assert arrivals(limits, ["192.0.2.1"] * 2) == ["", "connections_per_ip"]
    origin = limits.arrive("127.0.0.1", 0.0)
    assert isinstance(origin, Origin)
    limits.leave(origin.holder)  # was not counted


def test_who_has_gone_is_forgotten() -> None:
    limits = door()
    hosts = [f"10.{n >> 8}.{n & 255}.1" for n in range(2000)]
    for host in hosts:
        origin = limits.arrive(host, 0.0)
        assert isinstance(origin, Origin)
        limits.leave(origin.holder)
    limits.arrive("192.0.2.1", 5.0)
    assert len(limits._connections) == 1
    assert len(limits._addresses._due) == len(limits._groups._due) == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 0.5)), max_size=200))
@quick
def test_in_no_second_are_there_more_than_twice_the_rate(steps: list[tuple[int, float]]) -> None:
    """As many as the rate at once, and the rate's own since: what a full bucket means."""
    limits = door(handshakes_per_second_per_ip=3)
    now, came = 0.0, []
    for address, pause in steps:
        now += pause
        if not isinstance(limits.arrive(f"192.0.2.{address}", now), str):
            came.append((address, now))
    for address, start in came:
        within = [at for who, at in came if who == address and start <= at < start + 1.0]
        assert len(within) <= 6


# Places for handshakes


def test_the_group_that_has_most_gives_a_place_up_and_of_it_the_oldest() -> None:
    places: Places[str] = Places()
    for number in range(3):
        assert places.take("crowd", f"crowd {number}", 4) is None
    assert places.take("other", "honest", 4) is None
    assert places.take("third", "newcomer", 4) == "crowd 0"
    assert places.take("crowd", "crowd 3", 4) == "crowd 1"
    assert len(places) == 4


def test_a_place_that_is_free_again_can_be_taken() -> None:
    places: Places[str] = Places()
    places.take("group", "first", 1)
    places.free("group", "first")
    places.free("group", "first")
    places.free("nobody", "first")
    assert places.take("group", "second", 1) is None
    assert places.take("group", "third", 1) == "second"


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans())), st.integers(1, 6))
@quick
def test_no_more_places_are_taken_than_there_are(steps: list[tuple[int, bool]], limit: int) -> None:
    places: Places[int] = Places()
    held: dict[int, str] = {}
    numbers = itertools.count()
    for group_number, frees in steps:
        group = f"group {group_number}"
        if frees and held:
            who = next(iter(held))
            places.free(held.pop(who), who)
            continue
        newcomer = next(numbers)
        sizes = [[*held.values(), group].count(name) for name in {*held.values(), group}]
        held[newcomer] = group
        loser = places.take(group, newcomer, limit)
        if loser is not None:
            lost = held.pop(loser)
            assert [*held.values(), lost].count(lost) == max(sizes)
            assert not any(name == lost and who < loser for who, name in held.items())
        assert len(places) == len(held) <= limit


# What is logged


def test_an_address_is_logged_once_a_second_for_each_reason() -> None:
    log = RefusalLog()
    assert log.note("192.0.2.1", "a", 0.0) == 0
    assert log.note("192.0.2.1", "a", 0.9) is None
    assert log.note("192.0.2.1", "b", 0.9) == 1
    assert log.note("192.0.2.2", "a", 0.9) == 0
    assert log.note("192.0.2.1", "a", 1.0) == 0


def test_a_crowd_does_not_fill_the_log() -> None:
    log = RefusalLog()
    lines = [log.note(f"192.0.2.{n}", "a", 0.0) for n in range(200)]
    assert lines == [0] * LINES_PER_SECOND + [None] * (200 - LINES_PER_SECOND)
    assert log.note("192.0.2.1", "a", 1.0) == 200 - LINES_PER_SECOND


# Descriptors


@pytest.mark.parametrize(
    ("descriptors", "connections", "handshakes"),
    [
        (1 << 20, 10_000, 256),
        (10_320, 10_000, 256),
        (1024, 720, 240),
        (200, 102, 34),
        (10, 6, 2),
    ],
)
def test_no_more_come_in_than_there_are_descriptors(
    descriptors: int, connections: int, handshakes: int
) -> None:
    fit = fitting(DoorLimits(), descriptors, 64)
    assert (fit.max_connections, fit.max_handshakes) == (connections, handshakes)
