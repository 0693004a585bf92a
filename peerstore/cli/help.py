"""`peerstore help`: the README's sections as pages for a terminal, and the help of commands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click
from click.shell_completion import CompletionItem

from peerstore.cli.common import App, json_option, pass_app

OTHER_NAMES = {
    "backup": "Copies of the database",
    "events": "What the log says",
    "exit-codes": "Commands",
    "files": "Configuration",
    "limits": "When a crowd comes",
    "recovery": "When a peer has lost its data",
    "retention": "Who is served, and for how long",
    "snapshots": "Copies of the database",
}
"""Topics that one would look for by a word that is not in the title of their section."""

PIPE_WIDTH = 80
"""Columns of a page where there is no terminal."""

_FENCE = re.compile(r"```.*?^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^(##+) (.*)$", re.MULTILINE)
_NOT_SHOWN = re.compile(r"^(<!--.*-->|!\[.*\]\(.*\)\n)\n", re.MULTILINE)
"""Marks for tests, and pictures."""
_LINK_WITHIN = re.compile(r"\[([^]\n]+)\]\((?!\w+://)[^)]*\)")


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the README: the level of its heading, and its Markdown with those below it."""

    level: int
    title: str
    text: str

    @property
    def name(self) -> str:
        """Its title as one word."""
        return "-".join(_words(self.title))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def sections(readme: str) -> Iterator[Section]:
    """The README's sections, in order; what stands in a block of code is no heading."""
    readme = _NOT_SHOWN.sub("", readme)
    hidden = _FENCE.sub(lambda fence: "x" * len(fence[0]), readme)
    headings = list(_HEADING.finditer(hidden))
    for index, heading in enumerate(headings):
        level = len(heading[1])
        behind = (each.start() for each in headings[index + 1 :] if len(each[1]) <= level)
        yield Section(level, heading[2], readme[heading.start() : next(behind, None)].strip())


def find(topic: str, known: Sequence[Section]) -> list[Section]:
    """The sections that a topic may mean: the one of its name, or those of the highest level that
    have all its words in their title, in the singular or the plural."""
    words = _words(topic)
    name = "-".join(words)
    other = OTHER_NAMES.get(name)
    named = [each for each in known if each.name == name]
    named += [each for each in known if each.title == other]
    if named:
        return named[:1]
    wanted = set(map(_singular, words))
    found = [each for each in known if wanted <= set(map(_singular, _words(each.title)))]
    highest = min((each.level for each in found), default=0)
    return [each for each in found if each.level == highest] if wanted else []


def _singular(word: str) -> str:
    return word.removesuffix("s")


def _readme() -> list[Section]:
    from peerstore.store.migrate import packaged

    return list(sections(packaged("README.md").read_text(encoding="utf-8")))


def _complete(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    root = context.find_root().command
    commands = root.list_commands(context) if isinstance(root, click.Group) else []
    names = [*commands, *OTHER_NAMES, *(each.name for each in _readme())]
    return [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(incomplete)]


@click.command("help", short_help="Show a page on a topic, or the help of a command.")
@click.argument("topic", metavar="[TOPIC]", nargs=-1, shell_complete=_complete)
@json_option
@pass_app
@click.pass_context
def help_(context: click.Context, app: App, topic: tuple[str, ...]) -> None:
    """Show the page on TOPIC, or the help of a command; without either list the topics.

    A word of a page's title is enough: `peerstore help tor`. The pages are the README's sections.
    """
    if not topic:
        _list(app)
        return
    text = _of_command(context.find_root(), topic)
    if text is not None:
        shown = text
        app.emit({"topic": " ".join(topic), "text": shown}, lambda: shown)
        return
    section = _only(context, " ".join(topic))
    app.emit({"topic": section.name, "text": section.text}, lambda: page(section.text))


def _list(app: App) -> None:
    from peerstore.cli.output import wrapped

    known = _readme()
    rows = [{"topic": each.name, "title": each.title} for each in known]
    rows += [{"topic": name, "title": title} for name, title in OTHER_NAMES.items()]
    more = wrapped(
        "`peerstore help TOPIC` shows one of these, a word of it is enough;"
        " `peerstore help COMMAND` shows what a command takes."
    )
    app.emit({"items": rows}, lambda: "\n".join([*map(_line, known), "", more]))


def _line(section: Section) -> str:
    others = ", ".join(name for name, title in OTHER_NAMES.items() if title == section.title)
    return "  " * (section.level - 2) + section.title + (f" ({others})" if others else "")


def _of_command(context: click.Context, words: Sequence[str]) -> str | None:
    """The help of a command, None where the first word is none; raises click.UsageError."""
    for index, word in enumerate(words):
        group = context.command
        command = group.get_command(context, word) if isinstance(group, click.Group) else None
        if command is None:
            if index == 0:
                return None
            raise click.UsageError(f"No such command '{' '.join(words)}'.", context)
        context = click.Context(command, parent=context, info_name=word)
    return context.get_help()


def _only(context: click.Context, topic: str) -> Section:
    import difflib

    known = _readme()
    found = find(topic, known)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(each.name for each in found)
        raise click.UsageError(f"{topic!r} may mean {names}: which?", context)
    words = [word for each in known for word in _words(each.title) if len(word) > 2]
    root = context.find_root().command
    commands = root.list_commands(context) if isinstance(root, click.Group) else []
    near = difflib.get_close_matches(topic.lower(), {*words, *OTHER_NAMES, *commands})
    hint = f"did you mean {' or '.join(near)}?" if near else "`peerstore help` lists them."
    raise click.UsageError(f"There is no topic {topic!r:.100}; {hint}", context)


def page(text: str) -> str:
    """A section of the README made to fit the terminal; commands in it are not folded."""
    from rich.console import Console, ConsoleOptions
    from rich.markdown import CodeBlock, Markdown
    from rich.text import Text
    from rich.theme import Theme

    from peerstore.cli.output import terminal_width

    class Code(CodeBlock):
        """As it stands, so that it can be copied."""

        def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> Iterator[Text]:
            code = "\n".join(f"  {line}" for line in str(self.text).splitlines())
            yield Text(code, no_wrap=True, overflow="ignore")

    class Page(Markdown):
        elements = {**Markdown.elements, "fence": Code, "code_block": Code}  # noqa: RUF012

    width = terminal_width()
    console = Console(
        width=width or PIPE_WIDTH,
        no_color=width is None,
        highlight=False,
        theme=Theme({"markdown.code": "bold", "markdown.h2": "bold", "markdown.h3": "bold"}),
    )
    with console.capture() as captured:
        console.print(Page(_LINK_WITHIN.sub(r"\1", text), hyperlinks=False), crop=False)
    lines = "\n".join(line.rstrip() for line in captured.get().splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines)
