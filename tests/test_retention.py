"""What is kept after channels close: the rules, and the store beside a simple model of a chain.

The model knows the truth: the chain's height, when each channel was really closed, when each peer
was really here. Whatever the routing node says meanwhile, nothing may go before its time, and in
the end all that is due has to go. With `--long` far more histories are tried.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from peerstore.channels.base import Answer, ChannelKey, KnownChannel, NodeChannel
from peerstore.errors import SourceError
from peerstore.policy import Visit
from peerstore.retention import Members, learned
from peerstore.store.base import Due, Quotas, Retention
from peerstore.store.sqlite import SqliteStore
from peerstore.types import BackupKind, ChannelState, NodeId, Slot
from peerstore.watch import ChannelWatch
from tests.store_contract import Recorder, peer, stored_versions
from tests.test_plan import assert_counts_are_right
from tests.test_store import SqliteBackend, prune

T = TypeVar("T")

BLOCKS = 20
AFTER_CLOSE = 1000
INACTIVE = 50 * AFTER_CLOSE
RULES = Retention(blocks=BLOCKS, after_close=AFTER_CLOSE, inactive=INACTIVE)

ROUTING_NODE = peer(9)
ALICE, BOB, CAROL = PEERS = peer(1), peer(2), peer(3)
"""Carol never has a channel with the routing node."""
FIRST, SECOND, SHARED = (bytes((n,)) * 32 for n in (1, 2, 3))
KEYS: list[ChannelKey] = [(ALICE, FIRST), (ALICE, SHARED), (BOB, SHARED)]
OF_CAROL = (CAROL, FIRST)


def known(channel_id: bytes, **fields: object) -> KnownChannel:
    return KnownChannel(ALICE, channel_id, **fields)  # type: ignore[arg-type]


# The rules


def after(before: list[KnownChannel], *answers: Answer) -> dict[bytes, KnownChannel]:
    """What is known of Alice's channels after the answers."""
    now = {channel.key: channel for channel in before}
    for number, answer in enumerate(answers):
        changes = list(learned(now, answer, aged=100 + number, now=1000 + number))
        assert all(now.get(channel.key) != channel for channel in changes)
        now |= {channel.key: channel for channel in changes}
    return {channel_id: channel for (_, channel_id), channel in now.items()}


def said(height: int, *channels: NodeChannel, synced: bool = True) -> Answer:
    return Answer(ROUTING_NODE, height, synced, channels)


def is_open(channel_id: bytes) -> NodeChannel:
    return NodeChannel(ALICE, channel_id, open=True)


def is_closed(channel_id: bytes, height: int | None = None) -> NodeChannel:
    return NodeChannel(ALICE, channel_id, open=False, closed_height=height)


def test_a_closing_without_a_height_is_at_the_height_at_which_it_is_first_seen() -> None:
    found = after(
        [], said(50, is_open(FIRST)), said(60, is_closed(FIRST)), said(70, is_closed(FIRST))
    )
    assert found[FIRST].closed_height == 60
    assert (found[FIRST].closed, found[FIRST].closed_at) == (101, 1001)


def test_a_closing_is_at_the_height_that_the_node_gives() -> None:
    assert after([], said(60, is_closed(FIRST, 42)))[FIRST].closed_height == 42
    # Mined anew, higher up.
    found = after([], said(60, is_closed(FIRST, 42)), said(61, is_closed(FIRST, 55)))
    assert found[FIRST].closed_height == 55


def test_a_channel_that_opens_again_is_open() -> None:
    found = after([], said(60, is_closed(FIRST, 42)), said(61, is_open(FIRST)))
    assert found[FIRST] == known(FIRST, open=True)


def test_a_channel_that_the_node_forgot_is_closed_as_of_then() -> None:
    found = after([], said(50, is_open(FIRST), is_open(SECOND)), said(60, is_open(SECOND)))
    assert (found[FIRST].open, found[FIRST].closed_height) == (False, 60)
    assert found[SECOND].open


def test_a_closed_channel_that_the_node_forgot_stays_closed_where_it_was() -> None:
    assert after([], said(60, is_closed(FIRST, 42)), said(90))[FIRST].closed_height == 42


def test_what_an_unsynced_node_says_opens_channels_and_closes_none() -> None:
    before = [known(FIRST, open=True)]
    found = after(before, said(60, is_closed(FIRST, 42), is_open(SECOND), synced=False))
    assert found[FIRST].open
    assert found[SECOND].open
    assert after(before, said(60, synced=False))[FIRST].open


