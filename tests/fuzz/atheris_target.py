"""python -m tests.fuzz.atheris_target TARGET [DIRECTORY ...] [libFuzzer options]

Runs a target under atheris, which looks for inputs that reach new lines of the package. It begins
with the target's seeds and corpus; what it finds goes to the first DIRECTORY, which need not be
there, and is thrown away without one. `-max_total_time=3600` runs an hour; see `-help=1`. An input
that fails is written to peerstore-fuzz in the directory for temporary files, unless
`-artifact_prefix=` says otherwise.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["peerstore"]):
    from tests.fuzz.targets import TARGETS, Target

LONGEST = 4096
"""Bytes of an input unless `-max_len=` says otherwise."""


def write_inputs(target: Target, directory: Path) -> Path:
    """The target's inputs as files."""
    directory.mkdir()
    for data in target.inputs:
        (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return directory


def fuzz(target: Target, arguments: list[str], temporary: Path) -> None:
    """Run libFuzzer, which ends the process."""
    crashes = Path(tempfile.gettempdir()) / "peerstore-fuzz"
    crashes.mkdir(exist_ok=True)
    options = [argument for argument in arguments if argument.startswith("-")]
    found, *others = [Path(a) for a in arguments if a not in options] or [temporary / "found"]
    found.mkdir(parents=True, exist_ok=True)
    inputs = write_inputs(target, temporary / "inputs")
    # Of an option that comes twice the last counts.
    defaults = [f"-max_len={LONGEST}", f"-artifact_prefix={crashes}/"]
    atheris.Setup(
        [sys.argv[0], *defaults, *options, str(found), str(inputs), *map(str, others)], target.run
    )
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Run from the command line; returns the exit code."""
    if not arguments or arguments[0] not in TARGETS:
        sys.exit(f"usage: {__doc__}\nTargets: {', '.join(TARGETS)}")
    temporary = Path(tempfile.mkdtemp(prefix="peerstore-fuzz-"))
    # libFuzzer never comes back; somebody has to clean up behind it.
    child = os.fork()
    if child == 0:
        fuzz(TARGETS[arguments[0]], arguments[1:], temporary)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        shutil.rmtree(temporary)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
