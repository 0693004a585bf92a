"""How fast and how big: `python -m tests.benchmarks`.

Every figure stands beside what a bare loop of the same parts does in the same run, because only
the ratio says something about peerstore and not about the machine. The load comes from other
processes, so on two cores it takes its share of both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peerstore.transport.secp256k1 import KeyPair
from tests.benchmarks.load import Task
from tests.benchmarks.scale import BLOB as BLOB_OF_MANY
from tests.benchmarks.scale import fill

BLOB = 65531
LOAD_PROCESSES = 2
_TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run all, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")
    parser.add_argument("--idle", type=int, default=1000, help="idle connections to open")
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
            *helps(),
            *scale(directory, options.peers, options.seconds),
        ]
    print_table(rows)


Row = tuple[str, str, str, str, str]
"""What, our figure, the bare loop's, the ratio, DESIGN.md's target."""


def updates(directory: str, size: int, seconds: float) -> Iterator[Row]:
    """Durable updates from 64 connections, one in flight each."""
    upserts = bare("upserts", directory, str(size), str(seconds))["rate"]
    with receiver() as uri:
        received = rate(update_load(uri, size, seconds))
    with daemon(directory) as (uri, _):
        results = update_load(uri, size, seconds)
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
    keys = tuple(_secret() for _ in range(64))
    with daemon(directory) as (uri, pid):
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


def scale(directory: str, peers: int, seconds: float) -> Iterator[Row]:
    """Start, commands and replay with very many peers stored, beside a thousand."""
    keys = tuple(_secret() for _ in range(64))
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


def update_load(uri: str, size: int, seconds: float) -> list[dict[str, Any]]:
    """64 connections from LOAD_PROCESSES processes."""
    share = 64 // LOAD_PROCESSES
    return load([Task("updates", uri, share, size, seconds)] * LOAD_PROCESSES)


def rate(results: list[dict[str, Any]]) -> float:
    """Confirmed updates a second."""
    confirmed: float = sum(result["confirmed"] / result["seconds"] for result in results)
    return confirmed


def ms(results: list[dict[str, Any]], key: str) -> str:
    """The worst of the processes' figures, in milliseconds."""
    return f"{max(result[key] for result in results) * 1000:.1f} ms"


def load(tasks: list[Task]) -> list[dict[str, Any]]:
    """Run tasks in a process each, started together."""
    processes = [_python("tests.benchmarks.load", json.dumps(asdict(task))) for task in tasks]
    for process in processes:
        _expect_ready(process)
    for process in processes:
        _say(process, "go")
    return [json.loads(process.communicate()[0]) for process in processes]


@contextlib.contextmanager
def holding(uri: str, count: int) -> Iterator[None]:
    """Idle connections, open while the block runs."""
    process = _python("tests.benchmarks.load", json.dumps(asdict(Task("idle", uri, count))))
    _expect_ready(process)
    _say(process, "go")
    yield
    _say(process, "end")
    still_open = json.loads(process.communicate()[0])["open"]
    if still_open != count:
        raise SystemExit(f"only {still_open} of {count} idle connections stayed open")


@contextlib.contextmanager
def daemon(directory: str, made: str | None = None) -> Iterator[tuple[str, int]]:
    """A daemon in a new data directory, or in one that was made: its URI and process id."""
    with tempfile.TemporaryDirectory(dir=directory) as new:
        options = ["--data-dir", made or new, "--set", "network=regtest"]
        options += ["--set", 'listen.addresses=["127.0.0.1:0"]', "--set", "log.level=warning"]
        process = _python("peerstore", "--json", *options, "run")
        try:
            yield _read_document(process)["uris"][0], process.pid
        finally:
            process.terminate()
            process.communicate()


@contextlib.contextmanager
def receiver() -> Iterator[str]:
    """The bare loop that receives, decrypts and hashes: its URI."""
    process = _python("tests.benchmarks.bare", "receiver")
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.communicate("\n")


def bare(name: str, *arguments: str) -> dict[str, float]:
    """Run a bare loop in a process of its own."""
    output = _python("tests.benchmarks.bare", name, *arguments).communicate()[0]
    result: dict[str, float] = json.loads(output)
    return result


def cpu_seconds(pid: int) -> float:
    """User and system time of a process (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def print_table(rows: list[Row]) -> None:
    """Print the rows under their heads."""
    table = [("what", "peerstore", "bare loop", "ratio", "target"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(5)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def _secret() -> str:
    private = KeyPair.generate().private
    assert private is not None
    return private.secret.hex()


def _python(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _expect_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit("the load did not come up: its error stands above")


def _say(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()


def _read_document(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON document that `run --json` prints once it serves."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            break
    document: dict[str, Any] = json.loads("".join(lines))
    return document


if __name__ == "__main__":
    main()
