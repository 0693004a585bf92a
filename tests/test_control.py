"""The control socket against clients that do not play by the rules, with peers served beside it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import structlog

from peerstore import control as control_module
from peerstore.config import load
from peerstore.control import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    MAX_CLIENTS,
    MAX_LINE,
    METHOD_NOT_FOUND,
    REFUSED,
    ControlServer,
    call,
)
from peerstore.daemon import Daemon
from tests.test_server import KEPT, KEY, OTHER_KEY, SOON, Node, assert_nothing_changed, serving

INFO = {"jsonrpc": "2.0", "id": "mine", "method": "daemon.info"}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.reset_defaults()
    with structlog.testing.capture_logs():
        yield


@pytest.fixture(autouse=True)
async def loop_problems() -> AsyncIterator[list[dict[str, Any]]]:
    """What the loop had to complain of: a client must leave nothing there."""
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    yield problems
    assert problems == []


class Client:
    """One connection to the control socket that can say whatever it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def hear_line(self) -> bytes:
        """The next line, empty when the server has closed."""
        try:
            return await self._reader.readline()
        except ConnectionError:
            return b""

    async def hear(self) -> Any:
        """The next answer, None when the server has closed."""
        line = await self.hear_line()
        return json.loads(line, parse_constant=_no_json) if line else None

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        # A server that has had enough may have closed already.
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def ask(self, document: object) -> Any:
        """The answer to a document, or to bytes that may be none."""
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        await self.say(data + b"\n")
        return await self.hear()

    async def is_served(self) -> bool:
        answer = await self.ask(INFO)
        return answer is not None and answer["id"] == "mine" and "result" in answer


def _no_json(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Client]:
    """A client of the control socket."""
    reader, writer = await asyncio.open_unix_connection(path, limit=64 * MAX_LINE)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


MANY = [{"number": number, "text": "é", "nothing": None} for number in range(20_000)]


