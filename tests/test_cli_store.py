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

from peerstore.client import BOTH_DIALECTS, Client
from peerstore.types import Network
from peerstore.wire.messages import Init, RevokeAndAck
from tests.daemon import LOOPBACK, Daemon, Result, run_command
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
        (("pin", ID, "--revision", "1", "--kind", "channel_backup"), "give its channel id"),
        (("show", ID, "--channel-id", "00"), "nothing is stored of a channel 00"),
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
    settings = (*LOOPBACK, "snapshots.every=1d")
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


# Node and channel backups

CHANNEL, CLOSED_CHANNEL = (bytes((0xA1,)) * 32, bytes((0xA2,)) * 32)
NODE_OPTIONS = ("--kind", "node_backup")
CHANNEL_OPTIONS = ("--channel-id", CHANNEL.hex())
FUNDING_SIGNED, SHUTDOWN, CLOSING_SIGNED, COMMITMENT_SIGNED = 35, 38, 39, 132


def channel_message(number: int, channel_id: bytes) -> bytes:
    return number.to_bytes(2, "big") + channel_id + bytes(100)


def revocation(channel_id: bytes) -> bytes:
    return RevokeAndAck(channel_id, bytes(32), PEER.node_id).encode()


def push_both(daemon: Daemon) -> None:
    """Have PEER store a node backup and the backup of a channel (revisions 1 and 2), of another
    one that is closed then (3), and by a second connection the first two anew (4 and 5)."""

    async def connections() -> None:
        for blob in (OLD, NEW):
            async with await Client.connect(daemon.address, PEER) as client:
                await client.init(Network.REGTEST, offered=BOTH_DIALECTS)
                await client.store_node_backup(blob)
                await client.confirm()
                signed = channel_message(COMMITMENT_SIGNED, CHANNEL)
                await client.store_channel_backup(blob, signed, signed, revocation(CHANNEL))
                await client.confirm()
                if blob is OLD:
                    numbers = (FUNDING_SIGNED, COMMITMENT_SIGNED, SHUTDOWN, CLOSING_SIGNED)
                    messages = [channel_message(number, CLOSED_CHANNEL) for number in numbers]
                    await client.store_channel_backup(blob, *messages)
                    await client.confirm()

    asyncio.run(connections())


def replayed(daemon: Daemon) -> dict[tuple[str, ...], bytes | None]:
    """What PEER gets back, by the options that name it."""

    async def connect() -> dict[tuple[str, ...], bytes | None]:
        async with await Client.connect(daemon.address, PEER) as client:
            await client.init(Network.REGTEST, offered=BOTH_DIALECTS)
            await client.retrieve()
            return {
                NODE_OPTIONS: client.node_backup,
                CHANNEL_OPTIONS: client.channel_backup(CHANNEL),
            }

    return asyncio.run(connect())


