"""What the README shows an operator is so: the morning's commands, and the control socket."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from peerstore import daemon as daemon_module
from peerstore.config import Config
from peerstore.control import call
from peerstore.tally import Tally
from peerstore.types import parse_host_port
from tests.daemon import HANG, Daemon
from tests.test_cli_peers import (
    ALICE,
    CLOSED,
    DAVE,
    ERIN,
    GOOD,
    SHRUNK,
    A,
    B,
    C,
    D,
    E,
    copy_of,
    settle,
    staying,
    visit,
)
from tests.test_project import ROOT, readme_command

README = (ROOT / "README.md").read_text()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Daemon]:
    """A running copy of the town, with Dave and Erin connected."""
    (tmp_path / "town").mkdir()
    daemon = copy_of(settle(tmp_path / "town"), tmp_path)
    daemon.start()
    with staying(daemon, DAVE, ERIN):
        yield daemon


MORNING: dict[str, list[str]] = {
    "info": ["Not well: 1 alarm stands: `peerstore alarms list`.", "running, 2 connections"],
    "peers list --filter connected=yes": [D, E, "connected"],
    "peers list --filter away=7d": [B, C, "30 d ago"],
    "alarms list --filter kind=shrink": ["shrink", f"{A} was given back {len(GOOD)} bytes"],
    "peers show 02ab": [A, "last seen 3 d ago", "pinned (data loss), held", "shrink"],
    "backups history 02ab": ["pinned (data loss), held", "current"],
    "backups hold 02ab --revision 2 --for 30d": ["Revision 1 is given back for 30d."],
    "backups export 02ab --revision 2 -o backup.bin": [f"{len(GOOD)} B written to"],
    "backups release 02ab": ["The newest version is given back again."],
    "alarms ack 1": ["Alarm 1 is acknowledged."],
    "prune --dry-run": [CLOSED.hex(), "the channel is closed", "16 B would be deleted."],
    "prune": [CLOSED.hex(), "16 B are deleted."],
    "snapshot /backup/peerstore.db": ["The snapshot is"],
}
"""The commands of the section as the README has them, and what each says of the town."""


def test_an_operators_morning(running: Daemon, tmp_path: Path) -> None:
    (alarm,) = running.command("alarms", "list", "--json").document["items"]
    backup, snapshot = tmp_path / "backup.bin", tmp_path / "peerstore.db"
    given = {
        "02ab": A[:8],
        "backup.bin": str(backup),
        "/backup/peerstore.db": str(snapshot),
        # The first number is that of the alarm, the second that of the good revision.
        "1": str(alarm["number"]),
        "2": str(alarm["revision"]),
    }
    seen = []
    for line in readme_command("morning").splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "peerstore"
        result = running.command(*(given.get(word, word) for word in words))
        assert (result.code, result.stderr) == (0, ""), line
        seen.append(" ".join(words))
        for expected in MORNING[seen[-1]]:
            assert expected in result.stdout
        if words[:2] == ["backups", "hold"]:
            assert visit(running, ALICE).given_back == GOOD
        if words[:2] == ["backups", "release"]:
            assert visit(running, ALICE).given_back == SHRUNK
    assert seen == list(MORNING)
    assert backup.read_bytes() == GOOD
    assert snapshot.stat().st_size
    assert running.command("info").stdout.startswith("All is well.\n")


@pytest.mark.parametrize(("code", "restarted"), [(0, False), (1, False), (3, True)])
def test_a_script_restarts_only_what_does_not_run(
    tmp_path: Path, code: int, restarted: bool
) -> None:
    """Who may not read the directory is told so with 1, by a daemon that may serve well."""
    (line,) = re.findall(r"^peerstore info --running.*$", README, re.MULTILINE)
    for name, does in (("peerstore", f"exit {code}"), ("systemctl", f"echo $* > {tmp_path}/done")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o700)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["/bin/sh", "-c", line], env={"PATH": path}, check=True, timeout=HANG)
    assert (tmp_path / "done").exists() is restarted


def test_the_compose_section_begins_where_the_one_before_ends() -> None:
    _, _, section = README.partition("### With compose")
    section, _, _ = section.partition("\n## ")
    steps = (
        *("Build the image first", "docker cp peerstore:/data/node.key secrets/"),
        *("docker rm -f peerstore", "compose --profile alone up", "peerstore probe"),
        *("backups list", "curl"),
    )
    assert sorted(steps, key=section.index) == list(steps)


# The control socket


def documented() -> Iterator[tuple[str, str, str]]:
    """The rows of the README's table: method, parameters, result."""
    (table,) = re.findall(r"\| method \| parameters \| result \|\n\|[-|]+\|\n((?:\|.*\n)+)", README)
    for row in table.splitlines():
        names, parameters, result = re.split(r"(?<!\\) ?\| ?", row)[1:-1]
        for name in re.findall(r"`([a-z]+\.[a-z]+)`", names):
            yield name, parameters, result


def methods() -> dict[str, Callable[..., Any]]:
    """The daemon's methods; nothing is called, so there is nothing behind them."""
    nothing = cast("Any", SimpleNamespace(config=Config(), reader=None, tally=Tally()))
    return daemon_module.Daemon(nothing, nothing, nothing, nothing, nothing, nothing).methods()


def test_every_method_of_the_control_socket_is_in_the_readme() -> None:
    assert sorted(name for name, _, _ in documented()) == sorted(methods())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [(name, parameters) for name, parameters, _ in documented()],
    ids=[name for name, _, _ in documented()],
)
def test_the_readme_has_the_parameters_of_a_method_and_their_defaults(
    name: str, parameters: str
) -> None:
    """A default stands in parentheses behind its parameter: a parameter without one is needed."""
    shown = {
        parameter: default.partition(":")[0]
        for parameter, default in re.findall(r"`(\w+)`(?: \(([^)]*)\))?", parameters)
    }
    signature = inspect.signature(methods()[name])
    assert shown == {
        parameter.name: ""
        if parameter.default is parameter.empty
        else json.dumps(parameter.default)
        for parameter in signature.parameters.values()
    }


def test_the_readme_has_the_keys_of_the_results(running: Daemon) -> None:
    socket = running.data_dir / "peerstore.sock"
    results = {name: result for name, _, result in documented()}
    for name in ("daemon.info", "daemon.reload"):
        keys = re.findall(r"`(\w+)`", results[name])
        assert list(call(socket, name)) == keys
    _, *keys = re.findall(r"`(\w+)`", results["peers.list"])
    for row in call(socket, "peers.list")["items"]:
        assert list(row) == keys
    for name in ("peers.list", "alarms.list", "backups.prune"):
        assert results[name].startswith("`items`")
        parameters = {"dry_run": True} if name == "backups.prune" else {}
        assert list(call(socket, name, **parameters)) == ["items"]
    # What has nothing to say, on a peer that is there.
    assert results["peers.allow"] == "null"
    assert call(socket, "peers.allow", node_id=A) is None


def test_what_tor_passes_on_is_what_is_listened_on_and_announced() -> None:
    section = README.split("\n## Over Tor\n")[1].split("\n## ")[0]
    port, target = re.findall(r"^HiddenServicePort (\d+) (\S+)$", section, re.MULTILINE)[0]
    (block,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    listen = tomllib.loads(block)["listen"]
    assert listen["addresses"] == [target]
    assert [address.rpartition(":")[2] for address in listen["announce"]] == [port]
    # Whoever comes through Tor comes from where it passes on to.
    host, _ = parse_host_port(target)
    assert any(ip_address(host) in each.network for each in Config().limits.exempt_networks)
