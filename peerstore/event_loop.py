"""Which event loop the daemon runs on: asyncio's own, or uvloop where it is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from peerstore.errors import ConfigError

_log = structlog.get_logger()

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def loop_factory(name: str) -> LoopFactory:
    """How to make the loop that is asked for: asyncio, uvloop, or auto.

    Raises ConfigError where uvloop is not installed.
    """
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except Exception as error:  # whatever a broken installation raises
        if name == "auto":
            if not isinstance(error, ModuleNotFoundError):
                _log.warning("no_uvloop", error=str(error))
            return asyncio.new_event_loop
        raise ConfigError(
            f"uvloop can't be used ({error}): install it with `pip install 'peerstore[uvloop]'`,"
            " or leave --loop out"
        ) from error
    return uvloop.new_event_loop
