"""lnd as a source of channels, over its REST API.

Sources: lnrpc/lightning.swagger.json in lightningnetwork/lnd; runtime/handler.go in
grpc-ecosystem/grpc-gateway for how streams are sent.
"""

from __future__ import annotations

import asyncio
import ssl
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
    printable,
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


def pinned_tls(path: Path) -> ssl.SSLContext:
    """TLS to whoever has the key of the first certificate of the file, and to nobody else.

    lnd signs its certificate itself, so that the file is all that there is to trust. Its names
    are not compared with the host of the URL: that whoever answers has this very certificate, and
    so its key, says more than a name that it holds, and a node behind a tunnel, a container's name
    or a changed address is still the node. For the same reason 127.0.0.1 gets no exception: any
    process there may have taken lnd's port, and the macaroon goes to none but lnd. The dates of
    the certificate count. Raises SourceError.
    """
    text = read_credential(path, "the TLS certificate").decode("ascii", "replace")
    begin = text.find("-----BEGIN CERTIFICATE-----")
    end = text.find(_PEM_END, begin)
    try:
        pinned = ssl.PEM_cert_to_DER_cert(text[begin : end + len(_PEM_END)] if begin >= 0 else "")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=pinned)
    except ValueError as error:  # ssl.SSLError is one of OSError, binascii's are ValueErrors
        raise _no_certificate(path) from error
    except ssl.SSLError as error:
        raise _no_certificate(path) from error

    class Pinned(ssl.SSLObject):
        """Ends the handshake, before a byte is sent, when the certificate is another one."""

        def do_handshake(self) -> None:
            super().do_handshake()
            # What the file's certificate has signed would pass, when it is an authority's.
            if self.getpeercert(binary_form=True) != pinned:
                raise ssl.SSLCertVerificationError("not the certificate of the file")

    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.sslobject_class = Pinned
    return context


_PEM_END = "-----END CERTIFICATE-----"


def _no_certificate(path: Path) -> SourceError:
    return SourceError(f"{path} holds no certificate: copy lnd's tls.cert to it")


class _Chain(msgspec.Struct):
    network: str


class _Info(msgspec.Struct):
    """lnrpcGetInfoResponse; `chains` has one entry."""

    identity_pubkey: str
    block_height: Height
    synced_to_chain: bool
    chains: list[_Chain]


class _Channel(msgspec.Struct, gc=False):
    """lnrpcChannel."""

    remote_pubkey: str
    channel_point: str


class _PendingChannel(msgspec.Struct, gc=False):
    """PendingChannelsResponsePendingChannel."""

    remote_node_pub: str
    channel_point: str


class _Pending(msgspec.Struct, gc=False):
    channel: _PendingChannel


class _PendingChannels(msgspec.Struct):
    """lnrpcPendingChannelsResponse; the last list is deprecated, and empty where it is known."""

    pending_open_channels: list[_Pending]
    pending_force_closing_channels: list[_Pending]
    waiting_close_channels: list[_Pending]
    pending_closing_channels: list[_Pending] = []


class _ClosedChannel(msgspec.Struct, gc=False):
    """lnrpcChannelCloseSummary; a channel that was never funded has height 0."""

    remote_pubkey: str
    channel_point: str
    close_height: Height


class _Frame(msgspec.Struct):
    """lnrpcListChannelsResponse and lnrpcClosedChannelsResponse, but for their rows."""

    channels: list[Zero]


class _Event(msgspec.Struct):
    """lnrpcChannelEventUpdate."""

    type: str


class _Failure(msgspec.Struct):
    message: str = ""


class _EventOrError(msgspec.Struct):
    result: _Event | None = None
    error: _Failure | None = None


_NETWORKS = {network.value: network for network in Network if network is not Network.BITCOIN} | {
    "mainnet": Network.BITCOIN
}

_SAME_CHANNELS = frozenset({"ACTIVE_CHANNEL", "INACTIVE_CHANNEL", "CHANNEL_UPDATE"})
"""Events that come with each reconnect or payment, and change nothing of what is asked here."""

_RENEWAL_SECONDS = 3600.0
_SUBSCRIBE = "/v1/channels/subscribe"


