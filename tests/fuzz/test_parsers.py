"""Everything that reads what comes from outside, on inputs out of a seed."""

from __future__ import annotations

import pytest

from tests.fuzz.helpers import fuzz
from tests.fuzz.targets import PARSERS

INPUTS = {
    "messages": 80_000,
    "tlvs": 60_000,
    "features": 20_000,
    "texts": 30_000,
    "control": 40_000,
    "frames": 8_000,
    "handshake": 6_000,
}


@pytest.mark.timeout(3600)  # for --long
@pytest.mark.parametrize("name", PARSERS)
def test_nothing_but_the_documented_comes_of_any_input(
    name: str, request: pytest.FixtureRequest
) -> None:
    fuzz(name, INPUTS[name], request)
