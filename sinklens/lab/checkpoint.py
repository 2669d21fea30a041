"""The state of an interrupted training: written whole or not at all, and checked before it is used."""

import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sinklens.errors import ResultError
from sinklens.results.files import write_atomically

_FORMAT = 1
_MAGIC = b"sinklens-checkpoint\n"
_DIGEST = hashlib.sha256().digest_size


@dataclass
class Checkpoint:
    """What a training needs to go on.

    Attributes:
        settings: the settings it was started with, as a JSON dictionary.
        step: number of optimiser steps done.
        seconds: time spent on them.
        model: the model's state dict.
        optimizer: the optimiser's state dict.
        curve: the rows measured so far, if the training keeps a curve.
        losses: the steps' losses since the last row.
    """

    settings: dict[str, Any]
    step: int
    seconds: float
    model: dict[str, Any]
    optimizer: dict[str, Any]
    curve: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the checkpoint over an older one.

        Raises:
            ResultError: if the file cannot be written.
        """
        head = {"format": _FORMAT, "settings": self.settings, "step": self.step, "seconds": self.seconds}
        head |= {"curve": self.curve, "losses": self.losses}
        buffer = io.BytesIO()
        torch.save({"head": json.dumps(head), "model": self.model, "optimizer": self.optimizer}, buffer)
        content = buffer.getvalue()
        write_atomically(path, _MAGIC + hashlib.sha256(content).digest() + content)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a checkpoint onto the CPU; nothing in the file is executed.

        Raises:
            ResultError: if the file is damaged, of a newer format or no checkpoint of sinklens.
        """
        advice = "train into another folder, or start anew with --restart (resume=False)"
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise ResultError(f"The checkpoint {path} cannot be read: {error.strerror or error}.") from error
        digest, content = raw[len(_MAGIC) :][:_DIGEST], raw[len(_MAGIC) + _DIGEST :]
        if not raw.startswith(_MAGIC) or hashlib.sha256(content).digest() != digest:
            raise ResultError(f"The checkpoint {path} is damaged or is none of sinklens; {advice}.")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        head = json.loads(state["head"])
        if head["format"] > _FORMAT:
            raise ResultError(
                f"The checkpoint {path} has format {head['format']} and this sinklens reads up to {_FORMAT}; "
                f"use the newer version, or {advice}."
            )
        return cls(
            head["settings"],
            head["step"],
            head["seconds"],
            state["model"],
            state["optimizer"],
            head.get("curve", []),
            head.get("losses", []),
        )
