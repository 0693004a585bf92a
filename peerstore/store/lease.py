"""A connection's right to write one peer's slots on the SQLite store; see base.Lease."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from peerstore.addresses import group_of, parse_ip
from peerstore.errors import AddressError, StoreClosedError
from peerstore.store.base import Backup, Listener, Revision
from peerstore.types import ChannelState, NodeId, Slot, parse_host_port

MAX_REASONS = 10
"""Reasons of refusals that are kept of a peer."""


class Update(NamedTuple):
    """A new blob; `sha256` is that of the blob."""

    blob: bytes
    sha256: bytes


@dataclass(slots=True)
class Change:
    """What waits to be written of a slot: a new blob, the state of its channel, or both.

    `sequences` are the numbers of all that was handed in for it.
    """

    update: Update | None
    channel: ChannelState | None = None
    sequences: list[int] = field(default_factory=list)

    @property
    def weight(self) -> int:
        """Bytes of its blob."""
        return 0 if self.update is None else len(self.update.blob)

    def over(self, older: Change) -> Change:
        """This one and what it leaves of an older one, which is of no use after that."""
        older.sequences.extend(self.sequences)
        return Change(self.update or older.update, self.channel or older.channel, older.sequences)


class Current(NamedTuple):
    """The current version of a slot and its row.

    `opened` is when it became current, in seconds that the daemon has seen pass. `opened_here`
    says that this connection opened the row, so that its later updates overwrite it; `damaged`
    that its bytes did not match their digest when they were read, `verified` that they did, or
    were written by this program.
    """

    row_id: int
    revision: Revision
    last_seen_at: int
    opened: int
    pins: int = 0
    held: bool = False
    opened_here: bool = False
    damaged: bool = False
    verified: bool = False


@dataclass(slots=True)
class Holdings:
    """What a peer has in the store: current versions, what it gets back, how much it is.

    `given` is the current version, or the held one, as it was when the lease was opened; `held`
    says until when a slot is held. `rows` are all its versions. `channels` are the states of the
    channels that have a backup, None where one is damaged; `forgone` is whether the peer must not
    be shown its node backup. `first_seen` is None for a peer that is not known yet. Times are
    seconds that the daemon has seen pass. `last_aged` and `last_height` are of the visit before.
    `read_along` is one of the versions in `given` with its bytes, until it is given back.
    """

    current: dict[Slot, Current] = field(default_factory=dict)
    given: dict[Slot, tuple[int, Revision]] = field(default_factory=dict)
    held: dict[Slot, int | None] = field(default_factory=dict)
    rows: frozenset[int] = frozenset()
    channels: dict[bytes, ChannelState | None] = field(default_factory=dict)
    forgone: bool = False
    size: int = 0
    first_seen: int | None = None
    established: bool = False
    last_aged: int = 0
    last_height: int | None = None
    read_along: Backup | None = None


class LeaseStore(Protocol):
    """What a lease needs of its store."""

    def submit(self, lease: SqliteLease, slot: Slot, change: Change) -> None:
        """Take a change."""

    def visit(self, lease: SqliteLease) -> None:
        """Something is known of the peer that is to be written."""

    def forgo(self, node_id: NodeId) -> None:
        """Remember that the peer must not be shown its node backup."""

    def release(self, lease: SqliteLease) -> None:
        """The lease was closed."""

    async def read_sound(self, lease: SqliteLease, slot: Slot) -> Backup | None:
        """What the peer gets back, or the newest sound version before it."""


class SqliteLease:
    """See the module's docstring."""

    __slots__ = (
        "_listener",
        "_predecessor",
        "_settled",
        "_store",
        "address",
        "address_group",
        "due_at",
        "features",
        "fenced",
        "firsts",
        "holdings",
        "node_id",
        "pause",
        "received",
        "refusals",
        "resolved",
        "sent",
        "waiting",
    )

    def __init__(
        self,
        store: LeaseStore,
        node_id: NodeId,
        listener: Listener,
        predecessor: SqliteLease | None,
    ) -> None:
        self.node_id = node_id
        self.fenced = False
        self.holdings = Holdings()
        self.waiting: dict[Slot, Change] = {}
        self.sent: frozenset[Slot] = frozenset()
        """Slots of which an update of this connection was taken."""
        self.firsts: dict[Slot, int] = {}
        """Bytes of the first update that this connection sent of a slot."""
        self.address = ""
        self.address_group = ""
        self.features = b""
        self.pause = 0.0
        """Seconds from one transaction with changes of this lease to the next."""
        self.due_at = 0.0
        """When the next one may come."""
        self.refusals: dict[str, int] = {}
        """Why updates were refused, and how often, as far as that is not written."""
        self.received = 0
        self.resolved = 0
        self._store = store
        self._listener: Listener | None = listener
        self._predecessor = predecessor
        self._settled: asyncio.Event | None = None

    @property
    def slots(self) -> Iterable[Slot]:
        return self.holdings.given.keys() | self.holdings.current.keys()

    @property
    def channels(self) -> Mapping[bytes, ChannelState | None]:
        return self.holdings.channels

    @property
    def established(self) -> bool:
        return self.holdings.established

    @property
    def last_height(self) -> int | None:
        return self.holdings.last_height

    @property
    def node_backup_forgone(self) -> bool:
        return self.holdings.forgone

    def forgo_node_backup(self) -> None:
        self._store.forgo(self.node_id)

    def meet(self, address: str, features: bytes) -> None:
        self.address, self.features = address, features
        self.address_group = _group_of(address)
        self._store.visit(self)

    def pace(self, commits_per_second: int | None) -> None:
        self.pause = 1 / commits_per_second if commits_per_second else 0.0

    def note_refusal(self, reason: str) -> None:
        if reason in self.refusals or len(self.refusals) < MAX_REASONS:
            self.refusals[reason] = self.refusals.get(reason, 0) + 1
            self._store.visit(self)

    async def read(self, slot: Slot) -> Backup | None:
        return await self._store.read_sound(self, slot)

    def put(
        self, sequence: int, slot: Slot, blob: bytes | None, channel: ChannelState | None = None
    ) -> None:
        if self.fenced:
            raise StoreClosedError("a newer connection of this peer has taken over")
        update = None
        if blob is not None:
            # Hashed here, where it has just been decrypted: with the batch it would have to be
            # fetched from memory again, and the disk would wait.
            update = Update(blob, hashlib.sha256(blob).digest())
            self.firsts.setdefault(slot, len(blob))
        self._store.submit(self, slot, Change(update, channel, [sequence]))
        self.received = sequence

    def close(self) -> None:
        self.fenced = True
        self._listener = None
        self._store.release(self)

    def fence(self) -> None:
        """A newer connection takes over: nothing more is taken."""
        self.fenced = True

    def chain(self) -> Iterator[SqliteLease]:
        """This lease and the older ones that it has not seen settled."""
        lease: SqliteLease | None = self
        while lease is not None:
            yield lease
            lease = lease._predecessor

    def undecided_predecessor(self) -> SqliteLease | None:
        """The newest of the older leases that has updates which are not decided."""
        return next((o for o in self.chain() if o is not self and o.resolved < o.received), None)

    async def settled(self) -> None:
        """Return when all that was handed in, here and by those before, is decided."""
        # In a loop, not by recursion: reconnects may overlap by the thousand.
        for lease in (*self.chain(),)[::-1]:
            while lease.resolved < lease.received:
                if lease._settled is None:
                    lease._settled = asyncio.Event()
                await lease._settled.wait()
        self._predecessor = None

    def resolve(
        self,
        sequence: int,
        failure: str | None,
        refused: Iterable[tuple[Sequence[int], str]] = (),
    ) -> None:
        """Everything up to `sequence` is decided: tell the listener and who waits.

        With a `failure` nothing was stored, else all but what was `refused`.
        """
        self.resolved = sequence
        if self._settled is not None and sequence >= self.received:
            self._settled.set()
            self._settled = None
        if self._listener is None:
            self._store.release(self)
        elif failure is None:
            for sequences, reason in refused:
                self._listener.refused(sequences, reason)
            self._listener.stored(sequence)
        else:
            self._listener.not_stored(sequence, failure)


def _group_of(address: str) -> str:
    """The group of an address with its port."""
    try:
        host, _ = parse_host_port(address)
    except AddressError:
        return ""
    return group_of(parse_ip(host))
