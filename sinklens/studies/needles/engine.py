"""Forward passes that show the last rows alone: their logits and the strongest keys of their queries."""

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from sinklens.attention import AttentionCall, AttentionEngine, Statistic, TopKey, plan_for
from sinklens.attention.fused import fused
from sinklens.attention.kernel import attend
from sinklens.attention.last_rows import last_rows
from sinklens.attention.turns import turn
from sinklens.errors import UnsupportedArchitectureError
from sinklens.interventions import Intervention
from sinklens.interventions.base import Composition
from sinklens.interventions.positions import Positions
from sinklens.models.architecture import attention_layers
from sinklens.passes.clean_pass import parity

_caching: WeakKeyDictionary[TransformerBridge, dict[bool, bool]] = WeakKeyDictionary()


class _Filled(Exception):
    """Ends a forward pass whose only purpose was to fill the cache."""


class LastRowsEngine(AttentionEngine):
    """Torch's fused attention everywhere but in edited layers, measured in the last rows of each pass only.

    Args:
        model: The bridge, on the fast path.
        edits: What to change.
        edited: Layers that ``edits`` touch; they run in the engine's own kernel.
        keys: Whether to take the strongest keys.
        on_layer: As for the base class.

    Attributes:
        rows: How many last rows the pass in hand measures.
        filling: Whether the pass in hand only fills the cache: nothing is measured, and it ends as soon as the last
            layer's keys and values are known.
    """

    rows = 1
    filling = False

    def __init__(
        self, model: TransformerBridge, edits: Sequence[Any], edited: Collection[int], keys: bool, on_layer: Any
    ) -> None:
        super().__init__(model, statistics=[TopKey] if keys else [], edits=edits, edited=edited, on_layer=on_layer)

    def attend(self, call: AttentionCall) -> Tensor:
        """One layer's head outputs."""
        if self.filling and call.layer == max(self.layers):
            raise _Filled
        if self.edited is not None and call.layer in self.edited:
            return super().attend(call)
        statistics: list[Statistic] = []
        output = None
        if self.statistics and not self.filling:
            end = last_rows(call, self.rows)
            statistics = [make(end.shape) for make in self.statistics]
            output = attend(end, statistics)
        self.finish(call.layer, call.value, statistics)
        return fused(call) if output is None or output.shape[2] < call.shape.q_pos else output


