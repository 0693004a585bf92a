"""The commit mark: a small file beside the database that says how far it had come.

A database that is found behind its mark has lost commits: its WAL was cut, or an old copy was put
back by hand. The mark is written after a commit and never before one, so it is never ahead of
what is durable. A restore begins a new epoch, to which an older mark says nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from peerstore.ownership import give_to_owner, new_file


@dataclass(frozen=True, slots=True)
class Mark:
    """The newest revision that was committed in an epoch."""

    epoch: bytes
    revision: int


def mark_path(database: Path) -> Path:
    """Where the mark of a database is."""
    return database.with_suffix(".mark")


def read_mark(path: Path) -> Mark | None:
    """The mark; None when there is none or it can't be read, which is no reason not to start."""
    try:
        document = json.loads(path.read_bytes())
        return Mark(bytes.fromhex(document["epoch"]), int(document["revision"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_mark(path: Path, mark: Mark) -> None:
    """Replace the mark in one step; raises OSError.

    Not synced: after a power loss an older mark is right as well.
    """
    temporary = path.with_name(f"{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)  # left behind by a process that was killed
        with os.fdopen(new_file(temporary), "w") as file:
            json.dump({"epoch": mark.epoch.hex(), "revision": mark.revision}, file)
            give_to_owner(file.fileno(), path.parent)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
