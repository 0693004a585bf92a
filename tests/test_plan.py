"""What the store keeps, holds, pins, refuses and tells: DESIGN, "The store"."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstore.errors import AddressError, SchemaError, StoreError
from peerstore.methods import methods
from peerstore.store import giving_way
from peerstore.store import migrate as migrate_module
from peerstore.store import reader as reader_module
from peerstore.store.base import Counts, Quotas, Version, backup_digest
from peerstore.store.history import DAY, HOUR
from peerstore.store.lease import SqliteLease
from peerstore.store.mark import mark_path, read_mark
from peerstore.store.migrate import APPLICATION_ID, migrations
from peerstore.store.operations import Transaction
from peerstore.store.reader import SqliteReader
from peerstore.store.room import FULL, NO_PLACE
from peerstore.store.snapshot import restore, snapshot, snapshot_when_due, verify
from peerstore.store.sqlite import MARK_SECONDS, SqliteStore
from peerstore.types import BackupKind, Network, NodeId, Slot
from tests.helpers import quick
from tests.store_contract import (
    ALICE,
    ALICES,
    BOB,
    BOBS,
    LARGEST,
    START,
    Recorder,
    backup_of,
    blob_of,
    holds,
    newest_revision,
    peer,
    slots_of,
    stored_versions,
    turns,
)
from tests.test_store import (
    NODE_ID,
    ROOMY,
    SqliteBackend,
    alarms,
    edited,
    flipped,
    transactions,
    write,
)

GOOD = b"\x0a" * 345
"""The size of CLN's backup with one channel; it has 57 bytes without (PROTOCOL.md, section 8)."""

DECADE = 10 * 365 * DAY


def empty(number: int) -> bytes:
    """What a CLN that lost its data pushes, each time encrypted anew."""
    return number.to_bytes(57, "big")


def arguments(slot: Slot) -> tuple[str, str, str]:
    """A slot as the control socket's methods take it."""
    return slot.node_id.hex(), slot.kind.label, slot.channel_id.hex()


async def connect(store: SqliteStore, slot: Slot = ALICES) -> tuple[SqliteLease, bytes | None]:
    """A new connection of a slot's peer, and what it gets back."""
    lease = await store.open_lease(slot.node_id, Recorder())
    return lease, await blob_of(lease, slot)


async def push(store: SqliteStore, *blobs: bytes, slot: Slot = ALICES) -> bytes | None:
    """Connect, get back, send these; returns what came back."""
    lease, back = await connect(store, slot)
    for sequence, blob in enumerate(blobs, 1):
        lease.put(sequence, slot, blob)
        await store.settle()
    lease.close()
    return back


async def told(store: SqliteStore, blob: bytes, slot: Slot = ALICES) -> str | None:
    """Connect and send; returns the reason of a refusal."""
    recorder = Recorder()
    lease = await store.open_lease(slot.node_id, recorder)
    lease.put(1, slot, blob)
    await store.settle()
    lease.close()
    ((_, reason),) = recorder.told
    return reason


async def sizes(store: SqliteStore, slot: Slot = ALICES) -> list[int]:
    """The sizes of a slot's versions, oldest first."""
    return [version.revision.size for version in await stored_versions(store, slot)]


async def held(store: SqliteStore, slot: Slot = ALICES) -> Version | None:
    """The version that is held."""
    found = [version for version in await stored_versions(store, slot) if version.held]
    return found[0] if found else None


async def pinned(store: SqliteStore, slot: Slot = ALICES) -> list[tuple[int, str]]:
    """The sizes of what is pinned, and who pinned it."""
    return [
        (version.revision.size, version.pinned)
        for version in await stored_versions(store, slot)
        if version.pinned
    ]


def recount(path: Path) -> Counts:
    """How much is stored, counted."""
    with edited(path) as database:
        return Counts(
            *database.execute(
                "SELECT count(DISTINCT node_id), count(DISTINCT hex(node_id) || kind ||"
                " hex(channel_id)), coalesce(sum(size), 0), count(*) FROM backup"
            ).fetchone()
        )


async def assert_counts_are_right(store: SqliteStore) -> None:
    """What the store counts in memory and in `meta` is what is there."""
    counted = recount(store.path)
    assert await store.counts() == counted
    assert (await store.reader.meta()).counts == counted
    with edited(store.path) as database:
        assert database.execute("SELECT count(*) FROM peer").fetchone() == (counted.peers,)
        dangling = "SELECT count(*) FROM hold WHERE backup_id NOT IN (SELECT id FROM backup)"
        assert database.execute(dangling).fetchone() == (0,)
        # One version of a slot is current: the newest.
        rows = database.execute(
            "SELECT id = max(id) OVER (PARTITION BY node_id, kind, channel_id), replaced IS NULL"
            " FROM backup"
        ).fetchall()
        assert all(newest == current for newest, current in rows)


# Kept versions


async def test_a_connection_keeps_what_was_current_once(store: SqliteStore) -> None:
    await push(store, b"1", b"22", b"333")
    assert await sizes(store) == [3]
    await push(store, b"4444", b"55555", b"666666")
    assert await sizes(store) == [3, 6]
    await push(store, b"7777777")
    assert await sizes(store) == [3, 6, 7]
    versions = await stored_versions(store, ALICES)
    assert [version.current for version in versions] == [False, False, True]
    assert [version.revision.revision for version in versions] == [3, 6, 7]
    assert not any(version.pinned or version.held for version in versions)
    await assert_counts_are_right(store)


async def test_keeping_writes_one_row_more_for_a_connection_not_for_an_update(
    store: SqliteStore,
) -> None:
    await push(store, b"before")
    lease, _ = await connect(store)
    written: list[str] = []

    def trace(statement: str) -> None:
        if statement.startswith("UPDATE backup") or "INSERT INTO backup" in statement:
            written.append(statement)

    await store._writer.set_trace_callback(trace)
    statements = []
    for sequence in range(1, 21):
        lease.put(sequence, ALICES, b"%d" % sequence)
        await store.settle()
        statements.append(set(written))  # one that fires triggers is told of more than once
        written.clear()
    assert [sum("INSERT" in statement for statement in each) for each in statements] == [1] * 20
    assert [len(each) for each in statements] == [2, *[1] * 19]


async def test_the_same_blob_from_a_new_connection_keeps_nothing(store: SqliteStore) -> None:
    for _ in range(5):
        await push(store, b"same", b"same")
    assert await sizes(store) == [4]


async def test_what_was_lost_on_the_way_is_no_first_replacement(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, b"before")
    lease, _ = await connect(store)
    async with backend.fail_writes():
        lease.put(1, ALICES, b"lost")
        await store.settle()
    lease.put(2, ALICES, b"arrived")
    await store.settle()
    assert await sizes(store) == [6, 7]
    await assert_counts_are_right(store)


async def test_no_more_than_history_stay(backend: SqliteBackend, store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, history=3)
    for number in range(1, 20):
        backend.clock.advance(7 * HOUR)
        await push(store, bytes(number))
        assert len(await sizes(store)) == min(number, 4)
    await assert_counts_are_right(store)


# The mark of data loss


