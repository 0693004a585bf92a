"""What a session answers, stores and says to its peer: messages and times in, actions out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerstore.confirmation import COMMIT_TIMEOUT, MAX_INTERVALS, MAX_UNDECIDED, MAX_UNTOLD
from peerstore.session import (
    Action,
    Close,
    Report,
    Retrieve,
    Send,
    Session,
    State,
    Store,
    Stored,
    Timeouts,
)
from peerstore.streams import MAX_CHANNELS
from peerstore.types import BackupKind, Network
from peerstore.wire import features
from peerstore.wire.messages import (
    ErrorMessage,
    Init,
    Message,
    PeerStorage,
    PeerStorageRetrieval,
    Ping,
    Pong,
    QueryChannelRange,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
    WarningMessage,
    decode_message,
)
from tests.helpers import quick

CHAIN = Network.REGTEST.chain_hash
OTHER_CHAIN = Network.BITCOIN.chain_hash
NO_CHANNEL = bytes(32)
TIMEOUTS = Timeouts()
RETRIEVE = Retrieve(BackupKind.PEER_STORAGE)

thorough = settings(quick, max_examples=300)
"""For streams of messages, of which only some get anywhere."""

OPEN_CHANNEL, OPEN_CHANNEL2 = 32, 64
CHANNEL_TYPES = {
    # BOLT 2, the types of its messages but open_channel and open_channel2
    2: "stfu",
    33: "accept_channel",
    34: "funding_created",
    35: "funding_signed",
    36: "channel_ready",
    38: "shutdown",
    39: "closing_signed",
    40: "closing_complete",
    41: "closing_sig",
    65: "accept_channel2",
    66: "tx_add_input",
    67: "tx_add_output",
    68: "tx_remove_input",
    69: "tx_remove_output",
    70: "tx_complete",
    71: "tx_signatures",
    72: "tx_init_rbf",
    73: "tx_ack_rbf",
    74: "tx_abort",
    77: "splice_locked",
    80: "splice_init",
    81: "splice_ack",
    127: "start_batch",
    128: "update_add_htlc",
    130: "update_fulfill_htlc",
    131: "update_fail_htlc",
    132: "commitment_signed",
    133: "revoke_and_ack",
    134: "update_fee",
    135: "update_fail_malformed_htlc",
    136: "channel_reestablish",
}

VALID_TRAILERS = [b"\x01\x00", b"\x01\x02ab\x03\x00", b"\xfd\x01\x01\x00"]
INVALID_TRAILERS = {
    "unknown even type": b"\x02\x00",
    "type alone": b"\x01",
    "value cut": b"\x01\x02a",
    "type twice": b"\x01\x00\x01\x00",
    "falling types": b"\x03\x00\x01\x00",
    "type not minimal": b"\xfd\x00\x01\x00",
    "length not minimal": b"\x01\xfd\x00\x00",
}


def u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def vector(*bits: int) -> bytes:
    """A feature field."""
    number = sum(1 << bit for bit in bits)
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def init_message(
    *bits: int, globalfeatures: Iterable[int] = (), tlvs: bytes = b"\x01\x20" + CHAIN
) -> bytes:
    low, high = vector(*globalfeatures), vector(*bits)
    return u16(16) + u16(len(low)) + low + u16(len(high)) + high + tlvs


def channel_message(number: int, channel_id: bytes, tail: bytes = b"") -> bytes:
    # The temporary channel id of open_channel stands behind the chain hash.
    head = CHAIN if number in (OPEN_CHANNEL, OPEN_CHANNEL2) else b""
    return u16(number) + head + channel_id + tail


def new_session(now: float = 0.0, timeouts: Timeouts = TIMEOUTS) -> Session:
    """A session whose init is out."""
    session = Session(
        chain_hash=CHAIN, now=now, stored=Stored(peer_storage=True), timeouts=timeouts
    )
    session.start()
    return session


def open_session(now: float = 0.0, timeouts: Timeouts = TIMEOUTS) -> Session:
    """A session of a peer for which nothing is stored, ready for its messages."""
    session = new_session(now, timeouts)
    assert session.receive(init_message(), now) == [RETRIEVE]
    assert session.retrieved(None) == ()
    return session


def decode(action: Action) -> Message:
    """The message that an action sends; whatever it is, it must be readable and whole."""
    assert isinstance(action, Send), action
    assert len(action.message) <= 65535
    message = decode_message(action.message)
    assert message.encode() == action.message
    return message


def only_message(actions: Sequence[Action]) -> Message:
    (action,) = actions
    return decode(action)


def warning_text(action: Action) -> str:
    """The text of a `warning`, which never names a channel but in its text."""
    message = decode(action)
    assert isinstance(message, WarningMessage), message
    assert message.channel_id == NO_CHANNEL
    assert message.text.isprintable()
    return message.text


def without_reports(actions: Sequence[Action]) -> list[Action]:
    return [action for action in actions if not isinstance(action, Report)]


def assert_over(session: Session, now: float = 0.0) -> None:
    """Whatever the owner still tells the session, it says nothing more."""
    assert session.state is State.CLOSED
    assert not session.ready
    assert not session.silent_since_init
    session.heard(now)
    assert session.retrieved(b"late") == ()
    assert session.stored(1, now) == ()
    assert session.not_stored(1, "late", now) == ()
    assert session.tick(now + 1e6) == ()
    with pytest.raises(RuntimeError):
        session.receive(Ping(1).encode(), now)


def assert_warned_and_closed(session: Session, data: bytes, *words: str) -> str:
    """The message gets one warning with these words and ends the session; returns the text."""
    warning, close = without_reports(session.receive(data, 1.0))
    text = warning_text(warning)
    for word in words:
        assert word in text
    assert isinstance(close, Close)
    assert close.reason
    assert_over(session, 1.0)
    return text


def talk(actions: Sequence[Action]) -> list[str]:
    """What the peer hears about its updates and pings, as `pong SIZE` and the warnings' texts."""
    heard = []
    for action in without_reports(actions):
        assert not isinstance(action, Close), action
        message = decode(action)
        if isinstance(message, Pong):
            heard.append(f"pong {len(message.ignored)}")
        else:
            heard.append(warning_text(action))
    return heard


def update(session: Session, blob: bytes = b"backup", now: float = 0.0) -> int:
    """Send an update; returns the sequence number under which it is to be stored."""
    (action,) = session.receive(PeerStorage(blob).encode(), now)
    assert isinstance(action, Store)
    assert action == Store(action.sequence, BackupKind.PEER_STORAGE, b"", blob)
    return action.sequence


def ping(session: Session, size: int, now: float = 0.0) -> list[str]:
    return talk(session.receive(Ping(size).encode(), now))


# Our init


def test_our_init_offers_exactly_the_bits_that_keep_every_implementation_connected() -> None:
    session = Session(chain_hash=CHAIN, now=0.0)
    assert session.start() == [Send(bytes.fromhex("0010 0000 0006 28000080a202 0120") + CHAIN)]
    assert session.state is State.INIT
    assert session.ready
    assert not session.silent_since_init


