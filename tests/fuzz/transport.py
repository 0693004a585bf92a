"""Targets of BOLT 8: the acts of a handshake, and the frames behind them.

Which bytes an honest peer sends is known here beforehand, for all keys are fixed. So it is known
too what must come of any other bytes: what is whole and right in front of the first wrong byte is
taken, then comes the documented error, or nothing while the act or frame is not whole. Nobody can
make up an act or a frame that is right and another than the honest peer's.
"""

from __future__ import annotations

from functools import cache

from peerstore.connection import Authenticated, Connection, Event
from peerstore.errors import DecryptionError, HandshakeError, TransportError
from peerstore.transport.cipher import (
    HEADER_SIZE,
    MAC_SIZE,
    MAX_MESSAGE_SIZE,
    ROTATION,
    ReceiveCipher,
    SendCipher,
)
from tests.fuzz.source import Source, edited, pieces
from tests.helpers import key_pair, pump

INITIATOR, RESPONDER = key_pair(0x11), key_pair(0x21)
INITIATOR_EPHEMERAL, RESPONDER_EPHEMERAL = key_pair(0x12), key_pair(0x22)
"""The keys of BOLT 8's test vectors."""

FIRST_WORDS = (b"first", b"", bytes(300))
"""What stands behind the last act."""

SIZES = (0, 1, 2, 5, 18, 34, 300, 5000, 65534, 65535)

MOST_BUFFERED = HEADER_SIZE + MAX_MESSAGE_SIZE + MAC_SIZE
"""Bytes that may wait for the rest of their message."""

Expected = list[tuple[bytes, Event | None]]
"""The parts that an honest peer sends, and what is there to take when each has come."""


def new_initiator() -> Connection:
    return Connection(INITIATOR, remote_node_id=RESPONDER.node_id, ephemeral=INITIATOR_EPHEMERAL)


def new_responder() -> Connection:
    return Connection(RESPONDER, ephemeral=RESPONDER_EPHEMERAL)


@cache
def honest(to_responder: bool) -> Expected:
    """What the responder gets from an honest initiator, or the other way round."""
    initiator, responder = new_initiator(), new_responder()
    act_one = initiator.data_to_send()
    responder.receive_data(act_one)
    responder.next_event()
    act_two = responder.data_to_send()
    initiator.receive_data(act_two)
    initiator.next_event()
    act_three = initiator.data_to_send()
    responder.receive_data(act_three)
    responder.next_event()
    parts: Expected
    if to_responder:
        parts = [(act_one, None), (act_three, Authenticated(INITIATOR.node_id))]
    else:
        parts = [(act_two, Authenticated(RESPONDER.node_id))]
    for words in FIRST_WORDS:
        sender = initiator if to_responder else responder
        sender.send_message(words)
        parts += halves(sender.data_to_send(), words)
    return parts


def halves(frame: bytes, message: bytes) -> Expected:
    """A frame as its header, which makes no event, and its body."""
    return [(frame[:HEADER_SIZE], None), (frame[HEADER_SIZE:], message)]


def expect(stream: bytes, parts: Expected, acts: int) -> tuple[list[Event], str, int]:
    """What must come of a stream: events, the error ("" where none may come), parts taken.

    The first `acts` parts are acts.
    """
    events: list[Event] = []
    start = 0
    for number, (part, event) in enumerate(parts):
        end = start + len(part)
        if stream[start:end] != part:
            # The first byte of an act, its version, is judged when it is there.
            known = end <= len(stream) or (number < acts and stream[start : start + 1] > b"\x00")
            error = "" if not known else "handshake" if number < acts else "decryption"
            return events, error, number
        if event is not None:
            events.append(event)
        start = end
    trailing = len(stream) - start
    return events, "decryption" if trailing >= HEADER_SIZE else "", len(parts)


