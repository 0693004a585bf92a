"""Electrum's transport alone, in either role: run by the system's Python.

    /usr/bin/python3 tests/electrum_transport.py initiator node_id@host:port SEED COUNT
    /usr/bin/python3 tests/electrum_transport.py responder - SEED COUNT

Exchanges as many messages with the other side as it is told, both ways at once. The responder
first prints where it listens, as node_id@host:port. At the end each prints one JSON object with
how many messages came, how many were the expected ones, and whose they were.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from electrum import constants
from electrum.lntransport import LNResponderTransport, LNTransport
from electrum.lnutil import LNPeerAddr, privkey_to_pubkey
from exchanged import messages


async def exchange(transport: Any, seed: int, count: int) -> dict[str, Any]:
    """Send ours and compare theirs."""

    async def send() -> None:
        for message in messages(seed, "electrum", count):
            transport.send_bytes(message)
            await transport.writer.drain()

    sending = asyncio.create_task(send())
    received = equal = 0
    expected = messages(seed, "peerstore", count)
    async for message in transport.read_messages():
        received += 1
        equal += message == next(expected)
        if received == count:
            break
    await sending
    transport.close()
    return {"received": received, "equal": equal, "remote": transport.remote_pubkey().hex()}


async def initiate(address: str, seed: int, count: int) -> dict[str, Any]:
    """Connect."""
    node_id, _, host_port = address.partition("@")
    host, _, port = host_port.rpartition(":")
    peer = LNPeerAddr(host, int(port), bytes.fromhex(node_id))
    transport = LNTransport(os.urandom(32), peer, proxy=None)
    await transport.handshake()
    return await exchange(transport, seed, count)


async def respond(seed: int, count: int) -> dict[str, Any]:
    """Be connected to."""
    key = os.urandom(32)
    done: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = LNResponderTransport(key, reader, writer)
        try:
            await transport.handshake()
            done.set_result(await exchange(transport, seed, count))
        except Exception as error:
            done.set_exception(error)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    sys.stdout.write(f"{privkey_to_pubkey(key).hex()}@{host}:{port}\n")
    sys.stdout.flush()
    result = await done
    server.close()
    return result


def main(role: str, address: str, seed: str, count: str) -> None:
    """One connection."""
    constants.set_regtest()
    if role == "initiator":
        result = asyncio.run(initiate(address, int(seed), int(count)))
    else:
        result = asyncio.run(respond(int(seed), int(count)))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
