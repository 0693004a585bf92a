"""The daemon beside a routing node: real processes, and nodes that answer as the real ones do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from peerstore import configured
from peerstore.client import Client, StorageRefusedError
from peerstore.config import load
from peerstore.errors import ProbeError
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import Network
from tests.daemon import LOOPBACK, Daemon, Result
from tests.fake_nodes import FakeCln, FakeEclair, FakeLnd, FakeNode, Fault, Kind, Row
from tests.helpers import key_pair

NODES: dict[str, Callable[[Path], FakeNode]] = {
    "cln": FakeCln,
    "lnd": FakeLnd,
    "eclair": FakeEclair,
}
ALICE, BOB = key_pair(0x61), key_pair(0x62)
BLOCKS = 2016


def settings(node: FakeNode, serve: str = "channels") -> tuple[str, ...]:
    """The configuration for a node."""
    if isinstance(node, FakeCln):
        own = ["source=cln", f"cln.socket={node.socket}"]
    elif isinstance(node, FakeLnd):
        own = [
            "source=lnd",
            f"lnd.url={node.url}",
            f"lnd.tls_cert={node.tls_cert}",
            f"lnd.macaroon_file={node.macaroon}",
        ]
    else:
        assert isinstance(node, FakeEclair)
        own = [
            "source=eclair",
            f"eclair.url={node.url}",
            f"eclair.password_file={node.password_file}",
        ]
    return (*LOOPBACK, f"policy.serve={serve}", *(f"channels.{setting}" for setting in own))


def channel(peer: KeyPair, number: int, kind: Kind = Kind.OPEN, height: int | None = None) -> Row:
    return Row(peer.node_id.hex(), f"{number:064x}", 0, kind, height)


class Beside:
    """A daemon beside a node; what blocks runs in threads, for the node answers from here."""

    def __init__(self, node: FakeNode, daemon: Daemon) -> None:
        self.node = node
        self.daemon = daemon

    async def start(self) -> None:
        await asyncio.to_thread(self.daemon.start)

    async def command(self, *arguments: str) -> Result:
        return await asyncio.to_thread(self.daemon.command, *arguments)

    async def document(self, *arguments: str) -> Any:
        result = await self.command("--json", *arguments)
        assert result.code == 0, result.stderr
        return result.document

    async def source(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.document("info"))["channel_source"]
        return found

    async def prune(self) -> list[str]:
        """Whose backups go; it asks the node anew."""
        return [row["node_id"] for row in (await self.document("prune"))["items"]]

    async def nobody_is_left(self) -> None:
        """Return when the daemon has seen that its peers are gone."""
        while (await self.document("peers", "list", "--filter", "connected=yes"))["items"]:
            pass

    async def meet(self, key: KeyPair, blob: bytes | None = None) -> bytes | None:
        """Connect, store if there is a blob, and return what was given back."""
        async with await Client.connect(self.daemon.address, key) as client:
            await client.init(Network.REGTEST)
            given = await client.retrieve()
            if blob is not None:
                await client.store(blob)
                await client.confirm()
            return given

    async def refused(self, key: KeyPair) -> tuple[bool, str]:
        """Whether storage is offered to a peer, and what it is told when it stores all the same."""
        async with await Client.connect(self.daemon.address, key) as client:
            offered = False
            with contextlib.suppress(ProbeError):  # it does not offer storage
                await client.init(Network.REGTEST)
                offered = True
            await client.store(b"backup")
            with pytest.raises(StorageRefusedError) as raised:
                await client.confirm()
            return offered, str(raised.value)


@contextlib.asynccontextmanager
async def beside(
    node: FakeNode, directory: Path, serve: str = "channels", *more: str
) -> AsyncIterator[Beside]:
    await node.start()
    daemon = Daemon(directory / "data", (*settings(node, serve), *more))
    try:
        yield Beside(node, daemon)
    finally:
        await asyncio.to_thread(daemon.close)
        await node.stop()


@pytest.fixture(params=NODES)
def node(request: pytest.FixtureRequest, tmp_path: Path) -> FakeNode:
    return NODES[request.param](tmp_path)


async def test_from_nothing_to_a_backup_that_goes(node: FakeNode, tmp_path: Path) -> None:
    node.rows = [channel(ALICE, 1), channel(ALICE, 2, Kind.CLOSED, 600)]
    async with beside(node, tmp_path) as here:
        await here.start()
        info = await here.document("info")
        assert info["well"], info["problems"]
        assert info["channel_source"] == {
            "node_id": node.node_id,
            "answered": True,
            "trusted": True,
            "error": None,
            "height": 700,
            "channels": 2,
            "open": 1,
        }
        rows = (await here.document("channels", "list"))["items"]
        assert sorted(row["state"] for row in rows) == ["closed", "open"]
        assert {row["node_id"] for row in rows} == {ALICE.node_id.hex()}
        assert await here.meet(ALICE, b"backup") is None
        offered, told = await here.refused(BOB)
        assert not offered
        assert "a channel with" in told

        # The channel is closed, and the count begins; what is stored is given back as ever.
        node.rows = [channel(ALICE, 1, Kind.CLOSED, 705), node.rows[1]]
        node.height = 710
        assert await here.prune() == []
        assert await here.meet(ALICE, b"newer") == b"backup"
        (row,) = [
            row
            for row in (await here.document("channels", "list"))["items"]
            if row["channel_id"] == node.rows[0].channel_id
        ]
        assert row["closed_height"] == (705 if node.known_heights else 710)
        assert row["peer_deleted_in_blocks"] == BLOCKS
        node.height = 710 + BLOCKS - 1
        assert await here.prune() == []
        node.height = 710 + BLOCKS
        assert (await here.document("prune", "--dry-run"))["items"][0]["versions"] == 2
        assert await here.prune() == [ALICE.node_id.hex()]
        assert (await here.document("backups", "list"))["items"] == []
        assert not (await here.refused(ALICE))[0]


async def test_a_peer_that_opens_a_channel_is_served_at_once(
    node: FakeNode, tmp_path: Path
) -> None:
    async with beside(node, tmp_path) as here:
        await here.start()
        async with await Client.connect(here.daemon.address, ALICE) as client:
            with pytest.raises(ProbeError):
                await client.init(Network.REGTEST)  # it is not offered yet
            node.rows = [channel(ALICE, 1, Kind.PENDING)]
            await here.prune()  # asks the node
            await client.store(b"backup")
            await client.confirm()
        node.rows = []
        assert await here.meet(ALICE) == b"backup"


@pytest.mark.parametrize("again", [False, True], ids=["first start", "later start"])
async def test_a_node_that_is_down_costs_nobody_anything(
    node: FakeNode, tmp_path: Path, again: bool
) -> None:
    node.rows = [channel(ALICE, 1)]
    async with beside(node, tmp_path) as here:
        if again:
            await here.start()
            await here.meet(ALICE, b"backup")
            assert await asyncio.to_thread(here.daemon.stop) == 0
        await node.stop()
        await here.start()
        info = await here.document("info")
        source = info["channel_source"]
        assert not source["trusted"]
        assert "is " in source["error"]
        assert source["error"] in " ".join(info["problems"])
        assert source["error"] in " ".join(event.get("error", "") for event in here.daemon.events)
        offered, told = await here.refused(BOB)
        assert offered
        assert "try again later" in told
        if again:
            assert await here.meet(ALICE, b"newer") == b"backup"
        refused = await here.command("prune")
        assert (refused.code, refused.stdout) == (1, "")
        assert "can't be trusted" in refused.stderr
        assert refused.stderr.count("\n") == 1
        # It comes back.
        await node.start()
        await here.prune()
        assert (await here.source())["trusted"]
        if again:
            assert await here.meet(ALICE) == b"newer"


async def test_a_node_of_another_network_is_named_and_not_followed(
    node: FakeNode, tmp_path: Path
) -> None:
    node.rows = [channel(ALICE, 1)]
    node.network = "mainnet" if isinstance(node, FakeLnd) else "bitcoin"
    async with beside(node, tmp_path, "anyone") as here:
        await here.start()
        source = await here.source()
        assert "network" in source["error"]
        assert "regtest" in source["error"]
        assert source["channels"] == 0
        assert await here.meet(BOB, b"backup") is None
        shown = await here.command("info")
        assert "Not well: the routing node can't be trusted" in shown.stdout


async def test_nonsense_is_not_followed(node: FakeNode, tmp_path: Path) -> None:
    node.rows = [channel(ALICE, 1)]
    async with beside(node, tmp_path) as here:
        await here.start()
        await here.meet(ALICE, b"backup")
        node.fault = Fault.EMPTY
        node.rows = []
        node.height += 10 * BLOCKS
        refused = await here.command("prune")
        assert refused.code == 1
        assert not (await here.source())["trusted"]
        assert await here.meet(ALICE, b"newer") == b"backup"


async def test_what_depends_on_the_node_needs_the_daemon(node: FakeNode, tmp_path: Path) -> None:
    node.rows = [channel(ALICE, 1, Kind.CLOSED, 650)]
    async with beside(node, tmp_path) as here:
        await here.start()
        await here.meet(ALICE, b"backup")
        assert await asyncio.to_thread(here.daemon.stop) == 0
        refused = await here.command("prune")
        assert refused.code == 3
        assert refused.stderr.count("\n") == 1
        (row,) = (await here.document("channels", "list"))["items"]
        assert row["state"] == "closed"
        assert row["peer_deleted_in_blocks"] == BLOCKS
        story = await here.document("peers", "show", ALICE.node_id.hex())
        assert story["served"]
        assert story["channels"] == [row]
        assert (await here.document("info"))["channel_source"] is None
        # What does not depend on it goes on; nothing ages by that.
        pinned = await here.command("backups", "pin", ALICE.node_id.hex(), "--revision", "1")
        assert pinned.code == 0


async def test_a_kill_forgets_no_visit(tmp_path: Path) -> None:
    node = FakeCln(tmp_path)
    node.rows = [channel(ALICE, 1)]
    async with beside(node, tmp_path) as here:
        await here.start()
        await here.meet(ALICE, b"backup")
        node.rows = [channel(ALICE, 1, Kind.CLOSED, 700)]
        node.height = 700 + BLOCKS - 1
        assert await here.prune() == []
        assert await here.meet(ALICE, b"newer") == b"backup"
        await asyncio.to_thread(here.daemon.kill)
        node.height = 700 + BLOCKS
        await here.start()
        assert await here.prune() == []
        assert await here.meet(ALICE) == b"newer"


async def test_who_is_connected_loses_service_with_the_height(tmp_path: Path) -> None:
    node = FakeCln(tmp_path)
    node.rows = [channel(ALICE, 1, Kind.CLOSED, 600)]
    async with beside(node, tmp_path) as here:
        await here.start()
        await here.prune()
        async with await Client.connect(here.daemon.address, ALICE) as client:
            await client.init(Network.REGTEST)
            node.height = 700 + 2 * BLOCKS
            await here.prune()
            await client.store(b"backup")
            with pytest.raises(StorageRefusedError):
                await client.confirm()


async def test_the_story_of_a_peer_agrees_with_the_daemon(tmp_path: Path) -> None:
    """Before the first answer who has a backup is served, whether or not it had a channel."""
    node = FakeCln(tmp_path)
    async with beside(node, tmp_path, "anyone") as here:
        await here.start()
        await here.meet(BOB, b"backup")
        assert await asyncio.to_thread(here.daemon.stop) == 0
        here.daemon.settings = settings(node)
        await node.stop()
        await here.start()
        await here.meet(BOB, b"newer")
        assert (await here.document("peers", "show", BOB.node_id.hex()))["served"]
        await node.start()
        await here.prune()
        offered, _ = await here.refused(BOB)
        assert not offered
        story = await here.document("peers", "show", BOB.node_id.hex())
        assert not story["served"]
        assert "a channel with" in story["not_served_because"]


async def test_a_channel_source_needs_a_restart(tmp_path: Path) -> None:
    node = FakeCln(tmp_path)
    async with beside(node, tmp_path) as here:
        here.daemon.settings = LOOPBACK
        here.daemon.data_dir.mkdir(mode=0o700)
        config = here.daemon.data_dir / "config.toml"
        await here.start()
        await here.meet(ALICE, b"backup")
        config.write_text(
            f'policy.serve = "channels"\n[channels]\nsource = "cln"\ncln.socket = "{node.socket}"\n'
        )
        done = await here.document("reload")
        assert done["needs_restart"] == ["channels.source", "channels.cln.socket"]
        # Nobody knows who has channels: who has a backup is served.
        assert await here.meet(ALICE, b"newer") == b"backup"
        assert "try again later" in (await here.refused(BOB))[1]


async def test_a_check_of_the_configuration_names_files_that_are_missing(
    node: FakeNode, tmp_path: Path
) -> None:
    async with beside(node, tmp_path) as here:
        await here.start()
        assert (await here.document("config", "check"))["warnings"] == []
        files = configured.source_files(
            load(tmp_path, None, {}, here.daemon.settings).config, tmp_path
        )
        for file in files:
            file.rename(tmp_path / "aside")
            checked = await here.command("--json", "config", "check")
            assert checked.code == 0
            assert checked.document["warnings"] == [
                f"{file} is not there, or this user may not use it"
            ]
            assert f"Warning: {file} is not there" in checked.stderr
            (tmp_path / "aside").rename(file)
        assert files


async def test_the_log_tells_no_secret(node: FakeNode, tmp_path: Path) -> None:
    async with beside(node, tmp_path) as here:
        secret, node.secret = node.secret, "another"
        await here.start()
        source = await here.source()
        assert source["trusted"] is isinstance(node, FakeCln)
        assert secret not in here.daemon.log
        assert secret not in json.dumps(source)
        node.secret = secret


# What the README has an operator write


SECTIONS = {"cln": "### Core Lightning", "lnd": "### lnd", "eclair": "### eclair"}
README = (Path(__file__).parent.parent / "README.md").read_text()


def written(node: FakeNode, name: str) -> str:
    """The configuration in the node's section of the README, with this node's paths and port."""
    section = README.split(f"\n{SECTIONS[name]}\n")[1].split("\n##")[0]
    (text,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    for key, value in re.findall(r"(?m)^(\w+) = \"([/h].*)\"$", text):
        text = text.replace(f'{key} = "{value}"', f'{key} = "{own_value(node, key)}"')
    return str(text)


def own_value(node: FakeNode, key: str) -> object:
    values = {
        "socket": "socket",
        "url": "url",
        "tls_cert": "tls_cert",
        "macaroon_file": "macaroon",
        "password_file": "password_file",
    }
    return getattr(node, values[key])


@pytest.mark.parametrize("name", SECTIONS)
async def test_the_readme_leads_from_nothing_to_a_list_of_channels(
    name: str, tmp_path: Path
) -> None:
    node = NODES[name](tmp_path)
    node.rows = [channel(ALICE, 1), channel(BOB, 2, Kind.CLOSED, 600)]
    async with beside(node, tmp_path) as here:
        here.daemon.settings = LOOPBACK
        here.daemon.data_dir.mkdir(mode=0o700)
        (here.daemon.data_dir / "config.toml").write_text(written(node, name))
        assert (await here.command("config", "check")).code == 0
        await here.start()
        assert (await here.command("info")).stdout.startswith("All is well.")
        listed = await here.command("channels", "list")
        assert [line.split()[2] for line in listed.stdout.splitlines()[1:]] == ["open", "closed"]
        await here.meet(ALICE, b"backup")


async def test_strangers_give_way_and_who_has_a_channel_or_is_allowed_does_not(
    tmp_path: Path,
) -> None:
    node = FakeCln(tmp_path)
    node.rows = [channel(ALICE, 1, Kind.PENDING)]
    allowed, *strangers = (key_pair(number) for number in range(0x63, 0x67))
    async with beside(node, tmp_path, "anyone", "store.max_peers=3") as here:
        await node.stop()
        await here.start()
        for key in (ALICE, allowed, strangers[0]):
            await here.meet(key, b"backup")
        # It is not known yet who has channels.
        assert "no more peers" in (await here.refused(BOB))[1]
        await node.start()
        await here.prune()  # asks the node
        await here.document("peers", "allow", allowed.node_id.hex())
        for key in strangers[1:]:
            assert await here.meet(key, b"backup") is None
            await here.nobody_is_left()
        stored = {row["node_id"] for row in (await here.document("peers", "list"))["items"]}
        assert stored == {key.node_id.hex() for key in (ALICE, allowed, strangers[-1])}
        await here.document("peers", "allow", allowed.node_id.hex(), "--undo")
        await here.meet(BOB, b"backup")
        stored = {row["node_id"] for row in (await here.document("peers", "list"))["items"]}
        assert ALICE.node_id.hex() in stored
        assert len(stored) == 3
