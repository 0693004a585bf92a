"""Whole conversations with a session, on inputs out of a seed."""

from __future__ import annotations

import pytest

from tests.fuzz.helpers import fuzz

CONVERSATIONS = 8_000


@pytest.mark.timeout(3600)  # for --long
def test_every_conversation_goes_by_the_book(request: pytest.FixtureRequest) -> None:
    fuzz("conversations", CONVERSATIONS, request)
