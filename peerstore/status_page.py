"""The status page: one HTML document that needs nothing from anywhere; pure.

It has no script, no form and no cookie, and does not load itself anew: that would take away what a
reader has just selected, or is having read out. It says of when it is instead.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import segno

from peerstore.charts import DAY, MONTH, chart
from peerstore.markup import Content, Markup, element, join, plain
from peerstore.page_style import STYLE
from peerstore.store.base import Sample
from peerstore.words import age, counted, size

LONGEST_TEXT = 500
"""Letters of a text from outside that are shown."""

LONGEST_ADDRESS = 45
"""Letters of an IP address; what is longer is shortened."""

QUIET_MODULES = 4
"""The white edge that a QR code needs to be found."""

_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

CONTENT_TYPE = "text/html; charset=utf-8"

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
}
"""What has to go with the document over HTTP."""

# Given with the page, so that no browser asks for one.
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='3' fill='%232c5f92'/%3E"
    "%3Cpath d='M4 5h8M4 8h8M4 11h5' stroke='%23fff' stroke-width='1.5'/%3E%3C/svg%3E"
)

ANNOUNCE = (
    "These are the addresses that it listens on, as this machine sees them. Others may need another"
    " one: say in listen.announce which."
)

_LAST_SECOND = 253402300799
"""Of the year 9999."""


@dataclass(frozen=True, slots=True)
class ShownSource:
    """The routing node: `error` is why it can't be trusted, "" where it can."""

    kind: str
    error: str
    height: int | None
    open: int
    channels: int


@dataclass(frozen=True, slots=True)
class ShownRefusal:
    """Whom something was refused, a node id or else an address; `seconds` ago for the last time."""

    who: str
    reason: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ShownAlarm:
    """An alarm that stands; `node_id` is "" where it is about no peer, times are Unix seconds."""

    number: int
    kind: str
    text: str
    node_id: str
    raised_at: int
    last_at: int
    count: int


@dataclass(frozen=True, slots=True)
class Status:
    """What the page shows. Sizes are bytes; `now` is in Unix seconds, `running` in seconds.

    `problems` say what is not well and what to do; alarms need not be among them. `alarms` and
    `refusals` begin with the newest; of `standing` alarms some may be left out. `source` is None
    where no routing node is asked, `disk_free` where it is not known. `announced` says whether the
    operator has chosen the addresses in `uris`.
    """

    now: float
    running: float
    alias: str
    network: str
    version: str
    uris: Sequence[str]
    announced: bool
    problems: Sequence[str]
    connections: int
    peers: int
    backups: int
    bytes: int
    max_bytes: int
    disk_free: int | None
    source: ShownSource | None
    activity: Sequence[Sample]
    refusals: Sequence[ShownRefusal]
    alarms: Sequence[ShownAlarm]
    standing: int


def render(status: Status) -> str:
    """The document."""
    name = plain(status.alias) or "peerstore"
    return "<!doctype html>\n" + element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="robots", content="noindex"),
            element("title", f"{_state(status)} · {name}"),
            element("link", rel="icon", href=_ICON),
            element("style", Markup(STYLE)),
        ),
        element("body", element("main", *_sections(status, name))),
        lang="en",
    )


def _sections(status: Status, name: str) -> Iterator[Content]:
    yield _header(status, name)
    if status.standing:
        yield from _alarms(status)
    yield element("h2", "Connect")
    yield element("div", *map(_uri, status.uris), class_="cards")
    if not status.announced:
        yield element("p", ANNOUNCE, class_="note soft")
    yield element("h2", "Now")
    yield element("dl", *_facts(status), class_="facts")
    yield element("h2", "Over time")
    charts = [chart(span, status.activity, _calendar(status.now)) for span in (DAY, MONTH)]
    yield element("div", *charts, class_="cards")
    yield element("h2", "Newest refusals")
    yield _refusals(status)


def _state(status: Status) -> str:
    return "Not well" if status.problems or status.standing else "All is well"


def _header(status: Status, name: str) -> Markup:
    problems = [_shown(problem) for problem in status.problems]
    if status.standing:
        stand = "stands" if status.standing == 1 else "stand"
        problems.append(join(f"{counted(status.standing, 'alarm')} {stand}: see below"))
    state = f"{_state(status)}{':' if problems else '.'}"
    what = f"peerstore {status.version} on {status.network}"
    about = join(
        f"{what}, running for {age(status.running)}; as of ",
        _time(status.now, _iso(status.now).replace("T", " ").replace("Z", " UTC")),
    )
    return element(
        "header",
        element("h1", _shown(name)),
        element("p", about, class_="soft"),
        element(
            "div",
            element("p", state),
            element("ul", *(element("li", problem) for problem in problems)) if problems else None,
            class_="state unwell" if problems else "state well",
        ),
    )


