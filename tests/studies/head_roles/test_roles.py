"""The main job: what runs, what a failure leaves, and going on after an interruption."""

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

from sinklens import Census, load
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.sinks import METRIC as SINK_SCORE
from sinklens.errors import InputError, ResultError, UnsupportedArchitectureError
from sinklens.models.builtin import builtin_models
from sinklens.results.progress import SILENT
from sinklens.studies import Roles, find_roles
from sinklens.studies.active_dormant.run import find_active_dormant
from sinklens.studies.head_roles import run as module
from sinklens.studies.head_roles.criteria import CRITERIA, USUAL, Criterion, dormant_scores, sink_scores
from tests.heard import Heard
from tests.studies.head_roles.synthetic import scores as made

SMALL: dict[str, Any] = {"max_sequences": 6, "max_tokens": 24}


class Counted:
    """A criterion that counts how often it runs, and fails when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.runs: list[str] = []
        self.fails: dict[str, BaseException] = {}
        replaced = {name: self._criterion(CRITERIA[name]) for name in names}
        monkeypatch.setattr(module, "CRITERIA", {**CRITERIA, **replaced})

    def _criterion(self, real: Criterion) -> Criterion:
        def measure(model: TransformerBridge, **options: Any) -> HeadScores:
            self.runs.append(real.name)
            if real.name in self.fails:
                raise self.fails[real.name]
            return real.measure(model, **options)

        return Criterion(real.name, real.about, real.slow, real.on_texts, real.scores, measure)


def test_the_usual_criteria_are_the_fast_ones() -> None:
    assert {"retrieval", "pattern", "sinks", "text"} <= {*USUAL}
    assert {"streaming", "importance", "active_dormant"} == {*CRITERIA} - {*USUAL}


def test_sinks_are_those_of_the_census(bb3: TransformerBridge, bb3_census: Census) -> None:
    heads = bb3_census.heads.to_dataframe()
    found = sink_scores(heads, SINK_SCORE, {}).frame
    pd.testing.assert_series_equal(found["importance"], heads["importance"])
    pd.testing.assert_series_equal(found["sink_rate"], heads["sink_rate"])
    joined = find_roles(bb3, scores=["sinks"])
    named = [*zip(heads[heads["is_sink"]]["layer"], heads[heads["is_sink"]]["head"], strict=True)]
    assert named and [*joined.roles["sink"]] == named
    strongest = heads[heads["is_sink"]].sort_values("importance").iloc[-1]
    (said,) = (each for each in joined.verdict if each.startswith("sink: "))
    assert f"heads (L{strongest['layer']}H{strongest['head']}" in said  # rates tie, in the order of layers
    assert joined.meta["parts"]["sinks"]["tokens"]["bos"] == bb3_census.meta["tokens"]["bos"]


@pytest.mark.parametrize("name", ["sinks", "text", "task_kv"])
def test_a_shared_pass_gives_what_each_criterion_measures(name: str, bb3: TransformerBridge) -> None:
    words: dict[str, Any] = {"max_sequences": 6, "max_tokens": 24}
    alone = find_roles(bb3, scores=[name], **words)
    together = find_roles(bb3, scores=["sinks", "text", "task_kv"], **words)
    mine = [column for column in alone.to_dataframe() if column in together.to_dataframe()]
    assert len(mine) > 3
    pd.testing.assert_frame_equal(together.to_dataframe()[mine], alone.to_dataframe()[mine], rtol=1e-5, atol=1e-7)
    told, wanted = (found.meta["parts"][name] for found in (together, alone))
    assert {key: told[key] for key in ("tokens", "warnings") if key in wanted} == {
        key: wanted[key] for key in ("tokens", "warnings") if key in wanted
    }


def test_a_shared_pass_that_fails_leaves_each_to_itself(
    bb3: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no room")

    monkeypatch.setattr(module, "run_passes", fail)
    found = find_roles(bb3, scores=["sinks", "text"], **SMALL)
    assert found.to_dataframe()[["importance", "entropy"]].notna().all().all()
    assert not any("gave no scores" in note for note in found.meta["warnings"])


def test_short_texts_are_left_out_of_sinks_alone(bb3: TransformerBridge) -> None:
    """They mean nothing for a sink rate, and something for the entropy."""
    found = find_roles(bb3, scores=["sinks", "text", "task_kv"], texts=["the cat sat on the mat and slept", "hi"])
    counts = {name: part["tokens"]["n_sequences"] for name, part in found.meta["parts"].items()}
    assert counts == {"sinks": 1, "text": 2, "task_kv": 2}


def test_dormant_is_the_label_of_guo(bb3: TransformerBridge) -> None:
    found = find_active_dormant(bb3, **SMALL)
    table = found.to_dataframe()
    scores = dormant_scores(found)
    assert scores.frame["label"].tolist() == table["label"].tolist()
    assert scores.frame["zero_ablation"].tolist() == table["delta"].tolist()
    named = Roles.of({"active_dormant": scores}).roles
    assert len(named["dormant"]) == (table["label"] == "dormant").sum()
    assert len(named["needed"]) == (table["by_ablation"] == "active").sum() > 0


def test_every_criterion_takes_what_it_is_given(bb3: TransformerBridge) -> None:
    """A criterion whose call does not fit would only leave a note among others."""
    for criterion in CRITERIA.values():
        words = dict.fromkeys(("texts", "bos", "max_tokens", "max_sequences")) if criterion.on_texts else {}
        inspect.signature(criterion.measure).bind(bb3, **words, seed=0, progress=SILENT)


def test_a_fault_in_the_code_is_no_missing_score(bb3: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch, "sinks", "pattern")
    counted.fails["pattern"] = TypeError("an unexpected argument")
    with pytest.raises(TypeError, match="an unexpected argument"):
        find_roles(bb3, scores=["sinks", "pattern"], **SMALL)


@pytest.mark.parametrize("wrong", [{"bos": "perhaps"}, {"max_tokens": -3}, {"max_sequences": 0}, {"texts": [""]}])
def test_what_the_caller_gave_wrong_is_no_missing_score(bb3: TransformerBridge, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        find_roles(bb3, scores=["sinks", "pattern"], **{**SMALL, **wrong})


def test_a_failure_leaves_nan_and_a_warning(bb3: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch, "sinks", "pattern")
    counted.fails["pattern"] = UnsupportedArchitectureError("Nothing to see here.")
    with pytest.warns(UserWarning, match="pattern gave no scores: Nothing to see here"):
        found = find_roles(bb3, scores=["sinks", "pattern"], **SMALL)
    table = found.to_dataframe()
    assert table[["induction", "echo", "previous_token"]].isna().all().all() and table["importance"].notna().all()
    assert found.meta["warnings"][0] == "The criterion pattern gave no scores: Nothing to see here."
    row = found.criteria().set_index("criterion").loc["induction"]
    assert row["n_known"] == 0 and "not measured: Nothing" in row["definition"]
    pairs = found.agreement().set_index(["first", "second"])["spearman"]
    assert pairs.isna().all()
    assert any(line.startswith("induction: not applicable") for line in found.verdict)
    counted.fails["sinks"] = RuntimeError("out of memory")
    with (
        pytest.warns(UserWarning),
        pytest.raises(InputError, match=r"No criterion gave any score.*RuntimeError: out of"),
    ):
        find_roles(bb3, scores=["sinks", "pattern"], **SMALL)
    with pytest.warns(UserWarning):
        only_given = find_roles(bb3, scores=["pattern"], given={"mine": _given()}, **SMALL)
    assert only_given.to_dataframe()["mystery"].tolist() == [1.0, 2.0, 3.0]


def _given() -> HeadScores:
    frame = made(mystery=[float(x) for x in range(12)]).frame
    frame = frame[frame["head"] == 0].assign(mystery=[1.0, 2.0, 3.0])
    return HeadScores(frame, made(mystery=[0.0] * 12).metrics, {})


def test_it_goes_on_where_it_was_interrupted(
    bb3: TransformerBridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch, "sinks", "pattern")
    words: dict[str, Any] = {"scores": ["sinks", "pattern"], "out": tmp_path / "out", **SMALL}
    counted.fails["pattern"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        find_roles(bb3, **words)
    assert not (tmp_path / "out" / "result.json").exists()
    counted.fails.clear()
    found = find_roles(bb3, **words)
    assert counted.runs == ["sinks", "pattern", "pattern"]
    whole = find_roles(bb3, scores=["sinks", "pattern"], **SMALL)
    for name in ("heads", "criteria", "agreement"):
        pd.testing.assert_frame_equal(found.tables[name], whole.tables[name])
    counted.runs.clear()
    loaded = Roles.load(tmp_path / "out")
    pd.testing.assert_frame_equal(loaded.to_dataframe(), found.to_dataframe())
    assert loaded.verdict == found.verdict and loaded.meta == json.loads(json.dumps(found.meta))
    assert loaded.roles == found.roles
    find_roles(bb3, **words | {"scores": ["sinks", "pattern", "text"]})  # another one is added
    assert counted.runs == []


def test_a_failed_criterion_is_tried_again(
    bb3: TransformerBridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch, "sinks", "pattern")
    counted.fails["pattern"] = RuntimeError("once")
    words: dict[str, Any] = {"scores": ["sinks", "pattern"], "out": tmp_path / "out", **SMALL}
    with pytest.warns(UserWarning):
        find_roles(bb3, **words)
    counted.fails.clear()
    assert find_roles(bb3, **words).to_dataframe()["induction"].notna().all()
    assert counted.runs == ["sinks", "pattern", "pattern"]


def test_another_run_is_refused_or_replaced(bb3: TransformerBridge, tiny: TransformerBridge, tmp_path: Path) -> None:
    out = tmp_path / "out"
    find_roles(bb3, scores=["sinks"], out=out, **SMALL)
    with pytest.raises(ResultError, match="other options; name another directory, or start anew with --restart"):
        find_roles(bb3, scores=["sinks"], out=out, max_sequences=7, max_tokens=24)
    with pytest.raises(ResultError, match=r"holds another run of roles \(weights"):
        find_roles(tiny, scores=["pattern"], out=out, **SMALL)
    again = find_roles(tiny, scores=["pattern"], out=out, restart=True, **SMALL)
    assert Roles.load(out).criteria()["criterion"].tolist() == again.criteria()["criterion"].tolist()
    assert not [*(out / "parts").glob("sinks-*")]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ResultError, match="Will not save to"):
        find_roles(bb3, scores=["sinks"], out=tmp_path / "other", **SMALL)


def test_damaged_scores_are_not_believed(bb3: TransformerBridge, tmp_path: Path) -> None:
    find_roles(bb3, scores=["sinks"], out=tmp_path, **SMALL)
    (kept,) = (tmp_path / "parts").glob("sinks-*")
    kept.write_bytes(b"x")
    with pytest.warns(UserWarning, match="Part sinks .* is computed again"):
        find_roles(bb3, scores=["sinks"], out=tmp_path, **SMALL)
    (tmp_path / "heads.parquet").unlink()
    with pytest.raises(ResultError, match="is incomplete"):
        Roles.load(tmp_path)


def test_what_cannot_be_asked(bb3: TransformerBridge) -> None:
    with pytest.raises(InputError, match=r"Unknown criteria magic; expected some of retrieval, pattern"):
        find_roles(bb3, scores=["magic"])
    with pytest.raises(InputError, match=r"Unknown criteria \(none\)"):
        find_roles(bb3, scores=[])
    with pytest.raises(InputError, match="options for pattern, which does not run"):
        find_roles(bb3, scores=["sinks"], options={"pattern": {}})
    with pytest.raises(InputError, match="names of their own, 'sinks' is measured here"):
        find_roles(bb3, scores=["sinks"], given={"sinks": _given()})


def test_grouped_queries_know_their_kv_head(tmp_path: Path) -> None:
    from tests import families

    model = load(families.build_checkpoint("llama", tmp_path / "llama"))
    n_kv_heads = int(getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads)
    table = find_roles(model, scores=["sinks"], **SMALL).to_dataframe()
    assert table["kv_head"].tolist() == (table["head"] // (model.cfg.n_heads // n_kv_heads)).tolist()
    assert table["kv_head"].nunique() == n_kv_heads


@pytest.mark.skipif("induction-2l" not in builtin_models(), reason="the model induction-2l is not there")
def test_induction_2l_has_the_roles_it_was_trained_for() -> None:
    model = load("induction-2l")
    words = {"lengths": [67], "depths": [0.2, 0.8], "repeats": 5}
    found = find_roles(model, scores=["retrieval", "pattern", "sinks"], options={"retrieval": words}, max_sequences=20)
    last = tuple((1, head) for head in range(4))
    assert found.roles["retrieval"] == found.roles["induction"] == last
    assert {layer for layer, _ in found.roles["previous_token"]} == {0}
    table = found.agreement().set_index(["first", "second"])
    row = table.loc[("retrieval", "induction")]
    assert row["jaccard"] == 1 and row["p"] == pytest.approx(1 / math.comb(8, 4)) and row["auc_first"] == 1
    assert row["p_in_layers"] == pytest.approx(1), "all of one layer: within layers nothing is left to agree about"
    assert table.loc[("retrieval", "previous_token")]["n_both"] == 0
    assert found.meta["parts"]["retrieval"]["n_kept"] > 5


def test_slow_criteria_tell_how_far_they_are(bb3: TransformerBridge) -> None:
    heard = Heard()
    find_roles(
        bb3,
        scores=["sinks", "active_dormant"],
        progress=heard,
        **SMALL,
    )
    assert [step.split(":")[0] for step in heard.steps] == [
        "1 of 2, sinks",
        "2 of 2, active_dormant",
        "Comparing criteria",
    ]
    assert heard.whole and len(heard.begun) == 1 and len(heard.done) > 5


def test_the_work_of_a_criterion_follows_its_texts() -> None:
    pattern, sinks, importance = (CRITERIA[name] for name in ("pattern", "sinks", "importance"))
    assert pattern.work(270, 64, all_texts=True) == pattern.tokens, "it makes its own input"
    assert sinks.work(270, 640, all_texts=True) == pytest.approx(640)
    usual = importance.work(270, 6400, all_texts=False)
    assert usual == importance.tokens + importance.by_head * 135, "it takes 32 of the 100"
    assert importance.work(270, 6400, all_texts=True) == pytest.approx(usual * 100 / 32)
