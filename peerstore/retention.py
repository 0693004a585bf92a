"""What is deleted, and when: the rules, pure. store/due.py finds what they fit.

A *closing* of a channel is what the routing node says of it, or else what the channel's own
messages say. From the later of the closing and the peer's last visit so many blocks are counted;
where no height is known, so much time. Both stand still while the source of channels can't be
trusted. The block of a closing can go by a reorganization: then the count begins anew, at the
height at which the chain is as high as that block again.

    channel backup    counts from the closing of its channel
    peer_storage,     count from the last closing, when every channel that the routing node has
    node backup       ever named with the peer is closed, and every other one with a backup here
    all of a peer     without a known channel: `inactive_time` after its last visit, if set
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from peerstore.channels.base import Answer, ChannelKey, KnownChannel
from peerstore.policy import Visit
from peerstore.types import NodeId


def learned(
    known: Mapping[ChannelKey, KnownChannel], answer: Answer, *, aged: int, now: int
) -> Iterator[KnownChannel]:
    """What an answer of the source changes about the channels that are known.

    `aged` and `now` are the time in both forms that KnownChannel has. Of an answer that can't be
    trusted only openings count. A channel that the node does not know any more is closed as of now.
    """
    named: set[ChannelKey] = set()
    for channel in answer.channels:
        key = (channel.node_id, channel.channel_id)
        named.add(key)
        before = known.get(key)
        if channel.open:
            after = KnownChannel(*key, open=True)
        elif not answer.synced:
            continue
        elif before is None or before.open:
            height = answer.height if channel.closed_height is None else channel.closed_height
            after = KnownChannel(
                *key,
                open=False,
                closed_height=height,
                unsettled=height > answer.height,
                closed=aged,
                closed_at=now,
            )
        else:
            after = _still_closed(before, channel.closed_height, answer.height)
        if after != before:
            yield after
    if not answer.synced:
        return
    for before in known.values():
        if before.key in named:
            continue
        if before.open:
            yield replace(
                before, open=False, closed_height=answer.height, closed=aged, closed_at=now
            )
        elif (after := _still_closed(before, None, answer.height)) != before:
            yield after


def _still_closed(before: KnownChannel, told: int | None, height: int) -> KnownChannel:
    """A channel that was closed before, at a height of the chain now."""
    closed_height = max(before.closed_height or 0, told or 0)
    if before.unsettled and told is not None and told <= height:
        # Mined anew, as the node itself says, or what it said before was wrong.
        return replace(before, closed_height=height, unsettled=False)
    if height < closed_height:
        return replace(before, closed_height=closed_height, unsettled=True)
    if before.unsettled:
        return replace(before, closed_height=height, unsettled=False)
    return replace(before, closed_height=closed_height)


class Members:
    """Which peers have channels, or had until not long ago; for the policy."""

    def __init__(self, channels: Iterable[KnownChannel] = ()) -> None:
        self._channels: dict[NodeId, dict[bytes, KnownChannel]] = {}
        self.learn(channels)

    def learn(self, channels: Iterable[KnownChannel]) -> None:
        """Take in what has changed."""
        for channel in channels:
            self._channels.setdefault(channel.node_id, {})[channel.channel_id] = channel

    def within(self, node_id: NodeId, visit: Visit | None, height: int | None, blocks: int) -> bool:
        """Whether a peer has a channel, or is within retention: less than `blocks` have passed
        since its last one was closed and since its last visit.

        `visit` is None for who has nothing stored. `height` is the newest that could be trusted;
        without one nothing is long ago.
        """
        # A visit whose height is not known was at this one, or before.
        visited = 0 if visit is None else height if visit.height is None else visit.height
        return any(
            channel.open
            or height is None
            or visited is None
            or channel.closed_height is None
            or channel.unsettled
            or height - max(channel.closed_height, visited) < blocks
            for channel in self._channels.get(node_id, {}).values()
        )


@dataclass(frozen=True, slots=True)
class Remembered:
    """Who has channels by what is remembered, for who does not ask the routing node himself."""

    members: Members
    height: int | None
    blocks: int
    answered: bool

    def within(self, node_id: NodeId, visit: Visit | None) -> bool:
        """See policy.Channels."""
        return self.members.within(node_id, visit, self.height, self.blocks)
