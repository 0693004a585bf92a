"""How fast: updates, retrievals, handshakes, gossip, and how late the event loop comes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.attacks import Attack
from tests.benchmarks.bench import KNOWN, LARGEST, Bench
from tests.benchmarks.lag import Sample, between, waits, without_steal
from tests.benchmarks.load import Task, percentile
from tests.benchmarks.report import CLN_MEASURED, Figure, Of, Row, Target, Unit
from tests.benchmarks.rig import (
    bare,
    bare_server,
    cpu_seconds,
    load,
    run_attacks,
    secret,
)
from tests.benchmarks.scale import BLOB

LOAD_PROCESSES = 2

BURST_CONNECTIONS = 8
BURST = 64
"""Updates in flight on each of them."""

AT_ONCE = 16
"""Peers that connect at the same time."""

LAG_LOADS = 6
"""Lag is measured for so many times as long as all else: p99.99 needs many samples."""

UPDATE_TARGETS = {
    (LARGEST, 64): (Target(0.6, Of.BARE), Target(20, Of.CLN)),
    (1024, 64): (Target(15_000),),
}
"""By size and number of connections."""


def updates(bench: Bench) -> Iterator[Row]:
    """Durable updates, one in flight on each connection, counted when their own pong has come."""
    sizes = bench.sizes
    for size in sizes.blobs:
        for connections in sizes.connections:
            together = str(connections)
            upserts = bare("upserts", bench.directory, str(size), together, str(sizes.seconds))
            task = Task("updates", "", connections, size, sizes.seconds, _keys(connections))
            ours, received = _beside_receiver(bench, task)
            with bare_server("keeper", bench.directory) as (uri, _):
                both = load(_shared_out(task, uri))
            slower = min(
                _rate([{"confirmed": upserts["rate"], "seconds": 1.0}], "SQLite"),
                received,
                key=lambda figure: figure.value,
            )
            yield Row(
                what=f"updates of {size} B, {_counted(connections)}",
                ours=_rate(ours),
                bare=slower,
                cln=CLN_MEASURED.get(f"updates of {size} B"),
                targets=UPDATE_TARGETS.get((size, connections), ()),
                beside=(*_latencies(ours), _rate(both, "by both bare loops in one")),
            )


def bursts(bench: Bench) -> Iterator[Row]:
    """Updates one after another without waiting: of those that wait only the newest is written."""
    for size in bench.sizes.blobs:
        keys = _keys(BURST_CONNECTIONS)
        task = Task("updates", "", len(keys), size, bench.sizes.seconds, keys, in_flight=BURST)
        what = f"bursts of {BURST} updates of {size} B, {_counted(len(keys))}"
        yield _row_beside_receiver(bench, what, task)


def identical(bench: Bench) -> Iterator[Row]:
    """The blob that is stored already, again and again: nothing is written."""
    connections = max(bench.sizes.connections)
    for size in bench.sizes.blobs:
        keys = _keys(connections)
        task = Task("updates", "", connections, size, bench.sizes.seconds, keys, identical=True)
        what = f"identical updates of {size} B, {_counted(connections)}"
        yield _row_beside_receiver(bench, what, task)


def _row_beside_receiver(bench: Bench, what: str, task: Task) -> Row:
    """What a load does to the daemon and to the bare receiver."""
    ours, received = _beside_receiver(bench, task)
    return Row(
        what=what,
        ours=_rate(ours),
        bare=received,
        beside=_latencies(ours),
    )


def reconnects(bench: Bench) -> Iterator[Row]:
    """From TCP connect to the whole retrieval, with few and with very many peers stored."""
    parts = _reconnect_parts(bench)
    loaded = dict(_bare_retrievals(bench))
    few: Figure | None = None
    for peers in sorted(bench.sizes.stored):
        keys = (*bench.large, *bench.small)
        with bench.daemon(bench.stored(peers), allowed=keys) as served:
            yield from _retrievals(bench, served, f"{peers:,} peers stored", parts, loaded)
            small = Task("reconnects", "", 1, BLOB, bench.sizes.seconds, bench.small)
            result, cost = _reconnect(served, small)
        yield Row(
            what=f"CPU of a retrieval of {BLOB} B, {peers:,} peers stored",
            ours=Figure(cost, Unit.SECONDS),
            bare=few,
            targets=() if few is None else (Target(1.5, Of.BARE),),
            beside=_pace(result),
        )
        few = few or Figure(cost, Unit.SECONDS, f"with {peers:,}")


def _bare_retrievals(bench: Bench) -> Iterator[tuple[int, Figure]]:
    """What a server that does nothing else takes under the same load, by how many are at once."""
    with bare_server("retriever", bench.directory, str(LARGEST)) as served:
        for at_once in (1, AT_ONCE):
            task = Task("reconnects", "", at_once, LARGEST, bench.sizes.seconds, bench.large)
            _, cost = _reconnect(served, task)
            yield at_once, Figure(cost, Unit.SECONDS, "by a bare server under this load")


def _retrievals(
    bench: Bench,
    served: tuple[str, int],
    stored: str,
    parts: Figure,
    loaded: Mapping[int, Figure],
) -> Iterator[Row]:
    """Retrievals of the largest blob, one after another and several at once.

    `parts` is the sum of what they are made of, each measured alone; `loaded` see
    _bare_retrievals.
    """
    task = Task("reconnects", "", 1, LARGEST, bench.sizes.seconds, bench.large)
    result, cost = _reconnect(served, task)
    yield Row(
        what=f"reconnects one after another, {stored}",
        ours=Figure(result["count"] / result["seconds"], Unit.PER_SECOND),
        cln=CLN_MEASURED["reconnects"],
        targets=(Target(3, Of.CLN),),
        beside=_latencies([result])[:1],
    )
    yield Row(
        what=f"p99 from connect to retrieval, {stored}",
        ours=Figure(result["p99"], Unit.SECONDS),
        cln=CLN_MEASURED["reconnect p99"],
        targets=(Target(CLN_MEASURED["reconnect p50"]),),
    )
    yield Row(
        what=f"CPU of a retrieval of {LARGEST} B, {stored}",
        ours=Figure(cost, Unit.SECONDS),
        bare=parts,
        targets=(Target(1.6, Of.BARE),),
        beside=(loaded[1],),
    )
    result, cost = _reconnect(served, replace(task, connections=AT_ONCE))
    yield Row(
        what=f"CPU of the same, {AT_ONCE} at once",
        ours=Figure(cost, Unit.SECONDS),
        bare=parts,
        targets=(Target(1.6, Of.BARE),),
        beside=(loaded[AT_ONCE], *_pace(result)),
    )


def handshakes(bench: Bench) -> Iterator[Row]:
    """From TCP connect to the provider's `init`, of peers that it does not know."""
    seconds = bench.sizes.seconds
    each = AT_ONCE // LOAD_PROCESSES
    with bench.daemon() as (uri, pid):
        used = cpu_seconds(pid)
        results = load([Task("handshakes", uri, each, 0, seconds)] * LOAD_PROCESSES)
        used = (cpu_seconds(pid) - used) / sum(result["count"] for result in results)
    yield Row(
        what=f"connects until init has come, {AT_ONCE} at once",
        ours=Figure(
            sum(result["count"] / result["seconds"] for result in results), Unit.PER_SECOND
        ),
        cln=CLN_MEASURED["connects to init"],
    )
    shaken = bare("handshake_cpu", "500")["cpu"] + bare("accepts", str(min(seconds, 2.0)))["cpu"]
    yield Row(
        what="CPU of a connect until init has come",
        ours=Figure(used, Unit.SECONDS),
        bare=Figure(shaken, Unit.SECONDS, "handshake, accept"),
    )


