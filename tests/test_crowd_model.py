"""A full store over random histories of a small crowd, beside a model that knows who may go.

Before each update the model says who would give way and in which order; whoever goes has to be the
first of these, no more of them than it takes, and nobody for an update that is refused. With
`--long` far more histories are tried.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections import Counter
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
    rule,
    run_state_machine_as_test,
)

from peerstore.addresses import group_of, parse_ip
from peerstore.store import operations
from peerstore.store.base import Quotas
from peerstore.store.history import DAY
from peerstore.store.lease import SqliteLease
from peerstore.store.room import FULL, NO_PLACE
from peerstore.store.sqlite import SqliteStore
from peerstore.types import NodeId, Slot
from tests.store_contract import Recorder, all_of, peer, slots_of, stored_versions
from tests.test_crowd import assert_all_is_right
from tests.test_operator_store import rows_of
from tests.test_store import SqliteBackend, alarms, edited

T = TypeVar("T")

NODES = [peer(number) for number in range(1, 8)]
HOSTS = ["203.0.113.1", "203.0.113.2", "198.51.100.1", "2001:db8:1::1"]
AWAY_SECONDS, LOOK_SECONDS = 180 * DAY, 600
MAX_PEERS, MAX_BYTES, MAX_BYTES_PER_PEER = 4, 1200, 700

nodes = st.sampled_from(NODES)
sizes = st.sampled_from([0, 50, 120, 300, 300, 650])


@dataclass
class Known:
    """What the model knows of a peer that has something stored; times are seconds seen."""

    first_seen: int
    here: int
    """When it was here last, as far as it is not connected."""
    established: bool = False
    blobs: dict[Slot, bytes] = field(default_factory=dict)
    pins: set[tuple[Slot, int]] = field(default_factory=set)


@dataclass
class Connection:
    lease: SqliteLease
    recorder: Recorder
    sequence: int = 0


@dataclass(frozen=True)
class Row:
    """A peer as it is in the database."""

    node_id: NodeId
    first_seen: int
    last_seen: int
    established: bool
    group: str
    bytes: int
    spare: int


class CrowdMachine(RuleBasedStateMachine):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp(prefix="peerstore-crowd-"))
        self.backends: list[SqliteBackend] = []
        self.known: dict[NodeId, Known] = {}
        self.connections: dict[NodeId, Connection] = {}
        self.protected: set[NodeId] = set()
        self.fill = 0

    def run(self, coroutine: Coroutine[None, None, T]) -> T:
        return self.runner.run(coroutine)

    @initialize(history=st.sampled_from([1, 3]), hold=st.sampled_from([0, 2 * DAY]))
    def begin(self, history: int, hold: int) -> None:
        self.quotas = Quotas(
            history=history,
            hold_on_shrink=hold,
            max_bytes=MAX_BYTES,
            max_bytes_per_peer=MAX_BYTES_PER_PEER,
            max_peers=MAX_PEERS,
            min_free_space=0,
        )
        self.open_backend()
        for node_id, host in zip(NODES, HOSTS, strict=False):
            self.visit(node_id, host, 120, 0)

    def open_backend(self) -> None:
        directory = self.directory / str(len(self.backends))
        directory.mkdir()
        self.backends.append(SqliteBackend(directory, self.quotas))
        self.open_store()

    def open_store(self) -> None:
        self.store: SqliteStore = self.run(self.backends[-1].open())
        self.store.protects = lambda node_id, _: node_id in self.protected

    def teardown(self) -> None:
        for backend in self.backends:
            self.run(backend.dispose())
        self.runner.close()
        shutil.rmtree(self.directory)

    @property
    def seen(self) -> int:
        return self.store.seen

    # Who is there

    def rows(self) -> dict[NodeId, Row]:
        with edited(self.store.path) as database:
            found = database.execute(
                "SELECT node_id, first_seen, last_seen, established, address_group,"
                " (SELECT sum(size) FROM backup AS b WHERE b.node_id = p.node_id),"
                " (SELECT count(*) FROM backup AS b WHERE b.node_id = p.node_id"
                "  AND replaced IS NOT NULL AND pins = 0"
                "  AND b.id NOT IN (SELECT backup_id FROM hold)) FROM peer AS p"
            ).fetchall()
        return {NodeId(row[0]): Row(*row) for row in found}

    def touch(self, node_id: NodeId) -> None:
        """A peer is here now."""
        known = self.known.get(node_id)
        if known is not None:
            known.here = self.seen
            known.established |= self.seen - known.first_seen >= DAY

    def may_go(self, node_id: NodeId) -> bool:
        known = self.known[node_id]
        return not (node_id in self.connections or node_id in self.protected or known.pins)

    def strangers(self, rows: dict[NodeId, Row]) -> list[NodeId]:
        """The strangers that may go, in order."""
        left = [row for row in rows.values() if not row.established]
        order: list[NodeId] = []
        while True:
            counts = Counter(row.group for row in left)
            going = [
                row
                for row in left
                if self.may_go(row.node_id) and not self.known[row.node_id].established
            ]
            if not going:
                return order
            first = max(
                going, key=lambda row: (counts[row.group], row.first_seen, row.group, row.node_id)
            )
            order.append(first.node_id)
            left.remove(first)

    def long_away(self, rows: dict[NodeId, Row]) -> set[NodeId]:
        return {
            node_id
            for node_id, row in rows.items()
            if row.established
            and self.may_go(node_id)
            and self.seen - self.known[node_id].here >= AWAY_SECONDS
        }

    # Peers

    @rule(node_id=nodes, host=st.sampled_from(HOSTS))
    def connect(self, node_id: NodeId, host: str) -> None:
        recorder = Recorder()
        lease = self.run(self.store.open_lease(node_id, recorder))
        lease.meet(f"[{host}]:9735" if ":" in host else f"{host}:9735", b"")
        self.connections[node_id] = Connection(lease, recorder)
        self.touch(node_id)

    @rule(node_id=nodes)
    def disconnect(self, node_id: NodeId) -> None:
        connection = self.connections.pop(node_id, None)
        if connection is not None:
            connection.lease.close()
            self.touch(node_id)

    @rule(node_id=nodes, host=st.sampled_from(HOSTS), size=sizes, kind=st.integers(0, 1))
    def visit(self, node_id: NodeId, host: str, size: int, kind: int) -> None:
        """What most connections are."""
        self.connect(node_id, host)
        self.put(node_id, size, kind)
        self.disconnect(node_id)

    @rule(
        visits=st.lists(st.tuples(nodes, st.sampled_from(HOSTS), sizes), min_size=2, max_size=6),
        seconds=st.sampled_from([0, 0, 1, 61]),
    )
    def a_crowd_comes(self, visits: list[tuple[NodeId, str, int]], seconds: int) -> None:
        for node_id, host, size in visits:
            self.visit(node_id, host, size, 0)
            self.time_passes(seconds)

    @rule(few=st.lists(nodes, min_size=1, max_size=3), later=st.sampled_from([0, AWAY_SECONDS]))
    def some_become_established(self, few: list[NodeId], later: int) -> None:
        for seconds in (DAY, later):
            for node_id in few:
                self.visit(node_id, HOSTS[0], 120, 0)
            self.time_passes(seconds)

    @rule(node_id=nodes, size=sizes, kind=st.integers(0, 1))
    def put(self, node_id: NodeId, size: int, kind: int) -> None:
        """An update, for which others may have to give way."""
        if node_id not in self.connections:
            self.connect(node_id, HOSTS[0])
        self.run(alarms(self.store))  # what is to be written before that is written
        for each in self.connections:
            self.touch(each)
        self.fill += 1
        slot = slots_of(node_id)[kind]
        blob = self.fill.to_bytes(4, "big") * size
        blob = blob[:size]
        connection = self.connections[node_id]
        connection.sequence += 1
        rows, counts = self.rows(), self.run(self.store.counts())
        strangers, away = self.strangers(rows), self.long_away(rows)
        replaces = slot in self.known[node_id].blobs if node_id in self.known else False
        connection.lease.put(connection.sequence, slot, blob)
        self.run(self.store.settle())
        sequence, reason = connection.recorder.told[-1]
        assert sequence == connection.sequence
        after = self.run(self.store.counts())
        gone = rows.keys() - self.rows().keys()
        if reason is not None:
            assert not gone
            assert after == counts
            self.expect_refusal(reason, node_id, rows, strangers, away, len(blob))
            return
        self.expect_gone(gone, rows, strangers, away)
        new = node_id not in self.known
        if new:
            self.known[node_id] = Known(self.seen, self.seen)
        elif blob == self.known[node_id].blobs.get(slot):
            assert not gone
        self.known[node_id].blobs[slot] = blob
        if new:
            assert after.peers <= MAX_PEERS
        if after.bytes > MAX_BYTES and after.bytes > counts.bytes:
            assert replaces
            assert self.known[node_id].established or node_id in self.protected
            assert gone >= set(strangers), "it exceeds while others could go"
        self.expect_no_more_than_it_takes(gone, rows, strangers)
        places = counts.peers + new - MAX_PEERS if new else 0
        if len(gone) > max(0, places):
            left = self.rows()
            assert not any(left[n].spare for n in strangers if n in left), "kept versions stay"

    def expect_refusal(
        self,
        reason: str,
        node_id: NodeId,
        rows: dict[NodeId, Row],
        strangers: list[NodeId],
        away: set[NodeId],
        size: int,
    ) -> None:
        looked = self.store._giving_way._look_again
        if reason.startswith(NO_PLACE):
            assert node_id not in rows
            assert not strangers
            assert not away or looked > self.seen
        elif reason.startswith(FULL):
            total = sum(row.bytes for row in rows.values())
            freed = sum(rows[each].bytes for each in strangers)
            assert total - freed + size > MAX_BYTES
        else:
            assert "bytes are kept for a peer" in reason
        assert looked <= self.seen + LOOK_SECONDS

    def expect_gone(
        self,
        gone: set[NodeId],
        rows: dict[NodeId, Row],
        strangers: list[NodeId],
        away: set[NodeId],
    ) -> None:
        assert gone <= {*strangers, *away}
        assert gone & set(strangers) == set(strangers[: len(gone & set(strangers))])
        long_away = gone & away
        if long_away:
            assert gone >= set(strangers), "an established peer went before a stranger"
        for node_id in gone:
            assert rows_of(self.store.path, node_id).keys() <= {"alarm"}
            del self.known[node_id]

    def expect_no_more_than_it_takes(
        self, gone: set[NodeId], rows: dict[NodeId, Row], strangers: list[NodeId]
    ) -> None:
        after = self.run(self.store.counts())
        order = [n for n in strangers if n in gone] + sorted(
            gone - set(strangers), key=lambda n: (rows[n].last_seen, n)
        )
        if order:
            last = rows[order[-1]]
            assert after.peers + 1 > MAX_PEERS or after.bytes + last.bytes > MAX_BYTES

    # The operator

    @rule(node_id=nodes)
    def protect_or_not(self, node_id: NodeId) -> None:
        self.protected ^= {node_id}

    @rule(node_id=nodes, number=st.integers(0, 5))
    def pin_or_unpin(self, node_id: NodeId, number: int) -> None:
        known = self.known.get(node_id)
        if known is None:
            return
        if known.pins:
            slot, revision = known.pins.pop()
            self.run(self.store.run(operations.unpin(slot, revision)))
            return
        slot = min(known.blobs, key=lambda slot: slot.kind)
        versions = self.run(stored_versions(self.store, slot))
        revision = versions[number % len(versions)].revision.revision
        self.run(self.store.run(operations.pin(slot, revision)))
        known.pins.add((slot, revision))

    @rule(node_id=nodes)
    def forget(self, node_id: NodeId) -> None:
        if node_id in self.known:
            self.run(self.store.run(operations.forget(node_id)))
            del self.known[node_id]

    # Time, ends

    @rule(seconds=st.sampled_from([1, 59, 60, 599, 600, DAY - 1, DAY, AWAY_SECONDS]))
    def time_passes(self, seconds: int) -> None:
        self.backends[-1].clock.advance(seconds)
        for node_id in self.connections:
            self.touch(node_id)

    @rule(seconds=st.sampled_from([-10 * 365 * DAY, 10 * 365 * DAY]))
    def the_wall_clock_jumps(self, seconds: int) -> None:
        self.backends[-1].clock.now += seconds

    @rule()
    def save(self) -> None:
        self.run(self.store.save_visits())
        for node_id in self.connections:
            self.touch(node_id)

    @rule()
    def stop_and_start(self) -> None:
        for node_id in self.connections:
            self.touch(node_id)
        self.connections.clear()
        self.run(self.store.close())
        self.open_store()
        self.compare_with_the_database()

    @rule()
    def crash(self) -> None:
        """Killed: the files are what there is."""
        self.connections.clear()
        old = self.backends[-1]
        directory = self.directory / str(len(self.backends))
        directory.mkdir()
        for path in old.path.parent.iterdir():
            if not path.name.endswith("-shm"):
                shutil.copy(path, directory / path.name)
        self.backends.append(SqliteBackend(directory, self.quotas))
        self.backends[-1].clock.now = old.clock.now
        self.run(old.dispose())
        self.open_store()
        rows = self.rows()
        for node_id, known in self.known.items():
            # What was not written yet of visits is lost.
            assert rows[node_id].last_seen <= known.here
            assert known.established or not rows[node_id].established
            known.here = rows[node_id].last_seen
            known.established = rows[node_id].established
        self.compare_with_the_database()

    def compare_with_the_database(self) -> None:
        rows = self.rows()
        for node_id, known in self.known.items():
            row = rows[node_id]
            assert (row.first_seen, row.last_seen) == (known.first_seen, known.here)
            assert row.established == known.established

    # What always holds

    @invariant()
    def nothing_else_is_gone(self) -> None:
        if not self.backends:
            return
        assert self.rows().keys() == self.known.keys()
        groups = {group_of(parse_ip(host)) for host in HOSTS}
        assert {row.group for row in self.rows().values()} <= groups
        with edited(self.store.path) as database:
            current = database.execute(
                "SELECT node_id, kind, sha256 FROM backup WHERE replaced IS NULL"
            ).fetchall()
        assert {(n, k): sha256 for n, k, sha256 in current} == {
            (slot.node_id, int(slot.kind)): hashlib.sha256(blob).digest()
            for known in self.known.values()
            for slot, blob in known.blobs.items()
        }
        for connection in self.connections.values():
            self.run(all_of(connection.lease))  # what it was to be given back is there
        self.run(assert_all_is_right(self.store))


@pytest.mark.timeout(7200)  # for --long
def test_the_crowd_does_as_the_model_says(request: pytest.FixtureRequest) -> None:
    long = request.config.getoption("--long", default=False)
    run_state_machine_as_test(
        CrowdMachine,
        settings=settings(
            max_examples=1000 if long else 12,
            stateful_step_count=60 if long else 30,
            deadline=None,
            # To make a failing history short takes minutes: that is for --long too.
            phases=list(Phase) if long else [Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
