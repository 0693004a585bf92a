"""The daemon: what is started in which order, signals, and the stop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import functools
import gc
import math
import resource
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import structlog

from peerstore import __version__, log
from peerstore.activity import ActivityLog
from peerstore.admission import DoorLimits, fitting
from peerstore.channels.base import ChannelSource
from peerstore.clock import clock_problem
from peerstore.config import NEEDS_RESTART, Config, Loaded
from peerstore.configured import (
    channel_source,
    lock_paths,
    policy,
    quotas,
    reachable,
    retention,
    route,
    uris,
)
from peerstore.control import ControlServer
from peerstore.datadir import (
    SOCKET_NAME,
    key_path,
    load_or_make_key,
    locked,
    make_data_directory,
)
from peerstore.dialer import Dialer
from peerstore.errors import (
    AddressError,
    ControlError,
    DataDirectoryError,
    DialError,
    KeyFileError,
    ListenError,
    OperatorError,
    SourceError,
    StoreError,
)
from peerstore.listening import listen_failure, listening_socket
from peerstore.methods import methods
from peerstore.monitor import Monitor
from peerstore.policy import Policy, Visit
from peerstore.server import Limits, PeerServer, Rates
from peerstore.session import Timeouts
from peerstore.store.reader import SqliteReader
from peerstore.store.snapshot import snapshot_when_due
from peerstore.store.sqlite import Clocks, SqliteStore
from peerstore.systemd import METRICS, ServiceManager, listen_sockets
from peerstore.tally import Tally
from peerstore.transport.secp256k1 import KeyPair
from peerstore.turns import in_turns
from peerstore.types import NodeAddress, format_host_port, parse_node_id
from peerstore.watch import ChannelWatch
from peerstore.words import size

REPEAT_SECONDS = 10.0
"""How often at most it is logged that descriptors have run out."""

STOP_SECONDS = 2.0
"""How long peers may take to read what was sent to them before the stop."""

DRAIN_SECONDS = 4.0
"""How long the store may take to write what was handed in."""

FIRST_ANSWER_SECONDS = 5.0
"""How long the start waits for the routing node."""

PRUNE_SECONDS = 3600.0
"""How often retention deletes what is due."""

SNAPSHOT_CHECK_SECONDS = 60.0
"""How often it is looked at whether a snapshot is due."""

RESERVED_DESCRIPTORS = 64
"""For the database, the control socket and its clients, listening sockets, the routing node."""

P = ParamSpec("P")
T = TypeVar("T")

_log = structlog.get_logger()


def open_data_directory(
    data_dir: Path, config: Config, environ: Mapping[str, str]
) -> tuple[KeyPair, bool]:
    """Make the data directory and the key where they are missing.

    Returns the key and whether it is new. Raises DataDirectoryError, KeyFileError.
    """
    make_data_directory(data_dir)
    path = key_path(data_dir, config.node_key_file, environ)
    database = config.store.url.path(data_dir)
    if not database.parent.is_dir():
        raise DataDirectoryError(
            f"store.url: the directory {database.parent} does not exist: make it"
        )
    if database.exists() and not path.exists():
        raise KeyFileError(
            f"the key file {path} is missing, but there is a database {database}: put the key"
            " back; with a new one no peer would find its backup"
        )
    configured = path == config.node_key_file.path(data_dir)
    return load_or_make_key(path, private=configured)


class Daemon:
    """A running peerstore; `running` makes one."""

    def __init__(
        self,
        loaded: Loaded,
        read_config: Callable[[], Loaded],
        key: KeyPair,
        store: SqliteStore,
        server: PeerServer,
        reader: SqliteReader,
    ) -> None:
        self.config = loaded.config
        self.key = key
        self.store = store
        self.server = server
        self.dialer = Dialer(server)
        """Keeps the operator's peers connected."""
        self.watch: ChannelWatch | None = None
        """What keeps up with the routing node, if one is configured."""
        self.activity = ActivityLog(store, lambda: server.tally.updates_taken)
        """Notes what is stored over time."""
        self.monitor = Monitor(
            server,
            store,
            reader,
            config=lambda: self.config,
            watch=lambda: self.watch,
            uris=lambda: self.uris,
            clock_problem=lambda: clock_problem(time.time(), self.used_at),
        )
        self.status_page: str | None = None
        """Where operators find the status page, if anywhere."""
        self.manager = ServiceManager({})
        """Who is told of reloads."""
        self.used_at = 0.0
        """When the database was used before this start, in Unix seconds."""
        self._loaded = self._started = loaded
        self._read_config = read_config

    @property
    def uris(self) -> list[str]:
        """See `uris`."""
        return uris(self.config, self.key.node_id, self.server.addresses)

    async def status(self) -> str:
        """How it goes, in a line."""
        counts = await self.store.counts()
        return (
            f"peers connected: {len(self.server.peers)}; stored: {counts.backups} backups of"
            f" {counts.peers} peers, {size(counts.bytes)} with kept versions"
        )

    def methods(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """The methods of the control socket."""
        return {
            "daemon.info": self.info,
            "daemon.reload": self.reload,
            "peers.list": self.peers,
            "peers.kept": self.kept,
            "peers.connect": self.connect,
            "peers.disconnect": self.disconnect,
            **methods(
                self.store, lambda: retention(self.config), self.follow_rules, self.look_at_channels
            ),
        }

    async def info(self) -> dict[str, Any]:
        """The live part of `peerstore info`."""
        tally = self.server.tally
        return {
            "uris": self.uris,
            "version": __version__,
            "connections": len(self.server.connections),
            "events": {
                **tally.events,
                **{
                    f"connection_refused_{reason}": count
                    for reason, count in tally.connections_refused.items()
                },
            },
            "problems": [problem.text for problem in await self.monitor.problems()],
            "status_page": self.status_page,
            "channel_source": None if self.watch is None else self.watch.describe(),
        }

    async def peers(self) -> dict[str, Any]:
        """Who is connected; what else is known of peers is in the database when this returns."""
        with contextlib.suppress(StoreError):  # a full disk; who is here can be said all the same
            await self.store.save_visits()
        connected = in_turns(self.server.peers.values())
        return {"items": [connection.describe() async for connection in connected]}

    async def kept(self) -> dict[str, Any]:
        """Who is kept connected, and why one is not connected now."""
        return {
            "items": [
                {
                    "node_id": kept.node_id.hex(),
                    "addresses": [
                        format_host_port(address.host, address.port) for address in kept.addresses
                    ],
                    "error": kept.error or None,
                }
                for kept in self.dialer.kept()
            ]
        }

    async def connect(self, uri: str) -> dict[str, Any]:
        """Connect to a peer, and keep it connected from then on."""
        if not isinstance(uri, str):
            raise AddressError("uri is a text: node_id@host:port")
        return (await self.dialer.connect(NodeAddress.parse(uri))).describe()

    async def disconnect(self, node_id: str) -> None:
        """Close the connection of a peer and keep it no longer; nothing keeps it from coming."""
        peer = parse_node_id(node_id)
        kept = self.dialer.leave_alone(peer)
        connection = self.server.connected(peer)
        if connection is not None:
            connection.close("disconnected by the operator")
        elif not kept:
            raise DialError(f"{node_id} is not connected")

    def follow_dial(self) -> None:
        """Keep connected whom the configuration names, and dial as it says."""
        dial = self.config.dial
        self.server.route = route(self.config)
        self.dialer.configure((peer.address for peer in dial.peers), dial.refresh)

    async def follow_rules(self) -> None:
        """Take up the operator's rules from the database."""
        rules = await self.store.reader.rules()
        self.serve_by(policy(self.config, rules, self.watch))

    def serve_by(self, policy: Policy) -> None:
        """Serve by a policy from now on, and have those give way that it does not protect."""
        self.server.set_policy(policy)
        self.store.certain = lambda: policy.certain
        self.store.protects = lambda node_id, height: policy.protects(node_id, Visit(height))

    def channels_changed(self) -> None:
        """Who has channels, or which height it is, has changed."""
        if self.config.policy.serve == "channels":
            self.server.follow_policy()

    async def look_at_channels(self) -> None:
        """Ask the routing node, if there is one, before something is deleted.

        Raises SourceError while it can't be trusted.
        """
        if self.watch is not None:
            await self.watch.look()
            if self.watch.error:
                raise SourceError(
                    "nothing is deleted while the routing node can't be trusted:"
                    f" {self.watch.error}"
                )

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again and follow it, but for what needs a restart.

        Raises ConfigError for a wrong one, and then nothing changes.
        """
        self.manager.reloading()
        try:
            return await self._reload()
        finally:
            self.manager.say(READY="1")

    async def _reload(self) -> dict[str, Any]:
        loaded = self._read_config()
        before = {setting.key: setting.value for setting in self._loaded.settings()}
        started = {setting.key: setting.value for setting in self._started.settings()}
        changed = [
            s.key
            for s in loaded.settings()
            # What needs a restart is in force as it was at the start, however often this is asked.
            if s.value != (started if s.key.startswith(NEEDS_RESTART) else before)[s.key]
        ]
        for warning in loaded.warnings:
            _log.warning("config_warning", text=warning)
        self._loaded, self.config = loaded, loaded.config
        log.configure(self.config.log.level, self.config.log.format)
        self.server.log = structlog.get_logger().bind()
        self.server.set_limits(_limits(self.config))
        self.store.quotas = quotas(self.config)
        self.follow_dial()
        await self.follow_rules()
        restart = [key for key in changed if key.startswith(NEEDS_RESTART)]
        _log.info("reloaded", changed=changed, needs_restart=restart)
        return {"changed": changed, "needs_restart": restart}

    async def reload_on_signal(self) -> None:
        """SIGHUP: what is wrong is logged."""
        try:
            await self.reload()
        except OperatorError as error:
            _log.error("reload_failed", error=str(error))


@contextlib.asynccontextmanager
async def running(
    read_config: Callable[[], Loaded],
    data_dir: Path,
    environ: Mapping[str, str],
    manager: ServiceManager,
) -> AsyncIterator[Daemon]:
    """Serve until the block is left; then drain, confirm, close.

    `read_config` is called now and at every reload. Raises OperatorError when it can't start.
    """
    passed = listen_sockets(environ)
    loaded = read_config()
    config = loaded.config
    for warning in loaded.warnings:
        _log.warning("config_warning", text=warning)
    key, new = open_data_directory(data_dir, config, environ)
    if new:
        _log.info("key_made", node_id=key.node_id.hex())
    tally = Tally()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(locked(*lock_paths(data_dir, config)))
        database = config.store.url.path(data_dir)
        used_at = _used_at(database)  # before it is used now
        store = await SqliteStore.open(
            database,
            node_id=key.node_id,
            network=config.network,
            clocks=Clocks(time.time, time.monotonic),
            quotas=quotas(config),
            aging=config.channels.source == "none",
            tally=tally,
        )
        stack.push_async_callback(store.close)
        server = PeerServer(
            key=key,
            network=config.network,
            store=store,
            limits=_limits(config),
            policy=policy(config, await store.reader.rules()),
            tally=tally,
        )
        reader = await SqliteReader.open(database, connections=1)
        stack.push_async_callback(reader.close)
        daemon = Daemon(loaded, read_config, key, store, server, reader)
        daemon.manager = manager
        daemon.used_at = await _check_clock(store, used_at)
        daemon.serve_by(server.policy)
        stack.push_async_callback(_stop, server, store)
        # Before peers come: where this can't be listened on there is no start.
        await _serve_pages(daemon, passed, stack)
        source = channel_source(config, data_dir)
        if source is not None:
            await _watch(daemon, source, stack)
        await _listen(server, config, passed)
        control = ControlServer(data_dir / SOCKET_NAME, daemon.methods())
        stack.callback(control.close)
        try:
            await control.start()
        except ControlError as error:
            # Peers come first: they are served also when commands can't reach the daemon.
            _log.warning("no_control_socket", error=str(error))
        stack.push_async_callback(daemon.dialer.close)
        daemon.follow_dial()
        for regular in (
            _snapshots(daemon, data_dir),
            _prune(daemon),
            daemon.activity.run(),
            daemon.monitor.watch_loop(),
        ):
            task = asyncio.create_task(regular)
            stack.callback(task.cancel)
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        network = config.network.value
        _log.info("serving", version=__version__, network=network, loop=loop, uris=daemon.uris)
        yield daemon
        _log.info("stopping")
    _log.info("stopped")


async def _listen(
    server: PeerServer, config: Config, passed: list[tuple[str, socket.socket]]
) -> None:
    """Accept peers from the sockets that were passed on for them, else where it is configured."""
    for_peers = [sock for name, sock in passed if name != METRICS]
    for sock in for_peers:
        server.take_listener(sock)
    if not for_peers:
        await server.listen((address.host, address.port) for address in config.listen.addresses)


def _used_at(database: Path) -> float:
    """When a database was written last, by the clock of that time; 0 where there is none."""
    files = [database, database.with_name(f"{database.name}-wal")]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


async def _check_clock(store: SqliteStore, used_at: float) -> float:
    """Log what is wrong with the wall clock; it is no reason not to serve.

    Returns when the database was used before.
    """
    with contextlib.suppress(StoreError):  # where that can't be read, other lines say so
        used_at = max(used_at, await store.reader.newest_at())
    problem = clock_problem(time.time(), used_at)
    if problem is not None:
        _log.warning("clock_off", text=problem)
    return used_at


async def run(
    read_config: Callable[[], Loaded],
    data_dir: Path,
    environ: Mapping[str, str],
    ready: Callable[[Daemon], None],
) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called once peers are accepted.

    SIGHUP reads the configuration again.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_LoopErrors())
    loop.set_default_executor(DaemonThreads())
    # Each peer is a descriptor; the usual soft limit is far below what the system allows.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reloads: set[asyncio.Task[None]] = set()
    manager = ServiceManager(environ)
    serving: Daemon | None = None

    async def report() -> None:
        if serving is None:
            manager.starting("starting")
        else:
            manager.running("stopping" if stop.is_set() else await serving.status())

    async with (
        manager.reporting(report),
        running(read_config, data_dir, environ, manager) as daemon,
    ):

        def hang_up() -> None:
            task = loop.create_task(daemon.reload_on_signal())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        serving = daemon
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        # A full collection looks at all that is there, for tens of milliseconds, and the program
        # itself is most of that.
        gc.freeze()
        ready(daemon)
        manager.say(READY="1", STATUS=await daemon.status())
        await stop.wait()
        manager.say(STOPPING="1", STATUS="stopping")


class DaemonThreads(ThreadPoolExecutor):
    """Runs each call in a thread of its own that the end of the process does not wait for.

    A resolver or a disk that hangs must not keep the daemon from stopping.
    """

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # told to who waits
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=work, daemon=True).start()
        return future


class _LoopErrors:
    """What asyncio has to report: a line in the log, repeated ones at most once in a while."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message, error = context["message"], context.get("exception")
        out_of_resources = isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES
        now = loop.time()
        if out_of_resources and now < self._next.get(message, 0.0):
            return
        self._next[message] = now + REPEAT_SECONDS
        _log.error(
            "loop_error",
            text=message,
            error=str(error or ""),
            exc_info=None if out_of_resources else error,
        )


_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


async def _stop(server: PeerServer, store: SqliteStore) -> None:
    """Take no more, write what was taken, let the confirmations out, close."""
    server.freeze()
    try:
        await asyncio.wait_for(store.settle(), DRAIN_SECONDS)
    except TimeoutError:
        _log.error("drain_timeout", seconds=DRAIN_SECONDS)
    await server.close(STOP_SECONDS)


async def _snapshots(daemon: Daemon, data_dir: Path) -> None:
    """Make a snapshot whenever the newest is old enough; what goes wrong is logged."""
    database = daemon.config.store.url.path(data_dir)
    while True:
        snapshots = daemon.config.snapshots
        if snapshots.every:
            try:
                made = await asyncio.to_thread(
                    functools.partial(
                        snapshot_when_due,
                        database,
                        snapshots.dir.path(data_dir),
                        every=snapshots.every,
                        keep=snapshots.keep,
                        now=time.time(),
                    )
                )
                if made is not None:
                    _log.info("snapshot_made", path=str(made))
            except (OSError, StoreError) as error:
                _log.error("snapshot_failed", error=str(error))
        await asyncio.sleep(min(snapshots.every or math.inf, SNAPSHOT_CHECK_SECONDS))


async def _watch(daemon: Daemon, source: ChannelSource, stack: contextlib.AsyncExitStack) -> None:
    """Keep up with the routing node until the stack is left.

    It is waited for, but not for long: peers are served by what was known.
    """
    watch = daemon.watch = ChannelWatch(
        source,
        daemon.store,
        await daemon.store.reader.node_channels(),
        (await daemon.store.reader.meta()).moment.height,
        blocks=lambda: daemon.config.retention.after_close_blocks,
        changed=daemon.channels_changed,
    )
    await daemon.follow_rules()
    task = asyncio.create_task(watch.run(), name="channels")
    stack.push_async_callback(_ended, task)
    await watch.first_look(FIRST_ANSWER_SECONDS)


async def _serve_pages(
    daemon: Daemon,
    passed: list[tuple[str, socket.socket]],
    stack: contextlib.AsyncExitStack,
) -> None:
    """Listen for operators and their tools, on the sockets that were passed on for them, else where
    it is configured, if anywhere; raises ListenError."""
    address = daemon.config.metrics.listen.address
    sockets = [sock for name, sock in passed if name == METRICS]
    if not sockets and address is not None:
        try:
            sockets = [listening_socket(*address)]
        except OSError as error:
            failure = listen_failure(format_host_port(*address), error, "metrics.listen")
            raise ListenError(failure) from error
    if not sockets:
        return
    from peerstore.web import WebServer  # aiohttp takes its time

    web = WebServer(daemon.monitor.pages(), guarded={"/"})
    stack.push_async_callback(web.close)
    for sock in sockets:
        await web.start(sock)
    host, port = sockets[0].getsockname()[:2]
    daemon.status_page = f"http://{format_host_port(reachable(host), port)}/"


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


async def _prune(daemon: Daemon) -> None:
    """Have retention delete what is due, regularly; what goes wrong is logged."""
    while True:
        await asyncio.sleep(PRUNE_SECONDS)
        try:
            await daemon.look_at_channels()
            async for _ in daemon.store.prune(retention(daemon.config)):
                pass  # what goes is logged
        except Exception as error:  # tried again in an hour, whatever it was
            _log.error(
                "prune_failed", error=str(error), exc_info=not isinstance(error, OperatorError)
            )


def _limits(config: Config) -> Limits:
    limits = config.limits
    return Limits(
        handshake=limits.handshake_timeout,
        session=Timeouts(
            init=limits.init_timeout,
            # Our ping goes out after half the silence that ends a connection (60 s of 120).
            ping=limits.idle_timeout / 2,
            idle=limits.idle_timeout,
        ),
        door=_fitting(
            DoorLimits(
                max_connections=limits.max_connections,
                max_connections_per_ip=limits.max_connections_per_ip,
                handshakes_per_second_per_ip=limits.handshakes_per_second_per_ip,
                max_handshakes=limits.max_handshakes,
                exempt=tuple(each.network for each in limits.exempt_networks),
            )
        ),
        rates=Rates(
            commits=limits.commits_per_second,
            bytes=limits.bytes_per_second,
            pong_bytes=limits.pong_bytes_per_second,
        ),
    )


def _fitting(limits: DoorLimits) -> DoorLimits:
    """As many connections as there are descriptors for."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    fit = fitting(limits, descriptors, RESERVED_DESCRIPTORS)
    if fit != limits:
        _log.warning(
            "few_descriptors",
            descriptors=descriptors,
            max_connections=fit.max_connections,
            max_handshakes=fit.max_handshakes,
            hint="raise the limit of open files (LimitNOFILE=, ulimit -n)",
        )
    return fit
