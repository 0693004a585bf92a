"""One BOLT 8 connection, sans-I/O: bytes in, messages out; messages in, bytes out.

The rule: `receive_data` only takes bytes in, `next_event` only takes events out, one at a time,
and a caller may stop between two events for as long as it likes. What lay in the bytes taken in is
not looked at again: what is kept of them is a copy, or the first message decrypted. Nothing here
knows what a message means. After an error the connection is dead: nothing more is read or written.

States: HANDSHAKE until the last act, then OPEN.
"""

from __future__ import annotations

from dataclasses import dataclass

from peerstore.errors import DecryptionError, TransportError
from peerstore.transport.cipher import (
    FRAME_OVERHEAD,
    HEADER_SIZE,
    MAC_SIZE,
    ReceiveCipher,
    SendCipher,
)
from peerstore.transport.handshake import Handshake
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import NodeId


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The handshake is done; the other side has the key of `node_id`."""

    node_id: NodeId


Event = Authenticated | bytes
"""Bytes are one whole message, type included, 0 to 65535 of them."""


class Connection:
    """One side of a connection.

    With `remote_node_id` it is the initiator, and act one lies ready in `data_to_send` at once.
    """

    __slots__ = (
        "_buffer",
        "_dead",
        "_handshake",
        "_length",
        "_message",
        "_outgoing",
        "_receive",
        "_send",
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
        self._length = -1
        """Length of the message that begins the buffer, -1 while its header is not decrypted."""
        self._message: bytes | None = None
        """The message before those of the buffer, decrypted when it came; the next event."""
        self._dead = False
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
        waiting = 0 if self._message is None else len(self._message) + FRAME_OVERHEAD
        return len(self._buffer) + waiting

    def receive_data(self, data: bytes | memoryview) -> None:
        """Take in bytes from the other side, in whatever pieces they come.

        `data` is the caller's to overwrite afterwards.
        """
        if self._dead:
            return
        if self._receive is not None and not self.buffered:
            # A message that is whole need not be copied to be decrypted.
            try:
                self._message = self._decrypt(self._receive, data)
            except DecryptionError:
                self._message = None  # next_event finds the same, in its turn
            if self._message is not None:
                data = data[len(self._message) + FRAME_OVERHEAD :]
        self._buffer += data

    def receive_eof(self) -> None:
        """The other side closed its direction; what it sent before was taken out as events.

        Raises TransportError in the middle of an act, a message or a handshake.
        """
        if self._handshake is not None:
            self._handshake.receive_eof()
        if self.buffered:
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
            # A new one: the error may still hold a part of the old one.
            self._buffer = bytearray()
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
        buffer = self._buffer
        while size := self._handshake.act_size:
            # A wrong version is known at its first byte: don't wait for the rest of the act.
            if len(buffer) < size and not (buffer and buffer[0]):
                return None
            act = bytes(buffer[:size])
            del buffer[:size]
            answer = self._handshake.receive_act(act)
            self.acts_received += 1
            if answer:
                self._outgoing.append(answer)
        keys = self._handshake.keys
        assert keys is not None  # noqa: S101 - there when no act is left
        self._handshake = None
        self._send = SendCipher(keys.send_key, keys.chaining_key)
        self._receive = ReceiveCipher(keys.receive_key, keys.chaining_key)
        return Authenticated(keys.remote_node_id)

    def _next_message(self, cipher: ReceiveCipher) -> bytes | None:
        message = self._message
        if message is not None:
            self._message = None
            return message
        if not self._buffer:
            return None
        with memoryview(self._buffer) as data:
            message = self._decrypt(cipher, data)
        if message is not None:
            del self._buffer[: len(message) + FRAME_OVERHEAD]
        return message

    def _decrypt(self, cipher: ReceiveCipher, data: bytes | memoryview) -> bytes | None:
        """The message at the front of `data`, None while it is not whole."""
        if len(data) < HEADER_SIZE:
            return None
        if self._length < 0:
            self._length = cipher.decrypt_header(data[:HEADER_SIZE])
        end = HEADER_SIZE + self._length + MAC_SIZE
        if len(data) < end:
            return None
        message = cipher.decrypt_body(data[HEADER_SIZE:end])
        self._length = -1
        return message
