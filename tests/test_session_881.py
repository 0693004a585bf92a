"""What a session does for node and channel backups: bolts pull request 881."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import coincurve
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstore.confirmation import COMMIT_TIMEOUT
from peerstore.session import (
    HANG_UP_SECONDS,
    Action,
    Close,
    Forgo,
    Report,
    Retrieve,
    Send,
    Session,
    State,
    Store,
    Stored,
    Timeouts,
)
from peerstore.types import BackupKind, ChannelState
from peerstore.wire import features
from peerstore.wire.messages import (
    ChannelReestablish,
    ErrorMessage,
    Init,
    Message,
    PeerStorage,
    PeerStorageRetrieval,
    Ping,
    Pong,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
    UpdateChannelBackup,
    UpdateNodeBackup,
    WarningMessage,
)
from tests.test_session import (
    CHAIN,
    CHANNEL_TYPES,
    INVALID_TRAILERS,
    NO_CHANNEL,
    NOT_INIT,
    OPEN_CHANNEL,
    OPEN_CHANNEL2,
    OTHER_CHAIN,
    VALID_TRAILERS,
    assert_over,
    assert_warned_and_closed,
    decode,
    init_message,
    ping,
    talk,
    thorough,
    u16,
    warning_text,
    without_reports,
)
from tests.test_streams import (
    CLOSING_SIGNED,
    COMMITMENT_SIGNED,
    COMPLETING,
    POINT,
    READ,
    REVOKE_AND_ACK,
    SECRET,
    SHUTDOWN,
    UPDATE_ADD_HTLC,
    USED,
    A,
    B,
    C,
    channel_ids,
    commitment_signed,
    of,
    revoke_and_ack,
    start_batch,
)

NODE = Retrieve(BackupKind.NODE_BACKUP)
STORAGE = Retrieve(BackupKind.PEER_STORAGE)
TOO_LARGE = bytes(32001)
UNKNOWN_ODD = [37, 43, 75, 121, 129, 137, 255]
"""Types of BOLT 1's group of channel messages."""

Channels = Mapping[bytes, ChannelState | None]
Bits = tuple[int, ...]
UpdateClass = type[UpdateNodeBackup | UpdateChannelBackup]

each_update = pytest.mark.parametrize("kind", [UpdateNodeBackup, UpdateChannelBackup])
each_wanting = pytest.mark.parametrize("bits", [(40,), (41,), (40, 41, 43)])
each_not_wanting = pytest.mark.parametrize("bits", [(), (1, 43), (42, 43)])


def channel(channel_id: bytes) -> Retrieve:
    return Retrieve(BackupKind.CHANNEL_BACKUP, channel_id)


def begin(stored: Stored, *, initiator: bool = False, init_timeout: float = 15.0) -> Session:
    """A session at second 0."""
    return Session(
        chain_hash=CHAIN,
        now=0.0,
        stored=stored,
        initiator=initiator,
        timeouts=Timeouts(init=init_timeout),
    )


def waiting_session(init_timeout: float = 15.0) -> Session:
    """A session whose init waits for the peer's."""
    session = begin(Stored(node_backup=True), init_timeout=init_timeout)
    assert session.start() == ()
    return session


def replay(
    session: Session, actions: Sequence[Action], blobs: Mapping[Retrieve, bytes | None]
) -> list[Message]:
    """Read what a session asks for, one backup at a time; what it sent meanwhile."""
    sent, queue = [], list(actions)
    while queue:
        action = queue.pop(0)
        if isinstance(action, Retrieve):
            assert not queue, "the peer has to read what was sent before"
            assert session.state is State.REPLAY
            queue = list(session.retrieved(blobs[action]))
        else:
            sent.append(decode(action))
    assert session.state is not State.REPLAY
    return sent


def open_session(channels: Channels | None = None, bits: Bits = (41,)) -> Session:
    """A session that has given back these channels and is ready for the peer's messages."""
    session = begin(Stored(channels=channels or {}))
    session.start()
    blobs = {channel(channel_id): b"old" for channel_id in channels or ()}
    replay(session, session.receive(init_message(*bits), 0.0), blobs)
    assert session.ready
    return session


def shown_session(now: float = 0.0) -> Session:
    """A session that has just sent its init with a node backup, and nothing else to give back."""
    session = waiting_session()
    actions = session.receive(init_message(41), now)
    assert replay(session, actions, {NODE: b"node"}) == [OUR_INIT_WITH_NODE_BACKUP]
    return session


OUR_INIT = Init(features.OURS, (CHAIN,))
OUR_INIT_WITH_NODE_BACKUP = Init(features.OURS, (CHAIN,), b"node")


def say(session: Session, *messages: Message | bytes, now: float = 0.0) -> list[Action]:
    """Have the peer say this; what follows but reports."""
    actions: list[Action] = []
    for message in messages:
        data = message if isinstance(message, bytes) else message.encode()
        actions += session.receive(data, now)
    return without_reports(actions)


def reports(actions: Iterable[Action]) -> list[str]:
    return [action.event for action in actions if isinstance(action, Report)]


def sequence_of(actions: Sequence[Action]) -> int:
    """The number under which the only backup there is goes to the store."""
    (store,) = actions
    assert isinstance(store, Store)
    assert store.blob is not None
    return store.sequence


def back_up(session: Session, channel_id: bytes = A, now: float = 0.0) -> int:
    """Hand in a backup of a channel; its sequence number."""
    update = UpdateChannelBackup(b"backup")
    return sequence_of(say(session, update, commitment_signed(channel_id), now=now))


def assert_about_storage(text: str, *words: str) -> None:
    assert text.startswith("storage: ")
    for word in words:
        assert word in text


# update_node_backup


@each_wanting
@pytest.mark.parametrize("size", [0, 1, 57, 31999, 32000])
def test_a_node_backup_is_stored_without_a_word(bits: Bits, size: int) -> None:
    blob = b"\xab" * size
    actions = open_session(bits=bits).receive(u16(20) + u16(size) + blob, 1.0)
    assert actions == [Store(1, BackupKind.NODE_BACKUP, b"", blob)]


@pytest.mark.parametrize("trailer", VALID_TRAILERS)
def test_a_node_backup_with_a_valid_trailer_is_stored_without_it(trailer: bytes) -> None:
    actions = open_session().receive(u16(20) + u16(6) + b"backup" + trailer, 1.0)
    assert actions == [Store(1, BackupKind.NODE_BACKUP, b"", b"backup")]


@each_update
def test_both_feature_fields_may_ask_for_storage(kind: UpdateClass) -> None:
    session = begin(Stored())
    session.start()
    assert session.receive(init_message(43, globalfeatures=[41]), 0.0) == ()
    actions = say(session, kind(b"backup"), commitment_signed(A))
    assert isinstance(actions[0], Store)
    assert actions[0].blob == b"backup"


# What is refused


@each_update
@pytest.mark.parametrize("size", [32001, 65531])
def test_a_backup_of_more_than_32000_bytes_is_not_stored(kind: UpdateClass, size: int) -> None:
    session = open_session()
    actions = session.receive(kind(bytes(size)).encode(), 1.0)
    (text,) = talk(actions)
    assert_about_storage(text, kind.NAME, str(size), "32000")
    assert reports(actions) == ["update_refused"]
    # The pong does not confirm it, and the connection stays.
    assert ping(session, 1) == ["pong 1"]
    sequence_of(say(session, UpdateNodeBackup(bytes(32000))))


@each_update
@each_not_wanting
def test_a_backup_of_a_peer_that_does_not_ask_for_storage_is_not_stored(
    kind: UpdateClass, bits: Bits
) -> None:
    session = open_session(bits=bits)
    actions = session.receive(kind(b"backup").encode(), 1.0)
    (text,) = talk(actions)
    assert_about_storage(text, kind.NAME, "40/41")
    assert reports(actions) == ["update_refused"]
    assert ping(session, 1) == ["pong 1"]
    # The other dialect is open to everyone.
    sequence_of(say(session, PeerStorage(b"backup")))


