"""What SQLite keeps of channels beside their backups, and the rules that all kinds share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peerstore.errors import StoreError
from peerstore.methods import methods
from peerstore.store.base import Counts, Quotas
from peerstore.store.history import DAY, HOUR
from peerstore.store.migrate import migrations
from peerstore.store.snapshot import verify
from peerstore.store.sqlite import SqliteStore
from peerstore.types import BackupKind, ChannelState, NodeId, Slot
from tests.helpers import failing_commits
from tests.store_contract import (
    ALICE,
    ALICES,
    ALICES_CHANNEL,
    ALICES_NODE,
    ALICES_OTHER_CHANNEL,
    BOB,
    EARLY,
    LARGEST,
    LATE,
    START,
    Recorder,
    all_of,
    blob_of,
    newest_revision,
    slots_of,
)
from tests.test_plan import (
    GOOD,
    arguments,
    assert_counts_are_right,
    copies_in,
    damage,
    empty,
    held,
    pinned,
    push,
    schema,
    schema_1,
    sizes,
    told,
)
from tests.test_store import ROOMY, SqliteBackend, alarms, edited, flipped

CHANNEL, OTHER_CHANNEL = ALICES_CHANNEL.channel_id, ALICES_OTHER_CHANNEL.channel_id
CLOSED = ChannelState(9, 9, b"\x5e" * 32, shutdown=True, closing=True)

every_kind = pytest.mark.parametrize(
    "slot", slots_of(ALICE)[:3], ids=[slot.kind.label for slot in slots_of(ALICE)[:3]]
)


async def say(
    store: SqliteStore,
    state: ChannelState | None,
    blob: bytes | None = None,
    slot: Slot = ALICES_CHANNEL,
) -> str | None:
    """Hand in what there is of a channel by a connection of its own; the reason of a refusal."""
    recorder = Recorder()
    lease = await store.open_lease(slot.node_id, recorder)
    lease.put(1, slot, blob, state)
    await store.settle()
    lease.close()
    ((_, reason),) = recorder.told
    return reason


async def states(store: SqliteStore, node_id: NodeId = ALICE) -> dict[bytes, ChannelState | None]:
    """The states of a peer's channels as its next connection finds them."""
    lease = await store.open_lease(node_id, Recorder())
    lease.close()
    return dict(lease.channels)


def channel_rows(path: Path) -> int:
    """How many states are stored."""
    with edited(path) as database:
        ((count,),) = database.execute("SELECT count(*) FROM channel").fetchall()
    assert isinstance(count, int)
    return count


# From schema 2 to 3


def schema_2(path: Path) -> dict[Slot, bytes]:
    """A database as the second release made it; what it gives back.

    One channel has an older version that is pinned, another one a version that is held.
    """
    rows = [
        (ALICES, 1, b"of alice", START - 50, START - 10),
        (ALICES_CHANNEL, 2, b"old of a channel", START - 60, START - 60),
        (ALICES_CHANNEL, 3, b"of a channel", START - 40, START - 20),
        (ALICES_OTHER_CHANNEL, 4, b"held of another", START - 60, START - 60),
        (ALICES_OTHER_CHANNEL, 5, b"of another", START - 40, START - 40),
        (Slot(BOB, BackupKind.CHANNEL_BACKUP, CHANNEL), 6, b"\x0b" * LARGEST, START, START),
        (Slot(BOB, BackupKind.NODE_BACKUP), 7, b"of bob's node", START, START),
    ]
    schema_1(path, rows)
    with edited(path) as database:
        database.execute("UPDATE backup SET replaced = 0 WHERE id IN (2, 4)")
        database.executescript(migrations()[1][1])
        database.execute("PRAGMA user_version = 2")
        database.execute("UPDATE meta SET epoch = randomblob(16), backups = 5")
        database.execute("UPDATE backup SET pins = 2 WHERE id = 2")
        database.execute(
            "INSERT INTO hold SELECT node_id, kind, channel_id, id, 1, NULL FROM backup"
            " WHERE id = 4"
        )
    current = {slot: blob for slot, _, blob, _, _ in rows}
    return current | {ALICES_OTHER_CHANNEL: b"held of another"}


