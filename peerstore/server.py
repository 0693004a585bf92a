"""The only file that owns peer sockets: listening, timers, backpressure, closing.

A socket's bytes go to its Connection, the messages that come out go to its Session, and the
actions that follow are carried out here. There is no task and no thread hop for a message; a
connection costs two short tasks in its life, for opening its lease and for reading what is
replayed.

Backpressure is one rule: bytes are taken from a socket until READ_AHEAD of them wait, and what
waits is looked at only while nothing is in the way: the session is ready, the peer reads what it
is sent, and the store keeps up.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import structlog

from peerstore.connection import Authenticated, Connection
from peerstore.errors import (
    DecryptionError,
    DialError,
    ListenError,
    StoreError,
    TransportError,
)
from peerstore.policy import EVERYONE, Decision, Policy, Visit
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
from peerstore.store.base import Lease, Store
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
from peerstore.wire.messages import address_descriptor

READ_BUFFER = 128 << 10
"""Bytes of one read from a socket: a message of full size fits, with room for the next."""

READ_AHEAD = 64 << 10
"""Bytes of a connection that may wait while something is in the way of looking at them."""

WRITE_AHEAD = 64 << 10
"""Bytes that may be gathered for one write."""

CLOSE_SECONDS = 5.0
"""How long a peer may take to read what was sent before we closed."""

DIAL_SECONDS = 20.0
"""How long a connection that we dial may take until both have said `init`."""

BACKLOG = 1024
"""Connections that the kernel completes before they are accepted."""

ACCEPTS = 16
"""Connections accepted in one turn of the loop: asyncio's backlog is this number as well."""