@each_update
def test_each_interval_with_a_refused_backup_has_its_own_warning(kind: UpdateClass) -> None:
    session = open_session()
    for size in range(3):
        (text,) = talk(say(session, kind(TOO_LARGE)))
        assert_about_storage(text)
        assert ping(session, size) == [f"pong {size}"]


@each_update
@pytest.mark.parametrize(
    "body",
    [b"", b"\x00", u16(1), u16(6) + b"short", u16(32000) + bytes(31999), u16(65535) + bytes(65531)],
    ids=lambda body: f"{body[:2].hex()}+{len(body)}",
)
@pytest.mark.parametrize("bits", [(41,), (43,)])
def test_a_backup_shorter_than_it_declares_ends_the_connection(
    kind: UpdateClass, body: bytes, bits: Bits
) -> None:
    data = u16(kind.TYPE) + body
    assert_about_storage(assert_warned_and_closed(open_session(bits=bits), data, kind.NAME))
    assert "update_refused" in reports(open_session(bits=bits).receive(data, 1.0))


@each_update
@pytest.mark.parametrize("trailer", INVALID_TRAILERS.values(), ids=INVALID_TRAILERS)
def test_a_backup_with_an_invalid_trailer_ends_the_connection(
    kind: UpdateClass, trailer: bytes
) -> None:
    data = kind(b"backup").encode() + trailer
    assert_about_storage(assert_warned_and_closed(open_session(), data, kind.NAME))


# update_channel_backup


@pytest.mark.parametrize("number", COMPLETING)
@pytest.mark.parametrize("size", [0, 1, 32000])
def test_a_channel_backup_is_stored_with_the_message_that_completes_it(
    number: int, size: int
) -> None:
    session = open_session()
    blob = b"\xab" * size
    assert session.receive(u16(120) + u16(size) + blob, 1.0) == ()
    assert session.receive(of(A, UPDATE_ADD_HTLC), 1.0) == ()
    (store,) = session.receive(of(A, number), 1.0)
    assert isinstance(store, Store)
    assert store.channel is not None
    assert store == Store(1, BackupKind.CHANNEL_BACKUP, A, blob, store.channel)


def test_what_is_known_of_the_channel_is_stored_with_its_backup() -> None:
    session = open_session()
    said = say(session, commitment_signed(A), UpdateChannelBackup(b"backup"), revoke_and_ack(A))
    state = ChannelState(commitments=1, revocations=1, last_secret=SECRET)
    assert said[1:] == [Store(1, BackupKind.CHANNEL_BACKUP, A, b"backup", state)]
    assert isinstance(said[0], Send), "nothing was known of a backup then"


@pytest.mark.parametrize("trailer", VALID_TRAILERS)
def test_a_channel_backup_with_a_valid_trailer_is_stored_without_it(trailer: bytes) -> None:
    data = u16(120) + u16(6) + b"backup" + trailer
    (store,) = say(open_session(), data, commitment_signed(A))
    assert isinstance(store, Store)
    assert store.blob == b"backup"


def test_a_channel_backup_alone_is_not_stored() -> None:
    session = open_session()
    assert say(session, UpdateChannelBackup(b"backup")) == []
    assert say(session, of(A, UPDATE_ADD_HTLC), start_batch(A, 2), commitment_signed(A)) == []
    assert sequence_of(say(session, commitment_signed(A))) == 1


def test_updates_of_all_kinds_are_numbered_in_the_order_in_which_they_go_to_the_store() -> None:
    session = open_session({B: USED})
    actions = say(
        session,
        *(UpdateChannelBackup(b"1"), UpdateNodeBackup(b"2"), PeerStorage(b"3")),
        *(commitment_signed(A), commitment_signed(B), UpdateNodeBackup(b"4")),
    )
    stores = [action for action in actions if isinstance(action, Store)]
    assert stores == actions
    assert [(store.sequence, store.blob) for store in stores] == [
        (1, b"2"),
        (2, b"3"),
        (3, b"1"),
        (4, None),
        (5, b"4"),
    ]


def test_a_second_channel_backup_is_stored_in_place_of_the_first() -> None:
    session = open_session()
    assert say(session, UpdateChannelBackup(b"first"), of(A, UPDATE_ADD_HTLC)) == []
    assert say(session, UpdateChannelBackup(b"second"), of(A, UPDATE_ADD_HTLC)) == []
    expected = Store(1, BackupKind.CHANNEL_BACKUP, A, b"second", ChannelState(commitments=1))
    assert say(session, commitment_signed(A)) == [expected]


@pytest.mark.parametrize("pinged", [True, False])
def test_a_channel_backup_replaced_by_one_of_another_channel_is_told_before_its_pong(
    pinged: bool,
) -> None:
    session = open_session()
    assert say(session, UpdateChannelBackup(b"first"), of(A, UPDATE_ADD_HTLC)) == []
    if pinged:
        assert session.receive(Ping(1).encode(), 1.0) == ()
    # Until its channel is named the second may be a newer one of the same.
    assert say(session, UpdateChannelBackup(b"second")) == []
    warning, *pongs = talk(session.receive(of(B, UPDATE_ADD_HTLC), 1.0))
    assert_about_storage(warning, A.hex(), B.hex())
    assert pongs == (["pong 1"] if pinged else [])
    # The second is not concerned.
    expected = Store(1, BackupKind.CHANNEL_BACKUP, B, b"second", ChannelState(commitments=1))
    assert say(session, commitment_signed(B)) == [expected]
    assert session.receive(Ping(2).encode(), 1.0) == ()
    assert talk(session.stored(1, 1.0)) == ["pong 2"]


@pytest.mark.parametrize("number", [UPDATE_ADD_HTLC, COMMITMENT_SIGNED, REVOKE_AND_ACK, 136])
def test_a_message_of_another_channel_drops_a_channel_backup(number: int) -> None:
    session = open_session()
    assert say(session, UpdateChannelBackup(b"backup"), of(A, UPDATE_ADD_HTLC)) == []
    actions = session.receive(of(B, number), 1.0)
    dropped, refused = talk(actions)
    assert_about_storage(dropped, A.hex(), B.hex())
    assert "update_refused" in reports(actions)
    # The other channel's message belongs to no backup.
    assert B.hex() in refused
    assert not refused.startswith("storage:")
    assert all(isinstance(action, Send) for action in say(session, commitment_signed(A)))


def test_the_state_of_the_other_channel_is_stored_beside_that() -> None:
    session = open_session({B: USED})
    say(session, UpdateChannelBackup(b"backup"), of(A, UPDATE_ADD_HTLC))
    warning, store = say(session, commitment_signed(B))
    assert_about_storage(warning_text(warning), A.hex(), B.hex())
    state = replace(USED, commitments=8)
    assert store == Store(1, BackupKind.CHANNEL_BACKUP, B, None, state)


@pytest.mark.parametrize("number", UNKNOWN_ODD)
def test_an_unknown_odd_message_of_the_channels_range_names_a_channel_too(number: int) -> None:
    session = open_session()
    assert say(session, UpdateChannelBackup(b"backup"), of(A, number)) == []
    (dropped,) = talk(say(session, of(B, number)))
    assert_about_storage(dropped, A.hex(), B.hex())
    assert say(session, of(C, number)) == []


@pytest.mark.parametrize(
    "data",
    [
        *(u16(number) + A[:-1] for number in UNKNOWN_ODD),
        *(u16(number) + A for number in (3, 31, 257, 511)),
        of(A, 127),
        Ping(65535).encode(),
        UpdateNodeBackup(b"node").encode(),
    ],
    ids=lambda data: f"{int.from_bytes(data[:2], 'big')}+{len(data)}",
)
def test_what_names_no_channel_may_stand_between_a_channel_backup_and_its_messages(
    data: bytes,
) -> None:
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"), data)
    (store,) = say(session, commitment_signed(B))
    assert isinstance(store, Store)
    assert (store.channel_id, store.blob) == (B, b"backup")


