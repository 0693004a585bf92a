"""`peerstore channels`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

import click

from peerstore.cli.common import (
    App,
    ago,
    filter_option,
    json_option,
    limit_option,
    live,
    node_id_argument,
    pass_app,
    resolve_node_id,
)
from peerstore.cli.output import Column, Row, limited, nothing_fits, one_of, pairs, show_list
from peerstore.words import age, counted

STATES = ("open", "closing", "closed", "unknown")


@click.group(short_help="Channels of peers, and what goes when.")
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
    """The channels of the routing node and those that have a backup here, all or the peer ID's.

    The state is what the routing node says or, of a channel that it does not know, what the
    channel's own messages have said. The backup of a closed one is deleted so many blocks, or so
    long, after that and after the peer's last visit; what else a peer has stored when that is so
    for all its channels.
    """
    import asyncio

    from peerstore.configured import retention
    from peerstore.documents import channel_document
    from peerstore.store.reader import SqliteReader

    states = {one_of(key, value, STATES) for key, value in pairs(filters, ("state",))}
    keep = retention(app.loaded.config)
    live(app)  # what the daemon knows is in the database then

    async def rows() -> AsyncGenerator[Row]:
        async with await SqliteReader.open(app.database) as reader:
            peer = None if node_id is None else await resolve_node_id(reader, node_id)
            async for channel in reader.channels(keep, peer):
                row = channel_document(channel, keep)
                if not states or row["state"] in states:
                    yield row

    nothing = nothing_fits("No channel is known.", filters)
    asyncio.run(show_list(app, limited(rows(), limit), columns(time.time()), nothing))


def columns(now: float, *, peer: bool = True) -> list[Column]:
    """How a list of channels looks, with the peer or without."""
    return [
        *([Column("NODE ID", lambda row: row["node_id"], 66, id=True)] if peer else []),
        Column("CHANNEL ID", lambda row: row["channel_id"], 64, id=True),
        Column("STATE", lambda row: row["state"], 7),
        Column("CLOSED", lambda row: ago(now, row["closed_at"]), 8, drop=2),
        Column("AT HEIGHT", lambda row: str(row["closed_height"] or ""), 9, drop=3, right=True),
        Column("BACKUP", lambda row: "yes" if row["has_backup"] else "", 6, drop=4),
        Column("DELETED IN", _deleted_in, 11, drop=1),
    ]


def _deleted_in(row: Any) -> str:
    """When the channel's backup goes; where it has none, what else the peer has stored."""
    prefix = "" if row["has_backup"] else "peer_"
    blocks, seconds = row[f"{prefix}deleted_in_blocks"], row[f"{prefix}deleted_in_seconds"]
    if blocks is not None:
        return counted(blocks, "block")
    return "" if seconds is None else age(seconds)
