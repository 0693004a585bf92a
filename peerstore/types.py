"""Names that every layer shares: ids, networks, kinds of backup, addresses."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import NamedTuple, NewType

from peerstore.errors import AddressError

NodeId = NewType("NodeId", bytes)
"""A node's public key: a compressed secp256k1 point, 33 bytes (BOLT 1, `point`)."""

NODE_ID_SIZE = 33
CHANNEL_ID_SIZE = 32


class Network(enum.Enum):
    """A Bitcoin network; the value is the name used in the configuration."""

    BITCOIN = "bitcoin"
    TESTNET = "testnet"
    TESTNET4 = "testnet4"
    SIGNET = "signet"
    REGTEST = "regtest"

    @property
    def chain_hash(self) -> bytes:
        """The genesis block's hash in internal byte order, 32 bytes (BOLT 0, chain_hash)."""
        return _CHAIN_HASHES[self]


_CHAIN_HASHES = {
    # A block hash is written by people the other way round.
    network: bytes.fromhex(block_hash)[::-1]
    for network, block_hash in {
        Network.BITCOIN: "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f",
        Network.TESTNET: "000000000933ea01ad0ee984209779baaec3ced90fa3f408719526f8d77f4943",
        Network.TESTNET4: "00000000da84f2bafbbc53dee25a72ae507ff4914b867c565be350b0da8bf043",
        Network.SIGNET: "00000008819873e925422c1ff0f99f7cc9bbb232af63a077a480a3633bee1ef6",
        Network.REGTEST: "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206",
    }.items()
}


class BackupKind(enum.IntEnum):
    """What a backup is; the number is what the database holds."""

    PEER_STORAGE = 1
    NODE_BACKUP = 2
    CHANNEL_BACKUP = 3

    @property
    def label(self) -> str:
        """The name in the CLI, the logs and the JSON documents."""
        return self.name.lower()


class Slot(NamedTuple):
    """Where one backup of one peer lives; `channel_id` is empty but for a channel backup."""

    node_id: NodeId
    kind: BackupKind
    channel_id: bytes = b""

    @property
    def label(self) -> str:
        """The kind, with the channel where there is one: for people."""
        return f"{self.kind.label}{' ' if self.channel_id else ''}{self.channel_id.hex()}"


NO_SECRET = bytes(32)
"""What stands for a per-commitment secret where none is known (BOLT 2, channel_reestablish)."""


@dataclass(frozen=True, slots=True)
class ChannelState:
    """What the messages of a channel have said so far (bolts pull request 881).

    `commitments` counts the commitment_signed received, a batch once; `revocations` the
    revoke_and_ack, of which `last_secret` (32 bytes) is the newest per-commitment secret. `whole`
    says that they were seen from funding_signed on: otherwise the counts may be too low. `shutdown`
    and `closing` say that a shutdown and a message about the closing transaction came.
    """

    commitments: int = 0
    revocations: int = 0
    last_secret: bytes = NO_SECRET
    whole: bool = False
    shutdown: bool = False
    closing: bool = False

    @property
    def closed(self) -> bool:
        """Whether the channel was closed as far as its messages tell."""
        return self.shutdown and self.closing


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """`node_id@host:port`; an IPv6 host stands in brackets in the text, not in `host`."""

    node_id: NodeId
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> NodeAddress:
        """Read `node_id@host:port`.

        Raises AddressError that says which part is wrong.
        """
        node_id, at, address = text.partition("@")
        if not at:
            raise AddressError(f"{text!r} is not node_id@host:port")
        host, port = parse_host_port(address)
        return cls(parse_node_id(node_id), host, port)

    def __str__(self) -> str:
        return f"{self.node_id.hex()}@{format_host_port(self.host, self.port)}"


def parse_node_id(text: str) -> NodeId:
    """Read a node id of 66 hexadecimal digits; raises AddressError.

    Whether it is a point on the curve shows when it is used.
    """
    try:
        node_id = bytes.fromhex(text)
    except (ValueError, TypeError):  # what comes as JSON may be no text at all
        node_id = b""
    if len(node_id) != NODE_ID_SIZE or node_id[0] not in (2, 3) or len(text) != 2 * NODE_ID_SIZE:
        raise AddressError(
            f"{text!r:.100} is not a node id: 66 hexadecimal digits that begin with 02 or 03"
        )
    return NodeId(node_id)


def parse_slot(node_id: str, kind: str, channel_id: str = "") -> Slot:
    """A slot from its texts; raises AddressError."""
    if not all(isinstance(text, str) for text in (node_id, kind, channel_id)):
        raise AddressError("node_id, kind and channel_id are texts")
    try:
        backup_kind = BackupKind[kind.upper()]
    except KeyError:
        known = ", ".join(known.label for known in BackupKind)
        raise AddressError(f"{kind!r} is no kind of backup; known are {known}") from None
    try:
        channel = bytes.fromhex(channel_id)
    except ValueError:
        raise AddressError(f"{channel_id!r} is not a channel id: 64 hexadecimal digits") from None
    of_channel = backup_kind is BackupKind.CHANNEL_BACKUP
    if not channel and of_channel:
        raise AddressError(
            "a channel_backup is one of several: give its channel id, 64 hexadecimal digits"
            " (`peerstore backups list` has them)"
        )
    if channel and not of_channel:
        raise AddressError(f"a {backup_kind.label} has no channel id")
    if len(channel) != (CHANNEL_ID_SIZE if of_channel else 0):
        raise AddressError(f"{channel_id!r:.100} is not a channel id: 64 hexadecimal digits")
    return Slot(parse_node_id(node_id), backup_kind, channel)


def parse_host_port(text: str) -> tuple[str, int]:
    """Read `host:port`, `1.2.3.4:port` or `[::1]:port`; raises AddressError."""
    host, colon, digits = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise AddressError(f"{text!r}: an IPv6 address stands in brackets, as in [::1]:9737")
    if not colon or not host:
        raise AddressError(f"{text!r} is not host:port")
    if not re.fullmatch("[0-9]{1,5}", digits) or int(digits) > 65535:
        raise AddressError(f"{text!r}: the port is a number from 0 to 65535")
    return host, int(digits)


def format_host_port(host: str, port: int) -> str:
    """The text that `parse_host_port` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_onion(host: str) -> bool:
    """Whether only Tor can reach a host; such a name must never go to a resolver (RFC 7686)."""
    return host.lower().rstrip(".").endswith(".onion")