@pytest.mark.parametrize("data", [b"\x07", b"\x14", b"\x78"])
def test_half_a_type_is_no_backup(data: bytes) -> None:
    session = open_session()
    assert not assert_warned_and_closed(session, data).startswith("storage:")
    assert reports(open_session().receive(data, 1.0)) == []


def test_an_unknown_odd_message_never_ends_a_connection() -> None:
    session = open_session()
    ids = channel_ids()
    for _ in range(200):
        assert say(session, of(next(ids), UNKNOWN_ODD[0])) == []
    say(session, *(commitment_signed(next(ids)) for _ in range(100)))
    say(session, UpdateChannelBackup(b"backup"))
    assert say(session, of(next(ids), UNKNOWN_ODD[0])) == []
    (dropped,) = talk(say(session, of(next(ids), UNKNOWN_ODD[0])))
    assert_about_storage(dropped)
    assert session.ready


# Warnings about channels


REFUSALS = [((43,), b"backup"), ((41,), TOO_LARGE)]


@pytest.mark.parametrize(("bits", "blob"), REFUSALS, ids=["not asked for", "too large"])
def test_the_messages_of_a_refused_channel_backup_are_not_warned_about(
    bits: Bits, blob: bytes
) -> None:
    session = open_session(bits=bits)
    say(session, UpdateChannelBackup(blob))
    assert say(session, of(A, UPDATE_ADD_HTLC), of(A, 136), commitment_signed(A)) == []
    # What comes after it belongs to nothing.
    (text,) = talk(say(session, commitment_signed(A)))
    assert A.hex() in text
    assert say(session, commitment_signed(A)) == []


@pytest.mark.parametrize("bits", [(41,), (43,)])
@pytest.mark.parametrize("state", [USED, None], ids=["known", "not trusted"])
@pytest.mark.parametrize("number", CHANNEL_TYPES)
def test_a_channel_with_a_backup_is_not_warned_about(
    number: int, state: ChannelState | None, bits: Bits
) -> None:
    session = begin(Stored(channels={A: state}))
    session.start()
    replay(session, session.receive(init_message(*bits), 0.0), {channel(A): b"old"})
    for action in say(session, of(A, number), of(A, number)):
        assert isinstance(action, Store)
        assert action.blob is None


@pytest.mark.parametrize("number", [OPEN_CHANNEL, OPEN_CHANNEL2])
def test_opening_a_channel_gets_an_error_whatever_was_stored_before(number: int) -> None:
    for session in (open_session(), open_session({A: USED})):
        say(session, UpdateChannelBackup(b"backup"))
        (send,) = say(session, of(A, number))
        message = decode(send)
        assert isinstance(message, ErrorMessage)
        assert message.channel_id == A


def test_a_channel_that_gets_a_backup_is_not_warned_about_any_more() -> None:
    session = open_session()
    sequence = back_up(session)
    assert say(session, of(A, UPDATE_ADD_HTLC), of(A, 136)) == []
    session.stored(sequence, 0.0)
    assert say(session, of(A, UPDATE_ADD_HTLC), of(A, 136)) == []


def test_a_channel_whose_first_backup_could_not_be_stored_is_warned_about() -> None:
    session = open_session()
    session.not_stored(back_up(session), "no", 0.0)
    (text,) = talk(say(session, of(A, 136)))
    assert A.hex() in text
    assert not text.startswith("storage:")
    assert say(session, commitment_signed(A)) == []


def test_a_later_backup_that_could_not_be_stored_leaves_the_one_before() -> None:
    session = open_session()
    assert session.stored(back_up(session), 0.0) == ()
    assert talk(session.not_stored(back_up(session), "no", 0.0)) == ["storage: no"]
    assert say(session, of(A, 136), of(A, UPDATE_ADD_HTLC)) == []


def test_other_channels_are_warned_about_once_as_ever() -> None:
    session = open_session({A: USED})
    back_up(session, C)
    (text,) = talk(say(session, of(B, 136), of(B, UPDATE_ADD_HTLC), of(A, 136), of(C, 136)))
    assert B.hex() in text


@pytest.mark.parametrize("name", READ)
def test_a_message_too_short_to_count_ends_the_connection(name: str) -> None:
    data = READ[name]
    for size in range(34, len(data)):
        text = assert_warned_and_closed(open_session({A: USED}), data[:size], name, "short")
        assert not text.startswith("storage:")


@pytest.mark.parametrize("channels", [{}, {A: USED}], ids=["without a backup", "with a backup"])
def test_too_large_a_batch_ends_the_connection(channels: Channels) -> None:
    assert_warned_and_closed(open_session(channels), start_batch(A, 21), "start_batch")


def test_channels_with_backups_leave_room_for_a_hundred_others() -> None:
    session = open_session({A: USED})
    back_up(session, B)
    ids = channel_ids()
    for _ in range(100):
        assert len(talk(say(session, of(next(ids), 136)))) == 1
    assert say(session, of(A, 136), of(B, 136)) == []
    assert_warned_and_closed(session, of(next(ids), 136), "100 channels")


# The state of channels


@pytest.mark.parametrize("bits", [(41,), (43,)])
def test_the_state_of_a_channel_with_a_backup_is_kept_up_to_date(bits: Bits) -> None:
    session = open_session({A: USED}, bits)
    state, sequence = USED, 0
    for data, change in [
        (commitment_signed(A), {"commitments": 8}),
        (revoke_and_ack(A), {"revocations": 7, "last_secret": SECRET}),
        (of(A, SHUTDOWN), {"shutdown": True}),
        (of(A, CLOSING_SIGNED), {"closing": True}),
    ]:
        state, sequence = replace(state, **change), sequence + 1  # type: ignore[arg-type]
        expected = [Store(sequence, BackupKind.CHANNEL_BACKUP, A, None, state)]
        assert say(session, of(A, UPDATE_ADD_HTLC), data) == expected


def test_what_a_pong_says_is_true_of_the_state_of_channels_too() -> None:
    session = open_session({A: USED})
    (store,) = say(session, commitment_signed(A))
    assert isinstance(store, Store)
    assert ping(session, 1) == []
    assert talk(session.not_stored(store.sequence, "no", 0.5)) == ["storage: no", "pong 1"]


# Our init


def test_our_init_waits_for_the_peers_when_a_node_backup_is_stored() -> None:
    session = begin(Stored(peer_storage=True, node_backup=True, channels={A: USED}))
    assert session.start() == ()
    assert session.state is State.INIT
    assert session.ready


@pytest.mark.parametrize(
    "stored", [Stored(), Stored(peer_storage=True), Stored(channels={A: USED})], ids=str
)
def test_our_init_does_not_wait_for_other_backups(stored: Stored) -> None:
    assert begin(stored).start() == [Send(OUR_INIT.encode())]


def test_the_initiator_does_not_wait_and_shows_nothing_in_its_init() -> None:
    session = begin(Stored(node_backup=True, peer_storage=True), initiator=True)
    assert session.start() == [Send(OUR_INIT.encode())]
    actions = session.receive(init_message(41), 1.0)
    assert replay(session, actions, {STORAGE: b"storage"}) == [PeerStorageRetrieval(b"storage")]
    assert session.end(2.0, hung_up=True) == ()


@each_wanting
@pytest.mark.parametrize("size", [0, 1, 252, 253, 32000])
def test_our_init_shows_the_node_backup_to_a_peer_that_asks_for_storage(
    bits: Bits, size: int
) -> None:
    for data in (init_message(*bits), init_message(globalfeatures=bits)):
        session = waiting_session()
        assert session.receive(data, 1.0) == [NODE]
        blob = b"\xab" * size
        (send,) = session.retrieved(blob)
        assert decode(send) == replace(OUR_INIT, node_backup=blob)
        assert session.state is State.OPEN


