"""What operators and their tools are told of a running daemon, over HTTP and by `info`."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from peerstore import __version__
from peerstore.config import Config
from peerstore.errors import StoreError
from peerstore.health import STUCK_SECONDS, Condition, Problem, problems
from peerstore.metrics import Figures, Metrics, Source, Stored
from peerstore.pages import Handler, Page
from peerstore.server import PeerServer
from peerstore.status import SHOWN_ALARMS, SHOWN_SECONDS, status_of
from peerstore.status_page import CONTENT_TYPE, HEADERS, render
from peerstore.store.base import ALARM_KINDS, Alarm, Sample
from peerstore.store.reader import SqliteReader
from peerstore.store.sqlite import SqliteStore
from peerstore.types import BackupKind
from peerstore.watch import ChannelWatch

READ_SECONDS = 3.0
"""How long the database may take to answer before that is a problem of its own."""

FRESH_SECONDS = 1.0
"""For how long what it said is told to others who ask."""

LAG_SECONDS = 0.25
"""How often it is measured how late the event loop is."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What the database and its disk said; `error` is why they did not."""

    error: str = ""
    alarms: Mapping[str, int] = field(default_factory=dict)
    kinds: Mapping[BackupKind, tuple[int, int]] = field(default_factory=dict)
    free: int | None = None


class Monitor:
    """Gathers what is shown; `config` and `watch` are as they are when they are asked for.

    It has a `reader` of its own, and reads once for all who ask at the same time: however many they
    are, peers don't wait for it.
    """

    def __init__(
        self,
        server: PeerServer,
        store: SqliteStore,
        reader: SqliteReader,
        *,
        config: Callable[[], Config],
        watch: Callable[[], ChannelWatch | None],
        uris: Callable[[], Sequence[str]],
        clock_problem: Callable[[], str | None],
    ) -> None:
        self._server = server
        self._store = store
        self.reader = reader
        self._looking: asyncio.Task[_Look] | None = None
        self._looked_at = 0.0
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
        return await self._judge(await self._look())

    async def _judge(self, look: _Look) -> list[Problem]:
        store, watch, config = self._store, self._watch(), self._config()
        if look.free is None:
            return [Problem(look.error, unready=True)]
        return problems(
            Condition(
                alarms=sum(look.alarms.values()),
                disk_free=look.free,
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
        look, now = await self._look(), time.time()
        alarms: Sequence[Alarm] = ()
        activity: Sequence[Sample] = ()
        if not look.error:
            # Should it fail only now, the next page says so.
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(READ_SECONDS):
                    alarms = await self.reader.newest_alarms(SHOWN_ALARMS)
                    activity = await self.reader.activity(int(now) - SHOWN_SECONDS, int(now))
        status = await status_of(
            config=self._config(),
            server=self._server,
            store=self._store,
            watch=self._watch(),
            uris=self._uris(),
            running=time.monotonic() - self._started_at,
            now=now,
            problems=await self._judge(look),
            disk_free=look.free,
            alarms=alarms,
            standing=sum(look.alarms.values()),
            activity=activity,
        )
        # Codes and pictures take some milliseconds that peers need not wait.
        document = await asyncio.to_thread(render, status)
        return Page(document.encode(), CONTENT_TYPE, headers=HEADERS)

    async def _show_metrics(self, accept: str) -> Page:
        figures = await self._figures()
        return Page(*self._metrics.page(figures, accept))

    async def _figures(self) -> Figures:
        store, server, watch, config = self._store, self._server, self._watch(), self._config()
        look = await self._look()
        unready = [each for each in await self._judge(look) if each.unready]
        states = ("handshake", "init", "open", "closing")
        connections = collections.Counter(connection.state for connection in server.connections)
        return Figures(
            version=__version__,
            network=config.network.value,
            node_id=server.key.node_id.hex(),
            ready=not unready,
            writable=not store.write_error and store.writing_for <= STUCK_SECONDS,
            connections={state: connections[state] for state in states},
            stored=None if look.error else await self._stored(look),
            max_bytes=int(config.store.max_bytes),
            max_peers=config.store.max_peers,
            disk_free=look.free,
            min_free_space=int(config.store.min_free_space),
            source=None if watch is None else _source(watch),
        )

    async def _stored(self, look: _Look) -> Stored:
        return Stored(
            peers=(await self._store.counts()).peers,
            backups={kind: backups for kind, (backups, _) in look.kinds.items()},
            bytes={kind: size for kind, (_, size) in look.kinds.items()},
            alarms={kind: look.alarms.get(kind, 0) for kind in ALARM_KINDS},
        )

    async def _look(self) -> _Look:
        """What the database says now, or said a moment ago."""
        old = time.monotonic() - self._looked_at > FRESH_SECONDS
        if self._looking is None or (self._looking.done() and old):
            self._looked_at = time.monotonic()
            self._looking = asyncio.create_task(self._read())
        # One who asks may give up; the others wait on.
        return await asyncio.shield(self._looking)

    async def _read(self) -> _Look:
        try:
            async with asyncio.timeout(READ_SECONDS):
                return _Look(
                    alarms=await self.reader.alarm_counts(),
                    kinds=await self.reader.kinds(),
                    free=await self.reader.free_space(),
                )
        except TimeoutError:
            return _Look("the database does not answer: look at the disk")
        except StoreError as error:
            return _Look(str(error))


def _source(watch: ChannelWatch) -> Source:
    said = watch.describe()
    return Source(trusted=said["trusted"], height=said["height"], open_channels=said["open"])
