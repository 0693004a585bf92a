"""Who gives way when the store is full, decided before anything is deleted; pure.

In this order: kept versions of strangers; whole strangers; established peers that have been away
for long. A stranger is a peer on probation. Who is connected, has a channel, is allow-listed or
has a version that an operator keeps is no candidate, and is not among what comes here: see
giving_way.py. For a place among `max_peers` only whole peers can give way. Nobody gives way to an
update that is refused all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from peerstore.store.base import Quotas
from peerstore.tally import Reason
from peerstore.types import NodeId

NO_PLACE = "no more peers are taken here: try again in some days, or store with another node"
FULL = "the store is full: try again in some days, or store with another node"
TOO_MANY = "the store is full, and too many come at once: try again in a minute"


class Refused(Exception):  # noqa: N818 - control flow within the planning
    """An update is not taken; the text is what the peer is told."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(slots=True)
class Totals:
    """What is stored in all, and the newest revision given out."""

    last_revision: int
    peers: int
    backups: int
    versions: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Spare:
    """A kept version of a stranger."""

    row_id: int
    size: int
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Displaced:
    """A peer that gives way with all that it has stored, its kept versions included."""

    node_id: NodeId
    backups: int
    versions: int
    bytes: int
    address_group: str
    reason: str


@dataclass(frozen=True, slots=True)
class Candidates:
    """Who may give way, first who does so first; `more` is whether there may be others."""

    spare: Sequence[Spare] = ()
    peers: Sequence[Displaced] = ()
    more: bool = False


class Room:
    """Makes room in the totals of a transaction; `drops` and `displaced` are what it costs."""

    def __init__(self, quotas: Quotas, totals: Totals, candidates: Candidates) -> None:
        self.totals = totals
        self.drops: list[int] = []
        self.displaced: list[Displaced] = []
        self._quotas = quotas
        self._more = candidates.more
        self._spare = deque(candidates.spare)
        self._peers = deque(candidates.peers)
        # Spare versions of those who may go as a whole: each byte counts once.
        self._own: dict[NodeId, list[Spare]] = {each.node_id: [] for each in candidates.peers}
        for spare in candidates.spare:
            if spare.node_id in self._own:
                self._own[spare.node_id].append(spare)
        self._dropped: set[int] = set()
        self._gone: set[NodeId] = set()
        owned = sum(spare.size for own in self._own.values() for spare in own)
        self._left = (
            sum(spare.size for spare in self._spare)
            + sum(each.bytes for each in self._peers)
            - owned
        )

    def make(self, added: int, *, place: bool, may_exceed: bool) -> None:
        """See that there is room for `added` bytes, and for one more peer if it takes a `place`.

        With `may_exceed` what there is gives way, be it enough or not. Raises Refused, and then
        nobody has given way.
        """
        places = self.totals.peers + 1 - self._quotas.max_peers if place else 0
        wanted = self.totals.bytes + added - self._quotas.max_bytes if added > 0 else 0
        if places > len(self._peers):
            raise Refused(Reason.TOO_MANY_PEERS, TOO_MANY if self._more else NO_PLACE)
        if wanted > self._left and not may_exceed:
            raise Refused(Reason.STORE_FULL, TOO_MANY if self._more else FULL)
        for _ in range(places):
            wanted -= self._displace()
        while wanted > 0 and self._spare:
            wanted -= self._drop(self._spare.popleft())
        while wanted > 0 and self._peers:
            wanted -= self._displace()

    def _drop(self, spare: Spare) -> int:
        """Have a kept version go; the bytes that this frees."""
        if spare.node_id in self._gone:
            return 0
        self._dropped.add(spare.row_id)
        self.drops.append(spare.row_id)
        self.totals.versions -= 1
        return self._free(spare.size)

    def _displace(self) -> int:
        """Have the next peer go; the bytes that this frees."""
        peer = self._peers.popleft()
        dropped = [s.size for s in self._own[peer.node_id] if s.row_id in self._dropped]
        self._gone.add(peer.node_id)
        self.displaced.append(peer)
        self.totals.peers -= 1
        self.totals.backups -= peer.backups
        self.totals.versions -= peer.versions - len(dropped)
        return self._free(peer.bytes - sum(dropped))

    def _free(self, size: int) -> int:
        self.totals.bytes -= size
        self._left -= size
        return size
