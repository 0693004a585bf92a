"""Core Lightning as a source of channels, over its JSON-RPC socket.

Sources: lightningd-rpc(7) and doc/schemas in ElementsProject/lightning.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from peerstore.channels.answers import (
    ANSWER_SECONDS,
    MAX_ANSWER,
    Gathered,
    Height,
    Nesting,
    check_network,
    decode,
    printable,
    read_node_id,
)
from peerstore.channels.base import Answer, NodeChannel
from peerstore.errors import SourceError
from peerstore.types import Network

T = TypeVar("T")


class Document:
    """Finds the end of a JSON document, whatever pieces it comes in.

    lightningd has no framing but the document itself. Nothing follows an answer until the next
    question, so that only the end of a piece can be the end of a document.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self._nesting = Nesting()

    def feed(self, piece: bytes) -> bool:
        """Take a piece; whether the document is whole, or can become none any more."""
        if not self.data:
            piece = piece.lstrip()  # blank lines stand between documents
        self.data += piece
        self._nesting.take(piece)
        return bool(self.data) and self._nesting.depth <= 0 and not self._nesting.in_string


class _Refusal(msgspec.Struct):
    code: int
    message: str


class _Reply(msgspec.Struct):
    id: str | int | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: _Refusal | None = None


class _Info(msgspec.Struct):
    """getinfo."""

    id: str
    network: str
    blockheight: Height
    warning_bitcoind_sync: str | None = None
    warning_lightningd_sync: str | None = None


class _PeerChannel(msgspec.Struct, gc=False):
    """listpeerchannels; a channel that is being negotiated has no id yet."""

    peer_id: str
    state: str
    channel_id: str | None = None


class _PeerChannels(msgspec.Struct):
    channels: list[_PeerChannel]


class _ClosedChannel(msgspec.Struct, gc=False):
    """listclosedchannels; what was closed before 23.05 may lack its peer."""

    channel_id: str
    peer_id: str | None = None


class _ClosedChannels(msgspec.Struct):
    closedchannels: list[_ClosedChannel]


class _Move(msgspec.Struct, gc=False):
    """listchainmoves."""

    created_index: int
    account_id: str
    primary_tag: str
    extra_tags: list[str]
    utxo: str
    blockheight: Height


class _Moves(msgspec.Struct):
    chainmoves: list[_Move]


class _Event(msgspec.Struct, gc=False):
    """bkpr-listaccountevents."""

    account: str
    tag: str
    blockheight: Height | None = None


class _Events(msgspec.Struct):
    events: list[_Event]


class _Block(msgspec.Struct):
    """waitblockheight."""

    blockheight: Height


_CLOSED = frozenset({"ONCHAIN", "CLOSED"})
"""The states in which the closing transaction is mined; every other one, known or not, is open."""

_NEGOTIATED = frozenset({"OPENINGD", "DUALOPEND_OPEN_INIT"})
"""The states of what is no channel yet: nothing is signed or saved, and the id, where there is one,
is temporary. It would cost a stranger one `open_channel` to count as a peer with a channel."""

_NETWORKS = {network.value: network for network in Network}

_UNKNOWN_METHOD = -32601
_WAIT_TIMED_OUT = 2000

_MAX_PATH = 107
"""What sockaddr_un has room for, without its final zero byte."""

_MOVES_AT_ONCE = 10_000
_WAIT_SECONDS = 60


