"""What an honest peer sees beside a hostile crowd: `python -m tests.benchmarks.storm`.

An honest peer connects at a steady rate, gets 65531 bytes back, stores the next ones and has them
confirmed, first alone and then beside each crowd; every figure counts from when it was to connect
to when all has come back. Everything is on the loopback interface and bounded in number and time.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator

from tests.benchmarks.attacks import BLOB, Attack
from tests.benchmarks.load import Task
from tests.benchmarks.report import table
from tests.benchmarks.rig import (
    cpu_seconds,
    daemon,
    high_water,
    holding,
    load,
    resident,
    run_attacks,
    secret,
)

NO_EXEMPTION = ("limits.exempt_networks=[]",)
ONE_NETWORK = tuple(f"127.0.1.{number}" for number in range(1, 101))
"""A crowd in one /24."""
MANY_NETWORKS = tuple(f"127.{1 + n // 200}.{n % 200}.9" for n in range(1000))

ACT_SECONDS = 5.0
"""How long a connection that says nothing lasts where there is room."""

HEADS = ("beside", "p50", "p99", "worst", "besides")

Row = tuple[str, str, str, str, str]
"""What an honest peer sees beside a crowd; see HEADS."""

HONEST_RATE = 15.0
"""Connections a second; one address may make 20."""


def main() -> None:
    """Run all, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.storm", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each crowd")
    parser.add_argument("--half-open", type=int, default=2000)
    parser.add_argument("--bad-acts", type=float, default=1000.0, help="a second")
    parser.add_argument("--idle", type=int, default=8000)
    parser.add_argument("--reconnects", type=int, default=1000, help="peers at once")
    parser.add_argument("--gossip", type=int, default=64 << 20, help="bytes")
    parser.add_argument("--dir", default=None, help="where databases are made; a disk, not RAM")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        storm = Storm(directory, options.seconds)
        rows = [
            *storm.quiet(),
            *storm.half_open(options.half_open),
            *storm.bad_acts(options.bad_acts),
            *storm.idle(options.idle),
            *storm.descriptors(),
            *storm.gossip(options.gossip),
            *storm.reconnects(options.reconnects),
        ]
    print(*table(HEADS, rows), sep="\n")


class Storm:
    """The crowds, one after another, each against a daemon of its own."""

    def __init__(self, directory: str, seconds: float) -> None:
        self.directory = directory
        self.seconds = seconds

    def quiet(self) -> Iterator[Row]:
        """The honest peer alone."""
        with daemon(self.directory) as (uri, pid):
            yield self._beside("nobody", uri, pid)

    def half_open(self, count: int) -> Iterator[Row]:
        """Connections that say nothing, opened anew when they are closed."""
        for what, settings, sources, pause in (
            ("one /24", NO_EXEMPTION, ONE_NETWORK, ACT_SECONDS),
            ("many networks", NO_EXEMPTION, MANY_NETWORKS, ACT_SECONDS),
            ("exempt", (), ("127.0.0.1",), ACT_SECONDS),
            ("many networks, back after 1 s", NO_EXEMPTION, MANY_NETWORKS, 1.0),
        ):
            with daemon(self.directory, settings=settings) as (uri, pid):
                attack = Attack(
                    "half_open", uri, self.seconds + 2, count, sources=sources, pause=pause
                )
                yield self._beside(f"{count} half-open, {what}", uri, pid, attack)

    def bad_acts(self, rate: float) -> Iterator[Row]:
        """First acts with a wrong MAC."""
        for what, settings, sources in (
            ("one /24", NO_EXEMPTION, ONE_NETWORK),
            ("many networks", NO_EXEMPTION, MANY_NETWORKS),
            ("exempt", (), ("127.0.0.1",)),
        ):
            with daemon(self.directory, settings=settings) as (uri, pid):
                attack = Attack("bad_acts", uri, self.seconds + 2, rate=rate, sources=sources)
                yield self._beside(f"{rate:.0f} bad acts/s, {what}", uri, pid, attack)

    def idle(self, count: int) -> Iterator[Row]:
        """Peers that have said `init` and nothing more."""
        with daemon(self.directory) as (uri, pid):
            with holding(uri, 20):
                pass
            before = resident(pid)
            with holding(uri, count):
                each = (resident(pid) - before) / count
                row = self._beside(f"{count} idle connections", uri, pid)
            yield (*row[:4], f"{row[4]}, {each / 1024:.1f} KiB each")

    def descriptors(self) -> Iterator[Row]:
        """More strangers than there are descriptors, each back a second after it was closed."""
        with daemon(self.directory, descriptors=200) as (uri, pid):
            attack = Attack("lingering", uri, self.seconds + 2, 300)
            yield self._beside("300 strangers, 200 descriptors", uri, pid, attack)

    def gossip(self, size: int) -> Iterator[Row]:
        """Gossip at full speed, from a peer whose bytes are not limited."""
        key = secret()
        with daemon(self.directory, allowed=[key]) as (uri, pid):
            attack = Attack("gossip", uri, count=size, key=key)
            yield self._beside(f"{size >> 20} MiB of gossip", uri, pid, attack)

    def reconnects(self, count: int) -> Iterator[Row]:
        """So many peers that come back at once, each to 65531 bytes."""
        keys = tuple(secret() for _ in range(count))
        with daemon(self.directory, allowed=keys) as (uri, pid):
            load([Task("updates", uri, count, BLOB, 1.0, keys)])
            before = resident(pid)
            (result,) = load([Task("reconnects", uri, count, BLOB, self.seconds, keys)])
            peak = high_water(pid)
        yield (
            f"{count} reconnecting at once",
            f"{result['p50'] * 1000:.0f} ms",
            f"{result['p99'] * 1000:.0f} ms",
            "",
            f"{result['count'] / result['seconds']:.0f}/s, {result['again']} tried again,"
            f" {before >> 20} MiB before, at most {peak >> 20} MiB",
        )

    def _beside(self, what: str, uri: str, pid: int, *attacks: Attack) -> Row:
        """The honest peer beside a crowd."""
        honest = Attack("honest", uri, self.seconds, rate=HONEST_RATE, key=secret())
        used = cpu_seconds(pid)
        result, *crowd = run_attacks([honest, *attacks])
        used = (cpu_seconds(pid) - used) / self.seconds
        besides = f"CPU {used:.0%}, {result['failures']} failures"
        if crowd:
            besides += "".join(f", {value:.0f} {key}" for key, value in crowd[0].items())
        return (
            what,
            f"{result['p50'] * 1000:.1f} ms",
            f"{result['p99'] * 1000:.1f} ms",
            f"{result['worst'] * 1000:.1f} ms",
            besides,
        )


if __name__ == "__main__":
    main()
