"""Texts of several domains in one run: their sequences side by side, and how heads differ between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import MissingMass, ReceivedMass, StatisticFactory
from sinklens.capture.record import LayerRecord
from sinklens.detectors.sinks import SINK_HEAD_RATE, SINK_HEAD_RATIO, sequence_importance
from sinklens.errors import InputError
from sinklens.evidence.two_sample import difference_intervals
from sinklens.models.given_ids import is_encoding
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.unused import Unused
from sinklens.passes.sequences import choose_sequences

DomainTexts = Mapping[str, str | Sequence[str] | TokenBatch | Ids]
"""Texts, or tokens, by name of the domain."""
MEASURES = ("importance_first", "sink_rate_first", "mass_first")
COLUMNS = (
    "layer", "head", "domain", *MEASURES, "null_first", "is_sink_first", "n_sequences",
    *(f"{name}_difference{end}" for name in MEASURES for end in ("", "_low", "_high")),
)  # fmt: skip


@dataclass(frozen=True)
class Domains:
    """Sequences of several domains.

    Attributes:
        batch: All sequences, domain by domain.
        of: Domain of each sequence.
        source: What to call them in the provenance.
    """

    batch: TokenBatch
    of: tuple[str, ...]
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        """The domains in order."""
        return tuple(dict.fromkeys(self.of))

    def rows(self, indices: Sequence[int]) -> "Domains":
        """Some of the sequences.

        Raises:
            InputError: A domain would be left without any.
        """
        kept = replace(self, batch=self.batch.rows(indices), of=tuple(self.of[index] for index in indices))
        lost = [name for name in self.names if name not in kept.of]
        if lost:
            raise InputError(
                f"No sequence of the domain {', '.join(lost)} is long enough to measure; give longer texts."
            )
        return kept

    def facts(self) -> dict[str, Any]:
        """Number and lengths of each domain's sequences, for the header of a result."""
        found = {}
        for name in self.names:
            lengths = self.batch.lengths[torch.tensor([each == name for each in self.of])]
            found[name] = {
                "n_sequences": len(lengths),
                "n_tokens": int(lengths.sum()),
                "min_length": int(lengths.min()),
                "max_length": int(lengths.max()),
            }
        return found

    def notes(self) -> list[str]:
        """What stands in the way of a comparison."""
        means = {name: facts["n_tokens"] / facts["n_sequences"] for name, facts in self.facts().items()}
        out = [self.batch.unused.sentence(len(self.batch))] if self.batch.unused else []
        if max(means.values()) > 1.1 * min(means.values()):
            listed = ", ".join(f"{name} {mean:.0f}" for name, mean in means.items())
            out.append(
                f"The domains' sequences differ in length (mean tokens: {listed}), and importance falls with length: "
                "part of a difference is that. Use a max_tokens that all reach."
            )
        few = [name for name, facts in self.facts().items() if facts["n_sequences"] < 5]
        if few and len(self.names) > 1:
            out.append(f"{', '.join(few)}: fewer than 5 sequences, so no interval of a difference is given.")
        return out


def choose_domains(
    model: TransformerBridge,
    texts: DomainTexts,
    *,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    split: bool = True,
    max_sequences: int | None = None,
    seed: int = 0,
    source: str | None = None,
) -> Domains:
    """Tokenize the texts of every domain.

    Args:
        model: The bridge.
        texts: One or several texts, or tokens, by name of the domain.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest sequence.
        split: Cut long texts into sequences of ``max_tokens``.
        max_sequences: As for :func:`~sinklens.passes.sequences.choose_sequences`, of each domain.
        seed: Which sequences are drawn.
        source: What to call them.

    Raises:
        InputError: No domain, one without a name, or texts that cannot be tokenized.
    """
    names: list[Any] = [*texts]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError("Expected texts by domain, such as {'prose': [...], 'code': [...]}, each with a name.")
    batches = {}
    for name, given in texts.items():
        if given is None:
            raise InputError(f"The domain {name!r} has no texts, got None.")
        batches[name], _ = choose_sequences(
            model,
            given,
            bos=bos,
            max_tokens=max_tokens,
            split=split,
            seed=seed,
            max_sequences=max_sequences,
        )
    of = tuple(name for name, batch in batches.items() for _ in range(len(batch)))
    return Domains(join_batches(list(batches.values())), of, source or f"texts of the domains {', '.join(batches)}")


def by_domain_of(texts: Any) -> DomainTexts:
    """Texts by domain as they are; one or several texts, or tokens, as the domain ``"text"``."""
    return texts if isinstance(texts, Mapping) and not is_encoding(texts) else {"text": texts}


