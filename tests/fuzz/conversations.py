"""The target of whole conversations: a session with a store behind it, both played from an input.

The input says what the peer has stored, what it says, when the store decides and how, what the
policy has become, how much time passes and how it all ends. books.py says what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peerstore.confirmation import MAX_INTERVALS, MAX_UNDECIDED
from peerstore.errors import PeerError
from peerstore.session import Action, Close, Retrieve, Session, State, Stored
from peerstore.streams import MAX_CHANNELS
from peerstore.types import ChannelState
from peerstore.wire.features import OURS
from peerstore.wire.messages import (
    ChannelReestablish,
    ErrorMessage,
    Init,
    PeerStorage,
    PeerStorageRetrieval,
    Ping,
    Pong,
    QueryChannelRange,
    QueryShortChannelIds,
    RevokeAndAck,
    StartBatch,
    UpdateChannelBackup,
    UpdateNodeBackup,
    WarningMessage,
)
from tests.fuzz.books import CHAIN, Books
from tests.fuzz.source import Source, edited

MOST_STEPS = 400
CHANNELS = [bytes((number,)) * 32 for number in range(4)]
HALF_OF_INIT = 7.5
"""Seconds after which our `init` goes out without TLV 2."""
CHOSEN = [CHANNELS[number] for number in (1, 1, 1, 1, 2, 2, 3, 0)]
OTHER_CHAIN = bytes(32)
BATCHES = (0, 1, 2, 2, 2, 3, 20, 21)
POINT = b"\x02" + bytes(32)
SIZES = (0, 1, 3, 40, 40, 40, 40, 200, 200, 32000, 32001, 65531)
PONGS = (0, 0, 0, 1, 4, 100, 65531, 65532, 65535)
TIMES = (0.0, 0.5, 0.5, 1.0, 2.0, 2.0, 7.5, 15.0, 60.0, 120.0)
COMPLETING = (35, 38, 39, 132, 133)
OTHERS = (2, 32, 33, 34, 36, 40, 41, 64, 65, 66, 70, 71, 72, 74, 77, 80, 128, 130, 131, 134, 136)
FEATURES = (OURS, OURS | 1 << 41, OURS | 1 << 41, OURS | 3 << 40, OURS | 1 << 40, 0, 1 << 42)


class Conversation:
    """A session, the books, and what a peer and a store can do to it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        flags = source.byte()
        states = (ChannelState(), ChannelState(3, 2, b"\x07" * 32), None)
        channels = {c: states[source.below(3)] for c in CHANNELS[1 : 1 + source.below(4)]}
        self.stored = Stored(bool(flags & 1), bool(flags & 2), channels)
        self.books = Books(self.stored, initiator=bool(flags & 4))
        self.books.refusal = "not served" if flags & 24 == 24 else ""
        self.now = 0.0
        self.blobs = 0
        self.session = Session(
            chain_hash=CHAIN,
            now=self.now,
            stored=self.stored,
            refusal=self.books.refusal,
            initiator=self.books.initiator,
        )
        self.hangs_up = bool(flags & 32)
        self.carry_out(self.session.start())
        self.waits = self.stored.node_backup and not self.books.initiator
        assert self.books.init_said != self.waits, "TLV 2 waits for the peer's init, else nobody"

    def carry_out(self, actions: Sequence[Action]) -> None:
        """Look at actions that no message has led to."""
        self.books.check(actions)

    # What the peer does

    def say(self, data: bytes) -> None:
        """One message."""
        if not self.session.ready:
            try:
                self.session.receive(data, self.now)
            except RuntimeError:
                return
            raise AssertionError("a message is taken by a session that is not ready")
        self.books.heard(data, self.session.receive(data, self.now), self.now)
        self.check_bounds()

    def blob(self) -> bytes:
        """One that there was not before."""
        self.blobs += 1
        return (self.blobs.to_bytes(4, "big") * 16384)[: self.source.choice(SIZES)]

    def message(self) -> bytes:
        """A message that can be read."""
        source = self.source
        channel_id = source.choice(CHOSEN)
        kind = source.below(24)
        if kind < 3:
            return PeerStorage(self.blob()).encode()
        if kind == 3:
            return UpdateNodeBackup(self.blob()).encode()
        if kind < 6:
            return UpdateChannelBackup(self.blob()).encode()
        if kind < 9:
            return Ping(source.choice(PONGS)).encode()
        if kind < 13:
            number = source.choice(COMPLETING)
            if number == 133:
                return RevokeAndAck(channel_id, bytes((source.byte(),)) * 32, POINT).encode()
            return number.to_bytes(2, "big") + channel_id
        if kind < 16:
            number = source.choice(OTHERS)
            head = CHAIN if number in (32, 64) else b""
            return number.to_bytes(2, "big") + head + channel_id + source.take(source.below(9))
        if kind < 18:
            return StartBatch(
                channel_id, source.choice(BATCHES), source.choice((None, 132))
            ).encode()
        if kind == 18:
            return Pong(bytes(source.below(9))).encode()
        return self.rare_message(channel_id)

    def rare_message(self, channel_id: bytes) -> bytes:
        source = self.source
        kind = source.below(9)
        if kind == 0 and self.rarely():
            return Init(OURS, (CHAIN,)).encode()
        if kind < 3:
            report = WarningMessage if kind == 1 else ErrorMessage
            return report(channel_id, source.take(source.below(40))).encode()
        if kind == 3:
            return QueryChannelRange(CHAIN, 5, 70000).encode()
        if kind == 4:
            return QueryShortChannelIds(CHAIN, b"\x00").encode()
        if kind == 5:
            return PeerStorageRetrieval(b"ours").encode()
        if kind == 6:
            return ChannelReestablish(channel_id, 1, 0, bytes(32), POINT).encode()
        if kind == 7:  # gossip, and what nobody knows
            number = source.choice((256, 257, 258, 265, 513, 39409, 137, 255, 3))
            return number.to_bytes(2, "big") + source.take(source.below(80))
        # Many channels, far more than may be named.
        number = source.choice((128, 132, 36))
        return number.to_bytes(2, "big") + b"\xcc" * 30 + source.take(2).ljust(2, b"\x00")

    def say_init(self) -> None:
        source = self.source
        chains = source.choice(((CHAIN,), (CHAIN,), None, (OTHER_CHAIN, CHAIN)))
        if self.rarely():
            chains = (OTHER_CHAIN,)
        self.say(Init(source.choice(FEATURES), chains).encode())

    def rarely(self) -> bool:
        """Whether to do what most likely ends the conversation."""
        return self.source.byte() > 230

    def say_message(self) -> None:
        self.say(self.message())

    def say_what_ends_it(self) -> None:
        """Most likely."""
        if self.rarely():
            self.source.choice((self.say_changed, self.say_anything, self.say_init))()
        else:
            self.say_message()

    def say_changed(self) -> None:
        data = self.message()
        for _ in range(1 + self.source.below(2)):
            data = edited(data, self.source)
        self.say(data)

    def say_anything(self) -> None:
        self.say(self.source.take(self.source.below(90)))

    # What the store does

    def give_back(self) -> None:
        if self.books.wanted is None:
            return
        self.books.given = None if self.source.byte() % 8 == 0 else self.blob()[:32000]
        wanted = self.books.wanted
        actions = list(self.session.retrieved(self.books.given))
        # What is wanted next comes behind what was read.
        following = next((n for n, a in enumerate(actions) if isinstance(a, Retrieve)), None)
        self.carry_out(actions[:following])
        assert self.books.wanted is wanted
        self.books.wanted = None
        if following is not None:
            self.carry_out(actions[following:])

    def decide(self) -> None:
        books = self.books
        if not books.undecided:
            return
        last = books.undecided[self.source.below(len(books.undecided))].sequence
        how = self.source.byte() % 8
        pending = [u.sequence for u in books.undecided if u.sequence <= last]
        if how == 0:
            books.decided(last, (), stored=False)
            self.carry_out(self.session.not_stored(last, "the disk is full", self.now))
            return
        refused = [number for number in pending if how == 1 and self.source.byte() % 2]
        if refused:
            self.session.refused(refused, "the peer has too much")
        books.decided(last, refused, stored=True)
        self.carry_out(self.session.stored(last, self.now))

    # What else happens

    def pass_time(self) -> None:
        self.now += self.source.choice(TIMES)
        self.tick()

    def pass_time_to_the_deadline(self) -> None:
        deadline = self.session.next_deadline()
        if deadline < float("inf"):
            self.now = max(self.now, deadline)
            self.tick()

    def tick(self) -> None:
        self.carry_out(self.session.tick(self.now))
        self.books.check_time(self.now)
        if not self.books.met and not self.books.closed:
            assert self.books.init_said == (not self.waits or self.now >= HALF_OF_INIT)
        assert self.session.next_deadline() > self.now

    def hear_bytes(self) -> None:
        (self.session.heard if self.source.byte() % 2 else self.session.drained)(self.now)

    def change_policy(self) -> None:
        self.session.refusal = self.books.refusal = self.source.choice(("", "", "denied"))

    def check_bounds(self) -> None:
        """What grows with the messages of a peer stays small."""
        session = self.session
        assert len(session._confirmations._intervals) <= MAX_INTERVALS + 1
        channels = len(session._streams._channels)
        assert channels <= MAX_CHANNELS + len(self.stored.channels) + self.blobs
        assert len(self.books.undecided) <= MAX_UNDECIDED + 1
        assert len(session._told_channels) <= 2 * channels

    def finish(self) -> None:
        """Have the store decide on all, see every ping answered, and end."""
        for _ in range(20):
            self.give_back()
        books = self.books
        if books.undecided:
            last = books.undecided[-1].sequence
            books.decided(last, (), stored=True)
            self.carry_out(self.session.stored(last, self.now))
        for _ in range(2 * MAX_INTERVALS):
            if books.closed or books.pongs == len(books.pings):
                break
            self.session.heard(self.now)
            self.pass_time_to_the_deadline()
        assert books.closed or books.pongs == len(books.pings), "a ping has no pong"
        end = self.session.end(self.now, hung_up=self.hangs_up)
        assert not any(isinstance(action, Close) for action in end)
        self.carry_out(end)
        self.check_silence()

    def check_silence(self) -> None:
        """Behind the end there is nothing."""
        session = self.session
        assert session.state is State.CLOSED
        assert not session.ready
        session.refused([1], "too late")
        assert not session.stored(self.books.sequence, self.now)
        assert not session.not_stored(self.books.sequence, "too late", self.now)
        assert not session.retrieved(b"too late")
        assert not session.tick(self.now + 1000)
        assert not session.end(self.now, hung_up=True)
        assert session.next_deadline() == float("inf")


STEPS: Sequence[Callable[[Conversation], None]] = (
    *(Conversation.say_message,) * 9,
    *(Conversation.say_what_ends_it,) * 3,
    *(Conversation.decide,) * 3,
    Conversation.pass_time,
    Conversation.hear_bytes,
    Conversation.change_policy,
    Conversation.pass_time_to_the_deadline,
    *(Conversation.give_back,) * 2,
)


def conversations(data: bytes) -> None:
    """One conversation."""
    source = Source(data)
    conversation = Conversation(source)
    if source.byte() % 16:
        # Most begin as they should, or there would be no more to see.
        if source.byte() % 8 == 0:
            conversation.pass_time()
        conversation.say_init()
        for _ in range(5):
            conversation.give_back()
    for _ in range(MOST_STEPS):
        if source.ended or conversation.books.closed:
            break
        source.choice(STEPS)(conversation)
    try:
        conversation.finish()
    except PeerError as error:
        raise AssertionError(f"{error!r} has escaped") from error
