"""Daemons that dial: the commands and the configuration, each process a real one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import HANG, LOOPBACK, Daemon, Result
from tests.socks import NAME, Asked, proxying
from tests.test_dial import dead_port

STRANGER = f"02{'ab' * 32}"
"""May be a key or not; nobody has it."""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Daemon]:
    """Another daemon, stopped; it has the same address at each start."""
    settings = (*LOOPBACK, f'listen.addresses=["127.0.0.1:{dead_port()}"]')
    daemon = Daemon(tmp_path / "other", settings)
    yield daemon
    if daemon.runs:
        daemon.close()


@pytest.fixture
def fresh(data_dir: Path) -> Iterator[Daemon]:
    """A daemon that was not started yet; its data directory is there."""
    daemon = Daemon(data_dir)
    data_dir.mkdir(mode=0o700)
    yield daemon
    if daemon.runs:
        daemon.close()


def configure(daemon: Daemon, *peers: str, more: str = "") -> None:
    """Write [dial]."""
    text = f"[dial]\npeers = {json.dumps(peers)}\n{more}"
    (daemon.data_dir / "config.toml").write_text(text)


def done(daemon: Daemon, *words: str) -> Any:
    result = daemon.command(*words, "--json")
    assert (result.code, result.stderr) == (0, ""), result
    return result.document


def peers(daemon: Daemon) -> dict[str, dict[str, Any]]:
    return {row["node_id"]: row for row in done(daemon, "peers", "list")["items"]}


def until(
    daemon: Daemon, node_id: str, condition: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The row of a peer once it is as it should be."""
    # Some end there must be: nothing stops a thread that asks for ever.
    for _ in range(HANG):
        row = peers(daemon).get(node_id)
        if row is not None and condition(row):
            return row
    raise AssertionError(f"{row}: {daemon.log}")


def is_connected(row: dict[str, Any]) -> bool:
    return bool(row["connected"])


def is_away(row: dict[str, Any]) -> bool:
    return not row["connected"]


def refused(result: Result) -> str:
    """The one line of a command that failed."""
    assert (result.code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    return line


def test_who_is_connected_by_command_is_connected_again_until_disconnect(
    daemon: Daemon, other: Daemon
) -> None:
    other.start()
    uri, node_id = other.document["uris"][0], other.document["node_id"]
    assert "kept connected" in daemon.command("peers", "connect", uri).stdout
    assert until(daemon, node_id, is_connected)["kept"] is True
    other.stop()
    until(daemon, node_id, is_away)
    other.start()
    until(daemon, node_id, is_connected)
    # Kept is kept also while it is away; then it can be disconnected all the same.
    other.stop()
    assert until(daemon, node_id, is_away)["kept"] is True
    while "can't connect" not in (done(daemon, "peers", "show", node_id)["dial_error"] or ""):
        pass
    assert "kept connected; now it is not: " in daemon.command("peers", "show", node_id).stdout
    done(daemon, "peers", "disconnect", node_id[:10])
    assert node_id not in peers(daemon)
    refused(daemon.command("peers", "disconnect", node_id))


def test_a_connect_that_fails_keeps_nothing(daemon: Daemon) -> None:
    line = refused(daemon.command("peers", "connect", f"{STRANGER}@127.0.0.1:{dead_port()}"))
    assert STRANGER in line
    assert peers(daemon) == {}
    assert done(daemon, "peers", "list", "--filter", "kept=yes") == {"items": []}


def test_an_onion_without_a_proxy_can_not_be_connected(daemon: Daemon) -> None:
    line = refused(daemon.command("peers", "connect", f"{STRANGER}@{'a' * 56}.onion:9735"))
    assert "set dial.proxy" in line


@pytest.mark.parametrize("by_signal", [False, True], ids=["reload", "SIGHUP"])
def test_configured_peers_are_kept_connected_and_follow_a_reload(
    fresh: Daemon, other: Daemon, by_signal: bool
) -> None:
    other.start()
    uri, node_id = other.document["uris"][0], other.document["node_id"]

    def reload() -> None:
        if not by_signal:
            done(fresh, "reload")
            return
        before = len([event for event in fresh.events if event["event"] == "reloaded"])
        os.kill(fresh.process_id, signal.SIGHUP)
        while len([event for event in fresh.events if event["event"] == "reloaded"]) == before:
            peers(fresh)

    fresh.start()
    assert peers(fresh) == {}
    configure(fresh, uri)
    reload()
    row = until(fresh, node_id, is_connected)
    assert row["kept"] is True
    # Left alone until a reload.
    done(fresh, "peers", "disconnect", node_id)
    while peers(fresh):
        pass
    reload()
    until(fresh, node_id, is_connected)
    # Named no more: its connection stays.
    configure(fresh)
    reload()
    row = until(fresh, node_id, lambda row: not row["kept"])
    assert row["connected"] is True
    dialed = [event for event in fresh.events if event["event"] == "dialed"]
    assert [event["node_id"] for event in dialed] == [node_id] * 2


def test_two_daemons_that_name_each_other_are_connected(fresh: Daemon, other: Daemon) -> None:
    port = dead_port()
    fresh.settings = (*LOOPBACK, f'listen.addresses=["127.0.0.1:{port}"]')
    mine = done(fresh, "init")["node_id"]
    theirs = done(other, "init")["node_id"]
    configure(other, f"{mine}@127.0.0.1:{port}")
    other.start()
    configure(fresh, other.document["uris"][0])
    fresh.start()
    for daemon, peer in ((fresh, theirs), (other, mine)):
        row = until(daemon, peer, is_connected)
        assert row["kept"] is True
    assert fresh.stop() == 0
    assert other.stop() == 0


def test_a_daemon_does_not_dial_itself(fresh: Daemon) -> None:
    node_id = done(fresh, "init")["node_id"]
    configure(fresh, f"{node_id}@127.0.0.1:9735", f"{node_id}@127.0.0.1:9736")
    fresh.start()
    while not peers(fresh)[node_id]["kept"] or not fresh.log.count("dial_failed"):
        pass
    (failed,) = [event for event in fresh.events if event["event"] == "dial_failed"]
    assert "this node itself" in failed["error"]
    assert failed["retry_seconds"] is None


async def test_with_proxy_all_a_daemon_dials_through_the_proxy_alone(
    fresh: Daemon, other: Daemon
) -> None:
    await asyncio.to_thread(other.start)
    node_id = other.document["node_id"]
    async with proxying((other.address.host, other.address.port)) as proxy:
        fresh.settings = (*LOOPBACK, f"dial.proxy={proxy.text}")
        configure(fresh, f"{node_id}@node.example.com:9735", more="proxy_all = true\n")
        await asyncio.to_thread(fresh.start)
        row = await asyncio.to_thread(until, fresh, node_id, is_connected)
        assert row["address"] == "node.example.com:9735"
        # A way that is no longer configured is not gone.
        configure(fresh)
        await asyncio.to_thread(done, fresh, "reload")
        await asyncio.to_thread(done, fresh, "peers", "disconnect", node_id)
        await asyncio.to_thread(done, fresh, "peers", "connect", str(other.address))
        await asyncio.to_thread(fresh.close)
    assert proxy.asked == [Asked(NAME, "node.example.com", 9735)]
