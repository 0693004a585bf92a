"""Under systemd: what is said to it, what it passes on, and the unit as it stands."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from peerstore import config, systemd
from peerstore.cli.info import how_to_start
from peerstore.datadir import locked
from peerstore.errors import ListenError, StoreError
from peerstore.ownership import give_to_owner, new_file
from peerstore.store.snapshot import snapshot
from peerstore.systemd import REPORT_SECONDS, ServiceManager, listen_sockets
from tests.daemon import HANG, LOOPBACK, Daemon, command_line, environment, run_command
from tests.helpers import key_pair

ROOT = Path(__file__).parent.parent
UNITS = ROOT / "contrib" / "systemd"
PREFIX = "/opt/peerstore/bin/"
"""Where the unit has the program."""

NOBODY = 65534


class Listener:
    """The service manager's end of the notify socket."""

    def __init__(self, address: str | bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(HANG)

    def next(self) -> dict[str, str]:
        """The variables of the next message."""
        lines = self._socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, name: str) -> dict[str, str]:
        """The next message that has the variable."""
        return next(said for said in iter(self.next, None) if name in said)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def notify_socket(tmp_path: Path) -> Iterator[tuple[str, Listener]]:
    """The value of $NOTIFY_SOCKET, and who listens there."""
    path = tmp_path / "notify"
    listener = Listener(str(path))
    yield str(path), listener
    listener.close()


# What is said


def test_without_a_service_manager_nothing_is_said() -> None:
    with capture_logs() as logs:
        manager = ServiceManager({"WATCHDOG_USEC": "nonsense"})
        manager.say(READY="1")
        manager.starting("starting")
        manager.running("running")
    assert logs == []


def test_an_abstract_socket_is_reached() -> None:
    name = f"peerstore-{os.getpid()}"
    listener = Listener(f"\0{name}")
    try:
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).say(READY="1", STATUS="a b=c")
        assert listener.next() == {"READY": "1", "STATUS": "a b=c"}
    finally:
        listener.close()


