"""README, "What the log says", and the code have the same events, levels and fields."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from peerstore import log, session
from tests.test_project import PACKAGE, ROOT

LEVELS = {"exception": "error"} | {
    level: level for level in ("debug", "info", "warning", "error", "critical")
}
LOGGER = r"_log|self\.log|self\._?server\.log"
"""What loggers are called."""

PAGE = "## What the log says"
OF_REPORTS = ("node_id",)
"""What the server adds to what a session reports."""


class Event(NamedTuple):
    """An event as it stands in the log; `fields` in the order in which they stand there."""

    name: str
    level: str
    fields: tuple[str, ...]


class Call(NamedTuple):
    """A place in the code that makes an event."""

    where: str
    node: ast.Call


@functools.cache
def nodes() -> list[tuple[str, ast.Call | ast.Assign]]:
    """Every call and assignment of the package, and where it stands."""
    return [
        (f"{path.relative_to(PACKAGE)}:{node.lineno}", node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call | ast.Assign)
    ]


def calls(pattern: str) -> Iterator[Call]:
    """Every call in the package of something that is written like this."""
    for where, node in nodes():
        if isinstance(node, ast.Call) and re.fullmatch(pattern, ast.unparse(node.func)):
            yield Call(where, node)


def constant(call: Call) -> str:
    """The first argument, a text or the name of one."""
    argument = call.node.args[0]
    if isinstance(argument, ast.Name) and argument.id == "UPDATE_REFUSED":
        return session.UPDATE_REFUSED
    assert isinstance(argument, ast.Constant), f"{call.where}: an event's name is a constant"
    assert isinstance(argument.value, str)
    return argument.value


def keywords(call: Call) -> tuple[str, ...]:
    names = [keyword.arg for keyword in call.node.keywords]
    assert None not in names, f"{call.where}: fields are written out"
    return tuple(name for name in names if name is not None and name != "exc_info")


def logged() -> Iterator[Event]:
    """What is logged where it happens."""
    for call in calls(rf"({LOGGER})\.({'|'.join(LEVELS)}|log)"):
        method = ast.unparse(call.node.func).rpartition(".")[2]
        if method == "log":  # of another's level; the one of libraries
            assert constant(Call(call.where, _without_first(call.node))) == "library_message"
            yield Event("library_message", "any", keywords(call))
        elif ast.unparse(call.node.args[0]) != "action.event":  # that of a report
            yield Event(constant(call), LEVELS[method], keywords(call))


def _without_first(node: ast.Call) -> ast.Call:
    return ast.Call(node.func, node.args[1:], node.keywords)


def reported() -> Iterator[Event]:
    """What sessions report and the server logs."""
    for call in calls(r"self\._report"):
        yield Event(constant(call), "info", OF_REPORTS + keywords(call))
    for call in calls("Report"):
        if call.where.startswith("session.py") and not isinstance(call.node.args[0], ast.Name):
            details = call.node.args[1]
            assert isinstance(details, ast.Dict)
            names = tuple(str(ast.literal_eval(key)) for key in details.keys if key is not None)
            yield Event(constant(call), "info", OF_REPORTS + names)


@functools.cache
def in_the_code() -> set[Event]:
    lost = Event("log_lines_lost", "warning", ("lines",))
    assert '"log_lines_lost", "lines"' in (PACKAGE / "log.py").read_text()
    return {*logged(), *reported(), lost}


def page() -> str:
    text = (ROOT / "README.md").read_text()
    assert PAGE in text, "README has no page about the log"
    return text.partition(PAGE)[2].partition("\n## ")[0]


def in_the_readme() -> set[Event]:
    row = r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| [^|]+ \|$"
    found = re.findall(row, page(), re.MULTILINE)
    return {
        Event(name, level, tuple(re.findall(r"`(\w+)`", fields))) for name, level, fields in found
    }


def test_every_event_has_a_row_with_its_level_and_fields() -> None:
    assert in_the_code() - in_the_readme() == set()


def test_every_row_is_of_an_event() -> None:
    assert in_the_readme() - in_the_code() == set()


def test_an_event_has_one_level_and_one_set_of_fields() -> None:
    names = [event.name for event in in_the_code()]
    assert sorted(names) == sorted(set(names))
    assert all(re.fullmatch("[a-z0-9]+(_[a-z0-9]+)*", name) for name in names)


def test_every_field_is_explained() -> None:
    explained = set(re.findall(r"^- ((?:`\w+`(?:, )?)+)", page(), re.MULTILINE))
    names = {name for group in explained for name in re.findall(r"`(\w+)`", group)}
    assert {field for event in in_the_code() for field in event.fields} == names


def test_what_is_left_out_of_the_limit_is_an_event() -> None:
    names = {event.name for event in in_the_code()}
    assert names >= log.UNLIMITED
    for name in log.UNLIMITED:
        assert f"`{name}`" in page()


def test_every_logger_has_a_name_that_is_looked_for() -> None:
    for where, node in nodes():
        if isinstance(node, ast.Assign) and "get_logger" in ast.unparse(node.value):
            for target in node.targets:
                assert re.fullmatch(LOGGER, ast.unparse(target)), where


def test_every_count_of_events_is_in_the_readme() -> None:
    listed = re.search(r"under `events`, since the start:(.*?)\.\n", page(), re.DOTALL)
    assert listed
    names = set(re.findall(r"`(\w+)`", listed[1]))
    assert names == {event.name for event in reported()} | {"connection_refused_"}


def test_every_reason_why_a_connection_is_refused_is_in_the_readme() -> None:
    reasons = set(re.findall(r'return "(\w+)"', (PACKAGE / "admission.py").read_text()))
    for call in calls(r"self\._server\.refuse|\w+\.turn_away"):
        reason = call.node.args[-1]
        reasons |= {reason.value} if isinstance(reason, ast.Constant) else set()
    assert len(reasons) == 7
    listed = re.search(r"Reasons are (.*?)\.\s", (ROOT / "README.md").read_text(), re.DOTALL)
    assert listed
    assert set(re.findall(r"`(\w+)`", listed[1])) == reasons


def test_no_field_has_a_name_that_every_line_has() -> None:
    for event in in_the_code():
        assert not {"timestamp", "level", "event", "exception"} & set(event.fields), event
