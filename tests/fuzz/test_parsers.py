"""Everything that reads what comes from outside, on inputs out of a seed."""

from __future__ import annotations

import pytest

from tests.fuzz.helpers import fuzz
from tests.fuzz.targets import PARSERS

INPUTS = {
    "messages": 50_000,
    "tlvs": 40_000,
    "features": 20_000,
    "texts": 20_000,
    "control": 25_000,
    "frames": 5_000,
    "handshake": 4_000,
}


@pytest.mark.timeout(3600)  # for --long
@pytest.mark.parametrize("name", PARSERS)
def test_nothing_but_the_documented_comes_of_any_input(
    name: str, request: pytest.FixtureRequest
) -> None:
    fuzz(name, INPUTS[name], request)
