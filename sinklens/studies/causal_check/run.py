"""Does masking a criterion's top heads break retrieval, and plain text, more than masking random heads does?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import AttentionEngine, plan_for
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.controls import DRAWS, all_heads, random_head_sets
from sinklens.interventions import AblateHeads
from sinklens.interventions.head_outputs import mean_outputs
from sinklens.interventions.heads import Head, check_heads, head_name, parse_head
from sinklens.models.architecture import context_length
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, Ids, TokenBatch, tokenize
from sinklens.models.torch_state import usual_torch
from sinklens.passes.batches import equal_lengths
from sinklens.passes.head_sets import head_set_losses
from sinklens.passes.sequences import choose_sequences
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress, Share
from sinklens.studies.causal_check.equal_harm import POOL, RULE, equal_harm, idle_heads
from sinklens.studies.causal_check.patching import RULE as RULE_OF_PATCHING
from sinklens.studies.causal_check.patching import NamedSet, patched_needles
from sinklens.studies.causal_check.result import MEASURES, CausalCheck, with_harm
from sinklens.studies.needles.grid import score_needles
from sinklens.studies.needles.make import make_needles
from sinklens.studies.needles.needle_set import NeedleSet

Way = Literal["zero", "mean", "uniform"]
LENGTH, SIZE = 256, 8
"""Tokens of a usual needle's prompt and of its answer."""

WAYS: tuple[Way, ...] = ("zero", "mean", "uniform")


@dataclass(frozen=True)
class _Set:
    """Heads that are masked together."""

    top: int
    kind: str
    draw: int | None
    heads: tuple[Head, ...]


