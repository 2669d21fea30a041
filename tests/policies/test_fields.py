"""Every field of every rule that counts something: what is no count is refused, and the smallest one runs."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sinklens.errors import InputError
from sinklens.policies import Policy, policies
from sinklens.policies.snap_kv import SnapKV
from tests.families import boot, random_ids
from tests.policies.rules import POS, SMALL

COUNTS = [(name, each.name) for name, rule in SMALL.items() for each in fields(rule) if each.type is int]


def test_what_counts_from_one_is_a_count() -> None:
    for kind in policies().values():
        assert set(kind.positive) <= {each.name for each in fields(kind) if each.type is int}, kind


@pytest.mark.parametrize(("name", "field"), COUNTS)
def test_what_is_no_count_is_refused_in_one_sentence(name: str, field: str) -> None:
    least = int(field in SMALL[name].positive)
    values: list[Any] = [-1, 1.5, "3", True, None, *([0] if least else [])]
    for wrong in values:
        with pytest.raises(InputError, match=f"^{field} of {type(SMALL[name]).__name__} must be a whole number"):
            replace(SMALL[name], **{field: wrong})


@pytest.mark.parametrize(("name", "field"), COUNTS)
def test_the_smallest_count_runs_or_is_refused_in_one_sentence(name: str, field: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(1, POS)
    smallest: Any = {field: int(field in SMALL[name].positive)}
    try:
        rule: Policy = replace(SMALL[name], **smallest)
        with torch.no_grad(), rule(bridge):
            logits = bridge(ids)
    except InputError as error:
        assert str(error).count("\n") == 0 and str(error).endswith(".")
        return
    assert torch.isfinite(logits).all()


def test_a_pool_has_a_middle() -> None:
    with pytest.raises(InputError, match="pool must be an odd number, got 4"):
        SnapKV(pool=4)
