"""One forward pass, recorded and handed on layer by layer: nothing T x T, no more than a layer is held."""

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import (
    AttentionEngine,
    Distance,
    Entropy,
    KeySetMass,
    MissingMass,
    PooledMap,
    ReceivedMass,
    Statistic,
    StatisticFactory,
    TopKey,
    plan_for,
)
from sinklens.attention.causal import forget_buffers
from sinklens.attention.delta_logit import DeltaLogit
from sinklens.attention.engine import LayerListener
from sinklens.attention.plan import AttentionPlan
from sinklens.attention.workers import run_units
from sinklens.capture.finite import NonFinite
from sinklens.capture.halves import BlockHalves
from sinklens.capture.heap import LONG, give_back
from sinklens.capture.mlp_rows import mlp_by_rows
from sinklens.capture.needs import KeepKeys, KeepOutputs, fields_asked, fields_lacking, joined, statistics_asked
from sinklens.capture.record import LayerRecord, ResidualNorms, ValueNorms
from sinklens.capture.residual import residual_norms
from sinklens.capture.spent import spent
from sinklens.capture.values import output_factor, value_norms
from sinklens.errors import InputError
from sinklens.models.architecture import output_weights
from sinklens.models.rope import forward_passes
from sinklens.models.tokens import Ids, TokenBatch, as_batch
from sinklens.results.progress import SILENT, Progress


class Opener(Protocol):
    """Anything that opens an engine on a model, changing it meanwhile: interventions do."""

    def __call__(
        self,
        model: TransformerBridge,
        *,
        statistics: Sequence[StatisticFactory],
        observers: Sequence[Any],
        on_layer: LayerListener,
        real: Tensor,
    ) -> AbstractContextManager[AttentionEngine]:
        """Context manager under which forward passes are measured."""


class Consumer(Protocol):
    """Anything that takes layer records: detectors, or your own probe.

    Its attribute ``needs`` names fields of a record that must be filled in (``"hidden"``, ``"keys"``, ``"outputs"``,
    ``"z"``, ``"halves"``), ``wants`` those that it uses where the model has them. A method ``statistics(batch)`` names
    the statistics of attention that it reads; without it, it gets :func:`standard_statistics`.
    """

    def update(self, record: LayerRecord) -> None:
        """Take one layer of one batch."""


def standard_statistics(batch: TokenBatch, *, maps: Sequence[int] = ()) -> list[StatisticFactory]:
    """The statistics that every detector of a scan needs.

    Args:
        batch: Tokens of the pass; BOS and special tokens become key sets (when there are any).
        maps: Sequences (rows of the batch) for which every head's pooled display map is kept.
    """
    sets = {"special": batch.special, "bos": batch.bos}
    present = {name: members for name, members in sets.items() if bool(members.any())}
    factories: list[StatisticFactory] = [ReceivedMass, Entropy, Distance, TopKey, MissingMass, DeltaLogit]
    if present:
        factories.append(partial(KeySetMass, sets=present))
    if maps:
        factories.append(partial(PooledMap, sequences=tuple(maps)))
    return factories


