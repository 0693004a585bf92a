"""The commands as an operator runs them: a process each, with a running daemon and without."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from peerstore import __version__
from peerstore.client import Client, StorageRefusedError
from peerstore.control import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    MAX_CLIENTS,
    MAX_LINE,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    REFUSED,
    ControlServer,
)
from peerstore.errors import ControlError
from peerstore.types import Network, NodeAddress
from tests.daemon import HANG, LOOPBACK, Daemon, Result, command_line, environment, run_command
from tests.helpers import key_pair

BLOBS = {
    key_pair(fill).node_id.hex(): os.urandom(size) for fill, size in ((0x41, 65531), (0x42, 57))
}
"""What the two peers of every daemon here have stored."""
FIRST, SECOND = BLOBS
UNKNOWN = key_pair(0x4F).node_id.hex()

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")

BEFORE, AFTER = "before", "after"
"""Where --json stands."""


def fill(address: NodeAddress) -> None:
    """Have the two peers store their blobs."""

    async def store() -> None:
        for number in (0x41, 0x42):
            key = key_pair(number)
            async with await Client.connect(address, key) as client:
                await client.init(Network.REGTEST)
                await client.store(BLOBS[key.node_id.hex()])
                await client.confirm()

    asyncio.run(store())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that keeps BLOBS and runs; tests must leave both so."""
    daemon = Daemon(tmp_path_factory.mktemp("running") / "data")
    daemon.start()
    fill(daemon.address)
    try:
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """A daemon that keeps BLOBS and was stopped; tests must leave it so."""
    daemon = Daemon(tmp_path_factory.mktemp("stopped") / "data")
    daemon.start()
    fill(daemon.address)
    daemon.close()
    return daemon


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory just made by `peerstore init`."""
    data_dir = tmp_path_factory.mktemp("template") / "data"
    said(run_command(data_dir, "init"))
    return data_dir


@pytest.fixture
def made(template: Path, data_dir: Path) -> Path:
    """A copy of it that a test may spoil."""
    shutil.copytree(template, data_dir)
    return data_dir


@pytest.fixture(params=["running", "stopped"])
def either(request: pytest.FixtureRequest) -> Daemon:
    """The one, then the other."""
    daemon: Daemon = request.getfixturevalue(request.param)
    return daemon


@pytest.fixture(params=[BEFORE, AFTER])
def json_place(request: pytest.FixtureRequest) -> str:
    """Where --json stands: before the command, then after it."""
    place: str = request.param
    return place


def with_json(place: str, *arguments: str) -> tuple[str, ...]:
    return ("--json", *arguments) if place == BEFORE else (*arguments, "--json")


each_once = pytest.mark.parametrize(
    ("either", "json_place"), [("running", BEFORE), ("stopped", AFTER)], indirect=True
)
"""For a test of what a command answers as JSON."""


def said(result: Result) -> str:
    """The stdout of a command that did what it was asked for, and had nothing to complain of."""
    assert (result.code, result.stderr) == (0, "")
    return result.stdout


def answered(result: Result) -> Any:
    """The same, as JSON."""
    return json.loads(said(result))


def refused(result: Result, *words: str) -> str:
    """The one line that says why a command failed; beside it only the log may be on stderr."""
    assert result.code == 1, result
    return complaint(result, *words)


def complaint(result: Result, *words: str) -> str:
    lines = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in lines[0]
    return lines[0]


# info


def test_info_says_whether_all_is_well_then_who_and_what(either: Daemon) -> None:
    well, blank, *rest = said(either.command("info")).splitlines()
    assert blank == ""
    assert well == (
        "All is well." if either.runs else "Not well: the daemon does not run: `peerstore run`."
    )
    lines = dict(re.split("  +", line, maxsplit=1) for line in rest)
    assert lines["State"] == ("running, 0 connections" if either.runs else "not running")
    assert lines["Network"] == "regtest"
    assert lines["URI"].startswith(either.document["node_id"])
    assert "2 backups of 2 peers" in lines["Stored"]
    assert lines["Node id"] == either.document["node_id"]
    assert lines["Directory"].startswith(f"{either.data_dir}, ")


def test_info_names_a_disk_that_is_nearly_full(data_dir: Path) -> None:
    daemon = Daemon(data_dir, [*LOOPBACK, "store.min_free_space=1000TiB"])
    daemon.start()
    (problem,) = answered(daemon.command("info", "--json"))["problems"]
    assert "free on the disk" in problem
    assert "store.min_free_space" in problem
    daemon.close()
    well, *_ = said(daemon.command("info")).splitlines()
    assert well.startswith(f"Not well: the daemon does not run: `peerstore run`; {problem[:5]}")


def test_info_names_a_store_that_is_nearly_full(data_dir: Path) -> None:
    daemon = Daemon(data_dir, [*LOOPBACK, "store.max_bytes=512KiB"])
    daemon.start()

    async def store() -> None:
        for number in range(0x41, 0x49):
            async with await Client.connect(daemon.address, key_pair(number)) as client:
                await client.init(Network.REGTEST)
                await client.store(bytes(65531))
                await client.confirm()

    asyncio.run(store())
    document = answered(daemon.command("info", "--json"))
    daemon.close()
    assert document["well"] is False
    (problem,) = document["problems"]
    assert "the store holds 512.0 KiB of at most 512.0 KiB" in problem
    assert "store.max_bytes" in problem


@each_once
def test_info_as_json(either: Daemon, json_place: str) -> None:
    document = answered(either.command(*with_json(json_place, "info")))
    if either.runs:
        assert document["uris"] == either.document["uris"]
    expected = {
        "node_id": either.document["node_id"],
        "network": "regtest",
        "version": __version__,
        "running": either.runs,
        "connections": 0 if either.runs else None,
        "peers": 2,
        "backups": 2,
        "bytes": sum(map(len, BLOBS.values())),
        "alarms": [],
    }
    assert {key: document[key] for key in expected} == expected
    assert isinstance(document["schema_version"], int)
    assert all(uri.startswith(either.document["node_id"] + "@") for uri in document["uris"])


def test_info_counts_connections(running: Daemon) -> None:
    with socket.create_connection((running.address.host, running.address.port)):
        assert answered(running.command("info", "--json"))["connections"] == 1


def test_info_counts_what_was_told_of_peers_since_the_start(daemon: Daemon) -> None:
    async def refuse(times: int) -> None:
        async with await Client.connect(daemon.address, key_pair(0x41)) as client:
            await client.init(Network.REGTEST)
            for _ in range(times):
                await client.store_node_backup(b"this peer did not ask for it in its init")
                with pytest.raises(StorageRefusedError):
                    await client.confirm()

    assert answered(daemon.command("info", "--json"))["events"] == {}
    for times in (1, 2):
        asyncio.run(refuse(times))
    assert answered(daemon.command("info", "--json"))["events"] == {"update_refused": 3}
    daemon.stop()
    assert answered(daemon.command("info", "--json"))["events"] is None
    daemon.start()
    assert answered(daemon.command("info", "--json"))["events"] == {}


def test_info_shows_the_newest_of_many_alarms(data_dir: Path) -> None:
    assert run_command(data_dir, "init").code == 0
    with closing(sqlite3.connect(data_dir / "peerstore.db")) as database, database:
        database.executemany(
            "INSERT INTO alarm (kind, text, raised_at, last_at) VALUES ('shrink', ?, 0, 0)",
            [(f"what happened to {number}.",) for number in range(1, 1251)],
        )
    document = run_command(data_dir, "info", "--json").document
    assert document["alarms_count"] == 1250
    assert [alarm["number"] for alarm in document["alarms"]] == list(range(1151, 1251))
    assert any("1,250 alarms stand" in problem for problem in document["problems"])
    shown = run_command(data_dir, "info").stdout
    found = re.findall(r"what happened to (\d+)\.", shown)
    assert found == [str(number) for number in range(1231, 1251)]
    assert "1,230 more, older ones: `peerstore alarms list`" in shown


def test_info_shows_a_status_page_of_all_interfaces_where_it_is_here(data_dir: Path) -> None:
    settings = [*LOOPBACK, "metrics.listen=0.0.0.0:0"]
    with closing(Daemon(data_dir, settings)) as daemon:
        daemon.start()
        page = daemon.command("info", "--json").document["status_page"]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", page)


def test_info_after_a_kill_says_that_it_does_not_run(daemon: Daemon) -> None:
    daemon.kill()
    document = answered(daemon.command("--json", "info"))
    assert (document["running"], document["connections"]) == (False, None)
    daemon.start()
    assert answered(daemon.command("--json", "info"))["running"] is True


def test_info_shows_what_is_announced_whether_it_runs_or_not(data_dir: Path) -> None:
    onion = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:9737"
    announced = [onion, "node.example.com:1"]
    daemon = Daemon(data_dir, (*LOOPBACK, f"listen.announce={json.dumps(announced)}"))
    daemon.start()
    node_id = daemon.address.node_id.hex()
    uris = [f"{node_id}@{address}" for address in announced]
    assert daemon.document["uris"] == uris
    assert answered(daemon.command("info", "--json"))["uris"] == uris
    daemon.close()
    assert answered(daemon.command("info", "--json"))["uris"] == uris


def test_info_running_is_for_scripts_that_ask_whether_it_serves(daemon: Daemon) -> None:
    assert "running, 0 connections" in said(daemon.command("info", "--running"))
    assert answered(daemon.command("info", "--running", "--json"))["running"] is True
    (daemon.data_dir / "peerstore.sock").rename(daemon.data_dir / "elsewhere")
    line = refused(daemon.command("info", "--running"), "the daemon runs", "restart it")
    assert str(daemon.data_dir) in line
    daemon.stop()
    result = daemon.command("info", "--running")
    assert (result.code, result.stdout) == (3, "")
    complaint(result, "peerstore run")


def test_sigterm_ends_a_command_also_as_the_first_process_of_a_container(stopped: Daemon) -> None:
    """To which the kernel gives no default: it would ignore it."""
    program = [*command_line(stopped.data_dir, LOOPBACK), "peers", "forget", FIRST]
    unshare = ["/usr/bin/unshare", "--pid", "--fork", "--kill-child"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    with subprocess.Popen(
        [*unshare, *program],
        env=environment(stopped.data_dir.parent),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        asked = process.stderr.read(1)
        if not asked or asked == b"u":
            process.wait(HANG)
            pytest.skip("this system gives no namespace of processes")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        # One that comes between the question and the wait for its answer is not heard at once.
        for _ in range(HANG):
            os.kill(int(children), signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
                break
        assert process.returncode == 128 + signal.SIGTERM
    assert FIRST in said(stopped.command("backups", "list"))


@pytest.mark.parametrize("command", [["info"], ["backups", "list"], ["backups", "export", FIRST]])
def test_without_a_database_a_command_says_what_to_do(data_dir: Path, command: list[str]) -> None:
    refused(run_command(data_dir, *command), str(data_dir), "peerstore init")
    assert not data_dir.exists()


# backups


def test_backups_are_listed(either: Daemon) -> None:
    header, *rows = said(either.command("backups", "list")).splitlines()
    assert header.split("  ")[0] == "NODE ID"
    assert sorted(row.split()[0] for row in rows) == sorted(BLOBS)
    assert any("64.0 KiB" in row for row in rows)


@each_once
def test_backups_are_listed_as_json(either: Daemon, json_place: str) -> None:
    document = answered(either.command(*with_json(json_place, "backups", "list")))
    rows = {row["node_id"]: row for row in document["items"]}
    assert set(rows) == set(BLOBS)
    for node_id, blob in BLOBS.items():
        row = rows[node_id]
        assert (row["kind"], row["channel_id"], row["size"]) == ("peer_storage", None, len(blob))
        assert row["sha256"] == hashlib.sha256(blob).hexdigest()
        assert isinstance(row["revision"], int)
        assert TIME.fullmatch(row["stored_at"])


@pytest.mark.parametrize("node_id", [FIRST, FIRST[:12], FIRST[:12].upper()])
def test_a_prefix_of_a_node_id_will_do(either: Daemon, node_id: str) -> None:
    document = answered(either.command("--json", "backups", "list", node_id))
    assert [row["node_id"] for row in document["items"]] == [FIRST]


def test_a_backup_is_exported_to_a_new_file_of_ours_alone(either: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    output = said(either.command("backups", "export", FIRST, "-o", str(file)))
    assert file.read_bytes() == BLOBS[FIRST]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert str(file) in output


def test_a_backup_is_exported_to_a_pipe(either: Daemon) -> None:
    result = either.command("backups", "export", SECOND)
    assert (result.code, result.output, result.stderr) == (0, BLOBS[SECOND], "")


@each_once
def test_a_backup_is_exported_as_json(either: Daemon, json_place: str, tmp_path: Path) -> None:
    command = with_json(json_place, "backups", "export", SECOND)
    document = answered(either.command(*command))
    assert bytes.fromhex(document["blob"]) == BLOBS[SECOND]
    assert document["sha256"] == hashlib.sha256(BLOBS[SECOND]).hexdigest()

    file = tmp_path / "backup"
    document = answered(either.command(*command, "-o", str(file)))
    assert (document["file"], document["size"]) == (str(file), len(BLOBS[SECOND]))
    assert "blob" not in document
    assert file.read_bytes() == BLOBS[SECOND]


def test_a_certain_revision_is_exported_or_said_to_be_missing(stopped: Daemon) -> None:
    (row,) = answered(stopped.command("--json", "backups", "list", FIRST))["items"]
    revision = row["revision"]
    export = ("backups", "export", FIRST, "--revision")
    assert stopped.command(*export, str(revision)).output == BLOBS[FIRST]
    refused(stopped.command(*export, str(revision + 100)), f"revision {revision + 100}", FIRST)


def test_an_export_never_overwrites(stopped: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_bytes(b"precious")
    refused(stopped.command("backups", "export", FIRST, "-o", str(file)), str(file), "exists")
    assert file.read_bytes() == b"precious"


def test_an_export_to_a_folder_that_is_not_there_says_so(stopped: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "nowhere" / "backup"
    refused(stopped.command("backups", "export", FIRST, "-o", str(file)), str(file))


@pytest.mark.parametrize(
    ("command", "node_id", "word"),
    [
        ("list", UNKNOWN, UNKNOWN),
        ("list", "0", "more than one"),
        ("list", "xyz", "hexadecimal"),
        ("list", FIRST + "00", "hexadecimal"),
        ("list", "", "hexadecimal"),
        ("export", UNKNOWN, UNKNOWN),
        ("export", "0", "more than one"),
        ("export", "xyz", "hexadecimal"),
    ],
)
def test_a_node_id_that_means_no_one_peer_is_refused(
    stopped: Daemon, command: str, node_id: str, word: str
) -> None:
    result = stopped.command("backups", command, node_id)
    refused(result, word)
    assert result.output == b""


@pytest.mark.parametrize(
    "command",
    [
        ["backups", "export", FIRST],
        ["backups", "list"],
        ["info"],
    ],
    ids=" ".join,
)
def test_a_reader_that_has_gone_is_no_disaster(stopped: Daemon, command: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = run_command(stopped.data_dir, *command, stdout=write_end)
    finally:
        os.close(write_end)
    assert (result.code, result.stderr) == (1, "")


@pytest.mark.parametrize(
    "command", [["backups", "export", FIRST], ["backups", "list"], ["info"]], ids=" ".join
)
def test_a_full_disk_under_stdout_is_one_line(stopped: Daemon, command: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        result = run_command(stopped.data_dir, *command, stdout=full)
    finally:
        os.close(full)
    refused(result, "No space left")


@pytest.mark.parametrize(
    ("command", "code"), [("info --limit", 2), ("reload", 3), (f"backups show {UNKNOWN}", 1)]
)
@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-"])
def test_the_exit_code_is_right_where_nothing_can_be_said(
    stopped: Daemon, command: str, code: int, redirect: str
) -> None:
    line = [*command_line(stopped.data_dir, LOOPBACK), *command.split()]
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirect}', "sh", *line],
        env=environment(stopped.data_dir.parent),
        stdout=subprocess.DEVNULL,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == code


# config


def test_config_check_says_that_all_is_well(stopped: Daemon) -> None:
    assert "fine" in said(stopped.command("config", "check"))


def test_config_check_as_json(data_dir: Path, json_place: str) -> None:
    data_dir.mkdir()
    document = answered(run_command(data_dir, *with_json(json_place, "config", "check")))
    assert document == {"ok": True, "file": None, "warnings": []}

    file = data_dir / "config.toml"
    file.write_text('alias = "me"\n')
    extra = {"PEERSTORE_SERVICE_HOST": "10.0.0.1"}
    result = run_command(data_dir, *with_json(json_place, "config", "check"), extra=extra)
    assert result.code == 0
    document = result.document
    assert (document["ok"], document["file"]) == (True, str(file))
    (warning,) = document["warnings"]
    assert "PEERSTORE_SERVICE_HOST" in warning
    assert result.stderr == f"Warning: {warning}\n"


def test_config_show_says_where_each_value_comes_from(data_dir: Path) -> None:
    data_dir.mkdir()
    file = data_dir / "config.toml"
    file.write_text('alias = "me"\n[limits]\ninit_timeout = "7s"\nidle_timeout = "70s"\n')
    extra = {"PEERSTORE_LIMITS__IDLE_TIMEOUT": "80s", "PEERSTORE_NETWORK": "signet"}
    header, *rows = said(run_command(data_dir, "config", "show", extra=extra)).splitlines()
    assert header.split() == ["KEY", "VALUE", "FROM"]
    shown = {row.split()[0]: re.split(r"  +", row) for row in rows}
    assert shown["alias"] == ["alias", '"me"', f"file {file}"]
    assert shown["limits.init_timeout"] == ["limits.init_timeout", '"7s"', f"file {file}"]
    source = "environment PEERSTORE_LIMITS__IDLE_TIMEOUT"
    assert shown["limits.idle_timeout"] == ["limits.idle_timeout", '"80s"', source]
    assert shown["network"] == ["network", '"regtest"', "flag --set"]
    assert shown["log.level"] == ["log.level", '"info"', "default"]


def test_config_show_as_json(stopped: Daemon, json_place: str) -> None:
    document = answered(stopped.command(*with_json(json_place, "config", "show")))
    shown = {row["key"]: (row["value"], row["source"]) for row in document["items"]}
    assert shown["network"] == ("regtest", "flag --set")
    assert shown["listen.addresses"] == (["127.0.0.1:0"], "flag --set")
    assert shown["log.level"] == ("info", "default")


COMMANDS = {
    "run": ["run"],
    "init": ["init"],
    "info": ["info"],
    "probe": ["probe", f"{UNKNOWN}@127.0.0.1:1"],
    "config check": ["config", "check"],
    "config show": ["config", "show"],
    "backups list": ["backups", "list"],
    "backups export": ["backups", "export", FIRST],
}
every_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


@every_command
def test_a_missing_configuration_file_is_one_line(
    stopped: Daemon, command: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "missing.toml"
    refused(stopped.command("--config", str(file), *command), str(file))


def test_an_unknown_key_is_one_line_that_names_the_nearest(stopped: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[limits]\nidle_timeot = "70s"\n')
    result = stopped.command("--config", str(file), "info")
    refused(result, str(file), "limits.idle_timeot", "did you mean limits.idle_timeout?")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("network = 5", ["network", "bitcoin, testnet"]),
        ('listen = "127.0.0.1:9737"', ["listen", "[listen]"]),
        ('[listen]\naddresses = "127.0.0.1:9737"', ["listen.addresses", "a list"]),
        ('[listen]\naddresses = ["localhost"]', ["listen.addresses", "localhost"]),
        ("[limits]\ninit_timeout = 15", ["limits.init_timeout", "15s"]),
        ('netwrk = "regtest"', ["netwrk", "did you mean network?"]),
        ("network = regtest", ["not TOML", "line 1"]),
        ("\x7f", ["not TOML", "line 1"]),
    ],
    ids=[
        "a number for a network",
        "text for a table",
        "text for a list",
        "no port",
        "no unit",
        "unknown key",
        "no quotes",
        "odd characters",
    ],
)
def test_a_wrong_value_is_one_line(data_dir: Path, text: str, words: list[str]) -> None:
    data_dir.mkdir()
    (data_dir / "config.toml").write_text(text, encoding="utf-8")
    file = data_dir / "config.toml"
    refused(run_command(data_dir, "config", "check"), str(file), *words)


def test_a_daemon_with_a_wrong_value_does_not_start_and_makes_nothing(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "config.toml").write_text('netwrk = "regtest"')
    refused(run_command(data_dir, "run"), "netwrk", "did you mean network?")
    assert [path.name for path in data_dir.iterdir()] == ["config.toml"]


# init


def test_init_makes_everything_and_says_what_to_keep(data_dir: Path) -> None:
    output = said(run_command(data_dir, "init", settings=["network=regtest"]))
    key_file = data_dir / "node.key"
    assert str(key_file) in output
    assert "@127.0.0.1:9737" in output
    files = {path.name for path in data_dir.iterdir()}
    assert {"config.toml", "node.key", "peerstore.db"} <= files
    assert "peerstore.sock" not in files
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    for file in data_dir.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_init_as_json_and_again(data_dir: Path) -> None:
    document = answered(run_command(data_dir, *with_json(BEFORE, "init")))
    assert document["key_made"] is True
    assert document["data_dir"] == str(data_dir)
    assert document["node_key_file"] == str(data_dir / "node.key")
    key = (data_dir / "node.key").read_bytes()

    (data_dir / "config.toml").write_text('alias = "changed"\n')
    again = answered(run_command(data_dir, *with_json(AFTER, "init")))
    assert again == {**document, "key_made": False}
    assert (data_dir / "node.key").read_bytes() == key
    assert (data_dir / "config.toml").read_text() == 'alias = "changed"\n'


def test_what_init_made_is_what_runs(data_dir: Path) -> None:
    made = answered(run_command(data_dir, "--json", "init"))
    daemon = Daemon(data_dir)
    daemon.start()
    assert daemon.document["node_id"] == made["node_id"]
    daemon.close()


def test_init_of_a_stopped_daemon_changes_nothing(stopped: Daemon) -> None:
    document = answered(stopped.command("--json", "init"))
    assert document["node_id"] == stopped.document["node_id"]
    assert document["key_made"] is False
    assert answered(stopped.command("--json", "info"))["backups"] == 2


def test_init_beside_a_running_daemon_is_refused(running: Daemon) -> None:
    refused(running.command("init"), f"process {running.process_id}")


# probe

STEPS = ["connect", "init", "retrieve", "store", "reconnect", "compare"]


def test_probe_says_each_step_and_that_what_came_back_is_what_was_stored(daemon: Daemon) -> None:
    # The second time there is something from before.
    for before in ("nothing is stored yet", "64.0 KiB from before"):
        *steps, verdict = said(daemon.command("probe", daemon.document["uris"][0])).splitlines()
        assert [line.split()[0] for line in steps] == STEPS
        assert all(" ms " in line for line in steps)
        assert before in steps[2]
        assert verdict.endswith("what came back is what was stored.")
    assert answered(daemon.command("--json", "info"))["peers"] == 1


def test_probe_as_json(daemon: Daemon, json_place: str) -> None:
    uri = daemon.document["uris"][0]
    document = answered(daemon.command(*with_json(json_place, "probe", uri, "--size", "0")))
    assert (document["uri"], document["ok"]) == (uri, True)
    assert [step["step"] for step in document["steps"]] == STEPS
    for step in document["steps"]:
        assert step["ok"] is True
        assert isinstance(step["seconds"], float)
        assert step["detail"]


STEPS_881 = [
    *("connect", "init", "retrieve", "store node", "store channel"),
    *("reconnect", "compare node", "compare channel"),
]


def test_probe_of_the_other_dialect_says_each_step(daemon: Daemon) -> None:
    uri = daemon.document["uris"][0]
    for before in ("nothing is stored yet", "31.2 KiB from before"):
        result = daemon.command("probe", uri, "--dialect", "881")
        *steps, verdict = said(result).splitlines()
        assert [line[:15].rstrip() for line in steps] == STEPS_881
        assert f"node backup: {before}; channel backup: {before}" in steps[2]
        assert verdict.endswith("what came back is what was stored.")
    document = answered(daemon.command("--json", "info"))
    assert (document["peers"], document["backups"]) == (1, 2)
    # The first dialect's backup stands beside them.
    said(daemon.command("probe", uri))
    kinds = [row["kind"] for row in answered(daemon.command("--json", "backups", "list"))["items"]]
    assert kinds == ["peer_storage", "node_backup", "channel_backup"]


@pytest.mark.parametrize("size", ["0", "32000"])
def test_probe_of_the_other_dialect_as_json(daemon: Daemon, size: str) -> None:
    uri = daemon.document["uris"][0]
    for _ in range(2):
        words = ("probe", uri, "--dialect", "881", "--size", size, "--json")
        document = answered(daemon.command(*words))
        assert (document["uri"], document["ok"]) == (uri, True)
        assert [step["step"] for step in document["steps"]] == STEPS_881
        assert all(step["ok"] is True for step in document["steps"])


def test_probe_with_less_than_before_says_that_the_larger_backups_are_held(daemon: Daemon) -> None:
    uri = daemon.document["uris"][0]
    said(daemon.command("probe", uri, "--dialect", "881"))
    result = daemon.command("probe", uri, "--dialect", "881", "--size", "10")
    assert "holds the larger backup" in said(result).splitlines()[-1]
    alarms = answered(daemon.command("--json", "info"))["alarms"]
    assert [alarm["kind"] for alarm in alarms] == ["shrink", "shrink"]


def test_probe_of_a_dead_port_is_one_line(stopped: Daemon, tmp_path: Path) -> None:
    uri = stopped.document["uris"][0]
    result = run_command(tmp_path / "prober", "probe", uri)
    refused(result, "connect", uri)
    assert result.output == b""

    result = run_command(tmp_path / "prober", "--json", "probe", uri)
    refused(result, "connect", uri)
    assert result.document["ok"] is False
    (step,) = result.document["steps"]
    assert (step["step"], step["ok"]) == ("connect", False)


def test_probe_of_a_wrong_node_id_is_one_line_that_asks_about_it(
    running: Daemon, tmp_path: Path
) -> None:
    uri = str(NodeAddress(key_pair(0x43).node_id, running.address.host, running.address.port))
    refused(run_command(tmp_path / "prober", "probe", uri), uri, "node id?")


def test_probe_of_another_network_says_what_the_provider_said(
    running: Daemon, tmp_path: Path
) -> None:
    uri = running.document["uris"][0]
    result = run_command(tmp_path / "prober", "probe", uri, settings=["network=signet"])
    refused(result, "network signet")


@pytest.mark.parametrize(
    "uri",
    [
        "nonsense",
        "127.0.0.1:9737",
        f"{UNKNOWN}@127.0.0.1",
        f"{UNKNOWN}@::1:9737",
        f"{UNKNOWN}@127.0.0.1:70000",
        f"{UNKNOWN[:-2]}@127.0.0.1:9737",
        f"04{UNKNOWN[2:]}@127.0.0.1:9737",
        f"02{'ff' * 32}@127.0.0.1:9737",
        f"{UNKNOWN}@host name:1",
    ],
    ids=[
        "no URI",
        "no node id",
        "no port",
        "IPv6 without brackets",
        "a port too large",
        "a short node id",
        "an odd prefix",
        "no point on the curve",
        "a space in the host",
    ],
)
def test_probe_of_a_malformed_uri_is_one_line(tmp_path: Path, uri: str) -> None:
    result = run_command(tmp_path / "prober", "probe", uri)
    refused(result)
    assert result.output == b""


def test_an_interrupted_command_says_so(tmp_path: Path) -> None:
    """A provider that accepts and then says nothing, and an operator who has waited enough."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"{UNKNOWN}@127.0.0.1:{listener.getsockname()[1]}"
        with subprocess.Popen(
            [*command_line(tmp_path / "prober", LOOPBACK), "probe", uri],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            accepted, _ = listener.accept()
            with accepted:
                assert len(accepted.recv(50, socket.MSG_WAITALL)) == 50
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=HANG)
    # click begins a new line behind the terminal's ^C.
    assert (process.returncode, output, errors.strip()) == (130, b"", b"Error: interrupted")


