"""Peers that talk, misbehave and come back, over BOLT 8, with a real store behind.

Each peer has a model of what it must get back; see test_dialect_model.py for it. What one peer
does, right or wrong, never changes what another has. With `--long` far more lives are tried.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from peerstore.connection import Connection
from peerstore.errors import HandshakeError
from peerstore.session import HANG_UP_SECONDS
from peerstore.store.base import Quotas
from peerstore.store.operations import Transaction
from peerstore.store.sqlite import SqliteStore
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import BackupKind, NodeId, Slot
from peerstore.wire.features import OURS
from peerstore.wire.messages import (
    Init,
    PeerStorage,
    Ping,
    Pong,
    UpdateChannelBackup,
    UpdateNodeBackup,
    WarningMessage,
)
from tests.fuzz import reference
from tests.fuzz.books import CHAIN
from tests.fuzz.chain import PROVIDER, Link, Provider, ephemeral, on_disk
from tests.helpers import key_pair
from tests.test_dialect_model import CHANNELS, SHUTDOWN, Model, check_replay, random_message
from tests.test_store import SqliteBackend

T = TypeVar("T")

KEYS = [key_pair(fill) for fill in (0x41, 0x42, 0x43)]
MOST_SILENCE = 120.0

who = st.integers(0, len(KEYS) - 1)
seeds = st.integers(0, 1 << 32)
sizes = st.sampled_from([1, 7, 50, 1 << 20, 1 << 20])


async def nothing(_transaction: Transaction) -> set[NodeId]:
    """An operation that is done when all before it are."""
    return set()


@dataclass
class Life:
    """A peer: what it must get back, and its connection."""

    key: KeyPair
    model: Model = field(default_factory=Model)
    link: Link | None = None
    shown_at: float | None = None
    settled: bool = True
    """Whether the store has decided on all that it was given."""

    def expected(self) -> dict[Slot, bytes]:
        """The SHA-256 of all that it has stored."""
        blobs = {
            Slot(self.key.node_id, BackupKind.PEER_STORAGE): self.model.storage,
            Slot(self.key.node_id, BackupKind.NODE_BACKUP): self.model.node,
        }
        for channel_id, channel in self.model.channels.items():
            slot = Slot(self.key.node_id, BackupKind.CHANNEL_BACKUP, channel_id)
            blobs[slot] = channel.blob
        return {s: hashlib.sha256(b).digest() for s, b in blobs.items() if b is not None}


class Peers(RuleBasedStateMachine):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp(prefix="peerstore-peers-"))
        self.lives = [Life(key) for key in KEYS]
        self.connections = 0
        self.blobs = 0

    def run(self, coroutine: Coroutine[None, None, T]) -> T:
        return self.runner.run(coroutine)

    @initialize()
    def open_store(self) -> None:
        # The newest comes back, whatever its size.
        self.backend = SqliteBackend(self.directory, Quotas(hold_on_shrink=0, min_free_space=0))
        self.store: SqliteStore = self.run(self.backend.open())
        for number, life in enumerate(self.lives):
            link = self.connected(number)
            shutdown = SHUTDOWN.to_bytes(2, "big") + CHANNELS[number]
            kinds = (PeerStorage, UpdateNodeBackup, UpdateChannelBackup)
            messages = [*(kind(self.blob()).encode() for kind in kinds), shutdown]
            self.run(link.say(*messages))
            self.took(life, messages)

    def teardown(self) -> None:
        self.run(self.backend.dispose())
        self.runner.close()
        shutil.rmtree(self.directory)

    def now(self) -> float:
        return self.backend.clock.monotonic

    def blob(self) -> bytes:
        """One that there was not before."""
        self.blobs += 1
        return b"blob %d" % self.blobs + bytes(self.blobs % 300)

    def new_link(self, key: KeyPair) -> Link:
        self.connections += 1
        number = 2 * self.connections
        peer = Connection(key, remote_node_id=PROVIDER.node_id, ephemeral=ephemeral(number))
        connection = Connection(PROVIDER, ephemeral=ephemeral(number + 1))
        provider = Provider(self.store, self.now, self.backend.path, connection)
        return Link(peer, provider)

    def connected(self, number: int) -> Link:
        """The peer's connection; a new one where there is none."""
        if self.lives[number].link is None:
            self.connect(number, wants=True, forgotten=False)
        link = self.lives[number].link
        assert link is not None
        return link

    @staticmethod
    def took(life: Life, messages: Sequence[bytes]) -> None:
        """The provider has taken messages of a peer."""
        assert life.link is not None
        assert not life.link.over
        life.link.said = True
        life.settled = False
        for message in messages:
            life.model.take(message)

    # A connection and its end

    @rule(number=who, wants=st.booleans(), forgotten=st.booleans())
    def connect(self, number: int, wants: bool, forgotten: bool) -> None:
        """A new connection; the older one is ended, or `forgotten` and fenced off."""
        life = self.lives[number]
        older = life.link
        if older is not None:
            if not forgotten:
                self.run(older.provider.end(hung_up=False))
            life.model.end()
        life.link = link = self.new_link(life.key)
        self.run(link.shake_hands())
        life.settled = True
        if older is not None and forgotten:
            # Nothing that it says is taken.
            self.run(older.say(PeerStorage(b"too late").encode()))
            assert older.provider.fenced_off or older.over
            self.run(older.provider.end(hung_up=False))
        features = OURS | (1 << 41) * wants
        self.run(link.say(Init(features, (CHAIN,)).encode()))
        sent = link.heard()
        model = life.model
        shown = wants and not model.forgone and model.node is not None
        assert [type(message) for message in sent[:1]] == [Init]
        check_replay(model, sent, wants=wants, shown=shown)
        model.begin(wants)
        life.shown_at = self.now() if shown else None

    def ended(self, life: Life, *, hung_up: bool) -> None:
        """The connection is over."""
        link, life.link = life.link, None
        assert link is not None
        in_time = life.shown_at is not None and self.now() <= life.shown_at + HANG_UP_SECONDS
        if hung_up and in_time and not link.said:
            life.model.forgone = True
        life.model.end()

    @rule(number=who, wants=st.booleans(), seconds=st.sampled_from([0, 0, HANG_UP_SECONDS + 1]))
    def come_and_hang_up(self, number: int, wants: bool, seconds: float) -> None:
        """As who can't bear what our `init` carries, if it comes at once."""
        self.settle()
        self.connect(number, wants, forgotten=False)
        self.backend.clock.advance(seconds)
        self.cut(number, hung_up=True)

    @rule(number=who, hung_up=st.booleans())
    def cut(self, number: int, hung_up: bool) -> None:
        """The connection is lost between two messages."""
        link = self.lives[number].link
        if link is not None:
            self.run(link.provider.end(hung_up=hung_up))
            self.ended(self.lives[number], hung_up=hung_up)

    @rule(number=who, share=st.floats(0, 1, exclude_max=True))
    def cut_in_a_message(self, number: int, share: float) -> None:
        """The connection is lost when a part of an update has come."""
        link = self.connected(number)
        link.peer.send_message(PeerStorage(self.blob()).encode())
        frame = link.peer.data_to_send()
        self.run(link.send(frame[: int(share * len(frame))]))
        self.run(link.provider.end(hung_up=False))
        self.ended(self.lives[number], hung_up=False)

    # What is said

    @rule(number=who, seed=seeds, count=st.integers(1, 8), size=sizes, settle=st.booleans())
    def say(self, number: int, seed: int, count: int, size: int, settle: bool) -> None:
        """Messages that can be read, whole or in pieces, with what they ask for answered."""
        link = self.connected(number)
        lots = random.Random(seed)  # noqa: S311 - nothing secret
        messages = [random_message(lots) for _ in range(count)]
        self.run(link.say(*messages, size=size))
        self.took(self.lives[number], messages)
        if settle:
            self.settle()
        # peer_storage is never refused here.
        for message in link.heard():
            if isinstance(message, WarningMessage) and message.text.startswith("storage: "):
                assert "update_" in message.text, message.text

    def complete(self, life: Life) -> None:
        """Have no backup of a channel on offer, for which pongs would wait, and nothing to say
        of the updates so far."""
        assert life.link is not None
        if life.model.waits:
            shutdown = SHUTDOWN.to_bytes(2, "big") + (life.model.named or CHANNELS[0])
            self.run(life.link.say(shutdown))
            life.model.take(shutdown)
        self.run(life.link.say(Ping(0).encode()))
        life.link.said = True
        self.settle()
        life.link.heard()

    @rule(number=who, padding=st.integers(0, 300), asked=st.sampled_from([0, 1, 65531]))
    def store_and_confirm(self, number: int, padding: int, asked: int) -> None:
        """What a good peer does."""
        link, life = self.connected(number), self.lives[number]
        self.complete(life)
        message = PeerStorage(self.blob() + bytes(padding)).encode()
        self.run(link.say(message, Ping(asked).encode()))
        self.took(life, [message])
        self.settle()
        pongs = [m for m in link.heard() if isinstance(m, Pong)]
        assert len(pongs[-1].ignored) == asked

    @rule(number=who)
    def store_while_the_disk_fails(self, number: int) -> None:
        """Nothing changes, and the peer is told."""
        link = self.connected(number)
        self.complete(self.lives[number])
        self.run(self._fail(link))
        heard = link.heard()
        assert [type(message) for message in heard[-2:]] == [WarningMessage, Pong]
        warning = heard[-2]
        assert isinstance(warning, WarningMessage)
        assert warning.text.startswith("storage: ")
        link.said = True

    async def _fail(self, link: Link) -> None:
        # Nothing is being written while the disk is made to fail behind the store's back.
        await self.store.run(nothing)
        async with self.backend.fail_writes():
            await link.say(PeerStorage(self.blob()).encode(), Ping(1).encode())
            await self.store.settle()
            link.listen()

    @rule(number=who, seed=seeds)
    def say_what_is_ignored(self, number: int, seed: int) -> None:
        """Gossip, and odd types that nobody knows."""
        link = self.connected(number)
        lots = random.Random(seed)  # noqa: S311 - nothing secret
        numbers = [lots.choice((256, 257, 258, 513, 39409, lots.randrange(301, 65536, 2)))]
        data = [n.to_bytes(2, "big") + lots.randbytes(lots.randrange(200)) for n in numbers]
        self.run(link.say(*data))
        self.took(self.lives[number], ())

    @rule(number=who, seed=seeds)
    def say_what_can_not_be_read(self, number: int, seed: int) -> None:
        """It is told so, the connection ends, and nothing has come of it."""
        self.connected(number)
        lots = random.Random(seed)  # noqa: S311 - nothing secret
        kind = lots.choice((PeerStorage, UpdateNodeBackup))
        blob = self.blob()
        data = bytearray(kind(blob).encode())
        if lots.random() < 0.5:  # more declared than there is, or less than what follows
            data[2:4] = (len(blob) + lots.randint(1, 9)).to_bytes(2, "big")
        else:
            data += lots.choice((b"\x02\x00", b"\x01", b"\x01\x05ab", b"\x03\x00\x01\x00"))
        if reference.parse(bytes(data)) is None:
            self.say_the_last(self.lives[number], bytes(data), "storage: ")

    @rule(
        number=who,
        data=st.sampled_from([b"", b"\x00", b"\x00\x10\x00\x00\x00\x00", b"\x01\x2c", b"\x00\x04"]),
    )
    def say_what_is_not_allowed(self, number: int, data: bytes) -> None:
        """No type, a second init, even types that nobody knows."""
        self.connected(number)
        self.say_the_last(self.lives[number], data, "")

    def say_the_last(self, life: Life, data: bytes, warning: str) -> None:
        link = life.link
        assert link is not None
        self.settle()
        link.heard()
        self.run(link.say(data))
        heard = link.heard()
        assert link.over
        assert isinstance(heard[-1], WarningMessage)
        assert heard[-1].text.startswith(warning)
        link.said = True
        self.run(link.provider.end(hung_up=False))
        self.ended(life, hung_up=False)

    # What is no message at all

    @rule(number=who, share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def change_a_bit(self, number: int, share: float, bit: int) -> None:
        """The MAC of an update is wrong."""
        link = self.connected(number)
        link.peer.send_message(PeerStorage(self.blob()).encode())
        frame = bytearray(link.peer.data_to_send())
        frame[int(share * len(frame))] ^= 1 << bit
        self.break_off(self.lives[number], bytes(frame))

    @rule(number=who)
    def send_twice(self, number: int) -> None:
        """A frame comes again: the first counts, the second ends the connection."""
        link, life = self.connected(number), self.lives[number]
        message = PeerStorage(self.blob()).encode()
        link.peer.send_message(message)
        frame = link.peer.data_to_send()
        self.run(link.send(frame))
        self.took(life, [message])
        self.break_off(life, frame)

    @rule(number=who, seed=seeds, size=st.integers(18, 3000))
    def send_junk(self, number: int, seed: int, size: int) -> None:
        self.connected(number)
        junk = random.Random(seed).randbytes(size)  # noqa: S311 - nothing secret
        self.break_off(self.lives[number], junk)

    def break_off(self, life: Life, data: bytes) -> None:
        link = life.link
        assert link is not None
        self.run(link.send(data))
        assert link.over
        self.ended(life, hung_up=True)

    @rule(seed=seeds, size=st.integers(0, 200), good=st.integers(0, 2))
    def come_as_nobody(self, seed: int, size: int, good: int) -> None:
        """A handshake that goes wrong, after no or one good act; nobody's connection ends."""
        link = self.new_link(KEYS[0])
        if good:
            self.run(link.send(link.peer.data_to_send()))
        junk = random.Random(seed).randbytes(size)  # noqa: S311 - nothing secret
        self.run(link.send(junk))
        assert link.provider.lease is None
        assert not link.provider.connection.authenticated
        with pytest.raises(HandshakeError):
            link.provider.connection.receive_eof()

    # What else happens

    def settle(self) -> None:
        """The store decides on all that it was given."""
        self.run(self.store.settle())
        for life in self.lives:
            life.settled = True
            if life.link is not None:
                life.link.listen()

    @rule(seconds=st.sampled_from([0.5, 2.0, HANG_UP_SECONDS + 1, 60.0, MOST_SILENCE]))
    def time_passes(self, seconds: float) -> None:
        """Sessions ping, and give up those that have been silent for too long."""
        self.settle()
        self.backend.clock.advance(seconds)
        for life in self.lives:
            link = life.link
            if link is None:
                continue
            self.run(link.provider.tick())
            link.listen()
            assert link.over or seconds < MOST_SILENCE
            if link.over:
                self.ended(life, hung_up=False)
            elif answers := link.peer.data_to_send():
                self.run(link.send(answers))
                link.said = True
                assert not link.over

    @rule()
    def restart(self) -> None:
        """The provider stops and starts; the connections are gone."""
        for life in self.lives:
            if life.link is not None:
                self.run(life.link.provider.end(hung_up=False))
                self.ended(life, hung_up=False)
        self.run(self.store.close())
        self.store = self.run(self.backend.open())
        for life in self.lives:
            life.settled = True

    @invariant()
    def each_has_its_own_and_nothing_else(self) -> None:
        there = on_disk(self.backend.path)
        assert {slot.node_id for slot in there} <= {key.node_id for key in KEYS}
        for life in self.lives:
            if life.settled:
                own = {s: d for s, d in there.items() if s.node_id == life.key.node_id}
                assert own == life.expected()


@pytest.mark.timeout(7200)  # for --long
def test_nobody_changes_what_another_has(request: pytest.FixtureRequest) -> None:
    long = request.config.getoption("--long", default=False)
    run_state_machine_as_test(
        Peers,
        settings=settings(
            max_examples=3000 if long else 32,
            stateful_step_count=60 if long else 30,
            deadline=None,
            # To make a failing life short takes minutes: that is for --long too.
            phases=list(Phase) if long else [Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
