"""What a census keeps besides the detectors' tables: the per-token join, the example sequence and its maps."""

import math

import numpy as np
import pandas as pd
import torch

from sinklens.capture.record import LayerRecord
from sinklens.detectors.massive_activations import ABSOLUTE, RATIO
from sinklens.detectors.massive_channels import specific_tokens
from sinklens.detectors.sinks import sequence_importance
from sinklens.models.tokens import TokenBatch
from sinklens.studies.census.result import AttentionMap
from sinklens.studies.census.sink_ranking import by_importance
from sinklens.studies.census.verdict.drains import DRAINED


class TokenJoin:
    """Per token: for how many heads it is a sink, its mean importance, its residual peak, whether it is massive.

    A token is massive where an entry meets the criterion and is above ten times its channel's median over the tokens of
    the sequence: a channel that is large at every token would flag them all.

    Args:
        lengths: Number of real tokens of every sequence of the run.
        eps: Threshold on a sequence's importance.
        min_queries: Tokens that fewer queries could see are not judged (``n_sink_heads`` is NaN).
    """

    needs = ("hidden",)

    def __init__(self, lengths: torch.Tensor, eps: float, min_queries: int) -> None:
        self.lengths, self.eps, self.min_queries = lengths, eps, min_queries
        shape = (len(lengths), int(lengths.max()))
        self.n_sink_heads = torch.zeros(shape)
        self.received = torch.zeros(shape)
        self.heads = 0
        self.peak_ratio = torch.zeros(shape)
        self.drained = torch.zeros(shape)
        self.drains_known = False
        self.absolute = torch.zeros(shape, dtype=torch.bool)
        self.relative = torch.zeros(shape, dtype=torch.bool)

    def update(self, record: LayerRecord) -> None:
        """Take one layer of one batch."""
        batch, width = record.real.shape
        rows, columns = slice(record.first_sequence, record.first_sequence + batch), slice(0, width)
        if "mass" in record.attention:
            alpha, _ = sequence_importance(record)
            self.n_sink_heads[rows, columns] += (alpha > self.eps).sum(1).cpu()
            self.received[rows, columns] += alpha.sum(1).cpu()
            if record.first_sequence == 0:
                self.heads += alpha.shape[1]
        if record.values is not None and record.values.output is not None:
            self.drained[rows, columns] += drained_heads(record.values.output, record.real).cpu()
            self.drains_known = True
        if record.residual is not None and record.layer >= 0:
            norm = record.residual.norm.cpu()
            median = torch.nanmedian(norm, dim=1, keepdim=True).values
            ratio = (norm / median).nan_to_num()
            self.peak_ratio[rows, columns] = torch.maximum(self.peak_ratio[rows, columns], ratio)
            self._flag(record)

    def _flag(self, record: LayerRecord) -> None:
        if record.hidden is None or record.residual is None:
            return
        token_max = record.residual.token_max.to(record.hidden.device)
        for row, length in enumerate(record.batch.lengths.tolist()):
            sequence, largest = record.first_sequence + row, token_max[row, :length]
            bounds = (ABSOLUTE, RATIO * float(record.residual.median[row]))
            for flags, bound in zip((self.absolute, self.relative), bounds, strict=True):
                flags[sequence, :length] |= specific_tokens(record.hidden[row, :length], largest, bound).cpu()

    def table(
        self, ids: torch.Tensor, special: torch.Tensor, bos: torch.Tensor, tokens: list[list[str]]
    ) -> pd.DataFrame:
        """The finished table, padding left out."""
        sequence, position = (torch.arange(ids.shape[1])[None] < self.lengths[:, None]).nonzero(as_tuple=True)
        queries = self.lengths[sequence] - position

        def at(values: torch.Tensor) -> np.ndarray:
            return values[sequence, position].numpy()

        judged = (queries >= self.min_queries).numpy() & (self.heads > 0)
        return pd.DataFrame(
            {
                "sequence": sequence.numpy(),
                "position": position.numpy(),
                "token_id": at(ids),
                "token": [token for row in tokens for token in row],
                "is_special": at(special),
                "is_bos": at(bos),
                "n_sink_heads": np.where(judged, at(self.n_sink_heads), np.nan),
                "received": at(self.received) / self.heads if self.heads else np.nan,
                "n_drained_heads": at(self.drained) if self.drains_known else np.nan,
                "peak_ratio": at(self.peak_ratio),
                "is_massive_absolute": at(self.absolute),
                "is_massive_ratio": at(self.relative),
            }
        )


