"""The commands speak one language: the same options, examples that parse, files that stay small."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

from sinklens.cli import app, options

PROGRAM = typer.main.get_command(app)


def commands(group: Any = PROGRAM, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    members = getattr(group, "commands", None)
    if members is None:
        yield path, group
        return
    for name, member in members.items():
        yield from commands(member, (*path, name))


COMMANDS = dict(commands())


def examples(text: str) -> list[str]:
    """Lines that begin with the program, with what follows a pipe."""
    lines = [line.strip().split("| ")[-1] for line in re.sub(r"\n\s+does the", " does the", text).splitlines()]
    return [line for line in lines if line.startswith("sinklens ")]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_teaches_with_examples_that_parse(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    found = examples(command.help or "")
    assert found or path in (("lab", "variants"), ("lab", "train", "variant"), ("lab", "train", "induction")), path
    for line in found:
        words = shlex.split(line)[1:]
        assert tuple(words[: len(path)]) == path, line
        context = command.make_context(path[-1], words[len(path) :])
        assert context.params


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_one_word_for_one_thing(path: tuple[str, ...]) -> None:
    names = {name for parameter in COMMANDS[path].params for name in parameter.opts}
    assert not names & {"--batch", "--eps", "--resume", "--no-resume", "--sink", "--output", "--n-sequences"}


def test_shared_options_have_one_help() -> None:
    for name in ("--bos", "--batch-size", "--device", "--dtype", "--out", "--restart", "--trust-remote-code"):
        helps = {
            parameter.help
            for path, command in COMMANDS.items()
            if path[0] not in ("lab", "report", "dashboard")
            for parameter in command.params
            if name in parameter.opts
        }
        assert len(helps) == 1, name


def test_command_files_stay_small() -> None:
    for path in Path(options.__file__).parent.glob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= 200, path.name


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_shows_what_is_written(path: tuple[str, ...]) -> None:
    """Words in square brackets are markup to the program that prints help, and vanish unless they are escaped."""
    command = COMMANDS[path]
    for text in [command.help or "", *(getattr(parameter, "help", "") or "" for parameter in command.params)]:
        plain = text.replace("\\[", "[")
        assert Text.from_markup(text).plain == plain, path
