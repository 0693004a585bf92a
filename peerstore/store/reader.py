"""Reading an SQLite store: used by the daemon beside its writer, and by commands on their own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from peerstore.channels.base import KnownChannel
from peerstore.errors import (
    DamagedBackupError,
    MissingBackupError,
    SchemaError,
    StoreClosedError,
    StoreError,
)
from peerstore.store.base import (
    Alarm,
    Backup,
    ChannelRow,
    Counts,
    Due,
    Passed,
    Peer,
    Refusal,
    Retention,
    Revision,
    Sample,
    Version,
    backup_digest,
    channel_digest,
)
from peerstore.store.database import Database
from peerstore.store.due import CLOSING, LAST_CLOSINGS, STANDS, Place, next_due, values_of
from peerstore.store.lease import Current, Holdings
from peerstore.store.migrate import migrations, schema_version
from peerstore.store.plan import PIN_AUTOMATIC, PIN_OPERATOR
from peerstore.store.times import Moment
from peerstore.types import NODE_ID_SIZE, BackupKind, ChannelState, Network, NodeId, Slot

_REVISION = "b.node_id, b.kind, b.channel_id, b.revision, b.size, b.sha256, b.stored_at"

_KINDS = """
    WITH other AS (
        SELECT kind, sum(replaced IS NULL) AS backups, sum(size) AS bytes
        FROM backup WHERE kind <> 1 GROUP BY kind
    )
    SELECT 1, meta.backups - coalesce((SELECT sum(backups) FROM other), 0),
           meta.bytes - coalesce((SELECT sum(bytes) FROM other), 0) FROM meta
    UNION ALL
    SELECT kind, backups, bytes FROM other
"""

CHANNEL_COLUMNS = (
    "c.commitments, c.revocations, c.last_secret, c.whole, c.shutdown, c.closing, c.digest"
)

_HOLDINGS_OF = f"""
    SELECT {_REVISION}, b.id, b.last_seen_at, b.opened, b.pins, b.replaced IS NULL,
           h.backup_id IS b.id AND (h.until IS NULL OR h.until > :seen), h.until, p.first_seen,
           p.established, p.forgone, p.last_aged, p.last_height, {CHANNEL_COLUMNS}
    FROM (SELECT :node_id AS node_id) AS n
    LEFT JOIN peer AS p ON p.node_id = n.node_id
    LEFT JOIN backup AS b ON b.node_id = n.node_id AND b.kind IN (1, 2, 3)
    LEFT JOIN hold AS h ON (h.node_id, h.kind, h.channel_id) = (b.node_id, b.kind, b.channel_id)
    LEFT JOIN {{channel}} AS c ON (c.node_id, c.channel_id) = (b.node_id, b.channel_id)
                              AND b.replaced IS NULL
    ORDER BY b.id
"""
_HOLDINGS = _HOLDINGS_OF.format(channel="channel")
_HOLDINGS_ALONE = _HOLDINGS_OF.format(channel="(SELECT * FROM channel WHERE FALSE)")

_VERSIONS = f"""
    SELECT {_REVISION}, b.id, b.replaced IS NULL, b.pins,
           h.backup_id IS NOT NULL AND (h.until IS NULL OR h.until > (SELECT seen FROM meta)),
           h.backup_id
    FROM backup AS b LEFT JOIN hold AS h USING (node_id, kind, channel_id)
    WHERE {{which}} AND (NOT :current_only OR b.replaced IS NULL)
          AND b.kind IN (1, 2, 3) -- another one is damage, which `verify` shows
    ORDER BY {{order}} LIMIT :limit
