"""Runs a target on many inputs: so many, or for so long, in one process or several.

The inputs come in numbered blocks from a seed, so a run with the same seed, corpus and number of
inputs does the same again, in however many processes.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.generate import BLOCK, block
from tests.fuzz.targets import TARGETS


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that showed something wrong, and the traceback."""

    data: bytes
    trace: str

    def save(self, directory: Path) -> Path:
        """Write the input to a file that is named by its hash."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / hashlib.sha256(self.data).hexdigest()[:16]
        path.write_bytes(self.data)
        return path


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many inputs were run, and the first that failed."""

    inputs: int
    failure: Failure | None = None


def try_input(name: str, data: bytes) -> Failure | None:
    """Run a target on one input."""
    try:
        TARGETS[name].run(data)
    except Exception:
        return Failure(data, traceback.format_exc())
    return None


def run(
    name: str, seed: int, inputs: int, *, end: float = float("inf"), part: tuple[int, int] = (0, 1)
) -> Outcome:
    """Run until something fails, so many inputs are through, or the monotonic clock shows `end`.

    `part` says which blocks: of every so many the one with that number.
    """
    target, done = TARGETS[name], 0
    first, step = part
    for number in range(first, -(-inputs // BLOCK), step):
        if time.monotonic() >= end:
            break
        for data in _up_to(inputs - number * BLOCK, block(target, seed, number)):
            done += 1
            try:
                target.run(data)
            except Exception:
                return Outcome(done, Failure(data, traceback.format_exc()))
    return Outcome(done)


def _up_to(limit: int, inputs: Iterator[bytes]) -> Iterator[bytes]:
    for number, data in enumerate(inputs):
        if number >= limit:
            return
        yield data


def run_in_processes(
    name: str, seed: int, inputs: int, *, end: float = float("inf"), processes: int = 1
) -> list[Outcome]:
    """The same with the blocks dealt out to processes; what each has done."""
    if processes == 1:
        return [run(name, seed, inputs, end=end)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = [(number, processes) for number in range(processes)]
        calls = [
            pool.apply_async(run, (name, seed, inputs), {"end": end, "part": part})
            for part in parts
        ]
        return [call.get() for call in calls]
