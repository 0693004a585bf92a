"""The HTTP listener by itself, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import aiohttp
import pytest
from structlog.testing import capture_logs

from peerstore import web
from peerstore.pages import Handler, Page

URL = "http://127.0.0.1"


async def hello(accept: str) -> Page:
    return Page(f"hello {accept}".encode(), headers={"X-Own": "1"})


async def large(_accept: str) -> Page:
    return Page(bytes(8 << 20))


async def broken(_accept: str) -> Page:
    raise LookupError("a secret")


async def hangs(_accept: str) -> Page:
    await asyncio.Event().wait()
    raise AssertionError


PAGES: Mapping[str, Handler] = {
    "/hello": hello,
    "/guarded": hello,
    "/large": large,
    "/broken": broken,
    "/hangs": hangs,
}


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[web.WebServer, int]]:
    """PAGES on a port of their own."""
    server = web.WebServer(PAGES, guarded={"/guarded"})
    sock = socket.create_server(("127.0.0.1", 0))
    await server.start(sock)
    try:
        yield server, sock.getsockname()[1]
    finally:
        await server.close()


@asynccontextmanager
async def served() -> AsyncIterator[int]:
    """The port of PAGES."""
    async with serving() as (_, port):
        yield port


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that says nothing of itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ask(
    port: int, method: str, path: str, **headers: str
) -> tuple[int, str, Mapping[str, str]]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{URL}:{port}{path}", headers=headers) as answer,
    ):
        return answer.status, await answer.text(), answer.headers


async def test_a_page_is_handed_out_with_its_headers_and_is_not_kept_by_anyone() -> None:
    async with served() as port:
        status, text, headers = await ask(port, "GET", "/hello?x=1", Accept="all")
    assert (status, text) == (200, "hello all")
    assert headers["X-Own"] == "1"
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"


async def test_head_is_answered_without_a_body() -> None:
    async with served() as port:
        status, text, headers = await ask(port, "HEAD", "/hello")
    assert (status, text, headers["X-Own"]) == (200, "", "1")


async def test_an_unknown_page_is_answered_with_those_that_there_are() -> None:
    async with served() as port:
        status, text, _ = await ask(port, "GET", "/../etc/passwd")
    assert status == 404
    assert text == "there is no such page; there are /hello, /guarded, /large, /broken, /hangs\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_nothing_can_be_done_but_read(method: str) -> None:
    async with served() as port:
        status, text, headers = await ask(port, method, "/hello")
    assert status == 405
    assert headers["Allow"] == "GET, HEAD"
    assert "use GET" in text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("127.0.0.1:9738", 200), ("127.0.0.1", 200), ("localhost:9738", 200), ("Localhost", 200)),
        *(("[::1]:9738", 200), ("[::1]", 200), ("192.0.2.1", 200)),
        *(("evil.example:9738", 403), ("evil.example", 403), ("127.0.0.1.evil.example", 403)),
        *(("localhost.evil.example", 403), ("[evil]", 403), (":9738", 403), ("1", 403)),
    ],
)
async def test_a_guarded_page_is_handed_out_under_no_name(host: str, status: int) -> None:
    async with served() as port:
        assert (await ask(port, "GET", "/guarded", Host=host))[0] == status
        assert (await ask(port, "GET", "/hello", Host=host))[0] == 200


async def test_a_page_that_fails_is_logged_and_tells_nobody_particulars() -> None:
    async with served() as port:
        with capture_logs() as logs:
            status, text, _ = await ask(port, "GET", "/broken")
        assert (status, text) == (500, "LookupError: see the daemon's log\n")
        assert [(line["event"], line["path"]) for line in logs] == [("page_failed", "/broken")]
        assert (await ask(port, "GET", "/hello"))[0] == 200


async def test_a_page_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PAGE_SECONDS", 0.01)
    async with served() as port:
        status, text, _ = await ask(port, "GET", "/hangs")
    assert status == 503
    assert "look at the disk and the log" in text


async def cut(reader: asyncio.StreamReader) -> bool:
    """Whether the server has closed, or closes, without a word."""
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


async def test_who_stays_without_a_word_keeps_nobody_out() -> None:
    async with served() as port, AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connected(port)) for _ in range(web.MAX_CLIENTS)]
        assert (await ask(port, "GET", "/hello"))[0] == 200
        assert await cut(idle[0][0])
        # The others were left alone.
        reader, writer = idle[-1]
        writer.write(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def end_of(reader: asyncio.StreamReader) -> None:
    """Return when the server has cut the connection, whatever came before."""
    with suppress(ConnectionError):
        while await reader.read(1 << 16):
            pass


async def test_a_crowd_is_held_down_to_the_limit_at_once() -> None:
    async with served() as port, AsyncExitStack() as stack:
        crowd = [stack.enter_async_context(connected(port)) for _ in range(200)]
        readers = [reader for reader, _ in await asyncio.gather(*crowd)]
        ends = [asyncio.create_task(end_of(reader)) for reader in readers]
        waiting = set(ends)
        while len(waiting) > web.MAX_CLIENTS:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert (await ask(port, "GET", "/hello"))[0] == 200
        for end in ends:
            end.cancel()


async def test_who_does_not_read_is_cut_all_the_same() -> None:
    """What it was sent before waits for it in vain: it would keep a descriptor for as long."""
    async with serving() as (server, port), connected(port) as (reader, writer):
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 4)
        await reader.readexactly(1)
        (deaf,) = server.clients
        while deaf.transport is None or not deaf.transport.get_write_buffer_size():
            await ask(port, "GET", "/hello")
        async with AsyncExitStack() as stack:
            for _ in range(web.MAX_CLIENTS):
                await stack.enter_async_context(connected(port))
            while deaf.transport is not None:
                await ask(port, "GET", "/hello")


async def test_nobody_stays_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CLIENT_SECONDS", 0.01)
    async with served() as port, connected(port) as (reader, _):
        assert await cut(reader)


def endless(data: bytes) -> bytes:
    return data * 70000


@pytest.mark.parametrize(
    "junk",
    [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", endless(b"A"), b"GET / HTTP/1.1\r\n" + endless(b"A")],
    ids=["bytes", "no path", "endless line", "endless header"],
)
async def test_junk_costs_its_connection_alone(
    junk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as port:
        async with connected(port) as (reader, writer):
            writer.write(junk)
            assert (await reader.readline()).startswith(b"HTTP/1.0 400")
        assert (await ask(port, "GET", "/hello"))[0] == 200
    assert not caplog.records


async def test_after_close_nobody_is_listening() -> None:
    async with served() as port, connected(port) as (reader, _):
        await ask(port, "GET", "/hello")
    with pytest.raises(ConnectionError):
        async with connected(port):
            pass
    assert reader.at_eof() or await cut(reader)
