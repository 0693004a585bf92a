"""How late an event loop comes, seen from inside the process that is measured.

`python -m tests.benchmarks.lag FILE MODULE ARGUMENTS...` runs a module whose first event loop is
watched: it is to wake every millisecond, and how late it came is written to FILE at the end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import uvloop

from tests.benchmarks.steal import stolen

AnyLoop = TypeVar("AnyLoop", bound=asyncio.AbstractEventLoop)

TICK = 0.001

SETTLING = 0.01
"""For how long after a sample stolen time may still show: the kernel counts it in hundredths."""


class Sample(NamedTuple):
    """When the loop came, how late, and how much time had been stolen by then; seconds.

    `at` is of the monotonic clock, which all processes share.
    """

    at: float
    late: float
    stolen: float


class LagWatch:
    """Wakes up every TICK in `loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.samples: list[Sample] = []
        self._loop = loop
        self._due = 0.0
        self._wait()

    def _wait(self) -> None:
        self._due = self._loop.time() + TICK
        self._loop.call_at(self._due, self._wake)

    def _wake(self) -> None:
        now = self._loop.time()
        self.samples.append(Sample(now, max(0.0, now - self._due), stolen()))
        self._wait()


def without_steal(samples: Sequence[Sample]) -> Iterator[Sample]:
    """The samples during which nothing was stolen: neither since the one before, nor until
    SETTLING after."""
    later = 0
    for before, sample in itertools.pairwise(samples):
        while later + 1 < len(samples) and samples[later].at < sample.at + SETTLING:
            later += 1
        if samples[later].stolen == before.stolen:
            yield sample


def waits(samples: Sequence[Sample]) -> list[float]:
    """How long what comes every TICK has to wait, in order of length.

    A loop that is late by 50 ms keeps all waiting that comes in these 50 ms, not only the first.
    """
    return sorted(
        sample.late - waited * TICK
        for sample in samples
        for waited in range(1 + int(sample.late / TICK))
    )


def between(file: Path, begun: float, ended: float) -> list[Sample]:
    """What was written to a file, as far as it is of that time."""
    samples = [Sample(*each) for each in json.loads(file.read_text())]
    seen = [sample for sample in samples if begun <= sample.at <= ended]
    if not seen:
        raise SystemExit("the event loop was not watched")
    return seen


class _Watching(asyncio.DefaultEventLoopPolicy):
    """Has the first event loop watched that is made, asyncio's or uvloop's."""

    def __init__(self) -> None:
        super().__init__()
        self.watch: LagWatch | None = None

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return self._watched(super().new_event_loop())

    def new_uvloop(self) -> uvloop.Loop:
        return self._watched(uvloop.Loop())

    def _watched(self, loop: AnyLoop) -> AnyLoop:
        if self.watch is None:
            self.watch = LagWatch(loop)
        return loop


def main() -> None:
    """Run the module, then write what was seen."""
    file, module, *arguments = sys.argv[1:]
    policy = _Watching()
    asyncio.set_event_loop_policy(policy)
    uvloop.new_event_loop = policy.new_uvloop
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        samples = [] if policy.watch is None else policy.watch.samples
        Path(file).write_text(json.dumps(samples))


if __name__ == "__main__":
    main()
