"""Every source of channels, under one suite, against nodes that answer as the real ones do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstore.channels.answers import Gathered, Rows, Zero
from peerstore.channels.base import Answer, NodeChannel
from peerstore.channels.cln import ClnSource, Document
from peerstore.channels.eclair import EclairSource
from peerstore.channels.lnd import LndSource
from peerstore.errors import SourceError
from peerstore.types import Network, NodeId
from tests.fake_nodes import (
    FakeCln,
    FakeEclair,
    FakeHttp,
    FakeLnd,
    FakeNode,
    Fault,
    Kind,
    Row,
    cln_move,
    lnd_event,
    make_certificate,
    row,
)
from tests.helpers import quick

NODES: dict[str, Callable[[Path], FakeNode]] = {
    "cln": FakeCln,
    "lnd": FakeLnd,
    "eclair": FakeEclair,
}


@contextlib.asynccontextmanager
async def running(node: FakeNode) -> AsyncIterator[FakeNode]:
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


@pytest.fixture(params=NODES)
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FakeNode]:
    async with running(NODES[request.param](tmp_path)) as node:
        yield node


@pytest.fixture(params=["lnd", "eclair"])
async def http(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FakeHttp]:
    async with running(NODES[request.param](tmp_path)) as node:
        assert isinstance(node, FakeHttp)
        yield node


@pytest.fixture
async def cln(tmp_path: Path) -> AsyncIterator[FakeCln]:
    node = FakeCln(tmp_path)
    async with running(node):
        yield node


@pytest.fixture
async def lnd(tmp_path: Path) -> AsyncIterator[FakeLnd]:
    node = FakeLnd(tmp_path)
    async with running(node):
        yield node


@pytest.fixture
async def eclair(tmp_path: Path) -> AsyncIterator[FakeEclair]:
    node = FakeEclair(tmp_path)
    async with running(node):
        yield node


def channel(row: Row, *, is_open: bool = True, height: int | None = None) -> NodeChannel:
    return NodeChannel(
        NodeId(bytes.fromhex(row.node_id)), bytes.fromhex(row.channel_id), is_open, height
    )


def by_id(answer: Answer) -> dict[bytes, NodeChannel]:
    found = {channel.channel_id: channel for channel in answer.channels}
    assert len(found) == len(answer.channels)
    return found


async def fails(node: FakeNode, ask: Callable[[], object]) -> str:
    """What a source says when it can't answer: one line that gives nothing away."""
    with pytest.raises(SourceError) as raised:
        await ask()  # type: ignore[misc]
    text = str(raised.value)
    assert text.isprintable()
    assert len(text) < 700
    assert node.secret.lower() not in text.lower()
    return text


# --- what all nodes say --------------------------------------------------------------------------


async def test_a_node_without_channels_has_a_height(node: FakeNode) -> None:
    me = NodeId(bytes.fromhex(node.node_id))
    assert await node.source().ask() == Answer(me, 700, True, ())


async def test_channels_are_open_until_the_closing_transaction_is_mined(node: FakeNode) -> None:
    node.rows = [row(1, 1), row(2, 2, Kind.PENDING), row(3, 3, Kind.CLOSING)]
    answer = await node.source().ask()
    assert set(answer.channels) == {channel(row) for row in node.rows}


async def test_a_closed_channel_has_its_height_where_the_node_says_it(node: FakeNode) -> None:
    node.rows = [row(1, 1, Kind.CLOSED, 650), row(1, 2, Kind.CLOSED), row(2, 3)]
    answer = await node.source().ask()
    height = 650 if node.known_heights else None
    assert set(answer.channels) == {
        channel(node.rows[0], is_open=False, height=height),
        channel(node.rows[1], is_open=False),
        channel(node.rows[2]),
    }


async def test_a_channel_that_is_in_several_lists_is_open(node: FakeNode) -> None:
    node.rows = [row(1, 1, Kind.CLOSED, 650), row(1, 1), row(1, 1, Kind.CLOSING)]
    assert (await node.source().ask()).channels == (channel(node.rows[0]),)


async def test_a_channel_that_is_closed_twice_has_the_height_that_is_known(node: FakeNode) -> None:
    node.rows = [row(1, 1, Kind.CLOSED, 650), row(1, 1, Kind.CLOSED)]
    height = 650 if node.known_heights else None
    expected = channel(node.rows[0], is_open=False, height=height)
    assert (await node.source().ask()).channels == (expected,)


