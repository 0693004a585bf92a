"""What a daemon under a short real load tells Prometheus, the dashboard and the alerts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from peerstore.client import Client, StorageRefusedError
from peerstore.types import Network
from tests.daemon import LOOPBACK, Daemon, run_command
from tests.helpers import key_pair
from tests.powerloss.shim import Faults, build

ROOT = Path(__file__).parent.parent
CONTRIB = ROOT / "contrib"
SHOWN = (*LOOPBACK, "metrics.listen=127.0.0.1:0")


class Answer(NamedTuple):
    status: int
    text: str
    content_type: str


def listener(daemon: Daemon) -> str:
    """Where `info` says that it is, without the last slash."""
    page: str = daemon.command("info", "--json").document["status_page"]
    return page.removesuffix("/")


def get(url: str, accept: str = "*/*") -> Answer:
    request = Request(url, headers={"Accept": accept})  # noqa: S310
    try:
        with urlopen(request) as answer:  # noqa: S310
            return Answer(answer.status, answer.read().decode(), answer.headers["Content-Type"])
    except HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode(), error.headers["Content-Type"])


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    """Name and labels of each sample to its value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"peerstore_{name}", frozenset(labels.items())]


async def load(daemon: Daemon) -> None:
    """Two peers store, one shrinks after a reconnect, one asks for what it may not, one is none."""
    for number, sizes in ((1, (65531, 65531)), (2, (1000,))):
        async with await Client.connect(daemon.address, key_pair(number)) as client:
            await client.init(Network.REGTEST)
            for fill, size in enumerate(sizes):
                await client.store(bytes([fill]) * size)
                await client.confirm()
            await client.store(bytes([len(sizes) - 1]) * sizes[-1])
            await client.confirm()
    async with await Client.connect(daemon.address, key_pair(2)) as client:
        await client.init(Network.REGTEST)
        assert await client.retrieve() == bytes(1000)
        await client.store(b"empty")
        await client.confirm()
    async with await Client.connect(daemon.address, key_pair(3)) as client:
        await client.init(Network.REGTEST, offered=0)
        await client.store_node_backup(b"not asked for")
        with pytest.raises(StorageRefusedError):
            await client.confirm()
    reader, writer = await asyncio.open_connection(daemon.address.host, daemon.address.port)
    writer.write(bytes([1]) * 50)
    assert await reader.read() == b""
    writer.close()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has had its load, beside a routing node that is not there."""
    data_dir = tmp_path_factory.mktemp("metrics") / "data"
    settings = ("channels.source=cln", "channels.cln.socket=nobody")
    daemon = Daemon(data_dir, (*SHOWN, *settings))
    daemon.start()
    try:
        asyncio.run(load(daemon))
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(scope="module")
def url(loaded: Daemon) -> str:
    return listener(loaded)


@pytest.fixture(scope="module")
def scraped(url: str) -> Samples:
    return samples(get(f"{url}/metrics").text)


def test_what_was_done_is_what_is_counted(scraped: Samples) -> None:
    expected = {
        ("updates_total", "peer_storage", "stored"): 4,
        ("updates_total", "peer_storage", "unchanged"): 2,
        ("updates_total", "peer_storage", "refused"): 0,
        ("updates_total", "node_backup", "refused"): 1,
        ("replays_total", "peer_storage", "sent"): 1,
        ("replays_total", "peer_storage", "failed"): 0,
    }
    for (name, kind, result), count in expected.items():
        assert value(scraped, name, kind=kind, result=result) == count, (name, kind, result)
    assert value(scraped, "updates_refused_total", reason="not_offered") == 1
    assert value(scraped, "handshakes_total", result="done") == 4
    assert value(scraped, "handshakes_total", result="bad") == 1
    assert value(scraped, "connections_refused_total", reason="bad_handshake") == 1
    assert value(scraped, "messages_received_total", type="peer_storage") == 6
    assert value(scraped, "messages_sent_total", type="peer_storage_retrieval") == 1
    assert value(scraped, "messages_sent_total", type="warning") == 1
    assert value(scraped, "commit_updates_sum") == 4  # without those that changed nothing
    assert value(scraped, "commit_seconds_count") == value(scraped, "commit_updates_count") >= 4
    assert value(scraped, "events_total", event="update_refused") == 1


def test_what_is_stored_is_shown_by_kind(scraped: Samples) -> None:
    assert value(scraped, "peers") == 2
    assert value(scraped, "backups", kind="peer_storage") == 2
    assert value(scraped, "backups", kind="channel_backup") == 0
    # The good version stays beside the one that bears the mark of data loss.
    assert value(scraped, "stored_bytes", kind="peer_storage") == 65531 + 1000 + 5
    assert value(scraped, "alarms", kind="shrink") == 1
    assert value(scraped, "alarms", kind="damaged") == 0
    assert value(scraped, "max_bytes") == 10 << 30
    assert value(scraped, "min_free_space_bytes") == 256 << 20
    assert value(scraped, "disk_free_bytes") > 0
    assert value(scraped, "source_trusted") == 0


EXPRESSION = re.compile(r"\b((?:peerstore|process)_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
SUFFIX = re.compile(r"_(bucket|sum|count)$")


def expressions() -> Iterator[tuple[str, str]]:
    """Where each metric is named, and the expression."""
    dashboard = json.loads((CONTRIB / "grafana/peerstore.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["query"]
    alerts = (CONTRIB / "prometheus/alerts.yml").read_text()
    for alert in re.split(r"^ +- alert: ", alerts, flags=re.MULTILINE)[1:]:
        body = alert.split("labels:")[0]
        yield f"alert {alert.split()[0]}", " ".join(body.split("expr:")[1].split())


@pytest.mark.parametrize(
    ("where", "expression"), [pytest.param(*e, id=e[0]) for e in expressions()]
)
def test_dashboard_and_alerts_name_only_what_a_daemon_under_load_tells(
    scraped: Samples, where: str, expression: str
) -> None:
    named = [(name, matchers) for name, matchers in EXPRESSION.findall(expression)]
    assert named or "up{" in expression, where
    for name, matchers in named:
        series = [dict(labels) for known, labels in scraped if known == name]
        assert series, f"{name} is not told"
        for label, operator, wanted in MATCHER.findall(matchers):
            if label in ("instance", "job"):
                continue  # Prometheus adds these
            shown = {each[label] for each in series}
            for one in wanted.split("|") if "~" in operator else [wanted]:
                assert one in shown, f"{name} has no {label}={one}"
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        for label in re.split(r",\s*", labels):
            known = {each for _, pairs in scraped for each, _ in pairs}
            assert label in {*known, "instance"}, label


def test_every_metric_has_its_place_on_the_dashboard(scraped: Samples) -> None:
    shown = {
        SUFFIX.sub("", name)
        for where, expression in expressions()
        for name, _ in EXPRESSION.findall(expression)
    }
    told = {SUFFIX.sub("", name) for name, _ in scraped if name.startswith("peerstore_")}
    left = {
        "peerstore_build_info",
        "peerstore_pruned_backups_total",
        "peerstore_evicted_peers_total",
    }
    assert told - shown == left


def test_the_readme_names_every_metric_and_its_labels(scraped: Samples) -> None:
    heading = "\n## Metrics, health and the status page\n"
    page = (ROOT / "README.md").read_text().split(heading)[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|([^|]*)\|[^|]+\|$", page, re.MULTILINE)
    written = {
        name: set(re.findall(r"`(\w+)`", labels))
        for names, labels in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    told: dict[str, set[str]] = {"source_height_blocks": set()}  # only where one is known
    for name, pairs in scraped:
        if name.startswith("peerstore_"):
            short = SUFFIX.sub("", name.removeprefix("peerstore_"))
            told.setdefault(short, set()).update(label for label, _ in pairs if label != "le")
    assert written == told


def promtool(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("there is no promtool: Debian's package is prometheus")
    return subprocess.run(
        [path, *arguments], input=given, text=True, capture_output=True, check=False
    )


def test_promtool_finds_nothing_wrong_with_the_alerts() -> None:
    done = promtool("check", "rules", "--lint-fatal", str(CONTRIB / "prometheus/alerts.yml"))
    assert done.returncode == 0, done.stderr
    assert "13 rules found" in done.stdout


def test_promtool_finds_nothing_wrong_with_the_metrics(url: str) -> None:
    done = promtool("check", "metrics", given=get(f"{url}/metrics").text)
    assert (done.returncode, done.stderr) == (0, "")


def test_metrics_come_in_the_format_that_is_asked_for(url: str) -> None:
    plain = get(f"{url}/metrics")
    assert plain.content_type.startswith("text/plain; version=")
    openmetrics = get(f"{url}/metrics", "application/openmetrics-text; version=1.0.0")
    assert openmetrics.content_type.startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


def test_the_source_is_not_trusted_for_too_short_to_be_not_ready(loaded: Daemon, url: str) -> None:
    assert get(f"{url}/readyz").status == 200
    problems = loaded.command("info", "--json").document["problems"]
    assert any("the routing node can't be trusted" in problem for problem in problems)


def test_a_disk_below_the_floor_is_not_ready_but_alive(data_dir: Path) -> None:
    daemon = Daemon(data_dir, (*SHOWN, "store.min_free_space=1000TiB"))
    daemon.start()
    url = listener(daemon)
    ready, live = get(f"{url}/readyz"), get(f"{url}/livez")
    found = samples(get(f"{url}/metrics").text)
    daemon.close()
    assert (live.status, live.text) == (200, "ok\n")
    assert ready.status == 503
    assert "free on the disk" in ready.text
    assert value(found, "ready") == 0
    assert value(found, "database_writable") == 1


def test_a_database_that_can_not_be_written_is_not_ready_until_it_can(
    tmp_path: Path, data_dir: Path
) -> None:
    data_dir.mkdir(0o700)
    library = build("faults", tmp_path)
    daemon = Daemon(data_dir, SHOWN)

    async def store(blob: bytes) -> None:
        async with await Client.connect(daemon.address, key_pair(1)) as client:
            await client.init(Network.REGTEST)
            await client.store(blob)
            await client.confirm()

    with contextlib.closing(Faults(library, data_dir, tmp_path / "control")) as faults:
        with faults.preloaded():
            daemon.start()
        url = listener(daemon)
        assert get(f"{url}/readyz").status == 200
        faults.set(write=errno.EIO)
        with pytest.raises(StorageRefusedError):
            asyncio.run(store(b"lost"))
        ready = get(f"{url}/readyz")
        found = samples(get(f"{url}/metrics").text)
        faults.clear()
        asyncio.run(store(b"kept"))
        assert get(f"{url}/readyz").status == 200
        daemon.close()
    assert ready.status == 503
    assert ready.text.startswith("the database can't be written, nothing is stored: disk I/O error")
    assert value(found, "database_writable") == 0
    assert value(found, "updates_refused_total", reason="not_written") == 1


def test_a_port_that_is_taken_ends_the_start_with_one_line(url: str, data_dir: Path) -> None:
    taken = url.removeprefix("http://")
    result = run_command(data_dir, "run", settings=(*LOOPBACK, f"metrics.listen={taken}"))
    assert result.code == 1
    assert result.stderr.splitlines()[-1] == (
        f"Error: {taken} is in use: stop what listens there or change metrics.listen"
    )


def test_without_an_address_nothing_listens(data_dir: Path) -> None:
    daemon = Daemon(data_dir)
    daemon.start()
    assert daemon.command("info", "--json").document["status_page"] is None
    daemon.close()
