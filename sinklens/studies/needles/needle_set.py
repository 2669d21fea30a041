"""The prompts of a needle test, over lengths and depths."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sinklens.arguments import check_fields
from sinklens.errors import InputError
from sinklens.studies.needles.instance import NeedleInstance


@dataclass(frozen=True)
class NeedleSet:
    """Instances with what is common to them; made by :func:`~sinklens.studies.needles.make.make_needles`.

    Attributes:
        instances: One per length, depth and repeat; or any of your own.
        meta: Kind, lengths, depths, repeats, haystack and needles with their source, template, seed, notes; as JSON.

    Raises:
        InputError: No instance.
    """

    instances: tuple[NeedleInstance, ...] = field(repr=False)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "instances", tuple(self.instances))
        if not self.instances:
            raise InputError("Expected at least one needle instance, got none.")

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def digest(self) -> str:
        """Changes with any token of any prompt or answer."""
        found = hashlib.sha256()
        for each in self.instances:
            found.update(repr((each.ids, each.answer, each.span)).encode())
        return found.hexdigest()

    def to_dataframe(self) -> pd.DataFrame:
        """One row per instance: where everything stands, and the prompt's and the answer's tokens."""
        rows = [
            {
                "instance": number,
                "kind": each.kind,
                "length": each.length,
                "depth": each.depth,
                "repeat": each.repeat,
                "length_got": len(each.ids),
                "depth_got": each.depth_got,
                "needle_start": each.needle[0],
                "needle_stop": each.needle[1],
                "span_start": each.span[0],
                "span_stop": each.span[1],
                "ids": list(each.ids),
                "answer": list(each.answer),
                "answer_text": each.answer_text,
                "bos": each.bos,
            }
            for number, each in enumerate(self.instances)
        ]
        return pd.DataFrame(rows).astype({"answer_text": "str", "bos": "str", "kind": "str"})
