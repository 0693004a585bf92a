"""The only file that owns peer sockets: listening, timers, backpressure, closing.

A socket's bytes go to its Connection, the messages that come out go to its Session, and the
actions that follow are carried out here. There is no task and no thread hop for a message; a
connection costs three short tasks in its life, for its accept, for opening its lease and for
reading what is replayed.

Backpressure is one rule: bytes are taken from a socket until READ_AHEAD of them wait or the peer
has sent more than its rate allows, and what waits is looked at only while nothing is in the way:
the session is ready, the peer reads what it is sent, and the store keeps up.

Who may come in says admission.py before anything is made for a connection. Of those who are in,
strangers can be asked to leave: who is neither allowed by the operator nor has a channel, who is
not established, and whom we have not dialed.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import structlog

from peerstore.addresses import parse_ip
from peerstore.admission import Door, DoorLimits, Origin, Places, RefusalLog
from peerstore.connection import Authenticated, Connection
from peerstore.errors import (
    DecryptionError,
    DialError,
    HopelessDialError,
    ListenError,
    StoreError,
    TransportError,
)
from peerstore.listening import listen_failure, listening_socket
from peerstore.policy import EVERYONE, Policy, Visit
from peerstore.proxy import STRAIGHT, Route
from peerstore.refusals import NewestRefusals
from peerstore.session import (
    UPDATE_REFUSED,
    Action,
    Close,
    Forgo,
    Report,
    Retrieve,
    Send,
    Session,
    State,
    Stored,
    Timeouts,
)
from peerstore.session import Store as StoreUpdate
from peerstore.store.base import Lease, Revision, Store
from peerstore.tally import Handshake, Replay, Tally
from peerstore.transport.cipher import FRAME_OVERHEAD, MAX_MESSAGE_SIZE
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import (
    BackupKind,
    Network,
    NodeAddress,
    NodeId,
    Slot,
    format_host_port,
)
from peerstore.wire.features import OURS, OURS_WITHOUT_STORAGE, encode_features
from peerstore.wire.messages import MESSAGE_NAMES, Init, address_descriptor

READ_BUFFER = 128 << 10
"""Bytes of one read from a socket: a message of full size fits, with room for the next."""

READ_AHEAD = MAX_MESSAGE_SIZE + FRAME_OVERHEAD
"""Bytes of a connection that may wait while something is in the way of looking at them.

With fewer a message of which little is missing would keep that from being read."""

WRITE_AHEAD = 64 << 10
"""Bytes that may be gathered for one write."""

CLOSE_SECONDS = 5.0
"""How long a peer may take to read what was sent before we closed."""

DIAL_SECONDS = 20.0
"""How long a connection that we dial may take until both have said `init`."""

ACCEPTS = 16
"""Connections accepted in one turn of the loop."""

ACCEPT_PAUSE = 1.0
"""How long nobody is accepted when that has failed: descriptors have run out."""

REPEAT_SECONDS = 10.0
"""How often at most it is logged that accepting fails."""

LEAVING = 256
"""Connections that may be on their way out, reading what they were told, before others are cut."""

READ_BURST_SECONDS = 0.25
"""How far a peer may be ahead of its rate before it is read more slowly."""

MESSAGES_PER_TURN = 64
"""Messages of one peer that are looked at before the others have their turn."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one peer may take in a second; None is without a limit."""

    commits: int | None = 20
    bytes: int | None = 16 << 20
    pong_bytes: int | None = 1 << 20


_INIT = Init.TYPE.to_bytes(2, "big")

