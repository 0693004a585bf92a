"""What a daemon says of a database that does not answer, or can't be read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from peerstore import monitor
from peerstore.health import UNTRUSTED_SECONDS
from peerstore.metrics import Figures, Metrics
from peerstore.pages import Handler, Page
from peerstore.tally import Tally
from peerstore.types import BackupKind
from tests.helpers import quick
from tests.test_status_page import started


async def test_a_database_that_does_not_answer_is_said_to(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang() -> int:
        await asyncio.Event().wait()
        raise AssertionError

    async with started(data_dir) as daemon:
        pages = daemon.monitor.pages()
        assert (await pages["/readyz"]("")).status == 200
        monkeypatch.setattr(monitor, "READ_SECONDS", 0.01)
        monkeypatch.setattr(monitor, "FRESH_SECONDS", 0.0)
        monkeypatch.setattr(daemon.monitor.reader, "free_space", hang)
        ready = await pages["/readyz"]("")
        assert (await pages["/livez"]("")).status == 200
        assert (await daemon.info())["problems"] == [ready.body.decode().rstrip("\n")]
        # The others say what they can.
        metrics, page = await pages["/metrics"](""), await pages["/"]("")
    assert ready.status == 503
    assert b"\npeerstore_ready 0.0\n" in metrics.body
    assert b"the database does not answer" in page.body
    assert ready.body == b"the database does not answer: look at the disk\n"


async def test_what_can_not_be_read_is_left_out_of_the_metrics(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(data_dir) as daemon:
        monkeypatch.setattr(monitor, "FRESH_SECONDS", 0.0)
        pages = daemon.monitor.pages()
        before = (await pages["/metrics"]("")).body
        await daemon.monitor.reader.close()
        after = (await pages["/metrics"]("")).body
    assert b"\npeerstore_backups{" in before
    assert b"\npeerstore_backups{" not in after
    assert b"\npeerstore_ready 1.0\n" in before
    assert b"\npeerstore_ready 0.0\n" in after
    assert b"\npeerstore_connections{" in after


async def test_however_many_ask_it_is_read_once(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(data_dir) as daemon:
        reads = 0
        kinds = daemon.monitor.reader.kinds

        async def counted() -> dict[BackupKind, tuple[int, int]]:
            nonlocal reads
            reads += 1
            return await kinds()

        monkeypatch.setattr(daemon.monitor.reader, "kinds", counted)
        pages = daemon.monitor.pages()
        given_up = asyncio.create_task(_page(pages["/metrics"]))
        others = [asyncio.create_task(_page(pages["/metrics"])) for _ in range(50)]
        await asyncio.sleep(0)
        given_up.cancel()
        answers = await asyncio.gather(*others)
        assert reads == 1
        assert {answer.status for answer in answers} == {200}
        monkeypatch.setattr(monitor, "FRESH_SECONDS", 0.0)
        await pages["/metrics"]("")
        assert reads > 1


async def test_a_source_that_is_not_trusted_for_long_is_not_ready(data_dir: Path) -> None:
    async with started(data_dir, "channels.source=cln", "channels.cln.socket=none") as daemon:
        assert daemon.watch is not None
        pages = daemon.monitor.pages()
        assert (await pages["/readyz"]("")).status == 200
        daemon.watch._untrusted_since -= UNTRUSTED_SECONDS + 1
        ready = await pages["/readyz"]("")
    assert ready.status == 503
    assert b"the routing node can't be trusted" in ready.body


@quick
@given(st.text(st.characters(codec="latin-1"), max_size=60))
@example("application/openmetrics-text; version=abc")
@example("application/openmetrics-text;version=1.0.0;escaping=")
def test_metrics_are_told_whatever_is_accepted(accept: str) -> None:
    body, content_type = Metrics(Tally()).page(FIGURES, accept)
    assert b"peerstore_ready" in body
    assert content_type.startswith(("text/plain", "application/openmetrics-text"))


FIGURES = Figures(
    version="1",
    network="regtest",
    node_id="02",
    ready=True,
    writable=True,
    connections={},
    stored=None,
    max_bytes=1,
    max_peers=1,
    disk_free=None,
    min_free_space=1,
    source=None,
)


async def _page(handler: Handler) -> Page:
    return await handler("")
