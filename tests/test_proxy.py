"""The way to a peer through a SOCKS5 proxy, which may be any program at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from peerstore import proxy as proxy_module
from peerstore import server as server_module
from peerstore.client import Client
from peerstore.config import Config, Dial
from peerstore.config_values import ProxyAddress
from peerstore.configured import route
from peerstore.errors import DialError, ProbeError
from peerstore.proxy import STRAIGHT, Route
from peerstore.types import Network, NodeAddress, is_onion
from tests.daemon import LOOPBACK, Daemon, run_command
from tests.helpers import Cut, byte_by_byte, whole
from tests.socks import IPV4, IPV6, NAME, Asked, Proxy, listening, proxying
from tests.test_dial import another, dead_port
from tests.test_server import KEPT, KEY, SOON, Node, serving

ONION = f"{'a' * 56}.onion"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """The node that dials; it keeps KEPT for KEY."""
    async with serving(tmp_path) as node:
        yield node


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Node]:
    """The node that is dialed; its key is KEY."""
    async with another(tmp_path) as node:
        yield node


@pytest.fixture
async def proxy(other: Node) -> AsyncIterator[Proxy]:
    """A proxy that connects to the other node, whatever it is asked for."""
    async with proxying(other.server.addresses[0]) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[structlog.typing.EventDict]]:
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as events:
        yield events


@pytest.fixture
def no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any look-up of a name on this machine fails the test."""

    def fail(host: object, *_: object, **__: object) -> None:
        raise AssertionError(f"{host!r} is looked up")

    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "getnameinfo"):
        monkeypatch.setattr(socket, name, fail)


def asked_for(host: str, port: int = 9735) -> NodeAddress:
    return NodeAddress(KEY.node_id, host, port)


@pytest.mark.usefixtures("no_resolver")
@pytest.mark.parametrize(
    ("host", "kind"),
    [
        (ONION, NAME),
        ("node.example.com", NAME),
        ("localhost", NAME),
        ("192.0.2.1", IPV4),
        ("2001:db8::1", IPV6),
    ],
)
async def test_with_proxy_all_everything_goes_through_it_and_nothing_is_looked_up(
    node: Node, proxy: Proxy, host: str, kind: int
) -> None:
    node.server.route = Route(proxy.address, proxy_all=True)
    connection = await node.server.dial(asked_for(host))
    assert connection.met
    assert proxy.asked == [Asked(kind, host, 9735)]
    # No name and no password: to a proxy that wants none they could be a mistake.
    assert proxy.methods == [b"\x00"]
    shown = f"[{host}]:9735" if kind == IPV6 else f"{host}:9735"
    assert connection.describe()["address"] == shown
    await node.store.save_visits()
    (known,) = [each async for each in node.store.reader.peers()]
    assert known.address == shown


@pytest.mark.usefixtures("no_resolver")
async def test_a_probe_goes_the_same_way(node: Node, proxy: Proxy) -> None:
    proxy.target = node.server.addresses[0]
    address = NodeAddress(node.address.node_id, "node.example.com", 1)
    way = Route(proxy.address, proxy_all=True)
    async with await Client.connect(address, KEY, route=way) as client:
        await client.init(Network.REGTEST)
        assert await client.retrieve() == KEPT
    assert proxy.asked == [Asked(NAME, "node.example.com", 1)]


async def test_without_proxy_all_only_onions_go_through_it(node: Node, proxy: Proxy) -> None:
    node.server.route = Route(proxy.address)
    straight = await node.server.dial(asked_for(*proxy.target))
    assert proxy.asked == []
    await node.server.dial(asked_for(ONION.upper() + "."), renew=True)
    assert proxy.asked == [Asked(NAME, ONION.upper() + ".", 9735)]
    assert straight.closing


@pytest.mark.usefixtures("no_resolver")
@pytest.mark.parametrize("way", [STRAIGHT, Route(None, proxy_all=True)])
@pytest.mark.parametrize("host", [ONION, "a.B.ONION.", "onion.onion"])
async def test_an_onion_without_a_proxy_is_an_error_that_says_what_to_set(
    node: Node, way: Route, host: str
) -> None:
    node.server.route = way
    with pytest.raises(DialError, match=r"needs a proxy: set dial\.proxy"):
        await node.server.dial(asked_for(host))
    with pytest.raises(ProbeError, match=r"needs a proxy: set dial\.proxy"):
        await Client.connect(asked_for(host), KEY, route=way)


@pytest.mark.parametrize("host", ["onion", "onion.example.com", "1.2.3.4", "::1", "aonion"])
def test_what_only_looks_like_an_onion_is_none(host: str) -> None:
    assert not is_onion(host)
    assert not STRAIGHT.through_proxy(host)


def test_the_route_is_what_is_configured() -> None:
    assert route(Config()) == STRAIGHT
    dial = Dial(proxy=ProxyAddress("[::1]:9050"), proxy_all=True)
    assert route(Config(dial=dial)) == Route(("::1", 9050), proxy_all=True)


# Proxies that do not do it

