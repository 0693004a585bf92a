"""Files that root makes in the directory of a daemon which is not root."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def give_to_owner(descriptor: int, directory: Path) -> None:
    """Have an open file belong to whom `directory` belongs, if root made it: its daemon must be
    able to open it. SQLite does so with its own files."""
    if os.geteuid() == 0:
        owner = directory.stat()
        with contextlib.suppress(OSError):  # a disk of another machine, where root is nobody
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