def test_a_reorganization_below_the_closing_begins_the_count_anew() -> None:
    closed = said(60, is_closed(FIRST, 58))
    below = after([], closed, said(57, is_closed(FIRST)))
    assert below[FIRST].unsettled
    again = after([], closed, said(57, is_closed(FIRST)), said(59, is_closed(FIRST)))
    assert (again[FIRST].unsettled, again[FIRST].closed_height) == (False, 59)
    # Above the closing nothing has changed.
    assert after([], closed, said(58, is_closed(FIRST)))[FIRST].closed_height == 58


def test_a_height_that_was_nonsense_is_got_over() -> None:
    nonsense = said(60, is_closed(FIRST, 5_000_000))
    found = after([], nonsense, said(61, is_closed(FIRST, 55)), said(62, is_closed(FIRST, 55)))
    assert (found[FIRST].unsettled, found[FIRST].closed_height) == (False, 61)


def test_two_peers_may_name_one_channel_id() -> None:
    answer = said(60, is_open(FIRST), NodeChannel(BOB, FIRST, open=False, closed_height=42))
    assert {channel.key: channel.open for channel in learned({}, answer, aged=1, now=1)} == {
        (ALICE, FIRST): True,
        (BOB, FIRST): False,
    }


def test_a_closing_above_the_chain_does_not_count_yet() -> None:
    found = after([], said(60, is_closed(FIRST, 65)))
    assert (found[FIRST].unsettled, found[FIRST].closed_height) == (True, 65)
    found = after([], said(60, is_closed(FIRST, 65)), said(66, is_closed(FIRST, 65)))
    assert (found[FIRST].unsettled, found[FIRST].closed_height) == (False, 66)


def test_who_counts_as_having_a_channel() -> None:
    members = Members([known(FIRST, open=False, closed_height=100, closed=1, closed_at=1)])
    assert members.within(ALICE, None, 100 + BLOCKS - 1, BLOCKS)
    assert not members.within(ALICE, None, 100 + BLOCKS, BLOCKS)
    # A visit since then counts as well.
    assert members.within(ALICE, Visit(110), 110 + BLOCKS - 1, BLOCKS)
    assert not members.within(ALICE, Visit(110), 110 + BLOCKS, BLOCKS)
    assert not members.within(BOB, Visit(110), 110, BLOCKS)
    # One of which the height is not known may have been just now.
    assert members.within(ALICE, Visit(), 100_000, BLOCKS)
    # No height, no end.
    assert members.within(ALICE, None, None, BLOCKS)
    assert not members.within(BOB, None, None, BLOCKS)
    members.learn([known(SECOND, open=True)])
    assert members.within(ALICE, None, 100_000, BLOCKS)


# The store and the watch beside a chain


@dataclass
class Chain:
    """The truth, and a routing node that tells it, or not."""

    height: int = 1000
    channels: dict[ChannelKey, int | None] = field(default_factory=dict)
    """Open: None; closed: at which height."""
    forgotten: set[ChannelKey] = field(default_factory=set)
    """Channels of which the node says nothing any more."""
    down: bool = False
    synced: bool = True
    tells_heights: bool = True

    async def ask(self) -> Answer:
        if self.down:
            raise SourceError("the node is down")
        channels = tuple(
            NodeChannel(*key, at is None, at if self.tells_heights else None)
            for key, at in self.channels.items()
            if key not in self.forgotten
        )
        return Answer(ROUTING_NODE, self.height, self.synced, channels)

    async def changed(self) -> None:
        raise AssertionError("nobody waits here")

    async def close(self) -> None:
        pass


@dataclass(frozen=True)
class Time:
    """A time as the model knows it: the true height, and seconds that age things."""

    height: int
    aged: int


@dataclass(frozen=True)
class MessageClosing:
    """The end of a channel as its own messages told it."""

    height: int | None
    """None where nobody could know it."""
    aged: int


