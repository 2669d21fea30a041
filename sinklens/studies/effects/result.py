"""What interventions did to predictions, sequence by sequence, and where the sink went."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from sinklens.errors import InputError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.summary import mean, summarise
from sinklens.results.result import Result
from sinklens.studies.effects.sink_columns import COLUMNS, describe_sinks_after, sink_columns
from sinklens.wording import changed, several

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Effects(
    Result,
    format="sinklens-effects",
    title="Effects of interventions",
    newest=1,
    needs=("effects",),
    header=("interventions", "settings"),
):
    """What interventions did to a model's predictions on some sequences.

    Attributes:
        meta: Model, tokens with BOS provenance, interventions as JSON, definitions, settings.
        tables: ``effects`` and ``sinks_after``, see the properties.
        arrays: Loss by token, see :attr:`losses`.
    """

    @property
    def table(self) -> pd.DataFrame:
        """One row per intervention and sequence.

        Columns: intervention, sequence, n_tokens (predicted ones), clean_loss, loss, delta_loss, kl, top1_agreement,
        clean_logit_diff, logit_diff, delta_logit_diff. Losses and KL in nats; NaN where not applicable.
        """
        return self.tables["effects"]

    @property
    def sinks_after(self) -> pd.DataFrame:
        """Sink heads by position before and under each intervention; see :meth:`SinkTally.table`.

        Empty for effects that an older version saved.
        """
        return self.tables.get("sinks_after", pd.DataFrame(columns=[*COLUMNS]))

    @classmethod
    def needed_arrays(cls, meta: Mapping[str, Any]) -> Collection[str]:
        """Losses by token of the clean model and of each intervention."""
        return ["clean", *(f"changed.{i}" for i in range(len(meta["interventions"])))]

    @property
    def losses(self) -> dict[str, Float[np.ndarray, "sequence pos"]]:
        """Loss by token of the clean model (``""``) and under each intervention; NaN where nothing is predicted.

        At row t stands the loss of predicting t+1.
        """
        after = {name: self.arrays[f"changed.{i}"] for i, name in enumerate(self.interventions)}
        return {"": self.arrays["clean"], **after}

    @property
    def interventions(self) -> list[str]:
        """Names of the interventions, in order."""
        return [str(each["name"]) for each in self.meta["interventions"]]

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
        """What each intervention changes, then where the sink went: hiding it costs little where it moved."""
        return [*effect_sentences(self.summary()), *describe_sinks_after(self.sinks_after)]

    def token_losses(self, intervention: str | None = None) -> Float[np.ndarray, "sequence pos"]:
        """Loss by predicting token under an intervention, or of the clean model; NaN where nothing is predicted.

        Raises:
            InputError: No such intervention.
        """
        name = intervention or ""
        if name not in self.losses:
            raise InputError(f"There is no intervention {name!r} here; there are {', '.join(self.interventions)}.")
        return self.losses[name].copy()

    def by_class(self, classes: "Mapping[str, Bool[Tensor, 'sequence pos']]") -> pd.DataFrame:
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
            under = self.losses[name]
            for label, mask in classes.items():
                members = np.asarray(mask, dtype=bool)
                if members.shape != clean.shape:
                    raise InputError(
                        f"The mask of class {label!r} must be [sequence pos] = {clean.shape}, got {members.shape}."
                    )
                members = members & ~np.isnan(clean)
                before, after = _mean_where(clean, members), _mean_where(under, members)
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


def effect_sentences(summary: pd.DataFrame) -> list[str]:
    """What each intervention does to the loss, from :meth:`Effects.summary`."""
    out = []
    for row in summary.to_dict("records"):
        if math.isnan(row["delta_loss"]):
            out.append(f"{row['intervention']}: no token is predicted, so there is no loss to compare.")
            continue
        change = changed(row["delta_loss"], row["delta_loss_low"], row["delta_loss_high"], 3)
        out.append(
            f"{row['intervention']}: the loss changes by {change} nats a token, from {row['clean_loss']:.3f} to "
            f"{row['loss']:.3f}; KL {row['kl']:z.3f} nats, the same first choice for {row['top1_agreement']:.0%} of "
            f"tokens (mean of {several(row['n_sequences'], 'text')})."
        )
    return out


def _mean_where(losses: np.ndarray, members: np.ndarray) -> Float[np.ndarray, " sequence"]:
    counts = members.sum(1)
    totals = np.where(members, losses, 0).sum(1, dtype=np.float64)
    means: Float[np.ndarray, " sequence"] = np.full(len(losses), math.nan)
    np.divide(totals, counts, out=means, where=counts > 0)
    return means
