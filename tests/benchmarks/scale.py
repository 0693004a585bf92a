"""A database with very many peers, made directly: what a start, a list and a replay cost then."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from peerstore.store.base import backup_digest
from peerstore.types import BackupKind, NodeId, Slot

BLOB = 100

AGED = 100 * 86400
"""Seconds that daemons have seen pass on a database that is made here."""


def fill(
    database: Path,
    peers: int,
    known: Mapping[NodeId, int] | None = None,
    *,
    size: int = BLOB,
    away_every: int = 0,
) -> None:
    """Put so many peers with a blob of `size` bytes into a database that `init` has made.

    The `known` are among them, with blobs of their own sizes. Every so many of the others was never
    seen again, where `away_every` is not 0.
    """
    now = int(time.time())
    known = known or {}
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executemany(
            "INSERT INTO backup (id, node_id, kind, channel_id, revision, size, sha256, digest,"
            " stored_at, last_seen_at, opened, blob) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
            _rows(peers, known, size, now),
        )
        connection.execute(
            "INSERT INTO peer (node_id, first_seen, first_seen_at, last_seen_at, last_seen,"
            " last_aged) SELECT node_id, 0, :now, :now, :aged,"
            " iif(id > :known AND :every AND id % :every = 0, 0, :aged)"
            " FROM backup ORDER BY node_id",
            {"now": now, "aged": AGED, "known": len(known), "every": away_every},
        )
        connection.execute(
            "UPDATE meta SET last_revision = :peers, peers = :peers, backups = :peers,"
            " versions = :peers, bytes = (SELECT sum(size) FROM backup),"
            " seen = :aged, aged = :aged",
            {"peers": peers, "aged": AGED},
        )
        connection.commit()


def _rows(
    peers: int, known: Mapping[NodeId, int], size: int, now: int
) -> Iterator[tuple[object, ...]]:
    ids = list(known)
    for number in range(1, peers + 1):
        node_id = ids[number - 1] if number <= len(ids) else NodeId(b"\2" + os.urandom(32))
        slot = Slot(node_id, BackupKind.PEER_STORAGE)
        blob = number.to_bytes(8, "big") + bytes(known.get(node_id, size) - 8)
        sha256 = hashlib.sha256(blob).digest()
        digest = backup_digest(slot, number, sha256)
        yield (
            number, node_id, int(slot.kind), b"", number, len(blob), sha256, digest, now, now, blob,
        )  # fmt: skip
