"""The newest refusals, for the status page: few, in memory, since the start."""

from __future__ import annotations

from dataclasses import dataclass

NEWEST = 20
"""Refusals that are remembered."""


@dataclass(frozen=True, slots=True)
class NotedRefusal:
    """Who was refused something and why, how often, and when last, by the clock of who noted it.

    `who` is a node id in hexadecimal where it is known, else an address.
    """

    who: str
    reason: str
    count: int
    last_at: float


class NewestRefusals:
    """Remembers the newest refusals; those of the same peer or address and reason are one."""

    def __init__(self) -> None:
        self._noted: dict[tuple[str, str], NotedRefusal] = {}

    def note(self, who: str, reason: str, now: float) -> None:
        """Somebody was refused something."""
        before = self._noted.pop((who, reason), None)
        count = 1 if before is None else before.count + 1
        self._noted[who, reason] = NotedRefusal(who, reason, count, now)
        if len(self._noted) > NEWEST:
            del self._noted[next(iter(self._noted))]

    def newest(self) -> list[NotedRefusal]:
        """Them, the newest first."""
        return list(reversed(self._noted.values()))
