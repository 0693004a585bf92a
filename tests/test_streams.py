"""What the messages of channels say of their backups: bolts pull request 881 and BOLT 2."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerstore.errors import CodecError
from peerstore.streams import ChannelStreams, ChannelUpdate, Outcome
from peerstore.types import ChannelState
from peerstore.wire.messages import RevokeAndAck, StartBatch, message_type
from tests.helpers import quick
from tests.test_session import CHANNEL_TYPES, OPEN_CHANNEL, OPEN_CHANNEL2, channel_message

A, B, C = (bytes((letter,)) * 32 for letter in b"ABC")
POINT = b"\x02" + bytes(32)
SECRET = bytes(range(32))

STFU, START_BATCH = 2, 127
FUNDING_SIGNED, SHUTDOWN, CLOSING_SIGNED, CLOSING_COMPLETE, CLOSING_SIG = 35, 38, 39, 40, 41
TX_COMPLETE, TX_SIGNATURES, TX_ABORT = 70, 71, 74
UPDATE_ADD_HTLC, COMMITMENT_SIGNED, REVOKE_AND_ACK = 128, 132, 133

COMPLETING = (FUNDING_SIGNED, SHUTDOWN, CLOSING_SIGNED, COMMITMENT_SIGNED, REVOKE_AND_ACK)
"""Pull request 881: the messages that complete an update of the channel state."""

NAMING = sorted(CHANNEL_TYPES.keys() - {STFU, START_BATCH, *COMPLETING})
"""What names the channel of a backup and does not complete it, but for the openings."""

OPENING = [OPEN_CHANNEL, OPEN_CHANNEL2]

USED = ChannelState(commitments=7, revocations=6, last_secret=b"s" * 32, whole=True)
"""The state of a channel from an earlier connection."""


def commitment_signed(channel_id: bytes) -> bytes:
    """`signature`, and no HTLCs."""
    return channel_message(COMMITMENT_SIGNED, channel_id, bytes(64) + b"\x00\x00")


def revoke_and_ack(channel_id: bytes, secret: bytes = SECRET) -> bytes:
    return RevokeAndAck(channel_id, secret, POINT).encode()


def start_batch(
    channel_id: bytes, batch_size: int, message_type: int | None = COMMITMENT_SIGNED
) -> bytes:
    return StartBatch(channel_id, batch_size, message_type).encode()


def of(channel_id: bytes, number: int) -> bytes:
    """A message of this type and channel, whole where it matters."""
    if number == COMMITMENT_SIGNED:
        return commitment_signed(channel_id)
    if number == REVOKE_AND_ACK:
        return revoke_and_ack(channel_id)
    if number == START_BATCH:
        return start_batch(channel_id, 2)
    return channel_message(number, channel_id, bytes(200))


@dataclass
class Peer:
    """A peer's streams, and a store that is told of every backup."""

    states: Mapping[bytes, ChannelState | None] = field(default_factory=dict)
    handed_in: int = 0

    def __post_init__(self) -> None:
        self.streams = ChannelStreams(self.states)

    def offer(self, blob: bytes | None) -> None:
        self.streams.offer(blob)

    def say(self, *messages: bytes) -> Outcome:
        """Channel messages, one behind the other; what the last one led to."""
        return self.outcomes(messages)[-1]

    def outcomes(self, messages: Iterable[bytes]) -> list[Outcome]:
        outcomes = []
        for data in messages:
            outcome = self.streams.receive(message_type(data), data)
            if outcome.update is not None and outcome.update.blob is not None:
                self.handed_in += 1
                self.streams.hand_in(self.handed_in, outcome.update.channel_id)
            outcomes.append(outcome)
        return outcomes

    def has_unfinished(self) -> bool:
        return self.streams.unfinished

    def back_up(self, channel_id: bytes, blob: bytes = b"backup") -> int:
        """Hand in a backup of a channel; its sequence number."""
        self.offer(blob)
        assert backed_up(self.say(commitment_signed(channel_id))) == (channel_id, blob)
        return self.handed_in

    def state(self, channel_id: bytes) -> ChannelState:
        """What is known of a channel, as a backup of it would carry it."""
        self.offer(b"")
        # A second shutdown says nothing new.
        outcome = self.say(of(channel_id, SHUTDOWN))
        assert outcome.update is not None
        return replace(outcome.update.state, shutdown=False)