@pytest.fixture(scope="module")
def both_dialects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running daemon after `push_both`, for tests that change nothing."""
    daemon = Daemon(tmp_path_factory.mktemp("both") / "data")
    daemon.start()
    try:
        push_both(daemon)
        yield daemon
    finally:
        daemon.close()


def test_backups_of_every_kind_are_listed(both_dialects: Daemon) -> None:
    listed = done(both_dialects, "backups", "list", ID)["items"]
    assert [(row["kind"], row["channel_id"], row["revision"], row["size"]) for row in listed] == [
        ("node_backup", None, 4, len(NEW)),
        ("channel_backup", CHANNEL.hex(), 5, len(NEW)),
        ("channel_backup", CLOSED_CHANNEL.hex(), 3, len(OLD)),
    ]
    header, *lines = run_command(both_dialects.data_dir, "backups", "list").stdout.splitlines()
    assert "CHANNEL ID" in header
    assert [CHANNEL.hex() in line for line in lines] == [False, True, False]


@pytest.mark.parametrize(
    ("options", "revisions"),
    [
        (NODE_OPTIONS, [1, 4]),
        (CHANNEL_OPTIONS, [2, 5]),
        (("--channel-id", "A1"), [2, 5]),
        (("--kind", "channel_backup", "--channel-id", "a2a2a2a2"), [3]),
    ],
    ids=["kind", "channel id", "its beginning", "both"],
)
def test_a_history_is_that_of_the_backup_that_the_options_name(
    both_dialects: Daemon, options: tuple[str, ...], revisions: list[int]
) -> None:
    history = done(both_dialects, "backups", "history", ID, *options)["items"]
    assert [row["revision"] for row in history] == revisions
    assert [row["current"] for row in history] == [False] * (len(history) - 1) + [True]


def test_show_says_what_the_messages_of_a_channel_said(both_dialects: Daemon) -> None:
    document = done(both_dialects, "backups", "show", ID, *CHANNEL_OPTIONS)
    assert (document["revision"], document["channel_id"]) == (5, CHANNEL.hex())
    assert document["channel"] == {
        "sound": True,
        "commitments": 4,
        "revocations": 2,
        "seen_whole": False,
        "shutdown": False,
        "closing": False,
        "closed_at": None,
    }
    # The state is that of now, also beside an older version.
    older = done(both_dialects, "backups", "show", ID, *CHANNEL_OPTIONS, "--revision", "2")
    assert (older["revision"], older["channel"]) == (2, document["channel"])
    closed = done(both_dialects, "backups", "show", ID, "--channel-id", "a2")["channel"]
    assert (closed["seen_whole"], closed["shutdown"], closed["closing"]) == (True, True, True)
    assert closed["closed_at"].endswith("Z")
    lines = run_command(both_dialects.data_dir, "backups", "show", ID, *CHANNEL_OPTIONS).stdout
    assert ["channel", "commitments", "4"] in [line.split() for line in lines.splitlines()]


def test_show_of_a_node_backup_has_no_channel(both_dialects: Daemon) -> None:
    document = done(both_dialects, "backups", "show", ID, *NODE_OPTIONS)
    assert (document["kind"], document["revision"]) == ("node_backup", 4)
    assert (document["channel_id"], document["withheld"]) == (None, False)
    assert "channel" not in document


def test_a_node_backup_is_withheld_from_who_hung_up_on_it_until_the_operator_holds_it(
    daemon: Daemon,
) -> None:
    async def hang_up() -> None:
        async with await Client.connect(daemon.address, PEER) as client:
            await client.send(Init(BOTH_DIALECTS, (Network.REGTEST.chain_hash,)))
            init = await client.receive()
            assert isinstance(init, Init)
            assert init.node_backup == NEW

    push_both(daemon)
    asyncio.run(hang_up())
    while "node_backup_forgone" not in done(daemon, "info")["events"]:
        pass
    assert replayed(daemon) == {NODE_OPTIONS: None, CHANNEL_OPTIONS: NEW}
    assert done(daemon, "backups", "show", ID, *NODE_OPTIONS)["withheld"] is True
    done(daemon, "backups", "hold", ID, *NODE_OPTIONS, "--revision", "4")
    assert done(daemon, "backups", "show", ID, *NODE_OPTIONS)["withheld"] is False
    assert replayed(daemon) == {NODE_OPTIONS: NEW, CHANNEL_OPTIONS: NEW}


@pytest.mark.parametrize(
    "options", [NODE_OPTIONS, CHANNEL_OPTIONS], ids=["node_backup", "channel_backup"]
)
def test_export_takes_any_kind_and_revision(
    both_dialects: Daemon, tmp_path: Path, options: tuple[str, ...]
) -> None:
    document = done(both_dialects, "backups", "export", ID, *options)
    assert bytes.fromhex(document["blob"]) == NEW
    output = tmp_path / "old.bin"
    revision = "1" if options is NODE_OPTIONS else "2"
    words = ("backups", "export", ID, *options, "--revision", revision, "-o", str(output))
    assert done(both_dialects, *words)["size"] == len(OLD)
    assert output.read_bytes() == OLD


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("show", ID), "peer_storage is not stored"),
        (("show", ID, "--channel-id", "a"), "more than one channel's id begins with a"),
        (("show", ID, "--channel-id", "b"), "nothing is stored of a channel b"),
        (("show", ID, "--channel-id", "zz"), "'zz' is not a channel id"),
        (("show", ID, "--channel-id", "a1" * 33), "is not a channel id"),
        (("show", ID, *NODE_OPTIONS, *CHANNEL_OPTIONS), "a node_backup has no channel id"),
        (("show", ID, *CHANNEL_OPTIONS, "--revision", "4"), f"channel_backup {CHANNEL.hex()} is"),
        (
            ("delete", ID, "--channel-id", "a1a1a1a", "--revision", "2", "--yes"),
            "at least 8 digits of the channel id",
        ),
    ],
)
def test_what_names_no_backup_is_one_line(
    both_dialects: Daemon, words: tuple[str, ...], problem: str
) -> None:
    assert problem in refused(both_dialects, "backups", *words)


def test_verify_counts_every_kind(both_dialects: Daemon) -> None:
    assert done(both_dialects, "verify") == {
        "ok": True,
        "checked": 5,
        "damaged": [],
        "problems": [],
    }


@pytest.mark.parametrize(
    ("options", "run"),
    [(NODE_OPTIONS, True), (CHANNEL_OPTIONS, False)],
    ids=["node_backup, running", "channel_backup, stopped"],
)
def test_versions_of_every_kind_are_held_pinned_and_deleted(
    daemon: Daemon, options: tuple[str, ...], run: bool
) -> None:
    push_both(daemon)
    if not run:
        daemon.stop()
    old, new = ("1", "4") if options is NODE_OPTIONS else ("2", "5")
    changed = done(daemon, "backups", "hold", ID, *options, "--revision", old)
    assert (changed["kind"], changed["done"]) == (
        "node_backup" if options is NODE_OPTIONS else "channel_backup",
        True,
    )
    assert changed["channel_id"] == (None if options is NODE_OPTIONS else CHANNEL.hex())
    done(daemon, "backups", "pin", ID, *options, "--revision", old)
    history = done(daemon, "backups", "history", ID, *options)["items"]
    assert [(row["held"], row["pinned"]) for row in history] == [(True, True), (False, False)]
    if run:
        assert replayed(daemon) == {NODE_OPTIONS: NEW, CHANNEL_OPTIONS: NEW} | {options: OLD}
    done(daemon, "backups", "release", ID, *options)
    done(daemon, "backups", "delete", ID, *options, "--revision", new, "--yes")
    history = done(daemon, "backups", "history", ID, *options)["items"]
    assert [(str(row["revision"]), row["current"]) for row in history] == [(old, True)]
    if not run:
        daemon.start()
    assert replayed(daemon) == {NODE_OPTIONS: NEW, CHANNEL_OPTIONS: NEW} | {options: OLD}


def test_the_last_deletion_takes_the_state_of_the_channel_with_it(daemon: Daemon) -> None:
    push_both(daemon)
    words = ("backups", "delete", ID, "--channel-id", "a2a2a2a2", "--revision", "3", "--yes")
    done(daemon, *words)
    assert f"nothing is stored of a channel {'a2' * 4}" in refused(daemon, *words)
    assert done(daemon, "verify")["ok"] is True
    daemon.stop()
    with closing(sqlite3.connect(daemon.data_dir / "peerstore.db")) as database:
        channels = database.execute("SELECT channel_id FROM channel").fetchall()
    assert channels == [(CHANNEL,)]


def test_a_state_that_is_damaged_is_told_by_show_verify_and_an_alarm(daemon: Daemon) -> None:
    push_both(daemon)
    daemon.stop()
    with closing(sqlite3.connect(daemon.data_dir / "peerstore.db")) as database, database:
        database.execute("UPDATE channel SET revocations = 7 WHERE channel_id = ?", (CHANNEL,))
    shown = done(daemon, "backups", "show", ID, *CHANNEL_OPTIONS)["channel"]
    assert (shown["sound"], shown["revocations"]) == (False, None)
    result = run_command(daemon.data_dir, "verify", "--json")
    assert result.code == 1
    assert (result.document["ok"], result.document["damaged"]) == (False, [])
    (problem,) = result.document["problems"]
    assert CHANNEL.hex() in problem
    # The backup can still be taken out.
    document = done(daemon, "backups", "export", ID, *CHANNEL_OPTIONS)
    assert bytes.fromhex(document["blob"]) == NEW
    daemon.start()
    assert replayed(daemon) == {NODE_OPTIONS: NEW, CHANNEL_OPTIONS: None}
    (alarm,) = done(daemon, "alarms", "list")["items"]
    assert (alarm["kind"], alarm["channel_id"]) == ("damaged", CHANNEL.hex())
