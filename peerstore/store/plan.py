"""What one transaction of the store changes, worked out before anything is written; pure.

The planner takes the updates of a batch one by one and decides for each whether it is written,
where, what is kept or thinned for it, and whether it bears the mark of data loss. Nothing here
touches the database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from peerstore.store.base import Quotas, Revision, backup_digest
from peerstore.store.history import Kept, Thinned, before_burst, thin
from peerstore.store.lease import Change, Current, SqliteLease, Update
from peerstore.store.room import Candidates, Displaced, Refused, Room, Totals
from peerstore.tally import Reason, UpdateResult
from peerstore.types import BackupKind, ChannelState, Slot

LAST_SEEN_SECONDS = 60
"""How often at most an identical blob moves its row's last_seen_at."""

SHRINK_FROM = 200
"""Bytes of what a peer was given back from which the mark of data loss is looked for."""

PIN_AUTOMATIC = 1
PIN_OPERATOR = 2
MAX_AUTOMATIC_PINS = 2


@dataclass(frozen=True, slots=True)
class KeptRow:
    """A version that is not current, as the planner needs it."""

    kept: Kept
    size: int
    pins: int


@dataclass(frozen=True, slots=True)
class Loss:
    """The mark of data loss: the good version, and the bytes that came after it was given back."""

    slot: Slot
    row_id: int
    good: Revision
    size: int
    pin: bool
    hold_until: int | None
    given_size: int


