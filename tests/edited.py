"""Checkpoints and other folders with something in them changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes))


def edit_weights(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the weights of a checkpoint in place."""
    path = directory / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
