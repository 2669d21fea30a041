"""A generation followed with its cache, against one pass over the whole text; planted sinks and massive tokens."""

import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sinklens import open as open_result
from sinklens.cli.program import app
from sinklens.detectors.sinks import importance
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.studies import Generation, follow_generation
from tests import families
from tests.passes.planted_sink import HEAD, SINK, planted_sink, planted_super_weight, sink_ids


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@torch.no_grad()
def test_the_sums_of_the_steps_are_those_of_one_pass(name: str, cache: str) -> None:
    """Received attention, attention to position 0 and the drains, from whole patterns of the whole text."""
    model = families.boot(name, cache)
    found = follow_generation(model, families.random_ids(1, 9), max_new_tokens=14)
    ids = torch.tensor([found.tokens["token_id"].tolist()])
    made = int(found.tokens["generated"].sum())
    assert ids.shape[1] == 9 + made and len(found.steps) == made > 3
    logits, whole = model.run_with_cache(ids)
    patterns = torch.stack([whole[f"blocks.{i}.attn.hook_pattern"][0] for i in range(len(model.blocks))]).double()
    alphas = []
    for pattern in patterns:
        visible = torch.stack([(pattern[:, i] > 0).any(0) for i in range(pattern.shape[1])])
        alphas.append(pattern.sum(1) / visible.sum(0).clamp(min=1))
    alpha = torch.stack(alphas)
    if name == "llama":
        torch.testing.assert_close(alpha[0].float(), importance(patterns[0]).float())
        greedy = logits[0, 8:-1].argmax(-1).tolist()
        assert found.steps["token_id"].tolist() == greedy
    assert found.tokens["importance"].to_numpy() == pytest.approx(alpha.mean((0, 1)).numpy(), abs=1e-5)
    first = patterns[:, :, 9:, 0]
    seen = torch.where(first > 0, first, math.nan)
    assert found.steps["mass_first"].to_numpy() == pytest.approx(seen.nanmean((0, 1)).numpy(), abs=1e-5)
    states = torch.stack([whole[f"blocks.{i}.hook_out"][0] for i in range(len(model.blocks))]).abs()
    assert found.tokens["max_abs"].to_numpy() == pytest.approx(states.amax((0, 2)).numpy(), rel=1e-4)
    if name == "llama":
        drained = torch.zeros(ids.shape[1])
        for i, block in enumerate(model.blocks):
            v, w_o = whole[f"blocks.{i}.attn.hook_v"][0], block.attn.W_O
            for head in range(4):
                norms = (v[:, head // 2] @ w_o[head]).norm(dim=-1)
                for t in range(1, len(norms)):
                    drained[t] += float(norms[t] < 0.5 * norms[:t].mean())
        assert found.tokens["n_drained_heads"].tolist() == drained.tolist()


def test_a_generated_token_becomes_a_sink_and_massive() -> None:
    """The planted token comes as the sixth of a given continuation."""
    ids = sink_ids(1, 30)[0].tolist()
    prompt, rest = [[9, *ids[1:6]]], [*ids[6:11], SINK, *ids[11:]]
    sunk = follow_generation(planted_sink(), prompt, continuation=rest)
    tokens = sunk.tokens
    sinks = tokens[tokens["n_sink_heads"].fillna(0) > 0]
    assert sinks["position"].tolist()[-1] == 11 and tokens["importance_max"][11] > 0.5
    new = sinks[sinks["generated"]]
    judged = tokens[tokens["generated"]]["n_sink_heads"].notna().sum()
    assert f"{len(new)} of {judged} generated tokens" in sunk.verdict[1]
    assert f"{tokens['token'][11]!r} at position 11 (1 head)" in sunk.verdict[1]
    found = follow_generation(planted_super_weight(), prompt, continuation=rest)
    steps = found.steps
    assert steps[steps["is_massive"]]["step"].tolist() == [5]
    massive = steps.iloc[5]
    assert (massive["token_id"], massive["channel"]) == (SINK, 11) and massive["max_abs"] > 1000
    assert f"massive, most of all {massive['token']!r} at position 11" in found.verdict[-1]
    without = follow_generation(planted_sink(strength=0), prompt, continuation=rest)
    assert not without.steps["is_massive"].any() and "None of 25 generated tokens is massive." in without.verdict
    assert without.tokens["importance_max"][11] < 0.5
    assert HEAD == (1, 0)


def test_it_stops_where_it_has_to_and_says_what_is_wrong(cache: str, tmp_path: Path) -> None:
    model = planted_sink()
    full = follow_generation(model, sink_ids(1, 60), max_new_tokens=100)
    assert len(full.tokens) == 64  # the context
    hot = [
        follow_generation(model, [[5, 6]], max_new_tokens=5, temperature=1.0, seed=s).meta["text"] for s in (0, 0, 1)
    ]
    assert hot[0] == hot[1] != hot[2]
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1}, {"continuation": []}):
        with pytest.raises(InputError):
            follow_generation(model, [[5, 6]], **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one prompt"):
        follow_generation(model, sink_ids(2, 5))
    with pytest.raises(UnsupportedArchitectureError):
        follow_generation(families.boot("falcon_alibi", cache), [[5, 6]])
    ran = CliRunner().invoke(app, ["follow", "tiny-llama", "Once", "--tokens", "6", "--out", str(tmp_path / "g")])
    assert ran.exit_code == 0, ran.output
    opened = open_result(tmp_path / "g")
    assert isinstance(opened, Generation) and len(opened.steps) == 6
