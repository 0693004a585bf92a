"""Inputs out of a seed: a target's own inputs with changes that break what parsers go by."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from tests.fuzz.targets import Target

BLOCK = 500
"""Inputs that are made from one state of the generator."""

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFC, 0xFD, 0xFE, 0xFF)
EDGES_OF_16 = (0, 1, 31, 32, 252, 253, 254, 255, 256, 32000, 32001, 65531, 65532, 65535)

Change = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def _flip(data: bytearray, lots: random.Random, _others: Sequence[bytes]) -> None:
    if data:
        data[int(lots.random() * len(data))] ^= 1 << int(lots.random() * 8)


def _set(data: bytearray, lots: random.Random, _others: Sequence[bytes]) -> None:
    if data:
        data[int(lots.random() * len(data))] = lots.choice(EDGES)


def _set_16(data: bytearray, lots: random.Random, _others: Sequence[bytes]) -> None:
    if len(data) > 1:
        start = int(lots.random() * min(len(data) - 1, 120))
        data[start : start + 2] = lots.choice(EDGES_OF_16).to_bytes(2, "big")


def _count_16(data: bytearray, lots: random.Random, _others: Sequence[bytes]) -> None:
    """A number one or two off."""
    if len(data) > 1:
        start = int(lots.random() * min(len(data) - 1, 120))
        number = (data[start] << 8 | data[start + 1]) + int(lots.random() * 5) - 2
        data[start : start + 2] = (number & 0xFFFF).to_bytes(2, "big")


def _insert(data: bytearray, lots: random.Random, _others: Sequence[bytes]) -> None:
    start = int(lots.random() * (len(data) + 1))
    data[start:start] = lots.randbytes(1 + int(lots.random() * 8))


def _leave_out(data: bytearray, lots: random.Random, _others: Sequence[bytes]) -> None:
    start = int(lots.random() * (len(data) + 1))
    del data[start : start + 1 + int(lots.random() * 8)]


def _cut(data: bytearray, lots: random.Random, _others: Sequence[bytes]) -> None:
    del data[int(lots.random() * (len(data) + 1)) :]


def _repeat(data: bytearray, lots: random.Random, _others: Sequence[bytes]) -> None:
    start = int(lots.random() * (len(data) + 1))
    data[start:start] = data[start : start + 1 + int(lots.random() * 16)]


def _splice(data: bytearray, lots: random.Random, others: Sequence[bytes]) -> None:
    other = lots.choice(others)
    data[int(lots.random() * (len(data) + 1)) :] = other[int(lots.random() * (len(other) + 1)) :]


def _record(data: bytearray, lots: random.Random, _others: Sequence[bytes]) -> None:
    """A TLV record at the end."""
    size = int(lots.random() * 4)
    data += bytes((lots.choice((1, 2, 3, 5, 252)), size + (lots.random() < 0.1))) + bytes(size)


CHANGES: Sequence[Change] = (
    *(_flip, _set, _set_16, _count_16, _insert, _leave_out, _cut, _repeat, _splice, _record),
)


def block(target: Target, seed: int, number: int) -> Iterator[bytes]:
    """BLOCK inputs; the same for the same seed and number."""
    lots = random.Random(f"{target.name} {seed} {number}")  # noqa: S311 - nothing secret
    inputs = target.inputs
    for _ in range(BLOCK):
        if lots.random() * 4 < target.free:
            yield lots.randbytes(int(lots.random() * target.longest))
            continue
        data = bytearray(lots.choice(inputs))
        for _ in range(int(lots.random() * 5)):
            CHANGES[int(lots.random() * len(CHANGES))](data, lots, inputs)
        yield bytes(data)
