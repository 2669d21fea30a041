"""Which heads are at work on one domain or token class and dormant on another: mass, norms and zero-out ablation."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import plan_for
from sinklens.detectors.active_dormant import (
    ABLATION,
    CRITERIA,
    GROUP,
    HEAD,
    MASS,
    OUTPUT_NORM,
    ActiveDormantDetector,
    agreement,
    head_label,
    state_by_ablation,
    state_by_mass,
    state_by_norm,
)
from sinklens.detectors.dormancy import THRESHOLDS, Thresholds
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.contrasts import contrasts
from sinklens.evidence.effects import predicted_rows
from sinklens.interventions import AblateHeads
from sinklens.interventions.heads import Head
from sinklens.models.architecture import attention_layers
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.rope import forward_passes
from sinklens.models.tokens import BosChoice, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.head_sets import head_set_losses
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress, Share
from sinklens.studies.ablation.layout import choose_layout
from sinklens.studies.active_dormant.result import ActiveDormant, evidence
from sinklens.studies.census.builtin_domains import builtin_domains
from sinklens.studies.census.domains import Domains, DomainTexts, by_domain_of, choose_domains


@checked
@usual_torch()
@torch.no_grad()
def find_active_dormant(
    model: AnyModel,
    texts: DomainTexts | str | Sequence[str] | None = None,
    *,
    classes: Mapping[str, Collection[int]] | None = None,
    sink: Sequence[int] = (0,),
    thresholds: Thresholds = THRESHOLDS,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    split: bool = True,
    max_sequences: int | None = 100,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> ActiveDormant:
    """Judge every head on every domain and token class by sink mass, output norm and zero-out ablation.

    ::

        found = find_active_dormant(model, {"prose": prose, "code": code}, max_tokens=64)
        print(found.verdict[0])

    All three are measured on the same queries: those that predict a token, position 0 left out.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        texts: Texts by domain (or tokens); one or several texts make the domain ``"text"``. Default: built-in prose
            and code, or a built-in model's own task.
        classes: Token ids by class, such as ``{"trigger": task.trigger_ids}``; queries whose token is in none are
            ``"other"``. Default: one class, ``"all"``.
        sink: Positions of the sink.
        thresholds: Where the criteria draw their lines.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest sequence; default: the model's context (64 for the built-in corpus).
        split: Cut long texts into sequences of ``max_tokens``.
        max_sequences: Draw at most this many sequences of each domain from all over its texts.
        batch_size: Sequences in one clean pass; default: what fits the memory.
        seed: Of corpus and bootstrap.
        progress: Told how it goes on, in sequences.

    Raises:
        InputError: Texts that cannot be used, a class without a name or in two classes at once, or no such position.
        UnsupportedArchitectureError: The model has no attention heads.

    Source: Guo et al. 2024, arXiv 2410.13835, with intervals and two further criteria added.

    Cost: one forward pass over everything, which is looked at and gone on from, and for every head what lies behind it,
    on average somewhat more than half a forward pass.
    """
    model = as_bridge(model)
    if not attention_layers(model) or plan_for(model).path == "none":
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads to judge.")
    named = _check_classes(classes)
    domains = _domains(model, texts, bos, max_tokens, split, max_sequences, seed)
    shortest = int(domains.batch.lengths.min())
    if not sink or min(sink) < 0 or max(sink) >= shortest:
        raise InputError(
            f"sink must be positions that every sequence has, from 0 to {shortest - 1} here; got "
            f"{', '.join(map(str, sink)) or 'none'}."
        )
    heads = [(layer, head) for layer in attention_layers(model) for head in range(int(model.cfg.n_heads))]
    rows = partial(_query_classes, named=named)
    length = int(domains.batch.lengths.max())
    layout = choose_layout(model, len(domains.batch), length, batch_size=batch_size)
    detector, losses = ActiveDormantDetector(), []
    progress.begin(
        "Ablating heads",
        len(domains.batch),
        f"{len(heads) * len(domains.batch):,} ablations: every head by itself on every sequence.",
    )
    for name in domains.names:
        index = [number for number, of in enumerate(domains.of) if of == name]
        here = ActiveDormantDetector(name, rows, tuple(sink))
        for chosen in forward_passes(model, domains.batch.rows(index), layout.chunk):
            numbers = index[chosen]
            part = domains.batch.rows(numbers)
            share = Share(progress, len(part))
            losses.append(_losses(model, part, name, numbers, heads, rows(part), layout.rows, here, share))
            share.finish()
        detector.merge(here)
    activity = detector.tables()
    keys = [*HEAD, *GROUP, "sequence"]
    by_sequence = activity["active_dormant_sequences"].merge(pd.concat(losses, ignore_index=True), on=keys)
    table = activity["active_dormant"].merge(_effects(by_sequence, seed), on=[*HEAD, *GROUP])
    table["effect_bound"] = table["domain"].map(effect_bounds(by_sequence, thresholds))
    table = _label(table, thresholds)
    ranks = {name: rank for rank, name in enumerate([*domains.names, *named, "other", "all"])}  # as they were given
    table = table.sort_values(
        [*HEAD, *GROUP], key=lambda column: column.map(lambda name: ranks.get(name, name)), ignore_index=True
    )
    meta = {
        **header(model, domains.batch),
        "source": domains.source,
        "domains": domains.facts(),
        "classes": {name: sorted(int(token) for token in ids) for name, ids in named.items()},
        "warnings": domains.notes(),
        "metrics": {metric.name: metric.as_dict() for metric in (MASS, OUTPUT_NORM, ABLATION)},
        "settings": {"sink": list(sink), "thresholds": asdict(thresholds), "max_tokens": max_tokens, "seed": seed},
    }
    tables = {
        "heads": table,
        "contrasts": contrasts(table, by_sequence, seed),
        "agreement": agreement(table, [f"by_{name}" for name in CRITERIA]),
        "by_sequence": by_sequence,
    }
    return ActiveDormant(meta, tables)


def _domains(
    model: TransformerBridge,
    texts: DomainTexts | str | Sequence[str] | None,
    bos: BosChoice,
    max_tokens: int | None,
    split: bool,
    max_sequences: int | None,
    seed: int,
) -> Domains:
    if texts is None:
        return builtin_domains(model, bos=bos, length=max_tokens, n_sequences=max_sequences or 100, seed=seed)
    limits: dict[str, Any] = {"max_tokens": max_tokens, "split": split, "max_sequences": max_sequences, "seed": seed}
    return choose_domains(model, by_domain_of(texts), bos=bos, **limits)


def _check_classes(classes: Mapping[str, Collection[int]] | None) -> dict[str, Collection[int]]:
    named = dict(classes or {})
    listed = [int(token) for ids in named.values() for token in ids]
    if not all(named) or "other" in named or not all(len(ids) for ids in named.values()):
        raise InputError('Every class needs a name, not "other", and at least one token id.')
    if len(set(listed)) < len(listed):
        raise InputError("A token id is in two classes, or twice in one; each may be in one only.")
    return named


def _query_classes(batch: TokenBatch, named: Mapping[str, Collection[int]]) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Queries of each class that predict a token; position 0, which can only attend to itself, left out."""
    counted = predicted_rows(batch)
    counted[:, 0] = False
    if not named:
        return {"all": counted}
    rows = {name: counted & torch.isin(batch.ids, torch.tensor([*ids])) for name, ids in named.items()}
    return rows | {"other": counted & ~torch.stack([*rows.values()]).any(0)}