def test_our_init_with_a_node_backup_is_laid_out_as_pull_request_881_says() -> None:
    address = bytes.fromhex("01 01020304 2607")
    session = Session(
        chain_hash=CHAIN, now=0.0, stored=Stored(node_backup=True), remote_addr=address
    )
    session.start()
    session.receive(init_message(41), 1.0)
    expected = bytes.fromhex("0010 0000 0006 28000080a202 0120") + CHAIN
    expected += b"\x02\x04node" + b"\x03\x07" + address
    assert session.retrieved(b"node") == [Send(expected)]


@each_not_wanting
def test_our_init_shows_no_node_backup_to_a_peer_that_does_not_ask_for_storage(bits: Bits) -> None:
    for data in (init_message(*bits), init_message(globalfeatures=bits)):
        session = waiting_session()
        assert session.receive(data, 1.0) == [Send(OUR_INIT.encode())]
        assert session.state is State.OPEN


def test_a_node_backup_in_the_peers_init_is_ignored() -> None:
    data = init_message(41, tlvs=b"\x01\x20" + CHAIN + b"\x02\x04node")
    session = waiting_session()
    assert session.receive(data, 1.0) == [NODE]
    assert session.retrieved(b"ours") == [Send(replace(OUR_INIT, node_backup=b"ours").encode())]


def test_our_init_goes_out_without_a_node_backup_that_can_not_be_read() -> None:
    session = waiting_session()
    assert session.receive(init_message(41), 1.0) == [NODE]
    assert session.retrieved(None) == [Send(OUR_INIT.encode())]


@pytest.mark.parametrize("init_timeout", [4.0, 15.0])
def test_our_init_waits_half_of_the_init_timeout(init_timeout: float) -> None:
    session = waiting_session(init_timeout)
    half = init_timeout / 2
    assert session.next_deadline() == half
    # Bytes that are no message yet change nothing.
    session.heard(half - 0.5)
    assert session.tick(half - 0.25) == ()
    report, send = session.tick(half)
    assert isinstance(report, Report)
    assert report.event == "init_without_node_backup"
    assert send == Send(OUR_INIT.encode())
    # And the peer has the other half.
    assert session.next_deadline() == init_timeout
    assert session.tick(init_timeout - 0.25) == ()
    (close,) = session.tick(init_timeout)
    assert isinstance(close, Close)
    assert_over(session, init_timeout)


def test_an_init_without_the_node_backup_is_not_made_good_for_on_that_connection() -> None:
    session = begin(Stored(peer_storage=True, node_backup=True, channels={A: USED}))
    session.start()
    session.tick(7.5)
    blobs = {STORAGE: b"storage", channel(A): b"a"}
    sent = replay(session, session.receive(init_message(41), 8.0), blobs)
    assert [type(message) for message in sent] == [PeerStorageRetrieval, ChannelReestablish]
    sequence = sequence_of(say(session, UpdateNodeBackup(b"new"), now=9.0))
    assert session.stored(sequence, 9.0) == ()
    assert ping(session, 1, 9.0) == ["pong 1"]
    assert isinstance(decode(session.tick(69.0)[0]), Ping)
    assert session.end(70.0, hung_up=True) == ()


BAD_INITS = {
    "unknown even feature": init_message(41, 100),
    "missing dependency": init_message(41, 17),
    "other chain": init_message(41, tlvs=b"\x01\x20" + OTHER_CHAIN),
    "unknown even TLV": init_message(41, tlvs=b"\x04\x00"),
    "too short": init_message(41)[:-1],
    "empty": u16(16),
}


@pytest.mark.parametrize("data", BAD_INITS.values(), ids=BAD_INITS)
def test_a_bad_init_is_answered_by_ours_and_a_warning(data: bytes) -> None:
    session = waiting_session()
    init, warning, close = without_reports(session.receive(data, 1.0))
    assert decode(init) == OUR_INIT
    assert "init" in warning_text(warning)
    assert isinstance(close, Close)
    assert_over(session, 1.0)


@pytest.mark.parametrize("data", BAD_INITS.values(), ids=BAD_INITS)
def test_a_bad_init_is_not_answered_by_ours_twice(data: bytes) -> None:
    session = waiting_session()
    session.tick(7.5)
    assert_warned_and_closed(session, data, "init")


@pytest.mark.parametrize("data", NOT_INIT, ids=lambda data: data[:10].hex() or "empty")
def test_a_first_message_that_is_not_init_closes_without_our_init(data: bytes) -> None:
    session = waiting_session()
    (close,) = session.receive(data, 1.0)
    assert isinstance(close, Close)
    assert_over(session, 1.0)


# What is given back

ALL = Stored(peer_storage=True, node_backup=True, channels={A: USED, B: ChannelState()})
BLOBS: Mapping[Retrieve, bytes | None] = {
    NODE: b"node",
    STORAGE: b"storage",
    channel(A): b"a",
    channel(B): b"b",
}


def given_back(
    stored: Stored, bits: Bits = (41,), blobs: Mapping[Retrieve, bytes | None] = BLOBS
) -> list[Message]:
    """All that a session says to a peer that says no more than init."""
    session = begin(stored)
    sent = [decode(action) for action in session.start()]
    sent += replay(session, session.receive(init_message(*bits), 1.0), blobs)
    assert session.ready
    assert session.silent_since_init
    return sent


@each_wanting
def test_everything_is_given_back_in_its_order(bits: Bits) -> None:
    init, retrieval, *reestablishes = given_back(ALL, bits)
    assert init == OUR_INIT_WITH_NODE_BACKUP
    assert retrieval == PeerStorageRetrieval(b"storage")
    backups = {}
    for message in reestablishes:
        assert isinstance(message, ChannelReestablish)
        backups[message.channel_id] = message.channel_backup
    assert backups == {A: b"a", B: b"b"}
    assert len(reestablishes) == 2


@each_not_wanting
def test_a_peer_that_does_not_ask_for_storage_gets_back_its_peer_storage_alone(bits: Bits) -> None:
    # What else would be read fails: it is not there.
    sent = given_back(ALL, bits, {STORAGE: b"storage"})
    assert sent == [OUR_INIT, PeerStorageRetrieval(b"storage")]


@pytest.mark.parametrize(
    "missing", BLOBS, ids=lambda what: f"{what.kind.label}{what.channel_id[:1].decode()}"
)
def test_what_can_not_be_read_does_not_keep_back_the_rest(missing: Retrieve) -> None:
    whole = given_back(ALL)
    sent = given_back(ALL, blobs={**BLOBS, missing: None})
    if missing == NODE:
        assert sent == [OUR_INIT, *whole[1:]]
    else:
        place = list(BLOBS).index(missing)
        assert sent == whole[:place] + whole[place + 1 :]


def test_a_channel_whose_state_can_not_be_trusted_is_not_given_back() -> None:
    sent = given_back(replace(ALL, channels={A: None, B: USED}), blobs={**BLOBS, channel(A): None})
    assert [message.TYPE for message in sent] == [16, 9, 136]
    assert isinstance(sent[-1], ChannelReestablish)
    assert sent[-1].channel_id == B


