"""Fixtures that several modules use, and the rule that CI runs every test."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import settings

from tests.daemon import Daemon

if TYPE_CHECKING:
    from peerstore.store.sqlite import SqliteStore
    from tests.test_store import SqliteBackend

# CI tries the same examples each time: whether a change lands is not left to chance. Elsewhere,
# and with --long, new ones are looked for.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# The level of a daemon; left alone structlog prints every update.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))

# Its asserts are to say as much as those of a test module.
pytest.register_assert_rewrite("tests.store_contract")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What takes long is asked for."""
    parser.addoption("--long", action="store_true", help="run the tests that repeat, at length")


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command that is run in this process sets the log up as it needs it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory that does not exist yet."""
    return tmp_path / "data"


@pytest.fixture
def daemon(data_dir: Path) -> Iterator[Daemon]:
    """A daemon that listens on 127.0.0.1."""
    daemon = Daemon(data_dir)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[SqliteBackend]:
    """A place without a database."""
    from tests.test_store import SqliteBackend  # not before its asserts are rewritten

    backend = SqliteBackend(tmp_path)
    try:
        yield backend
    finally:
        await backend.dispose()


@pytest.fixture
async def store(backend: SqliteBackend) -> SqliteStore:
    """An empty store."""
    return await backend.open()


# A machine without a Debian package or without IPv6 skips a test and says why. CI has them all
# and sets REQUIRE_ALL_TESTS: there a skip is a test that nobody runs.


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # What is marked xfail is reported as skipped too, and is none.
    if not hasattr(report, "wasxfail"):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("REQUIRE_ALL_TESTS"):
        where = report.longrepr
        reason = where[2] if isinstance(where, tuple) else str(where)
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_ALL_TESTS is set, and {report.nodeid} says: {reason}"
