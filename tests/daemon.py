"""The real daemon and the real commands, each in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peerstore.types import NodeAddress

LOOPBACK = ("network=regtest", 'listen.addresses=["127.0.0.1:0"]', "metrics.listen=")
"""What every daemon of the tests is set to, unless a test says otherwise."""

UNPACED = (*LOOPBACK, "limits.commits_per_second=1000000")
"""Where as many commits as can be are wanted."""

HANG = 60
"""Seconds after which a process is taken to hang; nothing here is ever measured."""

# What would point a process at the data or the service manager of whoever runs the tests.
_FOREIGN = (
    *("PEERSTORE_", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"),
    *("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_PID", "LISTEN_FD"),
)


class Result(NamedTuple):
    """What a command left behind; `output` is its stdout as bytes."""

    code: int
    output: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        return self.output.decode()

    @property
    def document(self) -> Any:
        """The JSON document that is all of stdout."""
        return json.loads(self.output)


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what configures a peerstore, and `extra`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {**own, "HOME": str(home), **(extra or {})}


def command_line(data_dir: Path, settings: Sequence[str]) -> list[str]:
    """The program with the options that stand before a command."""
    options = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "peerstore", "--data-dir", str(data_dir), *options]


def run_command(
    data_dir: Path,
    *arguments: str,
    settings: Sequence[str] = LOOPBACK,
    extra: Mapping[str, str] | None = None,
    stdout: int = subprocess.PIPE,
) -> Result:
    """Run one command to its end; `stdout` may be a file descriptor to write to instead."""
    done = subprocess.run(
        [*command_line(data_dir, settings), *arguments],
        env=environment(data_dir.parent, extra),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=HANG,
        check=False,
    )
    return Result(done.returncode, done.stdout or b"", done.stderr.decode())


class Daemon:
    """`peerstore run` on a data directory, which outlives any number of starts.

    Everything here blocks: a test that has to serve its own connections meanwhile calls it
    through asyncio.to_thread.
    """

    def __init__(self, data_dir: Path, settings: Sequence[str] = LOOPBACK) -> None:
        self.data_dir = data_dir
        self.settings = settings
        self.document: dict[str, Any] = {}
        """What the daemon said on stdout when it was ready."""
        self.descriptors: int | None = None
        """How many files it may have open, None for as many as this process."""
        self.stderr: int | None = None
        """Where it writes its log, None for the file that `log` reads; -1 for nowhere: closed."""
        self.extra: Mapping[str, str] = {}
        """What its environment has besides."""
        self.passed: tuple[int, ...] = ()
        """Descriptors that it is given."""
        self.loop = "asyncio"
        """Which event loop it runs on."""
        self._log = data_dir.parent / f"{data_dir.name}.log"
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> NodeAddress:
        """Where peers connect to."""
        return NodeAddress.parse(self.document["uris"][0])

    @property
    def runs(self) -> bool:
        """Whether it was started and not yet stopped."""
        return self._process is not None

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What all its starts have written to stderr."""
        return self._log.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The log, an object for each line."""
        return [json.loads(line) for line in self.log.splitlines()]

    def command_line(self) -> list[str]:
        """How it is started."""
        return [*command_line(self.data_dir, self.settings), "--json", "run", "--loop", self.loop]

    def start(self) -> None:
        """Start it and wait until it says that peers can connect."""
        command = self.command_line()
        if self.stderr == -1:
            command = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *command]
        with self._log.open("a") as log:
            self._process = process = subprocess.Popen(
                command,
                env=environment(self.data_dir.parent, self.extra),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log if self.stderr in (None, -1) else self.stderr,
                text=True,
                pass_fds=self.passed,
            )
        if self.descriptors is not None:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (self.descriptors,) * 2)
        assert process.stdout is not None
        lines = []
        # The document's end is the one line that closes what its first line opened.
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                self.document = json.loads("".join(lines))
                return
        code = self.stop()
        raise AssertionError(f"the daemon did not start, exit code {code}: {self.log}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        process.send_signal(number)
        try:
            code = process.wait(HANG)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the daemon ignores {number.name}: {self.log}") from None
        finally:
            process.stdout.close()
            self._process = None
        return code

    def kill(self) -> None:
        """SIGKILL: the process gets no chance to tidy up."""
        assert self.stop(signal.SIGKILL) == -signal.SIGKILL

    def close(self) -> None:
        """End it if it still runs, and see that nothing went wrong unnoticed on the way."""
        if self._process is not None:
            assert self.stop() == 0
        assert "Traceback" not in self.log
        if "log.format=console" in self.settings:
            assert " exception=" not in self.log
        else:
            assert not any("exception" in event for event in self.events)

    def command(self, *arguments: str) -> Result:
        """Run a command on the same data directory with the same settings."""
        return run_command(self.data_dir, *arguments, settings=self.settings)