class _Connection:
    """One connection to lightningd; one question at a time."""

    def __init__(
        self,
        who: str,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        seconds: float,
        max_answer: int,
    ) -> None:
        self._who = who
        self._reader, self._writer = streams
        self._seconds = seconds
        self._max_answer = max_answer
        self._questions = 0

    async def get(self, method: str, kind: type[T]) -> T:
        """Ask something that lightningd must know; raises SourceError."""
        result = await self.call(method, {}, kind)
        if isinstance(result, _Refusal):
            raise self.refused(method, result)
        return result

    async def call(
        self, method: str, params: dict[str, Any], kind: type[T], patience: float = 0
    ) -> T | _Refusal:
        """Ask; `patience` is how many seconds longer than others the answer may take.

        Raises SourceError when there is no proper answer.
        """
        self._questions += 1
        question = {
            "jsonrpc": "2.0",
            "id": f"peerstore-{self._questions}",
            "method": method,
            "params": params,
            # A channel has some three kilobytes of fields, of which three are of interest.
            "filter": _template(kind),
        }
        self._writer.write(msgspec.json.encode(question))
        data = await self._answer(method, patience)
        return await asyncio.to_thread(self._read, data, kind, method, question["id"])

    def _read(self, data: bytearray, kind: type[T], method: str, number: object) -> T | _Refusal:
        reply = decode(data, _Reply, self._who, method)
        if reply.id != number:
            raise SourceError(
                f"{self._who} answered another question than {method}: is it lightningd's socket?"
            )
        if reply.error is not None:
            return reply.error
        if reply.result is msgspec.UNSET:
            raise SourceError(
                f"{self._who} answered {method} with neither result nor error:"
                " is it lightningd's socket?"
            )
        return decode(reply.result, kind, self._who, method)

    async def _answer(self, method: str, patience: float) -> bytearray:
        document = Document()
        try:
            async with asyncio.timeout(10 * self._seconds + patience):
                whole = False
                while not whole:
                    async with asyncio.timeout(self._seconds + patience):
                        piece = await self._reader.read(_PIECE)
                    if not piece:
                        raise SourceError(
                            f"{self._who} hung up before its answer to {method} was whole:"
                            " is lightningd stopping?"
                        )
                    whole = document.feed(piece)
                    if len(document.data) > self._max_answer:
                        raise SourceError(
                            f"{self._who} answers {method} with more than {self._max_answer}"
                            " bytes: is it lightningd's socket?"
                        )
        except TimeoutError as error:
            raise SourceError(
                f"{self._who} did not answer {method} in time: is lightningd busy or stuck?"
            ) from error
        except OSError as error:
            raise SourceError(
                f"{self._who} hung up before its answer to {method} was whole:"
                f" {error.strerror or error}"
            ) from error
        return document.data

    def refused(self, method: str, refusal: _Refusal) -> SourceError:
        """What to raise when lightningd answers with an error."""
        return SourceError(
            f"{self._who} refused {method} ({refusal.code}): {printable(refusal.message)}:"
            " see lightningd's log, and whether its version is 23.05 or newer"
        )


_PIECE = 1 << 20


def _template(kind: type) -> dict[str, Any]:
    """The field filter of lightningd-rpc(7) that lets through what a struct holds."""
    template: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        (inner, *_) = getattr(field.type, "__args__", (None,))
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            template[field.name] = [_template(inner)]
        else:
            template[field.name] = True
    return template


class _Heights:
    """The heights at which channels were closed, by channel id in hexadecimal.

    listchainmoves only grows, so that only what is new is asked for. The newest move that is known
    is asked for again each time: when it is not what it was, lightningd has another database, and
    everything is read anew.
    """

    def __init__(self) -> None:
        self._closed: dict[str, int] = {}
        self._newest: _Move | None = None

    async def read(self, connection: _Connection) -> Mapping[str, int]:
        """Bring them up to date; empty where lightningd knows of none. Raises SourceError."""
        moves = await self._page(connection)
        if moves is not None and self._newest and moves[:1] != [self._newest]:
            self._forget()
            moves = await self._page(connection)
        while moves is not None:
            self._take(moves)
            if len(moves) < _MOVES_AT_ONCE:
                return self._closed
            moves = await self._page(connection)
        self._forget()
        return await _from_bookkeeper(connection)

    async def _page(self, connection: _Connection) -> list[_Move] | None:
        """The newest move that is known and those after it; None where there is no such method."""
        start = self._newest.created_index if self._newest else 1
        params = {"index": "created", "start": start, "limit": _MOVES_AT_ONCE}
        page = await connection.call("listchainmoves", params, _Moves)
        if isinstance(page, _Refusal):
            if page.code != _UNKNOWN_METHOD:
                raise connection.refused("listchainmoves", page)
            return None
        return page.chainmoves

    def _take(self, moves: list[_Move]) -> None:
        for move in moves:
            # A splice spends the funding output, too, and the channel lives on.
            if move.primary_tag == "channel_close" and "splice" not in move.extra_tags:
                height = max(move.blockheight, self._closed.get(move.account_id, 0))
                self._closed[move.account_id] = height
            if (
                self._newest
                and move.created_index <= self._newest.created_index
                and (move != self._newest or move is not moves[0])
            ):
                raise SourceError("lightningd gives its chain moves out of order: see its log")
            self._newest = move

    def _forget(self) -> None:
        self._closed = {}
        self._newest = None


async def _from_bookkeeper(connection: _Connection) -> dict[str, int]:
    """Closing heights from the bookkeeper plugin, for lightningd before 25.09."""
    answer = await connection.call("bkpr-listaccountevents", {}, _Events)
    if isinstance(answer, _Refusal):
        if answer.code != _UNKNOWN_METHOD:
            raise connection.refused("bkpr-listaccountevents", answer)
        return {}  # the plugin can be turned off
    newest: dict[str, dict[str, int]] = {"channel_open": {}, "channel_close": {}}
    for event in answer.events:
        if event.tag in newest and event.blockheight is not None:
            heights = newest[event.tag]
            heights[event.account] = max(event.blockheight, heights.get(event.account, 0))
    # A splice is a close and an open in one block here, and nothing else tells it from a close.
    opened = newest["channel_open"]
    closed = newest["channel_close"]
    return {account: h for account, h in closed.items() if h > opened.get(account, -1)}


