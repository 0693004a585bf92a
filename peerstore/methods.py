"""What an operator can have done to the store, by name: the methods of the control socket.

The same table serves a command that finds no daemon and takes the lock itself, so there is one way
in which a thing is done. Parameters are what JSON has: ids in hexadecimal, kinds by name, times in
seconds. Every method raises OperatorError for what it refuses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from peerstore.errors import AddressError
from peerstore.store import operations
from peerstore.store.sqlite import SqliteStore
from peerstore.types import CHANNEL_ID_SIZE, BackupKind, Slot, parse_node_id


def parse_slot(node_id: str, kind: str, channel_id: str = "") -> Slot:
    """A slot from its texts; raises AddressError."""
    if not all(isinstance(text, str) for text in (node_id, kind, channel_id)):
        raise AddressError("node_id, kind and channel_id are texts")
    try:
        backup_kind = BackupKind[kind.upper()]
    except KeyError:
        known = ", ".join(known.label for known in BackupKind)
        raise AddressError(f"{kind!r} is no kind of backup; known are {known}") from None
    try:
        channel = bytes.fromhex(channel_id)
    except ValueError:
        raise AddressError(f"{channel_id!r} is not a channel id: 64 hexadecimal digits") from None
    of_channel = backup_kind is BackupKind.CHANNEL_BACKUP
    if not channel and of_channel:
        raise AddressError(
            "a channel_backup is one of several: give its channel id, 64 hexadecimal digits"
            " (`peerstore backups list` has them)"
        )
    if channel and not of_channel:
        raise AddressError(f"a {backup_kind.label} has no channel id")
    if len(channel) != (CHANNEL_ID_SIZE if of_channel else 0):
        raise AddressError(f"{channel_id!r:.100} is not a channel id: 64 hexadecimal digits")
    return Slot(parse_node_id(node_id), backup_kind, channel)


def _count(value: object) -> int:
    """A number as SQLite can hold it, at least 1; raises AddressError."""
    if type(value) is not int or not 0 < value < 1 << 62:
        raise AddressError(f"{value!r:.40} is not a whole number of at least 1")
    return value


def methods(store: SqliteStore) -> Mapping[str, Callable[..., Awaitable[Any]]]:
    """The methods that change the store, each named `noun.verb`."""

    async def pin(node_id: str, kind: str, channel_id: str, revision: int) -> None:
        await store.run(operations.pin(parse_slot(node_id, kind, channel_id), _count(revision)))

    async def unpin(node_id: str, kind: str, channel_id: str, revision: int) -> None:
        await store.run(operations.unpin(parse_slot(node_id, kind, channel_id), _count(revision)))

    async def hold(
        node_id: str, kind: str, channel_id: str, revision: int, seconds: int | None
    ) -> None:
        slot = parse_slot(node_id, kind, channel_id)
        span = None if seconds is None else _count(seconds)
        await store.run(operations.hold(slot, _count(revision), span))

    async def release(node_id: str, kind: str, channel_id: str) -> None:
        await store.run(operations.release(parse_slot(node_id, kind, channel_id)))

    async def delete(node_id: str, kind: str, channel_id: str, revision: int) -> None:
        await store.run(operations.delete(parse_slot(node_id, kind, channel_id), _count(revision)))

    async def acknowledge(number: int) -> None:
        await store.run(operations.acknowledge(_count(number)))

    return {
        "backups.pin": pin,
        "backups.unpin": unpin,
        "backups.hold": hold,
        "backups.release": release,
        "backups.delete": delete,
        "alarms.ack": acknowledge,
    }
