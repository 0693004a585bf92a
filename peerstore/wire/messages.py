"""The messages that peerstore speaks, and the heads of those it must recognize: BOLT 1, 2 and 7,
and bolts pull request 881.

Each message is a frozen dataclass with its type number, `encode` and `decode`. `decode` takes
the whole message, type included, and returns a value or raises CodecError, whose text is fit for
a `warning` to the peer. A valid TLV extension is read and dropped (BOLT 1, Lightning Message
Format). A new message is a new class and its row in MESSAGES.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar, Protocol, Self

from peerstore.errors import CodecError
from peerstore.types import CHANNEL_ID_SIZE, NODE_ID_SIZE
from peerstore.wire.codec import TlvDecoder, decode_tlv_stream, encode_tlv_stream
from peerstore.wire.features import decode_features, encode_features

MAX_MESSAGE_SIZE = 65535
"""Bytes of a message with its type (BOLT 8, the length prefix is a u16)."""

MAX_BLOB_SIZE = 65531
"""Bytes of a `peer_storage` blob (BOLT 1, Peer storage): type and length take the other 4."""

MAX_BACKUP_SIZE = 32000
"""Bytes of a node or channel backup (bolts pull request 881)."""

PONG_LIMIT = 65532
"""A ping that asks for so many bytes or more is not answered (BOLT 1, `ping`)."""

POINT_SIZE = NODE_ID_SIZE
"""Bytes of a `point`: a compressed key (BOLT 1, Fundamental Types)."""

ALL_CHANNELS = bytes(CHANNEL_ID_SIZE)
"""The channel id that names no channel (`warning`) or all of them (`error`)."""


class Message(Protocol):
    """What every message class has."""

    TYPE: ClassVar[int]
    NAME: ClassVar[str]

    def encode(self) -> bytes:
        """The message with its type, at most MAX_MESSAGE_SIZE bytes."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the message; raises CodecError."""


def message_type(data: bytes) -> int:
    """The type of a message; raises CodecError when it is too short to have one."""
    if len(data) < 2:
        raise CodecError("a message of fewer than 2 bytes has no type")
    return data[0] << 8 | data[1]


