"""What a store is, whatever keeps the bytes.

A connection works through a Lease: the right to write one peer's slots, which a newer connection
of the same peer takes over. The store tells the lease's Listener what became of its updates.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from peerstore.types import BackupKind, ChannelState, NodeId, Slot

_DIGEST_TAG = b"peerstore backup 1"
_CHANNEL_TAG = b"peerstore channel 1"


class Revision(NamedTuple):
    """One stored version of a slot, without its bytes.

    `revision` rises with every version stored and is never used again; `size` is in bytes,
    `stored_at` in Unix seconds.
    """

    slot: Slot
    revision: int
    size: int
    sha256: bytes
    stored_at: int


@dataclass(frozen=True, slots=True)
class Backup:
    """A version with its bytes, which matched its digest when they were read."""

    revision: Revision
    blob: bytes


@dataclass(frozen=True, slots=True)
class Version:
    """A version with what the store knows of it beside its bytes.

    `pinned` is "" or who pinned it: "data loss" (of itself, on the mark of data loss) or
    "operator"; `held` whether it is what the peer gets back in place of the current one;
    `slot_held` whether some version of the slot is.
    """

    row_id: int
    revision: Revision
    current: bool
    pinned: str
    held: bool
    slot_held: bool


ALARM_KINDS = ("shrink", "damaged", "behind", "source")
"""See Alarm."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that the operator has to know; it stays until acknowledged.

    `kind` is shrink (the mark of data loss), damaged (a blob does not match its digest), behind
    (the database is older than its commit mark) or source (another routing node than before).
    Times are Unix seconds.
    """

    number: int
    kind: str
    text: str
    raised_at: int
    last_at: int
    count: int
    acknowledged_at: int | None
    slot: Slot | None = None
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why updates of a peer were not stored, how often, and when; times are Unix seconds."""

    reason: str
    count: int
    first_at: int
    last_at: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer that has stored something.

    `features` is the field of its last `init`, as far as its bits have a name; `address` is where
    it came from last. `rule` is "allow", "deny" or "". `backups` and `bytes` count what is stored,
    kept versions included in the bytes. `away` is for how many seconds the daemon has not seen it,
    `last_height` the block height then, None where it is not known; other times are Unix seconds.
    """

    node_id: NodeId
    first_seen_at: int
    last_seen_at: int
    away: int
    last_height: int | None
    established: bool
    address: str
    features: bytes
    forgone: bool
    rule: str
    backups: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Passed:
    """What has passed since a closing and since the peer's last visit, whichever is later.

    In blocks where a height is known for both; else in seconds that have aged things.
    """

    blocks: int | None
    seconds: int


@dataclass(frozen=True, slots=True)
class ChannelRow:
    """A channel that has a backup here, or that the routing node has named.

    `state` is what its messages have said, None where there is no backup or that is damaged;
    `node_says` "open", "closed" or "" where the routing node says nothing. The closing, as the node
    says or else the messages, was at `closed_height`, None where no height was known, and
    `closed_at` in Unix seconds. `passed` is what has passed since then, None where nothing counts;
    `peer_passed` the same for all channels of the peer, where it has something else stored.
    """

    slot: Slot
    has_backup: bool
    state: ChannelState | None
    node_says: str
    closed_height: int | None
    closed_at: int | None
    passed: Passed | None
    peer_passed: Passed | None


@dataclass(frozen=True, slots=True)
class Due:
    """A slot that retention deletes now: how much of it, and why."""

    slot: Slot
    versions: int
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Retention:
    """How long is kept what nobody needs any more; see retention.py.

    After the closing of channels `blocks`, or where no height is known `after_close` seconds; for
    peers without a known channel that are never seen again `inactive` seconds, 0 keeps them.
    Seconds are those that have aged things.
    """

    blocks: int = 2016
    after_close: int = 14 * 86400
    inactive: int = 0

    def left(self, passed: Passed | None) -> tuple[int | None, int | None]:
        """In how many blocks, or else seconds, something goes as things are; both None: never."""
        if passed is None:
            return None, None
        if passed.blocks is not None:
            return max(0, self.blocks - passed.blocks), None
        return None, max(0, self.after_close - passed.seconds)


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much is taken, and how versions are kept.

    Sizes are bytes, times seconds that the daemon sees pass. `hold_on_shrink` 0 means that the
    newest is always what is given back.
    """

    history: int = 8
    hold_on_shrink: int = 2 * 86400
    max_bytes: int = 10 << 30
    max_bytes_per_peer: int = 4 << 20
    max_peers: int = 100_000
    max_channels_per_peer: int = 100
    probation: int = 86400
    min_free_space: int = 256 << 20


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is stored: peers and backups by number, every version of these by number and
    bytes."""

    peers: int
    backups: int
    bytes: int
    versions: int


SAMPLE_SECONDS = 600
"""How often activity is noted."""

KEPT_SAMPLES = 31 * 86400 // SAMPLE_SECONDS
"""How many samples of activity stay: those of 31 days in which the daemon ran."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How many bytes were stored `at` a time, in Unix seconds, and how many updates had come since
    the sample before."""

    at: int
    bytes: int
    updates: int


def backup_digest(slot: Slot, revision: int, sha256: bytes) -> bytes:
    """The digest that ties a blob, through its SHA-256, to its owner and revision: 32 bytes.

    A flipped bit in a key must not hand one peer's blob to another.
    """
    return hashlib.sha256(
        b"".join(
            (
                _DIGEST_TAG,
                slot.node_id,
                bytes((slot.kind, len(slot.channel_id))),
                slot.channel_id,
                revision.to_bytes(8, "big"),
                sha256,
            )
        )
    ).digest()


def channel_digest(slot: Slot, state: ChannelState) -> bytes:
    """The digest that ties the state of a channel to it and to its peer: 32 bytes."""
    flags = state.whole | state.shutdown << 1 | state.closing << 2
    return hashlib.sha256(
        b"".join(
            (
                _CHANNEL_TAG,
                slot.node_id,
                slot.channel_id,
                state.commitments.to_bytes(8, "big"),
                state.revocations.to_bytes(8, "big"),
                state.last_secret,
                bytes((flags,)),
            )
        )
    ).digest()


class Listener(Protocol):
    """Who handed updates in; `stored` and `not_stored` come in the order of their numbers."""

    def refused(self, sequences: Sequence[int], reason: str) -> None:
        """These updates are not stored; `stored` follows for those around them."""

    def stored(self, sequence: int) -> None:
        """Every update up to `sequence` is durable or was replaced by one that is."""

    def not_stored(self, sequence: int, reason: str) -> None:
        """The updates up to `sequence` that were not stored before are lost, old data stays."""


class Lease(Protocol):
    """The right of the newest connection of one peer to write its slots."""

    node_id: NodeId

    @property
    def slots(self) -> Iterable[Slot]:
        """The slots that held a backup when the lease was opened or were written since."""

    @property
    def channels(self) -> Mapping[bytes, ChannelState | None]:
        """The state of each channel that has a backup, by channel id; None where it does not
        match its digest."""

    @property
    def established(self) -> bool:
        """Whether the peer was here before for longer than the probation."""

    @property
    def last_height(self) -> int | None:
        """The block height at the visit before this one, None where it is not known."""

    @property
    def node_backup_forgone(self) -> bool:
        """Whether the peer hung up when it was shown its node backup, and stored none since."""

    def forgo_node_backup(self) -> None:
        """Remember that it did, for the next lease on."""

    def meet(self, address: str, features: bytes) -> None:
        """Where the peer came from, and the feature field of its `init`."""

    def pace(self, commits_per_second: int | None) -> None:
        """Write what comes from now on in at most so many transactions a second; None: in any
        number. What waits is merged, the newest of a slot wins."""

    def note_refusal(self, reason: str) -> None:
        """An update was refused: kept for the operator if the peer has something stored."""

    async def read(self, slot: Slot) -> Backup | None:
        """The current version of a slot; raises DamagedBackupError, StoreError."""

    def put(
        self, sequence: int, slot: Slot, blob: bytes | None, channel: ChannelState | None = None
    ) -> None:
        """Hand in an update; the listener is told what became of it.

        `channel` is the state of the channel of a channel backup, stored in the same transaction;
        without a blob it alone is, and only where the channel has a backup. Raises
        StoreClosedError when a newer connection has taken over.
        """

    def close(self) -> None:
        """The connection is gone: what was handed in is still stored, nobody is told."""


class Store(Protocol):
    """Keeps the newest backup of every slot."""

    @property
    def congested(self) -> bool:
        """Whether so much waits to be written that peers should be read no further."""

    async def open_lease(
        self, node_id: NodeId, listener: Listener, *, soon: BackupKind | None = None
    ) -> Lease:
        """Fence off the older connection of the peer, wait until what it handed in is decided,
        and fix what this one gets back; raises StoreError.

        `soon` is of which kind, one without channel ids, the peer is given its backup next: that is
        read along.
        """

    def versions(self, node_id: NodeId | None = None) -> AsyncIterator[Version]:
        """What is stored, for one peer or for all, ordered by slot and revision."""

    async def counts(self) -> Counts:
        """How much is stored."""

    async def settle(self) -> None:
        """Return when everything that was handed in is decided."""

    async def close(self) -> None:
        """Write what was handed in, then close."""
