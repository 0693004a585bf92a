"""The daemon as a process, and peers that talk to it over TCP with peerstore's own client."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from peerstore.client import BOTH_DIALECTS, DEFAULT_FEATURES, Client, ConnectionClosedError
from peerstore.connection import Authenticated, Connection
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import Network, NodeAddress
from peerstore.wire.features import OURS
from peerstore.wire.messages import (
    Init,
    Message,
    PeerStorage,
    PeerStorageRetrieval,
    Ping,
    Pong,
    RevokeAndAck,
    decode_message,
)
from tests.daemon import LOOPBACK, Daemon

FULL_SIZE = 65531
INIT = Init(OURS, (Network.REGTEST.chain_hash,))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for every test that leaves it running."""
    daemon = Daemon(tmp_path_factory.mktemp("shared") / "data")
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def daemon(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[Daemon]:
    """A daemon on either event loop."""
    daemon = Daemon(data_dir)
    daemon.loop = request.param
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


async def peer(address: NodeAddress, key: KeyPair, offered: int = DEFAULT_FEATURES) -> Client:
    """A peer that has connected and exchanged init."""
    client = await Client.connect(address, key)
    await client.init(Network.REGTEST, offered=offered)
    return client


async def store(address: NodeAddress, key: KeyPair, blob: bytes) -> None:
    """Connect, store, wait for the confirmation, close."""
    async with await peer(address, key) as client:
        await client.store(blob)
        await client.confirm()


async def given_back(address: NodeAddress, key: KeyPair) -> bytes | None:
    """Connect, see what comes back, close."""
    async with await peer(address, key) as client:
        return await client.retrieve()


async def test_a_confirmed_backup_survives_a_kill(daemon: Daemon) -> None:
    key, blob = KeyPair.generate(), os.urandom(FULL_SIZE)
    await store(daemon.address, key, blob)
    daemon.kill()
    daemon.start()
    assert await given_back(daemon.address, key) == blob


async def test_confirmed_node_and_channel_backups_survive_a_kill_with_what_was_counted(
    daemon: Daemon,
) -> None:
    key, channel_id, secret = KeyPair.generate(), os.urandom(32), os.urandom(32)
    node_backup, channel_backup = os.urandom(32000), os.urandom(32000)
    signed = b"\x00\x84" + channel_id + bytes(66)
    add_htlc = b"\x00\x80" + channel_id + bytes(1000)

    def revoked(secret: bytes) -> bytes:
        return RevokeAndAck(channel_id, secret, key.node_id).encode()

    async with await peer(daemon.address, key, BOTH_DIALECTS) as client:
        await client.store(b"storage")
        await client.store_node_backup(node_backup)
        await client.store_channel_backup(channel_backup, signed, revoked(os.urandom(32)))
        await client.confirm()
        # What comes of the channel later is kept as well; a backup that nothing completes is not.
        await client.send_raw(signed, signed, revoked(secret))
        await client.confirm()
        await client.store_channel_backup(os.urandom(32000), add_htlc)
        await asyncio.to_thread(daemon.kill)
    for _ in range(2):
        daemon.start()
        async with await peer(daemon.address, key, BOTH_DIALECTS) as client:
            assert client.node_backup == node_backup
            assert await client.retrieve() == b"storage"
            assert client.channels.keys() == {channel_id}
            reestablish = client.channels[channel_id]
            assert reestablish.channel_backup == channel_backup
            assert reestablish.next_commitment_number == 4
            assert reestablish.next_revocation_number == 2
            assert reestablish.your_last_per_commitment_secret == secret
            await asyncio.to_thread(daemon.kill)
    daemon.start()


async def test_a_daemon_keeps_its_identity_and_its_backups_over_any_number_of_kills(
    daemon: Daemon,
) -> None:
    key, node_id = KeyPair.generate(), daemon.document["node_id"]
    blob = None
    for _ in range(3):
        assert await given_back(daemon.address, key) == blob
        blob = os.urandom(FULL_SIZE)
        await store(daemon.address, key, blob)
        daemon.kill()
        daemon.start()
        assert daemon.document["node_id"] == node_id
    assert await given_back(daemon.address, key) == blob


async def test_sigterm_under_an_idle_peer_stops_cleanly(daemon: Daemon) -> None:
    key, blob = KeyPair.generate(), os.urandom(FULL_SIZE)
    async with await peer(daemon.address, key) as client:
        await client.store(blob)
        await client.confirm()
        assert await asyncio.to_thread(daemon.stop) == 0
        with pytest.raises(ConnectionClosedError):
            await client.receive()
        assert client.warnings == []
    assert not any(event["level"] in ("warning", "error") for event in daemon.events)
    daemon.start()
    assert await given_back(daemon.address, key) == blob


async def test_sigterm_under_a_peer_in_its_handshake_stops_cleanly(daemon: Daemon) -> None:
    reader, writer = await asyncio.open_connection(daemon.address.host, daemon.address.port)
    connection = Connection(KeyPair.generate(), remote_node_id=daemon.address.node_id)
    writer.write(connection.data_to_send())
    await reader.readexactly(50)
    assert await asyncio.to_thread(daemon.stop) == 0
    assert await reader.read() == b""
    writer.close()


async def test_what_sigterm_finds_unconfirmed_is_confirmed_or_the_connection_closes(
    daemon: Daemon,
) -> None:
    """Peers store all the time; whatever was confirmed to them is there after the stop."""
    keys = [KeyPair.generate() for _ in range(4)]
    busy = asyncio.Event()

    async def store_until_closed(key: KeyPair) -> tuple[list[bytes], int]:
        """Every blob sent, and how many of them were confirmed."""
        sent: list[bytes] = []
        async with await peer(daemon.address, key) as client:
            try:
                while True:
                    sent.append(os.urandom(FULL_SIZE))
                    await client.store(sent[-1])
                    await client.confirm()
                    if len(sent) == 5:
                        busy.set()
            except ConnectionClosedError:
                assert client.warnings == []
        return sent, len(sent) - 1

    async with asyncio.TaskGroup() as group:
        peers = [group.create_task(store_until_closed(key)) for key in keys]
        await busy.wait()
        assert await asyncio.to_thread(daemon.stop) == 0
    daemon.start()
    for key, task in zip(keys, peers, strict=True):
        sent, confirmed = task.result()
        back = await given_back(daemon.address, key)
        if confirmed:
            assert back in sent[confirmed - 1 :]


async def test_what_a_kill_finds_unconfirmed_is_whole_or_not_there(daemon: Daemon) -> None:
    key, first, second = KeyPair.generate(), os.urandom(FULL_SIZE), os.urandom(FULL_SIZE)
    await store(daemon.address, key, first)
    async with await peer(daemon.address, key) as client:
        await client.store(second)
        daemon.kill()
    daemon.start()
    assert await given_back(daemon.address, key) in (first, second)


async def speak_at_once(
    address: NodeAddress, key: KeyPair, *messages: Message, upto: type[Message]
) -> list[Message]:
    """Send act three and the messages in one TCP segment; returns what comes, up to a type."""
    connection = Connection(key, remote_node_id=address.node_id)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(connection.data_to_send())
        connection.receive_data(await reader.readexactly(50))
        assert connection.next_event() == Authenticated(address.node_id)
        for message in messages:
            connection.send_message(message.encode())
        # Act three lies before them in the connection: one write, one segment.
        writer.write(connection.data_to_send())
        received: list[Message] = []
        while not received or not isinstance(received[-1], upto):
            connection.receive_data(await reader.read(1 << 16))
            while (event := connection.next_event()) is not None:
                assert isinstance(event, bytes)
                received.append(decode_message(event))
        return received
    finally:
        writer.close()
        await writer.wait_closed()


async def test_what_is_stored_comes_back_before_an_update_in_the_same_segment_is_looked_at(
    shared: Daemon,
) -> None:
    key, old, new = KeyPair.generate(), b"old" * 500, b"new" * 500
    await store(shared.address, key, old)
    received = await speak_at_once(shared.address, key, INIT, PeerStorage(new), Ping(1), upto=Pong)
    assert received == [INIT, PeerStorageRetrieval(old), Pong(b"\0")]
    assert await given_back(shared.address, key) == new


async def test_a_first_update_in_one_segment_with_the_handshake_is_stored(shared: Daemon) -> None:
    key, blob = KeyPair.generate(), b"first"
    received = await speak_at_once(shared.address, key, INIT, PeerStorage(blob), Ping(0), upto=Pong)
    assert received == [INIT, Pong()]
    assert await given_back(shared.address, key) == blob


async def test_a_newer_connection_replaces_the_older_and_gets_what_that_one_stored(
    shared: Daemon,
) -> None:
    key, blob = KeyPair.generate(), os.urandom(FULL_SIZE)
    async with await peer(shared.address, key) as older:
        await older.store(blob)
        await older.confirm()
        async with await peer(shared.address, key) as newer:
            with pytest.raises(ConnectionClosedError):
                await older.receive()
            assert older.warnings == []
            assert await newer.retrieve() == blob


async def test_what_a_replaced_connection_handed_in_is_given_back_unless_it_was_not_confirmed(
    shared: Daemon,
) -> None:
    key = KeyPair.generate()
    before: bytes | None = None
    blob: bytes | None = None
    async with AsyncExitStack() as stack:
        older: Client | None = None
        for number in range(20):
            newer = await stack.enter_async_context(await peer(shared.address, key))
            back = await newer.retrieve()
            if older is not None and not await pong_came(older):
                assert back in (before, blob)
            else:
                assert back == blob
            before, blob = back, number.to_bytes(4, "big") * 1000
            # Nobody waits for what becomes of it: the next connection comes at once.
            await newer.send_raw(PeerStorage(blob).encode(), Ping(1).encode())
            older = newer


async def pong_came(client: Client) -> bool:
    """Whether a pong came before the connection was closed."""
    try:
        while not isinstance(await client.receive(), Pong):
            pass
    except ConnectionClosedError:
        return False
    return True


async def test_identities_never_get_each_others_backups(shared: Daemon) -> None:
    keys = [KeyPair.generate() for _ in range(16)]

    async def live(key: KeyPair) -> None:
        expected = None
        for number in range(4):
            assert await given_back(shared.address, key) == expected
            expected = key.node_id + os.urandom(1000 * number)
            await store(shared.address, key, expected)

    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(live(key))
    for key in keys:
        back = await given_back(shared.address, key)
        assert back is not None
        assert back[:33] == key.node_id
    assert await given_back(shared.address, KeyPair.generate()) is None


@pytest.fixture
def ipv6_daemon(data_dir: Path) -> Iterator[Daemon]:
    """A daemon that listens on [::1] and 127.0.0.1."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"this host has no IPv6 loopback: {error.strerror}")
    daemon = Daemon(data_dir, [*LOOPBACK, 'listen.addresses=["[::1]:0", "127.0.0.1:0"]'])
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


async def test_peers_come_in_over_ipv6_and_ipv4(ipv6_daemon: Daemon) -> None:
    ipv6, ipv4 = map(NodeAddress.parse, ipv6_daemon.document["uris"])
    assert (ipv6.host, ipv4.host) == ("::1", "127.0.0.1")
    key, blob = KeyPair.generate(), os.urandom(FULL_SIZE)
    await store(ipv6, key, blob)
    assert await given_back(ipv4, key) == blob
    assert await given_back(ipv6, key) == blob


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_daemon_without_peers_stops_at_once(daemon: Daemon, number: signal.Signals) -> None:
    assert daemon.stop(number) == 0
    assert [event["event"] for event in daemon.events] == [
        "key_made",
        "serving",
        "stopping",
        "stopped",
    ]
    assert daemon.events[1]["loop"] == daemon.loop


async def test_more_peers_than_descriptors_are_served_one_after_another(data_dir: Path) -> None:
    daemon = Daemon(data_dir)
    daemon.descriptors = 120
    daemon.start()
    try:
        honest = KeyPair.generate()
        await store(daemon.address, honest, b"kept")
        strangers = [await peer(daemon.address, KeyPair.generate()) for _ in range(150)]
        assert await given_back(daemon.address, honest) == b"kept"
        for stranger in strangers:
            await stranger.close()
        (few,) = [event for event in daemon.events if event["event"] == "few_descriptors"]
        assert (few["descriptors"], few["max_connections"]) == (120, 42)
        refused = [e for e in daemon.events if e["event"] == "connection_refused"]
        assert {event["reason"] for event in refused} == {"full"}
        assert 0 < len(refused) < 150
        # What fail2ban looks for stands in the line as the README has it.
        assert '"address": "127.0.0.1", "reason": "full"' in daemon.log
        assert not any(event["event"] == "accept_failed" for event in daemon.events)
    finally:
        daemon.close()
