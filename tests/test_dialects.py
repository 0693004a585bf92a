"""Both storage dialects over a socket: BOLT 1's, and that of bolts pull request 881.

The node and its peers are those of test_server.py. OTHER_KEY's peer is the one that may speak both;
for KEY something is kept in the first dialect, which no test here may change.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import structlog
import structlog.typing
from coincurve import PublicKey

from peerstore.client import BOTH_DIALECTS, DEFAULT_FEATURES, Client, StorageRefusedError
from peerstore.server import Limits
from peerstore.session import Action, Session, Timeouts
from peerstore.store.base import Backup, Quotas
from peerstore.store.lease import SqliteLease
from peerstore.store.sqlite import SqliteStore
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import BackupKind, Network, Slot
from peerstore.wire.features import OURS
from peerstore.wire.messages import (
    ChannelReestablish,
    ErrorMessage,
    Init,
    Message,
    PeerStorage,
    PeerStorageRetrieval,
    Ping,
    Pong,
    QueryShortChannelIds,
    ReplyShortChannelIdsEnd,
    RevokeAndAck,
    UpdateChannelBackup,
    UpdateNodeBackup,
    WarningMessage,
)
from tests import test_server
from tests.helpers import key_pair
from tests.test_server import (
    CHAIN,
    INIT,
    KEPT,
    KEY,
    NEVER,
    NO_CHANNEL,
    OTHER_KEY,
    PATIENT,
    Deaf,
    Node,
    Peer,
    authenticated,
    dialed,
    init_with,
    lost,
    serving,
    warning_in,
)

node, logged, paused = test_server.node, test_server.logged, test_server.paused

BOTH = Init(OURS | 1 << 41, (CHAIN,))
"""The init of a peer that speaks both dialects."""

HASTY = Limits(NEVER, Timeouts(init=0.6, ping=NEVER, idle=2 * NEVER))
"""For peers that wait for our init: after half of it we don't wait for theirs any more."""

LARGEST = 32000
POINT = key_pair(0x34).node_id
CHANNEL, OTHER_CHANNEL, THIRD_CHANNEL = (bytes((number,)) * 32 for number in (1, 2, 3))
STORAGE, NODE_BACKUP, CHANNEL_BACKUP = b"storage" * 50, b"of the node" * 50, b"of a channel" * 50


def add_htlc(channel_id: bytes) -> bytes:
    """A channel message that completes nothing."""
    return b"\x00\x80" + channel_id + bytes(1000)


def signed(channel_id: bytes) -> bytes:
    """commitment_signed."""
    return b"\x00\x84" + channel_id + bytes(66)


def revoked(channel_id: bytes, secret: int = 0x5E) -> bytes:
    """revoke_and_ack, with a secret whose bytes are all the same."""
    return RevokeAndAck(channel_id, bytes((secret,)) * 32, POINT).encode()


@dataclass(frozen=True)
class Channel:
    """What comes back of a channel: its backup, the two numbers, the secret."""

    blob: bytes | None
    commitment_number: int = 1
    revocation_number: int = 1
    secret: bytes = b"\x5e" * 32


@dataclass
class Given:
    """What a peer gets back."""

    storage: bytes | None = None
    node: bytes | None = None
    channels: dict[bytes, Channel] = field(default_factory=dict)

    def without_881(self) -> Given:
        """As much of it as a peer gets that does not ask for more."""
        return Given(self.storage)


ALL = Given(STORAGE, NODE_BACKUP, {CHANNEL: Channel(CHANNEL_BACKUP)})
"""What `keep` keeps."""


def given_in(messages: Sequence[Message]) -> Given:
    """What a peer was given back by the first messages that it heard, which end with a pong.

    Nothing else may be among them, and all has its place.
    """
    init, *replayed, pong = messages
    assert isinstance(init, Init)
    assert init == replace(INIT, node_backup=init.node_backup)
    assert pong == Pong()
    return given_after_init(replayed, init.node_backup)


def given_after_init(replayed: Iterable[Message], node_backup: bytes | None = None) -> Given:
    """The same for what came after our init."""
    given = Given(node=node_backup)
    for message in replayed:
        if isinstance(message, PeerStorageRetrieval):
            assert (given.storage, given.channels) == (None, {})
            given.storage = message.blob
        else:
            assert isinstance(message, ChannelReestablish)
            assert message.channel_id not in given.channels
            PublicKey(message.my_current_per_commitment_point)  # raises unless it is a point
            given.channels[message.channel_id] = Channel(
                message.channel_backup,
                message.next_commitment_number,
                message.next_revocation_number,
                message.your_last_per_commitment_secret,
            )
    return given


