"""What every store must do, whatever keeps the bytes: one suite, run under each implementation.

A test module derives a class from `StoreContract` and gives it a `Backend`; see test_store.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peerstore.errors import StoreClosedError
from peerstore.store.base import Counts, Lease, Quotas, Revision, Store, Version
from peerstore.types import BackupKind, ChannelState, NodeId, Slot
from tests.helpers import quick

START = 1_700_000_000
"""The clock's first second."""

LARGEST = 65531
"""Bytes of the largest blob of BOLT 1, peer_storage."""

MIB = 1 << 20

histories = settings(
    quick,
    max_examples=40,
    # One suite for several classes is what this is.
    suppress_health_check=[HealthCheck.differing_executors],
)


def peer(number: int) -> NodeId:
    """A peer's node id."""
    return NodeId(b"\x02" + number.to_bytes(32, "big"))


def backup_of(node_id: NodeId) -> Slot:
    """The slot of a peer's peer_storage."""
    return Slot(node_id, BackupKind.PEER_STORAGE)


def slots_of(node_id: NodeId) -> list[Slot]:
    """A slot of each kind, and two of the kind that has one for each channel."""
    return [
        Slot(node_id, BackupKind.PEER_STORAGE),
        Slot(node_id, BackupKind.NODE_BACKUP),
        Slot(node_id, BackupKind.CHANNEL_BACKUP, bytes((1,)) * 32),
        Slot(node_id, BackupKind.CHANNEL_BACKUP, bytes((2,)) * 32),
    ]


ALICE = peer(1)
BOB = peer(2)
NOBODY = peer(1 << 40)
ALICES = backup_of(ALICE)
BOBS = backup_of(BOB)
ALICES_NODE = slots_of(ALICE)[1]
ALICES_CHANNEL, ALICES_OTHER_CHANNEL = slots_of(ALICE)[2:]

EARLY = ChannelState(commitments=1, whole=True)
LATE = ChannelState(9, 8, b"\x5e" * 32, whole=True)
STATES = {
    "of which nothing is known": ChannelState(),
    "at its beginning": EARLY,
    "in use": LATE,
    "not seen from its beginning": ChannelState(3, 2, b"\x01" * 32),
    "as old as one can get": ChannelState((1 << 48) - 1, (1 << 48) - 1, b"\xff" * 32),
    "shutting down": ChannelState(9, 9, b"\x5e" * 32, shutdown=True),
    "closed": ChannelState(9, 9, b"\x5e" * 32, whole=True, shutdown=True, closing=True),
    "closing without a shutdown": ChannelState(closing=True),
}


@dataclass
class Clock:
    """Two clocks that move when a test says so: `now` is the wall's, in Unix seconds."""

    now: float = START
    monotonic: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds
        self.monotonic += seconds


@dataclass
class Recorder:
    """A listener that remembers what it was told: sequence numbers, with the reason of a loss.

    `refusals` are the updates that were refused beside others that were not.
    """

    told: list[tuple[int, str | None]] = field(default_factory=list)
    refusals: list[tuple[list[int], str]] = field(default_factory=list)

    def refused(self, sequences: Sequence[int], reason: str) -> None:
        self.refusals.append((list(sequences), reason))

    def stored(self, sequence: int) -> None:
        self.told.append((sequence, None))

    def not_stored(self, sequence: int, reason: str) -> None:
        self.told.append((sequence, reason))

    @property
    def sequences(self) -> list[int]:
        return [sequence for sequence, _ in self.told]

    def lost(self) -> int:
        """The sequence number of what it was told last, which is a loss with a reason."""
        sequence, reason = self.told[-1]
        assert reason
        assert reason.isprintable()
        return sequence


class Breaking:
    """A listener with a mistake in it."""

    def stored(self, sequence: int) -> None:
        raise RuntimeError(f"a mistake in a listener that was told {sequence}")

    def refused(self, sequences: Sequence[int], reason: str) -> None:
        self.stored(sequences[-1])

    def not_stored(self, sequence: int, reason: str) -> None:
        self.stored(sequence)


class Backend(Protocol):
    """A place where a store keeps its bytes, and what can happen to it."""

    clock: Clock
    quotas: Quotas
    """What is taken by the store that is opened next."""

    async def open(self) -> Store:
        """Open the store, anew after it was closed."""

    def hold_writes(self) -> AbstractAsyncContextManager[None]:
        """Nothing becomes durable until the block is left."""

    def fail_writes(self) -> AbstractAsyncContextManager[None]:
        """Nothing can be written until the block is left."""

    async def dispose(self) -> None:
        """Close what is open, in whatever state it is."""


async def turns(store: Store, number: int = 10) -> None:
    """Let all that needs no writing happen: each round trip passes the store's readers."""
    for _ in range(number):
        async for _version in store.versions(NOBODY):
            pass


def congested(store: Store) -> bool:
    """Whether the store is congested now."""
    return store.congested


async def blob_of(lease: Lease, slot: Slot) -> bytes | None:
    """What a slot holds."""
    backup = await lease.read(slot)
    return None if backup is None else backup.blob


async def all_of(lease: Lease) -> dict[Slot, bytes | None]:
    """What a peer gets back."""
    return {slot: await blob_of(lease, slot) for slot in list(lease.slots)}


async def stored_versions(store: Store, slot: Slot) -> list[Version]:
    """The versions of a slot, oldest first."""
    return [v async for v in store.versions(slot.node_id) if v.revision.slot == slot]


async def stored_revisions(store: Store, node_id: NodeId | None = None) -> list[Revision]:
    """The current version of every slot, without its bytes."""
    return [v.revision async for v in store.versions(node_id) if v.current]


async def newest_revision(store: Store, slot: Slot) -> int:
    """The revision that a slot has now."""
    (current,) = [version for version in await stored_versions(store, slot) if version.current]
    return current.revision.revision


