"""Peers that are kept connected: `[dial] peers`, and those of `peerstore peers connect`.

One task for each, which waits while a connection with the peer is there, whoever has made it. When
there is none the peer is dialed; after a failure, and after the end of a connection, a pause comes
first. A connection that we dialed is renewed when it is old: there are peers that store only what
they have when they connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from peerstore.errors import DialError, HopelessDialError
from peerstore.types import NodeAddress, NodeId, format_host_port

FIRST_PAUSE_SECONDS = 1.0
"""The pause after the first failure; each further one doubles it."""

LONGEST_PAUSE_SECONDS = 600.0
"""But not beyond this."""

LASTED_SECONDS = 60.0
"""A peer that stays shorter has not been reached: one that hangs up is not dialed in a loop."""

EARLIER = 0.1
"""The part of `refresh` by which a renewal may come earlier, so that not all come at once."""

REPEAT_SECONDS = 3600.0
"""How often at most the same failure is logged."""

DIALS_AT_ONCE = 32
"""Peers that are being dialed at the same time; those of `peers connect` come on top."""

ENDED_EARLY = f"the connection ended within {LASTED_SECONDS:g} s"

_log = structlog.get_logger()


class Link(Protocol):
    """A connection with a peer, as far as it matters here."""

    @property
    def inbound(self) -> bool:
        """Whether the peer has made it."""

    @property
    def opened_at(self) -> float:
        """When it was made, in seconds of the clock."""

    def describe(self) -> dict[str, Any]:
        """The connection as the control socket shows it."""


class Server(Protocol):
    """Who has the connections."""

    peer_changed: Callable[[NodeId], None]
    """Is called when a connection of a peer is there, and when its last one is gone."""

    async def dial(self, address: NodeAddress, *, renew: bool = False) -> Link:
        """Connect, or find the peer connected; with `renew` connect all the same.

        Raises DialError.
        """

    def connected(self, node_id: NodeId) -> Link | None:
        """The connection of a peer, if there is one."""


async def _wait(event: asyncio.Event, seconds: float) -> None:
    # Not wait_for: that of Python 3.11 forgets a cancellation that comes with the event.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if seconds == math.inf else seconds):
            await event.wait()


@dataclass(frozen=True, slots=True)
class Clock:
    """Time and chance: `now` is monotonic, in seconds; `chance` gives 0 to below 1; `wait` returns
    when the event is set or so many seconds have passed."""

    now: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.SystemRandom().random
    wait: Callable[[asyncio.Event, float], Awaitable[None]] = _wait

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures, at least one."""
        doubled = FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 30)
        return min(doubled, LONGEST_PAUSE_SECONDS) * (1 + self.chance()) / 2


REAL = Clock()


@dataclass(frozen=True, slots=True)
class Kept:
    """A peer that is kept connected; `error` says why it is not connected, as far as is known."""

    node_id: NodeId
    addresses: tuple[NodeAddress, ...]
    error: str


class Dialer:
    """Keeps peers connected; see the module's docstring."""

    def __init__(self, server: Server, clock: Clock = REAL) -> None:
        self._server = server
        self._clock = clock
        self._configured: dict[NodeId, list[NodeAddress]] = {}
        self._asked: dict[NodeId, NodeAddress] = {}
        self._left_alone: set[NodeId] = set()
        self._refresh = 0.0
        self._keepers: dict[NodeId, _Keeper] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(DIALS_AT_ONCE)
        self._closed = False
        server.peer_changed = self._changed

    def configure(self, peers: Iterable[NodeAddress], refresh: float) -> None:
        """Keep these peers, and try at once those that are not connected.

        Several addresses of one node are tried in their order. `refresh` is after how many seconds
        a dialed connection is renewed, 0 for never.
        """
        self._configured = {}
        for address in peers:
            self._configured.setdefault(address.node_id, []).append(address)
        self._refresh = refresh
        self._left_alone.clear()
        for node_id in list(self._keepers):
            self._stop(node_id)
        self._follow()

    async def connect(self, address: NodeAddress) -> Link:
        """Connect to a peer and keep it connected from now on, by this address first.

        Raises DialError; then nothing is as it was not before.
        """
        node_id = address.node_id
        self._stop(node_id)  # it would be in the way
        try:
            link = await self._server.dial(address)
            self._asked[node_id] = address
            self._left_alone.discard(node_id)
        finally:
            self._follow()
        return link

    def leave_alone(self, node_id: NodeId) -> bool:
        """Keep a peer no longer; a configured one until `connect` or `configure`.

        Returns whether it was kept.
        """
        was_kept = node_id in self._wanted()
        self._asked.pop(node_id, None)
        if node_id in self._configured:
            self._left_alone.add(node_id)
        self._follow()
        return was_kept

    def kept(self) -> list[Kept]:
        """Who is kept connected."""
        return [
            Kept(node_id, addresses, self._error(node_id))
            for node_id, addresses in self._wanted().items()
        ]

    def _error(self, node_id: NodeId) -> str:
        keeper = self._keepers.get(node_id)
        return "" if keeper is None or self._server.connected(node_id) else keeper.error

    async def close(self) -> None:
        """Dial nobody any more."""
        self._closed = True
        for node_id in list(self._keepers):
            self._stop(node_id)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _wanted(self) -> Mapping[NodeId, tuple[NodeAddress, ...]]:
        asked = {node_id: (address,) for node_id, address in self._asked.items()}
        return asked | {
            node_id: tuple(dict.fromkeys((*asked.get(node_id, ()), *addresses)))
            for node_id, addresses in self._configured.items()
            if node_id not in self._left_alone
        }

    def _follow(self) -> None:
        """Have a task for each peer that is wanted, and for no other."""
        wanted = {} if self._closed else self._wanted()
        for node_id in self._keepers.keys() - wanted:
            self._stop(node_id)
        for node_id, addresses in wanted.items():
            if node_id in self._keepers:
                continue
            keeper = _Keeper(self._server, self._clock, addresses, self._refresh, self._gate)
            self._keepers[node_id] = keeper
            keeper.task = asyncio.create_task(keeper.run(), name="dial")
            self._tasks.add(keeper.task)
            keeper.task.add_done_callback(self._tasks.discard)

    def _stop(self, node_id: NodeId) -> None:
        keeper = self._keepers.pop(node_id, None)
        if keeper is not None and keeper.task is not None:
            keeper.task.cancel()

    def _changed(self, node_id: NodeId) -> None:
        keeper = self._keepers.get(node_id)
        if keeper is not None:
            keeper.changed.set()


