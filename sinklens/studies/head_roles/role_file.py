"""The head-role file: which heads of a model have which role, with scores and definitions, as one JSON file."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.metric import Metric
from sinklens.errors import InputError, ResultError
from sinklens.interventions.heads import Head, check_heads, head_name, parse_head
from sinklens.models.reading import named_json
from sinklens.results.files import write_atomically
from sinklens.studies.head_roles.gates_file import RECENT, SINK, Gates

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT, FORMAT_VERSION = "sinklens-head-roles", 1


@dataclass(frozen=True)
class RoleFile:
    """Roles of a model's heads, to hand to an intervention, to another tool or to a serving engine.

    ::

        roles = HeadRoles.read("head-roles.json")
        roles.check(model)
        with AblateHeads(roles.heads("retrieval"), how="uniform")(model):
            ...
        roles.gates("retrieval").write("patterns/mine")  # what DuoAttention loads

    The file is JSON: ``format``, ``format_version``, ``model`` (name, architecture, n_layers, n_heads, n_kv_heads),
    ``roles`` (by name: ``heads`` such as ``"L1H0"``, counted from 0, ``rule`` and ``source``), ``scores`` (by name:
    one list per layer with a number per head, ``null`` where it does not apply) and ``definitions`` (by score:
    version, definition, source).

    Attributes:
        model: What the heads are of.
        roles: Heads by role, in order of layer and head.
        rules: By role: ``rule`` and ``source`` as text.
        scores: One row per head.
    """

    model: Mapping[str, Any]
    roles: Mapping[str, tuple[Head, ...]]
    rules: Mapping[str, Mapping[str, str]] = field(repr=False)
    scores: HeadScores = field(repr=False)

    def heads(self, role: str) -> tuple[Head, ...]:
        """The heads with a role.

        Raises:
            InputError: No such role, or no head has it.
        """
        if role not in self.roles:
            raise InputError(f"There is no role {role!r} in these head roles; there are {', '.join(self.roles)}.")
        if not self.roles[role]:
            raise InputError(f"No head has the role {role!r} ({self.rules[role]['rule']}); choose another role.")
        return self.roles[role]

    def check(self, model: "TransformerBridge") -> None:
        """Refuse a model of other sizes than the roles are of.

        Raises:
            InputError: Other numbers of layers, heads or KV heads, or a head in a layer without attention.
        """
        here = {
            "n_layers": len(model.blocks),
            "n_heads": int(model.cfg.n_heads),
            "n_kv_heads": int(getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads),
        }
        other = [
            f"{name} {self.model.get(name)} instead of {value}"
            for name, value in here.items()
            if self.model.get(name) != value
        ]
        if other:
            raise InputError(f"The head roles are of another model ({self.model.get('name')}): {', '.join(other)}.")
        check_heads(model, tuple(head for heads in self.roles.values() for head in heads))

    def gates(self, role: str, *, sink: int = SINK, recent: int = RECENT) -> Gates:
        """DuoAttention's gates of a role: 1 for each KV head that any head of the role reads, else 0.

        Args:
            role: The heads that keep all keys.
            sink: First keys that the others keep.
            recent: Most recent keys that they keep.

        Raises:
            InputError: No such role, or no head has it.
        """
        values = np.zeros((int(self.model["n_layers"]), int(self.model["n_kv_heads"])))
        for layer, head in self.heads(role):
            values[layer, head * values.shape[1] // int(self.model["n_heads"])] = 1
        return Gates(values, sink, recent, f"{role} heads")

    def write(self, path: str | Path) -> Path:
        """Write the file.

        Raises:
            ResultError: The place cannot be written.
        """
        sizes = int(self.model["n_layers"]), int(self.model["n_heads"])
        index = self.scores.frame["layer"].to_numpy(dtype=int), self.scores.frame["head"].to_numpy(dtype=int)
        grids = {}
        for name in self.scores.scores:
            grid = np.full(sizes, math.nan)
            grid[index] = self.scores.frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
            grids[name] = [[None if math.isnan(score) else score for score in row] for row in grid.tolist()]
        roles = {role: {"heads": [*map(head_name, heads)], **self.rules[role]} for role, heads in self.roles.items()}
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": dict(self.model),
            "roles": roles,
            "scores": grids,
            "definitions": {name: metric.as_dict() for name, metric in self.scores.metrics.items()},
        }
        return write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read such a file.

        Raises:
            InputError: No such file, or it is no head-role file.
            ResultError: It is of a newer format, or damaged; the sentence says where.
        """
        path = Path(path)
        content = named_json(path, "The head roles")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{path} is no head-role file: it does not say {FORMAT!r}.")
        try:
            if int(content["format_version"]) > FORMAT_VERSION:
                raise ResultError(
                    f"{path} has format {content['format_version']}, this sinklens reads up to {FORMAT_VERSION}; "
                    "update it."
                )
            model = dict(content["model"])
            sizes = int(model["n_layers"]), int(model["n_heads"])
            int(model["n_kv_heads"])
            roles, rules = {}, {}
            for name, each in content["roles"].items():
                roles[name] = tuple(sorted(map(parse_head, each["heads"])))
                rules[name] = {key: str(each[key]) for key in ("rule", "source")}
            metrics = {
                name: Metric(name, each["version"], each["definition"], each["source"])
                for name, each in content["definitions"].items()
            }
            frame = _frame(content["scores"], sizes)
            outside = [head for heads in roles.values() for head in heads if head[0] >= sizes[0] or head[1] >= sizes[1]]
            if outside:
                raise ValueError(f"{head_name(outside[0])} in a model of {sizes[0]} layers x {sizes[1]} heads")
            return cls(model, roles, rules, HeadScores(frame, metrics, {"source": path.name}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResultError(f"The head roles {path} are damaged ({error}); make them again.") from error


def role_heads(text: str, role: str) -> tuple[Head, ...] | None:
    """Heads of a role in a file, as commands name them; ``None`` when the text names no file.

    Args:
        text: ``FILE.json`` or ``FILE.json:ROLE``.
        role: The role when the text names none.

    Raises:
        InputError: No such file or role, or no head has it.
        ResultError: A damaged file.

    >>> role_heads("L1H0,L1H2", "mine") is None
    True
    """
    path, colon, named = text.strip().rpartition(":")
    if not (colon and path.endswith(".json")):
        path, named = text.strip(), role
    return RoleFile.read(path).heads(named) if path.endswith(".json") else None


def _frame(grids: Mapping[str, Any], sizes: tuple[int, int]) -> pd.DataFrame:
    layers, heads = sizes
    layer, head = np.divmod(np.arange(layers * heads), heads)
    frame = pd.DataFrame({"layer": layer, "head": head})
    for name, rows in grids.items():
        values = np.array([[math.nan if score is None else score for score in row] for row in rows], dtype=np.float64)
        if values.shape != sizes:
            raise ValueError(f"the score {name} has shape {values.shape}, the model {sizes}")
        frame[name] = values.reshape(-1)
    return frame
