"""Double Sparsity: keys chosen by a few channels of query and key."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class DoubleSparsity(Policy):
    """Keeps the keys with the largest scores as a few channels predict them.

    Channels: those with the largest mean ``|q_c k_c|`` over the text's first ``calibration`` rows, per head (the method
    takes them from other text beforehand). Scores of the kept keys are the true ones. Neither first nor recent tokens
    are safe.

    Args:
        k: Keys a row reads.
        channels: Channels that predict.
        dense_layers: First layers that read everything.
        calibration: Rows at the start of a text that choose the channels and read everything.
    """

    k: int = 64
    channels: int = 8
    dense_layers: int = 2
    calibration: int = 16

    name: ClassVar[str] = "double_sparsity"
    scope: ClassVar = "causal"
    positive: ClassVar = ("channels",)
    source: ClassVar[str] = "Yang et al. 2024, arXiv 2408.07092; andy-yang-1/DoubleSparse"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Keys by predicted score."""
        if view.layer < self.dense_layers:
            return view.visible
        early = view.rows_of_text & (view.rows < self.calibration)
        if "channels" not in view.state and bool(early.any()):
            query = (view.query.abs() * early[:, None]).sum(1)
            key = (view.key.abs() * (view.is_text & (view.keys < self.calibration))[:, None]).sum(1)
            view.state["channels"] = (query * key).topk(min(self.channels, query.shape[-1]), -1).indices
        if "channels" not in view.state:
            return view.visible
        at = view.state["channels"][:, None]
        query = view.query.gather(-1, at.expand(-1, len(view.rows), -1))
        key = view.key.gather(-1, at.expand(-1, len(view.keys), -1))
        chosen = top_keys(query @ key.transpose(-1, -2), self.k, view.visible)
        return chosen | (view.rows < self.calibration)[:, None]

    @classmethod
    def sized(cls, keys: int, length: int) -> "DoubleSparsity":
        """The budget itself, in every layer."""
        return cls(keys, dense_layers=0)
