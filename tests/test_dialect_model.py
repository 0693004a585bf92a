"""Streams of both dialects against a simple model: what is given back is what the model says.

Each stream is one peer's life: connections with and without bit 41, in each a random mix of
peer_storage, update_node_backup, update_channel_backup and channel messages, and all ways to end.
They go through real sessions into a real database; many peers at a time, for the sake of commits.
With `--long` ten times as many streams are played.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from peerstore.server import stored_of
from peerstore.session import Action, Forgo, Retrieve, Send, Session, Store
from peerstore.store.base import Lease, Quotas
from peerstore.store.sqlite import SqliteStore
from peerstore.types import Network, NodeId, Slot
from peerstore.wire.features import OURS
from peerstore.wire.messages import (
    ChannelReestablish,
    Init,
    Message,
    PeerStorage,
    PeerStorageRetrieval,
    Ping,
    RevokeAndAck,
    StartBatch,
    UpdateChannelBackup,
    UpdateNodeBackup,
    decode_message,
)
from tests.store_contract import peer
from tests.test_store import SqliteBackend

STREAMS, LONG_STREAMS = 4_000, 100_000
AT_ONCE = 250
"""Peers that live at the same time."""

CHAIN = Network.REGTEST.chain_hash
CHANNELS = [bytes((number,)) * 32 for number in (1, 2, 3)]
POINT = b"\x02" + bytes(32)
TOO_LARGE = bytes(32001)
FUNDING_SIGNED, SHUTDOWN, CLOSING_SIGNED, TX_COMPLETE, TX_SIGNATURES = 35, 38, 39, 70, 71
UPDATE_ADD_HTLC, COMMITMENT_SIGNED, REVOKE_AND_ACK, REESTABLISH = 128, 132, 133, 136


@dataclass
class Channel:
    """What the model knows of a channel, by the words of PROTOCOL.md, section 4."""

    blob: bytes | None = None
    commitments: int = 0
    revocations: int = 0
    secret: bytes = bytes(32)
    # Within a connection:
    batch: int = 0
    signing: bool = False

    def replayed(self, channel_id: bytes) -> tuple[object, ...]:
        return channel_id, self.commitments + 1, self.revocations, self.secret, self.blob


@dataclass
class Model:
    """A peer's backups."""

    storage: bytes | None = None
    node: bytes | None = None
    forgone: bool = False
    channels: dict[bytes, Channel] = field(default_factory=dict)
    # Within a connection: the bit, the blob that waits (None: refused), the channel it has.
    wants: bool = False
    waits: bool = False
    blob: bytes | None = None
    named: bytes | None = None

    def begin(self, wants: bool) -> None:
        self.wants, self.waits = wants, False

    def end(self) -> None:
        """What belongs to no stored backup is forgotten."""
        self.channels = {i: c for i, c in self.channels.items() if c.blob is not None}
        for channel in self.channels.values():
            channel.batch, channel.signing = 0, False

    def take(self, data: bytes) -> None:
        """One message of the peer."""
        number = int.from_bytes(data[:2], "big")
        if number == PeerStorage.TYPE:
            self.storage = data[4:]
        elif number == UpdateNodeBackup.TYPE:
            if self.wants and len(data) - 4 <= 32000:
                self.node, self.forgone = data[4:], False
        elif number == UpdateChannelBackup.TYPE:
            good = self.wants and len(data) - 4 <= 32000
            self.waits, self.blob, self.named = True, data[4:] if good else None, None
        elif number != Ping.TYPE:
            self.take_channel_message(number, data)

    def take_channel_message(self, number: int, data: bytes) -> None:
        channel_id = data[2:34]
        channel = self.channels.setdefault(channel_id, Channel())
        if number == StartBatch.TYPE:
            channel.batch = data[35]
            return
        if self.waits:
            self.named = self.named or channel_id
            if self.named != channel_id:
                self.waits = False
        if number == COMMITMENT_SIGNED and channel.batch > 1:
            channel.batch -= 1
            return
        channel.batch = 0
        if number == COMMITMENT_SIGNED and not channel.signing:
            channel.commitments += 1
        elif number == REVOKE_AND_ACK:
            channel.revocations += 1
            channel.secret = data[34:66]
        elif number in (TX_COMPLETE, TX_SIGNATURES):
            channel.signing = number == TX_COMPLETE
        completes = (FUNDING_SIGNED, SHUTDOWN, CLOSING_SIGNED, COMMITMENT_SIGNED, REVOKE_AND_ACK)
        if self.waits and number in completes:
            self.waits = False
            if self.blob is not None:
                channel.blob = self.blob


def random_message(lots: random.Random) -> bytes:
    """One message that a peer may send."""
    channel_id = lots.choice(CHANNELS)
    blob = TOO_LARGE if lots.random() < 0.05 else lots.randbytes(lots.randint(0, 40))
    number = lots.choice(
        (
            *(PeerStorage.TYPE, UpdateNodeBackup.TYPE, Ping.TYPE, StartBatch.TYPE),
            *(UpdateChannelBackup.TYPE,) * 4,
            *(FUNDING_SIGNED, SHUTDOWN, CLOSING_SIGNED, TX_COMPLETE, TX_SIGNATURES),
            *(UPDATE_ADD_HTLC, REESTABLISH),
            *(COMMITMENT_SIGNED, REVOKE_AND_ACK) * 3,
        )
    )
    if number == REVOKE_AND_ACK:
        return RevokeAndAck(channel_id, lots.randbytes(32), POINT).encode()
    if number == StartBatch.TYPE:
        return StartBatch(channel_id, lots.randint(2, 4), COMMITMENT_SIGNED).encode()
    if number == Ping.TYPE:
        return Ping(0).encode()
    for kind in (PeerStorage, UpdateNodeBackup, UpdateChannelBackup):
        if number == kind.TYPE:
            return kind(blob).encode()
    return number.to_bytes(2, "big") + channel_id + lots.randbytes(lots.choice((0, 70)))