"""

VERSION_ORDERS = {
    "node_id": "b.node_id, b.kind, b.channel_id, b.id",
    "size": "b.size DESC, b.id",
    "stored_at": "b.stored_at, b.id",
    "revision": "b.revision",
}
"""What a list of versions can be sorted by."""

_OF_ONE_PEER = "b.node_id = :node_id"
_FROM_KEY = "(b.node_id, b.kind, b.channel_id, b.id) > (:node_id, :kind, :channel_id, :id)"

_ALARM = (
    "id, kind, text, raised_at, last_at, count, acknowledged_at, node_id, backup_kind, channel_id,"
    " revision"
)

_PEERS = """
    SELECT p.node_id, p.first_seen_at, p.last_seen_at, m.seen - p.last_seen,
           p.last_height, p.established, p.address, p.features, p.forgone, coalesce(r.rule, ''),
           (SELECT count(*) FROM backup AS b WHERE b.node_id = p.node_id AND b.kind IN (1, 2, 3)
                                                   AND b.replaced IS NULL),
           (SELECT coalesce(sum(b.size), 0) FROM backup AS b
            WHERE b.node_id = p.node_id AND b.kind IN (1, 2, 3))
    FROM peer AS p JOIN meta AS m LEFT JOIN rule AS r USING (node_id)
"""

PEER_ORDERS = {
    "node_id": "p.node_id",
    "first_seen": "p.first_seen_at",
    "last_seen": "p.last_seen_at",
    "backups": "11 DESC",
    "bytes": "12 DESC",
}
"""What a list of peers can be sorted by."""

_CHANNEL_KEYS = """
    SELECT node_id, channel_id FROM {table}
    WHERE (node_id, channel_id) > (:node_id, :channel_id) AND node_id <= :last
"""

_PASSED = """
    :height - max(k.closed_height, coalesce(p.last_height, :height)) AS blocks,
    :aged - max(k.closed, p.last_aged) AS seconds
"""
"""The fields of Passed after the closing `k` and the last visit of the peer `p`."""

_CHANNELS = f"""
    WITH page AS (
        {_CHANNEL_KEYS.format(table="channel")} UNION {_CHANNEL_KEYS.format(table="node_channel")}
        ORDER BY node_id, channel_id LIMIT :limit
    ), of_peer AS (
        SELECT k.node_id, {_PASSED}
        FROM ({LAST_CLOSINGS} WHERE node_id IN (SELECT node_id FROM page) GROUP BY node_id) AS k
        JOIN peer AS p USING (node_id)
        WHERE NOT {STANDS} AND EXISTS (
            SELECT 1 FROM backup AS b WHERE b.node_id = p.node_id AND b.kind IN (1, 2))
    )
    SELECT k.node_id, k.channel_id, k.has_backup, k.open, k.closed_height, k.closed_at, {_PASSED},
           o.blocks, o.seconds, {CHANNEL_COLUMNS.replace("c.", "k.")}
    FROM (
        SELECT i.node_id, i.channel_id, c.node_id IS NOT NULL AS has_backup, n.open, {CLOSING},
               {CHANNEL_COLUMNS}
        FROM page AS i LEFT JOIN channel AS c USING (node_id, channel_id)
        LEFT JOIN node_channel AS n USING (node_id, channel_id)
    ) AS k
    LEFT JOIN peer AS p ON p.node_id = k.node_id LEFT JOIN of_peer AS o ON o.node_id = k.node_id
    ORDER BY k.node_id, k.channel_id
