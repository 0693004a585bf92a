"""eclair as a source of channels, over its HTTP API.

Sources: eclair-node/src/main/scala/fr/acinq/eclair/api and its tests' resources, and
eclair-core's JsonSerializers.scala, in ACINQ/eclair; https://acinq.github.io/eclair/.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec

from peerstore.channels.answers import (
    ANSWER_SECONDS,
    MAX_ANSWER,
    Gathered,
    Height,
    Zero,
    check_network,
    decode,
    read_node_id,
)
from peerstore.channels.base import Answer, NodeChannel
from peerstore.channels.http import (
    MAX_EVENT,
    Access,
    HttpApi,
    HttpConnection,
    Subscription,
    read_credential,
)
from peerstore.errors import SourceError
from peerstore.types import Network

_NEGOTIATED = frozenset(
    {
        "WAIT_FOR_INIT_INTERNAL",
        "WAIT_FOR_INIT_SINGLE_FUNDED_CHANNEL",
        "WAIT_FOR_OPEN_CHANNEL",
        "WAIT_FOR_ACCEPT_CHANNEL",
        "WAIT_FOR_FUNDING_INTERNAL",
        "WAIT_FOR_FUNDING_CREATED",
        "WAIT_FOR_FUNDING_SIGNED",
        "WAIT_FOR_INIT_DUAL_FUNDED_CHANNEL",
        "WAIT_FOR_OPEN_DUAL_FUNDED_CHANNEL",
        "WAIT_FOR_ACCEPT_DUAL_FUNDED_CHANNEL",
        "WAIT_FOR_DUAL_FUNDING_CREATED",
    }
)
"""The states of what is no channel yet: eclair does not save it, and most have a temporary id that
the peer chose. It would cost a stranger one `open_channel` to count as a peer with a channel."""

_PAGE = 1000
_MAX_PAGES = 10_000
_HEARTBEAT_SECONDS = 30.0
_GOODBYE_SECONDS = 1.0


class _Info(msgspec.Struct, rename="camel"):
    """getinfo; `chain_hash` is the genesis block's hash in internal byte order."""

    node_id: str
    block_height: Height
    chain_hash: str
    network: str = ""


class _Channel(msgspec.Struct, rename="camel", gc=False):
    """channels; `data` depends on the state, and nothing of it is needed."""

    node_id: str
    channel_id: str
    state: str


class _ClosedChannel(msgspec.Struct, rename="camel", gc=False):
    """closedchannels: the peer is `remoteNodeId` since 0.13.1, before that it was `nodeId`."""

    channel_id: str
    remote_node_id: str = ""
    node_id: str = ""


class _Event(msgspec.Struct):
    """What comes over the websocket."""

    type: str


class EclairSource:
    """eclair's channels.

    eclair says nothing of heights at which channels were closed, nor whether it is in sync: it
    starts only with a bitcoind that is, and has no height before.
    """

    def __init__(
        self,
        url: str,
        password_file: Path,
        network: Network,
        *,
        seconds: float = ANSWER_SECONDS,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        self._password_file = password_file
        self._network = network
        self._api = HttpApi(
            "eclair",
            url,
            self._access,
            refused=f"put its eclair.api.password into {password_file}",
            certificate="give what stands before it a certificate that this machine trusts",
            schemes=("http", "https"),
            seconds=seconds,
            max_answer=max_answer,
        )
        self._subscription = Subscription(self._listen)

    def _access(self) -> Access:
        data = read_credential(self._password_file, "the password file")
        try:
            password = data.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            password = ""
        if not password or not password.isprintable():
            raise SourceError(
                f"the password file {self._password_file} holds no password: put"
                " eclair.api.password into its only line"
            )
        basic = base64.b64encode(b":" + password.encode()).decode()
        return Access({"Authorization": f"Basic {basic}"}, (password, basic))

    async def ask(self) -> Answer:
        """Ask for all channels; see ChannelSource."""
        async with self._api.connect() as connection:
            info = await connection.post("/getinfo", _Info)
            told = _NETWORKS.get(info.chain_hash.lower())
            name = info.network or (told.value if told else info.chain_hash)
            check_network(self._api.who, told, name, self._network)
            # In this order: what is closed meanwhile stands in both lists, not in none.
            present = await connection.rows("POST", "/channels", _Channel, 1, list[Zero])
            closed = await self._closed(connection)
        channels = await asyncio.to_thread(self._gather, present, closed)
        node_id = read_node_id(self._api.who, info.node_id)
        return Answer(node_id, info.block_height, info.block_height > 0, channels)

    async def _closed(self, connection: HttpConnection) -> list[_ClosedChannel]:
        """All closed channels; newest first, so that what is closed meanwhile shifts the pages
        down: a row is then seen twice, and none is missed."""
        rows: list[_ClosedChannel] = []
        for _ in range(_MAX_PAGES):
            page = await connection.post(
                "/closedchannels", list[_ClosedChannel], count=str(_PAGE), skip=str(len(rows))
            )
            # One that ignores `skip` would never come to an end.
            if rows and page and page == rows[-_PAGE:]:
                break
            rows += page
            if len(page) < _PAGE:
                return rows
        raise SourceError(f"{self._api.who} lists closed channels without end: see its log")

    def _gather(
        self, present: list[_Channel], closed: list[_ClosedChannel]
    ) -> tuple[NodeChannel, ...]:
        gathered = Gathered(self._api.who)
        for channel in present:
            if channel.state == "CLOSED":
                gathered.add(channel.node_id, channel.channel_id)
            elif channel.state not in _NEGOTIATED:
                gathered.add_open(channel.node_id, channel.channel_id)
        for row in closed:
            gathered.add(row.remote_node_id or row.node_id, row.channel_id)
        return gathered.channels()

    async def changed(self) -> None:
        """Return when a channel changed its state; see ChannelSource. Blocks are not told."""
        await self._subscription.changed()

    async def _listen(self, told: Callable[[], None]) -> None:
        async with (
            self._api.connect() as connection,
            connection.session.ws_connect(
                f"{self._api.url}/ws",
                heartbeat=_HEARTBEAT_SECONDS,
                max_msg_size=MAX_EVENT,
                timeout=aiohttp.ClientWSTimeout(ws_close=_GOODBYE_SECONDS),
            ) as events,
        ):
            async for message in events:
                if message.type is aiohttp.WSMsgType.TEXT:
                    event = decode(message.data.encode(), _Event, self._api.who, "/ws")
                    # Payments come this way too, and don't matter here.
                    if event.type.startswith("channel-"):
                        told()
        raise SourceError(f"{self._api.who} ended its events: is it stopping? see its log")

    async def close(self) -> None:
        """Stop listening for changes."""
        await self._subscription.close()


_NETWORKS = {network.chain_hash.hex(): network for network in Network}
