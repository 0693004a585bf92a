"""Every target under atheris, for a bounded number of runs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]

RUNS = {"handshake": 1_000, "frames": 1_500, "conversations": 1_500}
"""Of those that take long; the others do seven thousand."""

HANG = 3600


def fuzz(tmp_path: Path, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a target under atheris."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: it has wheels for Linux on x86_64 alone")
    found = tmp_path / "found"
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.atheris_target", name, str(found), *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


@pytest.mark.timeout(HANG)  # for --long
@pytest.mark.parametrize("name", TARGETS)
def test_atheris_finds_nothing(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    runs = RUNS.get(name, 7_000) * (50 if request.config.getoption("--long") else 1)
    done = fuzz(tmp_path, name, f"-runs={runs}", "-seed=1", f"-artifact_prefix={tmp_path}/")
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {runs} runs" in done.stderr
    # It sees which lines the kept corpus reaches: without that it would fuzz in the dark.
    covered = re.search(r"INITED cov: (\d+)", done.stderr)
    assert covered is not None, done.stderr[-4000:]
    assert int(covered[1]) > 20
