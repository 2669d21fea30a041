"""Every head's scores and roles at a checkpoint."""

import math
from collections.abc import Sequence

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.results.progress import SILENT, Progress
from sinklens.studies.dynamics.role_growth import ROLE_COLUMNS
from sinklens.studies.head_roles.run import find_roles


def measure_roles(
    model: TransformerBridge, scores: Sequence[str], *, seed: int = 0, progress: Progress = SILENT
) -> pd.DataFrame:
    """Scores and roles of every head by some criteria of :func:`~sinklens.studies.find_roles`, on their own input.

    Returns:
        One row per head and score: layer, head, score, value, null (where the criterion has one) and has_role (missing
        where the score labels nobody).
    """
    found = find_roles(model, scores=scores, seed=seed, progress=progress)
    heads, rows = found.to_dataframe(), []
    for each in found.criteria().itertuples():
        score, role = str(each.criterion), each.role
        null = heads.get(f"{score}_null", pd.Series(math.nan, heads.index))
        labels = heads[f"is_{role}"] if isinstance(role, str) else pd.Series(pd.NA, heads.index)
        part = heads[["layer", "head"]].assign(score=score, value=heads[score].astype(float), null=null.astype(float))
        rows.append(part.assign(has_role=labels.astype("boolean")))
    return pd.concat(rows, ignore_index=True)[[*ROLE_COLUMNS]]