@pytest.mark.parametrize("network", list(Network))
def test_our_init_names_our_one_chain(network: Network) -> None:
    message = only_message(Session(chain_hash=network.chain_hash, now=0.0).start())
    assert isinstance(message, Init)
    assert message.networks == (network.chain_hash,)
    assert message.remote_addr is None
    assert message.node_backup is None


def test_our_init_echoes_the_address_that_it_is_given() -> None:
    address = bytes.fromhex("01 01020304 2607")
    session = Session(chain_hash=CHAIN, now=0.0, remote_addr=address)
    expected = bytes.fromhex("0010 0000 0006 28000080a202 0120") + CHAIN + b"\x03\x07" + address
    assert session.start() == [Send(expected)]


# The peer's init

NOT_INIT = [
    b"",
    b"\x00",
    b"\x10",
    *(u16(number) for number in (0, 1, 7, 17, 18, 136, 263, 1000, 4096, 65535)),
    WarningMessage.about("no").encode(),
    ErrorMessage(NO_CHANNEL, b"no").encode(),
    PeerStorage(b"too early").encode(),
    PeerStorage(b"too early").encode()[:-1],
    PeerStorageRetrieval(b"").encode(),
    Ping(1).encode(),
    Pong().encode(),
    QueryChannelRange(CHAIN, 0, 1).encode(),
    QueryShortChannelIds(CHAIN, b"").encode(),
    channel_message(OPEN_CHANNEL, b"c" * 32),
    channel_message(136, b"c" * 32),
    u16(256) + bytes(400),
    u16(513) + bytes(100),
]


@pytest.mark.parametrize("data", NOT_INIT, ids=lambda data: data[:10].hex() or "empty")
def test_a_first_message_that_is_not_init_closes_without_a_word(data: bytes) -> None:
    session = new_session()
    (close,) = session.receive(data, 1.0)
    assert isinstance(close, Close)
    assert_over(session)


def test_an_init_is_followed_by_the_reading_of_what_is_stored() -> None:
    session = new_session()
    assert session.receive(init_message(1, 43), 1.0) == [RETRIEVE]
    assert session.state is State.REPLAY
    assert session.features == 1 << 1 | 1 << 43
    assert session.silent_since_init


@pytest.mark.parametrize(
    "data",
    [
        u16(16),
        u16(16) + b"\x00",
        u16(16) + u16(0),
        u16(16) + u16(0) + b"\x00",
        u16(16) + u16(4) + bytes(3),
        u16(16) + u16(0) + u16(9) + bytes(8),
        u16(16) + u16(65535) + bytes(65531),
        init_message(tlvs=b"\x01\x20" + CHAIN[:-1]),
        init_message(tlvs=b"\x01\x1f" + CHAIN[:-1]),
        init_message(tlvs=b"\x01\x21" + CHAIN + b"\x00"),
        init_message(tlvs=b"\x04\x00"),
        init_message(tlvs=b"\x03\x00\x01\x20" + CHAIN),
        init_message(tlvs=(b"\x01\x20" + CHAIN) * 2),
        init_message(tlvs=b"\xfd\x00\x01\x00"),
        init_message(tlvs=b"\x05"),
    ],
    ids=lambda data: data[:12].hex(),
)
def test_a_malformed_init_gets_a_warning_and_the_end(data: bytes) -> None:
    assert_warned_and_closed(new_session(), data, "init")


@pytest.mark.parametrize("bit", [2, 30, 32, 52, 56, 58, 64, 100, 102, 150, 256, 566, 2000, 8000])
def test_an_unknown_even_feature_is_named_and_ends_the_connection(bit: int) -> None:
    assert_warned_and_closed(new_session(), init_message(bit, bit + 1, 43), f" {bit} ")
    assert_warned_and_closed(new_session(), init_message(43, globalfeatures=[bit]), f" {bit} ")


@pytest.mark.parametrize(
    ("bit", "needed"),
    [
        # BOLT 9, Dependencies
        (16, "payment_secret"),
        (50, "option_scid_alias"),
        (60, "option_shutdown_anysegwit"),
    ],
)
@pytest.mark.parametrize("required", [True, False])
def test_a_missing_dependency_is_named_and_ends_the_connection(
    bit: int, needed: str, required: bool
) -> None:
    set_bit = bit if required else bit + 1
    assert_warned_and_closed(new_session(), init_message(set_bit, 43), needed, f"({set_bit})")


@pytest.mark.parametrize(
    "bits",
    [
        (),
        (17, 14),
        (16, 15),
        (51, 47),
        (61, 27),
        # BOLT 9's pairs, and the even bits that real peers set beside them
        (0, 4, 6, 8, 10, 12, 14, 16, 18, 22, 24, 26, 28, 34, 36, 38, 42, 44, 46, 48, 50, 60, 62),
        (20, 40, 104, 152, 154, 560, 562, 564),
        (42, 43, 0, 1),
        (3, 31, 33, 53, 65, 101, 2001, 9999),
    ],
)
def test_known_features_and_unknown_odd_ones_are_accepted(bits: tuple[int, ...]) -> None:
    for data in (init_message(*bits), init_message(globalfeatures=bits)):
        session = new_session()
        assert session.receive(data, 1.0) == [RETRIEVE]
        assert session.features == sum(1 << bit for bit in bits) & features.KNOWN


def test_both_feature_fields_are_one() -> None:
    session = new_session()
    assert session.receive(init_message(17, globalfeatures=[15]), 1.0) == [RETRIEVE]
    assert session.features == 1 << 15 | 1 << 17


@pytest.mark.timeout(2)
def test_an_init_full_of_odd_features_holds_nobody_up() -> None:
    features = b"\xaa" * 65000
    data = u16(16) + u16(0) + u16(len(features)) + features
    assert new_session().receive(data, 1.0) == [RETRIEVE]


@pytest.mark.parametrize("chains", [[], [OTHER_CHAIN], [OTHER_CHAIN, CHAIN[::-1]]])
def test_an_init_without_our_chain_is_told_so_and_ends_the_connection(
    chains: list[bytes],
) -> None:
    value = b"".join(chains)
    tlvs = bytes((1, len(value))) + value
    assert_warned_and_closed(new_session(), init_message(tlvs=tlvs), "networks", "chain")


@pytest.mark.parametrize(
    "tlvs",
    [
        b"",
        b"\x01\x20" + CHAIN,
        b"\x01\x40" + OTHER_CHAIN + CHAIN,
        b"\x01\x60" + CHAIN + OTHER_CHAIN + bytes(32),
        b"\x05\x01x",
        b"\x01\x20" + CHAIN + b"\xfd\x01\x01\x00",
    ],
)
def test_networks_may_be_absent_or_name_our_chain_among_others(tlvs: bytes) -> None:
    assert new_session().receive(init_message(43, tlvs=tlvs), 1.0) == [RETRIEVE]


@pytest.mark.parametrize("address", ["", "00", "01", "0102030405", "02ff", "ff" * 20])
def test_a_malformed_remote_addr_is_not_looked_at(address: str) -> None:
    value = bytes.fromhex(address)
    tlvs = b"\x01\x20" + CHAIN + bytes((3, len(value))) + value
    assert new_session().receive(init_message(tlvs=tlvs), 1.0) == [RETRIEVE]


