"""One BOLT 8 connection, sans-I/O: bytes in, messages out; messages in, bytes out.

The rule: `receive_data` only takes bytes in, `next_event` only takes events out, one at a time,
and a caller may stop between two events for as long as it likes. Nothing here knows what a
message means. After an error the connection is dead: nothing more is read or written.

States: HANDSHAKE until the last act, then OPEN.
"""

from __future__ import annotations

from dataclasses import dataclass

from peerstore.errors import TransportError
from peerstore.transport.cipher import HEADER_SIZE, MAC_SIZE, ReceiveCipher, SendCipher
from peerstore.transport.handshake import Handshake
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import NodeId

_COMPACT = 1 << 16
"""Bytes already read that may lie in the buffer before they are moved out."""


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The handshake is done; the other side has the key of `node_id`."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """One whole message, type included, 0 to 65535 bytes."""

    data: bytes


Event = Authenticated | MessageReceived


class Connection:
    """One side of a connection.

    With `remote_node_id` it is the initiator, and act one lies ready in `data_to_send` at once.
    """

    __slots__ = (
        "_buffer",
        "_dead",
        "_handshake",
        "_length",
        "_outgoing",
        "_receive",
        "_send",
        "_start",
        "acts_received",
        "outgoing",
    )

    def __init__(
        self,
        local: KeyPair,
        *,
        remote_node_id: NodeId | None = None,
        ephemeral: KeyPair | None = None,
    ) -> None:
        self._buffer = bytearray()
        self._dead = False
        self._start = 0
        self._length = -1
        """Length of the message whose header was read, -1 before that."""
        self._outgoing: list[bytes] = []
        self.outgoing = 0
        """Bytes of messages that wait for `data_to_send`."""
        self._receive: ReceiveCipher | None = None
        self._send: SendCipher | None = None
        self.acts_received = 0
        self._handshake: Handshake | None = Handshake(
            local, remote_node_id=remote_node_id, ephemeral=ephemeral
        )
        if remote_node_id is not None:
            self._outgoing.append(self._handshake.act_one())

    @property
    def authenticated(self) -> bool:
        """Whether the handshake is done."""
        return self._receive is not None

    @property
    def buffered(self) -> int:
        """Bytes received and not yet taken out as events."""
        return len(self._buffer) - self._start

    def receive_data(self, data: bytes | memoryview) -> None:
        """Take in bytes from the other side, in whatever pieces they come."""
        if not self._dead:
            self._buffer += data

    def receive_eof(self) -> None:
        """The other side closed its direction; what it sent before was taken out as events.

        Raises TransportError in the middle of an act, a message or a handshake.
        """
        if self._handshake is not None:
            self._handshake.receive_eof()
        if self.buffered or self._length >= 0:
            raise TransportError("the peer closed in the middle of a message")

    def next_event(self) -> Event | None:
        """The next event, None when more bytes are needed; raises TransportError."""
        if self._dead:
            return None
        try:
            if self._receive is not None:
                return self._next_message(self._receive)
            return self._next_act()
        except TransportError:
            self._dead = True
            self._buffer.clear()
            self._start = 0
            self._outgoing.clear()
            raise

    def send_message(self, message: bytes) -> None:
        """Encrypt a message of at most 65535 bytes, type included, behind those before it."""
        if self._send is None:
            raise RuntimeError("a message can't be sent before the handshake is done")
        if self._dead:
            return
        frame = self._send.encrypt(message)
        self.outgoing += len(frame)
        self._outgoing.append(frame)

    def data_to_send(self) -> bytes:
        """What has to go out since the last call; empty when nothing has."""
        outgoing = self._outgoing
        if not outgoing:
            return b""
        data = outgoing[0] if len(outgoing) == 1 else b"".join(outgoing)
        outgoing.clear()
        self.outgoing = 0
        return data

    def _next_act(self) -> Event | None:
        assert self._handshake is not None  # noqa: S101 - gone only when _receive is there
        while size := self._handshake.act_size:
            # A wrong version is known at its first byte: don't wait for the rest of the act.
            if self.buffered < size and not (self.buffered and self._buffer[self._start]):
                return None
            answer = self._handshake.receive_act(self._take(size))
            self.acts_received += 1
            if answer:
                self._outgoing.append(answer)
        keys = self._handshake.keys
        assert keys is not None  # noqa: S101 - there when no act is left
        self._handshake = None
        self._send = SendCipher(keys.send_key, keys.chaining_key)
        self._receive = ReceiveCipher(keys.receive_key, keys.chaining_key)
        return Authenticated(keys.remote_node_id)

    def _next_message(self, cipher: ReceiveCipher) -> Event | None:
        if self._length < 0:
            if self.buffered < HEADER_SIZE:
                return None
            self._length = cipher.decrypt_header(self._take(HEADER_SIZE))
        size = self._length + MAC_SIZE
        if self.buffered < size:
            return None
        self._length = -1
        end = self._start + size
        with memoryview(self._buffer) as whole, whole[self._start : end] as body:
            message = cipher.decrypt_body(body)
        self._advance(end)
        return MessageReceived(message)

    def _take(self, size: int) -> bytes:
        end = self._start + size
        taken = bytes(self._buffer[self._start : end])
        self._advance(end)
        return taken

    def _advance(self, start: int) -> None:
        if start >= len(self._buffer):
            self._buffer.clear()
            self._start = 0
        elif start >= _COMPACT:
            del self._buffer[:start]
            self._start = 0
        else:
            self._start = start
