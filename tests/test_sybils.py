"""The simulation of `tests.benchmarks.sybils`, small: what is promised holds for all in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.sybils import HONEST_KINDS, simulate


@pytest.mark.parametrize("seed", [1])
async def test_sybils_take_nothing_from_who_is_established(tmp_path: Path, seed: int) -> None:
    simulation, found = await simulate(tmp_path, honest=40, sybils=400, seed=seed)
    rows = {row.kind: row for row in found}
    assert {kind: row.lost_when_established for kind, row in rows.items()} == dict.fromkeys(rows, 0)
    # The store was full, and no fuller.
    assert simulation.most.peers == simulation.quotas.max_peers
    assert simulation.most.bytes > 0.9 * simulation.quotas.max_bytes
    assert sum(row.displaced for row in found) > 100
    # Whoever comes is taken, and a burst from one network displaces itself.
    assert all(rows[kind].stored == rows[kind].peers for kind in HONEST_KINDS)
    assert rows["burst from one /24"].kept <= 2
    assert rows["greedy"].kept <= 0.2 * rows["greedy"].peers
    # Who comes every day is through its probation before it has to give way, mostly.
    daily = rows["honest, daily"]
    assert daily.kept >= 0.75 * daily.peers