"""

T = TypeVar("T")

PAGE = 1000
"""Versions that are listed with one statement."""


def _pinned_by(pins: int) -> str:
    if pins & PIN_OPERATOR:
        return "operator"
    return "data loss" if pins & PIN_AUTOMATIC else ""


@dataclass(frozen=True, slots=True)
class Meta:
    """Whose database it is, and how far it has come.

    `moment` is the times that decide, as they were when they were written last.
    """

    node_id: NodeId
    network: Network
    schema_version: int
    last_revision: int
    epoch: bytes
    moment: Moment
    counts: Counts


class SqliteReader:
    """Read-only connections to a database; nothing here can write or checkpoint."""

    def __init__(self, path: Path, connections: list[Database]) -> None:
        self._path = path
        self._connections = connections
        self._turn = itertools.count()
        self._lists = itertools.count()

    @classmethod
    async def open(cls, path: Path, *, connections: int = 1) -> Self:
        """Raises StoreError when there is no database or it can't be read, SchemaError when its
        schema is not the one that this program reads."""
        opened: list[Database] = []
        try:
            uri = _read_only_uri(path)
            # Tried here first: aiosqlite's thread would outlive a failure.
            sqlite3.connect(uri, uri=True).close()
            for _ in range(connections):
                opened.append(await Database.open(uri, uri=True))  # noqa: PERF401 - closed on error
            version = await schema_version(opened[0])
            if version == 0:
                raise SchemaError("it is empty: run `peerstore init`")
            if version > len(migrations()):
                raise SchemaError("a newer peerstore made it; use that one to read it")
            if version < len(migrations()):
                raise SchemaError("it is of an older schema; start the daemon once to upgrade it")
        except (sqlite3.Error, SchemaError) as error:
            await cls(path, opened).close()
            kind = SchemaError if isinstance(error, SchemaError) else StoreError
            hint = ""
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says more of the same
            if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                hint = "; SQLite has to write beside it: see that the directory can be written"
            raise kind(f"{path}: {error}{hint}") from error
        return cls(path, opened)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            await connection.close()
        self._connections.clear()

    async def meta(self) -> Meta:
        """Whose database it is; raises StoreError for one whose making was interrupted."""
        rows = await self._all(
            "SELECT node_id, network, last_revision, epoch, seen, aged, height, peers, backups,"
            " bytes, versions FROM meta"
        )
        if not rows:
            raise StoreError("the database is empty: run `peerstore init`")
        node_id, network, last_revision, epoch, seen, aged, height, *counts = rows[0]
        return Meta(
            NodeId(node_id), Network(network), len(migrations()), last_revision, epoch,
            Moment(seen, aged, height), Counts(*counts),
        )  # fmt: skip

    async def free_space(self) -> int:
        """Bytes that can still be written: what is free on the disk and inside the database."""
        ((inside,),) = await self._all(
            "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
        )
        # A disk that hangs must not keep the loop.
        return await asyncio.to_thread(disk_free, self._path) + int(inside)

    async def kinds(self) -> dict[BackupKind, tuple[int, int]]:
        """Of each kind how many backups there are, and their bytes with kept versions."""
        rows = await self._all(_KINDS)
        found = {BackupKind(kind): (backups, size) for kind, backups, size in rows}
        return {kind: found.get(kind, (0, 0)) for kind in BackupKind}

    async def newest_at(self) -> int:
        """The newest wall time of what was stored last, in Unix seconds."""
        rows = await self._all(
            "SELECT max(at) FROM (SELECT created_at AS at FROM meta UNION ALL SELECT * FROM"
            " (SELECT stored_at FROM backup ORDER BY id DESC LIMIT 10))"
        )
        return int(rows[0][0])

    async def holdings(
        self, node_id: NodeId, seen: int, *, soon: BackupKind | None = None
    ) -> Holdings:
        """What a peer has here; `seen` decides which holds have run out.

        What it is given back of the kind `soon` is read along, if it is sound.
        """
        values = {"node_id": node_id, "seen": seen}

        def look(connection: sqlite3.Connection) -> Holdings:
            holdings = _holdings(connection.execute(_HOLDINGS, values).fetchall())
            given = holdings.given.get(Slot(node_id, soon)) if soon else None
            if given is not None:
                # Whatever is wrong shows again when it is asked for, and is told of then.
                with contextlib.suppress(Exception):
                    blob = _sound_blob(connection, *given)
                    holdings.read_along = Backup(given[1], blob) if blob is not None else None
            return holdings

        try:
            return await self._call(look)
        except StoreError:
            # The backups may be sound where the states of channels can't be read.
            return _holdings(await self._all(_HOLDINGS_ALONE, values))

    async def read(self, row_id: int, expected: Revision) -> Backup:
        """The bytes of a version.

        Raises DamagedBackupError when they, or what is stored beside them, don't match the
        digest or are not the version that was expected.
        """
        problem = "does not match its digest"
        try:
            blob = await self._call(lambda connection: _sound_blob(connection, row_id, expected))
            if blob is not None:
                return Backup(expected, blob)
        except ValueError as error:  # a kind that there is not
            problem = str(error)
        except StoreError as error:
            if not is_damage(error.__cause__):
                raise
            problem = str(error)
        raise DamagedBackupError(
            f"revision {expected.revision} ({expected.slot.label}) of"
            f" {expected.slot.node_id.hex()}: {problem}"
        )

    async def versions(
        self,
        node_id: NodeId | None = None,
        *,
        current_only: bool = False,
        order: str = "node_id",
        limit: int | None = None,
    ) -> AsyncIterator[Version]:
        """What is stored, for one peer or for all, ordered by slot and revision.

        Read page by page: a statement that stays open would keep everything else on its
        connection at the state of its beginning. Another `order` of VERSION_ORDERS takes one
        statement all the same.
        """
        if order != "node_id":
            which = "TRUE" if node_id is None else _OF_ONE_PEER
            sql = _VERSIONS.format(which=which, order=VERSION_ORDERS[order])
            most = -1 if limit is None else limit
            values = {"node_id": node_id, "current_only": current_only, "limit": most}
            async for row in self._in_order(sql, values):
                yield _version(row)
            return
        sql = _VERSIONS.format(
            which=_FROM_KEY if node_id is None else _OF_ONE_PEER, order=VERSION_ORDERS[order]
        )
        # A peer has few; of all there may be millions.
        page = PAGE if node_id is None else -1
        key: dict[str, object] = {"node_id": node_id or b"", "kind": 0, "channel_id": b"", "id": 0}
        left = -1 if limit is None else limit
        while left:
            wanted = page if left < 0 else left if page < 0 else min(page, left)
            rows = await self._all(sql, {**key, "current_only": current_only, "limit": wanted})
            for row in rows:
                yield _version(row)
            if page < 0 or len(rows) < wanted:
                return
            left -= len(rows) if left > 0 else 0
            last = rows[-1]
            key = {"node_id": last[0], "kind": last[1], "channel_id": last[2], "id": last[7]}

    @contextlib.asynccontextmanager
    async def unchanging(self) -> AsyncIterator[None]:
        """Within the block everything is read from one state, whatever is written meanwhile."""
        connection = self._connection()
        await connection.execute("BEGIN")
        try:
            yield
        finally:
            await connection.rollback()

    async def find(self, slot: Slot, revision: int | None = None) -> Version | None:
        """A version of a slot; without a revision what the peer gets back, the held one or else
        the current one. None when there is none."""
        versions = [v async for v in self.versions(slot.node_id) if v.revision.slot == slot]
        if revision is not None:
            versions = [v for v in versions if v.revision.revision == revision]
        held = [v for v in versions if v.held]
        return next(reversed(held or versions), None)

    async def channel(self, slot: Slot) -> tuple[ChannelState | None, int | None]:
        """The state of a channel, None where it does not match its digest, and when it was seen
        to close, in Unix seconds."""
        rows = await self._all(
            f"SELECT c.closed_at, {CHANNEL_COLUMNS} FROM channel AS c"
            " WHERE c.node_id = ? AND c.channel_id = ?",
            (slot.node_id, slot.channel_id),
        )
        if not rows:
            return None, None
        return channel_state(slot, rows[0][1:]), rows[0][0]

    async def peers(
        self,
        node_id: NodeId | None = None,
        *,
        order: str = "node_id",
        limit: int | None = None,
    ) -> AsyncIterator[Peer]:
        """The peers that have stored something, or the one; `order` is a key of PEER_ORDERS."""
        if node_id is not None:
            for row in await self._all(f"{_PEERS} WHERE p.node_id = ?", (node_id,)):
                yield _peer(row)
        elif order == "node_id":
            sql = f"{_PEERS} WHERE p.node_id > :node_id ORDER BY p.node_id LIMIT :limit"
            async for row in self._paged(sql, {"node_id": b""}, limit):
                yield _peer(row)
        else:
            sql = f"{_PEERS} ORDER BY {PEER_ORDERS[order]}, p.node_id LIMIT :limit"
            async for row in self._in_order(sql, {"limit": -1 if limit is None else limit}):
                yield _peer(row)

    async def refusals(self, node_id: NodeId) -> list[Refusal]:
        """Why updates of a peer were not stored, the newest last."""
        rows = await self._all(
            "SELECT reason, count, first_at, last_at FROM refusal WHERE node_id = ?"
            " ORDER BY last_at, reason",
            (node_id,),
        )
        return [Refusal(*row) for row in rows]

    async def rules(self) -> dict[NodeId, str]:
        """Who is allowed and denied, whatever the policy says."""
        return {NodeId(row[0]): row[1] for row in await self._all("SELECT node_id, rule FROM rule")}

    async def channels(
        self, retention: Retention, node_id: NodeId | None = None
    ) -> AsyncIterator[ChannelRow]:
        """The channels that have a backup or that the routing node has named, of one peer or all.

        What `retention` keeps because of other channels counts for nothing.
        """
        values = {
            **values_of(retention, (await self.meta()).moment),
            # Of one peer: those behind its id and no channel, up to its id.
            "node_id": node_id or b"",
            "channel_id": b"",
            "last": node_id or b"\xff" * NODE_ID_SIZE,
        }
        async for row in self._paged(_CHANNELS, values, None):
            yield _channel_row(row)

    async def node_channels(self, node_id: NodeId | None = None) -> list[KnownChannel]:
        """What is remembered of the channels of the routing node, with one peer or with all."""
        rows = await self._all(
            "SELECT node_id, channel_id, open, closed_height, unsettled, closed, closed_at"
            f" FROM node_channel WHERE {'TRUE' if node_id is None else 'node_id = :node_id'}",
            {"node_id": node_id},
        )
        return [
            KnownChannel(NodeId(row[0]), row[1], bool(row[2]), row[3], bool(row[4]), *row[5:])
            for row in rows
        ]

    async def next_due(
        self, retention: Retention, moment: Moment, place: Place
    ) -> tuple[list[Due], Place | None]:
        """See due.next_due."""
        return await next_due(self._all, retention, moment, place)

    async def alarms(self, *, acknowledged: bool) -> list[Alarm]:
        """The alarms that stand, and those that were acknowledged too if asked for."""
        rows = await self._all(
            f"SELECT {_ALARM} FROM alarm WHERE ? OR acknowledged_at IS NULL ORDER BY id",
            (acknowledged,),
        )
        return [_alarm(row) for row in rows]

    async def alarm_counts(self) -> dict[str, int]:
        """How many alarms of each kind stand."""
        return dict(
            await self._all(
                "SELECT kind, count(*) FROM alarm WHERE acknowledged_at IS NULL GROUP BY kind"
            )
        )

    async def newest_alarms(self, limit: int) -> list[Alarm]:
        """The newest of the alarms that stand, which come first."""
        rows = await self._all(
            f"SELECT {_ALARM} FROM alarm WHERE acknowledged_at IS NULL ORDER BY id DESC LIMIT ?",
            (limit,),
        )
        return [_alarm(row) for row in rows]

    async def activity(self, since: int, until: int) -> list[Sample]:
        """What was noted between two times in Unix seconds, in the order of the clock."""
        rows = await self._all(
            "SELECT at, bytes, updates FROM activity WHERE at BETWEEN ? AND ? ORDER BY at, period",
            (since, until),
        )
        return [Sample(*row) for row in rows]

    async def node_ids(self, prefix: str, limit: int) -> list[NodeId]:
        """The peers with a backup whose id begins with these hexadecimal digits."""
        low = bytes.fromhex(prefix.ljust(66, "0"))
        high = bytes.fromhex(prefix.ljust(66, "f"))
        rows = await self._all(
            "SELECT node_id FROM peer WHERE node_id BETWEEN ? AND ? LIMIT ?", (low, high, limit)
        )
        return [NodeId(row[0]) for row in rows]

    async def _paged(
        self,
        sql: str,
        values: Mapping[str, object],
        limit: int | None,
    ) -> AsyncIterator[Any]:
        """Rows page by page: `sql` takes the key behind which to go on, and how many.

        The key is what the rows begin with: node_id, and channel_id if `values` has it.

        A statement that stays open while somebody reads a list would keep the WAL from being
        written back.
        """
        keys = [key for key in ("node_id", "channel_id") if key in values]
        place, left = dict(values), limit
        while left is None or left > 0:
            wanted = PAGE if left is None else min(PAGE, left)
            rows = await self._all(sql, {**place, "limit": wanted})
            for row in rows:
                yield row
            if len(rows) < wanted:
                return
            left = None if left is None else left - len(rows)
            place.update(zip(keys, rows[-1], strict=False))

    async def _in_order(self, sql: str, values: Mapping[str, object]) -> AsyncIterator[Any]:
        """The rows of an ordered statement, through a temporary table of its own."""
        name = f"listed{next(self._lists)}"
        connection = self._connection()
        await self._all(f"CREATE TEMP TABLE {name} AS {sql}", values, connection)
        page = f"SELECT *, rowid FROM temp.{name} WHERE rowid > ? ORDER BY rowid LIMIT {PAGE}"
        try:
            last = 0
            while rows := await self._all(page, (last,), connection):
                for row in rows:
                    yield row[:-1]
                last = rows[-1][-1]
        finally:
            with contextlib.suppress(StoreError, ValueError):  # the reader may be closed
                await self._all(f"DROP TABLE temp.{name}", (), connection)

    async def _all(
        self,
        sql: str,
        parameters: Sequence[object] | Mapping[str, object] = (),
        connection: Database | None = None,
    ) -> list[Any]:
        return await self._call(lambda own: own.execute(sql, parameters).fetchall(), connection)

    async def _call(
        self, work: Callable[[sqlite3.Connection], T], connection: Database | None = None
    ) -> T:
        try:
            return await (connection or self._connection()).call(work)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: the database can't be read: {error}") from error

    def _connection(self) -> Database:
        if not self._connections:
            raise StoreClosedError("the store is closed")
        return self._connections[next(self._turn) % len(self._connections)]


def _holdings(rows: list[Any]) -> Holdings:
    """What a peer has here, from the rows of _HOLDINGS."""
    holdings = Holdings()
    holdings.rows = frozenset(row[7] for row in rows if row[7] is not None)
    for row in rows:
        row_id, last_seen_at, opened, pins, current, held, until = row[7:14]
        holdings.first_seen, holdings.established = row[14], bool(row[15])
        holdings.forgone = bool(row[16])
        holdings.last_aged, holdings.last_height = row[17] or 0, row[18]
        if row_id is None:
            continue
        revision = _revision(row)
        slot = revision.slot
        holdings.size += revision.size
        if held:
            holdings.held[slot] = until
            holdings.given[slot] = (row_id, revision)
        if current:
            holdings.current[slot] = Current(
                row_id, revision, last_seen_at, opened, pins, held=bool(held)
            )
            if slot.kind is BackupKind.CHANNEL_BACKUP:
                holdings.channels[slot.channel_id] = channel_state(slot, row[19:])
    # The newest, where a damaged row could not be marked as replaced.
    for slot, newest in holdings.current.items():
        holdings.given.setdefault(slot, (newest.row_id, newest.revision))
    return holdings


def _sound_blob(connection: sqlite3.Connection, row_id: int, expected: Revision) -> bytes | None:
    """The bytes of a version, None where they don't match; raises MissingBackupError.

    Hashed where it is read, so that the loop goes on.
    """
    sql = f"SELECT {_REVISION}, b.digest, b.blob FROM backup AS b WHERE b.id = ?"
    row = connection.execute(sql, (row_id,)).fetchone()
    if row is None:
        raise MissingBackupError(
            f"revision {expected.revision} ({expected.slot.label}) of"
            f" {expected.slot.node_id.hex()} was deleted"
        )
    digest, blob = row[7:]
    sound = _revision(row) == expected and matches(expected, digest, blob)
    return bytes(blob) if sound else None


def disk_free(path: Path) -> int:
    """Bytes that are free on the disk of a file."""
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize


_WRONG_TYPE = 3091
"""SQLITE_CONSTRAINT_DATATYPE: nobody writes such a value, so it is one that was read."""


def is_damage(error: BaseException | None) -> bool:
    """Whether SQLite found a page of the database, or a row, that can't be right."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or code == _WRONG_TYPE