def backed_up(outcome: Outcome) -> tuple[bytes, bytes | None]:
    """The channel of which something is to be stored, and the backup if there is one."""
    assert outcome.update is not None
    return outcome.update.channel_id, outcome.update.blob


# Which channel a backup is of


@pytest.mark.parametrize("number", NAMING)
def test_the_first_channel_message_behind_a_backup_names_its_channel(number: int) -> None:
    peer = Peer()
    peer.offer(b"backup")
    assert peer.say(of(A, number)) == Outcome(served=True)
    assert peer.has_unfinished()
    outcome = peer.say(commitment_signed(A))
    assert outcome.served
    assert not outcome.dropped
    assert backed_up(outcome) == (A, b"backup")


@pytest.mark.parametrize("number", [*NAMING, *OPENING])
def test_a_message_of_another_channel_drops_a_backup_and_says_of_which(number: int) -> None:
    peer = Peer()
    peer.offer(b"backup")
    peer.say(of(A, UPDATE_ADD_HTLC))
    outcome = peer.say(of(B, number))
    assert not outcome.served
    assert outcome.update is None
    assert "update_channel_backup" in outcome.dropped
    assert A.hex() in outcome.dropped
    assert B.hex() in outcome.dropped
    assert not peer.has_unfinished()
    # For good: neither of the two channels gets it now.
    for channel_id in (A, B):
        assert peer.say(commitment_signed(channel_id)) == Outcome(served=False)


@pytest.mark.parametrize("number", COMPLETING)
def test_a_completing_message_of_another_channel_drops_a_backup_too(number: int) -> None:
    peer = Peer()
    peer.offer(b"backup")
    peer.say(of(A, UPDATE_ADD_HTLC))
    outcome = peer.say(of(B, number))
    assert outcome.dropped
    assert outcome.update is None


@pytest.mark.parametrize("data", [start_batch(A, 1), of(A, STFU)], ids=["start_batch", "stfu"])
def test_start_batch_and_what_is_below_32_name_no_channel(data: bytes) -> None:
    peer = Peer()
    peer.offer(b"backup")
    peer.say(data)
    outcome = peer.say(commitment_signed(B))
    assert outcome == Outcome(True, ChannelUpdate(B, ChannelState(commitments=1), b"backup"))


@pytest.mark.parametrize("data", [start_batch(B, 1), of(B, STFU)], ids=["start_batch", "stfu"])
def test_start_batch_and_what_is_below_32_drop_nothing(data: bytes) -> None:
    peer = Peer()
    peer.offer(b"backup")
    peer.say(of(A, UPDATE_ADD_HTLC))
    assert peer.say(data) == Outcome(served=False)
    outcome = peer.say(commitment_signed(A))
    assert outcome == Outcome(True, ChannelUpdate(A, ChannelState(commitments=1), b"backup"))


@pytest.mark.parametrize("number", OPENING)
def test_an_opening_names_its_temporary_channel_and_is_answered_all_the_same(number: int) -> None:
    peer = Peer()
    peer.offer(b"backup")
    assert peer.say(of(A, number)) == Outcome(served=False)
    assert peer.say(of(A, 34)) == Outcome(served=True)
    # The real id comes with funding_signed only, and is another one.
    assert A.hex() in peer.say(of(B, FUNDING_SIGNED)).dropped


def test_of_a_message_that_is_not_understood_the_channel_alone_counts() -> None:
    peer = Peer()
    assert peer.streams.name(A).dropped == ""
    peer.offer(b"backup")
    for _ in range(2):
        assert peer.streams.name(A).dropped == ""
    dropped = peer.streams.name(B).dropped
    assert A.hex() in dropped
    assert B.hex() in dropped
    assert not peer.has_unfinished()
    assert peer.say(commitment_signed(A)) == Outcome(served=False)


def test_messages_before_a_backup_do_not_name_its_channel() -> None:
    peer = Peer()
    peer.say(of(A, UPDATE_ADD_HTLC))
    peer.offer(b"backup")
    outcome = peer.say(commitment_signed(B))
    assert outcome.update == ChannelUpdate(B, ChannelState(commitments=1), b"backup")


# What completes it


