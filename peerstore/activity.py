"""Notes regularly how much is stored and how many updates came, for the picture of it.

What came between the newest sample and the end of a daemon is in no sample. A sample that can't be
written, for want of space, is left out; its updates are counted in the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from peerstore.errors import StoreError
from peerstore.store.base import SAMPLE_SECONDS
from peerstore.store.operations import note_activity
from peerstore.store.sqlite import SqliteStore

_log = structlog.get_logger()


class ActivityLog:
    """See the module's docstring; `updates` says how many came since the daemon's start."""

    def __init__(self, store: SqliteStore, updates: Callable[[], int]) -> None:
        self._store = store
        self._updates = updates
        self._noted = 0

    async def run(self) -> None:
        """Make a sample now and then regularly, until cancelled."""
        while True:
            await self.note()
            await asyncio.sleep(SAMPLE_SECONDS)

    async def note(self) -> None:
        """Make a sample; that it can't be written is logged."""
        updates = self._updates()
        try:
            await self._store.run(note_activity(updates - self._noted))
        except StoreError as error:
            _log.warning("activity_not_noted", error=str(error))
        else:
            self._noted = updates
