"""`peerstore completion`, and what there is to complete."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from peerstore.cli.common import App, json_option, pass_app

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_PEERSTORE_COMPLETE"
MOST = 50
"""Ids that are offered at once."""


@click.command(short_help="Let the shell complete commands and node ids.")
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
@pass_app
def completion(app: App, shell: str) -> None:
    """Print what makes SHELL complete commands, options and node ids.

    \b
    bash:  peerstore completion bash > ~/.local/share/bash-completion/completions/peerstore
    zsh:   peerstore completion zsh > ~/.zfunc/_peerstore   (~/.zfunc in fpath)
    fish:  peerstore completion fish > ~/.config/fish/completions/peerstore.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has all three
    complete = kind(click.get_current_context().find_root().command, {}, "peerstore", VARIABLE)
    # Not `source`: it asks the shell for its version, and the script may be for another machine.
    script = complete.source_template % complete.source_vars()
    app.emit({"shell": shell, "script": script}, lambda: script)


def node_ids(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The peers whose id begins with what was typed; none where there is anything in the way."""
    import asyncio

    from peerstore.store.reader import SqliteReader

    options = context.find_root().params
    app = App(flag_data_dir=options.get("data_dir"), config_file=options.get("config_file"))

    async def find() -> list[CompletionItem]:
        async with await SqliteReader.open(app.database) as reader:
            found = await reader.node_ids(incomplete.lower(), MOST)
        return [CompletionItem(node_id.hex()) for node_id in found]

    try:
        return asyncio.run(find())
    except Exception:  # a shell that completes shows no error
        return []
