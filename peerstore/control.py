"""The operator's socket: JSON-RPC 2.0 over a Unix socket, one document a line.

Methods are named `noun.verb` and take their parameters by name. The socket is for the user that
runs the daemon alone (0600); a broken client costs a connection, never the daemon.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from peerstore.errors import ControlError, OperatorError

Method = Callable[..., Awaitable[Any]]
"""Takes the parameters by name; returns what JSON can hold or raises OperatorError."""

Document = dict[str, Any]

MAX_LINE = 1 << 20
"""Bytes of a document."""

MAX_CLIENTS = 32
"""Clients at once; for a further one the idlest gives way."""

MAX_BATCH = 100
"""Requests of a batch."""

PARTS = 2048
"""Keys, values and marks between them that are encoded at once: a millisecond or two."""

WRITE_SECONDS = 30.0
"""How long a client may read nothing of an answer."""

MAX_PATH = 107
"""Bytes of a Unix socket's path (Linux, unix(7))."""

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
REFUSED = -32000
"""The method said no; the message says why."""

_CALL_SECONDS = 10.0
_SLOW_CALLS = {"peers.connect": 90.0, "backups.prune": 3600.0}
"""How long a command waits for an answer."""


class ControlServer:
    """Serves the methods of a table on a socket."""

    def __init__(self, path: Path, methods: Mapping[str, Method]) -> None:
        self._path = path
        self._methods = methods
        self._server: asyncio.Server | None = None
        # The tasks of the clients, the idlest first.
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        """Make the socket; the caller holds the data directory's lock.

        Raises ControlError when it can't be made.
        """
        _check_path(self._path)
        # Left behind by a daemon that was killed: nobody else can own it, we hold the lock.
        self._path.unlink(missing_ok=True)
        # Made 0600, not changed to it: there is no moment at which others could connect.
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, self._path, limit=MAX_LINE, start_serving=True
            )
        except OSError as error:
            raise ControlError(
                f"the control socket {self._path} can't be made: {error.strerror or error}"
            ) from error
        finally:
            os.umask(mask)

    def close(self) -> None:
        """Close the socket and its clients."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)
        for client in list(self._clients):
            client.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs it in one
        if len(self._clients) >= MAX_CLIENTS:
            next(iter(self._clients)).cancel()
        self._clients[task] = writer
        try:
            while line := await _read_line(reader):
                self._clients[task] = self._clients.pop(task)
                async for answer in self._answers(line):
                    for number, piece in enumerate(line_of(answer)):
                        if number:
                            await asyncio.sleep(0)  # others have their turn
                        writer.write(piece)
                        async with asyncio.timeout(WRITE_SECONDS):
                            await writer.drain()
        except TimeoutError:
            writer.transport.abort()  # what it does not read is not waited for
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            del self._clients[task]
            writer.close()

    async def _answers(self, line: bytes) -> AsyncIterator[Document | list[Document]]:
        """What to answer to one line, a request or a batch; nothing for a notification."""
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            yield _error(None, PARSE_ERROR, "not a JSON document in one line")
            return
        if not isinstance(document, list) or not document:
            answer = await self._answer(document)
            if answer is not None:
                yield answer
        elif len(document) > MAX_BATCH:
            yield _error(None, INVALID_REQUEST, f"a batch has at most {MAX_BATCH} requests")
        else:
            answers = []
            for request in document:
                answers.append(await self._answer(request))
                await asyncio.sleep(0)  # others have their turn
            batch = [answer for answer in answers if answer is not None]
            if batch:
                yield batch

    async def _answer(self, request: object) -> Document | None:
        if (
            not isinstance(request, dict)
            or request.get("jsonrpc", "2.0") != "2.0"
            or not isinstance(request.get("method"), str)
            or not _is_id(request.get("id"))
        ):
            return _error(None, INVALID_REQUEST, "not a JSON-RPC 2.0 request")
        request_id = request.get("id")
        parameters = request.get("params")
        parameters = {} if parameters is None else parameters
        method = self._methods.get(request["method"])
        if method is None:
            answer = _error(request_id, METHOD_NOT_FOUND, f"no method {request['method'][:100]!r}")
        elif not isinstance(parameters, dict):
            answer = _error(request_id, INVALID_PARAMS, "params must be an object")
        else:
            answer = await _call(method, parameters, request_id)
        return answer if "id" in request else None


async def _call(method: Method, parameters: dict[str, Any], request_id: object) -> dict[str, Any]:
    try:
        result = await method(**parameters)
    except OperatorError as error:
        return _error(request_id, REFUSED, str(error))
    except TypeError as error:
        # Its text names the function; what follows that says what is wrong.
        return _error(request_id, INVALID_PARAMS, str(error).rpartition("() ")[2])
    except Exception as error:
        return _error(request_id, INTERNAL_ERROR, f"{type(error).__name__}: {error}")
    return {"jsonrpc": "2.0", "id": request_id, "result": result}


def _is_id(value: object) -> bool:
    """Whether a value may be the id of a request: what JSON can hold and repeat."""
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def _error(request_id: object, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}


def line_of(document: object) -> Iterator[bytes]:
    """A document as a line, in pieces: a long one must not keep the loop while it is encoded."""
    parts = itertools.chain(json.JSONEncoder().iterencode(document), "\n")
    while piece := "".join(itertools.islice(parts, PARTS)):
        yield piece.encode()


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:  # over MAX_LINE: where the next document begins can't be known
        return b""


def call(path: Path, method: str, **parameters: object) -> Any:
    """Ask the daemon; blocks, for commands.

    Raises FileNotFoundError or ConnectionRefusedError when none is there, ControlError for all
    else.
    """
    _check_path(path)
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_SLOW_CALLS.get(method, _CALL_SECONDS))
        try:
            client.connect(str(path))
            client.sendall(json.dumps(request).encode() + b"\n")
            with client.makefile("rb") as answers:
                line = answers.readline()
        except (FileNotFoundError, ConnectionRefusedError):
            raise
        except OSError as error:
            raise ControlError(f"the control socket {path}: {error.strerror or error}") from error
    try:
        answer = json.loads(line)
        if "error" in answer:
            raise ControlError(str(answer["error"]["message"]))
        return answer["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise ControlError(f"the control socket {path} gave no proper answer") from error


def _check_path(path: Path) -> None:
    if len(os.fsencode(path)) > MAX_PATH:
        raise ControlError(
            f"the path of the control socket {path} has more than {MAX_PATH} bytes:"
            " choose a shorter --data-dir"
        )
