"""The configuration: what may stand in config.toml, in the environment and in `--set`.

The structs below are the only list of keys: a field is a key, a struct is a TOML table, a
default is what `config.example.toml` shows. A value's type checks the value. Each layer (file,
environment, flags) is checked by itself, so that an error names the place where it stands; it is
always a ConfigError of one line.
"""

from __future__ import annotations

import contextlib
import difflib
import enum
import json
import operator
import os
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from peerstore.config_values import (
    Alias,
    Duration,
    FileName,
    HttpsUrl,
    HttpUrl,
    IpNetwork,
    ListenAddress,
    NodeIdText,
    OptionalFile,
    OptionalListenAddress,
    PeerAddress,
    ProxyAddress,
    PublicAddress,
    Rate,
    Room,
    Size,
    StoreUrl,
    Timeout,
)
from peerstore.errors import ConfigError
from peerstore.files import open_file
from peerstore.types import Network, is_onion

SYSTEM_DATA_DIRECTORY = Path("/var/lib/peerstore")
"""Where the systemd unit keeps the data."""

Serve = Literal["anyone", "channels", "allowlist"]
SourceName = Literal["none", "cln", "lnd", "eclair"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]

_LIST_EXAMPLES = {"dial.peers": "node_id@host:9735"}
"""What an element looks like where it is not what another list holds."""

_VARIABLE_PREFIX = "PEERSTORE_"
_SHOWN_CHARACTERS = 100


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[listen]: where peers come in."""

    addresses: tuple[ListenAddress, ...] = (
        ListenAddress("0.0.0.0:9737"),
        ListenAddress("[::]:9737"),
    )
    announce: tuple[PublicAddress, ...] = ()
    """Shown in the node's URIs."""


class Dial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[dial]: whom we connect to, and how."""

    peers: tuple[PeerAddress, ...] = ()
    """Kept connected; several addresses of one node are tried in their order."""
    proxy: ProxyAddress = ProxyAddress("")
    """A SOCKS5 proxy for onion addresses."""
    proxy_all: bool = False
    """Whether it is for every other address too, names included."""
    refresh: Duration = Duration("1d")
    """When a connection that we dialed is renewed; 0: never."""


class Store(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[store]: where the backups are kept, and how many; sizes in bytes, times in seconds."""

    url: StoreUrl = StoreUrl("sqlite:///peerstore.db")
    history: AtLeastOne = 8
    """Kept versions of a slot beside the current one and the pinned ones."""
    hold_on_shrink: Duration = Duration("2d")
    """How long what stood before a data loss is given back; 0: always the newest."""
    max_bytes: Room = Room("10GiB")
    max_bytes_per_peer: Room = Room("4MiB")
    max_peers: AtLeastOne = 100000
    max_channels_per_peer: AtLeastOne = 100
    probation: Duration = Duration("1d")
    """After so long a peer that comes back is no stranger any more."""
    min_free_space: Size = Size("256MiB")


class PolicyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[policy]: who is served."""

    serve: Serve = "anyone"
    allow: tuple[NodeIdText, ...] = ()
    """Served in any mode."""
    deny: tuple[NodeIdText, ...] = ()
    """Beats allow; what is stored already is still given back."""


class Cln(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[channels.cln]: Core Lightning's JSON-RPC."""

    socket: OptionalFile = OptionalFile("")


class Lnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[channels.lnd]: lnd's REST interface."""

    url: HttpsUrl = HttpsUrl("https://127.0.0.1:8080")
    tls_cert: OptionalFile = OptionalFile("")
    macaroon_file: OptionalFile = OptionalFile("")


class Eclair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[channels.eclair]: eclair's API."""

    url: HttpUrl = HttpUrl("http://127.0.0.1:8080")
    password_file: OptionalFile = OptionalFile("")


class Channels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[channels]: the routing node that knows who has channels."""

    source: SourceName = "none"
    cln: Cln = Cln()
    lnd: Lnd = Lnd()
    eclair: Eclair = Eclair()


class RetentionTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[retention]: what is deleted of itself; times in seconds that the daemon sees pass."""

    after_close_blocks: AtLeastOne = 2016
    after_close_time: Timeout = Timeout("14d")
    """Where no block height is known."""
    inactive_time: Duration = Duration("0")
    """For peers without a known channel that are never seen again; 0 keeps them forever."""


