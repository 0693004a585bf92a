"""What the configuration accepts, what wins, and what it says about a mistake."""

from __future__ import annotations

import contextlib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstore import config, configured
from peerstore.config import (
    NEEDS_RESTART,
    Config,
    Loaded,
    PolicyTable,
    RetentionTable,
    data_directory,
    load,
)
from peerstore.config_values import (
    Duration,
    FileName,
    HttpUrl,
    NodeIdText,
    OptionalFile,
    Size,
    Timeout,
)
from peerstore.errors import ConfigError
from peerstore.policy import EVERYONE, Policy
from peerstore.store.base import Quotas, Retention
from peerstore.types import Network, parse_node_id

ONION = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion"
"""The Tor Project's own."""

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"


def load_text(directory: Path, text: str | bytes) -> Loaded:
    content = text.encode() if isinstance(text, str) else text
    (directory / "config.toml").write_bytes(content)
    return load(directory, None, {})


def refusal(
    directory: Path,
    text: str | bytes | None = None,
    *,
    config_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """The one line that a wrong configuration gives."""
    if text is not None:
        (directory / "config.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load(directory, config_file, environ or {}, overrides)
    line = str(caught.value)
    assert line.isprintable(), line
    assert len(line) < 1000
    # Nothing of the parser shows below it in a traceback either.
    assert caught.value.__cause__ is None
    return line


# Defaults and the example


def test_the_example_holds_every_key_with_its_default_in_order(tmp_path: Path) -> None:
    def leaves(table: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
        found: list[tuple[str, object]] = []
        for name, value in table.items():
            if isinstance(value, dict):
                found += leaves(value, f"{prefix}{name}.")
            else:
                found.append((prefix + name, value))
        return found

    example = leaves(tomllib.loads(EXAMPLE.read_text(encoding="utf-8")))
    defaults = load(tmp_path, None, {}).settings()
    assert example == [(setting.key, setting.value) for setting in defaults]


def test_the_example_loads_as_the_defaults(tmp_path: Path) -> None:
    loaded = load(tmp_path, EXAMPLE, {})
    assert loaded.config == Config()
    assert loaded.file == EXAMPLE
    assert set(loaded.sources.values()) == {f"file {EXAMPLE}"}


@pytest.mark.parametrize("text", [None, "", "# nothing\n", "[listen]\n", "\ufeff# a BOM\r\n"])
def test_no_file_and_an_empty_file_give_the_defaults(tmp_path: Path, text: str | None) -> None:
    loaded = load(tmp_path, None, {}) if text is None else load_text(tmp_path, text)
    assert loaded.config == Config()
    assert loaded.file == (None if text is None else tmp_path / "config.toml")
    assert set(loaded.sources.values()) == {"default"}
    assert loaded.warnings == ()


def test_settings_are_json_and_show_durations_as_written(tmp_path: Path) -> None:
    settings = load_text(tmp_path, 'limits.idle_timeout = "2m"').settings()
    shown = {setting.key: (setting.value, setting.source) for setting in settings}
    assert json.loads(json.dumps(shown)) == {key: list(pair) for key, pair in shown.items()}
    assert shown["limits.idle_timeout"] == ("2m", f"file {tmp_path / 'config.toml'}")
    assert shown["limits.init_timeout"] == ("15s", "default")
    assert shown["network"] == ("bitcoin", "default")
    assert shown["listen.addresses"] == (["0.0.0.0:9737", "[::]:9737"], "default")


# Layers


def test_flags_beat_the_environment_which_beats_the_file_which_beats_defaults(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('network = "signet"\nalias = "file"\n[log]\nlevel = "error"\n')
    environ = {"PEERSTORE_NETWORK": "testnet4", "PEERSTORE_ALIAS": "environment"}
    loaded = load(tmp_path, None, environ, ["alias=first", "alias=flag=="])
    assert loaded.config.alias == "flag=="
    assert loaded.config.network is Network.TESTNET4
    assert loaded.config.log.level == "error"
    assert loaded.config.log.format == "auto"
    assert loaded.sources["alias"] == "flag --set"
    assert loaded.sources["network"] == "environment PEERSTORE_NETWORK"
    assert loaded.sources["log.level"] == f"file {file}"
    assert loaded.sources["log.format"] == "default"
    assert list(loaded.sources) == [setting.key for setting in loaded.settings()]


def test_the_named_file_is_read_instead_of_the_one_in_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("broken")
    named = tmp_path / "other.toml"
    named.write_text('alias = "other"')
    loaded = load(tmp_path, named, {})
    assert (loaded.config.alias, loaded.file) == ("other", named)


def test_a_list_is_json_in_the_environment_and_in_a_flag(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        None,
        {"PEERSTORE_LISTEN__ADDRESSES": '["127.0.0.1:9737", "[::1]:0"]'},
        ['listen.announce=["node.example.com:9735"]'],
    )
    addresses = [(address.host, address.port) for address in loaded.config.listen.addresses]
    assert addresses == [("127.0.0.1", 9737), ("::1", 0)]
    assert loaded.config.listen.announce == ("node.example.com:9735",)


@pytest.mark.parametrize(
    "value", ["127.0.0.1:9737", "[127.0.0.1:9737]", "", '"127.0.0.1:9737"', "{}", "[" * 100_000]
)
def test_a_list_that_is_not_json_is_refused_with_the_json_form(tmp_path: Path, value: str) -> None:
    line = refusal(tmp_path, environ={"PEERSTORE_LISTEN__ADDRESSES": value})
    assert line.startswith("environment PEERSTORE_LISTEN__ADDRESSES: listen.addresses = ")
    assert line.endswith('expected a list, such as ["127.0.0.1:9737"]')


def test_a_wrong_value_in_the_environment_names_variable_and_key(tmp_path: Path) -> None:
    assert refusal(tmp_path, environ={"PEERSTORE_NETWORK": "mainnet"}) == (
        'environment PEERSTORE_NETWORK: network = "mainnet": '
        "expected one of bitcoin, testnet, testnet4, signet, regtest"
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("PEERSTORE_LISTEN_ADDRESSES", "PEERSTORE_LISTEN__ADDRESSES"),
        ("PEERSTORE_ADDRESSES", "PEERSTORE_LISTEN__ADDRESSES"),
        ("PEERSTORE_network", "PEERSTORE_NETWORK"),
        ("PEERSTORE_DATADIR", "PEERSTORE_DATA_DIR"),
        ("PEERSTORE_SERVICE_HOST", None),
        ("PEERSTORE_PORT_9737_TCP", None),
        ("PEERSTORE_", None),
        ("PEERSTORE_A\nB\udc80", None),
    ],
)
def test_a_variable_that_fits_nothing_is_a_warning(
    tmp_path: Path, name: str, near: str | None
) -> None:
    loaded = load(tmp_path, None, {name: "hunter2"})
    assert loaded.config == Config()
    (warning,) = loaded.warnings
    assert warning.isprintable()
    assert warning.startswith(f"environment {name[:11]}")
    assert "hunter2" not in warning
    assert warning.endswith(f"; did you mean {near}?" if near else ": no such setting, ignored")


def test_other_programs_variables_are_no_business_of_ours(tmp_path: Path) -> None:
    environ = {"PEERSTORE_DATA_DIR": "/x", "_PEERSTORE_COMPLETE": "bash_source", "HOME": "/root"}
    assert load(tmp_path, None, environ).warnings == ()


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("network", '"network" is not key=value, such as network=regtest'),
        ("networc=regtest", "unknown key networc; did you mean network?"),
        ("listen=x", "unknown key listen; did you mean metrics.listen?"),
        ("network=x", 'network = "x": expected one of bitcoin, '),
        ("network=", 'network = "": expected one of bitcoin, '),
        ("network=\udc80", 'network = "\\udc80": expected one of bitcoin, '),
        ("alias=a\udc80", 'alias = "a\\udc80": expected UTF-8 text without control characters'),
    ],
)
def test_a_wrong_override_names_the_flag(tmp_path: Path, override: str, problem: str) -> None:
    assert refusal(tmp_path, overrides=[override]).startswith(f"flag --set: {problem}")


# Keys and tables


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("listen.adresses = []", "unknown key listen.adresses; did you mean listen.addresses?"),
        ("[lisen]\naddresses = []", "unknown table [lisen]; did you mean listen?"),
        ('[log]\nalias = "a"', "unknown key log.alias; did you mean alias?"),
        ('url = "sqlite:///x.db"', "unknown key url; did you mean store.url?"),
        ('Network = "regtest"', "unknown key Network; did you mean network?"),
        ("[limits.listen]", "unknown table [limits.listen]; did you mean listen?"),
        (
            "[zzz]",
            "unknown table [zzz]; known are listen, dial, store, policy, limits, channels,"
            " retention, snapshots, metrics, log",
        ),
        ("zzz = 1", "unknown key zzz; known are network, node_key_file, alias"),
        ("log.zzz = 1", "unknown key log.zzz; known are log.level, log.format"),
        ('"a\\nb" = 1', "unknown key a\\nb; known are "),
        ("listen = 5", "listen = 5: expected a table, [listen]"),
        ("[[listen]]", "listen = [{}]: expected a table, [listen]"),
        ('[network]\nname = "x"', 'network = {"name": "x"}: expected one of '),
    ],
)
def test_an_unknown_key_or_table_is_named_with_the_nearest(
    tmp_path: Path, text: str, problem: str
) -> None:
    assert refusal(tmp_path, text).startswith(f"file {tmp_path / 'config.toml'}: {problem}")


