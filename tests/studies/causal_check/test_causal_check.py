"""Masking against a naive forward pass for every set, controls as promised, and heads that cannot matter."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load, tokenize
from sinklens.errors import InputError, ResultError
from sinklens.evidence.effects import token_losses
from sinklens.interventions import AblateHeads
from sinklens.interventions.head_outputs import mean_outputs
from sinklens.interventions.heads import parse_head
from sinklens.models.architecture import attention_layers
from sinklens.models.builtin import builtin_models
from sinklens.models.tokens import TokenBatch
from sinklens.studies import NeedleSet, make_needles
from sinklens.studies.causal_check.equal_harm import idle_heads
from sinklens.studies.causal_check.result import CausalCheck
from sinklens.studies.causal_check.run import WAYS, run_causal_check

RANKING = ("L1H2", "L0H1", "L1H0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """A random Llama whose heads L0H0 and L1H1 write nothing."""
    from tests import families

    bridge = load(families.build_checkpoint("llama", tmp_path_factory.mktemp("llama")))
    with torch.no_grad():
        for layer, head in ((0, 0), (1, 1)):
            weight = attention_layers(bridge)[layer].o.weight
            size = weight.shape[1] // bridge.cfg.n_heads
            weight[:, head * size : (head + 1) * size] = 0
        weight[:, 0] = 0  # a part of L1H0, which is not idle for that
    return bridge


@pytest.fixture(scope="module")
def needles(model: TransformerBridge) -> NeedleSet:
    return make_needles(model, lengths=[16, 20], depths=[0.5], repeats=4, size=2, seed=3)


@pytest.fixture(scope="module")
def tokens(model: TransformerBridge) -> TokenBatch:
    draw = torch.Generator().manual_seed(0)
    return tokenize(model, [torch.randint(3, 60, (n,), generator=draw).tolist() for n in (12, 9, 12, 12, 15, 12)])


@pytest.fixture(scope="module")
def check(model: TransformerBridge, needles: NeedleSet, tokens: TokenBatch) -> CausalCheck:
    return run_causal_check(model, RANKING, top=[1, 3], needles=needles, tokens=tokens, controls=4)


def naive(
    model: TransformerBridge, way: Any, heads: list[tuple[int, int]], needles: NeedleSet, tokens: TokenBatch
) -> dict[str, list[float]]:
    """One forward pass with hooks for every needle and every text."""
    prompts = tokenize(model, [list(each.ids) for each in needles.instances])
    found: dict[str, list[float]] = {"exact": [], "log_prob": [], "loss": []}

    def masked(batch: TokenBatch) -> AblateHeads:
        return AblateHeads(heads, how=way, outputs=mean_outputs(model, batch) if way == "mean" else None)

    on_needles, on_texts = masked(prompts), masked(tokens)
    for each in needles.instances:
        ids = torch.tensor([[*each.ids, *each.answer]])
        with torch.no_grad(), on_needles(model):
            logits = model(ids)[0, len(each.ids) - 1 : -1].double()
        answer = torch.tensor(each.answer)
        found["exact"].append(float((logits.argmax(-1) == answer).all()))
        found["log_prob"].append(float(logits.log_softmax(-1)[range(len(answer)), answer].mean()))
    for number in range(len(tokens)):
        row = tokens.rows([number])
        with torch.no_grad(), on_texts(model):
            found["loss"].append(float(token_losses(model(row.ids), row).nanmean()))
    return found


@pytest.mark.parametrize("way", WAYS)
def test_every_set_gives_what_a_pass_of_its_own_gives(
    check: CausalCheck, model: TransformerBridge, needles: NeedleSet, tokens: TokenBatch, way: str
) -> None:
    sets = check.sets[(check.sets["way"] == way) & (check.sets["top"] == 3)]
    for heads in sets["heads"].unique():
        expected = naive(model, way, [parse_head(name) for name in heads.split(",")], needles, tokens)
        rows = check.instances[(check.instances["way"] == way) & (check.instances["heads"] == heads)]
        rows = rows[rows["kind"] != "matched"] if (rows["kind"] != "matched").any() else rows
        for measure, values in expected.items():
            got = rows[(rows["measure"] == measure) & (rows["top"] == 3)].sort_values("instance")["value"]
            np.testing.assert_allclose(got, values, atol=2e-5, err_msg=f"{heads} {measure}")
            means = sets[(sets["heads"] == heads) & (sets["measure"] == measure)]["value"]
            np.testing.assert_allclose(means, np.mean(values), atol=2e-5)


def test_the_ways_of_masking_differ(check: CausalCheck) -> None:
    tested = check.sets[(check.sets["kind"] == "tested") & (check.sets["measure"] == "loss") & (check.sets["top"] == 3)]
    values = tested.set_index("way")["value"]
    assert abs(values["uniform"] - values["zero"]) > 1e-4 and abs(values["mean"] - values["zero"]) > 1e-4


def test_harm_is_positive_when_things_get_worse(check: CausalCheck) -> None:
    for row in check.sets.to_dict("records"):
        change = row["value"] - row["clean"]
        assert row["harm"] == pytest.approx(change if row["measure"] == "loss" else -change, abs=1e-12)


def test_controls_are_disjoint_of_equal_size_and_of_the_true_heads(
    check: CausalCheck, model: TransformerBridge
) -> None:
    sets = check.sets[check.sets["measure"] == "loss"]
    for top in (1, 3):
        tested = {*RANKING[:top]}
        for way in WAYS:
            here = sets[(sets["way"] == way) & (sets["top"] == top)]
            drawn = [set(names.split(",")) for names in here[here["kind"] == "random"]["heads"]]
            assert len(drawn) == len({frozenset(names) for names in drawn}) == (4 if top == 1 else 1)
            for names in drawn:
                assert len(names) == top and not names & tested and not names & {"L0H0", "L1H1"}
                assert all(parse_head(name)[1] < model.cfg.n_heads for name in names)
    assert check.meta["settings"]["controls"] == 4 and any("top 3" in note for note in check.meta["warnings"])


def test_the_summary_ranks_the_tested_set_among_its_controls(check: CausalCheck) -> None:
    for row in check.summary().to_dict("records"):
        group = check.sets
        for key in ("way", "top", "measure"):
            group = group[group[key] == row[key]]
        harms = group[group["kind"] == "random"]["harm"].to_numpy()
        assert row["n_controls"] == len(harms) and row["control_mean"] == pytest.approx(harms.mean())
        sd = harms.std(ddof=1) if len(harms) > 1 else math.nan
        assert row["control_sd"] == pytest.approx(sd, nan_ok=True)
        assert row["p"] == (1 + (harms >= row["harm"]).sum()) / (len(harms) + 1)


def test_idle_heads_change_nothing_at_all(check: CausalCheck, model: TransformerBridge) -> None:
    assert idle_heads(model) == ((0, 0), (1, 1))
    assert check.meta["idle_heads"] == {"heads": ["L0H0", "L1H1"], "max_logit_change": 0.0}
    idle = check.sets[check.sets["kind"] == "idle"]
    assert len(idle) and (idle["harm"].abs() < 1e-6).all(), "rounding of losses, in passes of another shape"
    assert {*idle[idle["top"] == 1]["heads"]} == {"L0H0", "L1H1"} and {*idle[idle["top"] == 3]["heads"]} == {
        "L0H0,L1H1"
    }
    assert "top 3: there are only 2 idle heads, masked all together." in check.meta["warnings"]
    assert "2 idle heads (W_O = 0: L0H0, L1H1) are the valid pool" in check.verdict[-1]
    assert (check.summary()["idle_mean"].abs() < 1e-6).all()


def test_without_idle_heads_it_says_so(tiny: TransformerBridge) -> None:
    assert idle_heads(tiny) == ()
    few = make_needles(tiny, lengths=[16], depths=[0.5], repeats=2, size=2)
    found = run_causal_check(tiny, ["L0H0"], needles=few, ways=["zero"], max_sequences=2, max_tokens=12, controls=2)
    assert "has no idle heads" in found.verdict[-1] and found.meta["idle_heads"]["max_logit_change"] is None
    assert found.summary()["idle_mean"].isna().all() and "built-in corpus" in found.meta["source"]


def test_all_heads_leave_no_control_and_excluded_ones_are_none(
    model: TransformerBridge, needles: NeedleSet, tokens: TokenBatch
) -> None:
    every = [(layer, head) for layer in range(len(model.blocks)) for head in range(model.cfg.n_heads)]
    words: dict[str, Any] = {"needles": needles, "tokens": tokens, "ways": ["zero"], "controls": 2}
    found = run_causal_check(model, every, **words)
    assert found.summary()[["control_mean", "p"]].isna().all().all()
    assert "no random set of equal size" in found.verdict[1]
    kept = run_causal_check(model, ["L0H1"], exclude=["L0H2"], **words)
    drawn = {*kept.sets[kept.sets["kind"] == "random"]["heads"]}
    assert drawn and not drawn & {"L0H1", "L0H2", "L0H0"}


def test_save_and_load(check: CausalCheck, tmp_path: Path) -> None:
    check.save(tmp_path / "out")
    loaded = CausalCheck.load(tmp_path / "out")
    pd.testing.assert_frame_equal(loaded.to_dataframe(), check.to_dataframe())
    pd.testing.assert_frame_equal(loaded.summary(), check.summary())
    assert loaded.verdict == check.verdict
    (tmp_path / "out" / "sets.parquet").unlink()
    with pytest.raises(ResultError, match="incomplete"):
        CausalCheck.load(tmp_path / "out")


def test_the_model_is_the_same_afterwards(model: TransformerBridge, needles: NeedleSet, tokens: TokenBatch) -> None:
    before = model(tokens.ids)
    run_causal_check(model, ["L0H1"], needles=needles, tokens=tokens, controls=1)
    assert torch.equal(model(tokens.ids), before)


def test_what_cannot_be_asked(tiny: TransformerBridge) -> None:
    for words, sentence in (
        ({"ranking": []}, "each once and at least one; got none"),
        ({"ranking": ["L0H0", "L0H0"]}, "each once"),
        ({"ranking": ["L9H0"]}, "L9H0 does not exist"),
        ({"ranking": ["L0H0"], "top": [2]}, "top must be from 1 to 1"),
        ({"ranking": ["L0H0"], "top": []}, "top must be from 1 to 1"),
        ({"ranking": ["L0H0"], "ways": ["resample"]}, 'ways must be a list of "zero", "mean" or "uniform"'),
        ({"ranking": ["L0H0"], "controls": 0}, "controls must be at least 1"),
    ):
        with pytest.raises(InputError, match=sentence):
            run_causal_check(tiny, **words)  # type: ignore[arg-type]


@pytest.mark.skipif("induction-2l" not in builtin_models(), reason="the model induction-2l is not there")
def test_masking_all_retrieval_heads_breaks_needles_and_idle_heads_do_not(tmp_path: Path) -> None:
    from sinklens.lab.induction.idle_heads import add_idle_heads

    model = load("induction-2l")
    heads = [f"L1H{head}" for head in range(4)]
    words: dict[str, Any] = {"needles": make_needles(model, lengths=[67], depths=[0.2, 0.8], repeats=8)}
    found = run_causal_check(model, heads, max_sequences=8, **words).summary()
    exact = found[found["measure"] == "exact"]
    assert (exact["clean"] >= 0.9).all() and (exact["tested"] < 0.05).all() and len(exact) == 3
    add_idle_heads(builtin_models()["induction-2l"].path, 4, out=tmp_path / "idle")
    idle = load(tmp_path / "idle")
    tokens = tokenize(idle, [list(each.ids) for each in words["needles"].instances[:4]])
    beside = run_causal_check(idle, heads, tokens=tokens, **words)
    assert beside.meta["idle_heads"]["max_logit_change"] == 0 and len(beside.meta["idle_heads"]["heads"]) == 8
    summary = beside.summary()
    assert (summary["idle_mean"].abs() < 1e-6).all() and (summary["n_idle"] == 10).all()
    np.testing.assert_allclose(summary[summary["measure"] != "loss"]["idle_p"], 1 / 11)
