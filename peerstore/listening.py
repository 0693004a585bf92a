"""Sockets that listen."""

from __future__ import annotations

import errno
import socket

BACKLOG = 1024
"""Connections that the kernel completes before they are accepted."""


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol, which those that are accepted inherit: asyncio sets TCP_NODELAY only then,
    # and without it an answer waits for the acknowledgement of the one before.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # [::] beside 0.0.0.0 is IPv6 alone.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def listen_failure(where: str, error: OSError, key: str) -> str:
    """What to do when an address of a key of the configuration can't be listened on."""
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use: stop what listens there or change {key}"
    if error.errno == errno.EACCES:
        return f"{where}: no permission; ports below 1024 need a privilege"
    return f"{where} can't be listened on: {error.strerror or error}"
