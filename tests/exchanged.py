"""Messages of all sizes out of a seed, the same under every Python: for two programs to exchange.

It knows nothing of peerstore, for the system's Python imports it too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

EDGES = (0, 1, 2, 15, 16, 17, 18, 19, 33, 34, 35, 990, 1006, 1007, 1024, 4096, 65500, 65534, 65535)


def messages(seed: int, sender: str, count: int) -> Iterator[bytes]:
    """So many messages of 0 to 65535 bytes; small ones for the most part."""
    lots = random.Random(f"{sender} {seed}")  # noqa: S311 - nothing secret
    for _ in range(count):
        kind = lots.random()
        usual = lots.randrange(65536 if kind < 0.03 else 300)
        yield lots.randbytes(lots.choice(EDGES) if kind > 0.9 else usual)


def cuts(seed: int) -> Iterator[int]:
    """Sizes of pieces, small ones, large ones, and runs of single bytes."""
    lots = random.Random(f"cuts {seed}")  # noqa: S311 - nothing secret
    while True:
        yield from [lots.choice((1, 2, 18, 34, 1000, 65569, lots.randrange(1, 200000)))] * 5
