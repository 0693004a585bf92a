"""How lists are shown: as JSON, as a table that fits the terminal, or line by line when long."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Any

import click

from peerstore.cli.common import App

MEASURED = 2000
"""Rows up to which columns are as wide as what is in them; of more the widths are fixed."""

WRITTEN = 100
"""Rows that are written at once."""

WHOLE_ID, SHORT_ID, SHORTEST_ID = 66, 16, 8
"""Digits of an id that are shown, by how much room there is; any command takes so many."""

FOLDED = 20
"""Width to which the last column of a table may be folded."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a list: its title, its text for a row, and its width where that is fixed.

    On a narrow terminal columns with a higher `drop` are left out first, those with 0 never.
    An `id` is shortened before anything is left out.
    """

    title: str
    text: Callable[[Row], str]
    width: int
    drop: int = 0
    right: bool = False
    id: bool = False


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is, None where it is none."""
    if not sys.stdout.isatty():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except OSError:
        return 80


async def show_list(
    app: App, rows: AsyncGenerator[Row], columns: Sequence[Column], nothing: str
) -> None:
    """Show a list of any length without holding it; `nothing` is said where there is none."""
    async with contextlib.aclosing(rows):
        if app.json:
            await _show_json(rows)
            return
        first = [row async for row in _take(rows, MEASURED + 1)]
        if not first:
            click.echo(nothing)
        elif len(first) <= MEASURED:
            click.echo(table(columns, first))
        else:
            head, line = _lines(columns)
            click.echo("\n".join([head, *map(line, first)]))
            async for block in _blocks(rows):
                click.echo("\n".join(map(line, block)))


async def _take(rows: AsyncIterator[Row], count: int) -> AsyncIterator[Row]:
    for _ in range(count):
        try:
            yield await anext(rows)
        except StopAsyncIteration:
            return


async def _blocks(rows: AsyncIterator[Row]) -> AsyncIterator[list[Row]]:
    """The rows, many at a time: to write each by itself costs more than to make it."""
    while block := [row async for row in _take(rows, WRITTEN)]:
        yield block


async def _show_json(rows: AsyncIterator[Row]) -> None:
    """One document, written as it comes."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    before = '{\n  "items": ['
    any_ = False
    async for block in _blocks(rows):
        items = ",".join(f"\n    {encode(row)}" for row in block)
        click.echo(f"{before}{items}", nl=False)
        before, any_ = ",", True
    click.echo("\n  ]\n}" if any_ else '{\n  "items": []\n}')


def table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table as wide as what is in it, or made to fit the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = terminal_width()
    cells = [[column.text(row) for column in columns] for row in rows]
    kept, digits = _fitting(columns, cells, width)
    view = Table(box=None, pad_edge=False)
    for index in kept:
        column = columns[index]
        view.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=index != kept[-1],
            overflow="fold",
            header_style="bold",
        )
    for line in cells:
        shown = (_short(line[i], digits) if columns[i].id else line[i] for i in kept)
        view.add_row(*map(Text, shown))
    console = Console(width=width or 100_000, no_color=width is None, highlight=False)
    with console.capture() as captured:
        console.print(view)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _fitting(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int | None
) -> tuple[list[int], int]:
    """The columns that fit, and how many digits of an id do."""
    widths = [
        max(len(column.title), *(len(line[index]) for line in cells))
        for index, column in enumerate(columns)
    ]
    # A column with nothing in it says nothing.
    kept = [i for i in range(len(columns)) if any(line[i] for line in cells)]

    def fits(digits: int) -> bool:
        sizes = [
            min(widths[i], max(digits + 1, len(columns[i].title))) if columns[i].id else widths[i]
            for i in kept
        ]
        # The last column may be folded, down to something that can still be read.
        sizes[-1] = min(sizes[-1], max(FOLDED, len(columns[kept[-1]].title)))
        return width is None or sum(sizes) + 2 * (len(sizes) - 1) <= width

    if fits(WHOLE_ID):
        return kept, WHOLE_ID
    for index in sorted(kept, key=lambda index: -columns[index].drop):
        # For the last ones to go ids are made as short as they can be.
        if columns[index].drop and not fits(SHORT_ID if columns[index].drop > 1 else SHORTEST_ID):
            kept.remove(index)
    return kept, SHORT_ID if fits(SHORT_ID) else SHORTEST_ID


def _short(text: str, digits: int) -> str:
    return text if len(text) <= digits + 1 else f"{text[:digits]}…"


def _lines(columns: Sequence[Column]) -> tuple[str, Callable[[Row], str]]:
    """A heading, and what makes a line of a row, in columns of fixed widths that fit the
    terminal."""
    width = terminal_width()
    kept, digits = _fitting(columns, [["x" * column.width for column in columns]], width)
    shown = [columns[index] for index in kept]
    sizes = [min(each.width, digits + 1) if each.id else each.width for each in shown]

    def line(cells: Iterable[str]) -> str:
        parts = []
        for column, size, cell in zip(shown, sizes, cells, strict=True):
            text = _short(cell, digits) if column.id else cell
            parts.append(text.rjust(size) if column.right else text.ljust(size))
        text = "  ".join(parts).rstrip()
        return text if width is None or len(text) <= width else f"{text[: width - 1]}…"

    return line(each.title for each in shown), lambda row: line(each.text(row) for each in shown)


def facts(lines: Iterable[tuple[str, str]]) -> str:
    """Names and values for people, one a line, made to fit the terminal."""
    import textwrap

    pairs = list(lines)
    indent = max(len(name) for name, _ in pairs) + 2
    width = terminal_width()
    shown = []
    for name, value in pairs:
        room = max(FOLDED, (width or 0) - indent)
        parts = [value] if width is None else textwrap.wrap(value, room, break_on_hyphens=False)
        shown.append(f"{name:<{indent}}" + ("\n" + " " * indent).join(parts))
    return "\n".join(line.rstrip() for line in shown)


async def limited(rows: AsyncGenerator[Row], limit: int | None) -> AsyncGenerator[Row]:
    """The first of them, all without a limit."""
    async with contextlib.aclosing(rows):
        left = limit
        async for row in rows:
            if left is not None:
                if not left:
                    return
                left -= 1
            yield row


def pairs(texts: Iterable[str], known: Iterable[str]) -> list[tuple[str, str]]:
    """What --filter KEY=VALUE gave; raises click.UsageError for a key that is not known."""
    names = list(known)
    found = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in names:
            raise click.BadParameter(
                f"{text!r} is not KEY=VALUE with a KEY of {', '.join(names)}.",
                param_hint="--filter",
            )
        found.append((key, value))
    return found


def nothing_fits(nothing: str, filters: Sequence[str]) -> str:
    """What is said where a list is empty."""
    return "Nothing fits the filter." if filters else nothing


def one_of(key: str, value: str, known: Iterable[str]) -> str:
    """A filter's value; raises click.BadParameter."""
    names = list(known)
    if value not in names:
        raise click.BadParameter(f"{key} is {', '.join(names)}.", param_hint="--filter")
    return value


def yes_or_no(key: str, value: str) -> bool:
    """A filter's value; raises click.BadParameter."""
    if value not in ("yes", "no"):
        raise click.BadParameter(f"{key}={value}: say yes or no.", param_hint="--filter")
    return value == "yes"


def wrapped(text: str) -> str:
    """A paragraph made to fit the terminal."""
    import textwrap

    width = terminal_width()
    return text if width is None else textwrap.fill(text, width, break_on_hyphens=False)
