"""`peerstore config`."""

from __future__ import annotations

import json

import click

from peerstore.cli.common import App, json_option, pass_app, table


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@json_option
@pass_app
def check(app: App) -> None:
    """Read the configuration and say what is wrong with it."""
    loaded = app.loaded
    file = None if loaded.file is None else str(loaded.file)
    for warning in loaded.warnings:
        click.echo(f"Warning: {warning}", err=True)
    app.emit(
        {"ok": True, "file": file, "warnings": list(loaded.warnings)},
        lambda: f"The configuration is fine ({file or 'no file, defaults and environment only'}).",
    )


@config.command()
@json_option
@pass_app
def show(app: App) -> None:
    """Every key, its value, and where that comes from."""
    settings = app.loaded.settings()
    app.emit(
        {"items": [{"key": s.key, "value": s.value, "source": s.source} for s in settings]},
        lambda: table(
            ("KEY", "VALUE", "FROM"),
            [(s.key, json.dumps(s.value, ensure_ascii=False), s.source) for s in settings],
        ),
    )
