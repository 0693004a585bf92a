"""What SQLite keeps for the operator beside the backups: visits, refusals, rules, retention."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

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

from peerstore.documents import Live, channel_document, peer_document, version_document
from peerstore.errors import AddressError, MissingBackupError, StoreError
from peerstore.methods import methods
from peerstore.store import deletion, operations, statements
from peerstore.store import due as due_module
from peerstore.store import reader as reader_module
from peerstore.store.base import Due, Peer, Quotas, Refusal, Retention, channel_digest
from peerstore.store.due import PRUNED_AT_ONCE, Place, next_due
from peerstore.store.history import DAY, HOUR
from peerstore.store.lease import MAX_REASONS, SqliteLease
from peerstore.store.migrate import migrations
from peerstore.store.reader import PAGE, PEER_ORDERS, VERSION_ORDERS, SqliteReader
from peerstore.store.snapshot import verify
from peerstore.store.sqlite import FLUSH_SECONDS, SqliteStore
from peerstore.store.times import Moment
from peerstore.types import BackupKind, ChannelState, NodeId, Slot
from tests.helpers import failing_commits
from tests.store_contract import (
    ALICE,
    ALICES,
    ALICES_CHANNEL,
    ALICES_NODE,
    ALICES_OTHER_CHANNEL,
    BOB,
    BOBS,
    LATE,
    NOBODY,
    START,
    Recorder,
    backup_of,
    blob_of,
    peer,
    slots_of,
    stored_versions,
    turns,
)
from tests.test_channel_store import CLOSED, schema_2
from tests.test_plan import (
    GOOD,
    arguments,
    assert_counts_are_right,
    copies_in,
    empty,
    held,
    pinned,
    push,
    schema,
    sizes,
    told,
)
from tests.test_store import ROOMY, SqliteBackend, alarms, edited, prune, write

T = TypeVar("T")

HERE = "203.0.113.5:40000"
THERE = "[2001:db8::1]:9735"
BITS = b"\x02\x00"
FEW = b"\x02"


async def peers(store: SqliteStore) -> dict[NodeId, Peer]:
    """Who has something stored, as the database has it."""
    return {peer.node_id: peer async for peer in store.reader.peers()}


async def peer_of(store: SqliteStore, node_id: NodeId = ALICE) -> Peer:
    """What the database has of one peer."""
    (found,) = [peer async for peer in store.reader.peers(node_id)]
    return found


async def refusals(store: SqliteStore, node_id: NodeId = ALICE) -> dict[str, int]:
    """What was refused, and how often, as the database has it."""
    return {refusal.reason: refusal.count for refusal in await store.reader.refusals(node_id)}


async def met(
    store: SqliteStore, node_id: NodeId = ALICE, address: str = HERE, bits: bytes = BITS
) -> SqliteLease:
    """A connection whose `init` has come."""
    lease = await store.open_lease(node_id, Recorder())
    lease.meet(address, bits)
    return lease


async def flush(backend: SqliteBackend, store: SqliteStore) -> None:
    """Have the store write what it writes once a minute."""
    backend.clock.advance(FLUSH_SECONDS)
    # It does so as well before anything else that it is asked for.
    await alarms(store)


Save = Callable[[SqliteBackend, SqliteStore], Coroutine[None, None, SqliteStore]]


async def by_flush(backend: SqliteBackend, store: SqliteStore) -> SqliteStore:
    await flush(backend, store)
    return store


async def by_request(_backend: SqliteBackend, store: SqliteStore) -> SqliteStore:
    await store.save_visits()
    return store


async def at_close(backend: SqliteBackend, store: SqliteStore) -> SqliteStore:
    await store.close()
    return await backend.open()


each_way = pytest.mark.parametrize("save", [by_flush, by_request, at_close])


# Visits


@each_way
async def test_where_a_peer_comes_from_and_what_it_offers_is_written(
    backend: SqliteBackend, store: SqliteStore, save: Save
) -> None:
    await write(store, (ALICES, b"backup"), (BOBS, b"backup"))
    backend.clock.advance(100)
    await met(store)
    store = await save(backend, store)
    alice = await peer_of(store)
    assert (alice.address, alice.features) == (HERE, BITS)
    assert (alice.first_seen_at, alice.last_seen_at) == (START, int(backend.clock.now))
    assert (alice.established, alice.forgone, alice.rule) == (False, False, "")
    assert (alice.backups, alice.bytes) == (1, 6)
    bob = await peer_of(store, BOB)
    assert (bob.address, bob.features) == ("", b"")


@each_way
async def test_a_peer_whose_first_backup_is_stored_on_this_connection_is_known(
    backend: SqliteBackend, store: SqliteStore, save: Save
) -> None:
    lease = await met(store)
    await store.save_visits()
    assert await peers(store) == {}
    lease.put(1, ALICES, b"first")
    await store.settle()
    assert (await peer_of(store)).last_seen_at == START
    store = await save(backend, store)
    alice = await peer_of(store)
    assert (alice.address, alice.features, alice.away) == (HERE, BITS, 0)
    assert await peers(store) == {ALICE: alice}


@each_way
async def test_who_has_left_was_seen_last_when_it_left(
    backend: SqliteBackend, store: SqliteStore, save: Save
) -> None:
    lease = await met(store)
    lease.put(1, ALICES, b"backup")
    await store.settle()
    backend.clock.advance(10)
    lease.close()
    backend.clock.advance(1000)
    store = await save(backend, store)
    alice = await peer_of(store)
    assert alice.last_seen_at == START + 10
    assert alice.away == backend.clock.now - (START + 10)


async def test_who_stays_is_seen_all_the_time(backend: SqliteBackend, store: SqliteStore) -> None:
    await write(store, (ALICES, b"backup"))
    for _ in range(3):
        await flush(backend, store)
        alice = await peer_of(store)
        assert (alice.last_seen_at, alice.away) == (int(backend.clock.now), 0)


async def test_a_new_visit_that_says_nothing_leaves_what_the_last_one_said(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await write(store, (ALICES, b"backup"))
    (await met(store)).close()
    await store.save_visits()
    backend.clock.advance(5)
    (await store.open_lease(ALICE, Recorder())).close()
    await store.save_visits()
    alice = await peer_of(store)
    assert (alice.address, alice.features, alice.last_seen_at) == (HERE, BITS, START + 5)


@pytest.mark.parametrize("saved_between", [True, False])
async def test_the_newest_address_and_features_stay(
    store: SqliteStore, saved_between: bool
) -> None:
    await write(store, (ALICES, b"backup"))
    (await met(store)).close()
    if saved_between:
        await store.save_visits()
    (await met(store, address=THERE, bits=b"")).close()
    await store.save_visits()
    alice = await peer_of(store)
    assert (alice.address, alice.features) == (THERE, b"")


@pytest.mark.parametrize("jump", [-10 * 365 * DAY, 10 * 365 * DAY])
async def test_how_long_a_peer_is_away_does_not_follow_the_wall_clock(
    backend: SqliteBackend, store: SqliteStore, jump: int
) -> None:
    await push(store, b"backup")
    backend.clock.advance(30)
    backend.clock.now += jump
    await store.save_visits()
    assert (await peer_of(store)).away == 30
    # A clock that was set back makes nobody seen earlier than before.
    await push(store)
    await store.save_visits()
    alice = await peer_of(store)
    assert (alice.away, alice.first_seen_at) == (0, START)
    assert alice.last_seen_at == max(START, int(backend.clock.now))


async def test_downtime_keeps_nobody_away(backend: SqliteBackend, store: SqliteStore) -> None:
    await push(store, b"backup")
    for _ in range(3):
        backend.clock.advance(7)
        await store.close()
        backend.clock.advance(1000 * DAY)
        store = await backend.open()
    await store.save_visits()
    alice = await peer_of(store)
    assert (alice.away, alice.last_seen_at) == (21, START)


async def test_who_is_established_stays_so(backend: SqliteBackend, store: SqliteStore) -> None:
    await push(store, b"backup")
    backend.clock.advance(ROOMY.probation)
    await push(store)
    store = await at_close(backend, store)
    assert (await peer_of(store)).established


# What can't be written


@contextlib.contextmanager
def failing_table(path: Path, table: str, event: str) -> Iterator[None]:
    """Whatever touches a table fails."""
    with edited(path) as database:
        database.execute(
            f"CREATE TRIGGER failing BEFORE {event} ON {table}"
            " BEGIN SELECT RAISE(ABORT, 'told to fail'); END"
        )
        try:
            yield
        finally:
            database.execute("DROP TRIGGER failing")


@contextlib.contextmanager
def failing(store: SqliteStore, what: str) -> Iterator[None]:
    """Nothing of visits can be written until the block is left."""
    if what == "commit":
        with failing_commits(store):
            yield
    else:
        with failing_table(store.path, what, "UPDATE" if what == "peer" else "INSERT"):
            yield


each_failure = pytest.mark.parametrize("what", ["peer", "refusal", "commit"])


async def fail_to_save(backend: SqliteBackend, store: SqliteStore, save: Save) -> None:
    if save is by_flush:
        backend.clock.advance(FLUSH_SECONDS)
        with contextlib.suppress(StoreError):  # of what comes behind the flush
            await store.run(operations.raise_alarm("test", "", None, None))
    else:
        with pytest.raises(StoreError):
            await store.save_visits()


@each_failure
@pytest.mark.parametrize("save", [by_flush, by_request])
async def test_what_could_not_be_written_is_written_later(
    backend: SqliteBackend, store: SqliteStore, save: Save, what: str
) -> None:
    await write(store, (ALICES, b"backup"))
    lease = await met(store)
    for _ in range(3):
        lease.note_refusal("no")
    lease.close()
    gone_at = int(backend.clock.now)
    with failing(store, what):
        for _ in range(2):
            await fail_to_save(backend, store, save)
    await store.save_visits()
    alice = await peer_of(store)
    assert (alice.address, alice.features, alice.last_seen_at) == (HERE, BITS, gone_at)
    assert await refusals(store) == {"no": 3}
    # And once only.
    await store.save_visits()
    assert await refusals(store) == {"no": 3}


@each_failure
async def test_what_could_not_be_written_is_written_at_the_close(
    backend: SqliteBackend, store: SqliteStore, what: str
) -> None:
    await write(store, (ALICES, b"backup"))
    (await met(store)).note_refusal("no")
    with failing(store, what), pytest.raises(StoreError):
        await store.save_visits()
    store = await at_close(backend, store)
    assert (await peer_of(store)).address == HERE
    assert await refusals(store) == {"no": 1}


Interruption = Callable[[], None]


@pytest.fixture
def in_the_middle(monkeypatch: pytest.MonkeyPatch) -> Callable[[Interruption], None]:
    """Have the next writing of visits fail, after something has happened."""
    original = statements.write_visits

    def arrange(happen: Interruption) -> None:
        async def fail(*_: object) -> None:
            monkeypatch.setattr(statements, "write_visits", original)
            happen()
            raise sqlite3.OperationalError("told to fail")

        monkeypatch.setattr(statements, "write_visits", fail)

    return arrange


@pytest.mark.parametrize("save", [by_flush, by_request])
async def test_what_comes_while_a_writing_fails_replaces_nothing_of_it(
    backend: SqliteBackend,
    store: SqliteStore,
    save: Save,
    in_the_middle: Callable[[Interruption], None],
) -> None:
    await write(store, (ALICES, b"backup"))
    lease = await met(store)
    lease.note_refusal("before")
    lease.note_refusal("always")

    def refuse_more() -> None:
        for reason in ("always", "after"):
            lease.note_refusal(reason)

    in_the_middle(refuse_more)
    await fail_to_save(backend, store, save)
    await store.save_visits()
    assert await refusals(store) == {"before": 1, "always": 2, "after": 1}
    assert (await peer_of(store)).address == HERE


async def test_what_comes_while_a_writing_succeeds_is_written_by_the_next_one(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, (ALICES, b"backup"))
    lease = await met(store)
    lease.note_refusal("before")
    original = statements.write_visits

    async def write_visits(*arguments: Any) -> None:
        await original(*arguments)
        monkeypatch.setattr(statements, "write_visits", original)
        lease.note_refusal("meanwhile")
        lease.meet(THERE, FEW)
        lease.close()

    monkeypatch.setattr(statements, "write_visits", write_visits)
    await store.save_visits()
    await store.save_visits()
    assert await refusals(store) == {"before": 1, "meanwhile": 1}
    assert (await peer_of(store)).address == THERE


async def test_what_a_flush_could_not_commit_is_not_taken_for_written_by_another_commit(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await write(store, (ALICES, b"backup"))
    lease = await met(store)
    lease.note_refusal("no")
    lease.close()
    commit = store._writer.commit

    async def fail_once() -> None:
        store._writer.commit = commit  # type: ignore[method-assign]
        raise sqlite3.OperationalError("told to fail")

    store._writer.commit = fail_once  # type: ignore[method-assign]
    # It flushes, which fails, and then raises an alarm, which does not.
    backend.clock.advance(FLUSH_SECONDS)
    await store.run(operations.raise_alarm("test", "", None, None))
    store = await at_close(backend, store)
    assert await refusals(store) == {"no": 1}
    assert (await peer_of(store)).address == HERE


async def test_a_connection_that_comes_while_a_writing_fails_hides_no_address(
    store: SqliteStore, in_the_middle: Callable[[Interruption], None]
) -> None:
    await write(store, (ALICES, b"backup"))
    (await met(store)).close()
    newer = await store.open_lease(ALICE, Recorder())
    # What is known is of the older one; the newer one has not said init.
    in_the_middle(lambda: store.visit(newer))
    with pytest.raises(StoreError):
        await store.save_visits()
    await store.save_visits()
    assert (await peer_of(store)).address == HERE


async def test_what_comes_while_a_writing_waits_its_turn_is_not_lost_with_it(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await write(store, (ALICES, b"backup"), (BOBS, b"backup"))
    store = await at_close(backend, store)
    bobs = await store.open_lease(BOB, Recorder())
    await store.save_visits()
    with failing(store, "peer"):
        saving = asyncio.create_task(store.save_visits())
        await asyncio.sleep(0)
        bobs.meet(THERE, FEW)
        bobs.note_refusal("no")
        (await met(store)).close()
        with pytest.raises(StoreError):
            await saving
    bobs.close()
    await store.save_visits()
    assert (await peer_of(store, BOB)).address == THERE
    assert await refusals(store, BOB) == {"no": 1}
    assert (await peer_of(store)).address == HERE


async def test_nothing_is_counted_twice_when_several_ask_and_one_fails(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, (ALICES, b"backup"))
    (await met(store)).note_refusal("no")
    original, calls = statements.write_visits, 0

    async def fail_the_second_time(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise sqlite3.OperationalError("told to fail")
        await original(*arguments)

    monkeypatch.setattr(statements, "write_visits", fail_the_second_time)
    results = await asyncio.gather(store.save_visits(), store.save_visits(), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), StoreError]
    await store.save_visits()
    assert await refusals(store) == {"no": 1}


# Refusals


@each_way
async def test_refusals_are_counted_for_each_reason(
    backend: SqliteBackend, store: SqliteStore, save: Save
) -> None:
    await write(store, (ALICES, b"backup"))
    lease = await store.open_lease(ALICE, Recorder())
    for reason in ("no room", "too large", "no room"):
        lease.note_refusal(reason)
    store = await save(backend, store)
    assert await refusals(store) == {"no room": 2, "too large": 1}
    # Over connections and restarts.
    (await store.open_lease(ALICE, Recorder())).note_refusal("no room")
    store = await save(backend, store)
    assert await refusals(store) == {"no room": 3, "too large": 1}
    assert await refusals(store, BOB) == {}


async def test_a_refusal_has_the_times_of_its_first_and_of_its_last(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await write(store, (ALICES, b"backup"))
    lease = await store.open_lease(ALICE, Recorder())
    for seconds in (10, 20, 30):
        backend.clock.advance(seconds)
        lease.note_refusal("no")
        await store.save_visits()
    backend.clock.advance(1000)
    lease.note_refusal("later")
    await store.save_visits()
    assert await store.reader.refusals(ALICE) == [
        Refusal("no", 3, START + 10, START + 60),
        Refusal("later", 1, START + 1060, START + 1060),
    ]


async def test_a_refusal_has_its_own_time_and_not_that_of_its_writing(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    # The disk that was full when it came may stay so for hours.
    await write(store, (ALICES, b"backup"))
    lease = await store.open_lease(ALICE, Recorder())
    lease.note_refusal("no")
    backend.clock.advance(HOUR)
    await store.save_visits()
    assert await store.reader.refusals(ALICE) == [Refusal("no", 1, START, START)]


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_newest_reasons_stay(
    backend: SqliteBackend, store: SqliteStore, at_once: bool
) -> None:
    await write(store, (ALICES, b"backup"), (BOBS, b"backup"))
    (await store.open_lease(BOB, Recorder())).note_refusal("of bob")
    lease = await store.open_lease(ALICE, Recorder())
    # Falling, so that their order is not that of their names.
    reasons = [f"reason {number:03}" for number in reversed(range(3 * MAX_REASONS))]
    for reason in reasons:
        lease.note_refusal(reason)
        backend.clock.advance(1)
        if not at_once:
            await store.save_visits()
    await store.save_visits()
    assert list(await refusals(store)) == reasons[-MAX_REASONS:]
    assert await refusals(store, BOB) == {"of bob": 1}


async def test_reasons_without_end_are_not_all_written_before_the_oldest_go(
    store: SqliteStore,
) -> None:
    # A reason may name a channel: a peer has as many as it likes, and they must cost no memory.
    await write(store, (ALICES, b"backup"))
    lease = await store.open_lease(ALICE, Recorder())
    for number in range(1000):
        lease.note_refusal(f"reason {number}")
    written: list[str] = []
    await store._writer.set_trace_callback(written.append)
    await store.save_visits()
    assert len([sql for sql in written if "INTO refusal" in sql]) <= MAX_REASONS
    assert len(await refusals(store)) == MAX_REASONS


@each_way
async def test_what_was_refused_before_the_first_backup_is_kept_with_it(
    backend: SqliteBackend, store: SqliteStore, save: Save
) -> None:
    lease = await store.open_lease(ALICE, Recorder())
    lease.note_refusal("no room")
    await store.save_visits()
    assert await refusals(store) == {}
    lease.put(1, ALICES, b"first")
    await store.settle()
    store = await save(backend, store)
    assert await refusals(store) == {"no room": 1}


@each_way
async def test_refusals_of_who_has_nothing_stored_leave_no_trace(
    backend: SqliteBackend, store: SqliteStore, save: Save
) -> None:
    lease = await met(store)
    for number in range(3 * MAX_REASONS):
        lease.note_refusal(f"reason {number}")
    lease.close()
    store = await save(backend, store)
    assert await peers(store) == {}
    assert counts_of(store.path, "refusal") == 0


def counts_of(path: Path, table: str) -> int:
    """How many rows a table has."""
    with edited(path) as database:
        ((count,),) = database.execute(f"SELECT count(*) FROM {table}").fetchall()  # noqa: S608
    assert isinstance(count, int)
    return count


# Rules


async def test_rules_are_kept_and_undone(backend: SqliteBackend, store: SqliteStore) -> None:
    await write(store, (ALICES, b"backup"))
    call = methods(store)
    await call["peers.allow"](node_id=ALICE.hex())
    await call["peers.deny"](node_id=NOBODY.hex())
    store = await at_close(backend, store)
    assert await store.reader.rules() == {ALICE: "allow", NOBODY: "deny"}
    assert (await peer_of(store)).rule == "allow"
    # A peer that has nothing stored is no peer for all that.
    assert set(await peers(store)) == {ALICE}
    await assert_counts_are_right(store)
    call = methods(store)
    await call["peers.deny"](node_id=ALICE.hex())
    assert (await peer_of(store)).rule == "deny"
    await call["peers.deny"](node_id=ALICE.hex(), undo=True)
    assert (await peer_of(store)).rule == ""
    await call["peers.deny"](node_id=NOBODY.hex(), undo=True)
    assert await store.reader.rules() == {}


@pytest.mark.parametrize(("rule", "other"), [("allow", "deny"), ("deny", "allow")])
async def test_a_rule_is_not_undone_with_the_other_one(
    store: SqliteStore, rule: str, other: str
) -> None:
    call = methods(store)
    await call[f"peers.{rule}"](node_id=ALICE.hex())
    with contextlib.suppress(StoreError):  # to say so is as good
        await call[f"peers.{other}"](node_id=ALICE.hex(), undo=True)
    assert await store.reader.rules() == {ALICE: rule}


async def test_who_has_to_follow_the_rules_is_told_of_each(store: SqliteStore) -> None:
    seen: list[dict[NodeId, str]] = []

    async def changed() -> None:
        seen.append(await store.reader.rules())

    call = methods(store, rules_changed=changed)
    await call["peers.deny"](node_id=ALICE.hex())
    await call["peers.allow"](node_id=ALICE.hex())
    await call["peers.allow"](node_id=ALICE.hex(), undo=True)
    assert seen == [{ALICE: "deny"}, {ALICE: "allow"}, {}]
    with pytest.raises(AddressError):
        await call["peers.deny"](node_id=ALICE.hex()[:-2])
    assert len(seen) == 3


# forget


async def filled(store: SqliteStore) -> None:
    """ALICE and BOB with all that there can be of a peer."""
    for node_id in (ALICE, BOB):
        storage, node, channel, other = slots_of(node_id)
        await push(store, GOOD, slot=storage)
        await push(store, empty(1), slot=storage)
        await push(store, b"node", slot=node)
        await push(store, b"later", slot=node)
        lease = await met(store, node_id)
        lease.note_refusal("no")
        lease.put(1, channel, b"channel", CLOSED)
        lease.put(2, other, b"other", LATE)
        await store.settle()
        lease.close()
        await store.run(operations.set_rule(node_id, "allow", undo=False))
        versions = await stored_versions(store, node)
        await store.run(operations.pin(node, versions[0].revision.revision))
        await store.run(operations.hold(node, versions[0].revision.revision, None))
    await store.save_visits()


def rows_of(path: Path, node_id: NodeId) -> dict[str, int]:
    """In how many rows of which table a peer stands."""
    found = {}
    with edited(path) as database:
        tables = database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        for (table,) in tables:
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            if "node_id" in columns:
                sql = f"SELECT count(*) FROM {table} WHERE node_id = ?"  # noqa: S608
                found[table] = database.execute(sql, (node_id,)).fetchone()[0]
    return {table: count for table, count in found.items() if count}


async def test_forget_deletes_all_of_one_peer(store: SqliteStore) -> None:
    await filled(store)
    before = rows_of(store.path, BOB)
    assert before.keys() == {"backup", "hold", "channel", "refusal", "peer", "rule", "alarm"}
    assert rows_of(store.path, ALICE) == before
    await methods(store)["peers.forget"](node_id=ALICE.hex())
    # What the operator has said of it stays, and that there was an alarm.
    assert rows_of(store.path, ALICE) == {"rule": 1, "alarm": 1}
    assert rows_of(store.path, BOB) == before
    await assert_counts_are_right(store)
    assert [alarm.slot for alarm in await alarms(store)] == [BOBS]
    acknowledged = await store.reader.alarms(acknowledged=True)
    assert [alarm.acknowledged_at is None for alarm in acknowledged] == [False, True]
    assert set(await peers(store)) == {BOB}
    # It is a stranger again.
    assert await push(store, b"anew") is None
    assert (await peer_of(store)).address == ""
    assert await refusals(store) == {}
    await assert_counts_are_right(store)
    await store.close()
    assert verify(store.path).sound


@pytest.mark.parametrize("node_id", [NOBODY, BOB])
async def test_who_is_not_there_can_not_be_forgotten(store: SqliteStore, node_id: NodeId) -> None:
    await write(store, (ALICES, b"backup"))
    await store.run(operations.set_rule(BOB, "deny", undo=False))
    with pytest.raises(StoreError, match=node_id.hex()):
        await store.run(operations.forget(node_id))
    assert set(await peers(store)) == {ALICE}
    await assert_counts_are_right(store)


async def test_who_is_forgotten_while_connected_begins_anew(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await filled(store)
    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    lease.put(1, ALICES, GOOD)
    await store.settle()
    await store.run(operations.forget(ALICE))
    assert list(lease.slots) == []
    assert await blob_of(lease, ALICES) is None
    backend.clock.advance(5)
    # Less than what it had is no loss of what is forgotten.
    lease.put(2, ALICES, empty(1))
    lease.put(3, ALICES_CHANNEL, b"channel", LATE)
    await store.settle()
    assert recorder.told == [(1, None), (3, None)]
    assert await sizes(store) == [57]
    assert (await held(store), await pinned(store)) == (None, [])
    assert [alarm.slot for alarm in await alarms(store)] == [BOBS]
    assert (await peer_of(store)).first_seen_at == START + 5
    await assert_counts_are_right(store)
    # And it goes on by the same rules.
    lease.put(4, ALICES, b"newer")
    await store.settle()
    assert await sizes(store) == [5]
    await assert_counts_are_right(store)


async def test_an_update_that_waits_is_stored_after_the_peer_is_forgotten(
    store: SqliteStore,
) -> None:
    await write(store, (ALICES, GOOD))
    lease = await store.open_lease(ALICE, Recorder())
    forgetting = asyncio.create_task(store.run(operations.forget(ALICE)))
    await asyncio.sleep(0)
    lease.put(1, ALICES, b"new")
    await store.settle()
    await forgetting
    assert await sizes(store) == [3]
    await assert_counts_are_right(store)


def forget_all(store: SqliteStore) -> Coroutine[None, None, None]:
    return store.run(operations.forget(ALICE))


async def delete_last(store: SqliteStore) -> None:
    (version,) = await stored_versions(store, ALICES)
    await store.run(operations.delete(ALICES, version.revision.revision))


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("remove", [forget_all, delete_last])
async def test_what_waits_to_be_written_of_a_peer_goes_with_it(
    backend: SqliteBackend,
    store: SqliteStore,
    remove: Callable[[SqliteStore], Coroutine[None, None, None]],
    connected: bool,
) -> None:
    await write(store, (ALICES, b"backup"))
    lease = await met(store)
    lease.note_refusal("no")
    if not connected:
        lease.close()
    await remove(store)
    await flush(backend, store)
    assert rows_of(store.path, ALICE) == {}
    await push(store, b"anew")
    await store.save_visits()
    assert await refusals(store) == {}


@pytest.mark.parametrize("remove", [forget_all, delete_last])
async def test_what_is_refused_after_all_was_deleted_leaves_no_trace(
    store: SqliteStore, remove: Callable[[SqliteStore], Coroutine[None, None, None]]
) -> None:
    await write(store, (ALICES, b"backup"))
    lease = await met(store)
    await remove(store)
    lease.note_refusal("no")
    await store.save_visits()
    assert rows_of(store.path, ALICE) == {}


# Retention

NEVER = Retention(after_close=1000 * DAY)
CLOSE = Retention(after_close=DAY)
AWAY = Retention(after_close=1000 * DAY, inactive=DAY)


async def revisions(store: SqliteStore) -> list[int]:
    """Every version that is stored."""
    return [version.revision.revision async for version in store.versions()]


async def pruned(store: SqliteStore, retention: Retention) -> list[Slot]:
    """What retention deletes, which is what it has said before that it would."""
    before = await revisions(store)
    announced = await prune(store, retention, dry_run=True)
    assert await revisions(store) == before
    due = await prune(store, retention)
    assert by_slot(due) == by_slot(announced)
    await assert_counts_are_right(store)
    assert await prune(store, retention) == []
    return [each.slot for each in by_slot(due)]


def by_slot(due: list[Due]) -> list[Due]:
    return sorted(due, key=lambda each: (each.slot.node_id, each.slot.kind, each.slot.channel_id))


async def close_channel(store: SqliteStore, slot: Slot = ALICES_CHANNEL) -> None:
    """A channel backup, and then a channel that is closed; the peer leaves."""
    lease = await store.open_lease(slot.node_id, Recorder())
    lease.put(1, slot, b"channel", LATE)
    await store.settle()
    lease.put(2, slot, None, CLOSED)
    await store.settle()
    lease.close()


async def test_a_closed_channel_goes_at_its_time_and_nothing_else(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await write(store, (ALICES, b"backup"))
    await push(store, b"open", slot=ALICES_OTHER_CHANNEL)
    await close_channel(store)
    backend.clock.advance(DAY - 1)
    assert await pruned(store, CLOSE) == []
    await store.save_visits()
    found = [row async for row in store.reader.channels(CLOSE)]
    assert [CLOSE.left(row.passed) for row in found] == [(None, 1), (None, None)]
    assert [row.peer_passed for row in found] == [None, None]
    backend.clock.advance(1)
    assert await pruned(store, NEVER) == []
    assert await pruned(store, CLOSE) == [ALICES_CHANNEL]
    assert rows_of(store.path, ALICE) == {"backup": 2, "channel": 1, "peer": 1}


async def test_a_closed_channel_stays_as_long_as_its_peer_is_here(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await close_channel(store)
    backend.clock.advance(DAY - 1)
    lease = await store.open_lease(ALICE, Recorder())
    backend.clock.advance(10 * DAY)
    assert await pruned(store, CLOSE) == []
    lease.close()
    backend.clock.advance(DAY - 1)
    assert await pruned(store, CLOSE) == []
    backend.clock.advance(1)
    assert await pruned(store, CLOSE) == [ALICES_CHANNEL]
    assert await peers(store) == {}


async def test_a_channel_that_is_open_again_stays(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await close_channel(store)
    backend.clock.advance(DAY)
    lease = await store.open_lease(ALICE, Recorder())
    lease.put(1, ALICES_CHANNEL, None, LATE)
    await store.settle()
    lease.close()
    backend.clock.advance(1000 * DAY)
    assert await pruned(store, CLOSE) == []


async def test_without_inactive_time_nobody_is_away_for_too_long(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, b"backup")
    backend.clock.advance(1000 * DAY)
    assert await pruned(store, NEVER) == []
    assert await pruned(store, AWAY) == [ALICES]


async def test_all_of_a_peer_that_was_away_for_too_long_goes(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    for slot in (ALICES, ALICES_NODE):
        await push(store, GOOD, slot=slot)
        await push(store, b"newer" * 40, slot=slot)
    backend.clock.advance(DAY - 1)
    assert await pruned(store, AWAY) == []
    await push(store, b"of bob", slot=BOBS)
    backend.clock.advance(1)
    due = by_slot(await prune(store, AWAY))
    assert [(each.slot, each.versions, each.bytes) for each in due] == [
        (ALICES, 2, 545),
        (ALICES_NODE, 2, 545),
    ]
    assert len({each.reason for each in due}) == 1
    assert rows_of(store.path, ALICE) == {}
    assert set(await peers(store)) == {BOB}
    await assert_counts_are_right(store)


async def test_a_peer_with_a_channel_is_not_away_for_too_long(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    # DESIGN, inactive_time: peers without a known channel.
    await push(store, b"backup")
    await push(store, b"channel", slot=ALICES_CHANNEL)
    backend.clock.advance(100 * DAY)
    assert await pruned(store, AWAY) == []
    await close_channel(store)
    backend.clock.advance(DAY)
    assert await pruned(store, AWAY) == []
    # When its last channel goes, nothing holds the rest.
    assert await pruned(store, Retention(after_close=DAY, inactive=DAY)) == [
        ALICES,
        ALICES_CHANNEL,
    ]


async def test_who_is_connected_is_never_away(backend: SqliteBackend, store: SqliteStore) -> None:
    await close_channel(store)
    backend.clock.advance(DAY)
    await store.open_lease(ALICE, Recorder())
    backend.clock.advance(1000 * DAY)
    assert await pruned(store, Retention(after_close=1, inactive=1)) == []


async def test_who_comes_back_while_it_is_being_deleted_is_not_deleted(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, b"backup")
    await close_channel(store)
    backend.clock.advance(DAY)
    async with backend.hold_writes():
        pruning = asyncio.create_task(prune(store, Retention(after_close=DAY, inactive=DAY)))
        await turns(store)
        lease = await store.open_lease(ALICE, Recorder())
    assert await pruning == []
    assert await blob_of(lease, ALICES) == b"backup"
    assert await blob_of(lease, ALICES_CHANNEL) == b"channel"


async def test_who_was_here_is_not_away_though_that_is_not_written_yet(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, b"backup")
    backend.clock.advance(HOUR - 1)
    (await store.open_lease(ALICE, Recorder())).close()
    assert await pruned(store, Retention(inactive=HOUR - 1)) == []


@pytest.mark.parametrize("stays", [True, False])
async def test_who_comes_once_it_was_found_that_it_is_due_is_not_deleted(
    backend: SqliteBackend, store: SqliteStore, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    await push(store, b"backup")
    await push(store, b"of bob", slot=BOBS)
    backend.clock.advance(DAY)

    async def find_and_come(*arguments: Any) -> Any:
        found = await next_due(*arguments)
        lease = await store.open_lease(ALICE, Recorder())
        if not stays:
            lease.close()
        return found

    monkeypatch.setattr(operations, "next_due", find_and_come)
    prune_inactive, due, _ = operations.prune(AWAY, Place(2), store._reserve)
    await store.run(prune_inactive)
    assert [each.slot for each in due] == [BOBS]
    assert set(await peers(store)) == {ALICE}


async def test_who_is_here_is_not_deleted_whatever_is_written_of_its_visit(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, b"backup")
    await store.open_lease(ALICE, Recorder())
    await store.save_visits()
    backend.clock.advance(FLUSH_SECONDS - 1)
    retention = Retention(inactive=int(FLUSH_SECONDS - 1))
    prune_inactive, due, _ = operations.prune(retention, Place(2), store._reserve)
    await store.run(prune_inactive)
    assert due == []
    assert set(await peers(store)) == {ALICE}


async def test_what_was_deleted_once_and_stored_anew_stays_when_others_go(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, b"backup")
    backend.clock.advance(DAY)
    await push(store, b"of bob", slot=BOBS)
    assert await pruned(store, AWAY) == [ALICES]
    await push(store, b"anew")
    backend.clock.advance(DAY - 1)
    await push(store, b"anew")
    backend.clock.advance(1)
    assert await pruned(store, AWAY) == [BOBS]
    assert await push(store) == b"anew"


async def test_why_updates_were_refused_goes_with_the_last_backup_of_a_peer(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    for slot in (ALICES, BOBS):
        lease = await store.open_lease(slot.node_id, Recorder())
        lease.put(1, slot, b"backup")
        await store.settle()
        lease.note_refusal("no")
        lease.close()
    (version,) = await stored_versions(store, BOBS)
    await store.run(operations.pin(BOBS, version.revision.revision))
    backend.clock.advance(DAY)
    assert await pruned(store, AWAY) == [ALICES]
    assert await refusals(store) == {}
    assert await refusals(store, BOB) == {"no": 1}


async def test_who_comes_back_to_what_is_just_being_deleted_waits_for_the_end(
    backend: SqliteBackend, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push(store, b"backup")
    backend.clock.advance(DAY)
    coming: list[asyncio.Task[bytes | None]] = []

    async def come() -> bytes | None:
        return await blob_of(await store.open_lease(ALICE, Recorder()), ALICES)

    loop, delete = asyncio.get_running_loop(), deletion.delete_versions

    async def begin_to_come() -> None:
        coming.append(asyncio.create_task(come()))
        await turns(store)

    def delete_versions(*arguments: Any) -> None:
        asyncio.run_coroutine_threadsafe(begin_to_come(), loop).result()
        delete(*arguments)

    monkeypatch.setattr(deletion, "delete_versions", delete_versions)
    assert [each.slot for each in await prune(store, AWAY)] == [ALICES]
    # It is given nothing that is gone a moment later.
    assert await coming[0] is None


async def test_a_version_deleted_since_it_was_found_is_not_damaged(store: SqliteStore) -> None:
    await push(store, b"backup")
    version = await store.reader.find(ALICES)
    assert version is not None
    await store.run(operations.forget(ALICE))
    with pytest.raises(MissingBackupError, match="was deleted"):
        await store.reader.read(version.row_id, version.revision)


async def test_a_slot_that_is_due_for_two_reasons_is_named_once(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await close_channel(store)
    backend.clock.advance(DAY)
    both = Retention(after_close=DAY, inactive=DAY)
    assert len(await prune(store, both, dry_run=True)) == 1
    assert await pruned(store, both) == [ALICES_CHANNEL]


@pytest.mark.parametrize("which", [0, 1], ids=["the older", "the newer"])
@pytest.mark.parametrize("keep", ["backups.pin", "backups.hold"])
async def test_what_an_operator_keeps_stays_and_is_what_is_given_back(
    backend: SqliteBackend, store: SqliteStore, keep: str, which: int
) -> None:
    await push(store, b"older" * 50)
    await push(store, b"newer" * 50)
    await push(store, b"of bob", slot=BOBS)
    kept = (await stored_versions(store, ALICES))[which].revision
    seconds = {"seconds": None} if keep == "backups.hold" else {}
    await methods(store)[keep](*arguments(ALICES), kept.revision, **seconds)
    backend.clock.advance(DAY)
    assert await pruned(store, AWAY) == [ALICES, BOBS]
    (version,) = await stored_versions(store, ALICES)
    assert version.revision == kept
    assert version.current
    assert await push(store) == (b"older", b"newer")[which] * 50
    # And goes when it is undone.
    backend.clock.advance(DAY)
    undo = {"backups.pin": "backups.unpin", "backups.hold": "backups.release"}[keep]
    revision = () if keep == "backups.hold" else (kept.revision,)
    await methods(store)[undo](*arguments(ALICES), *revision)
    assert await pruned(store, AWAY) == [ALICES]
    assert await peers(store) == {}


async def test_what_the_store_pins_and_holds_of_itself_goes(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, GOOD)
    await push(store, empty(1))
    assert await held(store) is not None
    backend.clock.advance(DAY)
    (due,) = await prune(store, AWAY, dry_run=True)
    assert (due.versions, due.bytes) == (2, len(GOOD) + 57)
    assert await pruned(store, AWAY) == [ALICES]
    assert rows_of(store.path, ALICE).keys() <= {"alarm"}


async def test_a_version_that_the_store_alone_holds_goes_also_when_it_is_the_only_one(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, GOOD)
    await push(store, empty(1))
    newest = (await stored_versions(store, ALICES))[-1].revision.revision
    await store.run(operations.delete(ALICES, newest))
    backend.clock.advance(DAY)
    assert await pruned(store, AWAY) == [ALICES]


async def test_an_operators_hold_that_has_run_out_keeps_nothing(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, b"older")
    await push(store, b"newer")
    older = (await stored_versions(store, ALICES))[0].revision.revision
    await store.run(operations.hold(ALICES, older, DAY))
    backend.clock.advance(DAY)
    assert await pruned(store, AWAY) == [ALICES]
    assert rows_of(store.path, ALICE) == {}


async def put_all(store: SqliteStore, slots: list[Slot], state: ChannelState | None) -> None:
    """A backup in each slot, written at once."""
    leases: dict[NodeId, SqliteLease] = {}
    for sequence, slot in enumerate(slots, 1):
        if slot.node_id not in leases:
            leases[slot.node_id] = await store.open_lease(slot.node_id, Recorder())
        leases[slot.node_id].put(sequence, slot, b"backup", state)
    await store.settle()
    for lease in leases.values():
        lease.close()


async def test_more_peers_than_one_transaction_deletes_go_all_the_same(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    slots = [backup_of(peer(number)) for number in range(2 * PRUNED_AT_ONCE + 2)]
    await put_all(store, slots, None)
    kept = (slots[0], slots[PRUNED_AT_ONCE], slots[-1])
    for slot in kept:
        (version,) = await stored_versions(store, slot)
        await store.run(operations.pin(slot, version.revision.revision))
    backend.clock.advance(DAY)
    announced = await prune(store, AWAY, dry_run=True)
    assert len(announced) == len(slots) - 3
    assert by_slot(await prune(store, AWAY)) == by_slot(announced)
    assert set(await peers(store)) == {slot.node_id for slot in kept}
    await assert_counts_are_right(store)


async def test_more_channels_than_one_transaction_deletes_go_all_the_same(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    slots = [
        Slot(peer(number), BackupKind.CHANNEL_BACKUP, bytes((channel,)) * 32)
        for number in range(2 * PRUNED_AT_ONCE // 100 + 2)
        for channel in range(100)
    ]
    await put_all(store, slots, CLOSED)
    (version,) = await stored_versions(store, slots[PRUNED_AT_ONCE])
    await store.run(operations.pin(slots[PRUNED_AT_ONCE], version.revision.revision))
    backend.clock.advance(DAY)
    announced = await prune(store, CLOSE, dry_run=True)
    assert len(announced) == len(slots) - 1
    assert by_slot(await prune(store, CLOSE)) == by_slot(announced)
    assert [version.revision.slot async for version in store.versions()] == [slots[PRUNED_AT_ONCE]]
    await assert_counts_are_right(store)


async def pieces(store: SqliteStore, retention: Retention) -> list[list[Slot]]:
    """What is due, as it is found piece by piece."""
    found: list[list[Slot]] = []
    place: Place | None = Place()
    while place is not None:
        due, place = await store.reader.next_due(retention, store.moment, place)
        found.append([each.slot for each in due])
    return [piece for piece in found if piece]


async def test_what_is_large_goes_in_smaller_pieces_each_peer_in_one(
    backend: SqliteBackend, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = [peer(number) for number in range(4)]
    slots = [slot for node_id in everyone for slot in slots_of(node_id)[:2]]
    await put_all(store, slots, None)
    backend.clock.advance(DAY)
    assert await pieces(store, AWAY) == [slots]
    monkeypatch.setattr(due_module, "PRUNED_BYTES", 1)
    assert await pieces(store, AWAY) == [slots[:2], slots[2:4], slots[4:6], slots[6:]]
    assert await pruned(store, AWAY) == slots
    assert await peers(store) == {}


async def test_channels_of_one_peer_go_in_smaller_pieces_where_they_are_large(
    backend: SqliteBackend, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = [Slot(ALICE, BackupKind.CHANNEL_BACKUP, bytes((n,)) * 32) for n in range(3)]
    await put_all(store, slots, CLOSED)
    backend.clock.advance(DAY)
    monkeypatch.setattr(due_module, "PRUNED_BYTES", 1)
    assert await pieces(store, CLOSE) == [[slot] for slot in slots]
    assert await pruned(store, CLOSE) == slots


async def test_a_deletion_that_fails_says_so_and_changes_nothing(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, b"backup")
    backend.clock.advance(DAY)
    async with backend.fail_writes():
        with pytest.raises(StoreError):
            await prune(store, AWAY)
    assert await sizes(store) == [6]
    await assert_counts_are_right(store)
    assert await pruned(store, AWAY) == [ALICES]


# Retention against a model

SLOTS = [*slots_of(ALICE), *slots_of(BOB)]
OPENED = ChannelState(1)
RETENTIONS = [
    Retention(after_close=after_close, inactive=inactive)
    for after_close in (1, HOUR, 14 * DAY)
    for inactive in (0, 1, DAY, 30 * DAY)
]


@dataclass
class Model:
    """What retention must know of a peer: when it was seen, what closed, what the operator keeps.

    Times are seconds that the daemon sees pass. Which versions there are is read from the store:
    how they are thinned is tested elsewhere.
    """

    seen: int | None = None
    lease: SqliteLease | None = None
    sequence: int = 0
    closed: dict[Slot, int] = field(default_factory=dict)
    pins: set[int] = field(default_factory=set)
    holds: dict[Slot, tuple[int, int | None]] = field(default_factory=dict)

    def keeps(self, slot: Slot, revision: int, now: int) -> bool:
        """Whether the operator has pinned or holds a version."""
        held, until = self.holds.get(slot, (0, None))
        return revision in self.pins or (held == revision and (until is None or until > now))


class RetentionMachine(RuleBasedStateMachine):
    """Histories of two peers; what retention deletes is what the model says."""

    which = st.sampled_from(SLOTS)
    nodes = st.sampled_from([ALICE, BOB])
    picks = st.integers(0, 20)

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp(prefix="peerstore-retention-"))
        self.models = {ALICE: Model(), BOB: Model()}
        self.fill = 0

    def run(self, coroutine: Coroutine[None, None, T]) -> T:
        """Run in the machine's loop."""
        return self.runner.run(coroutine)

    @initialize(history=st.sampled_from([1, 3, 8]), hold=st.sampled_from([0, 2 * DAY]))
    def open_first(self, history: int, hold: int) -> None:
        quotas = Quotas(history=history, hold_on_shrink=hold, min_free_space=0)
        self.backend = SqliteBackend(self.directory, quotas)
        self.store = self.run(self.backend.open())

    def teardown(self) -> None:
        if hasattr(self, "backend"):
            self.run(self.backend.dispose())
        self.runner.close()
        shutil.rmtree(self.directory)

    @property
    def now(self) -> int:
        """The daemon's time."""
        return self.store.seen

    def versions(self, slot: Slot) -> dict[int, int]:
        """The revisions of a slot with their sizes."""
        versions = self.run(stored_versions(self.store, slot))
        return {version.revision.revision: version.revision.size for version in versions}

    # Peers

    @rule(node_id=nodes)
    def connect(self, node_id: NodeId) -> None:
        model = self.models[node_id]
        model.lease = self.run(met(self.store, node_id))
        model.sequence = 0

    @rule(node_id=nodes)
    def disconnect(self, node_id: NodeId) -> None:
        model = self.models[node_id]
        if model.lease is not None:
            model.lease.close()
            model.lease = None
            if model.seen is not None:
                model.seen = self.now

    @rule(slot=which, size=st.sampled_from([10, 300]), state=st.sampled_from([OPENED, CLOSED]))
    def put(self, slot: Slot, size: int, state: ChannelState) -> None:
        """A new backup; small ones are the mark of a loss of large ones."""
        self.fill += 1
        self.hand_in(slot, self.fill.to_bytes(size, "big"), state)

    @rule(slot=which, state=st.sampled_from([OPENED, CLOSED]))
    def say(self, slot: Slot, state: ChannelState) -> None:
        """What the messages of a channel say, alone."""
        if slot.channel_id and self.versions(slot):
            self.hand_in(slot, None, state)

    @rule(slot=which, times=st.integers(2, 4))
    def leave_versions(self, slot: Slot, times: int) -> None:
        """What most real histories are made of."""
        for number in range(times):
            self.connect(slot.node_id)
            self.put(slot, (300, 10)[number % 2], OPENED)
        self.disconnect(slot.node_id)

    @rule(node_id=nodes)
    def close_channels(self, node_id: NodeId) -> None:
        for slot in slots_of(node_id)[2:]:
            self.say(slot, CLOSED)

    def hand_in(self, slot: Slot, blob: bytes | None, state: ChannelState) -> None:
        model = self.models[slot.node_id]
        if model.lease is None:
            self.connect(slot.node_id)
        assert model.lease is not None
        model.sequence += 1
        model.lease.put(model.sequence, slot, blob, state if slot.channel_id else None)
        self.run(self.store.settle())
        model.seen = self.now
        if not slot.channel_id or not state.closed:
            model.closed.pop(slot, None)
        else:
            model.closed.setdefault(slot, self.now)

    # Time

    @rule(seconds=st.sampled_from([1, HOUR - 1, HOUR, DAY - 1, DAY, 14 * DAY, 30 * DAY]))
    def time_passes(self, seconds: int) -> None:
        self.backend.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-10 * 365 * DAY, -HOUR, 10 * 365 * DAY]))
    def the_wall_clock_jumps(self, seconds: int) -> None:
        self.backend.clock.now += seconds

    @rule()
    def stop_and_start(self) -> None:
        before = self.now
        for node_id in self.models:
            self.disconnect(node_id)
        self.run(self.store.close())
        self.backend.clock.advance(1000 * DAY)
        self.store = self.run(self.backend.open())
        assert self.now == before

    # The operator

    def pick(self, slot: Slot, number: int) -> int | None:
        versions = list(self.versions(slot))
        return versions[number % len(versions)] if versions else None

    @rule(slot=which, number=picks, pin=st.booleans())
    def pin_or_unpin(self, slot: Slot, number: int, pin: bool) -> None:
        revision = self.pick(slot, number)
        if revision is not None:
            operation = operations.pin if pin else operations.unpin
            self.run(self.store.run(operation(slot, revision)))
            pins = self.models[slot.node_id].pins
            self.models[slot.node_id].pins = pins | {revision} if pin else pins - {revision}

    @rule(slot=which, number=picks, seconds=st.sampled_from([None, HOUR, 14 * DAY]))
    def hold(self, slot: Slot, number: int, seconds: int | None) -> None:
        revision = self.pick(slot, number)
        if revision is not None:
            self.run(self.store.run(operations.hold(slot, revision, seconds)))
            until = None if seconds is None else self.now + seconds
            self.models[slot.node_id].holds[slot] = (revision, until)

    @rule(slot=which)
    def release(self, slot: Slot) -> None:
        with contextlib.suppress(StoreError):  # nothing is held
            self.run(self.store.run(operations.release(slot)))
        self.models[slot.node_id].holds.pop(slot, None)

    # Retention

    def going(self, slot: Slot) -> dict[int, int]:
        """What of a slot the operator does not keep."""
        model = self.models[slot.node_id]
        return {
            revision: size
            for revision, size in self.versions(slot).items()
            if not model.keeps(slot, revision, self.now)
        }

    def expected(self, retention: Retention) -> dict[Slot, dict[int, int]]:
        """What goes of which slot."""
        due: dict[Slot, dict[int, int]] = {}
        for node_id, model in self.models.items():
            if model.seen is None or model.lease is not None:
                continue
            away = self.now - model.seen
            channel_left = False
            for slot in slots_of(node_id)[2:]:
                closed = model.closed.get(slot, self.now + 1)
                if min(away, self.now - closed) >= retention.after_close:
                    due[slot] = self.going(slot)
                channel_left |= self.versions(slot) != due.get(slot, {})
            if 0 < retention.inactive <= away and not channel_left:
                for slot in slots_of(node_id)[:2]:
                    due[slot] = self.going(slot)
        return {slot: due[slot] for slot in SLOTS if due.get(slot)}

    @rule(retention=st.sampled_from(RETENTIONS))
    def prune(self, retention: Retention) -> None:
        due = self.expected(retention)
        before = {slot: self.versions(slot) for slot in SLOTS}
        announced = self.run(prune(self.store, retention, dry_run=True))
        assert {slot: self.versions(slot) for slot in SLOTS} == before
        done = self.run(prune(self.store, retention))
        assert {slot: self.versions(slot) for slot in SLOTS} == {
            slot: {r: size for r, size in versions.items() if r not in due.get(slot, {})}
            for slot, versions in before.items()
        }
        assert by_slot(announced) == by_slot(done)
        assert [(each.slot, each.versions, each.bytes) for each in by_slot(done)] == [
            (slot, len(going), sum(going.values())) for slot, going in due.items()
        ]
        self.see_what_is_gone()

    @rule(retention=st.sampled_from(RETENTIONS), early=st.booleans())
    def leave_and_prune(self, retention: Retention, early: bool) -> None:
        """At the second at which all is due, or at the one before."""
        for node_id in self.models:
            self.disconnect(node_id)
        self.backend.clock.advance((retention.inactive or retention.after_close) - early)
        self.prune(retention)

    def see_what_is_gone(self) -> None:
        """Who has nothing here any more is not known any more."""
        for slot in SLOTS:
            if not self.versions(slot):
                self.models[slot.node_id].closed.pop(slot, None)
                self.models[slot.node_id].holds.pop(slot, None)
        for node_id, model in self.models.items():
            if not any(self.versions(slot) for slot in slots_of(node_id)):
                model.seen = None

    # What always holds

    @invariant()
    def what_the_database_says_is_as_the_model_has_it(self) -> None:
        if not hasattr(self, "backend"):
            return
        self.run(assert_counts_are_right(self.store))
        self.run(self.store.save_visits())
        known = self.run(peers(self.store))
        assert {node_id: found.away for node_id, found in known.items()} == {
            node_id: 0 if model.lease is not None else self.now - model.seen
            for node_id, model in self.models.items()
            if model.seen is not None
        }
        for node_id, found in known.items():
            there = [self.versions(slot) for slot in slots_of(node_id)]
            assert found.backups == len([versions for versions in there if versions])
            assert found.bytes == sum(sum(versions.values()) for versions in there)