def check(
    connection: Connection, stream: bytes, source: Source, parts: Expected, acts: int
) -> None:
    """Feed a stream in pieces and compare with what must come of it."""
    events, wanted, taken = expect(stream, parts, acts)
    got: list[Event] = []
    error = ""
    for piece in pieces(stream, source):
        connection.receive_data(piece)
        assert not error or not connection.buffered, "a dead connection keeps bytes"
        if source.byte() % 4:
            error = take(connection, got) or error
            assert connection.buffered < MOST_BUFFERED
            assert len(connection._buffer) < MOST_BUFFERED + len(piece)
    error = take(connection, got) or error
    assert (got, error) == (events, wanted)
    if error:
        connection.receive_data(parts[min(taken, len(parts) - 1)][0])
        assert connection.next_event() is None
        assert (connection.buffered, connection.data_to_send()) == (0, b"")
    else:
        check_end(connection, stream, parts, taken, acts)


def take(connection: Connection, got: list[Event]) -> str:
    """All events that are there; returns which of the documented errors came."""
    try:
        got.extend(iter(connection.next_event, None))
    except HandshakeError:
        return "handshake"
    except DecryptionError:
        return "decryption"
    return ""


def check_end(
    connection: Connection, stream: bytes, parts: Expected, taken: int, acts: int
) -> None:
    """The end of the stream is an error in the middle of anything, and only there."""
    whole = sum(len(part) for part, _ in parts[:taken]) == len(stream)
    # A header alone is the middle of a message, an act that another follows that of a handshake.
    between = parts[taken - 1][1] is not None if taken else not acts
    try:
        connection.receive_eof()
    except TransportError:
        refused = True
    else:
        refused = False
    assert refused != (whole and between)


def handshake(data: bytes) -> None:
    """The acts and the first messages, with changes, or bytes of no honest peer at all."""
    source = Source(data)
    flags = source.byte()
    parts = honest(to_responder=bool(flags & 1))
    connection = new_responder() if flags & 1 else new_initiator()
    acts = 2 if flags & 1 else 1
    stream = b"".join(part for part, _ in parts)
    if flags & 2:
        stream = b"".join(part for part, _ in parts[: source.below(len(parts))])
    if flags & 4:
        for _ in range(1 + source.below(3)):
            stream = edited(stream, source)
    if flags & 8:
        stream += source.take(source.below(120))
    if flags & 16:
        stream = source.take(source.below(200))
    check(connection, stream, source, parts, acts)


@cache
def _keys() -> tuple[bytes, bytes]:
    """A key and a chaining key, as a handshake leaves them."""
    initiator, responder = new_initiator(), new_responder()
    pump(initiator, responder)
    sender = initiator._send
    assert sender is not None
    return sender._key, sender._chaining_key


def sender_at(count: int) -> SendCipher:
    """A cipher whose key was used so often."""
    cipher = SendCipher(*_keys())
    cipher._count = count
    return cipher


def receiver_at(count: int) -> Connection:
    """A connection after its handshake, whose key was used so often."""
    connection = new_responder()
    receive = ReceiveCipher(*_keys())
    receive._count = count
    connection._handshake = None
    connection._receive = receive
    connection._send = sender_at(count)
    return connection


def frames(data: bytes) -> None:
    """Frames changed, cut, repeated, left out and in another order, near a key rotation or not."""
    source = Source(data)
    count = source.choice((0, 0, 2, ROTATION - 4, ROTATION - 2, ROTATION))
    cipher = sender_at(count)
    messages = [message_of(source, number) for number in range(1 + source.below(9))]
    frames = [cipher.encrypt(message) for message in messages]
    parts: Expected = []
    for frame, message in zip(frames, messages, strict=True):
        parts += halves(frame, message)
    for _ in range(source.below(4)):
        meddle(frames, source)
    stream = b"".join(frames)
    for _ in range(source.below(3)):
        stream = edited(stream, source)
    check(receiver_at(count), stream, source, parts, 0)


def message_of(source: Source, number: int) -> bytes:
    """A message of some size; the large ones are rare, for they take long."""
    size = source.choice(SIZES) if source.byte() < 8 else source.byte()
    return bytes((number,)) * size


def meddle(frames: list[bytes], source: Source) -> None:
    """Repeat a frame, leave one out, or have two change places."""
    if not frames:
        return
    kind, first, second = source.byte() % 3, source.below(len(frames)), source.below(len(frames))
    if kind == 0:
        frames.insert(second, frames[first])
    elif kind == 1:
        del frames[first]
    else:
        frames[first], frames[second] = frames[second], frames[first]
