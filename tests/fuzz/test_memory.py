"""What a hostile peer makes a connection and a session hold stays small, however long it goes on.

Nothing here is decided by the store: a disk that hangs is when a peer can heap up most.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator

import pytest

from peerstore.errors import DecryptionError
from peerstore.session import Session, State, Stored
from peerstore.types import ChannelState
from peerstore.wire.features import OURS
from peerstore.wire.messages import (
    ErrorMessage,
    Init,
    PeerStorage,
    Ping,
    StartBatch,
    UpdateChannelBackup,
    UpdateNodeBackup,
    WarningMessage,
)
from tests.fuzz.books import CHAIN
from tests.fuzz.transport import MOST_BUFFERED
from tests.helpers import connected, take_events

MESSAGES = 20_000

MOST = 400_000
"""Bytes that a session may hold beside the one backup on offer: some 100 channels that are known
and 100 more, each with a state of a few hundred bytes, and what waits for the store."""

COMMITMENT_SIGNED = 132


def held(thing: object, seen: set[int] | None = None) -> int:
    """Bytes of an object and of all that only it leads to."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, type) or callable(thing):
        return 0
    seen.add(id(thing))
    inner: list[object] = []
    if isinstance(thing, dict):
        inner += [*thing.keys(), *thing.values()]
    elif isinstance(thing, Iterable) and not isinstance(thing, str | bytes | bytearray | Iterator):
        inner += thing
    names = [n for kind in type(thing).__mro__ for n in getattr(kind, "__slots__", ())]
    inner += [getattr(thing, name) for name in names if hasattr(thing, name)]
    inner += vars(thing).values() if hasattr(thing, "__dict__") else []
    return sys.getsizeof(thing) + sum(held(each, seen) for each in inner)


def open_session(channels: int = 0) -> Session:
    """A session of a peer that may use both proposals."""
    states = {number.to_bytes(32, "big"): ChannelState() for number in range(1, channels + 1)}
    session = Session(chain_hash=CHAIN, now=0.0, stored=Stored(channels=states))
    session.start()
    session.receive(Init(OURS | 1 << 41, (CHAIN,)).encode(), 0.0)
    while session.state is State.REPLAY:
        session.retrieved(None)
    return session


def ids() -> Iterator[bytes]:
    """Channel ids without end, none twice."""
    return (number.to_bytes(32, "big") for number in itertools.count(1000))


def pings() -> Iterator[bytes]:
    """One update that the store says nothing of, and pings that wait for it."""
    yield PeerStorage(b"blob").encode()
    yield from itertools.repeat(Ping(0).encode())


def refused_updates_behind_a_ping() -> Iterator[bytes]:
    """Each has a warning, which waits for the pong of the one before."""
    yield PeerStorage(b"blob").encode()
    yield Ping(0).encode()
    for size in itertools.cycle(range(32001, 32401)):
        yield UpdateNodeBackup(bytes(size)).encode()


def updates() -> Iterator[bytes]:
    """Blobs that the store says nothing of."""
    return itertools.repeat(PeerStorage(bytes(60000)).encode())


def updates_of_a_channel() -> Iterator[bytes]:
    """Backups of one channel, each complete."""
    while True:
        yield UpdateChannelBackup(b"blob").encode()
        yield COMMITMENT_SIGNED.to_bytes(2, "big") + bytes(32)


def updates_of_channels() -> Iterator[bytes]:
    """Backups of ever more channels, each complete."""
    for channel_id in ids():
        yield UpdateChannelBackup(b"blob").encode()
        yield COMMITMENT_SIGNED.to_bytes(2, "big") + channel_id


def offers() -> Iterator[bytes]:
    """Backups that nothing completes, with pings in between."""
    while True:
        yield UpdateChannelBackup(b"blob").encode()
        yield Ping(0).encode()


def dropped_offers() -> Iterator[bytes]:
    """Backups that messages of other channels make nothing of."""
    channels = itertools.cycle([bytes((number,)) * 32 for number in range(50)])
    yield PeerStorage(b"blob").encode()
    yield Ping(0).encode()
    for channel_id in channels:
        yield UpdateChannelBackup(b"blob").encode()
        yield (128).to_bytes(2, "big") + channel_id
        yield (128).to_bytes(2, "big") + next(channels)


def channels() -> Iterator[bytes]:
    """Messages of ever more channels."""
    return ((128).to_bytes(2, "big") + channel_id for channel_id in ids())


def openings() -> Iterator[bytes]:
    """Ever more channels are opened."""
    return ((64).to_bytes(2, "big") + CHAIN + channel_id for channel_id in ids())


def batches() -> Iterator[bytes]:
    """Batches that never come to their end."""
    return (StartBatch(channel_id, 20, COMMITMENT_SIGNED).encode() for channel_id in ids())


def unknown_channels() -> Iterator[bytes]:
    """Odd messages that nobody knows, each of another channel."""
    return ((199).to_bytes(2, "big") + channel_id for channel_id in ids())


def reports() -> Iterator[bytes]:
    """Warnings and errors, for ever more channels."""
    for channel_id in ids():
        yield WarningMessage(channel_id, bytes(1000)).encode()
        yield ErrorMessage(channel_id, bytes(1000)).encode()


def gossip() -> Iterator[bytes]:
    """What is read and dropped."""
    return (number.to_bytes(2, "big") + bytes(200) for number in itertools.cycle((256, 257, 513)))


@pytest.mark.parametrize("known", [0, 100])
@pytest.mark.parametrize(
    "flood",
    [
        *(pings, refused_updates_behind_a_ping, updates, updates_of_a_channel),
        *(updates_of_channels, offers, dropped_offers, channels, openings, batches),
        *(unknown_channels, reports, gossip),
    ],
)
def test_a_session_holds_little_whatever_comes(
    flood: Callable[[], Iterator[bytes]], known: int
) -> None:
    session = open_session(known)
    taken = 0
    for data in itertools.islice(flood(), MESSAGES):
        if not session.ready:
            break
        session.receive(data, 1.0)
        taken += 1
    assert taken > 15
    assert held(session) < MOST


def test_a_connection_holds_a_message_and_little_more() -> None:
    sender, receiver = connected()
    most = 0
    for size in (100, 65535, 40000, 0, 65535):
        for _ in range(60):
            sender.send_message(bytes(size))
    stream = sender.data_to_send()
    # Always in the middle of a message.
    for start in range(0, len(stream), 9973):
        receiver.receive_data(stream[start : start + 9973])
        take_events(receiver)
        most = max(most, sys.getsizeof(receiver._buffer))
    assert receiver.buffered == 0
    # A bytearray takes an eighth more than it needs.
    assert most < (MOST_BUFFERED + 9973) * 9 / 8 + 100


def test_a_connection_holds_nothing_behind_an_error() -> None:
    sender, receiver = connected()
    sender.send_message(bytes(65535))
    frame = bytearray(sender.data_to_send())
    frame[-1] ^= 1
    receiver.receive_data(bytes(frame))
    with pytest.raises(DecryptionError):
        take_events(receiver)
    for _ in range(1000):
        receiver.receive_data(bytes(frame))
    assert held(receiver._buffer) < 1000
