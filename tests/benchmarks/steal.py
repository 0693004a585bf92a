"""Time that a hypervisor gave to other machines while this one wanted to run (proc(5), stat)."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_STAT = Path("/proc/stat").open("rb", buffering=0)  # noqa: SIM115 - read again and again


def stolen() -> float:
    """Seconds stolen since the machine was started, of all its cores together."""
    line = os.pread(_STAT.fileno(), 256, 0).split(b"\n", 1)[0]
    return int(line.split()[8]) / _TICK


class Stolen:
    """What share of the time of all cores was stolen since it was made."""

    def __init__(self) -> None:
        self._stolen = stolen()
        self._begun = time.monotonic()

    def share(self) -> float:
        passed = time.monotonic() - self._begun
        return (stolen() - self._stolen) / (passed * (os.cpu_count() or 1))
