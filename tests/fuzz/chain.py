"""Both ends of a connection in memory: BOLT 8, a session and a real store behind it.

What server.py does with sockets is done here with bytes: one piece after the other, and the store
is waited for where the session has to.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peerstore.connection import Authenticated, Connection
from peerstore.errors import DecryptionError, StoreClosedError, TransportError
from peerstore.server import stored_of
from peerstore.session import Action, Close, Forgo, Retrieve, Send, Session, State, Store
from peerstore.store.base import Lease
from peerstore.store.sqlite import SqliteStore
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import BackupKind, NodeId, Slot
from peerstore.wire.messages import Message, Ping, Pong, WarningMessage, decode_message
from tests.fuzz.books import CHAIN
from tests.helpers import key_pair, take_events

PROVIDER = key_pair(0x21)

Clock = Callable[[], float]


def ephemeral(number: int) -> KeyPair:
    """One of many fixed keys."""
    return KeyPair.from_private_bytes(hashlib.sha256(b"ephemeral %d" % number).digest())


def on_disk(database: Path) -> dict[Slot, bytes]:
    """The SHA-256 of the current version of every slot, read past the store."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
        rows = reader.execute(
            "SELECT node_id, kind, channel_id, sha256 FROM backup WHERE replaced IS NULL"
        ).fetchall()
    return {
        Slot(NodeId(node_id), BackupKind(kind), channel_id): sha256
        for node_id, kind, channel_id, sha256 in rows
    }


@dataclass
class Provider:
    """The provider's end of one connection; it is its lease's listener too."""

    store: SqliteStore
    clock: Clock
    database: Path
    connection: Connection
    lease: Lease | None = None
    session: Session | None = None
    over: bool = False
    fenced_off: bool = False
    """Whether the store has refused an update, for a newer connection has taken over."""
    wanted: Retrieve | None = None
    updates: list[bytes] = field(default_factory=list)
    """SHA-256 of each peer_storage handed in, in order."""
    pings: list[tuple[int, int]] = field(default_factory=list)
    """How many had been handed in at the ping before, and at each that is not answered yet."""
    before: int = 0
    warned: bool = False

    async def receive(self, data: bytes) -> None:
        """Bytes of the peer."""
        self.connection.receive_data(data)
        try:
            while not self.over and (event := self.connection.next_event()) is not None:
                if isinstance(event, Authenticated):
                    await self.open_session(event.node_id)
                else:
                    await self.take(event)
        except TransportError as error:
            await self.end(hung_up=isinstance(error, DecryptionError))

    async def open_session(self, node_id: NodeId) -> None:
        """The peer is known."""
        self.lease = await self.store.open_lease(node_id, self)
        self.session = Session(chain_hash=CHAIN, now=self.clock(), stored=stored_of(self.lease))
        await self.carry_out(self.session.start())

    async def take(self, message: bytes) -> None:
        """One message."""
        assert self.session is not None
        if not self.session.ready:
            await self.store.settle()
        if message[:2] == b"\x00\x12" and len(message) >= 6 and message[2:4] < b"\xff\xfc":
            self.pings.append((self.before, len(self.updates)))
            self.before = len(self.updates)
        await self.carry_out(self.session.receive(message, self.clock()))

    async def carry_out(self, actions: Sequence[Action]) -> None:
        """Do what the session wants done, and read what is to be given back."""
        self.do(actions)
        while self.wanted is not None and not self.over:
            assert self.lease is not None
            assert self.session is not None
            wanted, self.wanted = self.wanted, None
            backup = await self.lease.read(Slot(self.lease.node_id, wanted.kind, wanted.channel_id))
            self.do(self.session.retrieved(None if backup is None else backup.blob))

    def do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.look_at(decode_message(action.message))
                self.connection.send_message(action.message)
            elif isinstance(action, Store):
                self.put(action)
            elif isinstance(action, Retrieve):
                self.wanted = action
            elif isinstance(action, Forgo):
                assert self.lease is not None
                self.lease.forgo_node_backup()
            elif isinstance(action, Close):
                self.over = True

    def put(self, action: Store) -> None:
        assert self.lease is not None
        slot = Slot(self.lease.node_id, action.kind, action.channel_id)
        try:
            self.lease.put(action.sequence, slot, action.blob, action.channel)
        except StoreClosedError:
            self.fenced_off = True
            return
        if action.kind is BackupKind.PEER_STORAGE and action.blob is not None:
            self.updates.append(hashlib.sha256(action.blob).digest())

    def look_at(self, message: Message) -> None:
        """What a pong confirms is on the disk at that moment."""
        if isinstance(message, WarningMessage):
            self.warned = self.warned or message.text.startswith("storage: ")
        if not isinstance(message, Pong):
            return
        first, last = self.pings.pop(0)
        if first < last and not self.warned:
            assert self.lease is not None
            slot = Slot(self.lease.node_id, BackupKind.PEER_STORAGE)
            there = on_disk(self.database).get(slot)
            assert there in self.updates[last - 1 :], "a pong before the commit"
        self.warned = False

    async def end(self, *, hung_up: bool) -> None:
        """The connection is gone."""
        self.over = True
        if self.session is not None:
            await self.carry_out(self.session.end(self.clock(), hung_up=hung_up))
        if self.lease is not None:
            self.lease.close()

    async def tick(self) -> None:
        """Time has passed."""
        if self.session is not None and not self.over:
            await self.carry_out(self.session.tick(self.clock()))
            if self.session.state is State.CLOSED:
                await self.end(hung_up=False)

    # The store's word

    def stored(self, sequence: int) -> None:
        if self.session is not None and not self.over:
            self.do(self.session.stored(sequence, self.clock()))

    def refused(self, sequences: Sequence[int], reason: str) -> None:
        if self.session is not None:
            self.session.refused(sequences, reason)

    def not_stored(self, sequence: int, reason: str) -> None:
        if self.session is not None and not self.over:
            self.do(self.session.not_stored(sequence, reason, self.clock()))


@dataclass
class Link:
    """A peer's end, and the provider's."""

    peer: Connection
    provider: Provider
    received: list[Message] = field(default_factory=list)
    """What the peer has been sent, since this was last emptied."""
    said: bool = False
    """Whether the peer has sent anything behind its `init`."""

    @property
    def over(self) -> bool:
        """Whether the provider has ended it."""
        return self.provider.over

    async def shake_hands(self) -> None:
        """The three acts."""
        await self.provider.receive(self.peer.data_to_send())
        self.listen()
        await self.provider.receive(self.peer.data_to_send())
        self.listen()
        assert self.peer.authenticated

    async def say(self, *messages: bytes, size: int = 1 << 20) -> None:
        """Send messages in pieces of so many bytes, and hear what is answered."""
        for message in messages:
            self.peer.send_message(message)
        await self.send(self.peer.data_to_send(), size)

    async def send(self, data: bytes, size: int = 1 << 20) -> None:
        """Send bytes as they are."""
        for start in range(0, len(data), size):
            await self.provider.receive(data[start : start + size])
        self.listen()

    def listen(self) -> None:
        """Take what the provider has sent."""
        self.peer.receive_data(self.provider.connection.data_to_send())
        for event in take_events(self.peer):
            if not isinstance(event, Authenticated):
                message = decode_message(event)
                if isinstance(message, Ping) and message.num_pong_bytes < 65532:
                    self.peer.send_message(Pong(bytes(message.num_pong_bytes)).encode())
                self.received.append(message)

    def heard(self) -> list[Message]:
        """What came since the last call."""
        received, self.received = self.received, []
        return received
