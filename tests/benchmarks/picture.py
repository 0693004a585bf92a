"""The rows that stand beside a bare loop, as bars in an SVG: a longer bar is better."""

from __future__ import annotations

from collections.abc import Sequence

from peerstore.markup import Markup, element
from tests.benchmarks.report import Of, Row

WIDTH = 860
LEFT, RIGHT = 380, 780
"""Where bars begin, and where the longest may end; how well each stands is written behind that."""
TOP, LINE, BAR = 78, 24, 14

LONGEST = 1.25
"""Bars end there, lest one that is far better than its bare loop makes the others too small."""

TITLE = "peerstore beside bare loops of the same parts"
LEGEND = (
    "100% is as fast, or as cheap, as the bare loop in the same run. A mark is a target for that;"
    " red misses one."
)

STYLE = """
svg { color-scheme: light dark; --ink: #1f2328; --faint: #d1d9e0; --page: #fff;
      --plain: #54789c; --met: #2b8a4b; --missed: #c4432b; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --faint: #3d444d; --page: #0d1117;
        --plain: #6c9ac6; --met: #46a866; --missed: #e5674f; }
}
text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.title { font-size: 15px; font-weight: 600; }
.end { text-anchor: end; }
.middle { text-anchor: middle; }
.page { fill: var(--page); }
.grid { stroke: var(--faint); }
.mark { stroke: var(--ink); stroke-width: 2; }
.plain { fill: var(--plain); } .met { fill: var(--met); } .missed { fill: var(--missed); }
"""


def picture(rows: Sequence[Row]) -> str:
    """The picture as a document; rows without a bare loop are left out."""
    shown = [row for row in rows if row.ratio]
    bottom = TOP + LINE * len(shown)
    height = bottom + 12
    return str(
        element(
            "svg",
            element("title", TITLE),
            element("style", Markup(STYLE)),
            element("rect", class_="page", width=WIDTH, height=height),
            element("text", TITLE, class_="title", x=16, y=24),
            element("text", LEGEND, x=16, y=43),
            *(_gridline(share, bottom) for share in (0.0, 0.25, 0.5, 0.75, 1.0)),
            *(_bar(row, TOP + LINE * number) for number, row in enumerate(shown)),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {WIDTH} {height}",
            role="img",
        )
    )


def _standing(row: Row, ratio: float) -> float:
    """How well that ratio stands to the bare loop, as a share: more is better."""
    return ratio if row.ours.unit.more_is_better else 1 / ratio


def _x(share: float) -> float:
    return round(LEFT + min(share / LONGEST, 1.0) * (RIGHT - LEFT), 1)


def _gridline(share: float, bottom: float) -> Markup:
    x = _x(share)
    line = element("line", class_="grid", x1=x, x2=x, y1=TOP - 4, y2=bottom)
    label = element("text", f"{share:.0%}", class_="middle", x=x, y=TOP - 8)
    return Markup(line + label)


def _bar(row: Row, y: float) -> Markup:
    assert row.ratio is not None
    standing = _standing(row, row.ratio)
    verdict = "plain"
    if row.targets:
        verdict = "met" if all(map(row.met, row.targets)) else "missed"
    middle = y + BAR - 2
    drawn = [
        element("text", row.what, class_="end", x=LEFT - 8, y=middle),
        element("rect", class_=verdict, x=LEFT, y=y, width=_x(standing) - LEFT, height=BAR),
        element("text", f"{standing:.0%}", class_="end", x=WIDTH - 16, y=middle),
    ]
    for target in row.targets:
        if target.of is Of.BARE:
            x = _x(_standing(row, target.limit))
            drawn.append(element("line", class_="mark", x1=x, x2=x, y1=y - 2, y2=y + BAR + 2))
    return Markup("".join(drawn))
