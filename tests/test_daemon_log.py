"""The log of a real daemon: it holds no secret, and does no harm where it can't be written."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from peerstore.client import BOTH_DIALECTS, Client, ConnectionClosedError, StorageRefusedError
from peerstore.control import call
from peerstore.types import Network
from peerstore.wire.messages import (
    ALL_CHANNELS,
    ErrorMessage,
    Message,
    RevokeAndAck,
    WarningMessage,
)
from tests.daemon import UNPACED, Daemon
from tests.fake_nodes import FakeEclair, FakeHttp, FakeLnd
from tests.helpers import key_pair
from tests.test_lines import fill
from tests.test_routing_node import settings

ALICE, BOB = key_pair(0x71), key_pair(0x72)
CHANNEL = bytes(range(0x80, 0xA0))


@pytest.fixture
def idle(data_dir: Path) -> Iterator[Daemon]:
    """A daemon that is not started yet."""
    data_dir.mkdir()
    daemon = Daemon(data_dir)
    try:
        yield daemon
    finally:
        daemon.close()


# Where nobody takes it


@pytest.fixture
def stderr(where: str) -> Iterator[int]:
    """A descriptor that takes nothing."""
    if where == "closed":
        yield -1
    elif where == "a full disk":
        descriptor = os.open("/dev/full", os.O_WRONLY)
        yield descriptor
        os.close(descriptor)
    else:
        reader, descriptor = os.pipe()
        if where == "a reader that hangs":
            fill(descriptor)
        else:
            os.close(reader)
        yield descriptor
        os.close(descriptor)
        if where == "a reader that hangs":
            os.close(reader)


@pytest.mark.parametrize(
    "where", ["closed", "a full disk", "a reader that is gone", "a reader that hangs"]
)
async def test_a_log_that_can_not_be_written_keeps_nobody_from_being_served(
    idle: Daemon, stderr: int, where: str
) -> None:
    idle.stderr = stderr
    idle.settings = (*UNPACED, "log.level=debug")
    await asyncio.to_thread(idle.start)
    blob = b"kept all the same"
    async with await Client.connect(idle.address, ALICE) as client:
        await client.init(Network.REGTEST)
        for number in range(100):
            await client.store(b"%d" % number)
            await client.confirm()
        await client.store(blob)
        await client.confirm()
    async with await Client.connect(idle.address, ALICE) as client:
        await client.init(Network.REGTEST)
        assert await client.retrieve() == blob
    os.kill(idle.process_id, signal.SIGHUP)
    reloaded = await asyncio.to_thread(call, idle.data_dir / "peerstore.sock", "daemon.reload")
    assert reloaded == {"changed": [], "needs_restart": []}
    assert await asyncio.to_thread(idle.stop) == 0


# What a reload changes


async def test_level_and_form_follow_a_reload_in_every_part(idle: Daemon) -> None:
    file, socket = idle.data_dir / "config.toml", idle.data_dir / "peerstore.sock"

    async def reload(text: str) -> list[str]:
        """Follow a configuration; returns the lines of that and of an update behind it."""
        before = len(idle.log.splitlines())
        file.write_text(text)
        await asyncio.to_thread(call, socket, "daemon.reload")
        async with await Client.connect(idle.address, ALICE) as client:
            await client.init(Network.REGTEST)
            await client.store(text.encode())
            await client.confirm()
        return idle.log.splitlines()[before:]

    await asyncio.to_thread(idle.start)
    assert await reload('[log]\nlevel = "error"\n') == []
    lines = await reload('[log]\nlevel = "debug"\nformat = "json"\n')
    names = [json.loads(line)["event"] for line in lines]
    # Of the daemon, the server and the store.
    assert {"reloaded", "peer_connected", "update_received", "stored", "replayed"} <= {*names}
    lines = await reload('[log]\nformat = "console"\n')
    (line,) = [line for line in lines if not line.startswith("{")]  # the end of the last connection
    assert " info     reloaded changed=['log.level', 'log.format'] needs_restart=[]" in line
    file.unlink()
    await asyncio.to_thread(call, socket, "daemon.reload")
    assert json.loads(idle.log.splitlines()[-1])["event"] == "reloaded"
    idle.settings = (*idle.settings, "log.format=console")  # for how the log is read at the end


# What it must not say


def shapes(secret: bytes) -> Iterator[bytes]:
    """What a secret, or any 16 bytes of it, looks like where it is written out.

    Of a long one the beginning and the end will do.
    """
    secret = secret if len(secret) < 4096 else secret[:2048] + secret[-2048:]
    for start in range(0, len(secret) - 7, 8):
        part = secret[start : start + 8]
        yield part
        yield part.hex().encode()
        yield part.hex().upper().encode()
        yield part.hex(" ").encode()
        yield repr(part)[2:-1].encode()
        yield repr(part.decode("latin-1"))[1:-1].encode()
        yield repr(list(part))[1:-1].encode()
        yield json.dumps(part.decode("latin-1"))[1:-1].encode()
        # However the base64 of what is around it is aligned.
        for shift in range(3):
            aligned = part[shift : shift + 6]
            yield base64.b64encode(aligned)
            yield base64.urlsafe_b64encode(aligned)


Secrets = list[bytes]


async def load(daemon: Daemon, random: Random) -> Secrets:
    """Store, shrink, be refused and break the protocol; returns the blobs."""
    blobs: Secrets = []

    def blob(size: int) -> bytes:
        blobs.append(random.randbytes(size))
        return blobs[-1]

    async def once(*messages: Message | bytes, wait: bool = True) -> None:
        async with await Client.connect(daemon.address, ALICE) as client:
            await client.init(Network.REGTEST, offered=BOTH_DIALECTS)
            await client.retrieve()
            await client.send_raw(*(m if isinstance(m, bytes) else m.encode() for m in messages))
            with contextlib.suppress(StorageRefusedError, ConnectionClosedError):
                if wait:
                    await client.confirm()

    def update(number: int, data: bytes, declared: int | None = None) -> bytes:
        size = len(data) if declared is None else declared
        return number.to_bytes(2, "big") + size.to_bytes(2, "big") + data

    await once(update(7, blob(1000)), update(20, blob(400)))
    await once(update(7, blob(65531)))
    secret = blob(32)
    revoke = RevokeAndAck(CHANNEL, secret, ALICE.node_id).encode()
    await once(update(120, blob(640)), revoke)
    await once(update(7, blob(64)))  # it shrank
    await once(update(20, blob(32001)))  # refused
    await once(update(7, blob(100), declared=200))  # cut short
    await once(update(120, blob(64)), wait=False)  # never completed
    await once(b"\x80\x00" + blob(64))  # an even message that nobody knows
    await once(update(7, blob(64)) + b"\x02\x40" + blob(64))  # no TLV stream behind it
    await once(WarningMessage(ALL_CHANNELS, b"\x1b[2J\nall is lost"), ErrorMessage(CHANNEL, b"x"))
    # Frames that can't be decrypted, before and after the handshake.
    reader, writer = await asyncio.open_connection(daemon.address.host, daemon.address.port)
    writer.write(b"\x00" + blob(49))
    assert await reader.read() == b""
    writer.close()
    async with await Client.connect(daemon.address, BOB) as client:
        await client.init(Network.REGTEST)
        client._writer.write(blob(64))
        with pytest.raises(ConnectionClosedError):
            await client.confirm()
    return blobs


@pytest.mark.parametrize(("source", "form"), [(FakeLnd, "json"), (FakeEclair, "console")])
async def test_no_backup_key_or_credential_is_in_the_log(
    idle: Daemon, tmp_path: Path, source: type[FakeHttp], form: str
) -> None:
    random = Random(form)  # noqa: S311 - nothing secret, though it plays such
    key, given_as = random.randbytes(32), random.randbytes(24).hex()
    (idle.data_dir / "node.key").write_text(key.hex())
    (idle.data_dir / "node.key").chmod(0o600)
    file = idle.data_dir / "config.toml"
    # A key that does not exist: its value may be a password all the same.
    idle.extra = {"PEERSTORE_CHANNELS__ECLAIR__PASSWORD": given_as}
    directory = tmp_path / "node"
    directory.mkdir()
    node = source(directory)
    await node.start()
    # It refuses, and repeats the credential in its words.
    node.status, node.echo = 500, True
    idle.settings = (*settings(node, "anyone"), "log.level=debug", f"log.format={form}")
    try:
        await asyncio.to_thread(idle.start)
        blobs = await load(idle, random)
        # What is wrong with a configuration is said, but not what a secret in it is.
        wrongs = (
            f'[channels.eclair]\npassword = "{given_as}"\n',
            f'[channels.lnd]\nurl = "https://me:{given_as}@127.0.0.1:1"\n',
            f'node_key_file = "{given_as}',
        )
        for count, wrong in enumerate(wrongs, 1):
            file.write_text(wrong)
            os.kill(idle.process_id, signal.SIGHUP)
            while idle.log.count("reload_failed") < count:
                await asyncio.to_thread(call, idle.data_dir / "peerstore.sock", "daemon.info")
        assert await asyncio.to_thread(idle.stop) == 0
    finally:
        await node.stop()
    written = idle.log + json.dumps(idle.document)  # stderr, stdout
    assert all(line.isprintable() for line in written.splitlines())
    for event in ("peer_connected", "update_received", "stored", "replayed", "backup_shrank",
                  "update_refused", "peer_warning", "connection_refused"):  # fmt: skip
        assert event in written
    # However often an escape was escaped again.
    plain = re.sub(rb"\\+", rb"\\", written.encode())
    for secret in (key, *blobs):
        for shape in shapes(secret):
            assert shape not in plain
    for words in (given_as, node.secret):
        assert words.lower() not in written.lower()
        assert base64.b64encode(words.encode()).decode() not in written
