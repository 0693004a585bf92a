"""BOLT 8: its vectors, keys that are none, tampering and replay, the rotation of keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import example, given
from hypothesis import strategies as st

from peerstore.errors import DecryptionError, HandshakeError
from peerstore.transport.cipher import HEADER_SIZE, MAC_SIZE, ReceiveCipher, SendCipher
from peerstore.transport.handshake import Handshake
from peerstore.transport.secp256k1 import KeyPair
from peerstore.types import NodeId
from tests.helpers import key_pair, load_vectors, quick

BOLT8 = load_vectors("bolt08_transport.json")
MESSAGES = BOLT8["messages"]

# SEC 2, 2.4.1: the order of secp256k1's group.
ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141

INITIATOR = key_pair(0x11)
RESPONDER = key_pair(0x21)


# BOLT 8, Appendix A: Transport Test Vectors


def by_name(vector: Mapping[str, Any]) -> str:
    return str(vector["name"]).replace(" ", "-")


def vector_handshake(vector: Mapping[str, Any]) -> Handshake:
    local = KeyPair.from_private_bytes(bytes.fromhex(vector["ls_priv"]))
    ephemeral = KeyPair.from_private_bytes(bytes.fromhex(vector["e_priv"]))
    assert local.node_id.hex() == vector["ls_pub"]
    assert ephemeral.public_bytes.hex() == vector["e_pub"]
    remote = NodeId(bytes.fromhex(vector["rs_pub"])) if "rs_pub" in vector else None
    return Handshake(local, remote_node_id=remote, ephemeral=ephemeral)


def play(handshake: Handshake, steps: list[dict[str, Any]]) -> None:
    """Take the acts in and compare what is answered."""
    sent = handshake.act_one() if steps and "output" in steps[0] else b""
    for step in steps:
        if "input" in step:
            act = bytes.fromhex(step["input"])
            assert handshake.act_size == {1: 50, 2: 50, 3: 66}[step["act"]]
            sent = handshake.receive_act(act)
        else:
            assert sent.hex() == step["output"]
            sent = b""
    assert sent == b""


ALL_HANDSHAKES = BOLT8["initiator"] + BOLT8["responder"]


@pytest.mark.parametrize(
    "vector", [vector for vector in ALL_HANDSHAKES if "error" not in vector["result"]], ids=by_name
)
def test_bolt8_successful_handshake(vector: Mapping[str, Any]) -> None:
    handshake = vector_handshake(vector)
    play(handshake, vector["steps"])
    assert handshake.act_size == 0
    keys = handshake.keys
    assert keys is not None
    assert {
        "sk": keys.send_key.hex(),
        "rk": keys.receive_key.hex(),
        "ck": keys.chaining_key.hex(),
    } == vector["result"]
    other = BOLT8["responder" if "rs_pub" in vector else "initiator"][0]
    assert keys.remote_node_id.hex() == other["ls_pub"]


@pytest.mark.parametrize(
    "vector", [vector for vector in ALL_HANDSHAKES if "error" in vector["result"]], ids=by_name
)
def test_bolt8_failing_handshake(vector: Mapping[str, Any]) -> None:
    handshake = vector_handshake(vector)
    play(handshake, vector["steps"][:-1])
    with pytest.raises(HandshakeError) as caught:
        handshake.receive_act(bytes.fromhex(vector["steps"][-1]["input"]))
    assert caught.value.code == vector["result"]["error"]
    assert handshake.keys is None


@pytest.mark.parametrize(
    "vector",
    [vector for vector in ALL_HANDSHAKES if "READ_FAILED" in vector["result"].get("error", "")],
    ids=by_name,
)
def test_bolt8_short_read_shows_at_the_end(vector: Mapping[str, Any]) -> None:
    handshake = vector_handshake(vector)
    play(handshake, vector["steps"][:-1])
    assert len(bytes.fromhex(vector["steps"][-1]["input"])) < handshake.act_size
    with pytest.raises(HandshakeError) as caught:
        handshake.receive_eof()
    assert caught.value.code == vector["result"]["error"]


def bolt8_sender() -> SendCipher:
    return SendCipher(bytes.fromhex(MESSAGES["sk"]), bytes.fromhex(MESSAGES["ck"]))


def bolt8_receiver() -> ReceiveCipher:
    """The other side of `bolt8_sender`: its rk is the sender's sk."""
    return ReceiveCipher(bytes.fromhex(MESSAGES["sk"]), bytes.fromhex(MESSAGES["ck"]))


def test_bolt8_message_encryption() -> None:
    sender = bolt8_sender()
    plaintext = bytes.fromhex(MESSAGES["plaintext"])
    outputs = [sender.encrypt(plaintext).hex() for _ in range(1002)]
    assert set(MESSAGES["outputs"]) == {"0", "1", "500", "501", "1000", "1001"}
    for number, output in MESSAGES["outputs"].items():
        assert outputs[int(number)] == output


