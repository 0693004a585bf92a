"""What several test modules share: published vectors, keys, two connections joined in memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from peerstore.connection import Connection, Event
from peerstore.store.sqlite import SqliteStore
from peerstore.transport.secp256k1 import KeyPair

VECTORS = Path(__file__).parent / "vectors"

quick = settings(max_examples=60, deadline=None)
"""For property tests; no test says how long something may take."""


def load_vectors(name: str) -> Any:
    """A file of tests/vectors; its `source` says where it was published."""
    return json.loads((VECTORS / name).read_text())


def key_pair(fill: int) -> KeyPair:
    """The key whose 32 private bytes are all `fill`."""
    return KeyPair.from_private_bytes(bytes((fill,)) * 32)


Cut = Callable[[bytes], Iterable[bytes]]
"""Cuts what one side sends into the pieces in which the other side gets it."""


def whole(data: bytes) -> Iterator[bytes]:
    """In one piece."""
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    """In pieces of one byte."""
    for index in range(len(data)):
        yield data[index : index + 1]


def in_pieces(sizes: Sequence[int]) -> Cut:
    """In pieces of these sizes, which begin anew when they are used up."""
    following = itertools.cycle(sizes)

    def cut(data: bytes) -> Iterator[bytes]:
        start = 0
        while start < len(data):
            end = start + next(following)
            yield data[start:end]
            start = end

    return cut


def take_events(connection: Connection) -> list[Event]:
    """Every event that is there."""
    return list(iter(connection.next_event, None))


def feed(connection: Connection, data: bytes, cut: Cut = whole) -> list[Event]:
    """Have a connection receive bytes; returns the events that they make."""
    events: list[Event] = []
    for piece in cut(data):
        connection.receive_data(piece)
        events += take_events(connection)
    return events


def pump(
    first: Connection, second: Connection, cut: Cut = whole
) -> tuple[list[Event], list[Event]]:
    """Carry bytes both ways until there are none; returns the events of each side."""
    first_events: list[Event] = []
    second_events: list[Event] = []
    while True:
        to_second = first.data_to_send()
        second_events += feed(second, to_second, cut)
        to_first = second.data_to_send()
        first_events += feed(first, to_first, cut)
        if not to_second and not to_first:
            return first_events, second_events


def connect() -> tuple[Connection, Connection]:
    """An initiator (key 0x11) and a responder (key 0x21) with random ephemeral keys."""
    responder_key = key_pair(0x21)
    initiator = Connection(key_pair(0x11), remote_node_id=responder_key.node_id)
    return initiator, Connection(responder_key)


def connected() -> tuple[Connection, Connection]:
    """The same two after their handshake."""
    initiator, responder = connect()
    pump(initiator, responder)
    return initiator, responder


def feature_bits(features: int) -> Iterator[int]:
    """The bits that are set, rising."""
    while features:
        lowest = features & -features
        yield lowest.bit_length() - 1
        features ^= lowest


class _Uncommitted:
    """A database whose disk fails at the commit."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        raise sqlite3.OperationalError("disk I/O error")


@contextlib.contextmanager
def failing_commits(store: SqliteStore) -> Iterator[None]:
    """What was written can't be committed."""
    writer = store._writer
    call = writer.call

    async def fail() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async def call_uncommitted(work: Callable[[Any], Any]) -> Any:
        return await call(lambda connection: work(_Uncommitted(connection)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "commit", fail)
        patch.setattr(writer, "call", call_uncommitted)
        yield
