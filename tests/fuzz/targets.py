"""Every fuzz target: a function of bytes that raises only when something is wrong.

What may escape from the package is what its docstrings name; a target catches just that, and
holds what comes out against what it knows beforehand: honest bytes, a second reading of the
message (reference.py), the books of a conversation (books.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.fuzz import conversations, parsers, seeds, transport

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """A target, and how inputs are made for it.

    Inputs are changed seeds; where `free` of four are just random bytes. `longest` is their
    usual length in bytes, not a limit.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    longest: int
    free: int = 0

    @property
    def corpus(self) -> Path:
        """Where the inputs are that are run each time."""
        return CORPUS / self.name

    @cached_property
    def inputs(self) -> Sequence[bytes]:
        """Seeds and corpus, each once and in a fixed order."""
        kept = (path.read_bytes() for path in sorted(self.corpus.glob("*")))
        return tuple(dict.fromkeys((*self.seeds(), *kept)))


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("handshake", transport.handshake, seeds.handshake, 60, free=1),
        Target("frames", transport.frames, seeds.frames, 60, free=2),
        Target("messages", parsers.messages, seeds.messages, 200),
        Target("tlvs", parsers.tlvs, seeds.tlvs, 60),
        Target("features", parsers.features, seeds.features, 40),
        Target("texts", parsers.texts, seeds.texts, 60),
        Target("control", parsers.control, seeds.control, 200),
        Target("conversations", conversations.conversations, seeds.conversations, 500, free=3),
    )
}

PARSERS = ("messages", "tlvs", "features", "texts", "control", "frames", "handshake")
"""Those of which an input is one thing to be read."""