class _Keeper:
    """Keeps one peer connected; `addresses` are all of one node."""

    def __init__(
        self,
        server: Server,
        clock: Clock,
        addresses: tuple[NodeAddress, ...],
        refresh: float,
        gate: asyncio.Semaphore,
    ) -> None:
        self.changed = asyncio.Event()
        self.error = ""
        self.task: asyncio.Task[None] | None = None
        self._server = server
        self._clock = clock
        self._node_id = addresses[0].node_id
        self._addresses = addresses
        self._refresh = refresh
        self._gate = gate
        self._logged_at = -math.inf

    async def run(self) -> None:
        """Until it is cancelled, or there is no hope."""
        failures = 0
        while True:
            error = ""
            try:
                link = self._link() or await self._dial()
            except HopelessDialError as hopeless:
                self._failed(str(hopeless), None)
                return
            except DialError as failure:
                error = str(failure)
            else:
                lasted, ours = await self._stay(link)
                if lasted:
                    failures = 0
                    self._well()
                elif ours:
                    error = ENDED_EARLY
            failures += 1
            pause = self._clock.pause(failures)
            if error:
                self._failed(error, pause)
            await self._rest(pause)

    def _link(self) -> Link | None:
        return self._server.connected(self._node_id)

    async def _stay(self, current: Link) -> tuple[bool, bool]:
        """Wait while a connection is there, and renew it when it is due.

        Returns whether the peer has stayed long enough, and whether the last connection was ours.
        """
        began, due, failures = current.opened_at, self._due(current), 0
        while (link := self._link()) is not None:
            if link is not current:
                current, due, failures = link, self._due(link), 0
            left = due - self._clock.now()
            if left > 0:
                await self._until_changed(left)
                continue
            try:
                await self._dial(link)
            except DialError as error:
                failures += 1
                pause = self._clock.pause(failures)
                due = self._clock.now() + pause
                self._failed(str(error), pause)
        return self._clock.now() - began >= LASTED_SECONDS, not current.inbound

    def _due(self, link: Link) -> float:
        """When a connection is to be renewed."""
        if link.inbound or not self._refresh:
            return math.inf
        return link.opened_at + self._refresh * (1 - EARLIER * self._clock.chance())

    async def _rest(self, seconds: float) -> None:
        """Wait so long, or until the peer is there."""
        end = self._clock.now() + seconds
        while self._link() is None and (left := end - self._clock.now()) > 0:
            await self._until_changed(left)

    async def _until_changed(self, seconds: float) -> None:
        # Whoever comes here has just looked how things are.
        self.changed.clear()
        await self._clock.wait(self.changed, seconds)

    async def _dial(self, old: Link | None = None) -> Link:
        """Dial one address after the other until there is a connection; raises DialError.

        `old` is the connection that is to be renewed.
        """
        errors = []
        for address in self._addresses:
            try:
                async with self._gate:
                    if old is not None and self._link() is not old:
                        return old  # it is gone, or the peer has made a new one
                    link = await self._server.dial(address, renew=old is not None)
            except HopelessDialError:
                raise
            except DialError as error:
                errors.append(str(error))
            except Exception as error:  # a mistake of ours must not end the keeping
                _log.exception(
                    "dial_broken",
                    node_id=self._node_id.hex(),
                    address=format_host_port(address.host, address.port),
                    error=str(error),
                )
                errors.append(f"{address}: {type(error).__name__}: {error}")
            else:
                self._dialed(link, address, renewed=old is not None)
                return link
        raise DialError("; ".join(errors))

    # What is said of it

    def _dialed(self, link: Link, address: NodeAddress, *, renewed: bool) -> None:
        # Of a peer that hangs up soon each time this is no news.
        if not link.inbound and self.error != ENDED_EARLY:
            self._well()
            _log.info(
                "dialed",
                node_id=self._node_id.hex(),
                address=format_host_port(address.host, address.port),
                renewed=renewed,
            )

    def _well(self) -> None:
        self.error = ""
        self._logged_at = -math.inf

    def _failed(self, error: str, pause: float | None) -> None:
        now = self._clock.now()
        if error != self.error or now - self._logged_at >= REPEAT_SECONDS:
            self._logged_at = now
            _log.warning(
                "dial_failed",
                node_id=self._node_id.hex(),
                addresses=[format_host_port(a.host, a.port) for a in self._addresses],
                error=error,
                retry_seconds=None if pause is None else round(pause, 1),
            )
        self.error = error
