"""Building the libraries that are preloaded, and commanding `faults.c`."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent


def build(name: str, directory: Path) -> Path:
    """Compile `name`.c into a library in `directory`; skips the test where there is no gcc."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("there is no gcc to build the library with that is preloaded")
    library = directory / f"{name}.so"
    # Fortified, the names that are defined here would be inline functions of glibc's headers.
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE", "-fPIC", "-shared"]
    source = SOURCES / f"{name}.c"
    subprocess.run([gcc, *flags, "-o", str(library), str(source), "-lpthread", "-ldl"], check=True)
    return library


class Faults:
    """The controls of `faults.c`; see there."""

    _NUMBERS = ("write", "extend", "sync", "truncate", "create", "no_space", "failed")
    _SHAPE = struct.Struct("=7i36s")

    def __init__(self, library: Path, directory: Path, control: Path) -> None:
        control.write_bytes(bytes(self._SHAPE.size))
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAULTS_DIRECTORY": str(directory.resolve()),
            "FAULTS_CONTROL": str(control),
        }
        """What a process needs that is to fail."""
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), 0)

    def close(self) -> None:
        self._control.close()

    @property
    def failed(self) -> int:
        """How many calls were made to fail."""
        return int(self._SHAPE.unpack_from(self._control)[self._NUMBERS.index("failed")])

    def set(self, name: str = "", **numbers: int) -> None:
        """Have calls on files whose name ends in `name` fail, each kind with its errno."""
        values = {**dict.fromkeys(self._NUMBERS, 0), "failed": self.failed, **numbers}
        self._SHAPE.pack_into(self._control, 0, *values.values(), name.encode())

    def clear(self) -> None:
        """Nothing fails any more."""
        self.set()

    @contextlib.contextmanager
    def preloaded(self) -> Iterator[None]:
        """Processes that are started within the block are those that fail."""
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name in self.environment:
                os.environ.pop(name)
            os.environ.update(before)