@contextlib.asynccontextmanager
async def greeted(
    node: Node, init: Message | bytes = BOTH
) -> AsyncIterator[tuple[Peer, list[Message]]]:
    """A peer that does not wait for our init, and all that it heard up to its first pong."""
    async with dialed(node, OTHER_KEY) as peer:
        await peer.shake_hands()
        peer.say(init, Ping(0))
        yield peer, await peer.hear_pong()


async def given(node: Node, init: Message = BOTH) -> Given:
    """What a peer gets back that says this init at once, and then a word."""
    async with greeted(node, init) as (_, heard):
        found = given_in(heard)
    await node.store.save_visits()  # an alarm that this has raised is written before
    return found


@contextlib.asynccontextmanager
async def connected(node: Node, offered: int = BOTH_DIALECTS) -> AsyncIterator[Client]:
    """A well-behaved peer after init and what it is given back."""
    async with await Client.connect(node.address, OTHER_KEY) as client:
        await client.init(Network.REGTEST, offered=offered)
        await client.retrieve()
        yield client


async def keep(node: Node) -> None:
    """Store ALL as a well-behaved peer."""
    async with connected(node) as client:
        await client.store(STORAGE)
        await client.store_node_backup(NODE_BACKUP)
        await client.store_channel_backup(CHANNEL_BACKUP, revoked(CHANNEL))
        await client.confirm()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when a session has begun, and our init has gone out unless it waits for the peer's."""
    event = asyncio.Event()
    start = Session.start

    def noticed(session: Session) -> Sequence[Action]:
        event.set()
        return start(session)

    monkeypatch.setattr(Session, "start", noticed)
    return event


# What is kept


async def test_both_dialects_are_spoken_on_one_connection(node: Node) -> None:
    assert await given(node) == Given()
    await keep(node)
    assert await given(node) == ALL
    async with connected(node) as client:
        assert await client.retrieve() == STORAGE
        assert client.node_backup == NODE_BACKUP
        assert client.channel_backup(CHANNEL) == CHANNEL_BACKUP
        assert client.channel_backup(OTHER_CHANNEL) is None
        assert client.warnings == []
    assert await given(node, INIT) == ALL.without_881()
    assert await node.given_back(KEY) == KEPT


@pytest.mark.parametrize("size", [0, 1, LARGEST])
async def test_backups_of_any_size_come_back(node: Node, size: int) -> None:
    node_backup, channel_backup = b"\x01" * size, b"\x02" * size
    async with connected(node) as client:
        await client.store_node_backup(node_backup)
        await client.store_channel_backup(channel_backup, revoked(CHANNEL))
        await client.confirm()
    expected = Given(node=node_backup, channels={CHANNEL: Channel(channel_backup)})
    assert await given(node) == expected


async def test_every_message_may_come_byte_by_byte(node: Node) -> None:
    await keep(node)
    async with dialed(node, OTHER_KEY) as peer:
        await peer.shake_hands()
        frames = peer.encrypt(
            BOTH,
            Ping(0),
            PeerStorage(b"in pieces"),
            UpdateNodeBackup(b"node in pieces"),
            UpdateChannelBackup(b"channel in pieces"),
            signed(CHANNEL),
            revoked(CHANNEL, 7),
            Ping(0),
        )
        for index in range(len(frames)):
            peer.writer.write(frames[index : index + 1])
            await peer.writer.drain()
        assert given_in(await peer.hear_pong()) == ALL
        assert await peer.hear_pong() == [Pong()]
    assert await given(node) == Given(
        b"in pieces",
        b"node in pieces",
        {CHANNEL: Channel(b"channel in pieces", 2, 2, b"\x07" * 32)},
    )


