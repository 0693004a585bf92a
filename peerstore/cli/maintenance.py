"""`peerstore verify`, `snapshot` and `restore`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from peerstore.cli.common import App, json_option, pass_app
from peerstore.errors import KeyFileError, StoreError


@click.command()
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


@click.command()
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
    copy(app.database, destination)
    document = {"file": str(destination), "size": destination.stat().st_size}
    if with_key:
        copy_key(key_path(app.data_dir, app.loaded.config.node_key_file, os.environ), key_file)
        document["key_file"] = str(key_file)
    app.emit(document, lambda: f"The snapshot is {destination}.")


@click.command()
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@json_option
@pass_app
def restore(app: App, source: Path) -> None:
    """Put the snapshot SRC in the place of the database; the daemon must not run.

    SRC is verified first. What it replaces is kept beside it.
    """
    from peerstore.daemon import lock_paths
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
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield progress
