"""Which kept versions of a slot stay: the rule, pure.

Kept are the versions that are not current any more. Times here are seconds that a running daemon
has seen pass (`seen`), never the wall clock, so a clock that jumps neither ages nor revives
anything; the order is by revision.

A version *stood* from when it became current (`opened`) until it was replaced (`replaced`). A
*burst* is any number of replacements, more than one, in each of which what is replaced stood less
than an hour. The version before a burst is the last replaced of the kept ones that stood an hour
or longer (or are before a burst already; else the oldest of all); it remembers when the burst's
last replacement was.

Of the kept versions of a slot at most `history` stay. They are chosen in this order, until so
many are found:

1. The newest kept version, if it stood an hour or longer: a burst may have begun with its
   replacement.
2. The version before the newest burst, of those that ended within the last 30 days.
3. The version before the oldest of those bursts.
4. The oldest of those that were current before the last month, within the last month but not the
   last week, within the last week but not the last day, and within the last day. The oldest,
   because it is the one that goes on to stand for the next longer span.
5. The newest of the month's and of the week's, which takes over when the oldest goes on.
6. The versions before the other bursts of the last 30 days, spread over time: while they are too
   many, of the two that were replaced closest to each other the newer one goes.
7. The newest of the rest.

A pinned or held version stays anyway and takes nobody's place. Of identical blobs one stays: the
first, which then counts as having stood until the last was replaced.

Examples, with history = 8, times in hours, every replacement by a new connection:

    G stood 0 to 500, then 100 bad ones come within one hour.
        G stays by (2) for 30 days after the last of them, whatever comes in these days but a
        newer burst; then by (3).
    The bad ones come every two hours for a month instead.
        That is no burst. G is the oldest of its day, then of its week, then of its month, and
        stays by (4) for 30 days, and longer where nothing older is kept.
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
    """A version that is not current: its row, when it stood, and whether it must stay.

    `burst` is when the burst that it stood before had its last replacement, None without one.
    """

    row_id: int
    sha256: bytes
    opened: int
    replaced: int
    burst: int | None = None
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Thinned:
    """What `thin` decides: the rows to delete, and the kept versions that stood longer now."""

    drop: tuple[int, ...]
    changed: tuple[Kept, ...]


def thin(kept: Sequence[Kept], history: int, now: int) -> Thinned:
    """Decide which kept versions go.

    `kept` is ordered by revision; `now` and its times are seconds that the daemon has seen pass.
    """
    unique, dropped, changed = _merge_identical(kept)
    free = [version for version in unique if not version.fixed]
    stays = _chosen(unique, free, history, now)
    dropped += [version.row_id for version in free if version.row_id not in stays]
    gone = set(dropped)
    return Thinned(tuple(dropped), tuple(v for v in unique if v.row_id in changed - gone))


def before_burst(kept: Sequence[Kept], opened: int, now: int) -> Kept | None:
    """The version that stands before the burst to which a replacement belongs, if to any.

    What is replaced at `now` became current at `opened`; `kept` are the versions before it.
    """
    if now - opened >= BURST:
        return None
    return _last_replaced(v for v in kept if v.burst is not None or _stood_long(v)) or (
        kept[0] if kept else None
    )


def _stood_long(version: Kept) -> bool:
    """Whether it was no part of a burst."""
    return version.replaced - version.opened >= BURST


def _last_replaced(versions: Iterable[Kept]) -> Kept | None:
    # Not the last in order: of identical blobs the first one stays, with the time of the last.
    return max(versions, key=lambda version: version.replaced, default=None)


def _merge_identical(kept: Iterable[Kept]) -> tuple[list[Kept], list[int], set[int]]:
    """One version of each blob, the rows that go for it, and the rows that take their time."""
    first: dict[bytes, int] = {}
    unique: list[Kept] = []
    dropped: list[int] = []
    changed: set[int] = set()
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
            bursts = [b for b in (earlier.burst, version.burst) if b is not None]
            unique[index] = replace(
                earlier,
                replaced=max(earlier.replaced, version.replaced),
                burst=max(bursts, default=None),
            )
            changed.add(earlier.row_id)
            dropped.append(version.row_id)
    return unique, dropped, changed


def _chosen(unique: Sequence[Kept], free: Sequence[Kept], history: int, now: int) -> set[int]:
    """The rows among `free` that stay."""
    stays: dict[int, None] = {}

    def take(versions: Iterable[Kept]) -> None:
        for version in versions:
            if len(stays) < history and not version.fixed:
                stays[version.row_id] = None

    guards = sorted(
        (v for v in unique if v.burst is not None and now - v.burst <= GUARDED),
        key=lambda version: version.replaced,
    )
    spans = _spans(unique, now)
    newest = _last_replaced(unique)
    take([newest] if newest is not None and _stood_long(newest) else [])
    take(guards[-1:])
    take(guards[:1])
    take(version for span in spans for version in span[:1])
    take(version for span in spans[1:3] for version in span[-1:])
    take(_spread([v for v in guards if v.row_id not in stays], history - len(stays)))
    take(reversed(free))
    return set(stays)


def _spans(unique: Sequence[Kept], now: int) -> list[list[Kept]]:
    """The versions by when they were last current: before the last month, then within the last
    month, week and day."""
    spans: list[list[Kept]] = [[] for _ in range(len(SPANS) + 1)]
    for version in unique:
        spans[sum(now - version.replaced <= limit for limit in SPANS)].append(version)
    return spans


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
