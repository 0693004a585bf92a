"""`peerstore help`: pages out of the README, and the help of commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstore.cli.help import OTHER_NAMES, Section, find, page, sections
from tests.daemon import Result, run_command
from tests.helpers import quick
from tests.test_project import ROOT
from tests.test_screens import on_terminal

README = (ROOT / "README.md").read_text()

SAMPLE = """# title

before the first section

## Run it

<!-- run -->
```sh
# not a heading
## nor this
peerstore run   # a comment that makes this line longer than a page is wide, in order to see
```
<!-- end -->

See [the example](config.example.toml) and [the form](https://example.com/form), and [policy].

### At home

Below.

## Over Tor

![an onion](onion.svg)

An onion.

### The logs

Of Tor.

## What the log says

Lines.
"""


def known() -> list[Section]:
    return list(sections(SAMPLE))


def names(topic: str) -> list[str]:
    return [each.name for each in find(topic, known())]


def test_a_section_goes_to_the_next_heading_of_its_level() -> None:
    assert [(each.level, each.title) for each in known()] == [
        (2, "Run it"),
        (3, "At home"),
        (2, "Over Tor"),
        (3, "The logs"),
        (2, "What the log says"),
    ]
    run, home, tor, logs, says = (each.text for each in known())
    assert run.startswith("## Run it")
    assert home in run
    assert "onion" not in run
    assert home.split() == ["###", "At", "home", "Below."]
    assert logs in tor
    assert says.endswith("Lines.")


def test_no_section_of_the_readme_is_left_out() -> None:
    found = list(sections(README))
    whole = "".join("".join(each.text.split()) for each in found if each.level == 2)
    behind = re.sub(r"<!--.*-->|!\[.*\]\(.*\)", "", README[README.index("\n## ") :])
    assert whole == "".join(behind.split())
    assert len({each.name for each in found}) == len(found)


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("tor", "over-tor"),
        ("Over Tor", "over-tor"),
        ("OVER-TOR", "over-tor"),
        ("home", "at-home"),
        ("log", "what-the-log-says"),  # and not the section below another
        ("logs", "what-the-log-says"),
        ("the-logs", "the-logs"),
        ("run it", "run-it"),
    ],
)
def test_a_word_of_a_title_is_enough(topic: str, name: str) -> None:
    assert names(topic) == [name]


@pytest.mark.parametrize(
    ("topic", "name"), [("events", "what-the-log-says"), ("backup", "copies-of-the-database")]
)
def test_a_word_that_one_would_look_for_is_enough(topic: str, name: str) -> None:
    assert [each.name for each in find(topic, list(sections(README)))] == [name]


@pytest.mark.parametrize("topic", ["", "-", "torr", "over home", "run it again", "\x1b[31m"])
def test_what_is_in_no_title_is_no_topic(topic: str) -> None:
    assert names(topic) == []


@given(st.text())
@quick
def test_any_text_may_be_asked_for(topic: str) -> None:
    find(topic, known())


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_names_are_names_of_sections_that_there_are(name: str) -> None:
    (section,) = find(name, list(sections(README)))
    assert section.title == OTHER_NAMES[name] or section.name == name


def test_a_page_is_text() -> None:
    shown = page(known()[0].text)
    assert "the example and the form (https://example.com/form), and [policy]." in shown
    assert "  # not a heading\n  ## nor this\n  peerstore run   # a comment" in shown
    assert "in order to see\n" in shown
    assert not re.search("```|<!--|\x1b", shown)
    assert page(known()[2].text).split("\n\n")[:2] == ["Over Tor", "An onion."]


# The command


def help_(*words: str) -> Result:
    return run_command(Path("/nonexistent"), "help", *words)


def test_a_topic_is_shown_as_a_page_without_a_data_directory() -> None:
    result = help_("recovery")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith("When a peer has lost its data\n\n")
    assert "\n  peerstore alarms ack 1 " in result.stdout
    longest = max(result.stdout.splitlines(), key=len)
    assert len(longest) > 80
    assert longest.startswith("  peerstore")  # folded, it could not be copied


def test_without_a_topic_they_are_listed() -> None:
    result = help_()
    assert (result.code, result.stderr) == (0, "")
    listed = result.stdout.partition("\n\n")[0].splitlines()
    assert [line.strip().partition(" (")[0] for line in listed] == [
        section.title.partition(" (")[0] for section in sections(README)
    ]
    assert "When a peer has lost its data (recovery)" in listed


@pytest.mark.parametrize("words", [["peers"], ["peers", "list"], ["run"], ["help"]])
def test_the_help_of_a_command_is_that_of_its_option(words: list[str]) -> None:
    result = help_(*words)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == run_command(Path("/nonexistent"), *words, "--help").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recovry"], "There is no topic 'recovry'; did you mean recovery?"),
        (["bakups"], "did you mean backups"),
        (["zzzz"], "There is no topic 'zzzz'; `peerstore help` lists them."),
        ([""], "There is no topic ''; `peerstore help` lists them."),
        (["\x1b[31m"], r"There is no topic '\x1b[31m'"),
        (["x" * 1000], "There is no topic 'xxx"),
        (["when"], "'when' may mean when-a-peer-has-lost-its-data, when-"),
        (["peers", "lst"], "No such command 'peers lst'."),
    ],
)
def test_what_there_is_not_is_a_usage_error_that_says_what_there_is(
    words: list[str], said: str
) -> None:
    result = help_(*words)
    assert (result.code, result.stdout) == (2, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert said in last
    assert len(last) < 300


def test_on_a_terminal_a_page_fits_but_for_what_is_to_be_copied(tmp_path: Path) -> None:
    for topic, columns in (("recovery", 60), ("", 60), ("commands", 40)):
        seen = on_terminal(tmp_path, f"help {topic}", columns)
        assert seen.code == 0
        assert all(len(line) <= columns or line.startswith("  ") for line in seen.lines)
