"""One pass with some detectors: what a scan and every measurement of your own are made of."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import Tensor

from sinklens.arguments import checked
from sinklens.capture.finite import NonFinite
from sinklens.capture.heap import ROWS, give_back
from sinklens.capture.memory import plan_memory
from sinklens.capture.run import Consumer, Opener, capture
from sinklens.capture.spent import spent
from sinklens.detectors.base import SHARED, Detector, Metric
from sinklens.detectors.registry import choose_detectors, metrics_of
from sinklens.errors import InputError, ResultError
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import Ids, TokenBatch, as_batch
from sinklens.results.progress import SILENT, Progress


@dataclass(frozen=True)
class Measurement:
    """What some detectors found in one pass.

    Attributes:
        detectors: Those that ran, in the order of their ranks.
        tables: All their tables by name; ``"layers"`` and ``"head_scores"`` join what they say about each layer and
            each head.
        sequences: Numbers of the sequences that were measured.
        seconds: Time by part: see :func:`~sinklens.capture.run.capture`, and ``tables``, made after the pass.
    """

    detectors: tuple[Detector, ...]
    tables: dict[str, pd.DataFrame] = field(repr=False)
    sequences: Sequence[int] = field(repr=False)
    seconds: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def metrics(self) -> dict[str, Metric]:
        """Definitions behind the tables, by name."""
        return {metric.name: metric for metric in metrics_of(self.detectors)}

    @property
    def verdict(self) -> list[str]:
        """What the detectors say of these tables; most speak of a finished census and are silent here."""
        return [sentence for each in self.detectors for sentence in each.verdict(self.tables, {})]

    def merge(self, other: "Measurement") -> "Measurement":
        """Both together, as if all sequences had been measured at once.

        Raises:
            InputError: Other detectors ran, one of them cannot be merged, or both measured a sequence.
        """
        if [each.name for each in self.detectors] != [each.name for each in other.detectors]:
            raise InputError("Only measurements with the same detectors can be merged.")
        if twice := {*self.sequences} & {*other.sequences}:
            raise InputError(f"Both measured sequence {min(twice)}; number those of the second with first_sequence=.")
        detectors = copy.deepcopy(self.detectors)
        for mine, theirs in zip(detectors, other.detectors, strict=True):
            mine.merge(theirs)
        return Measurement(detectors, tables_of(detectors), (*self.sequences, *other.sequences))

    def to_dataframe(self, name: str) -> pd.DataFrame:
        """One table.

        Raises:
            ResultError: No detector made it.
        """
        if name not in self.tables:
            raise ResultError(f"There is no table {name!r}; there are {', '.join(self.tables)}.")
        return self.tables[name]


@checked
def measure(
    model: AnyModel,
    batch: TokenBatch | Ids,
    detectors: str | Detector | Sequence[str | Detector],
    *,
    batch_size: int | None = None,
    beside: Sequence[Consumer] = (),
    intervention: Opener | None = None,
    first_sequence: int = 0,
    nonfinite: NonFinite | None = None,
    progress: Progress = SILENT,
    keep: bool = True,
    logits: Callable[[TokenBatch, Tensor], None] | None = None,
    **options: Any,
) -> Measurement:
    """Run detectors over one pass: the statistics that they ask for are taken once, and no others.

    ::

        found = measure(model, tokenize(model, texts), ["previous_token", "state_norms", KeyNormPeak()], position=0)
        found.tables["key_norms"]

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        batch: Tokens from :func:`sinklens.tokenize`, or ids.
        detectors: Names, see :func:`~sinklens.detectors.registry.all_detectors`, or objects of your own.
        batch_size: Sequences in one forward pass; default: what fits the memory.
        beside: Others that take the records of the same pass.
        intervention: A change of the model under which everything is measured.
        first_sequence: Number of the first sequence in the records.
        nonfinite: As for :func:`~sinklens.capture.capture`; its ``mask`` takes the numbers out of the tables.
        progress: Told after each layer, in sequences times layers.
        keep: Whether the detectors keep what :meth:`Measurement.merge` needs; without it, long texts need less memory.
        logits: As for :func:`~sinklens.capture.capture`; give a ``batch_size`` that leaves memory for them.
        options: Settings for the named detectors that take them, such as ``eps=0.4``.

    Raises:
        InputError: An unknown detector, one without what its constructor asks for, an option that none of them takes,
            two that give one table, or tokens that cannot be measured.
        UnsupportedArchitectureError: A detector needs what this model cannot give.

    Cost: one forward pass, its attention about twice as slow as fused attention; memory O(tokens) on the fast path.
    """
    bridge = as_bridge(model)
    given = [detectors] if isinstance(detectors, str | Detector) else list(detectors or ())
    chosen = choose_detectors(given, **options)
    taken = {name for each in chosen if each.name in given for name in inspect.signature(type(each)).parameters}
    if unknown := options.keys() - taken:
        raise InputError(
            f"No named detector of this pass takes {', '.join(sorted(unknown))}; they take "
            f"{', '.join(sorted(taken)) or 'no options'}."
        )
    rows = as_batch(bridge, batch)
    seconds: dict[str, float] = {}
    capture(
        bridge,
        rows,
        [*beside, *chosen],
        batch_size=plan_memory(bridge, len(rows), rows.ids.shape[1]).batch_size if batch_size is None else batch_size,
        first_sequence=first_sequence,
        intervention=intervention,
        nonfinite=nonfinite,
        progress=progress,
        seconds=seconds,
        logits=logits,
    )
    with spent(seconds, "tables"):
        tables = tables_of(chosen, keep=keep)
    return Measurement(tuple(chosen), tables, range(first_sequence, first_sequence + len(rows)), seconds)


def tables_of(detectors: Sequence[Detector], *, keep: bool = True) -> dict[str, pd.DataFrame]:
    """All tables by name; the columns of those that are :data:`~sinklens.detectors.base.SHARED` stand side by side.

    Args:
        detectors: Those that make them.
        keep: Whether each keeps what it collected.

    Raises:
        InputError: Two detectors give a table, or a column of a shared one, of one name; or something else than frames.
    """
    tables: dict[str, pd.DataFrame] = {}
    for detector in detectors:
        found: Any = detector.tables()
        if not keep:
            detector.forget()
            if isinstance(found, Mapping) and sum(len(frame) for frame in found.values()) >= ROWS:
                give_back()
        if not isinstance(found, Mapping) or not all(isinstance(frame, pd.DataFrame) for frame in found.values()):
            raise InputError(f"{detector.name}: tables() must give DataFrames by name, got {type(found).__name__}.")
        for name, frame in found.items():
            if name not in tables:
                tables[name] = frame
                continue
            keys = SHARED.get(name, ())
            both = sorted({*tables[name].columns} & {*frame.columns} - {*keys})
            if not keys or both:
                raise InputError(
                    f"{detector.name} gives a table {name!r}{f' with {both}' if keys else ''} that another detector of "
                    "this pass gives, too; give it another name."
                )
            tables[name] = tables[name].merge(frame, on=list(keys), how="outer", validate="one_to_one")
    return tables
