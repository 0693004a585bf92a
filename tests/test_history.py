"""Which kept versions stay: the rule's worked examples, and what DESIGN promises of it (a to d)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstore.store.history import DAY, HOUR, Kept, before_burst, thin
from tests.helpers import quick

MINUTE = 60


class Slot:
    """A slot whose versions are replaced one after the other, and thinned each time."""

    def __init__(self, history: int, *, first: bytes = b"first") -> None:
        self.history = history
        self.now = 0
        self.kept: list[Kept] = []
        self.ever: list[Kept] = []
        """Every version that was replaced, as it stood; what the rule never sees whole."""
        self._rows = itertools.count(1)
        self._open(first)

    def _open(self, blob: bytes) -> None:
        self.current = Kept(next(self._rows), blob, self.now, self.now)

    def replace(self, blob: bytes | None = None, *, after: int = 0, pin: bool = False) -> int:
        """So many seconds later another blob comes, a new one unless said; returns the row that
        is kept, or was."""
        self.now += after
        row_id = self.current.row_id
        guard = before_burst(self.kept, self.current.opened, self.now)
        self.kept = [
            replace(version, burst=self.now) if version == guard else version
            for version in self.kept
        ]
        version = replace(self.current, replaced=self.now, fixed=pin)
        self.ever.append(version)
        self.kept.append(version)
        self._open(f"blob {row_id}".encode() if blob is None else blob)
        self.thin()
        return row_id

    def thin(self) -> None:
        """Do what the rule says, and see that it is one."""
        thinned = thin(self.kept, self.history, self.now)
        rows = [version.row_id for version in self.kept]
        changed = {version.row_id: version for version in thinned.changed}
        assert set(thinned.drop) <= set(rows)
        assert len(set(thinned.drop)) == len(thinned.drop)
        assert changed.keys() <= set(rows) - set(thinned.drop)
        fixed = {version.row_id for version in self.kept if version.fixed}
        assert not fixed & set(thinned.drop)
        self.kept = [
            changed.get(version.row_id, version)
            for version in self.kept
            if version.row_id not in thinned.drop
        ]
        free = [version for version in self.kept if not version.fixed]
        assert len(free) <= self.history
        blobs = [version.sha256 for version in free]
        assert len(set(blobs)) == len(blobs)
        again = thin(self.kept, self.history, self.now)
        assert not again.drop
        assert set(again.changed) <= set(self.kept)

    def replaced_of(self, row_id: int) -> int:
        """When a kept version was replaced."""
        (version,) = [version for version in self.kept if version.row_id == row_id]
        return version.replaced

    @property
    def rows(self) -> list[int]:
        """The rows that are kept."""
        return [version.row_id for version in self.kept]

    @property
    def blobs(self) -> list[bytes]:
        """What is kept, oldest first."""
        return [version.sha256 for version in self.kept]


def kept(*stood: tuple[int, int], fixed: Iterable[int] = ()) -> list[Kept]:
    """Versions by the hours between which they stood; rows are counted from 0."""
    return [
        Kept(row, b"blob %d" % row, opened * HOUR, replaced * HOUR, fixed=row in set(fixed))
        for row, (opened, replaced) in enumerate(stood)
    ]


histories = st.integers(1, 8)
short_gaps = st.integers(0, HOUR - 1)
long_gaps = st.integers(HOUR, 40 * DAY)
gaps = st.one_of(short_gaps, long_gaps, st.sampled_from([0, 1, HOUR - 1, HOUR, DAY, 7 * DAY]))


# The worked examples


def test_a_good_version_stays_through_a_hundred_bad_ones_within_an_hour() -> None:
    slot = Slot(8)
    good = slot.replace(after=500 * HOUR)
    bad = [slot.replace(after=30) for _ in range(100)]
    assert slot.rows == [good, *bad[-7:]]
    slot.now += 30 * DAY
    slot.thin()
    assert slot.rows == [good, *bad[-7:]]


def test_a_good_version_stays_through_bad_ones_every_two_hours_for_a_month() -> None:
    slot = Slot(8)
    good = slot.replace(after=500 * HOUR)
    for _ in range(12 * 60):
        slot.replace(after=2 * HOUR)
        # After 30 days too: it is the oldest.
        assert good in slot.rows


@pytest.mark.parametrize("history", [2, 3, 8])
def test_of_two_blobs_that_alternate_each_is_kept_once(history: int) -> None:
    slot = Slot(history, first=b"A")
    for number in range(50):
        slot.replace(b"BA"[number % 2 :][:1], after=10 * MINUTE)
        assert slot.blobs in ([b"A"], [b"A", b"B"])
    assert slot.rows == [1, 2]


def test_nothing_is_thinned_while_there_is_room() -> None:
    slot = Slot(8)
    rows = [slot.replace(after=gap) for gap in (0, 1, HOUR, DAY, 5, 5, 400 * DAY, 1)]
    assert slot.rows == rows


def test_without_anything_kept_nothing_happens() -> None:
    assert thin([], 8, 10) == thin([], 1, 0)
    assert thin([], 8, 10).drop == ()


# What holds whatever comes; Slot.thin asserts the rest at each step


@quick
@given(
    history=histories,
    steps=st.lists(st.tuples(gaps, st.integers(0, 6), st.booleans()), max_size=60),
)
def test_never_too_many_nothing_twice_and_nothing_pinned_goes(
    history: int, steps: Sequence[tuple[int, int, bool]]
) -> None:
    slot = Slot(history)
    pinned = []
    for after, blob, pin in steps:
        row = slot.replace(b"%d" % blob, after=after, pin=pin)
        if pin:
            pinned.append(row)
        assert set(pinned) <= set(slot.rows)


@quick
@given(history=histories, steps=st.lists(gaps, max_size=40), fixed=st.sets(st.integers(1, 40)))
def test_what_is_pinned_takes_nobodys_place(
    history: int, steps: Sequence[int], fixed: set[int]
) -> None:
    slot = Slot(history)
    for after in steps:
        row = slot.current.row_id
        slot.replace(after=after, pin=row in fixed)
        free = len([version for version in slot.kept if not version.fixed])
        unpinned = len([version for version in slot.ever if not version.fixed])
        assert free == min(history, unpinned)


def test_a_pinned_version_before_it_costs_the_good_one_nothing() -> None:
    # The second loss of data, after a first one whose good version is pinned; all in 30 days.
    stood = [(0, 500), (500, 700), *((700 + n, 701 + n) for n in range(0, 60, 2))]
    for fixed in ((), (0,)):
        slot_now = stood[-1][1] * HOUR
        for history in (3, 4, 8):
            dropped = thin(kept(*stood, fixed=fixed), history, slot_now).drop
            # The version that stood before the second series is the second one.
            assert (1 if fixed else 0) not in dropped, (history, fixed)


@quick
@given(history=histories, steps=st.lists(gaps, min_size=1, max_size=30), jump=st.integers(0, 10**9))
def test_only_differences_of_time_count(history: int, steps: Sequence[int], jump: int) -> None:
    # The rule is handed seconds that the daemon saw pass: no date is in them.
    slot = Slot(history)
    for after in steps:
        slot.replace(after=after)
    stood = [slot.ever[-1], *slot.kept] if not slot.kept else slot.kept
    moved = [replace(v, opened=v.opened + jump, replaced=v.replaced + jump) for v in stood]
    assert thin(moved, history, slot.now + jump).drop == thin(stood, history, slot.now).drop


@quick
@given(history=histories, blobs=st.permutations(range(9)))
def test_the_order_is_that_of_the_revisions(history: int, blobs: Sequence[int]) -> None:
    # Neither the bytes nor the row's number say anything: all replaced in one second.
    versions = [Kept(100 - n, b"%d" % blob, 50, 50) for n, blob in enumerate(blobs)]
    stays = [v.row_id for v in versions if v.row_id not in thin(versions, history, 50).drop]
    expected = [versions[0], *versions[len(versions) - history + 1 :]]
    assert stays == [version.row_id for version in expected]


# a) The version that stood before a burst


@quick
@given(
    history=histories,
    before=st.lists(gaps, max_size=25),
    stood=long_gaps,
    burst=st.lists(st.integers(0, 30), min_size=1, max_size=120),
    one_blob_of_many=st.booleans(),
)
def test_what_stood_before_a_burst_stays_through_it_and_30_days_after(
    history: int,
    before: Sequence[int],
    stood: int,
    burst: Sequence[int],
    one_blob_of_many: bool,
) -> None:
    slot = Slot(history)
    for after in before:
        slot.replace(after=after)
    good = slot.replace(after=stood)
    for after in burst:
        slot.replace(b"empty" if one_blob_of_many else None, after=after)
        assert good in slot.rows
    slot.now += 30 * DAY
    slot.thin()
    assert good in slot.rows


@pytest.mark.parametrize("history", range(1, 9))
def test_what_stood_before_a_burst_stays_also_when_it_had_been_kept_before(history: int) -> None:
    # A backup that was put back by the peer: the same bytes have an older, lower revision.
    slot = Slot(history, first=b"X")
    for blob in (b"A", b"B", b"C", b"A"):
        slot.replace(blob, after=5 * HOUR)
    slot.replace(after=5 * HOUR)
    for _ in range(20):
        slot.replace(after=60)
        assert b"A" in slot.blobs


def before_bursts(slot: Slot) -> set[int]:
    """The rows of what stood before a burst that ended within the last 30 days."""
    guarded = set()
    good: Kept | None = None
    for version in slot.ever:
        if good is None or version.replaced - version.opened >= HOUR:
            good = version
        elif slot.now - version.replaced <= 30 * DAY:
            guarded.add(good.row_id)
    return guarded


@quick
@given(
    history=histories,
    steps=st.lists(st.one_of(long_gaps, st.lists(short_gaps, min_size=1, max_size=6)), max_size=30),
)
def test_as_many_as_have_a_place_stay_for_30_days(
    history: int, steps: Sequence[int | list[int]]
) -> None:
    # Two places are for them; before them comes what may yet turn out to stand before a burst.
    places = min(history - 1, 2)
    crowded: set[int] = set()
    slot = Slot(history)
    for step in steps:
        if isinstance(step, int):
            slot.replace(after=step)
        else:
            start = slot.now
            for after in step:
                # Within an hour of the first.
                slot.replace(after=min(after, start + HOUR - 1 - slot.now))
        guarded = before_bursts(slot)
        if len(guarded) > places:
            # Some of these may have had to go.
            crowded |= guarded
        assert guarded - crowded <= set(slot.rows)


@pytest.mark.parametrize("after", [2 * HOUR, 12 * HOUR, DAY, 3 * DAY])
@pytest.mark.parametrize("before", [12 * HOUR, DAY, 3 * DAY, 10 * DAY])
def test_what_stood_before_a_burst_stays_also_in_the_midst_of_regular_use(
    before: int, after: int
) -> None:
    # A peer that stores something new at regular times; a burst of a hundred; and on as before.
    slot = Slot(8)
    while slot.now < 60 * DAY:
        slot.replace(after=before)
    good = slot.replace(after=before)
    for _ in range(100):
        slot.replace(after=30)
    end = slot.now + 30 * DAY
    while slot.now + after <= end:
        slot.replace(after=after)
        assert good in slot.rows, f"gone {(slot.now - end) / DAY + 30:.1f} days after"


# b) One each that was current within the last day, week, month and before

SPANS = ((0, DAY), (DAY, 7 * DAY), (7 * DAY, 30 * DAY), (30 * DAY, 1 << 60))


def assert_spans(slot: Slot) -> None:
    """Of each span in which a version was current one is there, kept or current."""
    there = [*slot.kept, replace(slot.current, replaced=slot.now)]
    for newest, oldest in SPANS:

        def within(
            versions: Iterable[Kept], newest: int = newest, oldest: int = oldest
        ) -> list[int]:
            return [
                version.row_id
                for version in versions
                if version.opened <= slot.now - newest and version.replaced >= slot.now - oldest
            ]

        if within(slot.ever):
            assert within(there), f"none of {newest / DAY} to {oldest / DAY} days ago, {slot.now}"


@quick
@given(steps=st.lists(st.tuples(long_gaps, st.integers(1, 30)), max_size=8))
def test_one_of_each_span_stays_when_each_stood_an_hour_or_longer(
    steps: Sequence[tuple[int, int]],
) -> None:
    slot = Slot(8)
    for after, times in steps:
        for _ in range(times):
            slot.replace(after=after)
            assert_spans(slot)


@pytest.mark.parametrize("after", [HOUR, 2 * HOUR, 5 * HOUR, DAY, 2 * DAY])
def test_one_of_each_span_stays_when_replaced_regularly(after: int) -> None:
    slot = Slot(8)
    while slot.now < 80 * DAY:
        slot.replace(after=after)
        assert_spans(slot)


@pytest.mark.parametrize("after", [10 * MINUTE, 50 * MINUTE])
def test_one_of_each_span_stays_when_each_stood_less_than_an_hour(after: int) -> None:
    slot = Slot(8)
    while slot.now < 45 * DAY:
        slot.replace(after=after)
        assert_spans(slot)


# d) Identical blobs


def test_of_identical_blobs_the_first_stays_and_counts_as_replaced_with_the_last() -> None:
    versions = [
        Kept(1, b"A", 0, 10),
        Kept(2, b"B", 10, 20),
        Kept(3, b"A", 20, 30),
        Kept(4, b"A", 40, 50),
    ]
    thinned = thin(versions, 8, 60)
    assert sorted(thinned.drop) == [3, 4]
    assert thinned.changed == (Kept(1, b"A", 0, 50),)


def test_a_pinned_one_of_identical_blobs_stays_beside_the_first() -> None:
    versions = [Kept(1, b"A", 0, 10), Kept(2, b"A", 20, 30, fixed=True)]
    assert thin(versions, 8, 60).drop == ()
    versions = [Kept(1, b"A", 0, 10, fixed=True), Kept(2, b"A", 20, 30)]
    assert thin(versions, 8, 60).drop == (2,)
