"""The types of the configuration's values: each reads a text and checks it.

They raise ValueError whose text says what is expected; config.py says where it stands.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from pathlib import Path
from typing import Self

from peerstore.errors import AddressError
from peerstore.types import NodeAddress, NodeId, is_onion, parse_host_port, parse_node_id

ALIAS_MAX_BYTES = 32

_UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhdw])")
_LONGEST_DURATION = 36525 * 86400  # seconds; keeps now minus a duration a valid date
_UNIT_BYTES = {"B": 1, **{f"{p}B": 1000**n for n, p in enumerate("kMGT", 1)},
               **{f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)}}  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,15})(B|[kMGT]B|[KMGT]iB)")
_HOST_NAME = re.compile(r"(?:[\w-]{1,63}\.)*(?![0-9]+$)[\w-]{1,63}", re.ASCII)


class Duration(float):
    """Seconds, read from a number with a unit (`500ms`, `5s`, `2m`, `2h`, `1d`, `3w`) or `0`.

    `str()` gives the text as it was written; raises ValueError.
    """

    text: str

    def __new__(cls, text: str) -> Self:
        match = _DURATION.fullmatch(text)
        if match is None and text != "0":
            raise ValueError('expected a number and a unit of ms, s, m, h, d or w, such as "15s"')
        seconds = float(match[1]) * _UNIT_SECONDS[match[2]] if match else 0.0
        if seconds > _LONGEST_DURATION:
            raise ValueError("expected at most a hundred years (36525d)")
        duration = super().__new__(cls, seconds)
        duration.text = text
        return duration

    def __str__(self) -> str:
        return self.text


class Timeout(Duration):
    """A duration that is more than 0."""

    def __new__(cls, text: str) -> Self:
        timeout = super().__new__(cls, text)
        if not timeout:
            raise ValueError('a timeout must be more than 0, such as "15s"')
        return timeout


class Size(int):
    """Bytes, read from a whole number with a unit (`512KiB`, `256MiB`, `10GiB`, `1MB`) or `0`.

    `str()` gives the text as it was written; raises ValueError.
    """

    text: str

    def __new__(cls, text: str) -> Self:
        match = _SIZE.fullmatch(text)
        if match is None and text != "0":
            raise ValueError('expected a whole number and a unit, such as "256MiB" or "10GiB"')
        size = super().__new__(cls, int(match[1]) * _UNIT_BYTES[match[2]] if match else 0)
        size.text = text
        return size

    def __str__(self) -> str:
        return self.text


class Room(Size):
    """A size that has room for a backup of full size."""

    def __new__(cls, text: str) -> Self:
        room = super().__new__(cls, text)
        if room < 1 << 19:
            raise ValueError('too little for a backup and the ones before it: at least "512KiB"')
        return room


class Rate(Size):
    """Bytes a second; a message of full size takes at most a second."""

    def __new__(cls, text: str) -> Self:
        rate = super().__new__(cls, text)
        if rate < 1 << 16:
            raise ValueError('a message of full size has to fit into a second: at least "64KiB"')
        return rate


class IpNetwork(str):
    """An IP network such as 192.0.2.0/24 or ::1/128, or one address; raises ValueError."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network

    def __new__(cls, text: str) -> Self:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            raise ValueError(
                f"{error}: expected an IP network such as 192.0.2.0/24 or ::1/128"
            ) from None
        value = super().__new__(cls, text)
        value.network = network
        return value


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Address(str):
    """`host:port`; `host` is without brackets. Raises ValueError."""

    host: str
    port: int

    def __new__(cls, text: str) -> Self:
        try:
            host, port = parse_host_port(text)
        except AddressError as error:
            raise ValueError(str(error)) from None
        address = super().__new__(cls, text)
        address.host, address.port = host, port
        return address


class ListenAddress(Address):
    """Where to listen: an IP address and a port; port 0 lets the kernel pick one."""

    def __new__(cls, text: str) -> Self:
        address = super().__new__(cls, text)
        if not _is_ip_address(address.host):
            raise ValueError(
                f"{address.host!r} is not an IP address: "
                "expected one such as 127.0.0.1:9737 or [::]:9737"
            )
        return address


class OptionalListenAddress(str):
    """Where to listen, or nothing."""

    address: tuple[str, int] | None

    def __new__(cls, text: str) -> Self:
        listen = super().__new__(cls, text)
        listen.address = None
        if text:
            address = ListenAddress(text)
            listen.address = (address.host, address.port)
        return listen


def _check_host(host: str) -> None:
    if not (_is_ip_address(host) or _HOST_NAME.fullmatch(host)):
        raise ValueError(f"{host!r} is not a host name, an onion or an IP address")
    if is_onion(host):
        _check_onion(host)