def gossip(bench: Bench) -> Iterator[Row]:
    """What reading gossip and dropping it costs, beside reading and decrypting it."""
    attack = Attack("gossip", "", count=bench.sizes.gossip, key=secret())
    costs = []
    for served in (bench.daemon(allowed=[attack.key]), bare_server("receiver")):
        with served as (uri, pid):
            used = cpu_seconds(pid)
            (result,) = run_attacks([replace(attack, uri=uri)])
            costs.append((cpu_seconds(pid) - used) / result["bytes"] * 1e6)
    ours, bare_cost = costs
    yield Row(
        what="CPU of a megabyte of gossip",
        ours=Figure(ours, Unit.SECONDS),
        bare=Figure(bare_cost, Unit.SECONDS, "receive"),
        targets=(Target(1.5, Of.BARE),),
    )


def lag(bench: Bench) -> Iterator[Row]:
    """How late the event loop comes while 64 connections update and others connect."""
    seconds = bench.sizes.seconds * LAG_LOADS
    updating = Task("updates", "", KNOWN, LARGEST, seconds, _keys(KNOWN))
    coming = Task("handshakes", "", 4, 0, seconds, _keys(KNOWN))
    with tempfile.TemporaryDirectory(dir=bench.directory) as folder:
        file = Path(folder) / "lag.json"
        allowed = (*updating.keys, *coming.keys)
        figures: list[tuple[Figure, ...]] = []
        for served in (
            bench.daemon(allowed=allowed, watched=file),
            bare_server("receiver", watched=file),
        ):
            with served as (uri, _):
                # So that something is given back to who comes.
                load([Task("updates", uri, KNOWN, LARGEST, bench.sizes.seconds / 5, coming.keys)])
                begun = load([replace(updating, uri=uri), replace(coming, uri=uri)])[0]["begun"]
            figures.append(_lags(between(file, begun, begun + seconds)))
    (ours, *beside), (received, *_) = figures
    yield Row(
        what="event loop's lag p99.99 under load, without stolen time",
        ours=ours,
        bare=replace(received, name="receive"),
        targets=(Target(0.02),),
        beside=tuple(beside),
    )


