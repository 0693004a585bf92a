"""The commands about peers and channels, and those that ask the daemon, as an operator runs them.

`settle` makes the town that the tests of all commands share: peers with a past, and a daemon that
was stopped. A running one is a copy of it, to which two more peers hold connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import click.testing
import pytest
from click.testing import CliRunner

from peerstore.cli import cli
from peerstore.client import (
    BOTH_DIALECTS,
    DEFAULT_FEATURES,
    Client,
    ConnectionClosedError,
    StorageRefusedError,
)
from peerstore.control import call
from peerstore.errors import ProbeError
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import Network, NodeAddress
from tests.daemon import HANG, Daemon, Result, command_line, environment, run_command
from tests.helpers import key_pair
from tests.test_cli_store import (
    CLOSING_SIGNED,
    COMMITMENT_SIGNED,
    FUNDING_SIGNED,
    SHUTDOWN,
    channel_message,
)

DAY = 86400
SLACK = 3600
"""Seconds by which everything is older than its age says, so that no age changes under a test."""

NODE = key_pair(0x30)
ALICE, BOB, CAROL, DAVE = map(key_pair, (0x41, 0x42, 0x43, 0x44))
ERIN = key_pair(0x45)
"""A stranger: connected where the daemon runs, and nothing stored."""
FRANK = key_pair(0x46)
"""Never seen."""

A, B, C, D, E, F = (key.node_id.hex() for key in (ALICE, BOB, CAROL, DAVE, ERIN, FRANK))
OPEN, CLOSED = bytes((0xA1,)) * 32, bytes((0xB2,)) * 32
GOOD, SHRUNK = b"good" * 200, b"empty"
CORE_LIGHTNING = 1 << 163
"""A feature bit that Core Lightning alone sets."""

AWAY = {A: 3 * DAY, B: 15 * DAY, C: 30 * DAY, D: 0}
NOT_SERVED = "this node does not keep backups for you"


class Visit(NamedTuple):
    """What a peer saw of the daemon."""

    offered: bool
    given_back: bytes | None
    refusal: str


async def meet(address: NodeAddress, key: KeyPair, blob: bytes | None = None) -> Visit:
    """Connect, see what is given back, and store if there is a blob; offered or not."""
    async with await Client.connect(address, key) as client:
        try:
            await client.init(Network.REGTEST)
            offered = True
        except ProbeError:
            offered = False
        given_back, refusal = await client.retrieve(), ""
        if blob is not None:
            await client.store(blob)
            try:
                await client.confirm()
            except StorageRefusedError as error:
                refusal = str(error)
        return Visit(offered, given_back, refusal)


def visit(daemon: Daemon, key: KeyPair, blob: bytes | None = None) -> Visit:
    return asyncio.run(meet(daemon.address, key, blob))


async def fill(address: NodeAddress) -> None:
    """The past of the town."""
    for blob in (GOOD, SHRUNK):
        async with await Client.connect(address, ALICE) as client:
            await client.init(Network.REGTEST, offered=DEFAULT_FEATURES | CORE_LIGHTNING)
            await client.store(blob)
            await client.confirm()
    async with await Client.connect(address, BOB) as client:
        await client.init(Network.REGTEST, offered=BOTH_DIALECTS)
        await client.store_node_backup(b"the node of Bob")
        await client.confirm()
        for channel, numbers in (
            (OPEN, (FUNDING_SIGNED, COMMITMENT_SIGNED)),
            (CLOSED, (COMMITMENT_SIGNED, SHUTDOWN, CLOSING_SIGNED)),
        ):
            messages = [channel_message(number, channel) for number in numbers]
            await client.store_channel_backup(b"a channel of Bob", *messages)
            await client.confirm()
    async with await Client.connect(address, CAROL) as client:
        await client.init(Network.REGTEST)
        await client.store(b"all that Carol has")
        await client.confirm()
        await client.store_node_backup(b"her init does not ask for this")
        with pytest.raises(StorageRefusedError):
            await client.confirm()
    await meet(address, DAVE, bytes(65531))


def grow_old(database: Path) -> None:
    """Give everything an age: peers by AWAY, the closed channel due, Carol denied."""
    now, seen = int(time.time()) - SLACK, 100 * DAY
    with closing(sqlite3.connect(database)) as connection, connection:
        run = connection.execute
        run("UPDATE meta SET seen = ?, aged = ?", (seen, seen))
        run("UPDATE hold SET until = ?", (seen + DAY,))
        run("UPDATE alarm SET raised_at = ?, last_at = ?", (now - 3 * DAY, now - 3 * DAY))
        run("UPDATE refusal SET first_at = :at, last_at = :at", {"at": now - 30 * DAY})
        for node_id, away in AWAY.items():
            key, at = bytes.fromhex(node_id), now - away
            run(
                "UPDATE peer SET address = '203.0.113.7:9735', first_seen = ?, first_seen_at = ?,"
                " last_seen = ?, last_seen_at = ?, established = ? WHERE node_id = ?",
                (seen - 40 * DAY, now - 40 * DAY, seen - away, at, node_id != A, key),
            )
            run(
                "UPDATE backup SET stored_at = ?, last_seen_at = ? WHERE node_id = ?", (at, at, key)
            )
        run("UPDATE peer SET last_aged = last_seen")
        run(
            "UPDATE channel SET closed = ?, closed_at = ? WHERE closed IS NOT NULL",
            (seen - 15 * DAY, now - 15 * DAY),
        )
        run("INSERT INTO rule VALUES (?, 'deny', ?)", (CAROL.node_id, now))


def settle(directory: Path) -> Daemon:
    """The town, with its daemon stopped."""
    daemon = Daemon(directory / "data")
    daemon.data_dir.mkdir(mode=0o700)
    key_file = daemon.data_dir / "node.key"
    assert NODE.private is not None
    key_file.write_text(NODE.private.secret.hex())
    key_file.chmod(0o600)
    daemon.start()
    asyncio.run(fill(daemon.address))
    daemon.close()
    grow_old(daemon.data_dir / "peerstore.db")
    return daemon


def copy_of(daemon: Daemon, directory: Path) -> Daemon:
    """A stopped daemon on a copy of another's data, which a test may spoil."""
    shutil.copytree(daemon.data_dir, directory / "copy")
    return Daemon(directory / "copy")