async def holds(store: Store, slot: Slot, blob: bytes) -> bool:
    """Whether this is the current version of a slot."""
    (current,) = [version for version in await stored_versions(store, slot) if version.current]
    return current.revision.sha256 == hashlib.sha256(blob).digest()


# A history of connections and updates, for the property test

PEERS = 3


@dataclass(frozen=True)
class Put:
    """A peer, the index of one of its slots, a blob; a channel's has the state of the channel."""

    peer: int
    slot: int
    blob: bytes
    state: ChannelState


@dataclass(frozen=True)
class Say:
    """A peer, the index of a channel's slot, the state of the channel alone."""

    peer: int
    slot: int
    state: ChannelState


@dataclass(frozen=True)
class Connect:
    """A new connection of a peer, which may have an older one."""

    peer: int


@dataclass(frozen=True)
class Disconnect:
    """A peer's connection is gone."""

    peer: int


@dataclass(frozen=True)
class Settle:
    """All is written."""


@dataclass(frozen=True)
class Restart:
    """The store is closed and opened again."""


Step = Put | Say | Connect | Disconnect | Settle | Restart

_peers = st.integers(0, PEERS - 1)
_states = st.builds(ChannelState, st.integers(0, 2), closing=st.booleans())
_puts = st.builds(Put, _peers, st.integers(0, 3), st.binary(max_size=3), _states)
_steps = st.one_of(
    _puts,
    _puts,
    _puts,
    st.builds(Say, _peers, st.integers(2, 3), _states),
    st.builds(Connect, _peers),
    st.builds(Disconnect, _peers),
    st.just(Settle()),
    st.just(Restart()),
)


