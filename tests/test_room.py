"""Who gives way, decided without a database: the order among strangers, and how room is made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstore.store import crowd
from peerstore.store.base import Quotas
from peerstore.store.crowd import Crowds, Group, Stranger
from peerstore.store.room import (
    FULL,
    NO_PLACE,
    TOO_MANY,
    Candidates,
    Displaced,
    Refused,
    Room,
    Spare,
    Totals,
)
from peerstore.types import NodeId
from tests.helpers import quick
from tests.store_contract import peer

# The order among strangers


class InMemory:
    """Strangers in a list, read in small pages."""

    def __init__(self, strangers: Sequence[Stranger]) -> None:
        self.strangers = sorted(strangers, key=lambda s: (s.first_seen, s.node_id), reverse=True)
        self.read = 0

    def of(self, group: str) -> list[Stranger]:
        return [each for each in self.strangers if each.address_group == group]

    async def groups(self, after: Group | None) -> Sequence[Group]:
        names = {each.address_group for each in self.strangers}
        found = [
            Group(name, len(self.of(name)), self.of(name)[0].first_seen, self.of(name)[0])
            for name in names
        ]
        found.sort(key=key_of, reverse=True)
        rest = [each for each in found if after is None or key_of(each) < key_of(after)]
        self.read += len(rest[:2])
        return rest[:2]

    async def members(self, after: Stranger, limit: int) -> Sequence[Stranger]:
        mine = self.of(after.address_group)
        start = mine.index(after) + 1
        self.read += len(mine[start : start + limit])
        return mine[start : start + limit]


def key_of(group: Group) -> tuple[int, int, str]:
    return group.strangers, group.newest, group.address_group


def stranger(number: int, group: str, first_seen: int) -> Stranger:
    return Stranger(peer(number), group, first_seen, None)


def order(
    source: InMemory, staying: frozenset[NodeId] = frozenset(), limit: int = 1000
) -> list[NodeId]:
    """Who goes, in order."""

    def stays(each: Stranger) -> bool:
        return each.node_id in staying and each.node_id[-1] % 2 == 0

    async def claim(each: Stranger) -> NodeId | None:
        return None if each.node_id in staying else each.node_id

    async def go() -> list[NodeId]:
        crowds = Crowds(source, stays, claim)
        gone: list[NodeId] = []
        while len(gone) < limit and (found := await crowds.next()) is not None:
            gone.append(found)
        return gone

    return asyncio.run(go())


def naive(strangers: Sequence[Stranger], staying: frozenset[NodeId]) -> list[NodeId]:
    """The same by the rule: of the most crowded group that has one to go the newest, again and
    again."""
    left = list(strangers)
    gone: list[NodeId] = []
    while True:
        counts = {s.address_group: 0 for s in left}
        for each in left:
            counts[each.address_group] += 1
        going = [each for each in left if each.node_id not in staying]
        if not going:
            return gone
        first = max(
            going,
            key=lambda s: (counts[s.address_group], s.first_seen, s.address_group, s.node_id),
        )
        gone.append(first.node_id)
        left.remove(first)


def test_the_newest_of_the_most_crowded_group_goes_first() -> None:
    crowded = [stranger(n, "crowded", 10 * n) for n in range(3)]
    quiet = [stranger(10, "quiet", 500)]
    assert order(InMemory([*crowded, *quiet])) == [peer(2), peer(1), peer(10), peer(0)]


def test_who_stays_counts_for_its_group_all_the_same() -> None:
    crowded = [stranger(n, "crowded", 10 * n) for n in range(3)]
    quiet = [stranger(10, "quiet", 500), stranger(11, "quiet", 501)]
    staying = frozenset({peer(1), peer(2)})
    assert order(InMemory([*crowded, *quiet]), staying)[:2] == [peer(0), peer(11)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8), st.booleans()), max_size=40))
@quick
def test_the_order_is_that_of_the_rule(rows: list[tuple[int, int, bool]]) -> None:
    strangers = [stranger(n, f"g{group}", seen) for n, (group, seen, _) in enumerate(rows)]
    staying = frozenset(peer(n) for n, (_, _, stays) in enumerate(rows) if stays)
    assert order(InMemory(strangers), staying) == naive(strangers, staying)


def test_no_more_are_read_than_it_takes() -> None:
    source = InMemory([stranger(n, f"g{n % 100:03}", n) for n in range(1000)])
    assert len(order(source, limit=1)) == 1
    assert source.read < 20


def test_those_that_stay_are_not_looked_at_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "LOOKED_AT", 50)
    strangers = [stranger(n, "crowded", n) for n in range(1000)]
    source = InMemory(strangers)
    assert order(source, frozenset(each.node_id for each in strangers[1:])) == []
    assert source.read < 200


# Making room

QUOTAS = Quotas(max_bytes=1000, max_peers=10)


def totals(peers: int = 5, size: int = 1000) -> Totals:
    return Totals(last_revision=1, peers=peers, backups=20, versions=100, bytes=size)


def gone(number: int, size: int = 100, versions: int = 2) -> Displaced:
    return Displaced(peer(number), 1, versions, size, "", "")


def spare(row_id: int, size: int, owner: int = 90) -> Spare:
    return Spare(row_id, size, peer(owner))


def room(
    *peers: Displaced, spares: Sequence[Spare] = (), more: bool = False, **stored: int
) -> Room:
    return Room(QUOTAS, totals(**stored), Candidates(spares, peers, more))


def test_where_there_is_room_nobody_gives_way() -> None:
    made = room(gone(1), spares=[spare(1, 50)], peers=9, size=900)
    made.make(100, place=True, may_exceed=False)
    assert (made.drops, made.displaced) == ([], [])
    assert made.totals == totals(peers=9, size=900)


def test_kept_versions_go_before_peers_and_no_more_than_it_takes() -> None:
    made = room(gone(1), gone(2), gone(3), spares=[spare(7, 30), spare(8, 30), spare(9, 30)])
    made.make(50, place=False, may_exceed=False)
    assert (made.drops, made.displaced) == ([7, 8], [])
    made.totals.bytes += 50
    made.make(120, place=False, may_exceed=False)
    assert (made.drops, made.displaced) == ([7, 8, 9], [gone(1)])
    assert made.totals == Totals(1, peers=4, backups=19, versions=95, bytes=860)


def test_a_place_takes_a_whole_peer_whose_bytes_count() -> None:
    made = room(gone(1), gone(2), spares=[spare(7, 30)], peers=10)
    made.make(100, place=True, may_exceed=False)
    assert (made.drops, made.displaced) == ([], [gone(1)])
    made.totals.peers += 1
    made.totals.bytes += 100
    made.make(120, place=True, may_exceed=False)
    assert (made.drops, made.displaced) == ([7], [gone(1), gone(2)])


def test_a_blob_of_no_bytes_takes_a_place_alone() -> None:
    made = room(gone(1), gone(2), peers=10, size=1500)
    made.make(0, place=True, may_exceed=False)
    assert made.displaced == [gone(1)]


@pytest.mark.parametrize("more", [False, True])
def test_nobody_gives_way_to_who_is_refused(more: bool) -> None:
    made = room(gone(1), spares=[spare(7, 30)], more=more, peers=10)
    with pytest.raises(Refused, match=TOO_MANY if more else FULL):
        made.make(131, place=True, may_exceed=False)
    assert (made.drops, made.displaced, made.totals) == ([], [], totals(peers=10))
    made.make(130, place=True, may_exceed=False)
    made.totals.peers += 1
    with pytest.raises(Refused, match=TOO_MANY if more else NO_PLACE):
        made.make(0, place=True, may_exceed=False)


def test_what_may_exceed_has_all_others_give_way_before() -> None:
    made = room(gone(1), spares=[spare(7, 30)])
    made.make(500, place=False, may_exceed=True)
    assert (made.drops, made.displaced) == ([7], [gone(1)])
    made.make(500, place=False, may_exceed=True)
    assert made.totals.bytes == 870


def test_a_kept_version_counts_once_when_its_peer_goes_as_well() -> None:
    made = room(gone(1, size=100, versions=4), spares=[spare(7, 30, 1), spare(8, 30, 1)])
    with pytest.raises(Refused):
        made.make(101, place=False, may_exceed=False)
    made.make(20, place=False, may_exceed=False)
    made.totals.bytes += 20
    made.make(40, place=False, may_exceed=False)
    assert (made.drops, made.displaced) == ([7, 8], [])
    made.totals.bytes += 40
    made.make(40, place=False, may_exceed=False)
    assert made.totals.bytes == 960
    assert made.totals.versions == 96


def test_a_kept_version_is_gone_when_its_peer_is() -> None:
    made = room(gone(1), spares=[spare(7, 30, 1), spare(8, 30, 2)], peers=10)
    made.make(100, place=True, may_exceed=False)
    made.totals.bytes += 100
    made.make(30, place=False, may_exceed=False)
    assert (made.drops, made.displaced) == ([8], [gone(1)])
    assert made.totals == Totals(1, peers=9, backups=19, versions=97, bytes=970)


wants = st.lists(
    st.tuples(st.integers(0, 400), st.booleans(), st.booleans()), min_size=1, max_size=20
)


@given(
    wants=wants,
    spares=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 8)), max_size=8),
    sizes=st.lists(st.integers(1, 200), max_size=6),
)
@quick
def test_room_is_made_as_far_as_it_must(
    wants: list[tuple[int, bool, bool]], spares: list[tuple[int, int]], sizes: list[int]
) -> None:
    listed = [spare(n, size, owner) for n, (size, owner) in enumerate(spares)]
    peers = [
        gone(n, size + sum(s.size for s in listed if s.node_id == peer(n)), 1 + len(
            [s for s in listed if s.node_id == peer(n)]))
        for n, size in enumerate(sizes)
    ]  # fmt: skip
    made = room(*peers, spares=listed, peers=9, size=900)
    added, newcomers = 0, 0
    for size, place, may_exceed in wants:
        may_exceed &= not place
        before = (list(made.drops), list(made.displaced), replace(made.totals))
        try:
            made.make(size, place=place, may_exceed=may_exceed)
        except Refused:
            assert (made.drops, made.displaced, made.totals) == before
            assert not may_exceed
            continue
        made.totals.bytes += size
        made.totals.peers += place
        added += size
        newcomers += place
        assert made.totals.peers <= QUOTAS.max_peers or not place
        assert made.totals.bytes <= QUOTAS.max_bytes or may_exceed or not size
    # All that went counts once.
    away = {each.node_id for each in made.displaced}
    alone = sum(s.size for s in listed if s.row_id in made.drops and s.node_id not in away)
    assert made.totals.bytes == 900 + added - alone - sum(p.bytes for p in made.displaced)
    assert made.totals.peers == 9 + newcomers - len(made.displaced)
    dropped = [s for s in listed if s.row_id in made.drops and s.node_id not in away]
    versions = len(dropped) + sum(p.versions for p in made.displaced)
    assert made.totals.versions == 100 - versions
    assert len(set(made.drops)) == len(made.drops)
