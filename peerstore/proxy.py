"""The way to another node: straight, or through a SOCKS5 proxy (RFC 1928).

An onion goes through the proxy always, everything else when the operator wants that. Through the
proxy goes the name, never an address that was looked up here.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from peerstore.errors import DialError
from peerstore.types import format_host_port, is_onion

PROXY_SECONDS = 40.0
"""How much longer a connection may take through a proxy: Tor may have a circuit to build first."""

HAPPY_EYEBALLS_SECONDS = 0.25
"""After so long without an answer the next address of a name is tried as well (RFC 8305)."""


@dataclass(frozen=True, slots=True)
class Route:
    """How other nodes are reached: `proxy` is host and port; `proxy_all` wants it for all."""

    proxy: tuple[str, int] | None = None
    proxy_all: bool = False

    def through_proxy(self, host: str) -> bool:
        """Whether a host is reached through the proxy; raises DialError when there is none."""
        wanted = self.proxy_all or is_onion(host)
        if wanted and self.proxy is None:
            raise DialError(
                'needs a proxy: set dial.proxy, for Tor on this machine to "127.0.0.1:9050"'
            )
        return wanted

    def patience(self, host: str) -> float:
        """Seconds that a connection to a host may take longer than others."""
        return PROXY_SECONDS if self.through_proxy(host) else 0.0

    async def arguments(self, host: str, port: int) -> dict[str, Any]:
        """What `loop.create_connection` and `asyncio.open_connection` need to get to a host.

        Through a proxy that is a socket which is connected already. Raises DialError, OSError.
        """
        if self.proxy is None or not self.through_proxy(host):
            return {
                "host": host,
                "port": port,
                "happy_eyeballs_delay": HAPPY_EYEBALLS_SECONDS,
            }
        return {"sock": await _through(self.proxy, host, port)}


STRAIGHT = Route()
"""No proxy at all."""


async def _through(proxy: tuple[str, int], host: str, port: int) -> socket.socket:
    """A socket of the proxy that is connected to a host; raises DialError."""
    # Imported where a proxy is used: most nodes have none.
    from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError, ProxyType
    from python_socks.async_.asyncio import Proxy

    where = f"the proxy {format_host_port(*proxy)}"
    try:
        # rdns: the name goes to the proxy.
        return await Proxy(ProxyType.SOCKS5, *proxy, rdns=True).connect(host, port)
    except ProxyTimeoutError:
        raise DialError(f"{where} does not answer") from None
    except ProxyConnectionError as error:
        why = getattr(error.__cause__, "strerror", None) or error
        raise DialError(f"{where} can't be reached: {why}: does it run?") from error
    except ProxyError as error:
        if error.error_code is not None:
            raise DialError(f"{where} can't connect to it: {_why(error.error_code)}") from error
        raise DialError(f"{where} gave no proper answer ({error}): is it SOCKS5?") from error
    except OSError as error:
        raise DialError(f"{where} hung up: {error.strerror or error}") from error
    except ValueError as error:  # a name that can't be sent, an answer that can't be read
        raise DialError(f"{where}: {error}") from error


_REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "it took too long",
    7: "it can't do that",
    8: "it does not know this type of address",
}
"""RFC 1928, section 6."""


def _why(code: int) -> str:
    return _REPLIES.get(code, f"failure {code}")
