"""What interventions did to predictions: tables by sequence, losses by token, saved and loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.errors import InputError, ResultError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.summary import mean, summarise
from sinklens.results.tables import load_result, save_result
from sinklens.studies.effects.sinks_after import COLUMNS as SINK_COLUMNS
from sinklens.studies.effects.sinks_after import sink_columns
from sinklens.studies.effects.sinks_after_verdict import describe_sinks_after

FORMAT = "sinklens-effects"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Effects:
    """What interventions did to a model's predictions on some sequences.

    Attributes:
        meta: Model, tokens with BOS provenance, interventions as JSON, definitions, settings.
        table: One row per intervention and sequence; see :meth:`to_dataframe`.
        losses: Loss by token ``[sequence pos]`` of the clean model (``""``) and under each intervention; NaN where
            nothing is predicted. At row t stands the loss of predicting t+1.
        sinks_after: Sink heads by position before and under each intervention; see :meth:`SinkTally.table`. Empty
            for effects that an older version saved.
    """

    meta: dict[str, Any] = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    losses: dict[str, Float[np.ndarray, "sequence pos"]] = field(repr=False)
    sinks_after: pd.DataFrame = field(repr=False, default_factory=lambda: pd.DataFrame(columns=[*SINK_COLUMNS]))

    @property
    def interventions(self) -> list[str]:
        """Names of the interventions, in order."""
        return [str(each["name"]) for each in self.meta["interventions"]]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per intervention and sequence.

        Columns: intervention, sequence, n_tokens (predicted ones), clean_loss, loss, delta_loss, kl, top1_agreement,
        clean_logit_diff, logit_diff, delta_logit_diff. Losses and KL in nats; NaN where not applicable.
        """
        return self.table.copy()

    def summary(self) -> pd.DataFrame:
        """One row per intervention: means over sequences with paired bootstrap intervals; see :func:`summarise`.

        And where the sink went: ``n_sink_heads_before``, ``sink_position_before`` (the position with most of them),
        ``n_sink_heads`` and ``sink_position`` under the intervention; missing where there is no sink.
        """
        means = summarise(self.table, seed=int(self.meta["settings"]["seed"]))
        went = pd.DataFrame.from_dict(sink_columns(self.sinks_after, self.interventions), orient="index")
        return means.merge(went.astype("Int64"), left_on="intervention", right_index=True, how="left")

    @property
    def verdict(self) -> list[str]:
        """One sentence per intervention on where the sink went: an effect of hidden keys is small where it moved."""
        return describe_sinks_after(self.sinks_after)

    def token_losses(self, intervention: str | None = None) -> Float[np.ndarray, "sequence pos"]:
        """Loss by predicting token under an intervention, or of the clean model; NaN where nothing is predicted.

        Raises:
            InputError: No such intervention.
        """
        name = intervention or ""
        if name not in self.losses:
            raise InputError(f"There is no intervention {name!r} here; there are {', '.join(self.interventions)}.")
        return self.losses[name].copy()

    def by_class(self, classes: Mapping[str, Bool[Tensor, "sequence pos"]]) -> pd.DataFrame:
        """Effects on classes of tokens apart, such as those that follow a trigger.

        Args:
            classes: For each class the *predicting* rows that belong to it, ``[sequence pos]``. Rows that predict
                nothing are left out.

        Returns:
            One row per intervention and class: n_sequences, n_tokens, clean_loss, loss and delta_loss with
            delta_loss_low and delta_loss_high. A sequence's losses are averaged first and each sequence counts once;
            sequences without a token of the class are left out. ``note`` says why there is no (BCa) interval.

        Raises:
            InputError: A mask of another shape.
        """
        clean, rows = self.losses[""], []
        for name in self.interventions:
            changed = self.losses[name]
            for label, mask in classes.items():
                members = np.asarray(mask, dtype=bool)
                if members.shape != clean.shape:
                    raise InputError(
                        f"The mask of class {label!r} must be [sequence pos] = {clean.shape}, got {members.shape}."
                    )
                members = members & ~np.isnan(clean)
                before, after = _mean_where(clean, members), _mean_where(changed, members)
                interval = paired_interval(after - before, seed=int(self.meta["settings"]["seed"]))
                rows.append(
                    {
                        "intervention": name,
                        "class": label,
                        "n_sequences": interval.n,
                        "n_tokens": int(members.sum()),
                        "clean_loss": mean(before),
                        "loss": mean(after),
                        "delta_loss": interval.value,
                        "delta_loss_low": interval.low,
                        "delta_loss_high": interval.high,
                        "note": interval.note,
                    }
                )
        return pd.DataFrame(rows)

    def save(self, directory: str | Path) -> Path:
        """Write a directory of Parquet and JSON, complete or not at all.

        Raises:
            ResultError: The place cannot be written, or holds something else.
        """
        arrays = {"clean": self.losses[""]} | {f"changed.{i}": self.losses[n] for i, n in enumerate(self.interventions)}
        save_result(
            Path(directory),
            {"format": FORMAT, **self.meta},
            {"effects": self.table, "sinks_after": self.sinks_after},
            arrays,
        )
        return Path(directory)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read saved effects.

        Raises:
            ResultError: No effects there, a newer format, or damaged files.
        """
        meta, tables, arrays = load_result(Path(directory), kind=FORMAT, newest=FORMAT_VERSION)
        try:
            del meta["format"]
            losses = {"": arrays["clean"]}
            losses |= {each["name"]: arrays[f"changed.{i}"] for i, each in enumerate(meta["interventions"])}
            went = tables.get("sinks_after")
            return cls(meta, tables["effects"], losses) if went is None else cls(meta, tables["effects"], losses, went)
        except (KeyError, TypeError) as error:
            raise ResultError(f"{directory} is damaged: {error} is missing or wrong in its header.") from error


def _mean_where(losses: np.ndarray, members: np.ndarray) -> Float[np.ndarray, " sequence"]:
    counts = members.sum(1)
    totals = np.where(members, losses, 0).sum(1, dtype=np.float64)
    means: Float[np.ndarray, " sequence"] = np.full(len(losses), math.nan)
    np.divide(totals, counts, out=means, where=counts > 0)
    return means
