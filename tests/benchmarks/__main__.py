"""How fast and how big: `python -m tests.benchmarks [NAME...]`.

Every figure stands beside what a bare loop of the same parts does in the same run, because only
the ratio says something about peerstore and not about the machine. The load comes from other
processes, so on two cores it takes its share of both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peerstore import __version__
from tests.benchmarks import speed, weight
from tests.benchmarks.bench import Bench, Measurement, Sizes
from tests.benchmarks.picture import picture
from tests.benchmarks.report import HEADS, Row, cells, document, table
from tests.benchmarks.steal import Stolen

MEASUREMENTS: dict[str, Measurement] = {
    each.__name__: each
    for each in (
        *(speed.updates, speed.bursts, speed.identical, speed.reconnects, speed.handshakes),
        *(speed.gossip, speed.lag),
        *(weight.idle, weight.start, weight.commands, weight.prune, weight.disk),
    )
}

HELP = {
    "seconds": "of each load",
    "blobs": "bytes of the blobs to update with",
    "connections": "that update, one update in flight each",
    "stored": "peers in the databases",
    "idle": "connections that say nothing",
    "rest": "seconds for which they say nothing",
    "gossip": "bytes",
    "disk": "bytes of the blobs of each size for which room on disk is measured",
}
"""By field of Sizes."""


@dataclass(frozen=True)
class Measured:
    """A row, by which measurement, and how much of all cores' time was stolen meanwhile."""

    name: str
    row: Row
    stolen: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is named, or all, and show it; exits 1 when something could not be measured."""
    options, sizes = asked(arguments)
    about = {**machine(options.dir), "loop": options.loop}
    _raise_descriptors()
    failed: list[str] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        names = options.names or MEASUREMENTS
        measured = list(measure(names, Bench(directory, sizes, options.loop), failed))
    seconds = time.monotonic() - begun
    rows = [each.row for each in measured]
    print(*table(HEADS, map(cells, rows)), sep="\n")
    stolen = max((each.stolen for each in measured), default=0.0)
    print(f"\n{_words(about)}; {seconds:.0f} s, at most {stolen:.1%} of a row's time stolen.")
    if options.json:
        _write(options.json, json.dumps(whole(about, measured, sizes, seconds), indent=2))
    if options.picture:
        _write(options.picture, picture(rows))
    if failed:
        raise SystemExit(f"could not be measured: {', '.join(failed)}")


def asked(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Sizes]:
    """The options of a command line, and the sizes among them; exits 2 when it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    known = ", ".join(MEASUREMENTS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, or some of {known}")
    parser.add_argument(
        "--dir",
        type=Path,
        default=tempfile.gettempdir(),
        help="where databases are made; a disk, not RAM (default: %(default)s)",
    )
    parser.add_argument(
        "--loop",
        choices=("asyncio", "uvloop"),
        default="asyncio",
        help="the daemon's event loop; bare loops run on asyncio's (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write an SVG there")
    for name, default in asdict(Sizes()).items():
        values = default if isinstance(default, tuple) else (default,)
        parser.add_argument(
            f"--{name}",
            nargs="+" if isinstance(default, tuple) else None,
            type=type(values[0]),
            default=default,
            help=f"{HELP[name]} (default: {' '.join(map(str, values))})",
        )
    options = parser.parse_args(arguments)
    # argparse can't have choices where none is a choice as well.
    if unknown := [name for name in options.names if name not in MEASUREMENTS]:
        parser.error(f"nothing is called {', '.join(unknown)}: expected some of {known}")
    # Not after all has been measured.
    for directory in (
        options.dir,
        *(file.parent for file in (options.json, options.picture) if file),
    ):
        if not os.access(directory, os.W_OK):
            parser.error(f"can't write to the directory {directory}")
    given = {name: getattr(options, name) for name in HELP}
    try:
        many = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        return options, Sizes(**given | many)
    except ValueError as error:
        parser.error(str(error))


def measure(names: Iterable[str], bench: Bench, failed: list[str]) -> Iterator[Measured]:
    """The rows of these measurements, told on stderr as they come; `failed` gets who gave none.

    Whoever fails does so alone: the rows of the others are not lost.
    """
    for name in names:
        rows = MEASUREMENTS[name](bench)
        while True:
            since = Stolen()
            try:
                row = next(rows, None)
            except KeyboardInterrupt:
                failed.append(f"{name} and what follows, interrupted")
                return
            except (SystemExit, Exception) as error:
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
                failed.append(name)
                break
            if row is None:
                break
            print(f"{name}: {', '.join(filter(None, cells(row)))}", file=sys.stderr)
            yield Measured(name, row, since.share())


def machine(directory: Path) -> dict[str, Any]:
    """Where this runs, and on which file system databases are: in RAM nothing has to be synced."""
    return {
        "peerstore": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "file_system": _file_system(directory),
    }


def whole(
    about: dict[str, Any], measured: Sequence[Measured], sizes: Sizes, seconds: float
) -> dict[str, Any]:
    """The run for JSON."""
    return {
        **about,
        "sizes": asdict(sizes),
        "seconds": seconds,
        "items": [
            {"measurement": each.name, **document(each.row), "stolen": each.stolen}
            for each in measured
        ],
    }


def _words(about: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about.items())


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    """Its type, as proc(5) names it."""
    resolved = directory.resolve()
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    holding = [(len(at), kind) for _, at, kind, *_ in mounts if resolved.is_relative_to(at)]
    # Of two at the same place the later one covers the other.
    return max(reversed(holding), key=lambda each: each[0])[1]


def _write(file: Path, text: str) -> None:
    file.write_text(f"{text}\n")


def _raise_descriptors() -> None:
    """Have as many files open as is allowed: thousands of connections need one each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
