"""What the generator changes: published vectors, and a message of every type and form."""

from __future__ import annotations

from collections.abc import Iterator

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
    QueryChannelRange,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
    RevokeAndAck,
    StartBatch,
    UpdateChannelBackup,
    UpdateNodeBackup,
    WarningMessage,
)
from tests.fuzz import reference
from tests.fuzz.books import CHAIN
from tests.fuzz.transport import honest
from tests.helpers import load_vectors

CHANNEL_ID = bytes(range(32))
POINT = b"\x02" + bytes(32)

MESSAGES: tuple[Message, ...] = (
    WarningMessage(bytes(32), b"a warning"),
    PeerStorage(b""),
    PeerStorage(bytes(57)),
    PeerStorage(bytes(65531)),
    PeerStorageRetrieval(b"blob"),
    Init(OURS),
    Init(OURS, (CHAIN,)),
    Init(OURS | 1 << 41, (CHAIN, bytes(32)), b"node backup", b"\x01\x01\x02\x03\x04\x26\x07"),
    ErrorMessage(CHANNEL_ID, b"an error\x00\n"),
    Ping(4, bytes(4)),
    Ping(65535),
    Pong(bytes(4)),
    UpdateNodeBackup(b"node backup"),
    UpdateChannelBackup(b"channel backup"),
    StartBatch(CHANNEL_ID, 2, 132),
    StartBatch(CHANNEL_ID, 20),
    RevokeAndAck(CHANNEL_ID, bytes(32), POINT),
    ChannelReestablish(CHANNEL_ID, 1, 0, bytes(32), POINT, b"channel backup"),
    QueryShortChannelIds(CHAIN, b"\x00"),
    ReplyShortChannelIdsEnd(CHAIN),
    QueryChannelRange(CHAIN, 0, 1 << 31),
    ReplyChannelRange(CHAIN, 0, 1 << 31),
)


def messages() -> Iterator[bytes]:
    """A message of every type that is read, with and without an extension, and channel messages."""
    for message in MESSAGES:
        yield message.encode()
        if len(message.encode()) < 1000:
            yield message.encode() + b"\xfd\x01\x01\x02ab"
    for number in sorted(reference.CHANNEL_MESSAGES - reference.LAYOUTS.keys()):
        head = CHAIN if number in reference.OPENING else b""
        yield number.to_bytes(2, "big") + head + CHANNEL_ID


def tlvs() -> Iterator[bytes]:
    """BOLT 1's vectors of BigSize and of TLV streams."""
    for vector in load_vectors("bolt01_bigsize.json")["decoding"]:
        yield bytes.fromhex(vector["bytes"])
    vectors = load_vectors("bolt01_tlv.json")
    for name in ("failures", "successes", "stream_failures"):
        for vector in vectors[name]:
            yield bytes.fromhex(vector["stream"].replace(" ", ""))


