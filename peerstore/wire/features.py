"""Feature bits (BOLT 9): what we offer, what we tolerate, what depends on what.

A feature vector is an int here: bit n of the int is bit n of BOLT 9.
"""

from __future__ import annotations

from peerstore.errors import FeatureError

NAMES = {
    0: "option_data_loss_protect",
    4: "option_upfront_shutdown_script",
    6: "gossip_queries",
    8: "var_onion_optin",
    10: "gossip_queries_ex",
    12: "option_static_remotekey",
    14: "payment_secret",
    16: "basic_mpp",
    18: "option_support_large_channel",
    22: "option_anchors",
    24: "option_route_blinding",
    26: "option_shutdown_anysegwit",
    28: "option_dual_fund",
    34: "option_quiesce",
    36: "option_attribution_data",
    38: "option_onion_messages",
    42: "option_provide_storage",
    44: "option_channel_type",
    46: "option_scid_alias",
    48: "option_payment_metadata",
    50: "option_zeroconf",
    60: "option_simple_close",
    62: "option_splice",
    # Not in BOLT 9, but seen from real peers as even bits: earlier drafts, and each
    # implementation's own.
    20: "option_anchor_outputs",
    40: "want_peer_backup_storage",
    104: "option_experimental_104",
    152: "option_experimental_152",
    154: "option_experimental_154",
    560: "option_experimental_560",
    562: "option_experimental_562",
    564: "option_experimental_564",
}
"""The even bit of every pair that a peer may require, and its name."""

KNOWN = sum(3 << pair for pair in NAMES)
"""Both bits of every pair that has a name."""

OWN_NAMES = {
    # Odd bits that one implementation alone sets, from its own source.
    162: "experimental_splice",
    2022: "script_enforced_lease",
}

NAMED = KNOWN | sum(3 << pair for pair in OWN_NAMES)
"""Both bits of every pair that can be told by name."""

_CLIENTS = {
    104: "Core Lightning",  # shutdown_wrong_funding
    162: "Core Lightning",
    560: "eclair or Phoenix",
    562: "eclair or Phoenix",
    564: "eclair or Phoenix",
    2022: "lnd",
}

DEPENDENCIES = {16: 14, 50: 46, 60: 26}
"""Feature pair to the pair that it needs, both by their even bit."""

WANT_PEER_BACKUP_STORAGE = 40
"""Bolts pull request 881's. Alone it proves nothing: zero_fee_commitments has the same bits."""

OPTION_PROVIDE_STORAGE = 42

OURS = sum(1 << bit for bit in (1, 9, 13, 15, 23, 43, 45))
"""What our `init` offers: odd bits only, so that nobody who lacks one hangs up.

eclair, LDK and Electrum hang up when 1, 9, 13, 15 or 45 is missing, Electrum also for 23.
"""

OURS_WITHOUT_STORAGE = OURS & ~(3 << OPTION_PROVIDE_STORAGE)
"""The same for a peer that is not served."""


def decode_features(data: bytes) -> int:
    """A feature field: the last byte holds bits 0 to 7."""
    return int.from_bytes(data, "big")


def encode_features(features: int) -> bytes:
    """The feature field of minimal length."""
    return features.to_bytes((features.bit_length() + 7) // 8, "big")


def offers(features: int, pair: int) -> bool:
    """Whether either bit of the pair is set; `pair` is its even bit."""
    return bool(features >> pair & 3)


def describe(bit: int) -> str:
    """A bit with its name, as in `basic_mpp (17)`."""
    name = NAMES.get(bit & ~1) or OWN_NAMES.get(bit & ~1)
    return f"{name} ({bit})" if name else f"feature {bit}"


def names(features: int) -> list[str]:
    """The features by name, each with its bit, as in `basic_mpp (17)`."""
    bits = (bit for bit in range(features.bit_length()) if features >> bit & 1)
    return [describe(bit) for bit in bits]


def client(features: int) -> str:
    """The implementation that alone sets one of these bits, "" when none tells."""
    found = {name for pair, name in _CLIENTS.items() if offers(features, pair)}
    return found.pop() if len(found) == 1 else ""


def check(features: int) -> None:
    """Raise FeatureError for an unknown even bit or a missing dependency (BOLT 1, `init`)."""
    # No loop over the bits: a message has room for half a million of them.
    unknown = features & ~KNOWN
    unknown &= int.from_bytes(b"\x55" * ((unknown.bit_length() + 7) // 8), "big")
    if unknown:
        bit = (unknown & -unknown).bit_length() - 1
        raise FeatureError(f"init: feature bit {bit} is even and unknown here")
    for pair, needed in DEPENDENCIES.items():
        if offers(features, pair) and not offers(features, needed):
            bit = pair if features >> pair & 1 else pair + 1
            raise FeatureError(
                f"init: {describe(bit)} needs {NAMES[needed]} ({needed}/{needed + 1}),"
                " which is not set"
            )