class Snapshots(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[snapshots]: copies of the database on a schedule."""

    every: Duration = Duration("0")
    """0 is off."""
    dir: FileName = FileName("snapshots")
    keep: AtLeastOne = 7


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[limits]: what peers may take; times in seconds, sizes in bytes."""

    max_connections: AtLeastOne = 10000
    max_connections_per_ip: AtLeastOne = 64
    handshakes_per_second_per_ip: AtLeastOne = 20
    """Ten times that for a /24 or /48."""
    max_handshakes: AtLeastOne = 256
    """That are not done yet."""
    exempt_networks: tuple[IpNetwork, ...] = (IpNetwork("127.0.0.0/8"), IpNetwork("::1/128"))
    """Without the limits by address."""
    handshake_timeout: Timeout = Timeout("5s")
    """For each act."""
    init_timeout: Timeout = Timeout("15s")
    """From the end of the handshake to the peer's `init`."""
    idle_timeout: Timeout = Timeout("120s")
    commits_per_second: AtLeastOne = 20
    """Of a peer, as the two below; above it updates are merged."""
    bytes_per_second: Rate = Rate("16MiB")
    pong_bytes_per_second: Rate = Rate("1MiB")


class MetricsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[metrics]: the HTTP listener of operators and their tools."""

    listen: OptionalListenAddress = OptionalListenAddress("127.0.0.1:9738")
    """For /metrics, /livez, /readyz and the status page at /; "" turns it off."""


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[log]: what is logged, and how it looks."""

    level: LogLevel = "info"
    format: LogFormat = "auto"
    """`auto` is console on a terminal and JSON elsewhere."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of config.toml; `Config()` holds the defaults."""

    network: Network = Network.BITCOIN
    node_key_file: FileName = FileName("node.key")
    alias: Alias = Alias("")
    listen: Listen = Listen()
    dial: Dial = Dial()
    store: Store = Store()
    policy: PolicyTable = PolicyTable()
    limits: Limits = Limits()
    channels: Channels = Channels()
    retention: RetentionTable = RetentionTable()
    snapshots: Snapshots = Snapshots()
    metrics: MetricsTable = MetricsTable()
    log: Log = Log()


NEEDS_RESTART = (
    "network",
    "node_key_file",
    "listen.addresses",
    "store.url",
    "channels.",
    "metrics.",
)
"""How the keys begin that a running daemon can't change; it follows all others when it reloads."""


SOURCE_FILES: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "cln": ("channels.cln.socket",),
    "lnd": ("channels.lnd.tls_cert", "channels.lnd.macaroon_file"),
    "eclair": ("channels.eclair.password_file",),
}
"""The keys of the files of another program that each channels.source needs."""