class StoreContract:
    """Derive from it, and give it a backend."""

    def make_backend(self, directory: Path) -> Backend:
        """A new and empty place; the directory is there and belongs to it."""
        raise NotImplementedError

    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Backend]:
        """An empty place."""
        backend = self.make_backend(tmp_path)
        try:
            yield backend
        finally:
            await backend.dispose()

    @pytest.fixture
    async def store(self, backend: Backend) -> Store:
        """An empty store."""
        return await backend.open()

    # What is given back

    async def test_a_peer_that_stored_nothing_gets_nothing(self, store: Store) -> None:
        lease = await store.open_lease(ALICE, Recorder())
        assert list(lease.slots) == []
        assert await lease.read(ALICES) is None
        assert await store.counts() == Counts(0, 0, 0, versions=0)
        assert await stored_revisions(store) == []

    @pytest.mark.parametrize("size", [0, 1, LARGEST])
    async def test_the_exact_bytes_come_back(self, backend: Backend, size: int) -> None:
        blob = (bytes(range(256)) * 256)[:size]
        store = await backend.open()
        lease = await store.open_lease(ALICE, Recorder())
        lease.put(1, ALICES, blob)
        await store.settle()
        assert list(lease.slots) == [ALICES]
        assert await blob_of(lease, ALICES) == blob
        lease = await store.open_lease(ALICE, Recorder())
        assert await all_of(lease) == {ALICES: blob}
        await store.close()

        store = await backend.open()
        lease = await store.open_lease(ALICE, Recorder())
        assert await all_of(lease) == {ALICES: blob}

    @pytest.mark.parametrize("settled", [True, False])
    async def test_the_newest_update_wins(
        self, backend: Backend, store: Store, settled: bool
    ) -> None:
        lease = await store.open_lease(ALICE, Recorder())
        for sequence, blob in enumerate((b"short", b"x" * 1000, b"", b"last"), 1):
            lease.put(sequence, ALICES, blob)
            if settled:
                await store.settle()
                assert await holds(store, ALICES, blob)
        await store.close()
        store = await backend.open()
        lease = await store.open_lease(ALICE, Recorder())
        assert await all_of(lease) == {ALICES: b"last"}

    async def test_every_slot_stands_for_itself(self, backend: Backend, store: Store) -> None:
        expected: dict[Slot, bytes | None] = {}
        for node_id in (ALICE, BOB):
            lease = await store.open_lease(node_id, Recorder())
            for sequence, slot in enumerate(slots_of(node_id), 1):
                expected[slot] = repr(slot).encode()
                lease.put(sequence, slot, repr(slot).encode())
        await store.close()
        store = await backend.open()
        for node_id in (ALICE, BOB):
            lease = await store.open_lease(node_id, Recorder())
            assert await all_of(lease) == {slot: expected[slot] for slot in slots_of(node_id)}
        # A change of one leaves the others alone.
        changed = slots_of(BOB)[2]
        # No less than it was: nothing that looks like a loss of data.
        expected[changed] = b"changed" * 100
        lease.put(1, changed, b"changed" * 100)
        await store.settle()
        for node_id in (ALICE, BOB):
            lease = await store.open_lease(node_id, Recorder())
            assert await all_of(lease) == {slot: expected[slot] for slot in slots_of(node_id)}

    async def test_a_peer_is_not_given_what_another_stored(self, store: Store) -> None:
        lease = await store.open_lease(BOB, Recorder())
        lease.put(1, BOBS, b"of bob")
        await store.settle()
        lease = await store.open_lease(ALICE, Recorder())
        assert list(lease.slots) == []
        assert await lease.read(ALICES) is None
        assert await lease.read(BOBS) is None

    # What is listed

    async def test_what_is_stored_is_listed_and_counted(
        self, backend: Backend, store: Store
    ) -> None:
        slots = [*slots_of(ALICE), BOBS]
        leases = {id_: await store.open_lease(id_, Recorder()) for id_ in (BOB, ALICE)}
        for sequence, slot in enumerate(reversed(slots), 1):
            backend.clock.now += 10
            leases[slot.node_id].put(sequence, slot, b"x" * sequence)
            await store.settle()
        revisions = await stored_revisions(store)
        assert [revision.slot for revision in revisions] == slots
        assert [revision.size for revision in revisions] == [5, 4, 3, 2, 1]
        assert [revision.stored_at for revision in revisions] == [
            START + seconds for seconds in (50, 40, 30, 20, 10)
        ]
        assert await stored_revisions(store, BOB) == revisions[-1:]
        assert await stored_revisions(store, peer(3)) == []
        assert await store.counts() == Counts(peers=2, backups=5, bytes=15, versions=5)
        for revision in revisions:
            backup = await leases[revision.slot.node_id].read(revision.slot)
            assert backup is not None
            assert backup.revision == revision

    # Revisions

    async def test_revisions_rise_and_are_never_used_again(
        self, backend: Backend, store: Store
    ) -> None:
        newest = 0
        for blob in (b"one", b"two", b"three"):
            for slot in (*slots_of(ALICE), BOBS):
                lease = await store.open_lease(slot.node_id, Recorder())
                lease.put(1, slot, blob)
                await store.settle()
                revision = await newest_revision(store, slot)
                assert revision > newest
                newest = revision
            await store.close()
            store = await backend.open()

    async def test_the_same_bytes_again_are_no_new_revision(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        lease.put(1, ALICES, b"same")
        await store.settle()
        before = await stored_revisions(store)
        for sequence in range(2, 5):
            backend.clock.now += 3600
            lease.put(sequence, ALICES, b"same")
            await store.settle()
        await store.close()
        store = await backend.open()
        recorder_of_next = Recorder()
        lease = await store.open_lease(ALICE, recorder_of_next)
        lease.put(7, ALICES, b"same")
        await store.settle()
        assert await stored_revisions(store) == before
        assert recorder.told == [(1, None), (2, None), (3, None), (4, None)]
        assert recorder_of_next.told == [(7, None)]

    async def test_older_bytes_that_come_again_are_a_new_revision(self, store: Store) -> None:
        lease = await store.open_lease(ALICE, Recorder())
        lease.put(1, ALICES, b"old")
        await store.settle()
        first = await newest_revision(store, ALICES)
        lease.put(2, ALICES, b"new")
        await store.settle()
        lease.put(3, ALICES, b"old")
        await store.settle()
        assert await holds(store, ALICES, b"old")
        assert await newest_revision(store, ALICES) > first + 1

    # The state of a channel, beside its backup

    @pytest.mark.parametrize("state", STATES.values(), ids=STATES)
    async def test_the_state_of_a_channel_comes_back_with_its_backup(
        self, backend: Backend, store: Store, state: ChannelState
    ) -> None:
        lease = await store.open_lease(ALICE, Recorder())
        lease.put(1, ALICES_CHANNEL, b"backup", state)
        await store.settle()
        lease = await store.open_lease(ALICE, Recorder())
        assert lease.channels == {ALICES_CHANNEL.channel_id: state}
        assert await all_of(lease) == {ALICES_CHANNEL: b"backup"}
        await store.close()
        store = await backend.open()
        lease = await store.open_lease(ALICE, Recorder())
        assert lease.channels == {ALICES_CHANNEL.channel_id: state}
        assert await all_of(lease) == {ALICES_CHANNEL: b"backup"}

    async def test_a_channel_of_which_nothing_was_said_is_in_no_known_state(
        self, store: Store
    ) -> None:
        lease = await store.open_lease(ALICE, Recorder())
        for sequence, slot in enumerate(slots_of(ALICE), 1):
            lease.put(sequence, slot, b"backup")
        await store.settle()
        lease = await store.open_lease(ALICE, Recorder())
        assert lease.channels == {
            slot.channel_id: ChannelState() for slot in (ALICES_CHANNEL, ALICES_OTHER_CHANNEL)
        }

    async def test_the_same_channel_id_of_two_peers_is_two_channels(self, store: Store) -> None:
        states = {ALICE: EARLY, BOB: LATE}
        for node_id, state in states.items():
            lease = await store.open_lease(node_id, Recorder())
            slot = Slot(node_id, BackupKind.CHANNEL_BACKUP, ALICES_CHANNEL.channel_id)
            lease.put(1, slot, b"backup", state)
            await store.settle()
        for node_id, state in states.items():
            lease = await store.open_lease(node_id, Recorder())
            assert lease.channels == {ALICES_CHANNEL.channel_id: state}

    async def test_a_state_alone_changes_nothing_else_of_its_channel(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        lease.put(1, ALICES_CHANNEL, b"backup", EARLY)
        lease.put(2, ALICES_OTHER_CHANNEL, b"other backup", EARLY)
        await store.settle()
        before = await stored_revisions(store)
        lease.put(3, ALICES_CHANNEL, None, LATE)
        await store.settle()
        assert recorder.sequences[-1] == 3
        assert await stored_revisions(store) == before
        await store.close()
        store = await backend.open()
        lease = await store.open_lease(ALICE, Recorder())
        assert await all_of(lease) == {
            ALICES_CHANNEL: b"backup",
            ALICES_OTHER_CHANNEL: b"other backup",
        }
        assert lease.channels == {
            ALICES_CHANNEL.channel_id: LATE,
            ALICES_OTHER_CHANNEL.channel_id: EARLY,
        }

    async def test_a_state_alone_is_stored_only_where_the_channel_has_a_backup(
        self, store: Store
    ) -> None:
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        lease.put(1, ALICES_OTHER_CHANNEL, b"backup", EARLY)
        lease.put(2, ALICES_CHANNEL, None, LATE)
        await store.settle()
        lease.put(3, ALICES_CHANNEL, None, LATE)
        await store.settle()
        assert recorder.told[-1] == (3, None)
        lease = await store.open_lease(ALICE, Recorder())
        assert lease.channels == {ALICES_OTHER_CHANNEL.channel_id: EARLY}
        assert list(lease.slots) == [ALICES_OTHER_CHANNEL]
        # A backup that comes later is not in a state from before it.
        lease.put(1, ALICES_CHANNEL, b"backup")
        await store.settle()
        lease = await store.open_lease(ALICE, Recorder())
        assert lease.channels[ALICES_CHANNEL.channel_id] == ChannelState()

    @pytest.mark.parametrize("in_flight", [True, False])
    @pytest.mark.parametrize(
        ("first", "then"),
        [(b"backup", None), (None, b"backup"), (b"older", b"backup")],
        ids=["a state after a blob", "a blob after a state", "both after both"],
    )
    async def test_the_newest_state_and_the_newest_blob_win_each_for_itself(
        self,
        backend: Backend,
        store: Store,
        first: bytes | None,
        then: bytes | None,
        in_flight: bool,
    ) -> None:
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        async with backend.hold_writes():
            lease.put(1, ALICES_CHANNEL, first, EARLY)
            if in_flight:
                await turns(store)
            lease.put(2, ALICES_CHANNEL, then, LATE)
        await store.settle()
        assert recorder.told[-1] == (2, None)
        lease = await store.open_lease(ALICE, Recorder())
        assert await all_of(lease) == {ALICES_CHANNEL: b"backup"}
        assert lease.channels == {ALICES_CHANNEL.channel_id: LATE}

    @pytest.mark.parametrize("there", [True, False], ids=["there before", "new"])
    async def test_many_states_alone_around_a_blob_leave_the_blob_and_the_last_state(
        self, backend: Backend, store: Store, there: bool
    ) -> None:
        lease = await store.open_lease(ALICE, Recorder())
        if there:
            lease.put(1, ALICES_CHANNEL, b"older", EARLY)
            await store.settle()
        async with backend.hold_writes():
            for number in range(2, 40):
                blob = b"backup" if number == 20 else None
                lease.put(number, ALICES_CHANNEL, blob, ChannelState(number))
        await store.settle()
        lease = await store.open_lease(ALICE, Recorder())
        assert await all_of(lease) == {ALICES_CHANNEL: b"backup"}
        assert lease.channels == {ALICES_CHANNEL.channel_id: ChannelState(39)}

    async def test_a_state_is_durable_before_anybody_is_told(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        lease.put(1, ALICES_CHANNEL, b"backup", EARLY)
        await store.settle()
        async with backend.hold_writes():
            lease.put(2, ALICES_CHANNEL, None, LATE)
            await turns(store)
            assert recorder.told == [(1, None)]
            opening = asyncio.create_task(store.open_lease(ALICE, Recorder()))
            await turns(store)
            assert not opening.done()
        assert (await opening).channels == {ALICES_CHANNEL.channel_id: LATE}
        assert recorder.told == [(1, None), (2, None)]

    async def test_what_can_not_be_written_changes_no_state(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        lease.put(1, ALICES_CHANNEL, b"kept", EARLY)
        await store.settle()
        async with backend.fail_writes():
            lease.put(2, ALICES_CHANNEL, b"lost", LATE)
            lease.put(3, ALICES_OTHER_CHANNEL, b"lost too", LATE)
            await store.settle()
        assert recorder.lost() == 3
        lease = await store.open_lease(ALICE, Recorder())
        assert await all_of(lease) == {ALICES_CHANNEL: b"kept"}
        assert lease.channels == {ALICES_CHANNEL.channel_id: EARLY}

    async def test_a_refused_blob_leaves_the_old_one_with_the_new_state(
        self, backend: Backend
    ) -> None:
        backend.quotas = replace(backend.quotas, max_bytes_per_peer=100)
        store = await backend.open()
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        lease.put(1, ALICES_CHANNEL, bytes(60), EARLY)
        await store.settle()
        lease.put(2, ALICES_CHANNEL, bytes(101), LATE)
        lease.put(3, ALICES_OTHER_CHANNEL, bytes(50), LATE)
        await store.settle()
        assert recorder.lost() == 3
        # What the messages said is so; without a backup there is nothing to keep it with.
        lease = await store.open_lease(ALICE, Recorder())
        assert await all_of(lease) == {ALICES_CHANNEL: bytes(60)}
        assert lease.channels == {ALICES_CHANNEL.channel_id: LATE}
        assert await store.counts() == Counts(1, 1, 60, versions=1)

    async def test_what_is_refused_is_told_apart_from_what_is_stored_beside_it(
        self, backend: Backend
    ) -> None:
        backend.quotas = replace(backend.quotas, max_bytes_per_peer=100)
        store = await backend.open()
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        async with backend.hold_writes():
            lease.put(1, ALICES, b"taken")
            lease.put(2, ALICES_CHANNEL, bytes(101), EARLY)
            lease.put(3, ALICES_NODE, b"taken too")
            lease.put(4, ALICES_CHANNEL, bytes(102), LATE)
        await store.settle()
        ((sequences, reason),) = recorder.refusals
        assert sequences == [2, 4]
        assert reason.isprintable()
        for word in ("channel_backup", ALICES_CHANNEL.channel_id.hex()):
            assert word in reason
        assert recorder.told == [(4, None)]
        lease = await store.open_lease(ALICE, Recorder())
        assert await all_of(lease) == {ALICES: b"taken", ALICES_NODE: b"taken too"}
        assert lease.channels == {}

    # A node backup that the peer must not be shown

    async def test_a_node_backup_is_shown_unless_the_peer_hung_up_on_it(self, store: Store) -> None:
        assert not (await store.open_lease(ALICE, Recorder())).node_backup_forgone
        await self.keep_node_backup(store, b"backup")
        assert not (await store.open_lease(ALICE, Recorder())).node_backup_forgone

    async def test_a_forgone_node_backup_is_known_to_the_next_lease_and_after_a_restart(
        self, backend: Backend, store: Store
    ) -> None:
        lease = await self.keep_node_backup(store, b"backup")
        lease.forgo_node_backup()
        lease.close()
        for _ in range(2):
            lease = await store.open_lease(ALICE, Recorder())
            assert lease.node_backup_forgone
            # It is there as before, and nobody else's concern.
            assert await all_of(lease) == {ALICES_NODE: b"backup"}
            lease = await store.open_lease(BOB, Recorder())
            assert not lease.node_backup_forgone
            await store.close()
            store = await backend.open()

    async def test_a_forgone_node_backup_is_known_before_that_is_written(
        self, backend: Backend, store: Store
    ) -> None:
        lease = await self.keep_node_backup(store, b"backup")
        async with backend.hold_writes():
            lease.forgo_node_backup()
            lease.close()
            # Before the writer has looked at it, and while it waits for it.
            for _ in range(2):
                assert (await store.open_lease(ALICE, Recorder())).node_backup_forgone
                await turns(store)
        await store.close()
        store = await backend.open()
        assert (await store.open_lease(ALICE, Recorder())).node_backup_forgone

    @pytest.mark.parametrize("blob", [b"backup", b"another"], ids=["the same", "another"])
    async def test_a_node_backup_stored_anew_is_shown_again(
        self, backend: Backend, store: Store, blob: bytes
    ) -> None:
        lease = await self.keep_node_backup(store, b"backup")
        lease.forgo_node_backup()
        await self.keep_node_backup(store, blob)
        for _ in range(2):
            lease = await store.open_lease(ALICE, Recorder())
            assert not lease.node_backup_forgone
            assert await all_of(lease) == {ALICES_NODE: blob}
            await store.close()
            store = await backend.open()

    async def test_other_backups_do_not_have_a_node_backup_shown_again(self, store: Store) -> None:
        lease = await self.keep_node_backup(store, b"backup")
        lease.forgo_node_backup()
        lease = await store.open_lease(ALICE, Recorder())
        lease.put(1, ALICES, b"of peer_storage")
        lease.put(2, ALICES_CHANNEL, b"of a channel", EARLY)
        await store.settle()
        assert (await store.open_lease(ALICE, Recorder())).node_backup_forgone

    async def test_a_refused_node_backup_is_not_one_stored_anew(self, backend: Backend) -> None:
        backend.quotas = replace(backend.quotas, max_bytes_per_peer=100)
        store = await backend.open()
        lease = await self.keep_node_backup(store, b"backup")
        lease.forgo_node_backup()
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        lease.put(1, ALICES_NODE, bytes(101))
        await store.settle()
        assert recorder.lost() == 1
        assert (await store.open_lease(ALICE, Recorder())).node_backup_forgone

    async def test_a_node_backup_stored_before_the_hang_up_was_written_is_shown(
        self, backend: Backend, store: Store
    ) -> None:
        lease = await self.keep_node_backup(store, b"backup")
        others = await store.open_lease(BOB, Recorder())
        async with backend.hold_writes():
            # What else there is to write must not turn the order round.
            others.forgo_node_backup()
            await turns(store)
            lease.forgo_node_backup()
            lease.close()
            lease = await store.open_lease(ALICE, Recorder())
            assert lease.node_backup_forgone
            lease.put(1, ALICES_NODE, b"stored anew")
            await turns(store)
        await store.close()
        store = await backend.open()
        lease = await store.open_lease(ALICE, Recorder())
        assert await all_of(lease) == {ALICES_NODE: b"stored anew"}
        assert not lease.node_backup_forgone

    async def keep_node_backup(self, store: Store, blob: bytes) -> Lease:
        """Store a node backup by a connection of its own; its lease."""
        lease = await store.open_lease(ALICE, Recorder())
        lease.put(1, ALICES_NODE, blob)
        await store.settle()
        return lease

    # Telling the listener

    async def test_each_listener_is_told_its_own_sequence_numbers_in_order(
        self, store: Store
    ) -> None:
        recorders = {ALICE: Recorder(), BOB: Recorder()}
        leases = {id_: await store.open_lease(id_, recorders[id_]) for id_ in recorders}
        for sequence in range(1, 31):
            leases[ALICE].put(sequence, ALICES, f"a{sequence}".encode())
            if sequence % 3 == 0:
                leases[BOB].put(sequence * 10, BOBS, f"b{sequence}".encode())
            if sequence % 7 == 0:
                await turns(store, 1)
        await store.settle()
        for id_, last in ((ALICE, 30), (BOB, 300)):
            told = recorders[id_].sequences
            assert told == sorted(set(told))
            assert told[-1] == last
            assert not any(reason for _, reason in recorders[id_].told)

    async def test_nobody_is_told_before_it_is_durable(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        async with backend.hold_writes():
            lease.put(1, ALICES, b"one")
            await turns(store)
            lease.put(2, ALICES, b"two")
            await turns(store)
            assert recorder.told == []
        await store.settle()
        assert recorder.told == [(1, None), (2, None)]
        assert await holds(store, ALICES, b"two")

    async def test_many_updates_of_many_slots_at_once(self, store: Store) -> None:
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        slots = slots_of(ALICE)
        for sequence in range(1, 401):
            lease.put(sequence, slots[sequence % 4], str(sequence).encode())
        await store.settle()
        assert recorder.told[-1] == (400, None)
        assert await all_of(await store.open_lease(ALICE, Recorder())) == dict(
            zip(slots, (b"400", b"397", b"398", b"399"), strict=True)
        )

    async def test_a_listener_may_hand_in_the_next_update_when_it_is_told(
        self, store: Store
    ) -> None:
        class Eager(Recorder):
            def stored(self, sequence: int) -> None:
                super().stored(sequence)
                if sequence < 5:
                    lease.put(sequence + 1, ALICES, str(sequence + 1).encode())

        recorder = Eager()
        lease = await store.open_lease(ALICE, recorder)
        lease.put(1, ALICES, b"1")
        for _ in range(5):
            await store.settle()
        assert recorder.sequences == [1, 2, 3, 4, 5]
        assert await holds(store, ALICES, b"5")

    async def test_a_mistake_in_one_listener_harms_no_other_peer(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        broken = await store.open_lease(ALICE, Breaking())
        sound = await store.open_lease(BOB, recorder)
        broken.put(1, ALICES, b"of alice")
        sound.put(1, BOBS, b"of bob")
        await store.close()
        assert recorder.told == [(1, None)]
        store = await backend.open()
        for slot, blob in ((ALICES, b"of alice"), (BOBS, b"of bob")):
            lease = await store.open_lease(slot.node_id, Recorder())
            assert await all_of(lease) == {slot: blob}

    # A newer connection takes over

    async def test_a_newer_lease_fences_the_older_one_off(self, store: Store) -> None:
        first = await store.open_lease(ALICE, Recorder())
        others = await store.open_lease(BOB, Recorder())
        second = await store.open_lease(ALICE, Recorder())
        with pytest.raises(StoreClosedError):
            first.put(1, ALICES, b"late")
        others.put(1, BOBS, b"of bob")
        second.put(1, ALICES, b"in time")
        await store.settle()
        assert await holds(store, ALICES, b"in time")
        assert await holds(store, BOBS, b"of bob")

    async def test_the_older_lease_is_fenced_off_as_soon_as_the_newer_is_asked_for(
        self, backend: Backend, store: Store
    ) -> None:
        first = await store.open_lease(ALICE, Recorder())
        async with backend.hold_writes():
            first.put(1, ALICES, b"in time")
            opening = asyncio.create_task(store.open_lease(ALICE, Recorder()))
            await turns(store, 1)
            with pytest.raises(StoreClosedError):
                first.put(2, ALICES, b"late")
        assert await blob_of(await opening, ALICES) == b"in time"

    @pytest.mark.parametrize("in_flight", [True, False])
    async def test_what_the_older_lease_handed_in_is_decided_before_the_newer_one_opens(
        self, backend: Backend, store: Store, in_flight: bool
    ) -> None:
        recorder = Recorder()
        first = await store.open_lease(ALICE, recorder)
        async with backend.hold_writes():
            first.put(1, ALICES, b"one")
            if in_flight:
                await turns(store)
            first.put(2, ALICES, b"two")
            opening = asyncio.create_task(store.open_lease(ALICE, Recorder()))
            await turns(store)
            assert not opening.done()
            assert recorder.told == []
        second = await opening
        assert recorder.told[-1] == (2, None)
        assert await all_of(second) == {ALICES: b"two"}

    async def test_a_newer_lease_opens_also_when_the_updates_of_the_older_are_lost(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        first = await store.open_lease(ALICE, recorder)
        first.put(1, ALICES, b"kept")
        await store.settle()
        async with backend.fail_writes():
            first.put(2, ALICES, b"lost")
            second = await store.open_lease(ALICE, Recorder())
        assert recorder.sequences == [1, 2]
        assert recorder.lost() == 2
        assert await all_of(second) == {ALICES: b"kept"}

    async def test_of_three_leases_at_once_the_last_one_holds(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        first = await store.open_lease(ALICE, recorder)
        async with backend.hold_writes():
            first.put(1, ALICES, b"of the first")
            opening = [asyncio.create_task(store.open_lease(ALICE, Recorder())) for _ in range(3)]
            await turns(store)
            assert not any(task.done() for task in opening)
        *older, last = await asyncio.gather(*opening)
        assert recorder.told == [(1, None)]
        for lease in (first, *older):
            with pytest.raises(StoreClosedError):
                lease.put(2, ALICES, b"late")
        assert await all_of(last) == {ALICES: b"of the first"}
        last.put(1, ALICES, b"of the last")
        await store.settle()
        assert await holds(store, ALICES, b"of the last")

    @pytest.mark.parametrize("cancelled", [(0,), (1,), (0, 1), (2,), (0, 1, 2)])
    async def test_a_lease_waits_for_the_older_ones_also_when_one_between_was_cancelled(
        self, backend: Backend, store: Store, cancelled: Sequence[int]
    ) -> None:
        recorder = Recorder()
        first = await store.open_lease(ALICE, recorder)
        async with backend.hold_writes():
            first.put(1, ALICES, b"of the first")
            opening = [asyncio.create_task(store.open_lease(ALICE, Recorder())) for _ in range(3)]
            await turns(store)
            for index in cancelled:
                opening[index].cancel()
            await turns(store)
            last = asyncio.create_task(store.open_lease(ALICE, Recorder()))
            await turns(store)
            early = last.done()
        lease = await last
        outcomes = await asyncio.gather(*opening, return_exceptions=True)
        assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [
            index in cancelled for index in range(3)
        ]
        assert not early, "opened before the updates of the first were decided"
        assert recorder.told == [(1, None)]
        assert await all_of(lease) == {ALICES: b"of the first"}
        lease.put(1, ALICES, b"of the last")
        await store.settle()
        assert [revision.slot for revision in await stored_revisions(store)] == [ALICES]
        assert await all_of(await store.open_lease(ALICE, Recorder())) == {ALICES: b"of the last"}

    async def test_settle_waits_for_a_lease_whose_successor_was_cancelled(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        first = await store.open_lease(ALICE, recorder)
        async with backend.hold_writes():
            first.put(1, ALICES, b"of the first")
            opening = asyncio.create_task(store.open_lease(ALICE, Recorder()))
            await turns(store)
            opening.cancel()
            await turns(store)
            settling = asyncio.create_task(store.settle())
            await turns(store)
            early = settling.done()
        await settling
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert not early, "returned before the update of the first was decided"
        assert recorder.told == [(1, None)]

    # The end of a lease

    async def test_what_a_closed_lease_handed_in_is_stored_and_nobody_is_told(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        async with backend.hold_writes():
            lease.put(1, ALICES, b"one")
            await turns(store)
            lease.put(2, ALICES, b"two")
            lease.close()
        second = await store.open_lease(ALICE, Recorder())
        assert await all_of(second) == {ALICES: b"two"}
        assert recorder.told == []

    async def test_settle_waits_for_a_closed_lease_too(
        self, backend: Backend, store: Store
    ) -> None:
        lease = await store.open_lease(ALICE, Recorder())
        lease.put(1, ALICES, b"kept")
        lease.close()
        await store.settle()
        assert await store.counts() == Counts(1, 1, 4, versions=1)

    async def test_nothing_more_is_taken_from_a_closed_lease(self, store: Store) -> None:
        # Its successor does not know of it, so it would write behind the successor's back.
        first = await store.open_lease(ALICE, Recorder())
        first.close()
        second = await store.open_lease(ALICE, Recorder())
        with pytest.raises(StoreClosedError):
            first.put(1, ALICES, b"late")
        await store.settle()
        assert await all_of(second) == {}

    async def test_a_lease_that_is_closed_late_leaves_its_successor_alone(
        self, store: Store
    ) -> None:
        recorder = Recorder()
        first = await store.open_lease(ALICE, Recorder())
        second = await store.open_lease(ALICE, recorder)
        first.close()
        second.put(1, ALICES, b"of the second")
        third = await store.open_lease(ALICE, Recorder())
        assert recorder.told == [(1, None)]
        assert await all_of(third) == {ALICES: b"of the second"}

    # The end of the store

    @pytest.mark.parametrize("in_flight", [True, False])
    async def test_closing_stores_what_waits(
        self, backend: Backend, store: Store, in_flight: bool
    ) -> None:
        recorder = Recorder()
        leases = [await store.open_lease(peer(number), recorder) for number in range(20)]
        async with backend.hold_writes():
            for number, lease in enumerate(leases):
                lease.put(1, backup_of(peer(number)), str(number).encode())
                if in_flight:
                    await turns(store, 1)
            closing = asyncio.create_task(store.close())
            await asyncio.sleep(0)
            assert not closing.done()
        await closing
        assert recorder.told == [(1, None)] * 20
        store = await backend.open()
        for number in range(20):
            slot = backup_of(peer(number))
            lease = await store.open_lease(slot.node_id, Recorder())
            assert await all_of(lease) == {slot: str(number).encode()}

    async def test_an_update_after_the_close_is_refused(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        lease.put(1, ALICES, b"in time")
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        try:
            with pytest.raises(StoreClosedError):
                lease.put(2, ALICES, b"while it closes")
        finally:
            await closing
        with pytest.raises(StoreClosedError):
            lease.put(3, ALICES, b"late")
        assert recorder.told == [(1, None)]
        store = await backend.open()
        assert await all_of(await store.open_lease(ALICE, Recorder())) == {ALICES: b"in time"}

    async def test_a_refused_update_is_not_waited_for(self, store: Store) -> None:
        lease = await store.open_lease(ALICE, Recorder())
        await store.close()
        with pytest.raises(StoreClosedError):
            lease.put(1, ALICES, b"late")
        settling = asyncio.create_task(store.settle())
        # Nothing is left that could take time.
        for _ in range(10):
            await asyncio.sleep(0)
        done = settling.done()
        settling.cancel()
        assert done

    async def test_a_closed_store_says_so(self, store: Store) -> None:
        lease = await store.open_lease(ALICE, Recorder())
        lease.put(1, ALICES, b"kept")
        await store.close()

        questions: list[Callable[[], Awaitable[object]]] = [
            lambda: lease.read(ALICES),
            lambda: store.open_lease(BOB, Recorder()),
            lambda: store.open_lease(ALICE, Recorder()),
        ]
        for question in questions:
            with pytest.raises(StoreClosedError):
                await question()

    # Failure

    async def test_an_update_that_cannot_be_written_leaves_all_as_it_was(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        slots = slots_of(ALICE)
        lease.put(1, slots[0], b"kept 0")
        lease.put(2, slots[1], b"kept 1")
        await store.settle()
        assert recorder.told[-1] == (2, None)
        before = await stored_revisions(store)

        async with backend.fail_writes():
            for sequence, slot in enumerate(slots, 3):
                lease.put(sequence, slot, b"lost")
            await store.settle()
            assert recorder.lost() == 6
            assert await stored_revisions(store) == before
            assert await all_of(lease) == {slots[0]: b"kept 0", slots[1]: b"kept 1"}
            # What is there already needs no writing.
            lease.put(7, slots[0], b"kept 0")
            await store.settle()
            assert recorder.told[-1] == (7, None)

        lease.put(8, slots[0], b"new")
        lease.put(9, slots[2], b"new too")
        await store.settle()
        assert recorder.told[-1] == (9, None)
        assert recorder.sequences == sorted(set(recorder.sequences))
        after = {revision.slot: revision.revision for revision in await stored_revisions(store)}
        given_out = {revision.revision for revision in before}
        assert after[slots[1]] in given_out
        assert after[slots[0]] > max(given_out)
        assert after[slots[2]] > max(given_out)
        assert len(set(after.values())) == 3
        expected = {slots[0]: b"new", slots[1]: b"kept 1", slots[2]: b"new too"}
        assert await all_of(await store.open_lease(ALICE, Recorder())) == expected
        await store.close()
        store = await backend.open()
        assert await all_of(await store.open_lease(ALICE, Recorder())) == expected

    async def test_everyone_whose_update_was_lost_is_told(
        self, backend: Backend, store: Store
    ) -> None:
        recorders = {peer(number): Recorder() for number in range(5)}
        async with backend.fail_writes():
            for node_id, recorder in recorders.items():
                lease = await store.open_lease(node_id, recorder)
                lease.put(1, backup_of(node_id), b"lost")
            await store.settle()
        for recorder in recorders.values():
            assert recorder.sequences == [recorder.lost()] == [1]
        assert await store.counts() == Counts(0, 0, 0, versions=0)

    async def test_closing_while_nothing_can_be_written_tells_of_the_loss(
        self, backend: Backend, store: Store
    ) -> None:
        recorder = Recorder()
        lease = await store.open_lease(ALICE, recorder)
        async with backend.fail_writes():
            lease.put(1, ALICES, b"lost")
            await store.close()
        assert recorder.sequences == [recorder.lost()] == [1]
        store = await backend.open()
        assert await store.counts() == Counts(0, 0, 0, versions=0)

    # Backpressure

    async def test_it_is_congested_while_much_waits(self, backend: Backend, store: Store) -> None:
        assert not congested(store)
        blob = bytes(MIB)
        recorder = Recorder()
        leases = {id_: await store.open_lease(id_, recorder) for id_ in map(peer, range(64))}
        waiting = 0
        async with backend.hold_writes():
            for node_id, lease in leases.items():
                lease.put(1, backup_of(node_id), blob)
                waiting += 1
                if congested(store):
                    break
        assert waiting == 33
        await store.settle()
        assert not congested(store)
        assert recorder.told == [(1, None)] * waiting
        assert (await store.counts()).bytes == waiting * MIB

    async def test_what_is_replaced_before_it_is_written_does_not_wait(self, store: Store) -> None:
        lease = await store.open_lease(ALICE, Recorder())
        blobs = itertools.cycle([bytes(MIB), b"\x01" * MIB])
        for sequence in range(1, 41):
            lease.put(sequence, ALICES, next(blobs))
            assert not congested(store)
        lease.put(41, ALICES, b"small")
        await store.settle()
        assert (await store.counts()).bytes == 5

    async def test_what_is_lost_does_not_wait(self, backend: Backend, store: Store) -> None:
        async with backend.fail_writes():
            for number in range(33):
                lease = await store.open_lease(peer(number), Recorder())
                lease.put(1, backup_of(peer(number)), bytes(MIB))
            await store.settle()
            assert not congested(store)

    async def test_settle_returns_when_all_is_decided(self, backend: Backend, store: Store) -> None:
        await store.settle()
        recorder = Recorder()
        leases = {id_: await store.open_lease(id_, recorder) for id_ in (ALICE, BOB)}
        async with backend.hold_writes():
            leases[ALICE].put(1, ALICES, b"of alice")
            await turns(store)
            leases[BOB].put(1, BOBS, b"of bob")
            settling = [asyncio.create_task(store.settle()) for _ in range(2)]
            await turns(store)
            assert not any(task.done() for task in settling)
        await asyncio.gather(*settling)
        assert recorder.told == [(1, None), (1, None)]

    # Whatever happens, in whatever order

    @histories
    @given(steps=st.lists(_steps, max_size=30))
    async def test_each_peer_gets_back_what_it_stored_last(
        self, tmp_path_factory: pytest.TempPathFactory, steps: list[Step]
    ) -> None:
        backend = self.make_backend(tmp_path_factory.mktemp("history"))
        try:
            await _play(backend, steps)
        finally:
            await backend.dispose()


async def _play(backend: Backend, steps: Iterable[Step]) -> None:
    """Carry a history out beside a dictionary that says what must come back."""
    store = await backend.open()
    expected: dict[NodeId, dict[Slot, bytes]] = {peer(number): {} for number in range(PEERS)}
    states: dict[NodeId, dict[bytes, ChannelState]] = {peer(n): {} for n in range(PEERS)}
    leases: dict[NodeId, Lease] = {}
    handed_in: dict[NodeId, list[int]] = {}
    to_be_told: list[tuple[Recorder, list[int]]] = []
    known: dict[int, Revision] = {}
    sequences = itertools.count(1)

    async def connect(node_id: NodeId) -> None:
        recorder = Recorder()
        lease = leases[node_id] = await store.open_lease(node_id, recorder)
        handed_in[node_id] = []
        to_be_told.append((recorder, handed_in[node_id]))
        assert await all_of(lease) == expected[node_id]
        assert lease.channels == states[node_id]

    async def settle() -> None:
        await store.settle()
        for revision in await stored_revisions(store):
            # A revision means one version for ever; one that is overwritten does not return.
            assert known.setdefault(revision.revision, revision) == revision
        for node_id, slots in expected.items():
            found = {r.slot: r.sha256 for r in await stored_revisions(store, node_id)}
            assert found == {slot: hashlib.sha256(blob).digest() for slot, blob in slots.items()}

    for step in steps:
        match step:
            case Put(number, index, _, state) | Say(number, index, state):
                node_id = peer(number)
                if node_id not in leases:
                    await connect(node_id)
                slot = slots_of(node_id)[index]
                sequence = next(sequences)
                blob = step.blob if isinstance(step, Put) else None
                channel = state if slot.kind is BackupKind.CHANNEL_BACKUP else None
                leases[node_id].put(sequence, slot, blob, channel)
                handed_in[node_id].append(sequence)
                if blob is not None:
                    expected[node_id][slot] = blob
                if channel is not None and slot in expected[node_id]:
                    states[node_id][slot.channel_id] = channel
            case Connect(number):
                await connect(peer(number))
            case Disconnect(number):
                if (lease := leases.pop(peer(number), None)) is not None:
                    lease.close()
                    to_be_told = [
                        pair for pair in to_be_told if pair[1] is not handed_in[peer(number)]
                    ]
            case Settle():
                backend.clock.advance(1)
                await settle()
            case Restart():
                await store.close()
                leases.clear()
                store = await backend.open()
    await settle()
    for recorder, sequences_of_it in to_be_told:
        told = recorder.sequences
        assert told == sorted(set(told))
        assert set(told) <= set(sequences_of_it)
        assert told[-1:] == sequences_of_it[-1:]
        assert not any(reason for _, reason in recorder.told)
    await store.close()
    store = await backend.open()
    for number in range(PEERS):
        await connect(peer(number))
    everything = [slot for slots in expected.values() for slot in slots]
    assert {revision.slot for revision in await stored_revisions(store)} == set(everything)
    versions = [version async for version in store.versions()]
    assert await store.counts() == Counts(
        peers=len({version.revision.slot.node_id for version in versions}),
        backups=len(everything),
        bytes=sum(version.revision.size for version in versions),
        versions=len(versions),
    )
