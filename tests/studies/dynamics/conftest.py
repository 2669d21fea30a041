"""A series of small checkpoints: the same random Llama, its attention switched on step by step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from tests import families
from tests.edited import edit_weights

PROSE = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 12
CODE = "def f(x):\n    return x + 1\n\nfor i in range(10):\n    print(f(i))\n" * 12
TEXTS = {"prose": [PROSE], "code": [CODE]}
SMALL = {"max_tokens": 24, "max_sequences": 6}
STEPS = (0, 9, 80, 700)


def scale_queries(gain: float) -> Callable[[dict[str, Tensor]], None]:
    """0: attention is uniform, 1: as it was made."""

    def change(weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            if "q_proj" in name:
                weight.mul_(gain)

    return change


def write_series(directory: Path) -> Path:
    """``step-0``, ``step-9``, ``step-80``, ``step-700``: sorted as text they would stand in another order."""
    first = families.build_checkpoint("llama", directory / "step-0")
    for place, step in enumerate(STEPS[1:], 1):
        shutil.copytree(first, directory / f"step-{step}")
        edit_weights(directory / f"step-{step}", scale_queries(place / 3))
    edit_weights(first, scale_queries(0))
    return directory


def break_tokenizer(directory: Path) -> None:
    """Swap two letters of the vocabulary."""
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    path.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_series(tmp_path_factory.mktemp("series") / "run")


@pytest.fixture
def series(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "run"))
