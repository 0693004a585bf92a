"""Simulated power loss: whatever was confirmed is there afterwards, and whole.

A process uses the real store under a library that logs every write and every sync. The log is
then cut off at many places, and of what was not synced before the cut only a part is put on the
disk that the store is opened on again; see replay.py for the rules. That the method finds a store
which syncs too little is shown with synchronous=NORMAL.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from peerstore.errors import StoreError
from peerstore.store.snapshot import verify
from tests.powerloss.replay import Disk, Operation, Record, read_log
from tests.powerloss.shim import build
from tests.powerloss.workload import SLOTS, Confirmed, counters, open_store

ROOT = Path(__file__).parents[2]

RUNS, CUTS = 2, 60
"""Workloads, each on the disk that the power loss before it left, and cuts of each."""

LONG_RUNS, LONG_CUTS = 15, 200

ROUNDS = 2
"""How often a workload opens the store."""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """The library that logs."""
    return build("durable", tmp_path)


def work(library: Path, directory: Path, seed: int, synchronous: str) -> list[Record]:
    """Let the workload run on a directory; returns all that it did."""
    log = directory.with_suffix(".log")
    log.unlink(missing_ok=True)
    arguments = [str(directory), str(seed), str(1 + seed * ROUNDS), str(ROUNDS), synchronous]
    shim = {
        "LD_PRELOAD": str(library),
        "DURABLE_DIRECTORY": str(directory.resolve()),
        "DURABLE_LOG": str(log),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.powerloss.workload", *arguments],
        cwd=ROOT,
        env={**os.environ, **shim},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return read_log(log)


def put_on_disk(directory: Path, files: dict[str, bytes]) -> None:
    """Make a directory hold these files and nothing else."""
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    for name, content in files.items():
        (directory / name).write_bytes(content)


Confirmations = dict[int, Confirmed]
"""What was confirmed last, by slot."""


async def losses(directory: Path, confirmed: Confirmations) -> list[str]:
    """Start on what a power loss left; says what is not as it was confirmed."""
    found: list[str] = []
    try:
        store = await open_store(directory)
    except StoreError as error:
        return [f"does not open: {error}"]
    try:
        alarms = await store.reader.alarms(acknowledged=True)
        # Such as being behind its commit mark; shrinking is what the workload does.
        found += [f"alarm: {alarm.text}" for alarm in alarms if alarm.kind != "shrink"]
        for index, slot in enumerate(SLOTS):
            last = confirmed.get(index, Confirmed(index, 0, 0))
            try:
                current, versions = await counters(store.reader, slot)
            except (StoreError, ValueError) as error:
                found.append(f"damaged: {error}")
                continue
            if current < last.counter:
                found.append(f"lost: {last.counter} of slot {index}, it holds {current}")
            if last.kept and last.kept not in versions:
                found.append(
                    f"lost: version {last.kept} of slot {index}, kept are {sorted(versions)}"
                )
    finally:
        await store.close()
    report = verify(directory / "peerstore.db")
    if not report.sound:
        found.append(f"damaged: {report}")
    return found


def choose_cuts(records: Sequence[Record], count: int, lots: random.Random) -> list[int]:
    """How many records lie before each cut, rising: half the cuts come right after the store
    confirmed something, when most hangs on what it had synced."""
    marks = [at + 1 for at, record in enumerate(records) if record.operation is Operation.MARK]
    anywhere = [lots.randint(0, len(records)) for _ in range(count - count // 2)]
    return sorted([*anywhere, *lots.choices(marks, k=count // 2)])


@dataclass
class Result:
    """What the cuts of some runs showed."""

    cuts: int = 0
    operations: Counter[Operation] = field(default_factory=Counter)
    losses: list[list[str]] = field(default_factory=list)

    def __str__(self) -> str:
        did = ", ".join(f"{number} {kind.name}" for kind, number in sorted(self.operations.items()))
        return f"cuts={self.cuts} cuts_with_losses={len(self.losses)} of a log of {did}"


async def lose_power(
    library: Path, directory: Path, *, runs: int, cuts: int, synchronous: str
) -> Result:
    """Run workloads one after the other, and cut each in many places."""
    result = Result()
    work_directory, disk_directory = directory / "work", directory / "disk"
    work_directory.mkdir()
    before: Confirmations = {}
    for run in range(runs):
        lots = random.Random(run)  # noqa: S311 - nothing secret
        disk, confirmed = Disk(work_directory), dict(before)
        records = work(library, work_directory, run, synchronous)
        result.operations.update(record.operation for record in records)
        # The next run starts on what one of these cuts leaves: recovery is written and cut too.
        goes_on_at = lots.randrange(cuts)
        next_disk: dict[str, bytes] = {}
        done = 0
        for number, cut in enumerate(choose_cuts(records, cuts, lots)):
            for record in records[done:cut]:
                disk.apply(record)
                if record.operation is Operation.MARK:
                    mark = Confirmed(**json.loads(record.data))
                    confirmed[mark.slot] = mark
            done = cut
            files = disk.after_power_loss(lots)
            if number == goes_on_at:
                next_disk, before = files, dict(confirmed)
            put_on_disk(disk_directory, files)
            result.cuts += 1
            found = await losses(disk_directory, confirmed)
            if found:
                result.losses.append([f"run {run}, cut {cut} of {len(records)}", *found])
        put_on_disk(work_directory, next_disk)
    return result


def report(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print in any case: the counts are what such a run is for."""
    with capsys.disabled():
        print(f"\n{text}")  # noqa: T201


def test_the_log_leaves_nothing_out(library: Path, tmp_path: Path) -> None:
    """Applied to the end, the log gives what is really on the disk."""
    directory = tmp_path / "work"
    directory.mkdir()
    disk = Disk(directory)
    records = work(library, directory, 0, "FULL")
    for record in records:
        disk.apply(record)
    assert disk.at_rest() == {path.name: path.read_bytes() for path in directory.iterdir()}
    # It is of little use where SQLite does not do all that it can do.
    kinds = Counter((record.operation, record.name) for record in records)
    assert kinds[Operation.SYNC, "peerstore.db-wal"] > 100
    assert kinds[Operation.SYNC, "peerstore.db"] > 10
    assert kinds[Operation.SYNC_DIRECTORY, ""] >= ROUNDS
    assert kinds[Operation.UNLINK, "peerstore.db-wal"] == ROUNDS
    assert kinds[Operation.RENAME, "peerstore.mark.new"] >= ROUNDS


@pytest.mark.timeout(7200)  # for --long
async def test_a_power_loss_loses_nothing_that_was_confirmed(
    library: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = request.config.getoption("--long", default=False)
    runs, cuts = (LONG_RUNS, LONG_CUTS) if long else (RUNS, CUTS)
    result = await lose_power(library, tmp_path, runs=runs, cuts=cuts, synchronous="FULL")
    report(capsys, f"power loss, synchronous=FULL: {result}")
    assert result.cuts == runs * cuts
    assert not result.losses, "\n".join("; ".join(found) for found in result.losses)


async def test_a_store_that_syncs_too_little_is_found_out(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = await lose_power(library, tmp_path, runs=1, cuts=60, synchronous="NORMAL")
    report(capsys, f"power loss, synchronous=NORMAL: {result}")
    assert any(loss.startswith("lost: ") for found in result.losses for loss in found)
