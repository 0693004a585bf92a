"""The status page: what stands in it, that nothing from outside gets out of its place, and how a
real browser shows it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from hypothesis import given
from hypothesis import strategies as st

from peerstore import __version__
from peerstore.charts import DAY, MONTH, bytes_axis, chart, counts_axis
from peerstore.client import Client, StorageRefusedError
from peerstore.config import Loaded, load
from peerstore.daemon import Daemon, running
from peerstore.markup import element, plain
from peerstore.status import SHOWN_ALARMS
from peerstore.status_page import (
    CONTENT_SECURITY_POLICY,
    HEADERS,
    LONGEST_TEXT,
    ShownAlarm,
    ShownRefusal,
    ShownSource,
    Status,
    render,
)
from peerstore.store.base import Sample
from peerstore.store.operations import raise_alarm
from peerstore.systemd import ServiceManager
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import BackupKind, Network, NodeAddress, Slot
from tests.browser import Browser, browser_is_missing, browsing
from tests.daemon import LOOPBACK
from tests.helpers import key_pair, quick

NOW = 1_764_331_385
NODE_ID = "02" + "a1b2c3d4" * 8
URI = f"{NODE_ID}@203.0.113.5:9737"
ONION = f"{NODE_ID}@{'abcdefgh234567' * 4}.onion:9737"
OTHER_ID = "03" + "77" * 32
HOUR = 3600


def points(hours: int, *, every: int = 600) -> list[Sample]:
    """What a daemon notes that stores a KiB in every period."""
    ats = range(NOW - hours * HOUR, NOW + 1, every)
    return [Sample(at, 1024 * number, 1) for number, at in enumerate(ats)]


FULL = Status(
    now=NOW,
    running=11 * 86400,
    alias="Alps",
    network="bitcoin",
    version="0.4.0",
    uris=(URI, ONION),
    announced=True,
    problems=("the disk is on fire: put it out",),
    connections=1423,
    peers=12850,
    backups=13911,
    bytes=7 << 30,
    max_bytes=10 << 30,
    disk_free=41 << 30,
    source=ShownSource("cln", "connection refused", 923145, 312, 377),
    activity=points(31 * 24),
    refusals=(
        ShownRefusal(OTHER_ID, "the store is full", 3, 42.0),
        ShownRefusal("198.51.100.77", "its handshake was wrong", 12873, 300.0),
    ),
    alarms=(
        ShownAlarm(7, "shrink", "it may have lost its data", OTHER_ID, NOW - 9000, NOW - 60, 4),
        ShownAlarm(2, "behind", "commits are missing", "", NOW - 90000, NOW - 90000, 1),
    ),
    standing=31,
)
WELL = replace(FULL, problems=(), alarms=(), standing=0, refusals=(), source=None)
NEW = replace(
    WELL, activity=(), connections=0, peers=0, backups=0, bytes=0, alias="", announced=False
)
STATES = {"full": FULL, "well": WELL, "new": NEW}


class Page(HTMLParser):
    """A document taken apart: its tags with the names of their attributes, and its texts."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.skeleton: list[tuple[str, tuple[str, ...]]] = []
        self.values: dict[str, list[str]] = {}
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(document)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.skeleton.append((tag, tuple(name for name, _ in attrs)))
        for name, value in attrs:
            self.values.setdefault(f"{tag} {name}", []).append(value or "")
        if tag not in ("meta", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def count(self, tag: str) -> int:
        return [name for name, _ in self.skeleton].count(tag)


def page(status: Status) -> Page:
    return Page(render(status))


# What stands in it


def test_the_first_line_says_that_all_is_well() -> None:
    assert page(WELL).text.startswith("All is well · Alps" + "Alps")
    assert "All is well." in page(WELL).text


def test_the_first_line_says_what_is_not_well_and_what_to_do() -> None:
    text = page(replace(WELL, problems=("one: do this", "two: do that"))).text
    assert "All is well" not in text
    assert "Not well:one: do thistwo: do that" in text


def test_an_alarm_alone_is_not_well() -> None:
    text = page(replace(WELL, alarms=FULL.alarms[:1], standing=1)).text
    assert "Not well:1 alarm stands: see below" in text


def test_it_shows_who_the_node_is_and_what_it_keeps() -> None:
    text = page(FULL).text
    for shown in (
        *("Alps", "bitcoin", "peerstore 0.4.0", "running for 11 d", "2025-11-28 12:03:05 UTC"),
        *(URI, ONION, "1,423", "12,850", "13,911", "7.0 GiB", "of at most 10.0 GiB (70%)"),
        *("41.0 GiB", "312 open of 377 channels known, height 923145", "can't be trusted"),
    ):
        assert shown in text


def test_an_alarm_comes_with_what_to_do_about_it() -> None:
    text = page(FULL).text
    for shown in (
        *("7 shrink", "it may have lost its data", f"peer {OTHER_ID}", "since 2 h", "4 times"),
        *("peerstore alarms ack 7", "peerstore alarms ack 2", "29 more: peerstore alarms list"),
    ):
        assert shown in text


def test_refusals_are_a_table_with_headers() -> None:
    found = page(FULL)
    for shown in ("42 s ago", OTHER_ID, "the store is full", "198.51.100.77", "12,873"):
        assert shown in found.text
    assert found.values["th scope"] == ["col", "col", "col", "row", "row"]


def test_what_there_is_nothing_of_is_said_in_a_sentence() -> None:
    text = page(NEW).text
    assert text.count("Nothing to show yet") == 2
    assert "Nobody was refused anything since the start." in text
    assert "say in listen.announce which" in text
    assert "Alarms" not in text


@pytest.mark.parametrize("status", STATES.values(), ids=STATES)
def test_it_can_be_read_by_everybody(status: Status) -> None:
    found = page(status)
    assert found.values["html lang"] == ["en"]
    assert found.values["meta name"].count("viewport") == 1
    headings = [tag for tag, _ in found.skeleton if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    assert set(headings) == {"h1", "h2", "h3"}
    # Every picture has a name.
    following = zip(found.skeleton, found.skeleton[1:], strict=False)
    assert all(after[0] == "title" for (tag, _), after in following if tag == "svg")
    assert len(found.values.get("svg role", [])) == found.count("svg")


@pytest.mark.parametrize("status", STATES.values(), ids=STATES)
def test_it_needs_nothing_from_anywhere_and_does_nothing(status: Status) -> None:
    document = render(status)
    found = Page(document)
    tags = {tag for tag, _ in found.skeleton}
    assert tags.isdisjoint(
        {"script", "iframe", "form", "input", "img", "a", "object", "image", "use"}
    )
    attributes = {name for _, names in found.skeleton for name in names}
    assert not any(name.startswith("on") or name in ("style", "src") for name in attributes)
    assert found.values["link href"][0].startswith("data:image/svg+xml,")
    assert len(found.values["link href"]) == 1
    # The icon names the language that it is written in.
    assert re.findall(r"\w+://[\w./]+", document) == ["http://www.w3.org/2000/svg"]


def test_its_policy_allows_its_own_style_alone() -> None:
    (style,) = re.findall("<style>(.*?)</style>", render(FULL), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = HEADERS["Content-Security-Policy"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


# What comes from outside

NASTY = (
    *("<script>alert(1)</script>", "</style><img src=x onerror=alert(1)>", "\" onload='x' x=\""),
    *("</title></svg>", "-->", "]]>", "<!--", "&lt;&#60;&amp", "\x00\x1b[31m", "\u202eevil"),
    *("\ud800", "\r\n\t", "\u2028", "'`${7*7}{{7*7}}", "<bdi>", "x" * 3000),
)
texts = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_categories=()), max_size=40),
)
seconds = st.one_of(st.integers(-(1 << 62), 1 << 62), st.integers(NOW - 40 * 86400, NOW + 86400))
counts = st.integers(0, 1 << 62)
statuses = st.builds(
    Status,
    now=seconds,
    running=st.floats(0, 1e12),
    alias=texts,
    network=texts,
    version=texts,
    uris=st.lists(texts, max_size=2),
    announced=st.booleans(),
    problems=st.lists(texts, max_size=2),
    connections=counts,
    peers=counts,
    backups=counts,
    bytes=counts,
    max_bytes=counts,
    disk_free=st.none() | counts,
    source=st.none() | st.builds(ShownSource, texts, texts, st.none() | counts, counts, counts),
    activity=st.lists(st.builds(Sample, seconds, counts, counts), max_size=5).map(
        lambda points: sorted(points, key=lambda point: point.at)
    ),
    refusals=st.lists(
        st.builds(ShownRefusal, texts, texts, counts, st.floats(0, 1e12)), max_size=2
    ),
    alarms=st.lists(
        st.builds(ShownAlarm, counts, texts, texts, texts, seconds, seconds, counts), max_size=2
    ),
    standing=st.integers(2, 5),
)


def tamed(value: Any) -> Any:
    """The same with harmless texts of the same lengths."""
    if isinstance(value, str):
        return "x" * len(value)
    if isinstance(value, list):
        return [tamed(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: tamed(getattr(value, f.name)) for f in fields(value)})
    return value


@quick
@given(statuses)
def test_no_text_gets_out_of_its_place(status: Status) -> None:
    document = render(status)
    document.encode()  # whatever was in it
    found = Page(document)
    codes = ("svg", "path", "title")  # of a text that is too long there is no QR code
    harmless = page(tamed(status)).skeleton
    assert [each for each in found.skeleton if each[0] not in codes] == [
        each for each in harmless if each[0] not in codes
    ]
    for text in (
        *status.problems,
        *(refusal.reason for refusal in status.refusals),
        *(alarm.text for alarm in status.alarms),
        *status.uris,
    ):
        assert plain(text[:LONGEST_TEXT]) in found.text


def test_a_text_cannot_turn_those_around_it() -> None:
    for mark in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u061c\u200e\u200f":
        assert mark not in render(replace(WELL, alias=f"a{mark}b", problems=(f"c{mark}d",)))


def test_an_attribute_is_escaped() -> None:
    assert element("p", "<", title="\"'<&") == '<p title="&quot;&#x27;&lt;&amp;">&lt;</p>'


def test_a_long_text_is_cut() -> None:
    text = page(replace(WELL, problems=("x" * 10_000,))).text
    assert "x" * LONGEST_TEXT + "…" in text
    assert "x" * (LONGEST_TEXT + 1) not in text


def test_what_is_too_long_for_a_code_is_shown_as_text() -> None:
    found = page(replace(WELL, uris=("x" * 3000,), activity=()))
    assert found.count("svg") == 0
    assert "x" * LONGEST_TEXT in found.text


# The pictures


def drawn(kind: str, picture: str) -> int:
    return picture.count(f'class="{kind}"')


def numbers(name: str, kind: str, picture: str) -> list[float]:
    return [float(n) for n in re.findall(rf'class="{kind}"[^>]* {name}="([-\d.]+)"', picture)]


def test_a_time_in_which_the_daemon_was_down_is_a_gap() -> None:
    whole = points(24)
    holed = [point for point in whole if not 5 * HOUR < NOW - point.at < 9 * HOUR]
    assert (drawn("line", chart(DAY, whole, NOW)), drawn("gap", chart(DAY, whole, NOW))) == (1, 0)
    picture = chart(DAY, holed, NOW)
    assert (drawn("line", picture), drawn("gap", picture)) == (2, 1)
    # Four hours of the day.
    assert numbers("width", "gap", picture) == pytest.approx([4 / 24 * 288], abs=1)
    assert "Shaded: nothing was noted" in picture


def test_a_short_stop_is_no_gap() -> None:
    # Started anew just before the end of a period.
    late = [
        Sample(point.at + (599 if point.at > NOW - 5 * HOUR else 0), 1, 1) for point in points(9)
    ]
    assert drawn("gap", chart(DAY, late, NOW + 599)) == 0


def test_since_the_last_sample_there_is_a_gap_too() -> None:
    assert drawn("gap", chart(DAY, points(20), NOW + 2 * HOUR)) == 1
    assert drawn("gap", chart(MONTH, points(20), NOW + 5 * 86400)) == 1


def test_a_gap_that_began_before_the_picture_is_shown() -> None:
    before = Sample(NOW - 40 * HOUR, 1, 1)
    (width,) = numbers("width", "gap", chart(DAY, [before, *points(12)], NOW))
    assert width == pytest.approx(288 / 2, abs=6)
    assert drawn("gap", chart(DAY, points(12), NOW)) == 0


def test_a_sample_alone_between_two_gaps_is_a_dot() -> None:
    alone = [*points(2), Sample(NOW - 10 * HOUR, 500, 0), Sample(NOW - 20 * HOUR, 500, 0)]
    picture = chart(DAY, sorted(alone, key=lambda point: point.at), NOW)
    assert picture.count('h0"') == 2


@pytest.mark.parametrize("span", [DAY, MONTH])
def test_the_bars_are_all_the_updates(span: Any) -> None:
    picture = chart(span, points(31 * 24), NOW)
    shown = sum(int(n) for n in re.findall(r": (\d+) updates?</title>", picture))
    (said,) = re.findall(r"([\d,]+) updates\.</p>", picture)
    assert shown == int(said.replace(",", ""))
    assert shown in range(span.bars * span.bar // 600 - span.bar // 600, 31 * 144)


def test_what_was_noted_by_a_clock_that_was_ahead_is_not_shown() -> None:
    ahead = [Sample(NOW + HOUR, 1 << 40, 10**9), Sample(NOW + 9**9, 1 << 40, 10**9)]
    assert chart(DAY, [*points(5), *ahead], NOW) == chart(DAY, points(5), NOW)


def test_a_month_takes_little_room() -> None:
    assert len(chart(MONTH, points(31 * 24), NOW)) < 30_000


@quick
@given(statuses)
def test_nothing_is_drawn_outside_the_picture(status: Status) -> None:
    for span in (DAY, MONTH):
        picture = chart(span, status.activity, NOW)
        for kind in ("bar", "gap"):
            assert all(w > 0 for w in numbers("width", kind, picture))
            assert all(h > 0 for h in numbers("height", kind, picture))
            lefts, widths = numbers("x", kind, picture), numbers("width", kind, picture)
            assert all(x >= 56 and x + w <= 345 for x, w in zip(lefts, widths, strict=True))


def test_the_axes_end_at_round_numbers() -> None:
    assert bytes_axis(0) == (1 << 10, "1 KiB")
    assert bytes_axis(1025) == (2 << 10, "2 KiB")
    assert bytes_axis(501 << 20) == (1 << 30, "1 GiB")
    assert [counts_axis(n) for n in (0, 1, 3, 11, 2001)] == [
        (1, "1"),
        (1, "1"),
        (5, "5"),
        (20, "20"),
        (5000, "5,000"),
    ]


# A running daemon


KEY = key_pair(0x41)


@contextlib.asynccontextmanager
async def started(data_dir: Path, *settings: str) -> AsyncIterator[Daemon]:
    """A daemon in this process."""

    def configuration() -> Loaded:
        return load(data_dir, None, {}, (*LOOPBACK, "store.min_free_space=0", *settings))

    async with running(configuration, data_dir, {}, ServiceManager({})) as daemon:
        yield daemon


async def page_of(daemon: Daemon) -> str:
    """What the daemon's listener hands out at /."""
    return (await daemon.monitor.pages()["/"]("")).body.decode()


async def handed_in(daemon: Daemon, blob: bytes, key: KeyPair = KEY) -> str:
    """A peer stores; why that is refused, "" where it is not."""
    address = NodeAddress(daemon.key.node_id, *daemon.server.addresses[0])
    async with await Client.connect(address, key) as client:
        await client.init(Network.REGTEST)
        await client.store(blob)
        try:
            await client.confirm()
        except StorageRefusedError as error:
            return str(error)
    return ""


async def test_the_page_of_a_daemon_says_how_things_are(data_dir: Path) -> None:
    async with started(data_dir, 'alias="Ours"', 'listen.announce=["node.example:9737"]') as daemon:
        assert not await handed_in(daemon, b"x" * 2048)
        document = await page_of(daemon)
        text = Page(document).text
        (uri,) = daemon.uris
        for shown in ("Ours", "regtest", __version__, uri, "2.0 KiB", "All is well"):
            assert shown in text


async def test_the_page_of_a_daemon_says_who_was_refused(data_dir: Path) -> None:
    async with started(data_dir, "store.min_free_space=1000TiB") as daemon:
        reason = await handed_in(daemon, b"x")
        assert reason
        reader, writer = await asyncio.open_connection(*daemon.server.addresses[0])
        writer.write(bytes(50))
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        text = Page(await page_of(daemon)).text
        assert text.index("its handshake was wrong") < text.index(KEY.node_id.hex())
        (noted,) = [each for each in daemon.server.refusals.newest() if len(each.who) == 66]
        assert noted.reason in reason
        assert noted.reason in text


async def test_the_page_of_a_daemon_shows_alarms_the_newest_first(data_dir: Path) -> None:
    slot = Slot(KEY.node_id, BackupKind.PEER_STORAGE)
    async with started(data_dir) as daemon:
        for number in range(SHOWN_ALARMS + 2):
            text = f"this is {number}"
            of = slot._replace(node_id=key_pair(number + 1).node_id)
            await daemon.store.run(raise_alarm("damaged", text, of, None))
        text = Page(await page_of(daemon)).text
        assert f"{SHOWN_ALARMS + 2} alarms stand" in text
        assert text.index(f"this is {SHOWN_ALARMS + 1}") < text.index(f"this is {SHOWN_ALARMS}")
        assert "this is 1," not in text
        assert "2 more: peerstore alarms list" in text


async def test_a_daemon_counts_what_it_takes_for_the_picture(data_dir: Path) -> None:
    async with started(data_dir) as daemon:
        for _ in range(3):
            assert not await handed_in(daemon, b"x")
        await daemon.activity.note()
        noted = await daemon.store.reader.activity(0, 1 << 60)
        assert sum(sample.updates for sample in noted) == 3
        assert noted[-1].bytes == 1


async def test_a_daemon_notes_by_itself(data_dir: Path) -> None:
    async with started(data_dir) as daemon:
        noted = daemon.store.reader.activity
        while not await noted(0, 1 << 60):
            await daemon.store.save_visits()  # whatever else the writer does


async def test_a_database_that_cannot_be_read_is_a_problem_and_not_the_end(data_dir: Path) -> None:
    async with started(data_dir) as daemon:
        await daemon.monitor.reader.close()
        assert "Not well:the store is closed" in Page(await page_of(daemon)).text


async def test_a_routing_node_that_cannot_be_asked_is_a_problem(data_dir: Path) -> None:
    async with started(data_dir, "channels.source=cln", "channels.cln.socket=none") as daemon:
        text = Page(await page_of(daemon)).text
        assert "Not well:the routing node can't be trusted" in text
        assert "Routing node (cln)" in text


async def test_a_store_that_is_nearly_full_is_a_problem(data_dir: Path) -> None:
    async with started(data_dir, "store.max_bytes=512KiB") as daemon:
        for number in range(8):
            assert not await handed_in(daemon, b"x" * 65531, key_pair(number + 1))
        assert "raise store.max_bytes" in Page(await page_of(daemon)).text


# A real browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if browser_is_missing():
        pytest.skip("Debian's chromium and chromium-driver are not installed")
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@contextlib.asynccontextmanager
async def served(*statuses: Status) -> AsyncIterator[list[str]]:
    """Addresses of pages, served as the daemon serves its own."""

    async def show(request: web.Request) -> web.Response:
        status = statuses[int(request.match_info["number"])]
        return web.Response(text=render(status), content_type="text/html", headers=HEADERS)

    application = web.Application()
    application.router.add_get("/{number}", show)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield [f"http://{host}:{port}/{number}" for number in range(len(statuses))]
    finally:
        await runner.cleanup()


async def test_a_browser_shows_the_page_of_a_daemon(browser: Browser, data_dir: Path) -> None:
    async with started(data_dir, 'alias="Ours"', "metrics.listen=127.0.0.1:0") as daemon:
        assert not await handed_in(daemon, b"x" * 2048)
        assert daemon.status_page is not None
        await asyncio.to_thread(browser.open, "about:blank")
        await asyncio.to_thread(browser.requests)
        await asyncio.to_thread(browser.complaints)
        await asyncio.to_thread(browser.open, daemon.status_page)
        shown = await asyncio.to_thread(browser.run, "return document.body.innerText")
        assert await asyncio.to_thread(browser.complaints) == []
        assert set(await asyncio.to_thread(browser.requests)) == {daemon.status_page}
    for text in ("Ours", "All is well", daemon.key.node_id.hex(), "2.0 KiB"):
        assert text in shown


async def test_the_page_of_a_daemon_comes_with_its_policy_and_under_no_name(data_dir: Path) -> None:
    async with started(data_dir, "metrics.listen=127.0.0.1:0") as daemon:
        assert daemon.status_page is not None
        async with ClientSession() as session:
            async with session.get(daemon.status_page) as page:
                assert page.status == 200
                assert page.content_type == "text/html"
                assert page.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
            async with session.get(daemon.status_page, headers={"Host": "evil.example"}) as page:
                assert page.status == 403


def hostile(status: Status) -> Status:
    """The same with the worst texts."""
    worst = "<script>document.title='taken'</script><img src=http://192.0.2.1/x>" + "W" * 300
    parts = {
        "alias": worst,
        "problems": (worst,),
        "uris": (worst,),
        "refusals": tuple(replace(each, who=worst, reason=worst) for each in status.refusals),
        "alarms": tuple(replace(each, kind=worst, text=worst) for each in status.alarms),
    }
    return replace(status, **parts)  # type: ignore[arg-type]


CONTRASTS = """
const bright = colour => {
  const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(part => {
    const value = part / 255;
    return value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
  });
  return .2126 * parts[0] + .7152 * parts[1] + .0722 * parts[2];
};
const clear = colour => colour === 'transparent' || /, 0\\)$/.test(colour);
const ground = element => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (!clear(colour)) return colour;
  }
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (element.tagName === 'title') continue;
  const style = getComputedStyle(element);
  const pair = [element instanceof SVGElement ? style.fill : style.color, ground(element)];
  const [low, high] = pair.map(bright).sort((a, b) => a - b);
  found.push([walker.currentNode.data, (high + .05) / (low + .05)]);
}
return found;
"""
"""Each text of the document with its contrast."""


@pytest.mark.parametrize("dark", [False, True])
async def test_a_browser_shows_it_on_any_screen_and_asks_for_nothing_else(
    browser: Browser, dark: bool
) -> None:
    def look(url: str, width: int) -> None:
        browser.show_as(width, 800, dark=dark)
        browser.requests()
        browser.open(url)
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), width
        assert browser.run("return innerWidth") == width
        assert browser.complaints() == []
        assert set(browser.requests()) == {url}

    async with served(*STATES.values(), hostile(FULL)) as urls:
        for url in urls:
            for width in (320, 360, 1280):
                await asyncio.to_thread(look, url, width)


async def test_a_browser_sees_no_contrast_that_is_too_low(browser: Browser) -> None:
    """Of every text to what is behind it at least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    async with served(FULL) as urls:
        for dark in (False, True):
            await asyncio.to_thread(browser.show_as, 1280, 800, dark=dark)
            await asyncio.to_thread(browser.open, urls[0])
            found = await asyncio.to_thread(browser.run, CONTRASTS)
            assert len(found) > 50
            assert {text: ratio for text, ratio in found if ratio < 4.5} == {}


def codes_in(picture: Path) -> list[str]:
    """What the QR codes in a picture say."""
    command = ["zbarimg", "--quiet", "--raw", str(picture)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


async def test_a_phone_can_read_the_codes(browser: Browser, tmp_path: Path) -> None:
    if shutil.which("zbarimg") is None:
        pytest.skip("Debian's zbar-tools are not installed")
    async with served(WELL) as urls:
        for dark in (False, True):
            await asyncio.to_thread(browser.show_as, 360, 800, dark=dark, scale=2)
            await asyncio.to_thread(browser.open, urls[0])
            picture = tmp_path / "page.png"
            picture.write_bytes(await asyncio.to_thread(browser.screenshot))
            read = await asyncio.to_thread(codes_in, picture)
            assert sorted(read) == sorted([URI, ONION])
