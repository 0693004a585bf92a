"""`peerstore config`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import click

from peerstore.cli.common import App, json_option, pass_app
from peerstore.cli.output import Column, Row, show_list


@click.group()
@json_option
def config() -> None:
    """Look at the configuration."""


@config.command()
@json_option
@pass_app
def check(app: App) -> None:
    """Read the configuration and say what is wrong with it."""
    import os

    from peerstore.configured import source_files

    loaded = app.loaded
    file = None if loaded.file is None else str(loaded.file)
    unreadable = [
        f"{path} is not there, or this user may not use it"
        for path in source_files(loaded.config, app.data_dir)
        if not os.access(path, os.R_OK)
    ]
    warnings = [*loaded.warnings, *unreadable]
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)
    app.emit(
        {"ok": True, "file": file, "warnings": warnings},
        lambda: f"The configuration is fine ({file or 'no file, defaults and environment only'}).",
    )


@config.command()
@json_option
@pass_app
def show(app: App) -> None:
    """Every key, its value, and where that comes from."""
    import asyncio

    async def rows() -> AsyncGenerator[Row]:
        for setting in app.loaded.settings():
            yield {"key": setting.key, "value": setting.value, "source": setting.source}

    columns = [
        Column("KEY", lambda row: row["key"], 30),
        Column("VALUE", lambda row: json.dumps(row["value"], ensure_ascii=False), 30),
        Column("FROM", lambda row: row["source"], 30, drop=1),
    ]
    asyncio.run(show_list(app, rows(), columns, ""))