@pytest.mark.parametrize("number", COMPLETING)
@pytest.mark.parametrize("named_before", [True, False])
@pytest.mark.parametrize("blob", [b"", b"backup"])
def test_a_backup_is_stored_with_a_message_that_completes_an_update(
    number: int, named_before: bool, blob: bytes
) -> None:
    peer = Peer()
    peer.offer(blob)
    assert peer.has_unfinished()
    if named_before:
        peer.say(of(A, UPDATE_ADD_HTLC))
    outcome = peer.say(of(A, number))
    assert outcome.served
    assert not outcome.dropped
    assert backed_up(outcome) == (A, blob)
    assert not peer.has_unfinished()


def test_a_backup_is_stored_once() -> None:
    peer = Peer()
    peer.back_up(A)
    outcome = peer.say(commitment_signed(A))
    assert outcome.update == ChannelUpdate(A, ChannelState(commitments=2), None)


def test_without_a_backup_nothing_is_stored() -> None:
    peer = Peer()
    for number in (*OPENING, *NAMING, *COMPLETING):
        assert peer.say(of(A, number)) == Outcome(served=False)


@pytest.mark.parametrize("between", [(), (UPDATE_ADD_HTLC,)])
def test_a_second_backup_takes_the_place_of_the_first(between: tuple[int, ...]) -> None:
    for channel_id in (A, B):
        peer = Peer()
        peer.offer(b"first")
        for number in between:
            peer.say(of(A, number))
        peer.offer(b"second")
        # The channel of the first is not that of the second.
        outcome = peer.say(commitment_signed(channel_id))
        assert not outcome.dropped
        assert backed_up(outcome) == (channel_id, b"second")
        assert not peer.has_unfinished()


# Refused ones


def test_a_refused_backup_waits_like_any_other_and_is_not_stored() -> None:
    peer = Peer()
    peer.offer(None)
    assert not peer.has_unfinished()
    assert peer.say(of(A, UPDATE_ADD_HTLC)) == Outcome(served=True)
    assert peer.say(commitment_signed(A)) == Outcome(served=True)
    # And it is over.
    assert peer.say(commitment_signed(A)) == Outcome(served=False)


def test_a_refused_backup_is_dropped_without_a_word() -> None:
    peer = Peer()
    peer.offer(None)
    peer.say(of(A, UPDATE_ADD_HTLC))
    assert peer.say(of(B, UPDATE_ADD_HTLC)) == Outcome(served=False)
    assert peer.say(commitment_signed(A)) == Outcome(served=False)


def test_a_refused_backup_does_not_keep_the_state_of_its_channel_from_being_stored() -> None:
    peer = Peer({A: USED})
    peer.offer(None)
    outcome = peer.say(commitment_signed(A))
    assert outcome == Outcome(True, ChannelUpdate(A, replace(USED, commitments=8), None))


@pytest.mark.parametrize(("first", "second"), [(None, b"good"), (b"good", None)])
def test_of_a_refused_backup_and_another_the_later_one_counts(
    first: bytes | None, second: bytes | None
) -> None:
    peer = Peer()
    peer.offer(first)
    peer.say(of(A, UPDATE_ADD_HTLC))
    peer.offer(second)
    outcome = peer.say(commitment_signed(B))
    assert outcome.served
    assert (outcome.update.blob if outcome.update else None) == second


# Commitments and revocations


def test_every_commitment_and_every_revocation_counts() -> None:
    peer = Peer()
    for number in (1, 2, 3):
        peer.say(commitment_signed(A), revoke_and_ack(A, bytes((number,)) * 32))
    peer.say(commitment_signed(A), commitment_signed(B))
    expected = ChannelState(commitments=4, revocations=3, last_secret=b"\x03" * 32)
    assert peer.state(A) == expected
    assert peer.state(B) == ChannelState(commitments=1)


@pytest.mark.parametrize("number", [n for n in NAMING if n not in (CLOSING_COMPLETE, CLOSING_SIG)])
def test_other_messages_say_nothing_new_of_a_channel(number: int) -> None:
    assert Peer({A: USED}).say(of(A, number)) == Outcome(served=True)


def test_the_state_of_a_channel_with_a_backup_is_kept_up_to_date() -> None:
    peer = Peer({A: USED})
    state = replace(USED, commitments=8)
    assert peer.say(commitment_signed(A)) == Outcome(True, ChannelUpdate(A, state))
    state = replace(state, revocations=7, last_secret=SECRET)
    assert peer.say(revoke_and_ack(A)) == Outcome(True, ChannelUpdate(A, state))
    assert peer.say(commitment_signed(B)) == Outcome(served=False)


