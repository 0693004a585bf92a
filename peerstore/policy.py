"""Who is served: the configuration's lists, and the operator's rules beside them; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from peerstore.types import NodeId


@dataclass(frozen=True, slots=True)
class Policy:
    """Whose updates are taken; deny beats allow, and both beat `serve`, anyone or allowlist.

    `rules` are the operator's, kept in the database: node id to "allow" or "deny". What is already
    stored for a peer is given back to it whatever the policy says.
    """

    serve: str = "anyone"
    allow: frozenset[NodeId] = frozenset()
    deny: frozenset[NodeId] = frozenset()
    rules: Mapping[NodeId, str] = field(default_factory=dict)

    def refusal(self, node_id: NodeId) -> str:
        """Why a peer is not served, "" when it is; said to the peer, so without particulars."""
        rule = self.rules.get(node_id)
        if node_id in self.deny or rule == "deny":
            return "this node does not keep backups for you"
        if self.serve == "anyone" or node_id in self.allow or rule == "allow":
            return ""
        return "this node keeps backups only for peers that its operator has allowed"


EVERYONE = Policy()
"""Whoever comes is served."""
