"""What an operator can ask of the store, by name: methods of the control socket.

The same table serves a command that finds no daemon and takes the lock itself, so there is one way
in which a thing is done. Parameters are what JSON has: ids in hexadecimal, kinds by name, times in
seconds. Every method raises OperatorError for what it refuses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from peerstore.documents import alarm_document, due_document
from peerstore.errors import AddressError
from peerstore.store import operations
from peerstore.store.base import Retention
from peerstore.store.sqlite import SqliteStore
from peerstore.turns import in_turns
from peerstore.types import parse_node_id, parse_slot


def _count(value: object) -> int:
    """A number as SQLite can hold it, at least 1; raises AddressError."""
    if type(value) is not int or not 0 < value < 1 << 62:
        raise AddressError(f"{value!r:.40} is not a whole number of at least 1")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise AddressError(f"{value!r:.40} is neither true nor false")
    return value


async def _nothing() -> None:
    """Nobody has to be told, or asked."""


def methods(
    store: SqliteStore,
    retention: Callable[[], Retention] = Retention,
    rules_changed: Callable[[], Awaitable[None]] = _nothing,
    look: Callable[[], Awaitable[None]] = _nothing,
) -> Mapping[str, Callable[..., Awaitable[Any]]]:
    """The methods that need the store alone, each named `noun.verb`.

    `retention` is asked each time; `rules_changed` is called after a rule about a peer; `look`
    before a prune, to ask the routing node.
    """

    async def pin(node_id: str, kind: str, channel_id: str, revision: int) -> None:
        await store.run(operations.pin(parse_slot(node_id, kind, channel_id), _count(revision)))

    async def unpin(node_id: str, kind: str, channel_id: str, revision: int) -> None:
        await store.run(operations.unpin(parse_slot(node_id, kind, channel_id), _count(revision)))

    async def hold(
        node_id: str, kind: str, channel_id: str, revision: int, seconds: int | None = None
    ) -> None:
        slot = parse_slot(node_id, kind, channel_id)
        span = None if seconds is None else _count(seconds)
        await store.run(operations.hold(slot, _count(revision), span))

    async def release(node_id: str, kind: str, channel_id: str) -> None:
        await store.run(operations.release(parse_slot(node_id, kind, channel_id)))

    async def delete(node_id: str, kind: str, channel_id: str, revision: int) -> None:
        await store.run(operations.delete(parse_slot(node_id, kind, channel_id), _count(revision)))

    async def prune(dry_run: bool = False) -> dict[str, Any]:
        await look()
        pruned = store.prune(retention(), dry_run=_flag(dry_run))
        return {"items": [due_document(each) async for each in pruned]}

    async def set_rule(node_id: str, rule: str, undo: bool) -> None:
        peer = parse_node_id(node_id)
        await store.run(operations.set_rule(peer, rule, undo=_flag(undo)))
        await rules_changed()

    async def allow(node_id: str, undo: bool = False) -> None:
        await set_rule(node_id, "allow", undo)

    async def deny(node_id: str, undo: bool = False) -> None:
        await set_rule(node_id, "deny", undo)

    async def forget(node_id: str) -> None:
        await store.run(operations.forget(parse_node_id(node_id)))

    async def acknowledge(number: int) -> None:
        await store.run(operations.acknowledge(_count(number)))

    async def alarms(acknowledged: bool = False) -> dict[str, Any]:
        found = await store.reader.alarms(acknowledged=_flag(acknowledged))
        return {"items": [alarm_document(alarm) async for alarm in in_turns(found)]}

    return {
        "backups.pin": pin,
        "backups.unpin": unpin,
        "backups.hold": hold,
        "backups.release": release,
        "backups.delete": delete,
        "backups.prune": prune,
        "peers.allow": allow,
        "peers.deny": deny,
        "peers.forget": forget,
        "alarms.list": alarms,
        "alarms.ack": acknowledge,
    }