@contextlib.contextmanager
def staying(daemon: Daemon, *keys: KeyPair) -> Iterator[None]:
    """Peers that stay connected, in a thread of their own, until the daemon stops."""
    met = threading.Semaphore(0)

    async def stay(key: KeyPair) -> None:
        with contextlib.suppress(ConnectionClosedError):
            async with await Client.connect(daemon.address, key, timeout=10 * HANG) as client:
                await client.init(Network.REGTEST)
                await client.retrieve()
                met.release()
                while True:
                    await client.receive()

    async def all_of_them() -> None:
        await asyncio.gather(*map(stay, keys))

    thread = threading.Thread(target=asyncio.run, args=[all_of_them()])
    thread.start()
    try:
        for _ in keys:
            assert met.acquire(timeout=HANG)
        yield
    finally:
        daemon.close()
        thread.join()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """The town; tests must leave it as it is."""
    return settle(tmp_path_factory.mktemp("stopped"))


@pytest.fixture(scope="module")
def running(stopped: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A copy of it that runs, with Dave and Erin connected; tests must leave it as it is."""
    daemon = copy_of(stopped, tmp_path_factory.mktemp("running"))
    daemon.start()
    with staying(daemon, DAVE, ERIN):
        yield daemon


@pytest.fixture(params=["running", "stopped"])
def either(request: pytest.FixtureRequest) -> Daemon:
    """The one, then the other."""
    daemon: Daemon = request.getfixturevalue(request.param)
    return daemon


@pytest.fixture
def idle(stopped: Daemon, tmp_path: Path) -> Iterator[Daemon]:
    """A stopped copy of the town that a test may start and change."""
    daemon = copy_of(stopped, tmp_path)
    yield daemon
    daemon.close() if daemon.runs else None


@pytest.fixture(params=["running", "stopped"])
def changing(request: pytest.FixtureRequest, idle: Daemon) -> Daemon:
    """A copy that runs, then one that does not; nobody is connected."""
    if request.param == "running":
        idle.start()
    return idle


def done(daemon: Daemon, *words: str) -> Any:
    """The document of a command that did what it was asked for."""
    result = daemon.command(*words, "--json")
    assert (result.code, result.stderr) == (0, ""), result
    return result.document


def said(daemon: Daemon, *words: str) -> str:
    """What it tells people."""
    result = daemon.command(*words)
    assert (result.code, result.stderr) == (0, ""), result
    return result.stdout


def refused(result: Result, *words: str, code: int = 1) -> str:
    """The one line that says why a command failed, and nothing on stdout."""
    assert (result.code, result.output) == (code, b""), result
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    for word in words:
        assert word in line
    return line


def ids(document: Any) -> list[str]:
    return [row["node_id"] for row in document["items"]]


# Lists


LISTED: list[tuple[str, list[str]]] = [
    ("peers list", [C, A, B, D]),
    ("peers list --filter connected=no", [C, A, B, D]),
    ("peers list --filter connected=yes", []),
    ("peers list --filter established=no", [A]),
    ("peers list --filter rule=deny", [C]),
    ("peers list --filter rule=none", [A, B, D]),
    ("peers list --filter rule=allow", []),
    ("peers list --filter away=7d", [C, B]),
    ("peers list --filter away=20d", [C]),
    ("peers list --filter away=1d --filter rule=none", [A, B]),
    ("peers list --filter away=7d --limit 1", [C]),
    ("peers list --sort last_seen", [C, B, A, D]),
    ("peers list --sort bytes --limit 2", [D, A]),
    ("peers list --sort backups --limit 1", [B]),
    ("peers list --sort first_seen --limit 9", [C, A, B, D]),
    ("backups list", [C, A, B, B, B, D]),
    ("backups list --filter kind=node_backup", [B]),
    ("backups list --filter held=yes", [A]),
    ("backups list --filter held=no --limit 2", [C, B]),
    ("backups list --filter pinned=yes", []),
    ("backups list --filter age=20d", [C]),
    ("backups list --filter age=1d --filter kind=peer_storage --limit 2", [C, A]),
    ("backups list --sort size --limit 1", [D]),
    ("backups list --sort stored_at --limit 2", [C, B]),
    ("backups list --sort revision --limit 3", [A, B, B]),
    (f"backups list {B[:6]} --limit 2", [B, B]),
    ("channels list", [B, B]),
    ("channels list --filter state=closed", [B]),
    ("channels list --filter state=closing", []),
    (f"channels list {B} --limit 1", [B]),
    (f"channels list {A}", []),
    ("alarms list", [A]),
    ("alarms list --filter kind=shrink --limit 1", [A]),
    ("alarms list --filter kind=damaged", []),
]
"""What lists show of the town, in order: by node id where nothing else is asked for."""
ORDER = [C, A, B, D]


def here(daemon: Daemon, line: str) -> click.testing.Result:
    """Run a command in this process, where there are too many for a process each."""
    options = command_line(daemon.data_dir, daemon.settings)[3:]
    return CliRunner().invoke(cli, ["--json", *options, *line.split()])


@pytest.mark.parametrize(("line", "expected"), LISTED, ids=[line for line, _ in LISTED])
def test_lists_are_filtered_sorted_and_cut(stopped: Daemon, line: str, expected: list[str]) -> None:
    result = here(stopped, line)
    assert (result.exit_code, result.stderr) == (0, "")
    assert ids(json.loads(result.stdout)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("peers list", [*ORDER, E]),
        ("peers list --filter connected=yes", [D, E]),
        ("peers list --filter connected=yes --limit 1", [D]),
        ("peers list --filter connected=no", [n for n in ORDER if n != D]),
        ("peers list --filter away=1s", [n for n in ORDER if n != D]),
    ],
)
def test_who_is_connected_is_in_the_list(running: Daemon, line: str, expected: list[str]) -> None:
    assert ids(json.loads(here(running, line).stdout)) == expected


@pytest.mark.parametrize(
    "line",
    ["backups list", "channels list", "alarms list", f"backups history {A}", f"peers show {C}"],
)
def test_commands_say_the_same_whether_the_daemon_runs_or_not(
    running: Daemon, stopped: Daemon, line: str
) -> None:
    def document(daemon: Daemon) -> Any:
        found = json.loads(here(daemon, line).stdout)
        found.pop("away_seconds", None)  # where the daemon runs, time passes
        return found

    assert document(running) == document(stopped)


def test_people_see_who_is_connected_and_who_is_away(running: Daemon) -> None:
    header, *lines = said(running, "peers", "list").splitlines()
    assert header.split()[0] == "NODE"
    shown = {line.split()[0]: line for line in lines}
    # Through a pipe ids are whole.
    assert set(shown) == {A, B, C, D, E}
    assert "connected" in shown[D]
    assert "connected" in shown[E]
    assert "15 d ago" in shown[B]
    assert "Core Lightning" in shown[A]
    assert "64.0 KiB" in shown[D]
    assert "deny" in shown[C]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("peers list --filter connected", ["connected", "KEY=VALUE"]),
        ("peers list --filter colour=red", ["colour", "established"]),
        ("peers list --filter connected=maybe", ["yes or no"]),
        ("peers list --filter rule=perhaps", ["allow, deny", "none"]),
        ("peers list --filter away=soon", ["away=soon"]),
        ("peers list --sort colour", ["colour", "last_seen"]),
        ("peers list --limit 0", ["--limit"]),
        ("peers list --limit many", ["--limit"]),
        ("backups list --filter kind=none", ["kind", "peer_storage"]),
        ("backups list --filter pinned=1", ["yes or no"]),
        ("backups list --filter age=-1d", ["age=-1d"]),
        ("backups list --filter size=1", ["size", "held"]),
        ("channels list --filter state=opne", ["state", "closing"]),
        ("alarms list --filter kind=shrunk", ["kind", "shrink"]),
        ("alarms list --limit -1", ["--limit"]),
        ("completion tcsh", ["tcsh", "bash"]),
    ],
)
def test_a_list_that_can_not_be_is_a_wrong_usage(
    stopped: Daemon, line: str, words: list[str]
) -> None:
    result = here(stopped, line)
    assert (result.exit_code, result.stdout) == (2, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    for word in words:
        assert word in last


# The story of a peer


def test_show_tells_of_a_shrunk_backup(either: Daemon) -> None:
    story = done(either, "peers", "show", A[:10].upper())
    assert (story["node_id"], story["client"]) == (A, "Core Lightning")
    assert story["address"] == "203.0.113.7:9735"
    assert "experimental_splice (163)" in story["features"]
    assert "option_static_remotekey (13)" in story["features"]
    assert 3 * DAY <= story["away_seconds"] < 4 * DAY
    good, shrunk = story["backups"]
    assert (good["size"], good["pinned_by"], good["held"]) == (len(GOOD), "data loss", True)
    assert (shrunk["size"], shrunk["current"], shrunk["pinned"]) == (len(SHRUNK), True, False)
    assert (story["backups_count"], story["bytes"]) == (1, len(GOOD) + len(SHRUNK))
    (alarm,) = story["alarms"]
    assert (alarm["kind"], alarm["node_id"]) == ("shrink", A)
    assert (story["served"], story["established"], story["refusals"]) == (True, False, [])
    text = said(either, "peers", "show", A)
    for words in (
        *(A, "last seen 3 d ago", "40 d ago", "203.0.113.7:9735", "Core Lightning", "stranger"),
        *("pinned (data loss), held", f"{len(GOOD)} B", "current", "shrink", "was given back"),
        "option_static_remotekey (13)",
    ):
        assert words in text


def test_show_tells_of_channels(stopped: Daemon) -> None:
    story = done(stopped, "peers", "show", B)
    kinds = [(row["kind"], row["channel_id"]) for row in story["backups"]]
    assert kinds == [
        ("node_backup", None),
        ("channel_backup", OPEN.hex()),
        ("channel_backup", CLOSED.hex()),
    ]
    states = {row["channel_id"]: row for row in story["channels"]}
    assert (states[OPEN.hex()]["state"], states[CLOSED.hex()]["state"]) == ("open", "closed")
    assert states[OPEN.hex()]["deleted_in_seconds"] is None
    assert states[CLOSED.hex()]["deleted_in_seconds"] == 0
    assert story["client"] is None
    text = said(stopped, "peers", "show", B)
    for words in (OPEN.hex(), CLOSED.hex(), "closed", "15 d", "want_peer_backup_storage (41)"):
        assert words in text


def test_show_tells_of_refusals_and_why(stopped: Daemon) -> None:
    story = done(stopped, "peers", "show", C)
    (refusal,) = story["refusals"]
    assert refusal["count"] == 1
    assert "your init does not set" in refusal["reason"]
    assert (story["rule"], story["served"]) == ("deny", False)
    assert story["not_served_because"] == NOT_SERVED
    text = said(stopped, "peers", "show", C)
    for words in ("30 d ago", "your init does not set", f"no: {NOT_SERVED}", "deny"):
        assert words in text


def test_show_tells_who_is_connected(running: Daemon) -> None:
    story = done(running, "peers", "show", D)
    assert (story["connected"], story["away_seconds"]) == (True, 0)
    assert isinstance(story["connected_seconds"], int)
    assert story["address"].startswith("127.0.0.1:")
    assert "connected for" in said(running, "peers", "show", D)


def test_show_tells_of_a_stranger_while_it_is_connected(running: Daemon, stopped: Daemon) -> None:
    story = done(running, "peers", "show", E[:8])
    assert (story["node_id"], story["connected"], story["backups"]) == (E, True, [])
    assert (story["first_seen_at"], story["served"]) == (None, True)
    # The daemon has its init: what it offers is known.
    assert "option_static_remotekey (13)" in story["features"]
    assert E in said(running, "peers", "show", E)
    refused(stopped.command("peers", "show", E[:8]), E[:8], "nothing is stored")


# What names no peer


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["show", F], "nothing is stored"),
        (["show", A[:3]], "more than one"),
        (["show", "xyz"], "hexadecimal"),
        (["disconnect", B], "not connected"),
        (["disconnect", F], F),
        (["allow", "0"], "more than one"),
        (["allow", "zz" * 33], "66 hexadecimal"),
        (["deny", "04" * 33], "66 hexadecimal"),
        (["forget", A[:7], "--yes"], "at least 8 digits"),
        (["forget", E, "--yes"], "nothing is stored"),
        (["connect", "nonsense"], "node_id@host:port"),
        (["connect", f"02{'ff' * 32}@127.0.0.1:9"], "point on the curve"),
        (["connect", f"{F}@127.0.0.1:1"], "can't connect"),
        (["connect", f"{NODE.node_id.hex()}@127.0.0.1:9"], "itself"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_what_names_no_peer_is_one_line(running: Daemon, words: list[str], problem: str) -> None:
    refused(running.command("peers", *words), problem)


# What needs the daemon

NEED_IT = pytest.mark.parametrize(
    "words",
    [["peers", "connect", f"{F}@127.0.0.1:9"], ["peers", "disconnect", D], ["reload"]],
    ids=lambda words: " ".join(words[:2]),
)


@NEED_IT
def test_what_needs_the_daemon_says_so_and_exits_3(stopped: Daemon, words: list[str]) -> None:
    refused(stopped.command(*words), "peerstore run", str(stopped.data_dir), code=3)


def test_the_socket_of_a_dead_daemon_is_no_daemon(killed: Daemon) -> None:
    assert (killed.data_dir / "peerstore.sock").exists()
    refused(killed.command("reload"), "peerstore run", code=3)


def test_what_needs_no_daemon_works_beside_the_socket_of_a_dead_one(killed: Daemon) -> None:
    assert ids(done(killed, "peers", "list")) == ORDER
    assert done(killed, "peers", "allow", A)["rule"] == "allow"
    assert done(killed, "peers", "show", A)["rule"] == "allow"
    assert done(killed, "peers", "allow", A, "--undo")["rule"] is None


@pytest.fixture(scope="module")
def killed(stopped: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """A copy whose daemon was killed."""
    daemon = copy_of(stopped, tmp_path_factory.mktemp("killed"))
    daemon.start()
    daemon.kill()
    return daemon


def test_connect_and_disconnect(idle: Daemon, daemon: Daemon) -> None:
    """Two daemons, of which one dials the other."""
    idle.start()
    uri = daemon.document["uris"][0]
    node_id = daemon.document["node_id"]
    for _ in range(2):  # a connection that is there is enough
        made = done(idle, "peers", "connect", uri)
        assert (made["node_id"], made["inbound"], made["done"]) == (node_id, False, True)
    assert ids(done(idle, "peers", "list", "--filter", "connected=yes")) == [node_id]
    (row,) = done(daemon, "peers", "list")["items"]
    assert (row["node_id"], row["connected"]) == (NODE.node_id.hex(), True)
    assert done(idle, "peers", "disconnect", node_id[:9])["node_id"] == node_id
    while done(daemon, "peers", "list")["items"]:
        pass
    assert ids(done(idle, "peers", "list", "--filter", "connected=yes")) == []
    assert node_id in said(idle, "peers", "connect", uri)


# Who is served


def test_deny_takes_no_more_and_gives_back_all_the_same(idle: Daemon) -> None:
    idle.start()

    async def denied_while_connected() -> None:
        async with await Client.connect(idle.address, DAVE) as client:
            await client.init(Network.REGTEST)
            await client.store(b"before" * 10000)
            await client.confirm()
            await asyncio.to_thread(done, idle, "peers", "deny", D[:8])
            await client.store(b"after" * 10000)
            with pytest.raises(StorageRefusedError, match=NOT_SERVED):
                await client.confirm()

    asyncio.run(denied_while_connected())
    for _ in range(2):  # before a restart and after it
        seen = visit(idle, DAVE, b"again" * 10000)
        assert (seen.offered, seen.given_back) == (False, b"before" * 10000)
        assert NOT_SERVED in seen.refusal
        assert done(idle, "peers", "list", "--filter", "rule=deny")["items"] != []
        idle.stop()
        idle.start()
    refusals = {row["reason"]: row["count"] for row in done(idle, "peers", "show", D)["refusals"]}
    assert refusals == {NOT_SERVED: 3}
    assert done(idle, "peers", "deny", D, "--undo")["rule"] is None
    assert visit(idle, DAVE, b"served" * 10000) == (True, b"before" * 10000, "")


def test_deny_and_allow_without_the_daemon_hold_when_it_starts(idle: Daemon) -> None:
    done(idle, "peers", "deny", D)
    done(idle, "peers", "allow", C)
    idle.start()
    assert NOT_SERVED in visit(idle, DAVE, b"no").refusal
    assert visit(idle, CAROL, b"welcome again").refusal == ""


def test_allow_serves_beside_an_allow_list_and_over_a_restart(idle: Daemon) -> None:
    in_config = f'policy.allow=["{A}"]'
    idle.settings = (*idle.settings, "policy.serve=allowlist", in_config)
    idle.start()
    assert visit(idle, ALICE, GOOD).refusal == ""
    assert "operator has allowed" in visit(idle, FRANK, b"me too").refusal
    assert done(idle, "peers", "allow", F)["rule"] == "allow"
    assert "any mode" in said(idle, "peers", "allow", D[:4])
    for _ in range(2):
        assert visit(idle, FRANK, b"the blob of Frank")[::2] == (True, "")
        assert visit(idle, DAVE, bytes(65531))[::2] == (True, "")
        # What is stored is given back, also to who is not served.
        bob = visit(idle, CAROL, b"no")
        assert (bob.offered, bob.given_back) == (False, b"all that Carol has")
        idle.stop()
        idle.start()
    done(idle, "peers", "allow", F, "--undo")
    assert visit(idle, FRANK, b"no more")[:2] == (False, b"the blob of Frank")


def test_deny_in_the_configuration_wins_over_allow(idle: Daemon) -> None:
    idle.settings = (*idle.settings, f'policy.deny=["{D}"]')
    result = idle.command("peers", "allow", D, "--json")
    assert (result.code, result.document["rule"]) == (0, "allow")
    assert "policy.deny" in result.stderr
    idle.start()
    assert NOT_SERVED in visit(idle, DAVE, b"no").refusal
    story = done(idle, "peers", "show", D)
    assert (story["rule"], story["served"]) == ("allow", False)


def test_a_connected_stranger_can_be_denied_by_the_beginning_of_its_id(idle: Daemon) -> None:
    idle.start()

    async def connected() -> None:
        async with await Client.connect(idle.address, ERIN) as client:
            await client.init(Network.REGTEST)
            await client.retrieve()
            denied = await asyncio.to_thread(done, idle, "peers", "deny", E[:16])
            assert denied["node_id"] == E
            story = await asyncio.to_thread(done, idle, "peers", "show", E[:16])
            assert (story["rule"], story["served"]) == ("deny", False)

    asyncio.run(connected())


# What is gone for good


def answer(daemon: Daemon, text: str | None, *words: str) -> tuple[int, str]:
    """Run a command with an answer on stdin, None for a closed one; its code and stderr."""
    process = subprocess.run(
        [*command_line(daemon.data_dir, daemon.settings), *words],
        env=environment(daemon.data_dir.parent),
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert "Traceback" not in process.stderr
    return process.returncode, process.stderr


DESTRUCTIVE = pytest.mark.parametrize(
    "words",
    [["peers", "forget", A], ["backups", "delete", A, "--revision", "1"]],
    ids=lambda words: " ".join(words[:2]),
)


@DESTRUCTIVE
@pytest.mark.parametrize("text", ["n\n", None], ids=["no", "closed stdin"])
def test_without_a_yes_nothing_is_deleted(
    stopped: Daemon, words: list[str], text: str | None
) -> None:
    code, stderr = answer(stopped, text, *words)
    assert f"{A} for good?" in stderr
    assert [row["size"] for row in done(stopped, "backups", "history", A)["items"]] == [
        len(GOOD),
        len(SHRUNK),
    ]
    # A refusal like any other: nobody has pressed Ctrl-C.
    assert code == 1
    assert "Error: nothing is deleted" in stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("changing", "text"),
    [("running", "y\n"), ("stopped", None)],
    ids=["running, asked", "stopped, --yes"],
    indirect=["changing"],
)
def test_forget_really_forgets(changing: Daemon, text: str | None) -> None:
    words = ["peers", "forget", A[:8], *([] if text else ["--yes"])]
    code, stderr = answer(changing, text, *words)
    assert code == 0
    assert ("805 B" in stderr) == (text is not None)
    refused(changing.command("peers", "show", A), "nothing is stored")
    assert A not in ids(done(changing, "backups", "list"))
    assert done(changing, "alarms", "list") == {"items": []}
    assert done(changing, "info")["peers"] == 3
    with closing(sqlite3.connect(changing.data_dir / "peerstore.db")) as database:
        for table in ("backup", "peer", "hold", "refusal"):
            count = f"SELECT count(*) FROM {table} WHERE node_id = ?"  # noqa: S608
            assert database.execute(count, (ALICE.node_id,)).fetchone() == (0,)
    assert done(changing, "verify")["ok"] is True
    if not changing.runs:
        changing.start()
    assert visit(changing, ALICE, b"anew") == (True, None, "")
    assert done(changing, "peers", "show", A)["established"] is False


async def test_who_is_forgotten_while_connected_can_store_anew(idle: Daemon) -> None:
    await asyncio.to_thread(idle.start)
    async with await Client.connect(idle.address, DAVE) as client:
        await client.init(Network.REGTEST)
        assert await client.retrieve() == bytes(65531)
        forgotten = await asyncio.to_thread(done, idle, "peers", "forget", D, "--yes")
        assert forgotten["bytes"] == 65531
        await client.store(b"new")
        await client.confirm()
    assert (await meet(idle.address, DAVE)).given_back == b"new"


def test_a_rule_outlives_what_is_forgotten(idle: Daemon) -> None:
    done(idle, "peers", "forget", C, "--yes")
    idle.start()
    assert NOT_SERVED in visit(idle, CAROL, b"me again").refusal


# Retention


def test_prune_deletes_the_backup_of_a_closed_channel(changing: Daemon) -> None:
    before = done(changing, "info")
    for words in (["--dry-run"], []):
        assert done(changing, "backups", "list", B)["items"][-1]["channel_id"] == CLOSED.hex()
        (due,) = done(changing, "prune", *words)["items"]
        assert (due["node_id"], due["kind"], due["versions"]) == (B, "channel_backup", 1)
        assert (due["channel_id"], due["bytes"]) == (CLOSED.hex(), 16)
        assert due["reason"] == "the channel is closed"
    assert [row["channel_id"] for row in done(changing, "channels", "list")["items"]] == [
        OPEN.hex()
    ]
    assert done(changing, "prune") == {"items": []}
    assert said(changing, "prune", "--dry-run") == "Nothing is due.\n"
    after = done(changing, "info")
    assert (after["backups"], after["bytes"]) == (before["backups"] - 1, before["bytes"] - 16)


def test_prune_says_what_it_would_and_what_it_did(idle: Daemon) -> None:
    dry = said(idle, "prune", "--dry-run")
    assert CLOSED.hex() in dry
    assert "16 B would be deleted." in dry
    assert "16 B are deleted." in said(idle, "prune")


def test_prune_spares_what_an_operator_has_pinned_or_holds(idle: Daemon) -> None:
    """And takes who is away for too long, once that is configured; Bob still has a channel."""
    idle.settings = (*idle.settings, "retention.inactive_time=2d")
    done(idle, "backups", "pin", C, "--revision", revision_of(idle, C))
    options = ("--channel-id", CLOSED.hex())
    done(idle, "backups", "hold", B, *options, "--revision", revision_of(idle, B, CLOSED.hex()))
    (due,) = done(idle, "prune", "--dry-run")["items"]
    assert (due["node_id"], due["versions"]) == (A, 2)
    assert due["reason"] == "the peer has been away for inactive_time"
    assert done(idle, "prune")["items"] == [due]
    assert ids(done(idle, "peers", "list")) == [C, B, D]


def revision_of(daemon: Daemon, node_id: str, channel_id: str | None = None) -> str:
    """The current revision of a peer's backup, or of that of a channel."""
    rows = done(daemon, "backups", "list", node_id)["items"]
    return next(str(row["revision"]) for row in rows if row["channel_id"] == channel_id)


async def test_prune_spares_who_is_connected(idle: Daemon) -> None:
    idle.settings = (*idle.settings, "retention.inactive_time=10d")
    await asyncio.to_thread(idle.start)
    async with await Client.connect(idle.address, CAROL) as client:
        with contextlib.suppress(ProbeError):  # she is denied, and not offered storage
            await client.init(Network.REGTEST)
        await client.retrieve()
        gone = await asyncio.to_thread(done, idle, "prune")
        assert {row["node_id"] for row in gone["items"]} == {B}


# Another configuration, without a restart


def wait_for(daemon: Daemon, event: str, count: int = 1) -> dict[str, Any]:
    """The newest such event of the log, once there are so many."""
    while len(found := [e for e in daemon.events if e["event"] == event]) < count:
        # Asked over its socket: a command would read the configuration, which may be a wrong one.
        call(daemon.data_dir / "peerstore.sock", "daemon.info")
    return found[-1]


def by_reload(daemon: Daemon, _times: int) -> dict[str, Any]:
    document: dict[str, Any] = done(daemon, "reload")
    return document


def by_signal(daemon: Daemon, times: int) -> dict[str, Any]:
    os.kill(daemon.process_id, signal.SIGHUP)
    return wait_for(daemon, "reloaded", times)


def cut_off(daemon: Daemon) -> None:
    """Connect, say no init, and see the end of it."""

    async def connect() -> None:
        async with await Client.connect(daemon.address, FRANK, timeout=10 * HANG) as client:
            while True:
                await client.receive()

    with pytest.raises(ConnectionClosedError):
        asyncio.run(connect())


@pytest.mark.parametrize("reload", [by_reload, by_signal], ids=["reload", "SIGHUP"])
def test_policy_limits_and_log_level_change_without_a_restart(
    idle: Daemon, reload: Callable[[Daemon, int], dict[str, Any]]
) -> None:
    file = idle.data_dir / "config.toml"
    # Without the reload the test would hang on this one.
    file.write_text('[limits]\ninit_timeout = "1h"\n')
    idle.start()
    assert visit(idle, FRANK, b"served").refusal == ""
    assert not any(event["level"] == "debug" for event in idle.events)
    file.write_text(
        '[policy]\nserve = "allowlist"\n[limits]\ninit_timeout = "50ms"\n[log]\nlevel = "debug"\n'
    )
    followed = reload(idle, 1)
    assert followed["changed"] == ["policy.serve", "limits.init_timeout", "log.level"]
    assert followed["needs_restart"] == []
    assert "operator has allowed" in visit(idle, FRANK, b"not served").refusal
    cut_off(idle)
    assert any(event["level"] == "debug" for event in idle.events)
    # A wrong file changes nothing, and says what is wrong.
    file.write_text('[policy]\nserve = "nobody"\n')
    if reload is by_reload:
        refused(idle.command("reload"), str(file), "policy.serve")
    else:
        os.kill(idle.process_id, signal.SIGHUP)
        assert "policy.serve" in wait_for(idle, "reload_failed")["error"]
    assert "operator has allowed" in visit(idle, FRANK, b"not served").refusal
    # The same daemon all the time, and back to the defaults.
    file.unlink()
    assert "policy.serve" in reload(idle, 2)["changed"]
    assert visit(idle, FRANK, b"served again").refusal == ""


def test_reload_follows_the_quotas_of_the_store(idle: Daemon) -> None:
    file = idle.data_dir / "config.toml"
    idle.start()
    file.write_text('[store]\nmin_free_space = "1000000000GiB"\n')
    assert "In force: store.min_free_space" in said(idle, "reload")
    assert visit(idle, FRANK, b"one too many").refusal


def test_what_needs_a_restart_is_named(idle: Daemon) -> None:
    idle.start()
    assert said(idle, "reload") == "Nothing has changed.\n"
    file = idle.data_dir / "config.toml"
    file.write_text(
        'node_key_file = "other.key"\n[store]\nurl = "sqlite:///other.db"\nhistory = 3\n'
    )
    lines = run_command(idle.data_dir, "reload").stdout.splitlines()
    assert sorted(lines) == [
        "In force: store.history",
        "Needs a restart: node_key_file",
        "Needs a restart: store.url",
    ]
    # As long as it was not restarted.
    again = run_command(idle.data_dir, "reload", "--json").document
    assert set(again["needs_restart"]) == {"node_key_file", "store.url"}
    file.unlink()


# Completion


def completed(daemon: Daemon, shell: str, *words: str) -> list[str]:
    """What is offered for the last of the words, in the form that click gives its scripts."""
    line = " ".join(["peerstore", "--data-dir", str(daemon.data_dir), *words])
    # fish gives the word apart, the others its number.
    position = words[-1] if shell == "fish" else str(len(line.split(" ")) - 1)
    extra = {
        "_PEERSTORE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": position,
    }
    return run_command(daemon.data_dir, extra=extra).stdout.split()


@pytest.mark.parametrize(
    ("shell", "mark"),
    [
        ("bash", "complete -o nosort -F"),
        ("zsh", "#compdef peerstore"),
        ("fish", "complete --no-files --command peerstore"),
    ],
)
def test_each_shell_completes_commands_and_node_ids(stopped: Daemon, shell: str, mark: str) -> None:
    script = said(stopped, "completion", shell)
    assert mark in script
    assert f"_PEERSTORE_COMPLETE={shell}_complete" in script
    offered = " ".join(completed(stopped, shell, "peers", "show", A[:4]))
    assert A in offered
    assert B not in offered


def test_completion_offers_nothing_where_there_is_nothing(data_dir: Path) -> None:
    daemon = Daemon(data_dir)
    assert completed(daemon, "bash", "peers", "show", "0") == []
    assert not data_dir.exists()


def test_bash_completes_with_the_script(stopped: Daemon) -> None:
    script = said(stopped, "completion", "bash")
    words = "COMP_WORDS=(peerstore peers dis); COMP_CWORD=2"
    run = f"{script}\n{words}; _peerstore_completion peerstore; echo ${{COMPREPLY[@]}}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["/bin/bash", "-c", run],
        env=environment(stopped.data_dir.parent, {"PATH": path}),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    assert (result.stdout.strip(), result.stderr) == ("disconnect", "")
