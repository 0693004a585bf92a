"""What is known of peers that were here, as far as that is not written yet.

It is noted in memory and written by the way: when a peer was here last and where from, what its
`init` offered, why updates of it were refused. What could not be written stays to be written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from peerstore.store import statements
from peerstore.store.base import Refusal
from peerstore.store.lease import MAX_REASONS, SqliteLease
from peerstore.store.operations import Transaction
from peerstore.store.times import Moment, Times
from peerstore.types import NodeId

LATE_VISIT_SECONDS = 3600
"""How old the last written visit of a peer may get; one at another height is written at once."""


@dataclass(slots=True)
class _Visit:
    """What is to be written of a peer: the newest of all, and its refusals, the last one last."""

    at: int
    moment: Moment
    established: bool
    address: str
    address_group: str
    features: bytes
    refusals: dict[str, Refusal]

    def go_on(self, newer: _Visit) -> None:
        """Take in what is known since."""
        self.at, self.moment, self.established = newer.at, newer.moment, newer.established
        if newer.address:
            self.address, self.features = newer.address, newer.features
            self.address_group = newer.address_group
        for reason, refusal in newer.refusals.items():
            before = self.refusals.pop(reason, None)
            if before is not None:
                count = before.count + refusal.count
                refusal = replace(refusal, count=count, first_at=before.first_at)
            self.refusals[reason] = refusal
        while len(self.refusals) > MAX_REASONS:
            del self.refusals[next(iter(self.refusals))]

    def row(self, node_id: NodeId) -> dict[str, object]:
        """See statements.write_visits."""
        return {
            "node_id": node_id,
            "at": self.at,
            "seen": self.moment.seen,
            "aged": self.moment.aged,
            "height": self.moment.height,
            "established": self.established,
            "address": self.address,
            "address_group": self.address_group,
            "features": self.features,
        }


class Visits:
    """See the module's docstring.

    What `write` has written counts as that once `written` says that it is committed; else
    `not_written` puts it back.
    """

    def __init__(
        self, wall: Callable[[], float], times: Times, probation: Callable[[], int]
    ) -> None:
        self._wall = wall
        self._times = times
        self._probation = probation
        self._waiting: dict[NodeId, _Visit] = {}
        self._being_written: dict[NodeId, _Visit] = {}

    def __contains__(self, node_id: NodeId) -> bool:
        """Whether a peer was here since that was written."""
        return node_id in self._waiting

    def established(self, node_id: NodeId) -> bool:
        """Whether it is to be written of a peer that it is established."""
        visit = self._waiting.get(node_id)
        return visit is not None and visit.established

    def establish(self, lease: SqliteLease, seen: int) -> None:
        """Have a peer be established if its probation is over at that time."""
        holdings = lease.holdings
        if holdings.first_seen is not None and not holdings.established:
            holdings.established = seen - holdings.first_seen >= self._probation()

    def note(self, lease: SqliteLease) -> None:
        """A peer is here or goes now, or said something; what has nothing here is not noted."""
        if lease.holdings.first_seen is None:
            return
        moment, at = self._times.now, int(self._wall())
        self.establish(lease, moment.seen)
        visit = _Visit(
            at,
            moment,
            lease.holdings.established,
            lease.address,
            lease.address_group,
            lease.features,
            {
                reason: Refusal(reason, count, first_at=at, last_at=at)
                for reason, count in lease.refusals.items()
            },
        )
        lease.refusals.clear()
        before = self._waiting.get(lease.node_id)
        if before is None:
            self._waiting[lease.node_id] = visit
        else:
            before.go_on(visit)

    def is_late(self, lease: SqliteLease) -> bool:
        """Whether the visit of a peer that has just come has to be written at once.

        Retention counts from it also when the daemon is killed now.
        """
        moment, before = self._times.now, lease.holdings
        return before.first_seen is not None and (
            before.last_height != moment.height
            or moment.aged - before.last_aged >= LATE_VISIT_SECONDS
        )

    def drop(self, node_id: NodeId) -> None:
        """All of a peer is deleted."""
        self._waiting.pop(node_id, None)

    async def write(self, tx: Transaction) -> set[NodeId]:
        """Write all, in a transaction; an operation that changes nobody's holdings."""
        visits, self._waiting = self._waiting, {}
        self._being_written = visits
        await statements.write_visits(
            tx,
            [visit.row(node_id) for node_id, visit in visits.items()],
            [
                {
                    "node_id": node_id,
                    "reason": refusal.reason,
                    "count": refusal.count,
                    "first_at": refusal.first_at,
                    "last_at": refusal.last_at,
                }
                for node_id, visit in visits.items()
                for refusal in visit.refusals.values()
            ],
        )
        return set()

    def written(self) -> None:
        """What was written last is committed; what came meanwhile is still to be."""
        self._being_written = {}

    def not_written(self) -> None:
        """What was written last is still to be, with what came meanwhile on top."""
        older, self._being_written = self._being_written, {}
        for node_id, visit in older.items():
            newer = self._waiting.get(node_id)
            if newer is not None:
                visit.go_on(newer)
            self._waiting[node_id] = visit
