"""What the HTTP listener is given to hand out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Page:
    """What is answered: a body with its content type, a status, and further headers."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[str], Awaitable[Page]]
"""Makes a page; what it gets is the request's Accept header."""