async def test_a_peer_that_opens_again_has_both_channels(node: FakeNode) -> None:
    source = node.source()
    node.rows = [row(1, 1, Kind.CLOSED, 650)]
    assert [channel.open for channel in (await source.ask()).channels] == [False]
    node.rows.append(row(1, 2))
    found = by_id(await source.ask())
    assert found[bytes.fromhex(node.rows[0].channel_id)].open is False
    assert found[bytes.fromhex(node.rows[1].channel_id)].open is True


async def test_two_peers_may_show_one_channel_id(node: FakeNode) -> None:
    node.rows = [row(1, 1), row(2, 1, Kind.PENDING)]
    assert len((await node.source().ask()).channels) == 2


async def test_a_node_that_catches_up_is_not_in_sync(node: FakeNode) -> None:
    node.synced = False
    assert (await node.source().ask()).synced is False
    node.synced = True
    assert (await node.source().ask()).synced is True


async def test_a_height_that_can_t_be_is_no_answer(node: FakeNode) -> None:
    node.height = 0xFFFFFFFF
    assert "can't be used" in await fails(node, node.source().ask)


async def test_a_height_that_goes_backwards_is_reported(node: FakeNode) -> None:
    source = node.source()
    assert (await source.ask()).height == 700
    node.height = 698
    assert (await source.ask()).height == 698


@pytest.mark.parametrize("after", range(7))
@pytest.mark.parametrize(
    ("before", "then"),
    [(Kind.PENDING, Kind.OPEN), (Kind.OPEN, Kind.CLOSING), (Kind.CLOSING, Kind.CLOSED)],
)
async def test_a_channel_that_moves_from_list_to_list_meanwhile_is_not_lost(
    node: FakeNode, before: Kind, then: Kind, after: int
) -> None:
    node.rows = [row(1, 1, before)]
    node.then = (after, [row(1, 1, then)])
    (found,) = (await node.source().ask()).channels
    assert found.channel_id.hex() == node.rows[0].channel_id
    assert found.open or then is Kind.CLOSED