def test_the_state_goes_with_the_backup_that_its_message_completes() -> None:
    peer = Peer({A: USED})
    peer.offer(b"new")
    state = replace(USED, revocations=7, last_secret=SECRET)
    assert peer.say(revoke_and_ack(A)) == Outcome(True, ChannelUpdate(A, state, b"new"))


@pytest.mark.parametrize("size", [2, 3, 19, 20])
def test_a_batch_counts_once_with_its_last_message(size: int) -> None:
    peer = Peer({A: USED})
    first, *middle, last = peer.outcomes([start_batch(A, size), *[commitment_signed(A)] * size])
    assert [first, *middle] == [Outcome(served=True)] * size
    assert last.update == ChannelUpdate(A, replace(USED, commitments=8))
    # And it is over.
    outcome = peer.say(commitment_signed(A))
    assert outcome.update == ChannelUpdate(A, replace(USED, commitments=9))


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_batch_completes_a_backup_with_its_last_message(place: int) -> None:
    peer = Peer()
    messages = [start_batch(A, 3), *[commitment_signed(A)] * 3]
    before = peer.outcomes(messages[:place])
    assert before == [Outcome(served=False)] * place
    peer.offer(b"backup")
    *middle, last = peer.outcomes(messages[place:])
    assert middle == [Outcome(served=True)] * (3 - place)
    assert last == Outcome(True, ChannelUpdate(A, ChannelState(commitments=1), b"backup"))


@pytest.mark.parametrize(
    ("size", "number"), [(3, None), (3, REVOKE_AND_ACK), (3, 0), (0, COMMITMENT_SIGNED), (1, 132)]
)
def test_a_batch_of_nothing_known_is_ignored(size: int, number: int | None) -> None:
    # BOLT 2: "MUST ignore the start_batch message and process the following sequentially".
    peer = Peer({A: USED})
    peer.say(start_batch(A, size, number))
    for count in (8, 9, 10):
        outcome = peer.say(commitment_signed(A))
        assert outcome.update == ChannelUpdate(A, replace(USED, commitments=count))


@pytest.mark.parametrize("size", [21, 22, 65535])
@pytest.mark.parametrize("states", [{}, {A: USED}], ids=["without a backup", "with a backup"])
def test_a_batch_of_more_than_20_messages_is_an_error(
    states: Mapping[bytes, ChannelState], size: int
) -> None:
    with pytest.raises(CodecError, match=r"^start_batch: "):
        Peer(states).say(start_batch(A, size))


@pytest.mark.parametrize("number", [UPDATE_ADD_HTLC, REVOKE_AND_ACK, SHUTDOWN])
def test_a_batch_that_was_broken_off_swallows_no_commitment(number: int) -> None:
    peer = Peer({A: USED})
    peer.say(start_batch(A, 3), commitment_signed(A), of(A, number))
    outcome = peer.say(commitment_signed(A))
    assert outcome.update is not None
    assert outcome.update.state.commitments == 8


def test_a_batch_of_one_channel_is_none_of_another() -> None:
    peer = Peer({A: USED, B: USED})
    outcome = peer.say(start_batch(A, 2), commitment_signed(B))
    assert outcome.update == ChannelUpdate(B, replace(USED, commitments=8))


@pytest.mark.parametrize("end", [TX_SIGNATURES, TX_ABORT])
def test_the_commitment_of_an_interactive_transaction_is_no_new_one(end: int) -> None:
    peer = Peer({A: USED, B: USED})
    assert peer.say(of(A, TX_COMPLETE), commitment_signed(A)) == Outcome(served=True)
    # Of another channel it is one.
    outcome = peer.say(commitment_signed(B))
    assert outcome.update == ChannelUpdate(B, replace(USED, commitments=8))
    outcome = peer.say(of(A, end), commitment_signed(A))
    assert outcome.update == ChannelUpdate(A, replace(USED, commitments=8))


def test_the_commitment_of_an_interactive_transaction_completes_a_backup() -> None:
    peer = Peer()
    peer.say(of(A, TX_COMPLETE))
    peer.offer(b"backup")
    outcome = peer.say(commitment_signed(A))
    assert outcome.update == ChannelUpdate(A, ChannelState(), b"backup")


# From when on it was seen


