"""What the configuration means to the parts that know nothing of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from pathlib import Path

from peerstore.channels.base import ChannelSource
from peerstore.config import SOURCE_FILES, Config
from peerstore.datadir import LOCK_NAME
from peerstore.policy import Channels, Policy
from peerstore.proxy import Route
from peerstore.store.base import Quotas, Retention
from peerstore.types import NodeAddress, NodeId


def lock_paths(data_dir: Path, config: Config) -> tuple[Path, Path]:
    """The locks of a daemon: in the data directory and beside the database."""
    # Resolved as SQLite does it: a link is another name, not another database.
    database = config.store.url.path(data_dir).resolve()
    return data_dir / LOCK_NAME, database.with_suffix(".lock")


def reachable(host: str) -> str:
    """The host of an address that is listened on, the loopback one where it means every interface:
    that is true at least on this machine."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what to replace
    return loopback.get(host, host)


def uris(config: Config, node_id: NodeId, addresses: list[tuple[str, int]]) -> list[str]:
    """What peers connect to: the announced addresses, else those that are listened on."""
    shown = [(address.host, address.port) for address in config.listen.announce]
    if not shown:
        shown = [(reachable(host), port) for host, port in addresses]
    return [str(NodeAddress(node_id, host, port)) for host, port in dict.fromkeys(shown)]


def policy(config: Config, rules: Mapping[NodeId, str], channels: Channels | None = None) -> Policy:
    """Who is served by the configuration, the operator's rules, and who has channels."""
    table = config.policy
    return Policy(
        serve=table.serve,
        allow=frozenset(text.node_id for text in table.allow),
        deny=frozenset(text.node_id for text in table.deny),
        rules=rules,
        channels=channels,
    )


def route(config: Config) -> Route:
    """How other nodes are reached."""
    return Route(config.dial.proxy.address, config.dial.proxy_all)


def source_files(config: Config, data_dir: Path) -> list[Path]:
    """The files of the routing node that is asked: its socket, or what lets peerstore in."""
    keys = SOURCE_FILES[config.channels.source]
    return [operator.attrgetter(key)(config).path(data_dir) for key in keys]


def channel_source(config: Config, data_dir: Path) -> ChannelSource | None:
    """The routing node to ask, None for none; what a source needs is imported only for it."""
    channels = config.channels
    if channels.source == "cln":
        from peerstore.channels.cln import ClnSource

        return ClnSource(channels.cln.socket.path(data_dir), config.network)
    if channels.source == "lnd":
        from peerstore.channels.lnd import LndSource

        lnd = channels.lnd
        return LndSource(
            lnd.url, lnd.tls_cert.path(data_dir), lnd.macaroon_file.path(data_dir), config.network
        )
    if channels.source == "eclair":
        from peerstore.channels.eclair import EclairSource

        eclair = channels.eclair
        return EclairSource(eclair.url, eclair.password_file.path(data_dir), config.network)
    return None


def retention(config: Config) -> Retention:
    """What is deleted of itself."""
    table = config.retention
    return Retention(
        blocks=table.after_close_blocks,
        after_close=math.ceil(table.after_close_time),
        inactive=math.ceil(table.inactive_time),
    )


def quotas(config: Config) -> Quotas:
    """The store's part of the configuration."""
    store = config.store
    return Quotas(
        history=store.history,
        hold_on_shrink=math.ceil(store.hold_on_shrink),
        max_bytes=store.max_bytes,
        max_bytes_per_peer=store.max_bytes_per_peer,
        max_peers=store.max_peers,
        max_channels_per_peer=store.max_channels_per_peer,
        probation=math.ceil(store.probation),
        min_free_space=store.min_free_space,
    )