@pytest.mark.parametrize(
    "state",
    [
        ChannelState(),
        ChannelState(commitments=1),
        ChannelState(commitments=3, revocations=2, last_secret=SECRET),
        ChannelState(revocations=1, last_secret=SECRET, whole=True),
        ChannelState(2**48, 2**48 - 1, SECRET, whole=True, shutdown=True, closing=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [0, 1, 32000])
def test_channel_reestablish_says_what_was_seen_of_the_channel(
    state: ChannelState, size: int
) -> None:
    blob = b"\xab" * size
    _init, message = given_back(Stored(channels={A: state}), blobs={channel(A): blob})
    assert isinstance(message, ChannelReestablish)
    assert message.channel_id == A
    # BOLT 2: the next ones that are expected.
    assert message.next_commitment_number == state.commitments + 1
    assert message.next_revocation_number == state.revocations
    assert message.your_last_per_commitment_secret == state.last_secret
    assert message.channel_backup == blob
    # It raises for what is no point.
    point = coincurve.PublicKey(message.my_current_per_commitment_point)
    assert point.format() == message.my_current_per_commitment_point


def test_no_secret_is_all_zeros() -> None:
    _init, message = given_back(Stored(channels={A: ChannelState()}), blobs=BLOBS)
    assert isinstance(message, ChannelReestablish)
    assert message.next_revocation_number == 0
    assert message.your_last_per_commitment_secret == bytes(32)


@pytest.mark.parametrize("bits", [(41,), (43,)])
@pytest.mark.parametrize("state", [USED, None], ids=["known", "not trusted"])
def test_the_peers_own_channel_reestablish_of_a_channel_with_a_backup_gets_nothing(
    state: ChannelState | None, bits: Bits
) -> None:
    session = begin(Stored(channels={A: state}))
    session.start()
    replay(session, session.receive(init_message(*bits), 0.0), {channel(A): b"old"})
    data = ChannelReestablish(A, 8, 7, SECRET, POINT).encode()
    for _ in range(3):
        assert session.receive(data, 1.0) == ()


def test_a_backup_of_this_connection_is_not_given_back_on_it() -> None:
    session = open_session()
    sequence = back_up(session)
    assert session.stored(sequence, 0.0) == ()
    assert say(session, of(A, 136)) == []


def test_no_message_is_taken_before_all_is_given_back() -> None:
    session = begin(ALL)
    session.start()
    (action,) = session.receive(init_message(41), 1.0)
    while isinstance(action, Retrieve):
        assert not session.ready
        with pytest.raises(RuntimeError):
            session.receive(Ping(1).encode(), 1.0)
        action = [*session.retrieved(BLOBS[action])][-1]
    assert ping(session, 1) == ["pong 1"]


def test_nothing_is_given_back_after_the_end() -> None:
    session = begin(ALL)
    session.start()
    session.receive(init_message(41), 1.0)
    session.end(2.0, hung_up=True)
    assert session.retrieved(b"node") == ()
    assert_over(session, 2.0)


# Confirmation: PROTOCOL, section 5


def test_a_pong_waits_for_a_channel_backup_until_it_is_durable() -> None:
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"), of(A, UPDATE_ADD_HTLC))
    assert ping(session, 1) == []
    assert ping(session, 2) == []
    sequence = sequence_of(say(session, commitment_signed(A), now=0.5))
    assert talk(session.tick(1.0)) == []
    assert talk(session.stored(sequence, 1.5)) == ["pong 1", "pong 2"]
    assert ping(session, 3, 1.5) == ["pong 3"]


def test_a_pong_waits_two_seconds_for_a_channel_backup_and_not_longer() -> None:
    assert COMMIT_TIMEOUT == 2.0
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"), now=9.0)
    assert ping(session, 1, 10.0) == []
    assert session.next_deadline() == 12.0
    assert session.tick(11.75) == ()
    warning, pong = talk(session.tick(12.0))
    assert_about_storage(warning, "update_channel_backup")
    assert pong == "pong 1"


def test_a_channel_backup_completed_in_time_has_two_seconds_in_all() -> None:
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"))
    assert ping(session, 1) == []
    sequence_of(say(session, commitment_signed(A), now=1.75))
    warning, pong = talk(session.tick(2.0))
    assert_about_storage(warning)
    assert pong == "pong 1"


def test_the_pong_after_confirms_a_channel_backup_that_was_completed_late() -> None:
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"))
    assert ping(session, 1) == []
    assert len(talk(session.tick(2.0))) == 2
    # What was given up is not waited for.
    assert ping(session, 2, 2.25) == ["pong 2"]
    sequence = sequence_of(say(session, commitment_signed(A), now=2.5))
    assert ping(session, 3, 2.5) == []
    assert talk(session.stored(sequence, 3.0)) == ["pong 3"]


def test_a_channel_backup_completed_late_that_can_not_be_stored_is_told_before_the_next_pong() -> (
    None
):
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"))
    assert ping(session, 1) == []
    assert len(talk(session.tick(2.0))) == 2
    sequence = sequence_of(say(session, commitment_signed(A), now=2.5))
    assert ping(session, 2, 2.5) == []
    assert talk(session.not_stored(sequence, "no", 3.0)) == ["storage: no", "pong 2"]


def test_a_channel_backup_that_can_not_be_stored_is_told_before_the_pong() -> None:
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"))
    assert ping(session, 1) == []
    sequence = sequence_of(say(session, commitment_signed(A)))
    assert ping(session, 2) == []
    said = talk(session.not_stored(sequence, "no", 0.5))
    assert said[:2] == ["storage: no", "pong 1"]
    assert said[-1] == "pong 2"


def test_a_dropped_channel_backup_is_told_before_the_pong() -> None:
    session = open_session({B: USED})
    say(session, UpdateChannelBackup(b"backup"), of(A, UPDATE_ADD_HTLC))
    assert ping(session, 1) == []
    warning, pong = talk(say(session, of(B, UPDATE_ADD_HTLC)))
    assert_about_storage(warning, A.hex())
    assert pong == "pong 1"
    assert ping(session, 2) == ["pong 2"]


def test_a_channel_backup_dropped_before_its_ping_is_told_at_once() -> None:
    session = open_session({B: USED})
    say(session, UpdateChannelBackup(b"backup"), of(A, UPDATE_ADD_HTLC))
    (warning,) = talk(say(session, of(B, UPDATE_ADD_HTLC)))
    assert_about_storage(warning, A.hex())
    assert ping(session, 1) == ["pong 1"]


def test_a_channel_backup_dropped_after_its_pong_is_told_before_the_next() -> None:
    session = open_session({B: USED})
    say(session, UpdateChannelBackup(b"backup"), of(A, UPDATE_ADD_HTLC))
    assert ping(session, 1) == []
    assert len(talk(session.tick(2.0))) == 2
    (warning,) = talk(say(session, of(B, UPDATE_ADD_HTLC), now=2.5))
    assert_about_storage(warning, A.hex())
    assert ping(session, 2, 2.5) == ["pong 2"]


def test_a_dropped_channel_backup_is_told_in_every_interval_that_waits_for_it() -> None:
    session = open_session({B: USED})
    for size in (1, 2):
        say(session, UpdateChannelBackup(b"backup"), of(A, UPDATE_ADD_HTLC))
        assert ping(session, size) == []
    first, pong_1, second, pong_2 = talk(say(session, of(B, UPDATE_ADD_HTLC)))
    assert_about_storage(first)
    assert_about_storage(second)
    assert (pong_1, pong_2) == ("pong 1", "pong 2")


def test_a_pong_waits_for_what_took_the_place_of_a_channel_backup() -> None:
    session = open_session()
    for size in (1, 2):
        say(session, UpdateChannelBackup(b"backup"))
        assert ping(session, size) == []
    sequence = sequence_of(say(session, commitment_signed(A)))
    assert ping(session, 3) == []
    assert talk(session.stored(sequence, 0.5)) == ["pong 1", "pong 2", "pong 3"]


def test_a_refused_backup_in_the_place_of_another_is_told_for_both() -> None:
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"))
    assert ping(session, 1) == []
    said = talk(say(session, UpdateChannelBackup(TOO_LARGE)))
    place = said.index("pong 1")
    for texts in (said[:place], said[place + 1 :]):
        assert texts
        for text in texts:
            assert_about_storage(text)
    assert ping(session, 2) == ["pong 2"]
    # Neither of them is stored.
    assert say(session, commitment_signed(A)) == []


def test_a_refused_backup_is_not_waited_for() -> None:
    session = open_session()
    (warning,) = talk(say(session, UpdateChannelBackup(TOO_LARGE), of(A, UPDATE_ADD_HTLC)))
    assert_about_storage(warning)
    assert ping(session, 1) == ["pong 1"]


def test_a_channel_backup_that_the_store_refuses_is_told_before_the_pong() -> None:
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"))
    assert ping(session, 1) == []
    sequence = sequence_of(say(session, commitment_signed(A)))
    # Others of the same transaction are stored.
    last = sequence_of(say(session, UpdateNodeBackup(b"node")))
    session.refused([sequence], "too many channels")
    said = talk(session.stored(last, 0.5))
    assert said[:2] == ["storage: too many channels", "pong 1"]
    # The channel is one without a backup again.
    (text,) = talk(say(session, of(A, 136)))
    assert not text.startswith("storage:")


def test_a_failure_of_an_update_behind_a_channel_backup_is_told_in_its_own_interval() -> None:
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"))
    assert ping(session, 1) == []
    say(session, UpdateNodeBackup(b"node"))
    assert ping(session, 2) == []
    (store,) = say(session, commitment_signed(A))
    assert isinstance(store, Store)
    said = talk(session.not_stored(store.sequence, "no", 0.5))
    assert said[:4] == ["storage: no", "pong 1", "storage: no", "pong 2"]


def test_a_pong_is_not_let_go_by_an_earlier_one_that_was_late() -> None:
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"))
    assert ping(session, 1) == []
    sequence = sequence_of(say(session, UpdateNodeBackup(b"node"), now=1.0))
    assert ping(session, 2, 1.0) == []
    say(session, commitment_signed(A), now=1.5)
    warning, pong = talk(session.tick(2.0))
    assert_about_storage(warning)
    assert pong == "pong 1"
    assert talk(session.stored(sequence, 2.5)) == ["pong 2"]


@dataclass
class Given:
    """An update of the peer, and what becomes of it."""

    interval: int
    number: int = 0
    """Under which it went to the store; 0: it did not."""
    refused: bool = False
    heir: Given | None = None
    """The one that took its place before it was complete."""


@dataclass
class Books:
    """A peer that uses both dialects, its books by section 5's rule, and a store."""

    session: Session = field(default_factory=lambda: open_session({C: USED}))
    now: float = 0.0
    received: int = 0
    resolved: int = 0
    failed: set[int] = field(default_factory=set)
    updates: list[Given] = field(default_factory=list)
    expected: Given | None = None
    """The update that the next backup for the store is."""
    offered: Given | None = None
    named: bytes | None = None
    replaced: Given | None = None
    """Of the channel `replaced_channel`; whether what took its place is, too, will show."""
    replaced_channel: bytes | None = None
    pings: list[tuple[int, float]] = field(default_factory=list)
    pongs: int = 0
    warned: set[int] = field(default_factory=set)
    warned_without_cause: set[int] = field(default_factory=set)

    # What the peer does

    def storage(self) -> None:
        self.expected = self.add()
        self.hear(self.session.receive(PeerStorage(b"blob").encode(), self.now))

    def offer(self, good: bool) -> None:
        update, before = self.add(), self.offered
        if before is not None and self.named is not None:
            self.replaced, self.replaced_channel = before, self.named
        self.named = None
        if good:
            self.offered = update
            if before is not None:
                before.heir = update
        else:
            update.refused = True
            self.drop()
        blob = b"backup" if good else TOO_LARGE
        self.hear(self.session.receive(UpdateChannelBackup(blob).encode(), self.now))

    def channel_message(self, channel_id: bytes, number: int) -> None:
        if self.offered is not None:
            if self.named is None:
                self.named = channel_id
                if self.replaced is not None and self.replaced_channel != channel_id:
                    self.replaced.heir, self.replaced.refused = None, True
                self.replaced = None
            if self.named != channel_id:
                self.drop()
            elif number == COMMITMENT_SIGNED:
                self.expected, self.offered = self.offered, None
                # Only now it goes to the store, so the pong of this interval is about it too.
                self.add().heir = self.expected
        self.hear(self.session.receive(of(channel_id, number), self.now))

    def ping(self, size: int) -> None:
        self.pings.append((size, self.now))
        self.hear(self.session.receive(Ping(size).encode(), self.now))

    # What the store and the clock do

    def commit(self, share: float) -> None:
        if count := self.part(share):
            self.resolved += count
            self.hear(self.session.stored(self.resolved, self.now))

    def fail(self, share: float) -> None:
        if count := self.part(share):
            self.failed.update(range(self.resolved + 1, self.resolved + count + 1))
            self.resolved += count
            self.hear(self.session.not_stored(self.resolved, "no", self.now))

    def refuse_first(self, share: float) -> None:
        """One of several is not stored."""
        if count := self.part(share):
            self.failed.add(self.resolved + 1)
            self.session.refused([self.resolved + 1], "no")
            self.resolved += count
            self.hear(self.session.stored(self.resolved, self.now))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.hear(self.session.tick(self.now), ticked=True)

    def part(self, share: float) -> int:
        """How many of the updates that the store still has are meant."""
        waiting = self.received - self.resolved
        return min(waiting, 1 + int(waiting * share))

    # The books

    def add(self) -> Given:
        update = Given(len(self.pings))
        self.updates.append(update)
        return update

    def drop(self) -> None:
        if self.offered is not None:
            self.offered.refused = True
            if self.offered.interval < self.pongs:
                # Its own pong is out: this interval's is to be behind the warning.
                self.add().refused = True
            self.offered = None
            self.replaced = None

    def is_durable(self, update: Given) -> bool:
        while update.heir is not None:
            update = update.heir
        stored = 0 < update.number <= self.resolved and update.number not in self.failed
        return stored and not update.refused

    def is_decided(self, update: Given) -> bool:
        while update.heir is not None:
            update = update.heir
        return update.refused or 0 < update.number <= self.resolved

    def hear(self, actions: Sequence[Action], ticked: bool = False) -> None:
        for action in without_reports(actions):
            if isinstance(action, Store):
                self.received += 1
                assert action.sequence == self.received
                # The state of a channel counts as an update too.
                update = self.add() if action.blob is None else self.expected
                assert update is not None
                update.number = self.received
                continue
            message = decode(action)
            if isinstance(message, Pong):
                self.conclude(len(message.ignored))
            elif isinstance(message, WarningMessage) and message.text.startswith("storage: "):
                self.warned.add(self.pongs)
        self.no_pong_is_overdue(ticked)

    def conclude(self, size: int) -> None:
        """A pong has come: what it says of its interval must be true."""
        assert size == self.pings[self.pongs][0]
        updates = [update for update in self.updates if update.interval == self.pongs]
        durable = all(self.is_durable(update) for update in updates)
        if self.pongs not in self.warned:
            assert durable, f"pong {self.pongs} confirms what is not durable"
        elif durable:
            self.warned_without_cause.add(self.pongs)
        self.pongs += 1

    def no_pong_is_overdue(self, ticked: bool) -> None:
        if self.pongs < len(self.pings):
            updates = [update for update in self.updates if update.interval == self.pongs]
            decided = all(self.is_decided(update) for update in updates)
            late = ticked and self.now >= self.pings[self.pongs][1] + COMMIT_TIMEOUT
            assert not decided, f"pong {self.pongs} is overdue"
            assert not late, f"pong {self.pongs} is late"


def _steps() -> st.SearchStrategy[list[tuple[str, float]]]:
    # Times are multiples of 1/4, which floats add without an error.
    peer = st.sampled_from(
        [
            *[("offer", 0.0)] * 3,
            *(("storage", 0.0), ("refused", 0.0)),
            *(("name A", 0.0), ("complete A", 0.0), ("complete A", 0.0)),
            *(("name B", 0.0), ("complete B", 0.0), ("name C", 0.0), ("complete C", 0.0)),
        ]
    )
    pings = st.tuples(st.just("ping"), st.sampled_from([0.0, 1.0, 2.0, 7.0]))
    store = st.sampled_from(["commit", "fail", "refuse first"])
    share = st.tuples(store, st.sampled_from([0.0, 0.5, 1.0]))
    times = st.tuples(st.sampled_from(["wait", "tick"]), st.sampled_from([0.0, 0.25, 1.0, 1.75]))
    step = peer | peer | pings | share | times
    return st.integers(0, 30).flatmap(lambda size: st.lists(step, min_size=size, max_size=size))


def _play(steps: list[tuple[str, float]]) -> Books:
    books = Books()

    def wait(seconds: float) -> None:
        books.now += seconds

    others: dict[str, Callable[[float], None]] = {
        "commit": books.commit,
        "fail": books.fail,
        "refuse first": books.refuse_first,
        "wait": wait,
        "tick": books.tick,
    }
    channels = {"A": A, "B": B, "C": C}
    for name, value in steps:
        if name in others:
            others[name](value)
        elif not books.session.ready:
            continue
        elif name == "ping":
            books.ping(int(value))
        elif name == "storage":
            books.storage()
        elif name in ("offer", "refused"):
            books.offer(name == "offer")
        else:
            number = COMMITMENT_SIGNED if name.startswith("complete") else UPDATE_ADD_HTLC
            books.channel_message(channels[name[-1]], number)
    books.tick(2.0)
    return books


@thorough
@given(steps=_steps())
def test_what_a_peer_of_both_dialects_concludes_from_its_pongs_is_always_true(
    steps: list[tuple[str, float]],
) -> None:
    books = _play(steps)
    assert books.pongs == len(books.pings), "once all is decided, every ping has its pong"
    assert books.session.ready


@thorough
@given(steps=_steps())
def test_no_interval_of_both_dialects_is_warned_about_without_a_cause(
    steps: list[tuple[str, float]],
) -> None:
    assert not _play(steps).warned_without_cause


# The end of the connection


@pytest.mark.parametrize("hung_up", [True, False])
def test_a_channel_backup_that_the_end_leaves_unfinished_is_reported(hung_up: bool) -> None:
    for messages in ([], [of(A, UPDATE_ADD_HTLC)]):
        session = open_session()
        say(session, UpdateChannelBackup(b"backup"), *messages)
        actions = session.end(1.0, hung_up=hung_up)
        assert reports(actions) == ["channel_backup_dropped"]
        assert without_reports(actions) == []
        assert_over(session, 1.0)


@pytest.mark.parametrize(
    "messages",
    [
        [UpdateChannelBackup(b"backup"), commitment_signed(A)],
        [UpdateChannelBackup(TOO_LARGE), of(A, UPDATE_ADD_HTLC)],
        [UpdateChannelBackup(b"backup"), of(A, UPDATE_ADD_HTLC), of(B, UPDATE_ADD_HTLC)],
        [UpdateChannelBackup(b"backup"), UpdateChannelBackup(TOO_LARGE)],
        [UpdateNodeBackup(b"backup")],
        [],
    ],
    ids=["completed", "refused", "dropped", "replaced by a refused one", "another kind", "none"],
)
@pytest.mark.parametrize("hung_up", [True, False])
def test_the_end_reports_nothing_when_no_channel_backup_waits(
    messages: list[Message | bytes], hung_up: bool
) -> None:
    session = open_session()
    say(session, *messages)
    assert session.end(1.0, hung_up=hung_up) == ()
    assert_over(session, 1.0)


@pytest.mark.parametrize(
    "data",
    [
        u16(1000),
        init_message(41),
        UpdateChannelBackup(b"new").encode()[:-1],
        of(A, REVOKE_AND_ACK)[:-1],
        start_batch(B, 21),
    ],
    ids=["unknown", "second init", "short backup", "short revoke_and_ack", "large batch"],
)
def test_a_channel_backup_that_our_close_leaves_unfinished_is_reported(data: bytes) -> None:
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"), of(A, UPDATE_ADD_HTLC))
    actions = session.receive(data, 1.0)
    assert "channel_backup_dropped" in reports(actions)
    warning, close = without_reports(actions)
    assert warning_text(warning)
    assert actions[-1] == close
    assert isinstance(close, Close)
    # Once is enough.
    assert session.end(2.0, hung_up=True) == ()


def test_a_message_that_both_drops_a_channel_backup_and_ends_the_connection_tells_of_both() -> None:
    session = open_session({B: USED})
    say(session, UpdateChannelBackup(b"backup"), of(A, UPDATE_ADD_HTLC))
    actions = session.receive(of(B, REVOKE_AND_ACK)[:-1], 1.0)
    assert isinstance(actions[-1], Close)
    assert {"channel_backup_dropped", "update_refused"} & set(reports(actions))


def test_a_channel_backup_that_silence_leaves_unfinished_is_reported() -> None:
    session = open_session()
    say(session, UpdateChannelBackup(b"backup"))
    session.tick(60.0)
    actions = session.tick(120.0)
    assert reports(actions) == ["channel_backup_dropped"]
    assert isinstance(actions[-1], Close)


# A peer that hangs up on its node backup


def assert_forgone(actions: Sequence[Action]) -> None:
    """The node backup is to be kept back from now on, and the operator told."""
    assert without_reports(actions) == [Forgo()]
    assert len(reports(actions)) == 1


def test_a_peer_that_hangs_up_on_its_node_backup_is_not_shown_it_again() -> None:
    session = shown_session()
    assert_forgone(session.end(0.5, hung_up=True))
    assert_over(session, 0.5)
    assert session.end(0.5, hung_up=True) == ()


def test_a_peer_that_hangs_up_in_the_middle_of_the_replay_is_not_shown_it_again() -> None:
    session = begin(ALL)
    session.start()
    session.receive(init_message(41), 1.0)
    session.retrieved(b"node")
    assert session.state is State.REPLAY
    assert_forgone(session.end(1.5, hung_up=True))


@pytest.mark.parametrize(
    "messages",
    [
        [WarningMessage.about("TLV 2?")],
        [ErrorMessage(NO_CHANNEL, b"TLV 2?")],
        [WarningMessage.about("TLV 2?"), ErrorMessage(NO_CHANNEL, b"bye")],
    ],
    ids=["warning", "error", "both"],
)
def test_a_peer_that_only_complains_and_hangs_up_is_not_shown_it_again(
    messages: list[Message],
) -> None:
    session = shown_session()
    assert say(session, *messages, now=0.25) == []
    assert_forgone(session.end(0.5, hung_up=True))


@pytest.mark.parametrize(
    "message",
    [
        Ping(65535),
        Pong(),
        PeerStorage(b"backup"),
        UpdateNodeBackup(b"node"),
        UpdateNodeBackup(TOO_LARGE),
        WarningMessage(A, b"about a channel"),
        ErrorMessage(A, b"about a channel"),
        of(A, 136),
        u16(256),
        u16(513),
        u16(39409),
    ],
    ids=lambda data: str(data.TYPE if not isinstance(data, bytes) else data[0] << 8 | data[1]),
)
def test_a_peer_that_said_something_to_its_node_backup_is_shown_it_again(
    message: Message | bytes,
) -> None:
    session = shown_session()
    say(session, message, now=0.25)
    assert session.end(0.5, hung_up=True) == ()


def test_a_complaint_does_not_undo_what_was_said_before() -> None:
    session = shown_session()
    say(session, Ping(1), WarningMessage.about("hm"), now=0.25)
    assert session.end(0.5, hung_up=True) == ()


def test_a_connection_that_we_end_says_nothing_about_the_node_backup() -> None:
    assert shown_session().end(0.5, hung_up=False) == ()
    session = shown_session()
    assert isinstance(session.receive(init_message(41), 0.25)[-1], Close)
    assert session.end(0.5, hung_up=True) == ()


@pytest.mark.parametrize("shown", [0.0, 6.0])
def test_hanging_up_is_about_the_node_backup_only_right_after_it(shown: float) -> None:
    assert Timeouts().init >= HANG_UP_SECONDS
    over = shown + HANG_UP_SECONDS
    assert_forgone(shown_session(shown).end(over - 0.25, hung_up=True))
    assert shown_session(shown).end(over + 0.25, hung_up=True) == ()


def test_a_peer_that_read_on_has_not_hung_up_on_its_node_backup() -> None:
    session = begin(ALL)
    session.start()
    session.receive(init_message(41), 1.0)
    session.retrieved(b"node")
    session.drained(1.25)
    assert session.end(1.5, hung_up=True) == ()


def test_a_peer_that_was_shown_no_node_backup_may_hang_up() -> None:
    sessions = {
        "none is stored": begin(Stored(peer_storage=True)),
        "not read": begin(Stored(node_backup=True)),
        "not asked for": begin(Stored(node_backup=True)),
        "we dialed": begin(Stored(node_backup=True), initiator=True),
        "too late": begin(Stored(node_backup=True)),
        "no init": begin(Stored(node_backup=True)),
    }
    for name, session in sessions.items():
        session.start()
        if name == "too late":
            session.tick(7.5)
        if name != "no init":
            bits = (43,) if name == "not asked for" else (41,)
            actions = session.receive(init_message(*bits), 8.0)
            replay(session, actions, {STORAGE: None, NODE: None})
        assert session.end(8.5, hung_up=True) == (), name


# Anything at all


@dataclass
class Witness:
    """Sees to it that a session does what PROTOCOL knows, and nothing else."""

    session: Session
    stored: Stored
    readable: bool
    wants: bool = False
    said_init: bool = False
    opened: bool = False
    sequence: int = 0
    reestablished: set[bytes] = field(default_factory=set)

    def see(self, actions: Sequence[Action]) -> None:
        assert sum(isinstance(action, Retrieve) for action in actions) < 2
        for place, action in enumerate(actions):
            if isinstance(action, Send):
                self.see_message(decode(action))
            elif isinstance(action, Store):
                self.see_store(action)
            elif isinstance(action, Retrieve):
                assert not self.opened
                assert place == len(actions) - 1
                self.see(self.session.retrieved(b"old" if self.readable else None))
            elif isinstance(action, Close):
                assert place == len(actions) - 1
                assert self.session.state is State.CLOSED
            else:
                assert isinstance(action, Report)
        self.opened = self.session.state is State.OPEN

    def see_message(self, message: Message) -> None:
        assert self.said_init != isinstance(message, Init)
        if isinstance(message, Init):
            self.said_init = True
            shown = message.node_backup is not None
            assert not shown or (self.wants and self.stored.node_backup and self.readable)
        elif isinstance(message, ChannelReestablish):
            assert self.wants
            assert not self.opened
            assert message.channel_id not in self.reestablished
            assert self.stored.channels[message.channel_id] is not None
            self.reestablished.add(message.channel_id)
        elif isinstance(message, PeerStorageRetrieval):
            assert self.stored.peer_storage
            assert not self.opened
        elif isinstance(message, WarningMessage):
            assert message.channel_id == NO_CHANNEL
        elif isinstance(message, ErrorMessage):
            assert message.channel_id != NO_CHANNEL
        else:
            assert self.opened
            assert isinstance(message, Ping | Pong | ReplyChannelRange | ReplyShortChannelIdsEnd)

    def see_store(self, store: Store) -> None:
        self.sequence += 1
        assert store.sequence == self.sequence
        is_channel = store.kind is BackupKind.CHANNEL_BACKUP
        assert len(store.channel_id) == 32 * is_channel
        assert (store.channel is not None) == is_channel
        if store.blob is None:
            assert is_channel
        elif store.kind is not BackupKind.PEER_STORAGE:
            assert self.wants
            assert len(store.blob) <= 32000


def _messages() -> st.SearchStrategy[bytes]:
    """Messages of both dialects and of channels, whole, cut and with something behind them."""
    channels = st.sampled_from([A, B, C, NO_CHANNEL])
    types = st.sampled_from([*COMPLETING, *CHANNEL_TYPES, *UNKNOWN_ODD, OPEN_CHANNEL, 122])
    blobs = st.binary(max_size=10) | st.sampled_from([bytes(32000), TOO_LARGE])
    channel_messages = st.builds(of, channels, types)
    updates = st.builds(
        lambda kind, blob: kind(blob).encode(),
        st.sampled_from([UpdateChannelBackup, UpdateChannelBackup, UpdateNodeBackup, PeerStorage]),
        blobs,
    )
    others = st.sampled_from(
        [
            Ping(1).encode(),
            Pong().encode(),
            start_batch(A, 3),
            WarningMessage.about("hm").encode(),
            ErrorMessage(A, b"hm").encode(),
            u16(513),
        ]
    )
    whole = channel_messages | updates | others
    trailers = st.sampled_from([*VALID_TRAILERS, *INVALID_TRAILERS.values()])
    cut = st.builds(lambda data, size: data[: size % len(data)], whole, st.integers(0, 300))
    trailed = st.builds(bytes.__add__, whole, trailers)
    # Mostly what does not end the connection.
    return st.one_of(*[channel_messages, updates] * 3, others, cut, trailed)


def _occurrences() -> st.SearchStrategy[list[tuple[str, bytes | float]]]:
    occurrence = st.one_of(
        *[st.tuples(st.just("say"), _messages())] * 4,
        st.tuples(st.sampled_from(["tick", "heard"]), st.sampled_from([0.25, 1.75, 7.5, 60.0])),
        st.tuples(st.sampled_from(["stored", "not_stored"]), st.just(0.0)),
    )
    return st.lists(occurrence, max_size=40)


CHANNEL_STATES = st.dictionaries(st.sampled_from([A, B]), st.sampled_from([USED, None]))


@thorough
@given(
    stored=st.builds(Stored, st.booleans(), st.booleans(), CHANNEL_STATES),
    bits=st.sampled_from([(), (40,), (41,), (43,), (41, 100)]),
    readable=st.booleans(),
    initiator=st.booleans(),
    begun=st.sampled_from([0.0, 7.5]),
    occurrences=_occurrences(),
    hung_up=st.booleans(),
)
def test_whatever_comes_only_what_is_documented_follows(
    stored: Stored,
    bits: Bits,
    readable: bool,
    initiator: bool,
    begun: float,
    occurrences: list[tuple[str, bytes | float]],
    hung_up: bool,
) -> None:
    session = begin(stored, initiator=initiator)
    witness = Witness(session, stored, readable)
    witness.see(session.start())
    witness.see(session.tick(begun))
    witness.wants = not {40, 41}.isdisjoint(bits)
    now = begun
    witness.see(session.receive(init_message(*bits), now))
    for name, what in occurrences:
        if isinstance(what, bytes):
            if session.ready:
                witness.see(session.receive(what, now))
        elif name in ("tick", "heard"):
            now += what
            if name == "heard":
                session.heard(now)
            else:
                witness.see(session.tick(now))
        elif witness.sequence:
            if name == "stored":
                witness.see(session.stored(witness.sequence, now))
            else:
                witness.see(session.not_stored(witness.sequence, "no", now))
    assert witness.said_init
    if witness.wants and readable and 100 not in bits:
        assert witness.reestablished == {c for c, state in stored.channels.items() if state}
    for action in session.end(now, hung_up=hung_up):
        assert isinstance(action, Report | Forgo)
        if isinstance(action, Forgo):
            assert hung_up
            assert witness.wants
            assert stored.node_backup
    assert_over(session, now)
