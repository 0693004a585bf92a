"""Messages after the handshake (BOLT 8, Lightning Message Specification), sans-I/O.

A message is its length (2 bytes) and its body, each encrypted on its own with a 16-byte MAC. A
key is used 1000 times, for lengths and bodies alike, and then replaced by BOLT 8's own rotation
(Lightning Message Key Rotation), which is not Noise's rekey.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from peerstore.errors import DecryptionError

MAC_SIZE = 16
HEADER_SIZE = 2 + MAC_SIZE
FRAME_OVERHEAD = HEADER_SIZE + MAC_SIZE
"""Bytes on the wire beside those of the message."""
MAX_MESSAGE_SIZE = 65535
ROTATION = 1000
"""Uses of a key before it is replaced."""

_nonce = struct.Struct("<4xQ").pack
"""4 zero bytes, then the count as a little-endian u64 (BOLT 8, Handshake State)."""


_SHA256 = hashes.SHA256()


def hkdf(salt: bytes, key: bytes) -> tuple[bytes, bytes]:
    """RFC 5869 with SHA-256 and no info, cut into two keys of 32 bytes."""
    keys = HKDF(_SHA256, 64, salt, None).derive(key)
    return keys[:32], keys[32:]


class _CipherState:
    """A key, its nonce and the chaining key from which the next one comes."""

    __slots__ = ("_aead", "_chaining_key", "_count", "_key")

    def __init__(self, key: bytes, chaining_key: bytes) -> None:
        self._key = key
        self._chaining_key = chaining_key
        self._count = 0
        self._aead = ChaCha20Poly1305(key)

    def _rotate(self) -> None:
        self._chaining_key, self._key = hkdf(self._chaining_key, self._key)
        self._aead = ChaCha20Poly1305(self._key)
        self._count = 0


class SendCipher(_CipherState):
    """Our direction."""

    __slots__ = ()

    def encrypt(self, message: bytes) -> bytes:
        """The bytes on the wire of one message; raises ValueError over 65535 bytes."""
        size = len(message)
        if size > MAX_MESSAGE_SIZE:
            raise ValueError(f"a message of {size} bytes does not fit into BOLT 8's frame")
        if self._count == ROTATION:
            self._rotate()
        count = self._count
        # Whatever comes of it, no nonce is used twice.
        self._count = count + 2
        header = self._aead.encrypt(_nonce(count), size.to_bytes(2, "big"), None)
        return header + self._aead.encrypt(_nonce(count + 1), message, None)


class ReceiveCipher(_CipherState):
    """The other side's direction.

    What can't be decrypted changes nothing: it can't be decrypted the next time either.
    """

    __slots__ = ()

    def decrypt_header(self, header: bytes | bytearray | memoryview) -> int:
        """The length of the message behind its 18-byte header; raises DecryptionError."""
        return int.from_bytes(self._decrypt(header, "length"), "big")

    def decrypt_body(self, body: bytes | bytearray | memoryview) -> bytes:
        """The message from its length + 16 bytes; raises DecryptionError."""
        return self._decrypt(body, "body")

    def _decrypt(self, data: bytes | bytearray | memoryview, what: str) -> bytes:
        if self._count == ROTATION:
            self._rotate()
        try:
            plaintext = self._aead.decrypt(_nonce(self._count), data, None)
        except InvalidTag:
            raise DecryptionError(f"the MAC of a message's {what} is wrong") from None
        self._count += 1
        return plaintext
