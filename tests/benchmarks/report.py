"""What a measurement gives, and how it is shown: rows as a table of Markdown and as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from peerstore.words import size


class Unit(Enum):
    """What a figure is in; its value is the unit's name in JSON."""

    PER_SECOND = "1/s"
    SECONDS = "s"
    BYTES = "bytes"
    SHARE = "share"
    """Of one core's time."""
    FACTOR = "factor"

    @property
    def more_is_better(self) -> bool:
        """Of rates one wants more, of all that is used up less."""
        return self is Unit.PER_SECOND


def _seconds(value: float) -> str:
    if value < 0.001:
        return f"{value * 1e6:.0f} us"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


_SHOWN: dict[Unit, Callable[[float], str]] = {
    Unit.PER_SECOND: lambda value: f"{value:,.0f}/s",
    Unit.SECONDS: _seconds,
    Unit.BYTES: size,
    Unit.SHARE: lambda value: f"{value:.2%}",
    Unit.FACTOR: lambda value: f"{value:.2f}",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that was measured; the name says which where that is not clear."""

    value: float
    unit: Unit
    name: str = ""

    def __str__(self) -> str:
        return f"{_SHOWN[self.unit](self.value)} {self.name}".rstrip()


class Of(Enum):
    """What a target is about."""

    FIGURE = "figure"
    BARE = "bare"
    CLN = "cln"


@dataclass(frozen=True, slots=True)
class Target:
    """What DESIGN.md asks for: at least so much of a rate, at most of all else.

    Of CLN it is always how many times as good peerstore is to be.
    """

    limit: float
    of: Of = Of.FIGURE


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of ours, and what it is to be judged by, all in the same unit.

    `bare` is what a bare loop of the same parts did in the same run, `cln` what CLN 26.06 was
    measured to do (CLN_MEASURED says where); `beside` are further figures of the same measurement.
    """

    what: str
    ours: Figure
    bare: Figure | None = None
    cln: float | None = None
    targets: tuple[Target, ...] = ()
    beside: tuple[Figure, ...] = ()

    @property
    def ratio(self) -> float | None:
        """Our figure by the bare loop's."""
        return None if self.bare is None else _quotient(self.ours.value, self.bare.value)

    @property
    def times_cln(self) -> float | None:
        """How many times as good as CLN's figure ours is."""
        if self.cln is None:
            return None
        if self.ours.unit.more_is_better:
            return _quotient(self.ours.value, self.cln)
        return _quotient(self.cln, self.ours.value)

    def met(self, target: Target) -> bool:
        """Whether a target of this row is met."""
        value = {Of.FIGURE: self.ours.value, Of.BARE: self.ratio, Of.CLN: self.times_cln}[target.of]
        assert value is not None, "a target without what it is compared with"
        return value >= target.limit if self.at_least(target) else value <= target.limit

    def at_least(self, target: Target) -> bool:
        """Whether a target is a lower limit."""
        return target.of is Of.CLN or self.ours.unit.more_is_better


def _quotient(value: float, by: float) -> float:
    return value / by if by else math.inf


HEADS = ("what", "peerstore", "bare loop", "ratio", "CLN 26.06", "target")

CLN_MEASURED = {
    "updates of 65531 B": 120.0,
    "updates of 1024 B": 900.0,
    "reconnects": 200.0,
    "reconnect p50": 0.0046,
    "reconnect p99": 0.0097,
    "connects to init": 2000.0,
}
"""CLN 26.06 as a provider on a machine with two cores, its clients on the same one: updates a
second with 8 clients (1024 bytes: the best of its runs), from TCP connect to the whole retrieval of
65531 bytes one after another (per second, and seconds), and connects to `init` a second with four
client processes."""


def cells(row: Row) -> tuple[str, ...]:
    """What stands in a row of the table, below HEADS."""
    cln = ""
    if row.cln is not None:
        cln = f"{Figure(row.cln, row.ours.unit)}: {row.times_cln:.1f} times"
    return (
        row.what,
        ", ".join(map(str, (row.ours, *row.beside))),
        "" if row.bare is None else str(row.bare),
        "" if row.ratio is None else f"{row.ratio:.2f}",
        cln,
        "; ".join(_verdict(row, target) for target in row.targets),
    )


def _verdict(row: Row, target: Target) -> str:
    limit = {
        Of.FIGURE: str(Figure(target.limit, row.ours.unit)),
        Of.BARE: f"{target.limit:g} of bare",
        Of.CLN: f"{target.limit:g} times CLN",
    }[target.of]
    least = "at least" if row.at_least(target) else "at most"
    return f"{least} {limit}: {'met' if row.met(target) else 'MISSED'}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table that is Markdown and can be read as it is."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for number, line in enumerate(lines):
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield f"| {' | '.join(padded)} |"
        if number == 0:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"


def document(row: Row) -> dict[str, Any]:
    """A row for JSON; figures are in their unit, a ratio is null where it has no number."""
    return {
        "what": row.what,
        "unit": row.ours.unit.value,
        "peerstore": row.ours.value,
        "bare": None if row.bare is None else {"name": row.bare.name, "value": row.bare.value},
        "ratio": None if row.ratio in (None, math.inf) else row.ratio,
        "cln": row.cln,
        "times_cln": row.times_cln,
        "targets": [
            {
                "of": target.of.value,
                "at_least" if row.at_least(target) else "at_most": target.limit,
                "met": row.met(target),
            }
            for target in row.targets
        ],
        "beside": [
            {"name": figure.name, "unit": figure.unit.value, "value": figure.value}
            for figure in row.beside
        ],
    }