# Values


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("network = true", "network = true: expected one of bitcoin, testnet, "),
        (f"network = 0x{'f' * 5000}", "network = ...: expected one of bitcoin, "),
        ("network = []", "network = []: expected one of bitcoin, "),
        ("node_key_file = 1979-05-27", 'node_key_file = "1979-05-27": expected text in quotes'),
        ('node_key_file = ""', 'node_key_file = "": expected the path of a file'),
        ('node_key_file = "a\\u0000"', 'node_key_file = "a\\u0000": expected UTF-8 text'),
        ("alias = 5", "alias = 5: expected text in quotes"),
        ('alias = "two\\nlines"', 'alias = "two\\nlines": expected UTF-8 text without control'),
        ('alias = "two\\u2028lines"', 'alias = "two\\u2028lines": expected UTF-8 text without'),
        (f'alias = "{"é" * 17}"', f'alias = "{"é" * 17}": it has 34 bytes; an alias has at most'),
        (f'alias = "{"a" * 5000}"', f'alias = "{"a" * 99}...: it has 5000 bytes; an alias has'),
        ('listen.addresses = "0.0.0.0:9737"', 'listen.addresses = "0.0.0.0:9737": expected a list'),
        ("listen.addresses = [9737]", "listen.addresses = [9737]: expected a list, such as"),
        ('log.level = "INFO"', 'log.level = "INFO": expected one of debug, info, warning, error'),
        ("log.level = {}", "log.level = {}: expected one of debug, info, warning, error"),
        ("log.format = 1", "log.format = 1: expected one of auto, console, json"),
        (
            "limits.init_timeout = 15",
            'limits.init_timeout = 15: expected text in quotes, such as "',
        ),
        (
            "limits.init_timeout = nan",
            "limits.init_timeout = NaN: expected text in quotes, such as",
        ),
        ('limits.init_timeout = "15"', 'limits.init_timeout = "15": expected a number and a unit'),
        (
            'limits.handshake_timeout = "0"',
            'limits.handshake_timeout = "0": a timeout must be more than 0, such as "15s"',
        ),
        ("limits.max_connections = 0", "limits.max_connections = 0: expected a whole number of at"),
        (
            'limits.bytes_per_second = "64kB"',
            'limits.bytes_per_second = "64kB": a message of full size has to fit into a second: at'
            ' least "64KiB"',
        ),
        ('limits.pong_bytes_per_second = "0"', 'limits.pong_bytes_per_second = "0": a message of'),
        (
            'limits.exempt_networks = ["10.0.0.1/8"]',
            'limits.exempt_networks = ["10.0.0.1/8"]: 10.0.0.1/8 has host bits set: expected an IP',
        ),
        (
            'limits.exempt_networks = ["tor"]',
            "limits.exempt_networks = [\"tor\"]: 'tor' does not appear to be an IPv4 or IPv6",
        ),
        ('limits.idle_timeout = "0ms"', 'limits.idle_timeout = "0ms": a timeout must be more than'),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_what_is_expected(
    tmp_path: Path, text: str, problem: str
) -> None:
    assert refusal(tmp_path, text).startswith(f"file {tmp_path / 'config.toml'}: {problem}")


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("localhost:9737", "'localhost' is not an IP address: expected one such as 127.0.0.1:9737"),
        (":9737", "':9737' is not host:port"),
        ("*:9737", "'*' is not an IP address"),
        ("127.0.0.1", "'127.0.0.1' is not host:port"),
        ("::1:9737", "'::1:9737': an IPv6 address stands in brackets"),
        ("127.0.0.1:65536", "'127.0.0.1:65536': the port is a number from 0 to 65535"),
    ],
)
def test_a_wrong_listen_address_is_refused(tmp_path: Path, address: str, problem: str) -> None:
    line = refusal(tmp_path, f'listen.addresses = ["127.0.0.1:1", "{address}"]')
    assert f'listen.addresses = ["127.0.0.1:1", "{address}"]: {problem}' in line