class Reader:
    """Runs a model with its attention measured in the last rows; made by :func:`reading`.

    Attributes:
        layers: Layers with attention, in order.
        splits: Whether a pass into a cache may leave out the last layer for all rows that are not read.
    """

    def __init__(self, model: TransformerBridge, keys: bool) -> None:
        self.model, self.keys = model, keys
        self.layers = sorted(attention_layers(model))
        self.splits = False
        self.engine: Any = None
        self._top: dict[int, Tensor] = {}
        self._rows = 1
        accepted = inspect.signature(type(model.original_model).forward).parameters
        self._can_cut = "logits_to_keep" in accepted
        self._can_cache = "use_cache" in accepted

    def run(
        self, ids: Int[Tensor, "batch pos"], rows: int, cache: Any = None, *, keep: bool = False
    ) -> tuple[Float[Tensor, "batch row d_vocab"], Int[Tensor, "layer batch head row"] | None, Any]:
        """One forward pass: logits and strongest keys of its last ``rows`` rows, and the cache after it.

        With a cache and :attr:`splits` it goes in two: first the tokens before those rows, up to the last layer's keys
        and values (nothing reads what that layer makes of them), then the rows.

        Args:
            ids: New tokens, all sequences of one length.
            rows: How many last rows to read.
            cache: What stands before them, from an earlier pass or :meth:`new_cache`.
            keep: Whether to start a cache when none is given.
        """
        self._rows, self._top = rows, {}
        if isinstance(self.engine, LastRowsEngine):
            self.engine.rows = rows
        options: dict[str, Any] = {"logits_to_keep": rows} if self._can_cut else {}
        if cache is not None:
            options["past_key_values"] = cache
        elif self._can_cache:
            options["use_cache"] = keep
        device = self.model.original_model.get_input_embeddings().weight.device  # type: ignore[operator]
        ids = ids.to(device)
        if self.splits and cache is not None and ids.shape[1] > rows:
            self._fill(ids[:, :-rows], cache)
            ids = ids[:, -rows:]
        logits, after = self.model(ids, return_type="logits_and_cache", **options)
        keys = None
        if self.keys:
            keys = torch.stack([self._top[layer] for layer in self.layers])
        return logits[:, -rows:], keys, after

    def _fill(self, ids: Int[Tensor, "batch pos"], cache: Any) -> None:
        """Bring the cache up to the end of ``ids``."""
        self.engine.filling = True
        try:
            self.model(ids, return_type=None, past_key_values=cache)
        except _Filled:
            pass
        finally:
            self.engine.filling = False

    def new_cache(self) -> Any:
        """An empty cache that keeps every key of every layer, or ``None`` where a layer has a state instead of keys."""
        return DynamicCache() if len(self.layers) == len(self.model.blocks) else None

    def caches(self) -> bool:
        """Whether prompts may share a beginning: a cache that was filled, cut back and filled again changes nothing.

        Tried on 24 random tokens, once for each bridge and way of running it.
        """
        known = _caching.setdefault(self.model, {})
        if self.splits not in known:
            known[self.splits] = self.new_cache() is not None and self._cuts_back()
        return known[self.splits]

    def _cuts_back(self) -> bool:
        ids = torch.randint(0, int(self.model.cfg.d_vocab), (1, 24), generator=torch.Generator().manual_seed(0))
        keys, self.keys = self.keys, False
        try:
            whole = self.run(ids, 4)[0]
            cache = self.new_cache()
            self.run(ids.roll(1, 1).index_copy(1, torch.arange(12), ids[:, :12]), 4, cache)
            cache.crop(12 - ids.shape[1])
            again = self.run(ids[:, 12:], 4, cache)[0]
        except (TypeError, AttributeError, ValueError, IndexError, KeyError, RuntimeError, NotImplementedError):
            return False
        finally:
            self.keys = keys
        return bool((again - whole).abs().max() <= parity(whole) * (1 + whole.abs().max()))

    def take(self, layer: int, value: Tensor, statistics: list[Statistic]) -> None:
        """What the engine tells of a layer."""
        for statistic in statistics:
            self._top[layer] = statistic.compute()["top_key"][..., -self._rows :].cpu()


@contextmanager
def reading(model: TransformerBridge, intervention: Intervention | None = None, keys: bool = True) -> Iterator[Reader]:
    """Open a model for passes that are measured in their last rows, under an intervention or as it is.

    On the fast path layers that nobody edits run in torch's fused attention, and the strongest keys of the last rows
    are found from their queries alone: nothing is ever ``q_pos x k_pos``. Elsewhere one layer's pattern is held.

    Raises:
        UnsupportedArchitectureError: Strongest keys of a model without attention.
        InputError: The model has not what the intervention names.
    """
    plan = plan_for(model)
    if plan.path == "none" and (keys or intervention is not None):
        raise UnsupportedArchitectureError(
            f"{model.cfg.architecture} has no attention, so it has no retrieval heads; evaluate it without keys."
        )
    reader = Reader(model, keys)
    positions = Positions()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(turn(model))
        edits: list[Any] = []
        if intervention is not None:
            intervention.check(model)
            edits = list(intervention.edits(positions))
            stack.enter_context(intervention.around(model, positions))
        if plan.path == "fast":
            edited = touched_layers(intervention, reader.layers) if edits else frozenset()
            reader.engine = LastRowsEngine(model, edits, edited, keys, reader.take)
            reader.splits = True
        elif plan.path == "fallback":
            statistics = [TopKey] if keys else []
            reader.engine = AttentionEngine(
                model, path=plan.path, statistics=statistics, edits=edits, on_layer=reader.take
            )
        if reader.engine is not None:
            stack.enter_context(reader.engine)
        yield reader


def touched_layers(intervention: Intervention | None, layers: Collection[int]) -> frozenset[int]:
    """Layers whose attention an intervention may change: those of its heads, or all.

    Example:
        >>> from sinklens.interventions import AblateHeads
        >>> sorted(touched_layers(AblateHeads(["L1H0", "L3H2"]), range(4)))
        [1, 3]
    """
    if intervention is None:
        return frozenset()
    if isinstance(intervention, Composition):
        return frozenset().union(*(touched_layers(part, layers) for part in intervention.parts))
    heads = getattr(intervention, "heads", None)
    return frozenset(layer for layer, _ in heads) if isinstance(heads, tuple) else frozenset(layers)