@dataclass(slots=True)
class Plan:
    """What to write. Rows are in the order of the columns of the statements that take them."""

    rows: list[tuple[object, ...]] = field(default_factory=list)
    replaced: list[tuple[int, int | None, int]] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)
    displaced: list[Displaced] = field(default_factory=list)
    seen_again: list[tuple[int, int]] = field(default_factory=list)
    new_peers: list[tuple[object, ...]] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    channels: list[tuple[SqliteLease, Slot, ChannelState]] = field(default_factory=list)
    stored_anew: list[SqliteLease] = field(default_factory=list)
    """Whose node backup may be shown again."""
    refused: dict[SqliteLease, dict[Slot, str]] = field(default_factory=dict)
    outcomes: list[tuple[BackupKind, UpdateResult | Reason]] = field(default_factory=list)
    """What becomes of each blob."""
    current: list[tuple[SqliteLease, Slot, Current]] = field(default_factory=list)
    sizes: dict[SqliteLease, int] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nothing has to be written."""
        return not (self.rows or self.seen_again or self.channels or self.stored_anew)


def _shrunk(good: Revision, size: int) -> bool:
    """Whether an update of so many bytes bears the mark of data loss beside a version."""
    return good.size >= SHRINK_FROM and 2 * size < good.size


_SPACE_LOW = "the disk is nearly full"

NOBODY = Candidates()


class Planner:
    """See the module's docstring.

    `now` is the wall clock, `seen` the seconds that daemons have seen pass. `kept` holds the kept
    versions of the slots that are replaced for the first time by their connection; `candidates`
    are who gives way when the store is full; `protected` is whether a peer is, by the policy, no
    stranger.
    """

    def __init__(
        self,
        quotas: Quotas,
        totals: Totals,
        *,
        now: int,
        seen: int,
        kept: Mapping[Slot, list[KeptRow]],
        candidates: Candidates = NOBODY,
        protected: Callable[[SqliteLease], bool] = lambda _: False,
        space_low: bool = False,
    ) -> None:
        self.totals = replace(totals)
        self._room = Room(quotas, self.totals, candidates)
        self.plan = Plan(drops=self._room.drops, displaced=self._room.displaced)
        self._quotas = quotas
        self._now = now
        self._seen = seen
        self._kept = kept
        self._protected = protected
        self._space_low = space_low
        self._new_peers: set[bytes] = set()
        self._new_slots: set[Slot] = set()
        self._channels: dict[SqliteLease, int] = {}

    def add(self, lease: SqliteLease, slot: Slot, change: Change) -> None:
        """Decide about one change."""
        taken = False
        if change.update is not None:
            outcome: UpdateResult | Reason
            try:
                outcome = self._add_blob(lease, slot, change.update)
                taken = True
            except Refused as refusal:
                self._refuse(lease, slot, str(refusal))
                outcome = refusal.reason
            self.plan.outcomes.append((slot.kind, outcome))
        # What the channel's messages say is so, whatever became of a blob; but without a backup
        # there is nothing to give it back with, and beside an old one whose own state is lost
        # it would be wrong.
        if slot in lease.holdings.current:
            lost = lease.holdings.channels.get(slot.channel_id, ChannelState()) is None
            if taken or not lost:
                self._add_channel(lease, slot, change.channel)
        elif slot in self._new_slots:
            self._add_channel(lease, slot, change.channel or ChannelState())

    def _add_blob(self, lease: SqliteLease, slot: Slot, update: Update) -> UpdateResult:
        result = UpdateResult.STORED
        current = lease.holdings.current.get(slot)
        if current is not None and current.revision.sha256 == update.sha256 and not current.damaged:
            self._seen_again(lease, slot, current)
            result = UpdateResult.UNCHANGED
        elif self._space_low:
            raise Refused(Reason.DISK_FULL, _SPACE_LOW)
        elif current is None:
            self._first(lease, slot, update)
        elif current.revision.sha256 == update.sha256 or (
            current.opened_here and not (current.pins or current.held)
        ):
            # The same bytes again heal a damaged row where it is.
            self._overwrite(lease, slot, update, current)
        else:
            self._replace(lease, slot, update, current)
        if slot.kind is BackupKind.NODE_BACKUP and lease.holdings.forgone:
            self.plan.stored_anew.append(lease)
        return result

    def _add_channel(self, lease: SqliteLease, slot: Slot, state: ChannelState | None) -> None:
        if slot.kind is not BackupKind.CHANNEL_BACKUP or state is None:
            return
        if state == lease.holdings.channels.get(slot.channel_id):
            return
        if self._space_low:
            self._refuse(lease, slot, _SPACE_LOW)
        else:
            self.plan.channels.append((lease, slot, state))

    def _refuse(self, lease: SqliteLease, slot: Slot, reason: str) -> None:
        if slot.kind is not BackupKind.PEER_STORAGE:
            reason = f"{reason} ({slot.label})"
        self.plan.refused.setdefault(lease, {})[slot] = reason

    def _seen_again(self, lease: SqliteLease, slot: Slot, current: Current) -> None:
        if self._now - current.last_seen_at >= LAST_SEEN_SECONDS:
            self.plan.seen_again.append((self._now, current.row_id))
            self.plan.current.append((lease, slot, current._replace(last_seen_at=self._now)))

    def _first(self, lease: SqliteLease, slot: Slot, update: Update) -> None:
        channels = 0
        if slot.kind is BackupKind.CHANNEL_BACKUP:
            kinds = [held.kind for held in lease.holdings.current]
            channels = self._channels.get(lease, kinds.count(BackupKind.CHANNEL_BACKUP))
            if channels >= self._quotas.max_channels_per_peer:
                raise Refused(
                    Reason.TOO_MANY_CHANNELS,
                    f"backups of {self._quotas.max_channels_per_peer} channels are kept for a peer",
                )
        new_peer = lease.holdings.first_seen is None and slot.node_id not in self._new_peers
        self._charge(lease, len(update.blob), new_peer=new_peer)
        if slot.kind is BackupKind.CHANNEL_BACKUP:
            self._channels[lease] = channels + 1
        self.totals.backups += 1
        self._new_slots.add(slot)
        if new_peer:
            self._new_peers.add(slot.node_id)
            self.totals.peers += 1
            self.plan.new_peers.append(
                (slot.node_id, self._seen, self._now, self._now, self._seen, lease.address_group)
            )
        self._open_row(lease, slot, update)

    def _overwrite(self, lease: SqliteLease, slot: Slot, update: Update, current: Current) -> None:
        added = len(update.blob) - current.revision.size
        kept = self._kept.get(slot)
        if kept:
            self._thin(lease, kept, added)
        else:
            self._charge(lease, added, replaces=True)
        # The row keeps what says when it was opened; the values for a new row are not used.
        self._write(lease, slot, update, current.row_id, opened_here=current.opened_here)

    def _replace(self, lease: SqliteLease, slot: Slot, update: Update, current: Current) -> None:
        """The first replacement of a slot by a connection: what was current is kept."""
        loss = self._loss(lease, slot, update, current)
        kept = self._kept.get(slot, ())
        guard = before_burst([row.kept for row in kept], current.opened, self._seen)
        rows = [self._marked(row, guard, loss) for row in (*kept, self._as_kept(current))]
        thinned = self._thin(lease, rows, len(update.blob))
        written = {row.kept.row_id: row.kept for row in rows}
        changed = [current.row_id, *([guard.row_id] if guard is not None else [])]
        for version in (*(written[row_id] for row_id in changed), *thinned.changed):
            if version.row_id not in thinned.drop:
                self.plan.replaced.append((version.replaced, version.burst, version.row_id))
        if loss is not None:
            self.plan.losses.append(loss)
        self._open_row(lease, slot, update)

    def _thin(self, lease: SqliteLease, rows: Sequence[KeptRow], added: int) -> Thinned:
        """Thin a slot's kept versions, more where the peer has no room for `added` bytes.

        One is left of them in any case: the one that `thin` would keep before all others.
        """
        sizes = {row.kept.row_id: row.size for row in rows}
        for history in range(self._quotas.history, 0, -1):
            thinned = thin([row.kept for row in rows], history, self._seen)
            freed = sum(sizes[row_id] for row_id in thinned.drop)
            if self._fits(lease, added - freed):
                break
        self._charge(lease, added - freed, replaces=True)
        self.plan.drops += thinned.drop
        self.totals.versions -= len(thinned.drop)
        return thinned

    def _marked(self, row: KeptRow, guard: Kept | None, loss: Loss | None) -> KeptRow:
        """A kept row with what this replacement does to it."""
        kept = row.kept
        if guard is not None and kept.row_id == guard.row_id:
            kept = replace(kept, burst=self._seen)
        if loss is not None and kept.row_id == loss.row_id and (loss.pin or loss.hold_until):
            kept = replace(kept, fixed=True)
        return replace(row, kept=kept)

    def _as_kept(self, current: Current) -> KeptRow:
        revision = current.revision
        kept = Kept(current.row_id, revision.sha256, current.opened, self._seen)
        fixed = current.held or current.pins != 0
        return KeptRow(replace(kept, fixed=fixed), revision.size, current.pins)

    def _loss(
        self, lease: SqliteLease, slot: Slot, update: Update, current: Current
    ) -> Loss | None:
        """The mark of data loss (DESIGN: Pins and holds)."""
        given = lease.holdings.given.get(slot)
        size = lease.firsts.get(slot, len(update.blob))
        if given is None or slot in lease.sent or not _shrunk(given[1], size):
            return None
        # What is current may be newer than what was given back, and good as well.
        row_id, good = given
        if _shrunk(current.revision, size):
            row_id, good = current.row_id, current.revision
        pins = [row.kept.row_id for row in self._kept.get(slot, ()) if row.pins & PIN_AUTOMATIC]
        if current.pins & PIN_AUTOMATIC:
            pins.append(current.row_id)
        # A hold that is there runs its time: each reconnect of a peer whose channels are
        # honestly gone would start it anew, and the newest would never be given back.
        held = slot in lease.holdings.held and (
            (until := lease.holdings.held[slot]) is None or until > self._seen
        )
        hold = 0 if held else self._quotas.hold_on_shrink
        return Loss(
            slot,
            row_id,
            good,
            size,
            pin=row_id not in pins and len(pins) < MAX_AUTOMATIC_PINS,
            hold_until=self._seen + hold if hold else None,
            given_size=given[1].size,
        )

    def _fits(self, lease: SqliteLease, added: int) -> bool:
        return self._size(lease) + added <= self._quotas.max_bytes_per_peer

    def _size(self, lease: SqliteLease) -> int:
        return self.plan.sizes.get(lease, lease.holdings.size)

    def _charge(
        self, lease: SqliteLease, added: int, *, new_peer: bool = False, replaces: bool = False
    ) -> None:
        """Count bytes, and make room for them; or refuse them.

        A replacement by a peer that is no stranger never fails for the store's sake.
        """
        if added > 0 and not self._fits(lease, added):
            text = f"{int(self._quotas.max_bytes_per_peer)} bytes are kept for a peer"
            raise Refused(Reason.PEER_FULL, text)
        full = self.totals.bytes + added > self._quotas.max_bytes
        if (added > 0 and full) or new_peer:
            may_exceed = replaces and (lease.holdings.established or self._protected(lease))
            self._room.make(added, place=new_peer, may_exceed=may_exceed)
        self.totals.bytes += added
        self.plan.sizes[lease] = self._size(lease) + added

    def _open_row(self, lease: SqliteLease, slot: Slot, update: Update) -> None:
        self.totals.versions += 1
        self._write(lease, slot, update, self.totals.last_revision + 1, opened_here=True)

    def _write(
        self, lease: SqliteLease, slot: Slot, update: Update, row_id: int, *, opened_here: bool
    ) -> None:
        self.totals.last_revision += 1
        number = self.totals.last_revision
        revision = Revision(slot, number, len(update.blob), update.sha256, self._now)
        digest = backup_digest(slot, number, update.sha256)
        self.plan.rows.append(
            (row_id, slot.node_id, int(slot.kind), slot.channel_id, number, revision.size,
             update.sha256, digest, self._now, self._now, self._seen, update.blob)
        )  # fmt: skip
        before = lease.holdings.current.get(slot)
        same_row = before is not None and before.row_id == row_id
        now = Current(
            row_id,
            revision,
            last_seen_at=self._now,
            opened=before.opened if before is not None and same_row else self._seen,
            pins=before.pins if before is not None and same_row else 0,
            held=before is not None and same_row and before.held,
            opened_here=opened_here,
            verified=True,
        )
        self.plan.current.append((lease, slot, now))