@pytest.mark.parametrize(
    "address",
    [
        f"{ONION}:9735",
        f"my.{ONION.upper()}:1",
        "node.example.com:9735",
        "my_host-1:1",
        "[2001:db8::1]:9735",
    ],
)
def test_names_onions_and_ip_addresses_can_be_announced(tmp_path: Path, address: str) -> None:
    assert load_text(tmp_path, f'listen.announce = ["{address}"]').config.listen.announce == (
        address,
    )


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        (f"02{'ab' * 32}@node.example.com:9735", "is not a host name, an onion or an IP address"),
        ("1.2.3.256:9735", "is not a host name, an onion or an IP address"),
        ("a b:9735", "is not a host name, an onion or an IP address"),
        ("node.example.com:0", "no peer can dial port 0; expected 1 to 65535"),
        ("node.example.com", "is not host:port"),
        (f"{ONION[1:]}:9735", "is not an onion address of 56 characters"),
        (f"a{ONION}:9735", "is not an onion address of 56 characters"),
        (f"{'1' * 56}.onion:9735", "is not an onion address of 56 characters"),
        ("expyuzz4wqqyqhjn.onion:9735", "is not an onion address of 56 characters"),
        (f"{ONION.replace('2gzyx', '2gzxy')}:9735", "checksum is wrong; copy the onion address"),
    ],
)
def test_what_nobody_could_dial_is_not_announced(
    tmp_path: Path, address: str, problem: str
) -> None:
    line = refusal(tmp_path, f'listen.announce = ["{address}"]')
    assert "listen.announce = " in line
    assert problem in line


