"""What one pass over some texts says, kept text by text so that intervals can be taken over texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.capture import capture
from sinklens.capture.record import LayerRecord
from sinklens.detectors.compression import matrix_entropy
from sinklens.detectors.massive_activations import ABSOLUTE, RATIO
from sinklens.detectors.massive_channels import CONTRAST, fp32_bound
from sinklens.detectors.secondary_sinks import SecondarySinkDetector
from sinklens.interventions import Intervention
from sinklens.models import TokenBatch

LAST = 10
"""The last keys are seen by too few queries to be judged."""


@dataclass
class Observed:
    """A consumer of layer records that keeps them by text. Layer 0 of residual arrays is before the first layer.

    Attributes:
        importance: Mean attention a key receives from the queries that see it, ``[layer text head key]``.
        uniform: The same if every query attended uniformly, ``[layer text key]``.
        value_norm: ``|W_O v|`` of every token, ``[layer text head key]``.
        wrote: Mean ``|W_O z|`` of every head, ``[layer text head]``; empty under an intervention.
        norm: Length of the residual state, ``[layer text key]``.
        top: Largest magnitude of a token's state, ``[layer text key]``.
        median: Median magnitude of a text's states, ``[layer text]``.
        cosine: To position 0's state, ``[layer text key]``.
        entropy: Matrix entropy in nats with and without row 0, ``[layer text 2]``.
        entries: ``(layer, text, position, channel, value)`` of every massive activation: above 100, above 1,000 x the
            text's median, and above 10 x its channel's median over the tokens (a channel that is large at every token
            marks none of them); all strict.
        secondary: Wong et al.'s secondary sinks, one row a token.
    """

    outputs: bool = True
    needs: tuple[str, ...] = ("hidden",)
    parts: dict[str, dict[int, list[np.ndarray]]] = field(default_factory=dict)
    entries: list[tuple[int, int, int, int, float]] = field(default_factory=list)
    secondary: Any = None

    def __post_init__(self) -> None:
        self.needs = ("hidden", "outputs") if self.outputs else ("hidden",)

    def update(self, record: LayerRecord) -> None:
        """Take one layer of some texts."""
        hidden, residual = record.hidden, record.residual
        assert hidden is not None and residual is not None
        hidden = hidden.float()
        self._keep("norm", record, residual.norm)
        self._keep("top", record, residual.token_max)
        self._keep("median", record, residual.median)
        self._keep("cosine", record, torch.nn.functional.cosine_similarity(hidden, hidden[:, :1], dim=-1))
        both = [matrix_entropy(hidden, first_row=first) for first in (True, False)]
        self._keep("entropy", record, torch.stack(both, -1))
        for row, states in enumerate(hidden):
            magnitude, bound = states.abs(), max(ABSOLUTE, RATIO * float(residual.median[row]))
            found = magnitude > fp32_bound(bound)
            if found.any():
                found &= magnitude > CONTRAST * magnitude.median(0).values
            for position, channel in found.nonzero().tolist():
                value = float(states[position, channel])
                self.entries.append((record.layer, record.first_sequence + row, position, channel, value))
        if record.attention:
            queries = record.attention["queries"].clamp(min=1)
            self._keep("importance", record, record.attention["mass"] / queries[:, None])
            self._keep("uniform", record, record.attention["null_mass"] / queries)
            assert record.values is not None and record.values.output is not None
            self._keep("value_norm", record, record.values.output)
        if record.outputs is not None:
            self._keep("wrote", record, record.outputs.mean(-1))

    def _keep(self, name: str, record: LayerRecord, values: Any) -> None:
        self.parts.setdefault(name, {}).setdefault(record.layer, []).append(values.detach().cpu().float().numpy())

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_") or name == "parts" or name not in self.parts:
            raise AttributeError(name)
        layers = self.parts[name]
        stacked = np.stack([np.concatenate(layers[layer]) for layer in sorted(layers)])
        setattr(self, name, stacked)  # next time it is found before this is asked
        return stacked

    def sinks(self, eps: float, position: int = 0) -> np.ndarray:
        """Whether each head sinks on a key in each text, ``[layer text head]``."""
        found: np.ndarray = self.importance[..., position] > eps
        return found

    def sink_rate(self, eps: float, position: int = 0) -> np.ndarray:
        """Share of heads that sink on a key, by text."""
        rate: np.ndarray = self.sinks(eps, position).mean((0, 2))
        return rate

    @property
    def n_texts(self) -> int:
        """How many texts."""
        return int(self.norm.shape[1])

    def by_text(self, entries: Sequence[tuple[int, int, int, int, float]]) -> list[list[tuple[int, int, int, float]]]:
        """Entries of each text: layer, position, channel, value."""
        out: list[list[tuple[int, int, int, float]]] = [[] for _ in range(self.n_texts)]
        for layer, text, position, channel, value in entries:
            out[text].append((layer, position, channel, value))
        return out


def observe(model: TransformerBridge, batch: TokenBatch, intervention: Intervention | None = None) -> Observed:
    """One pass over texts of equal length."""
    seen, secondary = Observed(outputs=intervention is None), SecondarySinkDetector()
    capture(model, batch, [seen, secondary], batch_size=8, intervention=intervention)
    seen.secondary = secondary.tables()["secondary_sinks"]
    return seen