def test_what_a_busy_service_manager_does_not_take_is_said_with_the_next(
    notify_socket: tuple[str, Listener],
) -> None:
    address, listener = notify_socket
    manager = ServiceManager({"NOTIFY_SOCKET": address})
    with capture_logs() as logs:
        for number in range(100_000):
            manager.say(STATUS=f"{number}")
            if logs:
                break
        manager.say(READY="1")
        manager.say(STATUS="the newest")
    assert [log["event"] for log in logs] == ["notify_failed"]
    for earlier in range(number):
        assert listener.next() == {"STATUS": f"{earlier}"}
    manager.say(WATCHDOG="1")
    assert listener.next() == {"STATUS": "the newest", "READY": "1", "WATCHDOG": "1"}
    manager.say(WATCHDOG="1")
    assert listener.next() == {"WATCHDOG": "1"}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("{}/missing", "No such file or directory"),
        ("{}/file", "Connection refused"),
        ("/" + "x" * 200, "AF_UNIX path too long"),
        ("vsock:2:1234", "No such file or directory"),
    ],
)
def test_a_notify_socket_that_refuses_is_one_warning(
    tmp_path: Path, address: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    manager = ServiceManager({"NOTIFY_SOCKET": address.format(tmp_path)})
    with capture_logs() as logs:
        manager.say(READY="1")
        manager.say(STATUS="serving")
    assert [(log["event"], log["error"]) for log in logs] == [("notify_failed", reason)]


@pytest.mark.parametrize(
    ("variables", "interval", "watched"),
    [
        ({}, REPORT_SECONDS, False),
        ({"WATCHDOG_USEC": "6000000"}, 2.0, True),
        ({"WATCHDOG_USEC": "6000000", "WATCHDOG_PID": str(os.getpid())}, 2.0, True),
        ({"WATCHDOG_USEC": "6000000", "WATCHDOG_PID": "1"}, REPORT_SECONDS, False),
        ({"WATCHDOG_USEC": "3600000000"}, REPORT_SECONDS, True),
        # More often than that nobody can mean.
        ({"WATCHDOG_USEC": "1"}, 0.1, True),
    ],
)
def test_the_watchdog_hears_from_the_process_that_is_meant(
    notify_socket: tuple[str, Listener],
    variables: dict[str, str],
    interval: float,
    watched: bool,
) -> None:
    address, listener = notify_socket
    manager = ServiceManager({"NOTIFY_SOCKET": address, **variables})
    assert manager.interval == interval
    manager.running("serving")
    assert ("WATCHDOG" in listener.next()) is watched


@pytest.mark.parametrize("text", ["0", "-1", "soon", "1.5", "9" * 40])
def test_a_watchdog_that_cannot_be_read_is_one_warning(
    notify_socket: tuple[str, Listener], text: str
) -> None:
    address, listener = notify_socket
    with capture_logs() as logs:
        manager = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": text})
    assert [log["event"] for log in logs] == ["no_watchdog"]
    assert text[:40] in logs[0]["error"]
    manager.running("serving")
    assert listener.next() == {"STATUS": "serving"}


async def test_reports_come_from_the_loop(notify_socket: tuple[str, Listener]) -> None:
    address, _ = notify_socket
    manager = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"})
    reports = asyncio.Semaphore(0)

    async def report() -> None:
        reports.release()

    async with manager.reporting(report):
        for _ in range(3):
            await reports.acquire()
    while not reports.locked():
        await reports.acquire()
    await asyncio.sleep(0)
    assert reports.locked()


# The unit


def settings(name: str) -> list[tuple[str, str]]:
    """The assignments of a unit, in their order."""
    lines = (UNITS / name).read_text().splitlines()
    pairs = [line.partition("=") for line in lines if not line.startswith("#")]
    return [(key, value) for key, equals, value in pairs if equals]


SERVICE = dict(settings("peerstore.service"))


def program(name: str) -> list[str]:
    """A command line of the unit as it stands, of the program that is tested here."""
    line = SERVICE[name]
    assert line.startswith(PREFIX)
    path, *arguments = shlex.split(line)
    return [str(Path(sys.executable).with_name(path.removeprefix(PREFIX))), *arguments]


class Service:
    """What the unit describes, in an environment as systemd makes it."""

    def __init__(self, directory: Path, notify: str, extra: Mapping[str, str]) -> None:
        state = directory / SERVICE["StateDirectory"]
        credentials = directory / "credentials"
        credentials.mkdir(mode=0o700)
        name, _, _source = SERVICE["LoadCredential"].partition(":")
        (credentials / name).write_text("21" * 32)
        (credentials / name).chmod(0o440)
        state.mkdir(mode=int(SERVICE["StateDirectoryMode"], 8))
        own = {
            "NOTIFY_SOCKET": notify,
            "STATE_DIRECTORY": str(state),
            "CREDENTIALS_DIRECTORY": str(credentials),
            # The kernel keeps ten messages: more must not come while a command runs.
            "WATCHDOG_USEC": "3000000",
            "PEERSTORE_LISTEN__ADDRESSES": '["127.0.0.1:0"]',
        }
        unit = settings("peerstore.service")
        given = [value.split("=", 1) for key, value in unit if key == "Environment"]
        self.state = state
        self.environment = environment(directory, {**dict(given), **own, **extra})
        self.log = directory / "service.log"

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(
                program("ExecStart"),
                env=self.environment,
                umask=int(SERVICE["UMask"], 8),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def reload(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            program("ExecReload"),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )


def test_the_unit_as_it_stands_from_start_to_stop(
    tmp_path: Path, notify_socket: tuple[str, Listener]
) -> None:
    address, listener = notify_socket
    service = Service(tmp_path, address, {})
    process = service.start()
    try:
        assert listener.next() == {"STATUS": "starting", "EXTEND_TIMEOUT_USEC": "60000000"}
        nothing = "peers connected: 0; stored: 0 backups of 0 peers, 0 B with kept versions"
        # The watchdog counts from here on.
        assert listener.until("READY") == {"READY": "1", "STATUS": nothing}
        for _ in range(2):
            assert listener.until("WATCHDOG") == {"WATCHDOG": "1", "STATUS": nothing}

        info = run_command(service.state, "--json", "info").document
        assert info["running"]
        # It is the key of the credential, and there is no other.
        assert info["node_id"] == key_pair(0x21).node_id.hex()
        assert not (service.state / "node.key").exists()

        assert service.reload().returncode == 0
        assert int(listener.until("RELOADING")["MONOTONIC_USEC"]) > 0
        assert listener.until("READY") == {"READY": "1"}
        process.send_signal(signal.SIGHUP)
        listener.until("RELOADING")
        listener.until("READY")

        (service.state / "config.toml").write_text("nonsense = 1\n")
        refused = service.reload()
        assert refused.returncode == 1
        assert len(refused.stderr.splitlines()) == 1
        assert "unknown key nonsense" in refused.stderr

        process.terminate()
        assert listener.until("STOPPING") == {"STOPPING": "1", "STATUS": "stopping"}
        assert process.wait(HANG) == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in service.log.read_text()


def test_the_status_says_who_is_here_and_what_is_stored(
    tmp_path: Path, notify_socket: tuple[str, Listener], daemon: Daemon
) -> None:
    assert daemon.command("probe", str(daemon.address), "--size", "1048").code == 0
    daemon.stop()
    address, listener = notify_socket
    daemon.extra = {"NOTIFY_SOCKET": address}
    daemon.start()
    status = listener.until("READY")["STATUS"]
    assert "; stored: 1 backups of 1 peers, 1.0 KiB with kept versions" in status


def test_a_notify_socket_that_is_missing_keeps_nobody_from_being_served(
    tmp_path: Path, data_dir: Path
) -> None:
    daemon = Daemon(data_dir)
    daemon.extra = {"NOTIFY_SOCKET": str(tmp_path / "missing")}
    daemon.start()
    try:
        assert daemon.command("probe", str(daemon.address)).code == 0
        assert daemon.command("reload").code == 0
    finally:
        daemon.close()
    warnings = [event for event in daemon.events if event["level"] == "warning"]
    assert [warning["event"] for warning in warnings] == ["notify_failed"]
    assert warnings[0]["socket"] == str(tmp_path / "missing")
    assert warnings[0]["error"] == "No such file or directory"


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """The units, with the program that is tested here in place of the one in /opt."""
    if not Path("/usr/bin/systemd-analyze").exists():
        pytest.skip("there is no systemd-analyze (Debian package systemd)")
    if not (Path(sys.executable).with_name("peerstore")).exists():
        pytest.skip("peerstore is not installed beside this Python")
    here = str(Path(sys.executable).parent) + "/"
    copies = []
    for path in sorted(UNITS.glob("peerstore.*")):
        copy = tmp_path / path.name
        copy.write_text(path.read_text().replace(PREFIX, here))
        copies.append(str(copy))
    return copies


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/systemd-analyze", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG,
        check=False,
    )


def test_systemd_finds_nothing_wrong_with_the_units(units: list[str]) -> None:
    assert [Path(unit).suffix for unit in units] == [".service", ".socket"]
    found = analyze("verify", *units)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_unit_is_exposed_as_little_as_it_can_be(units: list[str]) -> None:
    # In tenths, of ten.
    found = analyze("security", "--offline=true", "--threshold=12", "--no-pager", units[0])
    assert found.returncode == 0, found.stdout


# Sockets that are passed on


LAUNCHER = """
import fcntl, os, sys
count, *numbers = map(int, sys.argv[1].split(","))
# Out of the way first: one of them may be where another belongs.
copies = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in numbers]
for place, copy in enumerate(copies, 3):
    os.dup2(copy, place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count))
os.execv(sys.argv[2], sys.argv[2:])
"""


class Activated(Daemon):
    """A daemon that is passed sockets as systemd does it."""

    def __init__(
        self,
        data_dir: Path,
        sockets: Sequence[socket.socket],
        names: str = "",
        count: int | None = None,
    ) -> None:
        super().__init__(data_dir, LOOPBACK)
        self.passed = tuple(sock.fileno() for sock in sockets)
        self.extra = {"LISTEN_FDNAMES": names} if names else {}
        self.count = len(sockets) if count is None else count

    def command_line(self) -> list[str]:
        numbers = ",".join(map(str, [self.count, *self.passed]))
        launcher = [sys.executable, "-c", LAUNCHER, numbers]
        return [*launcher, *super().command_line()]


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """Two TCP sockets that listen."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]


def ports(uris: Sequence[str]) -> list[int]:
    return [int(uri.rpartition(":")[2]) for uri in uris]


def test_peers_come_in_through_the_sockets_that_are_passed_on(
    data_dir: Path, sockets: list[socket.socket]
) -> None:
    daemon = Activated(data_dir, sockets)
    daemon.start()
    try:
        assert ports(daemon.document["uris"]) == [sock.getsockname()[1] for sock in sockets]
        assert daemon.command("--json", "info").document["uris"] == daemon.document["uris"]
        for uri in daemon.document["uris"]:
            assert daemon.command("probe", uri).code == 0
        for number in (3, 4):
            flags = Path(f"/proc/{daemon.process_id}/fdinfo/{number}").read_text().split()[3]
            assert int(flags, 8) & os.O_CLOEXEC
        # Who comes while it does not run waits, and is served by the next one.
        assert daemon.stop() == 0
        with socket.create_connection(sockets[0].getsockname()):
            daemon.start()
            assert daemon.command("probe", daemon.document["uris"][0]).code == 0
    finally:
        daemon.close()


def test_a_socket_for_metrics_is_not_for_peers(
    data_dir: Path, sockets: list[socket.socket]
) -> None:
    daemon = Activated(data_dir, sockets, "metrics:peers")
    daemon.start()
    assert ports(daemon.document["uris"]) == [sockets[1].getsockname()[1]]
    daemon.close()
    daemon = Activated(data_dir, sockets[:1], "metrics")
    daemon.start()
    # As the configuration says.
    assert len(daemon.document["uris"]) == 1
    assert ports(daemon.document["uris"]) != [sockets[0].getsockname()[1]]
    daemon.close()


def passed(count: str, **others: str) -> dict[str, str]:
    """The variables of sockets that are for this process."""
    return {"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid()), **others}


@pytest.mark.parametrize("process", [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {}])
def test_sockets_for_another_process_are_left_alone(process: dict[str, str]) -> None:
    assert listen_sockets({"LISTEN_FDS": "1", **process}) == []


def unix_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")
    sock.listen()
    return sock


def connected_socket() -> socket.socket:
    """As Accept=yes passes it on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return socket.create_connection(server.getsockname())


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(connected_socket, id="connected"),
        pytest.param(unix_socket, id="a Unix socket"),
        pytest.param(socket.socket, id="not listening"),
        pytest.param(
            functools.partial(socket.socket, type=socket.SOCK_DGRAM), id="a datagram socket"
        ),
    ],
)
def test_a_socket_of_a_wrong_kind_is_refused(
    make: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = make().detach()  # it is closed by who looks at it
    monkeypatch.setattr(systemd, "FIRST_PASSED", number)
    with pytest.raises(ListenError) as caught:
        listen_sockets(passed("1", LISTEN_FDNAMES="peers"))
    assert str(caught.value) == (
        "the socket peers that was passed on is no TCP socket that listens: the socket unit needs"
        " ListenStream= with address and port, and Accept=no"
    )
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_socket_that_is_not_there_is_refused(
    data_dir: Path, sockets: list[socket.socket]
) -> None:
    with pytest.raises(AssertionError) as caught:
        Activated(data_dir, sockets, count=60).start()
    assert "Error: LISTEN_FDS=60, but descriptor" in str(caught.value)
    assert "is no socket" in str(caught.value)


@pytest.mark.parametrize("text", ["", "0"])
def test_no_sockets_are_none(text: str) -> None:
    assert listen_sockets(passed(text)) == []


@pytest.mark.parametrize("text", ["two", "-1", "1.0", "513", "1000000000000000000"])
def test_a_count_of_sockets_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ListenError, match=r"^LISTEN_FDS=.* is no number of sockets"):
        listen_sockets(passed(text))


