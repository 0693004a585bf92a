"""Lines to a file descriptor: writing one never fails, and never waits for who reads them.

A log must not take the daemon with it. What a full disk or a reader that is gone does not take is
counted, and told of when writing works again. While a reader hangs, lines are kept, and a thread of
their own waits for it; it ends when they are out.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable

MAX_WAITING = 1 << 20
"""Bytes of lines that may wait for a reader; what comes beyond is lost."""


class LineWriter:
    """See the module's docstring. `words` gives the line that says how many were lost."""

    def __init__(self, descriptor: int, words: Callable[[int], str]) -> None:
        self._descriptor = descriptor
        self._words = words
        # A pipe that is ready takes so much without a wait; a file has no reader to wait for.
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._at_once = sys.maxsize if regular else select.PIPE_BUF
        self._ready = self._poller()
        # Of the kind that a thread may take twice: what the garbage collector meets is logged too.
        self._lock = threading.RLock()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._thread: threading.Thread | None = None
        self._lost = 0
        self._torn = False  # whether the end of the last line is missing

    def write(self, line: str) -> None:
        """Write a line, to which its end is added, now or as soon as it can be."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            if not self._waiting and self._thread is None:
                whole, told = self._behind_lost(data)
                if len(whole) <= self._at_once and self._ready.poll(0):
                    self._put(whole, told)
                    return
            if self._waiting_bytes + len(data) > MAX_WAITING:
                self._lost += 1
                return
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            if self._thread is None:
                self._start_draining()

    def finish(self, seconds: float) -> None:
        """Give what waits so long to get out."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _poller(self) -> select.poll:
        poller = select.poll()
        poller.register(self._descriptor, select.POLLOUT)
        return poller

    def _behind_lost(self, data: bytes) -> tuple[bytes, int]:
        """The line behind what has to be said of lost ones, and how many these are."""
        notice = self._words(self._lost).encode() + b"\n" if self._lost else b""
        return (b"\n" if self._torn else b"") + notice + data, self._lost

    def _put(self, data: bytes, told: int, ready: select.poll | None = None) -> None:
        """Write it; with `ready` in pieces, waiting for the reader before each."""
        written = 0
        try:
            while written < len(data):
                if ready is not None:
                    ready.poll()
                written += os.write(self._descriptor, data[written : written + self._at_once])
        except OSError:
            with self._lock:
                self._lost += 1
                self._torn = not data[:written].endswith(b"\n") if written else self._torn
        else:
            with self._lock:
                self._lost -= told
                self._torn = False

    def _start_draining(self) -> None:
        thread = threading.Thread(target=self._drain, name="log", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # no more threads; it is tried again with the next line
        self._thread = thread

    def _drain(self) -> None:
        ready = self._poller()
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                waiting = self._waiting.popleft()
                self._waiting_bytes -= len(waiting)
                data, told = self._behind_lost(waiting)
            self._put(data, told, ready)
