"""Policies side by side: numbers against a loop by hand, the same after a kill, sentences against their table."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import sinklens
from sinklens.attention import AttentionEngine
from sinklens.errors import InputError, ResultError
from sinklens.policies import Account, make_policy
from sinklens.policies.h2o import H2O
from sinklens.policies.head_split import HeadSplit
from sinklens.policies.sink_window import SinkWindow
from sinklens.policies.top_k import TopK
from sinklens.results.progress import Silent
from sinklens.studies import PolicyComparison, Roles, compare_policies, make_needles
from sinklens.studies.head_roles.role_file import RoleFile
from sinklens.studies.policies.result import comparison_sentences
from sinklens.studies.policies.role_fields import read_role_fields
from tests.studies.head_roles.synthetic import scores

IDS = torch.randint(4, 500, (3, 24), generator=torch.Generator().manual_seed(0))
RULES = {"window": SinkWindow(1, 5), "h2o": H2O(3, 3)}


@pytest.fixture(scope="module")
def model() -> Any:
    return sinklens.load("tiny-llama")


@pytest.fixture(scope="module")
def found(model: Any) -> PolicyComparison:
    return compare_policies(model, RULES, tokens=IDS, prompt=10)


@torch.no_grad()
def test_losses_and_masses_are_those_of_a_loop_by_hand(model: Any, found: PolicyComparison) -> None:
    rows, target = slice(10, 23), IDS[:, 11:]
    with AttentionEngine(model):
        full = model(IDS).log_softmax(-1)[:, rows]
    for name, rule in RULES.items():
        account = Account()
        with rule.counted(account)(model):
            changed = model(IDS).log_softmax(-1)[:, rows]
        loss = -changed.gather(-1, target[..., None])[..., 0].mean(-1)
        clean = -full.gather(-1, target[..., None])[..., 0].mean(-1)
        kl = (full.exp() * (full - changed)).sum(-1).mean(-1)
        same = (full.argmax(-1) == changed.argmax(-1)).float().mean(-1)
        own = found.tables["sequences"].query("policy == @name").sort_values("sequence")
        for column, expected in [("delta_loss", loss - clean), ("kl", kl), ("top1_agreement", same)]:
            np.testing.assert_allclose(own[column], expected.numpy(), atol=2e-5)
        summary = found.summary.set_index("policy").loc[name]
        assert summary["delta_loss"] == pytest.approx(float((loss - clean).mean()), abs=2e-5)
        heads = account.by_head(10)
        assert summary["kept"] == pytest.approx(float(heads["kept"].mean()), abs=1e-6)
        assert summary["mass"] == pytest.approx(float(heads["mass"].mean()), abs=1e-6)
        caches = account.by_kv_head(10)
        key = 2 * int(model.cfg.d_head) * 4
        assert (caches["held"] == heads["kept"].iloc[0]).all() or name == "h2o"
        assert summary["mib"] == pytest.approx(float(caches["held"].sum()) * key / 2**20, rel=1e-6)
    assert set(found.summary["kept"].round(6)) == {6.0, 7.0}


def test_budgets_make_a_row_each_and_full_attention_only_one(model: Any) -> None:
    found = compare_policies(model, ["full", "tova"], tokens=IDS, prompt=10, budgets=[0.25, 12])
    assert [*found.summary["policy"]] == ["full", "tova 6", "tova 12"]
    assert [*found.summary["budget"].fillna(0)] == [0, 6, 12]
    np.testing.assert_allclose(found.summary["kept"][1:], [6, (11 + 13 * 12) / 14])  # row 10 sees 11 keys
    given = compare_policies(
        model, {"one": SinkWindow(0, 6), "two": SinkWindow(3, 3)}, tokens=IDS, prompt=10, budgets=[6]
    )
    assert [*given.summary["budget"]] == [6, 6] and [*given.summary["rule"]] == ["one", "two"]
    assert given.verdict[0].startswith("At a budget of 6 keys: ")
    with pytest.raises(InputError, match="made for one budget"):
        compare_policies(model, RULES, tokens=IDS, budgets=[4, 8])
    full = found.summary.iloc[0]
    assert full["delta_loss"] == 0 and full["density"] == 1 and full["mass"] == pytest.approx(1)


def test_rules_that_look_ahead_are_refused_unless_allowed(model: Any) -> None:
    with pytest.raises(InputError, match="h2o_global chooses by what comes later"):
        compare_policies(model, ["h2o_global"], tokens=IDS)
    found = compare_policies(model, ["h2o_global", "tova"], tokens=IDS, prompt=10, budgets=[8], allow_leak=True)
    assert found.verdict[-1] == "h2o_global 8 chose by what comes later; the loss there means nothing."
    for wrong, told in [
        ({}, "Expected policies"),
        ({"a": 3}, "policies must be a mapping"),
        (["nix"], "Unknown policy"),
    ]:
        with pytest.raises(InputError, match=told):
            compare_policies(model, wrong, tokens=IDS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="prompt must leave"):
        compare_policies(model, ["full"], tokens=IDS, prompt=24)


class Stop(Silent):
    """Ends the work after some advances."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, work: float = 1.0, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_a_killed_comparison_goes_on_and_gives_the_same(model: Any, found: PolicyComparison, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokens": IDS, "prompt": 10, "batch_size": 1, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        compare_policies(model, RULES, progress=Stop(6), **options)
    with pytest.raises(ResultError, match="another comparison of policies"):
        compare_policies(model, {"h2o": H2O(2, 2)}, **options)
    counted: list[float] = []

    class Skips(Silent):
        def skip(self, work: float) -> None:
            counted.append(work)

    again = compare_policies(model, RULES, progress=Skips(), **options)
    assert counted == [4]  # one finished batch: two passes, and one for each rule
    loaded = sinklens.open(tmp_path / "run")
    assert isinstance(loaded, PolicyComparison)
    for name, table in again.tables.items():
        pd.testing.assert_frame_equal(loaded.to_dataframe(name), table, check_dtype=False)
    numbers = [*found.summary.select_dtypes("number")]
    np.testing.assert_allclose(again.summary[numbers], found.summary[numbers], atol=1e-5, equal_nan=True)
    assert loaded.report(tmp_path / "report.html").stat().st_size > 10_000


