"""One text with tokens put into it: who looks at them, how large they are, what the text's own tokens lose."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.capture import capture
from sinklens.capture.record import LayerRecord
from sinklens.detectors.massive_activations import ABSOLUTE, RATIO
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.evidence.log_probs import log_probs
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.models.tokens import TokenBatch, as_batch, to_batch
from sinklens.studies.document_ranking.prompts import RowsMass

PAUSE = "[PAUSE]"
AT_ONCE = 4096


@dataclass(frozen=True)
class Injected:
    """The token to put in.

    Attributes:
        id: Its id; of a new token, one that stands for it and occurs nowhere else.
        name: What to call it.
        new: It has no row in the embedding and gets the mean of the ordinary ones.
    """

    id: int
    name: str
    new: bool

    @contextmanager
    def embedded(self, model: TransformerBridge) -> Iterator[None]:
        """Inside, a new token enters the model as the mean embedding of ordinary tokens."""
        if not self.new:
            yield
            return
        mean = _mean_embedding(model)
        here: list[Tensor] = []

        def note(ids: Tensor, hook: Any) -> None:
            here[:] = [ids == self.id]

        def replace(embedded: Tensor, hook: Any) -> Tensor:
            return torch.where(here[0][..., None], mean.to(embedded), embedded)

        with model.hooks(fwd_hooks=[("embed.hook_in", note), ("embed.hook_out", replace)]):
            yield


def parse_token(model: TransformerBridge, token: str | int, used: set[int]) -> Injected:
    """A token by id, by text, or the new token ``[PAUSE]`` where the vocabulary has none.

    Args:
        model: The bridge.
        token: Which.
        used: Ids that no new token may stand under.
    """
    if isinstance(token, int) and not isinstance(token, bool):
        if not 0 <= token < int(model.cfg.d_vocab):
            raise InputError(f"The token has id {token}; this model's ids are 0 to {int(model.cfg.d_vocab) - 1}.")
        return Injected(token, f"token {token}", False)
    if not isinstance(token, str) or not token:
        raise InputError(f"Expected a token as text or id, got {token!r}.")
    if model.tokenizer is not None:
        ids = to_batch(model, token, bos="no").ids[0].tolist()
        if len(ids) == 1:
            return Injected(ids[0], repr(token) if token != PAUSE else PAUSE, False)
    if token != PAUSE:
        raise InputError(f"{token!r} is not one token of this model; give one that is, an id, or {PAUSE!r}.")
    if "embed.hook_in" not in model.hook_dict or "embed.hook_out" not in model.hook_dict:
        raise UnsupportedArchitectureError("This model's embedding cannot be hooked; give a token of its vocabulary.")
    free = [each for each in ordinary_ids(model).tolist() if each not in used]
    if not free:
        raise InputError("Every ordinary id stands in the texts, so none is left for a new token; give fewer texts.")
    return Injected(free[-1], PAUSE, True)


def _mean_embedding(model: TransformerBridge) -> Tensor:
    ids = ordinary_ids(model).to(next(model.parameters()).device)
    total = sum(model.embed(part[None])[0].double().sum(0) for part in ids.split(AT_ONCE))
    return torch.as_tensor(total / len(ids))


@dataclass
class Seen:
    """What one condition shows, by sequence.

    Attributes:
        inserted: Attention of later original tokens to all inserted ones, by layer ``[sequence head]``.
        first: The same to the first original token.
        value: ``|v|`` of inserted tokens (mean) and of the first original one over the median of the other original
            ones, mean over layers and KV heads, ``[sequence]``.
        massive: Largest entry of each over the median of its layer and sequence, the most of all blocks.
        is_massive: It meets both criteria of a massive activation after some block.
        loss: Cross-entropy of the judged original tokens, mean, nats.
    """

    inserted: dict[int, Tensor] = field(default_factory=dict)
    first: dict[int, Tensor] = field(default_factory=dict)
    value: dict[str, Tensor] = field(default_factory=dict)
    massive: dict[str, Tensor] = field(default_factory=dict)
    is_massive: dict[str, Tensor] = field(default_factory=dict)
    loss: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(frozen=True)
class Place:
    """Where ``count`` tokens stand in texts of ``length`` original ones: before original token ``index``."""

    index: int
    count: int
    length: int

    @property
    def first(self) -> int:
        """Position of the first original token."""
        return 0 if self.index else self.count

    @property
    def rows(self) -> slice:
        """Original tokens after the place but the next one; empty at the end."""
        return slice(min(self.index + self.count + 1, self.length + self.count), self.length + self.count)

    @property
    def original(self) -> list[int]:
        """Positions of original tokens."""
        return [*range(self.index), *range(self.index + self.count, self.length + self.count)]


def insert(ids: Tensor, place: Place, given: Tensor) -> Tensor:
    """``[sequence pos]`` with ``[sequence count]`` put in."""
    return torch.cat([ids[:, : place.index], given, ids[:, place.index :]], 1)


class _Watch:
    """Collects one condition layer by layer."""

    needs = ()

    def __init__(self, place: Place) -> None:
        self.place, self.seen = place, Seen()
        self.ratios: dict[str, list[Tensor]] = {"inserted": [], "first": []}

    def statistics(self, batch: TokenBatch) -> list[Any]:
        return [partial(RowsMass, sets={"later": self.place.rows})]

    def update(self, record: LayerRecord) -> None:
        place = self.place
        inserted = slice(place.index, place.index + place.count)
        mass = record.attention.get("rows_later")
        if mass is not None:
            none = math.nan if place.rows.start >= place.rows.stop else 1.0
            self.seen.inserted[record.layer] = none * mass[..., inserted].sum(-1).double().cpu()
            self.seen.first[record.layer] = none * mass[..., place.first].double().cpu()
        if record.values is not None:
            norms = record.values.value.double().cpu()
            others = [each for each in place.original if each != place.first]
            usual = norms[..., others].median(-1).values
            self.ratios["inserted"].append((norms[..., inserted].mean(-1) / usual).mean(1))
            self.ratios["first"].append((norms[..., place.first] / usual).mean(1))
        if record.layer >= 0 and record.residual is not None:
            size, median = record.residual.token_max.double().cpu(), record.residual.median.double().cpu()[:, None]
            for name, where in (("inserted", inserted), ("first", slice(place.first, place.first + 1))):
                if where.start == where.stop:
                    continue
                some = size[:, where]
                ratio = (some / median).amax(1)
                flag = ((some > ABSOLUTE) & (some > RATIO * median)).any(1)
                known = self.seen.massive.get(name)
                self.seen.massive[name] = ratio if known is None else torch.maximum(known, ratio)
                self.seen.is_massive[name] = flag | self.seen.is_massive.get(name, torch.zeros_like(flag))

    def finished(self, loss: Tensor) -> Seen:
        for name, parts in self.ratios.items():
            if parts:
                self.seen.value[name] = torch.stack(parts).mean(0)
        self.seen.loss = loss
        return self.seen


def look(model: TransformerBridge, ids: Tensor, place: Place, token: Injected) -> Seen:
    """Measure texts of one length with what is put in already there (``count`` 0: nothing is)."""
    batch = as_batch(model, ids, attention_mask=torch.ones_like(ids))
    watch = _Watch(place)
    with token.embedded(model):
        capture(model, batch, [watch], batch_size=len(batch), top_k=1)
        logits = model(ids.to(next(model.parameters()).device))
    return watch.finished(_loss(logits, ids, place))


def _loss(logits: Tensor, ids: Tensor, place: Place) -> Tensor:
    """Mean over original tokens after the next one behind the place; at the end, over those before it."""
    targets: Sequence[int] = range(place.rows.start, place.rows.stop)
    if not targets:
        targets = range(1, place.index)
    if not targets:
        return torch.full((len(ids),), math.nan, dtype=torch.float64)
    rows = torch.tensor(targets) - 1
    return -log_probs(logits[:, rows.to(logits.device)].double(), ids[:, torch.tensor(targets)]).cpu().mean(1)
