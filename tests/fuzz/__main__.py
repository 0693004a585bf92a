"""python -m tests.fuzz TARGET [--inputs N] [--seconds N] [--seed S] [--processes P]

Runs a target on pseudo-random inputs; prints how many, the rate and the seed. An input that
fails is printed in hexadecimal and written to a file: it exits 1.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.driver import Failure, run_in_processes, try_input
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--inputs", type=int, help="how many; 100000 unless --seconds is given")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for how long, each")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--crashes", type=Path, help="directory for inputs that fail")
    parser.add_argument("--input", type=Path, help="run on this file alone")
    options = parser.parse_args()
    crashes = options.crashes or Path(tempfile.gettempdir()) / "peerstore-fuzz"
    if options.input is not None:
        failure = try_input(options.target, options.input.read_bytes())
        return report(options.target, failure, crashes)
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    limit = 100_000 if options.seconds == float("inf") else 1 << 62
    inputs = limit if options.inputs is None else options.inputs
    names = list(TARGETS) if options.target == "all" else [options.target]
    return max(
        fuzz(name, seed, inputs, options.seconds, options.processes, crashes) for name in names
    )


def fuzz(name: str, seed: int, inputs: int, seconds: float, processes: int, crashes: Path) -> int:
    """Run one target, and print what came of it."""
    began = time.monotonic()
    outcomes = run_in_processes(name, seed, inputs, end=began + seconds, processes=processes)
    done, took = sum(outcome.inputs for outcome in outcomes), time.monotonic() - began
    rate = done / took if took else 0
    print(f"{name}: {done} inputs in {took:.0f} s, {rate:.0f} a second, seed {seed}", flush=True)
    return max(report(name, outcome.failure, crashes / name) for outcome in outcomes)


def report(name: str, failure: Failure | None, crashes: Path) -> int:
    """Print a failure; returns the exit code."""
    if failure is None:
        return 0
    print(failure.trace)
    print(f"{name} fails on {failure.data.hex()}\nwritten to {failure.save(crashes)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