async def test_a_channel_is_counted_on_over_connections(node: Node) -> None:
    async with greeted(node) as (peer, _):
        # What comes before the first backup counts as well.
        peer.say(signed(CHANNEL), UpdateChannelBackup(b"first"), revoked(CHANNEL, 1), Ping(0))
        *_, last = await peer.hear_pong()
        assert last == Pong()
    for secret in (2, 3):
        async with greeted(node) as (peer, _):
            peer.say(signed(CHANNEL), revoked(CHANNEL, secret), signed(OTHER_CHANNEL), Ping(0))
            # Of the other channel no backup is held.
            warning, pong = await peer.hear_pong()
            assert OTHER_CHANNEL.hex() in warning_in([warning])
            assert pong == Pong()
    assert await given(node) == Given(channels={CHANNEL: Channel(b"first", 4, 3, b"\x03" * 32)})


async def test_a_peers_own_reestablish_of_a_channel_that_was_replayed_is_not_answered(
    node: Node,
) -> None:
    await keep(node)
    async with greeted(node) as (peer, _):
        own = ChannelReestablish(CHANNEL, 1, 0, bytes(32), POINT)
        peer.say(own, own, Ping(0))
        assert await peer.hear_pong() == [Pong()]
    assert await given(node) == ALL


async def test_nobody_is_given_what_another_peer_stored(node: Node) -> None:
    await keep(node)
    async with authenticated(node, KEY) as peer:
        peer.say(BOTH, Ping(0))
        assert given_after_init((await peer.hear_pong())[:-1]) == Given(KEPT)
    assert await given(node) == ALL


# The two inits


@pytest.mark.parametrize("at_once", [True, False], ids=["with act three", "when we wait for it"])
async def test_a_peer_that_changes_its_dialect_is_never_locked_out(
    node: Node, started: asyncio.Event, at_once: bool
) -> None:
    expected = Given()
    # Each change of dialect, and none, with and without something of the other one.
    for number, both in enumerate([False, False, True, False, True, True, False, False, True], 1):
        async with dialed(node, OTHER_KEY) as peer:
            started.clear()
            await peer.shake_hands()
            if not at_once:
                peer.say()
                await started.wait()
            peer.say(BOTH if both else INIT, Ping(0))
            assert given_in(await peer.hear_pong()) == (
                expected if both else expected.without_881()
            )
            blob = bytes((number,)) * 100
            peer.say(PeerStorage(blob))
            expected.storage = blob
            if both:
                peer.say(UpdateNodeBackup(blob), UpdateChannelBackup(blob), revoked(CHANNEL))
                expected.node = blob
                times = expected.channels[CHANNEL].revocation_number if expected.channels else 0
                expected.channels[CHANNEL] = Channel(blob, revocation_number=times + 1)
            peer.say(Ping(0))
            assert await peer.hear_pong() == [Pong()]
    assert await node.given_back(KEY) == KEPT


@pytest.mark.parametrize("init", [BOTH, INIT], ids=["both dialects", "one dialect"])
async def test_a_peer_that_waits_for_our_init_gets_it_without_its_node_backup(
    node: Node, logged: list[structlog.typing.EventDict], init: Init
) -> None:
    await keep(node)
    node.server.limits = HASTY
    for times in (1, 2):
        async with authenticated(node, OTHER_KEY) as peer:
            assert node.server.tally.events["init_without_node_backup"] == times
            peer.say(init, Ping(0))
            *heard, pong = await peer.hear_pong()
            assert pong == Pong()
            expected = replace(ALL, node=None) if init is BOTH else ALL.without_881()
            assert given_after_init(heard) == expected
    assert [
        event["node_id"] for event in logged if event["event"] == "init_without_node_backup"
    ] == [OTHER_KEY.node_id.hex()] * 2
    # Who was only late is shown it when it comes in time.
    assert await given(node) == ALL


async def test_a_peer_that_never_says_init_gets_ours_and_is_closed_on(node: Node) -> None:
    await keep(node)
    node.server.limits = replace(HASTY, session=replace(HASTY.session, init=0.1))
    async with authenticated(node, OTHER_KEY) as peer:
        assert await peer.hear_all() == []
    node.server.limits = PATIENT
    assert await given(node) == ALL


async def test_our_init_does_not_wait_where_no_node_backup_is_stored(node: Node) -> None:
    async with connected(node) as client:
        await client.store(STORAGE)
        await client.store_channel_backup(CHANNEL_BACKUP, revoked(CHANNEL))
        await client.confirm()
    async with authenticated(node, OTHER_KEY) as peer:
        peer.say(BOTH, Ping(0))
        given = given_after_init((await peer.hear_pong())[:-1])
        assert given == replace(ALL, node=None)


