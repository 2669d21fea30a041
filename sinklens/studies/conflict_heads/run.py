"""Find memory and context heads by their direct effect on two answers, and prune them on other prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.controls import all_heads, random_head_sets
from sinklens.evidence.effects import Answers
from sinklens.interventions import AblateHeads
from sinklens.interventions.head_outputs import mean_outputs
from sinklens.interventions.heads import Head, head_name
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, TokenBatch, to_batch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.batches import equal_lengths
from sinklens.passes.head_sets import run_head_sets
from sinklens.passes.write_pass import measure_writes
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.conflict_heads.result import ConflictHeads
from sinklens.studies.path_patching.passes import Changes, run

CAPITALS = (
    ("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Germany", "Berlin"), ("Japan", "Tokyo"),
    ("Russia", "Moscow"), ("Egypt", "Cairo"), ("China", "Beijing"), ("Greece", "Athens"), ("Austria", "Vienna"),
    ("Cuba", "Havana"), ("Ireland", "Dublin"), ("Portugal", "Lisbon"), ("Poland", "Warsaw"), ("Peru", "Lima"),
    ("Iran", "Tehran"),
)  # fmt: skip
HEAD_COLUMNS = ("name", "layer", "head", "context", "memory", "conflict", "low", "high", "side")
PRUNED_COLUMNS = ("way", "kind", "draw", "heads", "logit_diff", "change", "low", "high", "follows")


@dataclass(frozen=True)
class ConflictPrompt:
    """A prompt that contradicts what the model knows: a text and words, or ids throughout.

    Attributes:
        prompt: Ends where the answer stands.
        context: What the prompt says; its first token counts.
        memory: What the model knows.
        unrelated: A third answer of the same kind.
    """

    prompt: str | Sequence[int]
    context: str | int
    memory: str | int
    unrelated: str | int


def capital_prompts() -> list[ConflictPrompt]:
    """Sixteen prompts such as "The capital of France is Rome. The capital of France is"."""
    found = []
    for number, (country, capital) in enumerate(CAPITALS):
        said, third = (CAPITALS[(number + step) % len(CAPITALS)][1] for step in (5, 9))
        line = f"The capital of {country} is"
        found.append(ConflictPrompt(f"{line} {said}. {line}", f" {said}", f" {capital}", f" {third}"))
    return found


@checked
@usual_torch()
@torch.no_grad()
def find_conflict_heads(
    model: AnyModel,
    prompts: Sequence[ConflictPrompt] | None = None,
    *,
    by: Literal["direct", "path"] = "direct",
    top: int = 5,
    ways: Sequence[str] = ("zero", "mean"),
    controls: int = 10,
    bos: BosChoice = "auto",
    seed: int = 0,
    progress: Progress = SILENT,
) -> ConflictHeads:
    """Score every head by the side it takes where the prompt contradicts the model's memory, and prune each side.

    ``conflict = direct(context's answer) - direct(memory's answer)``, each direct logit attribution less that of an
    unrelated answer, at the last token with the final norm frozen. With ``by="path"`` direct is what the answer loses
    when the head's own path to the logits, and nothing else, carries what the head does in another prompt of the
    same length; so a head that writes the same in every prompt takes no side. Heads are chosen on every other prompt
    and pruned on the rest, so that a choice is not judged by the prompts that made it.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        prompts: At least four; default: sixteen false capitals.
        by: ``"direct"`` (attribution) or ``"path"`` (the paper's: paths patched between prompts).
        top: Heads of each side to prune.
        ways: Of ``"zero"`` (the paper's) and ``"mean"`` (the head's mean output on the prompts).
        controls: Random sets of as many heads, of the same layers as the context heads.
        bos: As for :func:`sinklens.tokenize`.
        seed: Of random sets and intervals.
        progress: Told in sets.

    Raises:
        InputError: Too few prompts, answers that begin alike, or for paths no two prompts of one length.
        UnsupportedArchitectureError: Logits cannot be split into what heads write, or paths not patched exactly.

    Source: after Jin et al. (2024), Cutting Off the Head Ends the Conflict (PH3), arXiv 2402.18154, who find heads by
    patching their paths to the logits.

    Cost: to choose heads four forward passes of the prompts, by paths one for each head; one for each pruned set.
    """
    model = as_bridge(model)
    given = capital_prompts() if prompts is None else list(prompts)
    if len(given) < 4 or top < 1 or controls < 0 or not ways or not set(ways) <= {"zero", "mean"}:
        raise InputError(
            'Expected at least 4 prompts, top from 1, controls from 0 and ways of "zero" and "mean"; got '
            f"{len(given)}, {top}, {controls} and {[*ways]}."
        )
    rows, ids = _prepared(model, given, bos)
    chosen, judged = range(0, len(given), 2), range(1, len(given), 2)
    heads = _scores(WAYS[by](model, rows.rows([*chosen]), ids[[*chosen]]), all_heads(model), seed)
    sets: list[tuple[str, int, tuple[Head, ...]]] = []
    for side, first in (("context", True), ("memory", False)):
        some = heads[heads["side"] == side].sort_values("conflict", ascending=not first, kind="stable").head(top)
        if len(some):
            pairs = zip(some["layer"].tolist(), some["head"].tolist(), strict=True)
            sets.append((side, -1, tuple(sorted((int(a), int(b)) for a, b in pairs))))
    if sets and controls:
        sided = [name for name, side in zip(heads["name"], heads["side"], strict=True) if side]
        free = len(all_heads(model)) - len(set(sided))
        exclude = sided if free >= 2 * len(sets[0][2]) else [head for _, _, some in sets for head in some]
        drawn = random_head_sets(all_heads(model), sets[0][2], draws=controls, seed=seed, exclude=exclude).sets
        sets += [("random", draw, each) for draw, each in enumerate(drawn)]
    test, answers = rows.rows([*judged]), ids[[*judged]]
    where = Answers(test.lengths.cpu() - 1, answers[:, 0], answers[:, 1])
    progress.begin("Pruning heads", len(ways) * len(sets))
    pruned: list[tuple[Any, ...]] = []
    for way in ways if sets else ():
        options: dict[str, Any] = {"outputs": mean_outputs(model, test)} if way == "mean" else {}
        change = AblateHeads("all", how=cast(Any, way), **options)
        found = run_head_sets(model, test, change, [each for _, _, each in sets], answers=where)
        clean = found.clean["logit_diff"].double().cpu().numpy()
        for (kind, draw, each), values in zip(sets, found.changed["logit_diff"].double().cpu().numpy(), strict=True):
            moved = paired_interval(values - clean, seed=seed)
            names = ", ".join(map(head_name, each))
            follows = float((values > 0).mean())
            pruned.append((way, kind, draw, names, float(values.mean()), moved.value, moved.low, moved.high, follows))
        progress.advance(len(sets))
    if not pruned:  # no head takes a side
        logits = model(test.ids.to(next(model.parameters()).device))[torch.arange(len(test)), where.position]
        both = logits.float().cpu().gather(-1, answers[:, :2]).double().numpy()
        clean = both[:, 0] - both[:, 1]
    meta = header(
        model,
        rows,
        "false capitals" if prompts is None else "conflict prompts",
        settings={"by": by, "top": top, "ways": [*ways], "controls": controls, "seed": seed},
        clean={"logit_diff": float(clean.mean()), "follows": float((clean > 0).mean())},
    )
    return ConflictHeads(meta, {"heads": heads, "pruned": pd.DataFrame(pruned, columns=[*PRUNED_COLUMNS])})


def _prepared(
    model: TransformerBridge, prompts: Sequence[ConflictPrompt], bos: BosChoice
) -> tuple[TokenBatch, torch.Tensor]:
    """The prompts, and the ids of their answers ``[prompt 3]``: context, memory, unrelated."""

    def first(answer: str | int) -> int:
        return answer if isinstance(answer, int) else int(to_batch(model, answer, bos="no").ids[0, 0])

    ids = torch.tensor([[first(each) for each in (p.context, p.memory, p.unrelated)] for p in prompts])
    alike = [number for number, each in enumerate(ids.tolist()) if len(set(each)) < 3]
    if alike:
        raise InputError(
            f"The answers of prompt {alike[0]} begin with the same token, so they cannot be told apart; give others."
        )
    given: list[Any] = [each.prompt for each in prompts]
    return to_batch(model, given, bos=bos), ids


def _attributed(model: TransformerBridge, batch: TokenBatch, ids: torch.Tensor) -> np.ndarray:
    """What each head writes for context's and memory's answer over the unrelated one, ``[2 prompt layer head]``."""
    values = np.full((2, len(batch), len(model.blocks), int(model.cfg.n_heads)), np.nan)
    for indices in equal_lengths(batch, 8):
        rows = batch.rows(indices)
        for number in range(2):
            answers = Answers(rows.lengths.cpu() - 1, ids[indices, number], ids[indices, 2])
            found = measure_writes(model, rows, answers=answers)
            if not found.logits:
                why = "; ".join(found.problems) or "Logits cannot be split into heads."
                raise UnsupportedArchitectureError(f'{why} Choose heads by="path" (--by path), which splits nothing.')
            for layer, each in found.logits.items():
                values[number, indices, layer] = each.cpu().numpy()
    return values


def _patched(model: TransformerBridge, batch: TokenBatch, ids: torch.Tensor) -> np.ndarray:
    """What both answers lose when a head's direct path carries another prompt; prompts alone of their length: NaN."""
    values = np.full((2, len(batch), len(model.blocks), int(model.cfg.n_heads)), np.nan)
    for indices in equal_lengths(batch, len(batch)):
        if len(indices) < 2:
            continue
        some = batch.rows(indices)
        rows, answers = some.ids[:, : int(some.lengths[0])], ids[indices]
        before = run(model, rows)
        for layer, head in all_heads(model):
            other = before.z[layer][:, head].roll(1, 0)
            sent = run(model, rows, Changes(z={(layer, head): other}, frozen=before, mlp=before))
            lost = (before.logits - sent.logits).cpu().gather(-1, answers)
            values[:, indices, layer, head] = (lost[:, :2] - lost[:, 2:]).T.numpy()
    if np.isnan(values).all():
        raise InputError("Paths are patched between prompts of one length in tokens; no two prompts have the same.")
    return values


WAYS: dict[str, Callable[[TransformerBridge, TokenBatch, torch.Tensor], np.ndarray]] = {
    "direct": _attributed,
    "path": _patched,
}


def _scores(values: np.ndarray, heads: Sequence[Head], seed: int) -> pd.DataFrame:
    """One row per head."""
    table = []
    for layer, head in heads:
        context, memory = values[:, :, layer, head]
        gap = paired_interval(context - memory, seed=seed)
        means = float(np.nanmean(context)), float(np.nanmean(memory))
        side = ""
        if gap.low > 0 and means[0] > 0 > means[1]:
            side = "context"
        if gap.high < 0 and means[1] > 0 > means[0]:
            side = "memory"
        table.append((head_name((layer, head)), layer, head, *means, gap.value, gap.low, gap.high, side))
    return pd.DataFrame(table, columns=[*HEAD_COLUMNS])