@torch.no_grad()
def capture(
    model: TransformerBridge,
    batch: TokenBatch | Ids,
    consumers: Sequence[Consumer] = (),
    *,
    batch_size: int = 8,
    statistics: Callable[[TokenBatch, int], Sequence[StatisticFactory]] | None = None,
    top_k: int = 5,
    first_sequence: int = 0,
    intervention: Opener | None = None,
    nonfinite: NonFinite | None = None,
    progress: Progress = SILENT,
    seconds: dict[str, float] | None = None,
    logits: Callable[[TokenBatch, Tensor], None] | None = None,
) -> list[LayerRecord]:
    """Run the tokens through the model and record every layer.

    Args:
        model: The bridge; it is the same afterwards, also after an exception.
        batch: Tokens from :func:`sinklens.tokenize`.
        consumers: Receive each record as soon as its layer is done; the record is then dropped.
        batch_size: Sequences in one forward pass.
        statistics: Called with the rows of a pass and the index of the first one, returns the statistics to
            take instead of those that the consumers declare.
        top_k: How many of the largest residual entries to keep per layer and sequence.
        first_sequence: Number of the first sequence in the records; continue the count when one detector takes the
            records of several calls.
        intervention: A change of the model under which everything is measured, such as ``AblateHeads(["L1H0"])``.
        nonfinite: Where activations that are NaN or infinite are noted; without it they end the pass.
        progress: Told after each layer, in sequences times layers.
        seconds: Filled with the time of each part, added to what it holds: ``attention`` (the engine with its
            statistics; not told apart on the fallback path), ``capture`` (what is made of a layer's states for its
            record), ``detectors`` (the consumers) and ``forward`` (everything else in the pass).
        logits: Given the rows of each pass and their logits ``[batch pos d_vocab]``; without it those of all tokens but
            the last are not computed.

    Returns:
        Without consumers: all records, layer by layer for each pass. With consumers: an empty list.

    Raises:
        InputError: A model in training mode, activations that are NaN or infinite, ``batch_size`` below 1, or
            a consumer that asks for what no record carries.
        UnsupportedArchitectureError: A consumer needs what this model cannot give, or it cannot be measured exactly.

    Cost: a forward pass with about twice the attention time; memory O(batch heads pos) for one layer.
    """
    batch = as_batch(model, batch)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}.")
    if intervention is not None and not callable(intervention):
        raise InputError(f"intervention must be one such as AblateHeads(['L1H0']), got {intervention!r}.")
    plan = plan_for(model, nonfinite=nonfinite is not None)
    factors = _factors(model, [layer.layer for layer in plan.layers if layer.path != "none"])
    gated, readable = bool(getattr(model.cfg, "gated_q_proj", False)), all(f is not None for f in factors.values())
    asked = fields_asked(consumers, fields_lacking(plan, gated=gated, readable=readable))
    kept: list[LayerRecord] = []
    parts = {} if seconds is None else seconds
    progress.begin("Recording layers", len(batch) * (len(model.blocks) + 1))
    for chosen in forward_passes(model, batch, batch_size):
        start, rows = chosen.start, batch.rows(chosen)
        if statistics is not None:
            factories = joined(statistics(rows, start))
        elif consumers:
            factories = statistics_asked(consumers, rows, standard_statistics)
        else:
            factories = standard_statistics(rows)
        recorder = _Recorder(
            model, plan, factors, rows, first_sequence + start, top_k, intervention, asked, nonfinite, parts
        )

        def deliver(record: LayerRecord) -> None:
            with spent(parts, "detectors"):
                for consumer in consumers:
                    consumer.update(record)
            if not consumers:
                kept.append(record)
            if record.batch.ids.numel() >= LONG:
                forget_buffers()
                give_back()
            progress.advance(len(record.batch))

        recorder.deliver = deliver
        recorder.run(factories, logits)
    return kept