class Setting(NamedTuple):
    """One key: its dotted name, its value as JSON would hold it, and where that came from."""

    key: str
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and where it came from.

    `sources` holds for each dotted key `default`, `file PATH`, `environment NAME` or
    `flag --set`; `file` is the config.toml that was read, if any.
    """

    config: Config
    sources: Mapping[str, str]
    warnings: tuple[str, ...]
    file: Path | None

    def settings(self) -> list[Setting]:
        """Every key in the order of config.example.toml."""
        return [
            Setting(key, json.loads(msgspec.json.encode(value, enc_hook=str)), source)
            for key, source in self.sources.items()
            for value in [operator.attrgetter(key)(self.config)]
        ]


def data_directory(
    flag: Path | None, environ: Mapping[str, str], *, home: Path, for_command: bool
) -> Path:
    """The data directory; it may not exist yet.

    `for_command` is true for commands that ask about a node that is there: they fall back to
    /var/lib/peerstore when only that exists. `run` and `init` never do.
    """
    if flag is not None:
        return flag
    if name := environ.get("PEERSTORE_DATA_DIR"):
        return Path(name)
    # systemd gives one directory for each name in StateDirectory=.
    if name := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(name)
    own = home / ".peerstore"
    # Not Path.exists: it raises where a directory above is closed to us.
    only_system = os.access(SYSTEM_DATA_DIRECTORY, os.F_OK) and not os.access(own, os.F_OK)
    if for_command and only_system:
        return SYSTEM_DATA_DIRECTORY
    return own


def load(
    data_dir: Path,
    config_file: Path | None,
    environ: Mapping[str, str],
    overrides: Sequence[str] = (),
) -> Loaded:
    """Read the configuration: flags beat the environment, that beats the file, that the defaults.

    The file is `config_file`, or config.toml in `data_dir` where there is one; `overrides` are
    texts `section.key=value`. Raises ConfigError.
    """
    file = config_file or data_dir / "config.toml"
    document = _read(file, required=config_file is not None)
    from_environment, warnings = _from_environment(environ)
    given = [
        *_from_table(Config, document or {}, f"file {file}"),
        *from_environment,
        *map(_from_override, overrides),
    ]
    merged: dict[str, Any] = {}
    sources = dict.fromkeys(_FIELDS, "default")
    for key, value, source in given:
        _check(key, value, source)
        *tables, name = key.split(".")
        table = merged
        for table_name in tables:
            table = table.setdefault(table_name, {})
        table[name] = value
        sources[key] = source
    config = msgspec.convert(merged, Config, dec_hook=_decode)
    _check_together(config, sources)
    return Loaded(config, sources, warnings, None if document is None else file)


def _read(file: Path, *, required: bool) -> dict[str, Any] | None:
    """The parsed file; None where it is not there and need not be."""
    source = f"file {file}"
    try:
        # Editors on Windows begin a file with a byte order mark.
        # One that is named, as with --config, may be a pipe of the operator's.
        with file.open("rb") if required else open_file(file) as opened:
            text = opened.read().decode("utf-8-sig")
    except FileNotFoundError:
        # A dangling link is a mistake, and no reason to serve another network with defaults.
        if required or file.is_symlink():
            raise _error(source, "does not exist; make it, or correct its name") from None
        return None
    except NotADirectoryError:
        if required:
            raise _error(source, "is below a file, not a directory; correct its name") from None
        return None
    except OSError as error:
        raise _error(
            source, f"can't be read ({error.strerror}); it must be a file that peerstore may read"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _error(source, f"line {line} is not UTF-8 text; save the file as UTF-8") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        end = f"at line {len(text.splitlines())}, the end of the file"
        problem = str(error).replace("at end of document", end)
        raise _error(
            source, f"not TOML: {problem}; text stands in quotes, a list in [brackets]"
        ) from None


def _from_table(
    table: type[msgspec.Struct], document: Mapping[str, Any], source: str, prefix: str = ""
) -> Iterator[Setting]:
    """What a parsed file sets; raises ConfigError for what is no key."""
    fields = {field.name: field for field in msgspec.structs.fields(table)}
    for name, value in document.items():
        key = prefix + name
        if name not in fields:
            raise _unknown(key, source, is_table=isinstance(value, dict))
        if not _is_table(fields[name]):
            yield Setting(key, value, source)
        elif isinstance(value, dict):
            yield from _from_table(fields[name].type, value, source, f"{key}.")
        else:
            raise _error(source, f"{key} = {_shown(value)}: expected a table, [{key}]")


def _from_environment(environ: Mapping[str, str]) -> tuple[list[Setting], tuple[str, ...]]:
    """What the environment sets, and a warning for each variable that fits nothing."""
    keys = {_variable(key): key for key in _FIELDS}
    given, warnings = [], []
    for name in sorted(environ):
        source = f"environment {name}"
        if key := keys.get(name):
            given.append(Setting(key, _from_text(key, environ[name]), source))
        elif name.startswith(_VARIABLE_PREFIX) and name != "PEERSTORE_DATA_DIR":
            # Not an error: Kubernetes makes such variables for a service named peerstore.
            dotted = name.removeprefix(_VARIABLE_PREFIX).replace("__", ".")
            near = _nearest(dotted, [*_FIELDS, "data_dir"])
            hint = f"; did you mean {_variable(near)}?" if near else ""
            warnings.append(_one_line(f"{source}: no such setting, ignored{hint}"))
    return given, tuple(warnings)


def _from_override(text: str) -> Setting:
    source = "flag --set"
    key, equals, value = text.partition("=")
    if not equals:
        raise _error(source, f"{_shown(text)} is not key=value, such as network=regtest")
    if key not in _FIELDS:
        raise _unknown(key, source, is_table=False)
    return Setting(key, _from_text(key, value), source)


def _from_text(key: str, text: str) -> object:
    """A value that came as text: JSON for a list, otherwise as it stands."""
    if get_origin(_FIELDS[key].type) is tuple:
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    if _FIELDS[key].type is AtLeastOne and re.fullmatch("[0-9]{1,15}", text):
        return int(text)
    if _FIELDS[key].type is bool:
        return {"true": True, "false": False}.get(text, text)
    return text


def _check(key: str, value: object, source: str) -> None:
    """Raise ConfigError unless `value` is right for `key`."""
    wanted = _FIELDS[key].type
    try:
        msgspec.convert(value, wanted, dec_hook=_decode)
        return
    # UnicodeEncodeError: what came as bytes that are no UTF-8, for a value that has no hook.
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        problem = str(error.__cause__ or "")
    if not problem:
        if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
            problem = f"expected one of {', '.join(member.value for member in wanted)}"
        elif get_origin(wanted) is Literal:
            problem = f"expected one of {', '.join(get_args(wanted))}"
        elif wanted is AtLeastOne:
            problem = "expected a whole number of at least 1"
        elif wanted is bool:
            problem = "expected true or false, without quotes"
        elif get_origin(wanted) is tuple:
            example = _LIST_EXAMPLES.get(key, "127.0.0.1:9737")
            problem = f'expected a list, such as ["{example}"]'
        else:
            problem = f'expected text in quotes, such as "{_FIELDS[key].default}"'
    raise _error(source, f"{key} = {_shown(value)}: {problem}")


def _check_together(config: Config, sources: Mapping[str, str]) -> None:
    """Raise ConfigError for values that are right each, but not together."""
    name = config.channels.source
    if name == "none" and config.policy.serve == "channels":
        raise _error(
            sources["policy.serve"],
            'policy.serve = "channels" needs a routing node that knows them: set channels.source',
        )
    for key in SOURCE_FILES[name]:
        if not operator.attrgetter(key)(config):
            raise _error(
                sources["channels.source"], f'channels.source = "{name}" needs {key}: set it too'
            )
    if config.dial.proxy:
        return
    hint = 'set dial.proxy, for Tor on this machine to "127.0.0.1:9050"'
    if config.dial.proxy_all:
        raise _error(sources["dial.proxy_all"], f"dial.proxy_all needs a proxy: {hint}")
    for peer in config.dial.peers:
        if is_onion(peer.address.host):
            raise _error(sources["dial.peers"], f"dial.peers: {peer} needs a proxy: {hint}")


def _decode(wanted: type[Any], value: object) -> object:
    """msgspec's hook for the types above."""
    if not isinstance(value, str):
        raise msgspec.ValidationError  # _check words it
    # Cs (lone surrogates) is no UTF-8; Zl and Zp end a line as some of Cc do.
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in value):
        raise ValueError("expected UTF-8 text without control characters")
    return wanted(value)


