"""How big: connections, the database with very many peers, and what commands take on it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.bench import AWAY_EVERY, DATABASE, KNOWN, Bench
from tests.benchmarks.lag import Sample, between, waits
from tests.benchmarks.load import Task
from tests.benchmarks.report import Figure, Row, Target, Unit
from tests.benchmarks.rig import (
    bare,
    bare_server,
    command,
    cpu_seconds,
    holding,
    load,
    node_id,
    resident,
    run,
    secret,
)
from tests.benchmarks.scale import fill

DISK_PEERS = 100_000
"""At most, where room on disk is measured."""


def idle(bench: Bench) -> Iterator[Row]:
    """Memory and CPU of connections that say nothing but pongs."""
    for count in bench.sizes.idle:
        with bare_server("receiver") as (uri, pid):
            bare_each, _ = _idle(uri, pid, count, 0.0)
        with bench.daemon() as (uri, pid):
            each, at_rest = _idle(uri, pid, count, bench.sizes.rest)
        yield Row(
            what=f"memory of an idle connection, of {count:,}",
            ours=Figure(each, Unit.BYTES),
            bare=Figure(bare_each, Unit.BYTES, "receive"),
            targets=(Target(12 << 10),),
        )
        yield Row(
            what=f"CPU with {count:,} idle connections, their pings included",
            ours=Figure(at_rest, Unit.SHARE, "of a core"),
        )


def _idle(uri: str, pid: int, count: int, rest: float) -> tuple[float, float]:
    """Bytes of each connection, and the share of a core that all of them take for so long."""
    # The first few bring in code and caches that all share.
    with holding(uri, min(count, 20)):
        pass
    before = resident(pid)
    with holding(uri, count):
        each = (resident(pid) - before) / count
        used = cpu_seconds(pid)
        time.sleep(rest)
        used = cpu_seconds(pid) - used
    return each, used / rest if rest else 0.0


def start(bench: Bench) -> Iterator[Row]:
    """From the start of the program until peers can connect."""
    imported = min(_interpreter("import peerstore.daemon") for _ in range(3))
    for peers in bench.sizes.stored:
        yield Row(
            what=f"start with {peers:,} peers stored",
            ours=Figure(min(_start(bench, peers) for _ in range(3)), Unit.SECONDS),
            bare=Figure(imported, Unit.SECONDS, "import alone"),
            targets=(Target(1.0),),
        )


def _start(bench: Bench, peers: int) -> float:
    data_dir = bench.stored(peers)
    begun = time.monotonic()
    with bench.daemon(data_dir):
        return time.monotonic() - begun


def commands(bench: Bench) -> Iterator[Row]:
    """Commands beside a daemon with the largest database."""
    yield Row(
        what="peerstore --help",
        ours=Figure(min(run("peerstore", "--help").seconds for _ in range(3)), Unit.SECONDS),
        bare=Figure(
            min(_interpreter("import click") for _ in range(3)), Unit.SECONDS, "import click"
        ),
        targets=(Target(0.3),),
    )
    data_dir = bench.stored(bench.most)
    with bench.daemon(data_dir):
        for line, target in (("info --json", 0.3), ("backups list --limit 50", 0.5)):
            taken = min(command(data_dir, *line.split()).seconds for _ in range(3))
            yield Row(
                what=f"peerstore {line}, {bench.most:,} peers stored",
                ours=Figure(taken, Unit.SECONDS),
                targets=(Target(target),),
            )
        whole = command(data_dir, "backups", "list")
    listed = bare("listing", str(Path(data_dir) / DATABASE))["seconds"]
    yield Row(
        what=f"peerstore backups list, {bench.most:,} peers stored",
        ours=Figure(whole.seconds, Unit.SECONDS),
        bare=Figure(listed, Unit.SECONDS, "SELECT and print"),
    )
    yield Row(
        what="memory of the same, at most",
        ours=Figure(whole.bytes, Unit.BYTES),
        targets=(Target(100e6),),
    )


def prune(bench: Bench) -> Iterator[Row]:
    """Retention with the largest database: nothing due, and then every tenth backup."""
    with _copy(bench) as data_dir, _copy(bench) as other:
        nothing = bare("scan", str(Path(other) / DATABASE))["seconds"]
        yield _prune(bench, data_dir, "3650d", "nothing due", Figure(nothing, Unit.SECONDS, "scan"))
        deleted = bare("deletions", str(Path(other) / DATABASE))
        due = f"one in {AWAY_EVERY} due"
        same = Figure(deleted["seconds"], Unit.SECONDS, "deletions alone")
        yield _prune(bench, data_dir, "30d", due, same)


def _prune(bench: Bench, data_dir: str, inactive: str, due: str, beside: Figure) -> Row:
    """`peerstore prune`, and how late the event loop of its daemon comes meanwhile."""
    settings = (f"retention.inactive_time={inactive}",)
    with tempfile.TemporaryDirectory(dir=bench.directory) as folder:
        file = Path(folder) / "lag.json"
        with bench.daemon(data_dir, settings=settings, watched=file):
            begun = time.monotonic()
            taken = command(data_dir, "prune", "--json").seconds
        late = between(file, begun, begun + taken)
    return Row(
        what=f"peerstore prune, {bench.most:,} peers stored, {due}",
        ours=Figure(taken, Unit.SECONDS),
        bare=beside,
        beside=(Figure(_worst(late), Unit.SECONDS, "event loop's worst lag"),),
    )


def _worst(samples: list[Sample]) -> float:
    return max(waits(samples), default=0.0)


@contextlib.contextmanager
def _copy(bench: Bench) -> Iterator[str]:
    """A copy of the largest database's directory, to be changed."""
    with tempfile.TemporaryDirectory(dir=bench.directory) as folder:
        copy = Path(folder) / "data"
        shutil.copytree(bench.stored(bench.most), copy)
        yield str(copy)


def disk(bench: Bench) -> Iterator[Row]:
    """Bytes on disk for each byte stored, the write-ahead log included, while peers update."""
    for size in bench.sizes.blobs:
        peers = max(KNOWN, min(DISK_PEERS, bench.most, bench.sizes.disk // size))
        keys = tuple(secret() for _ in range(KNOWN))
        with tempfile.TemporaryDirectory(dir=bench.directory) as folder:
            data_dir = Path(folder) / "data"
            command(str(data_dir), "init")
            fill(data_dir / DATABASE, peers, {node_id(key): size for key in keys}, size=size)
            with bench.daemon(str(data_dir), allowed=keys) as (uri, _):
                load([Task("updates", uri, KNOWN, size, bench.sizes.seconds, keys)])
                stored = _info(str(data_dir))["bytes"]
                files = {each.name: each.stat().st_size for each in data_dir.glob(f"{DATABASE}*")}
        plain = bare("disk", bench.directory, str(size), str(peers))["bytes"] / (peers * size)
        yield Row(
            what=f"bytes on disk per byte stored, blobs of {size} B",
            ours=Figure(sum(files.values()) / stored, Unit.FACTOR),
            bare=Figure(plain, Unit.FACTOR, "blobs alone"),
            beside=(Figure(files[f"{DATABASE}-wal"], Unit.BYTES, "of it write-ahead log"),),
        )


def _info(data_dir: str) -> dict[str, int]:
    line = [sys.executable, "-m", "peerstore", "--data-dir", data_dir, "--json", "info"]
    document: dict[str, int] = json.loads(subprocess.run(line, stdout=-1, check=True).stdout)
    return document


def _interpreter(code: str) -> float:
    """Seconds of an interpreter that runs that code."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.monotonic() - begun