def test_a_channel_seen_from_funding_signed_on_is_seen_whole() -> None:
    peer = Peer()
    peer.say(of(A, 33), of(B, FUNDING_SIGNED))
    assert peer.state(B) == ChannelState(whole=True)
    peer.say(of(B, 36), commitment_signed(B), revoke_and_ack(B), of(B, TX_COMPLETE))
    expected = ChannelState(commitments=1, revocations=1, last_secret=SECRET, whole=True)
    assert peer.state(B) == expected


def test_funding_signed_of_a_channel_with_a_backup_is_stored() -> None:
    peer = Peer()
    peer.offer(b"backup")
    outcome = peer.say(of(A, FUNDING_SIGNED))
    assert outcome.update == ChannelUpdate(A, ChannelState(whole=True), b"backup")
    assert peer.say(of(A, FUNDING_SIGNED)).update is None


@pytest.mark.parametrize("number", [n for n in COMPLETING if n != FUNDING_SIGNED])
def test_a_channel_of_which_something_came_before_funding_signed_is_not_whole(
    number: int,
) -> None:
    peer = Peer()
    peer.say(of(A, number), of(A, FUNDING_SIGNED))
    assert not peer.state(A).whole


@pytest.mark.parametrize("whole", [True, False])
def test_whether_a_channel_is_whole_outlives_the_connection(whole: bool) -> None:
    peer = Peer({A: replace(USED, whole=whole)})
    peer.say(commitment_signed(A), of(A, FUNDING_SIGNED))
    assert peer.state(A).whole == whole


# A state that was lost


def test_of_a_channel_whose_state_was_lost_nothing_is_stored_before_a_new_backup() -> None:
    peer = Peer({A: None})
    # Counts that began in the middle must not pass for the whole.
    for number in (FUNDING_SIGNED, *COMPLETING):
        assert peer.say(of(A, number)) == Outcome(served=True)
    peer.offer(b"backup")
    outcome = peer.say(commitment_signed(A))
    assert backed_up(outcome) == (A, b"backup")
    assert outcome.update is not None
    assert not outcome.update.state.whole
    peer.streams.decided(peer.handed_in, stored=True)
    assert backed_up(peer.say(commitment_signed(A))) == (A, None)


def test_a_new_backup_that_was_not_stored_does_not_bring_back_a_state_that_was_lost() -> None:
    peer = Peer({A: None})
    peer.streams.decided(peer.back_up(A), stored=False)
    assert peer.say(commitment_signed(A)) == Outcome(served=True)


# Closing


@pytest.mark.parametrize("number", [CLOSING_SIGNED, CLOSING_COMPLETE, CLOSING_SIG])
def test_shutdown_and_a_message_about_the_closing_transaction_close_a_channel(number: int) -> None:
    peer = Peer({A: USED})
    outcome = peer.say(of(A, SHUTDOWN))
    assert outcome.update == ChannelUpdate(A, replace(USED, shutdown=True))
    assert not outcome.update.state.closed
    outcome = peer.say(of(A, number))
    assert outcome.update == ChannelUpdate(A, replace(USED, shutdown=True, closing=True))
    assert outcome.update.state.closed
    # The rest of the negotiation is not written again and again.
    assert peer.say(of(A, SHUTDOWN), of(A, number)).update is None


def test_a_closing_message_alone_does_not_close_a_channel() -> None:
    outcome = Peer({A: USED}).say(of(A, CLOSING_SIGNED))
    assert outcome.update == ChannelUpdate(A, replace(USED, closing=True))
    assert not outcome.update.state.closed


@pytest.mark.parametrize("number", [COMMITMENT_SIGNED, REVOKE_AND_ACK])
def test_a_channel_that_goes_on_is_not_closing(number: int) -> None:
    peer = Peer({A: USED})
    peer.say(of(A, SHUTDOWN), of(A, CLOSING_SIGNED))
    outcome = peer.say(of(A, number))
    assert outcome.update is not None
    assert not outcome.update.state.closed
    outcome = peer.say(of(A, CLOSING_SIGNED))
    assert outcome.update is not None
    assert outcome.update.state.closed


# Too short


@pytest.mark.parametrize("number", [STFU, START_BATCH, *OPENING, *NAMING, *COMPLETING])
@pytest.mark.parametrize("states", [{}, {A: USED}], ids=["without a backup", "with a backup"])
def test_a_message_too_short_for_its_channel_id_is_an_error(
    states: Mapping[bytes, ChannelState], number: int
) -> None:
    whole = channel_message(number, A)
    for data in (whole[:2], whole[:3], whole[:-1]):
        with pytest.raises(CodecError, match="too short"):
            Peer(states).say(data)