def features() -> Iterator[bytes]:
    """Ours, every bit alone, and pairs of which one needs the other."""
    numbers = [OURS, *(1 << bit for bit in range(70)), *(1 << bit for bit in (104, 152, 562, 2023))]
    numbers += [1 << bit | 1 << needed for bit, needed in reference.NEEDS]
    for number in numbers:
        yield number.to_bytes((number.bit_length() + 7) // 8, "big")


def texts() -> Iterator[bytes]:
    """Something good for each reader of texts."""
    node_id = POINT.hex()
    good = (
        ("127.0.0.1:9737", "[::1]:9737", "example.com:1", ":9737"),
        (f"{node_id}@127.0.0.1:9735", f"{node_id}@[::1]:9735"),
        (node_id, node_id.upper(), f"{node_id[:30]} {node_id[30:]}", f"{node_id} "),
        (
            f"{node_id} peer_storage",
            f"{node_id} channel_backup {CHANNEL_ID.hex()}",
            f"{node_id} node_backup 00",
        ),
        (
            *(chr(number) + text for number in range(20) for text in ("15s", "256MiB")),
            *(chr(number) + "https://127.0.0.1:8080/" for number in range(20)),
            *(chr(number) + "sqlite:///peerstore.db" for number in range(20)),
        ),
        (
            "network=regtest",
            'listen.addresses=["127.0.0.1:0"]',
            "store.history=8",
            "store.max_bytes=10GiB",
            "channels.source=cln",
            "retention.after_close_time=14d",
        ),
        ("NETWORK=signet", "LISTEN__ADDRESSES=[]", "LOG__LEVEL=debug", "STORE__HISTORY=0"),
    )
    for number, group in enumerate(good):
        for text in group:
            yield bytes((number,)) + text.encode()


def control() -> Iterator[bytes]:
    """Requests of every kind."""
    slot = f'"node_id": "{POINT.hex()}", "kind": "peer_storage", "channel_id": ""'
    for line in (
        '{"jsonrpc": "2.0", "id": 1, "method": "alarms.list", "params": {}}',
        '{"jsonrpc": "2.0", "id": null, "method": "alarms.list", "params": {"acknowledged": true}}',
        '{"id": "a", "method": "alarms.ack", "params": {"number": 3}}',
        '{"method": "test.echo", "params": {"a": [1, 2.5, null, "b"]}}',
        '{"id": 2, "method": "test.echo", "params": {"a": {"b": false}}}',
        '{"id": 3, "method": "backups.prune", "params": {"dry_run": true}}',
        f'{{"id": 4, "method": "backups.pin", "params": {{{slot}, "revision": 1}}}}',
        f'{{"id": 5, "method": "backups.hold", "params": {{{slot}, "revision": 1, "seconds": 9}}}}',
        f'{{"id": 6, "method": "peers.allow", "params": {{"node_id": "{POINT.hex()}"}}}}',
        '[{"id": 7, "method": "no.method"}, {"method": "alarms.list"}, 8]',
        f'{{"id": 8, "method": "peers.deny", "params": {{"node_id": "{POINT.hex()}", "undo": 1}}}}',
        '{"id": 9, "method": "backups.prune", "params": {"dry_run": "no"}}',
        '{"id": 10, "method": "alarms.ack", "params": {"number": true}}',
        '{"id": 11, "method": "alarms.ack", "params": {"number": -1}}',
        '{"id": 12.5, "method": "alarms.ack", "params": {"number": 1e3}}',
        '{"id": NaN, "method": "alarms.list"}',
        '{"id": 1e999, "method": "alarms.list", "params": [true]}',
        "[]",
        "[[[[[[]]]]]]",
    ):
        yield line.encode()


def handshake() -> Iterator[bytes]:
    """Honest acts, whole and in part, and bytes that are none."""
    for flags in range(32):
        yield bytes((flags,))
        yield bytes((flags, 3, 1, 7, 0, 40, 0))
    for responder in (True, False):
        stream = b"".join(part for part, _ in honest(to_responder=responder))
        yield bytes((16 | responder, len(stream[:199]))) + stream[:199]


def frames() -> Iterator[bytes]:
    """Few frames and many, at each place before a key's rotation."""
    for count in range(6):
        for number in range(9):
            yield bytes((count, number)) + bytes((9, 40)) * (number + 1) + bytes(8)


def conversations() -> Iterator[bytes]:
    """Each step alone behind a good beginning, and stories."""
    for flags in range(0, 64, 9):
        head = bytes((flags, 3, 0, 1, 2, 1, 1, 1, 0, *(1,) * 10))
        for step in range(22):
            yield head + bytes((step,)) * 12
        for kind in range(24):
            yield head + bytes((0, kind, 1, 3, 9, 1, 1, 12, 2, 7)) * 4
    for flags in (0, 32):
        for story in stories():
            # Nothing stored, no time passes, a good init with bit 41.
            yield bytes((flags, 0, 1, 1, 0, 0, 1)) + story


def stories() -> Iterator[bytes]:
    """How backups, pings and the store come one behind the other, in the input's own words."""
    update, node_backup, ping, batch = b"\0\0\0\3", b"\0\0\3\3", b"\0\0\6\0", b"\0\0\x10\3\1"
    offer, offer_large = b"\0\0\4\3", b"\0\0\4\12"
    completed = [b"\0\0\x09" + bytes((kind,)) for kind in range(4)] + [b"\0\0\x09\4\7"]
    other, add_htlc = b"\0\4\x09\3", b"\0\0\x0d\x10\0"
    stored, not_stored, refused = b"\x0c\xff\3", b"\x0c\xff\0", b"\x0c\xff\1\1\1\1"
    late, policy = b"\x0f\4", b"\x11\2"
    for decided in (stored, not_stored, refused, late):
        yield update + ping + decided + node_backup + ping + decided + ping
        for complete in completed:
            yield offer + add_htlc + ping + complete + decided + ping + complete + decided
    yield batch + offer + completed[3] + completed[3] + ping + stored + completed[3] + stored
    yield offer + batch + completed[3] + ping + completed[3] + stored
    yield offer + other + ping + offer + completed[0] + stored + ping
    yield offer + add_htlc + ping + offer + ping + other + stored + ping
    yield offer + ping + offer + ping + completed[1] + stored
    yield offer + ping + offer_large + completed[1] + ping
    yield offer + policy + completed[1] + ping
    yield update + ping + node_backup + ping + update + stored + refused + ping + stored