class RetentionMachine(RuleBasedStateMachine):
    """See the module's docstring. Trouble of the routing node is noticed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp(prefix="peerstore-retention-"))
        self.backend = SqliteBackend(self.directory, Quotas(min_free_space=0))
        self.chain = Chain()
        self.highest = 0
        self.watch: ChannelWatch | None = None
        self.aged = 0
        self.has_source = False
        self.trusted = True
        """Whether seconds age things."""
        self.visited: dict[NodeId, Time] = {}
        self.stored: set[Slot] = set()
        self.announced: list[Due] = []
        self.messages: dict[ChannelKey, MessageClosing | None] = {}
        """Of each channel that has a backup what its messages said; None: it is open."""

    def run(self, coroutine: Coroutine[None, None, T]) -> T:
        return self.runner.run(coroutine)

    @initialize(tells_heights=st.booleans(), has_source=st.integers(0, 3))
    def begin(self, tells_heights: bool, has_source: int) -> None:
        self.chain.tells_heights = tells_heights
        self.has_source = bool(has_source)
        self.start()
        for node_id in PEERS:
            self.visit(node_id)

    def start(self) -> None:
        self.store: SqliteStore = self.run(self.backend.open(aging=not self.has_source))
        if self.has_source:
            self.trusted = False
            self.watch = ChannelWatch(
                self.chain,
                self.store,
                self.run(self.store.reader.node_channels()),
                self.run(self.store.reader.meta()).moment.height,
                blocks=lambda: BLOCKS,
                changed=lambda: None,
            )

    def teardown(self) -> None:
        self.run(self.backend.dispose())
        self.runner.close()
        shutil.rmtree(self.directory)

    # Peers

    def put(self, slot: Slot, channel: ChannelState | None = None) -> None:
        async def come_and_go() -> None:
            lease = await self.store.open_lease(slot.node_id, Recorder())
            lease.put(1, slot, b"backup", channel)
            await self.store.settle()
            lease.close()

        self.run(come_and_go())
        self.visited[slot.node_id] = Time(self.chain.height, self.aged)
        self.stored.add(slot)

    @rule(
        node_id=st.sampled_from(PEERS),
        kind=st.sampled_from([BackupKind.PEER_STORAGE, BackupKind.NODE_BACKUP]),
    )
    def visit(self, node_id: NodeId, kind: BackupKind = BackupKind.PEER_STORAGE) -> None:
        """A peer comes, stores, and goes."""
        self.put(Slot(node_id, kind))

    @rule(key=st.sampled_from([*KEYS, OF_CAROL]), closed=st.booleans())
    def store_channel(self, key: ChannelKey, closed: bool) -> None:
        """A peer stores the backup of one channel, whose messages have closed it or not."""
        self.put(
            Slot(key[0], BackupKind.CHANNEL_BACKUP, key[1]),
            ChannelState(commitments=1, shutdown=closed, closing=closed),
        )
        if not closed:
            self.messages[key] = None
        elif self.messages.get(key) is None:
            height = self.chain.height if self.has_source and self.trusted else None
            self.messages[key] = MessageClosing(height, self.aged)

    # The chain

    @rule(blocks=st.sampled_from([1, 2, BLOCKS - 1, BLOCKS, 3 * BLOCKS]))
    def mine(self, blocks: int) -> None:
        self.chain.height += blocks
        self.look()

    @rule(key=st.sampled_from([*KEYS, OF_CAROL]), early=st.booleans(), which=st.integers(0, 2))
    def mine_until_due(self, key: ChannelKey, early: bool, which: int) -> None:
        """To the block in which something would be due if nothing else counted, or before."""
        closing = self.messages.get(key)
        heights = [
            self.visited[key[0]].height,
            self.chain.channels.get(key),
            None if closing is None else closing.height,
        ]
        height = heights[which]
        if height is not None:
            self.chain.height = max(self.chain.height, height + BLOCKS - early)
        self.look()

    @rule(blocks=st.integers(1, 4))
    def reorganize(self, blocks: int) -> None:
        """Blocks go; a closing among them is mined anew in the next block that comes."""
        self.chain.height -= blocks
        lost = [key for key, at in self.chain.channels.items() if (at or 0) > self.chain.height]
        self.chain.channels |= dict.fromkeys(lost, self.chain.height + 1)
        # A node says that a channel is closed when that is so in its chain.
        self.chain.height += bool(lost)
        self.look()

    @precondition(lambda self: self.has_source)
    @rule(key=st.sampled_from(KEYS))
    def open_channel(self, key: ChannelKey) -> None:
        self.chain.channels[key] = None
        self.chain.forgotten.discard(key)
        self.look()

    @rule(key=st.sampled_from(KEYS), forgotten=st.booleans())
    def close_channel(self, key: ChannelKey, forgotten: bool) -> None:
        if self.chain.channels.get(key, 0) is None:
            self.chain.channels[key] = self.chain.height
        if forgotten and self.chain.channels.get(key) is not None:
            self.chain.forgotten.add(key)
        self.look()

    @rule(down=st.booleans(), synced=st.booleans())
    def trouble(self, down: bool, synced: bool) -> None:
        self.chain.down, self.chain.synced = down, synced
        self.look()

    def look(self) -> None:
        self.highest = max(self.highest, self.chain.height)
        if self.watch is not None:
            self.run(self.watch.look())
            self.trusted = self.chain.synced and not self.chain.down
            assert self.trusted is (not self.watch.error)

    # Time

    @rule(seconds=st.sampled_from([60, AFTER_CLOSE - 1, AFTER_CLOSE, INACTIVE, 3 * INACTIVE]))
    def time_passes(self, seconds: int) -> None:
        self.backend.clock.advance(seconds)
        self.aged += seconds if self.trusted else 0

    @rule(key=st.sampled_from([*KEYS, OF_CAROL]), early=st.booleans(), of_visit=st.booleans())
    def time_passes_until_due(self, key: ChannelKey, early: bool, of_visit: bool) -> None:
        closing = self.messages.get(key)
        aged = self.visited[key[0]].aged if of_visit or closing is None else closing.aged
        self.time_passes(max(0, aged + AFTER_CLOSE - early - self.aged))

    @rule(seconds=st.sampled_from([-(10**8), 10**8]))
    def the_wall_clock_jumps(self, seconds: int) -> None:
        self.backend.clock.now += seconds

    @rule(seconds=st.sampled_from([60, 10**8]), looks=st.booleans())
    def stop_and_start(self, seconds: int, looks: bool) -> None:
        self.run(self.store.close())
        self.backend.clock.advance(seconds)  # downtime
        self.start()
        if looks:
            self.look()

    # Retention

    @invariant()
    def nothing_is_due_before_its_time(self) -> None:
        if hasattr(self, "store"):
            dry = self.run(prune(self.store, RULES, dry_run=True))
            assert not dry or self.trusted
            assert {each.slot for each in dry} <= {
                slot for slot in self.stored if self.is_due(slot)
            }
            self.announced = dry

    @rule()
    def prune(self) -> None:
        gone = self.run(prune(self.store, RULES))
        assert gone == self.announced
        for each in gone:
            self.stored.discard(each.slot)
            if each.slot.channel_id:
                del self.messages[each.slot.node_id, each.slot.channel_id]
        for slot in self.stored:
            assert self.run(stored_versions(self.store, slot))
        self.run(assert_counts_are_right(self.store))

    def is_due(self, slot: Slot) -> bool:
        """By the truth."""
        node_id = slot.node_id
        visited = self.visited[node_id]
        if slot.channel_id:
            if self.channel_is_due((node_id, slot.channel_id)):
                return True
        else:
            closings = [at for key, at in self.chain.channels.items() if key[0] == node_id]
            last = max((at for at in closings if at is not None), default=0)
            if (
                closings
                and None not in closings
                and self.chain.height - max(last, visited.height) >= BLOCKS
                and all(
                    self.channel_is_due(key)
                    for key in self.messages
                    if key[0] == node_id and key not in self.chain.channels
                )
            ):
                return True
        if any(key[0] == node_id for key in self.chain.channels):
            return False
        channels_due = all(self.channel_is_due(key) for key in self.messages if key[0] == node_id)
        return channels_due and not slot.channel_id and self.aged - visited.aged >= INACTIVE

    def channel_is_due(self, key: ChannelKey) -> bool:
        visited = self.visited[key[0]]
        if key in self.chain.channels:
            at = self.chain.channels[key]
            return at is not None and self.chain.height - max(at, visited.height) >= BLOCKS
        closing = self.messages[key]
        if closing is None:
            return False
        if closing.height is not None:
            return self.chain.height - max(closing.height, visited.height) >= BLOCKS
        return self.aged - max(closing.aged, visited.aged) >= AFTER_CLOSE

    @precondition(lambda self: hasattr(self, "store"))
    @rule()
    def in_the_end_all_goes_that_is_due(self) -> None:
        self.chain.down, self.chain.synced = False, True
        self.look()
        # Above all that was ever told: after this every visit and every closing has its height.
        self.chain.height = self.highest + 5
        self.look()
        self.mine(BLOCKS)
        self.time_passes(INACTIVE)
        self.nothing_is_due_before_its_time()
        self.prune()
        for slot in self.stored:
            assert not self.is_due(slot), slot


@pytest.mark.timeout(7200)  # for --long
def test_nothing_goes_before_its_time_and_all_that_is_due_goes(
    request: pytest.FixtureRequest,
) -> None:
    long = request.config.getoption("--long", default=False)
    run_state_machine_as_test(
        RetentionMachine,
        settings=settings(
            max_examples=1000 if long else 22,
            stateful_step_count=60 if long else 40,
            deadline=None,
            # To make a failing history short takes minutes: that is for --long too.
            phases=list(Phase) if long else [Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