READ = {"start_batch": start_batch(A, 2, None), "revoke_and_ack": revoke_and_ack(A)}


@pytest.mark.parametrize("name", READ)
def test_a_message_that_a_backup_hangs_on_must_be_whole(name: str) -> None:
    data = READ[name]
    for size in range(34, len(data)):
        with pytest.raises(CodecError, match=f"^{name}: too short"):
            Peer({A: USED}).say(data[:size])
        peer = Peer()
        peer.offer(b"backup")
        with pytest.raises(CodecError, match=f"^{name}: too short"):
            peer.say(data[:size])


@pytest.mark.parametrize("name", READ)
def test_a_message_that_no_backup_hangs_on_need_not_be_whole(name: str) -> None:
    data = READ[name]
    for size in range(34, len(data)):
        assert Peer().say(data[:size]) == Outcome(served=False)


# How many channels


def channel_ids() -> Iterator[bytes]:
    return (number.to_bytes(32, "big") for number in itertools.count(1))


def fill(peer: Peer) -> list[bytes]:
    """Name 100 channels without a backup."""
    ids = list(itertools.islice(channel_ids(), 100))
    for channel_id in ids:
        assert not peer.say(of(channel_id, UPDATE_ADD_HTLC)).served
    return ids


def assert_full(peer: Peer) -> None:
    with pytest.raises(CodecError, match="100 channels"):
        peer.say(of(b"one too many".ljust(32), UPDATE_ADD_HTLC))


@pytest.mark.parametrize("number", [START_BATCH, *OPENING, *NAMING, *COMPLETING])
def test_the_101st_channel_without_a_backup_is_an_error(number: int) -> None:
    peer = Peer()
    ids = fill(peer)
    for channel_id in ids:
        peer.say(of(channel_id, COMMITMENT_SIGNED))
    with pytest.raises(CodecError, match="100 channels"):
        peer.say(of(A, number))


def test_channels_with_a_backup_are_not_limited_here() -> None:
    states = dict.fromkeys(itertools.islice(channel_ids(), 1000, 1300), USED)
    peer = Peer(states)
    fill(peer)
    for channel_id in states:
        assert peer.say(commitment_signed(channel_id)).served
    assert_full(peer)


def test_a_channel_that_gets_a_backup_makes_room_for_another() -> None:
    peer = Peer()
    ids = fill(peer)
    peer.back_up(ids[0])
    assert not peer.say(of(A, UPDATE_ADD_HTLC)).served
    assert_full(peer)
    peer.streams.decided(peer.handed_in, stored=True)
    assert_full(peer)


def test_a_first_backup_that_was_not_stored_makes_no_room() -> None:
    peer = Peer()
    ids = fill(peer)
    number = peer.back_up(ids[0])
    peer.streams.decided(number, stored=False)
    assert_full(peer)


def test_the_101st_channel_is_not_let_in_by_a_refused_backup() -> None:
    peer = Peer()
    fill(peer)
    peer.offer(None)
    assert_full(peer)


def test_a_channel_whose_first_backup_was_not_stored_is_one_without_a_backup() -> None:
    peer = Peer()
    number = peer.back_up(A)
    # As long as that is not known, its state has to follow.
    state = ChannelState(commitments=2)
    assert peer.say(commitment_signed(A)) == Outcome(True, ChannelUpdate(A, state))
    peer.streams.decided(number, stored=False)
    assert peer.say(commitment_signed(A)) == Outcome(served=False)
    # What was seen of it is not forgotten.
    assert peer.state(A) == ChannelState(commitments=3)


def test_a_later_backup_that_was_not_stored_leaves_the_one_before() -> None:
    for peer in (Peer({A: USED}), Peer()):
        if not peer.states:
            peer.streams.decided(peer.back_up(A), stored=True)
        peer.streams.decided(peer.back_up(A), stored=False)
        outcome = peer.say(commitment_signed(A))
        assert outcome.served
        assert outcome.update is not None


@pytest.mark.parametrize("stored", list(itertools.product([True, False], repeat=3)))
def test_one_of_several_backups_that_is_stored_is_enough(stored: tuple[bool, ...]) -> None:
    peer = Peer()
    numbers = [peer.back_up(A) for _ in stored]
    for number, was_stored in zip(numbers, stored, strict=True):
        # Until the last one is decided, the channel may have a backup.
        assert peer.say(commitment_signed(A)).served
        peer.streams.decided(number, stored=was_stored)
    assert peer.say(commitment_signed(A)).served == any(stored)


