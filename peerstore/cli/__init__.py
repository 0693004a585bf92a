"""The command line: one file for each noun; what a command needs is imported when it runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from peerstore import __version__
from peerstore.cli.alarms import alarms
from peerstore.cli.backups import backups
from peerstore.cli.common import App, json_option
from peerstore.cli.config import config
from peerstore.cli.info import info
from peerstore.cli.init import init
from peerstore.cli.maintenance import restore, snapshot, verify
from peerstore.cli.probe import probe
from peerstore.cli.run import run
from peerstore.errors import OperatorError, PeerError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Where key, database and config.toml are. [default: $PEERSTORE_DATA_DIR,"
    " $STATE_DIRECTORY, ~/.peerstore]",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
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
    """Keep the encrypted backups of Lightning peers, and give them back at every reconnect.

    \b
    peerstore run                             serve with the defaults
    peerstore info                            is all well?
    peerstore backups list                    what is stored
    peerstore backups export 02ab… -o b.bin   a backup for its owner
    peerstore probe 02ab…@host:9737           store with a provider, and get it back
    """
    app = context.ensure_object(App)
    app.flag_data_dir = data_dir
    app.config_file = config_file
    app.overrides = overrides


for command in (run, init, info, backups, alarms, verify, snapshot, restore, probe, config):
    cli.add_command(command)


def main() -> None:
    """The program: one line on stderr and a right exit code for whatever goes wrong."""
    # Whatever is made here, key, database and exported backups, is for its owner alone.
    os.umask(0o077)
    try:
        # One name for usage lines, however the program was started.
        cli.main(prog_name="peerstore", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
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
    click.echo(f"Error: {text}", err=True)
    sys.exit(code)
