"""One peer's conversation, sans-I/O: a message in, actions out (BOLT 1).

The session works over any ordered stream of messages of one authenticated peer. It is told of
messages (`receive`), of what became of its requests (`retrieved`, `stored`, `not_stored`) and of
time (`tick`), and each time it hands back the actions that follow, in the order in which they
have to be carried out. It knows nothing of sockets, BOLT 8 or the database.

States:

    INIT    the peer's `init` has not come; ours is out, unless it waits to carry a node backup
    REPLAY  the peer is being given back what is stored, piece by piece; `receive` must wait
    OPEN    the peer has been given what it has here; its messages are served
    CLOSED  nothing more is said or taken

Two dialects are spoken on one connection: `peer_storage` (BOLT 1), and `update_node_backup` and
`update_channel_backup` (bolts pull request 881), which only a peer that sets 40 or 41 may use.

What a `pong` confirms is in confirmation.py, what channel messages mean for backups in streams.py.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peerstore.confirmation import Confirmations
from peerstore.errors import CodecError, FeatureError
from peerstore.streams import CHANNEL_TYPES, ChannelStreams, Naming, Outcome
from peerstore.tally import Reason, Tally
from peerstore.types import BackupKind, ChannelState
from peerstore.wire import features
from peerstore.wire.messages import (
    ALL_CHANNELS,
    CHANNEL_MESSAGES,
    MAX_BACKUP_SIZE,
    MESSAGES,
    PONG_LIMIT,
    ChannelReestablish,
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
    UpdateChannelBackup,
    UpdateNodeBackup,
    WarningMessage,
    channel_id_of,
    message_type,
)

UPDATE_REFUSED = "update_refused"
"""The event of a report that an update was not stored; its `reason` says why."""

MAX_REPORTS = 20
"""Things of one connection that are logged; a peer must not fill the log."""

MAX_PEER_TEXT = 200
"""Characters of a peer's words that are logged."""

HANG_UP_SECONDS = 5.0
"""Within how long a peer hangs up that can't bear its node backup in our `init`."""

PONG_BURST_SECONDS = 1.0
"""How far the pongs that a peer asks for may be ahead of its rate."""

PONG_OVERHEAD = 38
"""Bytes of a pong on the wire besides those asked for."""

ANY_POINT = bytes.fromhex("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798")
"""secp256k1's generator, where channel_reestablish wants a valid point that nobody looks at."""

