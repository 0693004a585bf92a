"""What a source of channels is, whichever routing node it asks.

A source answers questions and decides nothing: how long what belongs to a closed channel is kept,
and what holds while no answer comes, is for others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from peerstore.types import NodeId

ChannelKey = tuple[NodeId, bytes]
"""A channel: the peer it is with, and its channel id. Two peers may name the same id."""


@dataclass(frozen=True, slots=True)
class NodeChannel:
    """A channel of the routing node.

    `channel_id` is BOLT 2's, 32 bytes. `open` is true for pending ones too, and at least until its
    closing transaction is mined. `closed_height` is the block in which that was, None where the
    node does not say.
    """

    node_id: NodeId
    channel_id: bytes
    open: bool
    closed_height: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """All that the routing node says at one time.

    `node_id` is its own, `height` that of its newest block; `synced` whether it says that it has
    caught up with the chain, so that the height can be trusted. A channel stands in it once: as
    open, if any part of the node's answers says so.
    """

    node_id: NodeId
    height: int
    synced: bool
    channels: tuple[NodeChannel, ...]


@dataclass(frozen=True, slots=True)
class KnownChannel:
    """What is remembered of a channel of the routing node.

    `closed_height` is the block of its closing, or the height at which that was first seen; while
    `unsettled` the chain is not as high, after a reorganization. `closed` is in seconds that have
    aged things, `closed_at` in Unix seconds. All of them are None or False while it is open.
    """

    node_id: NodeId
    channel_id: bytes
    open: bool
    closed_height: int | None = None
    unsettled: bool = False
    closed: int | None = None
    closed_at: int | None = None

    @property
    def key(self) -> ChannelKey:
        """What it is known by."""
        return self.node_id, self.channel_id


class ChannelSource(Protocol):
    """Asks a routing node; one task uses it."""

    async def ask(self) -> Answer:
        """Ask anew; connects as far as that is needed.

        Raises SourceError, whose text says what is wrong and what to do, for whatever keeps the
        node from giving a whole and sensible answer: not there, wrong credentials, wrong network,
        nonsense. After that it may be called again at any time.
        """

    async def changed(self) -> None:
        """Return when the node tells of a change, as far as it does; may return too often, and may
        never return. Raises SourceError."""

    async def close(self) -> None:
        """Close what is open."""
