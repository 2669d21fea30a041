"""Effects of interventions on predictions, sequence by sequence, with intervals of the paired differences."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.attention import AttentionEngine, plan_for
from sinklens.errors import InputError, ResultError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.effects import Answers, Reference, token_losses
from sinklens.evidence.summary import mean, summarise
from sinklens.interventions import Intervention
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import Ids, TokenBatch, as_batch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.batches import equal_lengths
from sinklens.results.progress import SILENT, Progress
from sinklens.results.provenance import provenance
from sinklens.results.tables import load_result, save_result
from sinklens.studies.effects.sinks_after import CLEAN, SinkTally, sink_columns
from sinklens.studies.effects.sinks_after import COLUMNS as SINK_COLUMNS
from sinklens.studies.effects.sinks_after_verdict import describe_sinks_after

FORMAT = "sinklens-effects"
FORMAT_VERSION = 1
METRICS = {
    "loss": "mean -log p of the next token, in nats, over rows whose next token is real and not the BOS",
    "kl": "mean KL(clean || changed) over the same rows, in nats",
    "top1_agreement": "share of the same rows where the clean model's likeliest token has the highest changed logit",
    "logit_diff": "logit of the right answer minus that of the wrong one at the given row",
    "delta": "changed minus clean, on the same sequence",
}


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


@usual_torch()
@torch.no_grad()
def measure_effects(
    model: AnyModel,
    interventions: Mapping[str, Intervention],
    batch: TokenBatch | Ids,
    *,
    attention_mask: Any = None,
    answers: Answers | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Effects:
    """What each intervention does to the predictions on each sequence.

    ::

        effects = measure_effects(model, {"no L0H0": AblateHeads(["L0H0"])}, tokenize(model, texts))
        effects.summary()

    Sequences of one length run together, so there is never padding; the clean pass goes through the same engine as the
    changed ones. Compare an effect of chosen heads with that of :func:`~sinklens.evidence.random_head_sets`.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        interventions: By name, in the order of the tables.
        batch: Sequences from :func:`sinklens.tokenize`, a tokenizer's output, or token ids.
        attention_mask: For ids: 1 at real tokens.
        answers: For logit differences.
        batch_size: Sequences in one forward pass.
        seed: Of the bootstrap.
        progress: Told after each forward pass, in sequences.

    Raises:
        InputError: No intervention, one without a name or without its heads in this model, or no sequence.

    Cost: for each sequence a clean forward pass and one per intervention, each with one statistic of attention (mass
    that keys receive, for where the sink went); the logits of two passes are held at once.
    """
    if not interventions or not all(interventions):
        raise InputError("Expected interventions by name, at least one, such as {'no L0H0': AblateHeads(['L0H0'])}.")
    model = as_bridge(model)
    batch = as_batch(model, batch, attention_mask)
    if not len(batch):
        raise InputError("Expected at least one sequence, got none.")
    if answers is not None:
        answers.check(batch, int(model.cfg.d_vocab))
    for intervention in interventions.values():
        intervention.check(model)
    path, device = plan_for(model).path, next(model.parameters()).device
    progress.begin("Measuring effects", len(batch) * (1 + len(interventions)))
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in interventions}
    tally = SinkTally()
    losses = {name: torch.full(batch.ids.shape, math.nan) for name in ("", *interventions)}
    for indices in equal_lengths(batch, batch_size):
        part = batch.rows(indices)
        ids = part.ids.to(device)
        where, width = torch.tensor(indices), ids.shape[1]
        with AttentionEngine(model, path=path, **tally.watching(CLEAN, part)):
            logits = model(ids)
        reference = Reference(logits, part, None if answers is None else answers.rows(indices))
        losses[""][where, :width] = token_losses(logits, part).cpu()
        del logits
        progress.advance(len(indices))
        for name, intervention in interventions.items():
            with intervention(model, **tally.watching(name, part)):
                logits = model(ids)
            frames[name].append(_rows(name, indices, reference.clean, reference.compare(logits)))
            losses[name][where, :width] = token_losses(logits, part).cpu()
            del logits
            progress.advance(len(indices))
    table = pd.concat([frame.sort_values("sequence") for frame in map(pd.concat, frames.values())], ignore_index=True)
    meta = {
        "format_version": FORMAT_VERSION,
        **provenance(model, batch),
        "interventions": [{"name": name, "json": json.loads(each.to_json())} for name, each in interventions.items()],
        "metrics": {name: {"version": 1, "definition": text} for name, text in METRICS.items()},
        "settings": {"batch_size": batch_size, "seed": seed, "answers": answers is not None},
    }
    return Effects(meta, table, {name: loss.numpy() for name, loss in losses.items()}, tally.table([*interventions]))


def _rows(name: str, indices: list[int], clean: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> pd.DataFrame:
    def plain(values: Tensor) -> Float[np.ndarray, " sequence"]:
        return values.double().cpu().numpy()

    before = {measure: plain(clean[measure]) for measure in ("loss", "logit_diff")}
    after = {measure: plain(values[0]) for measure, values in changed.items()}
    return pd.DataFrame(
        {
            "intervention": name,
            "sequence": indices,
            "n_tokens": clean["n_tokens"].cpu().numpy(),
            "clean_loss": before["loss"],
            "loss": after["loss"],
            "delta_loss": after["loss"] - before["loss"],
            "kl": after["kl"],
            "top1_agreement": after["top1_agreement"],
            "clean_logit_diff": before["logit_diff"],
            "logit_diff": after["logit_diff"],
            "delta_logit_diff": after["logit_diff"] - before["logit_diff"],
        }
    )


def _mean_where(losses: np.ndarray, members: np.ndarray) -> Float[np.ndarray, " sequence"]:
    counts = members.sum(1)
    totals = np.where(members, losses, 0).sum(1, dtype=np.float64)
    means: Float[np.ndarray, " sequence"] = np.full(len(losses), math.nan)
    np.divide(totals, counts, out=means, where=counts > 0)
    return means
