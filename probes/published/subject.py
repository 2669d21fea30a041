"""A model under study with the texts it is shown; what several claims need is measured once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from published.observed import Observed, observe
from sinklens import builtin_corpus
from sinklens.evidence import token_losses
from sinklens.interventions import Intervention
from sinklens.models import TokenBatch, tokenize
from sinklens.models.architecture import context_length
from sinklens.models.ordinary_tokens import ordinary_ids

EPS = 0.3
SINK_HEAD = 0.5
"""A head is a sink head when it sinks on position 0 in at least half of the texts."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured: numbers of texts, prompts and tokens."""

    texts: int = 32
    effect_texts: int = 10
    long_texts: int = 5
    long_tokens: int = 256
    prompts: int = 8
    first_tokens: int = 64

    def __str__(self) -> str:
        return (
            f"{self.texts} texts of 64 tokens for what is measured, {self.effect_texts} of them for what is changed, "
            f"{self.long_texts} of {self.long_tokens} tokens for windows, {self.prompts} prompts for needles, "
            f"{self.first_tokens} first tokens"
        )


QUICK = Sizes(texts=8, effect_texts=5, long_texts=5, long_tokens=96, prompts=8, first_tokens=8)


@dataclass
class Subject:
    """A model, its texts, and what was measured of it already.

    Attributes:
        name: Short name in tables.
        model: The bridge.
        sizes: How much is measured.
    """

    name: str
    model: TransformerBridge
    sizes: Sizes = field(default_factory=Sizes)
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Measure a thing the first time it is asked for."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    @cached_property
    def texts(self) -> TokenBatch:
        """Natural texts as the checkpoint's own tokenizer opens them; the model's own task for a built-in model."""
        return _longest(builtin_corpus(self.model, n_sequences=self.sizes.texts).tokens)

    @cached_property
    def bare_texts(self) -> TokenBatch:
        """The same corpus without any BOS."""
        corpus = _longest(builtin_corpus(self.model, bos="no", n_sequences=self.sizes.texts).tokens)
        spelt = bool(corpus.bos[:, 0].any())  # a built-in task may spell its BOS out
        return self.ids(corpus.ids[:, 1:]) if spelt else corpus

    @cached_property
    def few_texts(self) -> TokenBatch:
        """The texts on which changes of the model are measured."""
        return self.texts.rows(slice(0, self.sizes.effect_texts))

    @cached_property
    def long_texts(self) -> TokenBatch:
        """Longer natural texts, for windows."""
        length = min(self.sizes.long_tokens, context_length(self.model) or self.sizes.long_tokens)
        return _longest(builtin_corpus(self.model, n_sequences=self.sizes.long_texts, length=length).tokens)

    @property
    def opened(self) -> bool:
        """Whether every natural text begins with the BOS."""
        return bool(self.texts.bos[:, 0].all())

    def ids(self, rows: Tensor) -> TokenBatch:
        """Token ids as a batch, taken as they are."""
        return tokenize(self.model, rows)

    def random_rows(self, count: int, length: int, seed: int = 0) -> Tensor:
        """Ordinary tokens drawn independently, ``[count length]``."""
        pool = ordinary_ids(self.model)
        return pool[torch.randint(len(pool), (count, length), generator=torch.Generator().manual_seed(seed))]

    @property
    def natural(self) -> Observed:
        """Everything about the natural texts."""
        return self.once("natural", lambda: observe(self.model, self.texts))

    @property
    def bare(self) -> Observed:
        """Everything about the texts without BOS."""
        return self.natural if not self.opened else self.once("bare", lambda: observe(self.model, self.bare_texts))

    @property
    def sink_heads(self) -> Any:
        """Which heads are sink heads, ``[layer head]``."""
        return self.natural.sinks(EPS).mean(1) >= SINK_HEAD

    @torch.no_grad()
    def losses(self, batch: TokenBatch) -> Float[np.ndarray, "sequence pos"]:
        """Loss by predicting token of the model as it is."""
        rows = [batch.rows([index]) for index in range(len(batch))]
        return np.concatenate([token_losses(self.model(row.ids), row).numpy() for row in rows])

    def rises(self, changes: Mapping[str, Intervention], batch: TokenBatch, start: int = 0) -> dict[str, np.ndarray]:
        """By change: how much the loss of every text rises, in nats a token, over rows from ``start`` on."""

        def loss() -> np.ndarray:  # measure_effects compares distributions too, which takes longer than the model
            return np.nanmean(self.losses(batch)[:, start:], 1)

        clean, found = loss(), {}
        for name, change in changes.items():
            with change(self.model):
                found[name] = loss() - clean
        return found

    def with_first(self, batch: TokenBatch, tokens: Tensor, at: int = 0) -> TokenBatch:
        """The batch with the tokens ``[sequence n]`` in place of those from position ``at`` on."""
        ids = batch.ids.clone()
        ids[:, at : at + tokens.shape[1]] = tokens
        return replace(self.ids(ids), statement=batch.statement)


def _longest(batch: TokenBatch) -> TokenBatch:
    """The sequences that have the full length: positions then mean the same in all of them."""
    lengths = batch.lengths.tolist()
    return batch.rows([index for index, length in enumerate(lengths) if length == max(lengths)])
