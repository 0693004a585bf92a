"""What Prometheus is told; names follow its rules: base units, `_total` for what only rises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from peerstore.tally import Handshake, Reason, Replay, Tally, UpdateResult
from peerstore.types import BackupKind

_COMMIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_COMMIT_UPDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the database says: peers, and by kind the backups and the bytes with kept versions."""

    peers: int
    backups: Mapping[BackupKind, int]
    bytes: Mapping[BackupKind, int]
    alarms: Mapping[str, int]
    """Those that stand, by kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The routing node, and whether it can be trusted now."""

    trusted: bool
    height: int | None
    open_channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is shown of one moment; None is what can't be told. Sizes are bytes."""

    version: str
    network: str
    node_id: str
    ready: bool
    writable: bool
    connections: Mapping[str, int]
    """By state."""
    stored: Stored | None
    max_bytes: int
    max_peers: int
    disk_free: int | None
    min_free_space: int
    source: Source | None


class Metrics:
    """The numbers of one daemon: those of `tally`, and histograms that are filled here."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._commit_seconds = self._histogram(
            "peerstore_commit_seconds",
            "From the begin of a transaction to its end.",
            _COMMIT_SECONDS,
        )
        self._commit_updates = self._histogram(
            "peerstore_commit_updates", "Updates that one transaction decided.", _COMMIT_UPDATES
        )
        self._lag = self._histogram(
            "peerstore_loop_lag_seconds", "How late the event loop was.", _LAG_SECONDS
        )
        tally.committed = self._committed

    def lagged(self, seconds: float) -> None:
        """The event loop came so late."""
        self._lag.observe(seconds)

    def page(self, figures: Figures, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that a scraper accepts, and its content type."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none
            encode, content_type = choose_encoder("")
        return encode(_Moment(self._registry, self._tally, figures)), content_type

    def _committed(self, seconds: float, updates: int) -> None:
        self._commit_seconds.observe(seconds)
        self._commit_updates.observe(updates)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self._registry)


class _Moment(Collector):
    """All of it, for one scrape."""

    def __init__(self, registry: CollectorRegistry, tally: Tally, figures: Figures) -> None:
        self._registry = registry
        self._tally = tally
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            # When a histogram was made says no more than process_start_time_seconds.
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
        yield from _of_tally(self._tally)
        yield from _of_figures(self._figures)


def _of_tally(tally: Tally) -> Iterator[Metric]:
    yield _counter(
        "handshakes",
        "Handshakes that ended, by result.",
        {(result,): tally.handshakes[result] for result in Handshake},
        "result",
    )
    yield _counter(
        "connections_refused",
        "Connections refused, or closed to make room or before they said who they are.",
        {(reason,): tally.connections_refused[reason] for reason in tally.connections_refused},
        "reason",
    )
    for direction, messages in (("received", tally.received), ("sent", tally.sent)):
        yield _counter(
            f"messages_{direction}",
            f"Messages {direction}, by their name in the BOLTs.",
            {(name,): count for name, count in messages.items()},
            "type",
        )
    yield _counter(
        "events",
        "What sessions reported of peers, by its name in the log.",
        {(event,): count for event, count in tally.events.items()},
        "event",
    )
    yield _counter(
        "updates",
        "Updates of backups that peers sent, by what became of them.",
        {(k.label, r): tally.updates[k, r] for k in BackupKind for r in UpdateResult},
        *("kind", "result"),
    )
    yield _counter(
        "updates_refused",
        "Updates that were refused, by reason.",
        {(reason,): tally.refusals[reason] for reason in Reason},
        "reason",
    )
    yield _counter(
        "replays",
        "Backups that were to be given back, by what became of them.",
        {(k.label, r): tally.replays[k, r] for k in BackupKind for r in Replay},
        *("kind", "result"),
    )
    for name, text, count in (
        ("pruned_backups", "Backups that retention has deleted.", tally.pruned_backups),
        ("pruned_bytes", "Bytes that retention has deleted.", tally.pruned_bytes),
        ("evicted_peers", "Peers that gave way in a full store.", tally.evicted_peers),
        ("evicted_bytes", "Bytes that gave way in a full store.", tally.evicted_bytes),
    ):
        yield _counter(name, text, {(): count})


def _of_figures(figures: Figures) -> Iterator[Metric]:
    info = {name: getattr(figures, name) for name in ("version", "network", "node_id")}
    yield InfoMetricFamily("peerstore_build", "Which peerstore this is.", info)
    yield _gauge("ready", "Whether /readyz says so.", {(): figures.ready})
    yield _gauge("database_writable", "Whether updates can be written.", {(): figures.writable})
    connections: Values = {(state,): count for state, count in figures.connections.items()}
    yield _gauge("connections", "Connections of peers, by state.", connections, "state")
    stored = figures.stored
    if stored is not None:
        yield _gauge("peers", "Peers that have stored something.", {(): stored.peers})
        for name, text, of in (
            ("backups", "Backups, without kept versions.", stored.backups),
            ("stored_bytes", "Bytes of backups, with kept versions.", stored.bytes),
        ):
            yield _gauge(name, text, {(k.label,): of[k] for k in BackupKind}, "kind")
        alarms: Values = {(kind,): count for kind, count in stored.alarms.items()}
        yield _gauge("alarms", "Alarms that stand, by kind.", alarms, "kind")
    yield _gauge("max_peers", "store.max_peers.", {(): figures.max_peers})
    yield _gauge("max_bytes", "store.max_bytes.", {(): figures.max_bytes})
    if figures.disk_free is not None:
        text = "Bytes free on the disk and inside the database."
        yield _gauge("disk_free_bytes", text, {(): figures.disk_free})
    yield _gauge("min_free_space_bytes", "store.min_free_space.", {(): figures.min_free_space})
    source = figures.source
    if source is not None:
        text = "Whether the routing node answers and can be trusted."
        yield _gauge("source_trusted", text, {(): source.trusted})
        text = "Open channels that the routing node names."
        yield _gauge("source_open_channels", text, {(): source.open_channels})
        if source.height is not None:
            yield _gauge("source_height_blocks", "Its block height.", {(): source.height})


Values = Mapping[tuple[str, ...], float]
"""Values of labels, in their order, to the value of the metric."""


def _counter(name: str, text: str, values: Values, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"peerstore_{name}", text, labels=labels), values)


def _gauge(name: str, text: str, values: Values, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"peerstore_{name}", text, labels=labels), values)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Values) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, float(value))
    return family
