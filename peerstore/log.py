"""Logging: structlog, one event a line on stderr, in a form that nothing from outside can break.

Every event has a name of its own and fields with one meaning each; README, "What the log says", has
them all. What libraries and Python itself would write becomes such events too.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from peerstore.lines import LineWriter

Format = Literal["auto", "console", "json"]

MAX_TEXT = 1000
"""Characters of a field; what comes from outside may be longer."""

MAX_TRACEBACK = 6000
"""Characters of a traceback, the end of it."""

MAX_ITEMS = 100
"""Entries of a list."""

LINES_PER_SECOND = 50
"""Lines of one event at `info` and above, so that neither a crowd nor a broken disk fills the log;
more than what any event has of its own accord."""

UNLIMITED = frozenset({"pruned", "log_lines_lost"})
"""Events whose lines are all that tells of what is gone for good."""

FINISH_SECONDS = 1.0
"""How long the end of the process waits for who reads the log."""

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Of syslog, as systemd's journal takes them in front of a line (sd-daemon)."""

_COLORS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}

_PLAIN = re.compile(r"[!#-&(-<>-\[\]-~]+")
"""What needs no quotes on the console: no space, quote, `=` or backslash, and nothing invisible."""

_log = structlog.get_logger()


def configure(level: str, log_format: Format, descriptor: int | None = None) -> None:
    """Log events of `level` and above to a file descriptor, stderr's by default.

    `auto` is console on a terminal and JSON otherwise. Loggers that are there already follow, but
    those that were bound.
    """
    if descriptor is None:
        descriptor = (sys.__stderr__ or sys.stderr).fileno()
    terminal = os.isatty(descriptor)
    console = log_format == "console" or (log_format == "auto" and terminal)
    number = logging.getLevelNamesMapping()[level.upper()]
    processors: list[Processor] = [
        _Limit(time.monotonic),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _summed_up if console else _traced,
        functools.partial(_console, colors=terminal) if console else _json,
    ]
    if _is_journal(descriptor):
        processors.append(_with_priority)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=functools.partial(_Output, _writer(descriptor)),
        cache_logger_on_first_use=False,
    )
    # Not below: at debug level aiosqlite tells every statement with its values, blobs too.
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[_Foreign()], force=True)


def take_in_strays() -> None:
    """Log what Python itself would write to stderr, in many lines."""
    logging.raiseExceptions = False
    logging.captureWarnings(capture=True)
    sys.unraisablehook = _unraisable
    threading.excepthook = _thread_ended


def finish() -> None:
    """Before the end of the process: wait for who reads the log, but not for long."""
    for writer in _writers.values():
        writer.finish(FINISH_SECONDS)


class _Output:
    """What structlog calls a logger: takes whole lines."""

    def __init__(self, writer: LineWriter, *_names: object) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = writer.write


_writers: dict[int, LineWriter] = {}
"""Of each descriptor: what waits there outlives another configuration."""


def _writer(descriptor: int) -> LineWriter:
    if descriptor not in _writers:
        _writers[descriptor] = LineWriter(descriptor, _lines_lost)
    return _writers[descriptor]


def _lines_lost(count: int) -> str:
    """The line that says that so many could not be written, in the form that is configured."""
    event: Any = {"event": "log_lines_lost", "lines": count}
    for processor in structlog.get_config()["processors"]:
        event = processor(None, "warning", event)
    return str(event)


