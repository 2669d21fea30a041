"""Needed and enough by patching: plain transformers as oracle, a head that does nothing, a circuit that is known."""

import copy
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from sinklens import load
from sinklens import open as open_result
from sinklens.models.as_bridge import as_bridge
from sinklens.studies import CausalCheck, make_needles, run_causal_check
from sinklens.studies.causal_check.patching import other_answers
from tests.families import byte_tokenizer
from tests.studies.test_path_patching import WIDTH, Naive, plain


def test_both_columns_equal_plain_transformers_and_an_idle_head_is_neither(tmp_path: Path) -> None:
    model = plain()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, :WIDTH] = 0  # L1H0 writes nothing
    naive = Naive(copy.deepcopy(model))
    bridge = as_bridge(model, tokenizer=byte_tokenizer())
    needles = make_needles(bridge, lengths=[14, 17], depths=[0.5], repeats=2, size=2, seed=1)
    words: dict[str, Any] = {"needles": needles, "ways": ["zero"], "controls": 3, "max_sequences": 2, "max_tokens": 12}
    found = run_causal_check(bridge, ["L1H0", "L0H2"], top=[1, 2], patching=True, batch_size=3, **words)
    assert found.patched is not None
    others = other_answers(bridge, needles, 0)
    for (top, kind), some in found.patched.groupby(["top", "kind"]):
        assert len(some) == (1 if kind == "tested" else 3)
        row = some.iloc[0]
        moved = [
            _naive(naive, each, other, row["heads"]) for each, other in zip(needles.instances, others, strict=True)
        ]
        clean, corrupted, lost, back = (sum(column) / len(moved) for column in zip(*moved, strict=True))
        assert row["necessity"] == pytest.approx((lost - clean) / (corrupted - clean), abs=1e-3)
        assert row["sufficiency"] == pytest.approx((corrupted - back) / (corrupted - clean), abs=1e-3)
        if kind == "tested":
            assert (abs(row["necessity"]) + abs(row["sufficiency"]) < 1e-5) == (top == 1)
    logits = found.meta["patching"]["logit_diff"]
    assert logits["clean"] == pytest.approx(clean, abs=1e-4) and logits["corrupted"] == pytest.approx(
        corrupted, abs=1e-4
    )
    assert all(a.answer[0] != b[0] and len(b) == 2 for a, b in zip(needles.instances, others, strict=True))
    found.save(tmp_path / "check")
    opened = open_result(tmp_path / "check")
    assert isinstance(opened, CausalCheck) and opened.verdict == found.verdict
    pd.testing.assert_frame_equal(opened.summary(), found.summary())
    without = run_causal_check(bridge, ["L0H2"], **words)
    assert (
        without.patched is None and "necessity" not in without.summary() and "Patching" not in " ".join(without.verdict)
    )


@torch.no_grad()
def _naive(naive: Naive, each: Any, other: tuple[int, ...], heads: str) -> list[float]:
    """LD of the clean and the corrupted prompt, and of both with some heads' outputs exchanged."""
    ids = list(each.ids)
    start, stop = each.span
    clean, corrupted = torch.tensor([ids]), torch.tensor([[*ids[:start], *other, *ids[stop:]]])
    passes = [naive.run(clean), naive.run(corrupted)]
    for prompt, mine, theirs in ((clean, 0, 1), (corrupted, 1, 0)):
        # every layer's computed output with the named heads' part exchanged, a layer after the other
        fixed: dict[int, Tensor] = {}
        for layer in range(3):
            now = naive.run(prompt, fixed)[1]["z", layer].clone() if fixed else passes[mine][1]["z", layer].clone()
            for name in heads.split(","):
                at, head = map(int, re.findall(r"\d+", name))
                if at == layer:
                    part = slice(WIDTH * head, WIDTH * (head + 1))
                    now[..., part] = passes[theirs][1]["z", layer][..., part]
            fixed[layer] = now
        passes.append(naive.run(prompt, fixed))
    right, wrong = each.answer[0], other[0]
    return [float(logits[0, right] - logits[0, wrong]) for logits, _ in passes]


def test_the_heads_that_carry_the_answer_are_needed_and_enough_and_the_one_that_finds_it_is_neither() -> None:
    """Both prompts hold the same key, so the previous-token head does the same in both, however much its mask harms."""
    model = load("induction-2l", device="cpu")
    needles = make_needles(model, lengths=[40], depths=[0.2, 0.8], repeats=6, size=4)
    found = run_causal_check(
        model, ["L0H0", "L1H0", "L1H1", "L1H2", "L1H3"], top=[1, 5], needles=needles, ways=["zero"], controls=3,
        max_sequences=2, max_tokens=24, patching=True,
    )  # fmt: skip
    rows = found.summary().set_index(["top", "measure"])
    finds: Any = rows.loc[(1, "exact")]
    carry: Any = rows.loc[(5, "exact")]
    assert finds["harm"] > 0.5 and abs(finds["necessity"]) < 0.05 and abs(finds["sufficiency"]) < 0.05
    assert carry["necessity"] > 0.8 and carry["sufficiency"] > 0.8
    lines = [each for each in found.verdict if each.startswith("Patching")]
    assert [line[:42] for line in lines] == [
        "Patching the top head between needles and ",
        "Patching the top 5 heads between needles a",
    ]
    names = [f"{n}{e}" for n in ("necessity", "sufficiency") for e in ("", "_low", "_high", "_random", "_p")]
    numbers = [float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", lines[0])]
    assert numbers == pytest.approx([finds[name] for name in names], abs=0.0051)
    assert "random" not in lines[1], "three heads are left, too few for a set of five"
