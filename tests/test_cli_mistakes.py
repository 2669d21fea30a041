"""Every command with every argument that it cannot take: told in a sentence, and before torch is loaded."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer.main

from sinklens.cli.program import app

WITHOUT = """
import json, sys
from importlib.abc import MetaPathFinder

class Refused(MetaPathFinder):
    asked = []

    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "transformer_lens"):
            self.asked.append(name)
            raise RuntimeError(f"{name} was asked for")

sys.meta_path.insert(0, Refused())
from sinklens.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["sinklens", *words]
    Refused.asked.clear()
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code
    print("ended", json.dumps([words, status, Refused.asked]))
"""
"""Runs commands where torch cannot be had: one that asks for it ends in status 1."""

GOOD: dict[tuple[str, ...], tuple[str, ...]] = {
    ("scan",): ("bb-1l",),
    ("report",): ("/nowhere",),
    ("ablate",): ("bb-1l",),
    ("active-dormant",): ("bb-1l",),
    ("calibrate",): ("tiny-llama",),
    ("dashboard",): (),
    ("dynamics",): ("tiny-llama",),
    ("extreme",): ("bb-1l",),
    ("evaluate",): ("bb-1l", "--tasks", "mine.jsonl"),
    ("follow",): ("bb-1l", "a"),
    ("needle",): ("bb-1l",),
    ("policies",): (),
    ("roles",): ("bb-1l",),
    ("why",): ("bb-1l",),
    ("rank",): ("bb-1l",),
    ("paths",): ("bb-1l",),
    ("conflict",): ("bb-1l",),
    ("models",): (),
    ("recall",): ("bb-1l",),
    ("span",): ("bb-1l",),
    ("near-far",): ("bb-1l", "L0H0"),
    ("inject",): ("bb-1l",),
    ("pool",): ("bb-1l",),
    ("policy", "compare"): ("bb-1l",),
}
"""What makes each command work, but for what is wrong; the settings of the lab are checked by what trains."""

NOWHERE, FILE = "/nowhere/at/all", "FILE"
WRONG: dict[str, str] = {
    "absolute": "-1", "alpha": "-1", "ablate": "first", "active_mass": "2", "answer": "nothing", "answers": NOWHERE,
    "batch_size": "0", "bos": "maybe", "budget": "-1", "by": "luck", "causal": "retrieval:none", "controls": "-1",
    "counts": "0", "data": NOWHERE, "depths": "2", "detectors": "sink", "device": "toaster",
    "device_map": "everywhere", "directory": NOWHERE, "documents": NOWHERE, "dormant_mass": "0", "draws": "0",
    "dtype": "int8", "effect": "-1", "executor": "magic", "facts": NOWHERE, "fewshot": "-1", "gamma": "0",
    "gammas": "x", "generate": "-1", "given": NOWHERE, "gold": "0", "group": "none", "heads": "first",
    "how": "gently", "intervention": NOWHERE, "keep": "some", "keys": "-1", "kind": "hay", "label_column": "none",
    "layers": "last", "lengths": "0", "limit": "0", "max_prompts": "1", "max_sequences": "0", "max_tokens": "0",
    "method": NOWHERE, "methods": "guess", "metric": "luck", "model": NOWHERE, "name": "h3o", "needle_kind": "hay",
    "needle_length": "0", "needle_repeats": "0", "objective": "luck", "out": FILE, "pairs": NOWHERE, "per": "layer",
    "places": "under", "poolings": "max", "policies": "h3o", "policy": "h3o", "port": "-1", "position": "-1",
    "prompt": "0", "prompts": NOWHERE, "query_heads": "0", "question": "What?", "ranking": NOWHERE, "ratio": "-1",
    "receivers": "L0H0", "repeats": "0", "revisions": "step*", "roles": "king", "sample": "-1", "scores": "luck",
    "seed": "-1", "senders": "first", "series": NOWHERE, "share": "2", "shots": "-1", "sink_share": "2", "sinks": "0",
    "size": "0", "source": NOWHERE, "steps": "7", "temperature": "-1", "template": "no place", "text": NOWHERE,
    "text_column": "none", "threshold": "2", "token_class": "none", "tasks": NOWHERE, "tokens": "0", "top": "0",
    "window": "0", "own": "A sentence.",
}  # fmt: skip
"""A value that no model makes right, by the option's name."""

FREE = {
    ("evaluate", "tasks"): "names of the harness, which knows them",
    ("follow", "prompt"): "any text",
    ("models", "model"): "a name that is looked up",
    ("rank", "answer"): "any text",
    ("inject", "token"): "any text; the tokenizer knows which is a token",
    ("report", "out"): "a file that is written over",
}
"""Arguments of which nothing is wrong in itself."""


def commands(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its words, those of the lab left out."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from () if name == "lab" else commands(command, (*before, name))
        else:
            yield (*before, name), command


def mistakes(file: str) -> Iterator[tuple[str, ...]]:
    """Each command with one wrong argument."""
    for words, command in commands(typer.main.get_command(app)):
        for argument in command.params:
            name, value = str(argument.name), WRONG.get(str(argument.name), "")
            if getattr(argument, "is_flag", False) or name == "help" or (words[-1], name) in FREE:
                continue
            value = file if value == FILE else value
            if argument.param_type_name == "argument":
                others = () if name != "documents" else GOOD[words]
                yield (*words, *others, *([value] * (2 if name == "documents" else 1)))
            else:
                flag = next(each for each in argument.opts if each.startswith("--"))
                yield (*words, *GOOD[words], flag, value)


def without_torch(*given: tuple[str, ...]) -> list[tuple[list[str], int, list[str]]]:
    """Each command's words, exit status, and what it asked for that is not there."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(given)], capture_output=True, text=True, check=False
    )
    ended = [line.removeprefix("ended ") for line in done.stdout.splitlines() if line.startswith("ended ")]
    assert len(ended) == len(given), done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in ended]


def test_every_argument_has_a_wrong_value() -> None:
    for words, command in commands(typer.main.get_command(app)):
        assert words in GOOD, words
        for argument in command.params:
            named = str(argument.name) in WRONG or (words[-1], argument.name) in FREE
            assert named or getattr(argument, "is_flag", False) or argument.name == "help", (words, argument.name)


def test_mistakes_are_told_before_torch_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("mine")
    wrong = [*mistakes(str(file))]
    assert len(wrong) > 150
    assert [(words, status, asked) for words, status, asked in without_torch(*wrong) if status != 2 or asked] == []


def test_a_dashboard_of_an_empty_folder_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    assert without_torch(("dashboard", str(tmp_path))) == [(["dashboard", str(tmp_path)], 2, [])]
