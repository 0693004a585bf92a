"""What the messages of a peer's channels say, sans-I/O (bolts pull request 881; BOLT 2).

`update_channel_backup` names no channel. The first channel message behind it does, and the backup
counts from the message on that completes an update of that channel:

    update_channel_backup      offered, belongs to no channel yet
    update_add_htlc C          named: it is a backup of channel C
    commitment_signed C        completed: to be stored, with what is known of C by then

A message of another channel in between, or the end of the connection, drops it; a newer
update_channel_backup takes its place. What was refused goes the same way without being stored, so
that its channel messages are still seen as belonging to it.

Beside that the messages are counted, for every channel that has a backup and, in case one follows,
for those seen on this connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from peerstore.errors import CodecError
from peerstore.types import ChannelState
from peerstore.wire.messages import RevokeAndAck, StartBatch, channel_id_of

MAX_CHANNELS = 100
"""Channels without a backup that one connection may name before it is closed."""

MAX_BATCH = 20
"""Messages of a batch (BOLT 2, start_batch)."""

FUNDING_SIGNED = 35
SHUTDOWN = 38
CLOSING_SIGNED = 39
CLOSING_COMPLETE = 40
CLOSING_SIG = 41
TX_COMPLETE = 70
TX_SIGNATURES = 71
TX_ABORT = 74
COMMITMENT_SIGNED = 132
REVOKE_AND_ACK = 133

COMPLETING = frozenset(
    (FUNDING_SIGNED, SHUTDOWN, CLOSING_SIGNED, COMMITMENT_SIGNED, REVOKE_AND_ACK)
)
"""The messages that complete an update of their channel (pull request 881)."""

_OPENING = frozenset((32, 64))
_CLOSING = frozenset((CLOSING_SIGNED, CLOSING_COMPLETE, CLOSING_SIG))

CHANNEL_TYPES = range(32, 256)
"""The types of BOLT 1's group of channel messages; the id is where `channel_id_of` finds it."""


@dataclass(frozen=True, slots=True)
class ChannelUpdate:
    """What is to be stored of a channel: its state and, unless it is only that, a backup."""

    channel_id: bytes
    state: ChannelState
    blob: bytes | None = None


@dataclass(frozen=True, slots=True)
class Naming:
    """What the naming of a channel meant for the backup on offer, "" for nothing.

    `dropped` says why that was dropped, `replaced` why the one before it was, whose place it took:
    the two are for different channels.
    """

    dropped: str = ""
    replaced: str = ""


