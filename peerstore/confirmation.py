"""Which pong may go out when: a pong confirms the updates before it; sans-I/O.

Neither storage proposal acknowledges an update, so a `pong` does: it says that every update
received since the pong before it is durable, unless a warning that begins with `storage:` came in
between. The stretch between two pings is an interval here; pongs leave in the order of their
pings, each with its interval's warnings before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

COMMIT_TIMEOUT = 2.0
"""Seconds after which a pong no longer waits for the store, and a warning says so."""

MAX_INTERVALS = 32
"""Pings that may wait for the store before the peer is read no further."""

MAX_UNDECIDED = 256
"""Updates of which the store may not yet have said what became of them, before the same."""

MAX_UNTOLD = 16
"""Refusals that may wait for the pong before them, before the same."""

_LATE = f"not committed within {COMMIT_TIMEOUT:g} s, may be later"
_INCOMPLETE = "update_channel_backup waits for a channel message that completes it"


@dataclass(slots=True)
class _Interval:
    """The updates between two pings, and the pong that waits for them."""

    last: int
    """Sequence number of the newest update up to the end of the interval."""
    completed_by: int = 0
    """The update that an offer of it has become, which may be one of a later interval."""
    num_pong_bytes: int = -1
    """-1 until the ping that ends the interval has come."""
    deadline: float = float("inf")
    offered: bool = False
    """Whether an update of it waits for the message that completes it."""
    replaced: bool = False
    """Whether one of it, whose channel was known, has been replaced by what is on offer now."""
    failed: bool = False
    untold: list[str] = field(default_factory=list)
    """What the peer is to be told before the pong."""

    def fail(self, reason: str) -> None:
        self.failed = True
        self.untold.append(reason)


class Confirmations:
    """See the module's docstring. Updates are known by rising sequence numbers from 1 on."""

    __slots__ = ("_intervals", "_received", "_released", "_resolved")

    def __init__(self) -> None:
        # The newest update received, the newest of which the store has said what became of it,
        # and the newest whose pong is out.
        self._received = 0
        self._resolved = 0
        self._released = 0
        # Few at a time, and one for nearly every connection: a list is small.
        self._intervals = [_Interval(0)]

    @property
    def full(self) -> bool:
        """Whether so much waits that no more can be taken: a disk that hangs would heap it up."""
        return (
            self._received - self._resolved > MAX_UNDECIDED
            or len(self._intervals) > MAX_INTERVALS
            or len(self._intervals[-1].untold) > MAX_UNTOLD
        )

    @property
    def deadline(self) -> float:
        """When `due` will have something to say at the latest."""
        return self._intervals[0].deadline

    def update(self) -> int:
        """An update came that goes to the store; its sequence number."""
        self._received += 1
        self._intervals[-1].last = self._received
        return self._received

    def offer(self, *, named_before: bool) -> None:
        """An update came that a later message has to complete before it goes to the store.

        It takes the place of the one on offer; `named_before` says that the channel of that one is
        known, and whether it is that of the new one will show.
        """
        if named_before:
            for interval in self._intervals:
                interval.replaced = interval.replaced or interval.offered
                interval.offered = False
        self._intervals[-1].offered = True

    def complete(self, sequence: int) -> None:
        """What was offered has become the update of this number."""
        for interval in self._intervals:
            if interval.offered or interval.replaced:
                interval.offered = interval.replaced = False
                interval.completed_by = sequence

    def withdraw_replaced(self, reason: str) -> None:
        """What was replaced is not stored: what is on offer is for another channel."""
        for interval in self._intervals:
            if interval.replaced:
                interval.replaced = False
                interval.fail(reason)

    def withdraw(self, reason: str) -> None:
        """What was offered is not stored."""
        waiting = [i for i in self._intervals if i.offered or i.replaced]
        # Where its own pong went out late already, the next one comes behind the warning.
        for interval in waiting or [self._intervals[-1]]:
            interval.offered = interval.replaced = False
            interval.fail(reason)

    def refuse(self, reason: str) -> None:
        """An update came that is not taken."""
        self._intervals[-1].fail(reason)

    def stored(self, sequence: int) -> None:
        """Every update up to `sequence` is durable, or was replaced by one that is."""
        self._resolved = sequence

    def refused(self, sequences: Iterable[int], reason: str) -> None:
        """These updates are not stored, whatever becomes of others."""
        wanted = set(sequences)
        before = self._released
        for interval in self._intervals:
            own = any(before < number <= interval.last for number in wanted)
            if (own or interval.completed_by in wanted) and not interval.failed:
                interval.fail(reason)
            before = interval.last

    def not_stored(self, sequence: int, reason: str) -> None:
        """The updates up to `sequence` that were not stored before can't be."""
        told = max(self._resolved, self._released)
        for interval in self._intervals:
            own = told < sequence and interval.last > told
            completed = self._resolved < interval.completed_by <= sequence
            if (own or completed) and not interval.failed:
                interval.fail(reason)
            told = max(told, interval.last)
        self._resolved = sequence

    def ping(self, num_pong_bytes: int, now: float) -> None:
        """A ping came, and asks for a pong of so many bytes."""
        interval = self._intervals[-1]
        interval.num_pong_bytes = num_pong_bytes
        interval.deadline = now + COMMIT_TIMEOUT
        self._intervals.append(_Interval(self._received))

    def due(self, now: float) -> Iterator[str | int]:
        """What has to be said now, in this order: a failure, or a pong of so many bytes."""
        while True:
            interval = self._intervals[0]
            unstored = (
                interval.last > max(self._resolved, self._released)
                or interval.completed_by > self._resolved
            )
            undecided = unstored or interval.offered or interval.replaced
            late = undecided and now >= interval.deadline
            if late and not interval.failed:
                interval.fail(_LATE if unstored else _INCOMPLETE)
            untold, interval.untold = interval.untold, []
            yield from untold
            if interval.num_pong_bytes < 0 or (undecided and not late):
                return
            self._released = interval.last
            del self._intervals[0]
            yield interval.num_pong_bytes
