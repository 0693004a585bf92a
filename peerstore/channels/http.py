"""The client for HTTP APIs that the sources for lnd and eclair share."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from peerstore.channels.answers import Rows, decode, printable
from peerstore.errors import SourceError
from peerstore.files import NotAFileError, open_file

T = TypeVar("T")

MAX_EVENT = 4 * 1024 * 1024
"""Bytes of one event that a node tells."""

_MAX_ROWS = 2_000_000
"""Rows of one list."""

_MAX_CREDENTIAL = 64 * 1024
"""Bytes of a certificate, macaroon or password that are read."""

_MAX_REFUSAL = 64 * 1024
"""Bytes read of an answer that says why something was refused."""


@dataclass(frozen=True, slots=True)
class Access:
    """What lets peerstore in, read from its files anew for each connection.

    `secrets` are the forms in which `headers` hold what must not be shown.
    """

    headers: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    tls: ssl.SSLContext | None = None


def read_credential(path: Path, what: str) -> bytes:
    """A file's bytes; raises SourceError that names it, never what is in it."""
    try:
        with open_file(path) as file:
            data = file.read(_MAX_CREDENTIAL)
    except NotAFileError as error:
        raise SourceError(f"{what} {path} is no file: correct the path") from error
    except FileNotFoundError as error:
        raise SourceError(
            f"{what} {path} is not there: put it there, or correct the path"
        ) from error
    except OSError as error:
        raise SourceError(
            f"{what} {path} can't be read: {error.strerror or error}: let peerstore's user read it"
        ) from error
    if not data.strip():
        raise SourceError(f"{what} {path} is empty: put it there anew")
    return data


class HttpApi:
    """How a node's HTTP API is reached.

    `who` begins each error; `refused` tells the operator what to do when the credentials don't
    let peerstore in, `certificate` when the certificate is not the expected one.
    """

    def __init__(
        self,
        who: str,
        url: str,
        access: Callable[[], Access],
        *,
        refused: str,
        certificate: str,
        schemes: tuple[str, ...],
        seconds: float,
        max_answer: int,
    ) -> None:
        self.url = url.rstrip("/")
        self.who = f"{who} at {printable(self.url)}"
        self.refused = refused
        self.seconds = seconds
        self.max_answer = max_answer
        self._access = access
        self._certificate = certificate
        self._schemes = schemes

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[HttpConnection]:
        """A connection that is closed at the end; whatever goes wrong on it is a SourceError."""
        self._check_url()
        access = self._access()
        timeout = aiohttp.ClientTimeout(
            total=10 * self.seconds, sock_connect=self.seconds, sock_read=self.seconds
        )
        try:
            async with aiohttp.ClientSession(
                headers={**access.headers, "Accept-Encoding": "identity"},
                connector=aiohttp.TCPConnector(ssl=access.tls or True),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # what a few bytes unfold to has no bound
                timeout=timeout,
                trace_configs=[self._tracing()],
            ) as session:
                yield HttpConnection(self, session, access.secrets)
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            raise self._fault(error) from error

    def _tracing(self) -> aiohttp.TraceConfig:
        """Lets nobody send us to another address."""

        async def refuse(*_: object) -> None:
            raise SourceError(f"{self.who} redirects to another address: is url right?")

        config = aiohttp.TraceConfig()
        config.on_request_redirect.append(refuse)
        return config

    def _check_url(self) -> None:
        if "@" in self.url:  # before anything else: no text may repeat it
            raise SourceError("the node's url holds a user or password: leave it out")
        try:
            parts = urlsplit(self.url)
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in self._schemes or not parts.hostname:
            raise SourceError(
                f"{self.who} can't be asked: its url begins with {' or '.join(self._schemes)},"
                " then :// and host:port"
            )

    def _fault(self, error: aiohttp.ClientError | OSError | UnicodeError) -> SourceError:
        """What to tell the operator of an error below HTTP."""
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            if getattr(error.certificate_error, "verify_code", None) == _EXPIRED:
                what = f"shows a certificate that has expired: {self._certificate}"
            else:
                what = f"does not show the expected certificate: {self._certificate}"
        elif isinstance(error, aiohttp.ClientConnectorSSLError):
            what = "can't be spoken to over TLS: is it the port of its HTTPS API?"
        elif isinstance(error, aiohttp.WSServerHandshakeError):
            return self.refusal("/ws", error.status, "")
        elif isinstance(error, aiohttp.ClientConnectorDNSError | UnicodeError):
            what = "can't be found: no such host: is url right?"
        elif isinstance(error, aiohttp.ClientConnectorError):
            reason = os.strerror(error.errno) if error.errno else "no connection"
            what = f"can't be reached: {reason}: is it running, and is url right?"
        elif isinstance(error, TimeoutError):
            what = "did not answer in time: is it busy, stuck or behind a firewall?"
        elif isinstance(error, aiohttp.ClientResponseError):
            what = "does not speak HTTP as it should: is it the port of its HTTP API?"
        else:
            what = "hung up before its answer was whole: is it stopping? see its log"
            if self.url.startswith("http:"):
                what += ", and whether it wants https"
        return SourceError(f"{self.who} {what}")

    def refusal(self, path: str, status: int, words: str) -> SourceError:
        """What to tell the operator of an HTTP status that is not 200."""
        said = f"HTTP {status}" + (f", {printable(words)!r}" if words else "")
        if status in (401, 403) or any(word in words.lower() for word in _CREDENTIAL_WORDS):
            return SourceError(f"{self.who} does not let peerstore in ({said}): {self.refused}")
        if status == 404:
            return SourceError(
                f"{self.who} does not know {path} ({said}): is it the port of its API, ready, and"
                " of a version that peerstore knows?"
            )
        return SourceError(f"{self.who} refused {path} ({said}): see its log")


