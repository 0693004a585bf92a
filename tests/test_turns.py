"""Going through very many things."""

from __future__ import annotations

import asyncio

from peerstore.turns import AT_ONCE, in_turns


async def test_others_have_their_turn_between_many_things() -> None:
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    turn()
    seen_at = [turns async for _ in in_turns(range(3 * AT_ONCE))]
    assert len(set(seen_at)) == 3


async def test_things_that_come_or_go_between_are_those_of_the_beginning() -> None:
    things = dict.fromkeys(range(2 * AT_ONCE))
    asyncio.get_running_loop().call_soon(things.clear)
    assert [each async for each in in_turns(things)] == list(range(2 * AT_ONCE))
    assert things == {}