class Extra:
    """Methods that only a test has."""

    def __init__(self) -> None:
        self.calls = 0
        self.turns: list[int] = []
        self.turn_now = 0
        self._handle: asyncio.Handle
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def large(self) -> str:
        """An answer of 256 KiB."""
        self.calls += 1
        return "x" * (256 << 10)

    async def many(self) -> dict[str, Any]:
        """An answer of very many items."""
        return {"items": MANY}

    @contextlib.contextmanager
    def turning(self) -> Iterator[None]:
        """Count the turns of the loop within the block."""
        loop = asyncio.get_running_loop()

        def turn() -> None:
            self.turn_now += 1
            self._handle = loop.call_soon(turn)

        turn()
        try:
            yield
        finally:
            self._handle.cancel()

    async def turn(self) -> None:
        """Remember at which turn of the loop this is called."""
        self.turns.append(self.turn_now)

    async def wait(self) -> str:
        self.begun.set()
        await self.go_on.wait()
        return "done"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node that keeps KEPT for KEY; after each test it still serves and has nothing else."""
    async with serving(tmp_path) as node:
        yield node
        await assert_nothing_changed(node)


@pytest.fixture
def daemon(node: Node, tmp_path: Path) -> Daemon:
    """The daemon around the node."""

    def read_config() -> Any:
        return load(tmp_path, None, {})

    store = node.store
    return Daemon(read_config(), read_config, node.server.key, store, node.server, store.reader)


@pytest.fixture
def extra() -> Extra:
    return Extra()


@pytest.fixture
async def path(daemon: Daemon, extra: Extra, tmp_path: Path) -> AsyncIterator[Path]:
    """The control socket, with all that the daemon can and what a test needs."""
    path = tmp_path / "control.sock"
    methods = {**daemon.methods(), "test.large": extra.large, "test.wait": extra.wait}
    methods |= {"test.turn": extra.turn, "test.many": extra.many}
    server = ControlServer(path, methods)
    await server.start()
    try:
        yield path
        async with connected(path) as client:
            assert await client.is_served()
    finally:
        extra.go_on.set()
        server.close()


@pytest.fixture
async def client(path: Path) -> AsyncIterator[Client]:
    """A client; after each test its connection is as good as before."""
    async with connected(path) as client:
        yield client
        assert await client.is_served()


def code_of(answer: Any) -> int:
    """The code of an error, which has a message of one line."""
    assert answer["jsonrpc"] == "2.0"
    assert "result" not in answer
    assert answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]
    code = answer["error"]["code"]
    assert isinstance(code, int)
    return code


# Wrong parameters

NODE_ID = OTHER_KEY.node_id.hex()
"""Of a peer that has nothing here: what is right is refused as well."""

RIGHT: dict[str, Any] = {
    "node_id": NODE_ID,
    "kind": "peer_storage",
    "channel_id": "",
    "revision": 1,
    "seconds": 60,
    "number": 1,
    "uri": f"{NODE_ID}@127.0.0.1:1",
    "undo": True,
    "dry_run": True,
    "acknowledged": True,
}
FLAGS = {"undo", "dry_run", "acknowledged"}

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]

WRONG: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 1e300, 1 << 63, 1 << 200),
    *("", "text", "0", "\x00", "\ud800", "\u2028", "é" * 66, "x" * 100_000),
    *(NODE_ID[:-2], f"{NODE_ID}00", f"04{NODE_ID[2:]}", f" {NODE_ID[1:]}"),
    *([], [NODE_ID], {}, {"node_id": NODE_ID}, DEEP),
]
WRONG_URIS = [
    *(NODE_ID, f"{NODE_ID}@", f"{NODE_ID}@host", f"{NODE_ID}@:1", f"{NODE_ID}@127.0.0.1:65536"),
    *(f"{NODE_ID}@127.0.0.1:1", f"{NODE_ID}@127.0.0.1:0", f"02{'ff' * 32}@127.0.0.1:1"),
    *(f"{NODE_ID}@a..b:1", f"{NODE_ID}@{'a' * 64}.example:1", f"{NODE_ID}@a\x00b:1"),
    *(f"{NODE_ID}@\ud800:1", f"{NODE_ID}@[::1%no-such]:1"),
]


def wrong_for(name: str) -> list[Any]:
    """What is no value for a parameter, or is refused."""
    if name in FLAGS:
        return [value for value in WRONG if not isinstance(value, bool)]
    if name == "seconds":
        return [value for value in WRONG if value is not None]
    if name == "channel_id":
        return [value for value in WRONG if value != ""] + ["ab" * 32]
    return WRONG + (WRONG_URIS if name == "uri" else [])


METHODS = {
    "daemon.info": [],
    "daemon.reload": [],
    "peers.list": [],
    "peers.kept": [],
    "peers.connect": ["uri"],
    "peers.disconnect": ["node_id"],
    "peers.allow": ["node_id", "undo"],
    "peers.deny": ["node_id", "undo"],
    "peers.forget": ["node_id"],
    "backups.hold": ["node_id", "kind", "channel_id", "revision", "seconds"],
    "backups.release": ["node_id", "kind", "channel_id"],
    "backups.pin": ["node_id", "kind", "channel_id", "revision"],
    "backups.unpin": ["node_id", "kind", "channel_id", "revision"],
    "backups.delete": ["node_id", "kind", "channel_id", "revision"],
    "backups.prune": ["dry_run"],
    "alarms.list": ["acknowledged"],
    "alarms.ack": ["number"],
}
each_method = pytest.mark.parametrize("method", METHODS)


def test_every_method_is_tested(daemon: Daemon) -> None:
    assert {
        name: list(inspect.signature(method).parameters)
        for name, method in daemon.methods().items()
    } == METHODS


def request(method: str, **parameters: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name]])
async def test_a_wrong_parameter_is_answered_with_an_error(
    node: Node, client: Client, method: str
) -> None:
    right = {name: RIGHT[name] for name in METHODS[method]}
    for name in METHODS[method]:
        for value in wrong_for(name):
            answer = await client.ask(request(method, **{**right, name: value}))
            # No INTERNAL_ERROR: those are mistakes of ours.
            assert code_of(answer) in (INVALID_PARAMS, REFUSED), (name, ascii(value)[:100])
    assert await node.store.reader.rules() == {}


@each_method
async def test_a_missing_or_unknown_parameter_is_answered_with_an_error(
    client: Client, method: str
) -> None:
    right = {name: RIGHT[name] for name in METHODS[method]}
    missing: list[dict[str, Any]] = [] if set(right) <= FLAGS else [{}]
    for parameters in (*missing, {**right, "of": "you"}, {**right, "self": 1}, {**right, "": 1}):
        answer = await client.ask(request(method, **parameters))
        assert code_of(answer) == INVALID_PARAMS
    for params in ([1], "text", 1, True):
        answer = await client.ask({"id": 1, "method": method, "params": params})
        assert code_of(answer) == INVALID_PARAMS


@each_method
async def test_a_notification_with_wrong_parameters_is_not_answered(
    client: Client, method: str
) -> None:
    await client.say(json.dumps({"method": method, "params": {"of": "you"}}).encode() + b"\n")
    assert await client.is_served()


# Batches


def error(code: int, request_id: object = None) -> tuple[object, int]:
    return (request_id, code)


PING = {"jsonrpc": "2.0", "id": 7, "method": "peers.list"}
UNKNOWN = {"id": 8, "method": "no.such"}
BATCHES: dict[str, tuple[list[Any], list[tuple[object, int | None]]]] = {
    "of one": ([PING], [(7, None)]),
    "of several": ([PING, INFO, PING], [(7, None), ("mine", None), (7, None)]),
    "with an unknown method": ([UNKNOWN, PING], [error(METHOD_NOT_FOUND, 8), (7, None)]),
    "with junk": (
        [1, "text", None, True, {}, PING],
        [*[error(INVALID_REQUEST)] * 5, (7, None)],
    ),
    "nested": ([[PING], [], [[]], PING], [*[error(INVALID_REQUEST)] * 3, (7, None)]),
    "with notifications": (
        [{"method": "peers.list"}, PING, {"method": "no.such"}, {"method": "peers.list"}],
        [(7, None)],
    ),
    "with wrong parameters": (
        [{**PING, "params": [1]}, {**PING, "params": {"of": "you"}}],
        [error(INVALID_PARAMS, 7)] * 2,
    ),
    "with a method that refuses": (
        [request("alarms.ack", number=1), PING],
        [error(REFUSED, 1), (7, None)],
    ),
}


@pytest.mark.parametrize(("batch", "expected"), BATCHES.values(), ids=BATCHES)
async def test_a_batch_is_answered_one_by_one(
    client: Client, batch: list[Any], expected: list[tuple[object, int | None]]
) -> None:
    answers = await client.ask(batch)
    assert [
        (answer["id"], answer.get("error", {}).get("code"))
        for answer in answers
    ] == expected  # fmt: skip


async def test_a_batch_of_notifications_is_not_answered(client: Client) -> None:
    await client.say(json.dumps([{"method": "peers.list"}, {"method": "no.such"}]).encode() + b"\n")
    assert await client.is_served()


async def test_an_empty_batch_is_no_request(client: Client) -> None:
    # JSON-RPC 2.0, section 7: one error, not a list.
    assert code_of(await client.ask([])) == INVALID_REQUEST


async def test_a_long_batch_does_not_keep_others_waiting(client: Client, extra: Extra) -> None:
    """What it costs is paid in small pieces, or not at all."""
    line = b"[" + b",".join([b"1", b'{"id": 1, "method": "test.turn"}'] * 5000) + b"]"
    with extra.turning():
        answer = await client.ask(line)
    if isinstance(answer, list):
        assert len(answer) == 10_000
        assert len(set(extra.turns)) > 10, "nothing else had its turn meanwhile"
    else:
        assert code_of(answer) == INVALID_REQUEST


async def test_a_long_answer_does_not_keep_others_waiting(
    client: Client, extra: Extra, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = asyncio.StreamWriter.write

    def write_and_remember(writer: asyncio.StreamWriter, data: bytes) -> None:
        write(writer, data)
        written.append(len(data))
        extra.turns.append(extra.turn_now)

    monkeypatch.setattr(asyncio.StreamWriter, "write", write_and_remember)
    with extra.turning():
        answer = await client.ask({"id": 1, "method": "test.many"})
    assert answer["result"] == {"items": MANY}
    assert max(written) < sum(written) / 10
    assert len(set(extra.turns)) > 10, "nothing else had its turn meanwhile"


# Lines


@pytest.mark.parametrize("place", ["id", "params", "method", "whole"])
async def test_nesting_of_any_depth_is_answered(client: Client, place: str) -> None:
    # What can be read may be too deep to be written; where that begins depends on the version.
    for depth in (1, 100, 500, *range(900, 1010), 5000, 100_000, 500_000):
        deep = "[" * depth + "]" * depth
        if place == "whole":
            document = deep
        else:
            members = {"id": "1", "method": '"no.such"', place: deep}
            document = ", ".join(f'"{name}": {value}' for name, value in members.items())
            document = f"{{{document}}}"
        await client.say(document.encode() + b"\n")
        # Too deep for us as well, perhaps.
        line = await client.hear_line()
        assert line, f"closed at a depth of {depth}"
        assert b'"error": {"code": -32' in line


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
async def test_an_id_that_is_no_number_is_answered_in_json(client: Client, number: str) -> None:
    assert await client.ask(f'{{"id": {number}, "method": "peers.list"}}'.encode()) is not None


@pytest.mark.parametrize(
    "request_id", ["", "\ud800", "\u2028\n", 0, -1, 1 << 70, None, "x" * 100_000]
)
async def test_an_id_comes_back_as_it_was(client: Client, request_id: object) -> None:
    assert (await client.ask({**INFO, "id": request_id}))["id"] == request_id


async def test_the_longest_line_is_served_and_a_longer_one_costs_its_connection_alone(
    path: Path, client: Client
) -> None:
    line = json.dumps(INFO).encode()
    assert (await client.ask(line.ljust(MAX_LINE - 1)))["id"] == "mine"
    async with connected(path) as other:
        assert await other.ask(line.ljust(2 * MAX_LINE)) is None


async def test_lines_may_come_byte_by_byte_and_many_at_once(client: Client) -> None:
    line = json.dumps(INFO).encode() + b"\n"
    for index in range(len(line)):
        await client.say(line[index : index + 1])
    assert (await client.hear())["id"] == "mine"
    await client.say(line * 100)
    for _ in range(100):
        assert (await client.hear())["id"] == "mine"


async def test_a_last_line_without_its_end_is_served_before_the_close(path: Path) -> None:
    async with connected(path) as client:
        client.writer.write(json.dumps(INFO).encode())
        client.writer.write_eof()
        assert (await client.hear())["id"] == "mine"
        assert await client.hear() is None


# Clients


async def test_for_one_client_too_many_the_idlest_gives_way(path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(path)) for _ in range(MAX_CLIENTS)]
        # The first to come is not the idlest in the end.
        for client in (*clients, clients[0]):
            assert await client.is_served()
        further = await stack.enter_async_context(connected(path))
        assert await further.is_served()
        assert await clients[1].hear() is None
        for client in (clients[0], *clients[2:]):
            assert await client.is_served()
        # A place that has become free is taken before anybody has to give way.
        clients[2].writer.close()
        await clients[2].writer.wait_closed()
        assert await clients[0].is_served()
        assert (await asyncio.to_thread(call, path, "daemon.info"))["version"]
        for client in (clients[0], *clients[3:], further):
            assert await client.is_served()


async def test_clients_without_end_that_say_nothing_keep_no_command_out(path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4 * MAX_CLIENTS):
            await stack.enter_async_context(connected(path))
        for _ in range(3):
            assert (await asyncio.to_thread(call, path, "daemon.info"))["version"]


async def test_a_client_that_never_reads_is_cut_off(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "WRITE_SECONDS", SOON)
    async with connected(path) as deaf, connected(path) as other:
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await deaf.say(b'{"id": 1, "method": "test.large"}\n' * 1000)
        # Its socket is closed, not only left alone: what is written to it comes back as an error.
        for _ in range(1000):
            if deaf.writer.transport.is_closing():
                break
            deaf.writer.write(b" ")
            assert await other.is_served()
        assert deaf.writer.transport.is_closing()


async def test_a_client_that_never_reads_costs_one_answer_and_nobody_else(
    node: Node, path: Path, extra: Extra
) -> None:
    line = json.dumps({"id": 1, "method": "test.large"}).encode() + b"\n"
    async with connected(path) as deaf, connected(path) as other:
        # Nothing is taken out of the socket, whatever comes.
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await deaf.say(line * 1000)
        for _ in range(20):
            assert await other.is_served()
            assert await node.given_back(KEY) == KEPT
        assert 0 < extra.calls < 20
        deaf.writer.transport.abort()
        assert await other.is_served()


async def test_clients_without_end_that_never_read_are_closed_on(path: Path, extra: Extra) -> None:
    line = b'{"id": 1, "method": "test.large"}\n'
    async with contextlib.AsyncExitStack() as stack:
        deaf = [await stack.enter_async_context(connected(path)) for _ in range(MAX_CLIENTS)]
        for client in deaf:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.say(line * 3)
        others = [await stack.enter_async_context(connected(path)) for _ in range(MAX_CLIENTS)]
        for other in others:
            assert await other.is_served()
        assert extra.calls >= MAX_CLIENTS
        # Each of them costs a socket and what it does not read, until it is cut off.
        for _ in range(20):
            for client in deaf:
                client.writer.write(b" ")
            assert await others[0].is_served()
        assert all(client.writer.transport.is_closing() for client in deaf)


async def test_a_client_that_waits_keeps_nobody_waiting(
    node: Node, path: Path, extra: Extra
) -> None:
    async with connected(path) as slow, connected(path) as other:
        await slow.say(b'{"id": 1, "method": "test.wait"}\n' + json.dumps(INFO).encode() + b"\n")
        await extra.begun.wait()
        assert await other.is_served()
        assert await node.given_back(KEY) == KEPT
        extra.go_on.set()
        assert (await slow.hear())["result"] == "done"
        assert (await slow.hear())["id"] == "mine"


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_client_that_leaves_before_its_answer_disturbs_nobody(
    path: Path, extra: Extra, how: str
) -> None:
    async with connected(path) as other:
        async with connected(path) as client:
            await client.say(b'{"id": 1, "method": "test.wait"}\n' * 3)
            await extra.begun.wait()
            if how == "abort":
                client.writer.transport.abort()
        assert await other.is_served()
        extra.go_on.set()
        assert await other.is_served()


async def test_a_client_that_leaves_within_an_answer_disturbs_nobody(
    path: Path, extra: Extra
) -> None:
    async with connected(path) as other:
        for _ in range(MAX_CLIENTS + 1):
            async with connected(path) as client:
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
                await client.say(b'{"id": 1, "method": "test.large"}\n' * 3)
                assert await other.is_served()
                client.writer.transport.abort()
        assert await other.is_served()
    assert extra.calls > 0


async def test_the_end_closes_every_client(tmp_path: Path, daemon: Daemon) -> None:
    path = tmp_path / "other.sock"
    server = ControlServer(path, daemon.methods())
    await server.start()
    async with connected(path) as client, connected(path) as other:
        assert await client.is_served()
        assert await other.is_served()
        server.close()
        assert await client.hear() is None
        assert await other.hear() is None
    assert not path.exists()


async def test_peers_are_served_beside_a_crowd_of_bad_clients(node: Node, path: Path) -> None:
    async def misbehave(number: int) -> None:
        async with connected(path) as client:
            for junk in (
                b"[" * 50_000,
                b"{}" * 1000,
                b"[1]",
                b"\xff",
                json.dumps(UNKNOWN).encode(),
            ):
                assert await client.ask(junk) is not None
            await client.say(b"x" * (number * 1000))

    crowd = [asyncio.create_task(misbehave(number)) for number in range(MAX_CLIENTS - 1)]
    for _ in range(5):
        assert await node.given_back(KEY) == KEPT
    await asyncio.gather(*crowd)