DIALED = f"02{'ab' * 32}"


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("1.2.3.4:9735", "1.2.3.4"),
        ("[2001:db8::1]:1", "2001:db8::1"),
        ("node.example.com:65535", "node.example.com"),
        (f"{ONION}:9735", ONION),
    ],
)
def test_peers_to_dial_are_node_id_host_and_port(tmp_path: Path, address: str, host: str) -> None:
    text = f'[dial]\nproxy = "127.0.0.1:9050"\npeers = ["{DIALED}@{address}"]'
    loaded = load_text(tmp_path, text)
    (peer,) = loaded.config.dial.peers
    assert (peer.address.node_id, peer.address.host) == (parse_node_id(DIALED), host)
    assert str(peer) == str(peer.address) == f"{DIALED}@{address}"
    shown = {setting.key: setting.value for setting in loaded.settings()}
    assert shown["dial.peers"] == [f"{DIALED}@{address}"]


def test_a_peer_may_have_several_addresses_in_their_order(tmp_path: Path) -> None:
    addresses = [f"{DIALED}@1.2.3.4:9735", f"{DIALED}@[::1]:9735"]
    loaded = load(tmp_path, None, {}, [f"dial.peers={json.dumps(addresses)}"])
    assert loaded.config.dial.peers == tuple(addresses)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("1.2.3.4:9735", "'1.2.3.4:9735' is not node_id@host:port"),
        ("05ab@1.2.3.4:9735", "'05ab' is not a node id"),
        (f"{DIALED}@1.2.3.4", "'1.2.3.4' is not host:port"),
        (f"{DIALED}@1.2.3.4:0", "port 0 can't be dialed; expected 1 to 65535"),
        (f"{DIALED}@a b:9735", "'a b' is not a host name, an onion or an IP address"),
        (f"{DIALED}@::1:9735", "an IPv6 address stands in brackets"),
    ],
)
def test_what_can_not_be_dialed_is_refused(tmp_path: Path, address: str, problem: str) -> None:
    line = refusal(tmp_path, f'dial.peers = ["{address}"]')
    assert "dial.peers = " in line
    assert problem in line


def test_peers_to_dial_are_a_list(tmp_path: Path) -> None:
    line = refusal(tmp_path, overrides=["dial.peers=x"])
    assert line.endswith('expected a list, such as ["node_id@host:9735"]')


@pytest.mark.parametrize(
    ("text", "address"),
    [("", None), ("127.0.0.1:9050", ("127.0.0.1", 9050)), ("[::1]:1", ("::1", 1))],
)
def test_a_proxy_is_host_and_port_or_nothing(
    tmp_path: Path, text: str, address: tuple[str, int] | None
) -> None:
    assert load_text(tmp_path, f'dial.proxy = "{text}"').config.dial.proxy.address == address


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("socks5://127.0.0.1:9050", "expected the host:port of a SOCKS5 proxy alone"),
        ("user:hunter2@127.0.0.1:9050", "expected the host:port of a SOCKS5 proxy alone"),
        ("127.0.0.1", "is not host:port"),
        ("127.0.0.1:0", "nothing listens on port 0"),
        ("a b:1", "'a b' is not a host name"),
    ],
)
def test_what_is_no_proxy_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    line = refusal(tmp_path, f'dial.proxy = "{text}"')
    assert problem in line
    assert "hunter2" not in line


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_a_truth_is_written_alike_everywhere(tmp_path: Path, text: str, value: bool) -> None:
    proxy = "dial.proxy=127.0.0.1:9050"
    for loaded in (
        load(tmp_path, None, {}, [f"dial.proxy_all={text}", proxy]),
        load(tmp_path, None, {"PEERSTORE_DIAL__PROXY_ALL": text}, [proxy]),
        load_text(tmp_path, f'dial.proxy_all = {text}\ndial.proxy = "127.0.0.1:9050"'),
    ):
        assert loaded.config.dial.proxy_all is value
        shown = {setting.key: setting.value for setting in loaded.settings()}
        assert shown["dial.proxy_all"] is value


@pytest.mark.parametrize("text", ['"true"', "1", "0", '"yes"', "[]"])
def test_what_is_neither_true_nor_false_is_refused(tmp_path: Path, text: str) -> None:
    problem = f"dial.proxy_all = {text}: expected true or false, without quotes"
    assert refusal(tmp_path, f"dial.proxy_all = {text}").endswith(problem)


@pytest.mark.parametrize("text", ["True", "1", "yes", ""])
def test_what_is_neither_true_nor_false_is_refused_as_text_too(tmp_path: Path, text: str) -> None:
    environ = {"PEERSTORE_DIAL__PROXY_ALL": text}
    assert refusal(tmp_path, environ=environ).endswith(": expected true or false, without quotes")
    assert refusal(tmp_path, overrides=[f"dial.proxy_all={text}"]).startswith("flag --set: ")


