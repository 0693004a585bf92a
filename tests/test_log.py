"""What a line of the log looks like, whatever it is made of, and that the log does no harm."""

from __future__ import annotations

import json
import logging
import os
import pty
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from peerstore import log
from tests.helpers import quick

HOSTILE = {
    "a line of its own": 'x\n2026-01-01T00:00:00Z error    stopped error="by fire"',
    "carriage return": "x\rerror    all is lost",
    "escape sequences": "\x1b[2J\x1b[H\x1b]0;title\x07",
    "C1 controls": "\x9b2J\x85\x90",
    "bidirectional controls": "\u202egnp.exe\u2066\u200f",
    "line separators": "a\u2028b\u2029c\x0b\x0c\x1c",
    "invisible": "a\u200bb\ufeffc\xa0d\xad",
    "surrogates": "a\udcff\ud800b",
    "delete": "a\x7f\x08b",
    "a field of its own": "x node_id=02ab level=error",
    "quotes": 'it\'s "so" and \\so',
    "nothing": "",
    "NUL": "\x00",
}


@pytest.fixture
def configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Callable[[], list[str]]]]:
    """Configures the log to go to a file; what that returns gives the lines so far."""
    # All that is changed besides structlog.
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    monkeypatch.setattr(log, "_writers", {})
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)

    def configure(
        form: log.Format, level: str = "debug", to: int | None = None
    ) -> Callable[[], list[str]]:
        log.configure(level, form, descriptor if to is None else to)
        return lambda: path.read_text().removesuffix("\n").split("\n")

    try:
        yield configure
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
        os.close(descriptor)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("form", ["json", "console"])
def test_no_text_breaks_a_line_or_reaches_the_terminal(
    configured: Callable[..., Callable[[], list[str]]], form: str, text: str
) -> None:
    lines = configured(form)
    structlog.get_logger().info("peer_warning", node_id="02ab", text=text, left_out=0)
    (line,) = lines()
    assert line.isprintable()
    if form == "json":
        assert line.isascii()
        document = json.loads(line)
        assert list(document)[:3] == ["timestamp", "level", "event"]
        assert document["text"].encode("utf-8", "backslashreplace") == text.encode(
            "utf-8", "backslashreplace"
        )
    else:
        head, rest = line.split(" peer_warning node_id=02ab text=")
        assert head.endswith(" info    ")
        assert rest == f"{text.encode('utf-8', 'backslashreplace').decode()!r} left_out=0"


@given(text=st.text(), key=st.sampled_from(["text", "error", "reason"]))
@quick
def test_every_text_comes_back_from_either_form(text: str, key: str) -> None:
    event = {"event": "dialed", "level": "info", "timestamp": "now", key: text}
    as_json = log._json(None, "info", dict(event))
    assert as_json.isascii()
    assert as_json.isprintable()
    assert json.loads(as_json)[key] == text.encode("utf-8", "backslashreplace").decode()
    shown = log._console(None, "info", dict(event), colors=False)
    assert shown.isprintable()
    if text.isprintable() and text.isascii() and not set(text) & set(" '\"=\\") and text:
        assert shown == f"now info     dialed {key}={text}"
    else:
        assert f"{key}={text.encode('utf-8', 'backslashreplace').decode()!r}" in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"\x00secret", "<7 bytes>"),
        (bytearray(3), "<3 bytes>"),
        (memoryview(b"four"), "<4 bytes>"),
        ([b"x", "y"], ["<1 bytes>", "y"]),
        ({"k": b"x", b"y": 1}, {"k": "<1 bytes>", "<1 bytes>": 1}),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (1.5, 1.5),
        (2**80, 2**80),
        (True, True),
        (None, None),
        (("a", 1), ["a", 1]),
        (Path("/srv/\udcff"), "/srv/\\udcff"),
        (ValueError("no"), "no"),
        (list(range(1000)), list(range(100))),
        ("x" * 65536, "x" * 1000 + "… (65536 characters)"),
        ("\U0001f600" * 1001, "\U0001f600" * 1000 + "… (1001 characters)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_value_has_a_form_that_json_knows(
    configured: Callable[..., Callable[[], list[str]]], value: object, shown: object
) -> None:
    lines = configured("json")
    structlog.get_logger().info("dialed", value=value)
    (line,) = lines()
    document = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert document["value"] == shown
    # docker cuts lines at 16 KiB.
    assert len(line) < 16384


def fail(secret: str) -> None:
    text = secret * 2
    assert text
    raise ValueError("what went\nwrong")


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("given_as", ["exception()", "error", "tuple", "True"])
def test_an_exception_is_one_line_and_shows_no_values(
    configured: Callable[..., Callable[[], list[str]]], form: str, given_as: str
) -> None:
    lines = configured(form)
    logger = structlog.get_logger()
    try:
        fail("hush")
    except ValueError as error:
        if given_as == "exception()":
            logger.exception("source_failed", error=str(error))
        else:
            ways: dict[str, Any] = {"error": error, "tuple": sys.exc_info(), "True": True}
            logger.error("source_failed", error=str(error), exc_info=ways[given_as])
    (line,) = lines()
    assert "hush" not in line.replace('fail(\\"hush\\")', "")  # the source of the call is shown
    if form == "json":
        document = json.loads(line)
        assert document["exception"].startswith("Traceback (most recent call last):\n")
        assert document["exception"].endswith("ValueError: what went\nwrong")
        assert document["error"] == "what went\nwrong"
    else:
        assert "exception='ValueError: what went\\nwrong, test_log.py:" in line
        assert " in fail, test_log.py:" in line


