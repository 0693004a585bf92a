"""Writing lines: to pipes, files and terminals that take them, and to those that do not."""

from __future__ import annotations

import errno
import os
import pty
import select
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerstore.lines import MAX_WAITING, LineWriter
from tests.daemon import HANG


def words(count: int) -> str:
    return f"lost {count}"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe's ends, to read from and to write to."""
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        try:
            os.close(end)
        except OSError:  # the test has done it
            assert end == reader


def fill(writer: int) -> int:
    """Write to a pipe until it takes no more; returns how many bytes it holds."""
    os.set_blocking(writer, False)
    size = 0
    try:
        while True:
            size += os.write(writer, b"." * select.PIPE_BUF)
    except BlockingIOError:
        os.set_blocking(writer, True)
        return size


def read(reader: int, size: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < size:
        ready, _, _ = select.select([reader], [], [], HANG)
        assert ready, data
        data += os.read(reader, size - len(data))
    return data


def read_lines(reader: int, end: str) -> list[str]:
    """Every line up to one that is `end`, behind which there are no more."""
    got = [""]
    with open(reader, closefd=False) as text:
        while got[-1] != end:
            got.append(text.readline().rstrip("\n"))
    return got[1:]


def test_a_line_is_there_when_it_was_written(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    out = LineWriter(writer, words)
    out.write("one")
    out.write("zwei ä \udcff")
    assert os.read(reader, 100).decode() == "one\nzwei ä \\udcff\n"


def test_a_reader_that_hangs_is_not_waited_for_and_gets_all_when_it_reads_on(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    out = LineWriter(writer, words)
    size = fill(writer)
    written = [f"line {number}" for number in range(1000)]
    for line in written:
        out.write(line)
    out.finish(0)
    assert read(reader, size) == b"." * size
    assert read_lines(reader, written[-1]) == written
    out.finish(HANG)
    # And it is as before.
    out.write("at once")
    assert os.read(reader, 100) == b"at once\n"


def test_what_is_too_much_for_a_reader_that_hangs_is_counted(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    out = LineWriter(writer, words)
    size = fill(writer)
    written = [f"{number:0999}" for number in range(MAX_WAITING // 1000 + 11)]
    for line in written:
        out.write(line)
    read(reader, size)
    got: list[str] = []
    lost = 0
    with open(reader, closefd=False) as text:
        while len(got) + lost < len(written):
            line = text.readline().rstrip("\n")
            if line.startswith("lost"):
                lost += int(line.removeprefix("lost "))
            else:
                got.append(line)
    # The thread may have taken one out before there were too many.
    assert lost in (10, 11), lost
    assert set(got) < set(written)
    assert got == sorted(got)
    out.finish(HANG)


def test_a_line_longer_than_a_pipe_takes_at_once_comes_whole(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    out = LineWriter(writer, words)
    size = fill(writer)
    read(reader, select.PIPE_BUF)  # it is ready, but not for all of this
    long = "y" * (size + 1)
    out.write(long)
    out.write("after it")
    read(reader, size - select.PIPE_BUF)
    assert read_lines(reader, "after it") == [long, "after it"]
    out.finish(HANG)


def test_a_reader_that_goes_is_no_error_and_the_next_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    out = LineWriter(writer, words)
    os.close(reader)
    out.write("one")
    out.write("two")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    out.write("three")
    out.write("four")
    assert os.read(reader, 100) == b"lost 2\nthree\nfour\n"
    os.close(reader)
    os.close(writer)


def test_a_full_disk_is_no_error_and_a_line_that_was_cut_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    out = LineWriter(descriptor, words)
    out.write("before")
    write, room = os.write, 3

    def full(where: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "full")
        written = write(where, data[:room])
        room -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        out.write("cut off")
        out.write("not at all")
    out.write("after")
    assert path.read_text() == "before\ncut\nlost 2\nafter\n"
    os.close(descriptor)


def test_a_terminal_that_was_stopped_is_not_waited_for() -> None:
    reader, terminal = pty.openpty()
    tty.setraw(terminal)
    out = LineWriter(terminal, words)
    termios.tcflow(terminal, termios.TCOOFF)  # Ctrl-S
    out.write("one")
    out.write("two")
    out.finish(0)
    termios.tcflow(terminal, termios.TCOON)
    assert read_lines(reader, "two") == ["one", "two"]
    out.finish(HANG)
    os.close(reader)
    os.close(terminal)
