"""RedistributeAttention: weight taken from all sinks and given to a target span that a head attends to (VAR)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionShape, Block
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.fields import parse_number, parse_span
from sinklens.interventions.heads import Heads, as_index, heads_in_block, parse_heads
from sinklens.interventions.positions import Positions
from sinklens.interventions.prompt import PromptEnd, PromptLength, parse_prompt_length
from sinklens.interventions.received import columns
from sinklens.interventions.redistribution import move_mass
from sinklens.interventions.sink_dims import FIRST_LAYER, channel_ratios, entered_layer

UNKNOWN_CACHE = (
    "The KV cache holds {cached} tokens whose hidden states this intervention has not seen: read each text under the "
    "intervention from its first token on."
)


@dataclass(frozen=True)
class RedistributeAttention(Intervention):
    """Moves a share p of the attention that sinks get to the keys of a target span that are no sinks.

    With I the target, S the layer's sinks inside and outside of it, and A a head's pattern, an edited row becomes::

        A'[i, j] = (1 - p) A[i, j]                                                        j in S
        A'[i, j] = A[i, j] + p sum_{S} A[i, k] * A[i, j] / sum_{k in I without S} A[i, k]   j in I without S
        A'[i, j] = A[i, j]                                                                otherwise

    Row sums stay (below 1 beside a learned sink logit, which is no sink here). Edited are, in every head by itself, the
    rows that attend to the target enough, ``sum_I A >= min_mass``, and there mostly beside the sinks,
    ``sum_{I without S} A >= rho sum_I A``, from position ``from_row`` on. ``p=0`` changes no bit.

    Sinks are either positions you give (``sinks``), or the tokens whose hidden state x entering the layer is extreme in
    some dimension of ``sink_dims``, ``max_d |x_d| / RMS(x) > tau`` (see
    :func:`~sinklens.interventions.find_sink_dims`). Only tokens of the prompt become sinks, and they stay so while text
    is generated. The hidden states are those of the changed model. Layers before ``first_layer`` and (with
    ``spare_last``) the last one are left alone.

    p and rho mean what the paper says. The released code has both the other way round: its p is the portion that sinks
    keep and its rho the largest share that sinks may have, so its ``p: 0.6`` is ``p=0.4`` here. It also edits the last
    layer, against the paper, and takes one sequence at a time.

    Args:
        target: Image tokens or any span of text, in every sequence: positions, ranges, or several of both.
        sink_dims: Dimensions that mark sinks; give these or ``sinks``.
        sinks: Positions of sinks, in every sequence and layer.
        p: Portion moved, 0 to 1.
        rho: Smallest share of a row's target weight that lies beside the sinks, 0 to 1. The authors take 0.8 for
            general questions, 0.5 against hallucination, 0.9 for vision-centric tasks.
        min_mass: Smallest weight of a row on the target, 0 to 1.
        tau: Ratio above which a dimension is extreme.
        from_row: First position edited; default: the one after the target's last.
        heads: ``"all"``, or heads such as ``["L5H1", (5, 2)]``.
        first_layer: First layer edited.
        spare_last: Whether the last layer is left alone.
        prompt_length: For ``sink_dims``: tokens of the prompt, one number or one for each sequence. Not told, it is all
            of the last forward pass without a cache; a pass over prompt and continuation together needs it to equal
            cached decoding.

    Source: Kang et al. (2025), See What You Are Told: Visual Attention Sink in Large Multimodal Models,
    arXiv 2503.03321; code seilk/VisAttnSink.

    Cost: the attention time of the edited heads once or twice more; memory O(layer batch pos).
    """

    target: tuple[int, ...]
    sink_dims: tuple[int, ...] | None = None
    sinks: tuple[int, ...] | None = None
    p: float = 0.6
    rho: float = 0.8
    min_mass: float = 0.2
    tau: float = 20.0
    from_row: int | None = None
    heads: Heads = "all"
    first_layer: int = FIRST_LAYER
    spare_last: bool = True
    prompt_length: PromptLength = None

    def __post_init__(self) -> None:
        if (self.sink_dims is None) == (self.sinks is None):
            raise InputError("Give either sink_dims, from find_sink_dims(model, batch), or the positions of sinks.")
        if not isinstance(self.spare_last, bool):
            raise InputError(f"spare_last must be True or False, got {self.spare_last!r}.")
        for name in ("first_layer", "from_row"):
            number = getattr(self, name)
            if number is not None or name == "first_layer":
                if as_index(number) < 0:
                    raise InputError(f"{name} must be an integer from 0, got {number!r}.")
                object.__setattr__(self, name, as_index(number))
        for name in ("target", "sink_dims", "sinks"):
            if getattr(self, name) is not None or name == "target":
                object.__setattr__(self, name, parse_span(getattr(self, name), name))
        for name in ("p", "rho", "min_mass"):
            object.__setattr__(self, name, parse_number(getattr(self, name), name, 0, 1))
        object.__setattr__(self, "tau", parse_number(self.tau, "tau", 0))
        object.__setattr__(self, "heads", parse_heads(self.heads))
        object.__setattr__(self, "prompt_length", parse_prompt_length(self.prompt_length))

    def check(self, model: TransformerBridge) -> None:
        """The model has these heads, dimensions, and a layer to edit."""
        super().check(model)
        n_layers, width = len(model.blocks), int(model.cfg.d_model)
        if self.first_layer >= n_layers - self.spare_last:
            raise InputError(
                f"No layer is left to edit: the model has {n_layers}, edited are those from {self.first_layer} on"
                f"{' but not the last' if self.spare_last else ''}; set first_layer or spare_last."
            )
        if self.sink_dims is not None and self.sink_dims[-1] >= width:
            raise InputError(f"sink_dims names dimension {self.sink_dims[-1]}; the residual stream has {width}.")

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of the pattern."""
        return [_Redistribute(self, positions)]

    def hooks(self, positions: Positions) -> Sequence[tuple[Any, Any]]:
        """With ``sink_dims`` one hook on what enters every layer; it notes which tokens are extreme."""
        if self.sink_dims is None:
            return []

        def note(hidden: Float[Tensor, "batch pos d_model"], hook: HookPoint) -> None:
            layer = entered_layer(str(hook.name))
            if layer is not None and layer >= self.first_layer:
                extreme = channel_ratios(hidden)[..., list(self.sink_dims or ())].amax(-1) > self.tau
                positions.notes[self.sink_dims, self.tau, layer] = extreme

        return [(lambda name: entered_layer(name) is not None, note)]


