"""A connection's right to write one peer's slots on the SQLite store; see base.Lease."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from peerstore.errors import StoreClosedError
from peerstore.store.base import Backup, Listener, Revision
from peerstore.types import NodeId, Slot


@dataclass(frozen=True, slots=True)
class Update:
    """An update that waits; `sha256` is that of the blob."""

    blob: bytes
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Current:
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
    says until when a slot is held. `rows` are all its versions. `first_seen` is None for a peer
    that is not known yet. Times are seconds that the daemon has seen pass.
    """

    current: dict[Slot, Current] = field(default_factory=dict)
    given: dict[Slot, tuple[int, Revision]] = field(default_factory=dict)
    held: dict[Slot, int | None] = field(default_factory=dict)
    rows: set[int] = field(default_factory=set)
    size: int = 0
    first_seen: int | None = None
    established: bool = False


class LeaseStore(Protocol):
    """What a lease needs of its store."""

    def submit(self, lease: SqliteLease, slot: Slot, update: Update) -> None:
        """Take an update."""

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
        "fenced",
        "firsts",
        "holdings",
        "node_id",
        "received",
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
        self.waiting: dict[Slot, Update] = {}
        self.sent: set[Slot] = set()
        """Slots of which an update of this connection was taken."""
        self.firsts: dict[Slot, int] = {}
        """Bytes of the first update that this connection sent of a slot."""
        self.received = 0
        self.resolved = 0
        self._store = store
        self._listener: Listener | None = listener
        self._predecessor = predecessor
        self._settled: asyncio.Event | None = None

    @property
    def slots(self) -> Iterable[Slot]:
        return self.holdings.given.keys() | self.holdings.current.keys()

    async def read(self, slot: Slot) -> Backup | None:
        return await self._store.read_sound(self, slot)

    def put(self, sequence: int, slot: Slot, blob: bytes) -> None:
        if self.fenced:
            raise StoreClosedError("a newer connection of this peer has taken over")
        # Hashed here, one at a time: a whole batch at once would hold the loop up.
        self._store.submit(self, slot, Update(blob, hashlib.sha256(blob).digest()))
        self.firsts.setdefault(slot, len(blob))
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

    def resolve(self, sequence: int, failure: str | None) -> None:
        """Everything up to `sequence` is decided: tell the listener and who waits."""
        self.resolved = sequence
        if self._settled is not None and sequence >= self.received:
            self._settled.set()
            self._settled = None
        if self._listener is None:
            self._store.release(self)
        elif failure is None:
            self._listener.stored(sequence)
        else:
            self._listener.not_stored(sequence, failure)
