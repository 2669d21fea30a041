"""The figures of several seeds side by side, kept with one of the models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sinklens.errors import InputError, ResultError
from sinklens.lab.folders import json_bytes, read_recipe, refuse_other
from sinklens.lab.induction.card import model_card
from sinklens.lab.induction.publish import TASK
from sinklens.lab.induction.settings import InductionSettings
from sinklens.lab.report import read_measured
from sinklens.results.files import write_atomically


def keep_seeds(folder: Path, others: Sequence[Path]) -> None:
    """Put the figures of models that differ in their seed alone beside those of `folder`.

    Writes seeds.json (every figure that is not of one head, by seed) and the model card anew, with the least and the
    greatest value over all seeds beside each gate.

    Args:
        folder: a finished model.
        others: folders of finished models with the same settings but for the seed.

    Raises:
        InputError: if two have one seed.
        ResultError: if a model is not finished, has other settings, or its files are damaged.
    """
    own, by_seed = _settings(folder), dict[int, dict[str, float]]()
    for place in (folder, *others):
        settings = _settings(place)
        refuse_other(own.to_dict(), settings.to_dict() | {"seed": own.seed}, f"{place} holds a model")
        if settings.seed in by_seed:
            raise InputError(f"{place} has seed {settings.seed} like another of these models; train it with its own.")
        by_seed[settings.seed] = {name: value for name, value in read_measured(place).items() if not _of_a_head(name)}
    seconds = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["seconds"]
    table: dict[str, Any] = {str(seed): by_seed[seed] for seed in sorted(by_seed)}
    card = model_card(own, read_measured(folder), {seed: by_seed[seed] for seed in sorted(by_seed)}, seconds)
    write_atomically(folder / "seeds.json", json_bytes(table))
    write_atomically(folder / "README.md", card.encode())


def _settings(folder: Path) -> InductionSettings:
    saved = read_recipe(folder, TASK)
    if saved is None:
        raise ResultError(f"{folder} holds no finished model; train it first with sinklens lab train induction.")
    try:
        return InductionSettings(**saved)
    except TypeError as error:
        raise ResultError(f"The settings in {folder}/recipe.json are those of another version: {error}.") from error


def _of_a_head(name: str) -> bool:
    return name[0] == "L" and name[1].isdigit()