def _is_journal(descriptor: int) -> bool:
    """Whether what is written goes to systemd's journal (systemd.exec, $JOURNAL_STREAM)."""
    status = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Limit:
    """Leaves lines out where there are too many of an event; `left_out` says how many."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        # For each event the second, its lines, and those left out since the last one.
        self._said: dict[str, tuple[int, int, int]] = {}

    def __call__(self, _logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
        what = event["event"]
        if name == "debug" or what in UNLIMITED:
            return event
        now = int(self._monotonic())
        second, lines, left_out = self._said.get(what, (now, 0, 0))
        if second != now:
            lines = 0
        if lines >= LINES_PER_SECOND:
            self._said[what] = (now, lines, left_out + 1)
            raise structlog.DropEvent
        self._said[what] = (now, lines + 1, 0)
        if left_out:
            event["left_out"] = event.get("left_out", 0) + left_out
        return event


# Exceptions: without the values of local variables, among which are keys and backups.


def _traced(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """An exception with its whole traceback."""
    error = _exception_of(event)
    if error is not None:
        text = "".join(traceback.format_exception(error)).rstrip()
        event["exception"] = text if len(text) <= MAX_TRACEBACK else f"…{text[-MAX_TRACEBACK:]}"
    return event


def _summed_up(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """An exception for a person, in one line: what it is, and where it came from."""
    error = _exception_of(event)
    if error is not None:
        frames = traceback.extract_tb(error.__traceback__)[:-4:-1]
        where = "".join(f", {Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames)
        event["exception"] = f"{_cleaned(_words_of(error))}{where}"
    return event


def _exception_of(event: EventDict) -> BaseException | None:
    """Take out what stands for an exception, in whatever form logging knows."""
    given = event.pop("exc_info", None)
    if isinstance(given, BaseException):
        return given
    if isinstance(given, tuple):
        return given[1] if isinstance(given[1], BaseException) else None
    return sys.exc_info()[1] if given else None


def _words_of(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).rstrip()


# The forms of a line


def _cleaned(value: object) -> Any:
    """A value as it may stand in the log: of a type that JSON knows, and not long.

    Bytes are never shown: only a mistake of ours brings them here, and they may be a backup.
    """
    if isinstance(value, str):
        long = len(value) > MAX_TEXT
        return _sound(f"{value[:MAX_TEXT]}… ({len(value)} characters)" if long else value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {str(_cleaned(key)): _cleaned(each) for key, each in _some(value.items())}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cleaned(each) for each in _some(value)]
    return _cleaned(str(value))


def _sound(text: str) -> str:
    """A text without lone surrogates: not every reader of JSON takes one."""
    return text.encode("utf-8", "backslashreplace").decode()


def _some(values: Iterable[Any]) -> list[Any]:
    return list(values)[:MAX_ITEMS]


def _in_order(event: EventDict) -> Mapping[str, Any]:
    """What every line has, then the fields of the event; a traceback is short enough already."""
    exception = event.pop("exception", None)
    head = {key: event.pop(key) for key in ("timestamp", "level", "event")}
    fields = {**head, **{key: _cleaned(value) for key, value in event.items()}}
    return fields if exception is None else {**fields, "exception": _sound(exception)}


def _json(_logger: WrappedLogger, _name: str, event: EventDict) -> str:
    """One JSON object, in ASCII: all else is escaped, so a line is a line for every reader."""
    return json.dumps(_in_order(event))


def _console(_logger: WrappedLogger, _name: str, event: EventDict, *, colors: bool) -> str:
    """A line for people. What could move a cursor, hide or pretend to be a field is quoted."""
    fields = dict(_in_order(event))
    when, level, what = (fields.pop(key) for key in ("timestamp", "level", "event"))
    shown = f"\x1b[{_COLORS[level]}m{level:<8}\x1b[0m" if colors else f"{level:<8}"
    return " ".join([when, shown, what, *(f"{key}={_quoted(v)}" for key, v in fields.items())])


def _quoted(value: object) -> str:
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else repr(value)


def _with_priority(_logger: WrappedLogger, name: str, line: EventDict) -> str:
    return f"<{_PRIORITIES[name]}>{line}"


# What others have to say


class _Foreign(logging.Handler):
    """Messages of libraries, asyncio and `warnings`, as an event."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = min(record.levelno // 10 * 10, logging.CRITICAL)
            _log.log(
                level,
                "library_message",
                logger=record.name,
                text=record.getMessage(),
                exc_info=record.exc_info,
            )
        except Exception:
            self.handleError(record)


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """What can't be raised anywhere, as in a __del__. The object is not shown, only its name."""
    of = unraisable.object
    _log.error(
        "unraisable_error",
        where=getattr(of, "__qualname__", type(of).__qualname__),
        error=str(unraisable.exc_value),
        exc_info=unraisable.exc_value,
    )


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    """A thread has ended by an exception."""
    _log.error("thread_failed", error=str(ended.exc_value), exc_info=ended.exc_value)
