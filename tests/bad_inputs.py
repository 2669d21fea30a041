"""Three hundred bad command lines, generated: every option of every command with what it cannot take, and bad files."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer.main

from sinklens.cli.program import app

BAD = ("no-such-thing", "-1")
MORE = (
    ["scan", "bb-1l", "--max-tokens", "9" * 40],
    ["scan", "bb-1l", "--threshold", "nan"],
    ["scan", "bb-1l", "--threshold", "inf"],
    ["scan", "bb-1l", "--batch-size", "0"],
    ["scan", "x" * 300],
    ["scan", "\udcff"],
    ["scan", ""],
    ["scan", "../../.."],
    ["scan", "/dev/null"],
    ["scan", "/dev/zero"],
    ["scan", "bb-1l", "--text", "/dev/zero"],
    ["scan", "bb-1l", "--text", "/dev/null"],
    ["scan", "bb-1l", "--text", ""],
    ["ablate", "bb-1l", "--heads", "L9999H0"],
    ["ablate", "bb-1l", "--heads", ","],
    ["ablate", "bb-1l", "--how", "zero,zero,x"],
    ["needle", "bb-1l", "--repeats", "9" * 40],
    ["needle", "bb-1l", "--generate", "9" * 40],
    ["needle", "bb-1l", "--lengths", "9" * 40],
    ["needle", "bb-1l", "--depths", "nan"],
    ["needle", "bb-1l", "--size", "9" * 40],
    ["nonsense"],
    ["scan", "bb-1l", "bb-3l", "bb-1l"],
    ["scan", "--nonsense"],
)
"""Inputs of which each hung, failed or was taken at some time, and their neighbours."""
POSITIONAL: dict[str, list[str]] = {
    "report": ["nowhere"],
    "calibrate": ["bb-1l", "act"],
    "dynamics": ["bb-1l", "bb-3l"],
    "needle": ["bb-1l", "--lengths", "40", "--repeats", "1", "--controls", "1"],
    "roles": ["bb-1l", "--scores", "sinks", "--max-tokens", "24", "--max-sequences", "4"],
    "ablate": ["bb-1l", "--max-sequences", "4", "--max-tokens", "24"],
    "active-dormant": ["bb-1l", "--max-sequences", "4", "--max-tokens", "24"],
    "scan": ["bb-1l", "--max-sequences", "4"],
}
NEVER = {"--help", "--debug", "--version"}


def commands() -> dict[str, click.Command]:
    """The commands that are attacked, by name; the dashboard serves and the lab trains."""
    group: Any = typer.main.get_command(app)
    return {name: group.commands[name] for name in POSITIONAL}


def bad_options() -> Iterator[list[str]]:
    """Every option of every command with something that it cannot take."""
    for name, command in commands().items():
        for option in command.params:
            flags = [flag for flag in getattr(option, "opts", []) if flag.startswith("--") and flag not in NEVER]
            if not flags or getattr(option, "is_flag", False) or flags[0] in ("--out", "--device-map"):
                continue
            for value in BAD:
                yield [name, *POSITIONAL[name], flags[0], value]


def bad_files(folder: Path) -> Iterator[list[str]]:
    """Every place that takes a file with files of all bad kinds."""
    made = make_files(folder)
    places = {
        "--text": ["scan", "bb-1l", "--text"],
        "ranking": ["ablate", "bb-1l", "--ranking"],
        "report": ["report"],
        "model": ["scan"],
        "labelled": ["calibrate", "bb-1l", "act", "--data"],
        "haystack": ["needle", "bb-1l", "--kind", "passkey", "--text"],
        "dormant": ["active-dormant", "bb-1l", "--text"],
    }
    for words in places.values():
        for path in made:
            yield [*words, str(path)]


def make_files(folder: Path) -> list[Path]:
    """Files that nothing can be read from."""
    contents: dict[str, bytes] = {
        "empty.txt": b"",
        "binary.bin": bytes(range(256)) * 8,
        "cut.json": b'{"format": "sinklens',
        "deep.json": b"[" * 100_000,
        "null.json": b"null",
        "numbers.csv": b"1,2\n3\n",
        "nan.tsv": b"layer\thead\tscore\n0\t0\tnan\n",
        "wide.txt": "caf\u00e9".encode("utf-16"),
        "latin.txt": b"caf\xe9 au lait",
        "fake.parquet": b"PAR1" + b"\0" * 50 + b"PAR1",
        "fake.gguf": b"GGUF\3\0\0\0" + b"\xff" * 64,
        "fake.safetensors": b"\xff" * 64,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "directory").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe")
    (folder / "result").mkdir()
    (folder / "result" / "result.json").write_text(json.dumps({"format": "sinklens-census", "format_version": 1}))
    return sorted(folder.iterdir())
