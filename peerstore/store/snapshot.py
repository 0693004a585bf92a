"""Whole copies of a database, checking one through, and putting one back.

All of it works on files with SQLite's own functions, blocking: a command runs it as it is, the
daemon in a thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from peerstore.errors import SchemaError, StoreError
from peerstore.ownership import give_to_owner, new_file
from peerstore.store.base import Revision
from peerstore.store.mark import mark_path, read_mark
from peerstore.store.migrate import APPLICATION_ID, CHANNEL_SCHEMA, migrations, sync
from peerstore.store.reader import CHANNEL_COLUMNS, channel_state, matches
from peerstore.store.statements import check_owner
from peerstore.types import BackupKind, Network, NodeId, Slot

Progress = Callable[[int, int], None]
"""Called with how many backups were checked, and of how many."""


@dataclass(slots=True)
class Report:
    """What a check found: SQLite's complaints, and the versions that don't match their digest."""

    checked: int = 0
    problems: list[str] = field(default_factory=list)
    damaged: list[Revision] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether all is as it was stored."""
        return not (self.problems or self.damaged)


_EVERY_ROW = """
    SELECT node_id, kind, channel_id, revision, size, sha256, stored_at, digest, blob
    FROM backup NOT INDEXED -- a damaged index must not hide a row
"""


_EVERY_CHANNEL = f"""
    SELECT node_id, channel_id, {CHANNEL_COLUMNS}
    FROM (SELECT node_id, channel_id FROM backup NOT INDEXED WHERE kind = 3 AND replaced IS NULL
          UNION SELECT node_id, channel_id FROM channel)
    LEFT JOIN channel AS c USING (node_id, channel_id)
"""


def verify(database: Path, progress: Progress = lambda _done, _total: None) -> Report:
    """Read everything: SQLite's structures and every digest.

    Raises StoreError when it is no database of this program.
    """
    report = Report()
    with closing(_open_read_only(database)) as connection:
        _check_kind(database, connection)
        try:
            rows = connection.execute("PRAGMA integrity_check(100)").fetchall()
            # Some of them are of several lines.
            report.problems = [" ".join(row[0].split()) for row in rows if row[0] != "ok"]
            total = connection.execute("SELECT count(*) FROM backup NOT INDEXED").fetchone()[0]
            kinds = set(BackupKind)
            for row in connection.execute(_EVERY_ROW):
                node_id, kind, channel_id, number, size, sha256, stored_at, digest, blob = row
                report.checked += 1
                progress(report.checked, total)
                if kind not in kinds:
                    report.problems.append(f"revision {number} of {node_id.hex()}: kind {kind}")
                    continue
                slot = Slot(NodeId(node_id), BackupKind(kind), channel_id)
                revision = Revision(slot, number, size, sha256, stored_at)
                if not matches(revision, digest, blob):
                    report.damaged.append(revision)
            if _schema_version(connection) >= CHANNEL_SCHEMA:
                for node_id, channel_id, *columns in connection.execute(_EVERY_CHANNEL):
                    slot = Slot(NodeId(node_id), BackupKind.CHANNEL_BACKUP, channel_id)
                    if channel_state(slot, columns) is None:
                        report.problems.append(
                            f"the state of channel {channel_id.hex()} of {node_id.hex()} does not"
                            " match its digest"
                        )
        except (sqlite3.Error, ValueError, TypeError) as error:
            report.problems.append(str(error).encode("unicode_escape").decode())
    return report