# run


def test_a_reload_during_the_start_does_not_end_it(data_dir: Path, tmp_path: Path) -> None:
    configuration = tmp_path / "pipe.toml"
    os.mkfifo(configuration)

    class Named(Daemon):
        def command_line(self) -> list[str]:
            command = super().command_line()
            return [*command[:3], "--config", str(configuration), *command[3:]]

    daemon = Named(data_dir)

    def hang_up() -> None:
        # Who reads waits for the end of what is written.
        with configuration.open("w"):
            os.kill(daemon.process_id, signal.SIGHUP)
            (tmp_path / "empty.toml").touch()
            (tmp_path / "empty.toml").replace(configuration)

    with closing(daemon), ThreadPoolExecutor() as pool:
        done = pool.submit(hang_up)
        daemon.start()
        done.result(HANG)


def test_run_tells_people_where_peers_connect_to(data_dir: Path) -> None:
    with subprocess.Popen(
        [*command_line(data_dir, LOOPBACK), "run"],
        env=environment(data_dir.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "Peers connect to:\n"
        uri = process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=HANG)
    assert (process.returncode, output) == (0, "")
    assert NodeAddress.parse(uri).host == "127.0.0.1"


def test_run_as_json(data_dir: Path) -> None:
    """With --json after the command; every other test has it before."""
    with subprocess.Popen(
        [*command_line(data_dir, LOOPBACK), "run", "--json"],
        env=environment(data_dir.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = list(iter(process.stdout.readline, "}\n"))
        process.terminate()
        output, _ = process.communicate(timeout=HANG)
    assert (process.returncode, output) == (0, "")
    document = json.loads("".join([*lines, "}"]))
    (uri,) = document["uris"]
    assert NodeAddress.parse(uri).node_id.hex() == document["node_id"]


def test_run_makes_what_is_missing_for_its_owner_alone(daemon: Daemon) -> None:
    files = {path.name: path for path in daemon.data_dir.iterdir()}
    assert {"node.key", "peerstore.db", "peerstore.lock", "peerstore.sock"} <= set(files)
    assert stat.S_IMODE(daemon.data_dir.stat().st_mode) == 0o700
    for file in files.values():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_port_in_use_is_one_line(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        settings = [*LOOPBACK, f'listen.addresses=["127.0.0.1:{port}"]']
        result = run_command(data_dir, "run", settings=settings)
        refused(result, f"127.0.0.1:{port} is in use", "listen.addresses")
        assert result.output == b""
    # Nothing is left that would be in the way of the next start.
    daemon = Daemon(data_dir)
    daemon.start()
    daemon.close()


@pytest.mark.parametrize(
    ("command", "place"),
    [("run", "file"), ("run", "file/data"), ("run", "file/data/deeper"), ("init", "file/data")],
)
def test_a_data_directory_that_can_not_be_made_is_one_line(
    tmp_path: Path, command: str, place: str
) -> None:
    (tmp_path / "file").touch()
    data_dir = tmp_path / place
    refused(run_command(data_dir, command), f"data directory {data_dir}", "--data-dir")


def test_a_second_daemon_says_who_runs_already(running: Daemon) -> None:
    refused(running.command("run"), f"process {running.process_id}", "--data-dir")
    assert answered(running.command("--json", "info"))["running"] is True


def test_a_second_daemon_on_the_same_database_says_who_runs_already(
    running: Daemon, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "node.key").write_bytes((running.data_dir / "node.key").read_bytes())
    (elsewhere / "node.key").chmod(0o600)
    database = running.data_dir / "peerstore.db"
    result = run_command(elsewhere, "run", settings=[*LOOPBACK, f"store.url=sqlite:///{database}"])
    refused(result, f"process {running.process_id}")


# The key


def spoil_mode(key: Path) -> None:
    key.chmod(0o640)


def spoil_digits(key: Path) -> None:
    key.write_text("not a key\n")


def spoil_length(key: Path) -> None:
    key.write_text(key.read_text()[:62])


def spoil_range(key: Path) -> None:
    key.write_text("00" * 32)


def spoil_bytes(key: Path) -> None:
    key.write_bytes(os.urandom(32))


def spoil_kind(key: Path) -> None:
    key.unlink()
    key.mkdir()


def exchange(key: Path) -> None:
    key.write_text(os.urandom(32).hex())


@pytest.mark.parametrize(
    ("command", "spoil", "word"),
    [
        ("run", spoil_mode, "chmod 600"),
        ("run", spoil_digits, "64 hexadecimal digits"),
        ("run", spoil_length, "64 hexadecimal digits"),
        ("run", spoil_range, "64 hexadecimal digits"),
        ("run", spoil_bytes, "64 hexadecimal digits"),
        ("run", spoil_kind, "can't be read"),
        ("run", exchange, "put the right key file back"),
        ("init", spoil_mode, "chmod 600"),
        ("init", spoil_digits, "64 hexadecimal digits"),
        ("init", exchange, "put the right key file back"),
    ],
)
def test_a_key_that_is_not_right_is_one_line(
    made: Path, command: str, spoil: Callable[[Path], None], word: str
) -> None:
    key = made / "node.key"
    right = key.read_text()
    spoil(key)
    spoiled = key.is_dir() or key.read_bytes()
    line = refused(run_command(made, command), str(key) if spoil is not exchange else "", word)
    assert right.strip() not in line
    assert (key.is_dir() or key.read_bytes()) == spoiled


def test_a_lost_key_is_not_replaced_by_one_that_finds_no_backup(made: Path) -> None:
    key = made / "node.key"
    key.unlink()
    refused(run_command(made, "run"), str(key), "back")
    assert not key.exists()


# The database


def test_another_network_than_the_databases_is_one_line(made: Path) -> None:
    settings = [*LOOPBACK, "network=signet"]
    refused(run_command(made, "run", settings=settings), "regtest", "signet", "network")


@pytest.mark.parametrize("command", [["run"], ["init"], ["info"]], ids=" ".join)
def test_a_file_that_is_no_database_is_one_line(made: Path, command: list[str]) -> None:
    database = made / "peerstore.db"
    database.write_bytes(b"no database" * 1000)
    refused(run_command(made, *command), str(database))
    assert database.read_bytes() == b"no database" * 1000


@pytest.mark.parametrize("command", [["run"], ["info"]], ids=" ".join)
@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("PRAGMA user_version = 9999", "newer"),
        ("PRAGMA application_id = 1", "not one of peerstore"),
    ],
)
def test_a_database_of_another_program_is_one_line(
    made: Path, command: list[str], statement: str, word: str
) -> None:
    path = made / "peerstore.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement)
    refused(run_command(made, *command), str(path), word)


def test_a_damaged_backup_is_not_exported(data_dir: Path, tmp_path: Path) -> None:
    daemon = Daemon(data_dir)
    daemon.start()
    fill(daemon.address)
    daemon.close()
    with closing(sqlite3.connect(data_dir / "peerstore.db")) as database:
        statement = "UPDATE backup SET blob = zeroblob(57) WHERE node_id = ?"
        assert database.execute(statement, (bytes.fromhex(SECOND),)).rowcount == 1
        database.commit()
    file = tmp_path / "backup"
    refused(daemon.command("backups", "export", SECOND, "-o", str(file)), SECOND, "digest")
    assert not file.exists()
    assert daemon.command("backups", "export", FIRST).output == BLOBS[FIRST]


@pytest.mark.parametrize(
    ("by_flag", "command"),
    [
        (False, ["info"]),
        (False, ["peers", "list"]),
        (False, ["peers", "disconnect", FIRST]),
        (True, ["info"]),
    ],
)
def test_a_directory_that_may_not_be_read_is_one_line(
    made: Path, by_flag: bool, command: list[str]
) -> None:
    made.chmod(0o000)
    # Root may read everything, until it gives that up.
    limited = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    program = command_line(made, LOOPBACK)
    if not by_flag:
        program = [part for part in program if part not in ("--data-dir", str(made))]
    done = subprocess.run(
        [*(limited if os.geteuid() == 0 else []), *program, *command],
        env=environment(made.parent, {"PEERSTORE_DATA_DIR": str(made)}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    made.chmod(0o700)
    result = Result(done.returncode, done.stdout, done.stderr.decode())
    refused(result, "ermission denied", str(made))


# Usage


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-option", "info"],
        ["no-such-command"],
        ["probe"],
        ["probe", f"{UNKNOWN}@127.0.0.1:1", "--size", "65532"],
        ["probe", f"{UNKNOWN}@127.0.0.1:1", "--dialect", "881", "--size", "32001"],
        ["probe", f"{UNKNOWN}@127.0.0.1:1", "--dialect", "1110"],
        ["backups", "export"],
        ["backups", "export", FIRST, "--kind", "no_such_kind"],
        ["backups", "export", FIRST, "--revision", "newest"],
        ["backups", "no-such-command"],
        ["info", "too", "many"],
    ],
    ids=" ".join,
)
def test_a_wrong_usage_exits_2(stopped: Daemon, arguments: list[str]) -> None:
    result = stopped.command(*arguments)
    assert (result.code, result.output) == (2, b"")
    assert result.stderr.startswith("Usage: peerstore")
    assert sum(line.startswith("Error: ") for line in result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["init"], ["info"], ["probe"], ["config"], ["backups"], ["backups", "export"]],
    ids=" ".join,
)
def test_every_command_explains_itself(stopped: Daemon, command: Sequence[str]) -> None:
    assert said(stopped.command(*command, "--help")).startswith("Usage: peerstore")


# The control socket


class Control:
    """A client of a control socket that can say anything."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("rb")

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._socket.close()

    def say(self, data: bytes) -> None:
        # A daemon that has had enough may have closed already.
        try:
            self._socket.sendall(data)
        except OSError:
            return

    def hear(self) -> bytes:
        """A line, empty when the daemon has closed."""
        try:
            return self._answers.readline()
        except ConnectionError:
            return b""

    def ask(self, line: bytes) -> Any:
        self.say(line + b"\n")
        return json.loads(self.hear())


JUNK = {
    "no JSON": (b"junk", PARSE_ERROR),
    "nothing": (b"", PARSE_ERROR),
    "no UTF-8": (b'"\xff"', PARSE_ERROR),
    "nested without end": (b"[" * 100_000, PARSE_ERROR),
    "text": (b'"daemon.info"', INVALID_REQUEST),
    "a list": (b"[]", INVALID_REQUEST),
    "no method": (b'{"id": 1}', INVALID_REQUEST),
    "a number for a method": (b'{"id": 1, "method": 1}', INVALID_REQUEST),
    "an unknown method": (b'{"id": 1, "method": "daemon.stop"}', METHOD_NOT_FOUND),
    "a list for params": (b'{"id": 1, "method": "daemon.info", "params": [1]}', INVALID_PARAMS),
    "an unknown parameter": (
        b'{"id": 1, "method": "daemon.info", "params": {"of": "you"}}',
        INVALID_PARAMS,
    ),
}
CALL = b'{"jsonrpc": "2.0", "id": "mine", "method": "daemon.info"}'


@pytest.mark.parametrize(("line", "code"), JUNK.values(), ids=JUNK)
def test_junk_on_the_control_socket_is_answered_with_its_error(
    running: Daemon, line: bytes, code: int
) -> None:
    with Control(running.data_dir / "peerstore.sock") as control:
        answer = control.ask(line)
        assert answer["jsonrpc"] == "2.0"
        # JSON-RPC 2.0: null where the id can't be told, as in what is no request.
        assert answer["id"] == (None if code in (PARSE_ERROR, INVALID_REQUEST) else 1)
        assert answer["error"]["code"] == code
        assert answer["error"]["message"]
        # The connection is as good as before.
        answer = control.ask(CALL)
        assert answer["id"] == "mine"
        assert answer["result"]["uris"] == running.document["uris"]


def test_a_notification_is_not_answered(running: Daemon) -> None:
    with Control(running.data_dir / "peerstore.sock") as control:
        control.say(b'{"jsonrpc": "2.0", "method": "daemon.info"}\n{"method": "no.such"}\n')
        assert control.ask(CALL)["id"] == "mine"


def test_a_line_without_end_costs_its_connection_alone(running: Daemon) -> None:
    path = running.data_dir / "peerstore.sock"
    with Control(path) as other, Control(path) as control:
        control.say(b" " * (2 * MAX_LINE))
        assert control.hear() == b""
        assert other.ask(CALL)["id"] == "mine"


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(running: Daemon) -> None:
    path = running.data_dir / "peerstore.sock"
    for piece in (b"", CALL[:10], CALL + b"\n", CALL + b"\n" + CALL):
        with Control(path) as control:
            control.say(piece)
    with Control(path) as control:
        assert control.ask(CALL)["id"] == "mine"


def test_a_batch_is_answered_by_a_batch(running: Daemon) -> None:
    """JSON-RPC 2.0, section 6: in one array, and nothing for notifications."""
    call, unknown, notification = (
        {"jsonrpc": "2.0", "id": 1, "method": "peers.list"},
        {"jsonrpc": "2.0", "id": "two", "method": "no.such"},
        {"jsonrpc": "2.0", "method": "daemon.info"},
    )
    with Control(running.data_dir / "peerstore.sock") as control:
        answers = control.ask(json.dumps([call, notification, unknown, 7, []]).encode())
        assert [answer["id"] for answer in answers] == [1, "two", None, None]
        assert answers[0]["result"] == {"items": []}
        codes = [answer["error"]["code"] for answer in answers[1:]]
        assert codes == [METHOD_NOT_FOUND, INVALID_REQUEST, INVALID_REQUEST]
        # A batch of notifications alone is not answered at all.
        control.say(json.dumps([notification, notification]).encode() + b"\n")
        assert control.ask(CALL)["id"] == "mine"


def test_clients_that_stay_keep_no_command_out_and_no_peer(running: Daemon) -> None:
    path = running.data_dir / "peerstore.sock"
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Control(path)) for _ in range(MAX_CLIENTS)]
        for client in clients:
            assert client.ask(CALL)["id"] == "mine"
        # The idlest gives way.
        assert said(running.command("info")).startswith("All is well.")
        assert clients[0].hear() == b""
        assert clients[-1].ask(CALL)["id"] == "mine"
        fill(running.address)


@pytest.fixture
async def control_server(tmp_path: Path) -> AsyncIterator[Path]:
    """A control socket with methods that fail."""

    async def refuse() -> None:
        raise ControlError("not today")

    async def fail() -> None:
        raise ZeroDivisionError("a mistake")

    path = tmp_path / "control.sock"
    server = ControlServer(path, {"test.refuse": refuse, "test.fail": fail})
    await server.start()
    yield path
    server.close()


@pytest.mark.parametrize(
    ("method", "code", "message"),
    [("test.refuse", REFUSED, "not today"), ("test.fail", INTERNAL_ERROR, "a mistake")],
)
async def test_a_method_that_fails_is_answered_with_its_error(
    control_server: Path, method: str, code: int, message: str
) -> None:
    reader, writer = await asyncio.open_unix_connection(control_server)
    for number in range(2):
        writer.write(json.dumps({"id": number, "method": method}).encode() + b"\n")
        answer = json.loads(await reader.readline())
        assert (answer["id"], answer["error"]["code"]) == (number, code)
        assert message in answer["error"]["message"]
    writer.close()
    await writer.wait_closed()


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose control socket would have too long a path."""
    daemon = Daemon(tmp_path_factory.mktemp("deep") / ("d" * 100) / "data")
    daemon.data_dir.parent.mkdir()
    daemon.start()
    fill(daemon.address)
    try:
        yield daemon
    finally:
        daemon.close()


def test_a_path_too_long_for_the_control_socket_is_a_warning_and_peers_are_served(
    deep: Daemon,
) -> None:
    (warning,) = [event for event in deep.events if event["level"] == "warning"]
    assert warning["event"] == "no_control_socket"
    assert str(deep.data_dir / "peerstore.sock") in warning["error"]
    assert "--data-dir" in warning["error"]
    assert len(answered(deep.command("--json", "backups", "list"))["items"]) == 2


def test_info_works_without_a_control_socket(deep: Daemon) -> None:
    document = answered(deep.command("--json", "info"))
    assert (document["running"], document["connections"]) == (True, None)
    assert document["backups"] == 2
    assert "running, " in said(deep.command("info"))
