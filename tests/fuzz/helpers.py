"""What the test modules beside share: seeds, and how much is run."""

from __future__ import annotations

import os
import random

import pytest

from tests.fuzz.driver import run


def seed() -> int:
    """CI runs the same inputs each time; elsewhere new ones are looked for."""
    return 0 if os.environ.get("CI") else random.SystemRandom().randrange(1 << 32)


def fuzz(name: str, inputs: int, request: pytest.FixtureRequest) -> None:
    """Run a target on so many inputs, with `--long` on fifty times as many."""
    inputs *= 50 if request.config.getoption("--long", default=False) else 1
    number = seed()
    outcome = run(name, number, inputs)
    if outcome.failure is not None:
        pytest.fail(
            f"{name}, seed {number}, fails on {outcome.failure.data.hex()}\n{outcome.failure.trace}"
        )
    assert outcome.inputs == inputs
