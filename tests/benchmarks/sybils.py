"""A thousand honest peers, ten thousand Sybils, and a store that is too small for all of them.

`python -m tests.benchmarks.sybils` plays six weeks on a real store, with clocks that are passed in,
and prints what each kind got. Nobody stays connected, which is the worst that can happen to the
honest: who is connected never gives way.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from peerstore.store.base import Counts, Quotas
from peerstore.store.lease import SqliteLease
from peerstore.store.sqlite import Clocks, SqliteStore
from peerstore.types import BackupKind, Network, NodeId, Slot
from tests.store_contract import Clock, Recorder, peer

HOUR, DAYS = 3600, 42
DAY_HOURS = 24
ATTACK = 7
"""The day on which the Sybils begin."""
TOGETHER = 16
"""Peers that are connected at the same time."""
LARGEST = 65531
TOR = "127.0.0.1"

HONEST_KINDS = ("honest, daily", "honest, weekly", "honest, over Tor")
SHARES = {
    "burst from one /24": 28,  # within an hour, and never again
    "from everywhere": 28,  # each from a group of its own, once
    "patient": 21,  # comes back after probation, and stays
    "greedy": 21,  # as many bytes as it may while on probation
    "patient and greedy": 2,
}
"""The kinds of Sybils, in hundredths."""


@dataclass
class Member:
    """A peer of the simulation, and what became of it; times are hours since the beginning."""

    node_id: NodeId
    kind: str
    host: str
    comes: int
    every: int
    """Hours between visits, 0 for who comes once."""
    size: int
    until: int = DAYS * DAY_HOURS
    """When it comes no more."""
    blob: bytes = b""
    """What it has stored, as far as it knows."""
    since: int = 0
    established: bool = False
    stored: bool = False
    refused: bool = False
    displaced: bool = False
    lost_when_established: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Row:
    """A line of the table: how many of a kind there were, and of how many what is true."""

    kind: str
    peers: int
    stored: int
    refused: int
    displaced: int
    established: int
    lost_when_established: int
    kept: int


def population(honest: int, sybils: int, chance: random.Random) -> list[Member]:
    """Everybody, in the order in which they are named."""
    return [*_honest(honest, chance), *_sybils(sybils, chance)]


def _honest(number: int, chance: random.Random) -> Iterator[Member]:
    """They come over four weeks, half of them before the Sybils do; a fifth comes over Tor."""
    for index in range(number):
        daily = index % 2 == 0
        kind = "honest, over Tor" if index % 5 == 0 else HONEST_KINDS[index % 2]
        host = TOR if index % 5 == 0 else _host(chance, chance.randrange(number // 2), 10)
        comes = chance.randrange(4 * 7 * DAY_HOURS)
        every = DAY_HOURS if daily else 7 * DAY_HOURS
        yield Member(peer(1 + index), kind, host, comes, every, chance.randint(345, 3000))


def _sybils(number: int, chance: random.Random) -> Iterator[Member]:
    """They come over four weeks from the day of the attack on, but for the burst."""
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
    for index in range(number):
        kind = kinds[index % len(kinds)]
        comes = ATTACK * DAY_HOURS + chance.randrange(4 * 7 * DAY_HOURS)
        host = _host(chance, chance.randrange(1 + number // 40), 12)
        every, until, size = 2 * DAY_HOURS, DAYS * DAY_HOURS, 1000
        if kind == "burst from one /24":
            comes, host, every = 2 * ATTACK * DAY_HOURS, f"203.0.113.{chance.randrange(256)}", 0
        elif kind == "from everywhere":
            host, every = _host(chance, index, 11), 0
        elif kind == "greedy":
            every, until = DAY_HOURS // 4, comes + DAY_HOURS
        if "greedy" in kind:
            size = LARGEST
        yield Member(peer((1 << 32) + index), kind, host, comes, every, size, until)


def _host(chance: random.Random, group: int, first: int) -> str:
    return f"{first}.{group // 256 % 256}.{group % 256}.{chance.randrange(256)}"


class Simulation:
    """The members and the store; `quotas` make it as full as it is to be."""

    def __init__(
        self, directory: Path, quotas: Quotas, members: list[Member], chance: random.Random
    ) -> None:
        self.clock = Clock()
        self.quotas = quotas
        self.members = members
        self.most = Counts(0, 0, 0, 0)
        """The most peers and bytes that there were."""
        self._path = directory / "peerstore.db"
        self._chance = chance
        self._visits: list[list[Member]] = [[] for _ in range(DAYS * DAY_HOURS)]
        for member in members:
            self._visits[member.comes].append(member)

    async def run(self) -> list[Row]:
        """Play it to the end."""
        store = await SqliteStore.open(
            self._path,
            node_id=peer(0),
            network=Network.REGTEST,
            clocks=Clocks(wall=self.clock, monotonic=lambda: self.clock.monotonic),
            quotas=self.quotas,
        )
        try:
            for hour, visitors in enumerate(self._visits):
                self._chance.shuffle(visitors)
                for start in range(0, len(visitors), TOGETHER):
                    await self._visit(store, hour, visitors[start : start + TOGETHER])
                self.clock.advance(HOUR)
                counts = await store.counts()
                self.most = replace(
                    self.most,
                    peers=max(counts.peers, self.most.peers),
                    bytes=max(counts.bytes, self.most.bytes),
                )
            await self._look_who_is_left(store)
        finally:
            await store.close()
        return list(self._rows())

    async def _visit(self, store: SqliteStore, hour: int, members: Iterable[Member]) -> None:
        """They come together, get back what they have, store, and leave."""
        here: list[tuple[Member, SqliteLease, Recorder, bytes]] = []
        for member in members:
            recorder = Recorder()
            lease = await store.open_lease(member.node_id, recorder)
            lease.meet(f"{member.host}:9735", b"")
            slot = Slot(member.node_id, BackupKind.PEER_STORAGE)
            await self._compare(member, lease, slot)
            seed = hashlib.sha256(member.node_id + hour.to_bytes(4, "big")).digest()
            blob = (seed * (1 + member.size // 32))[: member.size]
            here.append((member, lease, recorder, blob))
        for member, lease, _, blob in here:  # in one transaction, so that it is the same each time
            lease.put(1, Slot(member.node_id, BackupKind.PEER_STORAGE), blob)
        await store.settle()
        for member, lease, recorder, blob in here:
            self._see(member, hour, blob, recorder.told[-1][1])
            lease.close()
            # Nobody comes to the hour.
            following = hour + member.every + self._chance.randrange(-2, 3)
            if member.every and following < member.until:
                self._visits[following].append(member)

    @staticmethod
    async def _compare(member: Member, lease: SqliteLease, slot: Slot) -> None:
        """Whether a peer gets back what it has stored."""
        if not member.blob:
            return
        backup = await lease.read(slot)
        if backup is None:
            member.displaced = True
            member.lost_when_established |= member.established
            member.blob, member.established = b"", False
        else:
            assert backup.blob == member.blob, "it got back something else"

    def _see(self, member: Member, hour: int, blob: bytes, refusal: str | None) -> None:
        if member.blob and hour - member.since >= self.quotas.probation // HOUR:
            member.established = True
        if refusal is not None:
            member.refused = True
            return
        if not member.blob:
            member.since = hour
        member.blob, member.stored = blob, True

    async def _look_who_is_left(self, store: SqliteStore) -> None:
        left = {
            version.revision.slot.node_id: version.revision.sha256
            async for version in store.versions()
            if version.current
        }
        for member in self.members:
            if member.blob:
                member.kept = left.get(member.node_id) == hashlib.sha256(member.blob).digest()
                member.displaced |= not member.kept
                member.lost_when_established |= member.established and not member.kept

    def _rows(self) -> Iterator[Row]:
        for kind in (*HONEST_KINDS, *SHARES):
            mine = [member for member in self.members if member.kind == kind]
            yield Row(
                kind,
                len(mine),
                sum(member.stored for member in mine),
                sum(member.refused for member in mine),
                sum(member.displaced for member in mine),
                sum(member.established for member in mine),
                sum(member.lost_when_established for member in mine),
                sum(member.kept for member in mine),
            )


def quotas_for(honest: int) -> Quotas:
    """A store that has room for three times the honest peers, and not for their Sybils."""
    return Quotas(
        max_peers=3 * honest,
        max_bytes=48_000 * honest,
        max_bytes_per_peer=2 * LARGEST,
        min_free_space=0,
    )


async def simulate(
    directory: Path, honest: int, sybils: int, seed: int
) -> tuple[Simulation, list[Row]]:
    """Play it with so many of both; what came of it."""
    chance = random.Random(seed)  # noqa: S311 - the same each time
    members = population(honest, sybils, chance)
    simulation = Simulation(directory, quotas_for(honest), members, chance)
    return simulation, await simulation.run()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--honest", type=int, default=1000)
    parser.add_argument("--sybils", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="peerstore-sybils-") as directory:
        simulation, rows = asyncio.run(
            simulate(Path(directory), options.honest, options.sybils, options.seed)
        )
    quotas, most = simulation.quotas, simulation.most
    print(f"{'kind':20}  peers  stored  refused  displaced  established  lost then  kept")
    for row in rows:
        print(
            f"{row.kind:20}{row.peers:7}{row.stored:8}{row.refused:9}{row.displaced:11}"
            f"{row.established:13}{row.lost_when_established:11}{row.kept:6}"
        )
    print(
        f"at most {most.peers} of {quotas.max_peers} peers, {most.bytes} of {quotas.max_bytes}"
        f" bytes; {DAYS} days in {time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