def test_what_needs_a_proxy_is_refused_without_one(tmp_path: Path) -> None:
    line = refusal(tmp_path, environ={"PEERSTORE_DIAL__PROXY_ALL": "true"})
    assert line.startswith("environment PEERSTORE_DIAL__PROXY_ALL: dial.proxy_all needs a proxy")
    assert "set dial.proxy" in line
    onion = f"{DIALED}@{ONION.upper()}:9735"
    line = refusal(tmp_path, overrides=[f'dial.peers=["{onion}"]'])
    assert line.startswith(f"flag --set: dial.peers: {onion} needs a proxy")
    assert "set dial.proxy" in line


def test_an_alias_of_32_bytes_of_any_script_is_taken(tmp_path: Path) -> None:
    alias = "⚡" * 10 + "ab"
    assert load_text(tmp_path, f'alias = "{alias}"').config.alias == alias


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///peerstore.db", "/data/peerstore.db"),
        ("sqlite:///sub dir/p.db", "/data/sub dir/p.db"),
        ("sqlite:////var/lib/p.db", "/var/lib/p.db"),
    ],
)
def test_a_store_url_gives_the_path_of_the_database(tmp_path: Path, url: str, path: str) -> None:
    store = load_text(tmp_path, f'store.url = "{url}"').config.store
    assert store.url.path(Path("/data")) == Path(path)


@pytest.mark.parametrize("url", ["peerstore.db", "sqlite://p.db", "sqlite:///", "sqlite:///a?b=c"])
def test_a_store_url_that_names_no_sqlite_file_is_refused(tmp_path: Path, url: str) -> None:
    assert refusal(tmp_path, f'store.url = "{url}"').endswith(
        f'store.url = "{url}": '
        "expected sqlite:///NAME (in the data directory) or sqlite:////ABSOLUTE/NAME"
    )


def test_the_password_of_a_url_never_shows(tmp_path: Path) -> None:
    url = "postgresql://user:hunter2@host/db"
    for line in (
        refusal(tmp_path, f'store.url = "{url}"'),
        refusal(tmp_path, "", environ={"PEERSTORE_STORE__URL": url}),
        refusal(tmp_path, "", overrides=[f"store.url={url}"]),
        refusal(tmp_path, "", overrides=[f"store.ulr={url}"]),
    ):
        assert "hunter2" not in line
        assert "store.url" in line


def test_the_key_file_is_relative_to_the_data_directory_or_absolute() -> None:
    assert Config().node_key_file.path(Path("/data")) == Path("/data/node.key")
    assert FileName("/etc/p/key").path(Path("/data")) == Path("/etc/p/key")


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("500ms", 0.5),
        ("5s", 5),
        ("120s", 120),
        ("2m", 120),
        ("1.5h", 5400),
        ("1d", 86400),
        ("3w", 1814400),
    ],
)
def test_a_duration_is_seconds_and_keeps_its_text(text: str, seconds: float) -> None:
    duration = Duration(text)
    assert duration == seconds
    assert str(duration) == f"{duration}" == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "00", "-5s", "+5s", "5 s", "5S", "5y", "s"),
        *(".5s", "5.s", "1e3s", "nan", "infs", "5s\n", "1d2h", "\u0665s", "36526d"),
        *("9" * 400 + "s", "9" * 5000 + "s"),
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Duration(text)


UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@given(st.integers(0, 5000), st.sampled_from(sorted(UNITS)))
def test_every_whole_number_of_every_unit_is_a_duration(number: int, unit: str) -> None:
    duration = Duration(f"{number}{unit}")
    assert duration == pytest.approx(number * UNITS[unit])
    assert Duration(str(duration)) == duration


@given(st.text())
def test_any_text_is_a_duration_of_bounded_length_or_a_value_error(text: str) -> None:
    try:
        duration = Duration(text)
    except ValueError:
        return
    assert 0 <= duration <= 36525 * 86400


@pytest.mark.parametrize("text", ["0", "0s", "0.0ms"])
def test_a_timeout_is_never_zero(text: str) -> None:
    with pytest.raises(ValueError, match="must be more than 0"):
        Timeout(text)


# The file


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert refusal(tmp_path, config_file=missing) == (
        f"file {missing}: does not exist; make it, or correct its name"
    )


def test_a_dangling_link_is_an_error_not_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").symlink_to(tmp_path / "gone")
    assert "config.toml: does not exist" in refusal(tmp_path)


def test_a_directory_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    assert refusal(tmp_path) == (
        f"file {tmp_path / 'config.toml'}: can't be read (Is a directory); "
        "it must be a file that peerstore may read"
    )


def test_a_pipe_in_place_of_the_file_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")  # nobody writes to it
    assert refusal(tmp_path) == (
        f"file {tmp_path / 'config.toml'}: can't be read (it is a pipe or a device, not a file); "
        "it must be a file that peerstore may read"
    )


