"""The HTTP listener for operators and their tools: it hands out pages, and takes nothing."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Collection, Mapping
from typing import Any

import structlog
from aiohttp import web

from peerstore.addresses import parse_ip
from peerstore.errors import AddressError
from peerstore.pages import Handler, Page
from peerstore.types import parse_host_port

MAX_CLIENTS = 32
"""Connections at once; one more takes the place of the oldest."""

CLIENT_SECONDS = 60.0
"""How long one may stay: who is cut, because it does not read, say, comes again."""

PAGE_SECONDS = 8.0
"""How long a page may take to be made: less than a scraper waits."""

_PORT = re.compile(r":[0-9]+$")

_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}

_log = structlog.get_logger()


class WebServer:
    """Serves `pages`, path to handler, on sockets that listen.

    Those of `guarded` are handed out only under an IP address or localhost: else a web site that an
    operator visits could have its own name lead here, and read them (DNS rebinding).
    """

    def __init__(self, pages: Mapping[str, Handler], guarded: Collection[str] = ()) -> None:
        self._pages = pages
        self._guarded = guarded
        self._server = web.Server(self._answer)
        self._listeners: list[asyncio.Server] = []
        self.clients: dict[_Client, asyncio.TimerHandle] = {}
        """Who is connected, the longest first, and when each is cut."""

    async def start(self, sock: socket.socket) -> None:
        """Serve until `close`."""
        loop = asyncio.get_running_loop()
        self._listeners.append(
            await loop.create_server(lambda: _Client(self, self._server, loop), sock=sock)
        )

    async def close(self) -> None:
        """Stop, and cut who still reads."""
        for listener in self._listeners:
            listener.close()
        for client in list(self.clients):
            self._cut(client)
        await self._server.shutdown(timeout=0)

    def enter(self, client: _Client) -> None:
        """A connection is made."""
        if len(self.clients) >= MAX_CLIENTS:
            self._cut(next(iter(self.clients)))
        loop = asyncio.get_running_loop()
        self.clients[client] = loop.call_later(CLIENT_SECONDS, self._cut, client)

    def leave(self, client: _Client) -> None:
        """A connection is gone, or as good as that."""
        timer = self.clients.pop(client, None)
        if timer is not None:
            timer.cancel()

    def _cut(self, client: _Client) -> None:
        self.leave(client)
        if client.transport is not None:
            client.transport.abort()  # it may not read what is there for it

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        page = await self._page(request)
        return web.Response(
            body=page.body,
            status=page.status,
            headers={**_HEADERS, "Content-Type": page.content_type, **page.headers},
        )

    async def _page(self, request: web.BaseRequest) -> Page:
        handler = self._pages.get(request.path)
        if handler is None:
            known = ", ".join(self._pages)
            return _text(f"there is no such page; there are {known}", 404)
        if request.method not in ("GET", "HEAD"):
            text = "pages here can be read and nothing else: use GET"
            return Page(f"{text}\n".encode(), status=405, headers={"Allow": "GET, HEAD"})
        if request.path in self._guarded and not _is_address(request.headers.get("Host", "")):
            text = "ask by IP address or as localhost, also through a proxy (Host:)"
            return _text(text, 403)
        try:
            async with asyncio.timeout(PAGE_SECONDS):
                return await handler(request.headers.get("Accept", ""))
        except TimeoutError:
            return _text(f"not done within {PAGE_SECONDS:g} s: look at the disk and the log", 503)
        except Exception as error:  # whatever it was, the next one may succeed
            _log.exception("page_failed", path=request.path, error=str(error))
            return _text(f"{type(error).__name__}: see the daemon's log", 500)


class _Client(web.RequestHandler):
    """A connection that its server knows of."""

    __slots__ = ("_owner",)

    def __init__(self, owner: WebServer, manager: Any, loop: asyncio.AbstractEventLoop) -> None:
        # What is no HTTP is answered so; it is no matter for the daemon's log.
        quiet = logging.getLogger(__name__)
        quiet.disabled = True
        super().__init__(manager, loop=loop, access_log=quiet, logger=quiet)
        self._owner = owner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._owner.enter(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._owner.leave(self)


def _is_address(host: str) -> bool:
    """Whether a Host header names no name."""
    try:
        name, _ = parse_host_port(host if _PORT.search(host) else f"{host}:80")
    except AddressError:
        return False
    return name.lower() == "localhost" or parse_ip(name) is not None


def _text(text: str, status: int) -> Page:
    return Page(f"{text}\n".encode(), status=status)
