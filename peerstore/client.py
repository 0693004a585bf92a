"""The other side of the protocol: a peer that stores with a provider.

`peerstore probe`, the tests and the benchmarks use it. One task drives a client; its pings are
answered as they are read.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from peerstore.connection import Authenticated, Connection, Event
from peerstore.errors import CodecError, DialError, ProbeError, TransportError
from peerstore.proxy import STRAIGHT, Route
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import Network, NodeAddress
from peerstore.wire import features
from peerstore.wire.messages import (
    MESSAGES,
    PONG_LIMIT,
    ChannelReestablish,
    ErrorMessage,
    Init,
    Message,
    PeerStorage,
    PeerStorageRetrieval,
    Ping,
    Pong,
    UpdateChannelBackup,
    UpdateNodeBackup,
    WarningMessage,
    decode_message,
    message_type,
)

DEFAULT_FEATURES = features.OURS & ~(3 << features.OPTION_PROVIDE_STORAGE)
"""What a peer that only stores offers."""

BOTH_DIALECTS = DEFAULT_FEATURES | 2 << features.WANT_PEER_BACKUP_STORAGE
"""What a peer offers that stores by bolts pull request 881 too."""

_READ_SIZE = 128 << 10


class ConnectionClosedError(ProbeError):
    """The provider closed the connection."""


class StorageRefusedError(ProbeError):
    """The provider warned that an update since the last confirmation was not stored."""


class Client:
    """A connection to a provider, from its handshake to its close.

    Every method that waits raises ConnectionClosedError when the provider closes, and
    TimeoutError after `timeout` seconds.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: Connection,
        timeout: float,
    ) -> None:
        self.warnings: list[str] = []
        """The texts of every `warning` received."""
        self.node_backup: bytes | None = None
        """What the provider gave back in its `init` (bolts pull request 881)."""
        self.channels: dict[bytes, ChannelReestablish] = {}
        """What it gave back of each channel."""
        self._confirmed = 0
        self._reader = reader
        self._writer = writer
        self._connection = connection
        self._timeout = timeout
        self._retrieval: bytes | None = None

    @classmethod
    async def connect(
        cls,
        address: NodeAddress,
        key: KeyPair,
        *,
        route: Route = STRAIGHT,
        timeout: float = 30.0,  # noqa: ASYNC109 - kept for every later wait too
    ) -> Self:
        """Connect and shake hands; `timeout` is longer where a proxy is asked to connect.

        Raises ProbeError when the provider can't be reached or has another key.
        """
        connection = Connection(key, remote_node_id=address.node_id)
        try:
            seconds = timeout + route.patience(address.host)
            async with asyncio.timeout(seconds):
                way = await route.arguments(address.host, address.port)
                reader, writer = await asyncio.open_connection(**way)
        except TimeoutError:
            raise ProbeError(f"{address}: no answer within {seconds:g} s") from None
        except DialError as error:
            raise ProbeError(f"{address}: {error}") from error
        except (OSError, ValueError) as error:  # ValueError: no host name at all
            why = getattr(error, "strerror", None) or error
            raise ProbeError(f"{address}: can't connect: {why}") from error
        client = cls(reader, writer, connection, timeout)
        try:
            await client._flush()
            event = await client._next_event()
        except BaseException as error:
            await client.close()
            if isinstance(error, TimeoutError):
                raise ProbeError(f"{address}: no answer within {timeout:g} s") from None
            if isinstance(error, ConnectionClosedError | TransportError):
                raise ProbeError(
                    f"{address}: the handshake failed ({error}): is this its node id?"
                ) from error
            raise
        assert isinstance(event, Authenticated)  # noqa: S101 - the first event always is
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        with contextlib.suppress(OSError):  # the other side was faster
            await self._writer.wait_closed()

    async def init(self, network: Network, *, offered: int = DEFAULT_FEATURES) -> Init:
        """Exchange `init`; returns the provider's.

        Raises ProbeError when it does not offer storage.
        """
        await self.send(Init(offered, (network.chain_hash,)))
        message = await self.receive()
        if not isinstance(message, Init):
            raise ProbeError(f"the provider's first message is not init but {message!r:.100}")
        if message.networks is not None and network.chain_hash not in message.networks:
            raise ProbeError(f"the provider is not on the network {network.value}")
        if not features.offers(message.features, features.OPTION_PROVIDE_STORAGE):
            raise ProbeError("the provider does not offer storage (option_provide_storage, 42/43)")
        self.node_backup = message.node_backup
        if self.node_backup is not None:
            # Who says nothing after it may have been one that had to hang up on it.
            await self.send(Ping(PONG_LIMIT))
        return message

    async def retrieve(self) -> bytes | None:
        """What the provider gave back after `init`, None when nothing is stored.

        After it `channels` is complete too.
        """
        await self._round_trip()
        return self._retrieval

    def channel_backup(self, channel_id: bytes) -> bytes | None:
        """What it gave back of a channel so far."""
        reestablish = self.channels.get(channel_id)
        return None if reestablish is None else reestablish.channel_backup

    async def store(self, blob: bytes) -> None:
        """Send an update of at most 65531 bytes; `confirm` tells what became of it."""
        await self.send(PeerStorage(blob))

    async def store_node_backup(self, blob: bytes) -> None:
        """Send a node backup of at most 32000 bytes (bolts pull request 881)."""
        await self.send(UpdateNodeBackup(blob))

    async def store_channel_backup(self, blob: bytes, *messages: bytes) -> None:
        """Send a channel backup of at most 32000 bytes (bolts pull request 881).

        `messages` are the channel messages to send behind it, types included: the first names its
        channel, and one of them has to complete an update of the channel.
        """
        await self.send_raw(UpdateChannelBackup(blob).encode(), *messages)

    async def confirm(self) -> None:
        """Wait until the provider has confirmed all that was stored since the last time.

        Raises StorageRefusedError with the provider's words.
        """
        await self._round_trip()
        since, self._confirmed = self.warnings[self._confirmed :], len(self.warnings)
        refusals = [text for text in since if text.startswith("storage:")]
        if refusals:
            raise StorageRefusedError("; ".join(refusals))

    async def send(self, message: Message) -> None:
        """Send any message."""
        await self.send_raw(message.encode())

    async def send_raw(self, *messages: bytes) -> None:
        """Send messages, types included, in one write."""
        for message in messages:
            self._connection.send_message(message)
        await self._flush()

    async def receive(self) -> Message:
        """The next message; pings are answered, retrievals and warnings are also remembered.

        Messages that the codec does not know are skipped. Raises ProbeError for one that can't
        be read.
        """
        while True:
            event = await self._next_event()
            assert isinstance(event, bytes)  # noqa: S101 - authenticated before
            try:
                if message_type(event) not in MESSAGES:
                    continue
                message = decode_message(event)
            except CodecError as error:
                raise ProbeError(f"the provider sent a malformed message: {error}") from error
            if isinstance(message, Ping):
                if message.num_pong_bytes < PONG_LIMIT:
                    await self.send(Pong(bytes(message.num_pong_bytes)))
                continue
            if isinstance(message, PeerStorageRetrieval):
                self._retrieval = message.blob
            elif isinstance(message, ChannelReestablish):
                self.channels[message.channel_id] = message
            elif isinstance(message, WarningMessage):
                self.warnings.append(message.text)
            return message

    async def _round_trip(self) -> None:
        await self.send(Ping(1))
        while not isinstance(message := await self.receive(), Pong):
            if isinstance(message, ErrorMessage):
                raise ProbeError(f"the provider sent an error: {message.text}")

    async def _next_event(self) -> Event:
        while (event := self._connection.next_event()) is None:
            try:
                async with asyncio.timeout(self._timeout):
                    data = await self._reader.read(_READ_SIZE)
            except TimeoutError:
                raise
            except OSError as error:
                raise ConnectionClosedError(self._closed(str(error))) from error
            if not data:
                raise ConnectionClosedError(self._closed(""))
            self._connection.receive_data(data)
        await self._flush()
        return event

    def _closed(self, why: str) -> str:
        said = f"; it said: {self.warnings[-1]}" if self.warnings else ""
        return f"the provider closed the connection{': ' if why else ''}{why}{said}"

    async def _flush(self) -> None:
        data = self._connection.data_to_send()
        if data:
            try:
                self._writer.write(data)
                await self._writer.drain()
            except OSError as error:
                raise ConnectionClosedError(self._closed(str(error))) from error
