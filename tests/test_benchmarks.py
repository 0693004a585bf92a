"""The benchmarks: what they make of what they measure, and that each of them runs.

No figure is looked at here. With `--long` everything is measured, in tiny; else one of them is.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import NodeAddress
from tests.benchmarks.__main__ import MEASUREMENTS, asked, main
from tests.benchmarks.bench import Bench, Sizes
from tests.benchmarks.lag import SETTLING, TICK, Sample, waits, without_steal
from tests.benchmarks.load import Task
from tests.benchmarks.picture import picture
from tests.benchmarks.report import HEADS, Figure, Of, Row, Target, Unit, cells, document, table
from tests.benchmarks.rig import load
from tests.daemon import HANG

TINY = (
    *("--seconds", "0.05", "--blobs", "57", "--connections", "2", "--stored", "200", "400"),
    *("--idle", "10", "--rest", "0.1", "--gossip", "100000", "--disk", "10000"),
)

RATE = Row(
    what="updates <&>",
    ours=Figure(3000.0, Unit.PER_SECOND),
    bare=Figure(5000.0, Unit.PER_SECOND, "SQLite"),
    cln=120.0,
    targets=(Target(0.6, Of.BARE), Target(20, Of.CLN), Target(15_000)),
    beside=(Figure(0.0123, Unit.SECONDS, "p50"),),
)
COST = Row(
    what="CPU of a retrieval",
    ours=Figure(0.0008, Unit.SECONDS),
    bare=Figure(0.0004, Unit.SECONDS, "its parts"),
    cln=0.0097,
    targets=(Target(1.6, Of.BARE), Target(2, Of.CLN), Target(0.02)),
)


def test_of_a_rate_more_is_better_and_of_a_cost_less() -> None:
    assert [RATE.met(target) for target in RATE.targets] == [True, True, False]
    assert [COST.met(target) for target in COST.targets] == [False, True, True]


def test_a_row_says_what_is_met_and_what_is_missed() -> None:
    assert cells(RATE) == (
        "updates <&>",
        "3,000/s, 12.3 ms p50",
        "5,000/s SQLite",
        "0.60",
        "120/s: 25.0 times",
        "at least 0.6 of bare: met; at least 20 times CLN: met; at least 15,000/s: MISSED",
    )
    assert cells(COST)[4:] == (
        "9.7 ms: 12.1 times",
        "at most 1.6 of bare: MISSED; at least 2 times CLN: met; at most 20.0 ms: met",
    )


def test_the_table_is_markdown_with_columns_below_one_another() -> None:
    lines = list(table(HEADS, map(cells, (RATE, COST))))
    assert len(lines) == 4
    places = [[at for at, char in enumerate(line) if char == "|"] for line in lines]
    assert len(places[0]) == len(HEADS) + 1
    assert all(each == places[0] for each in places)


def test_a_row_without_anything_beside_it_is_valid_json() -> None:
    alone = document(Row(what="memory", ours=Figure(819.0, Unit.BYTES)))
    assert (alone["bare"], alone["ratio"], alone["times_cln"]) == (None, None, None)
    nothing = document(replace(COST, bare=Figure(0.0, Unit.SECONDS)))
    assert json.loads(json.dumps(nothing, allow_nan=False))["ratio"] is None


def test_the_picture_has_a_longer_bar_for_what_is_better() -> None:
    better = replace(COST, ours=Figure(0.0005, Unit.SECONDS), targets=(Target(1.6, Of.BARE),))
    alone = Row(what="alone", ours=Figure(1.0, Unit.SECONDS))
    svg = ElementTree.fromstring(picture([RATE, COST, better, alone]))  # noqa: S314 - our own
    bars = [each for each in svg.findall(".//{*}rect") if each.get("class") != "page"]
    assert [each.get("class") for each in bars] == ["missed", "missed", "met"]
    rate, cost, less = (float(each.get("width") or 0) for each in bars)
    assert cost < rate < less
    assert len([each for each in svg.findall(".//{*}line") if each.get("class") == "mark"]) == 3
    texts = [each.text for each in svg.findall(".//{*}text")]
    assert RATE.what in texts
    assert {"60%", "50%", "80%"} <= set(texts)
    assert alone.what not in texts


def test_whatever_comes_while_the_loop_is_late_waits() -> None:
    stall = Sample(at=1.0, late=2.5 * TICK, stolen=0.0)
    assert waits([stall, Sample(1.0 + TICK, 0.0, 0.0)]) == pytest.approx(
        [0.0, 0.5 * TICK, 1.5 * TICK, 2.5 * TICK]
    )


def test_a_sample_while_time_was_stolen_is_left_out() -> None:
    times = [number * SETTLING / 2 for number in range(10)]
    stolen = [0.0] * 5 + [0.01] * 5
    samples = [Sample(*each) for each in zip(times, [0.0] * 10, stolen, strict=True)]
    # It shows in the sixth, and may have been stolen in the two before, or in part.
    assert [times.index(sample.at) for sample in without_steal(samples)] == [1, 2, 6, 7, 8, 9]


def test_each_of_them_runs(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    names = list(MEASUREMENTS) if request.config.getoption("--long", default=False) else ["updates"]
    written, drawn = tmp_path / "figures.json", tmp_path / "picture.svg"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "tests.benchmarks", *names, *TINY, "--dir", str(tmp_path)),
            *("--json", str(written), "--picture", str(drawn)),
        ],
        capture_output=True,
        text=True,
        timeout=2 * HANG,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    items = json.loads(written.read_text())["items"]
    assert sorted({item["measurement"] for item in items}) == sorted(names)
    assert all(item["what"] in run.stdout for item in items)
    assert ElementTree.parse(drawn).getroot().tag.endswith("svg")  # noqa: S314 - our own
    assert {each.name for each in tmp_path.iterdir()} == {written.name, drawn.name}


def test_one_that_fails_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Bench) -> Iterator[Row]:
        yield COST
        raise SystemExit("the load did not come up")

    monkeypatch.setitem(MEASUREMENTS, "idle", broken)
    monkeypatch.setitem(MEASUREMENTS, "lag", lambda _: iter([RATE]))
    with pytest.raises(SystemExit, match="could not be measured: idle"):
        main(["idle", "lag"])
    said = capsys.readouterr()
    assert COST.what in said.out
    assert RATE.what in said.out
    assert "idle: SystemExit: the load did not come up" in said.err


@pytest.mark.parametrize("kind", ["updates", "handshakes"])
def test_a_load_without_a_server_is_no_figure(kind: str) -> None:
    with socket.socket() as bound:  # but nobody listens
        bound.bind(("127.0.0.1", 0))
        address = NodeAddress(KeyPair.generate().node_id, *bound.getsockname())
        with pytest.raises(SystemExit, match=r"the load .*: its error stands above"):
            load([Task(kind, str(address), 1, 57, 0.05)])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("update", "nothing is called update: expected some of updates, bursts"),
        ("--blobs 57 65532", "blobs: expected 8 to 65531 bytes"),
        ("--stored 100", "stored: expected at least 128 peers"),
        ("--seconds 0", "seconds: expected more than 0"),
        ("--json /nowhere/figures.json", "can't write to the directory /nowhere"),
        ("--dir /nowhere", "can't write to the directory /nowhere"),
    ],
)
def test_what_can_not_be_measured_is_a_usage_error(
    line: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        asked(line.split())
    assert error.value.code == 2
    assert complaint in capsys.readouterr().err


def test_without_options_everything_is_measured() -> None:
    options, sizes = asked([])
    assert options.names == []
    assert sizes == Sizes()