@pytest.mark.parametrize(
    ("init", "text"),
    [(init_with(1, 41, 100), "feature bit 100"), (init_with(41, tlvs=b"\x04\x00"), "TLV type 4")],
    ids=["a feature", "a TLV"],
)
async def test_a_wrong_init_is_told_after_ours_without_the_node_backup(
    node: Node, init: bytes, text: str
) -> None:
    await keep(node)
    async with dialed(node, OTHER_KEY) as peer:
        await peer.shake_hands()
        peer.say(init, Ping(0))
        ours, *rest = await peer.hear_all()
        assert ours == INIT
        assert text in warning_in(rest)
    assert await given(node) == ALL


@pytest.mark.parametrize("bits", [(40,), (41,), (40, 41)], ids=str)
@pytest.mark.parametrize("key", [KEY, OTHER_KEY], ids=["peer_storage", "nothing"])
async def test_who_sets_the_bits_for_another_feature_sees_nothing_of_the_proposal(
    node: Node, key: KeyPair, bits: Sequence[int]
) -> None:
    # To it TLV 2 is unknown and even, and TLV 1 of channel_reestablish is next_funding.
    init = replace(INIT, features=OURS | sum(1 << bit for bit in bits))
    stored = [PeerStorageRetrieval(KEPT)] if key is KEY else []
    for _ in range(3):
        # Our init does not wait for its.
        async with authenticated(node, key) as peer:
            peer.say(init, Ping(0))
            assert await peer.hear_pong() == [*stored, Pong()]
            peer.say(ChannelReestablish(CHANNEL, 1, 0, bytes(32), POINT, b"its own"), Ping(0))
            warning, pong = await peer.hear_pong()
            assert CHANNEL.hex() in warning_in([warning])
            assert pong == Pong()


# Peers that hang up on TLV 2


def reset(peer: Peer) -> None:
    """The connection ends with a RST."""
    sock = peer.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.transport.abort()


def warn_and_leave(peer: Peer) -> None:
    peer.say(WarningMessage.about("init: unknown even TLV 2"))
    peer.writer.write_eof()


def fail_and_leave(peer: Peer) -> None:
    peer.say(ErrorMessage(NO_CHANNEL, b"init: unknown even TLV 2"))
    peer.writer.write_eof()


def leave_within_a_message(peer: Peer) -> None:
    peer.writer.write(peer.encrypt(Ping(0))[:-1])
    peer.writer.write_eof()


HANG_UPS: dict[str, Callable[[Peer], None]] = {
    "EOF": lambda peer: peer.writer.write_eof(),
    "RST": reset,
    "what can't be decrypted": lambda peer: peer.writer.write(bytes(18)),
    "half a message": leave_within_a_message,
    "a warning": warn_and_leave,
    "an error": fail_and_leave,
}

hang_ups = pytest.mark.parametrize("hang_up", HANG_UPS.values(), ids=HANG_UPS)


async def leave(node: Node, peer: Peer, hang_up: Callable[[Peer], None]) -> None:
    """Hang up, and wait until the server has noticed."""
    with pytest.MonkeyPatch.context() as patch:
        gone = lost(node.server.peers[OTHER_KEY.node_id], patch)
        hang_up(peer)
        await gone.wait()


async def hang_up_on_node_backup(node: Node, hang_up: Callable[[Peer], None]) -> None:
    """Be shown the node backup, and leave at once."""
    async with dialed(node, OTHER_KEY) as peer:
        await peer.shake_hands()
        peer.say(BOTH)
        assert await peer.hear() == replace(INIT, node_backup=NODE_BACKUP)
        await leave(node, peer, hang_up)


async def assert_not_shown(node: Node) -> None:
    """Our init does not wait, and is without the node backup; all else is given back."""
    async with authenticated(node, OTHER_KEY) as peer:
        peer.say(BOTH, Ping(0))
        *heard, pong = await peer.hear_pong()
        assert pong == Pong()
        assert given_after_init(heard) == replace(ALL, node=None)


