"""Messages: every class back and forth, every way of being malformed, and BOLT 1's details."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from peerstore.errors import CodecError
from peerstore.types import Network
from peerstore.wire import features
from peerstore.wire.codec import encode_bigsize, encode_tlv_stream
from peerstore.wire.messages import (
    ALL_CHANNELS,
    CHANNEL_MESSAGES,
    MAX_BACKUP_SIZE,
    MAX_BLOB_SIZE,
    MAX_MESSAGE_SIZE,
    MESSAGES,
    PONG_LIMIT,
    ChannelReestablish,
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
    RevokeAndAck,
    StartBatch,
    UpdateChannelBackup,
    UpdateNodeBackup,
    WarningMessage,
    address_descriptor,
    channel_id_of,
    decode_message,
    message_type,
)
from tests.helpers import feature_bits, quick

CHAIN = bytes(range(32))
CHANNEL = bytes(range(100, 132))
SECRET = bytes(range(200, 232))
POINT = b"\x03" + bytes(range(150, 182))

BYTES_32 = st.binary(min_size=32, max_size=32)
U8 = st.integers(0, 0xFF)
U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
U64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)
POINTS = st.binary(min_size=33, max_size=33)
SOME_BYTES = st.binary(max_size=100)

NAMES: dict[type[Message], str] = {
    WarningMessage: "warning",
    PeerStorage: "peer_storage",
    PeerStorageRetrieval: "peer_storage_retrieval",
    Init: "init",
    ErrorMessage: "error",
    Ping: "ping",
    Pong: "pong",
    UpdateNodeBackup: "update_node_backup",
    UpdateChannelBackup: "update_channel_backup",
    StartBatch: "start_batch",
    RevokeAndAck: "revoke_and_ack",
    ChannelReestablish: "channel_reestablish",
    QueryShortChannelIds: "query_short_channel_ids",
    ReplyShortChannelIdsEnd: "reply_short_channel_ids_end",
    QueryChannelRange: "query_channel_range",
    ReplyChannelRange: "reply_channel_range",
}

# Without TLVs: these messages end with their last field.
PLAIN: dict[type[Message], st.SearchStrategy[Message]] = {
    WarningMessage: st.builds(WarningMessage, BYTES_32, SOME_BYTES),
    PeerStorage: st.builds(PeerStorage, SOME_BYTES),
    PeerStorageRetrieval: st.builds(PeerStorageRetrieval, SOME_BYTES),
    Init: st.builds(Init, st.integers(0, 1 << 200)),
    ErrorMessage: st.builds(ErrorMessage, BYTES_32, SOME_BYTES),
    Ping: st.builds(Ping, U16, SOME_BYTES),
    Pong: st.builds(Pong, SOME_BYTES),
    UpdateNodeBackup: st.builds(UpdateNodeBackup, SOME_BYTES),
    UpdateChannelBackup: st.builds(UpdateChannelBackup, SOME_BYTES),
    StartBatch: st.builds(StartBatch, BYTES_32, U16),
    RevokeAndAck: st.builds(RevokeAndAck, BYTES_32, BYTES_32, POINTS),
    ChannelReestablish: st.builds(ChannelReestablish, BYTES_32, U64, U64, BYTES_32, POINTS),
    QueryShortChannelIds: st.builds(QueryShortChannelIds, BYTES_32, SOME_BYTES),
    ReplyShortChannelIdsEnd: st.builds(ReplyShortChannelIdsEnd, BYTES_32, U8),
    QueryChannelRange: st.builds(QueryChannelRange, BYTES_32, U32, U32),
    ReplyChannelRange: st.builds(ReplyChannelRange, BYTES_32, U32, U32, U8, SOME_BYTES),
}

INITS = st.builds(
    Init,
    st.integers(0, 1 << 200),
    st.none() | st.lists(BYTES_32, max_size=3).map(tuple),
    st.none() | SOME_BYTES,
    st.none() | SOME_BYTES,
)

WITH_TLVS: dict[type[Message], st.SearchStrategy[Message]] = {
    Init: INITS,
    StartBatch: st.builds(StartBatch, BYTES_32, U16, st.none() | U16),
    ChannelReestablish: st.builds(
        ChannelReestablish, BYTES_32, U64, U64, BYTES_32, POINTS, st.none() | SOME_BYTES
    ),
}

# Odd types that no message here knows.
ODD_RECORDS = st.dictionaries(
    st.integers(2, 2**63 - 1).map(lambda half: 2 * half + 1), st.binary(max_size=40), min_size=1
)

each_class = pytest.mark.parametrize("kind", MESSAGES.values(), ids=NAMES.get)


def wire(*fields: str | bytes) -> bytes:
    """Fields one behind the other, in hexadecimal or as they are."""
    return b"".join(bytes.fromhex(field) if isinstance(field, str) else field for field in fields)


# Every message


def test_every_message_has_its_type_and_a_strategy() -> None:
    assert set(MESSAGES.values()) == set(NAMES) == set(PLAIN)
    assert {number: NAMES[kind] for number, kind in MESSAGES.items()} == {
        1: "warning",
        7: "peer_storage",
        9: "peer_storage_retrieval",
        16: "init",
        17: "error",
        18: "ping",
        19: "pong",
        20: "update_node_backup",
        120: "update_channel_backup",
        127: "start_batch",
        133: "revoke_and_ack",
        136: "channel_reestablish",
        261: "query_short_channel_ids",
        262: "reply_short_channel_ids_end",
        263: "query_channel_range",
        264: "reply_channel_range",
    }


@each_class
@quick
@given(data=st.data())
def test_message_is_read_back(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(WITH_TLVS.get(kind, PLAIN[kind]))
    encoded = message.encode()
    assert message_type(encoded) == kind.TYPE
    assert kind.decode(encoded) == message
    decoded = decode_message(encoded)
    assert type(decoded) is kind
    assert decoded == message


@each_class
@quick
@given(data=st.data())
def test_message_cut_short_anywhere_is_an_error(kind: type[Message], data: st.DataObject) -> None:
    encoded = data.draw(PLAIN[kind]).encode()
    for size in range(2, len(encoded)):
        with pytest.raises(CodecError, match=f"^{NAMES[kind]}: too short"):
            kind.decode(encoded[:size])
        with pytest.raises(CodecError, match=f"^{NAMES[kind]}: too short"):
            decode_message(encoded[:size])
    for size in (0, 1):
        with pytest.raises(CodecError):
            kind.decode(encoded[:size])
        with pytest.raises(CodecError, match="no type"):
            decode_message(encoded[:size])


@each_class
@quick
@given(
    junk=st.binary(max_size=200) | st.builds(bytes.__add__, BYTES_32, st.binary(max_size=80)),
)
def test_junk_is_a_value_or_a_codec_error(kind: type[Message], junk: bytes) -> None:
    try:
        message = kind.decode(kind.TYPE.to_bytes(2, "big") + junk)
    except CodecError:
        return
    assert kind.decode(message.encode()) == message


@quick
@given(st.binary(max_size=100))
def test_junk_of_any_type_is_a_value_or_a_codec_error(junk: bytes) -> None:
    try:
        message = decode_message(junk)
    except CodecError:
        return
    assert type(message) is MESSAGES[message_type(junk)]


@each_class
@quick
@given(data=st.data(), records=ODD_RECORDS)
def test_valid_extension_is_ignored(
    kind: type[Message], data: st.DataObject, records: dict[int, bytes]
) -> None:
    message = data.draw(PLAIN[kind])
    assert kind.decode(message.encode() + encode_tlv_stream(records.items())) == message


INVALID_EXTENSIONS = {
    "even type": ("0400", "even and unknown"),
    "even type zero": ("0000", "even and unknown"),
    "even type behind an odd one": ("0500fd010200", "even and unknown"),
    "type is not minimal": ("fd000500", "not minimally encoded"),
    "length is not minimal": ("05fd000161", "not minimally encoded"),
    "type is cut": ("fd01", "truncated"),
    "length is missing": ("05", "truncated"),
    "length is cut": ("05fd01", "truncated"),
    "value is missing": ("0501", "truncated"),
    "value is cut": ("05036161", "truncated"),
    "second record is cut": ("05006f03", "truncated"),
    "falling types": ("07000500", "comes after"),
    "type given twice": ("05000500", "comes after"),
}


@each_class
@pytest.mark.parametrize(
    ("extension", "reason"), INVALID_EXTENSIONS.values(), ids=INVALID_EXTENSIONS
)
@settings(quick, max_examples=10)
@given(data=st.data())
def test_invalid_extension_is_an_error(
    kind: type[Message], extension: str, reason: str, data: st.DataObject
) -> None:
    message = data.draw(PLAIN[kind])
    with pytest.raises(CodecError, match=f"^{NAMES[kind]}: .*{reason}"):
        kind.decode(message.encode() + bytes.fromhex(extension))


@each_class
@quick
@given(data=st.data(), records=ODD_RECORDS)
def test_extension_cut_inside_a_record_is_an_error(
    kind: type[Message], data: st.DataObject, records: dict[int, bytes]
) -> None:
    message = data.draw(PLAIN[kind])
    last = max(records)
    extension = encode_tlv_stream(records.items())
    record = encode_tlv_stream([(last, records[last])])
    for missing in range(1, len(record)):
        with pytest.raises(CodecError, match=f"^{NAMES[kind]}: .*truncated"):
            kind.decode(message.encode() + extension[:-missing])
    assert kind.decode(message.encode() + extension[: -len(record)]) == message


@pytest.mark.parametrize("number", [0, 2, 22, 122, 135, 513, 39409, 65535])
def test_message_of_another_type_is_not_decoded(number: int) -> None:
    data = number.to_bytes(2, "big") + bytes(100)
    assert message_type(data) == number
    with pytest.raises(CodecError, match=f"message type {number} is unknown"):
        decode_message(data)


@pytest.mark.parametrize("data", [b"", b"\x00"])
def test_message_without_a_type_is_an_error(data: bytes) -> None:
    with pytest.raises(CodecError, match="no type"):
        message_type(data)


# init


def test_our_init_is_the_bytes_that_real_peers_accept() -> None:
    # BOLT 0 writes bitcoin's chain_hash in just this order.
    chain_hash = "6fe28c0ab6f1b372c1a6a246ae63f74f931e8365e15a089c68d6190000000000"
    init = Init(features.OURS, networks=(Network.BITCOIN.chain_hash,))
    assert init.encode() == wire("0010", "0000", "0006", "28000080a202", "0120", chain_hash)


@quick
@given(INITS)
def test_init_cut_behind_a_record_lacks_the_rest_and_is_an_error_elsewhere(init: Init) -> None:
    encoded = init.encode()
    shorter = Init(init.features)
    valid = {len(shorter.encode()): shorter}
    if init.networks is not None:
        shorter = Init(init.features, init.networks)
        valid[len(shorter.encode())] = shorter
    if init.node_backup is not None:
        shorter = Init(init.features, init.networks, init.node_backup)
        valid[len(shorter.encode())] = shorter
    valid[len(encoded)] = init
    for size in range(len(encoded) + 1):
        if size in valid:
            assert Init.decode(encoded[:size]) == valid[size]
        else:
            with pytest.raises(CodecError):
                Init.decode(encoded[:size])


def init_with(tlvs: bytes) -> Init:
    return Init.decode(wire("0010", "0000", "0001", "02", tlvs))


def test_init_without_networks_says_none() -> None:
    assert init_with(b"") == Init(2, networks=None)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_init_networks_are_chain_hashes_in_order(count: int) -> None:
    chains = tuple(bytes((number,)) * 32 for number in range(count))
    networks = encode_tlv_stream([(1, b"".join(chains))])
    assert init_with(networks).networks == chains
    assert Init(2, networks=chains).encode().endswith(networks)


@pytest.mark.parametrize("size", [1, 31, 33, 63])
def test_init_networks_of_another_length_are_an_error(size: int) -> None:
    with pytest.raises(CodecError, match=r"^init: networks"):
        init_with(encode_tlv_stream([(1, bytes(size))]))


@pytest.mark.parametrize(
    "remote_addr",
    [b"", b"\x01", b"\x01\x7f\x00\x00\x01", b"\x00" * 300, b"\xff" * 7],
    ids=["empty", "only a type", "port missing", "too long", "unknown type"],
)
def test_init_remote_addr_may_be_malformed(remote_addr: bytes) -> None:
    assert init_with(encode_tlv_stream([(3, remote_addr)])).remote_addr == remote_addr


def test_init_knows_the_even_tlv_of_pull_request_881() -> None:
    init = init_with(wire("0203", b"abc"))
    assert init.node_backup == b"abc"
    assert init.encode() == wire("0010", "0000", "0001", "02", "0203", b"abc")


def test_init_node_backup_may_be_empty() -> None:
    assert init_with(wire("0200")).node_backup == b""


@pytest.mark.parametrize("number", [0, 4, 6, 254, 2**32])
def test_init_with_an_unknown_even_tlv_is_an_error(number: int) -> None:
    with pytest.raises(CodecError, match=f"^init: TLV type {number} is even and unknown"):
        init_with(encode_bigsize(number) + b"\x00")


def test_init_feature_fields_are_combined() -> None:
    # 1 and 13 in globalfeatures; 13, 43 and leading zeros in features.
    init = Init.decode(wire("0010", "0002", "2002", "0008", "0000080000002000"))
    assert list(feature_bits(init.features)) == [1, 13, 43]
    # Ours are written into features alone.
    assert init.encode() == wire("0010", "0000", "0006", "080000002002")


def test_init_with_two_empty_feature_fields_is_valid() -> None:
    assert Init.decode(wire("0010", "0000", "0000")) == Init(0)
    assert Init(0).encode() == wire("0010", "0000", "0000")


@pytest.mark.parametrize(
    ("address", "port", "descriptor"),
    [
        (IPv4Address("203.0.113.7"), 9735, "01" + "cb007107" + "2607"),
        (IPv4Address("0.0.0.0"), 0, "01" + "00000000" + "0000"),  # noqa: S104 - only parsed
        (IPv6Address("2001:db8::1"), 65535, "02" + "20010db8" + "00" * 11 + "01" + "ffff"),
    ],
    ids=["IPv4", "IPv4 of zeros", "IPv6"],
)
def test_bolt7_address_descriptor(
    address: IPv4Address | IPv6Address, port: int, descriptor: str
) -> None:
    assert address_descriptor(address, port).hex() == descriptor


# Backups

each_blob_class = pytest.mark.parametrize(
    "kind", [PeerStorage, PeerStorageRetrieval, UpdateNodeBackup, UpdateChannelBackup]
)
BlobClass = type[PeerStorage | PeerStorageRetrieval | UpdateNodeBackup | UpdateChannelBackup]


def blob_message(kind: BlobClass, declared: int, rest: bytes) -> bytes:
    return kind.TYPE.to_bytes(2, "big") + declared.to_bytes(2, "big") + rest


@pytest.mark.parametrize(
    ("message", "number"),
    [
        (PeerStorage(b"abc"), "0007"),
        (PeerStorageRetrieval(b"abc"), "0009"),
        (UpdateNodeBackup(b"abc"), "0014"),
        (UpdateChannelBackup(b"abc"), "0078"),
    ],
)
def test_backups_are_laid_out_as_their_proposals_say(message: Message, number: str) -> None:
    assert message.encode() == wire(number, "0003", b"abc")
    assert decode_message(wire(number, "0003", b"abc")) == message


@each_blob_class
@pytest.mark.parametrize("size", [0, 1, 57, 32000, 32001, 65530, MAX_BLOB_SIZE])
def test_blob_of_any_size_that_fits_is_read_whole(kind: BlobClass, size: int) -> None:
    blob = bytes(number % 251 for number in range(size))
    encoded = kind(blob).encode()
    assert encoded == blob_message(kind, size, blob)
    assert kind.decode(encoded) == kind(blob)


def test_largest_blob_fills_the_largest_message() -> None:
    assert MAX_BLOB_SIZE == 65531
    assert len(PeerStorageRetrieval(bytes(MAX_BLOB_SIZE)).encode()) == MAX_MESSAGE_SIZE == 65535


@each_blob_class
@pytest.mark.parametrize("declared", [11, 12, 65531, 65535])
def test_blob_shorter_than_declared_is_an_error(kind: BlobClass, declared: int) -> None:
    with pytest.raises(CodecError, match=f"^{kind.NAME}: too short"):
        kind.decode(blob_message(kind, declared, bytes(10)))


@each_blob_class
@pytest.mark.parametrize("trailer", ["0100", "010161fd00ff020000", "ffffffffffffffffff00"])
@pytest.mark.parametrize("blob", [b"", b"\x01\x00 and more"])
def test_blob_before_a_valid_trailer_is_the_declared_bytes(
    kind: BlobClass, blob: bytes, trailer: str
) -> None:
    assert kind.decode(blob_message(kind, len(blob), wire(blob, trailer))).blob == blob


@each_blob_class
@pytest.mark.parametrize("trailer", ["00", "0000", "0200", "01", "0101", "fd0001", "01000100"])
@pytest.mark.parametrize("blob", [b"", b"\x01\x00 and more"])
def test_blob_before_an_invalid_trailer_is_an_error(
    kind: BlobClass, blob: bytes, trailer: str
) -> None:
    with pytest.raises(CodecError, match=f"^{kind.NAME}: "):
        kind.decode(blob_message(kind, len(blob), wire(blob, trailer)))


# Channel messages that are read


@pytest.mark.parametrize(
    ("tlvs", "message"),
    [
        ("", StartBatch(CHANNEL, 3)),
        ("01020084", StartBatch(CHANNEL, 3, 132)),
        ("01020000", StartBatch(CHANNEL, 3, 0)),
    ],
    ids=["no type", "commitment_signed", "type 0"],
)
def test_start_batch_is_laid_out_as_bolt2_says(tlvs: str, message: StartBatch) -> None:
    encoded = wire("007f", CHANNEL, "0003", tlvs)
    assert message.encode() == encoded
    assert StartBatch.decode(encoded) == message


@pytest.mark.parametrize("value", ["", "84", "000084"])
def test_start_batch_with_a_message_type_of_another_size_is_an_error(value: str) -> None:
    tlv = encode_tlv_stream([(1, bytes.fromhex(value))])
    with pytest.raises(CodecError, match=r"^start_batch: "):
        StartBatch.decode(wire("007f", CHANNEL, "0003", tlv))


def test_revoke_and_ack_is_laid_out_as_bolt2_says() -> None:
    encoded = wire("0085", CHANNEL, SECRET, POINT)
    assert RevokeAndAck(CHANNEL, SECRET, POINT).encode() == encoded
    assert RevokeAndAck.decode(encoded) == RevokeAndAck(CHANNEL, SECRET, POINT)


@pytest.mark.parametrize(
    ("tlvs", "backup"),
    [
        (b"", None),
        (wire("0100"), b""),
        (wire("0103", b"abc"), b"abc"),
        (wire("01fd7d00", bytes(MAX_BACKUP_SIZE)), bytes(MAX_BACKUP_SIZE)),
    ],
    ids=["no backup", "an empty one", "a short one", "the largest"],
)
def test_channel_reestablish_is_laid_out_as_bolt2_and_pull_request_881_say(
    tlvs: bytes, backup: bytes | None
) -> None:
    encoded = wire("0088", CHANNEL, "0000000000000002", "00000001000000ff", SECRET, POINT, tlvs)
    message = ChannelReestablish(CHANNEL, 2, 0x1000000FF, SECRET, POINT, backup)
    assert message.encode() == encoded
    assert ChannelReestablish.decode(encoded) == message


@pytest.mark.parametrize("kind", [StartBatch, ChannelReestablish])
@quick
@given(data=st.data())
def test_channel_message_cut_inside_its_tlv_is_an_error(
    kind: type[Message], data: st.DataObject
) -> None:
    message = data.draw(PLAIN[kind]).encode()
    encoded = message + wire("01020084")
    for size in range(len(message) + 1, len(encoded)):
        with pytest.raises(CodecError, match=f"^{NAMES[kind]}: .*truncated"):
            kind.decode(encoded[:size])


def test_largest_backup_fits_into_both_messages_that_give_it_back() -> None:
    assert MAX_BACKUP_SIZE == 32000
    init = Init(features.OURS, (Network.BITCOIN.chain_hash,), bytes(32000), bytes(19))
    reestablish = ChannelReestablish(CHANNEL, 1, 0, bytes(32), POINT, bytes(32000))
    for message in (init, reestablish):
        assert len(message.encode()) < MAX_MESSAGE_SIZE
        assert type(message).decode(message.encode()) == message


# warning and error


def test_our_warning_names_no_channel() -> None:
    warning = WarningMessage.about("storage: full")
    assert warning.channel_id == ALL_CHANNELS == bytes(32)
    assert warning.encode() == wire("0001", bytes(32), "000d", b"storage: full")


@quick
@given(st.text(st.characters()))
def test_our_warning_is_ascii_whatever_its_text(text: str) -> None:
    warning = WarningMessage.about(text)
    assert warning.channel_id == ALL_CHANNELS
    assert warning.data.isascii()
    assert WarningMessage.decode(warning.encode()) == warning


@pytest.mark.parametrize("kind", [WarningMessage, ErrorMessage])
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain text, as it is", "plain text, as it is"),
        (b"two\nlines\r", r"two\nlines\r"),
        (b"\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("café".encode(), r"caf\xc3\xa9"),
        (b"\x00\x7f\xff", r"\x00\x7f\xff"),
        (rb"\n", r"\\n"),
        (b"", ""),
    ],
)
def test_text_of_a_report_is_escaped(
    kind: type[WarningMessage] | type[ErrorMessage], data: bytes, text: str
) -> None:
    report = kind(CHANNEL, data)
    assert report.text == text
    assert kind.decode(report.encode()).data == data


@quick
@given(st.binary(max_size=200))
@example(bytes(range(256)))
def test_text_of_a_report_is_printable_and_loses_nothing(data: bytes) -> None:
    text = WarningMessage(CHANNEL, data).text
    assert all(32 <= ord(character) <= 126 for character in text)
    assert text.encode("ascii").decode("unicode_escape").encode("latin-1") == data


def test_warning_and_error_of_the_same_content_differ() -> None:
    error: Message = ErrorMessage(CHANNEL, b"text")
    assert error != WarningMessage(CHANNEL, b"text")
    assert error.encode() == wire("0011", CHANNEL, "0004", b"text")


# ping and pong


def test_ping_and_pong_are_laid_out_as_bolt1_says() -> None:
    assert Ping(PONG_LIMIT - 1, b"abc").encode() == wire("0012", "fffb", "0003", b"abc")
    assert Pong(b"ab").encode() == wire("0013", "0002", b"ab")


@pytest.mark.parametrize("num_pong_bytes", [0, 65531, 65532, 65535])
def test_ping_may_ask_for_any_number_of_bytes(num_pong_bytes: int) -> None:
    ping = wire("0012", num_pong_bytes.to_bytes(2, "big"), "05b3", bytes(1459))
    assert Ping.decode(ping) == Ping(num_pong_bytes, bytes(1459))


def test_longest_pong_that_can_be_asked_for_fits() -> None:
    pong = Pong(bytes(PONG_LIMIT - 1))
    assert len(pong.encode()) == MAX_MESSAGE_SIZE
    assert Pong.decode(pong.encode()) == pong


# The gossip queries of BOLT 7


def test_replies_to_gossip_queries_are_empty() -> None:
    assert ReplyChannelRange(CHAIN, 1, 0x10000).encode() == wire(
        "0108", CHAIN, "00000001", "00010000", "01", "0001", "00"
    )
    assert ReplyShortChannelIdsEnd(CHAIN).encode() == wire("0106", CHAIN, "00")


def test_gossip_queries_are_laid_out_as_bolt7_says() -> None:
    assert QueryChannelRange.decode(
        wire("0107", CHAIN, "00000001", "ffffffff", "010103")
    ) == QueryChannelRange(CHAIN, 1, 0xFFFFFFFF)
    assert QueryShortChannelIds.decode(
        wire("0105", CHAIN, "0009", "00", bytes(8), "0102", "0001")
    ) == QueryShortChannelIds(CHAIN, bytes(9))


# Channel messages


def channel_message(number: int, payload_after_id: bytes = b"") -> bytes:
    """BOLT 2: the channel id comes first, but behind the chain hash in the two that open one."""
    chain_hash = CHAIN if CHANNEL_MESSAGES[number] in ("open_channel", "open_channel2") else b""
    return number.to_bytes(2, "big") + chain_hash + CHANNEL + payload_after_id


@pytest.mark.parametrize("number", CHANNEL_MESSAGES, ids=CHANNEL_MESSAGES.get)
def test_channel_id_is_found(number: int) -> None:
    assert channel_id_of(channel_message(number)) == CHANNEL
    assert channel_id_of(channel_message(number, b"\xff" * 500)) == CHANNEL


@pytest.mark.parametrize("number", CHANNEL_MESSAGES, ids=CHANNEL_MESSAGES.get)
def test_channel_message_too_short_for_its_channel_id_is_an_error(number: int) -> None:
    data = channel_message(number)
    for size in range(2, len(data)):
        with pytest.raises(CodecError, match=f"^{CHANNEL_MESSAGES[number]}: too short"):
            channel_id_of(data[:size])


def test_opening_messages_have_their_temporary_channel_id_at_bytes_32_to_63() -> None:
    payload = bytes(range(200))
    assert channel_id_of(b"\x00\x20" + payload) == payload[32:64]
    assert channel_id_of(b"\x00\x40" + payload) == payload[32:64]
    assert channel_id_of(b"\x00\x21" + payload) == payload[:32]
    assert {CHANNEL_MESSAGES[32], CHANNEL_MESSAGES[64]} == {"open_channel", "open_channel2"}


def test_a_channel_message_that_is_read_has_the_same_name_and_place_of_its_channel_id() -> None:
    both = CHANNEL_MESSAGES.keys() & MESSAGES.keys()
    assert both == {127, 133, 136}
    for number in both:
        assert CHANNEL_MESSAGES[number] == NAMES[MESSAGES[number]]
    for message in (
        StartBatch(CHANNEL, 2, 132),
        RevokeAndAck(CHANNEL, SECRET, POINT),
        ChannelReestablish(CHANNEL, 1, 0, SECRET, POINT, b"backup"),
    ):
        assert channel_id_of(message.encode()) == CHANNEL
