"""Finished criteria, kept in the run's folder so that an interrupted or extended run does not repeat them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from sinklens.detectors.base import Metric
from sinklens.detectors.head_scores import HeadScores
from sinklens.errors import ResultError
from sinklens.results import RunFolder
from sinklens.results.provenance import package_versions
from sinklens.results.run_folder import ANEW
from sinklens.studies.ablation.recipe import fingerprint


def describe_model(model: TransformerBridge) -> dict[str, Any]:
    """What all scores of a run depend on: scores of another model next to ours would end up in one table."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"weights": fingerprint(model)[:16], "dtype": dtype, "versions": package_versions()}


def load_scores(folder: RunFolder, name: str, options: Mapping[str, Any]) -> HeadScores | None:
    """What an earlier run found with the same options; ``None`` without, or when it is damaged.

    Raises:
        ResultError: The scores there were made with other options.
    """
    part = folder.load(name)
    if part is None:
        return None
    if part.meta["options"] != _described(options):
        raise ResultError(
            f"{folder.directory} holds scores of {name} made with other options; name another directory, or {ANEW}."
        )
    metrics = {column: Metric(**each) for column, each in part.meta["metrics"].items()}
    return HeadScores(part.tables["scores"], metrics, part.meta["meta"])


def save_scores(folder: RunFolder, name: str, options: Mapping[str, Any], scores: HeadScores) -> None:
    """Keep finished scores.

    Raises:
        ResultError: The place cannot be written.
    """
    metrics = {column: {"name": each.name, **each.as_dict()} for column, each in scores.metrics.items()}
    meta: dict[str, Any] = {"options": _described(options), "metrics": metrics, "meta": dict(scores.meta)}
    folder.save(name, {"scores": scores.to_dataframe()}, meta=meta)


def _described(options: Mapping[str, Any]) -> str:
    text = json.dumps(_plain(options), sort_keys=True)
    return text if len(text) <= 400 else hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
