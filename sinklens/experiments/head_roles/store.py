"""Finished measurements on disk, so that an interrupted or extended run does not repeat them."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.detectors.base import Metric
from sinklens.detectors.head_scores import HeadScores
from sinklens.errors import ResultError
from sinklens.experiments.head_roles.result import FORMAT as ROLES
from sinklens.experiments.provenance import package_versions
from sinklens.experiments.sweeps.recipe import fingerprint
from sinklens.tables import HEADER, check_writable, kind_of, load_result, save_result

FORMAT, FORMAT_VERSION = "sinklens-head-scores", 1
FOLDER = "criteria"


def check_folder(out: Path) -> None:
    """Find out before a long run whether roles can be kept and saved in ``out``.

    Raises:
        ResultError: It is a file, cannot be written, or holds something else.
    """
    if out.is_dir() and not (out / HEADER).is_file() and (out / FOLDER).is_dir():
        return  # an interrupted run of ours
    check_writable(out, ROLES)


class ScoreStore:
    """Scores of one model in ``<out>/criteria/<name>``, each saved whole or not at all.

    Args:
        out: Directory of the run, ``None`` to keep nothing.
        model: The model that everything is of.
        restart: Throw away what another run left there instead of refusing it.
    """

    def __init__(self, out: Path | None, model: TransformerBridge, restart: bool = False) -> None:
        self.out, self.restart = out, restart
        self.facts: dict[str, Any] = {}
        if out is not None:
            check_folder(out)
            dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
            self.facts = {"weights": fingerprint(model)[:16], "dtype": dtype, "versions": package_versions()}
            self._check_others(out / FOLDER)

    def _check_others(self, folder: Path) -> None:
        """Scores of another model next to ours would end up in one table."""
        for place in sorted(folder.glob("*")) if folder.is_dir() else []:
            if kind_of(place) != FORMAT:
                continue
            made = json.loads((place / HEADER).read_text("utf-8")).get("made_with", {})
            other = [name for name, fact in self.facts.items() if made.get(name) != fact]
            if other and not self.restart:
                raise ResultError(_refusal(place, other))
            if other:
                shutil.rmtree(place)

    def load(self, name: str, options: Mapping[str, Any]) -> HeadScores | None:
        """What an earlier run found with the same model and options; ``None`` without, or when it is damaged.

        Raises:
            ResultError: The scores there are of another model, or were made with other options.
        """
        place = None if self.out is None else self.out / FOLDER / name
        if place is None or kind_of(place) != FORMAT:
            return None
        meta, tables, _ = load_result(place, kind=FORMAT, newest=FORMAT_VERSION)
        made = self._made_with(options)
        other = [key for key in made if meta["made_with"].get(key) != made[key]]
        if other and not self.restart:
            raise ResultError(_refusal(place, other))
        if other:
            return None
        metrics = {column: Metric(**each) for column, each in meta["metrics"].items()}
        return HeadScores(tables["scores"], metrics, meta["meta"])

    def save(self, name: str, options: Mapping[str, Any], scores: HeadScores) -> None:
        """Keep finished scores.

        Raises:
            ResultError: The place cannot be written.
        """
        if self.out is None:
            return
        metrics = {column: {"name": each.name, **each.as_dict()} for column, each in scores.metrics.items()}
        meta = {"format": FORMAT, "format_version": FORMAT_VERSION, "made_with": self._made_with(options)}
        frame = pd.DataFrame(scores.frame)
        save_result(
            self.out / FOLDER / name, {**meta, "metrics": metrics, "meta": dict(scores.meta)}, {"scores": frame}, {}
        )

    def _made_with(self, options: Mapping[str, Any]) -> dict[str, Any]:
        described = json.dumps(_plain(options), sort_keys=True)
        return {**self.facts, "options": described if len(described) <= 400 else _hash(described)}


def _refusal(place: Path, other: Sequence[str]) -> str:
    return (
        f"{place} holds scores made with other {', '.join(other)}; name another directory, or start anew there with "
        "--restart (restart=True)."
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
