"""Put tokens into texts and see whether they take over the sink, beside as many random ordinary tokens."""

import math
import random
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.detectors.sinks import EPS
from sinklens.errors import InputError
from sinklens.interventions.heads import head_name
from sinklens.models.architecture import context_length
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.batches import equal_lengths
from sinklens.passes.sequences import choose_sequences
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.injection.passes import PAUSE, Injected, Place, Seen, insert, look, parse_token
from sinklens.studies.injection.result import HEAD_COLUMNS, RUN_COLUMNS, Injection

PLACES = ("start", "second", "middle", "end")
LEAST = 4


@checked
@usual_torch()
@torch.no_grad()
def inject_tokens(
    model: AnyModel,
    texts: str | Sequence[str] | None = None,
    *,
    token: str | int = PAUSE,
    places: Sequence[str | int] = PLACES,
    counts: Sequence[int] = (1,),
    draws: int = 3,
    tokens: TokenBatch | Ids | None = None,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    max_sequences: int = 16,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Injection:
    """Put a token into texts and see whether it becomes the sink, beside as many random ordinary tokens in its place.

    ::

        found = inject_tokens("tiny-llama", token="[PAUSE]", places=["start", "middle"], counts=[1, 4])
        found.verdict

    Measured on the original tokens behind the place but the next one (which the inserted token itself predicts):
    how much attention they give to the inserted tokens and to the first original token, in all heads and in those
    that rest on the first token when nothing is inserted, and their loss. Of the inserted tokens: the size of
    their values and their largest entry in the residual stream.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        texts: One or several texts; default: the built-in corpus that fits the model.
        token: Text of one token, an id, or ``"[PAUSE]"``: where the vocabulary has none, a new token that nothing was
            trained on, whose embedding is the mean of the ordinary ones.
        places: ``"start"`` (before everything, a BOS too), ``"second"`` (behind the first token), ``"middle"``,
            ``"end"``, or a position such as the question's, counted in the original tokens. At the end nothing that
            came before can change: its loss is a check.
        counts: How many tokens to put in.
        draws: Sets of random ordinary tokens beside each.
        tokens: Instead of texts: a :class:`TokenBatch` or lists of ids.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest sequence.
        max_sequences: Draw at most this many sequences.
        batch_size: Sequences in one forward pass.
        seed: Of texts, random tokens and intervals.
        progress: Told in forward passes of a batch, two for each condition.

    Raises:
        InputError: No such token or place, a count or a number of draws below 1, texts under four tokens, or texts
            that do not fit the context with what is put in.
        UnsupportedArchitectureError: The model has no attention that can be measured exactly, or a new token cannot
            be put in.

    Source: the token is that of Goyal et al. (2024), Think before you speak, arXiv 2310.02226, who train models on it;
    the experiment is sinklens'.

    Cost: two forward passes for each place and count without, with, and for each draw of random tokens.
    """
    model = as_bridge(model)
    if not counts or min(counts) < 1 or draws < 1 or not places:
        raise InputError(f"Expected places, counts from 1 and draws from 1; got {[*places]}, {[*counts]} and {draws}.")
    batch, source = choose_sequences(model, texts, tokens, bos, max_tokens, True, seed, None, max_sequences)
    shortest, longest = int(batch.lengths.min()), int(batch.lengths.max())
    limit = context_length(model)
    if shortest < LEAST or (limit is not None and longest + max(counts) > limit):
        raise InputError(
            f"Expected texts of {LEAST} tokens or more that leave room for {max(counts)} in the context of {limit}; "
            f"got {shortest} to {longest} tokens."
        )
    for place in places:
        where(place, shortest)
    chosen = parse_token(model, token, set(batch.ids[batch.real].tolist()))
    groups = [*equal_lengths(batch, batch_size)]
    progress.begin("Inserting tokens", 2 * len(groups) * len(places) * (1 + len(counts) * (1 + draws)))
    runs: list[dict[str, Any]] = []
    heads: list[dict[str, Any]] = []
    for place in dict.fromkeys(places):
        _one_place(model, batch, groups, place, chosen, counts, draws, seed, runs, heads, progress)
    settings = {"token": chosen.name, "new": chosen.new, "places": [*places], "counts": [*counts], "draws": draws}
    warnings = [batch.unused.sentence(len(batch))] if batch.unused else []
    meta = header(model, batch, source, settings=settings | {"seed": seed}, warnings=warnings)
    tables = {
        "runs": pd.DataFrame(runs, columns=[*RUN_COLUMNS]),
        "heads": pd.DataFrame(heads, columns=[*HEAD_COLUMNS]),
    }
    return Injection(meta, tables)


def where(place: str | int, length: int) -> int:
    """Before which original token of a text of so many."""
    named = {"start": 0, "second": 1, "middle": length // 2, "end": length}
    if isinstance(place, str) and place in named:
        return named[place]
    if isinstance(place, int) and not isinstance(place, bool) and 0 <= place <= length:
        return place
    raise InputError(f"A place is one of {', '.join(named)}, or a position from 0 to {length}; got {place!r}.")


def _one_place(
    model: TransformerBridge,
    batch: TokenBatch,
    groups: list[list[int]],
    name: str | int,
    token: Injected,
    counts: Sequence[int],
    draws: int,
    seed: int,
    runs: list[dict[str, Any]],
    heads: list[dict[str, Any]],
    progress: Progress,
) -> None:
    """All conditions of one place; adds to both tables."""
    conditions = [(0, "clean", -1)]
    conditions += [
        (k, kind, draw) for k in counts for kind, n in (("token", 1), ("random", draws)) for draw in range(n)
    ]
    pool = [each for each in ordinary_ids(model).tolist() if each != token.id]
    seen: dict[tuple[int, str, int], list[tuple[list[int], Place, Seen]]] = {each: [] for each in conditions}
    for indices in groups:
        rows = batch.rows(indices)
        length = int(rows.lengths[0])
        ids = rows.ids[:, :length].cpu()
        for k, kind, draw in conditions:
            place = Place(where(name, length), k, length)
            if kind == "random":
                lists = [random.Random(f"{seed}/{name}/{k}/{draw}/{index}").choices(pool, k=k) for index in indices]
                given = torch.tensor(lists)
            else:
                given = torch.full((len(indices), k), token.id)
            seen[k, kind, draw].append((indices, place, look(model, insert(ids, place, given), place, token)))
            progress.advance(2)
    first_clean = _by_head(seen[0, "clean", -1], "first")
    sinks = {head for head, each in first_clean.items() if float(each.mean()) > EPS}
    losses = {
        index: float(loss)
        for indices, _, each in seen[0, "clean", -1]
        for index, loss in zip(indices, each.loss, strict=True)
    }
    for (k, kind, draw), parts in seen.items():
        for indices, place, each in parts:
            for row, index in enumerate(indices):
                facts = _facts(each, row, sinks, kind != "clean")
                change = facts["loss"] - losses[index] if kind != "clean" else math.nan
                about = {"sequence": index, "place": str(name), "count": k, "kind": kind, "draw": draw}
                runs.append(about | {"index": place.index} | facts | {"change": change})
    for k in counts:
        columns: dict[str, dict[tuple[int, int], Tensor]] = {}
        for side in ("inserted", "first"):
            columns[f"{side}_token"] = _by_head(seen[k, "token", 0], side)
            columns[f"{side}_random"] = _by_head(
                [part for (n, kind, _), some in seen.items() if (n, kind) == (k, "random") for part in some], side
            )
        for head, clean in sorted(first_clean.items()):
            about = {"place": str(name), "count": k, "layer": head[0], "head": head[1], "name": head_name(head)}
            means = {column: float(each[head].mean()) for column, each in columns.items()}
            heads.append(about | {"first_clean": float(clean.mean())} | means)


def _by_head(parts: list[tuple[list[int], Place, Seen]], side: str) -> dict[tuple[int, int], Tensor]:
    """Masses of all sequences and draws, by head."""
    out: dict[tuple[int, int], list[Tensor]] = {}
    for _, _, each in parts:
        for layer, mass in getattr(each, side).items():
            for head in range(mass.shape[1]):
                out.setdefault((layer, head), []).append(mass[:, head])
    return {head: torch.cat(values) for head, values in out.items()}


def _facts(seen: Seen, row: int, sinks: set[tuple[int, int]], inserted: bool) -> dict[str, Any]:
    """One sequence of one condition."""
    facts: dict[str, Any] = {}
    for side in ("inserted", "first"):
        there = inserted or side == "first"
        masses = {
            (layer, head): float(mass[row, head])
            for layer, mass in getattr(seen, side).items()
            for head in range(mass.shape[1])
        }
        in_sinks = [masses[head] for head in sinks]
        facts[side] = _mean([*masses.values()]) if there else math.nan
        facts[f"sink_{side}"] = _mean(in_sinks) if there else math.nan
        facts[f"value_{side}"] = float(seen.value[side][row]) if there and side in seen.value else math.nan
        facts[f"massive_{side}"] = float(seen.massive[side][row]) if there and side in seen.massive else math.nan
        facts[f"is_massive_{side}"] = bool(seen.is_massive[side][row]) if there and side in seen.is_massive else None
    return facts | {"n_sink_heads": len(sinks), "loss": float(seen.loss[row])}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