async def test_a_great_many_channels(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """With `--long` a hundred thousand."""
    tenth = 10_000 if request.config.getoption("--long") else 2_500
    monkeypatch.setattr("peerstore.channels.eclair._PAGE", 2 * tenth)
    node.rows = [row(number, number) for number in range(6 * tenth)]
    node.rows += [row(number, number, Kind.CLOSED, 9) for number in range(6 * tenth, 10 * tenth)]
    found = by_id(await node.source().ask())
    assert len(found) == 10 * tenth
    assert sum(channel.open for channel in found.values()) == 6 * tenth
    if node.known_heights:
        assert sum(channel.closed_height == 9 for channel in found.values()) == 4 * tenth


async def test_an_answer_after_closing(node: FakeNode) -> None:
    source = node.source()
    await source.close()
    assert (await source.ask()).height == 700
    await source.close()


# --- changes -------------------------------------------------------------------------------------


async def test_changed_returns_on_a_change(node: FakeNode) -> None:
    source = node.source()
    await source.ask()
    for count in range(1, 3):
        waiting = asyncio.create_task(source.changed())
        await node.wait_subscribed(count if isinstance(node, FakeCln) else 1)
        assert not waiting.done()
        await node.change()
        await waiting
    await source.close()


async def test_a_change_between_two_calls_is_not_missed(node: FakeNode) -> None:
    source = node.source()
    await source.ask()
    waiting = asyncio.create_task(source.changed())
    await node.wait_subscribed()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await node.change()
    await source.changed()
    await source.close()


async def test_changed_fails_when_the_node_stops_and_works_again(node: FakeNode) -> None:
    source = node.source()
    await source.ask()
    waiting = asyncio.create_task(source.changed())
    await node.wait_subscribed()
    await node.stop()
    assert await fails(node, lambda: waiting)
    assert await fails(node, source.changed)
    await node.start()
    subscribers = node.subscribers
    waiting = asyncio.create_task(source.changed())
    await node.wait_subscribed(subscribers + 1)
    await node.change()
    await waiting
    await source.close()


async def test_closing_ends_the_listening(node: FakeNode) -> None:
    source = node.source()
    waiting = asyncio.create_task(source.changed())
    if not isinstance(node, FakeCln):
        await node.wait_subscribed()
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await source.close()
    await source.close()


async def test_changed_with_wrong_credentials(http: FakeHttp) -> None:
    source = http.source()
    http.secret = "another"  # noqa: S105 - of a fake
    assert "does not let peerstore in" in await fails(http, source.changed)
    await source.close()


async def test_an_event_that_is_nonsense(http: FakeHttp) -> None:
    source = http.source()
    await http.events.put(b"nonsense\n")
    assert "not JSON" in await fails(http, source.changed)
    await source.close()


# --- faults --------------------------------------------------------------------------------------


SAYS = {
    Fault.CUT: "hung up",
    Fault.SILENT: "did not answer",
    Fault.NONSENSE: "not JSON",
    Fault.ENDLESS: "more than 100000 bytes",
    Fault.EMPTY: "missing required field",
    Fault.TYPES: "got `array`",
    Fault.DEEP: "",
}


@pytest.mark.parametrize("fault", Fault)
async def test_a_fault_is_one_line_and_passes(node: FakeNode, fault: Fault) -> None:
    node.rows = [row(1, 1)]
    seconds = 0.05 if fault is Fault.SILENT else 30
    size = 100_000 if fault is Fault.ENDLESS else 1 << 28
    source = node.source(seconds=seconds, max_answer=size)
    node.fault = fault
    assert SAYS[fault] in await fails(node, source.ask)
    node.fault = None
    # What was slow once need not be fast enough for so little patience now.
    source = node.source() if fault is Fault.SILENT else source
    assert (await source.ask()).channels == (channel(node.rows[0]),)


ODD: list[object] = [None, 7, "x", [], {}, [7], [{}], {"channels": 7}, {"channels": [{}]}]


@pytest.mark.parametrize("odd", ODD, ids=repr)
async def test_a_list_of_another_shape(node: FakeNode, odd: object) -> None:
    node.rows = [row(1, 1)]
    source = node.source()
    for name in node.lists:
        if odd == [] and isinstance(node, FakeEclair):
            continue  # no channels
        node.answers = {name: {"result": odd} if isinstance(node, FakeCln) else odd}
        if odd is None and isinstance(node, FakeHttp):
            node.answers = {name: "null"}
        assert name in await fails(node, source.ask)
    node.answers = {}
    assert (await source.ask()).channels == (channel(node.rows[0]),)


@pytest.mark.parametrize("node_id", ["", "02", "04" + "11" * 32, "zz" * 33, "02" * 34])
async def test_a_peer_without_a_node_id(node: FakeNode, node_id: str) -> None:
    node.rows = [row(1, 1), Row(node_id, "11" * 32, 0)]
    assert "no node id" in await fails(node, node.source().ask)


async def test_a_node_without_a_node_id_of_its_own(node: FakeNode) -> None:
    node.node_id = "02" * 34
    assert "no node id" in await fails(node, node.source().ask)


async def test_a_channel_without_a_channel_id(node: FakeNode) -> None:
    source = node.source()
    for txid, index in (("11" * 31, 0), ("11" * 32, 65536 + 256)):
        odd = Row("02" + "11" * 32, txid, index)
        node.rows = [row(1, 1), odd]
        if isinstance(node, FakeLnd):
            assert "no funding output" in await fails(node, source.ask)
    if isinstance(node, FakeCln):
        node.rows = []
        node.parts.present = [{"peer_id": "02" + "11" * 32, "state": "X", "channel_id": "11"}]
        assert "no channel id" in await fails(node, source.ask)
    if isinstance(node, FakeEclair):
        node.rows = []
        node.states = [{"nodeId": "02" + "11" * 32, "state": "X", "channelId": "zz" * 32}]
        assert "no channel id" in await fails(node, source.ask)


async def test_a_node_of_another_network(node: FakeNode) -> None:
    source = node.source()
    node.network = "signet"
    text = await fails(node, source.ask)
    assert "signet" in text
    assert "regtest" in text
    node.network = "regtest"
    await source.ask()


@pytest.mark.parametrize("network", Network)
async def test_every_network_has_its_name(node: FakeNode, network: Network) -> None:
    is_main = network is Network.BITCOIN and isinstance(node, FakeLnd)
    node.network = "mainnet" if is_main else network.value
    assert (await node.source(network).ask()).height == 700


async def test_a_node_that_is_not_running(node: FakeNode) -> None:
    source = node.source()
    await node.stop()
    assert " running" in await fails(node, source.ask)
    await node.start()
    assert (await source.ask()).height == 700


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "does not let peerstore in"),
        (403, "does not let peerstore in"),
        (404, "does not know"),
        (500, "HTTP 500"),
        (503, "HTTP 503"),
        (304, "HTTP 304"),
    ],
)
async def test_an_http_status(http: FakeHttp, status: int, says: str) -> None:
    source = http.source()
    http.status = status
    assert says in await fails(http, source.ask)
    http.status = 0
    await source.ask()