class Listener:
    """Tells a session what became of its updates; what it says then is of no interest here."""

    def __init__(self) -> None:
        self.session: Session | None = None

    def stored(self, sequence: int) -> None:
        assert self.session is not None
        self.session.stored(sequence, 0.0)

    def refused(self, sequences: Sequence[int], reason: str) -> None:
        raise AssertionError(f"{sequences}: {reason}")

    def not_stored(self, sequence: int, reason: str) -> None:
        raise AssertionError(f"{sequence}: {reason}")


async def carry_out(session: Session, lease: Lease, actions: Sequence[Action]) -> list[Message]:
    """Do what a session wants done, until it waits for its peer; what it sent."""
    sent: list[Message] = []
    queue = list(actions)
    while queue:
        action = queue.pop(0)
        if isinstance(action, Send):
            sent.append(decode_message(action.message))
        elif isinstance(action, Store):
            slot = Slot(lease.node_id, action.kind, action.channel_id)
            lease.put(action.sequence, slot, action.blob, action.channel)
        elif isinstance(action, Retrieve):
            slot = Slot(lease.node_id, action.kind, action.channel_id)
            backup = await lease.read(slot)
            queue += session.retrieved(None if backup is None else backup.blob)
        elif isinstance(action, Forgo):
            lease.forgo_node_backup()
    return sent


async def connect(store: SqliteStore, node_id: NodeId, model: Model, lots: random.Random) -> None:
    """One connection of a peer from beginning to end."""
    listener = Listener()
    lease = await store.open_lease(node_id, listener)
    session = Session(chain_hash=CHAIN, now=0.0, stored=stored_of(lease))
    listener.session = session
    wants = lots.random() < 0.7
    features = OURS | (3 << 40 if lots.random() < 0.2 else 1 << 41) * wants
    late = lots.random() < 0.1
    sent = await carry_out(session, lease, session.start())
    if late:
        sent += await carry_out(session, lease, session.tick(7.5))
    said = session.receive(Init(features, (CHAIN,)).encode(), 8.0)
    sent += await carry_out(session, lease, said)
    assert [type(message) for message in sent[:1]] == [Init]
    shown = wants and not late and not model.forgone and model.node is not None
    check_replay(model, sent, wants=wants, shown=shown)
    model.begin(wants)
    silent = lots.random() < 0.15
    for _ in range(0 if silent else lots.randint(1, 14)):
        data = random_message(lots)
        if not session.ready:
            await lease.settled()
        await carry_out(session, lease, session.receive(data, 9.0))
        model.take(data)
        if lots.random() < 0.1:
            await lease.settled()
    if silent and shown:
        model.forgone = True
    model.end()
    await carry_out(session, lease, session.end(10.0, hung_up=silent or lots.random() < 0.5))
    if lots.random() < 0.5:
        await lease.settled()
    lease.close()


def check_replay(model: Model, sent: list[Message], *, wants: bool, shown: bool) -> None:
    """What a session sent before its peer has said more than init."""
    init, *replayed = sent
    assert isinstance(init, Init)
    assert init.node_backup == (model.node if shown else None)
    storage = [] if model.storage is None else [PeerStorageRetrieval(model.storage)]
    assert replayed[: len(storage)] == storage
    channels = replayed[len(storage) :]
    assert all(isinstance(message, ChannelReestablish) for message in channels)
    assert [
        (
            message.channel_id,
            message.next_commitment_number,
            message.next_revocation_number,
            message.your_last_per_commitment_secret,
            message.channel_backup,
        )
        for message in channels
        if isinstance(message, ChannelReestablish)
    ] == [c.replayed(i) for i, c in sorted(model.channels.items()) if wants]


async def live(store: SqliteStore, number: int, seed: int) -> None:
    """One stream: a peer's whole life."""
    lots = random.Random(seed + number)  # noqa: S311 - nothing secret
    model = Model()
    try:
        for _ in range(lots.randint(2, 5)):
            await connect(store, peer(number), model, lots)
    except AssertionError as error:
        raise AssertionError(f"stream {number} of seed {seed}: {error}") from error


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """A store that always gives back the newest, whatever its size."""
    backend = SqliteBackend(tmp_path, Quotas(hold_on_shrink=0, min_free_space=0))
    try:
        yield await backend.open()
    finally:
        await backend.dispose()


@pytest.mark.timeout(3600)  # for --long
async def test_what_is_given_back_is_what_the_model_says(
    store: SqliteStore, request: pytest.FixtureRequest
) -> None:
    streams = LONG_STREAMS if request.config.getoption("--long", default=False) else STREAMS
    # CI tries the same ones each time; elsewhere new ones are looked for.
    seed = 0 if os.environ.get("CI") else random.SystemRandom().randrange(1 << 32)
    played = 0
    for start in range(0, streams, AT_ONCE):
        await asyncio.gather(*(live(store, n, seed) for n in range(start, start + AT_ONCE)))
        played += AT_ONCE
    assert played == streams
