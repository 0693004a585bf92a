"""Who is served: the rules, what a session makes of a refusal, and what a peer sees of it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from peerstore.methods import methods
from peerstore.policy import EVERYONE, SERVED, Decision, Policy, Visit
from peerstore.session import UPDATE_REFUSED, Send, Session, Store, Stored
from peerstore.types import BackupKind, NodeId
from peerstore.wire import features
from peerstore.wire.messages import (
    ChannelReestablish,
    Init,
    Message,
    PeerStorage,
    PeerStorageRetrieval,
    Ping,
    Pong,
    UpdateChannelBackup,
    UpdateNodeBackup,
    WarningMessage,
)
from tests.helpers import key_pair
from tests.test_server import (
    INIT,
    KEPT,
    KEY,
    OTHER_KEY,
    Node,
    Peer,
    assert_nothing_changed,
    dialed,
    serving,
)
from tests.test_session import CHAIN, decode, init_message, ping, talk
from tests.test_session_881 import (
    NODE,
    OUR_INIT,
    STORAGE,
    TOO_LARGE,
    assert_about_storage,
    channel,
    replay,
    reports,
    say,
    sequence_of,
)
from tests.test_streams import (
    UPDATE_ADD_HTLC,
    USED,
    A,
    B,
    commitment_signed,
    of,
    revoke_and_ack,
)

ME, OTHER = key_pair(0x51).node_id, key_pair(0x52).node_id
REFUSAL = "not today"
NOT_OFFERED = features.OURS_WITHOUT_STORAGE


# Policy


class Case(NamedTuple):
    """A way to have a peer in the lists."""

    serve: str
    allowed: bool
    denied: bool
    rule: str


CASES = [
    Case(*case)
    for case in itertools.product(
        ("anyone", "channels", "allowlist"), (False, True), (False, True), ("", "allow", "deny")
    )
]


class WhoHas(NamedTuple):
    """Who has channels."""

    answered: bool
    members: tuple[NodeId, ...] = (ME,)

    def within(self, node_id: NodeId, visit: Visit | None) -> bool:
        return node_id in self.members


def policy_of(case: Case, node_id: NodeId = ME) -> Policy:
    return Policy(
        serve=case.serve,
        allow=frozenset({node_id} if case.allowed else ()),
        deny=frozenset({node_id} if case.denied else ()),
        rules={node_id: case.rule} if case.rule else {},
        channels=WhoHas(answered=True, members=()),
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_deny_beats_allow_and_both_beat_the_mode(case: Case) -> None:
    served = not (case.denied or case.rule == "deny") and (
        case.serve == "anyone" or case.allowed or case.rule == "allow"
    )
    decision = policy_of(case).decide(ME, None)
    assert (decision == SERVED) is served
    assert decision.offered is served
    # It goes into a warning.
    assert decision.refusal.isprintable()
    assert ME.hex() not in decision.refusal
    # Of others nothing is said by that.
    assert (policy_of(case, OTHER).decide(ME, None) == SERVED) is (case.serve == "anyone")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("has_channel", [False, True])
def test_who_is_allowed_and_not_denied_or_has_a_channel_is_protected(
    case: Case, has_channel: bool
) -> None:
    members = (ME,) if has_channel else ()
    policy = replace(policy_of(case), channels=WhoHas(answered=True, members=members))
    allowed = case.allowed or case.rule == "allow"
    denied = case.denied or case.rule == "deny"
    assert policy.protects(ME, Visit()) == (has_channel or (allowed and not denied))
    assert not policy.protects(OTHER, Visit())


def test_who_is_protected_may_depend_on_its_last_visit() -> None:
    class ByVisit:
        answered = True

        def within(self, node_id: NodeId, visit: Visit | None) -> bool:
            return visit is not None and visit.height == 700

    policy = Policy(channels=ByVisit())
    assert policy.protects(ME, Visit(700))
    assert not policy.protects(ME, Visit(600))


def test_who_has_channels_is_certain_when_the_routing_node_has_answered_or_there_is_none() -> None:
    assert EVERYONE.certain
    assert Policy(channels=WhoHas(answered=True)).certain
    assert not Policy(channels=WhoHas(answered=False)).certain


def test_everyone_is_served_without_a_policy() -> None:
    assert Policy() == EVERYONE
    assert EVERYONE.decide(ME, None) == SERVED == Decision(refusal="", offered=True)


def test_who_has_a_channel_is_served_where_channels_count() -> None:
    with_channel, stranger = WhoHas(answered=True), WhoHas(answered=True, members=())
    assert Policy("channels", channels=with_channel).decide(ME, None) == SERVED
    for visit in (None, Visit(), Visit(7)):
        decision = Policy("channels", channels=stranger).decide(ME, visit)
        assert "a channel with" in decision.refusal
        assert not decision.offered
    assert Policy("allowlist", channels=with_channel).decide(ME, Visit()) != SERVED


@pytest.mark.parametrize("channels", [None, WhoHas(answered=False, members=())])
def test_before_the_routing_node_has_answered_only_strangers_are_told_to_try_again(
    channels: WhoHas | None,
) -> None:
    policy = Policy("channels", channels=channels)
    assert policy.decide(ME, Visit()) == SERVED
    decision = policy.decide(ME, None)
    assert "try again later" in decision.refusal
    assert decision.offered
    # Who is remembered to have a channel is no stranger.
    known = WhoHas(answered=False)
    assert Policy("channels", channels=known).decide(ME, None) == SERVED


# A session of a peer that is not served

NOTHING = Stored()
ALL_STORED = Stored(peer_storage=True, node_backup=True, channels={A: USED})
BLOBS = {STORAGE: b"storage", NODE: b"node", channel(A): b"channel"}
UPDATES = [
    [PeerStorage(b"backup")],
    [UpdateNodeBackup(b"backup")],
    [UpdateChannelBackup(b"backup"), commitment_signed(B)],
]
each_kind = pytest.mark.parametrize("update", UPDATES, ids=[kind.label for kind in BackupKind])


def refused_session(stored: Stored = NOTHING, bits: tuple[int, ...] = (41,)) -> Session:
    """A session of a peer that is not served, ready for its messages."""
    session = Session(
        chain_hash=CHAIN, now=0.0, offered=NOT_OFFERED, stored=stored, refusal=REFUSAL
    )
    actions = [*session.start(), *session.receive(init_message(*bits), 0.0)]
    replay(session, actions, BLOBS)
    assert session.ready
    return session


def served_session(stored: Stored = NOTHING) -> Session:
    """A session of a peer that is served so far."""
    session = Session(chain_hash=CHAIN, now=0.0, stored=stored)
    actions = [*session.start(), *session.receive(init_message(41), 0.0)]
    replay(session, actions, BLOBS)
    assert session.ready
    return session


@pytest.mark.parametrize("initiator", [True, False])
def test_storage_is_not_offered_to_who_is_not_served(initiator: bool) -> None:
    session = Session(
        chain_hash=CHAIN, now=0.0, offered=NOT_OFFERED, refusal=REFUSAL, initiator=initiator
    )
    assert session.start() == [Send(Init(NOT_OFFERED, (CHAIN,)).encode())]
    assert not features.offers(NOT_OFFERED, features.OPTION_PROVIDE_STORAGE)
    assert features.OURS ^ NOT_OFFERED == 1 << 43


def test_what_is_stored_is_given_back_to_who_is_not_served() -> None:
    session = Session(
        chain_hash=CHAIN, now=0.0, offered=NOT_OFFERED, stored=ALL_STORED, refusal=REFUSAL
    )
    assert session.start() == ()
    our_init, storage, reestablish = replay(session, session.receive(init_message(41), 0.0), BLOBS)
    assert our_init == Init(NOT_OFFERED, (CHAIN,), b"node")
    assert storage == PeerStorageRetrieval(b"storage")
    assert isinstance(reestablish, ChannelReestablish)
    assert (reestablish.channel_id, reestablish.channel_backup) == (A, b"channel")


@each_kind
def test_no_update_of_who_is_not_served_is_stored(update: list[Message]) -> None:
    session = refused_session()
    first, *rest = update
    actions = session.receive(first.encode(), 1.0)
    assert talk(actions) == [f"storage: {REFUSAL}"]
    assert reports(actions) == [UPDATE_REFUSED]
    # What would complete it is as good as any other message of a channel.
    assert say(session, *rest) == []
    assert ping(session, 3) == ["pong 3"]
    # Each time it is told again.
    assert talk(say(session, first)) == [f"storage: {REFUSAL}"]


@pytest.mark.parametrize("kind", [UpdateNodeBackup, UpdateChannelBackup])
@pytest.mark.parametrize("bits", [(41,), (43,)])
def test_who_is_not_served_is_told_that_first(
    kind: type[UpdateNodeBackup | UpdateChannelBackup], bits: tuple[int, ...]
) -> None:
    assert talk(say(refused_session(bits=bits), kind(TOO_LARGE))) == [f"storage: {REFUSAL}"]


def test_several_refusals_before_one_ping_are_told_before_its_pong() -> None:
    session = refused_session()
    said = [say(session, PeerStorage(b"1")), say(session, UpdateNodeBackup(b"2"))]
    assert {text for actions in said for text in talk(actions)} == {f"storage: {REFUSAL}"}
    assert ping(session, 1) == ["pong 1"]


def test_a_stored_channel_is_kept_up_to_date_also_for_who_is_not_served() -> None:
    # The backup is given back with it, and what it says may not fall behind.
    session = refused_session(Stored(channels={A: USED}))
    stores = [
        (store.blob, store.channel)
        for message in (commitment_signed(A), revoke_and_ack(A))
        for store in say(session, message)
        if isinstance(store, Store)
    ]
    assert [blob for blob, _ in stores] == [None, None]
    _, last = stores[-1]
    assert last is not None
    assert last.commitments == USED.commitments + 1
    assert last.revocations == USED.revocations + 1
    assert talk(say(session, UpdateChannelBackup(b"backup"))) == [f"storage: {REFUSAL}"]
    (store,) = say(session, commitment_signed(A))
    assert isinstance(store, Store)
    assert store.blob is None


def test_an_update_that_can_not_be_read_ends_the_connection_also_of_who_is_not_served() -> None:
    session = refused_session()
    (warning, _close) = say(session, b"\x00\x07\x00\x05abcd")
    message = decode(warning)
    assert isinstance(message, WarningMessage)
    assert_about_storage(message.text, "peer_storage")


# A policy that changes


@each_kind
def test_who_is_denied_while_connected_is_refused_from_then_on(update: list[Message]) -> None:
    session = served_session()
    sequence = sequence_of(say(session, *update))
    session.refusal = REFUSAL
    # What was handed in before is stored and confirmed.
    assert session.receive(Ping(1).encode(), 1.0) == ()
    assert talk(session.stored(sequence, 1.0)) == ["pong 1"]
    first, *rest = update
    assert talk(say(session, first)) == [f"storage: {REFUSAL}"]
    stores = [action for action in say(session, *rest) if isinstance(action, Store)]
    # Of a channel with a backup the numbers go on to be kept.
    assert [store.blob for store in stores] == [None] * len(stores)
    for store in stores:
        session.stored(store.sequence, 1.0)
    assert ping(session, 2) == ["pong 2"]


@each_kind
def test_who_is_allowed_while_connected_is_served_from_then_on(update: list[Message]) -> None:
    session = refused_session()
    first, *rest = update
    assert talk(say(session, first)) == [f"storage: {REFUSAL}"]
    say(session, *rest)
    session.refusal = ""
    sequence = sequence_of(say(session, *update))
    assert session.receive(Ping(1).encode(), 1.0) == ()
    assert talk(session.stored(sequence, 1.0)) == ["pong 1"]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("pinged", [True, False])
def test_a_channel_backup_on_offer_is_dropped_when_its_peer_is_denied(
    named: bool, pinged: bool
) -> None:
    session = served_session()
    assert say(session, UpdateChannelBackup(b"backup")) == []
    if named:
        assert say(session, of(A, UPDATE_ADD_HTLC)) == []
    if pinged:
        assert ping(session, 1) == []
    session.refusal = REFUSAL
    actions = session.receive(commitment_signed(A), 1.0)
    # The pong that came before it is about it too.
    assert talk(actions) == [f"storage: {REFUSAL}", *(["pong 1"] if pinged else [])]
    assert reports(actions) == [UPDATE_REFUSED]
    assert ping(session, 2) == ["pong 2"]
    # It is gone, and so it stays when the peer is allowed again.
    session.refusal = ""
    assert not [a for a in say(session, commitment_signed(A)) if isinstance(a, Store)]


def test_a_channel_backup_on_offer_is_stored_when_its_peer_is_allowed_again() -> None:
    session = served_session()
    assert say(session, UpdateChannelBackup(b"backup")) == []
    session.refusal = REFUSAL
    assert say(session, of(A, UPDATE_ADD_HTLC)) == []
    session.refusal = ""
    sequence_of(say(session, commitment_signed(A)))


def test_a_channel_backup_on_offer_is_dropped_for_the_next_one_which_is_refused() -> None:
    session = served_session()
    assert say(session, UpdateChannelBackup(b"first"), of(A, UPDATE_ADD_HTLC)) == []
    assert ping(session, 1) == []
    session.refusal = REFUSAL
    heard = talk(say(session, UpdateChannelBackup(b"second")))
    assert heard[-1] == f"storage: {REFUSAL}"
    assert_about_storage(heard[0])
    assert heard.count("pong 1") == 1
    assert say(session, commitment_signed(A)) == []


def test_the_channel_of_a_dropped_backup_is_none_that_is_kept() -> None:
    session = served_session()
    assert say(session, UpdateChannelBackup(b"backup")) == []
    session.refusal = REFUSAL
    say(session, commitment_signed(A))
    session.refusal = ""
    (warning,) = talk(say(session, commitment_signed(A)))
    assert A.hex() in warning
    assert not warning.startswith("storage:")


def test_what_is_to_be_given_back_is_not_changed_by_a_refusal_on_the_way() -> None:
    session = Session(chain_hash=CHAIN, now=0.0, stored=Stored(peer_storage=True))
    assert session.start() == [Send(OUR_INIT.encode())]
    assert session.receive(init_message(), 0.0) == [STORAGE]
    session.refusal = REFUSAL
    assert session.retrieved(b"blob") == [Send(PeerStorageRetrieval(b"blob").encode())]


# On real sockets


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node that keeps KEPT for KEY."""
    async with serving(tmp_path) as node:
        yield node