# Replay


@pytest.mark.parametrize("size", [0, 1, 57, 65531])
def test_what_is_stored_goes_out_before_anything_else(size: int) -> None:
    blob = bytes(range(256)) * 256
    session = new_session()
    session.receive(init_message(43), 1.0)
    assert session.retrieved(blob[:size]) == [Send(u16(9) + u16(size) + blob[:size])]
    assert session.state is State.OPEN
    assert session.ready
    # And once only, whatever is said next.
    assert session.retrieved(b"again") == ()
    assert ping(session, 1) == ["pong 1"]


def test_a_peer_without_a_backup_hears_nothing() -> None:
    session = new_session()
    session.receive(init_message(43), 1.0)
    assert session.retrieved(None) == ()
    assert session.ready


@pytest.mark.parametrize("data", [b"", Ping(1).encode(), PeerStorage(b"new").encode()])
def test_no_message_is_taken_before_the_replay(data: bytes) -> None:
    session = new_session()
    session.receive(init_message(43), 1.0)
    assert not session.ready
    with pytest.raises(RuntimeError):
        session.receive(data, 1.0)
    # The owner's mistake changes nothing for the peer.
    assert session.retrieved(b"old") == [Send(PeerStorageRetrieval(b"old").encode())]


def test_nothing_goes_out_before_the_replay_however_long_it_takes() -> None:
    session = new_session()
    session.receive(init_message(43), 0.0)
    for now in (1.0, 59.0, 60.0, 90.0, 119.0):
        assert session.tick(now) == ()
    assert session.retrieved(b"old") == [Send(PeerStorageRetrieval(b"old").encode())]


def test_silence_since_init_ends_with_the_first_message() -> None:
    session = new_session()
    session.receive(init_message(43), 1.0)
    assert session.silent_since_init
    session.retrieved(None)
    session.heard(2.0)
    session.tick(3.0)
    assert session.silent_since_init
    session.receive(u16(513), 4.0)
    assert not session.silent_since_init


# What is ignored, and what ends a connection


def test_a_second_init_gets_a_warning_and_the_end() -> None:
    assert_warned_and_closed(open_session(), init_message(43), "init")


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x12", b"\xff"])
def test_a_message_without_a_type_gets_a_warning_and_the_end(data: bytes) -> None:
    assert_warned_and_closed(open_session(), data)


@pytest.mark.parametrize(
    "number",
    [0, 4, 6, 8, 10, 14, 22, 24, 30, 42, 76, 122, 126, 138, 254, 266, 512, 1000, 32768, 65534],
)
def test_an_unknown_even_message_gets_a_warning_and_the_end(number: int) -> None:
    assert_warned_and_closed(open_session(), u16(number), f" {number} ")
    text = assert_warned_and_closed(open_session(), u16(number) + bytes(200), f" {number} ")
    assert not text.startswith("storage:")


@pytest.mark.parametrize(
    "number",
    [3, 5, 11, 13, 15, 21, 37, 43, 75, 121, 129, 137, 255, 267, 511, 513, 32769, 39409, 65535],
)
def test_an_unknown_odd_message_is_ignored(number: int) -> None:
    session = open_session()
    for body in (b"", b"\x00", b"\xff" * 1365, bytes(65533)):
        assert session.receive(u16(number) + body, 1.0) == ()
    assert session.ready


@pytest.mark.parametrize("number", [256, 257, 258, 259, 260, 262, 264, 265])
def test_gossip_is_dropped_unread(number: int) -> None:
    session = open_session()
    for body in (b"", b"\x00", b"\xff" * 430, bytes(65533)):
        assert session.receive(u16(number) + body, 1.0) == ()
    assert session.ready


READABLE = {
    "warning": WarningMessage(b"c" * 32, b"text").encode(),
    "error": ErrorMessage(b"c" * 32, b"text").encode(),
    "ping": Ping(1, b"padding").encode(),
    "pong": Pong(b"padding").encode(),
    "peer_storage_retrieval": PeerStorageRetrieval(b"not ours").encode(),
    "query_channel_range": QueryChannelRange(CHAIN, 1, 2).encode(),
    "query_short_channel_ids": QueryShortChannelIds(CHAIN, b"\x00").encode(),
}


@pytest.mark.parametrize("name", READABLE)
def test_a_message_too_short_for_its_content_gets_a_warning_and_the_end(name: str) -> None:
    data = READABLE[name]
    for size in range(2, len(data)):
        text = assert_warned_and_closed(open_session(), data[:size], name, "short")
        assert not text.startswith("storage:")


@pytest.mark.parametrize("trailer", INVALID_TRAILERS.values(), ids=INVALID_TRAILERS)
@pytest.mark.parametrize("name", READABLE)
def test_an_invalid_tlv_trailer_gets_a_warning_and_the_end(name: str, trailer: bytes) -> None:
    text = assert_warned_and_closed(open_session(), READABLE[name] + trailer, name)
    assert not text.startswith("storage:")


@pytest.mark.parametrize("trailer", VALID_TRAILERS)
@pytest.mark.parametrize("name", READABLE)
def test_a_valid_tlv_trailer_changes_nothing(name: str, trailer: bytes) -> None:
    plain = open_session().receive(READABLE[name], 1.0)
    assert open_session().receive(READABLE[name] + trailer, 1.0) == plain


def test_a_retrieval_of_the_peer_is_ignored() -> None:
    session = open_session()
    assert session.receive(PeerStorageRetrieval(b"nothing of ours").encode(), 1.0) == ()
    assert session.receive(PeerStorageRetrieval(b"").encode(), 1.0) == ()


# Ping


@quick
@given(size=st.integers(0, 65531) | st.sampled_from([0, 1, 65530, 65531]), padding=st.binary())
def test_a_pong_has_exactly_the_size_asked_for(size: int, padding: bytes) -> None:
    session = open_session()
    message = only_message(session.receive(Ping(size, padding).encode(), 1.0))
    # BOLT 1: "SHOULD set ignored to 0s"
    assert message == Pong(bytes(size))


@pytest.mark.parametrize("size", [65532, 65533, 65534, 65535])
@pytest.mark.parametrize("padding", [0, 1, 1459, 65529])
def test_a_ping_that_asks_for_no_pong_gets_none(size: int, padding: int) -> None:
    session = open_session()
    assert session.receive(Ping(size, bytes(padding)).encode(), 1.0) == ()
    assert ping(session, 1) == ["pong 1"]


def test_padding_of_a_ping_is_ignored() -> None:
    session = open_session()
    data = u16(18) + u16(5) + u16(1459) + b"\xff" * 1459
    assert session.receive(data, 1.0) == [Send(u16(19) + u16(5) + bytes(5))]


# Gossip queries


