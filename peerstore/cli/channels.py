"""`peerstore channels`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

import click

from peerstore.cli.common import (
    App,
    age,
    ago,
    filter_option,
    json_option,
    limit_option,
    node_id_argument,
    pass_app,
    resolve_node_id,
)
from peerstore.cli.output import Column, Row, limited, nothing_fits, one_of, pairs, show_list

STATES = ("open", "closing", "closed", "unknown")


@click.group(short_help="Channels with a backup, and what goes when.")
@json_option
def channels() -> None:
    """The channels of peers, and how long what belongs to them is kept."""


@channels.command("list")
@node_id_argument("[ID]")
@filter_option("state=open|closing|closed|unknown.")
@limit_option
@json_option
@pass_app
def list_(app: App, node_id: str | None, filters: tuple[str, ...], limit: int | None) -> None:
    """The channels that have a backup here, of all peers or of the peer ID.

    The state is what the channel's own messages have said. The backup of a closed one is deleted
    `retention.after_close_time` after that and after the peer's last visit.
    """
    import asyncio

    from peerstore.configured import retention
    from peerstore.documents import channel_document
    from peerstore.store.reader import SqliteReader

    states = {one_of(key, value, STATES) for key, value in pairs(filters, ("state",))}
    keep = retention(app.loaded.config)

    async def rows() -> AsyncGenerator[Row]:
        async with await SqliteReader.open(app.database) as reader:
            peer = None if node_id is None else await resolve_node_id(reader, node_id)
            async for channel in reader.channels(peer):
                row = channel_document(channel, keep.due_in(channel))
                if not states or row["state"] in states:
                    yield row

    nothing = nothing_fits("No channel has a backup here.", filters)
    asyncio.run(show_list(app, limited(rows(), limit), columns(time.time()), nothing))


def columns(now: float, *, peer: bool = True) -> list[Column]:
    """How a list of channels looks, with the peer or without."""
    return [
        *([Column("NODE ID", lambda row: row["node_id"], 66, id=True)] if peer else []),
        Column("CHANNEL ID", lambda row: row["channel_id"], 64, id=True),
        Column("STATE", lambda row: row["state"], 7),
        Column("CLOSED", lambda row: ago(now, row["closed_at"]), 8, drop=2),
        Column("DELETED IN", _deleted_in, 10, drop=1),
    ]


def _deleted_in(row: Any) -> str:
    seconds = row["deleted_in_seconds"]
    return "" if seconds is None else age(seconds)
