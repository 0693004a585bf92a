"""What counts as well, and what as ready."""

from __future__ import annotations

from typing import Any

import pytest

from peerstore.health import STUCK_SECONDS, UNTRUSTED_SECONDS, Condition, problems

WELL: dict[str, Any] = {
    "alarms": 0,
    "disk_free": 1000,
    "min_free_space": 1000,
    "bytes": 949,
    "max_bytes": 1000,
    "writing_for": STUCK_SECONDS,
}


def test_nothing_is_said_where_all_is_well() -> None:
    assert problems(Condition(**WELL)) == []


@pytest.mark.parametrize(
    ("changed", "words", "unready"),
    [
        ({"write_error": "disk I/O error"}, "can't be written, nothing is stored: disk I/O", True),
        (
            {"writing_for": STUCK_SECONDS + 1},
            "the database hangs, it is being written for",
            True,
        ),
        (
            {"disk_free": 999},
            "only 999 B are free on the disk, and updates are refused",
            True,
        ),
        ({"clock_error": "the clock says 1970-01-01"}, "the clock says 1970-01-01", False),
        ({"alarms": 1}, "1 alarm stands: `peerstore alarms list`", False),
        ({"alarms": 2}, "2 alarms stand: `peerstore alarms list`", False),
        ({"bytes": 950}, "holds 950 B of at most 1000 B: raise store.max_bytes", False),
        ({"source_error": "it is down"}, "can't be trusted, nothing ages: it is down", False),
        (
            {"source_error": "it is down", "untrusted_for": UNTRUSTED_SECONDS + 1},
            "can't be trusted, nothing ages: it is down",
            True,
        ),
    ],
)
def test_each_problem_says_what_to_do_and_whether_it_counts_as_not_ready(
    changed: dict[str, Any], words: str, unready: bool
) -> None:
    (problem,) = problems(Condition(**{**WELL, **changed}))
    assert words in problem.text
    assert problem.unready is unready


def test_the_worst_comes_first() -> None:
    changed = {"write_error": "broken", "disk_free": 0, "alarms": 3, "bytes": 1000}
    found = problems(Condition(**{**WELL, **changed}))
    assert [problem.unready for problem in found] == [True, True, False, False]