MESSAGES_PER_TURN = 64
"""Messages of one peer that are looked at before the others have their turn."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: for each act of the handshake, and what a session waits for."""

    handshake: float = 5.0
    session: Timeouts = field(default_factory=Timeouts)


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
    ) -> None:
        self.key = key
        self.policy = policy
        self.network = network
        self.store = store
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.peers: dict[NodeId, PeerConnection] = {}
        """The newest connection of each peer that is authenticated."""
        self.connections: set[PeerConnection] = set()
        """Every open connection, in whatever state."""
        self.events: collections.Counter[str] = collections.Counter()
        """How often each event of the sessions' reports came since the start."""
        self.frozen = False
        self.addresses: list[tuple[str, int]] = []
        """Where it listens, with the ports that the kernel picked for port 0."""
        # One buffer serves every socket: a read and its use are never interrupted.
        self.read_buffer = memoryview(bytearray(READ_BUFFER))
        # Bound once: a lazy logger is made anew at every call.
        self.log = structlog.get_logger().bind()
        self._servers: list[asyncio.Server] = []
        self._empty: asyncio.Event | None = None

    async def listen(self, addresses: Iterable[tuple[str, int]]) -> None:
        """Listen on IP addresses and ports.

        A host without IPv6 gets a warning. Raises ListenError when an address can't be had, and
        when there is none.
        """
        for host, port in addresses:
            try:
                sock = _listening_socket(host, port)
                server = await self.loop.create_server(
                    lambda: PeerConnection(self), sock=sock, backlog=ACCEPTS
                )
                sock.listen(BACKLOG)
            except OSError as error:
                where = format_host_port(host, port)
                if ":" in host and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    self.log.warning("no_ipv6", address=where, error=error.strerror)
                    continue
                self.close_listeners()
                raise ListenError(_listen_failure(where, error)) from error
            self._servers.append(server)
            self.addresses += [sock.getsockname()[:2] for sock in server.sockets]
        if not self._servers:
            raise ListenError("listen.addresses has no address that can be listened on here")

    async def dial(self, address: NodeAddress) -> PeerConnection:
        """Connect to a peer, and return when both have said `init`.

        A connection that is there already is enough. Raises DialError.
        """
        if address.node_id == self.key.node_id:
            raise DialError(f"{address} is this node itself")
        there = self.peers.get(address.node_id)
        if there is not None and there.met:
            return there
        try:
            connection = PeerConnection(self, address.node_id, self.loop.create_future())
        except TransportError:
            raise DialError(f"{address}: the node id is no point on the curve") from None
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await self.loop.create_connection(lambda: connection, address.host, address.port)
                await connection.both_said_init()
        except TimeoutError:
            connection.abort()
            raise DialError(f"{address}: no answer within {DIAL_SECONDS:g} s") from None
        except (OSError, ValueError) as error:  # ValueError: no host name at all
            why = getattr(error, "strerror", None) or error
            raise DialError(f"{address}: can't connect: {why}") from error
        except DialError as error:
            raise DialError(f"{address}: {error}") from None
        return connection

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

    def close_listeners(self) -> None:
        """Accept nobody any more. Never waits: asyncio's wait_closed waits for idle peers."""
        for server in self._servers:
            server.close()
        self._servers.clear()

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
        node_id = connection.node_id
        if node_id is not None and self.peers.get(node_id) is connection:
            del self.peers[node_id]
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
        "_lease",
        "_met",
        "_opened_at",
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
        "met",
        "node_id",
    )

    def __init__(
        self,
        server: PeerServer,
        remote: NodeId | None = None,
        met: asyncio.Future[None] | None = None,
    ) -> None:
        """`remote` is whom we dial, `met` is done when both have said `init`."""
        self.node_id: NodeId | None = None
        self.met = False
        """Whether the peer's `init` has come and was right."""
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
        self._reading = True
        self._writable = True
        self._uncommitted = False

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)
        self._opened_at = self._server.loop.time()
        self._deadline = self._opened_at + self._server.limits.handshake
        self._flush()  # act one, if it is ours to say
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing:
            self._log_end("connection lost" if exc is None else str(exc))
            # What it said before and was not looked at yet would have been an answer.
            self._end_session(hung_up=not self._connection.buffered)
        self._closing = True
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
        if self._session is not None:
            self._session.heard(self._server.loop.time())
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
        self._closing = True
        self._flush()
        self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
        # A peer that is gone or does not read would keep the socket for many minutes.
        self._timer = self._server.loop.call_later(CLOSE_SECONDS, self._transport.abort)

    def abort(self) -> None:
        """Close at once."""
        if not self._closing:
            self._end_session(hung_up=False)
        self._closing = True
        if self._transport is not None:  # else the dial has not got that far
            self._transport.abort()

    async def both_said_init(self) -> None:
        """Wait for the end of the beginning of a connection that we dialed; raises DialError."""
        assert self._met is not None  # noqa: S101 - see __init__
        await self._met

    def follow_policy(self) -> None:
        """Take updates or refuse them as the policy has it now."""
        if self._session is not None and self._lease is not None:
            self._session.refusal = self._decision(self._lease).refusal

    def _decision(self, lease: Lease) -> Decision:
        stored = any(True for _ in lease.slots)
        visit = Visit(lease.last_height) if stored else None
        return self._server.policy.decide(lease.node_id, visit)

    def describe(self) -> dict[str, Any]:
        """The connection as the control socket shows it; times in seconds."""
        return {
            "node_id": self._hex_id(),
            "address": self._address(),
            "inbound": self._remote is None,
            "seconds": int(self._server.loop.time() - self._opened_at),
            "features": encode_features(self._session.features if self._session else 0).hex(),
        }

    def regulate(self) -> None:
        """Read from the socket, or stop reading, as the state of things has it."""
        if self._closing or self._eof:
            return
        wanted = self._connection.buffered < READ_AHEAD and not self._server.frozen
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # Inside

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
        try:
            while self._unhindered():
                if not left:
                    more = True
                    self._server.loop.call_soon(self._process)
                    break
                left -= 1
                event = self._connection.next_event()
                if event is None:
                    break
                if isinstance(event, Authenticated):
                    self._authenticated(event.node_id)
                elif self._session is not None:
                    now = self._server.loop.time()
                    self._carry_out(self._session.receive(event.data, now))
                    if not self.met:
                        self._meet(self._session)
                    if self._connection.outgoing > WRITE_AHEAD:
                        # What the peer does not read has to stop us at once.
                        self._flush()
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
        older = self._server.peers.get(node_id)
        if older is not None:
            older.close("replaced by a newer connection of the same peer")
        self._server.peers[node_id] = self
        # A limit of its own for the store, should it hang.
        self._deadline = self._server.loop.time() + self._server.limits.session.init
        self._task = self._server.loop.create_task(self._open_session(node_id))

    async def _open_session(self, node_id: NodeId) -> None:
        try:
            lease = await self._server.store.open_lease(node_id, self)
        except Exception as error:
            self._store_failed("lease_failed", error)
            self.close("the store can't be read")
            return
        if self._closing:
            lease.close()
            return
        self._lease = lease
        decision = self._decision(lease)
        self._session = Session(
            chain_hash=self._server.network.chain_hash,
            now=self._server.loop.time(),
            remote_addr=self._remote_addr(),
            stored=stored_of(lease),
            offered=OURS if decision.offered else OURS_WITHOUT_STORAGE,
            refusal=decision.refusal,
            initiator=self._remote is not None,
            timeouts=self._server.limits.session,
        )
        self._server.log.debug("peer_connected", node_id=node_id.hex(), address=self._address())
        self._carry_out(self._session.start())
        self._process()

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._connection.send_message(action.message)
            elif isinstance(action, StoreUpdate):
                self._put(action)
            elif isinstance(action, Retrieve):
                self._wanted = action
            elif isinstance(action, Report):
                self._server.events[action.event] += 1
                if action.event == UPDATE_REFUSED and self._lease is not None:
                    self._lease.note_refusal(str(action.details["reason"]))
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
            self._store_failed("replay_failed", error)
        else:
            blob = None if backup is None else backup.blob
        if not self._closing:
            self._carry_out(session.retrieved(blob))
            self._process()

    def _store_failed(self, event: str, error: Exception) -> None:
        self._server.log.error(
            event,
            node_id=self._hex_id(),
            error=str(error),
            exc_info=not isinstance(error, StoreError),
        )

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
        self._end_session(hung_up=isinstance(error, DecryptionError))
        self.abort()

    def _arm(self) -> None:
        """Have `_on_timer` called at the next deadline; a timer that is early does no harm."""
        if self._session is not None:
            deadline = self._session.next_deadline()
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
            waiting_for_store = self._connection.authenticated
            self._log_end("the store hangs" if waiting_for_store else "handshake timeout")
            self.abort()
        else:
            self._arm()

    def _remote_addr(self) -> bytes | None:
        """The peer's address as BOLT 1 wants it echoed: only a public one."""
        peer = self._transport.get_extra_info("peername")
        if not peer:
            return None
        address = ipaddress.ip_address(peer[0].partition("%")[0])
        return address_descriptor(address, peer[1]) if address.is_global else None

    def _address(self) -> str:
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


def stored_of(lease: Lease) -> Stored:
    """What a connection's session has to know of what is stored."""
    kinds = {slot.kind for slot in lease.slots}
    return Stored(
        peer_storage=BackupKind.PEER_STORAGE in kinds,
        node_backup=BackupKind.NODE_BACKUP in kinds and not lease.node_backup_forgone,
        # As it is now: what is committed later is not what this connection gets back.
        channels=dict(lease.channels),
    )


def _listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # [::] beside 0.0.0.0 is IPv6 alone.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _listen_failure(where: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use: stop what listens there or change listen.addresses"
    if error.errno == errno.EACCES:
        return f"{where}: no permission; ports below 1024 need a privilege"
    return f"{where} can't be listened on: {error.strerror or error}"
