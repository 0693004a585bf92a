"""The order in which strangers give way: from the group that is most crowded, the newest first.

With each one that goes its group becomes less crowded. Groups of one size go by their newest
stranger that may go. Groups and strangers are read page by page, no more of them than it takes.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from peerstore.types import NodeId

T = TypeVar("T")

LOOKED_AT = 16384
"""Strangers that are looked at in one transaction; so many would have to be connected to hide the
others."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """A peer on probation; `first_seen` is in seconds that daemons have seen pass."""

    node_id: NodeId
    address_group: str
    first_seen: int
    last_height: int | None


@dataclass(frozen=True, slots=True)
class Group:
    """The strangers of an address group: how many, when the newest came, and who that is."""

    address_group: str
    strangers: int
    newest: int
    first: Stranger | None


class Strangers(Protocol):
    """Where they are read from."""

    async def groups(self, after: Group | None) -> Sequence[Group]:
        """Some more groups, falling by (strangers, newest, address_group)."""

    async def members(self, after: Stranger, limit: int) -> Sequence[Stranger]:
        """Some more of a group, falling by (first_seen, node_id)."""


@dataclass(slots=True)
class _Queue:
    """What is left of a group; `head` is the next one, `unread` come behind those that wait."""

    strangers: int
    head: Stranger
    unread: int
    waiting: deque[Stranger] = field(default_factory=deque)
    page: int = 8

    def __lt__(self, other: _Queue) -> bool:
        return self.key > other.key  # heapq takes the least one

    @property
    def key(self) -> tuple[int, int, str]:
        """The largest one is next."""
        return self.strangers, self.head.first_seen, self.head.address_group


class Crowds(Generic[T]):
    """See the module's docstring.

    `stays` tells of most of those that may not go; `claim` says of one whether it really may, by
    what is to be returned of it; None if it stays.
    """

    def __init__(
        self,
        strangers: Strangers,
        stays: Callable[[Stranger], bool],
        claim: Callable[[Stranger], Awaitable[T | None]],
    ) -> None:
        self._looked_at = 0
        self._strangers = strangers
        self._stays = stays
        self._claim = claim
        self._queues: list[_Queue] = []
        self._groups: deque[Group] = deque()
        self._last: Group | None = None
        self._all_read = False

    @property
    def gave_up(self) -> bool:
        """Whether so many were looked at that others are not."""
        return self._looked_at >= LOOKED_AT

    async def next(self) -> T | None:
        """The next one to go; None when nobody is left, or enough were looked at."""
        while not self.gave_up:
            await self._read_groups()
            if not self._queues:
                return None
            queue = heapq.heappop(self._queues)
            claimed = await self._claim(queue.head)
            if claimed is not None:
                queue.strangers -= 1
            await self._advance(queue)
            if claimed is not None:
                return claimed
        return None

    async def _read_groups(self) -> None:
        """Have all groups in the queues that may come before the one that is first there."""
        while not self.gave_up:
            if not self._groups and not self._all_read:
                self._groups.extend(await self._strangers.groups(self._last))
                self._all_read = not self._groups
            if not self._groups:
                return
            group = self._groups[0]
            key = (group.strangers, group.newest, group.address_group)
            if self._queues and self._queues[0].key > key:
                return
            self._last = self._groups.popleft()
            if group.first is not None:
                queue = _Queue(group.strangers, group.first, unread=group.strangers - 1)
                queue.waiting.append(group.first)
                await self._advance(queue)

    async def _advance(self, queue: _Queue) -> None:
        """Line a group up with its next stranger that may go, if there is one."""
        while not self.gave_up:
            while queue.waiting:
                queue.head = queue.waiting.popleft()
                self._looked_at += 1
                if not self._stays(queue.head):
                    heapq.heappush(self._queues, queue)
                    return
            if queue.unread <= 0:
                return
            queue.waiting.extend(await self._strangers.members(queue.head, queue.page))
            queue.unread -= queue.page
            queue.page = min(8 * queue.page, 512)
