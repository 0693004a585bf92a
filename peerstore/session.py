"""One peer's conversation, sans-I/O: a message in, actions out (BOLT 1).

The session works over any ordered stream of messages of one authenticated peer. It is told of
messages (`receive`), of what became of its requests (`retrieved`, `stored`, `not_stored`) and of
time (`tick`), and each time it hands back the actions that follow, in the order in which they
have to be carried out. It knows nothing of sockets, BOLT 8 or the database.

States:

    INIT    our `init` is out, the peer's has not come
    REPLAY  both are there; what is stored for the peer is being read, `receive` must wait
    OPEN    the peer has been given what it has here; its messages are served
    CLOSED  nothing more is said or taken

Confirmation. Neither storage proposal acknowledges an update, so a `pong` does: it says that
every update received since the pong before it is durable, unless a warning that begins with
`storage:` came in between. The stretch between two pings is an interval here; pongs leave in the
order of their pings, each with its interval's warning before it. A peer needs to know nothing of
this to be served well.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peerstore.errors import CodecError, FeatureError
from peerstore.types import BackupKind
from peerstore.wire import features
from peerstore.wire.messages import (
    ALL_CHANNELS,
    CHANNEL_MESSAGES,
    PONG_LIMIT,
    ErrorMessage,
    Init,
    PeerStorage,
    PeerStorageRetrieval,
    Ping,
    Pong,
    QueryChannelRange,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
    WarningMessage,
    channel_id_of,
    decode_message,
    message_type,
)

COMMIT_TIMEOUT = 2.0
"""Seconds after which a pong no longer waits for the store, and a warning says so."""

MAX_CHANNELS = 100
"""Channels that one connection may name before it is closed."""

MAX_REPORTS = 20
"""Things to be told to the operator of one connection; a peer must not fill the log."""

MAX_INTERVALS = 32
"""Pings that may wait for the store before the peer is read no further."""

_GOSSIP = range(256, 266)


class State(enum.Enum):
    """See the module's docstring."""

    INIT = enum.auto()
    REPLAY = enum.auto()
    OPEN = enum.auto()
    CLOSED = enum.auto()


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: for the peer's `init`, and of silence before our ping and before giving up."""

    init: float = 15.0
    ping: float = 60.0
    idle: float = 120.0


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message, type included."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Read what is stored for the peer and call `retrieved`."""


@dataclass(frozen=True, slots=True)
class Store:
    """Store a backup and call `stored` or `not_stored` with this or a later sequence number."""

    sequence: int
    kind: BackupKind
    channel_id: bytes
    blob: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """Something the operator should see: an event's name for the log and its details."""

    event: str
    details: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Close:
    """Send what was said before, then close; the session is over."""

    reason: str


Action = Send | Retrieve | Store | Report | Close


@dataclass(slots=True)
class _Interval:
    """The updates between two pings, and the pong that waits for them."""

    last: int
    """Sequence number of the newest update up to the end of the interval."""
    num_pong_bytes: int = -1
    """-1 until the ping that ends the interval has come."""
    deadline: float = float("inf")
    failure: str = ""
    warned: bool = False