def decrypt(receiver: ReceiveCipher, frame: bytes) -> bytes:
    length = receiver.decrypt_header(frame[:HEADER_SIZE])
    assert len(frame) == HEADER_SIZE + length + MAC_SIZE
    return receiver.decrypt_body(frame[HEADER_SIZE:])


def test_bolt8_messages_are_decrypted() -> None:
    sender, receiver = bolt8_sender(), bolt8_receiver()
    for number in range(1002):
        frame = sender.encrypt(b"hello")
        published = MESSAGES["outputs"].get(str(number), frame.hex())
        assert decrypt(receiver, bytes.fromhex(published)) == b"hello"


# Keys


@pytest.mark.parametrize(
    "private_bytes",
    [
        bytes(32),
        ORDER.to_bytes(32, "big"),
        (ORDER + 1).to_bytes(32, "big"),
        b"\xff" * 32,
        b"",
        b"\x11" * 31,
        b"\x11" * 33,
    ],
    ids=["zero", "order", "over the order", "all ones", "empty", "31 bytes", "33 bytes"],
)
def test_private_key_out_of_range_is_refused(private_bytes: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is coincurve's
        KeyPair.from_private_bytes(private_bytes)


def test_private_keys_at_the_edges_are_accepted() -> None:
    # SEC 2, 2.4.1: the generator, and the same x with the other y.
    generator = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
    assert KeyPair.from_private_bytes((1).to_bytes(32, "big")).node_id.hex() == "02" + generator
    last = KeyPair.from_private_bytes((ORDER - 1).to_bytes(32, "big"))
    assert last.node_id.hex() == "03" + generator


NOT_POINTS = {
    "empty": b"",
    "32 bytes": RESPONDER.node_id[:32],
    "34 bytes": RESPONDER.node_id + b"\x00",
    "uncompressed": b"\x04" + RESPONDER.node_id[1:],
    "hybrid": b"\x06" + RESPONDER.node_id[1:],
    "infinity": bytes(33),
    "x is not on the curve": b"\x02" + bytes(31) + b"\x05",
    "x is not in the field": b"\x02" + b"\xff" * 32,
}


@pytest.mark.parametrize("public_bytes", NOT_POINTS.values(), ids=NOT_POINTS)
def test_public_key_that_is_no_compressed_point_is_refused(public_bytes: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is coincurve's
        KeyPair.from_public_bytes(public_bytes)


@pytest.mark.parametrize("public_bytes", NOT_POINTS.values(), ids=NOT_POINTS)
def test_initiator_refuses_a_node_id_that_is_no_point(public_bytes: bytes) -> None:
    with pytest.raises(HandshakeError) as caught:
        Handshake(INITIATOR, remote_node_id=NodeId(public_bytes))
    assert caught.value.code == "BAD_REMOTE_STATIC_PUBKEY"


def test_uncompressed_point_of_65_bytes_is_refused() -> None:
    assert RESPONDER.private is not None
    uncompressed = RESPONDER.private.public_key.format(compressed=False)
    with pytest.raises(ValueError, match="33 bytes"):
        KeyPair.from_public_bytes(uncompressed)


def test_public_key_has_no_private_part() -> None:
    public = KeyPair.from_public_bytes(RESPONDER.node_id)
    assert public.private is None
    assert public.node_id == RESPONDER.node_id


def test_generated_keys_differ() -> None:
    assert KeyPair.generate().node_id != KeyPair.generate().node_id


# Handshakes that someone meddles with


def initiator() -> Handshake:
    return Handshake(INITIATOR, remote_node_id=RESPONDER.node_id, ephemeral=key_pair(0x12))


def responder(ephemeral: int = 0x22) -> Handshake:
    return Handshake(RESPONDER, ephemeral=key_pair(ephemeral))


def before_act(number: int) -> tuple[Handshake, bytes]:
    """Who receives act `number` next, and the act as it should be."""
    first, second = initiator(), responder()
    act = first.act_one()
    if number == 1:
        return second, act
    act = second.receive_act(act)
    if number == 2:
        return first, act
    return second, first.receive_act(act)


@pytest.mark.parametrize("bit", [0x01, 0x80])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_act_with_any_byte_changed_is_refused(number: int, bit: int) -> None:
    _, act = before_act(number)
    for index in range(len(act)):
        receiver, _ = before_act(number)
        changed = bytearray(act)
        changed[index] ^= bit
        with pytest.raises(HandshakeError) as caught:
            receiver.receive_act(bytes(changed))
        assert caught.value.code in expected_codes(number, index), index
        assert receiver.keys is None


def expected_codes(number: int, index: int) -> set[str]:
    """Which errors a change at this byte of the act can give."""
    if index == 0:
        return {f"ACT{number}_BAD_VERSION"}
    if number == 3:
        return {"ACT3_BAD_CIPHERTEXT" if index < 1 + 33 + 16 else "ACT3_BAD_TAG"}
    # Another x or y may be a point or not.
    return {f"ACT{number}_BAD_TAG"} | ({f"ACT{number}_BAD_PUBKEY"} if index < 1 + 33 else set())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_act_of_any_other_length_is_refused(number: int) -> None:
    _, act = before_act(number)
    for other in [act[:size] for size in range(len(act))] + [act + b"\x00"]:
        receiver, _ = before_act(number)
        with pytest.raises(HandshakeError) as caught:
            receiver.receive_act(other)
        assert caught.value.code == f"ACT{number}_READ_FAILED"


@quick
@given(st.sampled_from([1, 2, 3]), st.binary(max_size=70), st.booleans())
@example(1, b"\x00" + RESPONDER.node_id + bytes(16), False)
@example(2, b"\x00" + RESPONDER.node_id + bytes(16), False)
def test_junk_as_an_act_is_refused(number: int, junk: bytes, whole: bool) -> None:
    receiver, act = before_act(number)
    if whole:
        junk = (b"\x00" + junk).ljust(len(act), b"\x02")[: len(act)]
    with pytest.raises(HandshakeError) as caught:
        receiver.receive_act(junk)
    assert caught.value.code.startswith(f"ACT{number}_")


def test_act_one_for_another_node_is_refused() -> None:
    act_one = Handshake(INITIATOR, remote_node_id=key_pair(0x31).node_id).act_one()
    with pytest.raises(HandshakeError) as caught:
        responder().receive_act(act_one)
    assert caught.value.code == "ACT1_BAD_TAG"


def test_replayed_acts_do_not_authenticate() -> None:
    first = initiator()
    act_one = first.act_one()
    act_three = first.receive_act(responder(0x22).receive_act(act_one))
    victim = responder(0x23)
    assert len(victim.receive_act(act_one)) == 50
    with pytest.raises(HandshakeError) as caught:
        victim.receive_act(act_three)
    assert caught.value.code == "ACT3_BAD_CIPHERTEXT"
    assert victim.keys is None


def test_act_two_for_another_act_one_is_refused() -> None:
    first = initiator()
    first.act_one()
    other = Handshake(INITIATOR, remote_node_id=RESPONDER.node_id, ephemeral=key_pair(0x13))
    with pytest.raises(HandshakeError) as caught:
        first.receive_act(responder().receive_act(other.act_one()))
    assert caught.value.code == "ACT2_BAD_TAG"


def test_act_one_sent_back_to_its_sender_is_refused() -> None:
    first = initiator()
    with pytest.raises(HandshakeError) as caught:
        first.receive_act(first.act_one())
    assert caught.value.code == "ACT2_BAD_TAG"


def test_every_handshake_has_its_own_ephemeral_key() -> None:
    acts = {Handshake(INITIATOR, remote_node_id=RESPONDER.node_id).act_one() for _ in range(3)}
    assert len(acts) == 3
    act_one = initiator().act_one()
    assert Handshake(RESPONDER).receive_act(act_one) != Handshake(RESPONDER).receive_act(act_one)


# Messages


def test_frame_is_header_and_body_each_with_its_mac() -> None:
    for size in (0, 1, 65535):
        assert len(bolt8_sender().encrypt(bytes(size))) == 2 + 16 + size + 16


@pytest.mark.parametrize("size", [0, 1, 2, 65534, 65535])
def test_message_is_decrypted_at_its_edges_of_size(size: int) -> None:
    sender, receiver = bolt8_sender(), bolt8_receiver()
    message = bytes(number % 251 for number in range(size))
    assert decrypt(receiver, sender.encrypt(message)) == message
    assert decrypt(receiver, sender.encrypt(b"next")) == b"next"


def test_oversize_message_is_refused_and_disturbs_nothing() -> None:
    sender, receiver = bolt8_sender(), bolt8_receiver()
    with pytest.raises(ValueError, match="65536 bytes"):
        sender.encrypt(bytes(65536))
    assert decrypt(receiver, sender.encrypt(b"next")) == b"next"


def test_equal_messages_look_different() -> None:
    sender = bolt8_sender()
    assert len({sender.encrypt(b"") for _ in range(1100)}) == 1100


def test_keys_rotate_every_500_messages_by_hkdf_of_chaining_key_and_key() -> None:
    # Calculated here once more, with another HKDF.
    chaining_key, key = bytes.fromhex(MESSAGES["ck"]), bytes.fromhex(MESSAGES["sk"])
    sender = bolt8_sender()
    for _ in range(4):
        cipher = ChaCha20Poly1305(key)
        for count in range(0, 1000, 2):
            header_nonce, body_nonce = (
                bytes(4) + nonce.to_bytes(8, "little") for nonce in (count, count + 1)
            )
            frame = cipher.encrypt(header_nonce, b"\x00\x02", None)
            frame += cipher.encrypt(body_nonce, b"ab", None)
            assert sender.encrypt(b"ab") == frame
        secrets = HKDF(hashes.SHA256(), 64, chaining_key, b"").derive(key)
        chaining_key, key = secrets[:32], secrets[32:]


def test_each_direction_rotates_on_its_own() -> None:
    first, second = initiator(), responder()
    second.receive_act(first.receive_act(second.receive_act(first.act_one())))
    assert first.keys is not None
    assert second.keys is not None
    assert first.keys.send_key == second.keys.receive_key != first.keys.receive_key
    one_way = (
        SendCipher(first.keys.send_key, first.keys.chaining_key),
        ReceiveCipher(second.keys.receive_key, second.keys.chaining_key),
    )
    back = (
        SendCipher(second.keys.send_key, second.keys.chaining_key),
        ReceiveCipher(first.keys.receive_key, first.keys.chaining_key),
    )
    for number in range(3003):
        message = number.to_bytes(2, "big")
        assert decrypt(one_way[1], one_way[0].encrypt(message)) == message
        if number % 2 == 0:
            assert decrypt(back[1], back[0].encrypt(message)) == message


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_header_with_any_byte_changed_is_refused(bit: int) -> None:
    frame = bolt8_sender().encrypt(b"hello")
    for index in range(HEADER_SIZE):
        changed = bytearray(frame[:HEADER_SIZE])
        changed[index] ^= bit
        with pytest.raises(DecryptionError, match="length"):
            bolt8_receiver().decrypt_header(bytes(changed))


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_body_with_any_byte_changed_is_refused(bit: int) -> None:
    frame = bolt8_sender().encrypt(b"hello")
    for index in range(len(frame) - HEADER_SIZE):
        receiver = bolt8_receiver()
        assert receiver.decrypt_header(frame[:HEADER_SIZE]) == 5
        changed = bytearray(frame[HEADER_SIZE:])
        changed[index] ^= bit
        with pytest.raises(DecryptionError, match="body"):
            receiver.decrypt_body(bytes(changed))


def test_body_cut_short_is_refused() -> None:
    frame = bolt8_sender().encrypt(b"hello")
    for size in range(len(frame) - HEADER_SIZE):
        receiver = bolt8_receiver()
        receiver.decrypt_header(frame[:HEADER_SIZE])
        with pytest.raises(DecryptionError, match="body"):
            receiver.decrypt_body(frame[HEADER_SIZE : HEADER_SIZE + size])


def test_what_is_refused_does_not_disturb_what_is_right() -> None:
    sender, receiver = bolt8_sender(), bolt8_receiver()
    # Also where the key is replaced.
    for number in range(1001):
        frame = sender.encrypt(number.to_bytes(2, "big"))
        if number % 250 == 0:
            with pytest.raises(DecryptionError):
                receiver.decrypt_header(bytes(18))
            assert receiver.decrypt_header(frame[:HEADER_SIZE]) == 2
            with pytest.raises(DecryptionError):
                receiver.decrypt_body(bytes(18))
            assert receiver.decrypt_body(frame[HEADER_SIZE:]) == number.to_bytes(2, "big")
        else:
            assert decrypt(receiver, frame) == number.to_bytes(2, "big")


def test_message_sent_twice_is_refused() -> None:
    frame = bolt8_sender().encrypt(b"hello")
    receiver = bolt8_receiver()
    decrypt(receiver, frame)
    with pytest.raises(DecryptionError):
        receiver.decrypt_header(frame[:HEADER_SIZE])


def test_message_left_out_is_noticed() -> None:
    sender = bolt8_sender()
    sender.encrypt(b"left out")
    with pytest.raises(DecryptionError):
        bolt8_receiver().decrypt_header(sender.encrypt(b"next")[:HEADER_SIZE])


def test_message_under_the_key_before_the_rotation_is_refused() -> None:
    sender, receiver = bolt8_sender(), bolt8_receiver()
    first = sender.encrypt(b"hello")
    decrypt(receiver, first)
    for _ in range(499):
        decrypt(receiver, sender.encrypt(b"hello"))
    with pytest.raises(DecryptionError):
        receiver.decrypt_header(first[:HEADER_SIZE])
