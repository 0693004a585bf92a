"""Routing nodes that answer as lightningd, lnd and eclair do, and go wrong when they are told to.

What they hold is the same for all, so that one suite serves every source; what they say has the
fields and shapes of the real APIs, each with its source beside it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import enum
import ipaddress
import json
import ssl
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from peerstore.channels.answers import ANSWER_SECONDS, MAX_ANSWER
from peerstore.channels.base import ChannelSource
from peerstore.channels.cln import ClnSource
from peerstore.channels.eclair import EclairSource
from peerstore.channels.lnd import LndSource
from peerstore.types import Network

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Kind(enum.Enum):
    """What a channel is, for every node."""

    OPEN = enum.auto()
    PENDING = enum.auto()
    """Its funding transaction is not confirmed."""
    CLOSING = enum.auto()
    """Its closing transaction is not mined."""
    CLOSED = enum.auto()


@dataclass(frozen=True)
class Row:
    """A channel of a fake: ids in hexadecimal, `height` of its closing as far as it is known."""

    node_id: str
    txid: str
    index: int
    kind: Kind = Kind.OPEN
    height: int | None = None

    @property
    def channel_id(self) -> str:
        """BOLT 2: the txid's bytes, the other way round than it is written, XOR the index."""
        data = bytearray(bytes.fromhex(self.txid)[::-1])
        data[30] ^= self.index >> 8
        data[31] ^= self.index & 0xFF
        return data.hex()


def row(peer: int, number: int, kind: Kind = Kind.OPEN, height: int | None = None) -> Row:
    """A channel with ids made of numbers."""
    return Row(f"02{peer:064x}", f"{number:064x}", number % 3 * 257, kind, height)


class Fault(enum.Enum):
    """How a node goes wrong."""

    CUT = "hangs up in the middle of an answer"
    SILENT = "accepts a question and never answers"
    NONSENSE = "answers with what is no JSON"
    ENDLESS = "never comes to the end of an answer"
    EMPTY = "leaves all fields out"
    TYPES = "has values of other types in its fields"
    DEEP = "nests its answer deeper than anything can read"


_ENDLESS = b'{"result":{"channels":["' + b"x" * 65536
_DEEP = b'{"result":' * 100_000


class FakeNode(ABC):
    """A node; `restart` and `stop` may be called at any time."""

    secret = "7e11n0b0dy"  # noqa: S105 - of a fake
    network = "regtest"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rows: list[Row] = []
        self.node_id = "033845802d25b4e074ccfd7cd8b339a41dc75bf9978a034800444b51d42b07799a"
        self.height = 700
        self.synced = True
        self.fault: Fault | None = None
        self.answers: dict[str, object] = {}
        """What is answered to a method or path in place of the right thing."""
        self.asked: list[str] = []
        self.then: tuple[int, list[Row]] | None = None
        """After how many questions it has other channels."""
        self.subscribers = 0
        self.subscribed = asyncio.Condition()
        """Notified when `subscribers` has risen."""

    @abstractmethod
    async def start(self) -> None:
        """Listen."""

    @abstractmethod
    async def stop(self) -> None:
        """Hang up on everybody, and listen no more."""

    @abstractmethod
    def source(
        self,
        network: Network = Network.REGTEST,
        seconds: float = ANSWER_SECONDS,
        max_answer: int = MAX_ANSWER,
    ) -> ChannelSource:
        """What asks this node."""

    @abstractmethod
    async def change(self) -> None:
        """Tell of a change to whoever listens."""

    @property
    @abstractmethod
    def known_heights(self) -> bool:
        """Whether it says at which heights channels were closed."""

    @property
    @abstractmethod
    def lists(self) -> tuple[str, ...]:
        """Every method or path with channels in its answer."""

    def of(self, *kinds: Kind) -> Iterator[Row]:
        """The channels of some kinds."""
        return (row for row in self.rows if row.kind in kinds)

    def note_answer(self) -> None:
        """An answer has been made."""
        if self.then is not None and len(self.asked) >= self.then[0]:
            self.rows, self.then = self.then[1], None

    async def note_subscriber(self) -> None:
        async with self.subscribed:
            self.subscribers += 1
            self.subscribed.notify_all()

    async def wait_subscribed(self, count: int = 1) -> None:
        """Wait until somebody has begun to listen."""
        async with self.subscribed:
            await self.subscribed.wait_for(lambda: self.subscribers >= count)