# Directories that can't be used


def refused(data_dir: Path, extra: Mapping[str, str]) -> str:
    """`peerstore run` exits 1; returns its one line."""
    result = run_command(data_dir, "run", extra=extra)
    assert (result.code, result.output) == (1, b"")
    (line,) = result.stderr.splitlines()
    return line


def test_a_credentials_directory_that_is_missing_is_refused(data_dir: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    line = refused(data_dir, {"CREDENTIALS_DIRECTORY": str(missing)})
    assert line == (
        f"Error: $CREDENTIALS_DIRECTORY is {missing}, which can't be read: No such file or"
        " directory; mend it, or unset the variable to use the key file of the configuration"
    )
    # No other key was made.
    assert not (data_dir / "node.key").exists()


def test_an_empty_credential_is_refused(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "node.key").touch()
    line = refused(data_dir, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert f"{tmp_path}/node.key does not hold a key of 64 hexadecimal digits" in line


def test_a_key_that_is_a_credential_is_not_copied_with_a_snapshot(
    data_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "node.key").write_text("21" * 32)
    extra = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert run_command(data_dir, "init", extra=extra).code == 0
    copy = tmp_path / "copy.db"
    result = run_command(data_dir, "snapshot", str(copy), "--with-key")
    assert result.code == 1
    assert f"the key file {data_dir}/node.key is missing" in result.stderr
    assert not copy.exists()
    assert not copy.with_name("copy.db.key").exists()
    # Where it runs with the credential it is.
    assert run_command(data_dir, "snapshot", str(copy), "--with-key", extra=extra).code == 0
    assert copy.with_name("copy.db.key").read_text() == "21" * 32


def without_privilege(data_dir: Path, *command: str, credentials: str = "") -> str:
    """A command for whom permissions count exits 1; returns its one line."""
    # Root may do everything, until it gives that up.
    limited = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    done = subprocess.run(
        [*(limited if os.geteuid() == 0 else []), *command_line(data_dir, LOOPBACK), *command],
        env=environment(data_dir.parent, {"CREDENTIALS_DIRECTORY": credentials}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def test_a_credentials_directory_without_permission_is_refused(
    tmp_path: Path, data_dir: Path
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o100)
    line = without_privilege(data_dir, "run", credentials=str(credentials))
    credentials.chmod(0o700)
    assert f"$CREDENTIALS_DIRECTORY is {credentials}, which can't be read: Permission" in line


def test_a_data_directory_that_cannot_be_written_is_refused(data_dir: Path) -> None:
    assert run_command(data_dir, "init").code == 0
    before = sorted(path.name for path in data_dir.iterdir())
    data_dir.chmod(0o500)
    lines = [without_privilege(data_dir, command) for command in ("run", "info")]
    data_dir.chmod(0o700)
    assert f"{data_dir} can't be written: change its owner or permissions" in lines[0]
    assert "see that the directory can be written" in lines[1]
    assert sorted(path.name for path in data_dir.iterdir()) == before


def test_what_starts_the_daemon_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SYSTEM_DATA_DIRECTORY", tmp_path / "system")
    assert how_to_start(tmp_path / "own") == "`peerstore run`"
    assert how_to_start(tmp_path / "system") == "`systemctl start peerstore`"
    # Root's own directory hides that of the service.
    (tmp_path / "system").mkdir()
    assert how_to_start(tmp_path / "own") == (
        f"`peerstore run`, or say --data-dir {tmp_path}/system for the service"
    )


# Root's commands on the directory of another user's daemon


def test_what_root_makes_belongs_to_whom_the_directory_belongs(tmp_path: Path) -> None:
    data_dir, copy = tmp_path / "data", str(tmp_path / "copy.db")
    data_dir.mkdir(mode=0o700)
    maker = os.geteuid()
    owner = NOBODY if maker == 0 else maker  # who is not root can give nothing away
    os.chown(data_dir, owner, -1)

    def owners() -> dict[str, int]:
        return {path.name: path.stat().st_uid for path in data_dir.iterdir()}

    for command in (
        ["init"],
        ["snapshot", copy],
        ["restore", copy],
        ["peers", "deny", "02" + "11" * 32],
    ):
        result = run_command(data_dir, *command)
        assert result.code == 0, result.stderr
        assert set(owners().values()) == {owner}, owners()
    assert {"node.key", "config.toml", "peerstore.db", "peerstore.lock"} <= owners().keys()
    # Elsewhere it is its maker's.
    assert Path(copy).stat().st_uid == maker
    # A reader makes these anew where they are missing, after a copy without them.
    with contextlib.closing(sqlite3.connect(data_dir / "peerstore.db")) as database:
        database.execute("UPDATE meta SET seen = seen + 1")
        database.commit()
        for name in ("peerstore.db-wal", "peerstore.db-shm"):
            assert owners()[name] == owner


def test_a_lock_that_is_a_link_is_refused(data_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    data_dir.mkdir(mode=0o700)
    (data_dir / "peerstore.lock").symlink_to(other)
    result = run_command(data_dir, "run")
    assert result.code == 1
    line = result.stderr.splitlines()[-1]
    assert f"Error: the lock file {data_dir}/peerstore.lock can't be opened" in line
    assert other.read_text() == "kept"


def test_a_link_in_the_place_of_a_file_that_is_made_is_not_followed(
    data_dir: Path, tmp_path: Path
) -> None:
    """Root's commands would write where the daemon's user has it point to, and give it away."""
    other = tmp_path / "other"
    other.write_text("kept")
    data_dir.mkdir(mode=0o700)
    (data_dir / "peerstore.mark.new").symlink_to(other)
    for command in (["init"], ["peers", "deny", "02" + "11" * 32]):
        result = run_command(data_dir, *command)
        assert result.code == 0, result.stderr
    assert other.read_text() == "kept"
    assert not (data_dir / "peerstore.mark").is_symlink()
    for made in (f".copy.db.{os.getpid()}.partial", "copy.db"):
        (data_dir / made).unlink(missing_ok=True)
        (data_dir / made).symlink_to(tmp_path / "new")
        with contextlib.suppress(StoreError):  # there is a file of the name already
            snapshot(data_dir / "peerstore.db", data_dir / "copy.db")
        assert not (tmp_path / "new").exists()


def test_a_lock_that_has_another_name_is_held_and_not_written(
    data_dir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    data_dir.mkdir(mode=0o700)
    (data_dir / "peerstore.lock").hardlink_to(other)
    assert run_command(data_dir, "init").code == 0
    assert other.read_text() == "kept"
    with locked(data_dir / "peerstore.lock"):
        assert "holds" in run_command(data_dir, "init").stderr


def test_a_new_file_is_made_through_no_link(tmp_path: Path) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to(other)
    with pytest.raises(FileExistsError):
        new_file(link)
    assert not other.exists()


def test_a_file_of_two_names_is_not_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda descriptor, _user, _group: given.append(descriptor))
    with contextlib.closing(os.fdopen(new_file(tmp_path / "one"), "w")) as file:
        give_to_owner(file.fileno(), tmp_path)
        assert given == [file.fileno()]
        (tmp_path / "another").hardlink_to(tmp_path / "one")
        give_to_owner(file.fileno(), tmp_path)
        assert given == [file.fileno()]
