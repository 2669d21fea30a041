"""Follow a generation with its KV cache: sinks, drains and massive entries at a constant cost a step."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import AttentionEngine, ReceivedMass, Statistic, plan_for
from sinklens.attention.turns import turn
from sinklens.capture.values import output_factor, value_norms
from sinklens.detectors.massive_activations import ABSOLUTE
from sinklens.detectors.sinks import EPS, METRIC, MIN_QUERIES
from sinklens.detectors.value_drains_verdict import DRAINED
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions.massive_entries import AROUND
from sinklens.interventions.positions import Positions
from sinklens.models.architecture import attention_layers, context_length, output_weights
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, Ids, TokenBatch, as_batch, to_batch
from sinklens.models.torch_state import usual_torch
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.generation.result import Generation

STEP_COLUMNS = (
    "step", "position", "token_id", "token", "mass_first", "n_first", "null", "max_abs", "layer", "channel", "ratio",
    "is_massive", "n_drained_heads",
)  # fmt: skip
TOKEN_COLUMNS = (
    "position", "token_id", "token", "generated", "importance", "importance_max", "null", "n_sink_heads", "max_abs",
    "is_massive", "n_drained_heads",
)  # fmt: skip


@checked
@usual_torch()
@torch.no_grad()
def follow_generation(
    model: AnyModel,
    prompt: str | TokenBatch | Ids,
    *,
    max_new_tokens: int = 256,
    continuation: str | Sequence[int] | None = None,
    temperature: float = 0.0,
    eps: float = EPS,
    absolute: float = ABSOLUTE,
    ratio: float = AROUND,
    bos: BosChoice = "auto",
    seed: int = 0,
    progress: Progress = SILENT,
) -> Generation:
    """Generate, and say of every new token what it attends to and whether it becomes a sink, a drain or massive.

    ::

        followed = follow_generation("tiny-llama", "Once upon a time", max_new_tokens=100)
        followed.steps, followed.tokens

    Nothing is run twice: each step is the pass that generates the token, with the KV cache, and what it shows is added
    to sums. So long reasoning can be followed at about the price of generating it.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        prompt: One text, or the ids of one.
        max_new_tokens: Stops earlier at an end-of-text token, or where the context is full.
        continuation: Text or ids to go on with instead of the model's own choice, such as a reasoning trace.
        temperature: 0 takes the likeliest token.
        eps: Threshold of the attention to a sink.
        absolute: Bound on ``|h|`` of a massive token.
        ratio: Bound in running medians: the mean over the tokens so far of their median magnitude after the layer.
        bos: As for :func:`sinklens.tokenize`.
        seed: Of the sampling.
        progress: Told in tokens.

    Raises:
        InputError: Not one prompt, or one that fills the context.
        UnsupportedArchitectureError: No KV cache can be followed exactly for this model.

    Cost: beside each pass one row of attention sums a layer, O(keys in sight) as decoding itself, and O(d_model) for
    the residual stream; memory of two numbers for each head and token.
    """
    model = as_bridge(model)
    batch = to_batch(model, prompt, bos=bos) if isinstance(prompt, str) else as_batch(model, prompt)
    limit = context_length(model) or math.inf
    if len(batch) != 1 or max_new_tokens < 1 or temperature < 0 or int(batch.lengths[0]) >= limit:
        raise InputError(
            f"Expected one prompt shorter than the context ({limit}), max_new_tokens from 1 and temperature from 0; "
            f"got {len(batch)} of {batch.lengths.tolist()} tokens, {max_new_tokens} and {temperature}."
        )
    if plan_for(model).path != "fast":
        raise UnsupportedArchitectureError(
            f"The attention of {model.cfg.architecture} over a KV cache cannot be followed exactly."
        )
    ids = batch.ids[0, : int(batch.lengths[0])].tolist()
    given = _continuation(model, continuation)
    room = int(min(max_new_tokens if given is None else len(given), limit - len(ids)))
    follower = _Follower(model, len(ids) + room, eps, absolute, ratio)
    progress.begin("Following a generation", room)
    steps = _generate(model, ids, given, room, temperature, seed, follower, progress)
    tokenizer: Any = model.tokenizer
    text = "" if tokenizer is None else str(tokenizer.decode(ids[len(ids) - len(steps) :]))
    settings = {"eps": eps, "absolute": absolute, "ratio": ratio, "temperature": temperature, "seed": seed}
    settings |= {"max_new_tokens": max_new_tokens, "given": given is not None, "min_queries": MIN_QUERIES}
    meta = header(model, batch, "a prompt", settings=settings, metrics={METRIC.name: METRIC.as_dict()}, text=text)
    names = [str(tokenizer.convert_ids_to_tokens(each)) if tokenizer else str(each) for each in ids]
    names[: len(batch.tokens[0])] = batch.tokens[0]
    if tokenizer is not None:
        names[len(batch.tokens[0]) :] = [tokenizer.decode([each]) for each in ids[len(batch.tokens[0]) :]]
    return Generation(meta, follower.tables(ids, names, len(ids) - len(steps)))


def _continuation(model: TransformerBridge, given: str | Sequence[int] | None) -> list[int] | None:
    if given is None:
        return None
    ids = to_batch(model, given, bos="no").ids[0].tolist() if isinstance(given, str) else [int(each) for each in given]
    if not ids:
        raise InputError("continuation is empty; leave it out to let the model choose.")
    return ids


def _generate(
    model: TransformerBridge,
    ids: list[int],
    given: list[int] | None,
    room: int,
    temperature: float,
    seed: int,
    follower: "_Follower",
    progress: Progress,
) -> list[int]:
    """The loop; ``ids`` grows."""
    original: Any = model.original_model
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(seed)
    end = _ends(model)
    positions = Positions()
    follower.positions = positions
    hooks = [
        (f"blocks.{layer}.hook_out", partial(follower.residual, layer=layer)) for layer in range(len(model.blocks))
    ]
    engine = AttentionEngine(model, statistics=[ReceivedMass], on_layer=follower.attention)
    cache, feed = None, ids
    made: list[int] = []
    with turn(model), positions.watch(model), model.hooks(fwd_hooks=hooks), engine:
        for number in range(room + 1):
            follower.begin(len(ids) - len(feed), len(feed))
            out = original(torch.tensor([feed], device=device), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            if number == room or (made and given is None and made[-1] in end):
                break
            token = given[number] if given is not None else _choose(out.logits[0, -1], temperature, generator)
            ids.append(token)
            made.append(token)
            feed = [token]
            progress.advance(1)
    return made


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits.float().cpu() / temperature).softmax(-1), 1, generator=generator))


def _ends(model: TransformerBridge) -> set[int]:
    found: Any = getattr(model.original_model.generation_config, "eos_token_id", None)
    return set(found) if isinstance(found, list) else set() if found is None else {int(found)}


class _Follower:
    """Sums that each pass adds to."""

    def __init__(self, model: TransformerBridge, width: int, eps: float, absolute: float, ratio: float) -> None:
        self.model, self.eps, self.absolute, self.ratio, self.width = model, eps, absolute, ratio, width
        self.layers = sorted(attention_layers(model))
        heads = int(model.cfg.n_heads)
        place = {layer: number for number, layer in enumerate(self.layers)}
        self.place = place
        self.mass = torch.zeros(len(self.layers), heads, width)
        self.queries, self.null = (torch.zeros(len(self.layers), width) for _ in range(2))
        self.first = torch.full((len(self.layers), heads, width), math.nan)  # attention of each query to position 0
        self.sight = torch.zeros(len(self.layers), width)
        self.drained = torch.zeros(width)
        self.factors = {layer: self._factor(layer) for layer in self.layers}
        self.drains_known = all(factor is not None for factor in self.factors.values())
        self.norms = {layer: (torch.zeros(heads, dtype=torch.float64), 0) for layer in self.layers}
        self.medians = dict.fromkeys(range(len(model.blocks)), (0.0, 0))
        self.max_abs, self.best = torch.zeros(width), torch.zeros(width, 3)  # layer, channel, ratio of the largest
        self.massive = torch.zeros(width, dtype=torch.bool)
        self.start, self.count = 0, 0
        self.positions = Positions()

    def _factor(self, layer: int) -> Tensor | None:
        weights = output_weights(self.model, layer)
        return None if weights is None else output_factor(weights)

    def begin(self, start: int, count: int) -> None:
        """A pass over ``count`` tokens from position ``start`` on."""
        self.start, self.count = start, count

    def attention(self, layer: int, value: Tensor, statistics: list[Statistic]) -> None:
        """One layer of a pass: a row of attention (or the prompt's), and the values of the new tokens."""
        received, shape = statistics[0].compute(), statistics[0].shape
        keys = self.positions.key_positions(shape)[0].cpu()
        at = self.place[layer]
        real = keys >= 0
        self.mass[at][:, keys[real]] += received["mass"][0].cpu()[:, real]
        self.queries[at][keys[real]] += received["queries"][0].cpu()[real]
        self.null[at][keys[real]] += received["null_mass"][0].cpu()[real]
        if self.count == 1:
            self.sight[at, self.start] = float((received["queries"][0] > 0).sum())
            zero = (keys == 0).nonzero().flatten()
            if len(zero) and bool(received["queries"][0, zero[0]] > 0):
                self.first[at, :, self.start] = received["mass"][0, :, zero[0]].cpu()
        factor = self.factors[layer]
        if factor is not None:
            written = value_norms(value[:, :, -self.count :], factor).output
            if written is not None:
                self._drains(layer, written[0].double().cpu())

    def _drains(self, layer: int, written: Tensor) -> None:
        """Compare the new tokens with the mean of those before; ``[head pos]``."""
        total, seen = self.norms[layer]
        sums = total[:, None] + written.cumsum(1) - written
        counts = seen + torch.arange(written.shape[1])
        known = counts > 0
        low = (written < DRAINED * sums / counts.clamp(min=1)) & known
        self.drained[self.start : self.start + self.count] += low.sum(0).float()
        self.norms[layer] = total + written.sum(1), seen + written.shape[1]

    def residual(self, hidden: Tensor, hook: Any, layer: int) -> None:
        """The residual stream of the new tokens after a layer."""
        magnitude = hidden[0].float().abs().cpu()
        largest, channel = magnitude.max(-1)
        each = magnitude.median(-1).values.double()
        total, seen = self.medians[layer]
        running = (total + each.cumsum(0)) / (seen + torch.arange(1, len(each) + 1))
        self.medians[layer] = total + float(each.sum()), seen + len(each)
        ratios = largest / running.float()
        where = slice(self.start, self.start + self.count)
        self.massive[where] |= (largest > self.absolute) & (ratios > self.ratio)
        more = largest > self.max_abs[where]
        told = torch.stack((torch.full_like(largest, layer), channel.float(), ratios), -1)
        self.best[where] = torch.where(more[:, None], told, self.best[where])
        self.max_abs[where] = torch.where(more, largest, self.max_abs[where])

    def tables(self, ids: list[int], names: list[str], prompt: int) -> dict[str, pd.DataFrame]:
        """Both tables."""
        count = len(ids)
        queries = self.queries[:, :count]
        alpha = self.mass[:, :, :count] / queries[:, None]
        judged = queries.max(0).values.numpy() >= MIN_QUERIES
        drained = self.drained[:count].numpy() if self.drains_known else np.full(count, math.nan)
        shared = {"token_id": ids, "token": names}
        tokens = pd.DataFrame(
            {
                "position": np.arange(count),
                **shared,
                "generated": np.arange(count) >= prompt,
                "importance": alpha.nanmean((0, 1)).numpy(),
                "importance_max": alpha.nan_to_num().amax((0, 1)).numpy(),
                "null": (self.null[:, :count] / queries).nanmean(0).numpy(),
                "n_sink_heads": np.where(judged, (alpha > self.eps).sum((0, 1)).numpy(), math.nan),
                "max_abs": self.max_abs[:count].numpy(),
                "is_massive": self.massive[:count].numpy(),
                "n_drained_heads": drained,
            }
        )
        first = self.first[:, :, :count]
        known = first.isfinite().any(0).any(0).numpy()
        steps = tokens.assign(
            step=np.arange(count) - prompt,
            mass_first=first.nanmean((0, 1)).numpy(),
            n_first=np.where(known, (first > self.eps).sum((0, 1)).numpy(), math.nan),
            null=(1 / self.sight[:, :count].clamp(min=1)).mean(0).numpy(),
            layer=self.best[:count, 0].long().numpy(),
            channel=self.best[:count, 1].long().numpy(),
            ratio=self.best[:count, 2].numpy(),
        )
        return {
            "steps": steps[steps["step"] >= 0][[*STEP_COLUMNS]].reset_index(drop=True),
            "tokens": tokens[[*TOKEN_COLUMNS]],
        }
