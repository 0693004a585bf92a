"""A SOCKS5 proxy (RFC 1928) that notes what it is asked for and connects to where a test says."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator
from typing import NamedTuple

IPV4, NAME, IPV6 = 1, 3, 4
"""Types of address."""


class Asked(NamedTuple):
    """What a client wants to be connected to."""

    kind: int
    host: str
    port: int


class Proxy:
    """The proxy; `target` is where every connection really goes."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.address = ("", 0)
        self.asked: list[Asked] = []
        self.methods: list[bytes] = []
        """The ways to authenticate that clients have offered."""

    @property
    def text(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version, count = await reader.readexactly(2)
        assert version == 5
        self.methods.append(await reader.readexactly(count))
        writer.write(b"\x05\x00")
        assert await reader.readexactly(3) == b"\x05\x01\x00"
        (kind,) = await reader.readexactly(1)
        if kind == NAME:
            (size,) = await reader.readexactly(1)
            host = (await reader.readexactly(size)).decode()
        else:
            packed = await reader.readexactly(4 if kind == IPV4 else 16)
            host = str(ipaddress.ip_address(packed))
        self.asked.append(Asked(kind, host, int.from_bytes(await reader.readexactly(2), "big")))
        there, back = await asyncio.open_connection(*self.target)
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        try:
            await asyncio.gather(_carry(reader, back), _carry(there, writer))
        finally:
            back.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def proxying(target: tuple[str, int]) -> AsyncIterator[Proxy]:
    """A proxy on 127.0.0.1."""
    proxy = Proxy(target)
    async with listening(proxy.serve) as proxy.address:
        yield proxy


@contextlib.asynccontextmanager
async def listening(
    serve: asyncio.streams._ClientConnectedCallback,  # what start_server takes
) -> AsyncIterator[tuple[str, int]]:
    """Anything on 127.0.0.1."""
    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[:2]
    finally:
        listener.close()
