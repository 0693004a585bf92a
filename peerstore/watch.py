"""Keeping up with the routing node: who has channels, who had, and at which height it is.

The source is asked once a minute and whenever it tells of a change. While it gives no answer, or
says that it has not caught up with the chain, nothing ages and nobody loses service: what it said
last holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from peerstore.channels.base import Answer, ChannelSource, KnownChannel
from peerstore.errors import SourceError, StoreError
from peerstore.policy import Visit
from peerstore.retention import Members, learned
from peerstore.store import operations
from peerstore.store.sqlite import SqliteStore
from peerstore.types import NodeId

POLL_SECONDS = 60.0
"""How often the source is asked when it tells of nothing."""

SETTLE_SECONDS = 5.0
"""How often it is asked at most when it tells of changes."""

SHARE = 10.0
"""So many times as long as an answer took is waited before the next question."""

LONGEST_PAUSE_SECONDS = 300.0
"""But not longer."""

OVERDUE_SECONDS = 30.0
"""When it is not trusted any more while it does not answer; a slow one has longer."""

ASK_SECONDS = 120.0
"""How long an answer may take."""

RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""How long is waited after the first failure, the second, and so on; the last goes on."""

DEAF_SECONDS = (1.0, 5.0, 15.0, POLL_SECONDS)
"""The same where it answers, but does not tell of changes."""

ROWS_AT_ONCE = 5000
"""Channels, or visits, of one transaction."""

_log = structlog.get_logger()


class ChannelWatch:
    """See the module's docstring.

    `known` is what is remembered, and `height` the newest that could be trusted. `blocks` is how
    long after its closing a channel still counts for the policy; `changed` is called when who has
    channels may have changed.
    """

    def __init__(
        self,
        source: ChannelSource,
        store: SqliteStore,
        known: list[KnownChannel],
        height: int | None,
        *,
        blocks: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        self.answered = False
        """Whether an answer that can be trusted has come since the start."""
        self.error = "it was not asked yet"
        """Why the routing node can't be trusted now, "" when it can."""
        self._untrusted_since = time.monotonic()
        self._source = source
        self._store = store
        self._known = {channel.key: channel for channel in known}
        self._members = Members(known)
        self._height = height
        self._routing_node: NodeId | None = None
        self._blocks = blocks
        self._changed = changed
        self._failures = 0
        self._deaf = 0
        self._asking = asyncio.Lock()
        self._asked = 0.0
        self._took = 0.0
        self._first = asyncio.Event()

    def within(self, node_id: NodeId, visit: Visit | None) -> bool:
        """See policy.Channels."""
        return self._members.within(node_id, visit, self._height, self._blocks())

    @property
    def untrusted_for(self) -> float:
        """For how many seconds the routing node can't be trusted, 0 when it can."""
        return time.monotonic() - self._untrusted_since if self.error else 0.0

    def describe(self) -> Mapping[str, Any]:
        """The routing node as `info` shows it."""
        return {
            "node_id": None if self._routing_node is None else self._routing_node.hex(),
            "answered": self.answered,
            "trusted": not self.error,
            "error": self.error or None,
            "height": self._height,
            "channels": len(self._known),
            "open": sum(channel.open for channel in self._known.values()),
        }

    async def run(self) -> None:
        """Keep up until cancelled; what goes wrong is logged."""
        try:
            while True:
                await self.look()
                await self._wait()
        finally:
            await self._source.close()

    async def first_look(self, seconds: float) -> None:
        """Wait until it was asked once, at most so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._first.wait(), seconds)

    async def look(self) -> None:
        """Ask once, and remember what came."""
        async with self._asking:
            loop = asyncio.get_running_loop()
            began = loop.time()
            patience = max(OVERDUE_SECONDS, 3 * self._took)
            overdue = loop.call_later(patience, self._lost, "it is slow to answer: is it busy?")
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    answer = await self._source.ask()
                await self._learn(answer)
            except TimeoutError:
                self._lost(f"it did not answer within {ASK_SECONDS:g} s: is it busy or stuck?")
            except (SourceError, StoreError) as error:
                self._lost(str(error))
            except Exception as error:  # a mistake of ours must not end the keeping up
                _log.exception("source_failed", error=str(error))
                self._lost(f"{type(error).__name__}: {error}")
            finally:
                overdue.cancel()
            self._asked = loop.time()
            self._took = self._asked - began
            self._first.set()

    async def _learn(self, answer: Answer) -> None:
        moment = self._store.moment
        # In a thread: a hundred thousand channels are compared. Openings come first, so that a peer
        # never looks as if all its channels were closed.
        changes = await asyncio.to_thread(
            lambda: sorted(
                learned(self._known, answer, aged=moment.aged, now=int(time.time())),
                key=lambda channel: not channel.open,
            )
        )
        if answer.synced and answer.node_id != self._routing_node:
            await self._store.run(operations.learn_node(answer.node_id, answer.height))
            self._routing_node = answer.node_id
        for start in range(0, len(changes), ROWS_AT_ONCE):
            part = changes[start : start + ROWS_AT_ONCE]
            await self._store.run(operations.learn(part))
            self._known.update((channel.key, channel) for channel in part)
            self._members.learn(part)
        news = bool(changes) or (answer.synced and answer.height != self._height)
        first = answer.synced and not self.answered
        if answer.synced:
            await self._trust(answer)
        else:
            self._lost("it has not caught up with the chain: wait, or see its log")
        if news or first:
            self._changed()

    async def _trust(self, answer: Answer) -> None:
        if self.error:
            _log.info("source_trusted", height=answer.height, channels=len(answer.channels))
        news = bool(self.error) or answer.height != self._height
        self._store.trust(answer.height)
        self.answered, self.error, self._failures = True, "", 0
        self._height = answer.height
        if news:
            await self._store.save_visits()  # those without a height among them
        while news:
            date, dated = operations.date_visits(ROWS_AT_ONCE)
            await self._store.run(date)
            news = dated == [ROWS_AT_ONCE]

    def _lost(self, error: str) -> None:
        self._store.trust(None)
        self._failures += 1
        if not self.error:
            self._untrusted_since = time.monotonic()
        if error != self.error:
            _log.warning("source_not_trusted", error=error)
        self.error = error

    async def _wait(self) -> None:
        """Return when it is time to ask again."""
        pause = min(SHARE * self._took, LONGEST_PAUSE_SECONDS)
        if self.error:
            await asyncio.sleep(max(_nth(RETRY_SECONDS, self._failures), pause))
            return
        try:
            async with asyncio.timeout(max(POLL_SECONDS, pause)):
                await self._source.changed()
            self._deaf = 0
        except TimeoutError:
            return
        except Exception as error:  # whether it can be trusted shows when it is asked
            self._deaf += 1
            if self._deaf == 1:
                _log.warning(
                    "source_tells_no_changes",
                    error=str(error),
                    exc_info=not isinstance(error, SourceError),
                )
        # Changes come in crowds, and where none are told it is asked once a minute all the same.
        pause = max(pause, _nth(DEAF_SECONDS, self._deaf) if self._deaf else SETTLE_SECONDS)
        await asyncio.sleep(max(0.0, self._asked + pause - asyncio.get_running_loop().time()))


def _nth(seconds: tuple[float, ...], number: int) -> float:
    return seconds[min(number, len(seconds)) - 1]
