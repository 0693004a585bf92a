"""Electrum as a peer of a provider: run by the system's Python, which knows nothing of peerstore.

    /usr/bin/python3 tests/electrum_peer.py node_id@host:port

Electrum's own `lnpeer.Peer` and `lntransport.LNTransport` shake hands, judge the provider's
`init`, send Electrum's, and ping; only the storage messages, which Electrum does not know, are
made here. Prints one JSON object with what happened and judges nothing itself.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

from electrum import constants
from electrum.lnmsg import decode_msg
from electrum.lnpeer import Peer
from electrum.lntransport import LNTransport
from electrum.lnutil import (
    IncompatibleLightningFeatures,
    LnFeatures,
    LNPeerAddr,
    list_enabled_bits,
    ln_compare_features,
)
from electrum.lnworker import LNWALLET_FEATURES
from electrum.version import ELECTRUM_VERSION

PEER_STORAGE = 7
PONG = 19

SIZE = 65531
ROUND_TRIPS = 1200
"""Pings, and as many pongs; keys rotate every 500 messages each way."""

# Electrum's wallets before 4.6.0 demand gossip_queries (bit 6), which this provider leaves out
# on purpose. Here it is optional; all else is what Electrum itself offers and demands.
FEATURES = (LNWALLET_FEATURES & ~LnFeatures.GOSSIP_QUERIES_REQ) | LnFeatures.GOSSIP_QUERIES_OPT

# LNWALLET_FEATURES in electrum/lnworker.py of Electrum 4.8.1, commit 923578010e56.
FEATURES_4_8_1 = LnFeatures(
    sum(1 << bit for bit in (0, 1, 5, 8, 9, 12, 13, 14, 15, 17, 19, 22, 23, 27, 44, 45, 47, 151))
)


class Connection:
    """One connection of Electrum's, with the types of the messages that came."""

    def __init__(self, address: LNPeerAddr, key: bytes) -> None:
        self.sent = 0
        self.received: list[int] = []
        self._transport = LNTransport(key, address, proxy=None)
        self._encrypt_and_send = self._transport.send_bytes
        self._transport.send_bytes = self._send
        worker = SimpleNamespace(
            network=SimpleNamespace(asyncio_loop=asyncio.get_running_loop()),
            features=FEATURES,
            on_peer_successfully_established=lambda peer: None,
        )
        self._peer = Peer(worker, address.pubkey, self._transport)

    async def open(self) -> dict[str, Any]:
        """Shake hands and exchange init; returns the provider's as Electrum reads it.

        Raises GracefulDisconnect, Electrum's own, when Electrum would hang up.
        """
        await self._peer.initialize()
        self._messages = self._transport.read_messages()
        name, init = decode_msg(await self.receive())
        assert name == "init", name
        assert self._peer.is_initialized()
        return dict(init)

    async def receive(self) -> bytes:
        """The next message, after Electrum has processed it."""
        message: bytes = await self._messages.__anext__()
        self.received.append(_type(message))
        self._peer.process_message(message)
        return message

    def store(self, blob: bytes) -> None:
        """Send a peer_storage."""
        self._send(PEER_STORAGE.to_bytes(2, "big") + len(blob).to_bytes(2, "big") + blob)

    async def confirm(self) -> None:
        """Ping, and read until the pong has come."""
        self._peer.send_message("ping", num_pong_bytes=4, byteslen=4)
        while _type(await self.receive()) != PONG:
            pass

    async def close(self) -> None:
        """Close the connection."""
        await self._messages.aclose()
        self._transport.close()
        await self._transport.writer.wait_closed()

    def summary(self) -> dict[str, Any]:
        """How many messages were sent, and what came: each type with its run's length."""
        runs = [[number, len(list(run))] for number, run in itertools.groupby(self.received)]
        return {"sent": self.sent, "received": runs}

    def _send(self, message: bytes) -> None:
        self.sent += 1
        self._encrypt_and_send(message)


def _type(message: bytes) -> int:
    return int.from_bytes(message[:2], "big")


def verdict(features: LnFeatures, theirs: int) -> str | None:
    """What Electrum's feature check says to a provider: None when it takes it."""
    try:
        ln_compare_features(features, theirs)
    except IncompatibleLightningFeatures as error:
        return str(error)
    return None


async def main(uri: str) -> dict[str, Any]:
    """Store, come back, pass 1000 messages each way, store again, come back."""
    constants.set_regtest()
    node_id, _, host_port = uri.partition("@")
    host, _, port = host_port.rpartition(":")
    address = LNPeerAddr(host, int(port), bytes.fromhex(node_id))
    key = os.urandom(32)
    blobs = os.urandom(SIZE), os.urandom(SIZE)

    first = Connection(address, key)
    init = await first.open()
    first.store(blobs[0])
    await first.confirm()
    await first.close()

    second = Connection(address, key)
    await second.open()
    retrieved = [await second.receive()]
    for _ in range(ROUND_TRIPS):
        await second.confirm()
    second.store(blobs[1])
    await second.confirm()
    await second.close()

    third = Connection(address, key)
    await third.open()
    retrieved.append(await third.receive())
    await third.confirm()
    await third.close()

    theirs = int.from_bytes(init["features"], "big") | int.from_bytes(init["globalfeatures"], "big")
    return {
        "electrum": ELECTRUM_VERSION,
        "features": list_enabled_bits(theirs),
        "refused_by": {
            "its own wallet": verdict(LNWALLET_FEATURES, theirs),
            "its own wallet, gossip_queries optional": verdict(FEATURES, theirs),
            "the wallet of 4.8.1": verdict(FEATURES_4_8_1, theirs),
        },
        "connections": [connection.summary() for connection in (first, second, third)],
        # The first message after init, which must be peer_storage_retrieval (9).
        "given_back": [
            {"type": _type(message), "equal": message[4:] == blob, "size": len(message) - 4}
            for message, blob in zip(retrieved, blobs, strict=True)
        ],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(sys.argv[1]))) + "\n")
