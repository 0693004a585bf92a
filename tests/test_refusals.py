"""The newest refusals that are remembered."""

from __future__ import annotations

from peerstore.refusals import NEWEST, NewestRefusals, NotedRefusal


def test_the_newest_come_first() -> None:
    refusals = NewestRefusals()
    refusals.note("192.0.2.1", "bad_handshake", 1.0)
    refusals.note("192.0.2.2", "full", 2.0)
    assert refusals.newest() == [
        NotedRefusal("192.0.2.2", "full", 1, 2.0),
        NotedRefusal("192.0.2.1", "bad_handshake", 1, 1.0),
    ]


def test_the_same_ones_are_counted_and_move_to_the_front() -> None:
    refusals = NewestRefusals()
    for at in (1.0, 2.0):
        refusals.note("192.0.2.1", "full", at)
    refusals.note("192.0.2.2", "full", 3.0)
    refusals.note("192.0.2.1", "bad_handshake", 4.0)
    refusals.note("192.0.2.1", "full", 5.0)
    assert [(noted.who, noted.reason, noted.count) for noted in refusals.newest()] == [
        ("192.0.2.1", "full", 3),
        ("192.0.2.1", "bad_handshake", 1),
        ("192.0.2.2", "full", 1),
    ]


def test_a_crowd_takes_no_more_room_than_a_few() -> None:
    refusals = NewestRefusals()
    for number in range(10 * NEWEST):
        refusals.note(f"peer {number}", "full", float(number))
    newest = refusals.newest()
    assert [noted.who for noted in newest] == [
        f"peer {number}" for number in reversed(range(9 * NEWEST, 10 * NEWEST))
    ]
