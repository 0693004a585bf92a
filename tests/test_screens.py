"""What commands look like on terminals of 80 and of 40 columns, and where there is none.

The screens are kept in tests/screens; `WRITE_SCREENS=1 pytest tests/test_screens.py` writes them
anew, to be read before they are committed. Ids, ages and sizes are the same every time: the town's
keys are fixed and its past is given its age. What is not, directory, version and free space, is
left out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from peerstore.cli.output import MEASURED
from tests.benchmarks import scale
from tests.daemon import HANG, LOOPBACK, Daemon, command_line, environment, run_command
from tests.test_cli_peers import A, B, C, D, settle

SCREENS = Path(__file__).parent / "screens"

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")

# What a terminal of whoever runs the tests would say to the commands.
_OWN = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "COLORTERM", "TTY_COMPATIBLE")

COMMANDS = {
    "help": "--help",
    "info": "info",
    "peers": "peers list",
    "peer_shrunk": f"peers show {A}",
    "peer_with_channels": f"peers show {B[:8]}",
    "peer_refused": f"peers show {C[:8]}",
    "backups": "backups list",
    "history": f"backups history {A}",
    "channels": "channels list",
    "alarms": "alarms list",
    "prune": "prune --dry-run",
    "config": "config show",
}


class Seen(NamedTuple):
    """What a command left on a terminal, escapes and all, and its exit code."""

    code: int
    raw: str

    @property
    def lines(self) -> list[str]:
        return ESCAPE.sub("", self.raw).replace("\r\n", "\n").splitlines()


def on_terminal(
    data_dir: Path, line: str, columns: int, extra: Mapping[str, str] | None = None
) -> Seen:
    """Run a command whose stdin, stdout and stderr are a terminal of so many columns."""
    own = environment(data_dir.parent, {"TERM": "xterm-256color"})
    variables = {name: value for name, value in own.items() if name not in _OWN} | dict(extra or {})
    control, terminal = pty.openpty()
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen(
            [*command_line(data_dir, LOOPBACK), *line.split()],
            env=variables,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
    finally:
        os.close(terminal)
    written = bytearray()
    try:
        while data := os.read(control, 1 << 16):
            written += data
    except OSError as error:
        if error.errno != errno.EIO:  # what Linux says at the end
            raise
    finally:
        os.close(control)
    return Seen(process.wait(HANG), written.decode())


def steady(text: str) -> str:
    """A screen without what differs from one run to the next."""
    text = re.sub(r"^(Directory +).*\n(?: .*\n)*", r"\1...\n", text, flags=re.MULTILINE)
    return re.sub(r"^(Version +).*, schema \d+", r"\1..., schema ...", text, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """The town of test_cli_peers, its daemon stopped."""
    return settle(tmp_path_factory.mktemp("town"))


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_screen_is_as_it_was_kept(town: Daemon, name: str, columns: int) -> None:
    seen = on_terminal(town.data_dir, COMMANDS[name], columns)
    screen = steady("".join(f"{line.rstrip()}\n" for line in seen.lines))
    file = SCREENS / f"{name}.{columns}.txt"
    if os.environ.get("WRITE_SCREENS"):
        file.write_text(screen)
    assert screen == file.read_text()
    assert seen.code == 0
    assert max(map(len, seen.lines)) <= columns


def test_every_kept_screen_is_looked_at() -> None:
    kept = {path.name for path in SCREENS.iterdir()}
    assert kept == {f"{name}.{columns}.txt" for name in COMMANDS for columns in (80, 40)}


@pytest.mark.parametrize(
    ("line", "columns"), [("peers list", 1), (f"peers show {B}", 12), ("info", 7)]
)
def test_a_terminal_that_is_too_small_is_no_disaster(town: Daemon, line: str, columns: int) -> None:
    seen = on_terminal(town.data_dir, line, columns)
    assert seen.code == 0
    assert "Error" not in seen.raw


def test_a_terminal_that_does_not_say_its_size_is_taken_for_one_of_80(town: Daemon) -> None:
    assert (SCREENS / "peers.80.txt").read_text() == "".join(
        f"{line.rstrip()}\n" for line in on_terminal(town.data_dir, "peers list", 0).lines
    )


@pytest.mark.parametrize("line", ["peers list", f"peers show {A}"])
def test_a_terminal_without_colours_gets_none(town: Daemon, line: str) -> None:
    assert not COLOUR.search(on_terminal(town.data_dir, line, 80, {"NO_COLOR": "1"}).raw)
    assert "\x1b" not in on_terminal(town.data_dir, line, 80, {"TERM": "dumb"}).raw


def test_a_backup_is_not_written_to_a_terminal(town: Daemon) -> None:
    seen = on_terminal(town.data_dir, f"backups export {A}", 80)
    assert seen.code == 2
    assert "name a file with -o" in " ".join(seen.lines)


# Through a pipe


@pytest.mark.parametrize(("line", "whole"), [("peers list", {A, B, C, D}), ("channels list", {B})])
def test_through_a_pipe_ids_are_whole_and_lines_are_not_folded(
    town: Daemon, line: str, whole: set[str]
) -> None:
    result = town.command(*line.split())
    header, *lines = result.stdout.splitlines()
    assert {text.split()[0] for text in lines} == whole
    assert header.startswith("NODE ID")
    assert "\x1b" not in result.stdout
    assert "…" not in result.stdout


# Long lists

MANY = MEASURED + 500


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with more peers than a table is measured for."""
    data_dir = tmp_path_factory.mktemp("many") / "data"
    assert run_command(data_dir, "init").code == 0
    scale.fill(data_dir / "peerstore.db", MANY)
    return data_dir


@pytest.mark.parametrize("line", ["backups list", "peers list"])
def test_the_columns_of_a_long_list_stand_where_those_of_its_header_do(
    many: Path, line: str
) -> None:
    header, *lines = run_command(many, *line.split()).stdout.splitlines()
    assert len(lines) == MANY
    assert len({text.split()[0] for text in lines}) == MANY
    ends = {text.index("100 B") + len("100 B") for text in lines}
    assert ends == {header.index("SIZE") + len("SIZE")}


def test_a_long_list_is_one_document(many: Path) -> None:
    result = run_command(many, "--json", "peers", "list", "--limit", str(MANY - 1))
    document: Any = result.document
    assert len(document["items"]) == MANY - 1


@pytest.mark.parametrize("columns", [80, 40])
def test_a_long_list_fits_the_terminal_too(many: Path, columns: int) -> None:
    seen = on_terminal(many, "peers list", columns)
    assert len(seen.lines) == MANY + 1
    assert max(map(len, seen.lines)) <= columns


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["table", "json"])
def test_a_reader_that_has_seen_enough_is_no_disaster(many: Path, options: tuple[str, ...]) -> None:
    """As `head -1` does: more is written than a pipe holds."""
    with subprocess.Popen(
        [*command_line(many, LOOPBACK), *options, "peers", "list"],
        env=environment(many.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(HANG) == 1


# No home


def test_without_a_home_a_command_says_where_it_looked(tmp_path: Path) -> None:
    own = {name: value for name, value in environment(tmp_path).items() if name != "HOME"}
    result = subprocess.run(
        [*command_line(tmp_path, ())[:3], "info"],
        env=own,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: there is no database at /")
