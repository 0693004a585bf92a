"""The times that a store decides by: none of them is a clock's.

They are kept in the database and move only while a daemon runs, whatever clocks do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in these times.

    `seen` is the seconds that daemons on the database have seen pass, `aged` those of them that
    age what is kept (see retention.py), `aging` whether they do so now; `height` the newest block
    height that can be trusted, None while there is none.
    """

    seen: int
    aged: int
    height: int | None = None
    aging: bool = True


class Times:
    """Goes on from where the database stands.

    Without a routing node to ask everything ages with time; with one, only while that can be
    trusted: `trust` says so.
    """

    def __init__(self, monotonic: Callable[[], float], *, aging: bool) -> None:
        self._aging = aging
        self._monotonic = monotonic
        self._since = self._aging_since = monotonic()
        self._seen_before = 0
        self._aged_before = 0.0
        self._height: int | None = None

    def go_on(self, moment: Moment) -> None:
        """The database is that far."""
        self._seen_before += moment.seen
        self._aged_before += moment.aged

    def trust(self, height: int | None) -> None:
        """The routing node is at this height; None while it can't be trusted."""
        now = self._monotonic()
        if self._aging:
            self._aged_before += now - self._aging_since
        self._aging_since = now
        self._height = height
        self._aging = height is not None

    @property
    def now(self) -> Moment:
        """This moment."""
        now = self._monotonic()
        aged = self._aged_before + (now - self._aging_since if self._aging else 0.0)
        seen = self._seen_before + int(now - self._since)
        return Moment(seen, int(aged), self._height, self._aging)
