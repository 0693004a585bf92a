"""Deleting within a transaction, and all that hung on what is gone alone; the totals follow.

Each function runs on the thread of the writer's connection, in few statements however many rows
there are. They raise sqlite3.Error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from peerstore.types import NodeId, Slot

_PEERS = 64
"""Peers of one statement."""

_TOUCHED = "CREATE TEMP TABLE IF NOT EXISTS touched (node_id BLOB, kind INTEGER, channel_id BLOB)"

_OF_TOUCHED = "(b.node_id, b.kind, b.channel_id) = (t.node_id, t.kind, t.channel_id)"

_HOLDS = """
    DELETE FROM hold WHERE (node_id, kind, channel_id) IN (SELECT * FROM touched)
    AND NOT EXISTS (SELECT 1 FROM backup AS b WHERE b.id = hold.backup_id)
"""

_NEWEST = f"""
    UPDATE backup SET replaced = NULL WHERE replaced IS NOT NULL AND id IN (
        SELECT (SELECT max(b.id) FROM backup AS b WHERE {_OF_TOUCHED}) FROM touched AS t)
"""

_NOT_EMPTY = f"""
    DELETE FROM touched AS t WHERE EXISTS (SELECT 1 FROM backup AS b WHERE {_OF_TOUCHED})
"""

_CHANNELS = """
    DELETE FROM channel
    WHERE (node_id, channel_id) IN (SELECT node_id, channel_id FROM touched)
"""

# `kind IN` is what makes SQLite use the index on slots.
_PEERS_LEFT_WITH_NOTHING = """
    DELETE FROM peer WHERE node_id IN (SELECT node_id FROM touched) AND NOT EXISTS (
        SELECT 1 FROM backup AS b WHERE b.node_id = peer.node_id AND b.kind IN (1, 2, 3))
"""

_REFUSALS = """
    DELETE FROM refusal WHERE node_id IN (SELECT node_id FROM touched)
    AND NOT EXISTS (SELECT 1 FROM peer AS p WHERE p.node_id = refusal.node_id)
"""


def delete_versions(
    connection: sqlite3.Connection,
    slots: Sequence[Slot],
    condition: str,
    values: Mapping[str, object],
) -> None:
    """Delete the versions of some slots that fit an SQL condition with named values.

    What is newest of the rest of a slot becomes its current version.
    """
    connection.execute(_TOUCHED)
    connection.execute("DELETE FROM touched")
    connection.executemany(
        "INSERT INTO touched VALUES (?, ?, ?)",
        [(slot.node_id, int(slot.kind), slot.channel_id) for slot in slots],
    )
    sizes = connection.execute(
        "DELETE FROM backup WHERE (node_id, kind, channel_id) IN (SELECT * FROM touched)"
        f" AND {condition} RETURNING size",
        values,
    ).fetchall()
    connection.execute(_HOLDS)
    connection.execute(_NEWEST)
    # From here on `touched` are the slots that nothing is left of.
    left = connection.execute(_NOT_EMPTY).rowcount
    connection.execute(_CHANNELS)
    peers = connection.execute(_PEERS_LEFT_WITH_NOTHING).rowcount
    connection.execute(_REFUSALS)
    _uncount(
        connection,
        versions=len(sizes),
        size=sum(size for (size,) in sizes),
        peers=peers,
        backups=len(slots) - left,
    )


def delete_peers(connection: sqlite3.Connection, node_ids: Sequence[NodeId], now: int) -> None:
    """Delete all of some peers; alarms about them are acknowledged at `now`, in Unix seconds."""
    rows: list[Any] = []
    for start in range(0, len(node_ids), _PEERS):
        part = node_ids[start : start + _PEERS]
        those = f"node_id IN ({', '.join('?' * len(part))})"
        rows += connection.execute(
            f"DELETE FROM backup WHERE {those} RETURNING size, node_id, kind, channel_id", part
        ).fetchall()
        for table in ("hold", "channel", "refusal", "peer"):
            connection.execute(f"DELETE FROM {table} WHERE {those}", part)
        connection.execute(
            f"UPDATE alarm SET acknowledged_at = ? WHERE acknowledged_at IS NULL AND {those}",
            (now, *part),
        )
    _uncount(
        connection,
        versions=len(rows),
        size=sum(row[0] for row in rows),
        peers=len({row[1] for row in rows}),
        backups=len({row[1:] for row in rows}),
    )


def _uncount(
    connection: sqlite3.Connection, *, versions: int, size: int, peers: int, backups: int
) -> None:
    connection.execute(
        "UPDATE meta SET versions = versions - ?, bytes = bytes - ?, peers = peers - ?,"
        " backups = backups - ?",
        (versions, size, peers, backups),
    )