class _Reader:
    """Takes fields off the front of a message."""

    __slots__ = ("_data", "_name", "_offset")

    def __init__(self, name: str, data: bytes) -> None:
        self._name = name
        self._data = data
        self._offset = 2

    def take(self, size: int) -> bytes:
        start = self._offset
        self._offset = end = start + size
        if end > len(self._data):
            raise CodecError(f"{self._name}: too short for its content")
        return self._data[start:end]

    def uint(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def var_bytes(self) -> bytes:
        """A u16 length and so many bytes."""
        start = self._offset + 2
        length = int.from_bytes(self._data[self._offset : start], "big")
        self._offset = start
        return self.take(length)

    def tlvs(self, known: Mapping[int, TlvDecoder] | None = None) -> dict[int, Any]:
        """The rest of the message as a TLV stream; without `known`, as an extension."""
        if self._offset == len(self._data):
            return {}
        try:
            return decode_tlv_stream(self._data, known or {}, self._offset)
        except CodecError as error:
            raise CodecError(f"{self._name}: {error}") from None


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _var_bytes(data: bytes) -> bytes:
    if len(data) > MAX_BLOB_SIZE:
        raise ValueError(f"a field of {len(data)} bytes does not fit into a message")
    return _u16(len(data)) + data


def _decode_u16(data: bytes) -> int:
    if len(data) != 2:
        raise CodecError("a u16 has 2 bytes")
    return int.from_bytes(data, "big")


def _decode_chains(data: bytes) -> tuple[bytes, ...]:
    if len(data) % 32:
        raise CodecError("networks is not a list of 32-byte chain hashes")
    return tuple(data[start : start + 32] for start in range(0, len(data), 32))


@dataclass(frozen=True, slots=True)
class Init:
    """`init` (BOLT 1): features, and the chains that the sender is interested in.

    `features` is both feature fields OR-ed. `networks` is None when the sender says nothing.
    `remote_addr` is an address descriptor of BOLT 7 and is never read. `node_backup` is TLV 2
    of bolts pull request 881.
    """

    TYPE: ClassVar[int] = 16
    NAME: ClassVar[str] = "init"

    features: int
    networks: tuple[bytes, ...] | None = None
    node_backup: bytes | None = None
    remote_addr: bytes | None = None

    # remote_addr is a hint that nobody here uses: malformed or not, it stays bytes.
    _TLVS: ClassVar[Mapping[int, TlvDecoder]] = {1: _decode_chains, 2: bytes, 3: bytes}

    def encode(self) -> bytes:
        tlvs: list[tuple[int, bytes]] = []
        if self.networks is not None:
            tlvs.append((1, b"".join(self.networks)))
        if self.node_backup is not None:
            tlvs.append((2, self.node_backup))
        if self.remote_addr is not None:
            tlvs.append((3, self.remote_addr))
        # An empty globalfeatures field: features above 13 don't belong there.
        features = _var_bytes(encode_features(self.features))
        return _u16(self.TYPE) + _u16(0) + features + encode_tlv_stream(tlvs)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = _Reader(cls.NAME, data)
        features = decode_features(reader.var_bytes()) | decode_features(reader.var_bytes())
        tlvs = reader.tlvs(cls._TLVS)
        return cls(features, tlvs.get(1), tlvs.get(2), tlvs.get(3))


def address_descriptor(address: IPv4Address | IPv6Address, port: int) -> bytes:
    """`remote_addr` for an IP address (BOLT 7, `node_announcement`, address descriptors)."""
    descriptor_type = b"\x01" if address.version == 4 else b"\x02"
    return descriptor_type + address.packed + _u16(port)


@dataclass(frozen=True, slots=True)
class _Report:
    """The form that `error` and `warning` share (BOLT 1): a channel and a text."""

    TYPE: ClassVar[int]
    NAME: ClassVar[str]

    channel_id: bytes
    data: bytes

    @property
    def text(self) -> str:
        """The text with everything but printable ASCII escaped, safe for a log."""
        return self.data.decode("latin-1").encode("unicode_escape").decode("ascii")

    def encode(self) -> bytes:
        return _u16(self.TYPE) + self.channel_id + _var_bytes(self.data)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = _Reader(cls.NAME, data)
        message = cls(reader.take(CHANNEL_ID_SIZE), reader.var_bytes())
        reader.tlvs()
        return message


class WarningMessage(_Report):
    """`warning` (BOLT 1)."""

    __slots__ = ()

    TYPE = 1
    NAME = "warning"

    @classmethod
    def about(cls, text: str) -> WarningMessage:
        """A warning that names no channel: CLN closes on a warning for an unknown one."""
        return cls(ALL_CHANNELS, text.encode("ascii", "backslashreplace"))


class ErrorMessage(_Report):
    """`error` (BOLT 1). Never sent with ALL_CHANNELS: peers fail their channels on it."""

    __slots__ = ()

    TYPE = 17
    NAME = "error"


@dataclass(frozen=True, slots=True)
class Ping:
    """`ping` (BOLT 1): asks for a pong of so many bytes; PONG_LIMIT or more asks for none."""

    TYPE: ClassVar[int] = 18
    NAME: ClassVar[str] = "ping"

    num_pong_bytes: int
    ignored: bytes = b""

    def encode(self) -> bytes:
        return _u16(self.TYPE) + _u16(self.num_pong_bytes) + _var_bytes(self.ignored)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = _Reader(cls.NAME, data)
        message = cls(reader.uint(2), reader.var_bytes())
        reader.tlvs()
        return message


@dataclass(frozen=True, slots=True)
class Pong:
    """`pong` (BOLT 1)."""

    TYPE: ClassVar[int] = 19
    NAME: ClassVar[str] = "pong"

    ignored: bytes = b""

    def encode(self) -> bytes:
        return _u16(self.TYPE) + _var_bytes(self.ignored)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = _Reader(cls.NAME, data)
        message = cls(reader.var_bytes())
        reader.tlvs()
        return message


@dataclass(frozen=True, slots=True)
class _Blob:
    """The form that every message with a backup shares: a u16 length and so many bytes."""

    TYPE: ClassVar[int]
    NAME: ClassVar[str]

    blob: bytes

    def encode(self) -> bytes:
        return _u16(self.TYPE) + _var_bytes(self.blob)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = _Reader(cls.NAME, data)
        message = cls(reader.var_bytes())
        reader.tlvs()
        return message


class PeerStorage(_Blob):
    """`peer_storage` (BOLT 1): a blob of at most MAX_BLOB_SIZE bytes to keep."""

    __slots__ = ()

    TYPE = 7
    NAME = "peer_storage"


class PeerStorageRetrieval(_Blob):
    """`peer_storage_retrieval` (BOLT 1): the blob that was kept."""

    __slots__ = ()

    TYPE = 9
    NAME = "peer_storage_retrieval"


class UpdateNodeBackup(_Blob):
    """`update_node_backup` (bolts pull request 881): a blob of at most MAX_BACKUP_SIZE bytes to
    keep. A longer one is read too: it is for the provider to refuse it."""

    __slots__ = ()

    TYPE = 20
    NAME = "update_node_backup"


class UpdateChannelBackup(_Blob):
    """`update_channel_backup` (bolts pull request 881): a blob of at most MAX_BACKUP_SIZE bytes to
    keep for the channel of the next channel message. A longer one is read too."""

    __slots__ = ()

    TYPE = 120
    NAME = "update_channel_backup"


@dataclass(frozen=True, slots=True)
class StartBatch:
    """`start_batch` (BOLT 2): so many messages of a type belong together, if a type is named."""

    TYPE: ClassVar[int] = 127
    NAME: ClassVar[str] = "start_batch"

    channel_id: bytes
    batch_size: int
    message_type: int | None = None

    def encode(self) -> bytes:
        tlvs = [] if self.message_type is None else [(1, _u16(self.message_type))]
        head = _u16(self.TYPE) + self.channel_id + _u16(self.batch_size)
        return head + encode_tlv_stream(tlvs)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = _Reader(cls.NAME, data)
        channel_id, batch_size = reader.take(CHANNEL_ID_SIZE), reader.uint(2)
        return cls(channel_id, batch_size, reader.tlvs({1: _decode_u16}).get(1))


@dataclass(frozen=True, slots=True)
class RevokeAndAck:
    """`revoke_and_ack` (BOLT 2): the secret of the commitment that is revoked, 32 bytes."""

    TYPE: ClassVar[int] = 133
    NAME: ClassVar[str] = "revoke_and_ack"

    channel_id: bytes
    per_commitment_secret: bytes
    next_per_commitment_point: bytes

    def encode(self) -> bytes:
        return (
            _u16(self.TYPE)
            + self.channel_id
            + self.per_commitment_secret
            + self.next_per_commitment_point
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = _Reader(cls.NAME, data)
        message = cls(reader.take(CHANNEL_ID_SIZE), reader.take(32), reader.take(POINT_SIZE))
        reader.tlvs()
        return message


@dataclass(frozen=True, slots=True)
class ChannelReestablish:
    """`channel_reestablish` (BOLT 2) with TLV 1 as bolts pull request 881 has it.

    To peers that know nothing of that proposal TLV 1 means next_funding.
    """

    TYPE: ClassVar[int] = 136
    NAME: ClassVar[str] = "channel_reestablish"

    channel_id: bytes
    next_commitment_number: int
    next_revocation_number: int
    your_last_per_commitment_secret: bytes
    my_current_per_commitment_point: bytes
    channel_backup: bytes | None = None

    def encode(self) -> bytes:
        tlvs = [] if self.channel_backup is None else [(1, self.channel_backup)]
        return (
            _u16(self.TYPE)
            + self.channel_id
            + self.next_commitment_number.to_bytes(8, "big")
            + self.next_revocation_number.to_bytes(8, "big")
            + self.your_last_per_commitment_secret
            + self.my_current_per_commitment_point
            + encode_tlv_stream(tlvs)
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = _Reader(cls.NAME, data)
        fields = (
            reader.take(CHANNEL_ID_SIZE),
            reader.uint(8),
            reader.uint(8),
            reader.take(32),
            reader.take(POINT_SIZE),
        )
        return cls(*fields, reader.tlvs({1: bytes}).get(1))


@dataclass(frozen=True, slots=True)
class QueryChannelRange:
    """`query_channel_range` (BOLT 7), without its TLVs."""

    TYPE: ClassVar[int] = 263
    NAME: ClassVar[str] = "query_channel_range"

    chain_hash: bytes
    first_blocknum: int
    number_of_blocks: int

    def encode(self) -> bytes:
        return (
            _u16(self.TYPE)
            + self.chain_hash
            + self.first_blocknum.to_bytes(4, "big")
            + self.number_of_blocks.to_bytes(4, "big")
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = _Reader(cls.NAME, data)
        message = cls(reader.take(32), reader.uint(4), reader.uint(4))
        reader.tlvs()
        return message


@dataclass(frozen=True, slots=True)
class ReplyChannelRange:
    """`reply_channel_range` (BOLT 7) as a node that knows no channels sends it."""

    TYPE: ClassVar[int] = 264
    NAME: ClassVar[str] = "reply_channel_range"

    chain_hash: bytes
    first_blocknum: int
    number_of_blocks: int
    sync_complete: int = 1
    encoded_short_ids: bytes = b"\x00"
    """The encoding byte (0: uncompressed) and no ids."""

    def encode(self) -> bytes:
        return (
            _u16(self.TYPE)
            + self.chain_hash
            + self.first_blocknum.to_bytes(4, "big")
            + self.number_of_blocks.to_bytes(4, "big")
            + bytes((self.sync_complete,))
            + _var_bytes(self.encoded_short_ids)
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = _Reader(cls.NAME, data)
        message = cls(
            reader.take(32), reader.uint(4), reader.uint(4), reader.uint(1), reader.var_bytes()
        )
        reader.tlvs()
        return message


@dataclass(frozen=True, slots=True)
class QueryShortChannelIds:
    """`query_short_channel_ids` (BOLT 7), without its TLVs."""

    TYPE: ClassVar[int] = 261
    NAME: ClassVar[str] = "query_short_channel_ids"

    chain_hash: bytes
    encoded_short_ids: bytes

    def encode(self) -> bytes:
        return _u16(self.TYPE) + self.chain_hash + _var_bytes(self.encoded_short_ids)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = _Reader(cls.NAME, data)
        message = cls(reader.take(32), reader.var_bytes())
        reader.tlvs()
        return message


@dataclass(frozen=True, slots=True)
class ReplyShortChannelIdsEnd:
    """`reply_short_channel_ids_end` (BOLT 7); 0: our view of the chain is not complete."""

    TYPE: ClassVar[int] = 262
    NAME: ClassVar[str] = "reply_short_channel_ids_end"

    chain_hash: bytes
    full_information: int = 0

    def encode(self) -> bytes:
        return _u16(self.TYPE) + self.chain_hash + bytes((self.full_information,))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = _Reader(cls.NAME, data)
        message = cls(reader.take(32), reader.uint(1))
        reader.tlvs()
        return message


MESSAGES: Mapping[int, type[Message]] = {
    message.TYPE: message
    for message in (
        WarningMessage,
        PeerStorage,
        PeerStorageRetrieval,
        Init,
        ErrorMessage,
        Ping,
        Pong,
        UpdateNodeBackup,
        UpdateChannelBackup,
        StartBatch,
        RevokeAndAck,
        ChannelReestablish,
        QueryShortChannelIds,
        ReplyShortChannelIdsEnd,
        QueryChannelRange,
        ReplyChannelRange,
    )
}
"""Message type to its class."""


def decode_message(data: bytes) -> Message:
    """Read a message of a type that stands in MESSAGES; raises CodecError."""
    number = message_type(data)
    message = MESSAGES.get(number)
    if message is None:
        raise CodecError(f"message type {number} is unknown")
    return message.decode(data)


CHANNEL_MESSAGES: Mapping[int, str] = {
    2: "stfu",
    32: "open_channel",
    33: "accept_channel",
    34: "funding_created",
    35: "funding_signed",
    36: "channel_ready",
    38: "shutdown",
    39: "closing_signed",
    40: "closing_complete",
    41: "closing_sig",
    64: "open_channel2",
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
"""The messages of BOLT 2 that name a channel: type to name."""

_GOSSIP_NAMES: Mapping[int, str] = {
    256: "channel_announcement",
    257: "node_announcement",
    258: "channel_update",
    259: "announcement_signatures",
    265: "gossip_timestamp_filter",
}

MESSAGE_NAMES: Mapping[bytes, str] = {
    number.to_bytes(2, "big"): name
    for number, name in (
        *((number, message.NAME) for number, message in MESSAGES.items()),
        *CHANNEL_MESSAGES.items(),
        *_GOSSIP_NAMES.items(),
    )
}
"""The two bytes with which a message begins to its name (BOLT 1, 2 and 7)."""

_CHANNEL_ID_OFFSETS = {32: 34, 64: 34}
"""open_channel and open_channel2 carry the chain hash before their temporary channel id."""


def channel_id_of(data: bytes) -> bytes:
    """The (temporary) channel id of a channel message.

    Raises CodecError when the message is too short to have one.
    """
    number = message_type(data)
    offset = _CHANNEL_ID_OFFSETS.get(number, 2)
    channel_id = data[offset : offset + CHANNEL_ID_SIZE]
    if len(channel_id) < CHANNEL_ID_SIZE:
        name = CHANNEL_MESSAGES.get(number, f"message type {number}")
        raise CodecError(f"{name}: too short for its channel id")
    return channel_id