def _losses(
    model: TransformerBridge,
    batch: TokenBatch,
    domain: str,
    numbers: Sequence[int],
    heads: Sequence[Head],
    classes: Mapping[str, Bool[Tensor, "batch pos"]],
    max_rows: int,
    detector: ActiveDormantDetector,
    progress: Progress,
) -> pd.DataFrame:
    """Clean loss and its rise without each head, by class and sequence; the detector looks at the clean pass."""
    zeroed, sets = AblateHeads(tuple(heads), how="zero"), [[head] for head in heads]
    looking: dict[str, Any] = {"consumers": [detector], "first_sequence": numbers[0]}
    clean, changed = head_set_losses(model, batch, zeroed, sets, max_rows=max_rows, progress=progress, **looking)
    frames = []
    for name, rows in classes.items():
        before, after = _means(clean[None], rows)[0], _means(changed, rows)
        for head, each in zip(heads, after, strict=True):
            frame = pd.DataFrame({"layer": head[0], "head": head[1], "domain": domain, "class": name}, index=[*numbers])
            frames.append(frame.assign(sequence=numbers, clean_loss=before, delta=each - before))
    found = pd.concat(frames, ignore_index=True)
    return found[found["clean_loss"].notna()]


def _means(losses: Float[Tensor, "set batch pos"], rows: Bool[Tensor, "batch pos"]) -> Float[np.ndarray, "set batch"]:
    rows = rows.to(losses.device)
    total = torch.where(rows, losses.double(), 0).sum(-1)
    means: Float[np.ndarray, "set batch"] = (total / rows.sum(-1)).cpu().numpy()  # NaN for a sequence without any
    return means