async def set_rule(node: Node, node_id: NodeId, rule: str) -> None:
    """As the control socket's methods do it."""

    async def follow() -> None:
        node.server.set_policy(Policy(rules=await node.store.reader.rules()))

    call = methods(node.store, rules_changed=follow)
    name = f"peers.{rule or 'deny'}"
    await call[name](node_id=node_id.hex(), undo=not rule)


async def begin(peer: Peer) -> list[Message]:
    """Handshake, `init` and a ping: what the peer hears."""
    await peer.shake_hands()
    peer.say(INIT, Ping(0))
    return await peer.hear_pong()


async def answer(peer: Peer, *messages: Message) -> list[str]:
    """The warnings that come before the pong."""
    peer.say(*messages, Ping(0))
    *heard, _pong = await peer.hear_pong()
    texts = []
    for message in heard:
        assert isinstance(message, WarningMessage)
        texts.append(message.text)
    return texts


async def test_who_is_denied_is_told_at_every_turn_and_gets_back_what_it_has(node: Node) -> None:
    await set_rule(node, KEY.node_id, "deny")
    async with dialed(node) as peer:
        assert await begin(peer) == [
            Init(NOT_OFFERED, (CHAIN,)),
            PeerStorageRetrieval(KEPT),
            Pong(b""),
        ]
        (text,) = await answer(peer, PeerStorage(b"new"))
        assert_about_storage(text)
    # Others are served.
    await node.keep(OTHER_KEY, b"other")
    assert await node.given_back(OTHER_KEY) == b"other"
    await set_rule(node, KEY.node_id, "")
    assert await node.given_back(KEY) == KEPT


