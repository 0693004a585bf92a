"""What a running daemon has done since its start, in numbers that only rise.

The server and the store count here as they go, with plain additions; metrics.py shows it.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from peerstore.types import BackupKind


class UpdateResult(enum.StrEnum):
    """What became of an update."""

    STORED = enum.auto()
    UNCHANGED = enum.auto()
    """The same blob was stored already."""
    REPLACED = enum.auto()
    """A newer one came before it was written."""
    REFUSED = enum.auto()


class Reason(enum.StrEnum):
    """Why an update was refused."""

    NOT_SERVED = enum.auto()
    """By the policy."""
    NOT_OFFERED = enum.auto()
    """The peer's `init` does not set the feature."""
    TOO_LARGE = enum.auto()
    MALFORMED = enum.auto()
    INCOMPLETE = enum.auto()
    """A channel backup whose messages did not come, or not in their order."""
    PEER_FULL = enum.auto()
    TOO_MANY_CHANNELS = enum.auto()
    TOO_MANY_PEERS = enum.auto()
    STORE_FULL = enum.auto()
    DISK_FULL = enum.auto()
    """Less than min_free_space is left."""
    NOT_WRITTEN = enum.auto()
    """The database could not be written."""


class Replay(enum.StrEnum):
    """What became of a backup that a peer was to be given back."""

    SENT = enum.auto()
    MISSING = enum.auto()
    """No sound version of it is there any more."""
    FAILED = enum.auto()
    """The database could not be read."""


class Handshake(enum.StrEnum):
    """How a handshake ended."""

    DONE = enum.auto()
    BAD = enum.auto()
    """BOLT 8 was broken."""
    TIMEOUT = enum.auto()
    EVICTED = enum.auto()
    """It lost its place to another one."""
    CLOSED = enum.auto()
    """The other side went away."""


@dataclass(slots=True)
class Tally:
    """See the module's docstring. Counters are by what their types say; messages by name."""

    events: Counter[str] = field(default_factory=Counter)
    """Events that the sessions have reported."""
    connections_refused: Counter[str] = field(default_factory=Counter)
    """By reason."""
    handshakes: Counter[Handshake] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    updates: Counter[tuple[BackupKind, UpdateResult]] = field(default_factory=Counter)
    refusals: Counter[Reason] = field(default_factory=Counter)
    replays: Counter[tuple[BackupKind, Replay]] = field(default_factory=Counter)
    pruned_backups: int = 0
    """Slots that retention has deleted."""
    pruned_bytes: int = 0
    evicted_peers: int = 0
    """Those that gave way in a full store, with all that they had."""
    evicted_bytes: int = 0
    committed: Callable[[float, int], None] = lambda seconds, updates: None
    """Told of each transaction with updates: seconds from its begin to its end, and how many."""

    @property
    def updates_taken(self) -> int:
        """Updates that were not refused."""
        return self.updates.total() - self.refused_updates

    @property
    def refused_updates(self) -> int:
        return sum(self.updates[kind, UpdateResult.REFUSED] for kind in BackupKind)

    def refuse(self, kind: BackupKind, reason: Reason) -> None:
        """An update was refused."""
        self.updates[kind, UpdateResult.REFUSED] += 1
        self.refusals[reason] += 1