@pytest.mark.parametrize("trailer", [b"", b"\x01\x01\x03"])
@pytest.mark.parametrize(
    ("first", "count"), [(0, 0), (0, 0xFFFFFFFF), (103, 1), (0xFFFFFFFF, 0xFFFFFFFF)]
)
@pytest.mark.parametrize("chain", [CHAIN, OTHER_CHAIN])
def test_query_channel_range_is_told_that_there_are_none(
    chain: bytes, first: int, count: int, trailer: bytes
) -> None:
    blocks = chain + first.to_bytes(4, "big") + count.to_bytes(4, "big")
    actions = open_session().receive(u16(263) + blocks + trailer, 1.0)
    # sync_complete 1, one byte of encoded_short_ids: uncompressed, none
    assert actions == [Send(u16(264) + blocks + bytes.fromhex("01 0001 00"))]


@pytest.mark.parametrize("trailer", [b"", b"\x01\x02\x00\x01"])
@pytest.mark.parametrize("ids", [b"", b"\x00", b"\x00" + b"scid_one"])
def test_query_short_channel_ids_is_told_that_nothing_is_known(ids: bytes, trailer: bytes) -> None:
    data = u16(261) + OTHER_CHAIN + u16(len(ids)) + ids + trailer
    assert open_session().receive(data, 1.0) == [Send(u16(262) + OTHER_CHAIN + b"\x00")]


# Channel messages


@pytest.mark.parametrize("number", CHANNEL_TYPES)
def test_a_channel_message_gets_a_warning_that_names_the_channel_in_its_text(number: int) -> None:
    session = open_session()
    channel_id = bytes(range(32))
    report, warning = session.receive(channel_message(number, channel_id, b"more"), 1.0)
    text = warning_text(warning)
    assert channel_id.hex() in text
    assert CHANNEL_TYPES[number] in text
    assert not text.startswith("storage:")
    assert isinstance(report, Report)
    assert report.details["channel_id"] == channel_id.hex()
    assert session.ready


def test_a_channel_is_warned_about_once_on_a_connection() -> None:
    session = open_session()
    first, second = b"1" * 32, b"2" * 32
    assert len(talk(session.receive(channel_message(136, first), 1.0))) == 1
    for number in (136, 136, *CHANNEL_TYPES):
        assert session.receive(channel_message(number, first, b"x"), 2.0) == ()
    (text,) = talk(session.receive(channel_message(132, second), 3.0))
    assert second.hex() in text
    assert session.receive(channel_message(133, first), 4.0) == ()
    # Another connection of the same peer is told again.
    assert len(talk(open_session().receive(channel_message(136, first), 5.0))) == 1


@pytest.mark.parametrize(
    ("number", "name"), [(OPEN_CHANNEL, "open_channel"), (OPEN_CHANNEL2, "open_channel2")]
)
def test_opening_a_channel_gets_an_error_for_that_temporary_channel_id(
    number: int, name: str
) -> None:
    session = open_session()
    temporary = bytes(range(100, 132))
    actions = without_reports(session.receive(channel_message(number, temporary, bytes(219)), 1.0))
    message = only_message(actions)
    assert isinstance(message, ErrorMessage)
    assert message.channel_id == temporary
    assert message.text.startswith(f"{name}:")
    assert session.ready
    assert session.receive(channel_message(34, temporary), 2.0) == ()


@pytest.mark.parametrize("number", [OPEN_CHANNEL, OPEN_CHANNEL2, *CHANNEL_TYPES])
def test_the_all_zero_channel_id_never_gets_an_error(number: int) -> None:
    actions = open_session().receive(channel_message(number, NO_CHANNEL, bytes(300)), 1.0)
    (text,) = talk(actions)
    assert NO_CHANNEL.hex() in text


@pytest.mark.parametrize("last", [OPEN_CHANNEL, OPEN_CHANNEL2, 136, 133])
def test_the_101st_channel_of_a_connection_ends_it(last: int) -> None:
    assert MAX_CHANNELS == 100
    session = open_session()
    ids = [bytes((number,)) * 32 for number in range(101)]
    for number, channel_id in enumerate(ids[:100]):
        message_type = (136, OPEN_CHANNEL, 132, OPEN_CHANNEL2)[number % 4]
        sends = without_reports(session.receive(channel_message(message_type, channel_id), 1.0))
        assert len(sends) == 1
    assert session.receive(channel_message(133, ids[7]), 2.0) == ()
    assert_warned_and_closed(session, channel_message(last, ids[100]), "100 channels")


@pytest.mark.parametrize("number", [OPEN_CHANNEL, OPEN_CHANNEL2, *CHANNEL_TYPES])
def test_a_channel_message_too_short_for_its_channel_id_ends_the_connection(number: int) -> None:
    whole = channel_message(number, b"c" * 32)
    for data in (whole[:2], whole[:3], whole[:-32], whole[:-1]):
        assert_warned_and_closed(open_session(), data, "short")


# peer_storage


@pytest.mark.parametrize("size", [0, 1, 57, 65530, 65531])
def test_an_update_is_stored_without_a_word(size: int) -> None:
    blob = b"\xab" * size
    actions = open_session().receive(u16(7) + u16(size) + blob, 1.0)
    assert actions == [Store(1, BackupKind.PEER_STORAGE, b"", blob)]


def test_updates_are_numbered_in_the_order_in_which_they_came() -> None:
    session = open_session()
    assert [update(session, b"same") for _ in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        u16(1),
        u16(6) + b"short",
        u16(65535) + bytes(65531),
        u16(65532) + bytes(65531),
        u16(65535),
    ],
    ids=lambda body: f"{body[:2].hex()}+{len(body)}",
)
def test_an_update_shorter_than_it_declares_is_not_stored(body: bytes) -> None:
    session = open_session()
    update(session)
    warning, close = without_reports(session.receive(u16(7) + body, 1.0))
    assert warning_text(warning).startswith("storage: ")
    assert isinstance(close, Close)
    assert_over(session)


@pytest.mark.parametrize("trailer", VALID_TRAILERS)
@pytest.mark.parametrize("blob", [b"", b"backup"])
def test_an_update_with_a_valid_trailer_is_stored_without_it(blob: bytes, trailer: bytes) -> None:
    actions = open_session().receive(u16(7) + u16(len(blob)) + blob + trailer, 1.0)
    assert actions == [Store(1, BackupKind.PEER_STORAGE, b"", blob)]


@pytest.mark.parametrize("trailer", INVALID_TRAILERS.values(), ids=INVALID_TRAILERS)
@pytest.mark.parametrize("blob", [b"", b"backup"])
def test_an_update_with_an_invalid_trailer_is_not_stored(blob: bytes, trailer: bytes) -> None:
    session = open_session()
    data = u16(7) + u16(len(blob)) + blob + trailer
    warning, close = without_reports(session.receive(data, 1.0))
    assert warning_text(warning).startswith("storage: ")
    assert isinstance(close, Close)
    assert_over(session)


# Confirmation: PROTOCOL, section 5


def test_a_pong_waits_until_the_updates_before_it_are_durable() -> None:
    session = open_session()
    first, second = update(session), update(session)
    assert ping(session, 3) == []
    assert talk(session.stored(first, 0.5)) == []
    assert talk(session.stored(second, 1.0)) == ["pong 3"]


def test_a_pong_comes_at_once_when_nothing_is_outstanding() -> None:
    session = open_session()
    assert ping(session, 3) == ["pong 3"]
    sequence = update(session)
    assert talk(session.stored(sequence, 0.5)) == []
    assert ping(session, 4) == ["pong 4"]
    assert ping(session, 5) == ["pong 5"]


