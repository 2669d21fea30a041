"""AblateHeads: heads silenced, made uniform, or given the output they have elsewhere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionShape, Block
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.head_outputs import HeadOutputs, parse_outputs
from sinklens.interventions.heads import Heads, head_name, heads_in_block, heads_in_layer, parse_heads
from sinklens.interventions.positions import Positions
from sinklens.models.architecture import attention_layers
from sinklens.wording import several

SOURCES = {"mean": "mean_outputs(model, batch)", "resample": "prompt_outputs(model, batch)"}
"""Where the outputs come from, for the ways that need some."""

HOW = ("zero", "uniform", *SOURCES)


@dataclass(frozen=True)
class AblateHeads(Intervention):
    """Takes away what heads do, in one of four ways that differ.

    - ``"zero"``: the head's output ``z = pattern @ value`` is 0, so it adds nothing to the residual stream (biases of
      ``W_O`` stay). Also removes what the head adds to every text, so later layers may see what they never saw.
    - ``"mean"``: z is the head's mean output over a reference text, from :func:`mean_outputs`: one vector at all
      positions, or with ``per_position=True`` each position's own. Takes away what depends on the text and keeps what
      does not.
    - ``"resample"``: z is what the head put out at the same position of one other prompt, from :func:`prompt_outputs`.
      Everything about z is natural but its text, which it carries over: repeat it over several prompts.
    - ``"uniform"``: the head attends equally to all keys it may see (those that an earlier part of a composition hid
      are left out) and hands on the plain average of their values. Rows sum to 1, also with a learned sink logit.
      Papers on retrieval heads call this masking a head.

    z is taken before any output gate. Compare with as many random heads of the same layers before believing an effect.

    Args:
        heads: Heads such as ``["L5H1", (5, 2)]``, or ``"all"``.
        how: ``"zero"``, ``"mean"``, ``"resample"`` or ``"uniform"``.
        outputs: For ``"mean"`` and ``"resample"`` what takes the place of z, by head name; must hold every ablated
            head. Outputs by position are counted from the text's first token, and no text may be longer than they are.
    """

    heads: Heads
    how: Literal["zero", "mean", "resample", "uniform"] = "zero"
    outputs: Mapping[str, Sequence[float] | Sequence[Sequence[float]]] | None = field(
        default=None, repr=False, hash=False
    )

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise InputError(f'how must be "zero", "mean", "resample" or "uniform", got {self.how!r}.')
        if (self.how in SOURCES) != (self.outputs is not None):
            wanted = f"needs outputs={SOURCES[self.how]}" if self.how in SOURCES else "takes no outputs"
            raise InputError(f'how="{self.how}" {wanted}.')
        object.__setattr__(self, "heads", parse_heads(self.heads))
        if self.outputs is None:
            return
        outputs = parse_outputs(self.outputs)
        if self.how == "resample" and not all(isinstance(output[0], list) for output in outputs.values()):
            raise InputError(
                'how="resample" needs an output for every position, from prompt_outputs(model, batch); one vector for '
                'all positions is how="mean".'
            )
        object.__setattr__(self, "outputs", outputs)

    def check(self, model: TransformerBridge) -> None:
        """The model has these heads, and each has its output where one is needed."""
        super().check(model)
        if self.outputs is None:
            return
        every = [(layer, head) for layer in attention_layers(model) for head in range(model.cfg.n_heads)]
        for head in every if isinstance(self.heads, str) else self.heads:
            if head_name(head) not in self.outputs:
                raise InputError(f"outputs has no output of {head_name(head)}; take it from {SOURCES[self.how]}.")

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of attention or of head outputs."""
        if self.how == "uniform":
            return [_Uniform(self.heads)]
        return [_Replace(self.heads, None if self.outputs is None else parse_outputs(self.outputs), positions)]


class _Uniform:
    def __init__(self, heads: Heads) -> None:
        self.heads = heads

    def edit_scores(self, block: Block) -> None:
        heads = heads_in_block(self.heads, block)
        if heads != []:
            scores = block.scores[heads]
            block.scores[heads] = torch.where(scores == -math.inf, scores, 0)

    def edit_pattern(self, block: Block) -> None:
        # a learned sink logit has taken its share of the row
        heads = heads_in_block(self.heads, block)
        if heads != []:
            pattern = block.pattern[heads]
            block.pattern[heads] = pattern / pattern.sum(-1, keepdim=True).clamp(min=1e-30)


class _Replace:
    def __init__(self, heads: Heads, outputs: HeadOutputs | None, positions: Positions) -> None:
        self.heads, self.outputs, self.positions = heads, outputs, positions

    def edit_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        heads = heads_in_layer(self.heads, shape)
        if self.outputs is None:
            output[:, heads] = 0
            return
        rows = self.positions.row_positions(shape).clamp(min=0)  # left padding takes anything
        longest = 1 + int(rows.max()) if heads else 0
        for head in heads:
            name = head_name((shape.layer, head))
            other = self.outputs.tensor(name, output)
            if other.shape[-1] != output.shape[-1]:
                raise InputError(f"The output of {name} has {other.shape[-1]} numbers, it needs {output.shape[-1]}.")
            if other.ndim == 2 and longest > len(other):
                raise InputError(
                    f"The text has {several(longest, 'token')} and the outputs of {name} end after "
                    f"{several(len(other), 'position')}; take them from a text that is as long, or cut this one."
                )
            output[:, head] = other[rows] if other.ndim == 2 else other
