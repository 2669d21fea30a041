"""Effects of interventions on predictions, sequence by sequence, with intervals of the paired differences."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.arguments import checked
from sinklens.attention import AttentionEngine, plan_for
from sinklens.errors import InputError
from sinklens.evidence.effects import Answers, Reference, token_losses
from sinklens.interventions import Intervention
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import Ids, TokenBatch, as_batch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.batches import equal_lengths
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.effects.result import Effects
from sinklens.studies.effects.sinks_after import CLEAN, SinkTally

METRICS = {
    "loss": "mean -log p of the next token, in nats, over rows whose next token is real and not the BOS",
    "kl": "mean KL(clean || changed) over the same rows, in nats",
    "top1_agreement": "share of the same rows where the clean model's likeliest token has the highest changed logit",
    "logit_diff": "logit of the right answer minus that of the wrong one at the given row",
    "delta": "changed minus clean, on the same sequence",
}


@checked
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
        **header(model, batch),
        "interventions": [{"name": name, "json": json.loads(each.to_json())} for name, each in interventions.items()],
        "metrics": {name: {"version": 1, "definition": text} for name, text in METRICS.items()},
        "settings": {"batch_size": batch_size, "seed": seed, "answers": answers is not None},
    }
    arrays = {"clean": losses.pop("").numpy()} | {
        f"changed.{i}": losses[name].numpy() for i, name in enumerate(interventions)
    }
    return Effects(meta, {"effects": table, "sinks_after": tally.table([*interventions])}, arrays)


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
