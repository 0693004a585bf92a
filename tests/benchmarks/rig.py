"""What the benchmarks share: a daemon, loads in processes of their own, what they use up."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import NodeId
from tests.benchmarks.attacks import Attack
from tests.benchmarks.load import Task

_TICK = os.sysconf("SC_CLK_TCK")

PROGRAM = "peerstore"
PATIENCE = 60.0
"""Seconds that a load may take longer than it is to."""

NETWORK = ("--set", "network=regtest")


def load(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Run tasks in a process each, started together."""
    return _together("tests.benchmarks.load", tasks)


def run_attacks(attacks: Sequence[Attack]) -> list[dict[str, Any]]:
    """Run each in a process of its own, started together, the first one last."""
    return _together("tests.benchmarks.attacks", attacks)


def _together(module: str, jobs: Sequence[Task | Attack]) -> list[dict[str, Any]]:
    """Have a module do jobs in a process each; once all are ready the first is told to go last."""
    processes = [python(module, json.dumps(asdict(job))) for job in jobs]
    try:
        for process in processes:
            expect_ready(process)
        for process in processes[::-1]:
            say(process, "go")
        longest = max(job.seconds for job in jobs)
        return [_result(process, longest + PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _result(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """The document that a load prints at its end; raises SystemExit where there is none."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise SystemExit("the load hangs: something that it waits for did not come") from None
    if process.returncode:
        raise SystemExit("the load failed: its error stands above")
    result: dict[str, Any] = json.loads(output)
    return result


@contextlib.contextmanager
def holding(uri: str, count: int) -> Iterator[None]:
    """Idle connections, open while the block runs."""
    process = python("tests.benchmarks.load", json.dumps(asdict(Task("idle", uri, count))))
    expect_ready(process)
    say(process, "go")
    yield
    say(process, "end")
    still_open = json.loads(process.communicate()[0])["open"]
    if still_open != count:
        raise SystemExit(f"only {still_open} of {count} idle connections stayed open")


@contextlib.contextmanager
def daemon(
    directory: str,
    made: str | None = None,
    *,
    allowed: Sequence[str] = (),
    settings: Sequence[str] = (),
    descriptors: int | None = None,
    watched: Path | None = None,
    loop: str = "asyncio",
) -> Iterator[tuple[str, int]]:
    """A daemon in a new data directory, or in one that was made: its URI and process id.

    The peers of the `allowed` keys (private, hexadecimal) are allowed by name. How late its event
    loop comes is written to the file `watched`.
    """
    ids = [node_id(key).hex() for key in allowed]
    with tempfile.TemporaryDirectory(dir=directory) as new:
        options = ["--data-dir", made or new, *NETWORK]
        for setting in (
            'listen.addresses=["127.0.0.1:0"]',
            "metrics.listen=",
            "log.level=error",
            f"policy.allow={json.dumps(ids)}",
            *settings,
        ):
            options += ["--set", setting]
        few = None if descriptors is None else _limiting(descriptors)
        process = python(
            *_watched(watched), PROGRAM, "--json", *options, "run", "--loop", loop, before=few
        )
        try:
            yield _read_document(process)["uris"][0], process.pid
        finally:
            process.terminate()
            process.communicate()


@contextlib.contextmanager
def bare_server(
    name: str, *arguments: str, watched: Path | None = None
) -> Iterator[tuple[str, int]]:
    """A bare loop that serves peers, `receiver` or `retriever`: its URI and process id.

    As with a daemon it may be `watched`.
    """
    process = python(*_watched(watched), "tests.benchmarks.bare", name, *arguments)
    assert process.stdout is not None
    yield process.stdout.readline().strip(), process.pid
    process.communicate("\n")


def bare(name: str, *arguments: str) -> dict[str, float]:
    """Run a bare loop in a process of its own."""
    output = python("tests.benchmarks.bare", name, *arguments).communicate()[0]
    result: dict[str, float] = json.loads(output)
    return result


def cpu_seconds(pid: int) -> float:
    """User and system time of a process (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def high_water(pid: int) -> int:
    """The most bytes that a process had in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) << 10


def command(data_dir: str, *arguments: str) -> Spent:
    """Run a command of the program to its end."""
    return run(PROGRAM, "--data-dir", data_dir, *NETWORK, *arguments)


def run(module: str, *arguments: str) -> Spent:
    """Run a module to its end, what it prints thrown away; raises SystemExit when it fails."""
    line = [sys.executable, "-m", module, *arguments]
    begun = time.monotonic()
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} failed")
    return Spent(time.monotonic() - begun, usage.ru_maxrss * 1024)


@dataclass(frozen=True)
class Spent:
    """What a process took: seconds, and the most bytes that it had in memory."""

    seconds: float
    bytes: int


def node_id(key: str) -> NodeId:
    """The node id of a private key in hexadecimal."""
    return KeyPair.from_private_bytes(bytes.fromhex(key)).node_id


def secret() -> str:
    """A new private key, hexadecimal."""
    private = KeyPair.generate().private
    assert private is not None
    return private.secret.hex()


def python(
    module: str, *arguments: str, before: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    """Run a module in a process of its own; `before` is called in it before that."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


def _watched(file: Path | None) -> tuple[str, ...]:
    """What stands before a module whose event loop is watched."""
    return () if file is None else ("tests.benchmarks.lag", str(file))


def _limiting(descriptors: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))


def expect_ready(process: subprocess.Popen[str]) -> None:
    """Wait until a load has prepared all that it can."""
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit("the load did not come up: its error stands above")


def say(process: subprocess.Popen[str], word: str) -> None:
    """Tell a load to go on."""
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