class Session:
    """See the module's docstring.

    `offered` is our feature vector, `chain_hash` our one chain, `remote_addr` the address
    descriptor to echo to the peer or None. Times are seconds on any clock that never goes back.
    """

    __slots__ = (
        "_actions",
        "_chain_hash",
        "_channels",
        "_heard",
        "_intervals",
        "_offered",
        "_opened",
        "_opened_channels",
        "_ping_in_flight",
        "_received",
        "_released",
        "_remote_addr",
        "_reports",
        "_resolved",
        "_spoken",
        "_timeouts",
        "features",
        "state",
    )

    def __init__(
        self,
        *,
        chain_hash: bytes,
        now: float,
        offered: int = features.OURS,
        remote_addr: bytes | None = None,
        timeouts: Timeouts = Timeouts(),
    ) -> None:
        self.state = State.INIT
        self.features = 0
        """The peer's features as far as they have a name, once its `init` has come."""
        self._offered = offered
        self._chain_hash = chain_hash
        self._remote_addr = remote_addr
        self._timeouts = timeouts
        self._opened = now
        self._heard = now
        self._spoken = False
        self._ping_in_flight = False
        self._channels: set[bytes] = set()
        self._opened_channels: set[bytes] = set()
        # Sequence numbers of updates: the newest received, the newest of which the store has
        # said what became of it, and the newest whose pong is out.
        self._received = 0
        self._resolved = 0
        self._released = 0
        self._reports = 0
        self._intervals: deque[_Interval] = deque((_Interval(0),))
        self._actions: list[Action] = []

    # What the owner calls

    def start(self) -> Sequence[Action]:
        """Say `init`."""
        self._send(Init(self._offered, (self._chain_hash,), remote_addr=self._remote_addr))
        return self._take_actions()

    @property
    def ready(self) -> bool:
        """Whether `receive` may be called; messages wait while it is False."""
        return self.state in (State.INIT, State.OPEN) and len(self._intervals) <= MAX_INTERVALS

    @property
    def silent_since_init(self) -> bool:
        """Whether the peer has sent its `init` and nothing after it."""
        return self.state in (State.REPLAY, State.OPEN) and not self._spoken

    def heard(self, now: float) -> None:
        """The peer has sent bytes, if not yet a whole message."""
        self._heard = now

    def receive(self, data: bytes, now: float) -> Sequence[Action]:
        """Take one message of the peer, type included; only while `ready`."""
        if not self.ready:
            raise RuntimeError(f"a message was handed to a session in {self.state}")
        self._heard = now
        try:
            if self.state is State.INIT:
                self._on_first_message(data)
            else:
                self._dispatch(data, now)
        except (CodecError, FeatureError) as error:
            # An update that can't be read was refused, and the warning has to say so.
            refused = data[:2] == PeerStorage.TYPE.to_bytes(2, "big")
            if refused:
                self._report("update_refused", reason=str(error))
            self._fail(f"storage: {error}" if refused else str(error))
        return self._take_actions()

    def retrieved(self, blob: bytes | None) -> Sequence[Action]:
        """What is stored for the peer, None when nothing is; ends REPLAY."""
        if self.state is State.REPLAY:
            self.state = State.OPEN
            if blob is not None:
                self._send(PeerStorageRetrieval(blob))
        return self._take_actions()

    def stored(self, sequence: int, now: float) -> Sequence[Action]:
        """Every update up to `sequence` is durable, or was replaced by one that is."""
        self._resolved = sequence
        self._release(now)
        return self._take_actions()

    def not_stored(self, sequence: int, reason: str, now: float) -> Sequence[Action]:
        """The updates up to `sequence` that were not stored before can't be."""
        told = max(self._resolved, self._released)
        for interval in self._intervals:
            if told >= sequence:
                break
            if interval.last > told:
                interval.failure = interval.failure or reason
                told = interval.last
        self._resolved = sequence
        self._release(now)
        return self._take_actions()

    def next_deadline(self) -> float:
        """When `tick` must be called at the latest."""
        if self.state is State.CLOSED:
            return float("inf")
        if self.state is State.INIT:
            return self._opened + self._timeouts.init
        waiting = self._ping_in_flight or self.state is State.REPLAY
        silence = self._timeouts.idle if waiting else self._timeouts.ping
        return min(self._heard + silence, self._intervals[0].deadline)

    def tick(self, now: float) -> Sequence[Action]:
        """Time has passed."""
        if self.state is State.INIT:
            if now >= self._opened + self._timeouts.init:
                self._close("no init")
        elif self.state is not State.CLOSED:
            if now >= self._heard + self._timeouts.idle:
                self._close("silent")
            elif (
                self.state is State.OPEN
                and now >= self._heard + self._timeouts.ping
                and not self._ping_in_flight
            ):
                self._ping_in_flight = True
                self._send(Ping(0))
            self._release(now)
        return self._take_actions()

    # What the peer says

    def _on_first_message(self, data: bytes) -> None:
        if len(data) < 2 or message_type(data) != Init.TYPE:
            # Nothing is said to who does not begin with init (BOLT 1, init).
            self._close("the first message is not init")
            return
        init = Init.decode(data)
        features.check(init.features)
        if init.networks is not None and self._chain_hash not in init.networks:
            raise FeatureError("init: networks names no chain that is served here")
        self.features = init.features & features.KNOWN
        self.state = State.REPLAY
        self._actions.append(Retrieve())

    def _dispatch(self, data: bytes, now: float) -> None:
        self._spoken = True
        number = message_type(data)
        handler = _HANDLERS.get(number)
        if handler is not None:
            handler(self, decode_message(data), now)
        elif number in CHANNEL_MESSAGES:
            self._on_channel_message(number, data)
        elif number % 2 == 0 and number not in _GOSSIP:
            raise CodecError(f"message type {number} is even and unknown here")

    def _on_second_init(self, _message: Init, _now: float) -> None:
        raise CodecError("init: a second one on one connection")

    def _on_report(self, message: WarningMessage | ErrorMessage, _now: float) -> None:
        self._report(
            f"peer_{message.NAME}", channel_id=message.channel_id.hex(), text=message.text[:200]
        )

    def _on_ping(self, message: Ping, now: float) -> None:
        if message.num_pong_bytes >= PONG_LIMIT:
            return
        interval = self._intervals[-1]
        interval.num_pong_bytes = message.num_pong_bytes
        interval.deadline = now + COMMIT_TIMEOUT
        self._intervals.append(_Interval(self._received))
        self._release(now)

    def _on_pong(self, _message: Pong, _now: float) -> None:
        self._ping_in_flight = False

    def _on_peer_storage(self, message: PeerStorage, _now: float) -> None:
        self._received += 1
        self._intervals[-1].last = self._received
        self._actions.append(Store(self._received, BackupKind.PEER_STORAGE, b"", message.blob))

    def _on_peer_storage_retrieval(self, _message: PeerStorageRetrieval, _now: float) -> None:
        """Nothing of ours is stored with the peer."""

    def _on_query_channel_range(self, message: QueryChannelRange, _now: float) -> None:
        self._send(
            ReplyChannelRange(message.chain_hash, message.first_blocknum, message.number_of_blocks)
        )

    def _on_query_short_channel_ids(self, message: QueryShortChannelIds, _now: float) -> None:
        self._send(ReplyShortChannelIdsEnd(message.chain_hash))

    def _on_channel_message(self, number: int, data: bytes) -> None:
        channel_id = channel_id_of(data)
        name = CHANNEL_MESSAGES[number]
        opens = name in ("open_channel", "open_channel2")
        if channel_id in (self._opened_channels if opens else self._channels):
            return
        if channel_id not in self._channels and len(self._channels) >= MAX_CHANNELS:
            raise CodecError(f"messages for more than {MAX_CHANNELS} channels on one connection")
        self._channels.add(channel_id)
        if opens:
            self._opened_channels.add(channel_id)
        text = f"{name}: this node only keeps backups and has no channels"
        self._report("channel_message_refused", message=name, channel_id=channel_id.hex())
        if opens and channel_id != ALL_CHANNELS:
            self._send(ErrorMessage(channel_id, text.encode()))
        else:
            # Not the error that BOLT 1 suggests: a peer that does have the channel, with a
            # node whose id we carry or by a mistake of its own, would force-close it.
            self._warn(f"channel {channel_id.hex()}: {text}")

    # What we say

    def _release(self, now: float) -> None:
        """Send the warnings and pongs whose turn has come."""
        intervals = self._intervals
        while self.state is not State.CLOSED:
            interval = intervals[0]
            undecided = interval.last > max(self._resolved, self._released)
            late = undecided and now >= interval.deadline
            if late and not interval.failure:
                interval.failure = f"not committed within {COMMIT_TIMEOUT:g} s, may be later"
            if interval.failure and not interval.warned:
                interval.warned = True
                self._warn(f"storage: {interval.failure}")
                self._report("update_refused", reason=interval.failure)
            if interval.num_pong_bytes < 0 or (undecided and not late):
                return
            self._send(Pong(bytes(interval.num_pong_bytes)))
            self._released = interval.last
            intervals.popleft()

    def _send(self, message: Any) -> None:
        self._actions.append(Send(message.encode()))

    def _warn(self, text: str) -> None:
        self._send(WarningMessage.about(text))

    def _report(self, event: str, **details: object) -> None:
        self._reports += 1
        if self._reports < MAX_REPORTS:
            self._actions.append(Report(event, details))
        elif self._reports == MAX_REPORTS:
            self._actions.append(Report("reports_suppressed", {"after": MAX_REPORTS}))

    def _fail(self, text: str) -> None:
        """The peer broke the protocol: tell it, then close."""
        self._warn(text)
        self._close(text)

    def _close(self, reason: str) -> None:
        self.state = State.CLOSED
        self._actions.append(Close(reason))

    def _take_actions(self) -> Sequence[Action]:
        actions = self._actions
        if not actions:
            return ()
        self._actions = []
        return actions


_HANDLERS: Mapping[int, Callable[[Session, Any, float], None]] = {
    Init.TYPE: Session._on_second_init,
    WarningMessage.TYPE: Session._on_report,
    ErrorMessage.TYPE: Session._on_report,
    Ping.TYPE: Session._on_ping,
    Pong.TYPE: Session._on_pong,
    PeerStorage.TYPE: Session._on_peer_storage,
    PeerStorageRetrieval.TYPE: Session._on_peer_storage_retrieval,
    QueryChannelRange.TYPE: Session._on_query_channel_range,
    QueryShortChannelIds.TYPE: Session._on_query_short_channel_ids,
}
"""The messages that are understood in OPEN; those of channels are all handled alike."""