def drained_heads(output: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """For how many heads ``|W_O v|`` of a token is below half of the other tokens' mean, ``[batch pos]``."""
    norms = output.double().masked_fill(~real[:, None].to(output.device), 0)
    others = (norms.sum(-1, keepdim=True) - norms) / (real.sum(1) - 1).clamp(min=1)[:, None, None].to(norms.device)
    return (norms < DRAINED * others).sum(1).float()


class Example:
    """Norms by layer and token, and all heads' pooled maps, of the first sequence."""

    def __init__(self) -> None:
        self.frames: list[pd.DataFrame] = []
        self.maps: dict[tuple[int, int], np.ndarray] = {}
        self.cell = 1

    def update(self, record: LayerRecord) -> None:
        """Keep the first sequence of the first batch."""
        if record.first_sequence != 0:
            return
        length = int(record.batch.lengths[0])
        frame = pd.DataFrame({"layer": record.layer, "position": range(length), "token": record.batch.tokens[0]})
        nothing = np.full(length, np.nan)
        residual, values = record.residual, record.values
        frame["resid_norm"] = nothing if residual is None else residual.norm[0, :length].cpu().numpy()
        frame["value_norm"] = nothing if values is None else values.value[0, :, :length].mean(0).cpu().numpy()
        after = None if values is None else values.output
        frame["wo_value_norm"] = nothing if after is None else after[0, :, :length].mean(0).cpu().numpy()
        frame["received"] = nothing
        if "mass" in record.attention:
            frame["received"] = sequence_importance(record)[0][0, :, :length].mean(0).cpu().numpy()
        self.frames.append(frame)
        pooled = record.attention.get("pooled_map")
        if pooled is not None:
            self.cell = 1
            while -(-record.real.shape[1] // self.cell) > pooled.shape[-1]:
                self.cell *= 2
            cells = -(-length // self.cell)
            for head in range(pooled.shape[1]):
                self.maps[record.layer, head] = pooled[0, head, :cells, :cells].cpu().numpy()

    def profile(self) -> pd.DataFrame:
        """``layer, position, token, resid_norm, value_norm, wo_value_norm, received``."""
        return pd.concat(self.frames, ignore_index=True) if self.frames else pd.DataFrame()


def choose_maps(example: Example, heads: pd.DataFrame | None, batch: TokenBatch, count: int) -> dict[str, AttentionMap]:
    """Attention maps of the strongest sink heads, then of the most focused others."""
    if heads is None or heads.empty or not example.maps:
        return {}
    sinks = by_importance(heads[heads["is_sink"]]).head(math.ceil(count / 2))
    focused = heads[~heads["is_sink"]].sort_values(["entropy", "layer", "head"]).head(count)
    chosen: dict[tuple[int, int], str] = {}
    for _, row in sinks.iterrows():
        why = f"importance {row['importance']:.2f} at position {row['sink_position']}, sink rate {row['sink_rate']:.2f}"
        chosen[int(row["layer"]), int(row["head"])] = why
    for index in [*range((count + 1) // 2), *range(len(focused))]:
        if len(chosen) >= count or index >= len(focused):
            continue
        row = focused.iloc[index]
        why = f"no sink; entropy {row['entropy']:.2f} of at most {row['entropy_null']:.2f} nats"
        chosen.setdefault((int(row["layer"]), int(row["head"])), why)
    length = int(batch.lengths[0])
    out = {}
    for (layer, head), why in chosen.items():
        values = example.maps[layer, head]
        out[f"L{layer}H{head}"] = AttentionMap(layer, head, values, example.cell, length, list(batch.tokens[0]), why)
    return out
