"""The data directory: its mode, the node's key, which is never lost, and its lock."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peerstore import datadir
from peerstore.config import Config
from peerstore.config_values import FileName
from peerstore.daemon import open_data_directory
from peerstore.datadir import (
    KEY_NAME,
    LOCK_NAME,
    is_locked,
    key_path,
    load_key,
    load_or_make_key,
    locked,
    make_data_directory,
)
from peerstore.errors import DataDirectoryError, KeyFileError
from peerstore.transport.secp256k1 import KeyPair
from tests.helpers import key_pair

ROOT = Path(__file__).parent.parent

# SEC 2, 2.4.1: the order of secp256k1's group.
ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141

SECRET = bytes((0x11,)) * 32
NODE_ID = key_pair(0x11).node_id

NOBODY = 65534


def mode_of(path: Path) -> int:
    """A file's permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def one_line(error: pytest.ExceptionInfo[Exception], path: Path) -> str:
    """The text of an error that an operator reads: it names the path."""
    line = str(error.value)
    assert line.isprintable(), line
    assert str(path) in line
    return line


def key_file(path: Path, content: str | bytes = SECRET.hex() + "\n", mode: int = 0o600) -> Path:
    """Write a key file."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


@pytest.fixture
def open_umask() -> Iterator[None]:
    """A umask that takes nothing away: a mode is what the program asked for."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def foreign_directory() -> Iterator[Path]:
    """A directory which `unprivileged` reaches; those of root's tests it does not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Be somebody for whom permissions count: root puts its rights aside for the block."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.setresgid(NOBODY, NOBODY, 0)
        os.setresuid(NOBODY, NOBODY, 0)
    except OSError:
        pytest.skip("this root may not put its rights aside, and no permission stops it")
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A script in a process of its own; its stdin and stdout are pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


# The directory


@pytest.mark.usefixtures("open_umask")
def test_the_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "some" / "where" / "data"
    make_data_directory(directory)
    assert mode_of(directory) == 0o700
    (directory / "kept").touch()
    make_data_directory(directory)
    assert mode_of(directory) == 0o700
    assert (directory / "kept").exists()


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(DataDirectoryError) as caught:
            make_data_directory(path)
        assert "--data-dir" in one_line(caught, path)


def test_a_directory_that_cannot_be_made_is_refused(foreign_directory: Path) -> None:
    foreign_directory.chmod(0o555)
    path = foreign_directory / "data"
    with unprivileged(), pytest.raises(DataDirectoryError) as caught:
        make_data_directory(path)
    assert "can't be made" in one_line(caught, path)


def test_a_directory_that_cannot_be_written_is_refused(foreign_directory: Path) -> None:
    foreign_directory.chmod(0o555)
    with unprivileged(), pytest.raises(DataDirectoryError) as caught:
        make_data_directory(foreign_directory)
    assert "can't be written" in one_line(caught, foreign_directory)


def test_a_directory_on_a_read_only_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list(os.statvfs(tmp_path))
    found[8] |= os.ST_RDONLY
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(found))
    with pytest.raises(DataDirectoryError) as caught:
        make_data_directory(tmp_path)
    assert "its file system is read-only" in one_line(caught, tmp_path)


# The key


@pytest.mark.usefixtures("open_umask")
def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / KEY_NAME
    key, new = load_or_make_key(path)
    assert new
    assert mode_of(path) == 0o600
    content = path.read_bytes()
    assert len(bytes.fromhex(content.decode())) == 32
    # Nothing half-made stays beside it.
    assert list(tmp_path.iterdir()) == [path]
    for _ in range(2):
        again, new = load_or_make_key(path)
        assert not new
        assert again.node_id == key.node_id
        assert load_key(path).node_id == key.node_id
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_two_directories_have_two_keys(tmp_path: Path) -> None:
    keys = {load_or_make_key(tmp_path / name)[0].node_id for name in "ab"}
    assert len(keys) == 2


def test_a_missing_key_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_key(tmp_path / KEY_NAME)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        SECRET.hex(),
        SECRET.hex() + "\n",
        SECRET.hex() + "\r\n",
        f"  {SECRET.hex().upper()}\n\n",
    ],
)
def test_a_key_is_64_hexadecimal_digits(tmp_path: Path, content: str) -> None:
    path = key_file(tmp_path / KEY_NAME, content)
    assert load_key(path).node_id == NODE_ID
    key, new = load_or_make_key(path)
    assert (key.node_id, new) == (NODE_ID, False)
    assert path.read_bytes() == content.encode()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\n", id="a blank line"),
        pytest.param(SECRET.hex()[:-1].encode(), id="63 digits"),
        pytest.param(SECRET.hex()[:-2].encode(), id="62 digits"),
        pytest.param(SECRET.hex().encode() + b"0", id="65 digits"),
        pytest.param(SECRET.hex().encode() + b"00", id="66 digits"),
        pytest.param(b"0x" + SECRET.hex().encode(), id="0x"),
        pytest.param(SECRET.hex().encode()[:-1] + b"g", id="no digit"),
        pytest.param(SECRET, id="raw bytes"),
        pytest.param(b"\xff" * 32, id="no text"),
        pytest.param(b"\xef\xbb\xbf" + SECRET.hex().encode(), id="a BOM"),
        pytest.param("\uff11".encode() * 64, id="digits of another script"),
        pytest.param(bytes(32).hex().encode(), id="zero"),
        pytest.param(b"%064x" % ORDER, id="the curve's order"),
        pytest.param(b"ff" * 32, id="above the order"),
        pytest.param(SECRET.hex().encode() + b"\n" + SECRET.hex().encode(), id="two keys"),
        pytest.param(SECRET.hex().encode() * 100, id="long"),
    ],
)
def test_a_malformed_key_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    path = key_file(tmp_path / KEY_NAME, content)
    for load in (load_key, load_or_make_key):
        with pytest.raises(KeyFileError) as caught:
            load(path)
        line = one_line(caught, path)
        assert "put the right file back" in line
        # What stands in it may be most of a secret.
        assert SECRET.hex()[:16] not in line
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o601, 0o777])
def test_a_key_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path / KEY_NAME, mode=mode)
    for load in (load_key, load_or_make_key):
        with pytest.raises(KeyFileError) as caught:
            load(path)
        assert f"chmod 600 {path}" in one_line(caught, path)
    assert mode_of(path) == mode


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_key_that_is_its_owners_alone_is_read(tmp_path: Path, mode: int) -> None:
    assert load_key(key_file(tmp_path / KEY_NAME, mode=mode)).node_id == NODE_ID


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o444])
def test_a_secret_of_a_container_is_guarded_by_who_handed_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setattr(datadir, "SECRETS_DIRECTORY", tmp_path / "secrets")
    (tmp_path / "secrets" / "of it").mkdir(parents=True)
    for name in ("a.key", "of it/b.key"):
        secret = key_file(tmp_path / "secrets" / name, mode=mode)
        config = Config(node_key_file=FileName(str(secret)))
        key, new = open_data_directory(tmp_path / "data", config, {})
        assert (key.node_id, new) == (NODE_ID, False)
    assert mode_of(secret) == mode
    assert list((tmp_path / "data").iterdir()) == []


def test_no_key_is_made_where_it_would_go_with_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datadir, "SECRETS_DIRECTORY", tmp_path)
    with pytest.raises(KeyFileError) as caught:
        load_or_make_key(tmp_path / KEY_NAME)
    assert "node_key_file" in one_line(caught, tmp_path / KEY_NAME)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_the_place_of_the_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / KEY_NAME
    path.mkdir(mode=0o700)
    for load in (load_key, load_or_make_key):
        with pytest.raises(KeyFileError) as caught:
            load(path)
        one_line(caught, path)
    assert path.is_dir()


def test_a_pipe_in_the_place_of_the_key_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / KEY_NAME
    os.mkfifo(path, 0o600)  # nobody writes to it
    for load in (load_key, load_or_make_key):
        with pytest.raises(KeyFileError) as caught:
            load(path)
        assert "it is a pipe or a device, not a file" in one_line(caught, path)


def test_a_device_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / KEY_NAME
    path.symlink_to("/dev/zero")
    with pytest.raises(KeyFileError, match="it is a pipe or a device, not a file"):
        load_key(path, private=False)


def test_a_key_in_a_directory_that_is_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / KEY_NAME, tmp_path / "file" / KEY_NAME):
        with pytest.raises(KeyFileError) as caught:
            load_or_make_key(path)
        one_line(caught, path)


def test_a_link_to_a_key_that_is_missing_is_refused(tmp_path: Path) -> None:
    # A key kept on a disk that is not mounted: a new one would find no peer's backup.
    path = tmp_path / KEY_NAME
    path.symlink_to(tmp_path / "elsewhere.key")
    with pytest.raises(KeyFileError) as caught:
        load_or_make_key(path)
    one_line(caught, path)
    assert path.is_symlink()
    key_file(tmp_path / "elsewhere.key")
    assert load_or_make_key(path)[0].node_id == NODE_ID


def test_a_key_that_cannot_be_read_is_refused(foreign_directory: Path) -> None:
    path = key_file(foreign_directory / KEY_NAME, mode=0)
    with unprivileged():
        for load in (load_key, load_or_make_key):
            with pytest.raises(KeyFileError) as caught:
                load(path)
            assert "can't be read" in one_line(caught, path)


def test_a_key_that_cannot_be_made_is_refused(foreign_directory: Path) -> None:
    foreign_directory.chmod(0o555)
    path = foreign_directory / KEY_NAME
    with unprivileged(), pytest.raises(KeyFileError) as caught:
        load_or_make_key(path)
    assert "can't be made" in one_line(caught, path)


def test_a_full_disk_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / KEY_NAME
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(KeyFileError) as caught:
            load_or_make_key(path)
    assert "No space left" in one_line(caught, path)
    assert list(tmp_path.iterdir()) == []
    assert load_or_make_key(path)[1]


# Several who make the key


@pytest.mark.parametrize("step", ["generate", "fsync"])
def test_a_key_that_another_makes_meanwhile_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / KEY_NAME
    others: list[tuple[bytes, bool] | Exception] = []

    def make_another() -> None:
        try:
            key, new = load_or_make_key(path)
            others.append((key.node_id, new))
        except Exception as error:
            others.append(error)

    def with_another(original: Callable[..., object]) -> Callable[..., object]:
        entered = False

        def call(*arguments: object) -> object:
            nonlocal entered
            if not entered:
                entered = True
                thread = threading.Thread(target=make_another)
                thread.start()
                thread.join()
            return original(*arguments)

        return call

    owner = KeyPair if step == "generate" else os
    monkeypatch.setattr(owner, step, with_another(getattr(owner, step)))
    key, new = load_or_make_key(path)
    assert others == [(key.node_id, True)]
    assert not new
    assert load_key(path).node_id == key.node_id
    assert list(tmp_path.iterdir()) == [path]


def test_many_who_make_the_key_at_once_end_with_one(tmp_path: Path) -> None:
    threads_number = 8
    for round_ in range(10):
        path = tmp_path / str(round_) / KEY_NAME
        path.parent.mkdir()
        barrier = threading.Barrier(threads_number)
        outcomes: list[tuple[bytes, bool] | Exception] = []

        def make(
            path: Path = path,
            barrier: threading.Barrier = barrier,
            outcomes: list[tuple[bytes, bool] | Exception] = outcomes,
        ) -> None:
            barrier.wait()
            try:
                key, new = load_or_make_key(path)
                outcomes.append((key.node_id, new))
            except Exception as error:
                outcomes.append(error)

        threads = [threading.Thread(target=make) for _ in range(threads_number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        node_id = load_key(path).node_id
        assert sorted(outcomes, key=str) == sorted(
            [(node_id, True), *[(node_id, False)] * (threads_number - 1)], key=str
        )
        assert list(path.parent.iterdir()) == [path]


def test_a_start_that_was_killed_while_it_made_the_key_does_not_hinder_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / KEY_NAME
    killed = python(
        "import os, signal, sys, pathlib\n"
        "from peerstore.datadir import load_or_make_key\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "load_or_make_key(pathlib.Path(sys.argv[1]))\n",
        path,
    )
    killed.communicate()
    assert killed.returncode == -9
    assert not path.exists()
    # In a container the process has the same id every time.
    monkeypatch.setattr(os, "getpid", lambda: killed.pid)
    key, new = load_or_make_key(path)
    assert new
    assert load_key(path).node_id == key.node_id


# Where the key is


def test_the_key_is_in_the_data_directory_or_where_it_is_configured(tmp_path: Path) -> None:
    assert key_path(tmp_path, "node.key", {}) == tmp_path / "node.key"
    assert key_path(tmp_path, "keys/other", {}) == tmp_path / "keys" / "other"
    assert key_path(tmp_path, "/etc/key", {}) == Path("/etc/key")


def test_a_credential_of_systemd_is_preferred(tmp_path: Path) -> None:
    data_dir, credentials = tmp_path / "data", tmp_path / "credentials"
    data_dir.mkdir()
    key_file(data_dir / KEY_NAME, (b"\x21" * 32).hex())
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    with pytest.raises(KeyFileError) as caught:
        key_path(data_dir, KEY_NAME, environ)
    assert "No such file or directory" in one_line(caught, credentials)
    # There may be other credentials than this one.
    credentials.mkdir()
    assert key_path(data_dir, KEY_NAME, environ) == data_dir / KEY_NAME
    credential = key_file(credentials / KEY_NAME, mode=0o440)
    assert key_path(data_dir, KEY_NAME, environ) == credential
    assert key_path(data_dir, "/etc/key", environ) == credential
    assert key_path(data_dir, KEY_NAME, {"CREDENTIALS_DIRECTORY": ""}) == data_dir / KEY_NAME


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o444])
def test_the_mode_of_a_credential_is_not_looked_at(tmp_path: Path, mode: int) -> None:
    data_dir, credentials = tmp_path / "data", tmp_path / "credentials"
    credentials.mkdir()
    credential = key_file(credentials / KEY_NAME, mode=mode)
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert load_key(credential, private=False).node_id == NODE_ID
    key, new = open_data_directory(data_dir, Config(), environ)
    assert (key.node_id, new) == (NODE_ID, False)
    # No second key that somebody could take for the node's.
    assert list(data_dir.iterdir()) == []
    assert mode_of(credential) == mode


def test_the_mode_of_the_configured_key_is_looked_at(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    open_data_directory(data_dir, Config(), {})
    (data_dir / KEY_NAME).chmod(0o644)
    with pytest.raises(KeyFileError):
        open_data_directory(data_dir, Config(), {})


def test_a_credential_that_is_malformed_is_refused(tmp_path: Path) -> None:
    credential = key_file(tmp_path / KEY_NAME, b"")
    with pytest.raises(KeyFileError) as caught:
        open_data_directory(tmp_path / "data", Config(), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    one_line(caught, credential)


# The lock

HOLD = """
import pathlib, sys
from peerstore.datadir import locked
from peerstore.errors import DataDirectoryError
try:
    with locked(*map(pathlib.Path, sys.argv[1:])):
        print("held", flush=True)
        sys.stdin.read()