_EXPIRED = 10
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED."""

_CREDENTIAL_WORDS = ("macaroon", "verification failed", "permission denied", "root key", "caveat")
"""lnd refuses a macaroon with HTTP 500 and a text."""


class HttpConnection:
    """An open connection to a node's API; its errors are translated by `HttpApi.connect`."""

    def __init__(
        self, api: HttpApi, session: aiohttp.ClientSession, secrets: tuple[str, ...]
    ) -> None:
        self.session = session
        self._api = api
        self._secrets = secrets

    async def get(self, path: str, kind: type[T]) -> T:
        """GET a document."""
        async with self.session.get(self._api.url + path) as response:
            return await self._document(path, response, kind)

    async def post(self, path: str, kind: type[T], **form: str) -> T:
        """POST a form; the answer is a document."""
        url = self._api.url + path
        async with self.session.post(url, data=form) as response:
            return await self._document(path, response, kind)

    async def _document(self, path: str, response: aiohttp.ClientResponse, kind: type[T]) -> T:
        await self.check(path, response)
        data = bytearray()
        async for piece in response.content.iter_any():
            data += piece
            if len(data) > self._api.max_answer:
                raise self.too_long(path)
        return await asyncio.to_thread(decode, data, kind, self._api.who, path)

    async def rows(
        self, method: str, path: str, kind: type[T], depth: int, frame: type[Any]
    ) -> list[T]:
        """Ask for a document that is one long list; see Rows."""
        rows = Rows(kind, depth, self._api.who, path)
        async with self.session.request(method, self._api.url + path) as response:
            await self.check(path, response)
            async for piece in response.content.iter_any():
                await asyncio.to_thread(rows.feed, piece)
                if rows.waiting > self._api.max_answer or len(rows.rows) > _MAX_ROWS:
                    raise self.too_long(path)
        return await asyncio.to_thread(rows.end, frame)

    def too_long(self, path: str) -> SourceError:
        """What to raise when an answer has no end."""
        return SourceError(
            f"{self._api.who} answers {path} with more than {self._api.max_answer} bytes:"
            " is it the right node and port?"
        )

    async def check(self, path: str, response: aiohttp.ClientResponse) -> None:
        """Raise SourceError unless the answer is a JSON document."""
        if response.status != 200:
            words = self.unsecret(_words(await response.content.read(_MAX_REFUSAL)))
            raise self._api.refusal(path, response.status, words)
        if response.content_type != "application/json":
            raise SourceError(
                f"{self._api.who} answers {path} with {printable(response.content_type, 50)!r},"
                " not JSON: is it the port of its API?"
            )

    def unsecret(self, words: str) -> str:
        """The node's words, or nothing when it repeats a secret in them."""
        said = words.lower()
        return "" if any(secret.lower() in said for secret in self._secrets) else words


class _Words(msgspec.Struct):
    """lnd says why it refuses in `message`, eclair in `error`."""

    message: str = ""
    error: str = ""


def _words(body: bytes) -> str:
    try:
        words = msgspec.json.decode(body, type=_Words)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""
    return words.message or words.error


class Subscription:
    """Listens for changes, also between two calls of `changed`, so that none is missed there.

    `listen` runs until it raises SourceError, and calls its argument at each change.
    """

    def __init__(self, listen: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        self._listen = listen
        self._told = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def changed(self) -> None:
        """Wait for a change; raises SourceError when listening failed, and then begins anew."""
        if self._task is None:
            self._told.clear()
            self._task = asyncio.create_task(self._run())
        await self._told.wait()
        self._told.clear()
        if self._task.done():
            task, self._task = self._task, None
            task.result()

    async def _run(self) -> None:
        try:
            await self._listen(self._told.set)
        finally:
            self._told.set()

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()  # nobody will ask for it