def test_a_pong_does_not_wait_for_the_updates_behind_it() -> None:
    session = open_session()
    first = update(session)
    ping(session, 1)
    second = update(session)
    ping(session, 2)
    assert talk(session.stored(first, 0.5)) == ["pong 1"]
    assert talk(session.stored(second, 0.6)) == ["pong 2"]


def test_pongs_leave_in_the_order_of_their_pings() -> None:
    session = open_session()
    update(session)
    for size in (5, 3, 4):
        assert ping(session, size) == []
    last = update(session)
    for size in (1, 2):
        assert ping(session, size) == []
    assert talk(session.stored(last - 1, 0.5)) == ["pong 5", "pong 3", "pong 4"]
    assert talk(session.stored(last, 0.5)) == ["pong 1", "pong 2"]


def test_one_commit_may_release_several_pongs() -> None:
    session = open_session()
    for size in range(5):
        update(session)
        assert ping(session, size) == []
    last = update(session)
    assert talk(session.stored(last, 0.5)) == [f"pong {size}" for size in range(5)]
    assert ping(session, 9) == ["pong 9"]


def test_a_failure_is_told_before_the_pong_that_waits_for_it() -> None:
    session = open_session()
    sequence = update(session)
    assert ping(session, 3) == []
    actions = session.not_stored(sequence, "the disk is full", 0.5)
    assert talk(actions) == ["storage: the disk is full", "pong 3"]
    assert ping(session, 4) == ["pong 4"]


def test_a_failure_is_reported_to_the_operator() -> None:
    session = open_session()
    actions = session.not_stored(update(session), "the disk is full", 0.5)
    (report,) = (action for action in actions if isinstance(action, Report))
    assert report.details["reason"] == "the disk is full"


def test_a_failure_before_its_ping_is_told_at_once() -> None:
    session = open_session()
    sequence = update(session)
    assert talk(session.not_stored(sequence, "the disk is full", 0.5)) == [
        "storage: the disk is full"
    ]
    # The interval has had its warning, whatever becomes of its other updates.
    other = update(session)
    assert talk(session.not_stored(other, "the disk is still full", 0.6)) == []
    assert talk(session.stored(update(session), 0.7)) == []
    assert ping(session, 1) == ["pong 1"]


def test_each_interval_with_a_failure_has_its_own_warning() -> None:
    session = open_session()
    for size in range(3):
        sequence = update(session)
        assert ping(session, size) == []
        actions = session.not_stored(sequence, "the disk is full", 0.5)
        assert talk(actions) == ["storage: the disk is full", f"pong {size}"]


def test_a_failure_over_several_intervals_is_told_in_each() -> None:
    session = open_session()
    for size in (1, 2):
        update(session)
        assert ping(session, size) == []
    last = update(session)
    text = "storage: the disk is full"
    actions = session.not_stored(last, "the disk is full", 0.5)
    assert talk(actions) == [text, "pong 1", text, "pong 2", text]
    assert ping(session, 3) == ["pong 3"]


def test_a_failure_does_not_overtake_an_earlier_pong() -> None:
    session = open_session()
    first = update(session)
    ping(session, 1)
    second = update(session)
    assert talk(session.stored(first, 0.5)) == ["pong 1"]
    ping(session, 2)
    third = update(session)
    ping(session, 3)
    assert talk(session.stored(second, 0.6)) == ["pong 2"]
    assert talk(session.not_stored(third, "no", 0.7)) == ["storage: no", "pong 3"]


def test_a_failure_in_a_part_of_an_interval_counts_for_the_whole() -> None:
    session = open_session()
    first, second = update(session), update(session)
    assert ping(session, 1) == []
    # Which of the two the peer's newest is does not matter: nothing of it is confirmed.
    assert talk(session.not_stored(first, "no", 0.5)) == ["storage: no"]
    assert talk(session.stored(second, 0.6)) == ["pong 1"]


def test_what_was_stored_before_a_failure_is_confirmed() -> None:
    session = open_session()
    first = update(session)
    ping(session, 1)
    second = update(session)
    ping(session, 2)
    assert talk(session.stored(first, 0.5)) == ["pong 1"]
    assert talk(session.not_stored(second, "no", 0.5)) == ["storage: no", "pong 2"]
    third = update(session)
    assert talk(session.stored(third, 0.6)) == []
    assert ping(session, 3) == ["pong 3"]


def test_an_interval_without_an_update_has_no_warning() -> None:
    session = open_session()
    update(session)
    assert ping(session, 1) == []
    assert ping(session, 2) == []
    last = update(session)
    assert ping(session, 3) == []
    actions = session.not_stored(last, "no", 0.5)
    assert talk(actions) == ["storage: no", "pong 1", "pong 2", "storage: no", "pong 3"]


def test_a_pong_waits_two_seconds_for_the_store_and_not_longer() -> None:
    assert COMMIT_TIMEOUT == 2.0
    session = open_session()
    update(session, now=9.0)
    assert ping(session, 7, now=10.0) == []
    assert session.next_deadline() == 12.0
    assert session.tick(11.75) == ()
    warning, pong = talk(session.tick(12.0))
    assert warning.startswith("storage: ")
    assert pong == "pong 7"


def test_every_ping_has_its_own_two_seconds() -> None:
    session = open_session()
    update(session, now=10.0)
    ping(session, 1, now=10.0)
    update(session, now=11.0)
    ping(session, 2, now=11.0)
    assert talk(session.tick(12.0))[1:] == ["pong 1"]
    assert session.next_deadline() == 13.0
    assert talk(session.tick(12.75)) == []
    warning, pong = talk(session.tick(13.0))
    assert warning.startswith("storage: ")
    assert pong == "pong 2"


def test_a_late_commit_is_not_mentioned() -> None:
    session = open_session()
    first = update(session)
    ping(session, 1)
    assert len(talk(session.tick(2.0))) == 2
    assert talk(session.stored(first, 3.0)) == []
    assert ping(session, 2, now=3.0) == ["pong 2"]
    second = update(session, now=4.0)
    assert ping(session, 3, now=4.0) == []
    assert talk(session.stored(second, 4.5)) == ["pong 3"]


def test_a_ping_does_not_wait_for_what_was_already_given_up() -> None:
    session = open_session()
    update(session)
    ping(session, 1)
    assert len(talk(session.tick(2.0))) == 2
    assert ping(session, 2, now=2.5) == ["pong 2"]


def test_a_late_failure_is_not_told_a_second_time() -> None:
    session = open_session()
    first = update(session)
    ping(session, 1)
    assert len(talk(session.tick(2.0))) == 2
    assert ping(session, 3, now=2.25) == ["pong 3"]
    # The interval that is open now has had no failure.
    second = update(session, now=2.5)
    assert talk(session.not_stored(first, "no", 3.0)) == []
    assert talk(session.stored(second, 3.5)) == []
    assert ping(session, 2, now=4.0) == ["pong 2"]