def snapshot(database: Path, destination: Path) -> None:
    """Copy a database, in use or not, whole in one step; raises StoreError.

    `destination` must not exist; it comes into being complete and synced.
    """
    if destination.exists():
        raise StoreError(f"{destination} exists already: choose another name")
    partial = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)
        os.close(new_file(partial))  # SQLite would follow a link of this name
        with (
            closing(_open_read_only(database)) as source,
            closing(sqlite3.connect(partial)) as target,
        ):
            _check_kind(database, source)
            # All pages in one step, under one read transaction: beside a writer a copy page by
            # page begins anew at every commit.
            source.backup(target, pages=-1)
            target.execute("PRAGMA journal_mode = DELETE")
        sync(partial)
        _publish(partial, destination)
    except FileExistsError:
        raise StoreError(f"{destination} exists already: choose another name") from None
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{destination}: the snapshot can't be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def snapshot_when_due(
    database: Path, directory: Path, *, every: float, keep: int, now: float
) -> Path | None:
    """Make a snapshot in `directory` unless the newest is younger than `every` seconds.

    Returns the snapshot made, if any; of those made here the newest `keep` stay. A clock that went
    back makes one more, never one less. Raises StoreError, OSError.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Left behind by a process that was killed meanwhile.
    for partial in directory.glob(f".{database.stem}-*.partial"):
        partial.unlink(missing_ok=True)
    # By the whole pattern: an operator may keep other files here.
    ours = re.compile(re.escape(database.stem) + r"-\d{8}T\d{6}Z\.db")
    made = sorted(
        (path for path in directory.iterdir() if ours.fullmatch(path.name)),
        key=lambda path: path.stat().st_mtime,
    )
    if any(0 <= now - path.stat().st_mtime < every for path in made):
        return None
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    destination = directory / f"{database.stem}-{stamp}.db"
    snapshot(database, destination)
    for old in [path for path in made if path != destination][: max(0, len(made) + 1 - keep)]:
        old.unlink()
    return destination


def _publish(partial: Path, destination: Path, *, move: bool = True) -> None:
    """Give a complete file a name; raises FileExistsError where there is one.

    Without `move` it keeps its old one too, at the price of a copy where there are no links.
    """
    try:
        destination.hardlink_to(partial)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if destination.exists():
            raise FileExistsError(destination) from None
        if move:
            partial.rename(destination)
        else:
            shutil.copy2(partial, destination)
    sync(destination.parent)


def restore(
    source: Path,
    database: Path,
    *,
    node_id: NodeId,
    network: Network,
    now: int,
    progress: Progress = lambda _done, _total: None,
) -> Path | None:
    """Put a snapshot in the place of a database that no daemon uses; the caller holds its lock.

    The snapshot is verified before anything is touched. Returns where what it replaced is kept,
    None when there was nothing. Begins a new epoch. Raises StoreError, SchemaError; then all is as
    it was.
    """
    report = verify(source, progress)
    if not report.sound:
        found = [*report.problems, *(f"revision {r.revision} is damaged" for r in report.damaged)]
        raise StoreError(f"{source} is damaged, nothing was replaced: {found[0]}")
    incoming = database.with_name(f".{database.name}.{os.getpid()}.incoming")
    try:
        snapshot(source, incoming)
        last = _last_revision(database)
        with closing(sqlite3.connect(incoming, isolation_level=None)) as connection:
            owner, made_for = connection.execute("SELECT node_id, network FROM meta").fetchone()
            check_owner(owner, made_for, node_id, network)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("UPDATE meta SET last_revision = max(last_revision, ?)", (last,))
            if _schema_version(connection) > 1:
                # The first schema has no epoch: its upgrade makes a new one.
                connection.execute("UPDATE meta SET epoch = randomblob(16)")
            if _schema_version(connection) > 4:
                # Who was here since is not known: everybody was, as far as retention goes.
                connection.execute(
                    "UPDATE peer SET last_height = NULL, last_aged = (SELECT aged FROM meta)"
                )
        descriptor = os.open(incoming, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            give_to_owner(descriptor, database.parent)
        finally:
            os.close(descriptor)
        kept = None
        if database.exists():
            kept = database.with_name(f"{database.name}.replaced-{now}")
            if kept.exists():
                raise StoreError(f"{kept} exists already: move it away first")
            with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(database)) as old:
                # What is in the WAL goes into the database, so that no crash here parts them.
                old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            # A WAL that could not be written back belongs to its database and goes with it.
            for suffix in ("-wal", "-shm"):
                part = database.with_name(database.name + suffix)
                if part.exists():
                    part.rename(kept.with_name(kept.name + suffix))
            _publish(database, kept, move=False)
        # In one step: there is always a database under this name. The mark was of the old one.
        mark_path(database).unlink(missing_ok=True)
        incoming.rename(database)
        sync(database.parent)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{database}: the snapshot can't be put back: {error}") from error
    except SchemaError as error:
        raise SchemaError(f"{source}: {error}") from error
    finally:
        incoming.unlink(missing_ok=True)
    return kept


def copy_key(key_file: Path, destination: Path) -> None:
    """Put a copy of the node's key beside a snapshot, for its owner alone; raises StoreError."""
    try:
        descriptor = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as target, key_file.open("rb") as source:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
    except OSError as error:
        raise StoreError(f"{destination}: the key can't be copied: {error.strerror}") from error


def _last_revision(database: Path) -> int:
    """The newest revision that the database is known to have given out."""
    mark = read_mark(mark_path(database))
    last = 0 if mark is None else mark.revision
    if database.exists():
        try:
            with closing(_open_read_only(database)) as connection:
                stored = connection.execute("SELECT last_revision FROM meta").fetchone()[0]
                last = max(last, int(stored))
        except (StoreError, sqlite3.Error, TypeError):
            pass  # it is replaced because it is broken
    return last


def _open_read_only(database: Path) -> sqlite3.Connection:
    if not database.is_file():
        raise StoreError(f"there is no database at {database}")
    try:
        return sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise StoreError(f"{database}: {error}") from error


def _schema_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check_kind(database: Path, connection: sqlite3.Connection) -> None:
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = _schema_version(connection)
    except sqlite3.Error as error:
        raise StoreError(f"{database}: {error}") from error
    if application != APPLICATION_ID:
        raise SchemaError(f"{database} is not a database of peerstore")
    if version > len(migrations()):
        raise SchemaError(f"{database}: a newer peerstore made it; use that one")
