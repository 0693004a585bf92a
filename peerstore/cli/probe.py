"""`peerstore probe`: be a peer of a provider, and see whether it keeps what it is given."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from peerstore.cli.common import App, json_option, pass_app
from peerstore.errors import PeerstoreError, ProbeError
from peerstore.words import size

if TYPE_CHECKING:
    from peerstore.client import Client
    from peerstore.proxy import Route
    from peerstore.transport.secp256k1 import KeyPair
    from peerstore.types import Network, NodeAddress

KEY_NAME = "probe.key"


@click.command(short_help="Be a peer of a provider, and see what it keeps.")
@click.argument("uri", metavar="URI")
@click.option(
    "--size",
    "blob_size",
    type=click.IntRange(0, 65531),
    help="Bytes to store. [default: as many as the dialect allows]",
)
@click.option(
    "--dialect",
    type=click.Choice(("peer_storage", "881")),
    default="peer_storage",
    show_default=True,
    help="peer_storage is BOLT 1's; 881 the node and channel backups of that bolts pull request.",
)
@json_option
@pass_app
def probe(app: App, uri: str, blob_size: int | None, dialect: str) -> None:
    """Store random bytes with the provider at URI (node_id@host:port), and get them back.

    Uses a key of its own (probe.key in the data directory), so it never touches anybody's backup.
    Exits 1 when a step fails.
    """
    import asyncio

    from peerstore.configured import route
    from peerstore.datadir import load_or_make_key, make_data_directory
    from peerstore.types import NodeAddress

    address = NodeAddress.parse(uri)
    most = 65531 if dialect == "peer_storage" else 32000
    if blob_size is not None and blob_size > most:
        raise click.BadParameter(
            f"a backup of this dialect has at most {most} bytes.", param_hint="--size"
        )
    make_data_directory(app.data_dir)
    key, _ = load_or_make_key(app.data_dir / KEY_NAME)
    config = app.loaded.config
    provider = _Provider(address, key, config.network, route(config))
    steps = _Steps(show=not app.json)
    try:
        play = _probe if dialect == "peer_storage" else _probe_881
        size_ = most if blob_size is None else blob_size
        same = asyncio.run(_interruptible(play(provider, size_, steps)))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    except (PeerstoreError, TimeoutError) as error:
        steps.failed(str(error) or "no answer in time")
        if app.json:
            app.emit(steps.document(address, ok=False), str)
        raise ProbeError(f"{steps.current}: {steps.error}") from error
    app.emit(
        steps.document(address, ok=True),
        lambda: (
            "The provider keeps what it is given: what came back is what was stored."
            if same
            else "The provider keeps what it is given, and holds the larger backup for now."
        ),
    )


async def _interruptible(work: Coroutine[None, None, bool]) -> bool:
    """Let Ctrl-C end it at once.

    asyncio.run has no wake-up for signals: one that comes just before a wait would only count when
    that is over.
    """
    import asyncio

    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - asyncio.run made it
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
    return await work


class _Steps:
    """What was done, with the seconds that it took; shown as it happens."""

    def __init__(self, *, show: bool) -> None:
        self.current = ""
        self.error = ""
        self._show = show
        self._done: list[dict[str, Any]] = []
        self._begun = 0.0

    def begin(self, name: str) -> None:
        self.current = name
        self._begun = time.perf_counter()

    def done(self, detail: str) -> None:
        self._add(ok=True, detail=detail)

    def failed(self, error: str) -> None:
        self.error = error
        self._add(ok=False, detail=error)

    def document(self, address: NodeAddress, *, ok: bool) -> dict[str, Any]:
        return {"uri": str(address), "ok": ok, "steps": self._done}

    def _add(self, *, ok: bool, detail: str) -> None:
        seconds = round(time.perf_counter() - self._begun, 6)
        self._done.append({"step": self.current, "ok": ok, "seconds": seconds, "detail": detail})
        if self._show and ok:
            click.echo(f"{self.current:<15} {seconds * 1000:8.1f} ms  {detail}")


@dataclass(frozen=True, slots=True)
class _Provider:
    """Who is probed, with which key, on which network, and the way there."""

    address: NodeAddress
    key: KeyPair
    network: Network
    route: Route

    async def connect(self) -> Client:
        """A connection after its handshake; raises ProbeError."""
        from peerstore.client import Client

        return await Client.connect(self.address, self.key, route=self.route)


async def _probe(provider: _Provider, blob_size: int, steps: _Steps) -> bool:
    """Whether what came back is what was stored; False when the provider holds an older one."""
    blob = os.urandom(blob_size)
    steps.begin("connect")
    async with await provider.connect() as client:
        steps.done(f"handshake as {provider.key.node_id.hex()}")
        steps.begin("init")
        await client.init(provider.network)
        steps.done("storage is offered")
        steps.begin("retrieve")
        before = await client.retrieve()
        steps.done(_said(before))
        steps.begin("store")
        await client.store(blob)
        await client.confirm()
        steps.done(f"{size(len(blob))} stored and confirmed")
    steps.begin("reconnect")
    async with await provider.connect() as client:
        await client.init(provider.network)
        steps.done("handshake and init")
        steps.begin("compare")
        same = _compare(before, blob, await client.retrieve())
        steps.done(_SAME if same else _HELD)
    return same


async def _probe_881(provider: _Provider, blob_size: int, steps: _Steps) -> bool:
    """The same with a node backup and the backup of a channel (bolts pull request 881)."""
    from peerstore.client import BOTH_DIALECTS
    from peerstore.wire.messages import RevokeAndAck

    key = provider.key
    # Always the same channel: a probe leaves one slot behind, however often it runs.
    channel_id = hashlib.sha256(b"peerstore probe" + key.node_id).digest()
    node_backup, channel_backup, secret = (
        os.urandom(blob_size),
        os.urandom(blob_size),
        os.urandom(32),
    )
    steps.begin("connect")
    async with await provider.connect() as client:
        steps.done(f"handshake as {provider.key.node_id.hex()}")
        steps.begin("init")
        await client.init(provider.network, offered=BOTH_DIALECTS)
        steps.done("storage is offered")
        steps.begin("retrieve")
        await client.retrieve()
        node_before, channel_before = client.node_backup, client.channel_backup(channel_id)
        counted = (
            client.channels[channel_id].next_revocation_number if channel_before is not None else 0
        )
        steps.done(f"node backup: {_said(node_before)}; channel backup: {_said(channel_before)}")
        steps.begin("store node")
        await client.store_node_backup(node_backup)
        await client.confirm()
        steps.done(f"{size(blob_size)} stored and confirmed")
        steps.begin("store channel")
        revocation = RevokeAndAck(channel_id, secret, key.node_id).encode()
        await client.store_channel_backup(channel_backup, revocation)
        await client.confirm()
        steps.done(f"{size(blob_size)} stored and confirmed")
    steps.begin("reconnect")
    async with await provider.connect() as client:
        await client.init(provider.network, offered=BOTH_DIALECTS)
        await client.retrieve()
        steps.done("handshake, init and channel_reestablish")
        steps.begin("compare node")
        same_node = _compare(node_before, node_backup, client.node_backup)
        steps.done(_SAME if same_node else _HELD)
        steps.begin("compare channel")
        after = client.channel_backup(channel_id)
        same_channel = _compare(channel_before, channel_backup, after)
        reestablish = client.channels[channel_id]
        if reestablish.your_last_per_commitment_secret != secret:
            raise ProbeError("the last per-commitment secret did not come back")
        if reestablish.next_revocation_number != counted + 1:
            raise ProbeError(
                f"of {counted + 1} revoke_and_ack {reestablish.next_revocation_number} came back"
            )
        steps.done(_SAME if same_channel else _HELD)
    return same_node and same_channel


_SAME = "what came back is what was stored"
_HELD = (
    "what was stored before came back: the provider holds it, because the new backup is less than"
    " half its size"
)


def _said(blob: bytes | None) -> str:
    return "nothing is stored yet" if blob is None else f"{size(len(blob))} from before"


def _compare(before: bytes | None, blob: bytes, after: bytes | None) -> bool:
    """Whether what came back is what was stored; False when it is the larger one from before.

    Raises ProbeError when it is neither.
    """
    if after is None:
        raise ProbeError("nothing came back")
    if after == blob:
        return True
    if after == before and 2 * len(blob) < len(before):
        return False
    raise ProbeError(f"other bytes came back: {size(len(after))}")
