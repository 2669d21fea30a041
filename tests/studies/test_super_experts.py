"""Super experts: the published table replayed, planted ones in two families, none, pruning beside random experts."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge
from typer.testing import CliRunner

from sinklens import open as open_result
from sinklens.cli.program import app
from sinklens.detectors.super_experts import formation_layers, sink_decay, super_experts, thresholds
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.models.as_bridge import as_bridge
from sinklens.studies import SuperExperts, find_super_experts
from sinklens.studies.super_experts.measure import ExpertWatch, expert_modules
from sinklens.studies.super_experts.run import draw_sets
from tests import families


def table(n: int, top: list[float], rest: float, per_layer: int) -> pd.DataFrame:
    """As many experts as a model has, with its published largest values and the others below."""
    values = np.full(n, rest)
    values[per_layer : per_layer + len(top)] = top  # layer 1
    return pd.DataFrame({"layer": np.arange(n) // per_layer, "expert": np.arange(n) % per_layer, "a": values})


@pytest.mark.parametrize(
    ("n", "per_layer", "top", "rest", "expected"),
    [
        (6144, 128, [744.0, 540.0, 430.0, 63.5], 7.0, 3),
        (15677, 257, [616.0, 536.0, 171.0, 143.0, 143.0, 120.0, 110.0, 100.0, 80.0, 67.0, 60.0], 36.0, 10),
        (1782, 66, [1424.0, 462.0, 112.5, 89.5, 37.5, 24.0], 20.0, 2),
        (256, 8, [5600.0, 302.0, 286.0, 258.0, 253.0, 139.0], 100.0, 1),
    ],
)
def test_the_reported_table_gives_the_reported_counts(
    n: int, per_layer: int, top: list[float], rest: float, expected: int
) -> None:
    """Qwen3-30B, DeepSeek-R1, DeepSeek-V2-Lite and Mixtral; by both rules."""
    experts = table(n, top, rest, per_layer)
    assert len(super_experts(experts, formation=[1])) == expected
    assert len(super_experts(experts, "code", n_layers=n // per_layer)) == expected


def test_the_rules_differ_where_the_card_says() -> None:
    experts = table(400, [105.0, 10.2, 10.5], 1.0, 100)
    assert len(super_experts(experts, formation=[1])) == 1  # strict: 10.5 is not above a tenth of 105
    assert len(super_experts(experts, "code", n_layers=4)) == 2  # percentile among 300: above 10.2
    assert thresholds(np.array([105.0, 1.0]), "code")[1] == 10.0
    late = table(400, [105.0], 1.0, 100).assign(layer=lambda t: 3 - t["layer"])
    assert super_experts(late.assign(layer=3), formation=[1]) == []  # large, but nothing forms there
    assert super_experts(late.assign(layer=3), "code", n_layers=4) == []
    assert formation_layers({-1: 1.0, 0: 50.0, 1: 51.0}, {0: 20.0, 1: 21.0}) == []  # nothing massive
    for before, after, decay, left in (
        ([0.5, 0.4], [0.5, 0.4], 0, 0),
        ([0.5], [0.0], 1, 0),
        ([0.2, 0.0], [0.4, 1.0], -1, 1),
    ):
        assert sink_decay(np.array(before), np.array(after)) == (pytest.approx(decay), left)
    for options in ({"formation": None}, {"rule": "code"}, {"rule": "mine"}):
        with pytest.raises(InputError):
            super_experts(experts, **options)  # type: ignore[arg-type]


def small(name: str, planted: tuple[int, int] | None) -> TransformerBridge:
    """A tiny random Mixtral or Qwen3-MoE; the down projection of one expert a thousand times as large."""
    config = families.FAMILIES[name].make_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.config.architectures = [type(model).__name__]
    if planted is not None:
        layer, expert = planted
        experts: Any = model.model.layers[layer].mlp.experts
        with torch.no_grad():
            experts.down_proj[expert].zero_()
            experts.down_proj[expert, 9] = 300.0 * torch.sign(experts.gate_up_proj[expert, 0, 0])
            experts.down_proj[expert, 9, ::2] *= -1
            experts.down_proj[expert] *= 1000
    return as_bridge(model, tokenizer=families.byte_tokenizer())


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_a_planted_expert_is_the_super_expert(name: str) -> None:
    model = small(name, (0, 2))
    before = {key: p.clone() for key, p in model.named_parameters()}
    found = find_super_experts(model, tokens=families.random_ids(6, 20), controls=2)
    experts = found.experts
    assert experts[experts["is_super"]][["layer", "expert"]].to_numpy().tolist() == [[0, 2]]
    assert experts[experts["is_super_code"]][["layer", "expert"]].to_numpy().tolist() == [[0, 2]]
    assert (
        found.meta["formation"] == [0] and experts["n_tokens"].sum() == 2 * 2 * 6 * 20
    )  # layers, experts a token, sequences, tokens
    effects = found.effects
    pruned, others = effects[effects["kind"] == "super"].iloc[0], effects[effects["kind"] != "super"]
    assert pruned["max_abs_kept"] < 0.01 and others["max_abs_kept"].min() > 0.5 and len(others) == 4
    assert abs(pruned["delta_loss"]) > others["delta_loss"].abs().max()
    assert "L0E2" in found.verdict[0] and "the same" in found.verdict[0]
    assert f"changes by {pruned['delta_loss']:+z.3f} nats" in found.verdict[1]
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_largest_outputs_are_those_of_a_loop_over_experts(name: str, tmp_path: Path) -> None:
    """The same from each expert's weights by hand, for the tokens that the router sends there."""
    model = families.boot(name, tmp_path)
    ids = families.random_ids(2, 11)
    _, module = expert_modules(model)[1]
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: kept.append(tuple([*args, *kwargs.values()][:2])), with_kwargs=True
    )
    with ExpertWatch(model) as watch:
        model(ids)
    handle.remove()
    states, index = kept[0][0].reshape(-1, 32), kept[0][1]
    table = watch.table()
    for expert in range(4):
        mine = states[(index == expert).any(-1)]
        if name == "gpt_oss":
            both = mine @ module.gate_up_proj[expert] + module.gate_up_proj_bias[expert]
            out = module._apply_gate(both) @ module.down_proj[expert] + module.down_proj_bias[expert]
        else:
            gate, up = (mine @ module.gate_up_proj[expert].T).chunk(2, -1)
            out = (torch.nn.functional.silu(gate) * up) @ module.down_proj[expert].T
        row = table[(table["layer"] == 1) & (table["expert"] == expert)].iloc[0]
        assert row["n_tokens"] == len(mine)
        assert row["a"] == pytest.approx(float(out.abs().max()) if len(mine) else 0.0, rel=1e-4)


def test_without_a_plant_there_is_none_and_dense_models_are_refused(tmp_path: Path) -> None:
    nothing = find_super_experts(small("mixtral", None), tokens=families.random_ids(2, 12))
    assert not nothing.experts["is_super"].any() and nothing.effects.empty
    assert nothing.verdict[0].startswith("None of 8 experts is a super expert by the paper's rule")
    nothing.save(tmp_path / "none")
    assert isinstance(open_result(tmp_path / "none"), SuperExperts)
    with pytest.raises(UnsupportedArchitectureError, match="no experts"):
        find_super_experts(families.boot("llama", tmp_path), tokens=families.random_ids(1, 8))
    ran = CliRunner().invoke(app, ["why", "tiny-llama", "--experts"])
    assert isinstance(ran.exception, UnsupportedArchitectureError)


def test_random_sets_are_others_and_keep_to_layers() -> None:
    pool, tested = [(a, b) for a in range(3) for b in range(4)], [(0, 1), (2, 2)]
    for kind, _, chosen in draw_sets(pool, tested, 5, 0):
        assert not {*chosen} & {*tested} and len({*chosen}) == 2
        assert kind == "random" or sorted(a for a, _ in chosen) == [0, 2]