async def test_who_is_denied_and_allowed_again_while_connected_is_served_again(
    node: Node,
) -> None:
    async with dialed(node) as peer:
        assert (await begin(peer))[0] == INIT
        await set_rule(node, KEY.node_id, "deny")
        (text,) = await answer(peer, PeerStorage(b"refused"))
        assert_about_storage(text)
        await assert_kept(node, KEPT)
        await set_rule(node, KEY.node_id, "allow")
        assert await answer(peer, PeerStorage(b"taken")) == []
        await assert_kept(node, b"taken")


async def assert_kept(node: Node, blob: bytes) -> None:
    """What the store has of KEY, whose connection goes on."""
    versions = [v async for v in node.store.versions(KEY.node_id) if v.current]
    (version,) = versions
    backup = await node.store.reader.read(version.row_id, version.revision)
    assert backup.blob == blob


async def test_a_policy_is_in_force_for_who_comes_after_it(node: Node) -> None:
    node.server.set_policy(Policy(serve="allowlist", allow=frozenset({OTHER_KEY.node_id})))
    async with dialed(node) as peer:
        assert (await begin(peer))[0] == Init(NOT_OFFERED, (CHAIN,))
        (text,) = await answer(peer, PeerStorage(b"refused"))
        assert_about_storage(text, "operator")
    await node.keep(OTHER_KEY, b"taken")
    node.server.set_policy(Policy())
    await node.keep(KEY, KEPT)