def _unknown(key: str, source: str, *, is_table: bool) -> ConfigError:
    tables = dict.fromkeys(known.partition(".")[0] for known in _FIELDS if "." in known)
    what, known = (f"table [{key}]", tables) if is_table else (f"key {key}", _FIELDS)
    near = _nearest(key, known)
    # All keys are too many for a line: those of the same table.
    table = key.rpartition(".")[0]
    there = [each for each in known if each.rpartition(".")[0] == table] or list(tables)
    hint = f"did you mean {near}?" if near else f"known are {', '.join(there)}"
    return _error(source, f"unknown {what}; {hint}")


def _nearest(key: str, known: Iterable[str]) -> str | None:
    key = key.lower()
    # The right name in a wrong table: TOML puts all that follows a [table] into it.
    same_name = [other for other in known if other.split(".")[-1] == key.split(".")[-1]]
    near = difflib.get_close_matches(key, same_name or known, 1, cutoff=0 if same_name else 0.6)
    return near[0] if near else None


def _shown(value: object) -> str:
    """A wrong value for a message: short, and without the password of a URL."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists within lists
        text = "..."
    text = re.sub(r'(^"|://).*@', r"\1***@", text)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _error(source: str, problem: str) -> ConfigError:
    return ConfigError(_one_line(f"{source}: {problem}"))


def _one_line(text: str) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def _variable(key: str) -> str:
    return _VARIABLE_PREFIX + key.upper().replace(".", "__")


def _is_table(field: FieldInfo) -> bool:
    return isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)


def _leaves(table: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for field in msgspec.structs.fields(table):
        if _is_table(field):
            yield from _leaves(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


_FIELDS = dict(_leaves(Config))
"""Every dotted key."""
