"""`peerstore peers`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

import click

from peerstore.cli.common import (
    App,
    ago,
    ask,
    change,
    confirm,
    filter_option,
    json_option,
    limit_option,
    live,
    node_id_argument,
    pass_app,
    resolve_node_id,
    seconds_of,
    sort_option,
    yes_option,
)
from peerstore.cli.output import (
    Column,
    Row,
    facts,
    limited,
    nothing_fits,
    one_of,
    pairs,
    show_list,
    table,
    yes_or_no,
)
from peerstore.errors import ControlError, NotRunningError
from peerstore.words import age, counted, size

FORGET_DIGITS = 8
SORTS = ("node_id", "first_seen", "last_seen", "backups", "bytes")
FILTERS = ("connected", "kept", "established", "rule", "away")


@click.group()
@json_option
def peers() -> None:
    """Who stores here, who is connected, who may.

    A peer is named by its node id or the beginning of it.
    """


@peers.command("list", short_help="Who has stored something, and who is connected.")
@filter_option(
    "connected=yes|no, kept=yes|no (kept connected), established=yes|no, rule=allow|deny|none, or"
    " away=TIME: not here for so long, as in away=7d, of the time that the daemon has run."
)
@sort_option(SORTS)
@limit_option
@json_option
@pass_app
def list_(app: App, filters: tuple[str, ...], sort: str, limit: int | None) -> None:
    """The peers that have stored something, and those that are connected or kept connected."""
    import asyncio

    wanted = [_condition(key, value) for key, value in pairs(filters, FILTERS)]
    nothing = nothing_fits("No peer has stored anything yet.", filters)

    async def run() -> None:
        rows = limited(_rows(app, wanted, sort, limit), limit)
        await show_list(app, rows, columns(time.time()), nothing)

    asyncio.run(run())


@peers.command(short_help="All that is known of a peer.")
@node_id_argument()
@json_option
@pass_app
def show(app: App, node_id: str) -> None:
    """The story of the peer ID: where from, since when, what is stored, what was refused, why."""
    import asyncio

    story = asyncio.run(_story(app, node_id))
    app.emit(story, lambda: _words(story))


@peers.command(short_help="Connect to a peer, and keep it connected.")
@click.argument("uri", metavar="URI")
@json_option
@pass_app
def connect(app: App, uri: str) -> None:
    """Connect to the peer at URI (node_id@host:port), and keep it connected.

    Needs the daemon. What the peer has stored here is given back to it as at any other connection.
    It is dialed again when the connection ends, until `peerstore peers disconnect` or the daemon
    stops; `peers` in [dial] of the configuration is for good. When the first try fails, nothing is
    kept.
    """
    done = ask(app, "peers.connect", uri=uri)
    app.emit(
        {**done, "done": True},
        lambda: f"Connected to {done['node_id']} at {done['address']}; it is kept connected.",
    )


@peers.command(short_help="Close the connection of a peer, and dial it no more.")
@node_id_argument()
@json_option
@pass_app
def disconnect(app: App, node_id: str) -> None:
    """Close the connection of the peer ID, and keep it connected no longer.

    Needs the daemon. Nothing keeps the peer from coming back by itself. One of `peers` in [dial] of
    the configuration is left alone until `peerstore peers connect`, `peerstore reload` or a
    restart.
    """
    here, kept = ask(app, "peers.list")["items"], ask(app, "peers.kept")["items"]
    peer = _find(app, node_id, [row["node_id"] for row in (*here, *kept)])
    ask(app, "peers.disconnect", node_id=peer)
    app.emit({"node_id": peer, "done": True}, lambda: f"{peer} is disconnected.")


undo_option = click.option("--undo", is_flag=True, help="Take it back.")


@peers.command(short_help="Serve a peer in any mode.")
@node_id_argument()
@undo_option
@json_option
@pass_app
def allow(app: App, node_id: str, undo: bool) -> None:
    """Serve the peer ID whatever `policy.serve` says; a full id need not be known yet."""
    if node_id in {str(text) for text in app.loaded.config.policy.deny}:
        click.echo("Warning: policy.deny in the configuration wins over this", err=True)
    _rule(app, "allow", node_id, undo, "is served in any mode, with the next connection at last")


@peers.command(short_help="Take no more backups from a peer.")
@node_id_argument()
@undo_option
@json_option
@pass_app
def deny(app: App, node_id: str, undo: bool) -> None:
    """Take no more backups from the peer ID.

    What is stored is still given back to it: `peerstore peers forget` deletes that.
    """
    _rule(app, "deny", node_id, undo, "is not served any more")


@peers.command(short_help="Delete all that is stored for a peer.")
@node_id_argument()
@yes_option
@json_option
@pass_app
def forget(app: App, node_id: str, yes: bool) -> None:
    """Delete all that is stored for the peer ID, for good, pinned versions too."""
    import asyncio

    peer = _find(app, node_id, digits=FORGET_DIGITS)
    story = asyncio.run(_story(app, peer))
    confirm(
        f"Delete {counted(story['backups_count'], 'backup')} ({size(story['bytes'])}) of {peer}"
        " for good?",
        yes=yes,
    )
    change(app, "peers.forget", node_id=peer)
    app.emit(
        {"node_id": peer, "bytes": story["bytes"], "done": True}, lambda: f"{peer} is forgotten."
    )


def columns(now: float) -> list[Column]:
    """How a list of peers looks."""
    return [
        Column("NODE ID", lambda row: row["node_id"], 66, id=True),
        Column("SEEN", lambda row: _seen(row, now), 10),
        Column("SIZE", lambda row: size(row["bytes"]), 10, right=True),
        Column("BACKUPS", lambda row: str(row["backups"]), 7, drop=1, right=True),
        Column("SINCE", lambda row: ago(now, row["first_seen_at"]), 8, drop=2),
        Column("ADDRESS", lambda row: row["address"] or "", 46, drop=4),
        Column("CLIENT", lambda row: row["client"] or "", 17, drop=5),
        Column("RULE", lambda row: row["rule"] or "", 5, drop=3),
        Column("KEPT", lambda row: "yes" if row["kept"] else "", 4, drop=3),
    ]


def _seen(row: Any, now: float) -> str:
    if row["connected"]:
        return "connected"
    return f"{ago(now, row['last_seen_at'])} ago" if row["last_seen_at"] else "never"


def _condition(key: str, value: str) -> Callable[[Row], bool]:
    """A --filter of a list of peers; raises click.BadParameter."""
    if key == "away":
        least = seconds_of(key, value)
        return lambda row: row["away_seconds"] is not None and row["away_seconds"] >= least
    if key == "rule":
        rule = one_of(key, value, ("allow", "deny", "none"))
        return lambda row: (row["rule"] or "none") == rule
    wanted = yes_or_no(key, value)
    return lambda row: row[key] == wanted


async def _rows(
    app: App, wanted: list[Callable[[Row], bool]], sort: str, limit: int | None
) -> AsyncGenerator[Row]:
    from peerstore.documents import peer_document, stranger_document
    from peerstore.store.reader import SqliteReader

    database = app.database  # what is wrong with the configuration is said first
    now = live(app)
    async with await SqliteReader.open(database) as reader:
        others = dict.fromkeys((*now.connected, *now.kept), "")
        others |= {node_id.hex(): rule for node_id, rule in (await reader.rules()).items()}
        # What a filter leaves out does not count.
        most = None if wanted else limit
        async for peer in reader.peers(order=sort, limit=most):
            others.pop(peer.node_id.hex(), None)
            row = peer_document(peer, now)
            if all(fits(row) for fits in wanted):
                yield row
        for node_id, rule in sorted(others.items()):
            row = stranger_document(node_id, rule, now)
            if all(fits(row) for fits in wanted):
                yield row


async def _story(app: App, text: str) -> dict[str, Any]:
    """All that is known of a peer."""
    from peerstore.configured import policy, retention
    from peerstore.documents import (
        alarm_document,
        channel_document,
        peer_document,
        refusal_document,
        stranger_document,
        version_document,
    )
    from peerstore.policy import Visit
    from peerstore.retention import Members, Remembered
    from peerstore.store.reader import SqliteReader
    from peerstore.wire import features

    config = app.loaded.config
    now = live(app)
    async with await SqliteReader.open(app.database) as reader:
        rules = await reader.rules()
        others = [*now.connected, *now.kept, *(other.hex() for other in rules)]
        node_id = await resolve_node_id(reader, text, others=others)
        found = [peer async for peer in reader.peers(node_id)]
        versions = [version async for version in reader.versions(node_id)]
        keep = retention(config)
        channels = [
            channel_document(channel, keep) async for channel in reader.channels(keep, node_id)
        ]
        alarms = [
            alarm_document(alarm)
            for alarm in await reader.alarms(acknowledged=False)
            if alarm.slot is not None and alarm.slot.node_id == node_id
        ]
        refusals = [refusal_document(refusal) for refusal in await reader.refusals(node_id)]
        height = (await reader.meta()).moment.height
        members = Members(await reader.node_channels(node_id))
    remembered = Remembered(members, height, keep.blocks, _answered(app))
    visit = Visit(found[0].last_height) if found else None
    if found:
        document = peer_document(found[0], now)
    else:
        document = stranger_document(node_id.hex(), rules.get(node_id, ""), now)
    connection = now.connected.get(node_id.hex())
    refusal = policy(config, rules, remembered).decide(node_id, visit).refusal
    field = bytes.fromhex(connection["features"]) if connection else b""
    bits = features.decode_features(field or (found[0].features if found else b""))
    return {
        **{key: value for key, value in document.items() if key != "backups"},
        "backups_count": document["backups"],
        "connected_seconds": connection["seconds"] if connection else None,
        "dial_error": now.kept.get(node_id.hex()),
        "served": not refusal,
        "not_served_because": refusal or None,
        "node_backup_withheld": bool(found and found[0].forgone),
        "features": features.names(bits),
        "channels": channels,
        "backups": [version_document(version, history=True) for version in versions],
        "refusals": refusals,
        "alarms": alarms,
    }


def _answered(app: App) -> bool:
    """Whether the routing node has said who has channels, since the daemon was started."""
    try:
        source = ask(app, "daemon.info")["channel_source"]
    except (NotRunningError, ControlError):
        return False
    return source is not None and bool(source["answered"])


def _words(story: dict[str, Any]) -> str:
    from peerstore.cli.alarms import columns as alarm_columns
    from peerstore.cli.backups import columns as backup_columns
    from peerstore.cli.channels import columns as channel_columns
    from peerstore.cli.output import wrapped

    now = time.time()
    if story["connected"]:
        here = f"connected for {age(story['connected_seconds'])}"
    elif story["last_seen_at"]:
        here = f"last seen {ago(now, story['last_seen_at'])} ago"
    else:
        here = "never stored anything"
    lines = [
        ("Peer", story["node_id"]),
        ("State", here),
        ("Address", story["address"] or "unknown"),
        ("First seen", f"{ago(now, story['first_seen_at'])} ago" if story["first_seen_at"] else ""),
        ("Client", story["client"] or "not certain from its features"),
        ("Served", "yes" if story["served"] else f"no: {story['not_served_because']}"),
        (
            "Stored",
            f"{counted(story['backups_count'], 'backup')}, {size(story['bytes'])} with kept"
            " versions",
        ),
    ]
    if story["kept"]:
        why = f"; now it is not: {story['dial_error']}" if story["dial_error"] else ""
        lines.append(("Dialed", f"kept connected{why}"))
    if story["rule"]:
        lines.append(("Rule", story["rule"]))
    if not story["established"]:
        lines.append(("Note", "a stranger still: it did not come back after the probation"))
    if story["node_backup_withheld"]:
        lines.append(("Note", "it hung up when shown its node backup: not shown until stored anew"))
    parts = [facts(lines)]
    for title, rows, shown in (
        (
            "Backups",
            story["backups"],
            backup_columns(now, history=True, peer=False),
        ),
        ("Channels", story["channels"], channel_columns(now, peer=False)),
        ("Refused", story["refusals"], refusal_columns(now)),
        ("Alarms", story["alarms"], alarm_columns(now)),
    ):
        if rows:
            parts.append(f"{title}:\n{table(shown, rows)}")
    if story["features"]:
        parts.append(wrapped("Features: " + ", ".join(story["features"])))
    return "\n\n".join(parts)


def refusal_columns(now: float) -> list[Column]:
    """How a list of refusals looks."""
    return [
        Column("LAST", lambda row: f"{ago(now, row['last_at'])} ago", 10),
        Column("TIMES", lambda row: str(row["count"]), 5, right=True),
        Column("WHY", lambda row: row["reason"], 60),
    ]


def _find(app: App, text: str, others: Iterable[str] = (), *, digits: int = 1) -> str:
    """The node id of a peer that has something stored, has a rule or is among `others`."""
    import asyncio

    from peerstore.store.reader import SqliteReader

    async def resolve() -> str:
        async with await SqliteReader.open(app.database) as reader:
            rules = [node_id.hex() for node_id in await reader.rules()]
            all_others = [*others, *rules]
            return (await resolve_node_id(reader, text, digits=digits, others=all_others)).hex()

    return asyncio.run(resolve())


def _rule(app: App, rule: str, text: str, undo: bool, words: str) -> None:
    from peerstore.types import parse_node_id

    if len(text) >= 66:
        node_id = parse_node_id(text).hex()  # it may never have been here
    else:
        node_id = _find(app, text, live(app).connected)
    change(app, f"peers.{rule}", node_id=node_id, undo=undo)
    app.emit(
        {"node_id": node_id, "rule": None if undo else rule, "done": True},
        lambda: f"{node_id}: " + (f"`{rule}` is taken back." if undo else f"{words}."),
    )
