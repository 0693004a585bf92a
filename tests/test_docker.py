"""The Dockerfile and the compose file fit the program: its options, keys, ports and packages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import yaml

from peerstore import __version__, control, daemon
from peerstore.cli import cli
from peerstore.config import load
from peerstore.config_values import Duration
from peerstore.configured import source_files
from peerstore.datadir import SECRETS_DIRECTORY
from tests.daemon import HANG, environment
from tests.test_project import ROOT, lock_parts

COMPOSE = ROOT / "contrib" / "docker-compose.yml"


class Instruction(NamedTuple):
    """An instruction of the Dockerfile on one line, and the stage that it stands in."""

    stage: str
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """An exec form; what is none is no JSON."""
        words: list[str] = json.loads(self.text)
        return words


def dockerfile() -> Iterator[Instruction]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    stage = ""
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            if name == "FROM":
                base, _, stage = rest.partition(" AS ")
                rest = base
            yield Instruction(stage, name, rest)


def of_image(name: str) -> list[Instruction]:
    """The instructions of a name in the last stage, which is the image."""
    return [each for each in dockerfile() if (each.stage, each.name) == ("", name)]


def only(name: str) -> Instruction:
    (instruction,) = of_image(name)
    return instruction


def variables() -> dict[str, str]:
    """The environment that the image gives."""
    pairs = (pair.partition("=") for each in of_image("ENV") for pair in each.text.split())
    return {name: value for name, _, value in pairs}


def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


# The image


def test_the_image_runs_a_python_that_the_project_is_made_for() -> None:
    bases = [each.text for each in dockerfile() if each.name == "FROM"]
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+", bases[0])
    assert version
    assert f"Programming Language :: Python :: {version[1]}" in project()["project"]["classifiers"]
    # Both stages begin with it, so that what one has built runs in the other.
    assert bases[1:] == ["python", "python"]


def test_nothing_comes_into_the_image_but_what_was_built() -> None:
    assert "ADD" not in {each.name for each in dockerfile()}
    assert only("COPY").text == "--from=build /opt/peerstore /opt/peerstore"
    assert not re.search(r"\b(pip|apt-get|curl|wget)\b", only("RUN").text)


def test_what_is_copied_is_there() -> None:
    for each in dockerfile():
        if each.name == "COPY" and each.stage == "build":
            *sources, _ = each.text.split()
            assert all((ROOT / source).exists() for source in sources)


def test_the_image_runs_as_a_user_of_its_own_who_owns_the_data_directory() -> None:
    data_dir = variables()["PEERSTORE_DATA_DIR"]
    assert only("VOLUME").text == only("WORKDIR").text == data_dir
    uid = only("USER").text
    assert f"useradd --uid {uid} --create-home peerstore" in only("RUN").text
    assert f"install -d -o peerstore -g peerstore -m 700 {data_dir}" in only("RUN").text


@pytest.mark.parametrize("name", ["CMD", "HEALTHCHECK"])
def test_the_commands_of_the_image_are_commands(name: str) -> None:
    """In exec form: a shell as process 1 would pass no signal on."""
    instruction = only(name)
    words = json.loads(instruction.text[instruction.text.index("[") :])
    if name == "CMD":
        words = [*only("ENTRYPOINT").words, *words]
    program, command, *arguments = words
    assert program in project()["project"]["scripts"]
    # Raises a usage error for what is none.
    cli.commands[command].make_context(command, arguments, parent=click.Context(cli))


def test_the_health_check_waits_for_an_answer_as_long_as_the_command_does() -> None:
    timeout = re.search(r"--timeout=(\S+)", only("HEALTHCHECK").text)
    assert timeout
    assert Duration(timeout[1]) > control._CALL_SECONDS


def default_ports() -> set[str]:
    default = tomllib.loads((ROOT / "config.example.toml").read_text())
    addresses = [*default["listen"]["addresses"], default["metrics"]["listen"]]
    return {address.rpartition(":")[2] for address in addresses}


def test_the_image_exposes_what_is_listened_on() -> None:
    assert set(only("EXPOSE").text.split()) == default_ports()


def test_the_image_is_stopped_by_the_signal_that_drains() -> None:
    assert only("STOPSIGNAL").text == "SIGTERM"


def test_the_labels_are_those_of_the_project() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', only("LABEL").text))
    about = project()["project"]
    assert (labels["title"], labels["description"], labels["licenses"]) == (
        about["name"],
        about["description"],
        about["license"],
    )
    given = {each.text.partition("=")[0] for each in of_image("ARG")}
    assert {value.removeprefix("$") for value in labels.values() if value[0] == "$"} == given


# How it is built

PIP = """#!/bin/sh
case "{long} $*" in
"False "*--require-hashes*) printf '%s\\n' "$*" >> {log} ;;
*) exec {python} -m pip "$@" ;;
esac
"""
"""Installs all that needs no network; the rest only with --long."""


def test_the_steps_that_build_it_install_what_is_locked_and_a_wheel_that_runs(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    long = request.config.getoption("--long", default=False)
    source, log = tmp_path / "src", tmp_path / "pip.log"
    source.mkdir()
    python = sys.executable
    if long:  # what builds is installed beside it
        subprocess.run([python, "-m", "venv", tmp_path / "python"], check=True, timeout=HANG)
        python = str(tmp_path / "python" / "bin" / "python")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    (tmp_path / "bin" / "pip").write_text(PIP.format(long=long, log=log, python=python))
    for name in ("python", "pip"):
        (tmp_path / "bin" / name).chmod(0o755)
    variables = environment(tmp_path, {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    for each in dockerfile():
        if each.stage != "build":
            continue
        if each.name == "COPY":
            *sources, target = each.text.split()
            subprocess.run(
                ["/bin/cp", "-r", *(ROOT / name for name in sources), source / target], check=True
            )
        if each.name == "RUN":
            step = each.text.replace("/opt/peerstore", str(tmp_path / "opt"))
            subprocess.run(
                ["/bin/sh", "-c", step], cwd=source, env=variables, check=True, timeout=10 * HANG
            )
    for name, part in (("run.lock", "Run"), ("build.lock", "Build")):
        entries = (source / name).read_text().splitlines()
        assert [line for line in entries if not line.startswith("#")] == [
            line for entry in lock_parts()[part] for line in entry.splitlines()
        ]
    if not long:
        calls = log.read_text().splitlines()
        assert [call.split()[-1] for call in calls] == ["run.lock", "build.lock"]
        assert all("--only-binary :all:" in call for call in calls)
        (site,) = (tmp_path / "opt").glob("lib/python*/site-packages")
        (site / "installed-here.pth").write_text(sysconfig.get_path("platlib"))
    check_program(tmp_path / "opt" / "bin" / "peerstore", tmp_path)


def check_program(program: Path, home: Path) -> None:
    """See that an installed peerstore has all that it needs with it."""

    def said(*words: str) -> str:
        return subprocess.run(
            [program, *words],
            cwd=home,
            env=environment(home, {"PEERSTORE_NETWORK": "regtest"}),
            check=True,
            capture_output=True,
            text=True,
            timeout=HANG,
        ).stdout

    where = [str(program.with_name("python")), "-c", "import peerstore; print(peerstore.__file__)"]
    loaded = subprocess.run(where, cwd=home, check=True, capture_output=True, text=True).stdout
    assert Path(loaded).is_relative_to(program.parent.parent)
    assert __version__ in said("--version")
    assert "@127.0.0.1:9737" in said("init")
    assert json.loads(said("info", "--json"))["network"] == "regtest"
    assert said("help", "configuration").startswith("Configuration\n")
    written = (home / ".peerstore" / "config.toml").read_text()
    assert written == (ROOT / "config.example.toml").read_text()


# The compose file


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


each_service = pytest.mark.parametrize("name", ["alone", "cln", "lnd", "eclair"])


def settings(service: Mapping[str, Any]) -> dict[str, str]:
    """Its environment, where nothing is set by whoever starts it."""
    return {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
        for name, value in service["environment"].items()
    }


def test_every_service_is_looked_at() -> None:
    assert list(services()) == ["alone", "cln", "lnd", "eclair"]
    # They have one data directory: whoever starts one has to name it.
    assert all(service["profiles"] == [name] for name, service in services().items())


@each_service
def test_a_service_sets_keys_that_there_are_to_values_that_fit(name: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, None, settings(services()[name]))
    assert loaded.warnings == ()
    assert loaded.config.channels.source == {"alone": "none"}.get(name, name)


@each_service
def test_the_files_that_a_service_names_are_handed_to_it(name: str, tmp_path: Path) -> None:
    service = services()[name]
    config = load(tmp_path, None, settings(service)).config
    wanted = {config.node_key_file.path(tmp_path), *source_files(config, tmp_path)}
    secrets = {SECRETS_DIRECTORY / secret for secret in service["secrets"]}
    mounted = {Path(each["target"]) for each in service["volumes"] if isinstance(each, dict)}
    assert secrets <= wanted
    assert all(path in secrets or path.parent in mounted for path in wanted)
    kept = yaml.safe_load(COMPOSE.read_text())["secrets"]
    assert all(set(kept[secret]) == {"file"} for secret in service["secrets"])


@each_service
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert f"data:{variables()['PEERSTORE_DATA_DIR']}" in service["volumes"]
    assert all(each["read_only"] for each in service["volumes"] if isinstance(each, dict))
    assert not service.keys() & {"user", "privileged", "tmpfs", "network_mode", "cap_add"}


@each_service
def test_a_service_publishes_peers_to_all_and_metrics_to_its_own_machine(name: str) -> None:
    peers, metrics = services()[name]["ports"]
    assert re.fullmatch(r"(\d+):\1", peers)
    assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", metrics)
    assert {peers.rpartition(":")[2], metrics.rpartition(":")[2]} == default_ports()
    # What listens on loopback in a container is reached by nobody.
    listened = settings(services()[name])["PEERSTORE_METRICS__LISTEN"]
    assert listened == f"0.0.0.0:{metrics.rpartition(':')[2]}"


@each_service
def test_a_service_is_given_time_to_stop(name: str) -> None:
    assert Duration(services()[name]["stop_grace_period"]) > (
        daemon.DRAIN_SECONDS + daemon.STOP_SECONDS
    )