async def test_an_error_that_repeats_the_credentials(http: FakeHttp) -> None:
    http.status, http.echo = 500, True
    assert "HTTP 500" in await fails(http, http.source().ask)


async def test_another_content_type(http: FakeHttp) -> None:
    source = http.source()
    http.content_type = "text/html"
    assert "text/html" in await fails(http, source.ask)
    http.content_type = "application/json"
    await source.ask()


async def test_credentials_that_the_node_refuses(http: FakeHttp) -> None:
    source = http.source()
    secret, http.secret = http.secret, "another"
    text = await fails(http, source.ask)
    assert "does not let peerstore in" in text
    assert secret not in text
    http.secret = secret
    await source.ask()


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1", "https://", "ftp://a:1", "127.0.0.1:8080", "https://a:x", "https://[::"],
)
async def test_a_url_that_is_none(lnd: FakeLnd, url: str) -> None:
    source = LndSource(url, lnd.tls_cert, lnd.macaroon, Network.REGTEST)
    assert "https, then ://" in await fails(lnd, source.ask)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "[::", "127.0.0.1:x"])
async def test_a_url_with_a_password(eclair: FakeEclair, host: str) -> None:
    url = f"http://me:{eclair.secret}@{host}"
    source = EclairSource(url, eclair.password_file, Network.REGTEST)
    assert "leave it out" in await fails(eclair, source.ask)


def credentials(node: FakeHttp) -> list[Path]:
    if isinstance(node, FakeLnd):
        return [node.macaroon, node.tls_cert]
    assert isinstance(node, FakeEclair)
    return [node.password_file]


async def test_credentials_that_are_missing_empty_or_unreadable(http: FakeHttp) -> None:
    source = http.source()
    for path in credentials(http):
        data = path.read_bytes()
        path.unlink()
        assert f"{path} is not there" in await fails(http, source.ask)
        path.write_bytes(b"\n")
        assert f"{path} is empty" in await fails(http, source.ask)
        path.unlink()
        path.mkdir()  # what not even root can read as a file
        assert f"{path} can't be read" in await fails(http, source.ask)
        path.rmdir()
        os.mkfifo(path)  # nobody writes to it
        assert f"{path} is no file" in await fails(http, source.ask)
        path.unlink()
        path.write_bytes(data)
        await source.ask()


async def test_a_file_that_holds_no_certificate(lnd: FakeLnd) -> None:
    source = lnd.source()
    begin, end = "-----BEGIN CERTIFICATE-----\n", "\n-----END CERTIFICATE-----\n"
    for text in ("nonsense", begin, f"{begin}nonsense{end}", f"{begin}AAAA{end}"):
        lnd.tls_cert.write_text(text)
        assert f"{lnd.tls_cert} holds no certificate" in await fails(lnd, source.ask)


@pytest.mark.parametrize("password", [b"\xff\xfe", b"two\nlines\n"])
async def test_a_file_that_holds_no_password(eclair: FakeEclair, password: bytes) -> None:
    eclair.password_file.write_bytes(password)
    assert "holds no password" in await fails(eclair, eclair.source().ask)


async def test_a_change_of_credentials_is_followed(http: FakeHttp) -> None:
    source = http.source()
    await source.ask()
    if isinstance(http, FakeLnd):
        http.macaroon.write_bytes(b"\x02anew")
        http.secret = b"\x02anew".hex()
    if isinstance(http, FakeEclair):
        http.password_file.write_text("anew")
        http.secret = "anew"  # noqa: S105 - of a fake
    await source.ask()


# --- Core Lightning alone ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "is_open"),
    [
        ("CHANNELD_SHUTTING_DOWN", True),
        ("AWAITING_UNILATERAL", True),
        ("FUNDING_SPEND_SEEN", True),
        ("DUALOPEND_OPEN_COMMITTED", True),
        ("A_STATE_OF_TOMORROW", True),
        ("ONCHAIN", False),
        ("CLOSED", False),
    ],
)
async def test_a_state_of_lightningd(cln: FakeCln, state: str, is_open: bool) -> None:
    one = row(1, 1)
    cln.parts.present = [
        {"peer_id": one.node_id, "channel_id": one.channel_id, "state": state},
    ]
    cln.parts.moves = [cln_move(one.channel_id, 109)]
    expected = channel(one, is_open=is_open, height=None if is_open else 109)
    assert (await cln.source().ask()).channels == (expected,)


