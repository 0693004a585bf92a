"""A full store under a crowd of strangers: who gives way, and who never does.

The order itself is tested in test_room.py; here it is that of a store, with real rows, real
connections and a clock that the test moves.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from peerstore.errors import StoreError
from peerstore.store import crowd, giving_way, operations, statements
from peerstore.store.base import Quotas
from peerstore.store.history import DAY
from peerstore.store.lease import SqliteLease
from peerstore.store.migrate import migrations
from peerstore.store.operations import Operation
from peerstore.store.room import FULL, NO_PLACE, TOO_MANY
from peerstore.store.sqlite import SqliteStore
from peerstore.types import NodeId, Slot
from tests.store_contract import (
    ALICE,
    ALICES,
    BOB,
    BOBS,
    LATE,
    Recorder,
    backup_of,
    blob_of,
    peer,
    slots_of,
    stored_versions,
    turns,
)
from tests.test_operator_store import refusals, rows_of, schema_3
from tests.test_plan import assert_counts_are_right
from tests.test_store import ROOMY, SqliteBackend, edited, transactions

CAROL, DAVE, ERIN = peer(3), peer(4), peer(5)
HERE, THERE, ELSEWHERE = "203.0.113.7:9735", "198.51.100.7:9735", "[2001:db8:1::7]:9735"


async def come(
    store: SqliteStore, node_id: NodeId, blob: bytes = b"backup", address: str = HERE
) -> tuple[SqliteLease, Recorder]:
    """Connect from an address and send a backup."""
    recorder = Recorder()
    lease = await store.open_lease(node_id, recorder)
    lease.meet(address, b"")
    lease.put(1, backup_of(node_id), blob)
    await store.settle()
    return lease, recorder


async def visit(
    store: SqliteStore, node_id: NodeId, blob: bytes = b"backup", address: str = HERE
) -> str | None:
    """The same, and leave; the reason of a refusal."""
    lease, recorder = await come(store, node_id, blob, address)
    lease.close()
    ((_, reason),) = recorder.told
    return reason


async def establish(backend: SqliteBackend, store: SqliteStore, *node_ids: NodeId) -> None:
    """Store and come back after probation."""
    for node_id in node_ids:
        assert await visit(store, node_id) is None
    backend.clock.advance(store.quotas.probation)
    for node_id in node_ids:
        assert await visit(store, node_id) is None
    await store.save_visits()


def there(store: SqliteStore) -> set[NodeId]:
    """Who has something stored."""
    with edited(store.path) as database:
        return {NodeId(row[0]) for row in database.execute("SELECT DISTINCT node_id FROM backup")}


def assert_crowds_are_right(path: Path) -> None:
    """What the triggers keep up is what a recount finds."""
    with edited(path) as database:
        assert (
            database.execute(
                "SELECT address_group, strangers, newest FROM crowd ORDER BY address_group"
            ).fetchall()
            == database.execute(
                "SELECT address_group, count(*), max(first_seen) FROM peer WHERE established = 0"
                " GROUP BY address_group ORDER BY address_group"
            ).fetchall()
        )
        assert database.execute("SELECT node_id, spare FROM peer ORDER BY 1").fetchall() == (
            database.execute(
                "SELECT node_id, (SELECT count(*) FROM backup AS b WHERE b.node_id = p.node_id"
                " AND b.replaced IS NOT NULL AND b.pins = 0) FROM peer AS p ORDER BY 1"
            ).fetchall()
        )


async def assert_all_is_right(store: SqliteStore) -> None:
    await assert_counts_are_right(store)
    assert_crowds_are_right(store.path)


def places(number: int, **quotas: Any) -> Quotas:
    return replace(ROOMY, max_peers=number, **quotas)


# Strangers


async def test_the_newest_of_the_most_crowded_group_gives_way_to_a_new_peer(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = places(6)
    for number, address in enumerate((THERE, HERE, HERE, HERE, THERE, ELSEWHERE), 10):
        await visit(store, peer(number), address=address)
        backend.clock.advance(1)
    gone: list[NodeId] = []
    for number in range(20, 24):
        before = there(store)
        assert await visit(store, peer(number), address=f"192.0.{number}.1:9735") is None
        gone += before - there(store)
        backend.clock.advance(1)
    # Of groups that are equally crowded that one whose newest is the newest of all.
    assert gone == [peer(13), peer(14), peer(12), peer(22)]
    await assert_all_is_right(store)


async def test_an_address_group_is_that_of_the_last_visit(store: SqliteStore) -> None:
    def group(node_id: NodeId) -> str:
        with edited(store.path) as database:
            sql = "SELECT address_group FROM peer WHERE node_id = ?"
            return str(database.execute(sql, (node_id,)).fetchone()[0])

    await visit(store, ALICE, address=HERE)
    assert group(ALICE) == "203.0.113.0/24"  # from the first row on
    await visit(store, ALICE, address=ELSEWHERE)
    await store.save_visits()
    assert group(ALICE) == "2001:db8:1::/48"
    lease = await store.open_lease(ALICE, Recorder())  # of which nothing is known yet
    lease.close()
    await store.save_visits()
    assert group(ALICE) == "2001:db8:1::/48"
    await visit(store, ALICE, address="unknown")
    await store.save_visits()
    assert group(ALICE) == ""
    assert_crowds_are_right(store.path)


async def test_an_address_group_that_could_not_be_written_is_the_newest(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await visit(store, ALICE, address=HERE)
    write = statements.write_visits

    async def fail(*arguments: Any) -> None:
        # Meanwhile it comes from elsewhere.
        lease = await store.open_lease(ALICE, Recorder())
        lease.meet(ELSEWHERE, b"")
        lease.close()
        raise sqlite3.OperationalError("told to fail")

    monkeypatch.setattr(statements, "write_visits", fail)
    with pytest.raises(StoreError):
        await store.save_visits()
    monkeypatch.setattr(statements, "write_visits", write)
    await store.save_visits()
    with edited(store.path) as database:
        rows = database.execute("SELECT address_group FROM peer").fetchall()
    assert rows == [("2001:db8:1::/48",)]


async def test_strangers_give_way_to_bytes_as_to_peers(store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_bytes=1000)
    for node_id in (ALICE, BOB, CAROL):
        assert await visit(store, node_id, bytes(300)) is None
    # A stranger that grows is no better.
    assert await visit(store, ALICE, bytes(600)) is None
    assert there(store) == {ALICE}  # its version before is kept
    assert (await store.counts()).bytes == 900
    await assert_all_is_right(store)


async def test_kept_versions_of_strangers_go_before_strangers(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = replace(ROOMY, max_bytes=1000)
    for blob in (b"\1" * 200, b"\2" * 200, b"\3" * 200):
        await visit(store, ALICE, blob)
    await visit(store, BOB, bytes(400))
    assert await visit(store, CAROL, bytes(300)) is None
    assert there(store) == {ALICE, BOB, CAROL}
    assert [v.revision.size for v in await stored_versions(store, ALICES)] == [200]
    await assert_all_is_right(store)


async def test_a_kept_version_that_is_held_is_not_spare(store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_bytes=1000)
    for blob in (b"\1" * 300, b"\2" * 300, b"\3" * 300):
        await visit(store, ALICE, blob)
    await store.run(operations.hold(ALICES, 1, None))
    assert await visit(store, BOB, bytes(400)) is None
    left = [v.revision.revision for v in await stored_versions(store, ALICES)]
    assert left == [1, 3]
    assert await visit(store, BOB, bytes(600)) == FULL
    assert len(await stored_versions(store, ALICES)) == 2


async def test_who_comes_back_while_kept_versions_go_knows_what_is_left(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.quotas = replace(ROOMY, max_bytes=1000)
    for blob in (b"\1" * 300, b"\2" * 300):
        await visit(store, ALICE, blob)
    coming: list[asyncio.Task[SqliteLease]] = []
    write = statements.write

    async def write_after_that(*arguments: Any) -> None:
        coming.append(asyncio.create_task(store.open_lease(ALICE, Recorder())))
        await turns(store)
        await write(*arguments)

    monkeypatch.setattr(statements, "write", write_after_that)
    assert await visit(store, BOB, bytes(600)) is None
    lease = await coming[0]
    assert lease.holdings.size == 300
    assert len(lease.holdings.rows) == 1


async def test_a_stranger_whose_kept_versions_went_goes_with_the_rest_of_it(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = replace(ROOMY, max_bytes=1000)
    await visit(store, BOB, bytes(300))
    backend.clock.advance(1)
    for blob in (b"\1" * 300, b"\2" * 300):
        await visit(store, ALICE, blob)
    assert await visit(store, CAROL, bytes(800)) is None
    assert there(store) == {CAROL}
    await assert_all_is_right(store)


async def test_the_growth_of_a_version_is_what_needs_room(store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_bytes=1000)
    for node_id in (BOB, CAROL):
        await visit(store, node_id, bytes(300))
    lease, recorder = await come(store, ALICE, bytes(300))
    lease.put(2, ALICES, bytes(401))
    await store.settle()
    assert recorder.told[-1] == (2, None)
    assert len(there(store)) == 2
    assert (await store.counts()).bytes == 701
    lease.close()


async def test_the_most_crowded_of_many_groups_is_found(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = places(45)
    for number in range(45):
        host = "192.0.2.1" if number < 2 else f"10.0.{number}.1"
        assert await visit(store, peer(10 + number), address=f"{host}:9735") is None
        backend.clock.advance(1)
    assert await visit(store, ALICE, address=HERE) is None
    assert peer(11) not in there(store)


async def test_kept_versions_of_the_newest_strangers_go_first(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    for node_id in (CAROL, ALICE, BOB):
        await visit(store, node_id, b"\1" * 200)
        await visit(store, node_id, b"\2" * 200)
        backend.clock.advance(1)
    store.quotas = replace(ROOMY, max_bytes=1200)
    assert await visit(store, DAVE, bytes(100)) is None
    kept = {n: len(await stored_versions(store, backup_of(n))) for n in (ALICE, BOB, CAROL)}
    assert kept == {CAROL: 2, ALICE: 2, BOB: 1}


async def test_nobody_gives_way_to_who_is_refused_all_the_same(store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_bytes=1000, max_bytes_per_peer=2000)
    await visit(store, ALICE, b"\1" * 200)
    await visit(store, ALICE, b"\2" * 200)
    await visit(store, BOB, bytes(500))
    assert await visit(store, CAROL, bytes(1001)) == FULL
    assert await visit(store, CAROL, bytes(2001)) == "2000 bytes are kept for a peer"
    assert there(store) == {ALICE, BOB}
    assert len(await stored_versions(store, ALICES)) == 2


# Who never gives way


async def test_who_is_connected_does_not_give_way(store: SqliteStore) -> None:
    store.quotas = places(2)
    await visit(store, ALICE)
    lease, _ = await come(store, BOB)
    assert await visit(store, CAROL) is None
    assert there(store) == {BOB, CAROL}
    here, _ = await come(store, CAROL)
    assert await visit(store, DAVE) == NO_PLACE
    lease.close()
    assert await visit(store, DAVE) is None
    assert there(store) == {CAROL, DAVE}
    here.close()


async def test_a_connection_that_is_gone_counts_until_its_updates_are_decided(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = places(1)
    older, _ = await come(store, ALICE, b"1")
    bob = Recorder()
    new = await store.open_lease(BOB, bob)
    async with backend.hold_writes():
        writing = asyncio.create_task(store.save_visits())
        await turns(store)
        older.put(2, ALICES, b"2")
        opening = asyncio.create_task(store.open_lease(ALICE, Recorder()))
        await turns(store)
        assert older.fenced
        opening.cancel()
        older.close()
        await asyncio.wait([opening])
        new.put(1, BOBS, b"backup")
    await writing
    await store.settle()
    assert bob.told == [(1, NO_PLACE)]
    assert there(store) == {ALICE}


@pytest.mark.parametrize("established", [False, True])
async def test_who_comes_back_to_what_just_gives_way_waits_for_the_end(
    backend: SqliteBackend,
    store: SqliteStore,
    monkeypatch: pytest.MonkeyPatch,
    established: bool,
) -> None:
    store.quotas = places(1)
    await visit(store, ALICE)
    if established:
        await establish(backend, store, ALICE)
        backend.clock.advance(180 * DAY)
    coming: list[asyncio.Task[bytes | None]] = []

    async def come_back() -> bytes | None:
        return await blob_of(await store.open_lease(ALICE, Recorder()), ALICES)

    delete = operations.delete_peers

    async def delete_rows(*arguments: Any, **values: Any) -> None:
        coming.append(asyncio.create_task(come_back()))
        await turns(store)
        assert not coming[0].done()
        await delete(*arguments)

    monkeypatch.setattr(operations, "delete_peers", delete_rows)
    assert await visit(store, BOB) is None
    # It is given nothing that is gone a moment later.
    assert await coming[0] is None
    assert there(store) == {BOB}


async def test_who_comes_back_before_it_was_chosen_stays(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = places(1)
    await visit(store, ALICE)
    bob, recorder = await store.open_lease(BOB, Recorder()), Recorder()
    async with backend.hold_writes():
        bob.put(1, BOBS, b"backup")
        await turns(store)
        lease = await store.open_lease(ALICE, recorder)
    await store.settle()
    assert await blob_of(lease, ALICES) == b"backup"
    assert there(store) == {ALICE}


async def test_peers_of_one_batch_do_not_displace_each_other(store: SqliteStore) -> None:
    store.quotas = places(2)
    await visit(store, ALICE)
    recorders = [Recorder() for _ in range(4)]
    leases = [await store.open_lease(peer(10 + n), r) for n, r in enumerate(recorders)]
    for number, lease in enumerate(leases):
        lease.put(1, backup_of(peer(10 + number)), b"x")
        lease.close()
    await asyncio.gather(*(lease.settled() for lease in leases))
    await turns(store)
    assert there(store) == {peer(10), peer(11)}
    await assert_all_is_right(store)


async def test_who_became_established_since_does_not_give_way(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = places(1, probation=30)
    await visit(store, ALICE)
    backend.clock.advance(30)
    (await store.open_lease(ALICE, Recorder())).close()
    with edited(store.path) as database:  # which is not written yet
        assert database.execute("SELECT established FROM peer").fetchall() == [(0,)]
    assert await visit(store, BOB) == NO_PLACE
    assert there(store) == {ALICE}


async def test_who_stays_connected_through_its_probation_does_not_give_way(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = places(1, probation=30)
    lease, _ = await come(store, ALICE)
    backend.clock.advance(30)
    lease.close()
    assert await visit(store, BOB) == NO_PLACE


async def test_an_established_peer_does_not_give_way(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = replace(ROOMY, max_bytes=30, max_peers=2)
    await establish(backend, store, ALICE, BOB)
    backend.clock.advance(180 * DAY - 1)
    assert await visit(store, CAROL, b"") == NO_PLACE
    store.quotas = replace(ROOMY, max_bytes=15)
    assert await visit(store, CAROL, bytes(10)) == FULL
    assert there(store) == {ALICE, BOB}


async def test_who_the_policy_protects_does_not_give_way(store: SqliteStore) -> None:
    store.quotas = places(2)
    await visit(store, ALICE)
    await visit(store, BOB)
    store.protects = lambda node_id, _: node_id == ALICE
    for node_id in (CAROL, DAVE):
        assert await visit(store, node_id) is None
        assert there(store) == {ALICE, node_id}
    # Also where it would have been the first to go.
    store.protects = lambda node_id, _: node_id == DAVE
    assert await visit(store, ERIN) is None
    assert there(store) == {DAVE, ERIN}


async def test_the_policy_is_asked_with_the_height_of_the_last_visit(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = places(1)
    store.trust(800_000)
    await visit(store, ALICE)
    asked: set[tuple[NodeId, int | None]] = set()

    def protects(node_id: NodeId, last_height: int | None) -> bool:
        asked.add((node_id, last_height))
        return True

    store.protects = protects
    assert await visit(store, BOB) == NO_PLACE
    assert asked == {(ALICE, 800_000)}


async def test_while_it_is_not_known_who_has_channels_nobody_gives_way(store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_bytes=1000, max_peers=2)
    store.certain = lambda: False
    for blob in (b"\1" * 300, b"\2" * 300):
        await visit(store, ALICE, blob)
    await visit(store, BOB, b"x")
    assert await visit(store, CAROL) == NO_PLACE
    assert await visit(store, BOB, bytes(600)) == FULL
    assert len(await stored_versions(store, ALICES)) == 2
    store.certain = lambda: True
    assert await visit(store, BOB, bytes(600)) is None
    assert len(await stored_versions(store, ALICES)) == 1


async def test_a_protected_stranger_can_always_replace_its_backup(store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_bytes=1000)
    store.protects = lambda node_id, _: node_id == ALICE
    await visit(store, ALICE, b"\1" * 400)
    await visit(store, BOB, b"\1" * 200)
    lease, _ = await come(store, BOB, b"\2" * 200)
    assert await visit(store, ALICE, b"\2" * 400) is None
    assert (await store.counts()).bytes == 1200
    # Its kept versions give way to nobody, and its first backup to nobody's harm either.
    assert await visit(store, CAROL, bytes(100)) == FULL
    assert [v.revision.size for v in await stored_versions(store, ALICES)] == [400, 400]
    store.protects = lambda node_id, _: node_id in (ALICE, CAROL)
    assert await visit(store, CAROL, bytes(300)) == FULL
    lease.close()


async def test_an_established_peers_replacement_has_strangers_give_way_before_it_exceeds(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await establish(backend, store, ALICE)
    store.quotas = replace(ROOMY, max_bytes=1000)
    for node_id in (BOB, CAROL):
        await visit(store, node_id, bytes(400))
    assert await visit(store, ALICE, bytes(590)) is None
    assert len(there(store)) == 2
    assert (await store.counts()).bytes <= 1000
    assert await visit(store, ALICE, b"\1" * 600) is None
    assert there(store) == {ALICE}
    assert (await store.counts()).bytes > 1000
    await assert_all_is_right(store)


async def an_operators_pin(store: SqliteStore, slot: Slot, revision: int) -> Operation:
    return operations.pin(slot, revision)


async def an_operators_hold(store: SqliteStore, slot: Slot, revision: int) -> Operation:
    return operations.hold(slot, revision, None)


async def an_operators_hold_for_a_time(store: SqliteStore, slot: Slot, revision: int) -> Operation:
    return operations.hold(slot, revision, 100)


@pytest.mark.parametrize(
    "keep", [an_operators_pin, an_operators_hold, an_operators_hold_for_a_time]
)
async def test_a_peer_of_which_an_operator_keeps_something_does_not_give_way(
    backend: SqliteBackend,
    store: SqliteStore,
    keep: Callable[[SqliteStore, Slot, int], Awaitable[Operation]],
) -> None:
    store.quotas = places(1)
    await visit(store, ALICE)
    await store.run(await keep(store, ALICES, 1))
    backend.clock.advance(99)
    assert await visit(store, BOB) == NO_PLACE
    if keep is an_operators_pin:
        await store.run(operations.unpin(ALICES, 1))
    elif keep is an_operators_hold:
        await store.run(operations.release(ALICES))
    backend.clock.advance(1)
    assert await visit(store, BOB) is None
    assert there(store) == {BOB}
    assert rows_of(store.path, ALICE) == {}


async def test_pins_and_holds_of_its_own_keep_no_stranger(store: SqliteStore) -> None:
    store.quotas = places(1)
    await visit(store, ALICE, b"\1" * 345)
    await visit(store, ALICE, b"\2" * 57)  # the mark of data loss
    assert rows_of(store.path, ALICE).keys() == {"backup", "hold", "peer", "alarm"}
    assert await visit(store, BOB) is None
    assert rows_of(store.path, ALICE) == {"alarm": 1}
    assert await store.reader.alarms(acknowledged=False) == []
    await assert_all_is_right(store)


# Established peers that were away for long


async def long_away(backend: SqliteBackend, store: SqliteStore) -> None:
    """A full store of ALICE, who has been away the longest, BOB, and CAROL, who was here since."""
    store.quotas = places(3)
    await establish(backend, store, ALICE, BOB, CAROL)
    for node_id in (BOB, CAROL):
        backend.clock.advance(100)
        await visit(store, node_id)
    backend.clock.advance(180 * DAY - 201)
    await store.save_visits()


async def test_who_was_away_for_long_gives_way_the_longest_first(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await long_away(backend, store)
    lease, _ = await come(store, DAVE)
    assert there(store) == {ALICE, BOB, CAROL}
    backend.clock.advance(600)  # BOB and CAROL are now long away as well
    lease.put(2, backup_of(DAVE), b"again")
    await store.settle()
    assert there(store) == {BOB, CAROL, DAVE}
    lease.put(3, slots_of(DAVE)[1], b"of another kind")
    second, _ = await come(store, ERIN)
    assert there(store) == {CAROL, DAVE, ERIN}
    lease.close()
    second.close()
    await assert_all_is_right(store)


async def test_strangers_go_before_those_who_were_away_for_long(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await long_away(backend, store)
    store.quotas = places(4)
    await visit(store, DAVE)
    backend.clock.advance(600)
    assert await visit(store, ERIN) is None
    assert there(store) == {ALICE, BOB, CAROL, ERIN}


async def test_who_comes_back_or_is_protected_or_kept_was_not_away_for_long(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await long_away(backend, store)
    backend.clock.advance(600)
    store.protects = lambda node_id, _: node_id == BOB
    await store.run(operations.pin(backup_of(CAROL), 3))
    # Not written yet.
    await visit(store, ALICE)
    assert await visit(store, DAVE) == NO_PLACE
    assert there(store) == {ALICE, BOB, CAROL}


async def test_who_comes_back_after_it_was_found_stays(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await long_away(backend, store)
    backend.clock.advance(600)
    dave, _ = await come(store, DAVE)
    assert there(store) == {BOB, CAROL, DAVE}
    await visit(store, BOB)
    await store.save_visits()
    erin, _ = await come(store, ERIN)
    assert there(store) == {BOB, DAVE, ERIN}
    assert await visit(store, peer(6)) == NO_PLACE
    dave.close()
    erin.close()


@pytest.mark.parametrize("keep", ["protected", "pinned"])
async def test_who_may_not_go_any_more_after_it_was_found_stays(
    backend: SqliteBackend, store: SqliteStore, keep: str
) -> None:
    await long_away(backend, store)
    backend.clock.advance(600)
    dave, _ = await come(store, DAVE)
    assert there(store) == {BOB, CAROL, DAVE}
    if keep == "protected":
        store.protects = lambda node_id, _: node_id == BOB
    else:
        (version,) = await stored_versions(store, BOBS)
        await store.run(operations.pin(BOBS, version.revision.revision))
    erin, _ = await come(store, ERIN)
    assert there(store) == {BOB, DAVE, ERIN}
    dave.close()
    erin.close()


async def test_those_that_may_not_go_do_not_hide_others(
    backend: SqliteBackend, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(giving_way, "LONG_AWAY_ROWS", 1)
    await long_away(backend, store)
    backend.clock.advance(600)
    store.protects = lambda node_id, _: node_id == ALICE
    assert await visit(store, DAVE) is None
    assert there(store) == {ALICE, CAROL, DAVE}


async def test_who_was_away_for_long_is_looked_for_at_most_every_ten_minutes(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await long_away(backend, store)
    looks: list[str] = []

    def trace(statement: str) -> None:
        if "established <> 0 AND last_seen" in statement and "ORDER BY" in statement:
            looks.append(statement)

    await store._writer.set_trace_callback(trace)
    assert await visit(store, DAVE) == NO_PLACE
    backend.clock.advance(600 - 1)
    assert await visit(store, DAVE) == NO_PLACE  # there would be one by now
    assert len(looks) == 1
    backend.clock.advance(1)
    lease, recorder = await come(store, DAVE)
    assert recorder.told == [(1, None)]
    assert len(looks) == 2
    # The others were found along with it.
    other, recorder = await come(store, ERIN)
    assert recorder.told == [(1, None)]
    assert len(looks) == 2
    lease.close()
    other.close()


# What is left


async def test_a_peer_that_gave_way_leaves_nothing(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = places(1)
    lease, _ = await come(store, ALICE, b"\1" * 345)
    for sequence, slot in enumerate(slots_of(ALICE)[1:], 2):
        lease.put(sequence, slot, b"backup", LATE if slot.channel_id else None)
    await store.settle()
    lease.note_refusal("no")
    lease.close()
    await visit(store, ALICE, b"\2" * 57)
    await store.save_visits()
    await store.run(operations.set_rule(ALICE, "deny", undo=False))
    before = rows_of(store.path, ALICE)
    assert before.keys() == {"backup", "hold", "channel", "refusal", "peer", "rule", "alarm"}
    (await store.open_lease(ALICE, Recorder())).note_refusal("yes")
    (await store.open_lease(ALICE, Recorder())).close()
    assert await visit(store, BOB) is None
    assert rows_of(store.path, ALICE) == {"rule": 1, "alarm": 1}
    await assert_all_is_right(store)
    # It is a stranger, with no story.
    assert await visit(store, ALICE) is None
    await store.save_visits()
    assert rows_of(store.path, ALICE) == {"backup": 1, "peer": 1, "rule": 1, "alarm": 1}
    assert await refusals(store) == {}
    await assert_all_is_right(store)


async def test_a_transaction_that_fails_displaces_nobody(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = places(2)
    await visit(store, ALICE, b"\1" * 100)
    await visit(store, BOB)
    lease = await store.open_lease(ALICE, Recorder())
    lease.note_refusal("no")
    lease.close()
    counts = await store.counts()
    async with backend.fail_writes():
        reason = await visit(store, CAROL)
        assert reason is not None
        assert "can't be written" in reason
    assert there(store) == {ALICE, BOB}
    assert await store.counts() == counts
    await assert_all_is_right(store)
    back = await store.open_lease(BOB, Recorder())  # who waits for nothing
    assert await blob_of(back, BOBS) == b"backup"
    await store.save_visits()
    assert "no" in str(await refusals(store))
    assert await visit(store, CAROL) is None
    assert there(store) == {BOB, CAROL}
    await assert_all_is_right(store)


async def test_one_transaction_displaces_so_many_and_no_more(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(giving_way, "DISPLACED_AT_ONCE", 3)
    store.quotas = places(5)
    for number in range(5):
        await visit(store, peer(10 + number))
    recorders = [Recorder() for _ in range(5)]
    leases = [await store.open_lease(peer(20 + n), r) for n, r in enumerate(recorders)]
    committed = await transactions(store)
    for number, lease in enumerate(leases):
        lease.put(1, backup_of(peer(20 + number)), b"x")
    await store.settle()
    assert len(committed) == 1
    assert [r.told[0][1] for r in recorders] == [None] * 3 + [TOO_MANY] * 2
    assert len(there(store)) == 5
    for lease in leases[3:]:
        lease.put(2, backup_of(lease.node_id), b"x")
    await store.settle()
    assert there(store) == {peer(20 + n) for n in range(5)}
    await assert_all_is_right(store)


async def test_one_transaction_displaces_so_many_versions_and_then_no_more(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(giving_way, "DISPLACED_VERSIONS", 3)
    store.quotas = places(3)
    for number in range(3):
        for blob in (b"1", b"2"):
            await visit(store, peer(10 + number), blob)
    recorders = [Recorder() for _ in range(3)]
    leases = [await store.open_lease(peer(20 + n), r) for n, r in enumerate(recorders)]
    for number, lease in enumerate(leases):
        lease.put(1, backup_of(peer(20 + number)), b"x")
    await store.settle()
    assert [r.told[0][1] for r in recorders] == [None, None, TOO_MANY]


async def test_where_too_many_strangers_stay_nobody_else_is_looked_for(
    backend: SqliteBackend, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await long_away(backend, store)
    backend.clock.advance(600)
    store.quotas = places(6)
    leases = [(await come(store, node_id))[0] for node_id in (DAVE, ERIN, peer(6))]
    with monkeypatch.context() as patch:
        patch.setattr(crowd, "LOOKED_AT", 2)
        assert await visit(store, peer(7)) == TOO_MANY
    assert await visit(store, peer(7)) is None
    for lease in leases:
        lease.close()


async def test_without_free_space_nobody_gives_way(store: SqliteStore) -> None:
    store.quotas = places(1)
    await visit(store, ALICE)
    store.quotas = replace(store.quotas, min_free_space=1 << 60)
    assert await visit(store, BOB) == "the disk is nearly full"
    assert there(store) == {ALICE}


async def test_a_damaged_stranger_is_in_nobodys_way(
    backend: SqliteBackend, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await establish(backend, store, ALICE)
    await visit(store, BOB)
    store.quotas = replace(ROOMY, max_bytes=20)
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT

    async def damaged(*_: object, **__: object) -> list[int]:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(operations, "delete_peers", damaged)
        assert await visit(store, ALICE, bytes(100)) is None
        assert await visit(store, CAROL, bytes(10)) == FULL
    assert there(store) == {ALICE, BOB}
    backend.clock.advance(600)
    assert await visit(store, ALICE, bytes(101)) is None
    assert there(store) == {ALICE}
    await assert_all_is_right(store)


# The log


async def test_each_of_a_few_that_give_way_has_a_line_and_a_crowd_has_one(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = places(20)
    for number in range(20):
        await visit(store, peer(10 + number), b"four")
    with capture_logs() as logs:
        assert await visit(store, ALICE) is None
    (line,) = [each for each in logs if each["event"] == "displaced"]
    assert line["node_id"] in {peer(10 + n).hex() for n in range(20)}
    assert (line["bytes"], line["versions"]) == (4, 1)
    assert (line["address_group"], line["reason"]) == ("203.0.113.0/24", "on probation")
    backend.clock.advance(1)
    leases = [await store.open_lease(peer(40 + n), Recorder()) for n in range(10)]
    with capture_logs() as logs:
        for number, lease in enumerate(leases):
            lease.put(1, backup_of(peer(40 + number)), b"x")
        await store.settle()
    (line,) = [each for each in logs if "displaced" in each["event"]]
    assert (line["event"], line["peers"]) == ("more_displaced", 10)


async def test_a_second_has_so_many_lines_and_nothing_is_lost(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    store.quotas = places(1)
    await visit(store, peer(10))
    with capture_logs() as logs:
        for number in range(11, 31):
            assert await visit(store, peer(number)) is None
        assert 1 <= len([each for each in logs if "displaced" in each["event"]]) <= 6
        backend.clock.advance(60)
        await visit(store, peer(31))
    lines = [each for each in logs if "displaced" in each["event"]]
    assert sum(line.get("peers", 1) for line in lines) == 21
    assert len(lines) <= 8


# The schema


def schema_5(path: Path) -> None:
    """A database as the fifth release made it, with rows of its own in `peer` and `backup`."""
    schema_3(path)
    with edited(path) as database:
        for number in (4, 5):
            database.executescript(migrations()[number - 1][1])
        database.execute("PRAGMA user_version = 5")
        database.execute("UPDATE backup SET replaced = 5 WHERE id = (SELECT min(id) FROM backup)")


async def test_peers_of_before_are_each_in_a_group_of_their_own(
    backend: SqliteBackend, tmp_path: Path
) -> None:
    schema_5(backend.path)
    store = await backend.open()
    assert_crowds_are_right(backend.path)
    with edited(backend.path) as database:
        groups = dict(database.execute("SELECT node_id, address_group FROM peer").fetchall())
        assert groups == {ALICE: ALICE.hex(), BOB: BOB.hex()}
        assert database.execute("SELECT address_group FROM crowd").fetchall() == [(ALICE.hex(),)]
        assert database.execute("SELECT sum(spare) FROM peer").fetchone() != (None,)
    await visit(store, ALICE)
    await store.save_visits()
    assert_crowds_are_right(backend.path)


@pytest.mark.parametrize(
    "name", ["_GROUPS", "_MEMBERS", "_WITH_SPARE", "_SPARE", "_STORED", "triggers"]
)
async def test_who_gives_way_is_found_by_indexes(store: SqliteStore, name: str) -> None:
    sql = getattr(giving_way, name, "")
    if name == "triggers":
        sql = "SELECT max(first_seen) FROM peer WHERE address_group = 'a' AND established = 0"
    with edited(store.path) as database:
        values: Any = {"node_id": ALICE, "seen": 1} if ":seen" in sql else [1] * sql.count("?")
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    assert plan
    for step in plan:
        # What a page was filled with is read as it is.
        assert not re.match(r"SCAN (?!c$|\(subquery)", step), plan
        assert "TEMP B-TREE" not in step or name == "_GROUPS", plan
