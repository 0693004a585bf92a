"""Files that root makes in the directory of a daemon which is not root."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def new_file(path: Path) -> int:
    """Make a file, 0600, and return its descriptor; raises FileExistsError, OSError.

    Never through a link that the owner of the directory may have put there.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def give_to_owner(descriptor: int, directory: Path) -> None:
    """Have an open file belong to whom `directory` belongs, if root made it: its daemon must be
    able to open it. SQLite does so with its own files.

    A file that has other names is left as it is: one of them may be a file of root's to which the
    owner of the directory has made a link.
    """
    if os.geteuid() == 0:
        file, owner = os.fstat(descriptor), directory.stat()
        if not stat.S_ISREG(file.st_mode) or file.st_nlink != 1:
            return
        with contextlib.suppress(OSError):  # a disk of another machine, where root is nobody
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
