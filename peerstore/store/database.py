"""aiosqlite's connection, with a way to do many things for one hop to its thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import aiosqlite

T = TypeVar("T")


class Database(aiosqlite.Connection):
    """A connection that is opened by `await Database.open(...)`.

    Each of aiosqlite's methods is a hop to the connection's thread and back, which costs the event
    loop more than most statements.
    """

    @classmethod
    async def open(cls, database: str | Path, **options: Any) -> Self:
        """Open a database with the options of sqlite3.connect; raises sqlite3.Error."""
        connection = cls(lambda: sqlite3.connect(database, **options), iter_chunk_size=64)
        await connection
        # A flipped bit can make a text of bytes: that is damage, and no error of the query.
        connection.text_factory = lambda data: data.decode(errors="replace")
        return connection

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function on the connection's thread, and return what it returns."""
        result: T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        return result
