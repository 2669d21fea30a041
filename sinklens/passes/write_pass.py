"""What every head writes to the residual stream and to the logits, measured layer by layer in two forward passes."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, AttentionShape, plan_for
from sinklens.detectors.direct_logit import FrozenNorm, freeze_norm, head_logits
from sinklens.detectors.write_norm import write_norm
from sinklens.errors import UnsupportedArchitectureError
from sinklens.evidence.effects import Answers, predicted_rows
from sinklens.models.architecture import attention_layers, output_weights
from sinklens.models.tokens import Ids, TokenBatch, as_batch
from sinklens.passes.clean_pass import parity

Parts = dict[str, Float[Tensor, " batch"]]


@dataclass
class Writes:
    """What :func:`measure_writes` found on some sequences of one length.

    Attributes:
        norms: L1 write norm by layer, ``[batch head]``.
        logits: Direct logit attribution by layer, ``[batch head]``; empty when it does not apply.
        parts: The same of everything else: ``embedding``, ``attention bias N``, ``mlp N``, ``final bias``.
        read: What the model itself gives for the same rows: the logits that heads and parts add up to, ``[batch]``.
        problems: Sentences about what does not apply, and why.
    """

    norms: dict[int, Float[Tensor, "batch head"]] = field(default_factory=dict)
    logits: dict[int, Float[Tensor, "batch head"]] = field(default_factory=dict)
    parts: Parts = field(default_factory=dict)
    read: Float[Tensor, " batch"] = field(default_factory=lambda: torch.empty(0))
    problems: list[str] = field(default_factory=list)

    @property
    def gap(self) -> float:
        """Largest difference between the sum of all parts and what the model itself gives, in logits."""
        total = sum(each.sum(1) for each in self.logits.values()) + sum(self.parts.values())
        return float((total - self.read).abs().nan_to_num().max())


@torch.no_grad()
def measure_writes(
    model: TransformerBridge, batch: TokenBatch | Ids, *, answers: Answers | None = None, direct: bool = True
) -> Writes:
    """Write norms of all heads and, with ``direct``, their direct logit attribution.

    Each layer is checked: what its heads write has to differ from the attention output by one constant vector (the bias
    of ``W_O``), and attention and MLP have to add up to the layer's change of the residual stream. Where an output gate
    or a norm follows, that is not so and the layer (for logits: the model) is reported as not applicable.

    Args:
        model: The bridge.
        batch: Sequences of one length.
        answers: Read the right answer's logit minus the wrong one's; default: the next token's logit minus the mean of
            all, at every row that predicts one.
        direct: Whether to attribute logits; a second forward pass.

    Cost: one or two forward passes; z and residual stream of one layer are held at a time, and the logits of the batch.
    """
    batch = as_batch(model, batch)
    found = Writes()
    reading = None
    if direct:
        try:
            reading = _Reading(model, batch, answers)
            found.read = reading.value
        except UnsupportedArchitectureError as error:
            found.problems.append(f"direct_logit: {error}")
    watcher = _Watcher(model, batch, reading, found)
    watcher.run()
    if reading is not None and not watcher.linear:
        found.logits, found.parts = {}, {}
    elif reading is not None and found.gap > 1e-3 * (1 + float(reading.value.abs().nan_to_num().max())):
        found.problems.append(
            f"direct_logit: heads, MLPs and embedding add up to {found.gap:.1e} logits beside what {_name(model)} "
            "gives, which scales or caps its logits."
        )
        found.logits, found.parts = {}, {}
    return found


class _Reading:
    """The first pass: which direction of the residual stream is read at which row, and what the model gives there."""

    def __init__(self, model: TransformerBridge, batch: TokenBatch, answers: Answers | None) -> None:
        original: Any = model.original_model
        unembed = original.get_output_embeddings()
        final: dict[str, Tensor] = {}

        def keep(x: Tensor, hook: Any, what: str) -> None:
            final[what] = x

        hooks = [(f"ln_final.hook_{what}", partial(keep, what=what)) for what in ("in", "out")]
        ids = batch.ids.to(next(model.parameters()).device)
        with AttentionEngine(model, path=plan_for(model).path), model.hooks(fwd_hooks=hooks):
            logits: Tensor = model(ids)
        norm: Any = model.ln_final
        norm = getattr(norm, "original_component", None) or norm
        self.norm: FrozenNorm = freeze_norm(norm, final["in"], final["out"])
        weights, bias = unembed.weight.float(), getattr(unembed, "bias", None)
        bias = torch.zeros_like(weights[:, 0]) if bias is None else bias.float()
        chosen = torch.zeros_like(final["out"], dtype=torch.float32)
        constant = torch.zeros(ids.shape, device=ids.device)
        value = torch.zeros(ids.shape, device=ids.device)
        if answers is None:
            rows = predicted_rows(batch).to(ids.device)
            targets = ids.roll(-1, 1)[rows]
            chosen[rows] = weights[targets] - weights.mean(0)  # a shift of all logits says nothing, so it is taken out
            constant[rows] = bias[targets] - bias.mean()
            read = logits[rows].float()
            value[rows] = read.gather(-1, targets[:, None])[:, 0] - read.mean(-1)
        else:
            rows = torch.zeros_like(batch.real)
            asked = (answers.position >= 0).nonzero().flatten()
            place = answers.position[asked]
            rows[asked, place] = True
            rows = rows.to(ids.device)
            right, wrong = answers.correct[asked].to(ids.device), answers.wrong[asked].to(ids.device)
            chosen[asked, place] = weights[right] - weights[wrong]
            constant[asked, place] = bias[right] - bias[wrong]
            read = logits[asked, place].float()
            value[asked, place] = (read.gather(-1, right[:, None]) - read.gather(-1, wrong[:, None]))[:, 0]
        self.rows: Bool[Tensor, "batch pos"] = rows
        # Once its scale is fixed the final norm is linear, so the read direction moves before it, and every part of the
        # residual stream can be read there by itself. The scale needs the whole stream: hence a pass of its own.
        self.direction = self.norm.pull_back(chosen)
        self.constant = constant + (chosen * self.norm.bias).sum(-1)
        self.value = self.mean(value)

    def mean(self, by_row: Float[Tensor, "*batch pos"]) -> Tensor:
        """Mean over the rows that are read, in fp64; NaN for a sequence without one."""
        rows = (self.rows if by_row.ndim == 2 else self.rows[:, None]).to(by_row.device)
        mean: Tensor = torch.where(rows, by_row.double(), 0).sum(-1) / rows.sum(-1)
        return mean.cpu()

    def part(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, " batch"]:
        """What a part of the residual stream adds to what is read."""
        return self.mean((x.float() * self.direction.to(x.device)).sum(-1))


class _Watcher:
    """The second pass: every layer measured and checked when it is done."""

    def __init__(self, model: TransformerBridge, batch: TokenBatch, reading: _Reading | None, found: Writes) -> None:
        self.model, self.batch, self.reading, self.found = model, batch, reading, found
        self.gated = bool(getattr(model.cfg, "gated_q_proj", False))
        self.linear = True
        self.seen: dict[str, Tensor] = {}

    def run(self) -> None:
        hooks: list[tuple[str, Any]] = []
        for layer in range(len(self.model.blocks)):
            hooks.append((f"blocks.{layer}.hook_in", partial(self._keep, what="before")))
            if layer in attention_layers(self.model):
                hooks.append((f"blocks.{layer}.attn.hook_out", partial(self._keep, what="attention")))
            if "mlp" in self.model.blocks[layer]._modules:
                hooks.append((f"blocks.{layer}.mlp.hook_out", partial(self._keep, what="mlp")))
            hooks.append((f"blocks.{layer}.hook_out", partial(self._block, layer=layer)))
        ids = self.batch.ids.to(next(self.model.parameters()).device)
        engine = AttentionEngine(self.model, path=plan_for(self.model).path, observers=[self])
        with engine, self.model.hooks(fwd_hooks=hooks):
            self.model(ids)
        if self.reading is not None:
            self.found.parts["final bias"] = self.reading.mean(self.reading.constant)

    def _keep(self, x: Any, hook: Any, what: str) -> None:
        self.seen[what] = x[0] if isinstance(x, tuple) else x

    def observe_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        """Keep what the heads of a layer hand on; the engine calls this."""
        self.seen["z"] = output

    def _block(self, after: Any, hook: Any, layer: int) -> None:
        after = (after[0] if isinstance(after, tuple) else after).float()
        before = self.seen["before"].float()
        if layer == 0 and self.reading is not None:
            self.found.parts["embedding"] = self.reading.part(before)
        bias = self._attention(layer, before) if "z" in self.seen else None
        attention = torch.zeros_like(before) if "z" not in self.seen else self._written(layer, bias)
        self._rest(layer, before, attention, after)
        self.seen = {}

    def _attention(self, layer: int, before: Tensor) -> Tensor | None:
        """Write norms and logits of a layer's heads; the bias of its ``W_O``, ``None`` where the form does not hold."""
        z, weights = self.seen["z"], output_weights(self.model, layer)
        if weights is None or self.gated or weights.shape[:2] != (z.shape[1], z.shape[3]):
            why = "has an output gate after its heads" if self.gated else "does not show its output weights"
            self._refuse(f"Layer {layer} of {_name(self.model)} {why}, so what a head writes cannot be told.")
            return None
        written = torch.einsum("bhpd,hdm->bpm", z.float(), weights.float())
        bias = None
        for holds in (torch.zeros_like(before), before):  # Bloom's attention output holds the residual stream
            rest = self.seen["attention"].float() - holds - written
            mean = rest[self.batch.real.to(rest.device)].mean(0)
            if float((rest - mean).abs().max()) <= parity(z) * (1e-6 + float(self.seen["attention"].abs().max())):
                bias = mean
                break
        if bias is None:
            self._refuse(
                f"What the heads of layer {layer} of {_name(self.model)} write does not add up to its attention output."
            )
            return None
        self.found.norms[layer] = write_norm(z, weights, self.batch.real.to(z.device)).cpu()
        if self.reading is not None:
            by_row = head_logits(z, weights, self.reading.direction.to(z.device))
            self.found.logits[layer] = self.reading.mean(by_row)
            self.found.parts[f"attention bias {layer}"] = self.reading.part(bias.expand_as(before))
        return bias

    def _written(self, layer: int, bias: Tensor | None) -> Tensor:
        weights = output_weights(self.model, layer)
        if bias is None or weights is None:
            return self.seen["attention"].float()
        return torch.einsum("bhpd,hdm->bpm", self.seen["z"].float(), weights.float()) + bias

    def _rest(self, layer: int, before: Tensor, attention: Tensor, after: Tensor) -> None:
        """What the layer adds besides attention has to be its MLP's output, else a norm or scale stands in between."""
        if self.reading is None:
            return
        rest = after - before - attention
        mlp = self.seen.get("mlp")
        scale = parity(self.seen["before"]) * (1e-6 + float(after.abs().max()))
        if mlp is not None and "z" in self.seen:
            # the MLP output of Bloom, like its attention output, holds the residual stream already
            holds = min(float((rest - mlp.float()).abs().max()), float((after - mlp.float()).abs().max()))
            if holds > scale:
                self._refuse(
                    f"Attention and MLP of layer {layer} of {_name(self.model)} do not add up to what its layer adds "
                    "to the residual stream: a norm or a scale stands in between.",
                    norms=False,
                )
        self.found.parts[f"mlp {layer}"] = self.reading.part(rest)

    def _refuse(self, why: str, norms: bool = True) -> None:
        if norms:
            self.found.problems.append(f"write_norm: {why}")
        if self.reading is not None:
            if self.linear:
                self.found.problems.append(f"direct_logit: {why}")
            self.linear = False


def _name(model: TransformerBridge) -> str:
    return str(model.cfg.architecture)