def test_a_file_that_is_named_may_be_a_device(tmp_path: Path) -> None:
    assert load(tmp_path, Path("/dev/null"), {}).config == Config()


def test_a_file_in_place_of_the_data_directory_is_left_to_who_makes_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert load(tmp_path / "file", None, {}).config == Config()


def test_a_config_file_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is below a file"):
        load(tmp_path, tmp_path / "file" / "config.toml", {})


def test_a_file_closed_to_us_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch(0o000)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root reads every file
    try:
        assert "can't be read (Permission denied)" in refusal(tmp_path)
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'alias = "a"\n\xff\xfe', "line 2 is not UTF-8 text; save the file as UTF-8"),
        (b"\x00\x01\x02", "not TOML: "),
        (b"\n\nnetwork = regtest\n", "not TOML: Invalid value (at line 3, column 11); text stands"),
        (b'\nalias = """\nx', "not TOML: Unterminated string (at line 3, the end of the file); "),
        (b'alias = "a"\nalias = "b"', "not TOML: Cannot overwrite a value (at line 2, "),
        (b"a = " + b"[" * 100_000, "not TOML: "),
        (b"a = " + b"9" * 10_000, "not TOML: "),
    ],
)
def test_a_file_that_is_not_toml_is_an_error_with_its_line(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    line = refusal(tmp_path, content)
    assert line.startswith(f"file {tmp_path / 'config.toml'}: {problem}")


@given(st.binary(max_size=64) | st.text(max_size=64).map(lambda text: text.encode(errors="ignore")))
def test_no_content_of_a_file_gives_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    directory = tmp_path_factory.getbasetemp()
    with contextlib.suppress(ConfigError):
        load_text(directory, content)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
).map(json.dumps)


@given(st.sampled_from(["alias", "listen.announce", "limits.idle_timeout"]), st.text() | VALUES)
def test_any_text_for_a_value_gives_a_setting_that_prints_or_a_config_error(
    key: str, value: str
) -> None:
    with contextlib.suppress(ConfigError):
        loaded = load(Path("/nowhere"), None, {}, [f"{key}={value}"])
        json.dumps(loaded.settings(), ensure_ascii=False).encode()


