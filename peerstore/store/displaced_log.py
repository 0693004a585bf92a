"""What is logged of displaced peers: so little that a crowd can't fill the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from peerstore.store.room import Displaced

LINES = 5
"""Lines of one second."""

_log = structlog.get_logger()


class DisplacedLog:
    """A few at once get a line each, more of them one line together.

    Those that come when a second has had its lines are told of in a later one, or by `flush`.
    `monotonic` is a clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._second = 0
        self._lines = 0
        self._peers = self._bytes = self._versions = 0

    def add(self, displaced: Sequence[Displaced]) -> None:
        """These gave way in one transaction."""
        if not displaced:
            return
        second = int(self._monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines + len(displaced) <= LINES:
            for each in displaced:
                _log.info(
                    "displaced", node_id=each.node_id.hex(), bytes=each.bytes,
                    versions=each.versions, address_group=each.address_group, reason=each.reason,
                )  # fmt: skip
            self._lines += len(displaced)
            return
        self._peers += len(displaced)
        self._bytes += sum(each.bytes for each in displaced)
        self._versions += sum(each.versions for each in displaced)
        if self._lines < LINES:
            self.flush()

    def flush(self) -> None:
        """Log of those that got no line yet how many they are."""
        if self._peers:
            _log.info(
                "more_displaced", peers=self._peers, bytes=self._bytes, versions=self._versions
            )
            self._lines += 1
            self._peers = self._bytes = self._versions = 0
