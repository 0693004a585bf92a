"""Feature bits: what we offer, what we tolerate, and what is named when we don't."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstore.errors import FeatureError
from peerstore.wire import features
from peerstore.wire.messages import Init
from tests.helpers import feature_bits, quick

# BOLT 9, the even bit of each row and what it depends on.
BOLT9 = (
    *(0, 4, 6, 8, 10, 12, 14, 16, 18, 22, 24, 26, 28, 34, 36, 38),
    *(42, 44, 46, 48, 50, 60, 62),
)
BOLT9_DEPENDENCIES = {
    16: (14, "payment_secret"),
    50: (46, "option_scid_alias"),
    60: (26, "option_shutdown_anysegwit"),
}
# Drafts, and what implementations use for themselves.
ALSO_SEEN = (20, 40, 104, 152, 154, 560, 562, 564)
TOLERATED = BOLT9 + ALSO_SEEN


def vector(bits: Iterable[int]) -> int:
    return sum(1 << bit for bit in set(bits))


def complete(bit: int) -> set[int]:
    """A bit and what it depends on."""
    needed = BOLT9_DEPENDENCIES.get(bit & ~1)
    return {bit} if needed is None else {bit, needed[0]}


def numbers(text: str) -> set[int]:
    return {int(number) for number in re.findall("[0-9]+", text)}


# What we offer


def test_ours_is_the_seven_odd_bits_that_no_peer_hangs_up_on() -> None:
    assert features.encode_features(features.OURS).hex() == "28000080a202"
    assert list(feature_bits(features.OURS)) == [1, 9, 13, 15, 23, 43, 45]


def test_ours_passes_our_own_check() -> None:
    features.check(features.OURS)
    assert features.offers(features.OURS, features.OPTION_PROVIDE_STORAGE)
    assert not features.offers(features.OURS, 40)


# Feature fields


@quick
@given(st.sets(st.integers(0, 2000)))
def test_features_are_read_back_from_the_shortest_field(bits: set[int]) -> None:
    field = features.encode_features(vector(bits))
    assert field[:1] != b"\x00"
    assert features.decode_features(field) == vector(bits)
    assert list(feature_bits(features.decode_features(field))) == sorted(bits)


@quick
@given(st.binary(max_size=300))
def test_any_feature_field_is_read_bit_by_bit_from_its_end(field: bytes) -> None:
    decoded = features.decode_features(field)
    for bit in range(8 * len(field)):
        assert bool(decoded >> bit & 1) == bool(field[-1 - bit // 8] >> bit % 8 & 1)
    assert decoded.bit_length() <= 8 * len(field)


@quick
@given(st.binary(max_size=40), st.binary(max_size=40))
def test_both_feature_fields_of_init_count(global_features: bytes, local: bytes) -> None:
    data = b"\x00\x10"
    for field in (global_features, local):
        data += len(field).to_bytes(2, "big") + field
    combined = Init.decode(data).features
    for bit in range(320):
        in_one = any(features.decode_features(f) >> bit & 1 for f in (global_features, local))
        assert bool(combined >> bit & 1) == in_one


def test_a_dependency_in_the_other_feature_field_counts() -> None:
    # 14 stands in globalfeatures, 17 in features.
    init = Init.decode(bytes.fromhex("0010" + "0002" + "4000" + "0003" + "020000"))
    assert list(feature_bits(init.features)) == [14, 17]
    features.check(init.features)


@pytest.mark.parametrize(("bits", "offered"), [((), False), ((42,), True), ((43,), True)])
def test_either_bit_of_a_pair_offers_it(bits: tuple[int, ...], offered: bool) -> None:
    assert features.offers(vector(bits), 42) is offered
    assert features.offers(vector((*bits, 41, 44)), 42) is offered


# What we tolerate


@pytest.mark.parametrize("bit", TOLERATED)
def test_tolerated_even_bit_is_accepted(bit: int) -> None:
    features.check(vector(complete(bit)))


@pytest.mark.parametrize("bit", TOLERATED)
def test_both_bits_of_a_tolerated_pair_are_accepted(bit: int) -> None:
    features.check(vector({bit + 1} | complete(bit)))


def test_all_tolerated_bits_together_are_accepted() -> None:
    features.check(vector(bit + odd for bit in TOLERATED for odd in (0, 1)))


def test_no_features_are_accepted() -> None:
    features.check(0)


def test_every_unknown_even_bit_is_refused_and_named() -> None:
    for bit in [*(set(range(0, 600, 2)) - set(TOLERATED)), 1000, 100_000]:
        with pytest.raises(FeatureError) as caught:
            features.check(features.OURS | 1 << bit)
        assert numbers(str(caught.value)) == {bit}


def test_unknown_even_bit_is_refused_with_its_odd_one_set() -> None:
    with pytest.raises(FeatureError, match=r"\b2\b"):
        features.check(vector((2, 3)))


def test_unknown_odd_bits_are_accepted() -> None:
    needy = {bit + 1 for bit in BOLT9_DEPENDENCIES}
    for bit in range(1, 3000, 2):
        if bit not in needy:
            features.check(1 << bit)


def test_unknown_odd_bits_cost_next_to_nothing() -> None:
    # A field of 65 KB with every odd bit set must not hold up everybody else: work is counted
    # in calls, on a quarter of that, and must not grow with the number of bits.
    calls = 0

    def count(_frame: FrameType, _event: str, _argument: object) -> None:
        nonlocal calls
        calls += 1

    many = features.decode_features(b"\xaa" * 16_000)
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        features.check(many)
    finally:
        sys.setprofile(before)
    assert calls < 2000


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize(("bit", "needed"), BOLT9_DEPENDENCIES.items())
def test_missing_dependency_is_refused_and_named(
    bit: int, needed: tuple[int, str], odd: int
) -> None:
    others = vector(set(TOLERATED) - {needed[0]} - BOLT9_DEPENDENCIES.keys())
    with pytest.raises(FeatureError) as caught:
        features.check(others | 1 << bit + odd)
    text = str(caught.value)
    assert features.describe(bit + odd) in text
    assert needed[1] in text
    assert numbers(text) == {bit + odd, needed[0], needed[0] + 1}


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize(("bit", "needed"), BOLT9_DEPENDENCIES.items())
def test_dependency_is_met_by_either_bit(bit: int, needed: tuple[int, str], odd: int) -> None:
    features.check(vector((bit, needed[0] + odd)))
    features.check(vector((bit + 1, needed[0] + odd)))


@quick
@given(
    st.sets(
        st.sampled_from(TOLERATED)
        | st.sampled_from(TOLERATED).map(lambda bit: bit + 1)
        | st.integers(0, 700)
    )
)
def test_any_feature_vector_is_accepted_or_refused_by_the_rules(bits: set[int]) -> None:
    unknown = {bit for bit in bits if bit % 2 == 0 and bit not in TOLERATED}
    unmet = {
        bit
        for bit in bits
        for needed, _ in [BOLT9_DEPENDENCIES.get(bit & ~1, (None, ""))]
        if needed is not None and not {needed, needed + 1} & bits
    }
    if not unknown | unmet:
        features.check(vector(bits))
        return
    with pytest.raises(FeatureError) as caught:
        features.check(vector(bits))
    assert numbers(str(caught.value)) & (unknown | unmet)


@pytest.mark.parametrize(
    ("bit", "text"),
    [(17, "basic_mpp (17)"), (42, "option_provide_storage (42)"), (3, "feature 3")],
)
def test_a_bit_is_described_by_its_name(bit: int, text: str) -> None:
    assert features.describe(bit) == text


# What a peer's features tell


def test_what_is_named_is_what_is_tolerated_and_what_one_implementation_alone_sets() -> None:
    assert list(feature_bits(features.KNOWN)) == sorted(
        bit + odd for bit in TOLERATED for odd in (0, 1)
    )
    assert features.NAMED & features.KNOWN == features.KNOWN
    assert set(feature_bits(features.NAMED & ~features.KNOWN)) == {162, 163, 2022, 2023}
    assert not features.NAMES.keys() & features.OWN_NAMES.keys()


@pytest.mark.parametrize("bit", [162, 2022])
def test_what_is_named_alone_is_not_tolerated_when_it_is_required(bit: int) -> None:
    features.check(1 << bit + 1)
    with pytest.raises(FeatureError, match=rf"\b{bit}\b"):
        features.check(1 << bit)


@quick
@given(st.sets(st.integers(0, 2100)))
def test_features_are_named_bit_by_bit_in_their_order(bits: set[int]) -> None:
    assert features.names(vector(bits)) == [features.describe(bit) for bit in sorted(bits)]


def test_every_named_bit_has_a_name_of_its_own() -> None:
    names = features.names(features.NAMED)
    assert len(names) == len(set(names)) == features.NAMED.bit_count()
    assert not [name for name in names if name.startswith("feature ")]
    for name, bit in zip(names, feature_bits(features.NAMED), strict=True):
        assert name.endswith(f" ({bit})")
        assert name.isprintable()


def test_ours_are_named() -> None:
    assert features.names(features.OURS) == [
        "option_data_loss_protect (1)",
        "var_onion_optin (9)",
        "option_static_remotekey (13)",
        "payment_secret (15)",
        "option_anchors (23)",
        "option_provide_storage (43)",
        "option_channel_type (45)",
    ]
    assert features.names(0) == []


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize(
    ("bits", "client"),
    [
        ((104,), "Core Lightning"),
        ((162,), "Core Lightning"),
        ((104, 162), "Core Lightning"),
        ((560,), "eclair or Phoenix"),
        ((560, 562, 564), "eclair or Phoenix"),
        ((2022,), "lnd"),
        # Who sets bits of two is none of them for sure.
        ((104, 2022), ""),
        ((162, 560, 2022), ""),
        ((152,), ""),
        ((), ""),
    ],
)
def test_the_implementation_is_told_by_bits_that_it_alone_sets(
    bits: tuple[int, ...], client: str, odd: int
) -> None:
    assert features.client(vector(bit + odd for bit in bits)) == client
    # What all set tells nothing.
    assert features.client(vector(bit + odd for bit in bits) | features.OURS) == client


@quick
@given(st.sets(st.sampled_from(BOLT9) | st.sampled_from(BOLT9).map(lambda bit: bit + 1)))
def test_no_bit_of_the_specification_tells_an_implementation(bits: set[int]) -> None:
    assert features.client(vector(bits)) == ""


@quick
@given(st.sets(st.integers(0, 2100)))
def test_an_implementation_is_told_as_well_from_the_bits_with_a_name(bits: set[int]) -> None:
    # These are the ones that are kept of a peer.
    kept = vector(bits) & features.NAMED
    assert features.client(kept) == features.client(vector(bits))
    field = features.encode_features(kept)
    assert features.names(features.decode_features(field)) == features.names(kept)
