"""The commands that look after stored backups, against a running and a stopped daemon."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from peerstore.client import Client
from peerstore.types import Network
from tests.daemon import Daemon, Result, run_command
from tests.helpers import key_pair

PEER = key_pair(0x42)
ID = PEER.node_id.hex()
OLD, NEW = b"the first one", b"the second one"


def push(daemon: Daemon, *blobs: bytes) -> None:
    """Store blobs, a connection for each."""

    async def connections() -> None:
        for blob in blobs:
            async with await Client.connect(daemon.address, PEER) as client:
                await client.init(Network.REGTEST)
                await client.store(blob)
                await client.confirm()

    asyncio.run(connections())


@pytest.fixture(scope="module", params=["running", "stopped"])
def untouched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """The same for tests that change nothing."""
    daemon = Daemon(tmp_path_factory.mktemp("untouched") / "data")
    daemon.start()
    try:
        push(daemon, OLD, NEW)
        if request.param == "stopped":
            daemon.stop()
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(params=["running", "stopped"])
def stored(request: pytest.FixtureRequest, daemon: Daemon) -> Daemon:
    """A daemon that keeps OLD (revision 1) and NEW (revision 2) for PEER."""
    push(daemon, OLD, NEW)
    if request.param == "stopped":
        assert daemon.stop() == 0
    return daemon


def done(daemon: Daemon, *words: str) -> Any:
    result = run_command(daemon.data_dir, "--json", *words)
    assert (result.code, result.stderr) == (0, "")
    return result.document


def refused(daemon: Daemon, *words: str, code: int = 1) -> str:
    result = run_command(daemon.data_dir, *words)
    assert result.code == code
    assert result.output == b""
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    return last


def rows(daemon: Daemon) -> dict[int, dict[str, Any]]:
    found: list[dict[str, Any]] = done(daemon, "backups", "history", ID)["items"]
    return {row["revision"]: row for row in found}


def test_history_shows_every_version_and_which_is_current(untouched: Daemon) -> None:
    history = rows(untouched)
    assert [(n, r["size"], r["current"]) for n, r in history.items()] == [
        (1, len(OLD), False),
        (2, len(NEW), True),
    ]
    assert history[1].keys() == {
        "node_id", "kind", "channel_id", "revision", "size", "sha256", "stored_at", "pinned",
        "pinned_by", "held", "current",
    }  # fmt: skip
    listed = done(untouched, "backups", "list")["items"]
    assert [row["revision"] for row in listed] == [2]


def test_show_and_export_take_any_revision(untouched: Daemon, tmp_path: Path) -> None:
    assert done(untouched, "backups", "show", ID, "--revision", "1")["size"] == len(OLD)
    assert done(untouched, "backups", "show", ID)["revision"] == 2
    assert bytes.fromhex(done(untouched, "backups", "export", ID)["blob"]) == NEW
    output = tmp_path / "old.bin"
    run_command(untouched.data_dir, "backups", "export", ID, "--revision", "1", "-o", str(output))
    assert output.read_bytes() == OLD
    assert output.stat().st_mode & 0o777 == 0o600


def test_pin_and_unpin(stored: Daemon) -> None:
    assert done(stored, "backups", "pin", ID, "--revision", "1")["done"] is True
    assert (rows(stored)[1]["pinned"], rows(stored)[1]["pinned_by"]) == (True, "operator")
    done(stored, "backups", "unpin", ID, "--revision", "1")
    assert rows(stored)[1]["pinned"] is False


def test_hold_and_release_change_what_is_given_back(stored: Daemon) -> None:
    done(stored, "backups", "hold", ID, "--revision", "1", "--for", "7d")
    assert rows(stored)[1]["held"] is True
    assert done(stored, "backups", "list")["items"][0]["held"] is True
    assert bytes.fromhex(done(stored, "backups", "export", ID)["blob"]) == OLD
    if not stored.runs:
        stored.start()
    assert given_back(stored) == OLD
    done(stored, "backups", "release", ID)
    assert given_back(stored) == NEW


def given_back(daemon: Daemon) -> bytes | None:
    async def connect() -> bytes | None:
        async with await Client.connect(daemon.address, PEER) as client:
            await client.init(Network.REGTEST)
            return await client.retrieve()

    return asyncio.run(connect())


def test_a_deleted_current_version_leaves_the_one_before_it(stored: Daemon) -> None:
    done(stored, "backups", "delete", ID, "--revision", "2", "--yes")
    assert [(n, row["current"]) for n, row in rows(stored).items()] == [(1, True)]
    info = done(stored, "info")
    assert (info["peers"], info["backups"], info["bytes"]) == (1, 1, len(OLD))


def test_delete_asks_and_does_nothing_without_an_answer(untouched: Daemon) -> None:
    result = run_command(untouched.data_dir, "backups", "delete", ID, "--revision", "1")
    assert result.code != 0
    assert "for good?" in result.stderr
    assert 1 in rows(untouched)


def test_the_last_deletion_takes_the_peer_with_it(stored: Daemon) -> None:
    for revision in ("1", "2"):
        done(stored, "backups", "delete", ID, "--revision", revision, "--yes")
    assert done(stored, "info")["peers"] == 0
    assert "nothing is stored for a peer" in refused(stored, "backups", "history", ID)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("pin", ID, "--revision", "9"), "has no peer_storage of revision 9"),
        (("hold", ID, "--revision", "1", "--for", "soon"), "--for soon: expected a number"),
        (("release", ID), "no version of peer_storage is held"),
        (("delete", ID[:6], "--revision", "1", "--yes"), "at least 8 digits"),
        (("delete", ID, "--revision", "9", "--yes"), "revision 9 of peer_storage is not stored"),
        (("history", "zz"), "'zz' is not a node id"),
        (("pin", ID, "--revision", "1", "--kind", "channel_backup"), "has a channel id of 64"),
        (("show", ID, "--channel-id", "00"), "has a channel id of 64"),
    ],
)
def test_what_can_not_be_done_is_one_line(
    untouched: Daemon, words: tuple[str, ...], problem: str
) -> None:
    before = rows(untouched)
    assert problem in refused(untouched, "backups", *words)
    assert rows(untouched) == before


def test_an_alarm_that_is_not_there_can_not_be_acknowledged(untouched: Daemon) -> None:
    assert "there is no alarm 7 that stands" in refused(untouched, "alarms", "ack", "7")
    assert done(untouched, "alarms", "list") == {"items": []}


def test_verify_of_a_sound_store(untouched: Daemon) -> None:
    assert done(untouched, "verify") == {"ok": True, "checked": 2, "damaged": [], "problems": []}


def test_verify_names_what_is_damaged_and_exits_1(daemon: Daemon) -> None:
    push(daemon, OLD, NEW)
    daemon.stop()
    with closing(sqlite3.connect(daemon.data_dir / "peerstore.db")) as database, database:
        database.execute("UPDATE backup SET blob = ? WHERE revision = 1", (b"the fxrst one",))
    result = run_command(daemon.data_dir, "verify", "--json")
    assert result.code == 1
    assert result.document["ok"] is False
    assert [row["revision"] for row in result.document["damaged"]] == [1]
    human = run_command(daemon.data_dir, "verify")
    assert human.code == 1
    assert f"Damaged: revision 1 (peer_storage) of {ID}" in human.stdout
    assert human.stderr.startswith("Error: ")
    assert "is damaged: restore a snapshot" in human.stderr


def test_a_snapshot_is_restored_and_what_it_replaces_is_kept(
    daemon: Daemon, tmp_path: Path
) -> None:
    push(daemon, OLD)
    copy = tmp_path / "copy.db"
    made = done(daemon, "snapshot", str(copy), "--with-key")
    assert Path(made["key_file"]).read_text() == (daemon.data_dir / "node.key").read_text()
    assert Path(made["key_file"]).stat().st_mode & 0o777 == 0o600
    assert "exists already" in refused(daemon, "snapshot", str(copy))
    push(daemon, NEW)
    assert "stop it first" in refused(daemon, "restore", str(copy))
    daemon.stop()
    replaced = done(daemon, "restore", str(copy))["replaced"]
    assert Path(replaced).exists()
    assert [row["size"] for row in rows(daemon).values()] == [len(OLD)]
    daemon.start()
    assert given_back(daemon) == OLD
    push(daemon, NEW)
    # No number is used twice, and what was put back on purpose raises no alarm.
    assert list(rows(daemon)) == [1, 3]
    assert done(daemon, "alarms", "list") == {"items": []}


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_what_is_no_snapshot_is_not_restored(
    daemon: Daemon, tmp_path: Path, content: bytes | None
) -> None:
    push(daemon, OLD)
    daemon.stop()
    source = tmp_path / "source.db"
    if content is not None:
        source.write_bytes(content)
    refused(daemon, "restore", str(source))
    assert list(rows(daemon)) == [1]


def test_a_damaged_snapshot_is_not_restored(daemon: Daemon, tmp_path: Path) -> None:
    push(daemon, OLD)
    copy = tmp_path / "copy.db"
    done(daemon, "snapshot", str(copy))
    daemon.stop()
    with closing(sqlite3.connect(copy)) as database, database:
        database.execute("UPDATE backup SET blob = ?", (b"the fxrst one",))
    assert "is damaged, nothing was replaced" in refused(daemon, "restore", str(copy))
    assert bytes.fromhex(done(daemon, "backups", "export", ID)["blob"]) == OLD


def test_an_old_copy_put_back_by_hand_raises_an_alarm_that_stays(daemon: Daemon) -> None:
    push(daemon, OLD)
    daemon.stop()
    database = daemon.data_dir / "peerstore.db"
    old_copy = database.read_bytes()
    daemon.start()
    push(daemon, NEW)
    daemon.stop()
    database.write_bytes(old_copy)
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    for _ in range(2):
        daemon.start()
        (alarm,) = done(daemon, "info")["alarms"]
        assert (alarm["kind"], alarm["number"]) == ("behind", 1)
        assert given_back(daemon) == OLD
        daemon.stop()
    assert "ALARM" in run_command(daemon.data_dir, "info").stdout
    done(daemon, "alarms", "ack", "1")
    assert done(daemon, "info")["alarms"] == []
    assert len(done(daemon, "alarms", "list", "--all")["items"]) == 1


def test_snapshots_are_made_on_a_schedule(data_dir: Path) -> None:
    settings = ("network=regtest", 'listen.addresses=["127.0.0.1:0"]', "snapshots.every=1d")
    daemon = Daemon(data_dir, settings)
    daemon.start()
    try:
        push(daemon, OLD)
        while not any(event["event"] == "snapshot_made" for event in daemon.events):
            done(daemon, "info")
        (snapshot,) = (data_dir / "snapshots").iterdir()
        assert snapshot.stat().st_mode & 0o777 == 0o600
        assert snapshot.name.startswith("peerstore-")
    finally:
        daemon.close()


def test_output_to_a_closed_pipe_is_no_traceback(untouched: Daemon) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        result: Result = run_command(untouched.data_dir, "backups", "history", ID, stdout=write)
    finally:
        os.close(write)
    assert result.code == 1
    assert result.stderr == ""
