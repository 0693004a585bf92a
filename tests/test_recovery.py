"""The story of a peer that lost its data, with the commands that the README gives."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from peerstore.client import Client
from peerstore.types import Network
from tests.daemon import Daemon, run_command
from tests.helpers import key_pair
from tests.test_project import readme_command

PEER = key_pair(0x42)
RECONNECTS = 100


async def push(daemon: Daemon, blob: bytes) -> bytes | None:
    """Be Core Lightning: send a backup on every connect, without a look at what comes."""
    async with await Client.connect(daemon.address, PEER) as client:
        await client.init(Network.REGTEST)
        given_back = await client.retrieve()
        await client.store(blob)
        await client.confirm()
        return given_back


async def get(daemon: Daemon) -> bytes | None:
    async with await Client.connect(daemon.address, PEER) as client:
        await client.init(Network.REGTEST)
        return await client.retrieve()


def commands(prefix: str, output: Path) -> Iterator[list[str]]:
    for line in readme_command("recovery").splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "peerstore"
        given = {"02ab": prefix, "backup.bin": str(output)}
        yield [given.get(word, word) for word in words]


async def test_the_recovery_story_of_the_readme(daemon: Daemon, tmp_path: Path) -> None:
    one_channel, two_channels = os.urandom(345), os.urandom(633)
    assert await push(daemon, one_channel) is None
    assert await push(daemon, two_channels) == one_channel
    empty = b""
    for _ in range(RECONNECTS):
        empty = os.urandom(57)
        assert await push(daemon, empty) == two_channels
    output = tmp_path / "backup.bin"
    seen: dict[str, bytes] = {}
    for words in commands(PEER.node_id.hex()[:8], output):
        result = await asyncio.to_thread(run_command, daemon.data_dir, *words)
        assert (result.code, result.stderr) == (0, "")
        name = " ".join(words[:2])
        seen[name] = result.output
        if name == "backups hold":
            assert await get(daemon) == two_channels
        if name == "backups release":
            assert await get(daemon) == empty
    assert b"shrink" in seen["alarms list"]
    assert b"was given back 633 bytes" in seen["alarms list"]
    history = seen["backups history"].decode().splitlines()
    assert [line for line in history if "pinned (data loss), held" in line and " 2 " in line]
    assert [line for line in history if " 345 B " in line], "the version before is there too"
    assert output.read_bytes() == two_channels
    alarms = await asyncio.to_thread(run_command, daemon.data_dir, "alarms", "list", "--json")
    assert alarms.document == {"items": []}
    kept = await asyncio.to_thread(
        run_command, daemon.data_dir, "backups", "history", PEER.node_id.hex(), "--json"
    )
    assert [row["size"] for row in kept.document["items"] if row["revision"] == 2] == [633]


async def test_padded_backups_show_no_shrink_and_the_good_one_is_kept_all_the_same(
    daemon: Daemon,
) -> None:
    good = os.urandom(65531)
    await push(daemon, good)
    for _ in range(30):
        await push(daemon, os.urandom(65531))
    rows = (
        await asyncio.to_thread(
            run_command, daemon.data_dir, "backups", "history", PEER.node_id.hex(), "--json"
        )
    ).document["items"]
    assert len(rows) == 1 + 8
    assert rows[0]["revision"] == 1
    await asyncio.to_thread(
        run_command, daemon.data_dir, "backups", "hold", PEER.node_id.hex(), "--revision", "1"
    )
    assert await get(daemon) == good
