"""secp256k1 for noiseprotocol, over coincurve.

BOLT 8 runs Noise on a curve that noiseprotocol does not bring. Its backend looks objects up by
name and never asks for their class, so these are plain classes with the attributes that it uses.
The hash and HKDF are ours too: they cost half of what noiseprotocol's own do.
"""

from __future__ import annotations

import hashlib

import coincurve
from noise.backends.default import noise_backend
from noise.backends.noise_backend import NoiseBackend

from peerstore.transport.cipher import hkdf
from peerstore.types import NODE_ID_SIZE, NodeId


class KeyPair:
    """A key as noiseprotocol wants it; `private` is None for the other side's.

    `public_bytes` is compressed, 33 bytes (BOLT 8, Handshake State).
    """

    __slots__ = ("private", "public", "public_bytes")

    def __init__(self, private: coincurve.PrivateKey | None, public_bytes: bytes) -> None:
        self.private = private
        self.public = public_bytes
        self.public_bytes = public_bytes

    @property
    def node_id(self) -> NodeId:
        """The public key as a node id."""
        return NodeId(self.public_bytes)

    @classmethod
    def generate(cls) -> KeyPair:
        """A new random key."""
        private = coincurve.PrivateKey()
        return cls(private, private.public_key.format())

    @classmethod
    def from_private_bytes(cls, private_bytes: bytes) -> KeyPair:
        """Raises ValueError unless it is 32 bytes between 0 and the curve's order."""
        if len(private_bytes) != 32:
            raise ValueError("a secp256k1 private key has 32 bytes")
        private = coincurve.PrivateKey(private_bytes)
        return cls(private, private.public_key.format())

    @classmethod
    def from_public_bytes(cls, public_bytes: bytes) -> KeyPair:
        """Raises ValueError unless it is a compressed point on the curve."""
        if len(public_bytes) != NODE_ID_SIZE:
            raise ValueError("a compressed secp256k1 point has 33 bytes")
        coincurve.PublicKey(public_bytes)
        return cls(None, public_bytes)


class _ReceivedKey(KeyPair):
    """The other side's key as an act brings it.

    In each act that brings one (e in acts one and two, s in act three) an ECDH with it follows,
    and refuses with ValueError what is no point: it is not looked at twice.
    """

    __slots__ = ()

    @classmethod
    def from_public_bytes(cls, public_bytes: bytes) -> KeyPair:
        return cls(None, public_bytes)


class _Secp256k1:
    """The Diffie-Hellman functions that noiseprotocol calls."""

    klass = KeyPair
    dhlen = NODE_ID_SIZE

    def generate_keypair(self) -> KeyPair:
        return KeyPair.generate()

    def dh(self, private: coincurve.PrivateKey, public: bytes) -> bytes:
        # libsecp256k1's ECDH is SHA256 of the compressed shared point, in constant time: just
        # what BOLT 8, Handshake State, calls ECDH.
        return private.ecdh(public)


class _Sha256:
    fn = hashlib.sha256
    hashlen = 32
    blocklen = 64

    def hash(self, data: bytes) -> bytes:
        return hashlib.sha256(data).digest()


def _hkdf(salt: bytes, key: bytes, outputs: int, hmac_hash_fn: object) -> tuple[bytes, bytes]:
    # Two outputs, with HMAC of SHA-256, is all that BOLT 8's pattern asks for.
    return hkdf(salt, key)


def _bolt8_backend() -> NoiseBackend:
    backend = NoiseBackend()
    backend.diffie_hellmans = {"secp256k1": _Secp256k1}
    backend.keypairs = {"secp256k1": _ReceivedKey}
    backend.ciphers = {"ChaChaPoly": noise_backend.ciphers["ChaChaPoly"]}
    backend.hashes = {"SHA256": _Sha256}
    backend.hmac = noise_backend.hmac  # it must be there; only noiseprotocol's HKDF would call it
    backend.hkdf = _hkdf
    return backend


BOLT8_BACKEND = _bolt8_backend()
"""Knows the one protocol of BOLT 8."""
