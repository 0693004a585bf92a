"""HTML and SVG elements as text; whatever is not markup already is escaped."""

from __future__ import annotations

import html
import re

_VOID = {"link", "meta"}
"""Elements that have neither content nor an end."""

# What is no character in HTML, but for tab and line feed, and what turns the direction of text.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Markup | None
"""What stands in an element; None is nothing."""


def plain(text: str) -> str:
    """A text as it can be shown: what can't be printed or encoded is replaced."""
    shown = text.encode("utf-8", "replace").decode("utf-8")
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", shown)


def escape(content: Content) -> Markup:
    """Content as markup: a text is escaped, so that it stands as well in an attribute."""
    if content is None:
        return Markup()
    return content if isinstance(content, Markup) else Markup(html.escape(plain(content)))


def join(*contents: Content) -> Markup:
    """One after the other."""
    return Markup("".join(map(escape, contents)))


def element(name: str, /, *contents: Content, **attributes: str | float | None) -> Markup:
    """An element: `element("p", text, class_="note")`.

    In names of attributes `_` stands for `-`, and none at the end. None leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    end = "" if name in _VOID else f"{join(*contents)}</{name}>"
    return Markup(f"<{name}{written}>{end}")


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
