"""What is published holds all that the program needs, by whichever way it is built."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.daemon import HANG
from tests.test_project import ROOT


def build(source: Path, target: str, directory: Path) -> Path:
    """Build a wheel or an sdist, without a network; returns the file."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", directory],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=HANG,
    )
    (built,) = directory.iterdir()
    return built


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a checkout builds it."""
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_and_what_it_reads(wheel: Path) -> None:
    names = {name for name in content(wheel) if name.startswith("peerstore/")}
    migrations = [f"migrations/{path.name}" for path in (ROOT / "migrations").glob("*.sql")]
    beside = ["config.example.toml", "README.md", *migrations]
    kept = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "peerstore").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == kept | {f"peerstore/{name}" for name in beside}


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    # Its README has a command for the tests; they and what they need are in it.
    assert {path.name for path in source.iterdir()} >= {"tests", "requirements.lock", "LICENSE"}
    assert content(build(source, "wheel", tmp_path / "wheel")) == content(wheel)
