"""The data directory: what is in it, its lock, and the node's key."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from peerstore.errors import DataDirectoryError, KeyFileError
from peerstore.files import open_file
from peerstore.ownership import give_to_owner

if TYPE_CHECKING:
    from peerstore.transport.secp256k1 import KeyPair  # slow: only for who needs a key

SOCKET_NAME = "peerstore.sock"
LOCK_NAME = "peerstore.lock"
KEY_NAME = "node.key"

SECRETS_DIRECTORY = Path("/run/secrets")
"""Where a container is handed secrets: readable by all that is in it, and it is alone in there."""

_WHOLE_FILE = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
"""fcntl(2)'s struct flock. A lock of the open file description ends with its last descriptor."""


def make_data_directory(path: Path) -> None:
    """Make the directory, 0700, with its parents; raises DataDirectoryError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataDirectoryError(
            f"the data directory {path} can't be made: {error.strerror};"
            " choose another one with --data-dir"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            mend = "its file system is read-only, so mount it for writing"
        else:
            mend = "change its owner or permissions"
        raise DataDirectoryError(
            f"the data directory {path} can't be written: {mend}, or choose another one with"
            " --data-dir"
        )


@contextlib.contextmanager
def locked(*paths: Path) -> Iterator[None]:
    """Hold the lock files; raises DataDirectoryError that says who holds one of them."""
    with contextlib.ExitStack() as stack:
        for path in dict.fromkeys(paths):
            try:
                # No link: root would write where somebody else has it point to.
                descriptor = os.open(
                    path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
                )
            except OSError as error:
                raise DataDirectoryError(
                    f"the lock file {path} can't be opened: {error.strerror}"
                ) from error
            stack.callback(os.close, descriptor)
            give_to_owner(descriptor, path.parent)
            try:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
            except OSError:
                holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
                raise DataDirectoryError(
                    f"another peerstore (process {holder or 'unknown'}) holds {path}:"
                    " stop it first, or choose another --data-dir"
                ) from None
            # Another name of it may be one of root's files, to which somebody made a link.
            if os.fstat(descriptor).st_nlink != 1:
                continue
            # Who holds it is only for people; on a full disk the lock is as good without it.
            with contextlib.suppress(OSError):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Only asked, never taken, so that nobody who wants it is in the way of anybody.
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE)
    finally:
        os.close(descriptor)
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def key_path(data_dir: Path, node_key_file: str, environ: Mapping[str, str]) -> Path:
    """Where the node's key is: systemd's credential when there is one, else the configured file.

    Raises KeyFileError when there are credentials that can't be looked at: one of them may be it.
    """
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    if not credentials:
        return data_dir / node_key_file
    try:
        names = [path.name for path in Path(credentials).iterdir()]
    except OSError as error:
        raise KeyFileError(
            f"$CREDENTIALS_DIRECTORY is {credentials}, which can't be read: {error.strerror};"
            " mend it, or unset the variable to use the key file of the configuration"
        ) from error
    return Path(credentials) / KEY_NAME if KEY_NAME in names else data_dir / node_key_file


def load_key(path: Path, *, private: bool = True) -> KeyPair:
    """Read a key file: 64 hexadecimal digits.

    `private` demands that nobody but its owner can read it; systemd's credentials and a
    container's secrets are guarded otherwise. Raises KeyFileError, FileNotFoundError when there is
    none.
    """
    try:
        with open_file(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(1024)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeyFileError(f"the key file {path} can't be read: {error.strerror}") from error
    if private and not _is_secret(path) and stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(f"others can read the key file {path}: chmod 600 {path}")
    try:
        from peerstore.transport.secp256k1 import KeyPair

        return KeyPair.from_private_bytes(bytes.fromhex(text.decode("ascii").strip()))
    except ValueError:
        raise KeyFileError(
            f"the key file {path} does not hold a key of 64 hexadecimal digits:"
            " put the right file back; a new key would find no peer's backup"
        ) from None


def load_or_make_key(path: Path, *, private: bool = True) -> tuple[KeyPair, bool]:
    """Read the key file, or make one, 0600; an existing one is never overwritten.

    Returns the key and whether it is new. Raises KeyFileError.
    """
    with contextlib.suppress(FileNotFoundError):
        return load_key(path, private=private), False
    if _is_secret(path):
        # One that is made there is gone with the container, and with it every peer's backup.
        raise KeyFileError(
            f"the secret {path} is missing: hand it to the container, or set node_key_file to a"
            " file in the data directory"
        )
    from peerstore.transport.secp256k1 import KeyPair

    key = KeyPair.generate()
    assert key.private is not None  # noqa: S101 - just made
    # Written whole under another name first: a crash must not leave half a key.
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise KeyFileError(f"the key file {path} can't be made: {error.strerror}") from error
    temporary = Path(name)
    try:
        try:
            os.write(descriptor, f"{key.private.secret.hex()}\n".encode())
            give_to_owner(descriptor, path.parent)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.hardlink_to(temporary)
        sync_directory(path.parent)
    except FileExistsError:
        try:
            return load_key(path, private=private), False
        except FileNotFoundError:
            raise KeyFileError(f"the key file {path} is a link to a file that is missing") from None
    except OSError as error:
        raise KeyFileError(f"the key file {path} can't be made: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return key, True


def _is_secret(path: Path) -> bool:
    return SECRETS_DIRECTORY in path.parents


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