NOTHING = Naming()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a channel message led to.

    `served` is whether it belongs to a backup, so that the peer need not be told that nothing can
    be done with it.
    """

    served: bool
    update: ChannelUpdate | None = None
    naming: Naming = NOTHING

    @property
    def dropped(self) -> str:
        """Why the backup on offer was dropped, "" when it was not."""
        return self.naming.dropped


@dataclass(slots=True)
class _Offer:
    """An update_channel_backup that waits; `blob` is None for one that was refused."""

    blob: bytes | None
    channel_id: bytes | None = None
    replaces: bytes | None = None
    """The channel of the one whose place it took, if that was known."""


@dataclass(slots=True)
class _Channel:
    """A channel: whether a backup of it is stored, and how many are on their way to be."""

    state: ChannelState
    stored: bool = False
    handed_in: int = 0
    unknown: bool = False
    """Whether what was stored of it was lost: then what is counted here must not take its place
    until there is a new backup beside it."""
    batch: int = 0
    """Messages of a batch that are still to come."""
    signing: bool = False
    """Whether a transaction was agreed on interactively and its signatures are to come."""

    @property
    def held(self) -> bool:
        return self.stored or self.handed_in > 0


class ChannelStreams:
    """See the module's docstring.

    `states` are the channels of which a backup is stored; None stands for a state that was lost.
    """

    __slots__ = ("_channels", "_offer", "_undecided", "_without_backup")

    def __init__(self, states: Mapping[bytes, ChannelState | None]) -> None:
        self._channels = {
            channel_id: _Channel(state or ChannelState(), stored=True, unknown=state is None)
            for channel_id, state in states.items()
        }
        self._without_backup = 0
        self._offer: _Offer | None = None
        # Backups handed in of which it is not known what became: sequence number, channel.
        self._undecided: list[tuple[int, _Channel]] = []

    @property
    def unfinished(self) -> bool:
        """Whether one waits that will be dropped if the connection ends now."""
        return self._offer is not None and self._offer.blob is not None

    @property
    def named(self) -> bool:
        """Whether one waits that will be dropped, and its channel is known."""
        return self.unfinished and self._offer is not None and self._offer.channel_id is not None

    def offer(self, blob: bytes | None) -> None:
        """An update_channel_backup came; None when it was refused."""
        before, self._offer = self._offer, _Offer(blob)
        if before is not None and before.blob is not None:
            self._offer.replaces = before.channel_id or before.replaces

    def hand_in(self, sequence: int, channel_id: bytes) -> None:
        """A backup of the channel goes to the store under this number."""
        channel = self._channels[channel_id]
        self._without_backup -= not channel.held
        channel.handed_in += 1
        self._undecided.append((sequence, channel))

    def decided(self, sequence: int, *, stored: bool) -> None:
        """What became of the backups that were handed in up to this number."""
        decided = 0
        for number, channel in self._undecided:
            if number > sequence:
                break
            self._decide(channel, stored=stored)
            decided += 1
        del self._undecided[:decided]

    def refused(self, sequences: Iterable[int]) -> None:
        """The backups handed in under these numbers are not stored."""
        wanted = set(sequences)
        for number, channel in self._undecided:
            if number in wanted:
                self._decide(channel, stored=False)
        self._undecided = [entry for entry in self._undecided if entry[0] not in wanted]

    def _decide(self, channel: _Channel, *, stored: bool) -> None:
        channel.handed_in -= 1
        channel.stored = channel.stored or stored
        channel.unknown = channel.unknown and not stored
        self._without_backup += not channel.held

    def receive(self, number: int, data: bytes) -> Outcome:
        """Take a channel message, type included.

        Raises CodecError when it can't be read, or is of a channel too many.
        """
        channel_id = channel_id_of(data)
        channel = self._channels.get(channel_id)
        if channel is None:
            channel = self._add(channel_id)
        if number == StartBatch.TYPE:
            batched_with = self._offer is not None and self._offer.channel_id in (None, channel_id)
            served = channel.held or batched_with
            _begin_batch(channel, data, strict=served)
            return Outcome(served)
        offered, before = self._offer, channel.state
        naming = self.name(channel_id) if number in CHANNEL_TYPES else NOTHING
        belongs = self._offer is not None and self._offer.channel_id == channel_id
        served = belongs or channel.held
        try:
            completed = _count(channel, number, data, strict=served) and belongs
        except CodecError:
            # The connection ends, and its end is what drops the backup.
            self._offer = offered
            raise
        blob = None
        if offered is not None and completed:
            blob, self._offer = offered.blob, None
        lost = channel.unknown and not channel.handed_in
        changed = channel.held and channel.state != before and not lost
        update = None
        if blob is not None or changed:
            update = ChannelUpdate(channel_id, channel.state, blob)
        # Who opens a channel waits for an answer, whatever it has offered before.
        return Outcome(served and number not in _OPENING, update, naming)

    def name(self, channel_id: bytes) -> Naming:
        """Tie the backup on offer to a channel, or drop it."""
        offer = self._offer
        if offer is None or offer.channel_id == channel_id:
            return NOTHING
        if offer.channel_id is None:
            offer.channel_id = channel_id
            replaces, offer.replaces = offer.replaces, None
            if offer.blob is None or replaces in (None, channel_id):
                return NOTHING
            return Naming(replaced=_dropped(replaces, channel_id))
        self._offer = None
        return NOTHING if offer.blob is None else Naming(_dropped(offer.channel_id, channel_id))

    def _add(self, channel_id: bytes) -> _Channel:
        if self._without_backup >= MAX_CHANNELS:
            raise CodecError(f"messages for more than {MAX_CHANNELS} channels on one connection")
        self._without_backup += 1
        channel = self._channels[channel_id] = _Channel(ChannelState())
        return channel


def _dropped(channel_id: bytes | None, other: bytes) -> str:
    of = "" if channel_id is None else channel_id.hex()
    return (
        f"update_channel_backup of channel {of} is dropped: a message of channel {other.hex()} came"
        " before one that completes it"
    )


def _begin_batch(channel: _Channel, data: bytes, *, strict: bool) -> None:
    """BOLT 2, Batching Channel Messages."""
    try:
        start = StartBatch.decode(data)
    except CodecError:
        if strict:
            raise
        return
    if start.batch_size > MAX_BATCH:
        raise CodecError(f"start_batch: {start.batch_size} messages, at most {MAX_BATCH}")
    if start.message_type == COMMITMENT_SIGNED and start.batch_size > 1:
        channel.batch = start.batch_size


def _count(channel: _Channel, number: int, data: bytes, *, strict: bool) -> bool:
    """Take a message into the state of its channel; whether it completes an update of it.

    Of a batch the last message does. Unless `strict`, a message that is too short for more than
    its channel id is let pass: nothing hangs on it.
    """
    state = channel.state
    if number == COMMITMENT_SIGNED and channel.batch > 1:
        channel.batch -= 1
        return False
    channel.batch = 0
    if number == FUNDING_SIGNED and state == ChannelState() and not channel.unknown:
        channel.state = replace(state, whole=True)
    elif number == TX_COMPLETE:
        channel.signing = True
    elif number in (TX_SIGNATURES, TX_ABORT):
        channel.signing = False
    elif number == COMMITMENT_SIGNED:
        # The one that belongs to a transaction made interactively is no new commitment.
        count = 0 if channel.signing else 1
        channel.state = replace(state, commitments=state.commitments + count, closing=False)
    elif number == REVOKE_AND_ACK:
        try:
            secret = RevokeAndAck.decode(data).per_commitment_secret
        except CodecError:
            if strict:
                raise
            return False
        revocations = state.revocations + 1
        channel.state = replace(state, revocations=revocations, last_secret=secret, closing=False)
    elif number == SHUTDOWN:
        channel.state = replace(state, shutdown=True)
    elif number in _CLOSING:
        channel.state = replace(state, closing=True)
    return number in COMPLETING