class _Recorder:
    """Joins what engine and residual hooks say about a layer, and delivers it when it is done."""

    def __init__(
        self,
        model: TransformerBridge,
        plan: AttentionPlan,
        factors: dict[int, Tensor | None],
        rows: TokenBatch,
        start: int,
        top_k: int,
        intervention: Opener | None,
        asked: Collection[str],
        nonfinite: NonFinite | None,
        seconds: dict[str, float],
    ) -> None:
        self.nonfinite = nonfinite
        self.open = intervention or partial(AttentionEngine, path=plan.path)
        self.asked = asked
        self.keys, self.halves = KeepKeys(), BlockHalves()
        self.z = KeepOutputs(lambda layer, output: output)
        self.outputs = KeepOutputs(lambda layer, output: value_norms(output, factors[layer]).output)
        self.model, self.plan, self.factors = model, plan, factors
        self.rows, self.start, self.top_k = rows, start, top_k
        self.pending: dict[int, tuple[dict[str, Tensor], ValueNorms]] = {}
        self.gates: dict[int, Tensor] = {}
        self.seconds = seconds
        self.deliver: Callable[[LayerRecord], None] = lambda record: None

    def run(
        self, factories: Sequence[StatisticFactory], logits: Callable[[TokenBatch, Tensor], None] | None = None
    ) -> None:
        """One forward pass with all hooks in place."""
        n_layers = len(self.model.blocks)
        hooks = [("blocks.0.hook_in", partial(self._residual, layer=-1))]
        hooks += [(f"blocks.{layer}.hook_out", partial(self._residual, layer=layer)) for layer in range(n_layers)]
        if getattr(self.model.cfg, "gated_q_proj", False):
            gated = [layer.layer for layer in self.plan.layers if layer.path != "none"]
            hooks += [(f"blocks.{layer}.attn.q.hook_out", partial(self._gate, layer=layer)) for layer in gated]
        if "halves" in self.asked:
            hooks = self.halves.hooks(self.model) + hooks  # before the record of the block is made
        watching: dict[str, Any] = {"keys": self.keys, "outputs": self.outputs, "z": self.z}
        observers = [observer for name, observer in watching.items() if name in self.asked]
        ids = self.rows.ids.to(_input_device(self.model))
        options = _forward_options(self.model, all_logits=logits is not None)
        # an intervention's own hooks come first, so that what is recorded is what it left
        real = self.rows.real
        opened = self.open(self.model, statistics=factories, observers=observers, on_layer=self._attention, real=real)
        before = sum(self.seconds.values()) - self.seconds.get("forward", 0.0)
        long = ids.device.type == "cpu" and ids.numel() >= LONG
        narrowed = mlp_by_rows(self.model) if long else nullcontext()
        with opened as engine, narrowed, self.model.hooks(fwd_hooks=hooks), spent(self.seconds, "forward"):
            # right padding needs no attention mask: real queries never see what comes after them
            found = self.model(ids, return_type=None if logits is None else "logits", **options)
        self.seconds["attention"] = self.seconds.get("attention", 0.0) + engine.seconds
        self.seconds["forward"] -= sum(self.seconds.values()) - self.seconds["forward"] - before
        if logits is not None:
            logits(self.rows, found)

    def _attention(self, layer: int, value: Tensor, statistics: list[Statistic]) -> None:
        with spent(self.seconds, "capture"):
            computed: dict[str, Tensor] = {}
            for statistic in statistics:
                # accumulated on the layer's own device; what is left is O(pos) and joins the other layers on the CPU
                computed |= {name: value.cpu() for name, value in statistic.compute().items()}
            if layer in self.gates:
                computed["gate"] = self.gates.pop(layer).cpu()
            self.pending[layer] = computed, value_norms(value, self.factors[layer])

    def _gate(self, projected: Tensor, hook: Any, layer: int) -> None:
        """Mean over channels of each head's sigmoid output gate, interleaved with its query (Qwen3-Next)."""
        batch, pos = projected.shape[:2]
        split = projected.reshape(batch, pos, self.model.cfg.n_heads, 2, -1)
        opened = torch.sigmoid(split[..., 1, :].float()).mean(-1).transpose(1, 2)
        self.gates[layer] = opened.masked_fill(~self.rows.real.to(opened.device)[:, None], math.nan)

    def _residual(self, hidden: Tensor, hook: Any, layer: int) -> None:
        with spent(self.seconds, "capture"):
            norms: ResidualNorms = residual_norms(hidden, self.rows.real, self.top_k)
        attention, values = self.pending.pop(layer, ({}, None))
        path = self.plan.layers[layer].path if layer >= 0 else "none"
        record = LayerRecord(
            layer,
            self.rows,
            self.start,
            path,
            attention,
            values,
            norms,
            hidden=hidden if "hidden" in self.asked else None,
            outputs=self.outputs.by_layer.pop(layer, None),
            z=self.z.by_layer.pop(layer, None),
            keys=self.keys.by_layer.pop(layer, None),
            halves=self.halves.by_layer.pop(layer, None),
        )
        seen = NonFinite() if self.nonfinite is None else self.nonfinite
        record = seen.take(record, hidden.dtype)
        if self.nonfinite is None:
            seen.refuse()
        self.deliver(record)


def _factors(model: TransformerBridge, layers: Sequence[int]) -> dict[int, Tensor | None]:
    """:func:`output_factor` of each layer, side by side on a CPU: decompositions do not share cores well."""
    found: dict[int, Tensor | None] = dict.fromkeys(layers)

    def work(layer: int) -> None:
        weights = output_weights(model, layer)
        found[layer] = None if weights is None else output_factor(weights)

    run_units(work, layers, parallel=_input_device(model).type == "cpu")
    return found


def _input_device(model: TransformerBridge) -> torch.device:
    device: torch.device = model.original_model.get_input_embeddings().weight.device  # type: ignore[operator]
    return device


def _forward_options(model: TransformerBridge, all_logits: bool) -> dict[str, Any]:
    """Leave out what a measurement does not need: the KV cache, and all logits but the last unless they are wanted."""
    accepted = inspect.signature(type(model.original_model).forward).parameters
    wanted: dict[str, Any] = {"use_cache": False} | ({} if all_logits else {"logits_to_keep": 1})
    return {name: value for name, value in wanted.items() if name in accepted}