async def test_a_database_of_schema_2_is_upgraded(backend: SqliteBackend, tmp_path: Path) -> None:
    content = schema_2(backend.path)
    store = await backend.open()
    for slot, blob in content.items():
        assert await push(store, slot=slot) == blob
    assert await store.counts() == Counts(2, 5, 8 + 16 + 12 + 15 + 10 + LARGEST + 13, versions=7)
    await assert_counts_are_right(store)
    assert await pinned(store, ALICES_CHANNEL) == [(16, "operator")]
    assert await alarms(store) == []
    # Nothing is known of a channel whose messages nobody counted.
    assert await states(store) == {CHANNEL: ChannelState(), OTHER_CHANNEL: ChannelState()}
    lease = await store.open_lease(BOB, Recorder())
    assert lease.channels == {CHANNEL: ChannelState()}
    assert not lease.node_backup_forgone
    # From now on they are.
    assert await say(store, LATE) is None
    assert await states(store) == {CHANNEL: LATE, OTHER_CHANNEL: ChannelState()}
    await store.close()
    assert verify(backend.path).sound
    assert len(copies_in(tmp_path)) == 1

    fresh = SqliteBackend(tmp_path / "fresh")
    fresh.path.parent.mkdir()
    await (await fresh.open()).close()
    assert schema(backend.path) == schema(fresh.path)


# Damage


def flip_number(bit: int) -> Callable[[int], int]:
    return lambda number: number ^ 1 << bit


# What becomes of a column of a row, by its value.
KEY_FLIPS: dict[str, tuple[str, Callable[..., object]]] = {
    "node_id": ("node_id", flipped),
    "channel_id": ("channel_id", flipped),
}
FLIPS: dict[str, tuple[str, Callable[..., object]]] = {
    "commitments, the lowest bit": ("commitments", flip_number(0)),
    "commitments, a high bit": ("commitments", flip_number(50)),
    "commitments, all bits": ("commitments", lambda number: ~number),
    "revocations, the lowest bit": ("revocations", flip_number(0)),
    "revocations, a high bit": ("revocations", flip_number(50)),
    "revocations, all bits": ("revocations", lambda number: ~number),
    "last_secret": ("last_secret", flipped),
    "whole": ("whole", flip_number(0)),
    "shutdown": ("shutdown", flip_number(0)),
    "closing": ("closing", flip_number(0)),
    "digest": ("digest", flipped),
}
TYPES = range(-9, 0)
"""Bytes before a row's values in which SQLite says of what type those behind the key are."""


def alter(path: Path, column: str, change: Callable[..., object]) -> None:
    """Change a column of the row of ALICE's first channel."""
    where = "node_id = ? AND channel_id = ?"
    with edited(path) as database:
        ((value,),) = database.execute(
            f"SELECT {column} FROM channel WHERE {where}",  # noqa: S608 - one of the above
            (ALICE, CHANNEL),
        ).fetchall()
        database.execute(
            f"UPDATE channel SET {column} = ? WHERE {where}",  # noqa: S608 - one of the above
            (change(value), ALICE, CHANNEL),
        )


async def with_channels(backend: SqliteBackend) -> SqliteStore:
    """A store that keeps two channels and a peer_storage for ALICE, and one channel for BOB."""
    store = await backend.open()
    await push(store, b"of alice")
    await say(store, LATE, b"of a channel")
    await say(store, EARLY, b"of another", ALICES_OTHER_CHANNEL)
    await say(store, EARLY, b"of bob", Slot(BOB, BackupKind.CHANNEL_BACKUP, CHANNEL))
    return store


def test_every_column_that_says_something_of_a_channel_is_altered(tmp_path: Path) -> None:
    with edited(tmp_path / "a.db") as database:
        for _, sql in migrations():
            database.executescript(sql)
        columns = {row[1] for row in database.execute("PRAGMA table_info(channel)")}
    altered = {column for column, _ in (KEY_FLIPS | FLIPS).values()}
    assert columns - altered == {"closed", "closed_at", "closed_height"}


