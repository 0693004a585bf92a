"""What is noted over time: stored bytes and updates, whatever the clock and the disk do."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import structlog.testing

from peerstore.activity import ActivityLog
from peerstore.store.base import KEPT_SAMPLES, SAMPLE_SECONDS, Sample
from peerstore.store.operations import note_activity
from peerstore.store.sqlite import SqliteStore
from tests.store_contract import ALICES, BOBS, START
from tests.test_store import SqliteBackend, edited, write

EVER = 1 << 62
DAY = 86400


async def noted(store: SqliteStore) -> list[Sample]:
    """All samples."""
    return await store.reader.activity(-EVER, EVER)


async def note_for(backend: SqliteBackend, store: SqliteStore, periods: int) -> None:
    """Note that nothing happens for so many periods."""
    for _ in range(periods):
        await store.run(note_activity(0))
        backend.clock.advance(SAMPLE_SECONDS)


async def test_a_sample_says_what_is_stored_and_what_came_since_the_one_before(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    updates = 0
    log = ActivityLog(store, lambda: updates)
    await log.note()
    await write(store, (ALICES, b"a" * 1000), (BOBS, b"b" * 500))
    updates = 7
    backend.clock.advance(SAMPLE_SECONDS)
    await log.note()
    backend.clock.advance(SAMPLE_SECONDS)
    updates = 9
    await log.note()
    first, second = START + SAMPLE_SECONDS, START + 2 * SAMPLE_SECONDS
    assert await noted(store) == [
        Sample(START, 0, 0),
        Sample(first, 1500, 7),
        Sample(second, 1500, 2),
    ]


async def test_only_what_was_noted_between_two_times_is_read(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await note_for(backend, store, 5)
    between = await store.reader.activity(START + SAMPLE_SECONDS, START + 3 * SAMPLE_SECONDS)
    assert [sample.at - START for sample in between] == [600, 1200, 1800]


async def test_a_daemon_that_starts_again_and_again_adds_no_rows(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    for _ in range(5):
        await ActivityLog(store, lambda: 3).note()
        backend.clock.advance(1)
    assert await noted(store) == [Sample(START + 4, 0, 15)]


async def test_what_was_noted_outlives_the_daemon(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await note_for(backend, store, 2)
    await store.close()
    backend.clock.now += 5 * DAY
    store = await backend.open()
    await note_for(backend, store, 1)
    assert [sample.at - START for sample in await noted(store)] == [0, 600, 1200 + 5 * DAY]


async def test_samples_go_after_31_days_in_which_a_daemon_ran(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    await store.run(note_activity(1))
    with edited(backend.path) as database:
        database.execute("UPDATE activity SET period = -?", (KEPT_SAMPLES - 1,))
    await store.run(note_activity(2))
    assert [sample.updates for sample in await noted(store)] == [1, 2]
    backend.clock.advance(SAMPLE_SECONDS)
    await store.run(note_activity(3))
    assert [sample.updates for sample in await noted(store)] == [2, 3]


@pytest.mark.parametrize("jump", [-100 * DAY, -3601, 3601, 100_000 * DAY])
async def test_a_clock_that_jumps_takes_no_sample_away(
    backend: SqliteBackend, store: SqliteStore, jump: int
) -> None:
    await note_for(backend, store, 3)
    backend.clock.now += jump
    await note_for(backend, store, 3)
    backend.clock.now -= jump
    await note_for(backend, store, 3)
    assert len(await noted(store)) == 9
    # What the wrong clock has noted lies somewhere else, and goes with time like all others.
    right = await store.reader.activity(START, START + 9 * SAMPLE_SECONDS)
    assert [sample.at - START for sample in right if (sample.at - START) % 600 == 0] == [
        0, 600, 1200, 3600, 4200, 4800,
    ]  # fmt: skip


async def test_what_a_wrong_clock_has_noted_is_gone_in_the_end(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    backend.clock.now += 100_000 * DAY
    await note_for(backend, store, 1)
    backend.clock.now -= 100_000 * DAY
    backend.clock.advance(31 * DAY)
    await note_for(backend, store, 1)
    assert [sample.at for sample in await noted(store)] == [START + 31 * DAY + SAMPLE_SECONDS]


async def test_a_sample_that_cannot_be_written_is_left_out_and_its_updates_come_with_the_next(
    backend: SqliteBackend, store: SqliteStore
) -> None:
    totals = itertools.count(10, 10)
    log = ActivityLog(store, lambda: next(totals))
    await log.note()
    with edited(backend.path) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON activity"
            " BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
    backend.clock.advance(SAMPLE_SECONDS)
    with structlog.testing.capture_logs() as logged:
        await log.note()
    assert "activity_not_noted" in {event["event"] for event in logged}
    with edited(backend.path) as database:
        database.execute("DROP TRIGGER full")
    backend.clock.advance(SAMPLE_SECONDS)
    await log.note()
    assert [(s.at - START, s.updates) for s in await noted(store)] == [(0, 10), (1200, 20)]
    await write(store, (ALICES, b"stored as ever"))
    assert (await store.counts()).backups == 1


async def test_the_first_sample_is_made_at_once(store: SqliteStore) -> None:
    asked = asyncio.Event()

    def updates() -> int:
        asked.set()
        return 0

    running = asyncio.create_task(ActivityLog(store, updates).run())
    await asked.wait()
    await store.run(note_activity(0))  # behind it
    assert len(await noted(store)) == 1
    running.cancel()
    await asyncio.wait((running,))