@pytest.mark.parametrize(
    ("blob", "restart"),
    [(NODE_BACKUP, False), (b"another", True)],
    ids=["the same", "another, with restarts"],
)
@hang_ups
async def test_who_hangs_up_on_its_node_backup_is_not_shown_it_until_it_stores_one_anew(
    tmp_path: Path, hang_up: Callable[[Peer], None], blob: bytes, restart: bool
) -> None:
    async def store_and_hang_up(node: Node) -> None:
        await keep(node)
        await hang_up_on_node_backup(node, hang_up)

    async def store_anew(node: Node) -> None:
        async with connected(node) as client:
            assert client.node_backup is None
            await client.store_node_backup(blob)
            await client.confirm()

    async def assert_shown(node: Node) -> None:
        assert await given(node) == replace(ALL, node=blob)

    phases = (store_and_hang_up, assert_not_shown, assert_not_shown, store_anew, assert_shown)
    if restart:
        for phase in phases:
            async with serving(tmp_path) as node:
                await phase(node)
    else:
        async with serving(tmp_path) as node:
            for phase in phases:
                await phase(node)
            assert node.server.tally.events["node_backup_forgone"] == 1


async def test_who_hangs_up_in_the_midst_of_what_follows_is_not_shown_it_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(node)
    reading = asyncio.Event()
    read_sound = SqliteStore.read_sound

    async def read(store: SqliteStore, lease: SqliteLease, slot: Slot) -> Backup | None:
        if slot.kind is BackupKind.CHANNEL_BACKUP:
            reading.set()
            await asyncio.Event().wait()
        return await read_sound(store, lease, slot)

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "read_sound", read)
        async with dialed(node, OTHER_KEY) as peer:
            await peer.shake_hands()
            peer.say(BOTH)
            assert await peer.hear() == replace(INIT, node_backup=NODE_BACKUP)
            await reading.wait()
            await leave(node, peer, reset)
    await assert_not_shown(node)


@hang_ups
async def test_who_hangs_up_after_a_word_is_shown_its_node_backup_again(
    node: Node, hang_up: Callable[[Peer], None]
) -> None:
    await keep(node)
    async with greeted(node) as (peer, _):
        await leave(node, peer, hang_up)
    assert await given(node) == ALL
    assert node.server.tally.events["node_backup_forgone"] == 0


@hang_ups
async def test_who_hangs_up_before_its_init_is_shown_its_node_backup(
    node: Node, started: asyncio.Event, hang_up: Callable[[Peer], None]
) -> None:
    await keep(node)
    async with dialed(node, OTHER_KEY) as peer:
        started.clear()
        await peer.shake_hands()
        peer.say()
        await started.wait()
        await leave(node, peer, hang_up)
    assert await given(node) == ALL


async def test_who_had_left_before_it_was_shown_its_node_backup_is_shown_it_again(
    node: Node,
) -> None:
    await keep(node)
    async with dialed(node, OTHER_KEY) as peer:
        await peer.shake_hands()
        peer.say(BOTH)
        peer.writer.write_eof()
        assert (await peer.hear_all())[0] == replace(INIT, node_backup=NODE_BACKUP)
    assert await given(node) == ALL


async def test_who_lost_its_data_and_does_not_know_its_channel_is_shown_its_node_backup_again(
    node: Node,
) -> None:
    # PROTOCOL.md, 6: it answers the channel_reestablish by an error, and hangs up. That it looked
    # at it shows that it took our init.
    await keep(node)
    for _ in range(2):
        async with dialed(node, OTHER_KEY) as peer:
            await peer.shake_hands()
            peer.say(BOTH)
            heard = [await peer.hear() for _ in range(3)]
            assert given_in([*filter(None, heard), Pong()]) == ALL
            peer.say(ErrorMessage(CHANNEL, b"unknown channel"))
            await leave(node, peer, HANG_UPS["EOF"])
    assert await given(node) == ALL


async def test_who_is_replaced_by_its_newer_connection_has_not_hung_up(node: Node) -> None:
    await keep(node)
    async with dialed(node, OTHER_KEY) as peer:
        await peer.shake_hands()
        peer.say(BOTH)
        assert await peer.hear() == replace(INIT, node_backup=NODE_BACKUP)
        assert await given(node) == ALL
    assert await given(node) == ALL


async def test_whom_the_server_leaves_has_not_hung_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        await keep(node)
        async with dialed(node, OTHER_KEY) as peer:
            await peer.shake_hands()
            peer.say(BOTH)
            assert await peer.hear() == replace(INIT, node_backup=NODE_BACKUP)
            await node.server.close(NEVER)
    async with serving(tmp_path) as node:
        assert await given(node) == ALL


# Much to replay


