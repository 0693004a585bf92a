"""Going through very many things without keeping the event loop from all others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 500
"""Things of one turn."""


async def in_turns(things: Iterable[T]) -> AsyncIterator[T]:
    """All that are there now; after every so many the loop goes on with others."""
    for number, thing in enumerate(list(things), 1):
        yield thing
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
