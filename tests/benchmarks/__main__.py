"""How fast and how big: `python -m tests.benchmarks`.

Every figure stands beside what a bare loop of the same parts does in the same run, because only
the ratio says something about peerstore and not about the machine. The load comes from other
processes, so on two cores it takes its share of both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.attacks import Attack
from tests.benchmarks.load import Task
from tests.benchmarks.rig import (
    Row,
    bare,
    cpu_seconds,
    daemon,
    holding,
    load,
    print_table,
    receiver,
    resident,
    run_attacks,
    secret,
)
from tests.benchmarks.scale import BLOB as BLOB_OF_MANY
from tests.benchmarks.scale import fill

BLOB = 65531
LOAD_PROCESSES = 2


def main() -> None:
    """Run all, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")
    parser.add_argument("--idle", type=int, default=1000, help="idle connections to open")
    parser.add_argument("--gossip", type=int, default=64 << 20, help="bytes of gossip to send")
    parser.add_argument("--peers", type=int, default=1_000_000, help="peers of the large database")
    parser.add_argument("--dir", default=None, help="where databases are made; a disk, not RAM")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        rows = [
            *updates(directory, BLOB, options.seconds),
            *updates(directory, 1024, options.seconds),
            *reconnects(directory, options.seconds),
            *handshakes(directory, options.seconds),
            *idle(directory, options.idle),
            *gossip(directory, options.gossip),
            *helps(),
            *scale(directory, options.peers, options.seconds),
        ]
    print_table([HEADS, *rows])


HEADS = ("what", "peerstore", "bare loop", "ratio", "target")


def updates(directory: str, size: int, seconds: float) -> Iterator[Row]:
    """Durable updates from 64 connections, one in flight each."""
    upserts = bare("upserts", directory, str(size), str(seconds))["rate"]
    keys = tuple(secret() for _ in range(64))
    with receiver() as (uri, _):
        received = rate(update_load(uri, size, seconds, keys))
    with daemon(directory, allowed=keys) as (uri, _):
        results = update_load(uri, size, seconds, keys)
    if any(result["refused"] for result in results):
        raise SystemExit(f"updates were refused: {results}")
    ours = rate(results)
    target = "at least 0.6" if size == BLOB else "at least 15000/s"
    slower = min(upserts, received)
    yield (
        f"durable updates of {size} B, 64 connections",
        f"{ours:.0f}/s, p50 {ms(results, 'p50')} p99 {ms(results, 'p99')}",
        f"{upserts:.0f}/s SQLite, {received:.0f}/s receive",
        f"{ours / slower:.2f}",
        target,
    )


def reconnects(directory: str, seconds: float) -> Iterator[Row]:
    """From TCP connect to the whole retrieval of 65531 bytes."""
    parts = [
        bare("handshake_cpu", "500"),
        bare("accepts", str(min(seconds, 2.0))),
        bare("reads", directory, str(BLOB)),
        bare("hash_and_encrypt", str(BLOB), "2000"),
    ]
    bare_cpu = sum(part["cpu"] for part in parts)
    keys = tuple(secret() for _ in range(64))
    with daemon(directory, allowed=keys) as (uri, pid):
        task = Task("updates", uri, 64, BLOB, 0.5, keys)
        load([task])
        for at_once in (1, 16):
            used = cpu_seconds(pid)
            (result,) = load([Task("reconnects", uri, at_once, BLOB, seconds, keys)])
            used = (cpu_seconds(pid) - used) / result["count"]
            yield (
                f"reconnect to retrieval, {at_once} at once",
                f"{result['count'] / result['seconds']:.0f}/s, p50 {ms([result], 'p50')}"
                f" p99 {ms([result], 'p99')}, CPU {used * 1e6:.0f} us",
                f"CPU {bare_cpu * 1e6:.0f} us",
                f"{used / bare_cpu:.2f}",
                "at most 1.6",
            )


def handshakes(directory: str, seconds: float) -> Iterator[Row]:
    """Handshakes a second, and what each costs the server."""
    bare_cpu = bare("handshake_cpu", "500")["cpu"]
    with daemon(directory) as (uri, pid):
        used = cpu_seconds(pid)
        (result,) = load([Task("handshakes", uri, 16, 0, seconds)])
        used = (cpu_seconds(pid) - used) / result["count"]
    yield (
        "handshakes",
        f"{result['count'] / result['seconds']:.0f}/s, CPU {used * 1e6:.0f} us",
        f"CPU {bare_cpu * 1e6:.0f} us",
        f"{used / bare_cpu:.2f}",
        "",
    )


def idle(directory: str, count: int) -> Iterator[Row]:
    """Memory of connections that say nothing."""
    with daemon(directory) as (uri, pid):
        # The first few bring in code and caches that all share.
        with holding(uri, 20):
            pass
        before = resident(pid)
        with holding(uri, count):
            each = (resident(pid) - before) / count
    yield (f"{count} idle connections", f"{each / 1024:.1f} KiB each", "", "", "at most 12 KiB")


