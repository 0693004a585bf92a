"""Internet addresses as limits count them: by who holds one, and by the network it stands in."""

from __future__ import annotations

import functools
import ipaddress

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@functools.lru_cache(maxsize=4096)
def parse_ip(host: str) -> IpAddress | None:
    """The IP address of a host's text, None where it is a name; an IPv4 address in IPv6's form
    (`::ffff:203.0.113.5`) is that IPv4 address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped or address


def holder_of(address: IpAddress) -> str:
    """Whose an address is: of IPv4 the address, of IPv6 its /64, which one host has whole."""
    return _network(address, 64) if address.version == 6 else str(address)


def group_of(address: IpAddress | None) -> str:
    """The network of neighbours: the /24 of an IPv4 address, the /48 of an IPv6 one.

    Who has one address of such a network can mostly have them all. "" for no address.
    """
    if address is None:
        return ""
    return _network(address, 48 if address.version == 6 else 24)


def _network(address: IpAddress, prefix: int) -> str:
    host_bits = address.max_prefixlen - prefix
    network = type(address)(int(address) >> host_bits << host_bits)
    return f"{network}/{prefix}"