# --- Core Lightning ------------------------------------------------------------------------------

CLN_STATES = {
    Kind.OPEN: "CHANNELD_NORMAL",
    Kind.PENDING: "CHANNELD_AWAITING_LOCKIN",
    Kind.CLOSING: "CLOSINGD_COMPLETE",
}


@dataclass
class ClnParts:
    """What lightningd alone has: besides the rows."""

    present: list[dict[str, object]] = field(default_factory=list)
    forgotten: list[dict[str, object]] = field(default_factory=list)
    moves: list[dict[str, object]] = field(default_factory=list)


class FakeCln(FakeNode):
    """lightningd: JSON-RPC on a Unix socket.

    source: ElementsProject/lightning, doc/schemas/{getinfo,listpeerchannels,listclosedchannels,
    listchainmoves,bkpr-listaccountevents,waitblockheight}.json (their examples), lightningd/
    jsonrpc.c for the errors and the two line feeds behind an answer.
    """

    known_heights = True
    lists = ("listpeerchannels", "listclosedchannels", "listchainmoves")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.socket = directory / "lightning-rpc"
        self.parts = ClnParts()
        self.without: set[str] = set()
        """Methods that this version does not know."""
        self.piece = 0
        """Bytes at a time, 0 for all at once."""
        self.wrong_id = False
        self.times_out = 0
        """How many waits end by themselves."""
        self.questions: list[dict[str, Any]] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._block = asyncio.Condition()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.socket, limit=1 << 20)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        self.socket.unlink(missing_ok=True)

    def source(
        self,
        network: Network = Network.REGTEST,
        seconds: float = ANSWER_SECONDS,
        max_answer: int = MAX_ANSWER,
    ) -> ClnSource:
        return ClnSource(self.socket, network, seconds=seconds, max_answer=max_answer)

    async def change(self) -> None:
        async with self._block:
            self.height += 1
            self._block.notify_all()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            decoder, text = json.JSONDecoder(), ""
            while piece := await reader.read(65536):
                text += piece.decode()
                with contextlib.suppress(json.JSONDecodeError):
                    question, end = decoder.raw_decode(text)
                    text = text[end:].lstrip()
                    await self._answer(question, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _answer(self, question: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.questions.append(question)
        self.asked.append(question["method"])
        if self.fault is Fault.CUT:
            writer.write(b'{"jsonrpc":"2.0","id":"peers')
            await writer.drain()
            raise ConnectionResetError
        if self.fault is Fault.SILENT:
            return
        if self.fault is Fault.NONSENSE:
            data = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        elif self.fault is Fault.DEEP:
            data = _DEEP + b"0" + b"}" * 100_000
        elif self.fault is Fault.ENDLESS:
            while True:
                writer.write(_ENDLESS)
                await writer.drain()
        else:
            body = await self._body(question["method"], question["params"])
            self.note_answer()
            if "result" in body:
                body = {"result": _filtered(body["result"], question["filter"])}
                if self.fault in (Fault.EMPTY, Fault.TYPES):
                    body = {"result": _broken(self.fault, body["result"])}
            number = "another-1" if self.wrong_id else question["id"]
            data = json.dumps({"jsonrpc": "2.0", "id": number} | body).encode() + b"\n\n"
        for start in range(0, len(data), self.piece or len(data)):
            writer.write(data[start : start + (self.piece or len(data))])
            await writer.drain()
            if self.piece:
                await asyncio.sleep(0)  # the reader's turn

    async def _body(self, method: str, params: dict[str, Any]) -> dict[str, object]:
        if method in self.without:
            text = f"Unknown command '{method}'"
            return {"error": {"code": -32601, "message": text}}
        if method in self.answers:
            answer = self.answers[method]
            return answer if isinstance(answer, dict) else {"result": answer}
        if method == "waitblockheight":
            return await self._wait(params["blockheight"])
        return {"result": getattr(self, "_" + method.replace("-", "_"))(params)}

    async def _wait(self, height: int) -> dict[str, object]:
        await self.note_subscriber()
        if self.times_out:
            self.times_out -= 1
            return {"error": {"code": 2000, "message": "Timed out."}}
        async with self._block:
            await self._block.wait_for(lambda: self.height >= height)
        return {"result": {"blockheight": self.height}}

    def information(self) -> dict[str, object]:
        """What getinfo answers."""
        return self._getinfo(None)

    def _getinfo(self, _: object) -> dict[str, object]:
        warning = {"warning_lightningd_sync": "Still loading latest blocks from bitcoind."}
        return {
            "id": self.node_id,
            "alias": "SILENTARTIST-v26.09",
            "color": "033845",
            "num_peers": 0,
            "num_pending_channels": 0,
            "num_active_channels": 0,
            "num_inactive_channels": 0,
            "address": [],
            "binding": [{"type": "ipv4", "address": "127.0.0.1", "port": 30003}],
            "version": "v26.09",
            "blockheight": self.height,
            "network": self.network,
            "fees_collected_msat": 0,
            "lightning-dir": "/root/.lightning/regtest",
            "our_features": {"init": "800898882a8a59a1", "node": "", "channel": "", "invoice": ""},
        } | ({} if self.synced else warning)

    def _listpeerchannels(self, _: object) -> object:
        rows = [
            {
                "peer_id": row.node_id,
                "peer_connected": True,
                "channel_type": {"bits": [12, 22], "names": ["static_remotekey/even"]},
                "state": CLN_STATES[row.kind],
                "owner": "channeld",
                "short_channel_id": "116x1x1",
                "channel_id": row.channel_id,
                "funding_txid": row.txid,
                "funding_outnum": row.index,
                "private": False,
                "opener": "remote",
                "features": ["option_static_remotekey"],
                "status": ['CHANNELD_NORMAL:Says "ready" \\ {[ for use.'],
                "htlcs": [],
            }
            for row in self.of(Kind.OPEN, Kind.PENDING, Kind.CLOSING)
        ]
        return {"channels": rows + self.parts.present}

    def _listclosedchannels(self, _: object) -> object:
        rows = [
            {
                "peer_id": row.node_id,
                "channel_id": row.channel_id,
                "opener": "local",
                "closer": "local",
                "private": True,
                "total_local_commitments": 2,
                "funding_txid": row.txid,
                "funding_outnum": row.index,
                "leased": False,
                "close_cause": "user",
            }
            for row in self.of(Kind.CLOSED)
        ]
        return {"closedchannels": rows + self.parts.forgotten}

    def _all_moves(self) -> list[dict[str, object]]:
        closings = [
            cln_move(row.channel_id, row.height)
            for row in self.of(Kind.CLOSED)
            if row.height is not None
        ]
        deposit = cln_move("wallet", 111, tag="deposit")
        moves = [deposit, *closings, *self.parts.moves]
        return [{"created_index": index} | move for index, move in enumerate(moves, 1)]

    def _listchainmoves(self, params: dict[str, Any]) -> object:
        start = params["start"] - 1
        return {"chainmoves": self._all_moves()[start : start + params["limit"]]}

    def _bkpr_listaccountevents(self, _: object) -> object:
        fee = {
            "account": "wallet",
            "type": "onchain_fee",
            "tag": "onchain_fee",
            "credit_msat": 0,
            "debit_msat": 1000,
            "currency": "bcrt",
            "timestamp": 1738000000,
        }
        events = [
            {
                "account": move["account_id"],
                "type": "chain",
                "tag": move["primary_tag"],
                "credit_msat": 0,
                "debit_msat": 0,
                "currency": "bcrt",
                "outpoint": move["utxo"],
                "timestamp": move["timestamp"],
                "blockheight": move["blockheight"],
            }
            for move in self._all_moves()
        ]
        return {"events": [fee, *events]}


def cln_move(
    account: str, height: int, tag: str = "channel_close", extra: tuple[str, ...] = ()
) -> dict[str, object]:
    """An on-chain move, without its index.

    source: the example of a channel_close in doc/schemas/listchainmoves.json
    """
    return {
        "account_id": account,
        "credit_msat": 0,
        "debit_msat": 489809898,
        "timestamp": 1738000029,
        "primary_tag": tag,
        "extra_tags": list(extra),
        "utxo": "31ee4952a09fe652e2a69894e51b84e0ec4315d72a8d3fab243d30096e2a463e:0",
        "spending_txid": "dc446777a9b3d6d5962f502f5d22f66b01452389c1bbe8460491e7376f44a1eb",
        "output_msat": 1000000000,
        "output_count": 2,
        "blockheight": height,
    }


def _filtered(document: Any, template: Any) -> Any:
    """What lightningd's field filter leaves. source: doc/lightningd-rpc.7.md, FIELD FILTERING"""
    if isinstance(template, list):
        return [_filtered(entry, template[0]) for entry in document]
    if isinstance(template, dict) and isinstance(document, dict):
        return {k: _filtered(v, template[k]) for k, v in document.items() if k in template}
    return document


def _broken(fault: Fault, document: object) -> object:
    """A document without its fields, or with odd values in them."""
    if isinstance(document, list):
        return [_broken(fault, entry) for entry in document]
    if fault is Fault.EMPTY or not isinstance(document, dict):
        return {}
    return {key: ["odd"] for key in document}


# --- what lnd and eclair share -------------------------------------------------------------------


class FakeHttp(FakeNode):
    """A node with an HTTP API."""

    method = "GET"
    scheme = "http"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = 0
        self.status = 0
        """An HTTP status to answer with, 0 for the right one."""
        self.content_type = "application/json"
        self.padding = ""
        """What makes each open channel's row longer."""
        self.redirect = ""
        """Where everybody is sent."""
        self.echo = False
        """Whether errors repeat the credentials."""
        self.events: asyncio.Queue[dict[str, object] | bytes | None] = asyncio.Queue()
        """What a subscriber is told; bytes go out as they are, None ends the stream."""
        self._runner: web.AppRunner | None = None
        self._stopping = asyncio.Event()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def tls(self) -> ssl.SSLContext | None:
        return None

    @abstractmethod
    def allowed(self, request: web.Request) -> bool:
        """Whether its credentials are right."""

    @abstractmethod
    def refuse(self, status: int, words: str) -> web.StreamResponse:
        """An error."""

    @abstractmethod
    async def document(self, request: web.Request) -> object:
        """What is answered to a path."""

    @abstractmethod
    async def subscribe(self, request: web.Request) -> web.StreamResponse:
        """Sends what is in `events`."""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(
            app, shutdown_timeout=0, access_log=None, handler_cancellation=True
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls)
        await site.start()
        (address, *_) = self._runner.addresses
        self.port = address[1]

    async def stop(self) -> None:
        if self._runner is not None:
            self._stopping.set()
            await self.events.put(None)
            await self._runner.cleanup()
            self._stopping.clear()
            self._runner = None
            self.events = asyncio.Queue()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.redirect:
            raise web.HTTPTemporaryRedirect(self.redirect)
        if self.status:
            return self.refuse(self.status, self.secret if self.echo else "")
        if not self.allowed(request):
            return self.refuse(0, "")
        if request.path in ("/ws", "/v1/channels/subscribe"):
            return await self.subscribe(request)
        if request.method != self.method:
            return self.refuse(405, "Method Not Allowed")
        if self.fault in (Fault.CUT, Fault.SILENT, Fault.ENDLESS):
            return await self._unending(request)
        if self.fault is Fault.NONSENSE:
            return web.Response(body=b'{"channels": [nonsense', content_type=self.content_type)
        if self.fault is Fault.DEEP:
            return web.Response(body=_DEEP, content_type=self.content_type)
        document = self.answers.get(request.path)
        if document is None:
            document = await self.document(request)
            self.note_answer()
        if self.fault is not None:
            document = _broken(self.fault, document)
        return web.Response(body=json.dumps(document).encode(), content_type=self.content_type)

    async def _unending(self, request: web.Request) -> web.StreamResponse:
        if self.fault is Fault.SILENT:
            await self._stopping.wait()
        response = web.StreamResponse(headers={"Content-Type": self.content_type})
        response.enable_chunked_encoding()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            await response.write(b'{"block_height":')
            while self.fault is Fault.ENDLESS:
                await response.write(_ENDLESS)
        assert request.transport
        request.transport.abort()
        return response


# --- lnd -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate and its key, PEM."""

    certificate: bytes
    key: bytes

    def write(self, directory: Path) -> Path:
        """Put it where lnd has it; returns the certificate's path."""
        (directory / "tls.key").write_bytes(self.key)
        path = directory / "tls.cert"
        path.write_bytes(self.certificate)
        return path


def make_certificate(
    days: int = 425, *, names: bool = True, authority: Certificate | None = None
) -> Certificate:
    """A certificate that ends so many days from now, signed by itself or an authority.

    source: lightningnetwork/lnd, cert/selfsigned.go (P-256, its own authority, the names and
    addresses that it has with tlsdisableautofill)
    """
    key = ec.generate_private_key(ec.SECP256R1())
    issuer, name = (
        x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "lnd autogenerated cert"),
                x509.NameAttribute(NameOID.COMMON_NAME, host),
            ]
        )
        for host in ("localhost", "localhost" if authority is None else "signed")
    )
    now = datetime.datetime.now(datetime.UTC)
    hosts = ("localhost", "unix", "unixpacket", "bufconn") if names else ("elsewhere",)
    addresses = ("127.0.0.1", "::1") if names else ()
    subjects: list[x509.GeneralName] = [
        *(x509.DNSName(host) for host in hosts),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
    ]
    signer = key
    if authority is not None:
        loaded = serialization.load_pem_private_key(authority.key, None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer = loaded
    usage = dict.fromkeys(
        (
            "content_commitment",
            "data_encipherment",
            "key_agreement",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=500))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, key_encipherment=True, key_cert_sign=True, **usage
            ),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(subjects), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return Certificate(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        ),
    )