@pytest.mark.parametrize("warning", ["warning_bitcoind_sync", "warning_lightningd_sync"])
async def test_a_warning_of_lightningd_is_no_height_to_trust(cln: FakeCln, warning: str) -> None:
    source = cln.source()
    assert (await source.ask()).synced
    cln.answers = {"getinfo": {"result": {**cln.information(), warning: "Still loading."}}}
    assert not (await source.ask()).synced


async def test_what_is_only_negotiated_is_no_channel_of_lightningd(cln: FakeCln) -> None:
    one = row(1, 1)
    cln.parts.present = [
        {"peer_id": one.node_id, "state": "OPENINGD"},
        {"peer_id": one.node_id, "state": "DUALOPEND_OPEN_INIT", "channel_id": one.channel_id},
    ]
    assert (await cln.source().ask()).channels == ()


async def test_a_closed_channel_without_its_peer_is_left_out(cln: FakeCln) -> None:
    cln.parts.forgotten = [{"channel_id": "11" * 32}]
    assert (await cln.source().ask()).channels == ()


async def test_a_splice_is_no_closing(cln: FakeCln) -> None:
    one, two = row(1, 1), row(2, 2)
    cln.rows = [row(1, 1, Kind.CLOSED), row(2, 2, Kind.CLOSED)]
    cln.parts.moves = [
        cln_move(one.channel_id, 300, extra=("splice",)),
        cln_move(one.channel_id, 300, tag="channel_open", extra=("splice",)),
        cln_move(two.channel_id, 300, extra=("splice",)),
        cln_move(two.channel_id, 300, tag="channel_open", extra=("splice",)),
        cln_move(two.channel_id, 400),
    ]
    expected = {channel(one, is_open=False), channel(two, is_open=False, height=400)}
    assert set((await cln.source().ask()).channels) == expected
    cln.without = {"listchainmoves"}
    assert set((await cln.source().ask()).channels) == expected


async def test_closing_heights_without_listchainmoves(cln: FakeCln) -> None:
    cln.rows = [row(1, 1, Kind.CLOSED, 650)]
    cln.without = {"listchainmoves"}
    source = cln.source()
    (closed,) = (await source.ask()).channels
    assert closed.closed_height == 650
    cln.without |= {"bkpr-listaccountevents"}
    (closed,) = (await source.ask()).channels
    assert closed.closed_height is None
    cln.without = set()
    (closed,) = (await source.ask()).channels
    assert closed.closed_height == 650


