"""The command line: one file for each noun; what a command needs is imported when it runs."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import click

from peerstore import __version__
from peerstore.cli.alarms import alarms
from peerstore.cli.backups import backups
from peerstore.cli.channels import channels
from peerstore.cli.common import App, json_option
from peerstore.cli.completion import completion
from peerstore.cli.config import config
from peerstore.cli.help import help_
from peerstore.cli.info import info
from peerstore.cli.init import init
from peerstore.cli.maintenance import prune, restore, snapshot, verify
from peerstore.cli.peers import peers
from peerstore.cli.probe import probe
from peerstore.cli.run import reload, run
from peerstore.errors import NotRunningError, OperatorError, PeerError

NARROW = 52
"""Columns of a terminal below which a help page has to be told how wide it is."""


class Page(click.Group):
    """The program, whose help lists the commands by what they are for."""

    sections: ClassVar = {
        "Run": ("init", "run", "reload", "config", "completion", "help"),
        "Look": ("info", "peers", "backups", "channels", "alarms"),
        "Look after": ("verify", "snapshot", "restore", "prune", "probe"),
    }

    examples: ClassVar = (
        ("peerstore run", "serve with the defaults"),
        ("peerstore info", "is all well?"),
        ("peerstore peers list --filter away=7d", "who was not here for a week"),
        ("peerstore peers show 02ab", "the story of a peer"),
        ("peerstore alarms list", "whose backup shrank"),
        ("peerstore backups export 02ab -o b.bin", "a backup for its owner"),
        ("peerstore probe 02ab...@host:9737", "store with a provider, and get it back"),
    )

    def format_help_text(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(context, formatter)
        with formatter.section("Examples"):
            formatter.write_dl(self.examples, col_max=formatter.width - 30)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in self.sections.items():
            with formatter.section(title):
                limit = formatter.width - 6 - max(map(len, names))
                formatter.write_dl(
                    [(name, self.commands[name].get_short_help_str(limit)) for name in names]
                )


@click.group(
    cls=Page,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`peerstore COMMAND --help` and `peerstore help TOPIC` say more. A peer is named by its"
    " node id or the beginning of it. Exit codes: 0 done, 1 refused or failed, 2 usage, 3 the"
    " daemon is needed and does not run.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, readable=False),
    help="Where key, database and config.toml are. [default: $PEERSTORE_DATA_DIR,"
    " $STATE_DIRECTORY, ~/.peerstore]",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, readable=False),
    help="The configuration file. [default: config.toml in the data directory]",
)
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Set a key of the configuration, as in --set network=regtest. May be repeated.",
)
@json_option
@click.version_option(__version__, prog_name="peerstore")
@click.pass_context
def cli(
    context: click.Context,
    data_dir: Path | None,
    config_file: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Keep the encrypted backups of Lightning peers, and give them back at every reconnect."""
    app = context.ensure_object(App)
    app.flag_data_dir = data_dir
    app.config_file = config_file
    app.overrides = overrides


for command in (
    *(run, init, reload, config, completion, help_),
    *(info, peers, backups, channels, alarms),
    *(verify, snapshot, restore, prune, probe),
):
    cli.add_command(command)


def main() -> None:
    """The program: one line on stderr and a right exit code for whatever goes wrong."""
    # Whatever is made here, key, database and exported backups, is for its owner alone.
    os.umask(0o077)
    if os.getpid() == 1:
        # Of a container, then. The kernel gives it no default: it would ignore to be stopped.
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115 - for as long as we run
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as we run
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        # One name for usage lines, however the program was started.
        narrow = shutil.get_terminal_size().columns
        # click goes no further down than 50 by itself.
        width = narrow if sys.stdout.isatty() and narrow < NARROW else None
        cli.main(prog_name="peerstore", standalone_mode=False, terminal_width=width)
    except click.ClickException as error:
        _say(error.show)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except NotRunningError as error:
        _fail(str(error), 3)
    except (OperatorError, PeerError) as error:
        _fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        # Who read our output has gone; stdout must not be flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")
    except Exception as error:
        _fail(f"a mistake in peerstore, please report it: {type(error).__name__}: {error}")


def _fail(text: str, code: int = 1) -> None:
    _say(lambda: click.echo(f"Error: {text}", err=True))
    sys.exit(code)


def _say(show: Callable[[], None]) -> None:
    """Write to stderr; where that can't be done the exit code has to say it all."""
    try:
        show()
    except OSError:
        # What is left of it must not be flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