# The data directory


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for /var/lib/peerstore that is there."""
    directory = tmp_path / "system"
    directory.mkdir()
    monkeypatch.setattr(config, "SYSTEM_DATA_DIRECTORY", directory)
    return directory


@pytest.mark.parametrize("for_command", [True, False])
@pytest.mark.parametrize(
    ("flag", "environ", "expected"),
    [
        (Path("/f"), {"PEERSTORE_DATA_DIR": "/e", "STATE_DIRECTORY": "/s"}, "/f"),
        (None, {"PEERSTORE_DATA_DIR": "/e", "STATE_DIRECTORY": "/s"}, "/e"),
        (None, {"PEERSTORE_DATA_DIR": "", "STATE_DIRECTORY": "/s"}, "/s"),
        (None, {"STATE_DIRECTORY": "/s:/t"}, "/s"),
    ],
)
def test_the_data_directory_is_the_flag_then_the_variable_then_systemds(
    system: Path,
    flag: Path | None,
    environ: Mapping[str, str],
    expected: str,
    for_command: bool,
) -> None:
    found = data_directory(flag, environ, home=Path("/nowhere"), for_command=for_command)
    assert found == Path(expected)


def test_a_command_uses_the_system_directory_when_only_that_exists(
    tmp_path: Path, system: Path
) -> None:
    own = tmp_path / ".peerstore"
    assert data_directory(None, {}, home=tmp_path, for_command=True) == system
    assert data_directory(None, {}, home=tmp_path, for_command=False) == own
    own.mkdir()
    assert data_directory(None, {}, home=tmp_path, for_command=True) == own
    system.rmdir()
    own.rmdir()
    assert data_directory(None, {}, home=tmp_path, for_command=True) == own


# Sizes and counts


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1B", 1), ("512KiB", 512 << 10), ("4MiB", 4 << 20), ("10GiB", 10 << 30),
     ("1kB", 1000), ("2MB", 2_000_000), ("3TiB", 3 << 40)],
)  # fmt: skip
def test_a_size_is_bytes_and_shows_as_written(text: str, size: int) -> None:
    assert Size(text) == size
    assert str(Size(text)) == text


@pytest.mark.parametrize(
    "text", ["", "1", "KiB", "1 KiB", "-1B", "1.5GiB", "1KB", "1gib", "9" * 99]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a whole number and a unit"):
        Size(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("store.history = 0", "store.history = 0: expected a whole number of at least 1"),
        ('store.history = "8"', 'store.history = "8": expected a whole number of at least 1'),
        ("store.max_peers = 1.5", "store.max_peers = 1.5: expected a whole number of at least 1"),
        ('store.max_bytes = "1KiB"', 'store.max_bytes = "1KiB": too little for a backup'),
        ("store.min_free_space = 5", "store.min_free_space = 5: expected text in quotes"),
    ],
)
def test_a_wrong_size_or_count_is_named(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in refusal(tmp_path, text)


def test_counts_come_as_text_from_the_environment_and_flags(tmp_path: Path) -> None:
    loaded = load(tmp_path, None, {"PEERSTORE_STORE__HISTORY": "3"}, ["snapshots.keep=2"])
    assert loaded.config.store.history == 3
    assert loaded.config.snapshots.keep == 2
    with pytest.raises(ConfigError, match=r"PEERSTORE_STORE__HISTORY.*at least 1"):
        load(tmp_path, None, {"PEERSTORE_STORE__HISTORY": "many"})


# [policy] and [retention]

NODE_IDS = [f"02{'ab' * 32}", f"03{'CD' * 32}"]


def test_who_is_served_is_read_as_written(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path,
        f'[policy]\nserve = "allowlist"\nallow = {json.dumps(NODE_IDS)}\ndeny = ["{NODE_IDS[1]}"]',
    )
    table = loaded.config.policy
    assert (table.serve, table.allow, table.deny) == ("allowlist", (*NODE_IDS,), (NODE_IDS[1],))
    assert [text.node_id.hex() for text in table.allow] == [text.lower() for text in NODE_IDS]
    shown = {setting.key: setting.value for setting in loaded.settings()}
    assert shown["policy.allow"] == NODE_IDS


def test_who_is_served_comes_as_json_from_the_environment_and_flags(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        None,
        {"PEERSTORE_POLICY__ALLOW": json.dumps(NODE_IDS), "PEERSTORE_POLICY__SERVE": "allowlist"},
        [f'policy.deny=["{NODE_IDS[0]}"]'],
    )
    assert loaded.config.policy.serve == "allowlist"
    assert loaded.config.policy.allow == (*NODE_IDS,)
    assert loaded.config.policy.deny == (NODE_IDS[0],)


@pytest.mark.parametrize("key", ["allow", "deny"])
@pytest.mark.parametrize(
    "node_id",
    [
        "",
        NODE_IDS[0][:-2],
        NODE_IDS[0] + "ab",
        f"04{'ab' * 32}",
        f"02{'xy' * 32}",
        f"02 {'ab' * 31}a",
        f"{NODE_IDS[0]}@203.0.113.5:9735",
    ],
)
def test_what_is_no_node_id_is_refused(tmp_path: Path, key: str, node_id: str) -> None:
    line = refusal(tmp_path, f'[policy]\n{key} = ["{NODE_IDS[1]}", "{node_id}"]')
    assert line.startswith(f"file {tmp_path / 'config.toml'}: policy.{key} = [")
    assert "is not a node id: 66 hexadecimal digits that begin with 02 or 03" in line


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('policy.serve = "channels"', '"channels" needs a routing node'),
        ("retention.after_close_blocks = 0", "at least 1"),
        ('policy.serve = "Anyone"', "expected one of anyone, channels, allowlist"),
        ("policy.serve = true", "expected one of anyone, channels, allowlist"),
        (f'policy.allow = "{NODE_IDS[0]}"', "expected a list, such as"),
        ("policy.deny = [2]", "expected a list, such as"),
        ('retention.after_close_time = "0"', "a timeout must be more than 0"),
        ('retention.after_close_time = "forever"', "expected a number and a unit"),
        ("retention.inactive_time = 0", "expected text in quotes, such as"),
        ('retention.inactive_time = "-1d"', "expected a number and a unit"),
        ('retention.inactive_time = "40000d"', "expected at most a hundred years"),
    ],
)
def test_a_wrong_value_of_policy_or_retention_is_named(
    tmp_path: Path, text: str, problem: str
) -> None:
    line = refusal(tmp_path, text)
    key = text.partition(" = ")[0]
    assert line.startswith(f"file {tmp_path / 'config.toml'}: {key} = ")
    assert problem in line


def test_how_long_is_kept_is_read_as_written(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, '[retention]\nafter_close_time = "1.5d"\ninactive_time = "52w"')
    assert float(loaded.config.retention.after_close_time) == 1.5 * 86400
    assert float(loaded.config.retention.inactive_time) == 52 * 7 * 86400
    shown = {setting.key: setting.value for setting in loaded.settings()}
    assert shown["retention.after_close_time"] == "1.5d"


# What the configuration means


def test_the_configurations_lists_and_the_operators_rules_make_the_policy(tmp_path: Path) -> None:
    allowed, denied = (parse_node_id(text) for text in NODE_IDS)
    table = PolicyTable("allowlist", (NodeIdText(NODE_IDS[0]),), (NodeIdText(NODE_IDS[1]),))
    rules = {denied: "allow"}
    assert configured.policy(Config(policy=table), rules) == Policy(
        "allowlist", frozenset({allowed}), frozenset({denied}), rules
    )
    assert configured.policy(Config(), {}) == EVERYONE


@pytest.mark.parametrize(
    ("after_close", "inactive", "expected"),
    [
        ("14d", "0", Retention(7, 14 * 86400, 0)),
        ("1ms", "1ms", Retention(7, 1, 1)),
        ("1.5s", "1.5s", Retention(7, 2, 2)),
    ],
)
def test_what_is_kept_is_kept_for_whole_seconds_and_never_shorter(
    after_close: str, inactive: str, expected: Retention
) -> None:
    table = RetentionTable(7, Timeout(after_close), Duration(inactive))
    assert configured.retention(Config(retention=table)) == expected


def test_the_defaults_of_retention_and_quotas_are_those_of_the_store() -> None:
    assert configured.retention(Config()) == Retention()
    assert configured.quotas(Config()) == Quotas()


FILES = {
    "cln": {"cln.socket": "lightning-rpc"},
    "lnd": {"lnd.tls_cert": "tls.cert", "lnd.macaroon_file": "peerstore.macaroon"},
    "eclair": {"eclair.password_file": "password"},
}


@pytest.mark.parametrize(
    ("source", "missing"), [(source, key) for source, keys in FILES.items() for key in keys]
)
def test_a_channel_source_needs_its_files(tmp_path: Path, source: str, missing: str) -> None:
    given = {key: value for key, value in FILES[source].items() if key != missing}
    lines = ["[channels]", f'source = "{source}"', *(f'{k} = "{v}"' for k, v in given.items())]
    expected = f'file {tmp_path / "config.toml"}: channels.source = "{source}" needs'
    assert refusal(tmp_path, "\n".join(lines)).startswith(f"{expected} channels.{missing}: ")
    # What is set need not be used.
    (tmp_path / "config.toml").write_text("\n".join(lines).replace(source, "none", 1))
    assert load(tmp_path, None, {}).config.channels.source == "none"


@pytest.mark.parametrize("source", FILES)
def test_a_channel_source_makes_what_asks_that_node(tmp_path: Path, source: str) -> None:
    overrides = [f"channels.{key}={value}" for key, value in FILES[source].items()]
    overrides += [f"channels.source={source}", "policy.serve=channels"]
    made = configured.channel_source(load(tmp_path, None, {}, overrides).config, tmp_path)
    assert type(made).__name__.lower() == f"{source}source"
    assert configured.channel_source(Config(), tmp_path) is None


def test_serving_who_has_channels_needs_a_source(tmp_path: Path) -> None:
    environ = {"PEERSTORE_POLICY__SERVE": "channels"}
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, None, environ)
    assert str(raised.value) == (
        'environment PEERSTORE_POLICY__SERVE: policy.serve = "channels" needs a routing node that'
        " knows them: set channels.source"
    )


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://127.0.0.1:8080", "https://127.0.0.1:8080"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("https://lnd:10009", "https://lnd:10009"),
    ],
)
def test_a_url_is_taken_without_its_slash(text: str, url: str) -> None:
    assert HttpUrl(text) == url


@pytest.mark.parametrize(
    "text",
    [
        *("", "127.0.0.1:8080", "ftp://x:1", "https://x", "https://x:", "https://x:1/v1"),
        *("https://:1", "https://a b:80", "https://h#x:8080", "https://h?a:80", "https://x:0"),
        *("https://%:80", "https://a..b:80", f"https://{'x' * 64}:80"),
    ],
)
def test_what_is_no_url_of_a_node(text: str) -> None:
    with pytest.raises(ValueError, match=r"URL|host|port"):
        HttpUrl(text)


@pytest.mark.parametrize(
    "url", ["https://me:geheim@h:1", "https://geheim@h:1", "me:geheim@h:1", "http://geheim@[::1]"]
)
@pytest.mark.parametrize("node", ["lnd", "eclair"])
def test_a_password_in_a_url_is_not_shown(tmp_path: Path, node: str, url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, None, {}, [f"channels.{node}.url={url}"])
    assert "leave user and password out" in str(raised.value)
    assert "geheim" not in str(raised.value)


def test_lnd_is_spoken_to_over_tls_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="https://127"):
        load(tmp_path, None, {}, ["channels.lnd.url=http://127.0.0.1:8080"])


def test_a_home_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such home"):
        load(tmp_path, None, {}, ["channels.cln.socket=~nobody-of-this-name/x"])


def test_a_file_of_another_program_may_be_left_out_or_stand_in_a_home(tmp_path: Path) -> None:
    assert OptionalFile("") == ""
    assert OptionalFile("~/x").path(tmp_path) == Path.home() / "x"
    assert OptionalFile("/x").path(tmp_path) == Path("/x")
    assert OptionalFile("x").path(tmp_path) == tmp_path / "x"


def test_what_needs_a_restart_are_keys_that_there_are(tmp_path: Path) -> None:
    keys = {setting.key for setting in load(tmp_path, None, {}).settings()}
    assert all(any(key.startswith(start) for key in keys) for start in NEEDS_RESTART)
    # What an operator reloads for is none of it.
    assert not [
        key
        for key in NEEDS_RESTART
        if key.startswith(("policy.", "retention.", "limits.", "dial."))
    ]