def test_a_ping_that_asks_for_no_pong_does_not_end_an_interval() -> None:
    session = open_session()
    first = update(session)
    assert talk(session.not_stored(first, "no", 0.5)) == ["storage: no"]
    for size in (65532, 65535):
        assert ping(session, size) == []
    # Still the same interval, so no second warning.
    second = update(session)
    assert talk(session.not_stored(second, "no", 0.6)) == []
    assert session.next_deadline() > 2.0 + COMMIT_TIMEOUT
    assert ping(session, 1) == ["pong 1"]


def test_other_warnings_do_not_look_like_those_about_storage() -> None:
    session = open_session()
    sequence = update(session)
    (text,) = talk(session.receive(channel_message(136, b"c" * 32), 0.5))
    assert not text.startswith("storage:")
    assert ping(session, 1) == []
    assert talk(session.stored(sequence, 0.5)) == ["pong 1"]


@pytest.mark.parametrize("released_by", ["stored", "not_stored", "tick"])
def test_a_peer_is_read_no_further_while_too_many_of_its_pings_wait(released_by: str) -> None:
    session = open_session()
    sequence = update(session)
    for _ in range(MAX_INTERVALS):
        assert session.ready
        assert ping(session, 65535) == []
        assert ping(session, 1) == []
    assert not session.ready
    with pytest.raises(RuntimeError):
        session.receive(Ping(1).encode(), 0.5)
    if released_by == "stored":
        actions = session.stored(sequence, 0.5)
    elif released_by == "not_stored":
        actions = session.not_stored(sequence, "no", 0.5)
    else:
        actions = session.tick(session.next_deadline())
    said = talk(actions)
    assert said.count("pong 1") == MAX_INTERVALS
    assert len(said) == MAX_INTERVALS + (released_by != "stored")
    # It is read again, or this would raise.
    assert ping(session, 2) == ["pong 2"]


@pytest.mark.parametrize("released_by", ["stored", "not_stored"])
def test_a_peer_is_read_no_further_while_too_many_of_its_updates_wait(released_by: str) -> None:
    session = open_session()
    sequence = 0
    while session.ready:
        sequence = update(session)
    assert sequence == MAX_UNDECIDED + 1
    if released_by == "stored":
        assert talk(session.stored(1, 0.5)) == []
    else:
        assert talk(session.not_stored(1, "no", 0.5)) == ["storage: no"]
    assert update(session) == sequence + 1


def test_a_peer_is_read_no_further_while_too_many_refusals_wait_for_a_pong() -> None:
    session = open_session()
    sequence = update(session)
    assert ping(session, 1) == []
    refused = 0
    while session.ready:
        assert session.receive(u16(20) + u16(1) + b"b", 0.5) == ()
        refused += 1
    assert refused == MAX_UNTOLD + 1
    said = talk(session.stored(sequence, 0.5))
    assert said[0] == "pong 1"
    assert len(said) == 1 + refused
    assert session.ready


@dataclass
class Ledger:
    """A peer, its books by section 5's rule, and a store whose doings are known."""

    session: Session = field(default_factory=open_session)
    now: float = 0.0
    received: int = 0
    resolved: int = 0
    committed: int = 0
    refused: set[int] = field(default_factory=set)
    intervals: list[list[int]] = field(default_factory=lambda: [[]])
    pings: list[tuple[int, float]] = field(default_factory=list)
    pongs: int = 0
    warned: set[int] = field(default_factory=set)
    warned_without_cause: set[int] = field(default_factory=set)

    def update(self) -> None:
        if self.session.ready:
            self.received += 1
            self.intervals[-1].append(self.received)
            self.hear(self.session.receive(PeerStorage(b"blob").encode(), self.now))

    def ping(self, size: int) -> None:
        if self.session.ready:
            if size < 65532:
                self.pings.append((size, self.now))
                self.intervals.append([])
            self.hear(self.session.receive(Ping(size).encode(), self.now))
            self.no_pong_is_overdue()

    def commit(self, share: float) -> None:
        if count := self.part(share):
            self.resolved += count
            self.committed = self.resolved
            self.hear(self.session.stored(self.resolved, self.now))
            self.no_pong_is_overdue()

    def fail(self, share: float) -> None:
        if count := self.part(share):
            self.refused.update(range(self.resolved + 1, self.resolved + count + 1))
            self.resolved += count
            self.hear(self.session.not_stored(self.resolved, "no", self.now))
            self.no_pong_is_overdue()

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.hear(self.session.tick(self.now))
        self.no_pong_is_overdue(ticked=True)

    def part(self, share: float) -> int:
        """How many of the updates that the store still has are meant."""
        waiting = self.received - self.resolved
        return min(waiting, 1 + int(waiting * share))

    def hear(self, actions: Sequence[Action]) -> None:
        for action in without_reports(actions):
            if isinstance(action, Store):
                assert action.sequence == self.received
                continue
            message = decode(action)
            if isinstance(message, Pong):
                self.conclude(len(message.ignored))
            elif not isinstance(message, Ping):
                assert warning_text(action).startswith("storage: ")
                assert self.pongs not in self.warned, "one warning for an interval is enough"
                self.warned.add(self.pongs)

    def conclude(self, size: int) -> None:
        """A pong has come: what it says of its interval must be true."""
        assert size == self.pings[self.pongs][0]
        updates = self.intervals[self.pongs]
        failed = any(number in self.refused or number > self.resolved for number in updates)
        if self.pongs not in self.warned:
            # Durable itself, or replaced by one that is.
            assert all(number <= self.committed for number in updates)
            assert not failed
        elif not failed:
            self.warned_without_cause.add(self.pongs)
        self.pongs += 1

    def no_pong_is_overdue(self, ticked: bool = False) -> None:
        for number in range(self.pongs, len(self.pings)):
            updates = self.intervals[number]
            late = ticked and self.now >= self.pings[number][1] + COMMIT_TIMEOUT
            if updates and updates[-1] > self.resolved and not late:
                return
            raise AssertionError(f"pong {number} is overdue")


def _steps() -> st.SearchStrategy[list[tuple[str, float]]]:
    # Times are multiples of 1/4, which floats add without an error.
    share = st.sampled_from([0.0, 0.5, 1.0])
    update = st.just(("update", 0.0))
    ping = st.tuples(st.just("ping"), st.sampled_from([0.0, 1.0, 2.0, 7.0, 65532.0, 65535.0]))
    other = st.tuples(st.sampled_from(["commit", "fail"]), share) | st.tuples(
        st.sampled_from(["wait", "tick"]), st.sampled_from([0.0, 0.25, 1.0, 1.75])
    )
    step = update | ping | other
    return st.integers(0, 40).flatmap(lambda size: st.lists(step, min_size=size, max_size=size))


def _play(steps: list[tuple[str, float]], end: str) -> Ledger:
    ledger = Ledger()
    doings: dict[str, Callable[[float], None]] = {
        "update": lambda _: ledger.update(),
        "ping": lambda size: ledger.ping(int(size)),
        "commit": ledger.commit,
        "fail": ledger.fail,
        "wait": ledger.wait,
        "tick": ledger.tick,
    }
    for name, value in steps:
        doings[name](value)
    doings[end](2.0)
    return ledger