@checked
@usual_torch()
@torch.no_grad()
def run_causal_check(
    model: AnyModel,
    ranking: Sequence[object],
    *,
    top: Sequence[int] | None = None,
    ways: Sequence[Way] = WAYS,
    needles: NeedleSet | None = None,
    texts: str | Sequence[str] | None = None,
    tokens: TokenBatch | Ids | None = None,
    attention_mask: Any = None,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    max_sequences: int = 20,
    controls: int = DRAWS,
    exclude: Sequence[object] = (),
    batch_size: int = 8,
    patching: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
) -> CausalCheck:
    """Mask the first k heads of a ranking, and random sets of as many others, on needles and on plain text.

    ::

        found = find_roles(model)
        check = run_causal_check(model, found.ranking("retrieval"), top=[4])
        check.summary()

    The three ways of masking differ and stand side by side: ``"zero"`` takes the output away, ``"mean"`` puts the
    head's mean output there, taken over the very needles or texts that are measured, ``"uniform"`` attends evenly (what
    the papers on retrieval heads call masking). None is neutral: a head that rests on its sink writes next to nothing,
    and uniform attention makes it write the average of all values, which can cost more than anything the head did.

    Random sets are disjoint from the tested one, of the same layers as far as those have heads, and drawn from all
    L x H heads but the idle ones and ``exclude``. Beside them stand random sets of equal own harm: those that raise the
    loss on plain text as much as the tested set does under the same mask (see
    :data:`~sinklens.studies.causal_check.equal_harm.RULE`). Where the model has idle heads (``W_O = 0``), as many sets
    are drawn from them alone: the random heads that are harmless by construction, and the only ones of which that is
    known.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        ranking: Heads such as ``"L1H0"``, the first one first.
        top: The sizes k; default: all of the ranking.
        ways: Some of ``"uniform"``, ``"zero"`` and ``"mean"``.
        needles: What to find; default: 30 random-token needles of 256 tokens, or as long as the context allows.
        texts: Plain text; default: the built-in corpus that fits the model.
        tokens: The same as tokens.
        attention_mask: For ids: 1 at real tokens.
        bos: As for :func:`sinklens.tokenize`, for texts.
        max_tokens: Longest text.
        max_sequences: Draw at most this many sequences from all over the texts.
        controls: Random sets for each size, and as many of equal own harm where there are so many; with n of them no p
            below ``1 / (n + 1)`` can come out.
        exclude: Heads that must not be in a random set, such as others believed to matter.
        batch_size: Texts in one forward pass.
        patching: Also patch each set, and random ones of as many heads, between the needles and the same needles with
            another answer, both ways: is it needed, and is it enough.
        seed: Of needles, random sets and bootstrap.
        progress: Told how it goes on, in tokens.

    Raises:
        InputError: No head, a head that the model does not have or that stands twice, a size that the ranking does
            not have, or an unknown way.
        UnsupportedArchitectureError: The model has no attention heads.

    Source: Wu et al. 2025 (arXiv 2404.15574); their random heads could be retrieval heads, their masking is uniform.

    Patching keeps a head at work on another text where masking takes its work away: a head can be needed by one and not
    by the other. :data:`~sinklens.studies.causal_check.patching.RULE` says what is exchanged.

    Cost: for each way and set one pass over the needles and part of one over the texts, and for each of the
    ``5 * controls`` candidates for equal own harm part of one over the texts; with ``patching`` two a set over the
    needles.
    """
    model = as_bridge(model)
    order = _ranking(model, ranking)
    sizes = sorted({len(order)} if top is None else {*top})
    if not sizes or sizes[0] < 1 or sizes[-1] > len(order):
        raise InputError(f"top must be from 1 to {len(order)}, the number of ranked heads; got {sizes}.")
    if not ways or any(way not in WAYS for way in ways):
        raise InputError(f"Heads are masked by some of {', '.join(WAYS)}; got {', '.join(map(str, ways)) or '(none)'}.")
    if controls < 1:
        raise InputError(f"controls must be at least 1, got {controls}; 10 or more make a comparison.")
    needles = _usual_needles(model, seed) if needles is None else needles
    batch, source = choose_sequences(
        model, texts, tokens, bos, max_tokens, True, seed, None, max_sequences, attention_mask
    )
    idle = idle_heads(model)
    pool = [head for head in all_heads(model) if head not in {*idle} - {*order}]
    sets, notes = _sets(order, sizes, pool, idle, controls, seed, exclude)
    candidates = _candidates(order, sizes, pool, controls, seed, exclude)

    unchanged = score_needles(model, needles)
    clean: dict[str, Any] = {name: unchanged[name] for name in ("exact", "log_prob")}
    prompts = tokenize(model, [list(each.ids) for each in needles.instances])
    parts = list(equal_lengths(batch, batch_size))
    frames: list[pd.DataFrame] = []
    n_chosen = len(sets) + len(sizes) * controls
    reading = float(n_chosen * int(prompts.lengths.sum()))
    losing = 0.5 * (len(sets) + len(candidates)) * int(batch.lengths.sum())
    named = [(each.top, each.kind, each.draw, each.heads) for each in sets if each.kind in ("tested", "random")]
    exchanging = 2.0 * len(named) * int(prompts.lengths.sum()) if patching else 0.0
    progress.begin("Masking sets of heads", len(ways) * (losing + reading) + exchanging)
    for way in ways:
        every = [*sets, *candidates]
        on_texts = _masked(model, way, order, every, batch, batch_size)
        clean["loss"], losses = _losses(model, batch, parts, on_texts, every, Share(progress, losing))
        here = Share(progress, reading)
        here.begin(way, n_chosen)
        chosen = sets + _equal(sets, candidates, clean["loss"], losses, controls, seed)
        loss_of = {each.heads: column for each, column in zip(every, losses, strict=True)}
        on_needles = _masked(model, way, order, chosen, prompts, batch_size)
        scored: dict[tuple[Head, ...], pd.DataFrame] = {}
        for each in chosen:
            if each.heads not in scored:
                scored[each.heads] = score_needles(model, needles, _restricted(on_needles, each.heads))
            mine = scored[each.heads]
            values = {"exact": mine["exact"], "log_prob": mine["log_prob"], "loss": loss_of[each.heads]}
            frames += [_rows(way, each, name, column) for name, column in values.items()]
            here.advance()
        here.finish()
    clean = {name: pd.Series(column).reset_index(drop=True).astype(float) for name, column in clean.items()}
    instances = pd.concat(frames, ignore_index=True)
    usual = paired_interval(clean["loss"].to_numpy(), seed=seed)
    meta = {
        **header(model, batch),
        "source": source,
        "needles": dict(needles.meta),
        "ranking": [*map(head_name, order)],
        "idle_heads": {
            "heads": [*map(head_name, idle)],
            "max_logit_change": _logit_change(model, batch, parts, idle, ways) if idle else None,
        },
        "metrics": {name: {"version": 1, "definition": text} for name, (text, _) in MEASURES.items()},
        "settings": {"top": sizes, "ways": list(ways), "controls": controls, "seed": seed},
        "equal_harm": RULE,
        "loss_spread": None if math.isnan(usual.low) else (usual.high - usual.low) / 2,
        "n_needles": len(needles),
        "n_texts": usual.n,
        "warnings": notes + ([batch.unused.sentence(len(batch))] if batch.unused else []),
    }
    tables = {"sets": with_harm(instances, clean, seed), "instances": instances}
    if patching:
        tables["patched"], meta["patching"] = _patched(
            model, needles, named, batch_size, seed, Share(progress, exchanging)
        )
    found = CausalCheck(meta, tables)
    return CausalCheck(meta, found.tables | {"summary": found.summary()})


