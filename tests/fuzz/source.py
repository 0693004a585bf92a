"""Choices out of bytes: what a target does with an input is written in the input itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Takes choices off the front of an input; where it has ended there are zeros."""

    __slots__ = ("_data", "_start")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._start = 0

    @property
    def ended(self) -> bool:
        """Whether nothing is left."""
        return self._start >= len(self._data)

    def byte(self) -> int:
        """0 to 255."""
        start = self._start
        self._start = start + 1
        return self._data[start] if start < len(self._data) else 0

    def below(self, limit: int) -> int:
        """0 to `limit` - 1, at most 65535; of one byte where that is enough."""
        if limit <= 256:
            return self.byte() % limit
        return (self.byte() << 8 | self.byte()) % limit

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def take(self, size: int) -> bytes:
        """The next bytes, fewer where the input ends."""
        taken = self._data[self._start : self._start + size]
        self._start += size
        return taken

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))


def edited(data: bytes, source: Source) -> bytes:
    """One change: bytes changed, put in, left out, repeated or cut off."""
    kind, where = source.byte() % 5, source.below(len(data) + 1)
    if kind == 0:
        mask = source.byte() or 1
        return (
            data[:where]
            + bytes(byte ^ mask for byte in data[where : where + 1])
            + data[where + 1 :]
        )
    if kind == 1:
        return data[:where] + source.take(1 + source.byte() % 40) + data[where:]
    if kind == 2:
        return data[:where] + data[where + 1 + source.byte() :]
    if kind == 3:
        return data[:where] + data[where : where + 1 + source.byte()] * 2 + data[where:]
    return data[:where]


def pieces(data: bytes, source: Source) -> Iterator[bytes]:
    """The data cut up; a few sizes that come again and again, small ones and large ones."""
    sizes = [1 + source.below(70) * (1, 1, 40, 1000)[source.below(4)] for _ in range(3)]
    start = turn = 0
    while start < len(data):
        end = start + sizes[turn % 3]
        # One byte at a time of a long stream takes long and shows no more than its beginning.
        end = max(end, start + (len(data) - start) // 64)
        yield data[start:end]
        start, turn = end, turn + 1
