"""The three acts of BOLT 8 (Authenticated Key Exchange Handshake), both roles, sans-I/O.

Bytes of one act go in, the bytes to answer come out, and after the last act `keys` is there.
Whatever is wrong with an act raises HandshakeError under the name that BOLT 8's test vectors
give it; then the connection is closed and nothing is answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from noise.noise_protocol import NoiseProtocol

from peerstore.errors import HandshakeError
from peerstore.transport.secp256k1 import BOLT8_BACKEND, KeyPair
from peerstore.types import NodeId

PROTOCOL_NAME = b"Noise_XK_secp256k1_ChaChaPoly_SHA256"
PROLOGUE = b"lightning"
VERSION = b"\x00"
ACT_SIZES = {1: 50, 2: 50, 3: 66}


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """What the handshake leaves behind: two keys, the chaining key, who the other side is."""

    send_key: bytes
    receive_key: bytes
    chaining_key: bytes
    remote_node_id: NodeId


class Handshake:
    """One side of one handshake.

    `receive_act` takes acts whole: `act_size` says how many bytes the next has, 0 when no more
    comes. The initiator begins with `act_one`.
    """

    __slots__ = ("_act", "_handshake_state", "_protocol", "_symmetric_state", "keys")

    def __init__(
        self,
        local: KeyPair,
        *,
        remote_node_id: NodeId | None = None,
        ephemeral: KeyPair | None = None,
    ) -> None:
        """A node that knows the other side's id is the initiator.

        `ephemeral` is for test vectors; without it a random one is made. Raises HandshakeError
        when `remote_node_id` is not a point.
        """
        self.keys: TransportKeys | None = None
        # The act that comes in next.
        self._act = 1 if remote_node_id is None else 2
        protocol: Any = NoiseProtocol(PROTOCOL_NAME, backend=BOLT8_BACKEND)
        protocol.prologue = PROLOGUE
        protocol.initiator = remote_node_id is not None
        protocol.keypairs["s"] = local
        if remote_node_id is not None:
            try:
                protocol.keypairs["rs"] = KeyPair.from_public_bytes(remote_node_id)
            except ValueError:
                raise HandshakeError("BAD_REMOTE_STATIC_PUBKEY") from None
        protocol.validate()
        # After validate(), which warns of a preset one.
        protocol.keypairs["e"] = ephemeral
        protocol.initialise_handshake_state()
        self._protocol: Any = protocol
        # noiseprotocol deletes its own references with the last act.
        self._handshake_state: Any = protocol.handshake_state
        self._symmetric_state: Any = protocol.symmetric_state

    @property
    def act_size(self) -> int:
        """Bytes of the act that must come next; 0 when none must."""
        return ACT_SIZES[self._act] if self.keys is None else 0

    def act_one(self) -> bytes:
        """The initiator's first act, 50 bytes."""
        return self._write()

    def receive_act(self, act: bytes) -> bytes:
        """Take the next act, whole; returns what to answer.

        Raises HandshakeError.
        """
        name = f"ACT{self._act}"
        if act[:1] not in (VERSION, b""):
            raise HandshakeError(f"{name}_BAD_VERSION")
        if len(act) != self.act_size:
            raise HandshakeError(f"{name}_READ_FAILED")
        try:
            self._handshake_state.read_message(act[1:], bytearray())
        except InvalidTag:
            raise HandshakeError(f"{name}_{self._bad_mac()}") from None
        except ValueError:
            raise HandshakeError(f"{name}_BAD_PUBKEY") from None
        if self._act == 1:
            self._act = 3
            return self._write()
        answer = b""
        if self._act == 2:
            answer = self._write()
        self._finish()
        return answer

    def receive_eof(self) -> None:
        """The other side closed before its act was whole; raises HandshakeError."""
        raise HandshakeError(f"ACT{self._act}_READ_FAILED")

    def _write(self) -> bytes:
        act = bytearray(VERSION)
        self._handshake_state.write_message(b"", act)
        return bytes(act)

    def _bad_mac(self) -> str:
        # Act three carries two MACs; the first guards the static key.
        first = self._act == 3 and not isinstance(self._handshake_state.rs, KeyPair)
        return "BAD_CIPHERTEXT" if first else "BAD_TAG"

    def _finish(self) -> None:
        protocol = self._protocol
        self.keys = TransportKeys(
            send_key=protocol.cipher_state_encrypt.k,
            receive_key=protocol.cipher_state_decrypt.k,
            chaining_key=self._symmetric_state.ck,
            remote_node_id=self._handshake_state.rs.node_id,
        )
        del self._protocol, self._handshake_state, self._symmetric_state