def _patched(
    model: TransformerBridge, needles: NeedleSet, sets: Sequence[NamedSet], batch_size: int, seed: int, progress: Share
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Each set exchanged both ways, and what that means."""
    table, difference = patched_needles(model, needles, sets, batch_size=batch_size, seed=seed, progress=progress)
    progress.finish()
    return table, {"definition": RULE_OF_PATCHING, "logit_diff": difference}


def _usual_needles(model: TransformerBridge, seed: int) -> NeedleSet:
    length = min(LENGTH, (context_length(model) or LENGTH) - SIZE + 1)
    return make_needles(model, lengths=[length], depths=(0.1, 0.5, 0.9), size=SIZE, seed=seed)


def _ranking(model: TransformerBridge, ranking: Sequence[object]) -> tuple[Head, ...]:
    if plan_for(model).path == "none":
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads to mask.")
    order = tuple(parse_head(head) for head in ranking)
    if not order or len({*order}) < len(order):
        got = ", ".join(map(head_name, order)) or "none"
        raise InputError(f"Expected heads in order, each once and at least one; got {got}.")
    check_heads(model, order)
    return order


def _sets(
    order: Sequence[Head],
    sizes: Sequence[int],
    pool: Sequence[Head],
    idle: Sequence[Head],
    controls: int,
    seed: int,
    exclude: Sequence[object],
) -> tuple[list[_Set], list[str]]:
    found, notes = [], []
    for size in sizes:
        tested = tuple(order[:size])
        drawn = random_head_sets(pool, tested, draws=controls, seed=seed, exclude=exclude)
        found += [_Set(size, "tested", None, tested)]
        found += [_Set(size, "random", number, heads) for number, heads in enumerate(drawn.sets)]
        notes += [f"top {size}: {note}" for note in drawn.notes]
        if idle:
            spare = random_head_sets({*idle, *tested}, tested, draws=controls, seed=seed).sets or (tuple(idle),)
            found += [_Set(size, "idle", number, heads) for number, heads in enumerate(spare)]
            if len(idle) < size:
                notes.append(f"top {size}: there are only {len(idle)} idle heads, masked all together.")
    return found, notes


def _candidates(
    order: Sequence[Head],
    sizes: Sequence[int],
    pool: Sequence[Head],
    controls: int,
    seed: int,
    exclude: Sequence[object],
) -> list[_Set]:
    """Sets of which those of equal own harm are taken; the plain controls of the same seed are among them."""
    found = []
    for size in sizes:
        drawn = random_head_sets(pool, order[:size], draws=POOL * controls, seed=seed, exclude=exclude)
        found += [_Set(size, "matched", number, heads) for number, heads in enumerate(drawn.sets)]
    return found


def _equal(
    sets: Sequence[_Set],
    candidates: Sequence[_Set],
    clean: pd.Series,
    losses: Sequence[pd.Series],
    controls: int,
    seed: int,
) -> list[_Set]:
    """The candidates whose own harm equals that of the tested set of their size."""
    rises = [(column - clean).to_numpy(dtype=float) for column in losses]
    found: list[_Set] = []
    for number, tested in enumerate(sets):
        if tested.kind != "tested":
            continue
        mine = [place for place, each in enumerate(candidates) if each.top == tested.top]
        own = [float(np.nanmean(rises[len(sets) + place])) for place in mine]
        near = equal_harm(paired_interval(rises[number], seed=seed), own, controls)
        found += [candidates[mine[place]] for place in near]
    return found


def _masked(
    model: TransformerBridge, way: Way, order: Sequence[Head], sets: Sequence[_Set], batch: TokenBatch, batch_size: int
) -> AblateHeads:
    """The intervention on every head of any set; mean outputs are over the tokens that are measured."""
    heads = tuple({*order} | {head for each in sets for head in each.heads})
    outputs = mean_outputs(model, batch, heads=heads, batch_size=batch_size) if way == "mean" else None
    return AblateHeads(heads, how=way, outputs=outputs)


def _restricted(masked: AblateHeads, heads: Sequence[Head]) -> AblateHeads:
    return AblateHeads(tuple(heads), how=masked.how, outputs=masked.outputs)


def _losses(
    model: TransformerBridge,
    batch: TokenBatch,
    parts: Sequence[list[int]],
    masked: AblateHeads,
    sets: Sequence[_Set],
    progress: Progress,
) -> tuple[pd.Series, list[pd.Series]]:
    """Mean loss of each text, clean and under each set."""
    clean = torch.full((len(batch),), math.nan, dtype=torch.float64)
    changed = torch.full((len(sets), len(batch)), math.nan, dtype=torch.float64)
    progress.begin("Masking", len(parts))
    for numbers in parts:
        before, after = head_set_losses(model, batch.rows(numbers), masked, [each.heads for each in sets])
        clean[numbers] = before.double().nanmean(-1).cpu()
        changed[:, numbers] = after.double().nanmean(-1).cpu()
        progress.advance()
    return pd.Series(clean.numpy()), [pd.Series(row) for row in changed.numpy()]


def _rows(way: str, each: _Set, measure: str, values: Any) -> pd.DataFrame:
    column = pd.Series(values).reset_index(drop=True).astype(float)
    frame = pd.DataFrame({"instance": range(len(column)), "value": column})
    names = ",".join(map(head_name, each.heads))
    draw = pd.array([each.draw] * len(frame), dtype="Int64")
    columns: dict[str, Any] = {
        "way": way,
        "top": each.top,
        "kind": each.kind,
        "draw": draw,
        "heads": names,
        "measure": measure,
    }
    return frame.assign(**columns)[[*columns, "instance", "value"]]


def _logit_change(
    model: TransformerBridge, batch: TokenBatch, parts: Sequence[list[int]], idle: Sequence[Head], ways: Sequence[Way]
) -> float:
    """Largest change of any logit of the texts when all idle heads are masked, whichever the way."""
    return max(max(_changes(model, batch, parts, idle, way)) for way in ways)


def _changes(
    model: TransformerBridge, batch: TokenBatch, parts: Sequence[list[int]], idle: Sequence[Head], way: Way
) -> Iterator[float]:
    outputs = mean_outputs(model, batch, heads=tuple(idle)) if way == "mean" else None
    masked = AblateHeads(tuple(idle), how=way, outputs=outputs)
    for numbers in parts:
        ids = batch.rows(numbers).ids.to(next(model.parameters()).device)
        with AttentionEngine(model, path=plan_for(model).path):
            logits = model(ids)
        with masked(model):
            yield float((model(ids) - logits).abs().max())
