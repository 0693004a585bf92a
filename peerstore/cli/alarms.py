"""`peerstore alarms`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

import click

from peerstore.cli.common import (
    App,
    ago,
    change,
    filter_option,
    json_option,
    limit_option,
    pass_app,
    sort_option,
)
from peerstore.cli.output import Column, Row, limited, nothing_fits, one_of, pairs, show_list

if TYPE_CHECKING:
    from peerstore.store.base import Alarm

SORTS: dict[str, Callable[[Alarm], Any]] = {
    "number": lambda alarm: alarm.number,
    "kind": lambda alarm: (alarm.kind, alarm.number),
    "last_at": lambda alarm: (alarm.last_at, alarm.number),
}


@click.group()
@json_option
def alarms() -> None:
    """What the operator has to know, and to take note of."""


@alarms.command("list")
@click.option("--all", "every", is_flag=True, help="Those that were acknowledged too.")
@filter_option("kind=shrink|damaged|behind|source.")
@sort_option(tuple(SORTS))
@limit_option
@json_option
@pass_app
def list_(app: App, every: bool, filters: tuple[str, ...], sort: str, limit: int | None) -> None:
    """The alarms that stand.

    shrink: a peer was given its backup back and then sent less than half of it; it may have lost
    its data. damaged: a stored backup does not match its digest. behind: the database is older
    than it was before.
    """
    import asyncio

    from peerstore.documents import alarm_document
    from peerstore.store.base import ALARM_KINDS
    from peerstore.store.reader import SqliteReader

    kinds = {one_of(key, value, ALARM_KINDS) for key, value in pairs(filters, ("kind",))}

    async def rows() -> AsyncGenerator[Row]:
        async with await SqliteReader.open(app.database) as reader:
            for alarm in sorted(await reader.alarms(acknowledged=every), key=SORTS[sort]):
                if not kinds or alarm.kind in kinds:
                    yield alarm_document(alarm)

    shown = limited(rows(), limit)
    nothing = nothing_fits("No alarm stands.", filters)
    asyncio.run(show_list(app, shown, columns(time.time()), nothing))


@alarms.command()
@click.argument("number", type=int, metavar="N")
@json_option
@pass_app
def ack(app: App, number: int) -> None:
    """Take note of alarm N.

    For a shrink this ends the automatic hold and pins: the newest backup is given back again.
    """
    change(app, "alarms.ack", number=number)
    app.emit({"number": number, "done": True}, lambda: f"Alarm {number} is acknowledged.")


def columns(now: float) -> list[Column]:
    """How a list of alarms looks."""
    return [
        Column("NO", lambda row: str(row["number"]), 4, right=True),
        Column("KIND", lambda row: row["kind"], 8),
        Column("SINCE", lambda row: ago(now, row["raised_at"]), 8, drop=2),
        Column("TIMES", lambda row: str(row["count"]), 5, drop=1, right=True),
        Column("", lambda row: row["text"], 60),
    ]
