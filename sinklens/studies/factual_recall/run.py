"""Find the heads that bring a fact's topic to the last token, and the late layer that holds its answer down."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.errors import InputError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.controls import all_heads, random_head_sets
from sinklens.evidence.effects import Answers
from sinklens.interventions import AblateHeads, mean_outputs
from sinklens.interventions.heads import Head, head_name
from sinklens.models.architecture import attention_layers
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.head_sets import run_head_sets
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.factual_recall.facts import LEAST, Fact, capitals, prepared
from sinklens.studies.factual_recall.passes import Written, every_head, read_writes, without_layer
from sinklens.studies.factual_recall.result import (
    HEAD_COLUMNS,
    LAYER_COLUMNS,
    PRUNED_COLUMNS,
    SDS,
    FactualRecall,
    late_from,
)

SHUFFLES = 200


@checked
@usual_torch()
@torch.no_grad()
def trace_recall(
    model: AnyModel,
    facts: Sequence[Fact] | None = None,
    *,
    top: int = 5,
    controls: int = 10,
    bos: BosChoice = "auto",
    seed: int = 0,
    progress: Progress = SILENT,
) -> FactualRecall:
    """Trace how a model recalls facts: who brings the topic, what it is worth, and who holds the answer down.

    ::

        found = trace_recall("model.gguf")
        found.heads, found.layers

    A head's *topic score* is the logit lens of its write at the last token: ``z W_O N (u_topic - mean of the other
    facts' u)``, N the final norm frozen there. Its null exchanges topics between prompts. A layer's write is read the
    same way towards the right answer and the other facts' answers: a late layer that takes from the right one is the
    anti-overconfidence that the paper sees in the last layers. Heads and layer are chosen on every other fact that the
    model knows and judged on the rest: the heads put to their mean output beside random ones, the layer left out at
    the last token beside the other late layers.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        facts: Facts of one kind, whose topics and answers begin with different tokens; default: 32 capitals (those
            that begin alike in this vocabulary are left out). Those that the model does not know are left out;
            at least 10 must remain.
        top: Topic heads to take away.
        controls: Random sets of as many heads of the same layers.
        bos: As for :func:`sinklens.tokenize`.
        seed: Of exchanged topics, random sets and intervals.
        progress: Told in layers.

    Raises:
        InputError: Too few facts or known ones, or topics or answers that begin alike.
        UnsupportedArchitectureError: No attention, or a final norm that is not linear once its scale is frozen.

    Source: after Lv et al. (2024), Interpreting Key Mechanisms of Factual Recall in Transformer-Based Language Models,
    arXiv 2403.19521. Their regression of what MLPs write on what heads write is not here.

    Cost: one forward pass of the facts, one for each layer, and the passes of the sets of heads.
    """
    model = as_bridge(model)
    if top < 1 or controls < 0:
        raise InputError(f"Expected top from 1 and controls from 0, got {top} and {controls}.")
    given = capitals() if facts is None else list(facts)
    rows, ids = prepared(model, given, bos, alike=facts is None)
    known = read_writes(model, rows, ids[:, 1]).logits.argmax(-1) == torch.arange(len(ids))
    kept = known.nonzero().flatten().tolist()
    if len(kept) < LEAST:
        raise InputError(f"The model knows {len(kept)} of {len(ids)} facts; at least {LEAST} are needed.")
    rows, ids = rows.rows(kept), ids[kept]
    choose, judge = [*range(0, len(kept), 2)], [*range(1, len(kept), 2)]
    n_layers = len(model.blocks)
    progress.begin("Tracing facts", n_layers + 1)
    found = read_writes(model, rows, torch.cat((ids[:, 0], ids[:, 1])))
    progress.advance(1)
    heads = _heads(model, found, len(kept), choose, top, seed)
    pruned, difference = _prune(model, heads, rows.rows(judge), ids[judge, 1], controls, seed)
    test = rows.rows(judge)
    base = without_layer(model, test, -1, ids[judge, 1])
    layers = []
    for layer in range(n_layers):
        skipped = (without_layer(model, test, layer, ids[judge, 1]) - base).double().numpy()
        layers.append((layer, *_layer(found, layer, len(kept), choose, judge, seed), *_ends(skipped, seed)))
        progress.advance(1)
    table = pd.DataFrame(layers, columns=[*LAYER_COLUMNS])
    late = table[table["layer"] >= late_from(n_layers)]
    lowest = int(late["layer"].iloc[int(late["choosing"].argmin())])
    clean = {"given": len(given), "known": len(kept), "judged": len(judge), "logit_diff": difference}
    meta = header(
        model,
        rows,
        "capitals" if facts is None else "facts",
        settings={"top": top, "controls": controls, "seed": seed},
        clean=clean | {"log_prob": float(base.mean())},
        suppressor=lowest if late["choosing"].min() < 0 else None,
        warnings=found.problems,
    )
    return FactualRecall(meta, {"layers": table, "heads": heads, "pruned": pruned})


def over_rivals(logits: Float[Tensor, "batch ... token"]) -> Float[Tensor, "batch ..."]:
    """What each prompt's own token gets over the mean of the other prompts' tokens.

    >>> over_rivals(torch.tensor([[3.0, 1.0, 0.0], [1.0, 5.0, 1.0], [0.0, 0.0, 2.0]])).tolist()
    [2.5, 4.0, 2.0]
    """
    return exchanged(logits, torch.arange(len(logits)))


def exchanged(logits: Float[Tensor, "batch ... token"], order: Tensor) -> Float[Tensor, "batch ..."]:
    """The same where prompt p is given the token of prompt ``order[p]``."""
    own = logits[torch.arange(len(logits)), ..., order]
    return own - (logits.sum(-1) - own) / (len(logits) - 1)


def _heads(model: TransformerBridge, found: Written, n: int, choose: list[int], top: int, seed: int) -> pd.DataFrame:
    """Topic scores on the facts that choose; the other topics are those of these facts too."""
    every = every_head(model, found)
    if every is None:
        return pd.DataFrame(columns=[*HEAD_COLUMNS])
    place = torch.tensor(choose)
    topics, answers = every[place][..., place].double(), every[place][..., place + n].double()
    own, answer = over_rivals(topics).numpy(), over_rivals(answers).mean(0).numpy()
    draw = np.random.default_rng(seed)
    shuffled = np.stack([exchanged(topics, _derangement(draw, len(choose))).mean(0).numpy() for _ in range(SHUFFLES)])
    rows = []
    for at, layer in enumerate(sorted(attention_layers(model))):
        for head in range(every.shape[2]):
            score = paired_interval(own[:, at, head], seed=seed)
            null = shuffled[:, at, head]
            sds = (score.value - null.mean()) / null.std(ddof=1) if null.std() > 0 else 0.0
            about = (head_name((layer, head)), layer, head, score.value, score.low, score.high, float(null.mean()))
            rows.append((*about, float(sds), float(answer[at, head]), sds >= SDS and not score.low <= 0, False))
    table = pd.DataFrame(rows, columns=[*HEAD_COLUMNS])
    best = table[table["is_topic"]].sort_values("topic", ascending=False, kind="stable").index[:top]
    table["chosen"] = table.index.isin(best)
    return table


def _derangement(draw: np.random.Generator, n: int) -> Tensor:
    """An order in which no prompt keeps its own topic."""
    while True:
        order = draw.permutation(n)
        if not (order == np.arange(n)).any():
            return torch.from_numpy(order)


def _prune(
    model: TransformerBridge, heads: pd.DataFrame, test: TokenBatch, answers: Tensor, controls: int, seed: int
) -> tuple[pd.DataFrame, float]:
    """The chosen heads and random ones at their mean output; and the unchanged logit difference."""
    chosen = heads[heads["chosen"].astype(bool)] if len(heads) else heads
    where = Answers(test.lengths.cpu() - 1, answers, answers.roll(-1))
    pairs = tuple((int(a), int(b)) for a, b in chosen[["layer", "head"]].itertuples(index=False))
    sets: list[tuple[str, int, tuple[Head, ...]]] = [("topic", -1, tuple(sorted(pairs)))] if pairs else []
    if pairs and controls:
        others = heads.loc[heads["is_topic"], "name"].tolist()
        free = len(heads) - len(others)
        drawn = random_head_sets(
            all_heads(model), pairs, draws=controls, seed=seed, exclude=others if free > 2 * len(pairs) else ()
        )
        sets += [("random", draw, each) for draw, each in enumerate(drawn.sets)]
    rows = torch.arange(len(test))
    logits = model(test.ids.to(next(model.parameters()).device))[rows, where.position].float().cpu()
    clean = (logits[rows, where.correct] - logits[rows, where.wrong]).double().numpy()
    table: list[tuple[Any, ...]] = []
    if sets:
        change = AblateHeads("all", "mean", mean_outputs(model, test))
        measured = run_head_sets(model, test, change, [each for _, _, each in sets], answers=where)
        for (kind, draw, each), after in zip(sets, measured.changed["logit_diff"].double().cpu().numpy(), strict=True):
            names = ", ".join(map(head_name, each))
            table.append((kind, draw, names, float(after.mean()), *_ends(after - clean, seed)))
    return pd.DataFrame(table, columns=[*PRUNED_COLUMNS]), float(clean.mean())


def _layer(found: Written, layer: int, n: int, choose: list[int], judge: list[int], seed: int) -> tuple[float, ...]:
    """A layer's columns up to ``lens``."""
    own = torch.arange(n)
    total = found.total[layer][:, n:].double()
    right, gain = total[own, own], over_rivals(total)
    rivals = right - gain
    mean = found.total_mean[layer].double()
    gap = paired_interval(gain[judge].numpy(), seed=seed)
    heads = found.attention.get(layer)
    attention = math.nan if heads is None else float(over_rivals(heads[:, n:].double())[judge].mean())
    lens = float(found.lens[layer][own, n + own][judge].double().mean())
    answer, others = (float((each - mean)[judge].mean()) for each in (right, rivals))
    parts = (float(gain[choose].mean()), answer, others, gap.value, gap.low, gap.high)
    return (*parts, attention, gap.value - attention, lens)


def _ends(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    moved = paired_interval(values, seed=seed)
    return moved.value, moved.low, moved.high