async def test_a_hundred_channels_are_replayed_one_at_a_time_to_a_slow_reader(
    node: Node, paused: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = [bytes((number,)) * 32 for number in range(1, 101)]
    async with connected(node) as client:
        for channel_id in channels:
            blob = channel_id * (LARGEST // 32)
            await client.store_channel_backup(blob, revoked(channel_id, channel_id[0]))
            await client.confirm()
    reads: list[Slot] = []
    read_sound = SqliteStore.read_sound

    async def read(store: SqliteStore, lease: SqliteLease, slot: Slot) -> Backup | None:
        if slot.node_id == OTHER_KEY.node_id:
            reads.append(slot)
        return await read_sound(store, lease, slot)

    monkeypatch.setattr(SqliteStore, "read_sound", read)
    async with authenticated(node, OTHER_KEY) as peer:
        deaf = Deaf(peer, node.server.peers[OTHER_KEY.node_id])
        # The kernel would take them all.
        for transport, option in (
            (peer.transport, socket.SO_RCVBUF),
            (deaf.connection._transport, socket.SO_SNDBUF),
        ):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, 1 << 14)
        peer.transport.pause_reading()
        peer.say(BOTH, Ping(0))
        await paused.wait()
        before = len(reads)
        assert await node.given_back(KEY) == KEPT
        assert len(reads) == before
        peer.transport.resume_reading()
        for heard, channel_id in enumerate(channels):
            # What lies between us: a write that is full, the kernel's buffers, the peer's own.
            assert len(reads) - heard <= 20
            assert deaf.waiting() <= 1 << 17
            message = await peer.hear()
            assert isinstance(message, ChannelReestablish)
            assert message.channel_id == channel_id
            assert message.channel_backup == channel_id * (LARGEST // 32)
            assert message.your_last_per_commitment_secret == channel_id
        assert await peer.hear() == Pong()
    assert [slot.channel_id for slot in reads] == channels


# Damage


async def keep_versions(node: Node) -> None:
    """Two versions of a node backup and of a channel, and another channel."""
    for blob in (b"older", b"newer"):
        async with connected(node) as client:
            await client.store_node_backup(blob)
            await client.store_channel_backup(blob, revoked(CHANNEL))
            if blob == b"older":
                await client.store_channel_backup(b"other", revoked(OTHER_CHANNEL))
            await client.confirm()


VERSIONS = Given(
    node=b"newer",
    channels={
        CHANNEL: Channel(b"newer", revocation_number=2),
        OTHER_CHANNEL: Channel(b"other"),
    },
)


def damage(node: Node, kind: BackupKind, channel_id: bytes, blob: bytes) -> None:
    """Change a byte of a version."""
    node.damage(
        "UPDATE backup SET blob = CAST(zeroblob(1) || substr(blob, 2) AS BLOB)"
        " WHERE kind = ? AND channel_id = ? AND blob = ?",
        int(kind),
        channel_id,
        blob,
    )


async def test_in_place_of_a_damaged_channel_backup_comes_an_older_one_or_nothing(
    node: Node,
) -> None:
    await keep_versions(node)
    assert await given(node) == VERSIONS
    damage(node, BackupKind.CHANNEL_BACKUP, CHANNEL, b"newer")
    older = {**VERSIONS.channels, CHANNEL: Channel(b"older", revocation_number=2)}
    assert await given(node) == replace(VERSIONS, channels=older)
    damage(node, BackupKind.CHANNEL_BACKUP, CHANNEL, b"older")
    others = {OTHER_CHANNEL: VERSIONS.channels[OTHER_CHANNEL]}
    assert await given(node) == replace(VERSIONS, channels=others)
    # The peer is served on.
    async with connected(node) as client:
        await client.store_channel_backup(b"sound", revoked(CHANNEL))
        await client.confirm()
    sound = {**VERSIONS.channels, CHANNEL: Channel(b"sound", revocation_number=3)}
    assert await given(node) == replace(VERSIONS, channels=sound)


async def test_in_place_of_a_damaged_node_backup_comes_an_older_one_or_nothing(node: Node) -> None:
    await keep_versions(node)
    damage(node, BackupKind.NODE_BACKUP, b"", b"newer")
    assert await given(node) == replace(VERSIONS, node=b"older")
    damage(node, BackupKind.NODE_BACKUP, b"", b"older")
    assert await given(node) == replace(VERSIONS, node=None)
    async with connected(node) as client:
        await client.store_node_backup(b"sound")
        await client.confirm()
    assert await given(node) == replace(VERSIONS, node=b"sound")


async def test_a_channel_in_a_damaged_state_is_not_replayed_and_all_others_are(
    node: Node, logged: list[structlog.typing.EventDict]
) -> None:
    await keep_versions(node)
    node.damage("UPDATE channel SET revocations = 7 WHERE channel_id = ?", CHANNEL)
    others = {OTHER_CHANNEL: VERSIONS.channels[OTHER_CHANNEL]}
    assert await given(node) == replace(VERSIONS, channels=others)
    (event,) = [event for event in logged if event["event"] == "damaged_channel"]
    assert event["log_level"] == "error"
    assert CHANNEL.hex() in event["error"]


async def test_what_is_counted_after_the_damage_stands_only_beside_a_new_backup(node: Node) -> None:
    await keep(node)
    node.damage("UPDATE channel SET revocations = 7 WHERE channel_id = ?", CHANNEL)
    # Counts that began anew would be taken for right beside the old one.
    async with greeted(node) as (peer, _):
        peer.say(signed(CHANNEL), revoked(CHANNEL), Ping(0))
        assert await peer.hear_pong() == [Pong()]
    assert await given(node) == replace(ALL, channels={})
    async with greeted(node) as (peer, _):
        peer.say(UpdateChannelBackup(b"new"), signed(CHANNEL), revoked(CHANNEL, 9), Ping(0))
        assert await peer.hear_pong() == [Pong()]
    channels = {CHANNEL: Channel(b"new", 2, 1, b"\x09" * 32)}
    assert await given(node) == replace(ALL, channels=channels)


async def test_a_refused_backup_brings_no_count_beside_the_old_one_of_a_damaged_channel(
    node: Node,
) -> None:
    await keep(node)
    node.damage("UPDATE channel SET revocations = 7 WHERE channel_id = ?", CHANNEL)
    node.store.quotas = Quotas(max_bytes_per_peer=3000, hold_on_shrink=0, min_free_space=0)
    async with connected(node) as client:
        await client.store_channel_backup(bytes(3001), revoked(CHANNEL))
        with pytest.raises(StorageRefusedError):
            await client.confirm()
    assert await given(node) == replace(ALL, channels={})


# What is refused and what is dropped


@pytest.mark.parametrize(
    ("offered", "message", "text"),
    [
        (DEFAULT_FEATURES, UpdateNodeBackup(b"refused"), "40/41"),
        (DEFAULT_FEATURES, UpdateChannelBackup(b"refused"), "40/41"),
        (BOTH_DIALECTS, UpdateNodeBackup(bytes(LARGEST + 1)), "32000"),
        (BOTH_DIALECTS, UpdateChannelBackup(bytes(LARGEST + 1)), "32000"),
    ],
    ids=["node, no bit", "channel, no bit", "node, too large", "channel, too large"],
)
async def test_what_is_refused_is_told_and_leaves_the_old_and_the_connection(
    node: Node, offered: int, message: Message, text: str
) -> None:
    await keep(node)
    async with connected(node, offered) as client:
        await client.send(message)
        # What belongs to a backup that was refused is not told of a second time.
        if isinstance(message, UpdateChannelBackup):
            await client.send_raw(add_htlc(OTHER_CHANNEL), signed(OTHER_CHANNEL))
        with pytest.raises(StorageRefusedError, match=text):
            await client.confirm()
        assert len(client.warnings) == 1
        await client.store(b"still served")
        await client.confirm()
    assert await given(node) == replace(ALL, storage=b"still served")
    assert node.server.tally.events == {"update_refused": 1}


@pytest.mark.parametrize(
    ("quotas", "text"),
    [
        (Quotas(max_channels_per_peer=1, min_free_space=0), "backups of 1 channels"),
        (Quotas(max_bytes_per_peer=3000, min_free_space=0), "3000 bytes"),
    ],
    ids=["channels", "bytes"],
)
async def test_what_is_too_much_for_a_peer_is_told_and_leaves_the_old(
    node: Node, quotas: Quotas, text: str
) -> None:
    await keep(node)
    node.store.quotas = quotas
    async with connected(node) as client:
        await client.store_channel_backup(bytes(3000), revoked(OTHER_CHANNEL))
        with pytest.raises(StorageRefusedError, match=text):
            await client.confirm()
    assert await given(node) == ALL
    assert await node.given_back(KEY) == KEPT
    assert node.server.tally.events == {"update_refused": 1}


async def test_a_message_of_another_channel_drops_the_backup_with_a_warning(node: Node) -> None:
    await keep(node)
    async with connected(node) as client:
        await client.store_channel_backup(b"dropped", add_htlc(CHANNEL), signed(OTHER_CHANNEL))
        with pytest.raises(StorageRefusedError, match=f"{CHANNEL.hex()} is dropped"):
            await client.confirm()
    assert await given(node) == ALL


async def test_a_second_backup_takes_the_place_of_one_that_waits(node: Node) -> None:
    async with connected(node) as client:
        await client.store_channel_backup(b"first", add_htlc(CHANNEL))
        await client.store_channel_backup(b"second", add_htlc(CHANNEL), signed(CHANNEL))
        await client.confirm()
        assert client.warnings == []
    assert await given(node) == Given(channels={CHANNEL: Channel(b"second", 2, 0, bytes(32))})


ENDS = HANG_UPS | {
    "an unknown even message": lambda peer: peer.say(b"\x7f\xfe"),
    "a second init": lambda peer: peer.say(BOTH),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_a_connection_that_ends_drops_the_backup_that_waits_and_the_old_one_comes_back(
    node: Node, logged: list[structlog.typing.EventDict], end: Callable[[Peer], None]
) -> None:
    await keep(node)
    async with greeted(node) as (peer, _):
        await offer(peer)
        await leave(node, peer, end)
    assert node.server.tally.events["channel_backup_dropped"] == 1
    (event,) = [event for event in logged if event["event"] == "channel_backup_dropped"]
    assert event["node_id"] == OTHER_KEY.node_id.hex()
    assert await given(node) == ALL


async def test_a_newer_connection_drops_the_backup_that_waits_and_gets_the_old_one_back(
    node: Node,
) -> None:
    await keep(node)
    async with greeted(node) as (peer, _):
        await offer(peer)
        assert await given(node) == ALL
        assert await peer.hear_all() == []
    assert node.server.tally.events["channel_backup_dropped"] == 1
    assert await given(node) == ALL


async def test_a_backup_that_was_completed_before_the_end_is_kept(node: Node) -> None:
    await keep(node)
    async with greeted(node) as (peer, _):
        peer.say(UpdateChannelBackup(b"kept"), signed(CHANNEL), UpdateChannelBackup(b"dropped"))
        await leave(node, peer, HANG_UPS["EOF"])
    assert await given(node) == replace(ALL, channels={CHANNEL: Channel(b"kept", 2)})


async def offer(peer: Peer) -> None:
    """Send a channel backup that no message completes; the server has seen it."""
    query = QueryShortChannelIds(CHAIN, b"\x00")
    peer.say(UpdateChannelBackup(b"never completed"), add_htlc(CHANNEL), query)
    assert await peer.hear() == ReplyShortChannelIdsEnd(CHAIN)


# What the operator sees


async def test_what_is_told_of_peers_is_counted(node: Node) -> None:
    await keep(node)
    assert node.server.tally.events == {}
    await hang_up_on_node_backup(node, warn_and_leave)
    async with greeted(node, INIT) as (peer, _):
        for _ in range(2):
            peer.say(UpdateNodeBackup(b"refused"), Ping(0))
            assert len(await peer.hear_pong()) == 2
        peer.say(ErrorMessage(CHANNEL, b"no such channel"), signed(THIRD_CHANNEL), Ping(0))
        await peer.hear_pong()
    async with greeted(node) as (peer, _):
        await offer(peer)
        await leave(node, peer, HANG_UPS["EOF"])
    assert node.server.tally.events == {
        "peer_warning": 1,
        "node_backup_forgone": 1,
        "update_refused": 2,
        "peer_error": 1,
        "channel_message_refused": 1,
        "channel_backup_dropped": 1,
    }


async def test_every_refusal_is_counted_however_many_there_are(node: Node) -> None:
    async with greeted(node, INIT) as (peer, _):
        for _ in range(50):
            peer.say(UpdateNodeBackup(b"refused"), Ping(0))
            assert len(await peer.hear_pong()) == 2
    assert node.server.tally.events["update_refused"] == 50