class LndSource:
    """lnd's channels.

    The macaroon needs the permissions offchain:read and info:read, and no more.
    """

    def __init__(
        self,
        url: str,
        tls_cert: Path,
        macaroon: Path,
        network: Network,
        *,
        seconds: float = ANSWER_SECONDS,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        self._tls_cert = tls_cert
        self._macaroon = macaroon
        self._network = network
        self._api = HttpApi(
            "lnd",
            url,
            self._access,
            refused="bake one that may: `lncli bakemacaroon --save_to"
            f" {macaroon} offchain:read info:read`",
            certificate=f"copy its present tls.cert to {tls_cert}, and check that it is lnd there"
            " (lnd makes a new one at a start when tls.cert and tls.key are gone)",
            schemes=("https",),
            seconds=seconds,
            max_answer=max_answer,
        )
        self._subscription = Subscription(self._listen)

    def _access(self) -> Access:
        macaroon = read_credential(self._macaroon, "the macaroon").hex()
        return Access({"Grpc-Metadata-macaroon": macaroon}, (macaroon,), pinned_tls(self._tls_cert))

    async def ask(self) -> Answer:
        """Ask for all channels; see ChannelSource."""
        async with self._api.connect() as connection:
            info = await connection.get("/v1/getinfo", _Info)
            name = info.chains[0].network if info.chains else ""
            check_network(self._api.who, _NETWORKS.get(name), name, self._network)
            # What is pending is asked for before and after: a channel that goes from it to the
            # open ones meanwhile, or the other way, is seen at least once.
            before = await connection.get("/v1/channels/pending", _PendingChannels)
            present = await connection.rows("GET", "/v1/channels", _Channel, 2, _Frame)
            after = await connection.get("/v1/channels/pending", _PendingChannels)
            closed = await connection.rows("GET", "/v1/channels/closed", _ClosedChannel, 2, _Frame)
        channels = await asyncio.to_thread(self._gather, (before, after), present, closed)
        node_id = read_node_id(self._api.who, info.identity_pubkey)
        return Answer(node_id, info.block_height, info.synced_to_chain, channels)

    def _gather(
        self,
        pending: tuple[_PendingChannels, ...],
        present: list[_Channel],
        closed: list[_ClosedChannel],
    ) -> tuple[NodeChannel, ...]:
        gathered = Gathered(self._api.who)
        for channel in present:
            gathered.add_point(channel.remote_pubkey, channel.channel_point, is_open=True)
        for lists in pending:
            for row in (
                *lists.pending_open_channels,
                *lists.pending_closing_channels,
                *lists.pending_force_closing_channels,
                *lists.waiting_close_channels,
            ):
                one = row.channel
                gathered.add_point(one.remote_node_pub, one.channel_point, is_open=True)
        for summary in closed:
            gathered.add_point(
                summary.remote_pubkey,
                summary.channel_point,
                is_open=False,
                closed_height=summary.close_height or None,
            )
        return gathered.channels()

    async def changed(self) -> None:
        """Return when a channel was opened or closed; see ChannelSource. Blocks are not told."""
        await self._subscription.changed()

    async def _listen(self, told: Callable[[], None]) -> None:
        while True:
            try:
                async with asyncio.timeout(_RENEWAL_SECONDS):
                    await self._stream(told)
            except TimeoutError:
                # lnd sends nothing while nothing changes, so that a connection which has silently
                # died looks the same.
                told()

    async def _stream(self, told: Callable[[], None]) -> None:
        async with self._api.connect() as connection:
            # Even the answer's head comes with the first event only: no limit but the renewal's.
            patient = aiohttp.ClientTimeout(total=None, sock_connect=self._api.seconds)
            url = self._api.url + _SUBSCRIBE
            async with connection.session.get(url, timeout=patient) as response:
                await connection.check(_SUBSCRIBE, response)
                waiting = bytearray()
                async for piece in response.content.iter_any():
                    *ended, rest = piece.split(b"\n")
                    for part in ended:
                        self._event(waiting + part, connection, told)
                        waiting = bytearray()
                    waiting += rest
                    if len(waiting) > MAX_EVENT:
                        raise SourceError(
                            f"{self._api.who} sends a channel event of more than {MAX_EVENT}"
                            " bytes: see its log"
                        )
        raise SourceError(f"{self._api.who} ended its channel events: is it stopping? see its log")

    def _event(self, line: bytearray, connection: HttpConnection, told: Callable[[], None]) -> None:
        document = decode(line, _EventOrError, self._api.who, _SUBSCRIBE)
        if document.error is not None:
            words = connection.unsecret(document.error.message)
            raise SourceError(
                f"{self._api.who} ended its channel events ({printable(words)!r}): see its log"
            )
        if document.result is not None and document.result.type not in _SAME_CHANNELS:
            told()

    async def close(self) -> None:
        """Stop listening for changes."""
        await self._subscription.close()
