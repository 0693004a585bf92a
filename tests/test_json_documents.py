"""The JSON document of every command: its keys and their types, which scripts rely on.

A key that is added, renamed or taken away, or that changes its type, fails here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.daemon import Daemon
from tests.test_cli_peers import CLOSED, DAVE, ERIN, A, B, C, D, E, copy_of, here, settle, staying


class Text(NamedTuple):
    """A text of a certain form."""

    pattern: str


class Either(NamedTuple):
    """One of several shapes; a None among them stands for null."""

    shapes: tuple[Any, ...]


def optional(shape: Any) -> Either:
    return Either((None, shape))


TIME = Text(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
ID = Text(r"0[23][0-9a-f]{64}")
CHANNEL_ID = SHA256 = Text(r"[0-9a-f]{64}")
HEX = Text(r"([0-9a-f]{2})*")
URI = Text(r"0[23][0-9a-f]{64}@.+:\d+")
KIND = Text("peer_storage|node_backup|channel_backup")
RULE = Text("allow|deny")


def items(row: Any) -> dict[str, Any]:
    """A list, which is not empty here."""
    return {"items": [row]}


SLOT = {"node_id": ID, "kind": KIND, "channel_id": optional(CHANNEL_ID)}
LISTED = {
    **SLOT,
    "revision": int,
    "size": int,
    "sha256": SHA256,
    "stored_at": TIME,
    "pinned": bool,
    "pinned_by": optional(Text("operator|data loss")),
    "held": bool,
}
VERSION = {**LISTED, "current": bool}
OF_A_CHANNEL = {
    "sound": bool,
    "commitments": int,
    "revocations": int,
    "seen_whole": bool,
    "shutdown": bool,
    "closing": bool,
    "closed_at": optional(TIME),
}
CHANGED = {**SLOT, "done": bool}
ALARM = {
    "number": int,
    "kind": Text("shrink|damaged|behind|source"),
    "text": str,
    "node_id": optional(ID),
    "backup_kind": optional(KIND),
    "channel_id": optional(CHANNEL_ID),
    "revision": optional(int),
    "raised_at": TIME,
    "last_at": TIME,
    "count": int,
    "acknowledged_at": optional(TIME),
}
DUE = {**SLOT, "versions": int, "bytes": int, "reason": str}
CHANNEL = {
    "node_id": ID,
    "channel_id": CHANNEL_ID,
    "state": Text("open|closing|closed|unknown"),
    "known_to_routing_node": bool,
    "has_backup": bool,
    "commitments": optional(int),
    "revocations": optional(int),
    "seen_whole": optional(bool),
    "closed_height": optional(int),
    "closed_at": optional(TIME),
    "deleted_in_blocks": optional(int),
    "deleted_in_seconds": optional(int),
    "peer_deleted_in_blocks": optional(int),
    "peer_deleted_in_seconds": optional(int),
}
PEER = {
    "node_id": ID,
    "connected": bool,
    "kept": bool,
    "address": optional(str),
    "first_seen_at": optional(TIME),
    "last_seen_at": optional(TIME),
    "away_seconds": int,
    "established": bool,
    "rule": optional(RULE),
    "client": optional(str),
    "backups": int,
    "bytes": int,
}
STORY = {
    **PEER,
    "backups": [VERSION],
    "backups_count": int,
    "connected_seconds": optional(int),
    "dial_error": optional(str),
    "served": bool,
    "not_served_because": optional(str),
    "node_backup_withheld": bool,
    "features": [str],
    "channels": [CHANNEL],
    "refusals": [{"reason": str, "count": int, "first_at": TIME, "last_at": TIME}],
    "alarms": [ALARM],
}
SOURCE = {
    "node_id": optional(ID),
    "answered": bool,
    "trusted": bool,
    "error": optional(str),
    "height": optional(int),
    "channels": int,
    "open": int,
}
INFO = {
    "well": bool,
    "problems": [str],
    "node_id": ID,
    "alias": str,
    "uris": [URI],
    "network": Text("regtest"),
    "version": str,
    "schema_version": int,
    "running": bool,
    "connections": optional(int),
    "events": optional(dict),
    "channel_source": optional(SOURCE),
    "status_page": optional(str),
    "peers": int,
    "backups": int,
    "versions": int,
    "bytes": int,
    "max_bytes": int,
    "alarms_count": int,
    "alarms": [ALARM],
    "data_dir": str,
    "disk_free": int,
}
RULED = {"node_id": ID, "rule": optional(RULE), "done": bool}
STEP = {"step": str, "ok": bool, "seconds": float, "detail": str}

WITH_DAEMON: list[tuple[str, str, Any]] = [
    ("info", "", INFO),
    ("reload", "", {"changed": [str], "needs_restart": [str], "done": bool}),
    ("config check", "", {"ok": bool, "file": optional(str), "warnings": [str]}),
    ("config show", "", items({"key": str, "value": object, "source": str})),
    ("help", "", items({"topic": str, "title": str})),
    ("help", "recovery", {"topic": str, "text": str}),
    ("help", "peers list", {"topic": str, "text": str}),
    ("completion", "bash", {"shell": Text("bash"), "script": str}),
    ("peers list", "", items(PEER)),
    ("peers show", A, STORY),
    ("peers show", B, STORY),
    ("peers show", C, STORY),
    ("peers show", E, STORY),
    (
        "peers connect",
        f"{D}@127.0.0.1:9",  # it is connected
        {
            "node_id": ID,
            "address": str,
            "inbound": bool,
            "seconds": int,
            "features": str,
            "done": bool,
        },
    ),
    ("peers disconnect", E, {"node_id": ID, "done": bool}),
    ("peers allow", A, RULED),
    ("peers allow", f"{A} --undo", RULED),
    ("peers deny", A, RULED),
    ("peers forget", f"{C} --yes", {"node_id": ID, "bytes": int, "done": bool}),
    ("backups list", "", items(LISTED)),
    ("backups history", A, items(VERSION)),
    ("backups show", A, VERSION),
    ("backups show", f"{B} --kind node_backup", {**VERSION, "withheld": bool}),
    ("backups show", f"{B} --channel-id {CLOSED.hex()}", {**VERSION, "channel": OF_A_CHANNEL}),
    ("backups export", A, {**VERSION, "blob": HEX}),
    ("backups export", f"{A} -o OUT", {**VERSION, "file": str}),
    ("backups pin", f"{A} --revision 1", {**CHANGED, "revision": int}),
    ("backups unpin", f"{A} --revision 1", {**CHANGED, "revision": int}),
    ("backups hold", f"{A} --revision 1 --for 7d", {**CHANGED, "revision": int}),
    ("backups release", A, CHANGED),
    ("backups delete", f"{A} --revision 2 --yes", {**CHANGED, "revision": int}),
    ("channels list", "", items(CHANNEL)),
    ("alarms list", "", items(ALARM)),
    ("alarms ack", "1", {"number": int, "done": bool}),
    ("alarms list", "--all", items(ALARM)),
    ("prune", "--dry-run", items(DUE)),
    ("prune", "", items(DUE)),
    ("verify", "", {"ok": bool, "checked": int, "damaged": [object], "problems": [str]}),
    ("snapshot", "OUT", {"file": str, "size": int}),
    ("snapshot", "OUT --with-key", {"file": str, "size": int, "key_file": str}),
    ("probe", "URI --size 100", {"uri": URI, "ok": bool, "steps": [STEP]}),
]
"""Commands in the order in which they are run, on one daemon: name, words, document."""

WITHOUT_DAEMON: list[tuple[str, str, Any]] = [
    ("info", "", INFO),
    ("peers list", "", items(PEER)),
    ("prune", "", items(DUE)),
    (
        "init",
        "",
        {"node_id": ID, "uris": [URI], "data_dir": str, "node_key_file": str, "key_made": bool},
    ),
    ("restore", "SNAPSHOT", {"database": str, "replaced": optional(str)}),
]
"""The same for commands on a daemon that is stopped."""

RUN = {"node_id": ID, "uris": [URI]}
"""What `run` says when it is ready."""

DOCUMENTED = {"run", *(name for name, _, _ in (*WITH_DAEMON, *WITHOUT_DAEMON))}
"""The commands whose document is fixed here; tests/test_project.py sees that none is missing."""


def misfit(value: Any, shape: Any, where: str) -> Iterator[str]:
    """What in a document is not as its shape has it.

    A shape is a type, a Text, an Either, None, a dict with exactly these keys, or a list with the
    shape of its elements.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict) or value.keys() != shape.keys():
            keys = sorted(value) if isinstance(value, dict) else value
            yield f"{where}: {keys} and not {sorted(shape)}"
        else:
            for key, inner in shape.items():
                yield from misfit(value[key], inner, f"{where}.{key}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{where}: {value!r} is no list"
        else:
            for index, element in enumerate(value):
                yield from misfit(element, shape[0], f"{where}[{index}]")
    elif isinstance(shape, Either):
        if all(list(misfit(value, inner, where)) for inner in shape.shapes):
            yield f"{where}: {value!r} is none of {shape.shapes}"
    elif isinstance(shape, Text):
        if not isinstance(value, str) or not re.fullmatch(shape.pattern, value):
            yield f"{where}: {value!r} is not {shape.pattern}"
    elif shape is None:
        if value is not None:
            yield f"{where}: {value!r} is not null"
    # A bool is an int to isinstance.
    elif shape is not object and type(value) is not shape:
        yield f"{where}: {value!r} is no {shape.__name__}"


def check(daemon: Daemon, words: list[str], shape: Any) -> None:
    """Run a command with --json; its document fits, and a list is not empty."""
    result = daemon.command(*words, "--json")
    assert (result.code, result.stderr) == (0, ""), result
    assert list(misfit(result.document, shape, "document")) == []
    if shape.keys() == {"items"}:
        assert result.document["items"]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """The town, stopped; a snapshot of it may be put back."""
    return settle(tmp_path_factory.mktemp("town"))


@pytest.fixture(scope="module")
def running(town: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A copy of it that runs, with Dave and Erin connected."""
    daemon = copy_of(town, tmp_path_factory.mktemp("running"))
    daemon.start()
    with staying(daemon, DAVE, ERIN):
        yield daemon


@pytest.mark.parametrize(
    ("name", "words", "shape"),
    WITH_DAEMON,
    ids=[f"{name} {words[:8]}" for name, words, _ in WITH_DAEMON],
)
def test_the_document_of_a_command(
    running: Daemon, tmp_path: Path, name: str, words: str, shape: Any
) -> None:
    given = {"OUT": str(tmp_path / "out"), "URI": running.document["uris"][0]}
    check(running, [*name.split(), *(given.get(word, word) for word in words.split())], shape)


def test_the_document_of_run(running: Daemon) -> None:
    assert list(misfit(running.document, RUN, "document")) == []


def test_the_documents_of_commands_on_a_stopped_daemon(town: Daemon, tmp_path: Path) -> None:
    daemon = copy_of(town, tmp_path)
    snapshot = tmp_path / "snapshot.db"
    assert daemon.command("snapshot", str(snapshot)).code == 0
    for name, words, shape in WITHOUT_DAEMON:
        given = {"SNAPSHOT": str(snapshot)}
        check(daemon, [*name.split(), *(given.get(word, word) for word in words.split())], shape)


def test_the_document_of_a_probe_that_fails_has_the_same_keys(tmp_path: Path) -> None:
    """Its exit code is 1, and there is the line on stderr too."""
    daemon = Daemon(tmp_path / "prober")
    uri = f"{A}@127.0.0.1:1"
    result = daemon.command("probe", uri, "--json")
    assert result.code == 1
    shape = {"uri": URI, "ok": bool, "steps": [STEP]}
    assert list(misfit(result.document, shape, "document")) == []


@pytest.mark.parametrize(
    "line", ["peers list", "backups list", "channels list", "alarms list", "prune"]
)
def test_an_empty_list_is_a_document_too(empty: Daemon, line: str) -> None:
    result = here(empty, line)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"items": []}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """A data directory in which nothing is stored yet."""
    daemon = Daemon(tmp_path_factory.mktemp("empty") / "data")
    assert daemon.command("init").code == 0
    return daemon
