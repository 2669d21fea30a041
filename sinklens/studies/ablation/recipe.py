"""How another process gets the very model that a sweep was planned for."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.models.load import load
from sinklens.models.source import source_of
from sinklens.results.header import package_versions

WHOLE = 1 << 28
"""Weights of up to this many bytes are hashed whole, larger ones at 4,096 entries of every tensor."""


@dataclass(frozen=True)
class ModelRecipe:
    """What :func:`sinklens.load` needs, and how to know that it loaded the same weights.

    Attributes:
        name: Built-in name, path or hub id; ``None`` for a bridge that the caller made.
        dtype: ``"float32"``, ...
        fingerprint: :func:`fingerprint` of the weights.
        device: Where to load it; ``{i}`` stands for the number of the worker.
        trust_remote_code: As for :func:`sinklens.load`.
        versions: Of the packages that decide about numbers.
    """

    name: str | None
    dtype: str
    fingerprint: str
    device: str = "auto"
    trust_remote_code: bool = False
    versions: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, model: TransformerBridge, loading: Mapping[str, Any]) -> "ModelRecipe":
        """The recipe of a loaded model; ``loading`` holds what its workers pass to ``load``."""
        source = source_of(model)
        return cls(
            None if source is None else source.builtin or source.path or None,
            str(next(model.parameters()).dtype).removeprefix("torch."),
            fingerprint(model),
            str(loading.get("device") or "auto"),
            bool(loading.get("trust_remote_code", False)),
            tuple(package_versions().items()),
        )

    def for_worker(self, number: int) -> "ModelRecipe":
        """The recipe with the worker's own device."""
        count = max(1, torch.cuda.device_count())
        return replace(self, device=self.device.replace("{i}", str(number % count)))

    def load(self) -> TransformerBridge:
        """Load the model and check that it is the planned one.

        Raises:
            InputError: Other weights, or other versions of the packages, than where the sweep was started.
            ModelLoadError: It cannot be loaded here.
        """
        here = package_versions()
        other = [f"{name} {here[name]} instead of {there}" for name, there in self.versions if here[name] != there]
        if other:
            raise InputError(f"A worker has {', '.join(other)}; install the same versions as where the sweep started.")
        model = load(
            self.planned_name(), device=self.device, dtype=self.dtype, trust_remote_code=self.trust_remote_code
        )
        if fingerprint(model) != self.fingerprint:
            raise InputError(
                f"A worker found other weights in {self.name} than the sweep was planned with; give all of them the "
                "same checkpoint, and save a model that was changed in memory before sweeping it with workers."
            )
        return model

    def planned_name(self) -> str:
        """The name to load.

        Raises:
            InputError: There is none.
        """
        if self.name is None:
            raise InputError(
                "Workers load the model themselves, and this bridge was not made by sinklens.load; pass a name or a "
                'path, or use executor="serial".'
            )
        return self.name


def model_identity(model: TransformerBridge) -> dict[str, Any]:
    """What all numbers about a model depend on: results of another one must not end up in one table with them."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"weights": fingerprint(model)[:16], "dtype": dtype, "versions": package_versions()}


def fingerprint(model: TransformerBridge) -> str:
    """SHA-256 over names, shapes, dtypes and entries of all parameters (large models: a sample of the entries)."""
    digest = hashlib.sha256()
    parameters = sorted(model.original_model.named_parameters())
    whole = sum(p.numel() * p.element_size() for _, p in parameters) <= WHOLE
    for name, parameter in parameters:
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        if not parameter.is_meta:  # moved to disk by accelerate
            flat: Tensor = parameter.detach().reshape(-1)
            some = flat if whole else flat[:: max(1, len(flat) // 4096)]
            digest.update(some.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_finite(model: TransformerBridge) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        InputError: One sentence that names the first parameter.
    """
    for name, parameter in model.original_model.named_parameters():
        if parameter.is_meta or bool(torch.isfinite(parameter.detach().sum())):
            continue  # a sum keeps NaN and infinity, and only then is every entry looked at
        if not bool(torch.isfinite(parameter).all()):
            raise InputError(
                f"The model's weights hold NaN or infinity (first in {name.replace('_original_component.', '')}), so "
                "nothing measured on it would mean anything; use an intact model."
            )