class ClnSource:
    """Core Lightning's channels.

    Each `ask` has a connection of its own: on a local socket it costs nothing, and a restart of
    lightningd between two of them is not even noticed.
    """

    def __init__(
        self,
        socket: Path,
        network: Network,
        *,
        seconds: float = ANSWER_SECONDS,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        self._socket = socket
        self._network = network
        self._seconds = seconds
        self._max_answer = max_answer
        self._who = f"lightningd at {printable(str(socket))}"
        self._heights = _Heights()
        self._height = 0

    async def ask(self) -> Answer:
        """Ask for all channels; see ChannelSource."""
        async with self._connect() as connection:
            info = await connection.get("getinfo", _Info)
            check_network(self._who, _NETWORKS.get(info.network), info.network, self._network)
            # In this order: a channel that is forgotten meanwhile stands in both lists, not none.
            present = await connection.get("listpeerchannels", _PeerChannels)
            forgotten = await connection.get("listclosedchannels", _ClosedChannels)
            heights = await self._heights.read(connection)
        self._height = info.blockheight
        channels = await asyncio.to_thread(self._gather, present, forgotten, heights)
        synced = info.warning_bitcoind_sync is None and info.warning_lightningd_sync is None
        node_id = read_node_id(self._who, info.id)
        return Answer(node_id, info.blockheight, synced, channels)

    def _gather(
        self, present: _PeerChannels, forgotten: _ClosedChannels, heights: Mapping[str, int]
    ) -> tuple[NodeChannel, ...]:
        gathered = Gathered(self._who)
        for channel in present.channels:
            if channel.channel_id is None or channel.state in _NEGOTIATED:
                continue
            if channel.state in _CLOSED:
                height = heights.get(channel.channel_id)
                gathered.add(channel.peer_id, channel.channel_id, height)
            else:
                gathered.add_open(channel.peer_id, channel.channel_id)
        for closed in forgotten.closedchannels:
            if closed.peer_id is not None:
                gathered.add(closed.peer_id, closed.channel_id, heights.get(closed.channel_id))
        return gathered.channels()

    async def changed(self) -> None:
        """Return when there is a block that the last `ask` did not see; see ChannelSource.

        Nothing is missed between two calls, for the height is waited for, not its coming.
        """
        block: _Block | _Refusal = _Refusal(_WAIT_TIMED_OUT, "")
        while isinstance(block, _Refusal):
            async with self._connect() as connection:
                block = await connection.call(
                    "waitblockheight",
                    {"blockheight": self._height + 1, "timeout": _WAIT_SECONDS},
                    _Block,
                    patience=_WAIT_SECONDS,
                )
                if isinstance(block, _Refusal) and block.code != _WAIT_TIMED_OUT:
                    raise connection.refused("waitblockheight", block)
        self._height = block.blockheight

    async def close(self) -> None:
        """Nothing is open between two calls."""

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[_Connection]:
        if len(os.fsencode(self._socket)) > _MAX_PATH:
            raise SourceError(
                f"the path {self._socket} has more than {_MAX_PATH} bytes, too many for a socket:"
                " name it by a shorter link"
            )
        try:
            if not stat.S_ISSOCK(self._socket.stat().st_mode):
                raise SourceError(f"{self._socket} is no socket: name lightningd's lightning-rpc")
            async with asyncio.timeout(self._seconds):
                streams = await asyncio.open_unix_connection(self._socket, limit=_PIECE)
        except FileNotFoundError as error:
            raise SourceError(
                f"there is no socket {self._socket}: is lightningd running, and is this the"
                " lightning-rpc of its network's directory?"
            ) from error
        except PermissionError as error:
            raise SourceError(
                f"the socket {self._socket} may not be opened by peerstore's user: add it to"
                " lightningd's group, and set rpc-file-mode=0660 there"
            ) from error
        except OSError as error:  # TimeoutError is one
            raise SourceError(
                f"{self._who} can't be reached: {error.strerror or error or 'no answer'}:"
                " is lightningd running?"
            ) from error
        try:
            yield _Connection(self._who, streams, self._seconds, self._max_answer)
        finally:
            streams[1].transport.abort()  # an answer may still be under way
