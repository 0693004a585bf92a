"""Keeping up with the routing node, beside a real store and a node of which a test says all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import structlog

from peerstore import daemon as daemon_module
from peerstore import watch as watch_module
from peerstore.channels.base import Answer, KnownChannel, NodeChannel
from peerstore.config import Config
from peerstore.errors import SourceError
from peerstore.store import operations
from peerstore.store.base import Retention
from peerstore.store.due import Place
from peerstore.store.snapshot import restore, snapshot
from peerstore.store.sqlite import SqliteStore
from peerstore.store.times import Moment
from peerstore.types import BackupKind, ChannelState, Network, NodeId, Slot
from peerstore.watch import ChannelWatch
from tests.store_contract import Recorder, peer
from tests.test_store import NODE_ID, SqliteBackend, prune

NODE, OTHER_NODE, ALICE, BOB = peer(9), peer(8), peer(1), peer(2)
CHANNEL = b"\x01" * 32
BLOCKS = 20
CLOSE = Retention(blocks=BLOCKS)
USED = ChannelState(commitments=1)


class Source:
    """A routing node that says what it is told to."""

    def __init__(self) -> None:
        self.answer: Answer | Exception = said(100)
        self.asked = 0
        self.was_asked = asyncio.Event()
        self.changes: asyncio.Queue[Exception | None] = asyncio.Queue()
        self.closed = False

    async def ask(self) -> Answer:
        self.asked += 1
        self.was_asked.set()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def changed(self) -> None:
        if (error := await self.changes.get()) is not None:
            raise error

    async def close(self) -> None:
        self.closed = True

    async def wait_asked(self, times: int) -> None:
        """Wait until it was asked so often in all."""
        while self.asked < times:
            self.was_asked.clear()
            await self.was_asked.wait()


def said(
    height: int, *channels: NodeChannel, synced: bool = True, node_id: NodeId = NODE
) -> Answer:
    return Answer(node_id, height, synced, channels)


def open_channel(node_id: NodeId = ALICE) -> NodeChannel:
    return NodeChannel(node_id, CHANNEL, open=True)


def closed_channel(height: int | None, node_id: NodeId = ALICE) -> NodeChannel:
    return NodeChannel(node_id, CHANNEL, open=False, closed_height=height)


class Watched:
    """A watch with all that it needs."""

    def __init__(self, backend: SqliteBackend) -> None:
        self.backend = backend
        self.source = Source()
        self.told = 0

    async def start(self) -> None:
        self.store: SqliteStore = await self.backend.open(aging=False)
        self.watch = ChannelWatch(
            self.source,
            self.store,
            await self.store.reader.node_channels(),
            (await self.store.reader.meta()).moment.height,
            blocks=lambda: BLOCKS,
            changed=self.note,
        )

    def note(self) -> None:
        self.told += 1

    async def look(self, answer: Answer | Exception) -> None:
        self.source.answer = answer
        await self.watch.look()

    async def put(self, slot: Slot, state: ChannelState = USED) -> None:
        lease = await self.store.open_lease(slot.node_id, Recorder())
        lease.put(1, slot, b"backup", state if slot.channel_id else None)
        await self.store.settle()
        lease.close()

    async def due(self) -> set[NodeId]:
        return {d.slot.node_id for d in await prune(self.store, CLOSE, dry_run=True)}


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    watched = Watched(SqliteBackend(tmp_path))
    await watched.start()
    yield watched
    await watched.backend.dispose()


@pytest.fixture(autouse=True)
def all_is_logged() -> None:
    """Whatever the tests before have set the log to."""
    structlog.reset_defaults()


@contextlib.asynccontextmanager
async def running(watched: Watched) -> AsyncIterator[None]:
    task = asyncio.create_task(watched.watch.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))
        assert watched.source.closed


async def test_what_is_remembered_outlives_a_restart(watched: Watched) -> None:
    await watched.look(said(100, open_channel(), closed_channel(90, BOB)))
    await watched.store.close()
    await watched.start()
    watch = watched.watch
    assert not watch.describe()["trusted"]
    assert watch.within(ALICE, None)
    assert watch.within(BOB, None)
    known = await watched.store.reader.node_channels()
    assert [(c.node_id, c.open, c.closed_height) for c in known] == [
        (ALICE, True, None),
        (BOB, False, 90),
    ]
    assert await watched.store.reader.node_channels(BOB) == known[1:]
    assert watch.describe()["height"] == 100
    await watched.look(said(90 + BLOCKS, open_channel(), closed_channel(90, BOB)))
    assert watch.answered
    assert not watch.within(BOB, None)
    assert watch.within(ALICE, None)


async def test_nothing_can_be_trusted_before_the_first_answer(watched: Watched) -> None:
    assert watched.store.moment == Moment(0, 0, aging=False)
    assert watched.watch.describe() == {
        "node_id": None,
        "answered": False,
        "trusted": False,
        "error": "it was not asked yet",
        "height": None,
        "channels": 0,
        "open": 0,
    }
    await watched.look(said(100, open_channel()))
    assert watched.store.moment == Moment(0, 0, 100)
    assert watched.watch.describe() == {
        "node_id": NODE.hex(),
        "answered": True,
        "trusted": True,
        "error": None,
        "height": 100,
        "channels": 1,
        "open": 1,
    }


@pytest.mark.parametrize(
    "trouble",
    [
        SourceError("the node is down"),
        said(100 + BLOCKS, synced=False),
        RuntimeError("a mistake of ours"),
        TimeoutError(),
    ],
    ids=repr,
)
async def test_while_it_cant_be_trusted_nothing_ages_and_nobody_loses_service(
    watched: Watched, trouble: Answer | Exception
) -> None:
    await watched.look(said(100, closed_channel(100)))
    await watched.put(Slot(ALICE, BackupKind.PEER_STORAGE))
    aged = watched.store.moment.aged
    await watched.look(trouble)
    assert watched.watch.error
    assert watched.watch.answered
    watched.backend.clock.advance(10**7)
    assert watched.store.moment.aged == aged
    assert watched.store.seen >= 10**7
    assert watched.watch.within(ALICE, None)
    assert await watched.due() == set()
    await watched.look(said(100 + BLOCKS, closed_channel(100)))
    assert not watched.watch.error
    assert await watched.due() == {ALICE}
    assert not watched.watch.within(ALICE, None)


async def test_a_visit_while_no_height_is_known_counts_as_one_at_the_next(watched: Watched) -> None:
    await watched.look(said(100, closed_channel(90)))
    await watched.look(SourceError("down"))
    await watched.put(Slot(ALICE, BackupKind.PEER_STORAGE))
    await watched.look(said(150, closed_channel(90)))
    assert await watched.due() == set()
    await watched.look(said(150 + BLOCKS - 1, closed_channel(90)))
    assert await watched.due() == set()
    await watched.look(said(150 + BLOCKS, closed_channel(90)))
    assert await watched.due() == {ALICE}


async def test_a_visit_in_an_outage_is_not_taken_for_the_one_before(watched: Watched) -> None:
    await watched.look(said(100, closed_channel(90)))
    await watched.put(Slot(ALICE, BackupKind.PEER_STORAGE))
    await watched.look(SourceError("down"))
    await watched.put(Slot(ALICE, BackupKind.PEER_STORAGE))
    await watched.store.save_visits()
    await watched.look(said(100 + BLOCKS, closed_channel(90)))
    assert await watched.due() == set()
    await watched.look(said(100 + 2 * BLOCKS, closed_channel(90)))
    assert await watched.due() == {ALICE}


async def test_a_visit_at_another_height_is_on_disk_before_what_it_stores(
    watched: Watched,
) -> None:
    """A daemon that is killed forgets no visit of which a peer was told anything."""
    slot = Slot(ALICE, BackupKind.PEER_STORAGE)

    def last_height() -> object:
        with contextlib.closing(sqlite3.connect(watched.backend.path)) as database:
            return database.execute("SELECT last_height FROM peer").fetchone()[0]

    await watched.look(said(100, closed_channel(90)))
    await watched.put(slot)
    await watched.look(said(115, closed_channel(90)))
    assert last_height() == 100
    # The same bytes again: nothing else has to be written.
    lease = await watched.store.open_lease(ALICE, Recorder())
    lease.put(1, slot, b"backup")
    await watched.store.settle()
    assert last_height() == 115
    lease.close()


async def test_nothing_goes_when_the_node_is_lost_within_a_prune(watched: Watched) -> None:
    await watched.look(said(100, closed_channel(100)))
    await watched.put(Slot(ALICE, BackupKind.PEER_STORAGE))
    watched.backend.clock.advance(10**7)  # far behind after_close
    await watched.look(said(101, closed_channel(100)))

    def reserve(node_ids: Iterable[NodeId]) -> set[NodeId]:
        return set(node_ids)

    for rule in range(3):
        watched.store.trust(None)
        operation, pruned, following = operations.prune(CLOSE, Place(rule), reserve)
        await watched.store.run(operation)
        assert (pruned, following) == ([], [None])
    assert len([v async for v in watched.store.versions()]) == 1


async def test_what_was_restored_has_all_its_time_again(watched: Watched, tmp_path: Path) -> None:
    await watched.look(said(100, closed_channel(100)))
    await watched.put(Slot(ALICE, BackupKind.PEER_STORAGE))
    await watched.store.save_visits()
    snapshot(watched.backend.path, tmp_path / "copy.db")
    await watched.store.close()
    restore(
        tmp_path / "copy.db", watched.backend.path, node_id=NODE_ID, network=Network.REGTEST, now=1
    )
    await watched.start()
    for height, expected in ((5000, set()), (5000 + BLOCKS, {ALICE})):
        await watched.look(said(height, closed_channel(100)))
        assert await watched.due() == expected


async def test_an_old_copy_put_back_by_hand_has_all_its_time_again(
    watched: Watched, tmp_path: Path
) -> None:
    await watched.look(said(100, closed_channel(100)))
    await watched.put(Slot(ALICE, BackupKind.PEER_STORAGE))
    await watched.store.close()
    shutil.copy(watched.backend.path, tmp_path / "old.db")
    await watched.start()
    await watched.put(Slot(BOB, BackupKind.PEER_STORAGE))
    await watched.store.close()
    shutil.copy(tmp_path / "old.db", watched.backend.path)
    await watched.start()
    for height, expected in ((5000, set()), (5000 + BLOCKS, {ALICE})):
        await watched.look(said(height, closed_channel(100)))
        assert await watched.due() == expected
    kinds = {alarm.kind for alarm in await watched.store.reader.alarms(acknowledged=False)}
    assert "behind" in kinds


async def test_many_visits_get_their_height_piece_by_piece(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "ROWS_AT_ONCE", 2)
    everybody = [peer(number) for number in range(10, 17)]
    for node_id in everybody:
        await watched.put(Slot(node_id, BackupKind.PEER_STORAGE))
    channels = [closed_channel(90, node_id) for node_id in everybody]
    await watched.look(said(100, *channels))
    await watched.look(said(100 + BLOCKS, *channels))
    assert await watched.due() == set(everybody)


async def test_openings_are_learned_before_closings(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "ROWS_AT_ONCE", 1)
    learned: list[bool] = []
    learn = operations.learn

    def noted(channels: list[KnownChannel]) -> operations.Operation:
        learned.extend(channel.open for channel in channels)
        return learn(channels)

    monkeypatch.setattr(operations, "learn", noted)
    other = NodeChannel(ALICE, b"\x02" * 32, open=True)
    await watched.look(said(100, closed_channel(10), other))
    assert learned == [True, False]


async def test_another_routing_node_raises_an_alarm(watched: Watched) -> None:
    await watched.put(Slot(ALICE, BackupKind.PEER_STORAGE))
    await watched.look(said(100, open_channel()))
    assert await watched.store.reader.alarms(acknowledged=False) == []
    await watched.look(said(200, node_id=OTHER_NODE))
    (alarm,) = await watched.store.reader.alarms(acknowledged=False)
    assert alarm.kind == "source"
    assert NODE.hex() in alarm.text
    assert OTHER_NODE.hex() in alarm.text
    # There is time to mend it.
    assert watched.watch.within(ALICE, None)
    assert await watched.due() == set()
    await watched.look(said(200 + BLOCKS, open_channel()))
    (alarm,) = await watched.store.reader.alarms(acknowledged=False)
    assert alarm.count == 2
    assert await watched.due() == set()
    await watched.store.close()
    await watched.start()
    await watched.look(said(200, open_channel()))
    assert len(await watched.store.reader.alarms(acknowledged=False)) == 1


async def test_who_has_channels_is_told_on_when_that_changes(watched: Watched) -> None:
    await watched.look(SourceError("down"))
    assert watched.told == 0
    await watched.look(said(100))
    await watched.look(said(100))
    assert watched.told == 1
    await watched.look(said(101))  # who is within retention depends on it
    assert watched.told == 2
    await watched.look(said(101, open_channel()))
    assert watched.told == 3
    await watched.look(said(101, closed_channel(101)))
    assert watched.told == 4


async def test_a_database_that_cant_be_written_is_no_answer(watched: Watched) -> None:
    await watched.look(said(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "learn", lambda _: _failing)
        await watched.look(said(101, open_channel()))
    assert watched.watch.error
    assert not watched.store.moment.aging
    await watched.look(said(101, open_channel()))
    assert not watched.watch.error
    assert watched.watch.within(ALICE, None)


async def _failing(tx: operations.Transaction) -> set[NodeId]:
    await tx.all("DELETE FROM nothing_that_there_is")
    return set()


# What is due


async def test_the_last_closing_of_a_peer_counts(watched: Watched) -> None:
    await watched.look(said(100, open_channel()))
    await watched.put(Slot(ALICE, BackupKind.PEER_STORAGE))
    closings = [closed_channel(100), NodeChannel(ALICE, b"\x02" * 32, False, 110)]
    for height, expected in ((110 + BLOCKS - 1, set()), (110 + BLOCKS, {ALICE})):
        await watched.look(said(height, *closings))
        assert await watched.due() == expected
    await watched.look(said(110 + BLOCKS, *closings, NodeChannel(ALICE, b"\x03" * 32, True)))
    assert await watched.due() == set()


@pytest.mark.parametrize("closed", [False, True])
async def test_a_channel_that_the_node_does_not_know_keeps_all_of_its_peer(
    watched: Watched, closed: bool
) -> None:
    slot = Slot(ALICE, BackupKind.CHANNEL_BACKUP, b"\x02" * 32)
    await watched.look(said(100, closed_channel(100)))
    await watched.put(Slot(ALICE, BackupKind.PEER_STORAGE))
    await watched.put(slot, ChannelState(shutdown=closed, closing=closed))
    await watched.look(said(100 + BLOCKS - 1, closed_channel(100)))
    assert await prune(watched.store, CLOSE, dry_run=True) == []
    await watched.look(said(100 + BLOCKS, closed_channel(100)))
    due = await prune(watched.store, CLOSE)
    assert len(due) == (2 if closed else 0)


async def test_what_the_routing_node_says_beats_what_the_messages_say(watched: Watched) -> None:
    slot = Slot(ALICE, BackupKind.CHANNEL_BACKUP, CHANNEL)
    await watched.look(said(100, open_channel()))
    await watched.put(slot, ChannelState(shutdown=True, closing=True))
    await watched.look(said(100 + 10 * BLOCKS, open_channel()))
    watched.backend.clock.advance(10**7)
    assert await watched.due() == set()
    (row,) = [row async for row in watched.store.reader.channels(CLOSE)]
    assert (row.node_says, row.closed_height, row.passed) == ("open", None, None)
    # Its messages say nothing of an end, the node does.
    await watched.put(slot, ChannelState())
    height = 100 + 10 * BLOCKS
    await watched.look(said(height + BLOCKS - 1, closed_channel(90)))
    await watched.store.save_visits()
    (row,) = [row async for row in watched.store.reader.channels(CLOSE)]
    assert (row.node_says, row.closed_height) == ("closed", 90)
    assert CLOSE.left(row.passed) == (1, None)
    await watched.look(said(height + BLOCKS, closed_channel(90)))
    assert await watched.due() == {ALICE}


async def test_what_is_due_without_the_routing_node_counts_in_time(watched: Watched) -> None:
    """An operator who takes the source out of the configuration."""
    await watched.look(said(100, closed_channel(100)))
    await watched.put(Slot(ALICE, BackupKind.PEER_STORAGE))
    await watched.store.close()
    store = watched.store = await watched.backend.open()
    assert store.moment.height is None
    watched.backend.clock.advance(CLOSE.after_close - 1)
    assert await watched.due() == set()
    await store.save_visits()
    (row,) = [row async for row in store.reader.channels(CLOSE)]
    assert CLOSE.left(row.peer_passed) == (None, 1)
    watched.backend.clock.advance(1)
    assert await watched.due() == {ALICE}


async def test_a_channel_is_listed_with_what_goes_when(watched: Watched) -> None:
    channels = [closed_channel(90), NodeChannel(BOB, CHANNEL, True), closed_channel(95, BOB)]
    channels[2] = NodeChannel(BOB, b"\x02" * 32, False, 95)
    nobody = NodeChannel(peer(3), CHANNEL, False, 50)
    await watched.look(said(100, *channels, nobody))
    await watched.put(Slot(ALICE, BackupKind.NODE_BACKUP))
    await watched.put(Slot(BOB, BackupKind.PEER_STORAGE))
    await watched.put(Slot(BOB, BackupKind.CHANNEL_BACKUP, b"\x02" * 32))
    await watched.look(said(105, *channels, nobody))
    rows = [row async for row in watched.store.reader.channels(CLOSE)]
    found = [
        (row.slot.node_id, row.node_says, row.has_backup, CLOSE.left(row.passed),
         CLOSE.left(row.peer_passed))
        for row in rows
    ]  # fmt: skip
    never, in_15 = (None, None), (BLOCKS - 5, None)
    assert found == [
        (ALICE, "closed", False, never, in_15),
        (BOB, "open", False, never, never),
        (BOB, "closed", True, in_15, never),
        (peer(3), "closed", False, never, never),
    ]
    assert [row async for row in watched.store.reader.channels(CLOSE, BOB)] == rows[1:3]


# When it is asked


def patience(
    monkeypatch: pytest.MonkeyPatch,
    *,
    poll: float = 1e6,
    settle: float = 0.0,
    retry: float = 0.0,
    deaf: float = 0.0,
) -> None:
    monkeypatch.setattr(watch_module, "POLL_SECONDS", poll)
    monkeypatch.setattr(watch_module, "SETTLE_SECONDS", settle)
    monkeypatch.setattr(watch_module, "SHARE", 0.0)
    monkeypatch.setattr(watch_module, "RETRY_SECONDS", (retry,))
    monkeypatch.setattr(watch_module, "DEAF_SECONDS", (deaf,))


async def test_it_is_asked_when_it_tells_of_a_change(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(monkeypatch)
    async with running(watched):
        for times in range(1, 4):
            await watched.source.wait_asked(times)
            assert watched.source.asked == times
            await watched.source.changes.put(None)


async def test_it_is_asked_regularly_when_it_tells_of_nothing(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(monkeypatch, poll=0.0)
    async with running(watched):
        await watched.source.wait_asked(4)


async def test_it_is_asked_again_after_a_failure(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(monkeypatch)
    watched.source.answer = SourceError("down")
    async with running(watched):
        await watched.source.wait_asked(3)
        watched.source.answer = said(100)
        await watched.source.wait_asked(4)
        # By the next question the answer is learned.
        await watched.source.changes.put(None)
        await watched.source.wait_asked(5)
        assert watched.watch.answered


@pytest.mark.parametrize("error", [SourceError("no events"), RuntimeError("a mistake of ours")])
async def test_who_does_not_tell_of_changes_is_trusted_all_the_same(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    patience(monkeypatch)
    with structlog.testing.capture_logs() as logs:
        async with running(watched):
            for times in range(1, 5):
                await watched.source.wait_asked(times)
                await watched.source.changes.put(error)
            assert watched.watch.answered
            assert not watched.watch.error
    told = [entry for entry in logs if entry["event"] == "source_tells_no_changes"]
    assert len(told) == 1


async def test_what_goes_wrong_is_logged_once(watched: Watched) -> None:
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            await watched.look(SourceError("the node is down"))
        await watched.look(said(100))
        await watched.look(said(101))
    assert [entry["event"] for entry in logs] == ["source_not_trusted", "source_trusted"]


async def test_who_is_slow_to_answer_is_not_trusted_meanwhile(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    await watched.look(said(100))
    monkeypatch.setattr(watch_module, "OVERDUE_SECONDS", 0.0)
    watched.watch._took = 0.0
    lost, answer = asyncio.Event(), asyncio.Event()
    trust = watched.store.trust

    def noted(height: int | None) -> None:
        trust(height)
        if height is None:
            lost.set()

    async def slow() -> Answer:
        await answer.wait()
        return said(101)

    monkeypatch.setattr(watched.store, "trust", noted)
    monkeypatch.setattr(watched.source, "ask", slow)
    looking = asyncio.create_task(watched.watch.look())
    await lost.wait()
    assert "slow to answer" in watched.watch.error
    assert not watched.store.moment.aging
    answer.set()
    await looking
    assert watched.store.moment == Moment(0, 0, 101)


async def test_retention_deletes_by_itself(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "PRUNE_SECONDS", 0.0)
    await watched.look(said(100, closed_channel(100)))
    await watched.put(Slot(ALICE, BackupKind.PEER_STORAGE))
    await watched.look(said(100 + Config().retention.after_close_blocks, closed_channel(100)))
    looks, pruned = 0, asyncio.Event()

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise SourceError("the node is down")  # that is no reason to end
        if looks == 4:
            pruned.set()

    daemon = SimpleNamespace(config=Config(), store=watched.store, look_at_channels=look)
    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(daemon_module._prune(cast("daemon_module.Daemon", daemon)))
        await pruned.wait()
        task.cancel()
        await asyncio.wait((task,))
    assert [entry["event"] for entry in logs][:3] == ["prune_failed", "prune_failed", "pruned"]
    assert logs[2]["reason"] == "all channels with the peer are closed"
    assert [version async for version in watched.store.versions()] == []


async def test_the_start_waits_for_the_first_answer_but_not_for_ever(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(monkeypatch)
    never = asyncio.Event()

    async def silent() -> Answer:
        await never.wait()
        raise AssertionError

    monkeypatch.setattr(watched.source, "ask", silent)
    async with running(watched):
        await watched.watch.first_look(0.0)
        assert not watched.watch.answered


@pytest.mark.parametrize(
    ("number", "seconds"), [(1, 1.0), (2, 2.0), (5, 30.0), (6, 30.0), (10**6, 30.0)]
)
def test_how_long_is_waited_after_failures(number: int, seconds: float) -> None:
    nth: Callable[[tuple[float, ...], int], float] = watch_module._nth
    assert nth(watch_module.RETRY_SECONDS, number) == seconds
    for waits in (watch_module.RETRY_SECONDS, watch_module.DEAF_SECONDS):
        assert all(before < after for before, after in itertools.pairwise(waits))
        assert waits[-1] <= watch_module.POLL_SECONDS
