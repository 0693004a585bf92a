"""What a conversation is held to: PROTOCOL.md said once more, apart from the session.

The books are told of every message that the peer says and of every decision of the store, and
look at every action of the session. They know

- what was given back, in which order, before anything else was said;
- of each update whether it is durable, so that no `pong` confirms more than that unless a warning
  that begins with `storage:` has come since the one before, and that no such warning comes for
  nothing;
- what may be said at all: `error` for the temporary channel id of an opening and for nothing
  else, `warning` without a channel id, and after the end nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from peerstore.session import (
    MAX_REPORTS,
    Action,
    Close,
    Forgo,
    Report,
    Retrieve,
    Send,
    Store,
    Stored,
)
from peerstore.types import BackupKind
from peerstore.wire.messages import (
    ALL_CHANNELS,
    ChannelReestablish,
    ErrorMessage,
    Init,
    Message,
    PeerStorageRetrieval,
    Ping,
    Pong,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
    WarningMessage,
    decode_message,
)
from tests.fuzz import reference

PEER_STORAGE, INIT, PING, PONG, NODE_BACKUP, CHANNEL_BACKUP, START_BATCH = (
    7,
    16,
    18,
    19,
    20,
    120,
    127,
)
UPDATES = (PEER_STORAGE, NODE_BACKUP, CHANNEL_BACKUP)
COMPLETING = (35, 38, 39, 132, 133)
LARGEST_BACKUP = 32000
PATIENCE = 2.0
"""Seconds after which a pong waits for the store no longer."""

FEW_BYTES = 1 << 15
"""Bytes of pongs below which none may be late for the sake of their number."""


@dataclass(slots=True)
class Update:
    """An update of the peer; `interval` is the number of pings that were to be answered before."""

    interval: int
    blob: bytes
    sequence: int = 0
    durable: bool = False
    channel_id: bytes = b""
    replaced_by: Update | None = None

    @property
    def safe(self) -> bool:
        """Whether it, or what has taken its place, is durable."""
        update = self
        while update.replaced_by is not None:
            update = update.replaced_by
        return update.durable


@dataclass
class Books:
    """See the module's docstring."""

    stored: Stored
    initiator: bool
    refusal: str = ""
    wants: bool = False
    met: bool = False
    """Whether the peer's `init` has come and was right."""
    init_said: bool = False
    closed: bool = False
    replays: deque[Retrieve] = field(default_factory=deque)
    wanted: Retrieve | None = None
    given: bytes | None = None
    updates: list[Update] = field(default_factory=list)
    undecided: deque[Update] = field(default_factory=deque)
    offer: Update | None = None
    replaced: list[Update] = field(default_factory=list)
    """What the offer has taken the place of."""
    pings: list[tuple[int, float]] = field(default_factory=list)
    pongs: int = 0
    warned: bool = False
    sequence: int = 0
    our_ping: bool = False
    logged: int = 0
    batches: dict[bytes, int] = field(default_factory=dict)
    shown: bool = False
    """Whether our `init` carried the node backup."""

    # What the peer says

    def heard(self, data: bytes, actions: Sequence[Action], now: float) -> None:
        """A message, and what the session made of it."""
        number = int.from_bytes(data[:2], "big") if len(data) >= 2 else -1
        if not self.met:
            self.first_message(number, data, actions)
            return
        closes = any(isinstance(action, Close) for action in actions)
        readable = self.readable(number, data)
        if not readable:
            assert closes, "what can't be read ends the conversation"
        elif number not in reference.CHANNEL_MESSAGES:
            assert not closes, "a good message ends no conversation"
        stores = deque(action for action in actions if isinstance(action, Store))
        if readable and not closes:
            if number == PONG:
                self.our_ping = False
            elif number in UPDATES:
                self.update(number, data, stores)
            elif number == PING:
                self.ping(data, now)
            elif number in range(32, 256) or number == 2:
                self.channel_message(number, data, stores)
        self.check(actions, stores, number, data, readable=readable)

    def readable(self, number: int, data: bytes) -> bool:
        """Whether a message behind `init` may be answered with anything but the end."""
        if number in reference.CHANNEL_MESSAGES:
            return len(reference.channel_id(data)) == 32
        if number in range(256, 266) and number not in (261, 263):
            return True
        if number in reference.LAYOUTS:
            return number != INIT and reference.parse(data) is not None
        return number % 2 == 1 and number > 0

    def first_message(self, number: int, data: bytes, actions: Sequence[Action]) -> None:
        parsed = reference.parse(data) if number == INIT else None
        features, good = 0, False
        if parsed is not None:
            (low, high), tlvs = parsed
            features = int.from_bytes(low, "big") | int.from_bytes(high, "big")
            chains = tlvs.get(1)
            good = reference.features_are_good(features) and (
                chains is None or CHAIN in _ids(chains)
            )
        closes = any(isinstance(action, Close) for action in actions)
        assert closes != good, "a good init opens the conversation, anything else ends it"
        if good:
            self.met = True
            self.wants = bool(features >> 40 & 3)
            self.replays.extend(self.expected_replays())
        self.check(actions, deque(), number, data, readable=good)
        if number != INIT:
            assert not any(isinstance(action, Send) for action in actions), "close silently"

    def expected_replays(self) -> Iterable[Retrieve]:
        if self.stored.node_backup and self.wants and not self.init_said:
            yield Retrieve(BackupKind.NODE_BACKUP)
        if self.stored.peer_storage:
            yield Retrieve(BackupKind.PEER_STORAGE)
        if self.wants:
            for channel_id, state in sorted(self.stored.channels.items()):
                if state is not None:
                    yield Retrieve(BackupKind.CHANNEL_BACKUP, channel_id)

    def update(self, number: int, data: bytes, stores: deque[Store]) -> None:
        parsed = reference.parse(data)
        assert parsed is not None
        update = Update(len(self.pings), parsed[0][0])
        self.updates.append(update)
        proposal = number in (NODE_BACKUP, CHANNEL_BACKUP)
        refused = bool(self.refusal) or (
            proposal and (not self.wants or len(update.blob) > LARGEST_BACKUP)
        )
        if number == CHANNEL_BACKUP:
            self.replaced = [] if self.offer is None or refused else [*self.replaced, self.offer]
            for before in self.replaced:
                before.replaced_by = update
            self.offer = None if refused else update
        elif not refused:
            kind = BackupKind.PEER_STORAGE if number == PEER_STORAGE else BackupKind.NODE_BACKUP
            store = stores.popleft()
            assert (store.kind, store.channel_id, store.blob) == (kind, b"", update.blob)
            self.hand_in(store, update)

    def hand_in(self, store: Store, update: Update | None) -> None:
        self.sequence += 1
        assert store.sequence == self.sequence
        if update is None:
            # Nothing that a pong confirms, but the peer may be told that it is not stored.
            update = Update(-1, b"")
            self.updates.append(update)
        update.sequence = store.sequence
        self.undecided.append(update)

    def ping(self, data: bytes, now: float) -> None:
        size = int.from_bytes(data[2:4], "big")
        if size < 65532:
            self.pings.append((size, now))

    def channel_message(self, number: int, data: bytes, stores: deque[Store]) -> None:
        channel_id = reference.channel_id(data)
        if len(channel_id) < 32:
            return
        if number == START_BATCH:
            self.start_batch(channel_id, data)
            return
        if number != 2:
            self.name(channel_id)
        if number not in reference.CHANNEL_MESSAGES:
            return
        whole = self.completes(number, channel_id, data)
        offer = self.offer
        if whole and offer is not None and offer.channel_id == channel_id:
            self.offer, self.replaced = None, []
            if not self.refusal:
                store = stores.popleft()
                assert store.kind is BackupKind.CHANNEL_BACKUP
                assert (store.channel_id, store.blob) == (channel_id, offer.blob)
                self.hand_in(store, offer)
        elif stores:
            # What is said of a channel that has a backup.
            store = stores.popleft()
            assert (store.kind, store.channel_id) == (BackupKind.CHANNEL_BACKUP, channel_id)
            assert store.blob is None
            self.hand_in(store, None)

    def start_batch(self, channel_id: bytes, data: bytes) -> None:
        parsed = reference.parse(data)
        if parsed is not None:
            size = int.from_bytes(parsed[0][1], "big")
            if size > 1 and parsed[1].get(1) == b"\x00\x84":
                self.batches[channel_id] = size

    def completes(self, number: int, channel_id: bytes, data: bytes) -> bool:
        """Whether a channel message completes an update; of a batch the last does."""
        left = self.batches.pop(channel_id, 0)
        if number == 132 and left > 1:
            self.batches[channel_id] = left - 1
            return False
        return number in COMPLETING and (number != 133 or reference.parse(data) is not None)

    def name(self, channel_id: bytes) -> None:
        """A channel is named: the offer is for it, or is lost with what it has replaced."""
        offer = self.offer
        if offer is None:
            return
        if not offer.channel_id:
            offer.channel_id = channel_id
            for update in self.replaced:
                if update.channel_id not in (b"", channel_id):
                    update.replaced_by = None
        elif offer.channel_id != channel_id:
            self.offer, self.replaced = None, []

    # What the store says

    def decided(self, sequence: int, refused: Iterable[int], *, stored: bool) -> None:
        """Every update up to this one is stored but the refused ones, or none is."""
        lost = set(refused)
        while self.undecided and self.undecided[0].sequence <= sequence:
            update = self.undecided.popleft()
            update.durable = stored and update.sequence not in lost

    # What the session does

    def check(
        self,
        actions: Sequence[Action],
        stores: deque[Store] | None = None,
        number: int = -1,
        data: bytes = b"",
        *,
        readable: bool = True,
    ) -> None:
        """Look at what the session wants done."""
        assert not stores, "nothing is stored but what the peer has sent"
        for action in actions:
            assert not self.closed or isinstance(action, Report | Forgo), "nothing behind the end"
            if isinstance(action, Send):
                self.said(decode_message(action.message), number, data, readable=readable)
            elif isinstance(action, Retrieve):
                assert self.wanted is None
                assert self.replays.popleft() == action
                self.wanted = action
            elif isinstance(action, Close):
                self.closed = True
            elif isinstance(action, Report):
                self.logged += action.logged
                assert self.logged <= MAX_REPORTS + 2
            elif isinstance(action, Forgo):
                assert self.shown
            elif isinstance(action, Store):
                assert stores is not None, "an update comes with a message"

    def said(self, message: Message, number: int, data: bytes, *, readable: bool) -> None:
        if isinstance(message, Init):
            self.said_init(message)
            return
        assert self.init_said, "init comes first"
        if isinstance(message, WarningMessage):
            self.said_warning(message, number, readable=readable)
            return
        assert self.met, "nothing but init before the peer's init"
        if isinstance(message, PeerStorageRetrieval | ChannelReestablish):
            self.said_replay(message)
            return
        assert self.wanted is None, "what is stored is given back before anything else"
        assert not self.replays
        if isinstance(message, Pong):
            self.said_pong(message)
        elif isinstance(message, Ping):
            assert not self.our_ping, "one ping in flight"
            self.our_ping = True
        elif isinstance(message, ErrorMessage):
            assert number in reference.OPENING
            assert message.channel_id == reference.channel_id(data) != ALL_CHANNELS
        else:
            assert isinstance(message, ReplyChannelRange | ReplyShortChannelIdsEnd)
            assert number == (263 if isinstance(message, ReplyChannelRange) else 261)
            assert message.chain_hash == data[2:34]

    def said_init(self, init: Init) -> None:
        assert not self.init_said, "one init"
        self.init_said = True
        if init.node_backup is not None:
            assert self.wants, "TLV 2 is even"
            assert not self.initiator
            assert self.wanted == Retrieve(BackupKind.NODE_BACKUP)
            assert init.node_backup == self.given
            self.shown = True
        elif self.wanted is not None:
            assert self.given is None

    def said_replay(self, message: PeerStorageRetrieval | ChannelReestablish) -> None:
        assert self.wanted is not None
        assert self.given is not None
        if isinstance(message, PeerStorageRetrieval):
            assert self.wanted.kind is BackupKind.PEER_STORAGE
            assert message.blob == self.given
        else:
            assert self.wanted == Retrieve(BackupKind.CHANNEL_BACKUP, message.channel_id)
            assert message.channel_backup == self.given

    def said_warning(self, warning: WarningMessage, number: int, *, readable: bool) -> None:
        assert warning.channel_id == ALL_CHANNELS
        if warning.text.startswith("storage: "):
            self.warned = True
            unread = number in UPDATES and not readable
            assert unread or any(not update.safe for update in self.updates), (
                "a warning for nothing"
            )

    def said_pong(self, pong: Pong) -> None:
        size, _ = self.pings[self.pongs]
        assert len(pong.ignored) == size
        unsafe = [u for u in self.updates if u.interval == self.pongs and not u.safe]
        assert self.warned or not unsafe, "a pong confirms what is not durable"
        self.pongs += 1
        self.warned = False

    def check_time(self, now: float) -> None:
        """After a tick: no pong has waited too long."""
        if not self.closed and sum(size for size, _ in self.pings) < FEW_BYTES:
            for _, received in self.pings[self.pongs :]:
                assert received + PATIENCE > now, "a pong is late"


def _ids(data: bytes) -> list[bytes]:
    return [data[start : start + 32] for start in range(0, len(data), 32)]


CHAIN = bytes.fromhex("0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206")[::-1]
"""regtest's."""
