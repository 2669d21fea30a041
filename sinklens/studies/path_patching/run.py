"""Patch the paths between heads, and sets of heads both ways."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.errors import InputError
from sinklens.evidence.controls import all_heads, random_head_sets
from sinklens.interventions.heads import Head, check_heads, head_name, parse_heads
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import Ids, TokenBatch, as_batch
from sinklens.models.torch_state import usual_torch
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.path_patching.passes import Changes, Recorded, run
from sinklens.studies.path_patching.receiver import LOGITS, Receiver, receiver_parts
from sinklens.studies.path_patching.result import PatchedPaths
from sinklens.studies.path_patching.sets import Scale, patch_sets

PATH_COLUMNS = ("sender", "layer", "head", "receiver", "effect", "low", "high")
SET_COLUMNS = (
    "kind", "draw", "heads", "necessity", "necessity_low", "necessity_high", "sufficiency", "sufficiency_low",
    "sufficiency_high",
)  # fmt: skip


@checked
@usual_torch()
@torch.no_grad()
def patch_paths(
    model: AnyModel,
    clean: TokenBatch | Ids,
    corrupted: TokenBatch | Ids,
    correct: Sequence[int],
    wrong: Sequence[int],
    *,
    receivers: Sequence[str] = (LOGITS,),
    senders: Sequence[object] | None = None,
    heads: Sequence[object] | None = None,
    controls: int = 10,
    freeze_mlps: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
) -> PatchedPaths:
    """How much of what tells two prompts apart each head hands to a receiver directly, all other heads held fixed.

    ::

        found = patch_paths(model, clean, corrupted, correct, wrong, receivers=["L1H3.k"], heads=["L0H2", "L1H3"])
        found.paths, found.sets

    For each sender the clean prompt runs with every head held at its clean output and the sender at its corrupted one;
    what then arrives at the receiver (its queries, keys or values, or the logits) is put into another clean pass, in
    which everything after it is computed. ``effect = (LD - LD_clean) / (LD_corrupted - LD_clean)``, LD the logit
    difference of the right and the wrong token at the last position.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        clean: Prompts of one length.
        corrupted: As many of the same length.
        correct: Id of the right next token of each clean prompt.
        wrong: Of a wrong one.
        receivers: ``"L5H1.q"``, ``.k`` or ``.v`` (of its KV head: all query heads that share it receive it), or
            ``"logits"``: the direct path to the end.
        senders: Heads; default: all before a receiver.
        heads: A set to patch as a whole, both ways, beside random sets: is it needed, is it enough.
        controls: Random sets of as many heads of the same layers.
        freeze_mlps: Hold the MLPs as well. Otherwise a path may go through them.
        seed: Of random sets and intervals.
        progress: Told in forward passes.

    Raises:
        InputError: Prompts that do not match, ids outside the vocabulary, or a head that does not exist.
        UnsupportedArchitectureError: The inputs of heads cannot be exchanged exactly.

    Source: Merullo, Eickhoff, Pavlick (ICLR 2024), arXiv 2310.08744, whose code patches the last position alone; here
    all positions are patched.

    Cost: for each sender one forward pass and one more for each receiver after it; memory of all head outputs twice.
    """
    model = as_bridge(model)
    ids, other, answers = _prompts(model, clean, corrupted, correct, wrong)
    if not receivers:
        raise InputError('Expected at least one receiver, such as "L5H1.q" or "logits", got none.')
    received = [_receiver(model, each) for each in receivers]
    last = max((LAST if each is None else each[0] for each in received), default=-1)
    chosen = [head for head in _named(model, senders) if head[0] < last]
    sets: list[tuple[str, int, tuple[Head, ...]]] = []
    if heads is not None:
        tested = _named(model, heads)
        drawn = random_head_sets(all_heads(model), tested, draws=controls, seed=seed).sets if controls else ()
        sets = [("tested", -1, tested), *(("random", draw, each) for draw, each in enumerate(drawn))]
    progress.begin("Patching paths", 2 + len(chosen) + 2 * len(sets))
    watched = {each[0] for each in received if each is not None}
    before = run(model, ids, watched=watched)
    after = run(model, other)
    progress.advance(2)
    start, end = answers(before), answers(after)
    scale = Scale(start, end, seed)
    rows: list[tuple[Any, ...]] = []
    for head in chosen:
        rows += _send(
            model, ids, head, [*zip(receivers, received, strict=True)], before, after, freeze_mlps, answers, scale
        )
        progress.advance(1)
    patched = []
    changes = patch_sets(model, ids, other, before, after, [some for _, _, some in sets], answers, progress)
    for (kind, draw, some), lost, kept in zip(sets, *changes, strict=True):
        patched.append((kind, draw, ", ".join(map(head_name, some)), *scale.share(lost), *scale.share(kept)))
    settings = {"receivers": [*receivers], "controls": controls, "freeze_mlps": freeze_mlps, "seed": seed}
    meta = header(
        model,
        as_batch(model, clean),
        "clean prompts",
        settings=settings,
        logit_diff={"clean": float(start.mean()), "corrupted": float(end.mean())},
    )
    paths = pd.DataFrame(rows, columns=[*PATH_COLUMNS])
    order = paths["effect"].abs().sort_values(ascending=False, kind="stable").index
    tables = {"paths": paths.loc[order].reset_index(drop=True), "sets": pd.DataFrame(patched, columns=[*SET_COLUMNS])}
    return PatchedPaths(meta, tables)


LAST = 1 << 30


def _send(
    model: TransformerBridge,
    ids: Tensor,
    sender: Head,
    receivers: Sequence[tuple[str, Receiver | None]],
    before: Recorded,
    after: Recorded,
    freeze_mlps: bool,
    answers: Any,
    scale: Scale,
) -> list[tuple[Any, ...]]:
    """The effects of one sender on the receivers after it."""
    mine = [(name, each) for name, each in receivers if each is None or each[0] > sender[0]]
    z = {sender: after.z[sender[0]][:, sender[1]]}
    watched = {each[0] for _, each in mine if each is not None}
    sent = run(model, ids, Changes(z=z, frozen=before, mlp=before if freeze_mlps else None), watched=watched)
    start = answers(before)
    rows = []
    for name, each in mine:
        got = sent if each is None else run(model, ids, Changes(inputs=sent, receivers=(each,)))
        rows.append((head_name(sender), *sender, name, *scale.share(answers(got) - start)))
    return rows


def _named(model: TransformerBridge, heads: Sequence[object] | None) -> tuple[Head, ...]:
    """Heads of the model that were asked for, all by default."""
    chosen = "all" if heads is None else parse_heads(heads)
    if isinstance(chosen, str):
        return all_heads(model)
    check_heads(model, chosen)
    return chosen


def _prompts(
    model: TransformerBridge,
    clean: TokenBatch | Ids,
    corrupted: TokenBatch | Ids,
    correct: Sequence[int],
    wrong: Sequence[int],
) -> tuple[Tensor, Tensor, Any]:
    first, second = as_batch(model, clean), as_batch(model, corrupted)
    lengths = {*first.lengths.tolist(), *second.lengths.tolist()}
    right, false = torch.tensor([*correct], dtype=torch.long), torch.tensor([*wrong], dtype=torch.long)
    if first.ids.shape != second.ids.shape or len(lengths) != 1 or not len(right) == len(false) == len(first):
        raise InputError(
            f"Expected as many clean as corrupted prompts, all of one length, with a right and a wrong id each; got "
            f"{len(first)} and {len(second)} of {sorted(lengths)} tokens, {len(right)} and {len(false)} ids."
        )
    both = torch.cat((right, false))
    if int(both.min()) < 0 or int(both.max()) >= int(model.cfg.d_vocab):
        raise InputError(
            f"Answer ids must be from 0 to {int(model.cfg.d_vocab) - 1}, got {int(both.min())} to {int(both.max())}."
        )

    def answers(found: Recorded) -> Tensor:
        logits = found.logits.cpu()
        return (logits.gather(-1, right[:, None]) - logits.gather(-1, false[:, None]))[:, 0]

    return first.ids, second.ids, answers


def _receiver(model: TransformerBridge, name: str) -> Receiver | None:
    received = receiver_parts(name)
    if received is not None:
        check_heads(model, (received[:2],))
    return received