async def test_the_good_backup_of_a_cln_that_lost_its_data_is_what_it_gets_back(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    older = [b"\x01" * 57, b"\x02" * 345, b"\x03" * 385]
    for blob in (*older, GOOD):
        await push(store, blob)
        backend.clock.advance(DAY)
    for number in range(100):
        assert await push(store, empty(number)) == GOOD
        backend.clock.advance(20)
    assert await push(store) == GOOD
    assert await pinned(store) == [(345, "data loss")]
    version = await held(store)
    assert version is not None
    assert version.revision.size == 345
    # The older ones are there too, and the newest empty one is current.
    shas = [version.revision.sha256 for version in await stored_versions(store, ALICES)]
    assert hashlib.sha256(older[0]).digest() in shas
    assert shas[-1] == hashlib.sha256(empty(99)).digest()
    (alarm,) = await alarms(store)
    assert (alarm.kind, alarm.slot, alarm.count) == ("shrink", ALICES, 100)
    assert alarm.revision == version.revision.revision
    assert alarm.text.isprintable()
    assert ALICE.hex() in alarm.text
    assert alarm.raised_at == START + 4 * DAY
    assert alarm.last_at == START + 4 * DAY + 99 * 20
    await assert_counts_are_right(store)

    # A restart changes nothing.
    await store.close()
    store = await backend.open()
    assert await push(store) == GOOD
    assert len(await alarms(store)) == 1


async def test_a_good_backup_is_kept_also_when_all_are_padded_to_one_size(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    good = b"\x0a" * LARGEST
    await push(store, good)
    backend.clock.advance(HOUR)
    for number in range(100):
        await push(store, number.to_bytes(LARGEST, "big"))
        backend.clock.advance(30)
    backend.clock.advance(30 * DAY - HOUR)
    await push(store, b"\xff" * LARGEST)
    # No mark is to be seen, so the newest is given back; the operator finds the good one.
    assert await alarms(store) == []
    assert await pinned(store) == []
    first = (await stored_versions(store, ALICES))[0]
    assert (await store.reader.read(first.row_id, first.revision)).blob == good
    assert len(await sizes(store)) == 9
    await assert_counts_are_right(store)


@pytest.mark.parametrize(
    ("before", "after", "loss"),
    [(200, 99, True), (200, 100, False), (199, 0, False), (345, 172, True), (345, 173, False)],
)
async def test_the_mark_is_less_than_half_of_200_bytes_or_more(
    store: SqliteStore, before: int, after: int, loss: bool
) -> None:
    await push(store, bytes(before))
    await push(store, b"\x01" * after)
    assert len(await alarms(store)) == loss
    assert await pinned(store) == [(before, "data loss")] * loss
    assert await push(store) == (bytes(before) if loss else b"\x01" * after)


async def test_only_the_first_update_of_a_connection_bears_the_mark(store: SqliteStore) -> None:
    # A peer that had its data when it connected, and shrank by itself after.
    await push(store, GOOD)
    await push(store, b"\x0b" * 345, empty(1))
    assert await alarms(store) == []
    assert await push(store) == empty(1)


async def test_the_current_blob_sent_again_is_a_first_update(store: SqliteStore) -> None:
    # PROTOCOL.md, 8: CLN sends "the current blob again at every connect", and a smaller one in
    # mid-connection when a channel is forgotten.
    await push(store, GOOD)
    await push(store, GOOD, empty(1))
    assert await alarms(store) == []
    assert await push(store) == empty(1)


async def test_each_slot_has_its_own_mark(store: SqliteStore) -> None:
    first, second, *_ = slots_of(ALICE)
    for slot in (first, second):
        await push(store, GOOD, slot=slot)
    await push(store, empty(1), slot=first)
    assert await push(store, slot=second) == GOOD
    assert await pinned(store, second) == []
    await push(store, empty(2), slot=second)
    assert {alarm.slot for alarm in await alarms(store)} == {first, second}


async def test_a_hold_runs_out_by_the_time_that_the_daemon_sees(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    hold = ROOMY.hold_on_shrink
    await push(store, GOOD)
    await push(store, empty(0))
    # Sent again at each connect: that begins no new time.
    for number in range(1, 5):
        backend.clock.advance(hold // 5)
        assert await push(store, empty(number)) == GOOD
    # While no daemon runs no time is seen.
    await store.close()
    backend.clock.now += 10 * hold
    backend.clock.monotonic = 3.0
    store = await backend.open()
    backend.clock.advance(hold - 4 * (hold // 5) - 1)
    assert await push(store) == GOOD
    backend.clock.advance(1)
    assert await push(store) == empty(4)
    # The version stays pinned, the alarm stands.
    assert await pinned(store) == [(345, "data loss")]
    assert len(await alarms(store)) == 1


async def test_an_acknowledged_alarm_gives_the_newest_back(store: SqliteStore) -> None:
    await push(store, GOOD)
    await push(store, empty(0))
    (alarm,) = await alarms(store)
    await methods(store)["alarms.ack"](alarm.number)
    assert await alarms(store) == []
    assert await push(store) == empty(0)
    assert await pinned(store) == []
    assert await held(store) is None
    (acknowledged,) = await store.reader.alarms(acknowledged=True)
    assert acknowledged.number == alarm.number
    assert acknowledged.acknowledged_at == START
    with pytest.raises(StoreError):
        await methods(store)["alarms.ack"](alarm.number)
    with pytest.raises(StoreError):
        await methods(store)["alarms.ack"](99)


async def test_a_new_loss_after_the_acknowledgement_is_a_new_alarm(store: SqliteStore) -> None:
    for number in range(2):
        await push(store, bytes([number]) * 345)
        await push(store, empty(number))
        (alarm,) = await alarms(store)
        assert alarm.count == 1
        await methods(store)["alarms.ack"](alarm.number)
    assert len(await store.reader.alarms(acknowledged=True)) == 2


async def test_without_a_hold_the_newest_is_given_back_and_the_good_one_pinned(
    store: SqliteStore,
) -> None:
    store.quotas = replace(ROOMY, hold_on_shrink=0)
    await push(store, GOOD)
    assert await push(store, empty(0)) == GOOD
    assert await push(store, empty(1)) == empty(0)
    assert await held(store) is None
    assert await pinned(store) == [(345, "data loss")]
    assert [alarm.kind for alarm in await alarms(store)] == ["shrink"]


async def test_at_most_two_versions_are_pinned_by_themselves_the_oldest(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = replace(ROOMY, hold_on_shrink=1)
    for number in range(4):
        await push(store, bytes([number]) * (400 + number))
        await push(store, empty(number))
        backend.clock.advance(2)
    assert await pinned(store) == [(400, "data loss"), (401, "data loss")]
    # The one of the last loss is not pinned, and was held for its time all the same.
    await push(store, b"\x09" * 500)
    await push(store, empty(9))
    version = await held(store)
    assert version is not None
    assert version.revision.size == 500


async def test_new_updates_during_a_hold_are_stored(store: SqliteStore) -> None:
    await push(store, GOOD)
    await push(store, empty(0))
    for number in range(1, 6):
        assert await push(store, bytes([number]) * (300 + number)) == GOOD
        assert await holds(store, ALICES, bytes([number]) * (300 + number))


async def test_a_loss_is_held_also_after_a_damaged_version_was_passed_over(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, GOOD)
    backend.clock.advance(HOUR)
    await push(store, b"\x0b" * 400)
    damage(backend.path, await newest_revision(store, ALICES))
    assert await push(store, empty(0)) == GOOD
    # What it was given back is held; not the empty one that came for it.
    assert await push(store) == GOOD


# The operator's pins, holds and deletions


@pytest.mark.parametrize("connected", [True, False])
async def test_a_pinned_version_stays_until_it_is_unpinned(
    backend: SqliteBackend, store: SqliteStore, connected: bool
) -> None:
    store.quotas = replace(ROOMY, history=1)
    call = methods(store)
    await push(store, b"good")
    backend.clock.advance(HOUR)
    await push(store, b"a")
    await push(store, b"pinned")
    revision = await newest_revision(store, ALICES)
    lease = (await connect(store))[0] if connected else None
    await call["backups.pin"](*arguments(ALICES), revision)
    if lease is not None:
        lease.put(1, ALICES, b"bb")
        await store.settle()
    for number in range(3):
        await push(store, b"%d" % number * 3)
    assert await pinned(store) == [(6, "operator")]
    assert await sizes(store) == [4, 6, 3]
    await call["backups.unpin"](*arguments(ALICES), revision)
    await push(store, b"last of all")
    assert await pinned(store) == []
    assert await sizes(store) == [4, 11]
    await assert_counts_are_right(store)


@pytest.mark.parametrize("connected", [True, False])
async def test_a_held_version_is_given_back_until_it_is_released(
    backend: SqliteBackend, store: SqliteStore, connected: bool
) -> None:
    call = methods(store)
    await push(store, b"one")
    revision = await newest_revision(store, ALICES)
    await push(store, b"two")
    lease = (await connect(store))[0] if connected else None
    await call["backups.hold"](*arguments(ALICES), revision, None)
    if lease is not None:
        # What this connection gets back was fixed before.
        assert await blob_of(lease, ALICES) == b"two"
        lease.put(1, ALICES, b"two and a half")
        await store.settle()
    backend.clock.advance(DECADE)
    assert await push(store, b"three") == b"one"
    assert await push(store) == b"one"
    version = await store.reader.find(ALICES)
    assert version is not None
    assert version.held
    assert version.revision.revision == revision
    await call["backups.release"](*arguments(ALICES))
    assert await push(store) == b"three"
    with pytest.raises(StoreError):
        await call["backups.release"](*arguments(ALICES))


async def test_a_hold_for_a_time_ends_by_itself(backend: SqliteBackend, store: SqliteStore) -> None:
    await push(store, b"one")
    await push(store, b"two")
    await methods(store)["backups.hold"](*arguments(ALICES), 1, 7 * DAY)
    backend.clock.advance(7 * DAY - 1)
    assert await push(store) == b"one"
    backend.clock.advance(1)
    assert await push(store) == b"two"


async def test_a_hold_on_the_current_version_stays_on_it(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    # With one place for kept versions, which the one that stood before the burst has.
    store.quotas = replace(ROOMY, history=1)
    await push(store, b"stood long")
    backend.clock.advance(2 * HOUR)
    await push(store, b"held")
    revision = await newest_revision(store, ALICES)
    await methods(store)["backups.hold"](*arguments(ALICES), revision, None)
    for number in range(5):
        backend.clock.advance(60)
        assert await push(store, b"new %d" % number) == b"held"
    assert await push(store) == b"held"
    await assert_counts_are_right(store)


async def test_a_hold_on_a_current_version_that_was_there_before_stays_on_it(
    store: SqliteStore,
) -> None:
    for blob in (b"A", b"B", b"A"):
        await push(store, blob)
    revision = await newest_revision(store, ALICES)
    await methods(store)["backups.hold"](*arguments(ALICES), revision, None)
    await push(store, b"C")
    assert await push(store) == b"A"
    await assert_counts_are_right(store)


@pytest.mark.parametrize("current", [True, False])
async def test_the_operators_hold_outlasts_a_loss_of_data(
    backend: SqliteBackend, store: SqliteStore, current: bool
) -> None:
    await push(store, b"\x01" * 300)
    await push(store, GOOD)
    revision = await newest_revision(store, ALICES) if current else 1
    await methods(store)["backups.hold"](*arguments(ALICES), revision, None)
    expected = GOOD if current else b"\x01" * 300
    assert await push(store, empty(0)) == expected
    backend.clock.advance(10 * ROOMY.hold_on_shrink)
    assert await push(store) == expected
    (alarm,) = await alarms(store)
    await methods(store)["alarms.ack"](alarm.number)
    assert await push(store) == expected


async def test_the_operators_pin_outlasts_the_acknowledgement(store: SqliteStore) -> None:
    await push(store, GOOD)
    await methods(store)["backups.pin"](*arguments(ALICES), 1)
    await push(store, empty(0))
    (alarm,) = await alarms(store)
    await methods(store)["alarms.ack"](alarm.number)
    assert await pinned(store) == [(345, "operator")]


@pytest.mark.parametrize("connected", [True, False])
async def test_when_the_current_version_is_deleted_the_one_before_is_current(
    store: SqliteStore, connected: bool
) -> None:
    for blob in (b"one", b"two", b"three"):
        await push(store, blob)
    lease = (await connect(store))[0] if connected else None
    await methods(store)["backups.delete"](*arguments(ALICES), 3)
    assert await sizes(store) == [3, 3]
    assert await holds(store, ALICES, b"two")
    await assert_counts_are_right(store)
    if lease is not None:
        lease.put(1, ALICES, b"four")
        lease.put(2, slots_of(ALICE)[1], b"five")
        await store.settle()
        await assert_counts_are_right(store)
        assert await sizes(store) == [3, 3, 4]
    else:
        assert await push(store) == b"two"
    assert await alarms(store) == []


@pytest.mark.parametrize("connected", [True, False])
async def test_deleting_all_of_a_peer_forgets_it(store: SqliteStore, connected: bool) -> None:
    await push(store, b"one")
    await push(store, b"two")
    lease = (await connect(store))[0] if connected else None
    for revision in (1, 2):
        await methods(store)["backups.delete"](*arguments(ALICES), revision)
        await assert_counts_are_right(store)
    assert await store.counts() == Counts(0, 0, 0, versions=0)
    if lease is not None:
        lease.put(1, ALICES, b"three")
        await store.settle()
        await assert_counts_are_right(store)
        assert await store.counts() == Counts(1, 1, 5, versions=1)
    else:
        assert await push(store) is None


async def test_a_deletion_is_no_damage_to_who_is_connected(store: SqliteStore) -> None:
    await push(store, b"one")
    await push(store, b"two")
    lease = await store.open_lease(ALICE, Recorder())
    await methods(store)["backups.delete"](*arguments(ALICES), 2)
    assert await blob_of(lease, ALICES) == b"one"
    await methods(store)["backups.delete"](*arguments(ALICES), 1)
    assert await blob_of(lease, ALICES) is None
    assert await alarms(store) == []


async def test_a_loss_after_a_deletion_holds_what_there_is(store: SqliteStore) -> None:
    await push(store, GOOD)
    await push(store, b"\x0b" * 400)
    lease, back = await connect(store)
    assert back == b"\x0b" * 400
    await methods(store)["backups.delete"](*arguments(ALICES), 2)
    lease.put(1, ALICES, empty(0))
    await store.settle()
    assert await push(store) == GOOD
    await assert_counts_are_right(store)


async def test_a_deletion_while_an_older_connection_has_an_update_in_the_writer(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    lease, _ = await connect(store)
    lease.put(1, ALICES, b"one")
    await store.settle()
    deleting = asyncio.ensure_future(methods(store)["backups.delete"](*arguments(ALICES), 1))
    lease.put(2, ALICES, b"two and more")
    opening = asyncio.ensure_future(store.open_lease(ALICE, Recorder()))
    await asyncio.gather(deleting, opening)
    await store.settle()
    assert await push(store) == b"two and more"
    await assert_counts_are_right(store)


async def test_a_deletion_while_a_connection_is_being_opened(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push(store, b"one")
    await push(store, b"two")
    read = SqliteReader.holdings

    async def read_and_wait(reader: SqliteReader, *args: object, **soon: object) -> object:
        holdings = await read(reader, *args, **soon)  # type: ignore[arg-type]
        monkeypatch.setattr(SqliteReader, "holdings", read)
        await methods(store)["backups.delete"](*arguments(ALICES), 2)
        return holdings

    monkeypatch.setattr(SqliteReader, "holdings", read_and_wait)
    lease = await store.open_lease(ALICE, Recorder())
    lease.put(1, ALICES, b"three")
    await store.settle()
    await assert_counts_are_right(store)
    assert await sizes(store) == [3, 5]


@pytest.mark.parametrize("name", ["pin", "unpin", "hold", "delete"])
async def test_a_revision_that_is_not_there_is_an_error(store: SqliteStore, name: str) -> None:
    await push(store, b"one", slot=BOBS)
    extra = [None] if name == "hold" else []
    for slot in (ALICES, slots_of(BOB)[1]):
        with pytest.raises(StoreError) as caught:
            await methods(store)[f"backups.{name}"](*arguments(slot), 1, *extra)
        assert str(caught.value).isprintable()
        assert slot.node_id.hex() in str(caught.value)
    with pytest.raises(AddressError):
        await methods(store)[f"backups.{name}"](ALICE.hex(), "no kind", "", 1, *extra)
    with pytest.raises(AddressError):
        await methods(store)[f"backups.{name}"]("02", "peer_storage", "", 1, *extra)
    await assert_counts_are_right(store)


Operated = tuple[str, int, int]
_operated = st.tuples(
    st.sampled_from(
        ["push", "push", "push small", "put", "put", "put", "connect", "close", "pin", "unpin",
         "hold", "release", "delete", "delete", "ack"]
    ),
    st.integers(0, 3),
    st.integers(0, 8),
)  # fmt: skip


@quick
@given(history=st.integers(1, 3), steps=st.lists(_operated, max_size=25))
async def test_the_counts_are_right_after_whatever_is_done(
    tmp_path_factory: pytest.TempPathFactory, history: int, steps: Sequence[Operated]
) -> None:
    backend = SqliteBackend(
        tmp_path_factory.mktemp("counts"), replace(ROOMY, history=history, hold_on_shrink=100)
    )
    slots = [*slots_of(ALICE)[:2], *slots_of(BOB)[:2]]
    leases: dict[bytes, SqliteLease] = {}
    try:
        store = await backend.open()
        call = methods(store)
        for sequence, (action, which, number) in enumerate(steps, 1):
            slot = slots[which]
            versions = await stored_versions(store, slot)
            revision = versions[number % len(versions)].revision.revision if versions else 1
            backend.clock.advance(number * 20)
            with contextlib.suppress(StoreError, AddressError):
                match action:
                    case "push":
                        leases.pop(slot.node_id, None)
                        await push(store, bytes([number]) * 300, slot=slot)
                    case "push small":
                        leases.pop(slot.node_id, None)
                        await push(store, bytes([number]) * 10, slot=slot)
                    case "connect":
                        leases[slot.node_id] = await store.open_lease(slot.node_id, Recorder())
                    case "put":
                        if slot.node_id in leases:
                            leases[slot.node_id].put(sequence, slot, bytes(number * 40))
                    case "close":
                        if slot.node_id in leases:
                            leases.pop(slot.node_id).close()
                    case "hold":
                        await call["backups.hold"](*arguments(slot), revision, number or None)
                    case "release":
                        await call["backups.release"](*arguments(slot))
                    case "ack":
                        await call["alarms.ack"](number)
                    case _:
                        await call[f"backups.{action}"](*arguments(slot), revision)
            await store.settle()
            await assert_counts_are_right(store)
            for each in slots:
                found = await stored_versions(store, each)
                assert [v.current for v in found] == [False] * (len(found) - 1) + [True] * bool(
                    found
                )
        assert (await alarms(store)) == [a for a in await alarms(store) if a.kind == "shrink"]
    finally:
        await backend.dispose()


# Damage


def damage(path: Path, *revisions: int) -> None:
    """Flip a bit in the blobs of these revisions."""
    with edited(path) as database:
        for revision in revisions:
            ((blob,),) = database.execute(
                "SELECT blob FROM backup WHERE revision = ?", (revision,)
            ).fetchall()
            database.execute(
                "UPDATE backup SET blob = ? WHERE revision = ?", (flipped(blob), revision)
            )


async def all_operations(store: SqliteStore) -> None:
    """Return when what the store does of itself, such as raising an alarm, is done."""

    async def nothing(_tx: Transaction) -> set[NodeId]:
        return set()

    await store.run(nothing)


async def test_the_newest_sound_version_is_given_back_in_place_of_damaged_ones(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    for blob in (b"one", b"two", b"three", b"four"):
        await push(store, blob)
    damage(backend.path, 4)
    assert await push(store) == b"three"
    await all_operations(store)
    damage(backend.path, 2, 3)
    assert await push(store) == b"one"
    (alarm,) = await alarms(store)
    assert (alarm.kind, alarm.slot) == ("damaged", ALICES)
    assert alarm.count == 4
    # The same blob again heals the row where it is.
    revision = await newest_revision(store, ALICES)
    assert await told(store, b"four") is None
    assert await push(store) == b"four"
    assert await sizes(store) == [3, 3, 5, 4]
    assert await newest_revision(store, ALICES) > revision
    # Of itself an alarm does not go.
    assert len(await alarms(store)) == 1
    await methods(store)["alarms.ack"](alarm.number)
    assert await push(store) == b"four"
    assert await alarms(store) == []
    await assert_counts_are_right(store)


async def test_a_damaged_held_version_is_not_given_back(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, GOOD)
    await push(store, empty(0))
    damage(backend.path, 1)
    assert await push(store) == empty(0)
    assert {alarm.kind for alarm in await alarms(store)} == {"shrink", "damaged"}


async def database_of_all_pages(backend: SqliteBackend) -> dict[str, range]:
    """A closed database; where in the file the pages of its tables and indexes are."""
    store = await backend.open()
    large = (backup_of(peer(3)), b"\xa5" * LARGEST)
    await write(store, large, (ALICES, b"before"), (BOBS, b"of bob"), (ALICES, b"of alice"))
    await store.close()
    with edited(backend.path) as database:
        ((size,),) = database.execute("PRAGMA page_size").fetchall()
        roots = database.execute("SELECT name, rootpage FROM sqlite_schema WHERE rootpage")
        return {name: range((root - 1) * size, root * size) for name, root in roots}


async def test_verify_finds_nothing_in_a_sound_database(backend: SqliteBackend) -> None:
    await database_of_all_pages(backend)
    seen: list[tuple[int, int]] = []
    report = verify(backend.path, lambda done, total: seen.append((done, total)))
    assert report.sound
    assert report.checked == 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ("backup", b"of bob"),
        ("backup", bytes(BOB)),
        ("backup", bytes(ALICE)),
        ("backup_slot", bytes(BOB)),
        ("backup_kept", bytes(ALICE)),
    ],
    ids=["a blob", "a key", "a key of two", "an index", "another index"],
)
async def test_verify_finds_each_flipped_byte(
    backend: SqliteBackend, table: str, what: bytes
) -> None:
    pages = (await database_of_all_pages(backend))[table]
    data = bytearray(backend.path.read_bytes())
    found = data.rindex(what, pages.start, pages.stop)
    data[found + len(what) - 1] ^= 0x10
    backend.path.write_bytes(data)
    report = verify(backend.path)
    assert not report.sound
    if table == "backup":
        assert len(report.damaged) == 1
    else:
        assert report.problems
    assert all(problem.isprintable() for problem in report.problems)
    assert report.checked == 4
    # The daemon serves on, and hands nobody what is not his.
    store = await backend.open()
    for slot, sound in ((ALICES, b"of alice"), (BOBS, b"of bob")):
        assert await push(store, slot=slot) in (None, sound, b"before")
        assert await told(store, b"new of " + slot.node_id, slot) is None
        assert await push(store, slot=slot) == b"new of " + slot.node_id


async def test_verify_finds_a_flipped_byte_in_the_midst_of_a_large_blob(
    backend: SqliteBackend,
) -> None:
    await database_of_all_pages(backend)
    data = bytearray(backend.path.read_bytes())
    data[data.index(b"\xa5" * 10_000) + 5000] ^= 1
    backend.path.write_bytes(data)
    report = verify(backend.path)
    assert [revision.revision for revision in report.damaged] == [1]


async def test_verify_reads_on_behind_a_row_of_no_known_kind(backend: SqliteBackend) -> None:
    await database_of_all_pages(backend)
    with edited(backend.path) as database:
        database.execute("UPDATE backup SET kind = 7 WHERE revision = 1")
    damage(backend.path, 4)
    report = verify(backend.path)
    assert 4 in [revision.revision for revision in report.damaged]


async def test_verify_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        verify(tmp_path / "missing.db")
    other = tmp_path / "other.db"
    with edited(other) as database:
        database.execute("CREATE TABLE a (x)")
    with pytest.raises(SchemaError):
        verify(other)


# Quotas


async def test_a_full_store_refuses_strangers_and_serves_the_established(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = replace(ROOMY, max_bytes=1000, probation=100)
    carol = backup_of(peer(3))
    await push(store, b"\x01" * 300)
    await push(store, b"\x02" * 300)
    # A stranger's kept version goes first.
    recorder = Recorder()
    bob = await store.open_lease(BOB, recorder)
    bob.put(1, BOBS, b"\x03" * 500)
    await store.settle()
    assert recorder.told == [(1, None)]
    assert await sizes(store) == [300]
    # Who is here does not give way.
    alice = await store.open_lease(ALICE, Recorder())
    assert await told(store, b"\x04" * 300, carol) == FULL
    assert await push(store, slot=carol) is None
    # Nor can a stranger replace; what it has stays.
    bob.put(2, BOBS, b"\x05" * 900)
    await store.settle()
    assert recorder.told == [(1, None), (2, FULL)]
    assert await sizes(store, BOBS) == [500]
    backend.clock.advance(200)
    alice.close()
    assert await told(store, b"\x06" * 400) is None
    assert await push(store) == b"\x06" * 400
    assert await told(store, b"\x06" * 300, carol) == FULL
    await assert_counts_are_right(store)
    # What is the same is no growth.
    assert await told(store, b"\x03" * 500, BOBS) is None


async def test_who_stays_connected_becomes_established(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = replace(ROOMY, max_bytes=100, probation=100)
    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    lease.put(1, ALICES, bytes(90))
    await store.settle()
    lease.put(2, ALICES, bytes(120))
    await store.settle()
    assert recorder.lost() == 2
    backend.clock.advance(100)
    lease.put(3, ALICES, bytes(120))
    await store.settle()
    assert recorder.told[-1] == (3, None)
    # It stays so for ever.
    lease.close()
    await store.close()
    with edited(backend.path) as database:
        assert database.execute("SELECT established FROM peer").fetchall() == [(1,)]


async def test_an_established_peers_kept_versions_do_not_give_way(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = replace(ROOMY, max_bytes=1000, probation=100)
    await push(store, b"\x01" * 300)
    backend.clock.advance(100)
    await push(store, b"\x02" * 300)
    assert await told(store, b"\x03" * 500, BOBS) == FULL
    assert await sizes(store) == [300, 300]


async def test_pinned_and_held_versions_of_strangers_do_not_give_way(store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_bytes=1000)
    for blob in (b"\x01", b"\x02", b"\x03"):
        await push(store, blob * 300)
    call = methods(store)
    await call["backups.pin"](*arguments(ALICES), 1)
    await call["backups.hold"](*arguments(ALICES), 2, None)
    assert await told(store, b"\x03" * 500, BOBS) == FULL
    assert await sizes(store) == [300, 300, 300]


async def test_connected_strangers_do_not_keep_the_others_versions_from_giving_way(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(giving_way, "SPARE_ROWS", 2)
    store.quotas = replace(ROOMY, max_bytes=1000)
    for number in range(5):
        for fill in (1, 2):
            await push(store, bytes([fill]) * 100, slot=backup_of(peer(number)))
    leases = [await store.open_lease(peer(number), Recorder()) for number in range(4)]
    assert await told(store, bytes(50), backup_of(peer(9))) is None
    assert await sizes(store, backup_of(peer(4))) == [100]
    for lease in leases:
        lease.close()


async def test_history_is_shortened_before_a_peer_is_refused(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = replace(ROOMY, max_bytes_per_peer=1000)
    for number in range(12):
        backend.clock.advance(DAY)
        assert await told(store, bytes([number]) * 250) is None
        assert sum(await sizes(store)) <= 1000
    assert await push(store) == bytes([11]) * 250
    assert await sizes(store) == [250] * 4
    assert "1000 bytes" in (await told(store, bytes(1001)) or "")
    assert await push(store) == bytes([11]) * 250
    # Another peer is not concerned.
    assert await told(store, bytes(900), BOBS) is None
    await assert_counts_are_right(store)


async def test_history_is_shortened_also_for_a_version_that_grows(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = replace(ROOMY, max_bytes_per_peer=1000, probation=100)
    for number in range(3):
        backend.clock.advance(DAY)
        await push(store, bytes([number]) * 250)
    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    for sequence, size in enumerate((150, 400, 700), 1):
        lease.put(sequence, ALICES, bytes(size))
        await store.settle()
        assert recorder.told[-1] == (sequence, None), size
    assert await push(store) == bytes(700)
    await assert_counts_are_right(store)


async def test_the_number_of_peers_is_limited(backend: SqliteBackend, store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_peers=2)
    backend.clock.advance(1)
    for slot in (ALICES, BOBS):
        assert await told(store, b"1", slot) is None
    backend.clock.advance(store.quotas.probation)
    for slot in (ALICES, BOBS):
        assert await told(store, b"1", slot) is None
    assert await told(store, b"1", backup_of(peer(3))) == NO_PLACE
    for slot in (*slots_of(ALICE), *slots_of(BOB)):
        assert await told(store, b"2", slot) is None
    await methods(store)["backups.delete"](*arguments(slots_of(BOB)[0]), 2)
    assert await told(store, b"1", backup_of(peer(3))) == NO_PLACE
    assert (await store.counts()).peers == 2


async def test_peers_of_one_batch_are_counted_each(store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_peers=3)
    recorders = [Recorder() for _ in range(5)]
    leases = [await store.open_lease(peer(n), recorder) for n, recorder in enumerate(recorders)]
    for number, lease in enumerate(leases):
        for sequence, slot in enumerate(slots_of(peer(number)), 1):
            lease.put(sequence, slot, b"x")
    await store.settle()
    assert [recorder.told[-1][1] for recorder in recorders] == [
        *[None] * 3,
        *[NO_PLACE] * 2,
    ]
    assert await store.counts() == Counts(3, 12, 12, versions=12)
    await assert_counts_are_right(store)


async def test_the_number_of_channels_is_limited(store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_channels_per_peer=2)
    channels = [Slot(ALICE, BackupKind.CHANNEL_BACKUP, bytes([n]) * 32) for n in range(4)]
    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    # Together, and one after the other.
    for sequence, slot in enumerate((*channels[:3], ALICES), 1):
        lease.put(sequence, slot, b"x")
    await store.settle()
    # What was stored beside it is confirmed.
    assert recorder.told == [(4, None)]
    ((sequences, reason),) = recorder.refusals
    assert sequences == [3]
    assert "2 channels" in reason
    assert channels[2].channel_id.hex() in reason
    assert (await store.counts()).backups == 3
    assert "2 channels" in (await told(store, b"x", channels[3]) or "")
    assert await told(store, b"new", channels[0]) is None
    revision = await newest_revision(store, channels[1])
    await methods(store)["backups.delete"](*arguments(channels[1]), revision)
    assert await told(store, b"x", channels[3]) is None


async def test_without_free_space_nothing_is_written_and_all_is_given_back(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, b"kept")
    store.quotas = replace(ROOMY, min_free_space=1 << 60)
    assert await told(store, b"new") == "the disk is nearly full"
    assert await told(store, b"new", BOBS) == "the disk is nearly full"
    assert await push(store) == b"kept"
    assert await told(store, b"kept") is None
    # An operator can still do what is to be done.
    await methods(store)["backups.pin"](*arguments(ALICES), 1)
    store.quotas = ROOMY
    assert await told(store, b"new") is None
    assert await push(store) == b"new"
    await store.close()
    backend.quotas = replace(ROOMY, min_free_space=1 << 60)
    store = await backend.open()
    assert await push(store) == b"new"
    assert await told(store, b"newer") == "the disk is nearly full"


async def test_free_pages_in_the_file_count_as_free(store: SqliteStore) -> None:
    await push(store, b"\x01" * LARGEST * 10, slot=BOBS)
    await push(store, b"kept")
    await methods(store)["backups.delete"](*arguments(BOBS), 1)
    disk = os.statvfs(store.path.parent)
    # A little more than is free on the disk, whatever others write meanwhile.
    wanted = disk.f_bavail * disk.f_frsize + LARGEST * 5
    store.quotas = replace(ROOMY, min_free_space=wanted)
    free = await store._space_low()
    store.quotas = replace(ROOMY, min_free_space=wanted + (1 << 50))
    assert await store._space_low()
    assert not free


async def test_who_is_refused_harms_nobody_in_the_same_transaction(store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_bytes_per_peer=100)
    recorders = {ALICE: Recorder(), BOB: Recorder()}
    leases = {id_: await store.open_lease(id_, recorder) for id_, recorder in recorders.items()}
    committed = await transactions(store)
    leases[ALICE].put(1, ALICES, bytes(101))
    leases[ALICE].put(2, slots_of(ALICE)[1], b"taken")
    leases[BOB].put(1, BOBS, b"taken")
    await store.settle()
    assert len(committed) == 1
    assert recorders[BOB].told == [(1, None)]
    assert recorders[ALICE].told == [(2, None)]
    assert recorders[ALICE].refusals == [([1], "100 bytes are kept for a peer")]
    assert await push(store, slot=slots_of(ALICE)[1]) == b"taken"
    await assert_counts_are_right(store)


# Clocks


@pytest.mark.parametrize("jump", [DECADE, -DECADE])
async def test_a_clock_that_jumps_changes_nothing_that_is_kept(
    backend: SqliteBackend, store: SqliteStore, jump: int
) -> None:
    other = SqliteBackend(backend.path.parent / "other")
    other.path.parent.mkdir()
    calm = await other.open()
    try:
        for number in range(30):
            size = 57 if number == 20 else 200 + number
            for each in (store, calm):
                await push(each, bytes([number]) * size)
            for place in (backend, other):
                place.clock.advance(number * HOUR)
            if number % 3 == 0:
                backend.clock.now += jump if number % 2 else -jump
            assert await sizes(store) == await sizes(calm)
            assert await pinned(store) == await pinned(calm)
            assert await push(store) == await push(calm)
            if number % 7 == 0:
                await store.close()
                store = await backend.open()
                await calm.close()
                calm = await other.open()
        await assert_counts_are_right(store)
    finally:
        await other.dispose()


@pytest.mark.parametrize("jump", [DECADE, -DECADE])
async def test_a_hold_does_not_end_by_the_wall_clock(
    backend: SqliteBackend, store: SqliteStore, jump: int
) -> None:
    await push(store, GOOD)
    await push(store, empty(0))
    backend.clock.now += jump
    assert await push(store) == GOOD
    backend.clock.monotonic += ROOMY.hold_on_shrink
    assert await push(store) == empty(0)


async def test_the_time_that_was_seen_goes_on_after_a_restart(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    assert store.seen == 0
    await push(store, b"one")
    backend.clock.advance(500)
    assert store.seen == 500
    await store.close()
    # The machine was started anew: its monotonic clock is, too.
    backend.clock.monotonic = 1.0
    backend.clock.now -= DECADE
    store = await backend.open()
    assert store.seen == 500
    backend.clock.monotonic = 61.0
    assert store.seen == 560
    await push(store, b"two")
    assert (await store.reader.meta()).moment.seen == 560


# The commit mark


async def marked(backend: SqliteBackend, store: SqliteStore, revision: int) -> None:
    """Return when the mark says so."""
    while True:
        mark = read_mark(mark_path(backend.path))
        if mark is not None and mark.revision == revision:
            return
        await turns(store, 1)


async def test_the_mark_follows_the_commits(backend: SqliteBackend, store: SqliteStore) -> None:
    epoch = (await store.reader.meta()).epoch
    await push(store, b"one")
    await marked(backend, store, 1)
    mark = read_mark(mark_path(backend.path))
    assert mark is not None
    assert mark.epoch == epoch
    # Soon after it comes later, by not more than a second.
    await push(store, b"two")
    await turns(store)
    timer = store._mark_timer
    assert timer is not None
    assert timer.when() - asyncio.get_running_loop().time() <= MARK_SECONDS
    await store.close()
    mark = read_mark(mark_path(backend.path))
    assert mark is not None
    assert mark.revision == 2


async def test_an_old_copy_put_back_is_told_and_no_revision_is_used_again(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, b"one")
    await store.close()
    old = backend.path.read_bytes()
    store = await backend.open()
    for blob in (b"two", b"three"):
        await push(store, blob)
    await store.close()
    backend.path.write_bytes(old)

    for _ in range(2):  # it stands until it is acknowledged, and is not raised again
        store = await backend.open()
        (alarm,) = await alarms(store)
        assert (alarm.kind, alarm.count, alarm.slot) == ("behind", 1, None)
        assert "revision 1" in alarm.text
        assert "3" in alarm.text
        assert await push(store) == b"one"
        await store.close()
    store = await backend.open()
    await push(store, b"four")
    assert await newest_revision(store, ALICES) == 4
    await methods(store)["alarms.ack"](alarm.number)
    await store.close()
    store = await backend.open()
    assert await alarms(store) == []


def copied(backend: SqliteBackend, directory: Path) -> SqliteBackend:
    """What a killed daemon leaves."""
    directory.mkdir()
    copy = SqliteBackend(directory, backend.quotas)
    copy.clock.now, copy.clock.monotonic = backend.clock.now, backend.clock.monotonic
    for path in backend.path.parent.glob(f"{backend.path.stem}.*"):
        if not path.name.endswith("-shm"):
            shutil.copy(path, directory / path.name)
    return copy


async def test_a_wal_that_was_cut_is_told(
    backend: SqliteBackend, store: SqliteStore, tmp_path: Path
) -> None:
    wal = backend.path.with_name(f"{backend.path.name}-wal")
    await push(store, b"one")
    length = wal.stat().st_size
    await push(store, b"two")
    backend.clock.monotonic += MARK_SECONDS
    await push(store, b"three")
    await store.close()
    # The mark of the end, the files of the midst.
    await marked(backend, store := await backend.open(), 3)
    await store.close()
    mark = mark_path(backend.path).read_bytes()

    again = SqliteBackend(tmp_path / "again")
    again.path.parent.mkdir()
    store = await again.open()
    await push(store, b"one")
    length = again.path.with_name(wal.name).stat().st_size
    for blob in (b"two", b"three"):
        await push(store, blob)
    epoch = (await store.reader.meta()).epoch
    cut = copied(again, tmp_path / "cut")
    await again.dispose()
    os.truncate(cut.path.with_name(wal.name), length + 100)
    document = json.loads(mark) | {"epoch": epoch.hex()}
    mark_path(cut.path).write_text(json.dumps(document))
    try:
        store = await cut.open()
        assert [alarm.kind for alarm in await alarms(store)] == ["behind"]
        assert await push(store) == b"one"
        await push(store, b"four")
        assert await newest_revision(store, ALICES) == 4
        await assert_counts_are_right(store)
    finally:
        await cut.dispose()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"epoch": 5, "revision": 9}', b"\xff\xfe", b'"x"']
)
async def test_an_unreadable_mark_is_ignored(
    backend: SqliteBackend, store: SqliteStore, content: bytes
) -> None:
    await push(store, b"one")
    await store.close()
    mark_path(backend.path).write_bytes(content)
    store = await backend.open()
    assert await alarms(store) == []
    await push(store, b"two")
    await store.close()
    mark = read_mark(mark_path(backend.path))
    assert mark is not None
    assert mark.revision == 2


async def test_a_mark_that_cannot_be_written_hinders_nothing(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    mark_path(backend.path).with_name("peerstore.mark.new").mkdir()
    await push(store, b"one")
    await push(store, b"two")
    await store.close()
    store = await backend.open()
    assert await push(store) == b"two"
    assert await alarms(store) == []


async def test_a_mark_of_another_database_raises_an_alarm(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, b"one")
    await store.close()
    mark_path(backend.path).write_text(json.dumps({"epoch": "00" * 16, "revision": 99}))
    store = await backend.open()
    assert await push(store, b"two") == b"one"
    assert [alarm.kind for alarm in await alarms(store)] == ["behind"]
    assert [v.revision.revision for v in await stored_versions(store, ALICES)][-1] > 99


# Snapshots


def named(directory: Path, pattern: str) -> list[str]:
    """The names of files."""
    return sorted(path.name for path in directory.glob(pattern))


async def test_a_snapshot_beside_a_busy_writer_is_of_one_moment(
    store: SqliteStore, tmp_path: Path
) -> None:
    slots = slots_of(ALICE)
    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    for slot in slots:
        lease.put(1, slot, b"1" * 2000)
    await store.settle()
    busy = True

    async def write_on() -> None:
        number = 1
        while busy:
            number += 1
            for slot in slots:
                # Handed in together, they are in one transaction.
                lease.put(number, slot, b"%d" % number * 2000)
            await store.settle()

    writing = asyncio.create_task(write_on())
    copies = [tmp_path / f"copy {number}.db" for number in range(5)]
    try:
        for copy in copies:
            await turns(store, 5)
            await asyncio.to_thread(snapshot, store.path, copy)
    finally:
        busy = False
        await writing
    for copy in copies:
        assert verify(copy).sound
        with edited(copy) as database:
            shas = database.execute("SELECT DISTINCT sha256 FROM backup").fetchall()
        assert len(shas) == 1
        assert recount(copy).backups == 4
        async with await SqliteReader.open(copy) as reader:
            assert (await reader.meta()).counts == recount(copy)
    # One file each, and nothing half-made.
    assert named(tmp_path, "*copy*") == [copy.name for copy in copies]


async def test_a_snapshot_overwrites_nothing(store: SqliteStore, tmp_path: Path) -> None:
    await push(store, b"one")
    destination = tmp_path / "copy.db"
    destination.write_text("mine")
    with pytest.raises(StoreError, match="exists already"):
        snapshot(store.path, destination)
    assert destination.read_text() == "mine"
    with pytest.raises(StoreError) as caught:
        snapshot(store.path, tmp_path / "missing" / "copy.db")
    assert str(caught.value).isprintable()
    with pytest.raises(StoreError):
        snapshot(tmp_path / "missing.db", tmp_path / "copy 2.db")
    assert named(tmp_path, ".*") == []
    assert not (tmp_path / "copy 2.db").exists()


def made_at(path: Path | None, when: float) -> Path:
    """A snapshot has the time at which it was made."""
    assert path is not None
    os.utime(path, (when, when))
    return path


async def test_snapshots_are_made_when_due_and_the_newest_stay(
    store: SqliteStore, tmp_path: Path
) -> None:
    directory = tmp_path / "snapshots"

    def due(now: float) -> Path | None:
        return snapshot_when_due(store.path, directory, every=DAY, keep=3, now=now)

    made = []
    for day in range(5):
        await push(store, b"%d" % day)
        now = START + day * DAY
        made.append(made_at(due(now), now))
        assert due(now + DAY - 1) is None
        assert sorted(directory.iterdir()) == made[-3:]
    assert all(verify(path).sound for path in made[-3:])


async def test_a_clock_set_back_makes_one_snapshot_more(store: SqliteStore, tmp_path: Path) -> None:
    directory = tmp_path / "snapshots"

    def due(now: float) -> Path | None:
        return snapshot_when_due(store.path, directory, every=DAY, keep=3, now=now)

    for day in range(3):
        made_at(due(START + day * DAY), START + day * DAY)
    back = START - DECADE
    made_at(due(back), back)
    # "one more": not one each time that it is looked at.
    for minute in range(1, 5):
        assert due(back + minute * 60) is None


async def test_what_others_put_beside_the_snapshots_stays(
    store: SqliteStore, tmp_path: Path
) -> None:
    directory = tmp_path / "snapshots"
    directory.mkdir()
    mine = directory / f"{store.path.stem}-before-the-move.db"
    mine.write_text("mine")
    made_at(mine, START - DAY)
    for day in range(4):
        now = START + day * DAY
        made_at(snapshot_when_due(store.path, directory, every=DAY, keep=2, now=now), now)
    assert mine.exists()
    assert len(list(directory.iterdir())) == 3


# Restore


def put_back(backend: SqliteBackend, source: Path, *, now: int = START) -> Path | None:
    return restore(source, backend.path, node_id=NODE_ID, network=Network.REGTEST, now=now)


async def test_a_restore_begins_a_new_epoch_and_uses_no_revision_again(
    backend: SqliteBackend, store: SqliteStore, tmp_path: Path
) -> None:
    await push(store, b"one")
    copy = tmp_path / "copy.db"
    snapshot(store.path, copy)
    for blob in (b"two", b"three"):
        await push(store, blob)
    epoch = (await store.reader.meta()).epoch
    await store.close()
    kept = put_back(backend, copy)
    assert kept is not None
    assert verify(kept).checked == 3
    for _ in range(2):
        store = await backend.open()
        assert (await store.reader.meta()).epoch != epoch
        assert await alarms(store) == []
        assert await push(store) == b"one"
        await store.close()
    store = await backend.open()
    await push(store, b"four")
    assert await newest_revision(store, ALICES) == 4
    await assert_counts_are_right(store)


async def test_a_restore_into_an_empty_place(
    backend: SqliteBackend, store: SqliteStore, tmp_path: Path
) -> None:
    await push(store, b"one")
    copy = tmp_path / "copy.db"
    snapshot(store.path, copy)
    await store.close()
    backend.path.unlink()
    mark_path(backend.path).unlink()
    assert put_back(backend, copy) is None
    store = await backend.open()
    assert await push(store) == b"one"
    assert await alarms(store) == []


async def test_a_restore_keeps_what_it_replaces_with_its_wal(
    backend: SqliteBackend, store: SqliteStore, tmp_path: Path
) -> None:
    await push(store, b"one")
    copy = tmp_path / "copy.db"
    snapshot(store.path, copy)
    await push(store, b"in the WAL")
    killed = copied(backend, tmp_path / "killed")
    assert killed.path.with_name(f"{killed.path.name}-wal").stat().st_size > 0
    try:
        kept = put_back(killed, copy)
        assert kept is not None
        async with await SqliteReader.open(kept) as reader:
            version = await reader.find(ALICES)
            assert version is not None
            backup = await reader.read(version.row_id, version.revision)
            assert backup.blob == b"in the WAL"
        store = await killed.open()
        assert await push(store) == b"one"
        await push(store, b"new")
        assert await newest_revision(store, ALICES) == 3
    finally:
        await killed.dispose()


def flip_in_file(path: Path, what: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(what)] ^= 1
    path.write_bytes(data)


def claim_newer(path: Path) -> None:
    with edited(path) as database:
        database.execute(f"PRAGMA user_version = {len(migrations()) + 1}")


def give_away(path: Path) -> None:
    with edited(path) as database:
        database.execute("UPDATE meta SET node_id = ?", (ALICE,))


def change_network(path: Path) -> None:
    with edited(path) as database:
        database.execute("UPDATE meta SET network = 'bitcoin'")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: flip_in_file(path, b"snapshot of one"),
        lambda path: flip_in_file(path, b"CREATE"),
        lambda path: os.truncate(path, 40_000),
        lambda path: path.write_text("no database"),
        lambda path: path.unlink(),
        claim_newer,
        give_away,
        change_network,
    ],
    ids=["blob", "schema", "cut", "no database", "missing", "newer", "foreign", "network"],
)
async def test_a_restore_of_what_is_not_right_changes_nothing(
    backend: SqliteBackend, store: SqliteStore, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    await push(store, b"snapshot of one")
    copy = tmp_path / "copy.db"
    snapshot(store.path, copy)
    await push(store, b"two")
    await store.close()
    spoil(copy)
    copy.touch() if copy.exists() else None

    def files() -> dict[str, bytes]:
        # To read a WAL database SQLite makes an empty -wal and a -shm beside it.
        return {
            path.name: path.read_bytes()
            for path in tmp_path.iterdir()
            if path != copy and not path.name.endswith("-shm") and path.stat().st_size
        }

    before = files()
    with pytest.raises(StoreError) as caught:
        put_back(backend, copy)
    assert str(caught.value).isprintable()
    assert files() == before
    store = await backend.open()
    assert await push(store) == b"two"
    assert await alarms(store) == []


# From schema 1 to 2


def schema_1(path: Path, rows: Sequence[tuple[Slot, int, bytes, int, int]]) -> None:
    """A database as the first release made it: (slot, revision, blob, stored_at, last_seen_at)."""
    with edited(path) as database:
        database.execute("PRAGMA page_size = 16384")
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(migrations()[0][1])
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute("PRAGMA user_version = 1")
        database.execute(
            "INSERT INTO meta VALUES (1, ?, 'regtest', ?, ?)", (NODE_ID, START, len(rows))
        )
        for slot, revision, blob, stored_at, seen_at in rows:
            sha256 = hashlib.sha256(blob).digest()
            digest = backup_digest(slot, revision, sha256)
            database.execute(
                "INSERT INTO backup (id, node_id, kind, channel_id, revision, size, sha256,"
                " digest, stored_at, last_seen_at, opened, blob)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
                (revision, slot.node_id, int(slot.kind), slot.channel_id, revision, len(blob),
                 sha256, digest, stored_at, seen_at, blob),
            )  # fmt: skip


OLD_ROWS = [
    (ALICES, 1, b"of alice", START - 50, START - 10),
    (slots_of(ALICE)[1], 2, b"of the node", START - 60, START - 20),
    (BOBS, 3, b"\x0b" * LARGEST, START - 40, START - 40),
]


def schema(path: Path) -> list[tuple[str, str, str]]:
    """What a database consists of."""
    with edited(path) as database:
        return database.execute(
            "SELECT type, name, sql FROM sqlite_schema ORDER BY type, name"
        ).fetchall()


async def test_a_database_of_schema_1_is_upgraded(backend: SqliteBackend, tmp_path: Path) -> None:
    schema_1(backend.path, OLD_ROWS)
    store = await backend.open()
    for slot, revision, blob, _, _ in OLD_ROWS:
        assert await newest_revision(store, slot) == revision
        assert await push(store, slot=slot) == blob
    assert await store.counts() == Counts(2, 3, 19 + LARGEST, versions=3)
    await assert_counts_are_right(store)
    assert await alarms(store) == []
    assert len((await store.reader.meta()).epoch) == 16
    with edited(backend.path) as database:
        peers = database.execute(
            "SELECT node_id, first_seen, first_seen_at, established FROM peer ORDER BY node_id"
        ).fetchall()
    assert peers == [(ALICE, 0, START - 60, 0), (BOB, 0, START - 40, 0)]
    await push(store, b"new")
    assert await newest_revision(store, ALICES) == 4
    await store.close()
    assert verify(backend.path).sound

    fresh = SqliteBackend(tmp_path / "fresh")
    fresh.path.parent.mkdir()
    await (await fresh.open()).close()
    assert schema(backend.path) == schema(fresh.path)


def copies_in(directory: Path) -> list[Path]:
    """What was kept from before upgrades."""
    return sorted(directory.glob("*.schema*"))


async def test_a_copy_from_before_an_upgrade_is_kept(
    backend: SqliteBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema_1(backend.path, OLD_ROWS)
    store = await backend.open()
    await store.close()
    (copy,) = copies_in(tmp_path)
    with edited(copy) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
        assert database.execute("SELECT count(*) FROM backup").fetchone() == (3,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    # Opened again nothing is upgraded, and nothing copied.
    await (await backend.open()).close()
    assert copies_in(tmp_path) == [copy]
    # Of more upgrades the newest two copies stay.
    found = migrations()
    newest = len(found)
    os.utime(copy, (START, START))
    for number in (1, 2):
        found = [*found, (len(found) + 1, f"CREATE TABLE extra{number} (x);")]
        for module in (migrate_module, reader_module):
            monkeypatch.setattr(module, "migrations", lambda found=found: found)
        backend.clock.advance(DAY)
        await (await backend.open()).close()
    names = sorted(path.name.partition(".schema")[2][0] for path in copies_in(tmp_path))
    assert names == [str(newest), str(newest + 1)]


async def test_the_copy_from_before_an_upgrade_can_be_put_back(
    backend: SqliteBackend, tmp_path: Path
) -> None:
    schema_1(backend.path, OLD_ROWS)
    store = await backend.open()
    await push(store, b"new")
    await store.close()
    (copy,) = copies_in(tmp_path)
    put_back(backend, copy)
    store = await backend.open()
    assert await push(store) == b"of alice"
    assert await alarms(store) == []
    await push(store, b"newer")
    assert await newest_revision(store, ALICES) == 5


async def test_a_reader_says_that_an_old_schema_needs_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    schema_1(path, OLD_ROWS)
    with pytest.raises(SchemaError, match="older schema"):
        await SqliteReader.open(path)


def test_the_defaults_are_those_of_the_design() -> None:
    quotas = Quotas()
    assert (quotas.history, quotas.hold_on_shrink, quotas.probation) == (8, 2 * DAY, DAY)
    assert (quotas.max_bytes, quotas.max_bytes_per_peer) == (10 << 30, 4 << 20)
    assert (quotas.max_peers, quotas.max_channels_per_peer) == (100_000, 100)
    assert quotas.min_free_space == 256 << 20
    assert sqlite3.sqlite_version_info >= (3, 35)  # RETURNING


# A connection and an operator at once, and what else the mark has to stand


@pytest.mark.parametrize("action", ["pin", "hold"])
async def test_what_an_operator_pins_or_holds_is_not_overwritten_by_its_own_connection(
    store: SqliteStore, action: str
) -> None:
    lease, _ = await connect(store)
    lease.put(1, ALICES, b"to be kept")
    await store.settle()
    seconds = {"seconds": None} if action == "hold" else {}
    await methods(store)[f"backups.{action}"](*arguments(ALICES), revision=1, **seconds)
    for sequence, blob in enumerate((b"and", b"on", b"it", b"goes"), 2):
        lease.put(sequence, ALICES, blob)
        await store.settle()
    versions = await stored_versions(store, ALICES)
    assert [(v.revision.size, v.current) for v in versions] == [(10, False), (4, True)]
    assert (bool(versions[0].pinned), versions[0].held) == (action == "pin", action == "hold")
    lease.close()
    assert await push(store) == (b"to be kept" if action == "hold" else b"goes")
    await assert_counts_are_right(store)


async def test_a_first_update_that_was_refused_bears_its_mark_when_it_is_taken(
    store: SqliteStore,
) -> None:
    await push(store, GOOD)
    lease, back = await connect(store)
    assert back == GOOD
    roomy, store.quotas = store.quotas, replace(store.quotas, min_free_space=1 << 60)
    lease.put(1, ALICES, empty(1))
    await store.settle()
    assert await alarms(store) == []
    store.quotas = roomy
    lease.put(2, ALICES, empty(2))
    await store.settle()
    lease.close()
    assert [alarm.kind for alarm in await alarms(store)] == ["shrink"]
    assert await push(store) == GOOD


@pytest.mark.parametrize(
    ("blobs", "marked"), [((empty(1), GOOD * 2), True), ((GOOD, empty(1)), False)]
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_the_mark_is_that_of_the_first_update_however_many_are_written_at_once(
    backend: SqliteBackend, store: SqliteStore, blobs: Sequence[bytes], marked: bool, at_once: bool
) -> None:
    await push(store, GOOD)
    lease, _ = await connect(store)
    async with backend.hold_writes() if at_once else contextlib.nullcontext():
        for sequence, blob in enumerate(blobs, 1):
            lease.put(sequence, ALICES, blob)
            if at_once:
                await turns(store)
            else:
                await store.settle()
    await store.settle()
    lease.close()
    assert bool(await alarms(store)) is marked
    assert bool(await held(store)) is marked


@pytest.mark.parametrize("action", ["ack", "release"])
async def test_what_an_operator_ends_is_not_begun_anew_by_who_is_connected(
    store: SqliteStore, action: str
) -> None:
    await push(store, GOOD)
    await push(store, empty(1))
    lease, back = await connect(store)
    assert back == GOOD
    if action == "ack":
        await methods(store)["alarms.ack"](1)
    else:
        await methods(store)["backups.release"](*arguments(ALICES))
    lease.put(1, ALICES, empty(2))
    await store.settle()
    lease.close()
    assert await held(store) is None
    assert await push(store) == empty(2)


async def test_a_hold_that_ran_out_under_a_connection_hides_no_loss(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    newest = b"\x0c" * 900
    await push(store, GOOD)
    await push(store, newest)
    await methods(store)["backups.hold"](*arguments(ALICES), revision=1, seconds=HOUR)
    lease, back = await connect(store)
    assert back == GOOD
    backend.clock.advance(2 * HOUR)
    lease.put(1, ALICES, empty(1))
    await store.settle()
    lease.close()
    # Of what is good the newest is kept and given back.
    assert await push(store) == newest
    assert await pinned(store) == [(900, "data loss")]


async def test_behind_a_damaged_held_version_comes_an_older_one(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await push(store, b"\x0d" * 300)
    backend.clock.advance(HOUR)
    await push(store, GOOD)
    await push(store, empty(1))
    await all_operations(store)
    damage(backend.path, 2)
    assert await push(store) == b"\x0d" * 300
