"""What every source makes of an answer: reading it, and gathering its channels."""

from __future__ import annotations

import re
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from peerstore.channels.base import ChannelKey, NodeChannel
from peerstore.errors import AddressError, SourceError
from peerstore.types import Network, NodeId, parse_node_id

MAX_ANSWER = 256 * 1024 * 1024
"""Bytes of one answer; a hundred thousand channels of lnd with all their fields are below it."""

ANSWER_SECONDS = 30.0
"""How long a node may be silent while an answer is due; a whole answer may take ten times that."""

Height = Annotated[int, msgspec.Meta(ge=0, le=20_000_000)]
"""A block height; a higher one than a block a minute would have made by now is nonsense."""

T = TypeVar("T")

# Rows are made by the hundred thousand, and none refers to itself: with gc=False the collector
# need not look at them.


def printable(text: str, limit: int = 200) -> str:
    """Words of a node as part of one line, cut to `limit` characters."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= limit else line[: limit - 3] + "..."


def decode(data: bytes | bytearray | msgspec.Raw, kind: type[T], who: str, request: str) -> T:
    """Read a JSON document as `kind`; unknown fields are ignored.

    Raises SourceError, which names the field but repeats no value: an odd answer may hold anything.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise SourceError(
            f"{who} gave an answer to {request} that can't be used: {printable(str(error))}:"
            " is it a version that peerstore knows?"
        ) from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SourceError(
            f"{who} gave an answer to {request} that is not JSON: is it the right node and port?"
        ) from error


class Nesting:
    """How deep in a JSON document one is, after pieces of it that may end anywhere."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = False
        self._escaping = False

    def take(self, piece: bytes | bytearray) -> None:
        """Go on by a piece."""
        # Without its escapes a string ends at the next quote, and every second part of what the
        # quotes divide is outside of strings: all of it at the speed of C.
        text = _ESCAPE.sub(b"", b"\\" + piece if self._escaping else piece)
        self._escaping = text.endswith(b"\\")
        parts = text.split(b'"')
        outside = b"".join(parts[self.in_string :: 2])
        self.in_string ^= len(parts) % 2 == 0
        self.depth += _count(outside, b"{[") - _count(outside, b"}]")


_ESCAPE = re.compile(rb"\\.", re.DOTALL)


def _count(text: bytes, characters: bytes) -> int:
    return sum(text.count(character) for character in characters)


class Rows(Generic[T]):
    """Reads a document that is one long list, piece by piece and row by row.

    So neither the whole of it is in memory at once, nor is it decoded in one go, during which
    nothing else would run. The rows are objects, `depth` deep; the document without them is checked
    at its end. Raises SourceError.
    """

    def __init__(self, kind: type[T], depth: int, who: str, request: str) -> None:
        self.rows: list[T] = []
        self._kind = kind
        self._depth = depth
        self._who = who
        self._request = request
        self._nesting = Nesting()
        self._buffer = bytearray()
        self._looked_at = 0
        self._frame = bytearray()

    @property
    def waiting(self) -> int:
        """Bytes of a row that is not whole yet."""
        return len(self._buffer)

    def feed(self, piece: bytes) -> None:
        """Take a piece."""
        self._buffer += piece
        data = bytes(self._buffer)
        taken = 0
        for match in _ROW_MAY_END.finditer(data, self._looked_at):
            self._nesting.take(data[self._looked_at : match.end()])
            self._looked_at = match.end()
            if self._nesting.depth == self._depth and not self._nesting.in_string:
                # Before the first row there is what the list stands in.
                begin = data.find(b"{", taken if self.rows else data.find(b"["))
                self._frame += data[taken:begin] + b"0"
                row = data[begin : match.end()]
                self.rows.append(decode(row, self._kind, self._who, self._request))
                taken = match.end()
        del self._buffer[:taken]
        self._looked_at -= taken

    def end(self, frame: type[Any]) -> list[T]:
        """The rows, when all has come; `frame` is the document with a Zero for each row."""
        self._frame += self._buffer
        decode(self._frame, frame, self._who, self._request)
        return self.rows


Zero = Annotated[int, msgspec.Meta(ge=0, le=0)]
"""What stands for a row; see Rows."""

_ROW_MAY_END = re.compile(rb"\}(?=\s*[,\]])")


def check_network(who: str, told: Network | None, name: str, network: Network) -> None:
    """Raise SourceError unless the node is on the network that peerstore is on.

    `told` is the network that the node's own `name` for it means, None for none of ours.
    """
    if told is not network:
        raise SourceError(
            f"{who} is a node of the network {printable(name, 70)!r}, peerstore is set to"
            f" {network.value!r}: name a node of that network, or change `network`"
        )


def read_node_id(who: str, text: str) -> NodeId:
    """A node id in hexadecimal; raises SourceError."""
    try:
        return parse_node_id(text)
    except AddressError as error:
        raise _odd(who, "a node by what is no node id") from error


def _odd(who: str, what: str) -> SourceError:
    return SourceError(f"{who} names {what}: is it a version that peerstore knows?")


class Gathered:
    """The channels of one answer, each once.

    A channel is one of a peer: two peers may show the same id, for whoever opens a channel names
    its funding output, and with it the id. Where the parts of an answer differ, open wins, for
    keeping a backup too long is the smaller harm; of two closing heights the higher.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._channels: dict[ChannelKey, NodeChannel] = {}

    def add(self, node_id: str, channel_id: str, closed_height: int | None = None) -> None:
        """Take a closed channel; ids in hexadecimal. Raises SourceError when they are none."""
        self._put(node_id, self._channel_id(channel_id), False, closed_height)

    def add_open(self, node_id: str, channel_id: str) -> None:
        """Take an open channel, as `add` does."""
        self._put(node_id, self._channel_id(channel_id), True, None)

    def add_point(
        self, node_id: str, point: str, *, is_open: bool, closed_height: int | None = None
    ) -> None:
        """Take a channel that is named by its funding output, `txid:index`.

        BOLT 2: the channel id is the funding txid, in internal byte order, with the output index
        XORed into its last two bytes. Raises SourceError when it is no funding output.
        """
        match = _POINT.fullmatch(point)
        index = int(match[2]) if match else 0
        if match is None or index > 0xFFFF:
            raise _odd(self._who, "a channel by what is no funding output")
        number = int.from_bytes(bytes.fromhex(match[1]), "little") ^ index
        self._put(node_id, number.to_bytes(32, "big"), is_open, closed_height)

    def _channel_id(self, text: str) -> bytes:
        if not _CHANNEL_ID.fullmatch(text):
            raise _odd(self._who, "a channel by what is no channel id")
        return bytes.fromhex(text)

    def _put(self, text: str, channel_id: bytes, is_open: bool, height: int | None) -> None:
        node_id = read_node_id(self._who, text)
        key = (node_id, channel_id)
        known = self._channels.get(key)
        if known is not None:
            is_open = is_open or known.open
            height = max((h for h in (height, known.closed_height) if h is not None), default=None)
        self._channels[key] = NodeChannel(node_id, channel_id, is_open, None if is_open else height)

    def channels(self) -> tuple[NodeChannel, ...]:
        """All of them."""
        return tuple(self._channels.values())


_CHANNEL_ID = re.compile("[0-9a-fA-F]{64}")
_POINT = re.compile("([0-9a-fA-F]{64}):([0-9]{1,5})")
