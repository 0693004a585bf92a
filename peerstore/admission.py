"""Who may come in: connections and handshakes are counted by address; sans-I/O.

What is refused here has cost no curve operation. A handshake counts from its connection on,
whether or not anything follows; until it is done it holds one of few places, and when these are
taken the network that has most of them gives one up.

An address is an IPv4 address or an IPv6 /64, a group a /24 or a /48 (addresses.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeVar

from peerstore.addresses import group_of, holder_of, parse_ip

GROUP_RATE = 10
"""How many times the handshakes of one address a group may make."""

SWEEP_SECONDS = 1.0
"""How often what has not been heard of is forgotten."""

LINES_PER_SECOND = 20
"""Refusals that are logged in a second; the others are counted."""

_ONE_SECOND = 1.0 + 1e-6
"""With room for what the sum of many fractions is off."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """How many may come in; see DESIGN, `[limits]`.

    From `exempt` networks any number and at any rate; they share the places for handshakes.
    """

    max_connections: int = 10_000
    max_connections_per_ip: int = 64
    handshakes_per_second_per_ip: int = 20
    max_handshakes: int = 256
    exempt: tuple[IPv4Network | IPv6Network, ...] = (
        IPv4Network("127.0.0.0/8"),
        IPv6Network("::1/128"),
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection comes from, as it is counted; `holder` is "" where it is not."""

    host: str
    holder: str
    group: str


class Door:
    """Counts who comes and goes; see the module's docstring. Times are seconds."""

    def __init__(self, limits: DoorLimits) -> None:
        self.limits = limits
        self._connections: dict[str, int] = {}
        self._addresses = _Rates()
        self._groups = _Rates()

    def arrive(self, host: str, now: float) -> Origin | str:
        """A connection comes from a host: where it counts, or why it can't stay."""
        limits = self.limits
        address = parse_ip(host)
        if address is None:  # no IP socket gives such a one
            return Origin(host, "", host)
        group = group_of(address)
        if any(address in network for network in limits.exempt):
            return Origin(host, "", group)
        holder = holder_of(address)
        if self._connections.get(holder, 0) >= limits.max_connections_per_ip:
            return "connections_per_ip"
        rate = limits.handshakes_per_second_per_ip
        # One address that is too fast takes nothing from its neighbours.
        if not self._addresses.take(holder, rate, now):
            return "handshakes_per_ip"
        if not self._groups.take(group, GROUP_RATE * rate, now):
            return "handshakes_per_group"
        self._connections[holder] = self._connections.get(holder, 0) + 1
        return Origin(host, holder, group)

    def leave(self, holder: str) -> None:
        """A connection that had arrived is gone; `holder` as its Origin has it."""
        if not holder:
            return
        left = self._connections[holder] - 1
        if left:
            self._connections[holder] = left
        else:
            del self._connections[holder]


class _Rates:
    """So many in a second for each key, and as many at once (the generic cell rate algorithm)."""

    __slots__ = ("_due", "_swept")

    def __init__(self) -> None:
        # When all that a key has taken would be due at its steady rate.
        self._due: dict[str, float] = {}
        self._swept = 0.0

    def take(self, key: str, rate: int, now: float) -> bool:
        """Whether the key may have one more."""
        if now - self._swept >= SWEEP_SECONDS:
            # Who could take as many at once as anybody need not be remembered.
            self._due = {key: due for key, due in self._due.items() if due > now}
            self._swept = now
        due = max(self._due.get(key, now), now) + 1 / rate
        if due > now + _ONE_SECOND:
            return False
        self._due[key] = due
        return True


class Places(Generic[T]):
    """The places for handshakes: each in the group that it came from, the oldest first."""

    __slots__ = ("_count", "_groups")

    def __init__(self) -> None:
        self._groups: dict[str, dict[T, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, group: str, who: T, places: int) -> T | None:
        """Give someone a place of so many; returns who loses it, of the group that has most."""
        self._groups.setdefault(group, {})[who] = None
        self._count += 1
        if self._count <= places:
            return None
        most = max(self._groups, key=lambda name: len(self._groups[name]))
        loser = next(iter(self._groups[most]))
        self.free(most, loser)
        return loser

    def free(self, group: str, who: T) -> None:
        """Someone needs the place no longer; nothing happens where it has none."""
        members = self._groups.get(group)
        if members is None or who not in members:
            return
        del members[who]
        self._count -= 1
        if not members:
            del self._groups[group]


class RefusalLog:
    """Which refusals are logged: of an address and reason one a second, and few in all."""

    def __init__(self) -> None:
        self._second = -1
        self._said: set[tuple[str, str]] = set()
        self._left_out = 0

    def note(self, host: str, reason: str, now: float) -> int | None:
        """How many were left out since the last line, None when this is left out as well."""
        if int(now) != self._second:
            self._second = int(now)
            self._said.clear()
        if (host, reason) in self._said or len(self._said) >= LINES_PER_SECOND:
            self._left_out += 1
            return None
        self._said.add((host, reason))
        left_out, self._left_out = self._left_out, 0
        return left_out


def fitting(limits: DoorLimits, descriptors: int, reserve: int) -> DoorLimits:
    """The limits as so many descriptors allow, of which `reserve` are for other things."""
    room = max(8, descriptors - reserve)
    if limits.max_connections + limits.max_handshakes <= room:
        return limits
    handshakes = max(1, min(limits.max_handshakes, room // 4))
    return replace(
        limits,
        max_handshakes=handshakes,
        max_connections=max(1, min(limits.max_connections, room - handshakes)),
    )