def _alarms(status: Status) -> Iterator[Markup]:
    yield element("h2", "Alarms")
    yield element("div", *(_alarm(alarm, status.now) for alarm in status.alarms), class_="cards")
    left_out = status.standing - len(status.alarms)
    if left_out:
        more = join(f"{left_out:,} more: ", element("code", "peerstore alarms list"))
        yield element("p", more, class_="note")


def _alarm(alarm: ShownAlarm, now: float) -> Markup:
    since = join("since ", _time(alarm.raised_at, age(max(0, now - alarm.raised_at))))
    last = join(", last ", _time(alarm.last_at, f"{age(max(0, now - alarm.last_at))} ago"))
    command = element("code", f"peerstore alarms ack {alarm.number}")
    return element(
        "article",
        element("h3", f"{alarm.number} ", _shown(alarm.kind)),
        element("p", _shown(alarm.text)),
        element(
            "p",
            since,
            join(f", {alarm.count:,} times", last) if alarm.count > 1 else None,
            join("; peer ", _who(alarm.node_id)) if alarm.node_id else None,
            class_="soft",
        ),
        element("p", "When it is dealt with: ", command),
        class_="card",
    )


def _uri(uri: str) -> Markup:
    words = element("p", "URI of this node", class_="soft")
    text = element("div", words, element("code", _shown(uri)))
    return element("div", _qr_code(plain(uri)), text, class_="card uri")


@functools.lru_cache(maxsize=16)
def _qr_code(text: str) -> Markup | None:
    """A QR code, dark on white whatever the colours around it; None for what is too long."""
    try:
        code = segno.make(text, error="l", micro=False)
    except ValueError:
        return None
    rows = list(code.matrix_iter(border=QUIET_MODULES))
    dark = "".join(
        f"M{x} {y}h1v1h-1z" for y, row in enumerate(rows) for x, module in enumerate(row) if module
    )
    return element(
        "svg",
        element("title", f"QR code of {text}"),
        element("path", fill="#fff", d=f"M0 0h{len(rows)}v{len(rows)}H0z"),
        element("path", fill="#000", d=dark),
        viewBox=f"0 0 {len(rows)} {len(rows)}",
        role="img",
        shape_rendering="crispEdges",
    )


def _facts(status: Status) -> Iterator[Markup]:
    yield _fact("Connections", f"{status.connections:,}")
    yield _fact("Peers", f"{status.peers:,}", "with a backup here")
    yield _fact("Backups", f"{status.backups:,}")
    share = f" ({status.bytes / status.max_bytes:.0%})" if status.max_bytes else ""
    yield _fact("Stored", size(status.bytes), f"of at most {size(status.max_bytes)}{share}")
    free = "not known" if status.disk_free is None else size(status.disk_free)
    yield _fact("Free on the disk", free)
    source = status.source
    if source is not None:
        height = "no height yet" if source.height is None else f"height {source.height}"
        channels = f"{source.open:,} open of {counted(source.channels, 'channel')} known, {height}"
        state = "can't be trusted" if source.error else "answers"
        yield _fact(f"Routing node ({source.kind})", state, channels)


def _fact(name: str, value: str, more: str = "") -> Markup:
    small = element("small", more) if more else None
    return element("div", element("dt", name), element("dd", value, small))


def _refusals(status: Status) -> Markup:
    if not status.refusals:
        return element("p", "Nobody was refused anything since the start.", class_="soft")
    heads = (
        element("th", "When", scope="col"),
        element("th", "Who and why", scope="col"),
        element("th", "Times", scope="col", class_="count"),
    )
    rows = (_refusal(refusal, status.now) for refusal in status.refusals)
    return element("table", element("thead", element("tr", *heads)), element("tbody", *rows))


def _refusal(refusal: ShownRefusal, now: float) -> Markup:
    when = _time(now - refusal.seconds, f"{age(refusal.seconds)} ago")
    return element(
        "tr",
        element("th", when, scope="row"),
        element("td", _who(refusal.who), element("p", _shown(refusal.reason))),
        element("td", f"{refusal.count:,}", class_="count"),
    )


def _who(who: str) -> Markup:
    """A node id or an address: shortened to the eye alone, so that it can be copied as a whole."""
    long = len(who) > LONGEST_ADDRESS
    return element("code", who, class_="id" if long else None, title=who if long else None)


def _shown(text: str) -> Markup:
    """A text from outside, kept from turning the direction of what stands around it."""
    return element("bdi", text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…")


def _time(at: float, words: str) -> Markup:
    return element("time", words, datetime=_iso(at), title=_iso(at))


def _calendar(at: float) -> float:
    """The nearest time that a calendar has, with room for what is shown around it."""
    return min(max(at, 86400 * 366), _LAST_SECOND - 86400 * 366)


def _iso(at: float) -> str:
    shown = datetime.fromtimestamp(int(_calendar(at)), UTC)
    return shown.isoformat().replace("+00:00", "Z")