@thorough
@given(steps=_steps(), end=st.sampled_from(["commit", "fail", "tick"]))
def test_what_a_peer_concludes_from_its_pongs_is_always_true(
    steps: list[tuple[str, float]], end: str
) -> None:
    ledger = _play(steps, end)
    assert ledger.pongs == len(ledger.pings), "once all is decided, every ping has its pong"
    assert ledger.session.ready


@thorough
@given(steps=_steps(), end=st.sampled_from(["commit", "fail", "tick"]))
def test_no_interval_is_warned_about_without_a_cause(
    steps: list[tuple[str, float]], end: str
) -> None:
    assert not _play(steps, end).warned_without_cause


# Timers


def test_a_peer_that_does_not_say_init_in_time_is_closed_without_a_word() -> None:
    session = new_session(now=100.0)
    assert session.next_deadline() == 115.0
    assert session.tick(114.75) == ()
    (close,) = session.tick(115.0)
    assert isinstance(close, Close)
    assert_over(session, 115.0)


def test_bytes_alone_do_not_put_off_the_init_timeout() -> None:
    session = new_session()
    for now in (5.0, 10.0, 14.5):
        session.heard(now)
        assert session.tick(now) == ()
    assert session.next_deadline() == 15.0
    (close,) = session.tick(15.0)
    assert isinstance(close, Close)


def test_who_asks_for_more_pongs_than_its_rate_allows_is_read_no_further_for_a_while() -> None:
    session = open_session()
    session.pong_rate = 1000
    overhead = 38  # type, length, and BOLT 8's own
    ready = []
    for _ in range(3):
        assert ping(session, 500 - overhead, now=1.0) == [f"pong {500 - overhead}"]
        ready.append(session.ready)
    assert ready == [True, True, False]  # a second's worth and the one that went beyond it
    assert session.next_deadline() == pytest.approx(1.5)
    for now in (1.4, 1.5):
        session.tick(now)
        ready.append(session.ready)
    assert ready[3:] == [False, True]
    assert ping(session, 0, now=1.5) == ["pong 0"]


def test_a_peer_without_a_pong_rate_may_ask_for_any_number() -> None:
    session = open_session()
    for _ in range(100):
        assert ping(session, 65531) == ["pong 65531"]


def test_our_ping_and_the_end_of_a_silent_peer_come_also_while_it_is_held_back() -> None:
    session = open_session()
    session.pong_rate = 1
    ping(session, 10_000, now=1.0)
    assert not session.ready
    assert [decode(action) for action in session.tick(61.0)] == [Ping(0)]
    assert without_reports(session.tick(121.0)) == [Close("silent")]


def test_who_is_dismissed_is_told_as_soon_as_anything_may_be_said() -> None:
    assert new_session().dismiss("no room") == [Close("no room")]
    session = open_session()
    warning, close = session.dismiss("no room")
    assert warning_text(warning) == "no room"
    assert close == Close("no room")
    assert_over(session)


def test_a_silent_peer_is_pinged_after_60_seconds_and_closed_after_120() -> None:
    session = open_session(now=10.0)
    assert session.next_deadline() == 70.0
    assert session.tick(69.75) == ()
    message = only_message(session.tick(70.0))
    assert isinstance(message, Ping)
    assert message.num_pong_bytes < 65532, "only then is there an answer"
    assert session.next_deadline() == 130.0
    for now in (70.0, 71.0, 100.0, 129.75):
        assert session.tick(now) == ()
    (close,) = session.tick(130.0)
    assert isinstance(close, Close)
    assert_over(session, 130.0)


def test_a_pong_clears_our_ping() -> None:
    session = open_session()
    assert isinstance(only_message(session.tick(60.0)), Ping)
    assert session.receive(Pong().encode(), 61.0) == ()
    assert session.next_deadline() == 121.0
    assert session.tick(120.75) == ()
    assert isinstance(only_message(session.tick(121.0)), Ping)


def test_only_one_ping_of_ours_is_ever_in_flight() -> None:
    session = open_session()
    assert isinstance(only_message(session.tick(60.0)), Ping)
    # The peer lives, but does not answer: one unanswered ping is all that eclair allows.
    for now in range(100, 1000, 100):
        assert ping(session, 1, now=now) == ["pong 1"]
        assert session.tick(now + 99.0) == ()
        assert session.next_deadline() == now + 120.0
    (close,) = session.tick(1020.0)
    assert isinstance(close, Close)


@pytest.mark.parametrize(
    "data",
    [
        Ping(65535).encode(),
        Pong().encode(),
        PeerStorage(b"backup").encode(),
        WarningMessage.about("hm").encode(),
        channel_message(136, b"c" * 32),
        u16(256),
        u16(513),
    ],
    ids=lambda data: str(int.from_bytes(data[:2], "big")),
)
def test_any_message_ends_the_silence(data: bytes) -> None:
    session = open_session()
    session.receive(data, 59.0)
    assert session.tick(60.0) == ()
    assert session.next_deadline() == 119.0
    assert isinstance(only_message(session.tick(119.0)), Ping)


def test_bytes_of_an_unfinished_message_end_the_silence() -> None:
    session = open_session()
    session.heard(59.0)
    assert session.next_deadline() == 119.0
    assert session.tick(118.75) == ()


def test_a_tick_that_comes_very_late_closes() -> None:
    session = open_session()
    (close,) = session.tick(500.0)
    assert isinstance(close, Close)


def test_timeouts_can_be_set() -> None:
    timeouts = Timeouts(init=1.0, ping=2.0, idle=4.0)
    assert isinstance(new_session(timeouts=timeouts).tick(1.0)[0], Close)
    session = open_session(timeouts=timeouts)
    assert session.tick(1.75) == ()
    assert isinstance(only_message(session.tick(2.0)), Ping)
    assert isinstance(session.tick(4.0)[0], Close)


@thorough
@given(
    messages=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.25, 1.0, 1.75, 30.0, 60.0, 100.0]),
            st.sampled_from(
                [
                    PeerStorage(b"backup").encode(),
                    Ping(1).encode(),
                    Ping(65535).encode(),
                    Pong().encode(),
                    u16(513),
                ]
            ),
        ),
        max_size=20,
    ),
    replayed=st.booleans(),
)
def test_the_deadline_is_when_a_tick_does_something(
    messages: list[tuple[float, bytes]], replayed: bool
) -> None:
    session, now = new_session(), 0.0

    def let_pass(seconds: float) -> None:
        nonlocal now
        end = now + seconds
        while session.state is not State.CLOSED and (deadline := session.next_deadline()) <= end:
            assert deadline >= now
            if deadline - 0.125 >= now:
                assert session.tick(deadline - 0.125) == ()
            now = deadline
            assert session.tick(now) != ()
        now = end

    let_pass(10.0)
    session.receive(init_message(43), now)
    if replayed:
        session.retrieved(b"")
        for seconds, data in messages:
            let_pass(seconds)
            if session.ready:
                session.receive(data, now)
    let_pass(1000.0)
    assert session.state is State.CLOSED


