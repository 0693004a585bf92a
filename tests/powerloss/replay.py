"""What a disk could hold after the power failed, worked out of the log of `durable.c`.

The rules, where a real disk and file system may be kinder but never worse:

- What was written to a file before its last sync is there.
- Of what was written to it since, each sector of 512 bytes is there or not, on its own: lost,
  torn and put into any order. So is each change of its size.
- Creating, unlinking and renaming is durable once the directory was synced, as POSIX has it; that
  a file's own sync is enough, as on ext4 and XFS, is not relied on. Of what was done since, some
  first part is there: file systems keep the order of these in their journal.
- A sector holds what it held before or what was written, never rubbish, and its neighbours are
  not touched (what SQLite calls powersafe overwrite).
"""

from __future__ import annotations

import enum
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512

_HEAD = struct.Struct("=5Q")


class Operation(enum.IntEnum):
    """The numbers of `durable.c`."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC = 4
    UNLINK = 5
    RENAME = 6
    SYNC_DIRECTORY = 7
    MARK = 8


@dataclass(frozen=True, slots=True)
class Record:
    """One operation; `offset` is the size for TRUNCATE, `data` the new name for RENAME."""

    operation: Operation
    inode: int
    offset: int
    name: str
    data: bytes


def read_log(path: Path) -> list[Record]:
    """All that a process did."""
    return list(_records(path.read_bytes()))


def _records(log: bytes) -> Iterator[Record]:
    at = 0
    while at < len(log):
        operation, inode, offset, name_size, size = _HEAD.unpack_from(log, at)
        at += _HEAD.size
        name = log[at : at + name_size].decode()
        at += name_size
        yield Record(Operation(operation), inode, offset, name, log[at : at + size])
        at += size


@dataclass(slots=True, eq=False)
class _File:
    """What is durable of a file, and what was done to it since its last sync."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Record] = field(default_factory=list)

    def content(self, kept: random.Random | None) -> bytearray:
        """With all that is pending, or with what a power loss leaves of it."""
        content = bytearray(self.durable)
        # From disks that wrote nothing of themselves to disks that wrote nearly all.
        share = 1.0 if kept is None else kept.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for record in self.pending:
            if share == 1.0:
                _apply(content, record.operation, record.offset, record.data)
            elif share and kept is not None:
                for start, part in _sectors(record):
                    if kept.random() < share:
                        _apply(content, record.operation, start, part)
        return content


def _sectors(record: Record) -> Iterator[tuple[int, bytes]]:
    """The parts of a record that reach the disk each on its own."""
    if record.operation is Operation.TRUNCATE:
        yield record.offset, b""
        return
    start, end = record.offset, record.offset + len(record.data)
    while start < end:
        following = min(end, (start // SECTOR + 1) * SECTOR)
        yield start, record.data[start - record.offset : following - record.offset]
        start = following


def _apply(content: bytearray, operation: Operation, offset: int, data: bytes) -> None:
    if operation is Operation.TRUNCATE:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
    else:
        # A hole reads as zeros.
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data


_Names = dict[str, _File]


class Disk:
    """A directory, as far as the log was applied to it.

    All that the directory holds when this is made counts as durable.
    """

    def __init__(self, directory: Path) -> None:
        self._files: dict[int, _File] = {}
        self._durable_names: _Names = {}
        self._pending_names: list[tuple[Record, _File | None]] = []
        for path in directory.iterdir():
            if not path.name.endswith("-shm"):
                file = _File(bytearray(path.read_bytes()))
                self._files[path.stat().st_ino] = file
                self._durable_names[path.name] = file

    def apply(self, record: Record) -> None:
        """Take the next record of the log."""
        match record.operation:
            case Operation.CREATE:
                file = self._files[record.inode] = _File()
                self._pending_names.append((record, file))
            case Operation.UNLINK | Operation.RENAME:
                self._pending_names.append((record, None))
            case Operation.WRITE | Operation.TRUNCATE:
                self._files[record.inode].pending.append(record)
            case Operation.SYNC:
                file = self._files[record.inode]
                file.durable = file.content(None)
                file.pending = []
            case Operation.SYNC_DIRECTORY:
                self._durable_names = self._names(len(self._pending_names))
                self._pending_names = []
            case Operation.MARK:
                pass

    def at_rest(self) -> dict[str, bytes]:
        """What the running process sees."""
        names = self._names(len(self._pending_names))
        return {name: bytes(file.content(None)) for name, file in names.items()}

    def after_power_loss(self, kept: random.Random) -> dict[str, bytes]:
        """What a power loss at this moment may leave; `kept` draws lots."""
        names = self._names(kept.randint(0, len(self._pending_names)))
        return {name: bytes(file.content(kept)) for name, file in names.items()}

    def _names(self, count: int) -> _Names:
        """The directory with the first so many of the pending changes."""
        names = dict(self._durable_names)
        for record, file in self._pending_names[:count]:
            if file is not None:
                names[record.name] = file
            else:
                moved = names.pop(record.name)
                if record.operation is Operation.RENAME:
                    names[record.data.decode()] = moved
        return names