def test_only_the_same_texts_and_rules_go_on(model: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prompt": 10, "batch_size": 1, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        compare_policies(model, RULES, tokens=IDS, progress=Stop(6), **options)
    other = IDS.clone()
    other[:, 3] = IDS[:, 4]  # as many tokens, and other ones
    with pytest.raises(ResultError, match="another comparison of policies"):
        compare_policies(model, RULES, tokens=other, **options)
    done = compare_policies(model, RULES, tokens=IDS, **options)
    counted: list[float] = []

    class Counts(Silent):
        def begin(self, name: str, work: float, about: str = "") -> None:
            counted.append(work)

    again = compare_policies(model, RULES, tokens=IDS, progress=Counts(), **options)
    assert not counted, "a finished comparison is not made again"
    pd.testing.assert_frame_equal(again.summary, done.summary, check_dtype=False)
    with pytest.raises(ResultError, match="another comparison of policies"):
        compare_policies(model, RULES, tokens=other, **options)
    fresh = compare_policies(model, RULES, tokens=other, restart=True, **options)
    assert not np.allclose(fresh.summary["clean_loss"], done.summary["clean_loss"])


def test_bad_settings_leave_no_folder(model: Any, tmp_path: Path) -> None:
    for wrong in ({"batch_size": 0}, {"prompt": 99}, {"budgets": [-1]}, {"bos": "perhaps", "tokens": None}):
        with pytest.raises(InputError):
            compare_policies(model, ["tova"], **{"tokens": IDS, **wrong, "out": tmp_path / "new"})  # type: ignore[arg-type]
        assert not (tmp_path / "new").exists(), wrong
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResultError):
        compare_policies(model, ["tova"], tokens=IDS, out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def made_up(seed: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    n = int(draw.integers(1, 9))
    table = pd.DataFrame({"policy": [f"rule{i}" for i in range(n)], "budget": draw.choice([8.0, 16.0, math.nan], n)})
    table["scope"] = draw.choice(["causal", "prompt", "global"], n, p=[0.6, 0.2, 0.2])
    table["density"], table["untrained"] = draw.choice([0.2, 0.5, 1.0], n), draw.choice([False, True], n, p=[0.8, 0.2])
    table["kept"], table["delta_loss"] = draw.uniform(2, 30, n), draw.normal(0, 1, n)
    table["delta_loss_low"] = draw.choice([-2.0, math.nan], n)
    table["delta_loss_high"] = table["delta_loss"] + draw.choice([0.1, 1.0])
    table["mass"], table["first_mass"] = draw.uniform(0, 1, n), draw.uniform(0, 0.6, n)
    table["first_kept"] = table["first_mass"] * draw.choice([0.0, 0.4, 1.0], n)
    table["kl"] = draw.choice([0.0, 0.1], n)
    idle = (table["kl"] == 0) & (table["density"] == 1)
    table.loc[idle, ["delta_loss", "delta_loss_low", "delta_loss_high"]] = 0.0
    return table


@pytest.mark.parametrize("seed", range(60))
def test_every_sentence_is_recomputed_from_the_table(seed: int) -> None:
    table = made_up(seed)
    expected: list[str] = []
    blind = [row for row in table.to_dict("records") if row["scope"] != "global"]
    able = [row for row in blind if not row["untrained"]]
    rows = [row for row in able if row["density"] < 1]

    def cost(row: dict[str, Any]) -> str:
        words = f"{row['delta_loss']:+z.3f} nats a token"
        return (
            words
            if math.isnan(row["delta_loss_low"])
            else f"{words} [{row['delta_loss_low']:+z.3f}, {row['delta_loss_high']:+z.3f}]"
        )

    if not rows:
        expected = ["No policy that drops keys without looking ahead was compared, so there is nothing to rank."]
    for budget in (8.0, 16.0, None):
        own = [row for row in rows if (math.isnan(row["budget"]) if budget is None else row["budget"] == budget)]
        more = [row for row in own if budget is not None and row["kept"] > 1.05 * budget]
        own = sorted((row for row in own if row not in more), key=lambda row: row["delta_loss"])
        where = "" if budget is None else f"At a budget of {budget:.0f} keys: "
        if len(own) == 1:
            expected.append(
                f"{where}{own[0]['policy']} costs {cost(own[0])} and reads {own[0]['kept']:.3g} keys a row."
            )
        elif own:
            best, worst, most = own[0], own[-1], max(own, key=lambda row: row["mass"])
            expected.append(
                f"{where}{best['policy']} costs least of {len(own)} rules, {cost(best)} with {best['kept']:.3g} keys a "
                f"row; {worst['policy']} costs most, {cost(worst)} with {worst['kept']:.3g}."
            )
            near = [row["policy"] for row in rows if row in own[1:] and row["delta_loss"] <= best["delta_loss_high"]]
            far = most is not best and most["policy"] not in near
            if near:
                expected.append(f"{where}{'within' if where else 'Within'} its interval lie {', '.join(near)}.")
            if far:
                words = f"{most['policy']} keeps the most, {most['mass']:.1%}, and costs {cost(most)}"
                first = "kept" if where else "Kept"
                expected.append(
                    f"{where}{first} attention does not rank the loss: {words}, while {best['policy']} keeps "
                    f"{best['mass']:.1%}."
                )
        if more:
            listed = ", ".join(f"{row['policy']} ({row['kept']:.3g})" for row in more)
            expected.append(f"{where}not ranked, because they really read more keys: {listed}.")
    poor = [row for row in rows if row["first_mass"] > 0.1 and row["first_kept"] < row["first_mass"] / 2]
    if poor:
        expected.append(
            f"The first four tokens hold {max(row['first_mass'] for row in poor):.0%} of the attention at most under "
            f"{', '.join(row['policy'] for row in poor)}, which read less than half of that."
        )
    cuts_before = [f"{row['policy']} ({cost(row)})" for row in able if row["density"] == 1 and row["kl"]]
    if cuts_before:
        expected.append(f"Not ranked, because all rows that count read everything: {', '.join(cuts_before)}.")
    idle = [row["policy"] for row in able if row["density"] == 1 and not row["kl"]]
    if idle:
        expected.append(f"{', '.join(idle)} change{'s' * (len(idle) == 1)} nothing on texts of this length.")
    alien = [f"{row['policy']} ({cost(row)})" for row in blind if row["untrained"]]
    if alien:
        expected.append(
            "Not ranked, because made for models that are trained with such a rule, as nothing says of this one: "
            f"{', '.join(alien)}."
        )
    leaks = [row["policy"] for row in table.to_dict("records") if row["scope"] == "global"]
    if leaks:
        expected.append(f"{', '.join(leaks)} chose by what comes later; the loss there means nothing.")
    assert comparison_sentences(table) == expected


@torch.no_grad()
def test_needles_are_those_of_a_loop_by_hand(tmp_path: Path) -> None:
    """The answer's rank and probability under each rule, token by token; attention to the needle from maps."""
    bridge = sinklens.load("induction-2l")
    needles = make_needles(bridge, lengths=(40,), depths=(0.2, 0.8), repeats=3, size=3)
    rules = {"window": SinkWindow(1, 5), "top": TopK(8)}
    options: dict[str, Any] = {"tokens": IDS % 64, "prompt": 10, "needles": needles, "batch_size": 2}
    found = compare_policies(bridge, rules, **options)
    table = found.to_dataframe("needles").set_index(["policy", "instance"])
    for number, each in enumerate(needles.instances):
        for name, rule in {"": None, **rules}.items():
            ids, ranks, logs = list(each.ids), [], []
            for token in each.answer:
                if rule is None:
                    row = bridge(torch.tensor([ids]))[0, -1]
                else:
                    with rule(bridge):
                        row = bridge(torch.tensor([ids]))[0, -1]
                ranks.append(1 + int((row > row[token]).sum()))
                logs.append(float(row.log_softmax(-1)[token]))
                ids.append(token)
            own = table.loc[(name, number)]
            assert own["rank"] == np.mean(ranks) and own["exact"] == (max(ranks) == 1)
            assert own["log_prob"] == pytest.approx(np.mean(logs), abs=1e-4)
    summary = found.to_dataframe("needle_summary").set_index("policy")
    assert summary.loc["window", "needle_kept"] < 0.5 * summary.loc["top", "needle_kept"]
    assert summary.loc["top", "needle_kept"] <= summary.loc["top", "needle_mass"] + 1e-9
    assert summary.loc["window", "delta_needle_log_prob"] < -0.5 < summary.loc["top", "delta_needle_log_prob"]
    clean = found.to_dataframe("needles").query("policy == ''")
    assert summary["clean_needle_exact"].iloc[0] == pytest.approx(clean["exact"].mean()) and clean["exact"].mean() > 0.5

    def sentence(name: str, word: str) -> str:
        row = summary.loc[name]
        return (
            f"{name} keeps the needle {word}: {row['needle_exact']:.0%} answered, mean rank {row['needle_rank']:.3g}, "
            f"{row['delta_needle_log_prob']:+z.3f} nats a token of the answer; "
            f"{row['needle_kept'] / row['needle_mass']:.0%} of the attention to the needle is left."
        )

    assert found.verdict[-2:] == [sentence("top", "best"), sentence("window", "worst")]
    with pytest.raises(KeyboardInterrupt):
        compare_policies(bridge, rules, progress=Stop(8), out=tmp_path / "run", **options)
    again = compare_policies(bridge, rules, out=tmp_path / "run", **options)
    pd.testing.assert_frame_equal(again.to_dataframe("needle_summary"), found.to_dataframe("needle_summary"))
    fig = sinklens.open(tmp_path / "run").plot.policy_costs()
    drawn = {trace.name: trace.y[0] for trace in fig.data if trace.xaxis == "x2"}
    changes = summary["delta_needle_log_prob"].add_suffix(", needles").to_dict()
    assert drawn == pytest.approx(changes, rel=1e-5)
    assert all(
        trace.xaxis != "x2" for trace in compare_policies(bridge, rules, tokens=IDS % 64).plot.policy_costs().data
    )


def test_heads_of_a_rule_come_from_a_role_file(tmp_path: Path) -> None:
    parts = {"r": scores(retrieval=[0.0, 0.3, 0.9, 0.0] * 3)}
    path = Roles.of(parts, model={"name": "m", "n_layers": 3, "n_heads": 4, "n_kv_heads": 2}).head_roles()
    path = path.write(tmp_path / "head-roles.json")
    label, words = read_role_fields(f"head_split:full={path}:retrieval,recent=5")
    assert label == f"head_split:full={path.name}:retrieval,recent=5"
    assert make_policy(words) == HeadSplit(RoleFile.read(path).heads("retrieval"), recent=5)
    assert read_role_fields("tova") == ("tova", "tova")
    with pytest.raises(InputError, match="no role"):
        read_role_fields(f"head_split:full={path}:nothing")
