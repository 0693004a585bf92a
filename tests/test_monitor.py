"""What a daemon says of a database that does not answer, or can't be read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from peerstore import monitor
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
        monkeypatch.setattr(daemon.store.reader, "free_space", hang)
        ready = await pages["/readyz"]("")
        assert (await pages["/livez"]("")).status == 200
        assert (await daemon.info())["problems"] == [ready.body.decode().rstrip("\n")]
    assert ready.status == 503
    assert ready.body == b"the database does not answer: look at the disk\n"


async def test_what_can_not_be_read_is_left_out_of_the_metrics(data_dir: Path) -> None:
    async with started(data_dir) as daemon:
        pages = daemon.monitor.pages()
        before = (await pages["/metrics"]("")).body
        await daemon.store.reader.close()
        after = (await pages["/metrics"]("")).body
    assert b"\npeerstore_backups{" in before
    assert b"\npeerstore_backups{" not in after
    assert b"\npeerstore_ready 1.0\n" in before
    assert b"\npeerstore_ready 0.0\n" in after
    assert b"\npeerstore_connections{" in after
