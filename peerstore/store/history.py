"""Which kept versions of a slot stay: the rule, pure.

Kept are the versions that are not current any more. Times here are seconds that a running daemon
has seen pass (`seen`), never the wall clock, so a clock that jumps neither ages nor revives
anything; the order is by revision.

A version *stood* from when it became current (`opened`) until it was replaced (`replaced`). Of
the kept versions of a slot at most `history` stay. They are chosen in this order, until so many
are found:

1. The version that stood before the newest burst. A burst is any number of replacements within
   an hour. What stood an hour or longer until it was replaced stood before a burst, as did the
   first version of all; what stood shorter was part of one.
2. The version that stood before the oldest burst, of those that ended within the last 30 days.
3. The oldest of those that were current before the last month, within the last month but not the
   last week, within the last week but not the last day, and within the last day. The oldest,
   because it is the one that goes on to stand for the next longer span.
4. The versions that stood before the other bursts of the last 30 days, spread over time: while
   they are too many, of the two that were replaced closest to each other the newer one goes.
5. The newest of the rest.

A pinned or held version stays anyway and takes nobody's place. Of identical blobs one stays: the
first, which then counts as having stood until the last was replaced.

Examples, with history = 8 and one replacement a line, times in hours:

    G stood 0 to 500, then 100 bad ones come within one hour, each a new connection.
        G stays by (1), through the hundred and for 30 days after; with it the newest seven.
    The bad ones come every two hours for a month instead: each is a burst of its own.
        G stays by (2): its burst is the oldest. When that is over 30 days ago it stays by (3) as
        long as it is the oldest that was current in its span.
    A, B, A, B, A … from two devices with one seed.
        A and B stay once each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

HOUR = 3600
DAY = 24 * HOUR
SPANS = (DAY, 7 * DAY, 30 * DAY)
BURST = HOUR
GUARDED = 30 * DAY


@dataclass(frozen=True, slots=True)
class Kept:
    """A version that is not current: its row, when it stood, and whether it must stay."""

    row_id: int
    sha256: bytes
    opened: int
    replaced: int
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Thinned:
    """What `thin` decides: the rows to delete, and when kept ones were replaced instead."""

    drop: tuple[int, ...]
    replaced: tuple[tuple[int, int], ...]


def thin(kept: Sequence[Kept], history: int, now: int) -> Thinned:
    """Decide which kept versions go.

    `kept` is ordered by revision; `now` and its times are seconds that the daemon has seen pass.
    """
    unique, dropped, moved = _merge_identical(kept)
    free = [version for version in unique if not version.fixed]
    stays = _chosen(unique, free, history, now)
    dropped += [version.row_id for version in free if version.row_id not in stays]
    return Thinned(
        tuple(dropped), tuple((row, when) for row, when in moved.items() if row not in dropped)
    )


def _merge_identical(kept: Iterable[Kept]) -> tuple[list[Kept], list[int], dict[int, int]]:
    """One version of each blob, the rows that go for it, and the new `replaced` of rows."""
    first: dict[bytes, int] = {}
    unique: list[Kept] = []
    dropped: list[int] = []
    moved: dict[int, int] = {}
    for version in kept:
        index = first.get(version.sha256)
        if index is None:
            first[version.sha256] = len(unique)
            unique.append(version)
        elif version.fixed:
            # A pin is on this very revision.
            unique.append(version)
        else:
            earlier = unique[index]
            unique[index] = replace(earlier, replaced=max(earlier.replaced, version.replaced))
            moved[earlier.row_id] = unique[index].replaced
            dropped.append(version.row_id)
    return unique, dropped, moved


def _chosen(unique: Sequence[Kept], free: Sequence[Kept], history: int, now: int) -> set[int]:
    """The rows among `free` that stay."""
    stays: dict[int, None] = {}

    def take(versions: Iterable[Kept]) -> None:
        for version in versions:
            if len(stays) < history and not version.fixed:
                stays[version.row_id] = None

    guards = _before_bursts(unique, now)
    take(guards[-1:])
    take(guards[:1])
    take(_oldest_of_spans(unique, now))
    others = [guard for guard in guards if guard.row_id not in stays and not guard.fixed]
    take(_spread(others, history - len(stays)))
    take(version for version in reversed(free) if version.row_id not in stays)
    return set(stays)


def _before_bursts(unique: Sequence[Kept], now: int) -> list[Kept]:
    """The versions that stood before a burst and are guarded still, oldest first."""
    return [
        version
        for index, version in enumerate(unique)
        if (index == 0 or version.replaced - version.opened >= BURST)
        and now - version.replaced <= BURST + GUARDED
    ]


def _oldest_of_spans(unique: Sequence[Kept], now: int) -> list[Kept]:
    """The oldest version of each span, the longest span first."""
    oldest: dict[int, Kept] = {}
    for version in unique:
        age = now - version.replaced
        span = sum(age > limit for limit in SPANS)
        oldest.setdefault(span, version)
    return [oldest[span] for span in sorted(oldest, reverse=True)]


def _spread(versions: list[Kept], count: int) -> list[Kept]:
    """So many of the versions, by dropping the newer of the two replaced closest together."""
    versions = list(versions)
    while len(versions) > max(count, 0):
        gaps = [
            (newer.replaced - older.replaced, index)
            for index, (older, newer) in enumerate(itertools.pairwise(versions), 1)
        ]
        del versions[min(gaps)[1] if gaps else 0]
    return versions