@pytest.mark.parametrize("exc_info", [None, False, (None, None, None)])
def test_no_exception_is_no_field(
    configured: Callable[..., Callable[[], list[str]]], exc_info: object
) -> None:
    lines = configured("json")
    structlog.get_logger().error("loop_error", exc_info=exc_info)
    assert list(json.loads(lines()[0])) == ["timestamp", "level", "event"]


def test_of_a_long_traceback_the_end_is_there(
    configured: Callable[..., Callable[[], list[str]]],
) -> None:
    lines = configured("json")
    error = ExceptionGroup("many", [ValueError("x" * 1000) for _ in range(20)])
    structlog.get_logger().error("loop_error", exc_info=error)
    exception = json.loads(lines()[0])["exception"]
    assert exception.startswith("…")
    assert exception.endswith("-" * 36)
    assert len(exception) == log.MAX_TRACEBACK + 1


# What others write


def test_what_libraries_and_python_say_becomes_events(
    configured: Callable[..., Callable[[], list[str]]],
) -> None:
    lines = configured("json", "info")
    log.take_in_strays()
    logging.getLogger("asyncio").warning("socket.send() raised %s", "exception\n")
    logging.getLogger("aiosqlite").debug("executing %s", "a statement with its values")
    logging.getLogger("odd").log(35, "between two levels")
    logging.getLogger("odd").error("wants %d", "a number")  # a library's mistake
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("of tomorrow", FutureWarning, stacklevel=1)

    class Secret:
        def __repr__(self) -> str:
            return "hush"

        def __del__(self) -> None:
            raise OSError("left behind")

    Secret()
    thread = threading.Thread(target=fail, args=("hush",))
    thread.start()
    thread.join()
    events = [json.loads(line) for line in lines()]
    assert [(event["level"], event["event"]) for event in events] == [
        ("warning", "library_message"),
        ("warning", "library_message"),
        ("warning", "library_message"),
        ("error", "unraisable_error"),
        ("error", "thread_failed"),
    ]
    assert events[0]["logger"] == "asyncio"
    assert events[0]["text"] == "socket.send() raised exception\n"
    assert (events[1]["logger"], events[1]["text"]) == ("odd", "between two levels")
    assert "FutureWarning: of tomorrow" in events[2]["text"]
    assert events[3]["where"].endswith("Secret.__del__")
    assert events[3]["error"] == "left behind"
    assert events[4]["error"] == "what went\nwrong"
    assert not any("hush" in line for line in lines())


# How much


def test_of_one_event_a_second_has_so_many_lines_and_the_next_tells_of_the_others() -> None:
    now = 0.0
    limit = log._Limit(lambda: now)

    def said(name: str, event: str, **fields: object) -> dict[str, object] | None:
        try:
            return dict(limit(None, name, {"event": event, **fields}))
        except structlog.DropEvent:
            return None

    for _ in range(log.LINES_PER_SECOND):
        assert said("info", "update_refused") == {"event": "update_refused"}
    for _ in range(3):
        assert said("info", "update_refused") is None
    # Others have a number of their own; what is asked for, and what is deleted, has none.
    assert said("error", "commit_failed") is not None
    for _ in range(2 * log.LINES_PER_SECOND):
        assert said("debug", "stored") is not None
        assert said("info", "pruned") is not None
    now = 1.0
    assert said("info", "update_refused", left_out=2) == {"event": "update_refused", "left_out": 5}
    assert said("info", "update_refused") == {"event": "update_refused"}


# Where to


@pytest.mark.parametrize("form", ["json", "console"])
def test_under_systemd_a_line_begins_with_its_priority(
    configured: Callable[..., Callable[[], list[str]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    form: str,
) -> None:
    (tmp_path / "log").touch()
    status = (tmp_path / "log").stat()
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    lines = configured(form)
    logger = structlog.get_logger()
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(logger, level)("serving")
    assert [line[:3] for line in lines()] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
    lines = configured(form)
    logger.info("serving")
    assert not lines()[-1].startswith("<")


def test_a_terminal_gets_the_form_for_people_and_a_file_gets_json(
    configured: Callable[..., Callable[[], list[str]]],
) -> None:
    reader, terminal = pty.openpty()
    configured("auto", to=terminal)
    structlog.get_logger().warning("peer_warning", text="\x1b[2J")
    shown = os.read(reader, 1000).decode()
    # Its only escape sequences are those that colour the level.
    _time, colored, after = shown.split("\x1b")
    assert colored == "[33mwarning "
    assert after == "[0m peer_warning text='\\x1b[2J'\r\n"
    lines = configured("auto")
    structlog.get_logger().warning("peer_warning", text="\x1b[2J")
    assert json.loads(lines()[0])["text"] == "\x1b[2J"
    os.close(reader)
    os.close(terminal)


def test_a_logger_that_was_there_before_follows(
    configured: Callable[..., Callable[[], list[str]]],
) -> None:
    logger = structlog.get_logger()
    configured("json", "error")
    logger.info("serving")
    configured("json", "info")
    logger.info("serving")
    logger.debug("stored")
    lines = configured("console", "debug")
    logger.debug("stored")
    first, second = lines()
    assert json.loads(first)["event"] == "serving"
    assert second.endswith("debug    stored")


def test_lines_that_are_lost_are_an_event(
    configured: Callable[..., Callable[[], list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = configured("json")

    def full(*_: object) -> int:
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        structlog.get_logger().info("serving")
    structlog.get_logger().info("stopping")
    lost, last = (json.loads(line) for line in lines())
    assert (lost["level"], lost["event"], lost["lines"]) == ("warning", "log_lines_lost", 1)
    assert last["event"] == "stopping"
