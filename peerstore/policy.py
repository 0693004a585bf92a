"""Who is served: by the configuration's lists, the operator's rules beside them, and channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from peerstore.types import NodeId


@dataclass(frozen=True, slots=True)
class Visit:
    """The last visit of a peer that has something stored, before this one; `height` is None where
    the height was not known."""

    height: int | None = None


class Channels(Protocol):
    """Who has channels with the routing node."""

    @property
    def answered(self) -> bool:
        """Whether the routing node has said so since the start, and could be trusted."""

    def within(self, node_id: NodeId, visit: Visit | None) -> bool:
        """Whether a peer has a channel, pending ones too, or is within retention."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Why no update of a peer is taken, "" when they are, and whether it is offered storage."""

    refusal: str = ""
    offered: bool = True


SERVED = Decision()


@dataclass(frozen=True, slots=True)
class Policy:
    """Whose updates are taken; deny beats allow, and both beat `serve`.

    `serve` is anyone, channels (those of `channels`) or allowlist (nobody else).

    `rules` are the operator's, kept in the database: node id to "allow" or "deny". What is already
    stored for a peer is given back to it whatever the policy says.
    """

    serve: str = "anyone"
    allow: frozenset[NodeId] = frozenset()
    deny: frozenset[NodeId] = frozenset()
    rules: Mapping[NodeId, str] = field(default_factory=dict)
    channels: Channels | None = None

    def allows(self, node_id: NodeId) -> bool:
        """Whether the operator has named a peer as one to serve, and no rule denies it."""
        rule = self.rules.get(node_id)
        if node_id in self.deny or rule == "deny":
            return False
        return node_id in self.allow or rule == "allow"

    def protects(self, node_id: NodeId, visit: Visit | None) -> bool:
        """Whether a peer is none that gives way to others: it is allowed, or has a channel, or is
        within retention."""
        return self.allows(node_id) or (
            self.channels is not None and self.channels.within(node_id, visit)
        )

    def decide(self, node_id: NodeId, visit: Visit | None) -> Decision:
        """Whether a peer is served; `visit` is None where nothing is stored for it.

        A refusal is said to the peer, so it tells no particulars.
        """
        rule = self.rules.get(node_id)
        if node_id in self.deny or rule == "deny":
            return Decision("this node does not keep backups for you", offered=False)
        if self.serve == "anyone" or self.allows(node_id):
            return SERVED
        if self.serve == "allowlist":
            text = "this node keeps backups only for peers that its operator has allowed"
            return Decision(text, offered=False)
        if self.channels is not None and self.channels.within(node_id, visit):
            return SERVED
        if self.channels is not None and self.channels.answered:
            text = "this node keeps backups only for peers that it has a channel with"
            return Decision(text, offered=False)
        # Nobody with a backup loses service because the routing node is down. Who has none is
        # offered storage all the same: only who tries is told to try again.
        return SERVED if visit else Decision("who has channels is not known yet: try again later")

    @property
    def certain(self) -> bool:
        """Whether it is known who has channels."""
        return self.channels is None or self.channels.answered


EVERYONE = Policy()
"""Whoever comes is served."""