def _lags(samples: list[Sample]) -> tuple[Figure, ...]:
    """p99.99 without stolen time, the same with it, the worst of all, and what was left out."""
    left = list(without_steal(samples))
    if not left:
        raise SystemExit("time was stolen all along: measure again on a quieter machine")
    waited, all_waited = waits(left), waits(samples)
    return (
        Figure(percentile(waited, 0.9999), Unit.SECONDS),
        Figure(percentile(all_waited, 0.9999), Unit.SECONDS, "with stolen time"),
        Figure(percentile(all_waited, 1.0), Unit.SECONDS, "worst"),
        Figure(1 - len(left) / max(1, len(samples)), Unit.SHARE, "of samples left out"),
    )


def _beside_receiver(bench: Bench, task: Task) -> tuple[list[dict[str, Any]], Figure]:
    """What a daemon and the bare receiver made of a load that comes from several processes.

    How much of a core the receiver took says whether it or the load was at its limit.
    """
    with bare_server("receiver") as (uri, pid):
        used = cpu_seconds(pid)
        results = load(_shared_out(task, uri))
        share = (cpu_seconds(pid) - used) / task.seconds
    received = _rate(results, f"receive, {share:.0%} of a core")
    with bench.daemon(allowed=task.keys) as (uri, _):
        ours = load(_shared_out(task, uri))
    if any(result["refused"] for result in ours):
        raise SystemExit(f"updates were refused: {ours}")
    return ours, received


def _shared_out(task: Task, uri: str) -> list[Task]:
    parts = [task.keys[number::LOAD_PROCESSES] for number in range(LOAD_PROCESSES)]
    return [replace(task, uri=uri, keys=keys, connections=len(keys)) for keys in parts if keys]


def _reconnect(served: tuple[str, int], task: Task) -> tuple[dict[str, Any], float]:
    """Reconnect with everything warm: the load's result, and CPU seconds of the server for each."""
    uri, pid = served
    task = replace(task, uri=uri)
    load([replace(task, seconds=task.seconds / 5)])
    used = cpu_seconds(pid)
    (result,) = load([task])
    return result, (cpu_seconds(pid) - used) / result["count"]


def _reconnect_parts(bench: Bench) -> Figure:
    """CPU seconds of all that a retrieval is made of."""
    parts = (
        bare("handshake_cpu", "500"),
        bare("accepts", str(min(bench.sizes.seconds, 2.0))),
        bare("reads", bench.directory, str(LARGEST)),
        bare("hash_and_encrypt", str(LARGEST), "2000"),
    )
    return Figure(sum(part["cpu"] for part in parts), Unit.SECONDS, "its parts")


def _rate(results: list[dict[str, Any]], name: str = "") -> Figure:
    """Confirmed updates a second."""
    rate = sum(result["confirmed"] / result["seconds"] for result in results)
    return Figure(rate, Unit.PER_SECOND, name)


def _pace(result: dict[str, Any]) -> tuple[Figure, ...]:
    """How many reconnects a second a load has made, and how long each took."""
    rate = Figure(result["count"] / result["seconds"], Unit.PER_SECOND)
    return (rate, *_latencies([result]))


def _latencies(results: list[dict[str, Any]]) -> tuple[Figure, ...]:
    """p50 and p99, the worst of the processes' figures."""
    return tuple(
        Figure(max(result[key] for result in results), Unit.SECONDS, key) for key in ("p50", "p99")
    )


def _keys(count: int) -> tuple[str, ...]:
    return tuple(secret() for _ in range(count))


def _counted(connections: int) -> str:
    return "1 connection" if connections == 1 else f"{connections} connections"
