"""What every measurement is given: how much of everything, and databases that are made once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tests.benchmarks.report import Row
from tests.benchmarks.rig import command, daemon, node_id, secret
from tests.benchmarks.scale import BLOB, fill

DATABASE = "peerstore.db"

LARGEST = 65531
"""Bytes of the largest blob."""

KNOWN = 64
"""Peers with a key of each kind in a database that is made."""

AWAY_EVERY = 10
"""Of the peers of such a database one in so many was not seen again."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured, and for how long."""

    seconds: float = 5.0
    """Of each load."""
    blobs: tuple[int, ...] = (57, 1024, LARGEST)
    """Bytes."""
    connections: tuple[int, ...] = (1, 8, 64)
    """That update, one update in flight each."""
    stored: tuple[int, ...] = (1000, 100_000, 1_000_000)
    """Peers in the database."""
    idle: tuple[int, ...] = (1000, 8000)
    """Connections that say nothing."""
    rest: float = 65.0
    """Seconds for which they say nothing: each is pinged once in 60."""
    gossip: int = 64 << 20
    """Bytes."""
    disk: int = 64 << 20
    """Bytes of the blobs of each size for which room on disk is measured."""

    def __post_init__(self) -> None:
        """Raises ValueError for what can't be measured."""
        for each in fields(self):
            value = getattr(self, each.name)
            if min(value if isinstance(value, tuple) else (value,)) <= 0:
                raise ValueError(f"{each.name}: expected more than 0")
        if not all(8 <= size <= LARGEST for size in self.blobs):
            raise ValueError(f"blobs: expected 8 to {LARGEST} bytes")
        if min(self.stored) < 2 * KNOWN:
            raise ValueError(f"stored: expected at least {2 * KNOWN} peers")


class Bench:
    """One run: its sizes, and a directory for databases, on a disk."""

    def __init__(self, directory: str, sizes: Sizes, loop: str = "asyncio") -> None:
        self.directory = directory
        self.sizes = sizes
        self.loop = loop
        """The event loop that daemons run on."""
        self.large = tuple(secret() for _ in range(KNOWN))
        """Keys of peers that have LARGEST bytes stored in each database."""
        self.small = tuple(secret() for _ in range(KNOWN))
        """Keys of peers that have as little stored as all the others."""

    def daemon(
        self, made: str | None = None, **options: Any
    ) -> AbstractContextManager[tuple[str, int]]:
        """See rig.daemon."""
        return daemon(self.directory, made, loop=self.loop, **options)

    @property
    def most(self) -> int:
        """Peers in the largest database."""
        return max(self.sizes.stored)

    def stored(self, peers: int) -> str:
        """The data directory with so many peers, made when it is first asked for."""
        directory = Path(self.directory) / f"stored-{peers}"
        if not directory.exists():
            self._fill(directory, peers)
        return str(directory)

    def _fill(self, directory: Path, peers: int) -> None:
        # Where the making fails, there is nothing under the name that is looked for.
        with tempfile.TemporaryDirectory(dir=self.directory) as folder:
            made = Path(folder) / "data"
            command(str(made), "init")
            known = {node_id(key): LARGEST for key in self.large}
            known |= {node_id(key): BLOB for key in self.small}
            fill(made / DATABASE, peers, known, away_every=AWAY_EVERY)
            made.rename(directory)


Measurement = Callable[[Bench], Iterator[Row]]
