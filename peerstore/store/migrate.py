"""Bringing a database to the newest schema: migrations/NNNN_name.sql, forward only.

Each file and the schema's new version number are applied in one transaction, so a crash leaves
the schema before or behind a step, never inside one.
"""

from __future__ import annotations

import os
import re
import sqlite3
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import aiosqlite

from peerstore.errors import SchemaError
from peerstore.ownership import new_file
from peerstore.store.base import channel_digest
from peerstore.types import BackupKind, ChannelState, Slot

APPLICATION_ID = 0x70737472
"""SQLite's mark of whose file this is: "pstr"."""

_NAME = re.compile(r"(\d{4})_\w+\.sql")


def packaged(name: str) -> Traversable:
    """A file or folder that a wheel carries inside the package and a checkout beside it."""
    inside = resources.files("peerstore") / name
    if inside.is_dir() or inside.is_file():
        return inside
    return Path(__file__).parent.parent.parent / name


def migrations() -> list[tuple[int, str]]:
    """Every migration as its number and its SQL, in order."""
    found = sorted(
        (int(match[1]), entry.read_text(encoding="utf-8"))
        for entry in packaged("migrations").iterdir()
        if (match := _NAME.fullmatch(entry.name))
    )
    if [number for number, _ in found] != list(range(1, len(found) + 1)):
        raise SchemaError("the installation is broken: its migrations have gaps; install anew")
    return found


async def schema_version(database: aiosqlite.Connection) -> int:
    """The number of the newest migration applied, 0 for an empty file.

    Raises SchemaError for a file that is not a peerstore database.
    """
    version = await _number(database, "PRAGMA user_version")
    if await _number(database, "PRAGMA application_id") == APPLICATION_ID:
        return version
    if version or await _number(database, "SELECT count(*) FROM sqlite_schema"):
        raise SchemaError("it is an SQLite database, but not one of peerstore")
    return 0


async def migrate(path: Path, database: aiosqlite.Connection, now: int) -> None:
    """Apply what is missing; a database that has something in it is copied before.

    Raises SchemaError when a newer program made the database.
    """
    version = await schema_version(database)
    known = migrations()
    if version > len(known):
        raise SchemaError(
            f"its schema has version {version}, this program knows {len(known)}:"
            " run the newer peerstore that made it, or restore an older snapshot"
        )
    if 0 < version < len(known):
        await _keep_copy(path, database, version, now)
    for number, sql in known[version:]:
        if number == CHANNEL_SCHEMA:
            sql += await _unknown_states(database)
        # executescript runs outside Python's own transactions: this one is whole.
        try:
            await database.executescript(
                f"BEGIN IMMEDIATE;\n{sql}\n"
                f"PRAGMA application_id = {APPLICATION_ID};\n"
                f"PRAGMA user_version = {number};\nCOMMIT;"
            )
        except aiosqlite.Error:
            await database.rollback()
            raise


CHANNEL_SCHEMA = 3
"""The schema from which on each channel with a backup has a row of its own."""


async def _unknown_states(database: aiosqlite.Connection) -> str:
    """SQL that makes these rows for the backups that are there: nothing is known of them."""
    rows = await database.execute_fetchall(
        f"SELECT DISTINCT node_id, channel_id FROM backup"
        f" WHERE kind = {int(BackupKind.CHANNEL_BACKUP)}"
    )
    state = ChannelState()
    return "".join(
        "INSERT INTO channel (node_id, channel_id, commitments, revocations, last_secret, whole,"
        f" shutdown, closing, digest) VALUES (x'{node_id.hex()}', x'{channel_id.hex()}', 0, 0,"
        f" x'{state.last_secret.hex()}', 0, 0, 0, x'{digest.hex()}');\n"
        for node_id, channel_id in rows
        for slot in [Slot(node_id, BackupKind.CHANNEL_BACKUP, channel_id)]
        for digest in [channel_digest(slot, state)]
    )


COPIES = 2
"""Copies from before an upgrade that stay."""


async def _keep_copy(path: Path, database: aiosqlite.Connection, version: int, now: int) -> None:
    copy = path.with_name(f"{path.name}.schema{version}-{now}")
    partial = copy.with_name(f".{path.name}.upgrade.partial")
    try:
        partial.unlink(missing_ok=True)
        os.close(new_file(partial))  # SQLite would follow a link of this name
        target = sqlite3.connect(partial, check_same_thread=False)
        try:
            await database.backup(target)
        finally:
            target.close()
        sync(partial)
        partial.rename(copy)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    copies = sorted(path.parent.glob(f"{path.name}.schema*-*"), key=lambda p: p.stat().st_mtime)
    for old in copies[:-COPIES]:
        old.unlink()


def sync(path: Path) -> None:
    """Make a file, or the names in a directory, durable; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _number(database: aiosqlite.Connection, sql: str) -> int:
    rows = list(await database.execute_fetchall(sql))
    return int(rows[0][0])