def gossip(directory: str, size: int) -> Iterator[Row]:
    """What reading gossip and dropping it costs, beside reading and decrypting it."""
    attack = Attack("gossip", "", count=size, key=secret())
    costs = []
    for served in (
        daemon(directory, allowed=[attack.key]),
        receiver(),
    ):
        with served as (uri, pid):
            used = cpu_seconds(pid)
            (result,) = run_attacks([replace(attack, uri=uri)])
            costs.append((cpu_seconds(pid) - used) / result["bytes"] * (1 << 20))
    ours, bare_cost = costs
    yield (
        f"{size >> 20} MiB of gossip",
        f"CPU {ours * 1000:.1f} ms a MiB",
        f"CPU {bare_cost * 1000:.1f} ms a MiB",
        f"{ours / bare_cost:.2f}",
        "at most 1.5",
    )


def scale(directory: str, peers: int, seconds: float) -> Iterator[Row]:
    """Start, commands and replay with very many peers stored, beside a thousand."""
    keys = tuple(secret() for _ in range(64))
    starts: list[float] = []
    lists: list[float] = []
    infos: list[float] = []
    replays: list[float] = []
    for count in (1000, peers):
        with tempfile.TemporaryDirectory(dir=directory) as data_dir:
            _command(data_dir, "init")
            fill(Path(data_dir) / "peerstore.db", count, keys)
            begun = time.perf_counter()
            with daemon(directory, data_dir) as (uri, pid):
                starts.append(time.perf_counter() - begun)
                lists.append(min(_command(data_dir, "backups", "list", "--limit", "50")
                                 for _ in range(3)))  # fmt: skip
                infos.append(min(_command(data_dir, "info", "--json") for _ in range(3)))
                whole = _measured(data_dir, "backups", "list")
                listed = bare("listing", str(Path(data_dir) / "peerstore.db"))["seconds"]
                task = Task("reconnects", uri, 1, BLOB_OF_MANY, seconds, keys)
                load([task])  # warm
                used = cpu_seconds(pid)
                (result,) = load([task])
                replays.append((cpu_seconds(pid) - used) / result["count"])
    for what, (few, many), target in (
        ("start", starts, "under 1 s"),
        ("backups list --limit 50", lists, "under 0.5 s"),
        ("info --json", infos, "under 0.3 s"),
    ):
        yield (f"{what}, {peers} peers", f"{many:.2f} s", f"{few:.2f} s with 1000",
               f"{many / few:.2f}", target)  # fmt: skip
    seconds_taken, peak = whole
    yield (f"backups list, {peers} peers", f"{seconds_taken:.1f} s, {peak / (1 << 20):.0f} MiB",
           f"{listed:.1f} s", f"{seconds_taken / listed:.2f}", "under 100 MB")  # fmt: skip
    few, many = replays
    yield (f"replay, {peers} peers, warm", f"CPU {many * 1e6:.0f} us",
           f"CPU {few * 1e6:.0f} us with 1000", f"{many / few:.2f}", "at most 1.5")  # fmt: skip


def helps() -> Iterator[Row]:
    """The start of the program, beside that of an interpreter that imports click."""
    taken, import_only = (
        min(_seconds(command) for _ in range(5))
        for command in (("-m", "peerstore", "--help"), ("-c", "import click"))
    )
    yield ("--help", f"{taken:.2f} s", f"{import_only:.2f} s import click",
           f"{taken / import_only:.2f}", "under 0.3 s")  # fmt: skip


def _seconds(arguments: tuple[str, ...]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def _command(data_dir: str, *arguments: str) -> float:
    """Run a command; the seconds that it took."""
    return _measured(data_dir, *arguments)[0]


def _measured(data_dir: str, *arguments: str) -> tuple[float, int]:
    """Run a command; the seconds that it took, and the most bytes that it had in memory."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "peerstore", "--data-dir", data_dir]
    process = subprocess.Popen(
        [*command, "--set", "network=regtest", *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} failed")
    return time.perf_counter() - begun, usage.ru_maxrss * 1024


def update_load(uri: str, size: int, seconds: float, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """A connection for each key from LOAD_PROCESSES processes."""
    parts = [keys[number::LOAD_PROCESSES] for number in range(LOAD_PROCESSES)]
    return load([Task("updates", uri, len(part), size, seconds, part) for part in parts])


def rate(results: list[dict[str, Any]]) -> float:
    """Confirmed updates a second."""
    confirmed: float = sum(result["confirmed"] / result["seconds"] for result in results)
    return confirmed


def ms(results: list[dict[str, Any]], key: str) -> str:
    """The worst of the processes' figures, in milliseconds."""
    return f"{max(result[key] for result in results) * 1000:.1f} ms"


if __name__ == "__main__":
    main()