class FakeLnd(FakeHttp):
    """lnd: REST over TLS.

    source: lightningnetwork/lnd, lnrpc/lightning.swagger.json; lnd.go for the field names and that
    what is empty is sent too; macaroons/service.go for the refusals, which grpc-gateway turns into
    HTTP 500; grpc-ecosystem/grpc-gateway, runtime/handler.go for the stream, whose head goes out
    with its first event.
    """

    scheme = "https"
    known_heights = True
    lists = ("/v1/channels", "/v1/channels/pending", "/v1/channels/closed")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.macaroon = directory / "readonly.macaroon"
        self.macaroon.write_bytes(b"\x02\x01\x03lnd" + self.secret.encode())
        self.secret = self.macaroon.read_bytes().hex()
        self.tls_cert = make_certificate().write(directory)

    @property
    def tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "tls.cert", self.directory / "tls.key")
        return context

    def source(
        self,
        network: Network = Network.REGTEST,
        seconds: float = ANSWER_SECONDS,
        max_answer: int = MAX_ANSWER,
    ) -> LndSource:
        return LndSource(
            self.url,
            self.tls_cert,
            self.macaroon,
            network,
            seconds=seconds,
            max_answer=max_answer,
        )

    def allowed(self, request: web.Request) -> bool:
        return request.headers.get("Grpc-Metadata-macaroon") == self.secret

    def refuse(self, status: int, words: str) -> web.StreamResponse:
        words = words or (
            "something failed"
            if status
            else "verification failed: signature mismatch after caveat verification"
        )
        document = {"code": 2, "message": words, "details": []}
        return web.json_response(document, status=status or 500)

    async def document(self, request: web.Request) -> object:
        if request.path == "/v1/getinfo":
            return {
                "version": "0.20.0-beta",
                "identity_pubkey": self.node_id,
                "num_active_channels": 1,
                "block_height": self.height,
                "best_header_timestamp": "1738000000",
                "synced_to_chain": self.synced,
                "synced_to_graph": False,
                "testnet": False,
                "chains": [{"chain": "bitcoin", "network": self.network}],
                "uris": [],
            }
        if request.path == "/v1/channels":
            return {"channels": [self._open(row) for row in self.of(Kind.OPEN)]}
        if request.path == "/v1/channels/pending":
            pending = [{"channel": self._pending(row)} for row in self.of(Kind.PENDING)]
            waiting = [
                {"channel": self._pending(row), "closing_txid": "", "close_height": 0}
                for row in self.of(Kind.CLOSING)
            ]
            return {
                "total_limbo_balance": "0",
                "pending_open_channels": pending,
                "pending_closing_channels": [],
                "pending_force_closing_channels": [
                    {
                        "channel": self._pending(row),
                        "closing_txid": "00" * 32,
                        "maturity_height": self.height + 1,
                        "pending_htlcs": [],
                    }
                    for row in self.of(Kind.CLOSING)
                ],
                "waiting_close_channels": waiting,
            }
        if request.path == "/v1/channels/closed":
            return {"channels": [self._closed(row) for row in self.of(Kind.CLOSED)]}
        raise web.HTTPNotFound

    def _open(self, row: Row) -> object:
        return {
            "active": True,
            "remote_pubkey": row.node_id,
            "channel_point": f"{row.txid}:{row.index}",
            "chan_id": "127543348953088",
            "capacity": "1000000",
            "pending_htlcs": [],
            "private": False,
            "commitment_type": "ANCHORS",
            "memo": self.padding,
        }

    def _pending(self, row: Row) -> object:
        return {
            "remote_node_pub": row.node_id,
            "channel_point": f"{row.txid}:{row.index}",
            "capacity": "1000000",
            "initiator": "INITIATOR_REMOTE",
        }

    def _closed(self, row: Row) -> object:
        return {
            "channel_point": f"{row.txid}:{row.index}",
            "chan_id": "127543348953088",
            "chain_hash": "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206",
            "closing_tx_hash": "00" * 32,
            "remote_pubkey": row.node_id,
            "capacity": "1000000",
            "close_height": row.height or 0,
            "close_type": "COOPERATIVE_CLOSE" if row.height else "FUNDING_CANCELED",
            "resolutions": [],
        }

    async def subscribe(self, request: web.Request) -> web.StreamResponse:
        await self.note_subscriber()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        while (event := await self.events.get()) is not None:
            if not response.prepared:
                await response.prepare(request)
            data = event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n"
            await response.write(data)
        return response

    async def change(self) -> None:
        await self.events.put(lnd_event("ACTIVE_CHANNEL"))
        await self.events.put(lnd_event("OPEN_CHANNEL"))


