"""Reading the files of an operator."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotAFileError(OSError):
    """A pipe, a device, a socket: what is read from it may never end, or never come."""


def open_file(path: Path) -> BinaryIO:
    """Open a file to read, and wait for nobody; raises NotAFileError, OSError."""
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - for the caller to close
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotAFileError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return file


def _open_at_once(path: str, flags: int) -> int:
    # Without it the open of a pipe waits until somebody writes to it.
    return os.open(path, flags | os.O_NONBLOCK)