METHOD = b"\x05\x00"
ANSWERS = {
    "hangs up": (b"", "no proper answer"),
    "hangs up in its first answer": (b"\x05", "no proper answer"),
    "hangs up behind its first answer": (METHOD, "no proper answer"),
    "hangs up in its second answer": (METHOD + b"\x05\x00\x00\x01\x7f", "no proper answer"),
    "wants a password": (b"\x05\x02", "no proper answer"),
    "takes nobody": (b"\x05\xff", "no proper answer"),
    "a method that there is not": (b"\x05\x77", "no proper answer"),
    "is a SOCKS4 proxy": (b"\x00\x5a" + bytes(6), "no proper answer"),
    "is a web server": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is it SOCKS5?"),
    "changes its version": (METHOD + b"\x04\x00\x00\x01" + bytes(6), "no proper answer"),
    "a reserved byte": (METHOD + b"\x05\x00\x01\x01" + bytes(6), "no proper answer"),
    "a type of address": (METHOD + b"\x05\x00\x00\x07" + bytes(6), "no proper answer"),
    "a name that is none": (METHOD + b"\x05\x00\x00\x03\x01\xff\x00\x00", "proxy"),
    "a code that there is not": (METHOD + b"\x05\x63\x00\x01" + bytes(6), "no proper answer"),
    **{
        f"code {code}": (METHOD + bytes((5, code, 0, 1)) + bytes(6), f"can't connect to it: {why}")
        for code, why in {
            1: "general failure",
            2: "not allowed",
            3: "network unreachable",
            4: "host unreachable",
            5: "connection refused",
            6: "it took too long",
            7: "it can't do that",
            8: "it does not know this type of address",
        }.items()
    },
}


@contextlib.asynccontextmanager
async def saying(data: bytes, cut: Cut) -> AsyncIterator[tuple[str, int]]:
    """A proxy that says this whatever it hears, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for piece in cut(data):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            writer.write_eof()
            await reader.read()
        writer.close()

    async with listening(serve) as address:
        yield address


@pytest.mark.usefixtures("no_resolver")
@pytest.mark.parametrize("cut", [whole, byte_by_byte])
@pytest.mark.parametrize(("answer", "problem"), ANSWERS.values(), ids=ANSWERS)
async def test_a_wrong_answer_of_the_proxy_is_one_clear_line(
    node: Node, answer: bytes, problem: str, cut: Cut
) -> None:
    async with saying(answer, cut) as address:
        way = node.server.route = Route(address)
        with pytest.raises(DialError) as caught:
            await node.server.dial(asked_for(ONION))
        with pytest.raises(ProbeError) as probed:
            await Client.connect(asked_for(ONION), KEY, route=way)
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(f"{asked_for(ONION)}: the proxy 127.0.0.1:{address[1]}")
    assert problem in line
    assert str(probed.value).isprintable()
    assert problem in str(probed.value)
    assert node.server.connections == set()


async def test_a_proxy_that_is_not_there_is_named(node: Node) -> None:
    port = dead_port()
    node.server.route = Route(("127.0.0.1", port))
    with pytest.raises(DialError, match=rf"the proxy 127\.0\.0\.1:{port} can't be reached: "):
        await node.server.dial(asked_for(ONION))


@pytest.mark.parametrize("answer", [b"", b"\x05", METHOD, METHOD + b"\x05\x00\x00\x01"])
async def test_a_proxy_that_hangs_is_given_up(
    node: Node, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "DIAL_SECONDS", SOON)
    monkeypatch.setattr(proxy_module, "PROXY_SECONDS", SOON)
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()
        closed.set()
        writer.close()

    async with listening(serve) as address:
        way = node.server.route = Route(address)
        with pytest.raises(DialError, match=r"no answer within 0\.1 s through the proxy"):
            await node.server.dial(asked_for(ONION))
        await closed.wait()
        closed.clear()
        with pytest.raises(ProbeError, match=r"no answer within 0\.1 s"):
            await Client.connect(asked_for(ONION), KEY, route=way, timeout=SOON)
        await closed.wait()


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b", "é" * 300, "01.2.3.4"])
async def test_a_name_that_can_not_be_sent_is_an_error(node: Node, proxy: Proxy, host: str) -> None:
    node.server.route = Route(proxy.address, proxy_all=True)
    with pytest.raises(DialError, match=KEY.node_id.hex()):
        await node.server.dial(asked_for(host))
    assert proxy.asked == []


# The commands


def test_no_proxy_is_imported_where_none_is_used() -> None:
    code = (
        "import sys, peerstore.daemon, peerstore.client, peerstore.cli.probe;"
        " sys.exit('python_socks' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_the_command_probe_goes_through_the_proxy(daemon: Daemon, tmp_path: Path) -> None:
    uri = f"{daemon.document['node_id']}@{ONION}:9735"
    async with proxying((daemon.address.host, daemon.address.port)) as proxy:
        for settings in ((), ("dial.proxy_all=true",)):
            result = await asyncio.to_thread(
                run_command,
                tmp_path / "prober",
                *("probe", uri if not settings else uri.replace(ONION, "node.example.com")),
                settings=(*LOOPBACK, f"dial.proxy={proxy.text}", *settings),
            )
            assert (result.code, result.stderr) == (0, "")
    hosts = [ONION, ONION, "node.example.com", "node.example.com"]
    assert proxy.asked == [Asked(NAME, host, 9735) for host in hosts]


def test_the_command_probe_says_what_to_set_for_an_onion(tmp_path: Path) -> None:
    result = run_command(tmp_path / "prober", "probe", f"{KEY.node_id.hex()}@{ONION}:9735")
    assert result.code == 1
    assert "set dial.proxy" in result.stderr
