"""`peerstore probe`: be a peer of a provider, and see whether it keeps what it is given."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from peerstore.cli.common import App, json_option, pass_app, size
from peerstore.errors import PeerstoreError, ProbeError

if TYPE_CHECKING:
    from peerstore.transport.secp256k1 import KeyPair
    from peerstore.types import Network, NodeAddress

KEY_NAME = "probe.key"


@click.command()
@click.argument("uri", metavar="URI")
@click.option(
    "--size",
    "blob_size",
    type=click.IntRange(0, 65531),
    default=65531,
    show_default=True,
    help="Bytes to store.",
)
@json_option
@pass_app
def probe(app: App, uri: str, blob_size: int) -> None:
    """Store random bytes with the provider at URI (node_id@host:port), and get them back.

    Uses a key of its own (probe.key in the data directory), so it never touches anybody's backup.
    Exits 1 when a step fails.
    """
    import asyncio

    from peerstore.datadir import load_or_make_key, make_data_directory
    from peerstore.types import NodeAddress

    address = NodeAddress.parse(uri)
    make_data_directory(app.data_dir)
    key, _ = load_or_make_key(app.data_dir / KEY_NAME)
    network = app.loaded.config.network
    steps = _Steps(show=not app.json)
    try:
        same = asyncio.run(_probe(network, address, key, blob_size, steps))
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
            click.echo(f"{self.current:<11} {seconds * 1000:8.1f} ms  {detail}")


async def _probe(
    network: Network, address: NodeAddress, key: KeyPair, blob_size: int, steps: _Steps
) -> bool:
    """Whether what came back is what was stored; False when the provider holds an older one."""
    from peerstore.client import Client

    blob = os.urandom(blob_size)
    steps.begin("connect")
    async with await Client.connect(address, key) as client:
        steps.done(f"handshake as {key.node_id.hex()}")
        steps.begin("init")
        await client.init(network)
        steps.done("storage is offered")
        steps.begin("retrieve")
        before = await client.retrieve()
        steps.done(
            "nothing is stored yet" if before is None else f"{size(len(before))} from before"
        )
        steps.begin("store")
        await client.store(blob)
        await client.confirm()
        steps.done(f"{size(len(blob))} stored and confirmed")
    steps.begin("reconnect")
    async with await Client.connect(address, key) as client:
        await client.init(network)
        steps.done("handshake and init")
        steps.begin("compare")
        after = await client.retrieve()
        if after is None:
            raise ProbeError("nothing came back")
        if after == before and 2 * len(blob) < len(before):
            steps.done(
                "what was stored before came back: the provider holds it, because the new backup"
                " is less than half its size"
            )
        elif after != blob:
            raise ProbeError(f"other bytes came back: {size(len(after))}")
        else:
            steps.done("what came back is what was stored")
    return after == blob
