"""Whether all is well: one judgement for `info`, the status page and `/readyz`; pure."""

from __future__ import annotations

from dataclasses import dataclass

from peerstore.words import age, counted, size

NEARLY_FULL = 0.95
"""Of max_bytes, from where on an operator should know."""

UNTRUSTED_SECONDS = 600.0
"""For how long the routing node may be out of reach before the daemon counts as not ready."""

STUCK_SECONDS = 10.0
"""How long a transaction may take before the database counts as one that can't be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What the judgement is made of. Sizes are bytes, times seconds.

    `disk_free` counts in what is free inside the database; `writing_for` is how long the
    transaction takes that is just being written, `write_error` why the last one failed.
    `clock_error` is what is wrong with the wall clock, `source_error` why the routing node can't be
    trusted, for `untrusted_for`.
    """

    alarms: int
    disk_free: int
    min_free_space: int
    bytes: int
    max_bytes: int
    clock_error: str = ""
    write_error: str = ""
    writing_for: float = 0.0
    source_error: str = ""
    untrusted_for: float = 0.0


@dataclass(frozen=True, slots=True)
class Problem:
    """What is not well, in a few words with what to do; `unready` is whether peers are not served
    as they should be because of it."""

    text: str
    unready: bool = False


def problems(condition: Condition) -> list[Problem]:
    """What is not well, the worst first."""
    found = []
    if condition.write_error:
        text = f"the database can't be written, nothing is stored: {condition.write_error}"
        found.append(Problem(text, unready=True))
    elif condition.writing_for > STUCK_SECONDS:
        taken = age(condition.writing_for)
        text = f"the database hangs, it is being written for {taken} now: look at the disk"
        found.append(Problem(text, unready=True))
    if condition.disk_free < condition.min_free_space:
        text = (
            f"only {size(condition.disk_free)} are free on the disk, and updates are refused below"
            f" {size(condition.min_free_space)}: make room, or set store.min_free_space"
        )
        found.append(Problem(text, unready=True))
    if condition.source_error:
        text = f"the routing node can't be trusted, nothing ages: {condition.source_error}"
        found.append(Problem(text, unready=condition.untrusted_for > UNTRUSTED_SECONDS))
    if condition.clock_error:
        found.append(Problem(condition.clock_error))
    if condition.alarms:
        stand = "stands" if condition.alarms == 1 else "stand"
        alarms = counted(condition.alarms, "alarm")
        found.append(Problem(f"{alarms} {stand}: `peerstore alarms list`"))
    if condition.bytes >= NEARLY_FULL * condition.max_bytes:
        text = (
            f"the store holds {size(condition.bytes)} of at most {size(condition.max_bytes)}:"
            " raise store.max_bytes"
        )
        found.append(Problem(text))
    return found
