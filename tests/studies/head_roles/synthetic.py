"""Score tables and files of our own making, in the published formats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sinklens.detectors.base import Metric
from sinklens.detectors.head_scores import HeadScores

LAYERS, HEADS, KV_HEADS, RUNS = 3, 4, 2, 7


def scores(**columns: Any) -> HeadScores:
    """Scores of a 3 x 4 model: 12 numbers for each column, in order of layer and head."""
    layer, head = np.divmod(np.arange(LAYERS * HEADS), HEADS)
    frame = pd.DataFrame({"layer": layer, "head": head} | {name: np.array(v) for name, v in columns.items()})
    numbers = [name for name in columns if frame[name].dtype.kind == "f"]
    return HeadScores(frame, {name: Metric(name, 1, f"what {name} means", "a paper") for name in numbers}, {})


def runs(seed: int = 0) -> dict[str, list[Any]]:
    """Per-run scores as Retrieval_Head writes them: whole zeros, and multiples of 1/5."""
    draw = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {}
    for layer in range(LAYERS):
        for head in range(HEADS):
            copied = draw.binomial(5, 0.9 * draw.random() ** 3, size=RUNS)
            found[f"{layer}-{head}"] = [0 if not n else int(n) * 0.2 for n in copied]
    return found


def retrieval_file(folder: Path, seed: int = 0, name: str = "model-a.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(runs(seed)))
    return path


def gates(seed: int = 1) -> np.ndarray:
    """Gates of KV heads as training leaves them: many exactly 1, some a little below 0."""
    draw = np.random.default_rng(seed)
    values = draw.choice([1.0, 0.984375, 0.5, -6.1e-05, 1e-4], size=(LAYERS, KV_HEADS))
    values[0] = (1.0, -6.1e-05)
    return values


def gates_file(folder: Path, seed: int = 1, name: str = "full_attention_heads.tsv") -> Path:
    path = folder / name
    np.savetxt(path, gates(seed), delimiter="\t")
    return path
