"""What was stored over time, as SVG: an area of bytes above bars of updates; pure.

Times are Unix seconds, shown in UTC. What was noted later than now, before a clock was set back, is
not shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from peerstore.markup import Markup, element, join
from peerstore.store.base import Sample
from peerstore.words import counted, size

GAP = 1500
"""Seconds between two samples from where on nothing is drawn between them. They come every 600 s;
where the daemon was started anew in between, up to twice that."""

HALF_PERIOD = 300
"""How long before a sample, on average, its updates came."""

WIDTH, HEIGHT = 360, 216
LEFT, RIGHT = 56, 344
AREA_TOP, AREA_BOTTOM = 18, 112
BARS_TOP, BARS_BOTTOM = 142, 190
LABELS_AT = 207
"""Where the parts of a picture are: it is small, so that it can be read on a phone."""

NO_POINTS = (
    "Nothing to show yet: how much is stored is noted every ten minutes while the daemon runs."
)

SHADED = "Shaded: nothing was noted; the daemon did not run, or could not write."


@dataclass(frozen=True, slots=True)
class Span:
    """What a picture shows: so many bars of so many seconds, the last one just growing.

    A `label` stands every `label_every` seconds since the epoch.
    """

    title: str
    bars: int
    bar: int
    bar_name: str
    label: str
    label_every: int


DAY = Span("Last 24 hours", 48, 1800, "half hour", "%H:%M", 6 * 3600)
MONTH = Span("Last 30 days", 30, 86400, "day", "%-d %b", 7 * 86400)


def chart(span: Span, points: Sequence[Sample], now: float) -> Markup:
    """A picture, and what it shows in words; `points` are in the order of time."""
    plot = _Plot(span, int(now))
    shown = [point for point in points if plot.shows(point)]
    if len(shown) < 2:
        words, picture = NO_POINTS, Markup()
    else:
        words = _in_words(shown)
        picture = _picture(plot, points, f"{span.title}: {words}")
    heading = element("figcaption", element("h3", span.title), element("p", words))
    return element("figure", heading, picture)


def _in_words(points: Sequence[Sample]) -> str:
    most = size(max(point.bytes for point in points))
    first, last = size(points[0].bytes), size(points[-1].bytes)
    updates = counted(sum(point.updates for point in points), "update")
    before = "" if first == last == most else f", {first} at first, {most} at most"
    return f"{last} stored{before}; {updates}."


class _Plot:
    """Where in the picture a time is."""

    def __init__(self, span: Span, now: int) -> None:
        self.span = span
        self.now = now
        self.end = (now // span.bar + 1) * span.bar
        self.start = self.end - span.bars * span.bar

    def shows(self, point: Sample) -> bool:
        return self.start <= point.at <= self.now

    def x(self, at: float) -> float:
        return LEFT + (at - self.start) / (self.end - self.start) * (RIGHT - LEFT)


def _picture(plot: _Plot, points: Sequence[Sample], words: str) -> Markup:
    gaps = list(_gaps(plot, points))
    svg = element(
        "svg",
        element("title", words),
        *(_rect("gap", left, AREA_TOP, right, BARS_BOTTOM, "not noted") for left, right in gaps),
        _bytes(plot, points),
        _updates(plot, points),
        *_time_axis(plot),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
    )
    return join(svg, element("p", SHADED) if gaps else None)


def runs(points: Sequence[Sample]) -> Iterator[list[Sample]]:
    """The points between gaps."""
    run: list[Sample] = []
    for point in points:
        if run and point.at - run[-1].at > GAP:
            yield run
            run = []
        run.append(point)
    if run:
        yield run


def _gaps(plot: _Plot, points: Sequence[Sample]) -> Iterator[tuple[float, float]]:
    """Where there are gaps, from left to right; before the first point there is none."""
    known = [point.at for point in points if point.at <= plot.now]
    for since, until in itertools.pairwise([*known, plot.now]):
        if until - since > GAP and until > plot.start:
            yield plot.x(max(since, plot.start)), plot.x(until)


def _bytes(plot: _Plot, points: Sequence[Sample]) -> Markup:
    """The area of what was stored."""
    parts = [[point for point in run if plot.shows(point)] for run in runs(points)]
    top, label = bytes_axis(max(point.bytes for part in parts for point in part))

    def place(point: Sample) -> str:
        y = AREA_BOTTOM - point.bytes / top * (AREA_BOTTOM - AREA_TOP)
        return f"{plot.x(point.at):.1f} {y:.1f}"

    drawn = []
    for part in filter(None, parts):
        # Not more points than the picture is wide.
        thinned = _thin(part, plot.span.bars * plot.span.bar // (RIGHT - LEFT))
        line = "L".join(map(place, thinned))
        left, right = plot.x(thinned[0].at), plot.x(thinned[-1].at)
        area = f"M{left:.1f} {AREA_BOTTOM}L{line}L{right:.1f} {AREA_BOTTOM}Z"
        # A line without a length is shown as a dot.
        line = f"M{line}" if len(thinned) > 1 else f"M{line}h0"
        drawn += [element("path", class_="area", d=area), element("path", class_="line", d=line)]
    return join(_value_axis("Stored", label, AREA_TOP, AREA_BOTTOM), *drawn)


def _thin(points: Sequence[Sample], step: int) -> list[Sample]:
    """The first point, and the last one of each step of time."""
    steps = itertools.groupby(points, lambda point: point.at // step)
    last = [list(group)[-1] for _, group in steps]
    return last if last[0] == points[0] else [points[0], *last]


def _updates(plot: _Plot, points: Sequence[Sample]) -> Markup:
    """A bar for the updates of each half hour or day."""
    span = plot.span
    bars = [0] * span.bars
    for point in points:
        if plot.shows(point):
            bars[max(0, point.at - HALF_PERIOD - plot.start) // span.bar] += point.updates
    top, label = counts_axis(max(bars))
    drawn = []
    for number, updates in enumerate(bars):
        if updates:
            since = plot.start + number * span.bar
            height = max(1.0, updates / top * (BARS_BOTTOM - BARS_TOP))
            left, right = plot.x(since) + 0.5, plot.x(since + span.bar) - 0.5
            words = f"{_moment(span, since)}: {counted(updates, 'update')}"
            drawn.append(_rect("bar", left, BARS_BOTTOM - height, right, BARS_BOTTOM, words))
    title = f"Updates, each {span.bar_name}"
    return join(_value_axis(title, label, BARS_TOP, BARS_BOTTOM), *drawn)


def bytes_axis(most: int) -> tuple[int, str]:
    """Where an axis of bytes ends, at least a KiB, and its label."""
    for unit, name in ((10, "KiB"), (20, "MiB"), (30, "GiB"), (40, "TiB"), (50, "PiB")):
        for number in (1, 2, 5, 10, 20, 50, 100, 200, 500):
            if most <= number << unit:
                return number << unit, f"{number} {name}"
    return most, size(most)


def counts_axis(most: int) -> tuple[int, str]:
    """Where an axis of counts ends, and its label."""
    unit = 1
    while True:
        for number in (unit, 2 * unit, 5 * unit):
            if most <= number:
                return number, f"{number:,}"
        unit *= 10


def _value_axis(title: str, label: str, top: int, bottom: int) -> Markup:
    return join(
        element("text", title, x=LEFT, y=top - 6),
        *(
            element("path", class_="grid", d=f"M{LEFT} {y:g}H{RIGHT}")
            for y in (top, (top + bottom) / 2)
        ),
        element("path", class_="axis", d=f"M{LEFT} {bottom}H{RIGHT}"),
        element("text", label, class_="value", x=LEFT - 6, y=top + 4),
        element("text", "0", class_="value", x=LEFT - 6, y=bottom + 4),
    )


def _time_axis(plot: _Plot) -> Iterator[Markup]:
    every = plot.span.label_every
    yield element("text", "UTC", class_="value", x=LEFT - 6, y=LABELS_AT)
    for at in range(-(-plot.start // every) * every, plot.end, every):
        x = round(plot.x(at), 1)
        yield element("path", class_="axis", d=f"M{x} {BARS_BOTTOM}v4")
        yield element("text", _moment(plot.span, at), class_="time", x=x, y=LABELS_AT)


def _moment(span: Span, at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime(span.label)


def _rect(kind: str, left: float, top: float, right: float, bottom: float, words: str) -> Markup:
    return element(
        "rect",
        element("title", words),
        class_=kind,
        x=round(left, 1),
        y=round(top, 1),
        width=round(max(right - left, 0.5), 1),
        height=round(bottom - top, 1),
    )
