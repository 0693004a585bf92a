"""What holds the project together: who imports whom, and that its papers are true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from peerstore.cli import cli
from tests.test_json_documents import DOCUMENTED

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "peerstore"

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "ownership": set(),
    "event_loop": {"errors"},
    "files": set(),
    "clock": set(),
    "turns": set(),
    "systemd": {"errors"},
    "types": {"errors"},
    "tally": {"types"},
    "addresses": set(),
    "admission": {"addresses"},
    "activity": {"errors", "store"},
    "wire": {"errors", "types"},
    "transport": {"errors", "types"},
    "words": set(),
    "health": {"words"},
    "metrics": {"tally", "types"},
    "pages": set(),
    "web": {"addresses", "errors", "pages", "types"},
    "listening": set(),
    "monitor": {
        *("errors", "tally", "config", "health", "metrics", "server", "store", "watch", "pages"),
        *("status", "status_page", "types"),
    },
    "connection": {"errors", "types", "transport"},
    "streams": {"errors", "types", "wire"},
    "confirmation": set(),
    "session": {"errors", "types", "tally", "wire", "streams", "confirmation"},
    "channels": {"errors", "types", "files"},
    "retention": {"types", "channels", "policy"},
    "store": {"addresses", "errors", "types", "tally", "channels", "ownership", "turns"},
    "policy": {"types"},
    "watch": {"errors", "types", "channels", "policy", "retention", "store"},
    "proxy": {"errors", "types"},
    "refusals": set(),
    "markup": set(),
    "charts": {"markup", "store", "words"},
    "page_style": set(),
    "status_page": {"markup", "charts", "page_style", "store", "words"},
    "status": {
        *("errors", "config", "server", "store", "watch"),
        *("health", "status_page"),
    },
    "dialer": {"errors", "types"},
    "server": {
        *("errors", "types", "wire", "transport", "connection", "session", "store", "policy"),
        *("addresses", "admission", "listening", "refusals", "tally"),
        "proxy",
    },
    "client": {"errors", "types", "wire", "transport", "connection", "proxy"},
    "config_values": {"errors", "types"},
    "config": {"errors", "types", "config_values", "files"},
    "control": {"errors"},
    "datadir": {"errors", "transport", "files", "ownership"},
    "lines": set(),
    "log": {"lines"},
    "configured": {"types", "channels", "config", "datadir", "policy", "proxy", "store"},
    "documents": {"types", "store", "wire"},
    "methods": {"errors", "types", "store", "documents", "turns"},
}
"""What each part of the package may import besides itself. daemon and cli may import all."""

WITHOUT_IO = ("wire", "transport", "connection", "streams", "confirmation", "session")
FORBIDDEN_WITHOUT_IO = {"asyncio", "socket", "time", "os", "random", "threading", "sqlite3"}


def parts() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize(("part", "path"), [(p, q) for p, q in parts() if p in ALLOWED])
def test_imports_point_one_way(part: str, path: Path) -> None:
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("peerstore.")}
    assert inside - {part} <= ALLOWED[part]


def test_every_part_has_its_place() -> None:
    free = {"daemon", "cli", "__init__", "__main__"}
    assert {part for part, _ in parts()} == ALLOWED.keys() | free


@pytest.mark.parametrize(("part", "path"), [(p, q) for p, q in parts() if p in WITHOUT_IO])
def test_the_protocol_does_no_input_or_output(part: str, path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)}.isdisjoint(FORBIDDEN_WITHOUT_IO)


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


@pytest.mark.parametrize(("name", "command"), list(commands(cli)))
def test_every_command_has_help_json_and_a_line_in_the_readme(
    name: str, command: click.Command
) -> None:
    assert command.help
    assert "--json" in {option for p in command.params for option in p.opts}
    noun, _, verb = name.partition(" ")
    row = rf"^\|.*`(peerstore )?{noun}\b.*\b{verb}\b" if verb else rf"^\| `peerstore {noun}\b"
    assert re.search(row, (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", [name for name, _ in commands(cli)])
def test_every_command_has_an_example_in_the_readme(name: str) -> None:
    blocks = re.findall(r"\n```sh\n(.*?)\n```\n", (ROOT / "README.md").read_text(), re.DOTALL)
    assert re.search(rf"\bpeerstore {name}\b", "\n".join(blocks))


def test_the_document_of_every_command_is_fixed() -> None:
    assert {name for name, _ in commands(cli)} == DOCUMENTED


def readme_command(mark: str) -> str:
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"<!-- {mark} -->\n```sh\n(.*?)\n```\n<!-- end -->", text, re.DOTALL)
    assert found
    return found[1]


def test_ci_runs_the_command_of_the_readme() -> None:
    extract = next(
        line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("command=")
    )
    script = f'{extract}\nprintf %s "$command"'
    run = subprocess.run(
        ["/bin/bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == readme_command("test")
    assert run.stdout.endswith(".venv/bin/pytest -n 2 --dist loadscope")


def test_the_lock_has_a_hash_for_all_and_no_addresses() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    for entries in lock_parts().values():
        assert entries
        for entry in entries:
            assert re.match(r"[a-z0-9-]+==\S+", entry)
            assert "--hash=sha256:" in entry
    assert "://" not in lock
    assert "index" not in lock


def lock_parts() -> dict[str, list[str]]:
    """The entries of each part of the lock, by its heading."""
    _, *parts = re.split(r"^# (.*)\n", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    return {
        heading: re.split(r"\n(?=\S)", entries.strip())
        for heading, entries in zip(parts[::2], parts[1::2], strict=True)
    }


def needed(requirements: Iterable[str]) -> set[str]:
    """What requirements need as they are installed here, what those need, and so on."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        # As the oldest Python asks for it: that has most.
        asked = {"python_version": "3.11", "python_full_version": "3.11.0", "extra": ""}
        if name not in found and (not requirement.marker or requirement.marker.evaluate(asked)):
            found.add(name)
            waiting += metadata.requires(name) or []
    return found


def test_each_part_of_the_lock_has_what_it_is_for_and_no_more() -> None:
    """The image gets the part that runs, and is built with the one that builds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"].values()
    run = needed(project["project"]["dependencies"])
    build = needed(project["build-system"]["requires"]) - run
    test = needed(each for group in groups for each in group if isinstance(each, str))
    locked = {
        heading: {
            requirement.name
            for entry in entries
            for requirement in [Requirement(entry.partition(" \\")[0])]
            # What other systems need is locked too.
            if not requirement.marker or requirement.marker.evaluate()
        }
        for heading, entries in lock_parts().items()
    }
    assert locked == {"Run": run, "Build": build, "Test and lint": test - run - build}


def test_the_module_runs_as_the_program() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "peerstore", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("peerstore, version ")
