"""`peerstore prune`, `verify`, `snapshot` and `restore`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import click

from peerstore.cli.common import App, ask, change, json_option, pass_app
from peerstore.cli.output import Column, Row, show_list
from peerstore.errors import KeyFileError, StoreError
from peerstore.words import size


@click.command(short_help="Delete what is kept no longer.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@json_option
@pass_app
def prune(app: App, dry_run: bool) -> None:
    """Delete what `retention` says is kept no longer; the daemon does so once an hour.

    What an operator has pinned or holds stays, and so do the backups of who is connected. Beside a
    routing node this needs the daemon, and while that node can't be trusted nothing is deleted.
    """
    import asyncio

    # What is due depends on what the routing node says, and only the daemon asks it.
    asked = app.loaded.config.channels.source != "none"
    items = (ask if asked else change)(app, "backups.prune", dry_run=dry_run)["items"]

    async def rows() -> AsyncGenerator[Row]:
        for item in items:
            yield item

    columns = [
        Column("NODE ID", lambda row: row["node_id"], 66, id=True),
        Column("KIND", lambda row: row["kind"], 14, drop=2),
        Column("CHANNEL ID", lambda row: row["channel_id"] or "", 64, drop=1, id=True),
        Column("VERSIONS", lambda row: str(row["versions"]), 8, drop=3, right=True),
        Column("SIZE", lambda row: size(row["bytes"]), 10, right=True),
        Column("WHY", lambda row: row["reason"], 30),
    ]
    asyncio.run(show_list(app, rows(), columns, "Nothing is due."))
    if items and not app.json:
        total = size(sum(item["bytes"] for item in items))
        click.echo(f"{total} {'would be' if dry_run else 'are'} deleted.")


@click.command(short_help="Check every backup and the database.")
@json_option
@pass_app
def verify(app: App) -> None:
    """Read every backup, and check every digest and the database itself.

    Exits 1 when something is damaged. May run beside the daemon.
    """
    from peerstore.store.snapshot import verify as check

    with _progress("Checking") as progress:
        report = check(app.database, progress)
    damaged = [
        {
            "node_id": revision.slot.node_id.hex(),
            "kind": revision.slot.kind.label,
            "channel_id": revision.slot.channel_id.hex() or None,
            "revision": revision.revision,
        }
        for revision in report.damaged
    ]
    lines = [
        *(f"The database: {problem}" for problem in report.problems),
        *(
            f"Damaged: revision {revision.revision} ({revision.slot.label}) of"
            f" {revision.slot.node_id.hex()}"
            for revision in report.damaged
        ),
        f"{report.checked} backups checked, {len(damaged)} damaged.",
    ]
    app.emit(
        {
            "ok": report.sound,
            "checked": report.checked,
            "damaged": damaged,
            "problems": report.problems,
        },
        lambda: "\n".join(lines),
    )
    if not report.sound:
        raise StoreError(f"{app.database} is damaged: restore a snapshot")


@click.command(short_help="Copy the database, also while it is in use.")
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@click.option("--with-key", is_flag=True, help="Copy the node's key too, to DEST.key.")
@json_option
@pass_app
def snapshot(app: App, destination: Path, with_key: bool) -> None:
    """Copy the database to the new file DEST, while the daemon runs or not."""
    from peerstore.datadir import key_path
    from peerstore.store.snapshot import copy_key
    from peerstore.store.snapshot import snapshot as copy

    key_file = destination.with_name(f"{destination.name}.key")
    if with_key and key_file.exists():
        raise StoreError(f"{key_file} exists already: choose another name")
    key_source = key_path(app.data_dir, app.loaded.config.node_key_file, os.environ)
    if with_key and not key_source.exists():
        raise KeyFileError(
            f"the key file {key_source} is missing, so nothing was copied: leave out --with-key,"
            " and copy the key from where systemd has it, /etc/credstore"
        )
    copy(app.database, destination)
    document = {"file": str(destination), "size": destination.stat().st_size}
    if with_key:
        copy_key(key_source, key_file)
        document["key_file"] = str(key_file)
    app.emit(document, lambda: f"The snapshot is {destination}.")


@click.command(short_help="Put a snapshot back.")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@json_option
@pass_app
def restore(app: App, source: Path) -> None:
    """Put the snapshot SRC in the place of the database; the daemon must not run.

    SRC is verified first. What it replaces is kept beside it.
    """
    from peerstore.configured import lock_paths
    from peerstore.datadir import key_path, load_key, locked, make_data_directory
    from peerstore.store.snapshot import restore as put_back

    config = app.loaded.config
    make_data_directory(app.data_dir)
    path = key_path(app.data_dir, config.node_key_file, os.environ)
    try:
        key = load_key(path, private=path == config.node_key_file.path(app.data_dir))
    except FileNotFoundError:
        beside = source.with_name(f"{source.name}.key")
        there = f", as {beside} may be" if beside.exists() else ""
        raise KeyFileError(
            f"the key file {path} is missing: put the snapshot's key there first{there}"
        ) from None
    with locked(*lock_paths(app.data_dir, config)), _progress("Checking") as progress:
        kept = put_back(
            source,
            app.database,
            node_id=key.node_id,
            network=config.network,
            now=int(time.time()),
            progress=progress,
        )
    app.emit(
        {"database": str(app.database), "replaced": None if kept is None else str(kept)},
        lambda: (
            f"{source} is in place."
            + ("" if kept is None else f" What it replaced is kept as {kept}.")
        ),
    )


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr when that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