def test_of_several_backups_some_may_be_refused() -> None:
    peer = Peer()
    numbers = [peer.back_up(channel_id) for channel_id in (A, B, A, B, C)]
    peer.streams.refused([numbers[0], numbers[1], numbers[3]])
    # Of A one is still on its way.
    assert peer.say(commitment_signed(A)).served
    assert not peer.say(commitment_signed(B)).served
    peer.streams.decided(numbers[-1], stored=True)
    assert peer.say(commitment_signed(A)).served
    assert not peer.say(commitment_signed(B)).served
    assert peer.say(commitment_signed(C)).served


def test_a_refused_first_backup_makes_no_room() -> None:
    peer = Peer()
    ids = fill(peer)
    number = peer.back_up(ids[0])
    peer.streams.refused([number])
    peer.streams.decided(number, stored=True)
    assert_full(peer)


@pytest.mark.parametrize("stored", [True, False])
def test_a_decision_is_about_all_backups_up_to_its_number(stored: bool) -> None:
    peer = Peer()
    peer.back_up(A)
    last = peer.back_up(B)
    peer.back_up(C)
    peer.streams.decided(last, stored=stored)
    assert peer.say(commitment_signed(A)).served == stored
    assert peer.say(commitment_signed(B)).served == stored
    assert peer.say(commitment_signed(C)).served


# Every order of messages, against a model

OFFER, REFUSED, BATCH, UNKNOWN = "offer", "refused", -1, -2
Letter = str | tuple[bytes, int]
"""An update_channel_backup, or a channel and the type of its message.

BATCH is a whole batch, UNKNOWN a message that is not understood.
"""


def messages_of(letter: tuple[bytes, int], place: int) -> list[bytes]:
    channel_id, number = letter
    if number == BATCH:
        return [start_batch(channel_id, 2), *[commitment_signed(channel_id)] * 2]
    if number == REVOKE_AND_ACK:
        return [revoke_and_ack(channel_id, secret_at(place))]
    return [of(channel_id, number)]


def secret_at(place: int) -> bytes:
    return bytes((place + 1,)) * 32


def blob_at(place: int) -> bytes:
    return b"backup %d" % place


def state_behind(letters: Sequence[Letter], channel_id: bytes, start: ChannelState) -> ChannelState:
    """The state of a channel behind these letters."""
    own = [
        (place, letter[1])
        for place, letter in enumerate(letters)
        if not isinstance(letter, str) and letter[0] == channel_id
    ]
    numbers = [number for _, number in own]

    def is_new(place: int) -> bool:
        """Whether a commitment_signed does not belong to an interactive transaction."""
        turns = [n for p, n in own if p < place and n in (TX_COMPLETE, TX_SIGNATURES, TX_ABORT)]
        return turns[-1:] != [TX_COMPLETE]

    revoked = [place for place, number in own if number == REVOKE_AND_ACK]
    told = [n for n in numbers if n in (*COMPLETING, BATCH)]
    turned = [n for n in told if n not in (FUNDING_SIGNED, SHUTDOWN)]
    return ChannelState(
        start.commitments + sum(n in (COMMITMENT_SIGNED, BATCH) and is_new(p) for p, n in own),
        start.revocations + len(revoked),
        secret_at(revoked[-1]) if revoked else start.last_secret,
        start.whole or (start == ChannelState() and told[:1] == [FUNDING_SIGNED]),
        start.shutdown or SHUTDOWN in numbers,
        turned[-1] == CLOSING_SIGNED if turned else start.closing,
    )


def completes(letter: tuple[bytes, int]) -> bool:
    return letter[1] in (*COMPLETING, BATCH)


def fate_of_offer(
    letters: Sequence[Letter], letter: tuple[bytes, int]
) -> tuple[bool, bool, bytes | None]:
    """Of the backup on offer behind some letters, when another comes: whether the letter belongs
    to it, whether the letter drops it, and its blob when it is stored."""
    offers = [place for place, other in enumerate(letters) if isinstance(other, str)]
    if not offers:
        return False, False, None
    between = [other for other in letters[offers[-1] + 1 :] if not isinstance(other, str)]
    if len({other[0] for other in between}) > 1 or any(map(completes, between)):
        return False, False, None
    good = letters[offers[-1]] == OFFER
    belongs = all(other[0] == letter[0] for other in between)
    stored = good and belongs and completes(letter)
    return belongs, good and not belongs, blob_at(offers[-1]) if stored else None


