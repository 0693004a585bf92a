"""Whether the wall clock can be right. Nothing is decided by it; it is what people are shown."""

from __future__ import annotations

from datetime import UTC, datetime

RELEASED = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
"""Not later than the day on which this version was made."""

LATEST = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())
"""From here on it is taken for nonsense."""

DAY = 86400


def clock_problem(now: float, newest: float) -> str | None:
    """What is wrong with the time `now`, None where nothing is known to be.

    `newest` is the newest time that the database knows; both are Unix seconds.
    """
    if now < RELEASED:
        return f"the clock says {_day(now)}, which is before this peerstore was made: set it"
    if now >= LATEST:
        return f"the clock says {_day(now)}: set it"
    if now < newest - DAY:
        return (
            f"the clock says {_day(now)}, but the database was in use on {_day(newest)}: set it, if"
            " it was not wrong then"
        )
    return None


def _day(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):  # no day of any calendar
        return f"{seconds:.0f} s since 1970"