def matches(revision: Revision, digest: bytes, blob: object) -> bool:
    """Whether a blob and what is stored beside it are what was stored."""
    if not isinstance(blob, bytes):  # a flipped bit has made something else of it
        return False
    sha256 = hashlib.sha256(blob).digest()
    try:
        expected = backup_digest(revision.slot, revision.revision, sha256)
    except (ValueError, OverflowError):  # a value that no digest was ever made of
        return False
    return revision.sha256 == sha256 and revision.size == len(blob) and expected == digest


def channel_state(slot: Slot, columns: Sequence[Any]) -> ChannelState | None:
    """The state of a channel from its CHANNEL_COLUMNS.

    None when it does not match its digest, or is missing: a backup never comes without it.
    """
    *values, digest = columns
    if digest is None:
        return None
    commitments, revocations, last_secret, *flags = values
    state = ChannelState(commitments, revocations, last_secret, *map(bool, flags))
    try:
        return state if channel_digest(slot, state) == digest else None
    except (AttributeError, OverflowError, TypeError):  # of what no digest was ever made
        return None


def _read_only_uri(path: Path) -> str:
    if not path.is_file():
        raise StoreError(f"there is no database at {path}: run `peerstore run` or `peerstore init`")
    return f"{path.absolute().as_uri()}?mode=ro"


