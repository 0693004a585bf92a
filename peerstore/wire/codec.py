"""BigSize and TLV streams (BOLT 1, Type-Length-Value Format).

A reader returns a value or raises CodecError; there is no third outcome, and no other error
leaves this module whatever the bytes are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from peerstore.errors import CodecError

TlvDecoder = Callable[[bytes], Any]
"""Reads the value of one record; raises CodecError when it is not exactly that."""

_WIDTHS = {0xFD: (3, 0xFD), 0xFE: (5, 0x10000), 0xFF: (9, 0x100000000)}
"""First byte of a BigSize: bytes in all, smallest value that needs so many."""


def encode_bigsize(value: int) -> bytes:
    """The 1, 3, 5 or 9 bytes of a u64; raises ValueError when it is not one."""
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{value} is not a u64")
    if value < 0xFD:
        return bytes((value,))
    prefix = 0xFD if value < 0x10000 else 0xFE if value < 0x100000000 else 0xFF
    return bytes((prefix,)) + value.to_bytes(_WIDTHS[prefix][0] - 1, "big")


def decode_bigsize(data: bytes, offset: int = 0) -> tuple[int, int]:
    """Read a BigSize at `offset`.

    Returns the value and the offset behind it. Raises CodecError when bytes are missing or the
    value is not minimally encoded.
    """
    if offset >= len(data):
        raise CodecError("bigsize is truncated")
    first = data[offset]
    if first < 0xFD:
        return first, offset + 1
    size, smallest = _WIDTHS[first]
    end = offset + size
    if end > len(data):
        raise CodecError("bigsize is truncated")
    value = int.from_bytes(data[offset + 1 : end], "big")
    if value < smallest:
        raise CodecError("bigsize is not minimally encoded")
    return value, end


def decode_tlv_stream(
    data: bytes, known: Mapping[int, TlvDecoder], offset: int = 0
) -> dict[int, Any]:
    """Read a TLV stream that begins at `offset` and ends with the data.

    `known` maps the types of the namespace to the decoders of their values. Unknown odd records
    are dropped. Raises CodecError for everything that BOLT 1 says must fail to parse.
    """
    records: dict[int, Any] = {}
    previous = -1
    while offset < len(data):
        record_type, offset = decode_bigsize(data, offset)
        if record_type <= previous:
            raise CodecError(f"TLV type {record_type} comes after {previous}")
        previous = record_type
        length, offset = decode_bigsize(data, offset)
        end = offset + length
        if end > len(data):
            raise CodecError(f"TLV {record_type} is truncated")
        decoder = known.get(record_type)
        if decoder is not None:
            records[record_type] = decoder(data[offset:end])
        elif record_type % 2 == 0:
            raise CodecError(f"TLV type {record_type} is even and unknown")
        offset = end
    return records


def encode_tlv_stream(records: Iterable[tuple[int, bytes]]) -> bytes:
    """The stream of the records, ordered by type; raises ValueError for a type given twice."""
    ordered = sorted(records)
    if len({record_type for record_type, _ in ordered}) != len(ordered):
        raise ValueError("a TLV type may stand only once in a stream")
    return b"".join(
        encode_bigsize(record_type) + encode_bigsize(len(value)) + value
        for record_type, value in ordered
    )
