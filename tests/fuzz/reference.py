"""The messages once more, by a table and apart from the package: what a message says, if it is one.

Written from BOLT 1, 2 and 7 and bolts pull request 881, to be compared with what the package reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

VAR = -1
"""In place of a size: a u16 and so many bytes."""

Check = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields behind the type by their sizes, and the TLV types that are known."""

    fields: Sequence[int]
    tlvs: Mapping[int, Check]


def _anything(_value: bytes) -> bool:
    return True


def _chains(value: bytes) -> bool:
    return len(value) % 32 == 0


def _u16(value: bytes) -> bool:
    return len(value) == 2


LAYOUTS: Mapping[int, Layout] = {
    1: Layout((32, VAR), {}),
    7: Layout((VAR,), {}),
    9: Layout((VAR,), {}),
    16: Layout((VAR, VAR), {1: _chains, 2: _anything, 3: _anything}),
    17: Layout((32, VAR), {}),
    18: Layout((2, VAR), {}),
    19: Layout((VAR,), {}),
    20: Layout((VAR,), {}),
    120: Layout((VAR,), {}),
    127: Layout((32, 2), {1: _u16}),
    133: Layout((32, 32, 33), {}),
    136: Layout((32, 8, 8, 32, 33), {1: _anything}),
    261: Layout((32, VAR), {}),
    262: Layout((32, 1), {}),
    263: Layout((32, 4, 4), {}),
    264: Layout((32, 4, 4, 1, VAR), {}),
}

CHANNEL_MESSAGES = frozenset(
    (2, *range(32, 37), *range(38, 42), *range(64, 75), 77, 80, 81, 127, 128, *range(130, 137))
)
"""The types of BOLT 2."""

OPENING = frozenset((32, 64))
"""Those with the chain hash before their temporary channel id."""


def channel_id(data: bytes) -> bytes:
    """Of a channel message; shorter where the message is too short for it."""
    start = 34 if int.from_bytes(data[:2], "big") in OPENING else 2
    return data[start : start + 32]


Parsed = tuple[list[bytes], dict[int, bytes]]


def bigsize(data: bytes) -> tuple[int, bytes] | None:
    """A BigSize and what stands behind it, None where there is none."""
    if not data:
        return None
    size = {0xFD: 2, 0xFE: 4, 0xFF: 8}.get(data[0], 0)
    if len(data) < 1 + size:
        return None
    value = int.from_bytes(data[1 : 1 + size], "big") if size else data[0]
    if size and value < (0xFD if size == 2 else 1 << 4 * size):
        return None
    return value, data[1 + size :]


def tlv_stream(data: bytes, known: Mapping[int, Check]) -> dict[int, bytes] | None:
    """The known records of a stream, None where it must be refused."""
    records: dict[int, bytes] = {}
    last = -1
    while data:
        head = bigsize(data)
        body = None if head is None else bigsize(head[1])
        if head is None or body is None:
            return None
        number, (length, rest) = head[0], body
        if number <= last or length > len(rest):
            return None
        value, data, last = rest[:length], rest[length:], number
        if number in known:
            if not known[number](value):
                return None
            records[number] = value
        elif number % 2 == 0:
            return None
    return records


def parse(data: bytes) -> Parsed | None:
    """The fields and the known TLVs of a message in LAYOUTS, None where it must be refused."""
    layout = LAYOUTS[int.from_bytes(data[:2], "big")]
    fields, rest = [], data[2:]
    for size in layout.fields:
        if size == VAR:
            if len(rest) < 2:
                return None
            size, rest = int.from_bytes(rest[:2], "big"), rest[2:]
        if len(rest) < size:
            return None
        fields.append(rest[:size])
        rest = rest[size:]
    tlvs = tlv_stream(rest, layout.tlvs)
    return None if tlvs is None else (fields, tlvs)


TOLERATED = frozenset(
    (
        *(0, *range(4, 20, 2), 22, 24, 26, 28, 34, 36, 38, 42, 44, 46, 48, 50, 60, 62),
        # Not in BOLT 9, but seen from real peers.
        *(20, 40, 104, 152, 154, 560, 562, 564),
    )
)
"""Even bits that a peer may require (BOLT 9, and the wire's page of this project)."""

NEEDS = ((16, 14), (50, 46), (60, 26))


def features_are_good(features: int) -> bool:
    """Whether nothing unknown is required and every dependency is there; looks at each bit."""
    bits = {bit for bit in range(features.bit_length()) if features >> bit & 1}
    if any(bit % 2 == 0 and bit not in TOLERATED for bit in bits):
        return False
    return all(not {pair, pair + 1} & bits or {needed, needed + 1} & bits for pair, needed in NEEDS)
