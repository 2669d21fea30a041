"""Learned gates as a result: a table by KV head, the course of the losses, and the split they give."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.metric import Metric
from sinklens.results.result import Result
from sinklens.studies.streaming_split import sentences
from sinklens.studies.streaming_split.split import Split, split_gates

FORMAT, WORK = "sinklens-streaming-gates", "set of gates"
TABLES = ("gates", "losses")
METRIC = Metric(
    name="streaming_gate",
    version=1,
    definition="alpha of a KV head in z = alpha * full + (1 - alpha) * streaming, learned so that the last hidden "
    "states of the answers stay those of full attention while a penalty on alpha pulls it to 0; 1: needs its whole "
    "cache, 0: first and recent tokens do. A query head has the gate of the KV head it reads.",
    source="Xiao et al. 2025, DuoAttention, arXiv 2410.10819; released code at 03dca84",
)


@dataclass(frozen=True)
class StreamingGates(Result, format=FORMAT, title="Gates of streaming heads", newest=1, needs=TABLES):
    """How much of the past every KV head needs, from 0 (sinks and recent tokens) to 1 (all): DuoAttention's gates.

    :meth:`to_dataframe` gives one row per KV head: ``layer``, ``kv_head`` and ``alpha``, from 0 (streaming) to 1
    (retrieval).

    Attributes:
        meta: Model, probe texts, settings with every default filled in, definition, warnings.
        tables: ``gates`` and ``losses``, see :meth:`to_dataframe` and :meth:`losses`.
    """

    @property
    def verdict(self) -> list[str]:
        """How many KV heads need the whole past, and how the loss fell."""
        return sentences.gates(self.tables["gates"], self.tables["losses"])

    def losses(self) -> pd.DataFrame:
        """One row per step: ``step``, ``loss``, ``distillation``, ``regulariser``, ``lr``, ``length``, ``mean_gate``.

        ``loss = distillation + reg_weight * regulariser``, of the gates before the step.
        """
        return self.tables["losses"].copy()

    @property
    def gates(self) -> Float[np.ndarray, "layer kv_head"]:
        """Alpha by layer and KV head; NaN in layers without attention."""
        model, table = self.meta["model"], self.tables["gates"]
        found: Float[np.ndarray, "layer kv_head"] = np.full((model["n_layers"], model["n_kv_heads"]), np.nan)
        found[table["layer"], table["kv_head"]] = table["alpha"]
        return found

    @property
    def heads(self) -> HeadScores:
        """The gates as scores of query heads: columns ``layer``, ``head``, ``kv_head`` and ``streaming_gate``."""
        group = self._group
        frame = self.tables["gates"].loc[self.tables["gates"].index.repeat(group)].reset_index(drop=True)
        place = np.tile(np.arange(group), len(self.tables["gates"]))
        table = pd.DataFrame(
            {
                "layer": frame["layer"],
                "head": frame["kv_head"] * group + place,
                "kv_head": frame["kv_head"],
                "streaming_gate": frame["alpha"],
            }
        )
        return HeadScores(table, {"streaming_gate": METRIC}, self.meta)

    def retrieval_heads(self, *, sparsity: float | None = None, threshold: float | None = None, seed: int = 0) -> Split:
        """Which heads keep full attention: by share of streaming heads, or by threshold; see :func:`split_gates`.

        The authors stream 75 % of the KV heads of models without grouping and 50 % of those with it.

        Raises:
            InputError: Both or neither of the two, or a number out of range.
        """
        rows = self.tables["gates"].itertuples(index=False)
        gates = {(int(layer), int(kv_head)): float(alpha) for layer, kv_head, alpha in rows}
        return split_gates(gates, self._group, sparsity=sparsity, threshold=threshold, seed=seed)

    @property
    def _group(self) -> int:
        return int(self.meta["model"]["n_heads"]) // int(self.meta["model"]["n_kv_heads"])
