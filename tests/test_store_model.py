"""The store against a simple model, over random histories of all that can happen to it.

The model knows what was put, pinned, held and when; of the thinning it knows only what DESIGN
promises: (a) for the newest burst, (d), that nothing goes while there is room, and that nothing
pinned or held ever does. With `--long` far more histories are tried.
"""

from __future__ import annotations

import asyncio
import hashlib
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

from peerstore.methods import methods
from peerstore.store.base import Quotas
from peerstore.store.history import DAY, HOUR
from peerstore.store.lease import SqliteLease
from peerstore.store.sqlite import SqliteStore
from peerstore.types import NodeId, Slot
from tests.store_contract import ALICE, BOB, Recorder, all_of, slots_of, stored_versions
from tests.test_plan import arguments, assert_counts_are_right
from tests.test_store import SqliteBackend, alarms

T = TypeVar("T")

HOLD = 2 * DAY
SLOTS = [*slots_of(ALICE)[:2], *slots_of(BOB)[:2]]

which = st.sampled_from(SLOTS)
peers = st.sampled_from([ALICE, BOB])
picks = st.integers(0, 20)
# Few blobs, so that they come again; small ones beside those that they would be a loss of.
blobs = st.builds(
    lambda fill, size: bytes([fill]) * size,
    st.integers(0, 3),
    st.sampled_from([57, 57, 150, 345, 400]),
)


@dataclass
class Kept:
    """A version of the model."""

    blob: bytes
    revision: int
    opened: int
    replaced: int | None = None
    automatic: bool = False
    operator: bool = False

    @property
    def pinned(self) -> str:
        """As the store tells it."""
        return "operator" if self.operator else "data loss" if self.automatic else ""


@dataclass
class Hold:
    """A version is given back in place of the current one."""

    version: Kept
    operator: bool
    until: int | None


@dataclass
class Model:
    """What a slot is to be."""

    versions: list[Kept] = field(default_factory=list)
    hold: Hold | None = None
    losses: int = 0
    """How often the alarm that stands was raised."""

    def given(self, seen: int) -> Kept | None:
        """What a connection gets back."""
        hold = self.active_hold(seen)
        return hold.version if hold else self.versions[-1] if self.versions else None

    def active_hold(self, seen: int) -> Hold | None:
        """The hold that is in force."""
        hold = self.hold
        return hold if hold and (hold.until is None or hold.until > seen) else None


@dataclass
class Connection:
    """A peer's connection: what it was given back, which slots it has sent for and replaced."""

    lease: SqliteLease
    recorder: Recorder
    given: dict[Slot, Kept]
    sent: set[Slot] = field(default_factory=set)
    opened: dict[Slot, Kept] = field(default_factory=dict)
    sequence: int = 0


