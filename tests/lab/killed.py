"""A training that is killed at a step, and whether two of them ended alike."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file


class Killed(Exception):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, training: ModuleType, step: int) -> None:
    """Let the data of `step` raise, as a stand-in for kill -9 there."""
    original = training.stream

    def deadly(*address: int | str) -> torch.Generator:
        if address[1:] == ("train", step):
            raise Killed
        drawn: torch.Generator = original(*address)
        return drawn

    monkeypatch.setattr(training, "stream", deadly)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
