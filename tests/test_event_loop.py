"""Which event loop the daemon takes. That it serves on either is in test_end_to_end."""

from __future__ import annotations

import asyncio
import sys
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from peerstore.errors import ConfigError
from peerstore.event_loop import loop_factory
from tests.daemon import run_command


def module_of(name: str) -> str:
    """Where the loop of a name comes from."""
    with closing(loop_factory(name)()) as loop:
        return type(loop).__module__.partition(".")[0]


def test_each_loop_can_be_asked_for() -> None:
    assert module_of("asyncio") == "asyncio"
    assert module_of("uvloop") == "uvloop"
    assert module_of("auto") == "uvloop"


def test_without_uvloop_auto_is_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert module_of("auto") == "asyncio"
    assert asyncio.run(asyncio.sleep(0, "still works")) == "still works"
    with pytest.raises(ConfigError, match=r"peerstore\[uvloop\]"):
        loop_factory("uvloop")


def test_a_uvloop_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError('built for another Python')")
    result = run_command(
        tmp_path / "data", "run", "--loop", "uvloop", extra={"PYTHONPATH": str(tmp_path)}
    )
    assert result.code == 1
    assert result.output == b""
    assert result.stderr.count("\n") == 1
    assert "built for another Python" in result.stderr
    assert "--loop" in result.stderr


def test_another_loop_is_a_mistake_in_the_command(tmp_path: Path) -> None:
    result = run_command(tmp_path / "data", "run", "--loop", "tokio")
    assert result.code == 2
    assert "uvloop" in result.stderr


def test_a_broken_uvloop_is_left_alone_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uvloop.py").write_text("raise RuntimeError('no io_uring here')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "uvloop", raising=False)
    with capture_logs() as logs:
        assert module_of("auto") == "asyncio"
    assert [(log["event"], log["error"]) for log in logs] == [("no_uvloop", "no io_uring here")]
    with pytest.raises(ConfigError, match="no io_uring here"):
        loop_factory("uvloop")