@pytest.mark.parametrize("flip", FLIPS.values(), ids=FLIPS)
async def test_a_flipped_bit_leaves_a_state_that_nobody_trusts(
    backend: SqliteBackend, flip: tuple[str, Callable[..., object]]
) -> None:
    store = await with_channels(backend)
    alter(backend.path, *flip)
    lease = await store.open_lease(ALICE, Recorder())
    assert lease.channels == {CHANNEL: None, OTHER_CHANNEL: EARLY}
    # The backups themselves are sound.
    assert await all_of(lease) == {
        ALICES: b"of alice",
        ALICES_CHANNEL: b"of a channel",
        ALICES_OTHER_CHANNEL: b"of another",
    }
    assert await states(store, BOB) == {CHANNEL: EARLY}
    (alarm,) = await alarms(store)
    assert (alarm.kind, alarm.slot) == ("damaged", ALICES_CHANNEL)
    for text in (ALICE.hex(), CHANNEL.hex()):
        assert text in alarm.text
    assert alarm.text.isprintable()


@pytest.mark.parametrize("flip", KEY_FLIPS.values(), ids=KEY_FLIPS)
async def test_a_state_that_was_lost_by_a_flipped_bit_in_its_key_is_not_taken_for_the_first_one(
    backend: SqliteBackend, flip: tuple[str, Callable[..., object]]
) -> None:
    # Counts that begin anew would be given back as if they were right.
    store = await with_channels(backend)
    alter(backend.path, *flip)
    assert (await states(store))[CHANNEL] is None
    assert await states(store, BOB) == {CHANNEL: EARLY}
    assert "damaged" in {alarm.kind for alarm in await alarms(store)}


@pytest.mark.parametrize("flip", (KEY_FLIPS | FLIPS).values(), ids=KEY_FLIPS | FLIPS)
async def test_verify_finds_a_flipped_bit_in_a_state(
    backend: SqliteBackend, flip: tuple[str, Callable[..., object]]
) -> None:
    store = await with_channels(backend)
    await store.close()
    assert verify(backend.path).sound
    alter(backend.path, *flip)
    report = verify(backend.path)
    assert not report.sound
    assert (report.damaged, report.checked) == ([], 4)
    assert any(ALICE.hex() in line and CHANNEL.hex() in line for line in report.problems)
    assert all(line.isprintable() for line in report.problems)


@pytest.mark.parametrize("where", TYPES)
async def test_a_row_of_the_wrong_types_is_a_state_that_nobody_trusts_and_hides_no_backup(
    backend: SqliteBackend, where: int
) -> None:
    store = await with_channels(backend)
    await store.close()
    sound = backend.path.read_bytes()
    # A cell as SQLite, Database File Format, 2.1 has it: what it consists of, then the values.
    values = sound.index(ALICE + CHANNEL + bytes((LATE.commitments, LATE.revocations)))
    for bit in range(8):
        data = bytearray(sound)
        data[values + where] ^= 1 << bit
        backend.path.write_bytes(data)
        report = verify(backend.path)
        assert all(problem.isprintable() for problem in report.problems), report.problems
        store = await backend.open()
        lease = await store.open_lease(ALICE, Recorder())
        assert lease.channels[CHANNEL] in (None, LATE)
        assert lease.channels[OTHER_CHANNEL] in (None, EARLY)
        assert await blob_of(lease, ALICES) == b"of alice"
        assert await states(store, BOB) == {CHANNEL: EARLY}
        await store.close()


async def test_two_rows_that_are_exchanged_are_two_states_that_nobody_trusts(
    backend: SqliteBackend,
) -> None:
    store = await with_channels(backend)
    with edited(backend.path) as database:
        for old, new in (
            (CHANNEL, bytes(32)),
            (OTHER_CHANNEL, CHANNEL),
            (bytes(32), OTHER_CHANNEL),
        ):
            database.execute(
                "UPDATE channel SET channel_id = ? WHERE node_id = ? AND channel_id = ?",
                (new, ALICE, old),
            )
    assert await states(store) == {CHANNEL: None, OTHER_CHANNEL: None}
    assert {alarm.slot for alarm in await alarms(store)} == {ALICES_CHANNEL, ALICES_OTHER_CHANNEL}


async def test_each_connection_that_finds_the_damage_counts_in_the_one_alarm(
    backend: SqliteBackend,
) -> None:
    store = await with_channels(backend)
    alter(backend.path, *FLIPS["digest"])
    for _ in range(3):
        await states(store)
    (alarm,) = await alarms(store)
    assert alarm.count == 3


