"""The corpus and the seeds, each time; and that it is what it should be."""

from __future__ import annotations

import hashlib

import pytest

from tests.fuzz.driver import try_input
from tests.fuzz.targets import CORPUS, TARGETS, Target

MOST_FILES, MOST_BYTES = 200, 300_000

each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)


@each_target
def test_every_input_that_is_kept_runs_through(target: Target) -> None:
    for data in target.inputs:
        failure = try_input(target.name, data)
        if failure is not None:
            pytest.fail(f"{target.name} fails on {data.hex()}\n{failure.trace}")


@each_target
def test_the_corpus_is_small_and_named_by_its_hashes(target: Target) -> None:
    paths = sorted(target.corpus.iterdir())
    assert 0 < len(paths) <= MOST_FILES
    for path in paths:
        assert path.name == hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_the_whole_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST_BYTES
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()
