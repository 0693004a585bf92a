"""`peerstore alarms`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from peerstore.cli.common import App, age, change, iso, json_option, pass_app, table

if TYPE_CHECKING:
    from peerstore.store.base import Alarm


@click.group()
def alarms() -> None:
    """What the operator has to know, and to take note of."""


@alarms.command("list")
@click.option("--all", "every", is_flag=True, help="Those that were acknowledged too.")
@json_option
@pass_app
def list_(app: App, every: bool) -> None:
    """The alarms that stand.

    shrink: a peer was given its backup back and then sent less than half of it; it may have lost
    its data. damaged: a stored backup does not match its digest. behind: the database is older
    than it was before.
    """
    import asyncio

    from peerstore.store.reader import SqliteReader

    async def gather() -> list[Alarm]:
        async with await SqliteReader.open(app.database) as reader:
            return await reader.alarms(acknowledged=every)

    found = asyncio.run(gather())
    now = time.time()
    app.emit(
        {"items": [document(alarm) for alarm in found]},
        lambda: table(
            ("NO", "KIND", "SINCE", "TIMES", ""),
            [(str(a.number), a.kind, age(now - a.raised_at), str(a.count), a.text) for a in found],
        ),
    )


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


def document(alarm: Alarm) -> dict[str, Any]:
    """An alarm as the JSON documents show it."""
    slot = alarm.slot
    return {
        "number": alarm.number,
        "kind": alarm.kind,
        "text": alarm.text,
        "node_id": None if slot is None else slot.node_id.hex(),
        "backup_kind": None if slot is None else slot.kind.label,
        "channel_id": (slot.channel_id.hex() or None) if slot is not None else None,
        "revision": alarm.revision,
        "raised_at": iso(alarm.raised_at),
        "last_at": iso(alarm.last_at),
        "count": alarm.count,
        "acknowledged_at": None if alarm.acknowledged_at is None else iso(alarm.acknowledged_at),
    }