@dataclass
class Model:
    """What each message leads to, found by looking back at those before it."""

    states: Mapping[bytes, ChannelState]
    letters: list[Letter] = field(default_factory=list)
    stored: set[bytes] = field(default_factory=set)

    def take(self, letter: tuple[bytes, int]) -> tuple[bool, ChannelUpdate | None, bool]:
        """Whether the message is served, what is to be stored, whether a backup is dropped."""
        channel_id = letter[0]
        start = self.states.get(channel_id, ChannelState())
        before = state_behind(self.letters, channel_id, start)
        state = state_behind([*self.letters, letter], channel_id, start)
        held = channel_id in self.states or channel_id in self.stored
        belongs, dropped, blob = fate_of_offer(self.letters, letter)
        self.letters.append(letter)
        update = None
        if blob is not None:
            self.stored.add(channel_id)
        if blob is not None or (held and state != before):
            update = ChannelUpdate(channel_id, state, blob)
        return belongs or held, update, dropped


def assert_as_model(letters: Sequence[Letter], states: Mapping[bytes, ChannelState]) -> None:
    peer, model = Peer(states), Model(states)
    for place, letter in enumerate(letters):
        if isinstance(letter, str):
            peer.offer(blob_at(place) if letter == OFFER else None)
            model.letters.append(letter)
            continue
        served, update, dropped = model.take(letter)
        if letter[1] == UNKNOWN:
            assert bool(peer.streams.name(letter[0]).dropped) == dropped, letters[: place + 1]
            continue
        outcomes = peer.outcomes(messages_of(letter, place))
        assert {outcome.served for outcome in outcomes} == {served}, letters[: place + 1]
        assert outcomes[-1].update == update, letters[: place + 1]
        assert all(outcome.update is None for outcome in outcomes[:-1])
        assert any(outcome.dropped for outcome in outcomes) == dropped, letters[: place + 1]


each_start = pytest.mark.parametrize(
    "states", [{}, {A: USED}], ids=["nothing is stored", "a backup of one channel is stored"]
)


@each_start
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_every_short_stream_leads_to_what_the_model_says(
    states: Mapping[bytes, ChannelState], length: int
) -> None:
    letters: list[Letter] = [
        OFFER,
        REFUSED,
        (A, UPDATE_ADD_HTLC),
        (A, COMMITMENT_SIGNED),
        (A, REVOKE_AND_ACK),
        (B, UNKNOWN),
        (B, BATCH),
    ]
    for stream in itertools.product(letters, repeat=length):
        assert_as_model(stream, states)


@each_start
def test_every_order_of_some_messages_leads_to_what_the_model_says(
    states: Mapping[bytes, ChannelState],
) -> None:
    letters: list[Letter] = [
        OFFER,
        OFFER,
        (A, UPDATE_ADD_HTLC),
        (A, COMMITMENT_SIGNED),
        (A, BATCH),
        (B, UPDATE_ADD_HTLC),
        (B, REVOKE_AND_ACK),
    ]
    for stream in itertools.permutations(letters):
        assert_as_model(stream, states)


def streams(*numbers: int) -> st.SearchStrategy[list[Letter]]:
    """Long ones with messages of these types."""
    letters = st.sampled_from([OFFER, OFFER, REFUSED]) | st.tuples(
        st.sampled_from([A, B, C]), st.sampled_from(numbers)
    )
    return st.lists(letters, max_size=30)


USUAL = (UPDATE_ADD_HTLC, COMMITMENT_SIGNED, REVOKE_AND_ACK, BATCH, UNKNOWN)


@each_start
@settings(quick, max_examples=500)
# Not both: what is made interactively has no funding_signed.
@given(
    letters=streams(*USUAL, FUNDING_SIGNED, SHUTDOWN, CLOSING_SIGNED)
    | streams(*USUAL, TX_COMPLETE, TX_SIGNATURES, TX_ABORT, SHUTDOWN, CLOSING_SIGNED)
)
def test_every_long_stream_leads_to_what_the_model_says(
    states: Mapping[bytes, ChannelState], letters: list[Letter]
) -> None:
    assert_as_model(letters, states)
