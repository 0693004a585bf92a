"""A wall clock that is wrong: the daemon serves all the same, and says so."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from peerstore.clock import DAY, LATEST, RELEASED, clock_problem
from tests.daemon import Daemon
from tests.powerloss.shim import build

NOW = RELEASED + 100 * DAY
BEHIND = "the clock says 2026-04-11, but the database was in use"


@pytest.mark.parametrize(
    ("now", "newest"),
    [(NOW, 0), (NOW, NOW), (NOW, NOW + DAY), (NOW, NOW - 1000 * DAY), (RELEASED, 0)],
)
def test_a_clock_that_can_be_right(now: int, newest: int) -> None:
    assert clock_problem(now, newest) is None


@pytest.mark.parametrize(
    ("now", "newest", "problem"),
    [
        (0, 0, "the clock says 1970-01-01, which is before this peerstore was made: set it"),
        (-(10**15), 0, "the clock says -1000000000000000 s since 1970, which is before"),
        (RELEASED - 1, 0, "the clock says 2025-12-31, which is before"),
        (LATEST, 0, "the clock says 2100-01-01: set it"),
        (10**30, 0, "the clock says 10"),
        (NOW, NOW + DAY + 1, f"{BEHIND} on 2026-04-12: set it, if it was not wrong then"),
        (NOW, 10**30, f"{BEHIND} on 10"),
    ],
)
def test_a_clock_that_is_off(now: int, newest: int, problem: str) -> None:
    found = clock_problem(now, newest)
    assert found is not None
    assert found.startswith(problem)


@pytest.fixture
def used(daemon: Daemon) -> Daemon:
    """A daemon that has stored something, by the right time, and was stopped."""
    assert daemon.command("probe", str(daemon.address)).code == 0
    assert daemon.stop() == 0
    assert "clock_off" not in daemon.log
    return daemon


def forget_in_rows(database: Path) -> None:
    """Only the files say when the database was in use."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE meta SET created_at = 0")
        connection.execute("UPDATE backup SET stored_at = 0")
        connection.commit()


def forget_in_files(database: Path) -> None:
    """Only the rows do."""
    os.utime(database, (0, 0))


@pytest.mark.parametrize(
    ("at", "forget", "problem"),
    [
        (0, None, "which is before this peerstore was made"),
        (LATEST + 100 * 365 * DAY, None, "the clock says 2199-"),
        (None, forget_in_rows, "but the database was in use on"),
        (None, forget_in_files, "but the database was in use on"),
    ],
    ids=["1970", "2199", "two days ago by files", "two days ago by rows"],
)
def test_a_daemon_serves_on_whatever_the_clock_says(
    used: Daemon,
    tmp_path: Path,
    at: int | None,
    forget: Callable[[Path], None] | None,
    problem: str,
) -> None:
    if forget is not None:
        forget(used.data_dir / "peerstore.db")
    offset = -2 * DAY if at is None else at - int(time.time())
    used.extra = {"LD_PRELOAD": str(build("clock", tmp_path)), "CLOCK_OFFSET": str(offset)}
    used.start()
    probe = used.command("probe", str(used.address))
    assert probe.code == 0, probe.stderr
    assert "64.0 KiB from before" in probe.stdout
    warnings = [event for event in used.events if event["event"] == "clock_off"]
    assert [warning["level"] for warning in warnings] == ["warning"]
    assert problem in warnings[0]["text"]
    info = used.command("--json", "info").document
    assert info["problems"] == [warnings[0]["text"]]
