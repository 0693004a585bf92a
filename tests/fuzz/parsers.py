"""Targets of everything that reads bytes or texts from outside in one go."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any, TypeVar, cast

from peerstore import config_values
from peerstore.config import load
from peerstore.control import INTERNAL_ERROR, ControlServer, Method, line_of
from peerstore.errors import AddressError, CodecError, ConfigError, FeatureError, StoreError
from peerstore.methods import methods
from peerstore.store.sqlite import SqliteStore
from peerstore.types import (
    NodeAddress,
    Slot,
    format_host_port,
    parse_host_port,
    parse_node_id,
    parse_slot,
)
from peerstore.wire import features as wire_features
from peerstore.wire.codec import (
    decode_bigsize,
    decode_tlv_stream,
    encode_bigsize,
    encode_tlv_stream,
)
from peerstore.wire.features import decode_features, encode_features
from peerstore.wire.messages import (
    CHANNEL_MESSAGES,
    MAX_MESSAGE_SIZE,
    MESSAGES,
    Message,
    _Report,
    channel_id_of,
    decode_message,
    message_type,
)
from tests.fuzz import reference

T = TypeVar("T")

KINDS = sorted(MESSAGES)
assert sorted(reference.LAYOUTS) == KINDS


def messages(data: bytes) -> None:
    """One message. One of a type that is not read is read once more as one that is."""
    data = data[:MAX_MESSAGE_SIZE]
    try:
        number = message_type(data)
    except CodecError:
        assert len(data) < 2
        return
    check_channel_id(number, data)
    if number not in MESSAGES:
        refuse(decode_message, data)
        number = KINDS[data[1] % len(KINDS)]
        data = number.to_bytes(2, "big") + data[2:]
    parsed = reference.parse(data)
    if parsed is None:
        refuse(decode_message, data)
        return
    message = decode_message(data)
    assert values_of(message) == expected_values(number, *parsed)
    encoded = message.encode()
    assert len(encoded) <= len(data)
    assert decode_message(encoded) == message
    if isinstance(message, _Report):
        assert message.text.isascii()
        assert message.text.isprintable()


def refuse(decode: Callable[[bytes], object], data: bytes) -> None:
    """What can't be read raises CodecError, with a line that can be sent to the peer."""
    try:
        decode(data)
    except CodecError as error:
        text = str(error)
        assert text.isascii()
        assert 0 < len(text) < 300
    else:
        raise AssertionError(f"{data[:100].hex()} was read")


def values_of(message: Message) -> list[object]:
    """The fields of a message in their order."""
    values = dataclasses.fields(cast("Any", message))
    return [getattr(message, field.name) for field in values]


def expected_values(number: int, fields: list[bytes], tlvs: dict[int, bytes]) -> list[object]:
    """The same from the reference's reading."""
    sizes = reference.LAYOUTS[number].fields
    values: list[object] = [
        int.from_bytes(field, "big") if size in (1, 2, 4, 8) else field
        for size, field in zip(sizes, fields, strict=True)
    ]
    if number == 16:
        chains = tlvs.get(1)
        listed = None if chains is None else tuple(_chunks(chains))
        both = int.from_bytes(fields[0], "big") | int.from_bytes(fields[1], "big")
        return [both, listed, tlvs.get(2), tlvs.get(3)]
    if number == 127:
        return [*values, int.from_bytes(tlvs[1], "big") if 1 in tlvs else None]
    return [*values, tlvs.get(1)] if number == 136 else values


def _chunks(data: bytes) -> list[bytes]:
    return [data[start : start + 32] for start in range(0, len(data), 32)]


def check_channel_id(number: int, data: bytes) -> None:
    """A channel message has its channel id where BOLT 2 has it, or is refused."""
    if number not in CHANNEL_MESSAGES and number < 256:
        return
    start = 34 if number in (32, 64) else 2
    if len(data) < start + 32:
        refuse(channel_id_of, data)
    else:
        assert channel_id_of(data) == data[start : start + 32]


def tlvs(data: bytes) -> None:
    """A BigSize, and a TLV stream in which types 1 to 3 and 254 are known."""
    read = reference.bigsize(data)
    if read is None:
        refuse(decode_bigsize, data)
    else:
        value, end = decode_bigsize(data)
        assert (value, data[end:]) == read
        assert encode_bigsize(value) == data[:end]
    known = {1: bytes, 2: bytes, 3: bytes, 254: bytes}
    records = reference.tlv_stream(data, dict.fromkeys(known, lambda value: True))
    if records is None:
        refuse(lambda stream: decode_tlv_stream(stream, known), data)
        return
    assert decode_tlv_stream(data, known) == records
    assert decode_tlv_stream(b"head" + data, known, 4) == records
    encoded = encode_tlv_stream(records.items())
    assert decode_tlv_stream(encoded, known) == records
    assert len(encoded) <= len(data)