except DataDirectoryError as error:
    print(error, flush=True)
"""


def said(process: subprocess.Popen[str]) -> str:
    """The next line of a process."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / LOCK_NAME
    with locked(path):
        assert is_locked(path)
        assert mode_of(path) == 0o600
        line = python(HOLD, path).communicate()[0]
        assert f"process {os.getpid()}" in line
        assert str(path) in line
        assert line.count("\n") == 1
        assert is_locked(path)
    assert not is_locked(path)
    with locked(path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / LOCK_NAME
    with python(HOLD, path) as holder:
        try:
            assert said(holder) == "held"
            assert is_locked(path)
            with pytest.raises(DataDirectoryError) as caught, locked(path):
                pass
            assert f"process {holder.pid}" in one_line(caught, path)
        finally:
            holder.kill()
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)
        assert path.read_text() == f"{os.getpid()}\n"
    assert not is_locked(path)


def test_asking_takes_no_lock_and_makes_no_file(tmp_path: Path) -> None:
    path = tmp_path / LOCK_NAME
    assert not is_locked(path)
    assert not path.exists()
    path.touch()
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)
        assert is_locked(path)
        assert path.read_text() == f"{os.getpid()}\n"


def test_what_a_longer_lived_holder_wrote_is_not_mixed_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / LOCK_NAME
    path.write_text("12345678901234567890\n")
    with locked(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_several_locks_are_held_together_or_not_at_all(tmp_path: Path) -> None:
    first, second = tmp_path / LOCK_NAME, tmp_path / "peerstore.db.lock"
    with locked(second):
        with pytest.raises(DataDirectoryError) as caught, locked(first, second):
            pass
        one_line(caught, second)
        assert not is_locked(first)
    # One path given twice is one lock.
    with locked(first, second, first):
        assert is_locked(first)
        assert is_locked(second)
    assert not is_locked(first)
    assert not is_locked(second)


def test_the_lock_goes_with_an_error_in_the_block(tmp_path: Path) -> None:
    path = tmp_path / LOCK_NAME
    with pytest.raises(KeyboardInterrupt), locked(path):
        raise KeyboardInterrupt
    assert not is_locked(path)


def test_a_lock_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / LOCK_NAME):
        with pytest.raises(DataDirectoryError) as caught, locked(path):
            pass
        one_line(caught, path)
