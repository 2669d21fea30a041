"""Two small domains of text, and a language model trained on them for a few steps."""

import random
from pathlib import Path
from typing import Any

import pytest

from sinklens.lab.language.run import train_lm

TINY: dict[str, Any] = dict(
    layers=2, heads=2, d_model=16, d_mlp=16, vocab=300, seq_len=12, batch=4, long_len=24, long_every=3, long_from=3,
    steps=8, series=4, measure_every=3, lr=1e-2,
)  # fmt: skip
QUIET: dict[str, Any] = {"checkpoint_every": 2, "device": "cpu"}


def write_texts(folder: Path) -> Path:
    """Two files of prose in a folder, one file of code."""
    draw = random.Random(0)
    words = ["sink", "drain", "peak", "the", "of", "head", "BOS", "naïve", "row"]
    (folder / "prose").mkdir(parents=True)
    for name in ("a", "b"):
        lines = [" ".join(draw.choices(words, k=8)) + ".\n" for _ in range(1500)]
        (folder / "prose" / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    lines = [f"def {draw.choice(words)}_{n}(x):\n    return x + {draw.randrange(99)}\n\n" for n in range(2000)]
    (folder / "code.py").write_text("".join(lines), encoding="utf-8")
    (folder / "SOURCES.md").write_text("Texts: made up for a test.\n")
    return folder


def tiny_lm(data: Path, out: Path, **changes: Any) -> Path:
    return train_lm(data, out, **(TINY | QUIET | changes))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "texts")


@pytest.fixture(scope="session")
def trained_lm(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm(texts, tmp_path_factory.mktemp("lm") / "lm")
