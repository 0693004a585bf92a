"""A real peer's transport that none of us wrote: Electrum's, from Debian's python3-electrum."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.daemon import HANG, Daemon, environment

PYTHON = "/usr/bin/python3"
SCRIPT = Path(__file__).parent / "electrum_peer.py"

INIT, PEER_STORAGE_RETRIEVAL, PONG = 16, 9, 19


@cache
def electrum_is_missing() -> bool:
    """Whether the system's Python has no Electrum."""
    try:
        found = subprocess.run([PYTHON, "-c", "import electrum"], capture_output=True, check=False)
    except FileNotFoundError:
        return True
    return found.returncode != 0


def electrum(daemon: Daemon, home: Path) -> subprocess.CompletedProcess[str]:
    """Run Electrum as a peer of the daemon."""
    variables = environment(home)
    # The system's Python must find its own packages, not ours.
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        variables.pop(name, None)
    return subprocess.run(
        [PYTHON, str(SCRIPT), daemon.document["uris"][0]],
        env=variables,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


def test_electrum_stores_with_the_daemon_and_gets_its_backup_back(
    daemon: Daemon, tmp_path: Path
) -> None:
    if electrum_is_missing():
        pytest.skip(f"{PYTHON} can't import electrum: apt-get install python3-electrum")
    done = electrum(daemon, tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)

    assert report["features"] == [1, 9, 13, 15, 23, 43, 45]
    assert report["refused_by"]["its own wallet, gossip_queries optional"] is None
    assert report["refused_by"]["the wallet of 4.8.1"] is None

    first, second, third = report["connections"]
    assert first["received"] == [[INIT, 1], [PONG, 1]]
    # Keys rotate after 500 messages: 1200 pings and pongs and more go each way.
    assert second["received"] == [[INIT, 1], [PEER_STORAGE_RETRIEVAL, 1], [PONG, 1201]]
    assert second["sent"] == 1203
    assert third["received"] == [[INIT, 1], [PEER_STORAGE_RETRIEVAL, 1], [PONG, 1]]
    retrieved = {"type": PEER_STORAGE_RETRIEVAL, "equal": True, "size": 65531}
    assert report["given_back"] == [retrieved, retrieved]