async def test_only_new_moves_are_asked_for(cln: FakeCln, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peerstore.channels.cln._MOVES_AT_ONCE", 3)
    cln.rows = [row(number, number, Kind.CLOSED, 100 + number) for number in range(10)]
    source = cln.source()
    found = by_id(await source.ask())
    assert sorted(c.closed_height or 0 for c in found.values()) == list(range(100, 110))
    cln.questions.clear()
    cln.rows.append(row(10, 10, Kind.CLOSED, 110))
    assert len([c for c in (await source.ask()).channels if c.closed_height]) == 11
    starts = [q["params"]["start"] for q in cln.questions if q["method"] == "listchainmoves"]
    assert starts == [11]


async def test_another_database_of_lightningd_is_read_anew(cln: FakeCln) -> None:
    source = cln.source()
    cln.rows = [row(1, 1, Kind.CLOSED, 101), row(2, 2, Kind.CLOSED, 102)]
    await source.ask()
    cln.rows = [row(3, 3, Kind.CLOSED), row(2, 2, Kind.CLOSED, 202), row(1, 1, Kind.CLOSED, 201)]
    heights = {c.node_id[-1]: c.closed_height for c in (await source.ask()).channels}
    assert heights == {1: 201, 2: 202, 3: None}
    cln.rows = [row(1, 1, Kind.CLOSED)]
    assert [c.closed_height for c in (await source.ask()).channels] == [None]


async def test_moves_out_of_order(cln: FakeCln) -> None:
    moves = [{"created_index": index} | cln_move("11" * 32, 5) for index in (2, 1)]
    cln.answers = {"listchainmoves": {"result": {"chainmoves": moves}}}
    assert "out of order" in await fails(cln, cln.source().ask)


async def test_an_error_of_lightningd(cln: FakeCln) -> None:
    refusal = {"error": {"code": -32602, "message": "no\nsuch\x1b[31m luck"}}
    source = cln.source()
    for method in (*cln.lists, "getinfo"):
        cln.answers = {method: refusal}
        assert f"refused {method} (-32602)" in await fails(cln, source.ask)
    cln.answers = {"bkpr-listaccountevents": refusal}
    cln.without = {"listchainmoves"}
    assert "refused bkpr-listaccountevents" in await fails(cln, source.ask)
    cln.answers = {"waitblockheight": refusal}
    assert "refused waitblockheight" in await fails(cln, source.changed)
    cln.answers, cln.without = {}, {"listpeerchannels"}
    assert "23.05 or newer" in await fails(cln, source.ask)


async def test_an_answer_to_another_question(cln: FakeCln) -> None:
    source = cln.source()
    cln.wrong_id = True
    assert "answered another question" in await fails(cln, source.ask)
    cln.wrong_id = False
    await source.ask()


async def test_neither_result_nor_error(cln: FakeCln) -> None:
    cln.answers = {"getinfo": {}}
    assert "neither result nor error" in await fails(cln, cln.source().ask)


async def test_a_wait_that_ends_by_itself_goes_on(cln: FakeCln) -> None:
    source = cln.source()
    await source.ask()
    cln.times_out = 2
    waiting = asyncio.create_task(source.changed())
    await cln.wait_subscribed(3)
    assert not waiting.done()
    await cln.change()
    await waiting


async def test_answers_of_lightningd_in_pieces_of_one_byte(cln: FakeCln) -> None:
    cln.piece = 1
    cln.rows = [row(1, 1), row(2, 2, Kind.CLOSED, 650)]
    answer = await cln.source().ask()
    assert set(answer.channels) == {
        channel(cln.rows[0]),
        channel(cln.rows[1], is_open=False, height=650),
    }


async def test_a_path_that_is_too_long_for_a_socket(cln: FakeCln) -> None:
    source = ClnSource(cln.directory / ("x" * 200), Network.REGTEST)
    assert "shorter link" in await fails(cln, source.ask)


async def test_a_file_that_is_no_socket(cln: FakeCln) -> None:
    file = cln.directory / "file"
    file.touch()
    for path in (file, file.parent):
        source = ClnSource(path, Network.REGTEST)
        assert f"{path} is no socket" in await fails(cln, source.ask)


async def test_pages_of_moves_without_end(cln: FakeCln, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peerstore.channels.cln._MOVES_AT_ONCE", 2)
    move = cln_move("00" * 32, 5) | {"created_index": 1}
    cln.answers = {"listchainmoves": {"result": {"chainmoves": [move, move]}}}
    assert "out of order" in await fails(cln, cln.source().ask)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@quick
@given(value=JSON, indent=st.sampled_from([None, 1]), cuts=st.lists(st.integers(0, 500)))
def test_the_end_of_a_document_is_found_whatever_its_pieces(
    value: object, indent: int | None, cuts: list[int]
) -> None:
    data = json.dumps({"result": value}, ensure_ascii=False, indent=indent).encode()
    for bounds in (sorted({0, *(cut for cut in cuts if cut < len(data))}), range(len(data))):
        document = Document()
        assert document.feed(b"\n\n") is False
        ends = [*bounds[1:], len(data)]
        whole = [document.feed(data[a:b]) for a, b in zip(bounds, ends, strict=True)]
        assert whole == [False] * (len(whole) - 1) + [True]
        assert document.data == data


Zeros = list[Zero]


class Channels(msgspec.Struct):
    channels: Zeros


FRAMES: dict[int, tuple[str, str, type[Any]]] = {
    1: ("", "", Zeros),
    2: ('{"channels": ', "}", Channels),
}


@quick
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), max_size=3),
    depth=st.sampled_from([1, 2]),
    indent=st.sampled_from([None, 1]),
    cuts=st.lists(st.integers(0, 500)),
)
def test_a_list_is_read_row_by_row_whatever_its_pieces(
    rows: list[dict[str, object]], depth: int, indent: int | None, cuts: list[int]
) -> None:
    before, behind, frame = FRAMES[depth]
    data = f"{before}{json.dumps(rows, ensure_ascii=False, indent=indent)}{behind}".encode()
    expected = json.loads(json.dumps(rows))
    for bounds in (sorted({0, *(cut for cut in cuts if cut < len(data))}), range(len(data))):
        found: Rows[dict[str, Any]] = Rows(dict[str, Any], depth, "it", "/x")
        for begin, end in zip(bounds, [*bounds[1:], len(data)], strict=True):
            found.feed(data[begin:end])
        assert found.end(frame) == expected
    for end in range(len(data)):
        found = Rows(dict[str, Any], depth, "it", "/x")
        found.feed(data[:end])
        with pytest.raises(SourceError):
            found.end(frame)