_GOSSIP = range(256, 266)
_UPDATES: Mapping[bytes, BackupKind] = {
    message.TYPE.to_bytes(2, "big"): kind
    for message, kind in (
        (PeerStorage, BackupKind.PEER_STORAGE),
        (UpdateNodeBackup, BackupKind.NODE_BACKUP),
        (UpdateChannelBackup, BackupKind.CHANNEL_BACKUP),
    )
}


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
class Stored:
    """What the peer has here when its connection is authenticated.

    `node_backup` is False too where the peer must not be shown it. `channels` are those with a
    backup; None stands for a state that can't be trusted: such a channel is not replayed.
    """

    peer_storage: bool = False
    node_backup: bool = False
    channels: Mapping[bytes, ChannelState | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message, type included."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Read a backup and call `retrieved`, when the peer has read what it was sent before."""

    kind: BackupKind
    channel_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Store:
    """Store a backup and call `stored` or `not_stored` with this or a later sequence number.

    `channel` is the state of the channel of a channel backup; without a blob it is all that
    there is to store.
    """

    sequence: int
    kind: BackupKind
    channel_id: bytes
    blob: bytes | None
    channel: ChannelState | None = None


@dataclass(frozen=True, slots=True)
class Forgo:
    """Don't show the peer its node backup any more until it stores one anew."""


@dataclass(frozen=True, slots=True)
class Report:
    """Something the operator should see: an event's name for the log and its details.

    One that is not `logged` is only counted: a peer must not fill the log.
    """

    event: str
    details: Mapping[str, object]
    logged: bool = True


@dataclass(frozen=True, slots=True)
class Close:
    """Send what was said before, then close; the session is over."""

    reason: str


Action = Send | Retrieve | Store | Forgo | Report | Close


class Session:
    """See the module's docstring.

    `offered` is our feature vector, `chain_hash` our one chain, `remote_addr` the address
    descriptor to echo to the peer or None, `stored` what the peer has here. With a `refusal` no
    update of it is taken; what it has here it gets back all the same, whatever is offered.
    `initiator` says that we have dialed: then our `init` never waits. What is refused is counted in
    `tally`. Times are seconds on any clock that never goes back.
    """

    __slots__ = (
        "_actions",
        "_chain_hash",
        "_confirmations",
        "_heard",
        "_init_said",
        "_initiator",
        "_offered",
        "_opened",
        "_overdrawn",
        "_ping_in_flight",
        "_pongs_paid_at",
        "_remote_addr",
        "_replays",
        "_reports",
        "_shown_at",
        "_spoken",
        "_stored",
        "_streams",
        "_tally",
        "_timeouts",
        "_told_channels",
        "features",
        "pong_rate",
        "refusal",
        "state",
    )

    def __init__(
        self,
        *,
        chain_hash: bytes,
        now: float,
        offered: int = features.OURS,
        remote_addr: bytes | None = None,
        stored: Stored = Stored(),
        refusal: str = "",
        initiator: bool = False,
        timeouts: Timeouts = Timeouts(),
        tally: Tally | None = None,
    ) -> None:
        self.state = State.INIT
        self.features = 0
        """The peer's features as far as they have a name, once its `init` has come."""
        self.refusal = refusal
        """Why no update of the peer is taken, "" when they are; may change at any time."""
        self.pong_rate: int | None = None
        """Bytes a second of pongs that the peer may ask for, None without a limit; may change at
        any time. Who asks for more is read more slowly."""
        self._offered = offered
        self._chain_hash = chain_hash
        self._remote_addr = remote_addr
        self._timeouts = timeouts
        self._tally = tally or Tally()
        self._opened = now
        self._heard = now
        self._spoken = False
        self._ping_in_flight = False
        # When the pongs asked for are paid for at pong_rate, and whether that is too far away.
        self._pongs_paid_at = 0.0
        self._overdrawn = False
        self._stored = stored
        self._initiator = initiator
        self._init_said = False
        # When the peer was shown its node backup.
        self._shown_at = float("-inf")
        self._replays: list[Retrieve] = []
        self._streams = ChannelStreams(stored.channels)
        # Channels that the peer was told about: with a warning, with an error for its opening.
        self._told_channels: frozenset[tuple[bytes, bool]] = frozenset()
        self._confirmations = Confirmations()
        self._reports = 0
        self._actions: list[Action] = []

    # What the owner calls

    def start(self) -> Sequence[Action]:
        """Say `init`, unless a node backup is stored: then the peer's is waited for.

        TLV 2 is even: a peer that does not know it has to hang up, and only its `init` tells.
        """
        if self._initiator or not self._stored.node_backup:
            self._say_init()
        return self._take_actions()

    @property
    def ready(self) -> bool:
        """Whether `receive` may be called; messages wait while it is False."""
        return (
            (self.state is State.OPEN or self.state is State.INIT)
            and not self._overdrawn
            and not self._confirmations.full
        )

    @property
    def silent_since_init(self) -> bool:
        """Whether the peer has sent its `init` and nothing after it but warnings and errors."""
        return self.state in (State.REPLAY, State.OPEN) and not self._spoken

    @property
    def node_backup_shown(self) -> bool:
        """Whether our `init` carried a node backup."""
        return self._shown_at > float("-inf")

    def heard(self, now: float) -> None:
        """The peer has sent bytes, if not yet a whole message."""
        self._heard = now

    def drained(self, now: float) -> None:
        """The peer has read on: it is alive, and has not hung up on our `init`."""
        self._heard = now
        self._spoken = True

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
            refused = _UPDATES.get(data[:2])
            if refused is not None:
                self._tally.refuse(refused, Reason.MALFORMED)
                self._report(UPDATE_REFUSED, reason=str(error))
            self._fail(str(error) if refused is None else f"storage: {error}")
        return self._take_actions()

    def retrieved(self, blob: bytes | None) -> Sequence[Action]:
        """What was read for the last `Retrieve`, None when there is nothing that can be sent."""
        if self.state is State.REPLAY:
            self._replay(self._replays.pop(0), blob)
            self._go_on_replaying()
        return self._take_actions()

    def refused(self, sequences: Sequence[int], reason: str) -> None:
        """These updates are not stored; `stored` follows for those around them."""
        self._confirmations.refused(sequences, reason)
        self._streams.refused(sequences)

    def stored(self, sequence: int, now: float) -> Sequence[Action]:
        """Every update up to `sequence` is durable, or was replaced by one that is."""
        self._confirmations.stored(sequence)
        self._streams.decided(sequence, stored=True)
        self._release(now)
        return self._take_actions()

    def not_stored(self, sequence: int, reason: str, now: float) -> Sequence[Action]:
        """The updates up to `sequence` that were not stored before can't be."""
        self._confirmations.not_stored(sequence, reason)
        self._streams.decided(sequence, stored=False)
        self._release(now)
        return self._take_actions()

    def end(self, now: float, *, hung_up: bool) -> Sequence[Action]:
        """The connection is over; `hung_up` says that the peer ended it."""
        if self.state is not State.CLOSED:
            in_time = now <= self._shown_at + HANG_UP_SECONDS
            if hung_up and in_time and not self._spoken:
                reason = "the peer hung up when it was shown it"
                self._actions.append(Report("node_backup_forgone", {"reason": reason}))
                self._actions.append(Forgo())
            self._end()
        return self._take_actions()

    def dismiss(self, text: str) -> Sequence[Action]:
        """Close from our side, and say why as far as anything may be said."""
        if self._init_said and self.state in (State.REPLAY, State.OPEN):
            self._warn(text)
        self._close(text)
        return self._take_actions()

    def next_deadline(self) -> float:
        """When `tick` must be called at the latest."""
        if self.state is State.CLOSED:
            return float("inf")
        if self.state is State.INIT:
            return self._opened + self._timeouts.init * (1.0 if self._init_said else 0.5)
        waiting = self._ping_in_flight or self.state is State.REPLAY
        silence = self._timeouts.idle if waiting else self._timeouts.ping
        deadline = min(self._heard + silence, self._confirmations.deadline)
        if self._overdrawn:
            deadline = min(deadline, self._pongs_paid_at - PONG_BURST_SECONDS)
        return deadline

    def tick(self, now: float) -> Sequence[Action]:
        """Time has passed."""
        if self.state is State.INIT:
            if now >= self._opened + self._timeouts.init:
                self._close("no init")
            elif not self._init_said and now >= self.next_deadline():
                # Should the peer wait for ours as well, one of the two has to begin.
                self._report("init_without_node_backup")
                self._say_init()
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
            self._overdrawn = self._overdrawn and now < self._pongs_paid_at - PONG_BURST_SECONDS
            self._release(now)
        return self._take_actions()

    # What the peer says

    def _on_first_message(self, data: bytes) -> None:
        if len(data) < 2 or message_type(data) != Init.TYPE:
            # Nothing is said to who does not begin with init (BOLT 1, init).
            self._close("the first message is not init")
            return
        try:
            init = Init.decode(data)
            features.check(init.features)
            if init.networks is not None and self._chain_hash not in init.networks:
                raise FeatureError("init: networks names no chain that is served here")
        except (CodecError, FeatureError):
            if not self._init_said:
                self._say_init()
            raise
        self.features = init.features & features.NAMED
        self.state = State.REPLAY
        wanted = features.offers(self.features, features.WANT_PEER_BACKUP_STORAGE)
        if not self._init_said:
            if wanted:
                self._replays.append(Retrieve(BackupKind.NODE_BACKUP))
            else:
                self._say_init()
        self._replays.extend(self._behind_init(wanted=wanted))
        self._go_on_replaying()

    def _dispatch(self, data: bytes, now: float) -> None:
        number = message_type(data)
        if not self._spoken:
            # Who hangs up on an init may say why before; what is about a channel is no such word.
            about_all = number in (WarningMessage.TYPE, ErrorMessage.TYPE) and not any(data[2:34])
            self._spoken = not about_all
        handler = _HANDLERS.get(number)
        if handler is not None:
            handler(self, MESSAGES[number].decode(data), now)
        elif number in CHANNEL_MESSAGES:
            self._on_channel_message(number, data, now)
        elif number % 2 and number in CHANNEL_TYPES:
            # Unknown, but it may name the channel of a backup.
            if len(data) >= 34:
                self._on_naming(self._streams.name(channel_id_of(data)), now)
        elif number % 2 == 0 and number not in _GOSSIP:
            raise CodecError(f"message type {number} is even and unknown here")

    def _on_second_init(self, _message: Init, _now: float) -> None:
        raise CodecError("init: a second one on one connection")

    def _on_warning(self, message: WarningMessage, _now: float) -> None:
        channel_id, text = message.channel_id.hex(), message.text[:MAX_PEER_TEXT]
        self._report("peer_warning", channel_id=channel_id, text=text)

    def _on_error(self, message: ErrorMessage, _now: float) -> None:
        channel_id, text = message.channel_id.hex(), message.text[:MAX_PEER_TEXT]
        self._report("peer_error", channel_id=channel_id, text=text)

    def _on_ping(self, message: Ping, now: float) -> None:
        if message.num_pong_bytes < PONG_LIMIT:
            self._confirmations.ping(message.num_pong_bytes, now)
            self._charge(message.num_pong_bytes + PONG_OVERHEAD, now)
            self._release(now)

    def _charge(self, pong_bytes: int, now: float) -> None:
        if self.pong_rate is not None:
            self._pongs_paid_at = max(self._pongs_paid_at, now) + pong_bytes / self.pong_rate
            self._overdrawn = self._pongs_paid_at > now + PONG_BURST_SECONDS

    def _on_pong(self, _message: Pong, _now: float) -> None:
        self._ping_in_flight = False

    def _on_peer_storage(self, message: PeerStorage, now: float) -> None:
        if self.refusal:
            self._refuse(BackupKind.PEER_STORAGE, (Reason.NOT_SERVED, self.refusal), now)
        else:
            self._store(BackupKind.PEER_STORAGE, b"", message.blob)

    def _on_update_node_backup(self, message: UpdateNodeBackup, now: float) -> None:
        refusal = self._refusal(message)
        if refusal is not None:
            self._refuse(BackupKind.NODE_BACKUP, refusal, now)
        else:
            self._store(BackupKind.NODE_BACKUP, b"", message.blob)

    def _on_update_channel_backup(self, message: UpdateChannelBackup, now: float) -> None:
        refusal = self._refusal(message)
        if refusal is None:
            # Should one be on offer already, this one takes its place, and its pong waits on.
            self._confirmations.offer(named_before=self._streams.named)
            self._streams.offer(message.blob)
            return
        if self._streams.unfinished:
            text = "update_channel_backup is dropped: the one after it is refused"
            self._drop((Reason.INCOMPLETE, text), now)
        self._streams.offer(None)
        self._refuse(BackupKind.CHANNEL_BACKUP, refusal, now)

    def _refusal(
        self, message: UpdateNodeBackup | UpdateChannelBackup
    ) -> tuple[Reason, str] | None:
        """Why a backup of pull request 881 is not taken, and what the peer is told of it."""
        if self.refusal:
            return Reason.NOT_SERVED, self.refusal
        if not features.offers(self.features, features.WANT_PEER_BACKUP_STORAGE):
            bits = f"{features.NAMES[features.WANT_PEER_BACKUP_STORAGE]} (40/41)"
            return Reason.NOT_OFFERED, f"{message.NAME}: your init does not set {bits}"
        size = len(message.blob)
        if size > MAX_BACKUP_SIZE:
            text = f"{message.NAME}: {size} bytes, at most {MAX_BACKUP_SIZE} are kept"
            return Reason.TOO_LARGE, text
        return None

    def _on_peer_storage_retrieval(self, _message: PeerStorageRetrieval, _now: float) -> None:
        """Nothing of ours is stored with the peer."""

    def _on_query_channel_range(self, message: QueryChannelRange, _now: float) -> None:
        self._send(
            ReplyChannelRange(message.chain_hash, message.first_blocknum, message.number_of_blocks)
        )

    def _on_query_short_channel_ids(self, message: QueryShortChannelIds, _now: float) -> None:
        self._send(ReplyShortChannelIdsEnd(message.chain_hash))

    def _on_channel_message(self, number: int, data: bytes, now: float) -> None:
        outcome = self._streams.receive(number, data)
        self._on_named(outcome, now)
        if not outcome.served:
            self._tell_of_no_channels(CHANNEL_MESSAGES[number], channel_id_of(data))

    def _on_named(self, outcome: Outcome, now: float) -> None:
        """Do what a channel message led to for the backups."""
        self._on_naming(outcome.naming, now)
        update = outcome.update
        if update is None:
            return
        if self.refusal and update.blob is not None:  # taken before the policy changed
            self._drop((Reason.NOT_SERVED, self.refusal), now)
            return
        # What is said of a channel with a backup is kept up to date also for who is not served:
        # the backup is given back with it.
        kind = BackupKind.CHANNEL_BACKUP
        sequence = self._store(kind, update.channel_id, update.blob, update.state)
        if update.blob is not None:
            self._streams.hand_in(sequence, update.channel_id)
            self._confirmations.complete(sequence)

    def _on_naming(self, naming: Naming, now: float) -> None:
        if naming.dropped:
            self._drop((Reason.INCOMPLETE, naming.dropped), now)
        if naming.replaced:
            self._tally.refuse(BackupKind.CHANNEL_BACKUP, Reason.INCOMPLETE)
            self._confirmations.withdraw_replaced(naming.replaced)
            self._release(now)

    def _tell_of_no_channels(self, name: str, channel_id: bytes) -> None:
        opens = name in ("open_channel", "open_channel2")
        if (channel_id, opens) in self._told_channels or (
            not opens and (channel_id, True) in self._told_channels
        ):
            return
        self._told_channels |= {(channel_id, opens)}
        text = f"{name}: this node only keeps backups and has no channels"
        self._report("channel_message_refused", channel_id=channel_id.hex(), message_name=name)
        if opens and channel_id != ALL_CHANNELS:
            self._send(ErrorMessage(channel_id, text.encode()))
        else:
            # Not the error that BOLT 1 suggests: a peer that does have the channel, with a
            # node whose id we carry or by a mistake of its own, would force-close it.
            self._warn(f"channel {channel_id.hex()}: {text}")

    # What is given back

    def _behind_init(self, *, wanted: bool) -> Iterator[Retrieve]:
        """What is given back once both `init` are there, in this order."""
        if self._stored.peer_storage:
            yield Retrieve(BackupKind.PEER_STORAGE)
        if wanted:
            # To all others TLV 1 of channel_reestablish means next_funding.
            for channel_id, state in sorted(self._stored.channels.items()):
                if state is not None:
                    yield Retrieve(BackupKind.CHANNEL_BACKUP, channel_id)

    def _go_on_replaying(self) -> None:
        if self._replays:
            self._actions.append(self._replays[0])
        else:
            self.state = State.OPEN

    def _replay(self, what: Retrieve, blob: bytes | None) -> None:
        if what.kind is BackupKind.NODE_BACKUP:
            self._say_init(blob)
            if blob is not None:
                self._shown_at = self._heard
        elif blob is None:
            return
        elif what.kind is BackupKind.PEER_STORAGE:
            self._send(PeerStorageRetrieval(blob))
        else:
            state = self._stored.channels[what.channel_id]
            assert state is not None  # noqa: S101 - else it is not replayed
            self._send(
                ChannelReestablish(
                    what.channel_id,
                    state.commitments + 1,
                    state.revocations,
                    state.last_secret,
                    ANY_POINT,
                    blob,
                )
            )

    def _say_init(self, node_backup: bytes | None = None) -> None:
        self._init_said = True
        self._send(Init(self._offered, (self._chain_hash,), node_backup, self._remote_addr))

    # What is stored and what is not

    def _store(
        self,
        kind: BackupKind,
        channel_id: bytes,
        blob: bytes | None,
        channel: ChannelState | None = None,
    ) -> int:
        sequence = self._confirmations.update()
        self._actions.append(Store(sequence, kind, channel_id, blob, channel))
        return sequence

    def _refuse(self, kind: BackupKind, refusal: tuple[Reason, str], now: float) -> None:
        """An update is not taken."""
        reason, text = refusal
        self._tally.refuse(kind, reason)
        self._confirmations.refuse(text)
        self._release(now)

    def _drop(self, refusal: tuple[Reason, str], now: float) -> None:
        """The update_channel_backup on offer is not stored."""
        reason, text = refusal
        self._tally.refuse(BackupKind.CHANNEL_BACKUP, reason)
        self._confirmations.withdraw(text)
        self._release(now)

    # What we say

    def _release(self, now: float) -> None:
        """Send the warnings and pongs whose turn has come."""
        if self.state is State.CLOSED:
            return
        for due in self._confirmations.due(now):
            if isinstance(due, str):
                self._warn(f"storage: {due}")
                self._report(UPDATE_REFUSED, reason=due)
            else:
                self._send(Pong(bytes(due)))

    def _send(self, message: Any) -> None:
        self._actions.append(Send(message.encode()))

    def _warn(self, text: str) -> None:
        self._send(WarningMessage.about(text))

    def _report(self, event: str, **details: object) -> None:
        self._reports += 1
        logged = self._reports < MAX_REPORTS
        self._actions.append(Report(event, details, logged))
        if self._reports == MAX_REPORTS:
            self._actions.append(Report("reports_suppressed", {"lines": MAX_REPORTS}))

    def _fail(self, text: str) -> None:
        """The peer broke the protocol: tell it, then close."""
        self._warn(text)
        self._close(text)

    def _close(self, reason: str) -> None:
        self._end()
        self._actions.append(Close(reason))

    def _end(self) -> None:
        self.state = State.CLOSED
        if self._streams.unfinished:
            self._tally.refuse(BackupKind.CHANNEL_BACKUP, Reason.INCOMPLETE)
            reason = "the connection ended before the message that completes it"
            # There is at most one of these, and the log has to say it.
            self._actions.append(Report("channel_backup_dropped", {"reason": reason}))

    def _take_actions(self) -> Sequence[Action]:
        actions = self._actions
        if not actions:
            return ()
        self._actions = []
        return actions


_HANDLERS: Mapping[int, Callable[[Session, Any, float], None]] = {
    Init.TYPE: Session._on_second_init,
    WarningMessage.TYPE: Session._on_warning,
    ErrorMessage.TYPE: Session._on_error,
    Ping.TYPE: Session._on_ping,
    Pong.TYPE: Session._on_pong,
    PeerStorage.TYPE: Session._on_peer_storage,
    PeerStorageRetrieval.TYPE: Session._on_peer_storage_retrieval,
    UpdateNodeBackup.TYPE: Session._on_update_node_backup,
    UpdateChannelBackup.TYPE: Session._on_update_channel_backup,
    QueryChannelRange.TYPE: Session._on_query_channel_range,
    QueryShortChannelIds.TYPE: Session._on_query_short_channel_ids,
}
"""The messages that are understood in OPEN; those of channels are all handled alike."""