async def test_a_policy_that_changes_before_the_peers_init_is_in_force_for_it(node: Node) -> None:
    async with dialed(node) as peer:
        await peer.shake_hands()
        peer.say()
        assert await peer.hear() == INIT
        await set_rule(node, KEY.node_id, "deny")
        peer.say(INIT)
        assert await peer.hear() == PeerStorageRetrieval(KEPT)
        (text,) = await answer(peer, PeerStorage(b"refused"))
        assert_about_storage(text)


async def test_refusals_are_noted_for_the_operator(node: Node) -> None:
    await set_rule(node, KEY.node_id, "deny")
    await set_rule(node, OTHER_KEY.node_id, "deny")
    for key in (KEY, OTHER_KEY):
        async with dialed(node, key) as peer:
            await begin(peer)
            for blob in (b"1", b"2"):
                (text,) = await answer(peer, PeerStorage(blob))
    await node.store.save_visits()
    (refusal,) = await node.store.reader.refusals(KEY.node_id)
    assert (refusal.reason, refusal.count) == (text.removeprefix("storage: "), 2)
    # Who has nothing here leaves nothing here.
    assert await node.store.reader.refusals(OTHER_KEY.node_id) == []
    await assert_nothing_changed_but_rules(node)


async def assert_nothing_changed_but_rules(node: Node) -> None:
    for key in (KEY, OTHER_KEY):
        await set_rule(node, key.node_id, "")
    await assert_nothing_changed(node)


async def test_where_a_peer_came_from_and_its_features_are_noted(node: Node) -> None:
    async with dialed(node) as peer:
        await begin(peer)
        host, port = peer.transport.get_extra_info("sockname")
        await node.store.save_visits()
        (known,) = [each async for each in node.store.reader.peers()]
        assert known.address == f"{host}:{port}"
        assert features.decode_features(known.features) == INIT.features
