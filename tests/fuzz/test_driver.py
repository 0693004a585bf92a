"""That a run can fail, says on what, and can be done again."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from peerstore.errors import CodecError
from tests.fuzz import driver
from tests.fuzz.driver import run, run_in_processes, try_input
from tests.fuzz.generate import BLOCK, block
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]


def test_the_same_seed_makes_the_same_inputs() -> None:
    target = TARGETS["messages"]
    assert list(block(target, 1, 2)) == list(block(target, 1, 2))
    assert list(block(target, 1, 2)) != list(block(target, 1, 3))
    assert list(block(target, 1, 2)) != list(block(target, 2, 2))


@pytest.mark.parametrize("inputs", [1, BLOCK, 2 * BLOCK + 1])
def test_as_many_inputs_are_run_as_were_asked_for(inputs: int) -> None:
    assert run("tlvs", 0, inputs).inputs == inputs
    parts = [run("tlvs", 0, inputs, part=(number, 2)) for number in range(2)]
    assert sum(part.inputs for part in parts) == inputs


def test_processes_share_the_inputs() -> None:
    outcomes = run_in_processes("tlvs", 0, 4 * BLOCK, processes=2)
    assert [outcome.inputs for outcome in outcomes] == [2 * BLOCK, 2 * BLOCK]


def test_an_end_that_has_passed_ends_the_run() -> None:
    assert run("tlvs", 0, 10 * BLOCK, end=0.0).inputs == 0


def test_an_input_that_fails_is_reported_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(data: bytes) -> None:
        if b"\xff" in data:
            raise CodecError("what must not escape")

    target = replace(TARGETS["tlvs"], run=fails)
    monkeypatch.setattr(driver, "TARGETS", {"tlvs": target})
    outcome = run("tlvs", 0, 10 * BLOCK)
    assert outcome.failure is not None
    assert outcome.inputs < 10 * BLOCK
    assert "what must not escape" in outcome.failure.trace
    path = outcome.failure.save(tmp_path / "crashes")
    assert try_input("tlvs", path.read_bytes()) is not None
    assert try_input("tlvs", b"") is None


def test_the_command_says_how_many_how_fast_and_from_which_seed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "features", "--inputs", "1000", "--seed", "7"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("features: 1000 inputs in ")
    assert done.stdout.endswith("seed 7\n")
