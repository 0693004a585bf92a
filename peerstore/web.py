"""The HTTP listener for operators and their tools: it hands out pages, and takes nothing."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Collection, Mapping

import structlog
from aiohttp import web

from peerstore.addresses import parse_ip
from peerstore.errors import AddressError
from peerstore.pages import Handler, Page
from peerstore.types import parse_host_port

MAX_CLIENTS = 32
"""Connections at once; one more takes the place of the oldest."""

PAGE_SECONDS = 10.0
"""How long a page may take to be made, should the database hang."""

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
        # What is no HTTP is answered so; it is no matter for the daemon's log.
        quiet = logging.getLogger(__name__)
        quiet.disabled = True
        self._server = web.Server(
            self._answer, access_log=None, keepalive_timeout=60.0, logger=quiet
        )
        self._listeners: list[asyncio.Server] = []

    async def start(self, sock: socket.socket) -> None:
        """Serve until `close`."""
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_server(self._connection, sock=sock))

    async def close(self) -> None:
        """Stop, and cut who still reads."""
        for listener in self._listeners:
            listener.close()
        await self._server.shutdown(timeout=0)

    def _connection(self) -> asyncio.Protocol:
        connections = self._server.connections
        if len(connections) >= MAX_CLIENTS:
            connections[0].force_close()
        return self._server()

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
        if request.path in self._guarded and not _is_address(request.host):
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


def _is_address(host: str) -> bool:
    """Whether a Host header names no name."""
    try:
        name, _ = parse_host_port(host if _PORT.search(host) else f"{host}:80")
    except AddressError:
        return False
    return name == "localhost" or parse_ip(name) is not None


def _text(text: str, status: int) -> Page:
    return Page(f"{text}\n".encode(), status=status)
