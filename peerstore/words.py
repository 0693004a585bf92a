"""Numbers for people: spans of time, counts and bytes."""

from __future__ import annotations


def age(seconds: float) -> str:
    """A span of time for people, in its largest unit: `5 min`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def counted(count: int, what: str) -> str:
    """So many of a thing: `1 backup`, `1,000 backups`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Bytes for people: `64.0 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.1f} TiB"