async def test_a_damaged_backup_of_a_channel_leaves_the_one_before_with_the_state_of_now(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await say(store, EARLY, b"older")
    await say(store, LATE, b"newer")
    damage(backend.path, await newest_revision(store, ALICES_CHANNEL))
    lease = await store.open_lease(ALICE, Recorder())
    assert await blob_of(lease, ALICES_CHANNEL) == b"older"
    assert lease.channels == {CHANNEL: LATE}


# The operator


async def test_deleting_the_last_backup_of_a_channel_forgets_its_state(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await say(store, EARLY, b"older")
    await say(store, LATE, b"newer")
    await say(store, LATE, b"another", ALICES_OTHER_CHANNEL)
    delete = methods(store)["backups.delete"]
    await delete(*arguments(ALICES_CHANNEL), await newest_revision(store, ALICES_CHANNEL))
    assert await states(store) == {CHANNEL: LATE, OTHER_CHANNEL: LATE}
    await delete(*arguments(ALICES_CHANNEL), await newest_revision(store, ALICES_CHANNEL))
    assert await states(store) == {OTHER_CHANNEL: LATE}
    assert channel_rows(backend.path) == 1
    # What is stored of it later begins anew.
    await push(store, b"once more", slot=ALICES_CHANNEL)
    assert await states(store) == {CHANNEL: ChannelState(), OTHER_CHANNEL: LATE}
    await assert_counts_are_right(store)


async def test_a_state_that_comes_after_the_deletion_is_not_stored(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    recorder = Recorder()
    lease = await store.open_lease(ALICE, recorder)
    lease.put(1, ALICES_CHANNEL, b"backup", EARLY)
    await store.settle()
    await methods(store)["backups.delete"](*arguments(ALICES_CHANNEL), 1)
    lease.put(2, ALICES_CHANNEL, None, LATE)
    await store.settle()
    assert recorder.told == [(1, None), (2, None)]
    assert channel_rows(backend.path) == 0
    lease.put(3, ALICES_CHANNEL, b"backup", LATE)
    await store.settle()
    assert await states(store) == {CHANNEL: LATE}
    await assert_counts_are_right(store)


async def test_deleting_a_backup_of_another_kind_forgets_no_state(store: SqliteStore) -> None:
    await push(store, b"of alice")
    await say(store, LATE, b"backup")
    await methods(store)["backups.delete"](*arguments(ALICES), 1)
    assert await states(store) == {CHANNEL: LATE}


async def test_a_held_backup_of_a_channel_is_given_back_with_the_state_of_now(
    store: SqliteStore,
) -> None:
    await say(store, EARLY, b"older")
    await say(store, LATE, b"newer")
    await methods(store)["backups.hold"](*arguments(ALICES_CHANNEL), 1, None)
    lease = await store.open_lease(ALICE, Recorder())
    assert await all_of(lease) == {ALICES_CHANNEL: b"older"}
    assert lease.channels == {CHANNEL: LATE}


async def test_a_node_backup_that_an_operator_holds_is_shown_again(store: SqliteStore) -> None:
    await push(store, b"older", slot=ALICES_NODE)
    await push(store, b"newer", slot=ALICES_NODE)
    lease = await store.open_lease(ALICE, Recorder())
    lease.forgo_node_backup()
    lease.close()
    assert (await store.open_lease(ALICE, Recorder())).node_backup_forgone
    await methods(store)["backups.hold"](*arguments(ALICES_NODE), 1, None)
    lease = await store.open_lease(ALICE, Recorder())
    assert not lease.node_backup_forgone
    assert await blob_of(lease, ALICES_NODE) == b"older"


@pytest.mark.parametrize("touched", [False, True], ids=["", "and an operator pins a version"])
async def test_a_hang_up_that_could_not_be_written_is_remembered_until_a_backup_is_stored_anew(
    store: SqliteStore, touched: bool
) -> None:
    await push(store, b"backup", slot=ALICES_NODE)
    lease = await store.open_lease(ALICE, Recorder())
    with failing_commits(store):
        lease.forgo_node_backup()
        lease.close()
        with pytest.raises(StoreError):
            await methods(store)["backups.pin"](*arguments(ALICES_NODE), 1)
    lease = await store.open_lease(ALICE, Recorder())
    assert lease.node_backup_forgone
    if touched:
        await methods(store)["backups.pin"](*arguments(ALICES_NODE), 1)
    lease.put(1, ALICES_NODE, b"backup")
    await store.settle()
    assert not (await store.open_lease(ALICE, Recorder())).node_backup_forgone


# When a channel was closed


def closed(path: Path) -> tuple[int | None, int | None]:
    """When the channel was closed: by what the daemon has seen pass, and by the wall clock."""
    with edited(path) as database:
        ((seen, at),) = database.execute("SELECT closed, closed_at FROM channel").fetchall()
    return seen, at


async def test_a_channel_is_closed_when_shutdown_and_closing_have_come_until_it_goes_on(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    shutting_down = replace(CLOSED, closing=False)
    await say(store, LATE, b"backup")
    for state, closed_now in (
        (shutting_down, False),
        (CLOSED, True),
        (replace(CLOSED, commitments=12), True),
        (replace(shutting_down, commitments=13), False),
        (replace(CLOSED, shutdown=False), False),
        (CLOSED, True),
        # With a backup, too.
        (replace(CLOSED, revocations=10), True),
    ):
        was_closed = closed(backend.path)
        backend.clock.advance(100)
        blob = b"other backup" if state.revocations == 10 else None
        assert await say(store, state, blob) is None
        if not closed_now:
            expected: tuple[int | None, int | None] = (None, None)
        elif was_closed != (None, None):
            expected = was_closed
        else:
            expected = (store.seen, int(backend.clock.now))
        assert closed(backend.path) == expected, state
        assert await store.reader.channel(ALICES_CHANNEL) == (state, expected[1])


async def test_when_a_channel_was_closed_is_told_by_the_time_that_daemons_saw_pass(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    backend.clock.advance(HOUR)
    await say(store, CLOSED, b"backup")
    await store.close()
    # The clock was set back by a day while nobody looked.
    backend.clock.now -= DAY
    backend.clock.monotonic += 10 * DAY
    store = await backend.open()
    await say(store, replace(CLOSED, closing=False))
    await say(store, CLOSED)
    assert closed(backend.path) == (HOUR, START + HOUR - DAY)


# Quotas


@pytest.mark.parametrize(
    ("quotas", "reason"),
    [
        (replace(ROOMY, max_channels_per_peer=1), "1 channels"),
        (replace(ROOMY, max_bytes_per_peer=150), "150 bytes"),
        (replace(ROOMY, min_free_space=1 << 60), "disk"),
    ],
    ids=["channels", "bytes", "disk"],
)
async def test_what_is_too_much_is_refused_and_all_is_as_it_was(
    backend: SqliteBackend, store: SqliteStore, quotas: Quotas, reason: str
) -> None:
    assert await say(store, EARLY, bytes(100)) is None
    counts = await store.counts()
    store.quotas = quotas
    assert reason in (await say(store, LATE, bytes(100), ALICES_OTHER_CHANNEL) or "")
    assert await states(store) == {CHANNEL: EARLY}
    lease = await store.open_lease(ALICE, Recorder())
    assert await all_of(lease) == {ALICES_CHANNEL: bytes(100)}
    assert await store.counts() == counts
    assert channel_rows(backend.path) == 1
    await assert_counts_are_right(store)
    # It was for this slot alone: the other way round it is the same.
    store.quotas = ROOMY
    assert await say(store, LATE, bytes(100), ALICES_OTHER_CHANNEL) is None


async def test_a_state_is_refused_too_while_the_disk_is_nearly_full(store: SqliteStore) -> None:
    await say(store, EARLY, b"backup")
    store.quotas = replace(ROOMY, min_free_space=1 << 60)
    assert "disk is nearly full" in (await say(store, LATE) or "")
    # What is known already needs no room.
    assert await say(store, EARLY) is None
    assert await states(store) == {CHANNEL: EARLY}
    store.quotas = ROOMY
    assert await say(store, LATE) is None
    assert await states(store) == {CHANNEL: LATE}


async def test_a_refused_backup_takes_no_other_channels_place(store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_channels_per_peer=1, max_bytes_per_peer=100)
    lease = await store.open_lease(ALICE, Recorder())
    lease.put(1, ALICES_CHANNEL, bytes(101), LATE)
    lease.put(2, ALICES_OTHER_CHANNEL, b"small", EARLY)
    await store.settle()
    assert await states(store) == {OTHER_CHANNEL: EARLY}


async def test_the_bytes_of_a_peer_are_those_of_all_its_kinds(store: SqliteStore) -> None:
    store.quotas = replace(ROOMY, max_bytes_per_peer=300)
    slots = slots_of(ALICE)
    for slot in slots[:3]:
        assert await told(store, bytes(100), slot) is None
    assert "300 bytes" in (await told(store, b"x", slots[3]) or "")
    for slot in slots[:3]:
        assert "300 bytes" in (await told(store, bytes(101), slot) or "")
        assert await push(store, slot=slot) == bytes(100)
    await assert_counts_are_right(store)


# Every kind of backup is kept by the same rules


@every_kind
async def test_every_kind_has_a_history_of_its_own(
    backend: SqliteBackend, store: SqliteStore, slot: Slot
) -> None:
    store.quotas = replace(ROOMY, history=2)
    others = [other for other in slots_of(ALICE) if other != slot]
    for other in others:
        await push(store, b"one of a kind", slot=other)
    for number in range(1, 6):
        backend.clock.advance(DAY)
        # Only the first replacement by a connection keeps what was there.
        await push(store, bytes(100 + number), bytes(200 + number), slot=slot)
    assert len(await sizes(store, slot)) == 3
    assert await push(store, slot=slot) == bytes(205)
    # The same again is no new version.
    await push(store, bytes(205), slot=slot)
    assert len(await sizes(store, slot)) == 3
    for other in others:
        assert await sizes(store, other) == [13]
    await assert_counts_are_right(store)


@every_kind
async def test_every_kind_bears_the_mark_of_data_loss(
    backend: SqliteBackend, store: SqliteStore, slot: Slot
) -> None:
    await push(store, GOOD, slot=slot)
    assert await push(store, empty(0), slot=slot) == GOOD
    (alarm,) = await alarms(store)
    assert (alarm.kind, alarm.slot, alarm.revision) == ("shrink", slot, 1)
    assert slot.label in alarm.text
    assert await pinned(store, slot) == [(len(GOOD), "data loss")]
    assert (await held(store, slot)) is not None
    backend.clock.advance(ROOMY.hold_on_shrink - 1)
    assert await push(store, slot=slot) == GOOD
    backend.clock.advance(1)
    assert await push(store, slot=slot) == empty(0)


@every_kind
async def test_the_alarm_of_every_kind_is_acknowledged(store: SqliteStore, slot: Slot) -> None:
    await push(store, GOOD, slot=slot)
    await push(store, empty(0), slot=slot)
    (alarm,) = await alarms(store)
    await methods(store)["alarms.ack"](alarm.number)
    assert await pinned(store, slot) == []
    assert await push(store, slot=slot) == empty(0)


async def test_a_channel_whose_backup_shrinks_keeps_counting(store: SqliteStore) -> None:
    await say(store, EARLY, GOOD)
    await say(store, LATE, empty(0))
    lease = await store.open_lease(ALICE, Recorder())
    assert await all_of(lease) == {ALICES_CHANNEL: GOOD}
    assert lease.channels == {CHANNEL: LATE}


@every_kind
async def test_an_operator_holds_pins_and_deletes_versions_of_every_kind(
    backend: SqliteBackend, store: SqliteStore, slot: Slot
) -> None:
    store.quotas = replace(ROOMY, history=1)
    call = methods(store)
    await push(store, b"older", slot=slot)
    await push(store, b"newer", slot=slot)
    await call["backups.hold"](*arguments(slot), 1, 7 * DAY)
    assert await push(store, slot=slot) == b"older"
    await call["backups.release"](*arguments(slot))
    assert await push(store, slot=slot) == b"newer"
    await call["backups.pin"](*arguments(slot), 1)
    for number in range(3):
        backend.clock.advance(DAY)
        await push(store, bytes(number + 10), slot=slot)
    assert await pinned(store, slot) == [(len(b"older"), "operator")]
    await call["backups.unpin"](*arguments(slot), 1)
    await push(store, b"newest", slot=slot)
    assert len(b"older") not in await sizes(store, slot)
    while await sizes(store, slot):
        await call["backups.delete"](*arguments(slot), await newest_revision(store, slot))
        await assert_counts_are_right(store)
    assert await push(store, slot=slot) is None