def join_batches(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Several batches of one model as one, padded to the longest sequence of all.

    The BOS counts as added by whoever added it to all of them, else by nobody, and statements that differ are all kept.
    """
    width = max(batch.ids.shape[1] for batch in batches)

    def stack(name: str) -> Tensor:
        rows: list[Tensor] = [getattr(batch, name) for batch in batches]
        return torch.cat([pad(row, (0, width - row.shape[1])) for row in rows])

    added = {batch.bos_added_by for batch in batches}
    return TokenBatch(
        ids=stack("ids"),
        real=stack("real"),
        special=stack("special"),
        tokens=tuple(row for batch in batches for row in batch.tokens),
        bos_id=batches[0].bos_id,
        bos_added_by=added.pop() if len(added) == 1 else "nobody",
        statement=" ".join(dict.fromkeys(batch.statement for batch in batches)),
        unused=sum((batch.unused for batch in batches), Unused()),
    )


class DomainJoin:
    """What every head gives position 0 in every sequence, and how that differs between domains.

    Args:
        of: Domain of each sequence of the run.
        eps: Threshold of the sink rate.
        seed: Of the bootstrap.

    Cost: three numbers per head and sequence.
    """

    def __init__(self, of: Sequence[str], eps: float, seed: int = 0) -> None:
        self.of, self.eps, self.seed = np.array(of, dtype=object), eps, seed
        self._importance: dict[int, np.ndarray] = {}
        self._mass: dict[int, np.ndarray] = {}
        self._null: dict[int, np.ndarray] = {}

    def statistics(self, batch: TokenBatch) -> Sequence[StatisticFactory]:
        """Attention received, and what learned sinks take."""
        return [ReceivedMass, MissingMass]

    def update(self, record: LayerRecord) -> None:
        """Take one layer of one batch."""
        if "mass" not in record.attention:
            return
        alpha = sequence_importance(record)[0][..., 0].double().cpu()
        lengths = record.batch.lengths.cpu()[:, None]
        # query 0 sees key 0 alone: what a learned sink leaves of its attention goes there
        trivial = 1 - record.attention["missing_mass"][..., 0].double().cpu()
        rest = (alpha * lengths - trivial) / (lengths - 1).clamp(min=1)
        null = record.attention["null_mass"][:, 0].double().cpu() / lengths[:, 0]
        rows = slice(record.first_sequence, record.first_sequence + len(record.batch))
        for store, values in ((self._importance, alpha), (self._mass, rest), (self._null, null)):
            shape = (len(self.of), *values.shape[1:])
            store.setdefault(record.layer, np.full(shape, np.nan))[rows] = values.numpy()

    def table(self) -> pd.DataFrame:
        """One row per head and domain.

        ``importance_first``, ``sink_rate_first`` (share of sequences above eps) and ``mass_first`` (attention on
        position 0 of all queries but the first) with ``null_first`` (of importance) and ``is_sink_first``; and for each
        the ``_difference`` to all other domains' sequences together with a 95 % bootstrap interval over sequences
        (``_low``, ``_high``; NaN with one domain, or fewer than 5 sequences in a group).
        """
        if not self._importance:
            return pd.DataFrame(columns=[*COLUMNS])
        layers = sorted(self._importance)
        heads = [self._importance[layer].shape[1] for layer in layers]
        importance = np.concatenate([self._importance[layer] for layer in layers], axis=1)
        null = np.stack([self._null[layer] for layer in layers], axis=1).repeat(heads, axis=1)
        values = {
            "importance_first": importance,
            "sink_rate_first": (importance > self.eps).astype(float),
            "mass_first": np.concatenate([self._mass[layer] for layer in layers], axis=1),
        }
        frames = []
        for name in dict.fromkeys(self.of.tolist()):
            here = self.of == name
            frame = pd.DataFrame({"layer": np.repeat(layers, heads), "head": np.concatenate([*map(np.arange, heads)])})
            frame["domain"], frame["n_sequences"] = name, int(here.sum())
            frame["null_first"] = null[here].mean(0)
            for measure, by_sequence in values.items():
                frame[measure] = by_sequence[here].mean(0)
                found = difference_intervals(by_sequence[here], by_sequence[~here], seed=self.seed)
                for end, column in zip(("", "_low", "_high"), found, strict=True):
                    frame[f"{measure}_difference{end}"] = column
            frames.append(frame)
        table = pd.concat(frames, ignore_index=True)
        ratio = table["importance_first"] / table["null_first"]
        table["is_sink_first"] = (table["sink_rate_first"] >= SINK_HEAD_RATE) & (ratio >= SINK_HEAD_RATIO)
        return table.sort_values(["layer", "head"], kind="stable", ignore_index=True)[[*COLUMNS]]