def _check_onion(host: str) -> None:
    """Tor's rend-spec-v3, 6: base32 of a public key, two bytes of checksum, and the version."""
    label = host.lower().split(".")[-2]
    try:
        decoded = base64.b32decode(label.upper())
    except ValueError:
        decoded = b""
    key, checksum, version = decoded[:32], decoded[32:34], decoded[34:]
    if version != b"\x03":
        raise ValueError(f"{host!r} is not an onion address of 56 characters before .onion")
    if checksum != hashlib.sha3_256(b".onion checksum" + key + version).digest()[:2]:
        raise ValueError(f"{host!r}: its checksum is wrong; copy the onion address again")


class PublicAddress(Address):
    """What peers are told to dial: a name, an onion or an IP address, and a port."""

    def __new__(cls, text: str) -> Self:
        address = super().__new__(cls, text)
        _check_host(address.host)
        if address.port == 0:
            raise ValueError(f"{text!r}: no peer can dial port 0; expected 1 to 65535")
        return address


class ProxyAddress(str):
    """`host:port` of a SOCKS5 proxy, or nothing."""

    address: tuple[str, int] | None

    def __new__(cls, text: str) -> Self:
        proxy = super().__new__(cls, text)
        proxy.address = None
        if text:
            if "@" in text or "://" in text:
                raise ValueError(
                    'expected the host:port of a SOCKS5 proxy alone, such as "127.0.0.1:9050"'
                )
            address = Address(text)
            _check_host(address.host)
            if address.port == 0:
                raise ValueError(f"{text!r}: nothing listens on port 0; Tor does on 9050")
            proxy.address = (address.host, address.port)
        return proxy


class PeerAddress(str):
    """`node_id@host:port` of a peer to dial; the host is a name, an onion or an IP address."""

    address: NodeAddress

    def __new__(cls, text: str) -> Self:
        try:
            address = NodeAddress.parse(text)
        except AddressError as error:
            raise ValueError(str(error)) from None
        _check_host(address.host)
        if address.port == 0:
            raise ValueError(f"{text!r}: port 0 can't be dialed; expected 1 to 65535")
        peer = super().__new__(cls, text)
        peer.address = address
        return peer


class NodeIdText(str):
    """A node id of 66 hexadecimal digits; raises ValueError."""

    node_id: NodeId

    def __new__(cls, text: str) -> Self:
        try:
            node_id = parse_node_id(text)
        except AddressError as error:
            raise ValueError(str(error)) from None
        value = super().__new__(cls, text)
        value.node_id = node_id
        return value


class Alias(str):
    """A name for people: at most 32 bytes of UTF-8."""

    def __new__(cls, text: str) -> Self:
        if (size := len(text.encode())) > ALIAS_MAX_BYTES:
            raise ValueError(f"it has {size} bytes; an alias has at most {ALIAS_MAX_BYTES}")
        return super().__new__(cls, text)


class FileName(str):
    """A path to a file, absolute or relative to the data directory."""

    def __new__(cls, text: str) -> Self:
        if not text or text.endswith("/"):
            raise ValueError("expected the path of a file, relative to the data directory or not")
        return super().__new__(cls, text)

    def path(self, data_dir: Path) -> Path:
        """The file in `data_dir`, or the absolute path as it stands."""
        return data_dir / self


class OptionalFile(FileName):
    """The path of a file of another program, absolute or relative to the data directory, or
    nothing; `~` is the user's home."""

    def __new__(cls, text: str) -> Self:
        try:
            Path(text).expanduser()
        except RuntimeError:
            raise ValueError(f"{text!r}: there is no such home: write the path out") from None
        return super().__new__(cls, text) if text else str.__new__(cls, "")

    def path(self, data_dir: Path) -> Path:
        """The file."""
        return data_dir / Path(self).expanduser()


class HttpUrl(str):
    """`http://host:port` or `https://host:port`."""

    _schemes: tuple[str, ...] = ("http", "https")

    def __new__(cls, text: str) -> Self:
        if "@" in text:  # nothing else is said of it: it may hold a password
            raise ValueError("leave user and password out of the URL")
        scheme, separator, address = text.rstrip("/").partition("://")
        if scheme not in cls._schemes or not separator:
            raise ValueError(f'expected a URL such as "{cls._schemes[-1]}://127.0.0.1:8080"')
        PublicAddress(address)
        return super().__new__(cls, text.rstrip("/"))


class HttpsUrl(HttpUrl):
    """`https://host:port`."""

    _schemes = ("https",)


_TAKEN = (".lock", ".mark", ".sock")
"""Endings of files that stand beside the database."""


class StoreUrl(str):
    """`sqlite:///name`, relative to the data directory, or `sqlite:////absolute/name`."""

    _SCHEME = "sqlite:///"

    def __new__(cls, text: str) -> Self:
        name = text.removeprefix(cls._SCHEME)
        # `?` begins the options of a URL; taken as a name it would make an odd file.
        if name == text or not name or name.endswith(("/", *_TAKEN)) or "?" in name:
            raise ValueError(
                "expected sqlite:///NAME (in the data directory) or sqlite:////ABSOLUTE/NAME"
            )
        return super().__new__(cls, text)

    def path(self, data_dir: Path) -> Path:
        """The database file."""
        return data_dir / self.removeprefix(self._SCHEME)