UNLIMITED = Rates(None, None, None)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds for each act of the handshake, what a session waits for, who may come in, and what
    a peer may take unless the operator has allowed it by name."""

    handshake: float = 5.0
    session: Timeouts = field(default_factory=Timeouts)
    door: DoorLimits = field(default_factory=DoorLimits)
    rates: Rates = field(default_factory=Rates)


class PeerServer:
    """Accepts peers and serves each by the book; see the module's docstring."""

    def __init__(
        self,
        *,
        key: KeyPair,
        network: Network,
        store: Store,
        limits: Limits,
        policy: Policy = EVERYONE,
        tally: Tally | None = None,
    ) -> None:
        self.tally = tally or Tally()
        self.key = key
        self.policy = policy
        self.network = network
        self.store = store
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.peers: dict[NodeId, PeerConnection] = {}
        """The newest connection of each peer that is authenticated."""
        self.connections: set[PeerConnection] = set()
        """Every connection, in whatever state."""
        self.leaving = 0
        """How many of them are closing."""
        self.strangers: collections.OrderedDict[PeerConnection, None] = collections.OrderedDict()
        """Those who give way when there are too many, the idlest first."""
        self.door = Door(limits.door)
        self.places: Places[PeerConnection] = Places()
        self.refusals = NewestRefusals()
        """Whom something was refused, by the loop's clock."""
        self.frozen = False
        self.route: Route = STRAIGHT
        """How peers that are dialed are reached."""
        self.peer_changed: Callable[[NodeId], None] = lambda _: None
        """Called when a connection of a peer was authenticated, and when its last one is gone."""
        self.addresses: list[tuple[str, int]] = []
        """Where it listens, with the ports that the kernel picked for port 0."""
        # One buffer serves every socket: a read and its use are never interrupted.
        self.read_buffer = memoryview(bytearray(READ_BUFFER))
        # Bound once: a lazy logger is made anew at every call.
        self.log = structlog.get_logger().bind()
        self._listeners: dict[socket.socket, asyncio.TimerHandle | None] = {}
        self._welcomes: set[asyncio.Task[None]] = set()
        self._log_lines = RefusalLog()
        self._next_accept_line = float("-inf")
        self._empty: asyncio.Event | None = None

    async def listen(self, addresses: Iterable[tuple[str, int]]) -> None:
        """Listen on IP addresses and ports.

        A host without IPv6 gets a warning. Raises ListenError when an address can't be had, and
        when there is none.
        """
        for host, port in addresses:
            try:
                sock = listening_socket(host, port)
            except OSError as error:
                where = format_host_port(host, port)
                if ":" in host and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    self.log.warning("no_ipv6", address=where, error=error.strerror)
                    continue
                self.close_listeners()
                raise ListenError(listen_failure(where, error, "listen.addresses")) from error
            self.take_listener(sock)
        if not self._listeners:
            raise ListenError("listen.addresses has no address that can be listened on here")

    def take_listener(self, listener: socket.socket) -> None:
        """Accept peers from a TCP socket that listens and does not block; it is closed here."""
        self.addresses.append(listener.getsockname()[:2])
        self._accept_from(listener)

    def _accept_from(self, listener: socket.socket) -> None:
        self._listeners[listener] = None
        self.loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Take in who waits; whom the door refuses costs an accept and a close."""
        for _ in range(ACCEPTS):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._cannot_accept(listener, error)
                return
            origin = self.door.arrive(address[0], self.loop.time())
            if isinstance(origin, str):
                sock.close()
                self.refuse(address[0], origin)
                continue
            sock.setblocking(False)
            task = self.loop.create_task(self._welcome(sock, origin))
            self._welcomes.add(task)
            task.add_done_callback(self._welcomes.discard)

    def _cannot_accept(self, listener: socket.socket, error: OSError) -> None:
        """Out of descriptors, most likely: a stranger gives one up, and it is tried again later."""
        now = self.loop.time()
        if now >= self._next_accept_line:
            self._next_accept_line = now + REPEAT_SECONDS
            self.log.error("accept_failed", error=error.strerror, connections=len(self.connections))
        self.loop.remove_reader(listener)
        self._listeners[listener] = self.loop.call_later(ACCEPT_PAUSE, self._accept_from, listener)
        self._make_room()

    async def _welcome(self, sock: socket.socket, origin: Origin) -> None:
        try:
            await self.loop.connect_accepted_socket(
                lambda: PeerConnection(self, origin=origin), sock
            )
        except OSError:  # it is gone already
            sock.close()
            self.door.leave(origin.holder)

    def refuse(self, host: str, reason: str) -> None:
        """A connection was refused, or is closed because of what it did before it said who it is:
        counted, and told to the operator, in a form that fail2ban can use."""
        self.tally.connections_refused[reason] += 1
        now = self.loop.time()
        self.refusals.note(host, reason, now)
        left_out = self._log_lines.note(host, reason, now)
        if left_out is not None:
            self.log.warning("connection_refused", address=host, reason=reason, left_out=left_out)

    def take_in(self, connection: PeerConnection) -> None:
        """A connection is made; when there are too many, the idlest stranger gives way."""
        limits = self.limits.door
        # Where only few are strangers it is the places for handshakes that keep the number down.
        while self._present >= limits.max_connections > self._present - len(self.strangers):
            self._make_room()
        self.connections.add(connection)
        if connection.stranger:
            self.strangers[connection] = None
            loser = self.places.take(connection.group, connection, limits.max_handshakes)
            if loser is not None:
                loser.turn_away("handshakes")

    def get_to_know(self, connection: PeerConnection, *, stranger: bool) -> None:
        """It is known whose a connection is, or what that peer is here has changed."""
        if connection.stranger != stranger:
            connection.stranger = stranger
            if stranger:
                self.strangers[connection] = None
            else:
                del self.strangers[connection]

    def has_room(self, connection: PeerConnection, *, wished: bool) -> bool:
        """Whether a connection can stay, now that it is known whose it is.

        A stranger gives way, which may be itself; where there is none, only who is wished stays.
        """
        too_many = self._present > self.limits.door.max_connections
        if too_many and not self._make_room() and not wished:
            connection.turn_away("full")
        return not connection.closing

    def _make_room(self) -> bool:
        """Turn the idlest stranger away; returns whether there was one."""
        while self.strangers:
            idlest = next(iter(self.strangers))
            if not idlest.established:
                idlest.turn_away("full")
                return True
            # It has become so while it was here.
            idlest.stranger = False
            del self.strangers[idlest]
        return False

    def leave(self, connection: PeerConnection) -> None:
        """A connection begins to close."""
        self.leaving += 1
        self.strangers.pop(connection, None)
        self.places.free(connection.group, connection)

    @property
    def _present(self) -> int:
        return len(self.connections) - self.leaving

    async def dial(self, address: NodeAddress, *, renew: bool = False) -> PeerConnection:
        """Connect to a peer, and return when both have said `init`.

        A connection that is there already is enough, unless it is to be renewed: then the new one
        replaces it as soon as it is authenticated. Raises DialError.
        """
        if address.node_id == self.key.node_id:
            raise HopelessDialError(f"{address} is this node itself")
        there = self.connected(address.node_id)
        if there is not None and there.met and not renew:
            return there
        met: asyncio.Future[None] = self.loop.create_future()
        try:
            connection = PeerConnection(self, address.node_id, met)
        except TransportError:
            raise HopelessDialError(f"{address}: the node id is no point on the curve") from None
        try:
            await self._connect(connection, address)
        except DialError as error:
            raise DialError(f"{address}: {error}") from None
        except asyncio.CancelledError:
            connection.abort()
            raise
        finally:
            met.cancel()  # if nobody waits for it any more
        return connection

    async def _connect(self, connection: PeerConnection, address: NodeAddress) -> None:
        """Do it, within the time that it may take; raises DialError."""
        route, host = self.route, address.host
        seconds = DIAL_SECONDS + route.patience(host)
        if route.through_proxy(host):
            connection.proxied = format_host_port(host, address.port)
        try:
            async with asyncio.timeout(seconds):
                arguments = await route.arguments(host, address.port)
                await self.loop.create_connection(lambda: connection, **arguments)
                await connection.both_said_init()
        except TimeoutError:
            connection.abort()
            way = " through the proxy" if connection.proxied else ""
            raise DialError(f"no answer within {seconds:g} s{way}") from None
        except (OSError, ValueError) as error:  # ValueError: no host name at all
            why = getattr(error, "strerror", None) or error
            raise DialError(f"can't connect: {why}") from error

    def connected(self, node_id: NodeId) -> PeerConnection | None:
        """The newest connection of a peer that is authenticated and not about to end."""
        connection = self.peers.get(node_id)
        return None if connection is None or connection.closing else connection

    def set_policy(self, policy: Policy) -> None:
        """Serve by another policy from now on, also who is connected."""
        self.policy = policy
        self.follow_policy()

    def follow_policy(self) -> None:
        """Serve who is connected by what the policy says now."""
        for connection in self.connections:
            connection.follow_policy()

    def set_limits(self, limits: Limits) -> None:
        """Other limits, for the connections that come from now on."""
        self.limits = limits
        self.door.limits = limits.door
        self.follow_policy()
        while self._present > limits.door.max_connections and self._make_room():
            pass

    def close_listeners(self) -> None:
        """Accept nobody any more."""
        for listener, pause in self._listeners.items():
            if pause is not None:
                pause.cancel()
            self.loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def freeze(self) -> None:
        """Take no more messages from anyone; confirmations still go out."""
        self.close_listeners()
        self.frozen = True
        for connection in self.connections:
            connection.regulate()

    async def close(self, grace: float) -> None:
        """Close every connection, and cut those that have not read all after `grace` seconds."""
        self.freeze()
        self._empty = asyncio.Event()
        for connection in list(self.connections):
            connection.close("shutting down")
        if self.connections:
            try:
                await asyncio.wait_for(self._empty.wait(), grace)
            except TimeoutError:
                for connection in list(self.connections):
                    connection.abort()
                await self._empty.wait()

    def forget(self, connection: PeerConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self.leaving -= 1
        self.door.leave(connection.holder)
        node_id = connection.node_id
        if node_id is not None and self.peers.get(node_id) is connection:
            del self.peers[node_id]
            self.peer_changed(node_id)
        if self._empty is not None and not self.connections:
            self._empty.set()


class PeerConnection(asyncio.BufferedProtocol):
    """One peer's socket with its Connection, Session and Lease."""

    __slots__ = (
        "_acts",
        "_closing",
        "_connection",
        "_deadline",
        "_ended_because",
        "_eof",
        "_eof_after_init",
        "_fate",
        "_lease",
        "_met",
        "_opened_at",
        "_paid_at",
        "_rate",
        "_reading",
        "_remote",
        "_server",
        "_session",
        "_task",
        "_timer",
        "_transport",
        "_uncommitted",
        "_wanted",
        "_writable",
        "group",
        "holder",
        "met",
        "node_id",
        "proxied",
        "stranger",
    )

    def __init__(
        self,
        server: PeerServer,
        remote: NodeId | None = None,
        met: asyncio.Future[None] | None = None,
        origin: Origin | None = None,
    ) -> None:
        """`remote` is whom we dial, `met` is done when both have said `init`; `origin` is where one
        that we have not dialed comes from."""
        self.node_id: NodeId | None = None
        self.met = False
        """Whether the peer's `init` has come and was right."""
        self.stranger = origin is not None
        """Whether it gives way when there are too many."""
        self.holder = "" if origin is None else origin.holder
        """Under which address it counts."""
        self.group = "" if origin is None else origin.group
        """In which group it holds a place until its handshake is done."""
        self.proxied = ""
        """The address that a proxy was asked for, "" without one: the socket has the proxy's."""
        self._server = server
        self._remote = remote
        self._met = met
        self._opened_at = 0.0
        self._transport = cast("asyncio.Transport", None)  # there from connection_made on
        self._connection = Connection(server.key, remote_node_id=remote)
        self._session: Session | None = None
        self._lease: Lease | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # What is to be read for the peer once it has read what it was sent before.
        self._wanted: Retrieve | None = None
        self._acts = 0
        self._deadline = 0.0
        self._closing = False
        self._eof = False
        self._eof_after_init = False
        self._ended_because = "the connection was closed"
        self._fate = Handshake.CLOSED
        """What the handshake counts as if it is not done in the end."""
        self._reading = True
        self._writable = True
        self._uncommitted = False
        # Bytes a second, None without a limit, and when what was read is paid for at that rate.
        self._rate: int | None = None
        self._paid_at = 0.0

    @property
    def inbound(self) -> bool:
        """Whether the peer has made the connection."""
        return self._remote is None

    @property
    def state(self) -> str:
        """`handshake`, `init` until both have said it, `open`, or `closing`."""
        if self._closing:
            return "closing"
        if not self._connection.authenticated:
            return "handshake"
        return "open" if self.met else "init"

    @property
    def opened_at(self) -> float:
        """When it was made, in seconds of the loop's clock."""
        return self._opened_at

    @property
    def closing(self) -> bool:
        """Whether nothing more is taken from the peer."""
        return self._closing

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.take_in(self)
        if self._server.frozen:  # it came too late to be closed with the others
            self.close("shutting down")
            return
        self._opened_at = self._server.loop.time()
        self._deadline = self._opened_at + self._server.limits.handshake
        self._flush()  # act one, if it is ours to say
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing:
            self._log_end("connection lost" if exc is None else str(exc))
            # What it said before and was not looked at yet would have been an answer.
            self._end_session(hung_up=not self._connection.buffered)
            self._leave()
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._lease is not None:
            self._lease.close()
        if self._met is not None and not self._met.done():
            self._met.set_exception(DialError(self._ended_because))
        self._server.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            return
        self._connection.receive_data(self._server.read_buffer[:nbytes])
        if self.stranger:
            self._server.strangers.move_to_end(self)
        if self._session is not None:
            now = self._server.loop.time()
            self._session.heard(now)
            if self._rate is not None:
                self._paid_at = max(self._paid_at, now) + nbytes / self._rate
        self._process()

    def eof_received(self) -> bool:
        # What came before may still wait, for the lease or the store: it is looked at first.
        self._eof = True
        self._eof_after_init = self._session is not None and self._session.node_backup_shown
        if not self._closing:
            self._process()
        return True

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._session is not None:
            self._session.drained(self._server.loop.time())
        self._read_wanted()
        self._process()

    # What the store calls

    def stored(self, sequence: int) -> None:
        """See store.base.Listener."""
        session = self._session
        if session is not None and not self._closing:
            self._uncommitted = False
            self._carry_out(session.stored(sequence, self._server.loop.time()))
            self._process()

    def refused(self, sequences: Sequence[int], reason: str) -> None:
        """See store.base.Listener."""
        if self._session is not None:
            self._session.refused(sequences, reason)

    def not_stored(self, sequence: int, reason: str) -> None:
        """See store.base.Listener."""
        session = self._session
        if session is not None and not self._closing:
            self._uncommitted = False
            self._carry_out(session.not_stored(sequence, reason, self._server.loop.time()))
            self._process()

    # What the server calls

    def close(self, reason: str) -> None:
        """Send what was said, then close."""
        if self._closing:
            return
        self._log_end(reason)
        self._end_session(hung_up=False)
        self._leave()
        self._flush()
        self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
        # A peer that is gone or does not read would keep the socket for many minutes.
        self._timer = self._server.loop.call_later(CLOSE_SECONDS, self._transport.abort)

    def turn_away(self, reason: str) -> None:
        """Close to make room for others; who can be told is told."""
        self._server.refuse(self._host(), reason)
        self._fate = Handshake.EVICTED
        if self._server.leaving > LEAVING:
            self.abort()
        elif self._session is not None:
            self._carry_out(self._session.dismiss("too many connections here: try again later"))
        self.close(reason)

    def abort(self) -> None:
        """Close at once."""
        if not self._closing:
            self._end_session(hung_up=False)
            self._leave()
        if self._transport is not None:  # else the dial has not got that far
            self._transport.abort()

    async def both_said_init(self) -> None:
        """Wait for the end of the beginning of a connection that we dialed; raises DialError."""
        assert self._met is not None  # noqa: S101 - see __init__
        await self._met

    def follow_policy(self) -> None:
        """Take updates or refuse them as the policy has it now."""
        if self._session is not None and self._lease is not None and not self._closing:
            visit = _visit(self._lease)
            self._introduce(self._lease, visit)
            self._session.refusal = self._server.policy.decide(self._lease.node_id, visit).refusal
            self._follow_rates(self._session, self._lease)

    def _follow_rates(self, session: Session, lease: Lease) -> None:
        """Let the peer take as much as it may: any amount where the operator has named it."""
        allowed = self._server.policy.allows(lease.node_id)
        rates = UNLIMITED if allowed else self._server.limits.rates
        self._rate = rates.bytes
        session.pong_rate = rates.pong_bytes
        lease.pace(rates.commits)

    @property
    def established(self) -> bool:
        """Whether the peer is known for long enough not to be asked to leave."""
        return self._lease is not None and self._lease.established

    def describe(self) -> dict[str, Any]:
        """The connection as the control socket shows it; times in seconds."""
        return {
            "node_id": self._hex_id(),
            "address": self._address(),
            "inbound": self.inbound,
            "seconds": int(self._server.loop.time() - self._opened_at),
            "features": encode_features(self._session.features if self._session else 0).hex(),
        }

    def regulate(self) -> None:
        """Read from the socket, or stop reading, as the state of things has it."""
        if self._closing or self._eof:
            return
        wanted = (
            self._connection.buffered < READ_AHEAD
            and not self._server.frozen
            and not self._ahead_until()
        )
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # Inside

    def _ahead_until(self) -> float:
        """Until when the peer is too far ahead of its rate to be read, 0 when it is not."""
        until = self._paid_at - READ_BURST_SECONDS
        return until if until > self._server.loop.time() else 0.0

    def _leave(self) -> None:
        self._closing = True
        if not self._connection.authenticated:
            self._server.tally.handshakes[self._fate] += 1
        self._server.leave(self)

    def _unhindered(self) -> bool:
        """Whether the next thing that the peer sent may be looked at."""
        if self._closing or not self._writable or self._server.frozen:
            return False
        if self._session is None:
            return not self._connection.authenticated
        if self._uncommitted and self._server.store.congested:
            return False
        return self._session.ready

    def _process(self) -> None:
        """Look at what the peer sent as far as that can be done now."""
        if self._closing:
            return
        more = False
        left = MESSAGES_PER_TURN
        connection = self._connection
        try:
            while connection.buffered and self._unhindered():
                if not left:
                    more = True
                    self._server.loop.call_soon(self._process)
                    break
                left -= 1
                event = connection.next_event()
                if event is None:
                    break
                if isinstance(event, Authenticated):
                    self._authenticated(event.node_id)
                elif self._session is not None:
                    self._take(event, self._session)
        except TransportError as error:
            self._broken(error)
            return
        if self._eof and not more and self._unhindered():
            # All is taken. Half a connection is of no use to anyone.
            self._end_of_stream()
        self._flush()
        self.regulate()
        if not self._closing:
            self._arm()

    def _take(self, message: bytes, session: Session) -> None:
        self._server.tally.received[MESSAGE_NAMES.get(message[:2], "other")] += 1
        actions = session.receive(message, self._server.loop.time())
        if actions:
            self._carry_out(actions)
            if self._connection.outgoing > WRITE_AHEAD:
                # What the peer does not read has to stop us at once.
                self._flush()
        if not self.met:
            self._meet(session)

    def _meet(self, session: Session) -> None:
        """The peer's first message was taken: was it a good `init`?"""
        if session.state is State.CLOSED or self._lease is None:
            return
        self.met = True
        self._lease.meet(self._address(), encode_features(session.features))
        if self._met is not None and not self._met.done():
            self._met.set_result(None)

    def _end_session(self, *, hung_up: bool) -> None:
        """Nothing more is taken from the peer; `hung_up` says whether that is its doing."""
        if self._session is not None:
            self._carry_out(self._session.end(self._server.loop.time(), hung_up=hung_up))

    def _end_of_stream(self) -> None:
        self._end_session(hung_up=self._eof_after_init)
        try:
            self._connection.receive_eof()
        except TransportError as error:
            self.close(str(error))
        else:
            self.close("closed by the peer")

    def _authenticated(self, node_id: NodeId) -> None:
        self.node_id = node_id
        self._server.tally.handshakes[Handshake.DONE] += 1
        self._server.places.free(self.group, self)
        self.group = ""
        older = self._server.peers.get(node_id)
        if older is not None:
            older.close("replaced by a newer connection of the same peer")
        self._server.peers[node_id] = self
        self._server.peer_changed(node_id)
        # A limit of its own for the store, should it hang.
        self._deadline = self._server.loop.time() + self._server.limits.session.init
        self._task = self._server.loop.create_task(self._open_session(node_id))

    async def _open_session(self, node_id: NodeId) -> None:
        try:
            # Most send their init with their last act: what they get back is read along then.
            first = self._connection.next_event()
        except TransportError as error:
            self._broken(error)
            return
        has_init = isinstance(first, bytes) and first.startswith(_INIT)
        soon = BackupKind.PEER_STORAGE if has_init else None
        try:
            lease = await self._server.store.open_lease(node_id, self, soon=soon)
        except Exception as error:
            self._server.log.error(
                "lease_failed",
                node_id=node_id.hex(),
                error=str(error),
                exc_info=not isinstance(error, StoreError),
            )
            self.close("the store can't be read")
            return
        if self._closing:
            lease.close()
            return
        self._lease = lease
        visit = _visit(lease)
        if not self._server.has_room(self, wished=self._introduce(lease, visit)):
            return
        decision = self._server.policy.decide(node_id, visit)
        self._session = session = Session(
            chain_hash=self._server.network.chain_hash,
            now=self._server.loop.time(),
            remote_addr=self._remote_addr(),
            stored=stored_of(lease),
            offered=OURS if decision.offered else OURS_WITHOUT_STORAGE,
            refusal=decision.refusal,
            initiator=self._remote is not None,
            timeouts=self._server.limits.session,
            tally=self._server.tally,
        )
        self._follow_rates(session, lease)
        self._server.log.debug("peer_connected", node_id=node_id.hex(), address=self._address())
        self._carry_out(session.start())
        if isinstance(first, bytes):
            self._take(first, session)
        self._process()

    def _introduce(self, lease: Lease, visit: Visit | None) -> bool:
        """Tell the server what the peer is here; returns whether it is the operator's wish."""
        policy = self._server.policy
        wished = self._remote is not None or policy.allows(lease.node_id)
        known = wished or lease.established or policy.protects(lease.node_id, visit)
        self._server.get_to_know(self, stranger=not known)
        return wished

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._connection.send_message(action.message)
                self._server.tally.sent[MESSAGE_NAMES[action.message[:2]]] += 1
            elif isinstance(action, StoreUpdate):
                self._put(action)
            elif isinstance(action, Retrieve):
                self._wanted = action
            elif isinstance(action, Report):
                self._server.tally.events[action.event] += 1
                if action.event == UPDATE_REFUSED and self._lease is not None:
                    reason = str(action.details["reason"])
                    self._lease.note_refusal(reason)
                    self._server.refusals.note(self._hex_id(), reason, self._server.loop.time())
                if action.logged:
                    self._server.log.info(action.event, node_id=self._hex_id(), **action.details)
            elif isinstance(action, Forgo):
                assert self._lease is not None  # noqa: S101 - older than the session
                self._lease.forgo_node_backup()
            elif isinstance(action, Close):
                self.close(action.reason)

    def _put(self, update: StoreUpdate) -> None:
        assert self._lease is not None and self.node_id is not None  # noqa: S101, PT018
        self._uncommitted = True
        slot = Slot(self.node_id, update.kind, update.channel_id)
        self._lease.put(update.sequence, slot, update.blob, update.channel)
        if update.blob is not None and self._server.log.is_enabled_for(logging.DEBUG):
            self._server.log.debug(
                "update_received", node_id=self._hex_id(), kind=slot.kind.label,
                channel_id=slot.channel_id.hex(), size=len(update.blob),
            )  # fmt: skip

    def _read_wanted(self) -> None:
        """Read the next backup for the peer, unless it has yet to read the ones before."""
        wanted = self._wanted
        if wanted is None or not self._writable or self._closing:
            return
        self._wanted = None
        lease, session = self._lease, self._session
        assert lease is not None and session is not None and self.node_id is not None  # noqa: S101, PT018
        slot = Slot(self.node_id, wanted.kind, wanted.channel_id)
        read = self._read_and_replay(lease, session, slot)
        self._task = self._server.loop.create_task(read)

    async def _read_and_replay(self, lease: Lease, session: Session, slot: Slot) -> None:
        blob = None
        try:
            backup = await lease.read(slot)
        except Exception as error:
            # What can't be trusted is never sent; the peer is served on without it.
            self._server.log.error(
                "replay_failed", node_id=slot.node_id.hex(), kind=slot.kind.label,
                channel_id=slot.channel_id.hex(), error=str(error),
                exc_info=not isinstance(error, StoreError),
            )  # fmt: skip
            result = Replay.FAILED
        else:
            result = Replay.MISSING
            if backup is not None:
                blob, result = backup.blob, Replay.SENT
                self._log_replayed(backup.revision)
        if not self._closing:
            self._server.tally.replays[slot.kind, result] += 1
            self._carry_out(session.retrieved(blob))
            self._process()

    def _log_replayed(self, revision: Revision) -> None:
        if self._server.log.is_enabled_for(logging.DEBUG):
            slot = revision.slot
            self._server.log.debug(
                "replayed", node_id=slot.node_id.hex(), kind=slot.kind.label,
                channel_id=slot.channel_id.hex(), revision=revision.revision, size=revision.size,
            )  # fmt: skip

    def _flush(self) -> None:
        data = self._connection.data_to_send()
        if data:
            self._transport.write(data)
        # Only now: what was read before has left, or it keeps the next one waiting.
        self._read_wanted()

    def _broken(self, error: TransportError) -> None:
        """BOLT 8 was broken: close at once, answer nothing."""
        session = self._session
        if isinstance(error, DecryptionError) and session and session.silent_since_init:
            # CLN's warning about an init that it does not like can't be decrypted.
            self._log_end("the peer hung up on our init")
        else:
            self._log_end(str(error))
        if not self._connection.authenticated:
            self._server.refuse(self._host(), "bad_handshake")
            self._fate = Handshake.BAD
        self._end_session(hung_up=isinstance(error, DecryptionError))
        self.abort()

    def _arm(self) -> None:
        """Have `_on_timer` called at the next deadline; a timer that is early does no harm."""
        if self._session is not None:
            deadline = self._session.next_deadline()
            if not self._reading and (ahead_until := self._ahead_until()):
                deadline = min(deadline, ahead_until)
        else:
            if self._acts != self._connection.acts_received:
                self._acts = self._connection.acts_received
                if not self._connection.authenticated:
                    self._deadline = self._server.loop.time() + self._server.limits.handshake
            deadline = self._deadline
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._server.loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._server.loop.time()
        if self._session is not None:
            self._carry_out(self._session.tick(now))
            self._process()
        elif now >= self._deadline:
            if self._connection.authenticated:
                self._log_end("the store hangs")
            else:
                self._log_end("handshake timeout")
                self._server.refuse(self._host(), "handshake_timeout")
                self._fate = Handshake.TIMEOUT
            self.abort()
        else:
            self._arm()

    def _remote_addr(self) -> bytes | None:
        """The peer's address as BOLT 1 wants it echoed: only a public one that it came from."""
        peer = self._transport.get_extra_info("peername")
        if not peer or not self.inbound:
            return None
        address = parse_ip(peer[0])
        if address is None or not address.is_global:
            return None
        return address_descriptor(address, peer[1])

    def _host(self) -> str:
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if peer else "unknown"

    def _address(self) -> str:
        if self.proxied:
            return self.proxied
        peer = self._transport.get_extra_info("peername")
        return format_host_port(peer[0], peer[1]) if peer else "unknown"

    def _hex_id(self) -> str:
        return self.node_id.hex() if self.node_id is not None else ""

    def _log_end(self, reason: str) -> None:
        self._ended_because = reason
        if not self._connection.authenticated:
            self._ended_because += ": is this its node id?"
        self._server.log.debug(
            "peer_disconnected", node_id=self._hex_id(), address=self._address(), reason=reason
        )


def _visit(lease: Lease) -> Visit | None:
    """The last visit of a peer that has something here."""
    stored = any(True for _ in lease.slots)
    return Visit(lease.last_height) if stored else None


def stored_of(lease: Lease) -> Stored:
    """What a connection's session has to know of what is stored."""
    kinds = {slot.kind for slot in lease.slots}
    return Stored(
        peer_storage=BackupKind.PEER_STORAGE in kinds,
        node_backup=BackupKind.NODE_BACKUP in kinds and not lease.node_backup_forgone,
        # As it is now: what is committed later is not what this connection gets back.
        channels=dict(lease.channels),
    )
