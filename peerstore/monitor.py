"""What operators and their tools are told of a running daemon, over HTTP and by `info`."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

from peerstore import __version__
from peerstore.config import Config
from peerstore.errors import StoreError
from peerstore.health import STUCK_SECONDS, Condition, Problem, problems
from peerstore.metrics import Figures, Metrics, Source, Stored
from peerstore.pages import Handler, Page
from peerstore.server import PeerServer
from peerstore.status import status_of
from peerstore.status_page import CONTENT_TYPE, HEADERS, render
from peerstore.store.base import ALARM_KINDS
from peerstore.store.sqlite import SqliteStore
from peerstore.watch import ChannelWatch

READ_SECONDS = 3.0
"""How long the database may take to answer before that is a problem of its own."""

LAG_SECONDS = 0.25
"""How often it is measured how late the event loop is."""


class Monitor:
    """Gathers what is shown; `config` and `watch` are as they are when they are asked for."""

    def __init__(
        self,
        server: PeerServer,
        store: SqliteStore,
        *,
        config: Callable[[], Config],
        watch: Callable[[], ChannelWatch | None],
        uris: Callable[[], Sequence[str]],
        clock_problem: Callable[[], str | None],
    ) -> None:
        self._server = server
        self._store = store
        self._config = config
        self._watch = watch
        self._uris = uris
        self._clock_problem = clock_problem
        self._started_at = time.monotonic()
        self._metrics = Metrics(server.tally)

    def pages(self) -> Mapping[str, Handler]:
        """What the HTTP listener serves."""
        return {
            "/": self._show_status,
            "/metrics": self._show_metrics,
            "/livez": self._live,
            "/readyz": self._ready,
        }

    async def watch_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._metrics.lagged(max(0.0, loop.time() - due))

    async def problems(self) -> list[Problem]:
        """What is not well, the worst first."""
        store, watch, config = self._store, self._watch(), self._config()
        try:
            async with asyncio.timeout(READ_SECONDS):
                alarms = await store.reader.alarm_counts()
                free = await store.reader.free_space()
        except TimeoutError:
            return [Problem("the database does not answer: look at the disk", unready=True)]
        except StoreError as error:
            return [Problem(str(error), unready=True)]
        return problems(
            Condition(
                alarms=sum(alarms.values()),
                disk_free=free,
                min_free_space=int(config.store.min_free_space),
                bytes=(await store.counts()).bytes,
                max_bytes=int(config.store.max_bytes),
                clock_error=self._clock_problem() or "",
                write_error=store.write_error,
                writing_for=store.writing_for,
                source_error="" if watch is None else watch.error,
                untrusted_for=0.0 if watch is None else watch.untrusted_for,
            )
        )

    async def _live(self, _accept: str) -> Page:
        """Whoever gets this has an event loop that turns."""
        return Page(b"ok\n")

    async def _ready(self, _accept: str) -> Page:
        """Whether peers are served as they should be."""
        reasons = [each.text for each in await self.problems() if each.unready]
        if reasons:
            return Page("".join(f"{text}\n" for text in reasons).encode(), status=503)
        return Page(b"ok\n")

    async def _show_status(self, _accept: str) -> Page:
        status = await status_of(
            config=self._config(),
            server=self._server,
            store=self._store,
            watch=self._watch(),
            uris=self._uris(),
            running=time.monotonic() - self._started_at,
            now=time.time(),
            problems=await self.problems(),
        )
        # Codes and pictures take some milliseconds that peers need not wait.
        document = await asyncio.to_thread(render, status)
        return Page(document.encode(), CONTENT_TYPE, headers=HEADERS)

    async def _show_metrics(self, accept: str) -> Page:
        figures = await self._figures()
        return Page(*self._metrics.page(figures, accept))

    async def _figures(self) -> Figures:
        store, server, watch, config = self._store, self._server, self._watch(), self._config()
        unready = [each for each in await self.problems() if each.unready]
        stored: Stored | None = None
        free: int | None = None
        with contextlib.suppress(StoreError):  # what else there is to be told is told
            stored, free = await self._stored(), await store.reader.free_space()
        states = ("handshake", "init", "open", "closing")
        connections = collections.Counter(connection.state for connection in server.connections)
        return Figures(
            version=__version__,
            network=config.network.value,
            node_id=server.key.node_id.hex(),
            ready=not unready,
            writable=not store.write_error and store.writing_for <= STUCK_SECONDS,
            connections={state: connections[state] for state in states},
            stored=stored,
            max_bytes=int(config.store.max_bytes),
            max_peers=config.store.max_peers,
            disk_free=free,
            min_free_space=int(config.store.min_free_space),
            source=None if watch is None else _source(watch),
        )

    async def _stored(self) -> Stored:
        store = self._store
        kinds = await store.reader.kinds()
        alarms = await store.reader.alarm_counts()
        return Stored(
            peers=(await store.counts()).peers,
            backups={kind: backups for kind, (backups, _) in kinds.items()},
            bytes={kind: size for kind, (_, size) in kinds.items()},
            alarms={kind: alarms.get(kind, 0) for kind in ALARM_KINDS},
        )


def _source(watch: ChannelWatch) -> Source:
    said = watch.describe()
    return Source(trusted=said["trusted"], height=said["height"], open_channels=said["open"])
