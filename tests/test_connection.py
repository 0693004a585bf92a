"""Two connections joined in memory, and one that is given what no honest peer sends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstore.connection import Authenticated, Connection, Event
from peerstore.errors import DecryptionError, HandshakeError, TransportError
from peerstore.types import NodeId
from tests.helpers import (
    Cut,
    byte_by_byte,
    connect,
    connected,
    feed,
    in_pieces,
    key_pair,
    pump,
    quick,
    take_events,
    whole,
)

INITIATOR = key_pair(0x11)
RESPONDER = key_pair(0x21)
EDGES = [b"", b"a", b"ab", bytes(65534), bytes(number % 251 for number in range(65535))]

SIZES = st.lists(st.integers(1, 70) | st.integers(1, 3000), min_size=1, max_size=12)
MESSAGES = st.lists(st.binary(max_size=300), max_size=8)

each_cut = pytest.mark.parametrize("cut", [whole, byte_by_byte])


def received(*messages: bytes) -> list[Event]:
    return list(messages)


def from_initiator(*events: Event) -> list[Event]:
    """What the responder gets: who it is, then the rest."""
    return [Authenticated(INITIATOR.node_id), *events]


# Two honest sides


@each_cut
def test_handshake_tells_each_side_who_the_other_is(cut: Cut) -> None:
    initiator, responder = connect()
    assert (initiator.authenticated, responder.authenticated) == (False, False)
    initiator_events, responder_events = pump(initiator, responder, cut)
    assert initiator_events == [Authenticated(RESPONDER.node_id)]
    assert responder_events == [Authenticated(INITIATOR.node_id)]
    assert (initiator.authenticated, responder.authenticated) == (True, True)


def test_acts_are_answered_one_by_one() -> None:
    initiator, responder = connect()
    act_one = initiator.data_to_send()
    assert len(act_one) == 50
    assert feed(responder, act_one) == []
    assert (responder.acts_received, responder.authenticated) == (1, False)
    act_two = responder.data_to_send()
    assert len(act_two) == 50
    assert feed(initiator, act_two) == [Authenticated(RESPONDER.node_id)]
    assert (initiator.acts_received, initiator.authenticated) == (1, True)
    act_three = initiator.data_to_send()
    assert len(act_three) == 66
    assert feed(responder, act_three) == [Authenticated(INITIATOR.node_id)]
    assert (responder.acts_received, responder.authenticated) == (2, True)
    assert initiator.data_to_send() == responder.data_to_send() == b""


def test_responder_says_nothing_before_act_one_is_whole() -> None:
    initiator, responder = connect()
    act_one = initiator.data_to_send()
    assert feed(responder, act_one[:-1], byte_by_byte) == []
    assert (responder.acts_received, responder.data_to_send()) == (0, b"")
    assert feed(responder, act_one[-1:]) == []
    assert (responder.acts_received, len(responder.data_to_send())) == (1, 50)


@each_cut
def test_messages_of_every_size_arrive_in_order_both_ways(cut: Cut) -> None:
    initiator, responder = connected()
    for message in EDGES:
        initiator.send_message(message)
    for message in EDGES[::-1]:
        responder.send_message(message)
    initiator_events, responder_events = pump(initiator, responder, cut)
    assert responder_events == received(*EDGES)
    assert initiator_events == received(*EDGES[::-1])


@each_cut
def test_more_than_a_thousand_messages_arrive_each_way(cut: Cut) -> None:
    initiator, responder = connected()
    there = [number.to_bytes(2, "big") for number in range(1203)]
    back = [bytes(number % 7) for number in range(2101)]
    for message in there:
        initiator.send_message(message)
    for message in back:
        responder.send_message(message)
    initiator_events, responder_events = pump(initiator, responder, cut)
    assert responder_events == received(*there)
    assert initiator_events == received(*back)


@quick
@given(SIZES, MESSAGES, MESSAGES)
def test_pieces_in_which_bytes_come_make_no_difference(
    sizes: list[int], there: list[bytes], back: list[bytes]
) -> None:
    cut = in_pieces(sizes)
    initiator, responder = connect()
    first_events, second_events = pump(initiator, responder, cut)
    for message in there:
        initiator.send_message(message)
    for message in back:
        responder.send_message(message)
    more_first, more_second = pump(initiator, responder, cut)
    assert first_events + more_first == [Authenticated(RESPONDER.node_id), *received(*back)]
    assert second_events + more_second == from_initiator(*received(*there))
    assert initiator.buffered == responder.buffered == 0


@pytest.mark.parametrize("cut", [whole, byte_by_byte, in_pieces([65]), in_pieces([67])])
@pytest.mark.parametrize("message", [b"first", bytes(65535)], ids=["short", "longest"])
def test_what_stands_behind_act_three_is_the_first_message(message: bytes, cut: Cut) -> None:
    initiator, responder = connect()
    feed(responder, initiator.data_to_send())
    feed(initiator, responder.data_to_send())
    initiator.send_message(message)
    initiator.send_message(b"second")
    data = initiator.data_to_send()
    assert len(data) == 66 + (len(message) + 34) + (6 + 34)
    assert feed(responder, data, cut) == from_initiator(*received(message, b"second"))


def test_events_wait_until_they_are_taken() -> None:
    initiator, responder = connect()
    feed(responder, initiator.data_to_send())
    feed(initiator, responder.data_to_send())
    initiator.send_message(b"first")
    initiator.send_message(b"second")
    responder.receive_data(initiator.data_to_send())
    assert responder.next_event() == Authenticated(INITIATOR.node_id)
    responder.receive_data(b"")
    assert responder.next_event() == b"first"
    initiator.send_message(b"third")
    responder.receive_data(initiator.data_to_send())
    assert take_events(responder) == received(b"second", b"third")
    assert responder.next_event() is None


def receive_from_a_shared_buffer(connection: Connection, data: bytes, cut: Cut) -> None:
    """Each piece is overwritten once it was received."""
    for piece in cut(data):
        buffer = bytearray(piece)
        connection.receive_data(memoryview(buffer))
        buffer[:] = bytes(len(buffer))
        # Nothing holds the buffer: it can be resized.
        buffer.clear()


@pytest.mark.parametrize(
    "cut", [whole, byte_by_byte, *(in_pieces([size]) for size in (17, 18, 20, 38, 39, 50, 60))]
)
def test_received_data_may_be_overwritten_before_its_events_are_taken(cut: Cut) -> None:
    initiator, responder = connected()
    for message in (b"hello", b"", b"cut short"):
        initiator.send_message(message)
    data = initiator.data_to_send()
    receive_from_a_shared_buffer(responder, data[:-1], cut)
    assert responder.buffered == len(data) - 1
    assert take_events(responder) == received(b"hello", b"")
    receive_from_a_shared_buffer(responder, data[-1:], cut)
    assert take_events(responder) == received(b"cut short")
    assert responder.buffered == 0


@pytest.mark.parametrize("index", [0, 17, 18, -1], ids=["length", "length MAC", "body", "body MAC"])
@each_cut
def test_tampered_data_may_be_overwritten_before_its_error_is_met(cut: Cut, index: int) -> None:
    initiator, responder = connected()
    initiator.send_message(b"\x00\x02")
    frame = bytearray(initiator.data_to_send())
    frame[index] ^= 1
    receive_from_a_shared_buffer(responder, bytes(frame) + bytes(50), cut)
    with pytest.raises(DecryptionError, match="length" if index in (0, 17) else "body"):
        responder.next_event()
    assert responder.buffered == 0


def test_received_message_is_bytes_of_its_own() -> None:
    initiator, responder = connected()
    initiator.send_message(b"hello")
    (event,) = feed(responder, initiator.data_to_send())
    assert type(event) is bytes


def test_data_to_send_is_given_out_once() -> None:
    initiator, responder = connected()
    initiator.send_message(b"one")
    initiator.send_message(b"two")
    data = initiator.data_to_send()
    assert initiator.data_to_send() == b""
    assert feed(responder, data) == received(b"one", b"two")


def test_message_before_the_handshake_can_not_be_sent() -> None:
    initiator, responder = connect()
    for connection in (initiator, responder):
        with pytest.raises(RuntimeError, match="handshake"):
            connection.send_message(b"early")
    feed(responder, initiator.data_to_send())
    with pytest.raises(RuntimeError, match="handshake"):
        responder.send_message(b"still early")
    assert len(responder.data_to_send()) == 50


def test_oversize_message_is_not_sent_and_disturbs_nothing() -> None:
    initiator, responder = connected()
    with pytest.raises(ValueError, match="65536"):
        initiator.send_message(bytes(65536))
    assert initiator.data_to_send() == b""
    initiator.send_message(b"next")
    assert feed(responder, initiator.data_to_send()) == received(b"next")


# buffered


def test_buffered_counts_what_was_not_taken_out() -> None:
    initiator, responder = connect()
    act_one = initiator.data_to_send()
    responder.receive_data(act_one[:20])
    assert responder.buffered == 20
    assert responder.next_event() is None
    assert responder.buffered == 20
    feed(responder, act_one[20:])
    assert responder.buffered == 0


def test_buffered_falls_by_each_message_taken_out() -> None:
    initiator, responder = connected()
    sizes = [65535, 3, 0, 65535, 65535, 10]
    for size in sizes:
        initiator.send_message(bytes(size))
    initiator.send_message(b"cut")
    data = initiator.data_to_send()[:-5]
    responder.receive_data(data)
    left = len(data)
    for size in sizes:
        assert responder.buffered == left
        assert responder.next_event() == bytes(size)
        left -= size + 34
    assert responder.buffered == left == 37 - 5
    # Of the last, the header is decrypted, but it is no event yet.
    assert responder.next_event() is None
    assert responder.buffered == left


def test_nothing_stays_buffered_behind_many_messages() -> None:
    initiator, responder = connected()
    for _ in range(5):
        for _ in range(400):
            initiator.send_message(bytes(500))
        assert feed(responder, initiator.data_to_send(), in_pieces([4096])) == received(
            *[bytes(500)] * 400
        )
        assert responder.buffered == 0


# The other side closes


def test_close_before_act_one_is_a_handshake_error() -> None:
    _, responder = connect()
    with pytest.raises(HandshakeError) as caught:
        responder.receive_eof()
    assert caught.value.code == "ACT1_READ_FAILED"


@pytest.mark.parametrize("size", [1, 33, 49])
def test_bolt8_close_in_the_middle_of_act_one(size: int) -> None:
    initiator, responder = connect()
    feed(responder, initiator.data_to_send()[:size])
    with pytest.raises(HandshakeError) as caught:
        responder.receive_eof()
    assert caught.value.code == "ACT1_READ_FAILED"


@pytest.mark.parametrize("size", [0, 1, 49])
def test_bolt8_close_before_act_two_is_whole(size: int) -> None:
    initiator, responder = connect()
    feed(responder, initiator.data_to_send())
    feed(initiator, responder.data_to_send()[:size])
    with pytest.raises(HandshakeError) as caught:
        initiator.receive_eof()
    assert caught.value.code == "ACT2_READ_FAILED"


@pytest.mark.parametrize("size", [0, 1, 65])
def test_bolt8_close_before_act_three_is_whole(size: int) -> None:
    initiator, responder = connect()
    feed(responder, initiator.data_to_send())
    feed(initiator, responder.data_to_send())
    feed(responder, initiator.data_to_send()[:size])
    with pytest.raises(HandshakeError) as caught:
        responder.receive_eof()
    assert caught.value.code == "ACT3_READ_FAILED"


def test_close_behind_a_whole_message_is_clean() -> None:
    initiator, responder = connected()
    initiator.receive_eof()
    responder.receive_eof()
    initiator.send_message(b"")
    initiator.send_message(b"last")
    assert feed(responder, initiator.data_to_send()) == received(b"", b"last")
    responder.receive_eof()
    assert responder.next_event() is None


@pytest.mark.parametrize("size", range(1, 34 + 3))
def test_close_in_the_middle_of_a_message_is_an_error(size: int) -> None:
    initiator, responder = connected()
    initiator.send_message(b"cut")
    assert feed(responder, initiator.data_to_send()[:size]) == []
    with pytest.raises(TransportError, match="middle of a message"):
        responder.receive_eof()


def test_close_in_the_middle_of_an_empty_message_is_an_error() -> None:
    initiator, responder = connected()
    initiator.send_message(b"")
    assert feed(responder, initiator.data_to_send()[:18]) == []
    assert responder.buffered == 18
    with pytest.raises(TransportError, match="middle of a message"):
        responder.receive_eof()


# A side that is not honest


def refused(connection: Connection, data: bytes, cut: Cut = whole) -> TransportError:
    """The error that bytes give; before it they must make no event."""
    with pytest.raises(TransportError) as caught:
        assert feed(connection, data, cut) == []
    return caught.value


def code_of(error: TransportError) -> str:
    assert isinstance(error, HandshakeError)
    return error.code


def test_wrong_version_of_act_one_is_refused_at_its_first_byte() -> None:
    for version in range(1, 256):
        _, responder = connect()
        assert code_of(refused(responder, bytes((version,)))) == "ACT1_BAD_VERSION"
        assert responder.data_to_send() == b""


def test_wrong_version_of_act_two_is_refused_at_its_first_byte() -> None:
    initiator, _ = connect()
    initiator.data_to_send()
    assert code_of(refused(initiator, b"\x01")) == "ACT2_BAD_VERSION"
    assert initiator.data_to_send() == b""


def test_wrong_version_of_act_three_is_refused_at_its_first_byte() -> None:
    initiator, responder = connect()
    feed(responder, initiator.data_to_send())
    responder.data_to_send()
    assert code_of(refused(responder, b"\x01")) == "ACT3_BAD_VERSION"
    assert not responder.authenticated


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: example.com\r\nUser-Agent: a-scanner\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ],
    ids=["HTTP", "TLS", "SSH"],
)
@each_cut
def test_other_protocols_are_refused_and_not_answered(request_bytes: bytes, cut: Cut) -> None:
    _, responder = connect()
    assert code_of(refused(responder, request_bytes, cut)) == "ACT1_BAD_VERSION"
    assert responder.data_to_send() == b""


@quick
@given(st.binary(min_size=1, max_size=120), st.booleans(), SIZES)
def test_junk_instead_of_act_one_is_a_handshake_error(
    junk: bytes, right_version: bool, sizes: list[int]
) -> None:
    _, responder = connect()
    if right_version:
        junk = (b"\x00\x02" + junk).ljust(50, b"\x01")
    elif junk[0] == 0:
        junk = b"\x01" + junk
    assert code_of(refused(responder, junk, in_pieces(sizes))).startswith("ACT1_BAD_")
    assert responder.data_to_send() == b""
    assert not responder.authenticated


@quick
@given(st.binary(min_size=66, max_size=120))
def test_junk_instead_of_act_three_is_a_handshake_error(junk: bytes) -> None:
    initiator, responder = connect()
    feed(responder, initiator.data_to_send())
    responder.data_to_send()
    assert code_of(refused(responder, b"\x00" + junk)) == "ACT3_BAD_CIPHERTEXT"
    assert responder.data_to_send() == b""
    assert not responder.authenticated


@quick
@given(st.binary(min_size=18, max_size=120), SIZES)
def test_junk_instead_of_a_message_is_a_decryption_error(junk: bytes, sizes: list[int]) -> None:
    _, responder = connected()
    assert isinstance(refused(responder, junk, in_pieces(sizes)), DecryptionError)
    assert responder.data_to_send() == b""


def test_initiator_with_a_wrong_node_id_is_refused_and_not_answered() -> None:
    initiator = Connection(INITIATOR, remote_node_id=key_pair(0x31).node_id)
    responder = Connection(RESPONDER)
    assert code_of(refused(responder, initiator.data_to_send())) == "ACT1_BAD_TAG"
    assert responder.data_to_send() == b""


def test_initiator_refuses_a_responder_with_another_key() -> None:
    # It knows the act one that was meant for the right one, and answers from its own.
    initiator, _ = connect()
    initiator.data_to_send()
    impostor = Connection(key_pair(0x31))
    feed(impostor, Connection(INITIATOR, remote_node_id=key_pair(0x31).node_id).data_to_send())
    assert code_of(refused(initiator, impostor.data_to_send())) == "ACT2_BAD_TAG"
    assert initiator.data_to_send() == b""
    assert not initiator.authenticated


def test_node_id_that_is_no_point_is_refused_at_once() -> None:
    with pytest.raises(HandshakeError, match="BAD_REMOTE_STATIC_PUBKEY"):
        Connection(INITIATOR, remote_node_id=NodeId(bytes(33)))


def test_messages_before_a_tampered_one_are_taken_out() -> None:
    initiator, responder = connected()
    initiator.send_message(b"good")
    good = initiator.data_to_send()
    initiator.send_message(b"bad")
    bad = bytearray(initiator.data_to_send())
    bad[-1] ^= 1
    responder.receive_data(good + bad)
    assert responder.next_event() == b"good"
    with pytest.raises(DecryptionError, match="body"):
        responder.next_event()


# Behind an error the connection is dead


def silent(connection: Connection, data: bytes) -> bool:
    """Whether bytes bring forth neither an event nor an answer, nor another kind of error."""
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except TransportError:
        event = None
    return event is None and connection.data_to_send() == b""


SPOILERS: dict[str, Callable[[bytes], bytes]] = {
    "version": lambda act: b"\x01" + act[1:],
    "only its version": lambda _: b"\x01",
    "first byte of the key": lambda act: act[:1] + b"\x04" + act[2:],
    "last byte": lambda act: act[:-1] + bytes((act[-1] ^ 1,)),
}

each_spoiler = pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)


@each_spoiler
def test_good_act_one_behind_a_bad_one_is_not_answered(spoil: Callable[[bytes], bytes]) -> None:
    initiator, responder = connect()
    act_one = initiator.data_to_send()
    refused(responder, spoil(act_one))
    assert silent(responder, act_one)
    assert silent(responder, act_one)
    assert not responder.authenticated


@each_spoiler
def test_good_act_two_behind_a_bad_one_is_not_answered(spoil: Callable[[bytes], bytes]) -> None:
    initiator, responder = connect()
    feed(responder, initiator.data_to_send())
    act_two = responder.data_to_send()
    refused(initiator, spoil(act_two))
    assert silent(initiator, act_two)
    assert silent(initiator, act_two)
    assert not initiator.authenticated


@each_spoiler
def test_good_act_three_behind_a_bad_one_authenticates_nobody(
    spoil: Callable[[bytes], bytes],
) -> None:
    initiator, responder = connect()
    feed(responder, initiator.data_to_send())
    feed(initiator, responder.data_to_send())
    act_three = initiator.data_to_send()
    refused(responder, spoil(act_three))
    assert silent(responder, act_three)
    assert silent(responder, act_three)
    assert not responder.authenticated


@pytest.mark.parametrize("index", [0, 17, 18, -1], ids=["length", "length MAC", "body", "body MAC"])
def test_nothing_is_read_behind_a_tampered_message(index: int) -> None:
    initiator, responder = connected()
    # On the wire this body is as long as a header, and under the nonce that the next header would
    # have; taken for one it says that the next header is a body.
    initiator.send_message(b"\x00\x02")
    frame = bytearray(initiator.data_to_send())
    frame[index] ^= 1
    assert isinstance(refused(responder, bytes(frame)), DecryptionError)
    for message in (b"hello", b"", b"more"):
        initiator.send_message(message)
        assert silent(responder, initiator.data_to_send())
