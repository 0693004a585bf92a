"""What a service and systemd say to each other: sd_notify(3), the watchdog, sockets passed on.

Without systemd's variables in the environment nothing here does anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

import structlog

from peerstore.errors import ListenError

FIRST_PASSED = 3
"""The descriptor of the first socket that is passed on (sd_listen_fds(3))."""

REPORT_SECONDS = 10.0
"""How often at least the service manager hears how it goes."""

START_SECONDS = 60
"""How much longer the start may take after each report, as long as these come."""

MAX_PASSED = 512
"""How many sockets may be passed on; more are a mistake."""

SHORTEST_SECONDS = 0.1
"""How often at most the service manager hears how it goes, whatever the watchdog asks for."""

METRICS = "metrics"
"""The name of the sockets (FileDescriptorName=) that are not for peers."""

_log = structlog.get_logger()


class ServiceManager:
    """Says to the service manager how it goes, when there is one: see sd_notify(3)."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog = _watchdog_seconds(environ) if self._address else None
        self._unsent: dict[str, str] = {}
        self._failing = False

    @property
    def interval(self) -> float:
        """Seconds from one report to the next: less than half of what the watchdog allows, as long
        as that is no mistake."""
        if self._watchdog is None:
            return REPORT_SECONDS
        return max(SHORTEST_SECONDS, min(REPORT_SECONDS, self._watchdog / 3))

    def say(self, **variables: str) -> None:
        """Tell variables and their values, such as READY="1".

        What can't be said is no reason to stop: it is logged once, and said with the next.
        """
        if not self._address:
            return
        self._unsent |= variables
        text = "\n".join(f"{name}={value}" for name, value in self._unsent.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                # A service manager that is busy must not hold the peers up.
                sock.setblocking(False)
                sock.sendto(text.encode(), _unix_address(self._address))
        except OSError as error:
            if not self._failing:
                _log.warning(
                    "notify_failed", socket=self._address, error=error.strerror or str(error)
                )
            self._failing = True
        else:
            self._failing = False
            self._unsent.clear()

    def starting(self, status: str) -> None:
        """It goes on to start; however long a copy or an upgrade of a database takes."""
        self.say(STATUS=status, EXTEND_TIMEOUT_USEC=str(START_SECONDS * 1_000_000))

    def running(self, status: str) -> None:
        """It runs."""
        # The loop turns, which is all that this says. That the disk answers is no part of it: a
        # restart mends no disk, and what is cached is given back meanwhile.
        if self._watchdog is None:
            self.say(STATUS=status)
        else:
            self.say(STATUS=status, WATCHDOG="1")

    def reloading(self) -> None:
        """The configuration is read anew; `say(READY="1")` ends that."""
        self.say(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))

    @contextlib.asynccontextmanager
    async def reporting(self, report: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Within the block `report` is called, at once and then at every interval."""
        task = asyncio.create_task(self._report_regularly(report), name="service manager")
        try:
            yield
        finally:
            task.cancel()

    async def _report_regularly(self, report: Callable[[], Awaitable[None]]) -> None:
        while self._address:
            await report()
            await asyncio.sleep(self.interval)


def _unix_address(path: str) -> str:
    """What the kernel takes for it: `@` stands for the zero byte of an abstract name."""
    return f"\0{path[1:]}" if path.startswith("@") else path


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """How often the watchdog wants to hear of this process, None where there is none."""
    text = environ.get("WATCHDOG_USEC", "")
    if not text or not _for_this_process(environ.get("WATCHDOG_PID", "")):
        return None
    if _number(text) == 0:
        _log.warning("no_watchdog", error=f"WATCHDOG_USEC={text:.40} is no number of microseconds")
        return None
    return _number(text) / 1_000_000


def _for_this_process(process_id: str) -> bool:
    """Whether a variable is for this process; it is passed on to children too."""
    return process_id in ("", str(os.getpid()))


def _number(text: str) -> int:
    """A number, 0 for what is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0


def listen_sockets(environ: Mapping[str, str]) -> list[tuple[str, socket.socket]]:
    """The sockets that systemd passes on, each with its name; to be called once.

    Raises ListenError for what is no TCP socket that listens.
    """
    text = environ.get("LISTEN_FDS", "")
    # Without LISTEN_PID they are nobody's: the descriptors may be anything of this process.
    if text in ("", "0") or environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = _number(text)
    if not 0 < count <= MAX_PASSED:
        raise ListenError(
            f"LISTEN_FDS={text:.40} is no number of sockets from 1 to {MAX_PASSED}: unset it, or"
            " have the service manager set it"
        )
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return list(_passed(count, [*names, *[""] * count]))


def _passed(count: int, names: list[str]) -> Iterator[tuple[str, socket.socket]]:
    for number, name in zip(range(FIRST_PASSED, FIRST_PASSED + count), names, strict=False):
        try:
            sock = socket.socket(fileno=number)
        except OSError as error:
            raise ListenError(
                f"LISTEN_FDS={count}, but descriptor {number} is no socket: {error.strerror}"
            ) from error
        if (
            sock.family not in (socket.AF_INET, socket.AF_INET6)
            or sock.type != socket.SOCK_STREAM
            or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ):
            sock.close()
            raise ListenError(
                f"the socket {name or number} that was passed on is no TCP socket that listens:"
                " the socket unit needs ListenStream= with address and port, and Accept=no"
            )
        sock.set_inheritable(False)
        sock.setblocking(False)
        yield name, sock