@pytest.mark.parametrize("heard", [973.801, 8156.3, 244.085028, 8117.281, 449.8, 401.190844])
def test_the_deadline_is_when_a_tick_does_something_however_floats_round(heard: float) -> None:
    # (heard + 60) - heard is less than 60 for the first three, the same with 120 for the others.
    session = open_session()
    session.heard(heard)
    assert isinstance(only_message(session.tick(session.next_deadline())), Ping)
    (close,) = session.tick(session.next_deadline())
    assert isinstance(close, Close)


# What the peer reports


@pytest.mark.parametrize("channel_id", [NO_CHANNEL, b"c" * 32])
@pytest.mark.parametrize(
    ("kind", "event"), [(WarningMessage, "peer_warning"), (ErrorMessage, "peer_error")]
)
def test_warnings_and_errors_of_the_peer_are_reported_and_never_answered(
    kind: type[WarningMessage | ErrorMessage], event: str, channel_id: bytes
) -> None:
    session = open_session()
    (report,) = session.receive(kind(channel_id, b"storage: who knows").encode(), 1.0)
    assert report == Report(event, {"channel_id": channel_id.hex(), "text": "storage: who knows"})
    assert session.ready


@quick
@given(data=st.binary(max_size=300) | st.just(b"\x1b[2J\r\n" * 5000))
def test_what_a_peer_says_can_do_nothing_to_a_log(data: bytes) -> None:
    for kind in (WarningMessage, ErrorMessage):
        (report,) = open_session().receive(kind(NO_CHANNEL, data).encode(), 1.0)
        assert isinstance(report, Report)
        text = report.details["text"]
        assert isinstance(text, str)
        assert text.isascii()
        assert text.isprintable()
        assert len(text) <= 1200


# Anything at all


def _junk() -> st.SearchStrategy[bytes]:
    """Messages of all kinds, whole, cut and with something behind them."""
    channel_ids = st.sampled_from([NO_CHANNEL, b"1" * 32, b"2" * 32, b"\xff" * 32])
    types = st.sampled_from([OPEN_CHANNEL, OPEN_CHANNEL2, *CHANNEL_TYPES])
    blobs = st.binary(max_size=40)
    sizes = st.sampled_from([0, 1, 100, 65531, 65532, 65535])
    whole = st.one_of(
        st.builds(channel_message, types, channel_ids, blobs),
        st.builds(lambda *fields: ErrorMessage(*fields).encode(), channel_ids, blobs),
        st.builds(lambda *fields: WarningMessage(*fields).encode(), channel_ids, blobs),
        st.builds(lambda *fields: Ping(*fields).encode(), sizes, blobs),
        st.builds(lambda blob: Pong(blob).encode(), blobs),
        st.builds(lambda blob: PeerStorage(blob).encode(), blobs),
        st.builds(lambda blob: PeerStorageRetrieval(blob).encode(), blobs),
        st.just(QueryChannelRange(CHAIN, 5, 6).encode()),
        st.builds(lambda ids: QueryShortChannelIds(CHAIN, ids).encode(), blobs),
        st.builds(lambda number, body: u16(number) + body, st.integers(0, 300), blobs),
        st.builds(lambda number, body: u16(number * 2 + 1) + body, st.integers(0, 32767), blobs),
    )
    trailed = st.builds(
        lambda data, trailer: data + trailer,
        whole,
        st.sampled_from([*VALID_TRAILERS, *INVALID_TRAILERS.values()]),
    )
    cut = st.builds(lambda data, size: data[: size % len(data)], whole, st.integers(0, 200))
    # Mostly what does not end the connection, so that streams get long.
    return st.one_of(whole, whole, whole, whole, trailed, cut, st.binary(max_size=4))


def _assert_documented(data: bytes, actions: Sequence[Action]) -> None:
    """The outcome of one message in OPEN is one of those that PROTOCOL knows."""
    number = int.from_bytes(data[:2], "big")
    sends = [decode(action) for action in actions if isinstance(action, Send)]
    for message in sends:
        assert isinstance(
            message,
            WarningMessage | ErrorMessage | Pong | ReplyChannelRange | ReplyShortChannelIdsEnd,
        )
    assert not any(isinstance(action, Retrieve) for action in actions)
    if any(isinstance(action, Close) for action in actions):
        warning, close = without_reports(actions)
        assert isinstance(close, Close)
        assert warning_text(warning).startswith("storage: ") == (
            number in (7, 20, 120) and len(data) >= 2
        )
        return
    for message in sends:
        if isinstance(message, ErrorMessage):
            assert number in (OPEN_CHANNEL, OPEN_CHANNEL2)
            assert message.channel_id == data[34:66] != NO_CHANNEL
        elif isinstance(message, WarningMessage):
            assert message.channel_id == NO_CHANNEL
            assert number in CHANNEL_TYPES or data[34:66] == NO_CHANNEL
            assert not message.text.startswith("storage:")
        elif isinstance(message, Pong):
            assert number == 18
        else:
            assert number == (263 if isinstance(message, ReplyChannelRange) else 261)
    assert len(sends) <= 1
    assert any(isinstance(action, Store) for action in actions) == (number == 7)
    if any(isinstance(action, Report) for action in actions):
        assert number in (1, 17, OPEN_CHANNEL, OPEN_CHANNEL2) or number in CHANNEL_TYPES
    if number % 2 == 1 and number > 265:
        assert not actions


@thorough
@given(stream=st.lists(_junk(), max_size=40))
def test_whatever_comes_the_outcome_is_a_documented_one(stream: list[bytes]) -> None:
    session, now, received = open_session(), 0.0, 0
    for data in stream:
        now += 0.25
        actions = session.receive(data, now)
        _assert_documented(data, actions)
        if session.state is State.CLOSED:
            assert_over(session, now)
            return
        for action in actions:
            if isinstance(action, Store):
                received += 1
                assert action.sequence == received
                assert talk(session.stored(received, now)) == []
        assert session.ready


@thorough
@given(stream=st.lists(_junk(), max_size=60))
def test_no_error_for_all_channels_is_ever_sent(stream: list[bytes]) -> None:
    sent: list[Action] = []
    session = open_session()
    for data in stream:
        if not session.ready:
            # Another connection of the same peer: the rest of the stream counts too.
            sent += session.tick(1.0 + COMMIT_TIMEOUT)
            session = open_session()
        sent += session.receive(data, 1.0)
    for message in [decode(action) for action in sent if isinstance(action, Send)]:
        if isinstance(message, ErrorMessage):
            assert message.channel_id != NO_CHANNEL
        elif isinstance(message, WarningMessage):
            assert message.channel_id == NO_CHANNEL


@quick
@given(data=_junk() | st.builds(lambda body: u16(16) + body, st.binary(max_size=80)))
def test_whatever_comes_first_is_an_init_or_the_end(data: bytes) -> None:
    session = new_session()
    actions = session.receive(data, 1.0)
    if session.state is State.REPLAY:
        assert actions == [RETRIEVE]
    elif data[:2] == u16(16):
        warning, close = actions
        assert "init" in warning_text(warning)
        assert isinstance(close, Close)
    else:
        (close,) = actions
        assert isinstance(close, Close)