@quick
@given(junk=st.binary(), depth=st.sampled_from([1, 2]), size=st.integers(1, 64))
def test_what_is_no_list_is_refused(junk: bytes, depth: int, size: int) -> None:
    found: Rows[dict[str, Any]] = Rows(dict[str, Any], depth, "it", "/x")

    def read() -> None:
        for begin in range(0, len(junk), size):
            found.feed(junk[begin : begin + size])
        found.end(FRAMES[depth][2])

    if junk.strip() == b"[]":
        return
    with pytest.raises(SourceError) as raised:
        read()
    assert str(raised.value).isprintable()


async def test_a_list_may_be_longer_than_anything_else(http: FakeHttp) -> None:
    """What a node sends in all has no bound but the number of its channels."""
    http.rows = [row(number % 9, number) for number in range(2000)]
    http.padding = "x" * 200
    assert len((await http.source(max_answer=4096).ask()).channels) == 2000


async def test_a_redirect_is_not_followed(http: FakeHttp) -> None:
    http.redirect = "http://127.0.0.1:9/stolen"
    for ask in (http.source().ask, http.source().changed):
        assert "redirects to another address" in await fails(http, ask)


@pytest.mark.parametrize("host", ["a..b:80", "..:80", f"{'x' * 64}.b:80"])
async def test_a_host_that_can_t_be(eclair: FakeEclair, host: str) -> None:
    source = EclairSource(f"http://{host}", eclair.password_file, Network.REGTEST)
    assert "no such host" in await fails(eclair, source.ask)


# --- lnd alone -----------------------------------------------------------------------------------


async def test_every_list_of_pending_channels_counts_as_open(lnd: FakeLnd) -> None:
    rows = [row(number, number) for number in range(4)]
    names = ("open", "closing", "force_closing")
    lists = [f"pending_{name}_channels" for name in names] + ["waiting_close_channels"]
    lnd.answers = {
        "/v1/channels/pending": {
            name: [{"channel": lnd._pending(one)}] for name, one in zip(lists, rows, strict=True)
        }
    }
    assert set((await lnd.source().ask()).channels) == {channel(one) for one in rows}


async def test_another_certificate_than_that_of_the_file(lnd: FakeLnd) -> None:
    source = lnd.source()
    mine = lnd.tls_cert.read_bytes()
    lnd.tls_cert.write_bytes(make_certificate().certificate)
    text = await fails(lnd, source.ask)
    assert "does not show the expected certificate" in text
    assert str(lnd.tls_cert) in text
    assert not lnd.asked  # the macaroon did not go out
    lnd.tls_cert.write_bytes(mine)
    await source.ask()


async def test_the_first_certificate_of_the_file_counts(lnd: FakeLnd) -> None:
    mine, other = lnd.tls_cert.read_bytes(), make_certificate().certificate
    lnd.tls_cert.write_bytes(mine + other)
    await lnd.source().ask()
    lnd.tls_cert.write_bytes(other + mine)
    assert "expected certificate" in await fails(lnd, lnd.source().ask)


async def test_a_certificate_that_has_expired(lnd: FakeLnd) -> None:
    source = lnd.source()
    await lnd.stop()
    make_certificate(days=-1).write(lnd.directory)
    await lnd.start()
    assert "has expired" in await fails(lnd, source.ask)
    await lnd.stop()
    make_certificate().write(lnd.directory)
    await lnd.start()
    await source.ask()