def _version(row: Any) -> Version:
    row_id, current, pins, slot_held, held_id = row[7:]
    return Version(
        row_id,
        _revision(row),
        current=bool(current),
        pinned=_pinned_by(pins),
        held=bool(slot_held) and held_id == row_id,
        slot_held=bool(slot_held),
    )


def _alarm(row: Any) -> Alarm:
    number, kind, text, raised_at, last_at, count, acknowledged_at, node_id, *rest = row
    backup_kind, channel_id, revision = rest
    return Alarm(
        number, kind, text, raised_at, last_at, count, acknowledged_at,
        None if node_id is None else Slot(NodeId(node_id), BackupKind(backup_kind), channel_id),
        revision,
    )  # fmt: skip


def _channel_row(row: Any) -> ChannelRow:
    node_id, channel_id, has_backup, is_open, closed_height, closed_at, *passed = row[:10]
    slot = Slot(NodeId(node_id), BackupKind.CHANNEL_BACKUP, channel_id)
    of_channel, of_peer = (
        None if seconds is None else Passed(blocks, seconds)
        for blocks, seconds in (passed[:2], passed[2:])
    )
    return ChannelRow(
        slot, bool(has_backup), channel_state(slot, row[10:]),
        "" if is_open is None else "open" if is_open else "closed",
        closed_height, closed_at, of_channel if has_backup else None, of_peer,
    )  # fmt: skip


def _peer(row: Any) -> Peer:
    node_id, first_seen_at, last_seen_at, away, last_height, established, *rest = row
    address, features, forgone, rule, backups, size = rest
    return Peer(
        NodeId(node_id), first_seen_at, last_seen_at, away, last_height, bool(established), address,
        features, bool(forgone), rule, backups, size,
    )  # fmt: skip


def _revision(row: Any) -> Revision:
    node_id, kind, channel_id, revision, size, sha256, stored_at = row[:7]
    slot = Slot(NodeId(node_id), BackupKind(kind), channel_id)
    return Revision(slot, revision, size, sha256, stored_at)