@pytest.mark.timeout(7200)  # for --long
def test_retention_deletes_what_is_due_and_nothing_else(request: pytest.FixtureRequest) -> None:
    long = request.config.getoption("--long", default=False)
    run_state_machine_as_test(
        RetentionMachine,
        settings=settings(
            max_examples=1000 if long else 18,
            stateful_step_count=80 if long else 30,
            deadline=None,
            # To make a failing history short takes minutes: that is for --long too.
            phases=list(Phase) if long else [Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


# From schema 3 to 4


def schema_3(path: Path) -> dict[Slot, bytes]:
    """A database as the third release made it, 500 seconds old; what it gives back."""
    content = schema_2(path)
    with edited(path) as database:
        database.executescript(migrations()[2][1])
        database.execute("PRAGMA user_version = 3")
        database.execute("UPDATE meta SET seen = 500")
        database.execute("UPDATE peer SET established = 1, forgone = 1 WHERE node_id = ?", (BOB,))
        database.execute("DELETE FROM channel")
        for slot, state, closed in (
            (ALICES_CHANNEL, CLOSED, 100),
            (ALICES_OTHER_CHANNEL, LATE, None),
            (Slot(BOB, BackupKind.CHANNEL_BACKUP, ALICES_CHANNEL.channel_id), CLOSED, 499),
        ):
            database.execute(
                "INSERT INTO channel VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (slot.node_id, slot.channel_id, state.commitments, state.revocations,
                 state.last_secret, state.whole, state.shutdown, state.closing,
                 channel_digest(slot, state), closed, closed and START),
            )  # fmt: skip
        database.execute(
            "INSERT INTO alarm (kind, text, raised_at, last_at) VALUES ('behind', 'old', 1, 2)"
        )
    return content


def everything(path: Path, *, like: Path | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """What each table of a database holds, in the columns that another one has."""
    content = {}
    with edited(like or path) as database:
        tables = database.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        ).fetchall()
        columns = {
            table: ", ".join(row[1] for row in database.execute(f"PRAGMA table_info({table})"))
            for (table,) in tables
        }
    with edited(path) as database:
        for table, names in columns.items():
            content[table] = database.execute(
                f"SELECT {names} FROM {table} ORDER BY 1, 2, 3"  # noqa: S608 - read above
            ).fetchall()
    return content


async def test_a_filled_database_of_schema_3_is_upgraded(
    backend: SqliteBackend, tmp_path: Path
) -> None:
    content = schema_3(backend.path)
    old = tmp_path / "old.db"
    shutil.copy(backend.path, old)
    before = everything(old)
    store = await backend.open()
    assert everything(backend.path, like=old) == before
    found = await peers(store)
    assert {node_id: peer.away for node_id, peer in found.items()} == {ALICE: 0, BOB: 0}
    assert {(peer.address, peer.features, peer.rule) for peer in found.values()} == {("", b"", "")}
    assert [found[node_id].established for node_id in (ALICE, BOB)] == [False, True]
    assert [found[node_id].forgone for node_id in (ALICE, BOB)] == [False, True]
    assert found[ALICE].last_seen_at == START - 10
    assert await store.reader.rules() == {}
    assert await refusals(store) == {}
    await assert_counts_are_right(store)
    for slot, blob in content.items():
        lease = await store.open_lease(slot.node_id, Recorder())
        assert await blob_of(lease, slot) == blob
        lease.close()
    await store.close()
    assert verify(backend.path).sound
    assert len(copies_in(tmp_path)) == 1

    fresh = SqliteBackend(tmp_path / "fresh")
    fresh.path.parent.mkdir()
    await (await fresh.open()).close()
    assert schema(backend.path) == schema(fresh.path)


async def test_an_upgrade_makes_nothing_due_at_once(backend: SqliteBackend) -> None:
    schema_3(backend.path)
    store = await backend.open()
    retention = Retention(after_close=100, inactive=200)
    assert await prune(store, retention) == []
    backend.clock.advance(99)
    assert await prune(store, retention) == []
    backend.clock.advance(1)
    # Of ALICE's closed channel one version is pinned.
    due = by_slot(await prune(store, retention))
    assert [(each.slot, each.versions) for each in due] == [
        (ALICES_CHANNEL, 1),
        (Slot(BOB, BackupKind.CHANNEL_BACKUP, ALICES_CHANNEL.channel_id), 1),
    ]
    backend.clock.advance(99)
    assert await prune(store, retention) == []
    backend.clock.advance(1)
    # ALICE has channels.
    assert [each.slot for each in await prune(store, retention)] == [slots_of(BOB)[1]]
    assert set(await peers(store)) == {ALICE}
    await assert_counts_are_right(store)


# Lists


@pytest.mark.parametrize(
    ("order", "numbers"),
    [
        ("node_id", [1, 2, 3, 4, 5]),
        ("first_seen", [3, 1, 5, 2, 4]),
        ("last_seen", [3, 5, 2, 4, 1]),
        ("backups", [2, 4, 1, 3, 5]),
        ("bytes", [1, 4, 2, 3, 5]),
    ],
)
async def test_peers_are_listed_in_each_order_and_no_more_than_asked_for(
    backend: SqliteBackend,
    store: SqliteStore,
    monkeypatch: pytest.MonkeyPatch,
    order: str,
    numbers: list[int],
) -> None:
    monkeypatch.setattr(reader_module, "PAGE", 2)
    for number, size in ((3, 30), (1, 500), (5, 20), (2, 20), (4, 100)):
        backend.clock.advance(10)
        await push(store, bytes(size), slot=backup_of(peer(number)))
    await push(store, b"second", slot=slots_of(peer(4))[1])
    await push(store, bytes(21), slot=slots_of(peer(2))[1])
    backend.clock.advance(10)
    await push(store, slot=backup_of(peer(1)))
    await store.save_visits()
    async with await SqliteReader.open(store.path) as reader:
        for limit in (None, *range(7)):
            found = [each.node_id async for each in reader.peers(order=order, limit=limit)]
            assert found == [peer(number) for number in numbers][:limit], limit
        assert [each.node_id async for each in reader.peers(peer(5), order=order)] == [peer(5)]
        assert [each async for each in reader.peers(NOBODY, order=order)] == []


def test_every_order_is_tested() -> None:
    assert set(PEER_ORDERS) == {"node_id", "first_seen", "last_seen", "backups", "bytes"}
    assert set(VERSION_ORDERS) == {"node_id", "size", "stored_at", "revision"}


@pytest.mark.parametrize("current_only", [True, False])
@pytest.mark.parametrize("node_id", [None, ALICE])
@pytest.mark.parametrize("order", VERSION_ORDERS)
async def test_versions_are_listed_in_each_order_and_no_more_than_asked_for(
    backend: SqliteBackend,
    store: SqliteStore,
    monkeypatch: pytest.MonkeyPatch,
    order: str,
    node_id: NodeId | None,
    current_only: bool,
) -> None:
    assert PAGE > 3
    monkeypatch.setattr(reader_module, "PAGE", 3)
    for size, slot in ((50, ALICES), (9, BOBS), (50, ALICES_NODE), (70, ALICES), (60, BOBS)):
        backend.clock.now -= 10
        await push(store, bytes(size), slot=slot)
    keys: dict[str, Callable[[Any], Any]] = {
        "node_id": lambda v: (v.revision.slot.node_id, v.revision.slot.kind, v.row_id),
        "size": lambda v: (-v.revision.size, v.row_id),
        "stored_at": lambda v: (v.revision.stored_at, v.row_id),
        "revision": lambda v: v.revision.revision,
    }
    all_versions = [version async for version in store.versions()]
    assert len(all_versions) == 5
    wanted = [
        version
        for version in sorted(all_versions, key=keys[order])
        if node_id in (None, version.revision.slot.node_id)
        and (version.current or not current_only)
    ]
    async with await SqliteReader.open(store.path) as reader:
        for limit in (None, *range(7)):
            found = reader.versions(node_id, current_only=current_only, order=order, limit=limit)
            assert [version async for version in found] == wanted[:limit], limit


async def test_channels_are_listed_by_peer(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [slot for slot in SLOTS if slot.channel_id]
    for slot in reversed(wanted):
        await push(store, b"channel", slot=slot)
    monkeypatch.setattr(reader_module, "PAGE", 3)
    assert [row.slot async for row in store.reader.channels(CLOSE)] == wanted
    assert [row.slot async for row in store.reader.channels(CLOSE, BOB)] == wanted[2:]
    assert [row async for row in store.reader.channels(CLOSE, NOBODY)] == []


@pytest.mark.parametrize("order", ["node_id", "bytes"])
async def test_a_list_that_is_left_in_the_middle_holds_nothing_up(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setattr(reader_module, "PAGE", 2)
    for number in range(5):
        await push(store, bytes(number), slot=backup_of(peer(number)))
    async with await SqliteReader.open(store.path) as reader:
        for _ in range(2):
            async with contextlib.aclosing(reader.peers(order=order)) as left:  # type: ignore[type-var]
                assert len((await anext(left)).node_id) == 33
            await push(store, b"meanwhile", slot=BOBS)
            assert len([each async for each in reader.peers(order=order)]) == 5


async def test_a_reader_of_several_connections_lists_in_each_order(store: SqliteStore) -> None:
    await push(store, b"backup")
    for order in PEER_ORDERS:
        assert [each.node_id async for each in store.reader.peers(order=order)] == [ALICE]
    for order in VERSION_ORDERS:
        found = [version async for version in store.reader.versions(order=order)]
        assert [version.revision.slot for version in found] == [ALICES]


@pytest.mark.parametrize(
    "orders", [("bytes", "bytes"), ("bytes", "last_seen"), ("node_id", "bytes")]
)
async def test_two_lists_are_read_beside_each_other(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, orders: tuple[str, str]
) -> None:
    monkeypatch.setattr(reader_module, "PAGE", 2)
    for number in range(5):
        await push(store, bytes(number), slot=backup_of(peer(number)))
    async with await SqliteReader.open(store.path) as reader:
        alone = [[each async for each in reader.peers(order=order)] for order in orders]
        first, second = (reader.peers(order=order) for order in orders)
        beside = [(await anext(first), await anext(second)) for _ in range(5)]
    assert [list(column) for column in zip(*beside, strict=True)] == alone


STRANGE = {
    "a row of no kind": "UPDATE backup SET kind = 9 WHERE node_id = x'{bob}'",
    "a peer without backups": "DELETE FROM backup WHERE node_id = x'{bob}'",
    "a backup without a peer": "DELETE FROM peer WHERE node_id = x'{bob}'",
    "a state that does not match": "UPDATE channel SET commitments = -1 WHERE node_id = x'{bob}'",
    "a hold on nothing": "INSERT INTO hold VALUES (x'{bob}', 1, x'', 999, 1, NULL)",
    "a rule about nobody": "INSERT INTO rule VALUES (x'00', 'deny', 0)",
    "an address of control characters": "UPDATE peer SET address = char(27) || '[2J'"
    " WHERE node_id = x'{bob}'",
    "features that have no names": "UPDATE peer SET features = randomblob(5000)"
    " WHERE node_id = x'{bob}'",
    "times of nobody's calendar": "UPDATE peer SET first_seen_at = 1 << 60, last_seen_at = -1 << 60"
    " WHERE node_id = x'{bob}'",
    "a time of storing of nobody's calendar": "UPDATE backup SET stored_at = 1 << 60"
    " WHERE node_id = x'{bob}'",
    "a time of closing of nobody's calendar": "UPDATE channel SET closed_at = 1 << 60"
    " WHERE node_id = x'{bob}'",
}


@pytest.mark.parametrize("sql", STRANGE.values(), ids=STRANGE)
async def test_a_strange_row_breaks_no_list(backend: SqliteBackend, sql: str) -> None:
    store = await backend.open()
    for slot in SLOTS:
        await push(store, b"backup", slot=slot)
    await store.close()
    with edited(backend.path) as database:
        assert database.execute(sql.format(bob=BOB.hex())).rowcount > 0
    async with await SqliteReader.open(backend.path) as reader:
        for order in PEER_ORDERS:
            known = [
                peer_document(each, Live(None, {})) async for each in reader.peers(order=order)
            ]
            assert ALICE.hex() in {document["node_id"] for document in known}
        for version_order in VERSION_ORDERS:
            documents = [
                version_document(version) async for version in reader.versions(order=version_order)
            ]
            assert [d["node_id"] for d in documents].count(ALICE.hex()) == 4
        channels = [channel_document(row, CLOSE) async for row in reader.channels(CLOSE)]
        assert [document["node_id"] for document in channels].count(ALICE.hex()) == 2
        assert await reader.rules() is not None
        assert await reader.refusals(BOB) == []
        place: Place | None = Place()
        while place is not None:
            due, place = await reader.next_due(CLOSE, Moment(10**6, 10**6), place)
            assert due == []


@pytest.mark.parametrize("sql", STRANGE.values(), ids=STRANGE)
async def test_beside_a_strange_row_others_are_forgotten_and_pruned(
    backend: SqliteBackend, sql: str
) -> None:
    store = await backend.open()
    for slot in [ALICES, ALICES_NODE, *slots_of(BOB), backup_of(peer(7))]:
        await push(store, b"backup", slot=slot)
    with edited(backend.path) as database:
        assert database.execute(sql.format(bob=BOB.hex())).rowcount > 0
    await store.run(operations.forget(peer(7)))
    backend.clock.advance(DAY)
    gone = {each.slot for each in await prune(store, AWAY)}
    assert gone >= {ALICES, ALICES_NODE}
    assert ALICE not in await peers(store)


async def test_a_refusal_by_the_store_is_what_told_says(store: SqliteStore) -> None:
    store.quotas = Quotas(min_free_space=0, max_peers=1)
    await write(store, (ALICES, b"backup"))
    reason = await told(store, b"backup", BOBS)
    assert reason
    assert set(await peers(store)) == {ALICE}