class StoreMachine(RuleBasedStateMachine):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp(prefix="peerstore-model-"))
        self.backends: list[SqliteBackend] = []
        self.models = {slot: Model() for slot in SLOTS}
        self.connections: dict[NodeId, Connection] = {}
        self.newest = 0

    def run(self, coroutine: Coroutine[None, None, T]) -> T:
        """Run in the machine's loop."""
        return self.runner.run(coroutine)

    @initialize(history=st.sampled_from([1, 2, 4, 8]))
    def open_first(self, history: int) -> None:
        self.quotas = Quotas(history=history, hold_on_shrink=HOLD, min_free_space=0)
        self.backends.append(self.new_backend())
        self.store: SqliteStore = self.run(self.backends[-1].open())

    def new_backend(self) -> SqliteBackend:
        directory = self.directory / str(len(self.backends))
        directory.mkdir()
        return SqliteBackend(directory, self.quotas)

    def teardown(self) -> None:
        for backend in self.backends:
            self.run(backend.dispose())
        self.runner.close()
        shutil.rmtree(self.directory)

    @property
    def seen(self) -> int:
        """What the store calls the time."""
        return self.store.seen

    # Peers

    @rule(peer=peers)
    def connect(self, peer: NodeId) -> None:
        """A new connection, which may have an older one beside it."""
        recorder = Recorder()
        lease = self.run(self.store.open_lease(peer, recorder))
        given = {
            slot: version
            for slot in SLOTS
            if slot.node_id == peer and (version := self.models[slot].given(self.seen))
        }
        back = self.run(all_of(lease))
        assert back == {slot: version.blob for slot, version in given.items()}
        self.connections[peer] = Connection(lease, recorder, given)

    @rule(slot=which, blob=blobs)
    def put(self, slot: Slot, blob: bytes) -> None:
        """An update, confirmed."""
        if slot.node_id not in self.connections:
            self.connect(slot.node_id)
        connection = self.connections[slot.node_id]
        connection.sequence += 1
        connection.lease.put(connection.sequence, slot, blob)
        self.run(self.store.settle())
        assert connection.recorder.told[-1] == (connection.sequence, None)
        replaced = self.expect(connection, slot, blob)
        self.see_what_was_thinned(slot)
        if replaced:
            # What was unpinned or released goes with the next thinning, which this was.
            versions = self.run(stored_versions(self.store, slot))
            free = [v.revision.sha256 for v in versions if not (v.current or v.pinned or v.held)]
            assert len(set(free)) == len(free)
            assert len(free) <= self.quotas.history

    @rule(slot=which, blob=blobs)
    def reconnect_and_put(self, slot: Slot, blob: bytes) -> None:
        """What most real connections are."""
        self.connect(slot.node_id)
        self.put(slot, blob)

    @rule(slot=which, blob=blobs, times=st.integers(1, 6))
    def reconnect_and_put_often(self, slot: Slot, blob: bytes, times: int) -> None:
        """A burst of new blobs of one size."""
        for number in range(times):
            self.reconnect_and_put(slot, bytes([100 + number]) + blob[1:])

    @rule(slot=which, blob=blobs)
    def repeat_and_put(self, slot: Slot, blob: bytes) -> None:
        """The current blob again at the connect, as CLN does it, and then another one."""
        if self.models[slot].versions:
            self.reconnect_and_put(slot, self.models[slot].versions[-1].blob)
            self.put(slot, blob)

    def expect(self, connection: Connection, slot: Slot, blob: bytes) -> bool:
        """What an update makes of the model; returns whether something is kept for it."""
        model = self.models[slot]
        first = slot not in connection.sent
        connection.sent.add(slot)
        current = model.versions[-1] if model.versions else None
        if current is not None and current.blob == blob:
            return False
        self.newest += 1
        pinned = current is not None and (current.operator or current.automatic)
        if current is not None and connection.opened.get(slot) is current and not pinned:
            current.blob, current.revision = blob, self.newest
            return False
        opened = connection.opened[slot] = Kept(blob, self.newest, self.seen)
        model.versions.append(opened)
        if current is None:
            return False
        current.replaced = self.seen
        given = connection.given.get(slot)
        if first and given is not None and len(given.blob) >= 200:
            self.expect_a_loss(model, given, current, blob)
        return True

    def expect_a_loss(self, model: Model, given: Kept, current: Kept, blob: bytes) -> None:
        if 2 * len(blob) >= len(given.blob):
            return
        # Of what is good the newest.
        newer = len(current.blob) >= 200 and 2 * len(blob) < len(current.blob)
        good = current if newer else given
        model.losses += 1
        if sum(version.automatic for version in model.versions) < 2:
            good.automatic = True
        if model.active_hold(self.seen) is None:
            model.hold = Hold(good, operator=False, until=self.seen + HOLD)

    def see_what_was_thinned(self, slot: Slot) -> None:
        """Take out of the model what the rule was free to take."""
        model = self.models[slot]
        there = {v.revision.revision for v in self.run(stored_versions(self.store, slot))}
        kept = model.versions[:-1]
        free = [version for version in kept if not version.pinned]
        hold = model.active_hold(self.seen)
        stood_long = [
            version
            for version in free
            if version.replaced is not None and version.replaced - version.opened >= HOUR
        ]
        remaining = [version for version in kept if version.revision in there]
        blobs_there = {version.blob for version in remaining}
        for version in kept:
            if version.revision in there:
                continue
            assert not version.pinned, "a pinned version went"
            assert hold is None or hold.version is not version, "a held version went"
            if version.blob in blobs_there:
                self.merge(version, remaining)
                continue
            assert len({each.blob for each in free}) > self.quotas.history, "there was room"
            # (a)
            assert version not in stood_long[-1:] or not self.in_time(version), "before a burst"
        model.versions = [*remaining, model.versions[-1]]

    def merge(self, gone: Kept, remaining: list[Kept]) -> None:
        """(d): the first of identical ones counts as having stood until the last was replaced."""
        first = next(version for version in remaining if version.blob == gone.blob)
        assert first.replaced is not None
        assert gone.replaced is not None
        assert first.revision < gone.revision
        first.replaced = max(first.replaced, gone.replaced)

    def in_time(self, version: Kept) -> bool:
        assert version.replaced is not None
        return self.seen - version.replaced <= 30 * DAY

    @rule(peer=peers)
    def disconnect(self, peer: NodeId) -> None:
        connection = self.connections.pop(peer, None)
        if connection is not None:
            connection.lease.close()

    # Time, ends

    @rule(seconds=st.sampled_from([1, 600, HOUR - 1, HOUR, 5 * HOUR, DAY, HOLD - 1, 40 * DAY]))
    def time_passes(self, seconds: int) -> None:
        if any(model.hold is not None for model in self.models.values()):
            # What was fixed for a connection is not to run out under it.
            for peer in list(self.connections):
                self.disconnect(peer)
        self.backends[-1].clock.advance(seconds)

    @rule(seconds=st.sampled_from([-10 * 365 * DAY, -HOUR, DAY, 10 * 365 * DAY]))
    def the_wall_clock_jumps(self, seconds: int) -> None:
        self.backends[-1].clock.now += seconds

    @rule()
    def stop_and_start(self) -> None:
        self.connections.clear()
        before = self.seen
        self.run(self.store.close())
        self.store = self.run(self.backends[-1].open())
        assert self.seen == before

    @rule()
    def crash(self) -> None:
        """Killed: the files are what there is."""
        self.connections.clear()
        before, old = self.seen, self.backends[-1]
        new = self.new_backend()
        for path in old.path.parent.iterdir():
            if not path.name.endswith("-shm"):
                shutil.copy(path, new.path.parent / path.name)
        new.clock.now = old.clock.now
        self.backends.append(new)
        self.run(old.dispose())
        self.store = self.run(new.open())
        # Time that was seen and in which nothing was written is lost.
        assert self.seen <= before

    # The operator

    def pick(self, slot: Slot, number: int) -> Kept | None:
        versions = self.models[slot].versions
        return versions[number % len(versions)] if versions else None

    @rule(slot=which, number=picks, pin=st.booleans())
    def pin_or_unpin(self, slot: Slot, number: int, pin: bool) -> None:
        version = self.pick(slot, number)
        if version is None:
            return
        name = "backups.pin" if pin else "backups.unpin"
        self.run(methods(self.store)[name](*arguments(slot), version.revision))  # type: ignore[arg-type]
        version.operator = pin
        version.automatic = version.automatic and pin

    # What an operator changes for a connected peer counts from its next connection on.

    @rule(slot=which, number=picks, seconds=st.sampled_from([None, 60, DAY]))
    def hold(self, slot: Slot, number: int, seconds: int | None) -> None:
        self.hold_version(slot, number, seconds)

    def hold_version(self, slot: Slot, number: int, seconds: int | None) -> None:
        version = self.pick(slot, number)
        self.disconnect(slot.node_id)
        if version is None:
            return
        call = methods(self.store)["backups.hold"]
        self.run(call(*arguments(slot), version.revision, seconds))  # type: ignore[arg-type]
        until = None if seconds is None else self.seen + seconds
        self.models[slot].hold = Hold(version, operator=True, until=until)

    @rule(slot=which, seconds=st.sampled_from([None, DAY]))
    def hold_the_current_one(self, slot: Slot, seconds: int | None) -> None:
        self.hold_version(slot, len(self.models[slot].versions) - 1, seconds)

    @rule(slot=which)
    def release(self, slot: Slot) -> None:
        self.disconnect(slot.node_id)
        if self.models[slot].active_hold(self.seen) is None:
            return
        self.run(methods(self.store)["backups.release"](*arguments(slot)))  # type: ignore[arg-type]
        self.models[slot].hold = None

    @rule(slot=which, number=picks)
    def delete(self, slot: Slot, number: int) -> None:
        version = self.pick(slot, number)
        self.disconnect(slot.node_id)
        if version is None:
            return
        call = methods(self.store)["backups.delete"]
        self.run(call(*arguments(slot), version.revision))  # type: ignore[arg-type]
        model = self.models[slot]
        model.versions.remove(version)
        if model.hold is not None and model.hold.version is version:
            model.hold = None
        if model.versions:
            model.versions[-1].replaced = None

    @precondition(lambda self: any(model.losses for model in self.models.values()))
    @rule(number=picks)
    def acknowledge(self, number: int) -> None:
        standing = self.run(alarms(self.store))
        alarm = standing[number % len(standing)]
        assert alarm.slot is not None
        self.disconnect(alarm.slot.node_id)
        self.run(methods(self.store)["alarms.ack"](alarm.number))  # type: ignore[arg-type]
        model = self.models[alarm.slot]
        model.losses = 0
        if model.hold is not None and not model.hold.operator:
            model.hold = None
        for version in model.versions:
            version.automatic = False

    # What always holds

    @invariant()
    def the_store_is_as_the_model_says(self) -> None:
        if not self.backends:
            return
        for slot, model in self.models.items():
            versions = self.run(stored_versions(self.store, slot))
            # In the order of their revisions, each what it was.
            assert [
                (v.revision.revision, v.revision.sha256, v.pinned, v.current) for v in versions
            ] == [
                (
                    version.revision,
                    hashlib.sha256(version.blob).digest(),
                    version.pinned,
                    version is model.versions[-1],
                )
                for version in model.versions
            ]
        standing = {alarm.slot: alarm.count for alarm in self.run(alarms(self.store))}
        assert standing == {s: m.losses for s, m in self.models.items() if m.losses}
        self.run(assert_counts_are_right(self.store))


@pytest.mark.timeout(7200)  # for --long
def test_the_store_does_as_the_model_says(request: pytest.FixtureRequest) -> None:
    long = request.config.getoption("--long", default=False)
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=2000 if long else 18,
            stateful_step_count=100 if long else 30,
            deadline=None,
            # To make a failing history short takes minutes: that is for --long too.
            phases=list(Phase) if long else [Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