@dataclass
class _Sinks:
    """Sinks of one layer among the ``flags.shape[1]`` tokens so far, and the note that the last of them came from."""

    flags: Bool[Tensor, "batch column"] = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))
    note: Tensor | None = None


class _Redistribute:
    def __init__(self, method: RedistributeAttention, positions: Positions) -> None:
        self.method, self.positions = method, positions
        self.prompt = PromptEnd(positions, method.prompt_length)
        self.layers: dict[int, _Sinks] = {}

    def edit_pattern(self, block: Block) -> None:
        method, layer = self.method, block.shape.layer
        if self.positions.n_layers is None:
            raise InputError(
                "RedistributeAttention has to know the model's last layer; open it with `with X(...)(model):`."
            )
        heads = heads_in_block(method.heads, block)
        if heads == [] or layer < method.first_layer or (method.spare_last and layer == self.positions.n_layers - 1):
            return
        rows, keys = self.positions.rows(block), self.positions.keys(block)
        target, sinks = _among(keys, method.target), self._sinks(block, keys)  # sinks are noted in every pass
        first = method.target[-1] + 1 if method.from_row is None else method.from_row
        if block.rows.stop + self.positions.cached <= first:
            return
        pattern, receivers = block.pattern[heads], target & ~sinks
        on_target, beside = (pattern * target).sum(-1), (pattern * receivers).sum(-1)
        chosen = (on_target >= method.min_mass) & (beside >= method.rho * on_target) & (rows >= first)
        block.pattern[heads] = move_mass(pattern, sinks, receivers, 1 - method.p, chosen)

    def _sinks(self, block: Block, keys: Tensor) -> Bool[Tensor, " k_pos"]:
        if self.method.sinks is not None:
            return _among(keys, self.method.sinks)
        flags = self._flags(block.shape)[block.sequence].to(keys.device)
        place = columns(block, self.positions)
        return pad(flags, (0, max(0, place.stop - len(flags))))[place]

    def _flags(self, shape: AttentionShape) -> Bool[Tensor, "batch column"]:
        """Sinks of the layer in hand among all tokens so far, those of the pass in hand included."""
        cached, layer = self.positions.cached, shape.layer
        held = self.layers.setdefault(layer, _Sinks())
        note: Tensor = self.positions.notes[self.method.sink_dims, self.method.tau, layer]
        if held.note is note:
            return held.flags
        if cached > 0 and (held.flags.shape[0] != shape.batch or held.flags.shape[1] < cached):
            raise InputError(UNKNOWN_CACHE.format(cached=cached))
        ends = torch.tensor(self.prompt.of(shape), device=note.device)
        new = note & (self.positions.row_positions(shape).to(note.device) < ends[:, None])
        held.flags = torch.cat([held.flags[:, :cached].to(new.device), new], 1) if cached else new
        held.note = note
        return held.flags


def _among(keys: Tensor, positions: tuple[int, ...]) -> Bool[Tensor, " k_pos"]:
    return torch.isin(keys, torch.tensor(positions, device=keys.device))
