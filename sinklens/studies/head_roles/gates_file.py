"""DuoAttention's gate files: a table with a row per layer and a column per KV head, and the cache sizes beside it."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from jaxtyping import Float

from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.metric import Metric
from sinklens.errors import InputError
from sinklens.models.reading import named_text, read_json
from sinklens.results.files import write_atomically

TABLE, CONFIG = "full_attention_heads.tsv", "config.json"
SINK, RECENT = 64, 256
"""First and most recent keys of a streaming head where no file says otherwise: what the authors deploy with."""

RELEASED_GATE = Metric(
    "streaming_gate",
    1,
    "learned share of full attention in the KV head's output, the rest is attention to sinks and recent keys only; "
    "clipped to 0 to 1, as the authors' loader does",
    "Xiao et al. 2025, arXiv 2410.10819; released full_attention_heads.tsv",
)


@dataclass(frozen=True)
class Gates:
    """One gate per layer and KV head, as DuoAttention stores and loads them.

    Attributes:
        values: ``[layer kv_head]`` fp64, as in the file: training leaves them a little below 0 here and there.
        sink: First keys that a streaming head keeps; ``None`` when no file said so.
        recent: Most recent keys that it keeps, its own included; ``None`` likewise.
        name: What the gates are of.
    """

    values: Float[np.ndarray, "layer kv_head"] = field(repr=False)
    sink: int | None = None
    recent: int | None = None
    name: str = "gates"

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not self.values.size or not np.isfinite(self.values).all():
            raise InputError(f"{self.name} must be finite numbers [layer kv_head], got shape {self.values.shape}.")

    @classmethod
    def of(cls, scores: HeadScores, column: str = "streaming_gate") -> Self:
        """Gates from scores of heads, such as those of ``learn_gates(model).heads``.

        Args:
            scores: One row per query head, with ``kv_head`` where heads share KV heads.
            column: The score that becomes the gate; the largest of a group of query heads.

        Raises:
            InputError: No such score, or a KV head without one.
        """
        if column not in scores.frame:
            raise InputError(f"There is no score {column!r} to make gates of; there are {', '.join(scores.scores)}.")
        frame = scores.frame if "kv_head" in scores.frame else scores.frame.assign(kv_head=scores.frame["head"])
        table = frame.pivot_table(index="layer", columns="kv_head", values=column, aggfunc="max", dropna=False)
        if table.isna().to_numpy().any() or len(table) <= int(table.index.max()):
            raise InputError(f"Not every KV head has a {column}, and a gate file has no way to leave one out.")
        settings = scores.meta.get("settings", scores.meta)
        sink, recent = settings.get("sinks", settings.get("sink")), settings.get("recent")
        return cls(table.to_numpy(dtype=np.float64), sink, recent, f"gates by {column}")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the table, and the cache sizes when a ``config.json`` lies beside it.

        Args:
            path: The ``.tsv`` file, or the directory that holds ``full_attention_heads.tsv``.

        Raises:
            InputError: No such file, something that is no number, rows of different lengths, or a wrong config.
        """
        path = Path(path)
        path = path / TABLE if path.is_dir() else path
        lines = [line for line in named_text(path, "The gates").splitlines() if line.strip()]
        rows = []
        for number, line in enumerate(lines):
            try:
                rows.append([float(cell) for cell in line.split("\t")])
            except ValueError as error:
                raise InputError(f"{path}, layer {number}: expected numbers between tabs; {error}.") from error
            if len(rows[-1]) != len(rows[0]):
                raise InputError(
                    f"{path} has {len(rows[-1])} gates in layer {number} and {len(rows[0])} in layer 0; it must have "
                    "one for each KV head of every layer."
                )
        if not rows:
            raise InputError(f"{path} is empty; expected a row of gates for each layer.")
        sink, recent = _sizes(path.with_name(CONFIG))
        return cls(np.array(rows), sink, recent, path.parent.name if path.name == TABLE else path.stem)

    def write(self, directory: str | Path) -> Path:
        """Write ``full_attention_heads.tsv`` and ``config.json``, what DuoAttention's ``load_attn_pattern`` reads.

        Without sizes of its own the config names 64 sinks and 256 recent keys. Gates that were read come out byte for
        byte.

        Raises:
            ResultError: The place cannot be written.
        """
        directory, text = Path(directory), io.StringIO()
        np.savetxt(text, self.values, delimiter="\t")
        sizes = {"sink_size": SINK if self.sink is None else self.sink}
        sizes |= {"recent_size": RECENT if self.recent is None else self.recent}
        write_atomically(directory / CONFIG, (json.dumps(sizes) + "\n").encode())
        return write_atomically(directory / TABLE, text.getvalue().encode())

    def scores(self, n_heads: int | None = None) -> HeadScores:
        """The gates as scores of query heads, each with its KV head's.

        Args:
            n_heads: Query heads of a layer; default: as many as KV heads. The file does not tell.

        Raises:
            InputError: ``n_heads`` is no multiple of the number of KV heads.

        Example:
            >>> Gates(np.array([[1.0, -0.001]])).scores(n_heads=4).frame["streaming_gate"].tolist()
            [1.0, 1.0, 0.0, 0.0]
        """
        layers, kv_heads = self.values.shape
        n_heads = n_heads or kv_heads
        if n_heads % kv_heads:
            raise InputError(f"{self.name} has {kv_heads} KV heads in a layer, which do not divide {n_heads} heads.")
        layer, head = np.divmod(np.arange(layers * n_heads), n_heads)
        kv_head = head // (n_heads // kv_heads)
        gate = self.values.clip(0, 1)[layer, kv_head]
        frame = pd.DataFrame({"layer": layer, "head": head, "kv_head": kv_head, "streaming_gate": gate})
        meta = {"source": self.name, "unit": "kv_head", "sink": self.sink, "recent": self.recent}
        return HeadScores(frame, {"streaming_gate": RELEASED_GATE}, meta)


def _sizes(path: Path) -> tuple[int | None, int | None]:
    if not path.is_file():
        return None, None
    try:
        content: Any = read_json(path)
        if not {"sink_size", "recent_size"} <= content.keys():
            return None, None  # the config of something else
        return int(content["sink_size"]), int(content["recent_size"])
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); it must name sink_size and recent_size, or be away.") from error
