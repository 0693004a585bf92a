"""BigSize and TLV streams: BOLT 1's vectors, and what holds for any bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import coincurve
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from peerstore.errors import CodecError
from peerstore.wire.codec import (
    TlvDecoder,
    decode_bigsize,
    decode_tlv_stream,
    encode_bigsize,
    encode_tlv_stream,
)
from tests.helpers import load_vectors, quick

BIGSIZE = load_vectors("bolt01_bigsize.json")
TLV = load_vectors("bolt01_tlv.json")

U64 = st.integers(0, 2**64 - 1)
EDGES = st.sampled_from([0, 0xFC, 0xFD, 0xFFFF, 0x10000, 0xFFFFFFFF, 0x100000000, 2**64 - 1])
TYPES = st.integers(0, 300) | U64 | EDGES
RECORDS = st.dictionaries(TYPES, st.binary(max_size=300), max_size=6)


# BOLT 1, Appendix A: BigSize Test Vectors


def by_name(vector: Mapping[str, Any]) -> str:
    return str(vector["name"])


@pytest.mark.parametrize("vector", BIGSIZE["decoding"], ids=by_name)
def test_bolt1_bigsize_decoding(vector: Mapping[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    if "exp_error" not in vector:
        assert decode_bigsize(data) == (vector["value"], len(data))
        return
    reason = "not minimally" if "canonical" in vector["exp_error"] else "truncated"
    with pytest.raises(CodecError, match=reason):
        decode_bigsize(data)


@pytest.mark.parametrize("vector", BIGSIZE["encoding"], ids=by_name)
def test_bolt1_bigsize_encoding(vector: Mapping[str, Any]) -> None:
    assert encode_bigsize(vector["value"]).hex() == vector["bytes"]


# BOLT 1, Appendix B: Type-Length-Value Test Vectors


def unsigned(data: bytes) -> int:
    return int.from_bytes(data, "big")


def truncated_unsigned(data: bytes) -> int:
    if data[:1] == b"\x00":
        raise CodecError("the integer is not minimal")
    return unsigned(data)


def short_channel_id(data: bytes) -> str:
    number = unsigned(data)
    return f"{number >> 40}x{number >> 16 & 0xFFFFFF}x{number & 0xFFFF}"


def point(data: bytes) -> str:
    try:
        coincurve.PublicKey(data)
    except ValueError:
        raise CodecError("not a point") from None
    return data.hex()


# BOLT 1's fundamental types: least and most bytes, reader.
FIELD_TYPES: Mapping[str, tuple[int, int, Callable[[bytes], Any]]] = {
    "u16": (2, 2, unsigned),
    "u64": (8, 8, unsigned),
    "tu32": (0, 4, truncated_unsigned),
    "tu64": (0, 8, truncated_unsigned),
    "short_channel_id": (8, 8, short_channel_id),
    "point": (33, 33, point),
}


def record_decoder(fields: list[dict[str, str]]) -> TlvDecoder:
    """Reads exactly these fields; only the last can be of varying length."""

    def decode(data: bytes) -> dict[str, Any]:
        values = {}
        for field in fields:
            least, most, read = FIELD_TYPES[field["type"]]
            if len(data) < least:
                raise CodecError("wrong length")
            values[field["name"]] = read(data[:most])
            data = data[most:]
        if data:
            raise CodecError("wrong length")
        return values

    return decode


NAMESPACES: Mapping[str, Mapping[int, TlvDecoder]] = {
    name: {record["type"]: record_decoder(record["data"]) for record in records}
    for name, records in TLV["namespaces"].items()
}

# A word of the vector's reason, a word of the error that is right for it.
REASONS = {
    "not minimally encoded": "not minimally encoded",
    "ordering": "comes after",
    "duplicate": "comes after",
    "unknown even": "even and unknown",
    "is not minimal": "is not minimal",
    "encoding length": "wrong length",
    "valid point": "not a point",
    "truncated": "truncated",
    "missing": "truncated",
}


def in_namespaces(vectors: list[dict[str, Any]]) -> list[Any]:
    return [
        pytest.param(name, vector, id=f"{name}-{vector['stream'][:24] or 'empty'}")
        for vector in vectors
        for name in vector["namespaces"]
    ]


@pytest.mark.parametrize(("name", "vector"), in_namespaces(TLV["failures"]))
def test_bolt1_tlv_decoding_failures(name: str, vector: Mapping[str, Any]) -> None:
    expected = next(error for words, error in REASONS.items() if words in vector["reason"])
    with pytest.raises(CodecError, match=expected):
        decode_tlv_stream(bytes.fromhex(vector["stream"]), NAMESPACES[name])


@pytest.mark.parametrize(("name", "vector"), in_namespaces(TLV["successes"]))
def test_bolt1_tlv_decoding_successes(name: str, vector: Mapping[str, Any]) -> None:
    records = decode_tlv_stream(bytes.fromhex(vector["stream"]), NAMESPACES[name])
    assert records == {value["type"]: value["fields"] for value in vector["values"]}


@pytest.mark.parametrize(("name", "vector"), in_namespaces(TLV["stream_failures"]))
def test_bolt1_tlv_stream_decoding_failures(name: str, vector: Mapping[str, Any]) -> None:
    expected = next(error for words, error in REASONS.items() if words in vector["reason"])
    with pytest.raises(CodecError, match=expected):
        decode_tlv_stream(bytes.fromhex(vector["stream"]), NAMESPACES[name])


def successes(name: str) -> list[tuple[bytes, dict[int, Any]]]:
    return [
        (
            bytes.fromhex(vector["stream"]),
            {value["type"]: value["fields"] for value in vector["values"]},
        )
        for vector in TLV["successes"]
        if name in vector["namespaces"]
    ]


@pytest.mark.parametrize("name", NAMESPACES)
def test_bolt1_tlv_invalid_stream_appended_to_a_valid_one_fails(name: str) -> None:
    known = NAMESPACES[name]
    invalid = [
        bytes.fromhex(vector["stream"])
        for vector in TLV["failures"] + TLV["stream_failures"]
        if name in vector["namespaces"]
    ]
    assert invalid
    for (valid, _), appended in itertools.product(successes(name), invalid):
        with pytest.raises(CodecError):
            decode_tlv_stream(valid + appended, known)


@pytest.mark.parametrize("name", NAMESPACES)
def test_bolt1_tlv_valid_streams_append_only_by_rising_type(name: str) -> None:
    known = NAMESPACES[name]
    # Each of BOLT 1's valid streams has one record, but for the empty one.
    streams = [(stream, values) for stream, values in successes(name) if stream]
    for (first, values), (second, more) in itertools.product(streams, repeat=2):
        if decode_bigsize(first)[0] < decode_bigsize(second)[0]:
            assert decode_tlv_stream(first + second, known) == values | more
        else:
            with pytest.raises(CodecError, match="comes after"):
                decode_tlv_stream(first + second, known)


# BigSize


@quick
@given(U64 | EDGES, st.binary(max_size=3), st.binary(max_size=3))
def test_bigsize_is_read_back_wherever_it_stands(value: int, before: bytes, after: bytes) -> None:
    encoded = encode_bigsize(value)
    offset = len(before)
    end = offset + len(encoded)
    assert decode_bigsize(before + encoded + after, offset) == (value, end)


@quick
@given(
    st.builds(
        bytes.__add__,
        st.sampled_from([b"", b"\xfc", b"\xfd", b"\xfd\x00", b"\xfe\x00\x00", b"\xff" + bytes(4)]),
        st.binary(max_size=9),
    ),
    st.integers(0, 12),
)
def test_bigsize_of_any_bytes_is_the_canonical_one_or_a_codec_error(
    data: bytes, offset: int
) -> None:
    try:
        value, end = decode_bigsize(data, offset)
    except CodecError:
        return
    assert encode_bigsize(value) == data[offset:end]


@quick
@given(U64 | EDGES)
def test_bigsize_without_its_last_bytes_is_truncated(value: int) -> None:
    encoded = encode_bigsize(value)
    for size in range(len(encoded)):
        with pytest.raises(CodecError, match="truncated"):
            decode_bigsize(encoded[:size])


@pytest.mark.parametrize("value", [-1, 2**64])
def test_bigsize_of_what_is_no_u64_is_not_encoded(value: int) -> None:
    with pytest.raises(ValueError, match="not a u64"):
        encode_bigsize(value)


# TLV streams


@quick
@given(RECORDS, st.binary(max_size=5))
def test_tlv_stream_is_read_back(records: dict[int, bytes], before: bytes) -> None:
    stream = encode_tlv_stream(records.items())
    known = dict.fromkeys(records, bytes)
    assert decode_tlv_stream(before + stream, known, len(before)) == records


@quick
@given(RECORDS)
def test_tlv_records_of_unknown_odd_type_are_dropped(records: dict[int, bytes]) -> None:
    stream = encode_tlv_stream(records.items())
    even = {number: value for number, value in records.items() if number % 2 == 0}
    assert decode_tlv_stream(stream, dict.fromkeys(even, bytes)) == even


@quick
@given(RECORDS)
@example({})
@example({1: b"", 3: bytes(253), 0xFFFFFFFF: b"x"})
def test_tlv_stream_cut_anywhere_but_behind_a_record_is_an_error(
    records: dict[int, bytes],
) -> None:
    stream = b""
    boundaries: dict[int, dict[int, bytes]] = {0: {}}
    before: dict[int, bytes] = {}
    for number, value in sorted(records.items()):
        stream += encode_tlv_stream([(number, value)])
        before = before | {number: value}
        boundaries[len(stream)] = before
    assert stream == encode_tlv_stream(records.items())
    known = dict.fromkeys(records, bytes)
    for size in range(len(stream) + 1):
        if size in boundaries:
            assert decode_tlv_stream(stream[:size], known) == boundaries[size]
        else:
            with pytest.raises(CodecError, match="truncated"):
                decode_tlv_stream(stream[:size], known)


@quick
@given(RECORDS.filter(lambda records: len(records) > 1), st.data())
def test_tlv_stream_out_of_order_is_an_error(
    records: dict[int, bytes], data: st.DataObject
) -> None:
    ordered = sorted(records.items())
    shuffled = data.draw(st.permutations(ordered).filter(lambda order: order != ordered))
    stream = b"".join(encode_tlv_stream([record]) for record in shuffled)
    with pytest.raises(CodecError, match="comes after"):
        decode_tlv_stream(stream, dict.fromkeys(records, bytes))


@quick
@given(st.binary(max_size=80), st.sampled_from(sorted(NAMESPACES)))
@example(b"\x01\xff" + b"\xff" * 8, "n1")
@example(b"\x03\x31\x02" + b"\xff" * 48, "n1")
def test_tlv_stream_of_any_bytes_is_a_value_or_a_codec_error(data: bytes, name: str) -> None:
    try:
        records = decode_tlv_stream(data, NAMESPACES[name])
    except CodecError:
        return
    assert records.keys() <= NAMESPACES[name].keys()


def test_tlv_stream_begins_at_the_offset() -> None:
    assert decode_tlv_stream(b"\xff\xff\x02\x01a", {2: bytes}, 2) == {2: b"a"}
    assert decode_tlv_stream(b"\xff\xff", {}, 2) == {}


def test_tlv_stream_is_encoded_by_rising_type() -> None:
    assert encode_tlv_stream([(254, b"b"), (1, b"a")]).hex() == "010161" + "fd00fe0162"


def test_tlv_type_given_twice_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="only once"):
        encode_tlv_stream([(1, b"a"), (3, b""), (1, b"b")])
