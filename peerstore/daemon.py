"""The daemon: what is started in which order, signals, and the stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import resource
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from peerstore import __version__
from peerstore.config import Config, Loaded
from peerstore.control import ControlServer
from peerstore.datadir import (
    LOCK_NAME,
    SOCKET_NAME,
    key_path,
    load_or_make_key,
    locked,
    make_data_directory,
)
from peerstore.errors import ControlError, DataDirectoryError, KeyFileError, StoreError
from peerstore.methods import methods
from peerstore.server import Limits, PeerServer
from peerstore.session import Timeouts
from peerstore.store.base import Quotas
from peerstore.store.snapshot import snapshot_when_due
from peerstore.store.sqlite import Clocks, SqliteStore
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import NodeAddress, NodeId

REPEAT_SECONDS = 10.0
"""How often at most it is logged that descriptors have run out."""

STOP_SECONDS = 2.0
"""How long peers may take to read what was sent to them before the stop."""

DRAIN_SECONDS = 4.0
"""How long the store may take to write what was handed in."""

SNAPSHOT_CHECK_SECONDS = 60.0
"""How often it is looked at whether a snapshot is due."""

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


def lock_paths(data_dir: Path, config: Config) -> tuple[Path, Path]:
    """The locks of a daemon: in the data directory and beside the database."""
    # Resolved as SQLite does it: a link is another name, not another database.
    database = config.store.url.path(data_dir).resolve()
    return data_dir / LOCK_NAME, database.with_suffix(".lock")


def uris(config: Config, node_id: NodeId, addresses: list[tuple[str, int]]) -> list[str]:
    """What peers connect to: the announced addresses, else those that are listened on.

    An address that means every interface is shown as the loopback one, which is true at least
    on this machine.
    """
    shown = [(address.host, address.port) for address in config.listen.announce]
    if not shown:
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what to replace
        shown = [(loopback.get(host, host), port) for host, port in addresses]
    return [str(NodeAddress(node_id, host, port)) for host, port in dict.fromkeys(shown)]


class Daemon:
    """A running peerstore; `running` makes one."""

    def __init__(
        self, config: Config, key: KeyPair, store: SqliteStore, server: PeerServer
    ) -> None:
        self.config = config
        self.key = key
        self.store = store
        self.server = server

    @property
    def uris(self) -> list[str]:
        """See `uris`."""
        return uris(self.config, self.key.node_id, self.server.addresses)

    async def info(self) -> dict[str, Any]:
        """The live part of `peerstore info`: the control method `daemon.info`."""
        return {
            "uris": self.uris,
            "version": __version__,
            "connections": len(self.server.connections),
            "events": dict(self.server.events),
        }


@contextlib.asynccontextmanager
async def running(
    loaded: Loaded, data_dir: Path, environ: Mapping[str, str]
) -> AsyncIterator[Daemon]:
    """Serve until the block is left; then drain, confirm, close.

    Raises OperatorError when it can't start.
    """
    config = loaded.config
    for warning in loaded.warnings:
        _log.warning("config_warning", text=warning)
    key, new = open_data_directory(data_dir, config, environ)
    if new:
        _log.info("key_made", node_id=key.node_id.hex())
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(locked(*lock_paths(data_dir, config)))
        store = await SqliteStore.open(
            config.store.url.path(data_dir),
            node_id=key.node_id,
            network=config.network,
            clocks=Clocks(time.time, time.monotonic),
            quotas=quotas(config),
        )
        stack.push_async_callback(store.close)
        server = PeerServer(key=key, network=config.network, store=store, limits=_limits(config))
        daemon = Daemon(config, key, store, server)
        stack.push_async_callback(_stop, server, store)
        await server.listen((address.host, address.port) for address in config.listen.addresses)
        control = ControlServer(
            data_dir / SOCKET_NAME, {"daemon.info": daemon.info, **methods(store)}
        )
        stack.callback(control.close)
        try:
            await control.start()
        except ControlError as error:
            # Peers come first: they are served also when commands can't reach the daemon.
            _log.warning("no_control_socket", error=str(error))
        if config.snapshots.every:
            task = asyncio.create_task(_snapshots(config, data_dir), name="snapshots")
            stack.callback(task.cancel)
        _log.info("serving", version=__version__, network=config.network.value, uris=daemon.uris)
        yield daemon
        _log.info("stopping")
    _log.info("stopped")


async def run(
    loaded: Loaded, data_dir: Path, environ: Mapping[str, str], ready: Callable[[Daemon], None]
) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called once peers are accepted."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_LoopErrors())
    # Each peer is a descriptor; the usual soft limit is far below what the system allows.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(loaded, data_dir, environ) as daemon:
        ready(daemon)
        await stop.wait()


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


async def _snapshots(config: Config, data_dir: Path) -> None:
    """Make a snapshot whenever the newest is old enough; what goes wrong is logged."""
    database = config.store.url.path(data_dir)
    directory = config.snapshots.dir.path(data_dir)
    while True:
        try:
            made = await _in_daemon_thread(
                lambda: snapshot_when_due(
                    database,
                    directory,
                    every=config.snapshots.every,
                    keep=config.snapshots.keep,
                    now=time.time(),
                )
            )
            if made is not None:
                _log.info("snapshot_made", path=str(made))
        except (OSError, StoreError) as error:
            _log.error("snapshot_failed", error=str(error))
        await asyncio.sleep(min(config.snapshots.every, SNAPSHOT_CHECK_SECONDS))


async def _in_daemon_thread(work: Callable[[], Path | None]) -> Path | None:
    """Run something long in a thread that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Path | None] = loop.create_future()

    def tell(result: Path | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as caught:  # told to who waits
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is gone by now
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="snapshot", daemon=True).start()
    return await done


def quotas(config: Config) -> Quotas:
    """The store's part of the configuration."""
    store = config.store
    return Quotas(
        history=store.history,
        hold_on_shrink=math.ceil(store.hold_on_shrink),
        max_bytes=store.max_bytes,
        max_bytes_per_peer=store.max_bytes_per_peer,
        max_peers=store.max_peers,
        max_channels_per_peer=store.max_channels_per_peer,
        probation=math.ceil(store.probation),
        min_free_space=store.min_free_space,
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
    )