async def test_a_port_without_tls(lnd: FakeLnd, tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = FakeEclair(tmp_path_factory.mktemp("plain"))
    async with running(plain):
        url = f"https://127.0.0.1:{plain.port}"
        source = LndSource(url, lnd.tls_cert, lnd.macaroon, Network.REGTEST)
        assert "TLS" in await fails(lnd, source.ask)


async def test_a_host_that_the_certificate_does_not_name(lnd: FakeLnd) -> None:
    make_certificate(names=False).write(lnd.directory)
    await lnd.stop()
    await lnd.start()
    assert (await lnd.source().ask()).height == 700


async def test_what_the_certificate_of_the_file_has_signed(lnd: FakeLnd) -> None:
    authority = make_certificate()
    await lnd.stop()
    make_certificate(authority=authority).write(lnd.directory)
    await lnd.start()
    lnd.tls_cert.write_bytes(authority.certificate)
    assert "expected certificate" in await fails(lnd, lnd.source().ask)
    assert not lnd.asked


async def test_events_in_pieces(lnd: FakeLnd) -> None:
    source = lnd.source()
    waiting = asyncio.create_task(source.changed())
    await lnd.events.put(b'{"result":{"ty')
    await lnd.wait_subscribed()
    assert not waiting.done()
    await lnd.events.put(b'pe":"CLOSED_CHANNEL"}}\n{"result":{"type":"OF_TOMORROW"}}\n')
    await waiting
    await source.close()


async def test_events_that_don_t_matter(http: FakeHttp) -> None:
    source = http.source()
    if isinstance(http, FakeLnd):
        kinds = ("ACTIVE_CHANNEL", "INACTIVE_CHANNEL", "CHANNEL_UPDATE")
        lines = [json.dumps(lnd_event(kind)) for kind in kinds]
        await http.events.put("\n".join([*lines, "nonsense\n"]).encode())
    else:
        await http.events.put({"type": "payment-relayed", "amountIn": 100000021})
        await http.events.put(b"nonsense")
    assert "not JSON" in await fails(http, source.changed)
    await source.close()


async def test_an_error_in_the_stream_of_events(lnd: FakeLnd) -> None:
    source = lnd.source()
    await lnd.events.put({"error": {"code": 2, "message": "channel event store shutting down"}})
    assert "shutting down" in await fails(lnd, source.changed)
    await source.close()


async def test_a_subscription_is_renewed(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peerstore.channels.lnd._RENEWAL_SECONDS", 0.01)
    source = lnd.source()
    await source.changed()
    await source.changed()
    await source.close()


@pytest.mark.parametrize(
    ("point", "channel_id"),
    [
        # source: ACINQ/eclair, PackageSpec.scala, "compute long channel id"
        ("ff" * 32 + ":0", "ff" * 32),
        ("ff" * 32 + ":1", "ff" * 31 + "fe"),
        ("0000" + "ff" * 30 + ":2", "ff" * 30 + "0002"),
        ("f000" + "ff" * 30 + ":3840", "ff" * 30 + "0ff0"),
    ],
)
def test_the_channel_id_of_a_funding_output(point: str, channel_id: str) -> None:
    gathered = Gathered("lnd")
    gathered.add_point("02" + "11" * 32, point, is_open=True)
    assert [c.channel_id.hex() for c in gathered.channels()] == [channel_id]


# --- eclair alone --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "is_open"),
    [
        ("OFFLINE", True),
        ("SYNCING", True),
        ("NEGOTIATING_SIMPLE", True),
        ("WAIT_FOR_DUAL_FUNDING_SIGNED", True),
        ("A_STATE_OF_TOMORROW", True),
        ("CLOSED", False),
        ("WAIT_FOR_OPEN_CHANNEL", None),
        ("WAIT_FOR_DUAL_FUNDING_CREATED", None),
    ],
)
async def test_a_state_of_eclair(eclair: FakeEclair, state: str, is_open: bool | None) -> None:
    one = row(1, 1)
    eclair.states = [eclair._channel(one, state)]
    expected = () if is_open is None else (channel(one, is_open=is_open),)
    assert (await eclair.source().ask()).channels == expected


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7])
async def test_every_page_of_closed_channels_is_read(
    eclair: FakeEclair, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("peerstore.channels.eclair._PAGE", 2)
    eclair.rows = [row(number, number, Kind.CLOSED) for number in range(count)]
    assert len((await eclair.source().ask()).channels) == count


async def test_pages_without_end(eclair: FakeEclair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peerstore.channels.eclair._PAGE", 2)
    eclair.rows = [row(number, number, Kind.CLOSED) for number in range(5)]
    eclair.ignores_skip = True
    assert "without end" in await fails(eclair, eclair.source().ask)


async def test_closed_channels_as_they_looked_before(eclair: FakeEclair) -> None:
    eclair.old_rows = True
    eclair.rows = [row(1, 1, Kind.CLOSED)]
    expected = channel(eclair.rows[0], is_open=False)
    assert (await eclair.source().ask()).channels == (expected,)


async def test_a_chain_that_nobody_knows(eclair: FakeEclair) -> None:
    info = {"nodeId": eclair.node_id, "blockHeight": 7, "chainHash": "00" * 32}
    eclair.answers = {"/getinfo": info}
    assert "00" * 32 in await fails(eclair, eclair.source().ask)


# --- what is imported ----------------------------------------------------------------------------


def test_core_lightning_needs_no_http() -> None:
    code = "import sys, peerstore.channels.cln; sys.exit('aiohttp' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
