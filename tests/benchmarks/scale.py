"""A database with very many peers, made directly: what a start, a list and a replay cost then."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from peerstore.store.base import backup_digest
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import BackupKind, NodeId, Slot

BLOB = 100


def fill(database: Path, peers: int, keys: tuple[str, ...]) -> None:
    """Put so many peers with a blob of 100 bytes into a database that `init` has made.

    The peers of `keys` (private, hexadecimal) are among them.
    """
    now = int(time.time())
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executemany(
            "INSERT INTO backup (id, node_id, kind, channel_id, revision, size, sha256, digest,"
            " stored_at, last_seen_at, opened, blob) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
            _rows(peers, keys, now),
        )
        connection.execute(
            "INSERT INTO peer (node_id, first_seen, first_seen_at, last_seen_at)"
            " SELECT node_id, 0, ?, ? FROM backup ORDER BY node_id",
            (now, now),
        )
        connection.execute(
            "UPDATE meta SET last_revision = ?, peers = ?, backups = ?, versions = ?, bytes = ?",
            (peers, peers, peers, peers, peers * BLOB),
        )
        connection.commit()


def _rows(peers: int, keys: tuple[str, ...], now: int) -> Iterator[tuple[object, ...]]:
    known = [KeyPair.from_private_bytes(bytes.fromhex(key)).node_id for key in keys]
    for number in range(1, peers + 1):
        node_id = known[number - 1] if number <= len(known) else NodeId(b"\2" + os.urandom(32))
        slot = Slot(node_id, BackupKind.PEER_STORAGE)
        blob = number.to_bytes(8, "big") + bytes(BLOB - 8)
        sha256 = hashlib.sha256(blob).digest()
        digest = backup_digest(slot, number, sha256)
        yield (
            number, node_id, int(slot.kind), b"", number, BLOB, sha256, digest, now, now, blob,
        )  # fmt: skip