def features(data: bytes) -> None:
    """A feature field; bit by bit as far as that does not take too long."""
    number = decode_features(data)
    assert encode_features(number) == data.lstrip(b"\x00")
    good = len(data) > 100 or reference.features_are_good(number)
    problem = ""
    try:
        wire_features.check(number)
    except FeatureError as error:
        problem = str(error)
    assert good if not problem else len(data) > 100 or not good
    assert problem.isascii()
    assert problem.startswith("init: " if problem else "")
    if len(data) <= 100:
        named = wire_features.names(number)
        assert len(named) == number.bit_count()
        assert isinstance(wire_features.client(number), str)


NOWHERE = Path("/nonexistent")

VALUES = [
    value
    for value in vars(config_values).values()
    if isinstance(value, type)
    and value.__module__ == config_values.__name__
    and issubclass(value, str | int | float)
]


def _host_port(text: str) -> None:
    host, port = parse_host_port(text)
    assert host
    assert 0 <= port <= 65535
    if host.count("[") == host.count("]") == 0:
        assert parse_host_port(format_host_port(host, port)) == (host, port)


def _node_address(text: str) -> None:
    address = NodeAddress.parse(text)
    assert len(address.node_id) == 33
    if "[" not in address.host:
        assert NodeAddress.parse(str(address)) == address


def _node_id(text: str) -> None:
    assert parse_node_id(text).hex() == text.lower()


def _slot(text: str) -> None:
    node_id, _, rest = text.partition(" ")
    kind, _, channel_id = rest.partition(" ")
    slot = parse_slot(node_id, kind, channel_id)
    assert len(slot.channel_id) == (32 if slot.kind.label == "channel_backup" else 0)


def _value(text: str) -> None:
    """A value of the configuration, by its type."""
    kind = VALUES[ord(text[0]) % len(VALUES)] if text else VALUES[0]
    try:
        kind(text[1:])
    except ValueError as error:
        # Here for what has no business in the value of a key: config.py refuses it before.
        raise AddressError(str(error)) from None


def _override(text: str) -> None:
    load(NOWHERE, None, {}, [text])


def _variable(text: str) -> None:
    name, _, value = text.partition("=")
    load(NOWHERE, None, {f"PEERSTORE_{name}": value})


TEXTS = (_host_port, _node_address, _node_id, _slot, _value, _override, _variable)


def texts(data: bytes) -> None:
    """A text of the configuration, a command line or the control socket; the first byte says
    which."""
    text = data[1:].decode("utf-8", "surrogateescape")
    read = TEXTS[data[0] % len(TEXTS)] if data else TEXTS[0]
    problem = ""
    try:
        read(text)
    except (AddressError, ConfigError) as error:
        problem = str(error)
    # Of the configuration it is one line that any terminal and log can show.
    assert read not in (_override, _variable) or problem.isprintable()


def _methods() -> Mapping[str, Method]:
    """All methods of the store, over a store that does nothing, and one for each way to answer."""

    async def run(operation: Any) -> None:
        # What is bound in the operation would go into SQL.
        for cell in operation.__closure__:
            value = cell.cell_contents
            assert isinstance(value, bool | str | bytes | Slot | NoneType) or 0 < value < 1 << 62
        raise StoreError("not here")

    async def alarms(*, acknowledged: bool) -> list[Any]:
        assert isinstance(acknowledged, bool)
        return []

    async def prune(_retention: object, *, dry_run: bool) -> AsyncIterator[Any]:
        assert isinstance(dry_run, bool)
        found: list[Any] = []
        for due in found:
            yield due

    async def echo(**parameters: object) -> object:
        return parameters

    store = SimpleNamespace(run=run, prune=prune, reader=SimpleNamespace(alarms=alarms))
    return {**methods(cast("SqliteStore", store)), "test.echo": echo}


SERVER = ControlServer(NOWHERE, _methods())


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run what waits for nothing but its next turn."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as end:
            return cast("T", end.value)


async def _answers(line: bytes) -> list[Any]:
    return [answer async for answer in SERVER._answers(line)]


def control(data: bytes) -> None:
    """A line of the control socket."""
    for answer in finish(_answers(data)):
        line = b"".join(line_of(answer))
        assert line.count(b"\n") == 1
        for document in answer if isinstance(answer, list) else [answer]:
            check_answer(document)
        # What "test.echo" repeats may be a number that Python alone reads.
        if b"NaN" not in line and b"Infinity" not in line:
            assert json.loads(line) == answer


def check_answer(document: dict[str, Any]) -> None:
    """JSON-RPC 2.0: a result or an error, and never the one for what nobody has thought of."""
    assert document["jsonrpc"] == "2.0"
    assert document.keys() in ({"jsonrpc", "id", "result"}, {"jsonrpc", "id", "error"})
    json.dumps(document["id"], allow_nan=False)
    if "error" in document:
        assert document["error"]["code"] != INTERNAL_ERROR, document["error"]["message"]