def lnd_event(kind: str) -> dict[str, object]:
    """An event of a channel.

    source: lnrpcChannelEventUpdate in lnrpc/lightning.swagger.json
    """
    return {"result": {"type": kind, "open_channel": {"active": True, "remote_pubkey": "02"}}}


# --- eclair --------------------------------------------------------------------------------------

ECLAIR_STATES = {
    Kind.OPEN: "NORMAL",
    Kind.PENDING: "WAIT_FOR_FUNDING_CONFIRMED",
    Kind.CLOSING: "CLOSING",
}


class FakeEclair(FakeHttp):
    """eclair: forms over HTTP, and a websocket.

    source: ACINQ/eclair, eclair-node/src/test/resources/api/getinfo; RES_GET_CHANNEL_INFO and
    DATA_CLOSED in ChannelData.scala; Channel.scala and ExtraDirectives.scala of the API for the
    pages; ApiServiceSpec.scala for the events; ErrorResponse.scala.
    """

    method = "POST"
    known_heights = False
    lists = ("/channels", "/closedchannels")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.password_file = directory / "password"
        self.password_file.write_text(self.secret + "\n")
        self.old_rows = False
        """Whether closed channels look as they did before 0.13.1."""
        self.ignores_skip = False
        self.states: list[dict[str, object]] = []
        """Channels besides the rows."""

    def source(
        self,
        network: Network = Network.REGTEST,
        seconds: float = ANSWER_SECONDS,
        max_answer: int = MAX_ANSWER,
    ) -> EclairSource:
        return EclairSource(
            self.url, self.password_file, network, seconds=seconds, max_answer=max_answer
        )

    def allowed(self, request: web.Request) -> bool:
        basic = base64.b64encode(f":{self.secret}".encode()).decode()
        return request.headers.get("Authorization") == f"Basic {basic}"

    def refuse(self, status: int, words: str) -> web.StreamResponse:
        words = words or (
            "API call failed: check logs for more details"
            if status
            else "The supplied authentication is invalid"
        )
        return web.json_response({"error": words}, status=status or 401)

    async def document(self, request: web.Request) -> object:
        if request.path == "/getinfo":
            return {
                "version": "1.0.0-SNAPSHOT-e3f1ec0",
                "nodeId": self.node_id,
                "alias": "alice",
                "color": "#000102",
                "features": {"activated": {"gossip_queries_ex": "optional"}},
                "chainHash": Network(self.network).chain_hash.hex(),
                "network": self.network,
                "blockHeight": self.height if self.synced else 0,
                "publicAddresses": ["127.0.0.1:9731"],
                "instanceId": "01234567-0123-4567-89ab-0123456789ab",
            }
        if request.path == "/channels":
            return [
                self._channel(row, ECLAIR_STATES[row.kind])
                for row in self.of(Kind.OPEN, Kind.PENDING, Kind.CLOSING)
            ] + self.states
        if request.path == "/closedchannels":
            form = await request.post()
            count, skip = int(str(form.get("count", 10))), int(str(form.get("skip", 0)))
            closed = list(self.of(Kind.CLOSED))
            page = closed[: count if self.ignores_skip else skip + count]
            return [self._closed(row) for row in page[0 if self.ignores_skip else skip :]]
        raise web.HTTPNotFound

    def _channel(self, row: Row, state: str) -> dict[str, object]:
        return {
            "nodeId": row.node_id,
            "channelId": row.channel_id,
            "state": state,
            "data": {
                "type": "DATA_NORMAL",
                "commitments": {
                    "channelParams": {"channelFeatures": ["option_static_remotekey"]},
                    "active": [{"fundingTxIndex": 0, "localCommit": {"htlcs": [{}, {}]}}],
                },
                "aliases": {"localAlias": "0x1"},
                "padding": self.padding,
            },
        }

    def _closed(self, row: Row) -> dict[str, object]:
        if self.old_rows:
            return self._channel(row, "CLOSED")
        return {
            "channelId": row.channel_id,
            "remoteNodeId": row.node_id,
            "fundingTxId": row.txid,
            "fundingOutputIndex": row.index,
            "fundingTxIndex": 0,
            "channelFeatures": "option_static_remotekey",
            "isChannelOpener": False,
            "announced": True,
            "capacity": 1000000,
            "closingTxId": "00" * 32,
            "closingType": "mutual-close",
            "closingAmount": 1000,
        }

    async def subscribe(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await self.note_subscriber()
        # Read, too: else the other side's goodbye stays unanswered.
        reader = asyncio.create_task(socket.receive())
        try:
            while not reader.done():
                following = asyncio.create_task(self.events.get())
                await asyncio.wait((reader, following), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    break
                if (event := following.result()) is None:
                    break
                text = event.decode() if isinstance(event, bytes) else json.dumps(event)
                await socket.send_str(text)
        finally:
            reader.cancel()
            await asyncio.wait((reader,))
            await socket.close(code=WSCloseCode.GOING_AWAY)
        return socket

    async def change(self) -> None:
        await self.events.put({"type": "payment-relayed", "amountIn": 100000021})
        await self.events.put(
            {
                "type": "channel-state-changed",
                "channelId": "01" + "00" * 31,
                "remoteNodeId": "02" + "1f" * 32,
                "previousState": "OFFLINE",
                "currentState": "NORMAL",
            }
        )