def _effects(by_sequence: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean rise of the loss with its interval, by head and group."""
    rows = []
    for key, group in by_sequence.groupby([*HEAD, *GROUP], sort=False):
        interval = paired_interval(group["delta"].to_numpy(), seed=seed)
        rows.append((*key, group["clean_loss"].mean(), interval.value, interval.low, interval.high))
    table = pd.DataFrame(rows, columns=[*HEAD, *GROUP, "clean_loss", "delta", "delta_low", "delta_high"])
    layer = table.groupby(["layer", *GROUP])["delta"]
    others = (layer.transform("size") - 1).where(lambda count: count > 0)
    return table.assign(delta_layer=(layer.transform("sum") - table["delta"]) / others)


def effect_bounds(by_sequence: pd.DataFrame, thresholds: Thresholds) -> dict[str, float]:
    """The effect that matters in each domain, in nats: as given, or a share of how much its sequences differ.

    The spread is the standard deviation (n - 1) over the domain's sequences of the clean loss on all judged queries,
    whatever their class; NaN with one sequence, where nothing is judged.
    """
    found = {}
    for domain, rows in by_sequence.groupby("domain", sort=False):
        one_head = rows[(rows["layer"] == rows["layer"].iloc[0]) & (rows["head"] == rows["head"].iloc[0])]
        total = (one_head["clean_loss"] * one_head["n_queries"]).groupby(one_head["sequence"]).sum()
        losses = total / one_head.groupby("sequence")["n_queries"].sum()
        found[str(domain)] = thresholds.effect or float(losses.std()) * thresholds.spread
    return found


def _label(table: pd.DataFrame, thresholds: Thresholds) -> pd.DataFrame:
    rows: list[Any] = list(table.itertuples())
    table["by_mass"] = [state_by_mass(row.mass, row.null, thresholds) for row in rows]
    table["by_norm"] = [state_by_norm(row.norm_ratio, thresholds) for row in rows]
    table["by_own_norm"] = [state_by_norm(row.own_ratio, thresholds) for row in rows]
    table["by_ablation"] = [state_by_ablation(row.delta_low, row.delta_high, row.effect_bound) for row in rows]
    states = zip(table["by_mass"], table["by_ablation"], strict=True)
    table["label"] = [head_label(_known(mass), _known(ablation)) for mass, ablation in states]
    table["evidence"] = [evidence(row) for row in rows]
    return table


def _known(state: Any) -> Any:
    return state if isinstance(state, str) else None  # pandas turns None into NaN in a column of texts
