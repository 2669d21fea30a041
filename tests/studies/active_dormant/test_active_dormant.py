"""Active-dormant heads: built-in models against the card and plain hooks, any model against a loop, and negatives."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import OPTForCausalLM

from sinklens import load, tokenize
from sinklens.detectors.dormancy import Thresholds
from sinklens.errors import InputError, ResultError, UnsupportedArchitectureError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.contrasts import contrasts
from sinklens.evidence.two_sample import difference_intervals
from sinklens.interventions import AblateHeads
from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.lab.gates import measure
from sinklens.lab.streams import stream
from sinklens.models.builtin import builtin_models
from sinklens.passes.head_sets import head_set_losses
from sinklens.studies import ActiveDormant, find_active_dormant
from tests import families
from tests.heard import Heard

TASK = BigramBackcopy()
CLASSES = {"trigger": TASK.trigger_ids}
KINDS = ("trigger", "other")


@pytest.fixture(scope="module")
def bb1() -> ActiveDormant:
    return find_active_dormant(load("bb-1l"), classes=CLASSES, max_sequences=60)


@pytest.fixture(scope="module")
def bb3_result(bb3: TransformerBridge) -> ActiveDormant:
    return find_active_dormant(bb3, classes=CLASSES, max_sequences=60)


def rows(found: ActiveDormant) -> pd.DataFrame:
    return found.to_dataframe().set_index(["layer", "class"])


# ------------------------------------------------------------------ check A on the built-in model
def test_the_one_layer_model_is_active_on_triggers_and_dormant_elsewhere(bb1: ActiveDormant) -> None:
    table = rows(bb1)
    trigger, other = table.loc[(0, "trigger")], table.loc[(0, "other")]
    assert other["mass"] >= 0.6 and trigger["mass"] <= 0.02
    assert trigger["delta_low"] >= 5 and other["delta_high"] <= 0.03
    assert trigger["clean_loss"] <= 0.05
    assert (trigger["label"], other["label"]) == ("active", "dormant")
    assert other["own_ratio"] < 0.2 and trigger["own_ratio"] == 1
    for name in ("by_mass", "by_own_norm", "by_ablation"):
        assert (trigger[name], other[name]) == ("active", "dormant")
    assert math.isnan(trigger["norm_ratio"]) and not isinstance(trigger["by_norm"], str)  # one head: not applicable
    pair = bb1.contrasts().iloc[0]
    assert pair["active_dormant"] and pair["paired"] and abs(pair["delta_difference"]) > 5
    assert bb1.verdict[0].startswith("L0H0 is active on trigger (0.00 of its attention on the sink")
    assert "and dormant on other" in bb1.verdict[0]


def test_one_layer_of_the_three_is_active_dormant(bb3_result: ActiveDormant) -> None:
    table, pairs = rows(bb3_result), bb3_result.contrasts()
    assert pairs.loc[pairs["active_dormant"], "layer"].tolist() == [1]
    assert (table.loc[(1, "trigger"), "label"], table.loc[(1, "other"), "label"]) == ("active", "dormant")
    assert set(table.loc[2, "label"]) == {"idle"}  # what it copies, layer 1 has copied
    states = bb3_result.agreement().set_index(["criterion", "other"])
    assert states.loc[("by_mass", "by_own_norm"), "agreement"] == 1
    assert states.loc[("by_mass", "by_norm"), "n"] == 0
    assert len(bb3_result.verdict) == 1


@pytest.mark.parametrize("name", [name for name in sorted(builtin_models()) if name.startswith("bb-")])
def test_the_figures_are_those_of_plain_hooks(name: str) -> None:
    bridge, n = load(name), 24
    ids = TASK.sample(n, TASK.seq_len + 1, stream(0, "measure"))
    plain = measure(OPTForCausalLM.from_pretrained(builtin_models()[name].path), TASK, batch=n)
    found = find_active_dormant(bridge, {"bb": tokenize(bridge, ids)}, classes=CLASSES).by_sequence()
    for name in ("mass", "delta"):  # there a mean over all queries, not over sequences first
        found[name] *= found["n_queries"]
    sums = found.groupby(["layer", "class"])[["mass", "delta", "n_queries"]].sum()
    for layer in range(len(bridge.blocks)):
        trigger, other = (sums.loc[(layer, c), ["mass", "delta"]] / sums.loc[(layer, c), "n_queries"] for c in KINDS)
        assert trigger["mass"] == pytest.approx(plain[f"L{layer}.attn_bos_trigger"], abs=1e-5)
        assert other["mass"] == pytest.approx(plain[f"L{layer}.attn_bos_nontrigger"], abs=1e-5)
        rise = plain[f"L{layer}.no_attention_backcopy"] - plain["backcopy_loss"]
        assert trigger["delta"] == pytest.approx(rise, abs=1e-4)
        # the BOS's own prediction counts as a bigram there and is left out here
        assert other["delta"] == pytest.approx(plain[f"L{layer}.no_attention_bigram_change"], abs=0.01)


# ------------------------------------------------------------------ any model, against a loop
@pytest.fixture(scope="module")
def domains(tiny: TransformerBridge) -> dict[str, object]:
    ids = families.random_ids(13, 20, seed=3).tolist()
    ids = [row[:14] if index in (2, 9) else row for index, row in enumerate(ids)]
    return {"one": tokenize(tiny, ids[:7]), "two": tokenize(tiny, ids[7:])}


@pytest.fixture(scope="module")
def found(tiny: TransformerBridge, domains: dict) -> ActiveDormant:
    return find_active_dormant(tiny, domains, classes={"low": range(4, 100), "high": range(200, 260)}, batch_size=4)


def losses(model: TransformerBridge, ids: Tensor, silent: tuple[int, int] | None = None) -> np.ndarray:
    """Loss at each row, with a head's z set to zero by the bridge's own hook."""

    def silence(z: Tensor, hook: object) -> Tensor:
        z = z.clone()
        z[:, :, silent[1] if silent else 0] = 0
        return z

    hooks = [(f"blocks.{silent[0]}.attn.hook_z", silence)] if silent else []
    with torch.no_grad():
        logits = model.run_with_hooks(ids[None], fwd_hooks=hooks)[0].double().log_softmax(-1)
    return -logits[torch.arange(len(ids) - 1), ids[1:]].numpy()


def test_deltas_masses_and_groups_equal_a_loop(tiny: TransformerBridge, domains: dict, found: ActiveDormant) -> None:
    sequences = found.by_sequence().set_index(["layer", "head", "domain", "class", "sequence"])
    patterns = {}
    first = 0
    for name, batch in domains.items():
        for index in range(len(batch)):
            ids = batch.ids[index, : int(batch.lengths[index])]
            patterns[name, index + first] = ids
        first += len(batch)
    classes = {"low": range(4, 100), "high": range(200, 260), "other": range(100, 200)}
    for (name, sequence), ids in list(patterns.items())[::3]:
        clean = losses(tiny, ids)
        _, cache = tiny.run_with_cache(ids[None])
        for layer, head in ((0, 1), (1, 3)):
            rise = losses(tiny, ids, (layer, head)) - clean
            mass = cache[f"blocks.{layer}.attn.hook_pattern"][0, head, :-1, 0].detach().numpy()
            for label, members in classes.items():
                queries = [i for i in range(1, len(ids) - 1) if int(ids[i]) in members]
                key = (layer, head, name, label, sequence)
                assert (key in sequences.index) == bool(queries)
                if queries:
                    row = sequences.loc[key]
                    assert row["n_queries"] == len(queries)
                    assert row["delta"] == pytest.approx(rise[queries].mean(), abs=2e-5)
                    assert row["clean_loss"] == pytest.approx(clean[queries].mean(), abs=2e-5)
                    assert row["mass"] == pytest.approx(mass[queries].mean(), abs=1e-5)


def test_table_and_intervals_follow_from_the_sequences(found: ActiveDormant) -> None:
    table, sequences = found.to_dataframe(), found.by_sequence()
    assert len(table) == 2 * 4 * 2 * 3 and not table.duplicated(["layer", "head", "domain", "class"]).any()
    for row in table.iloc[::7].to_dict("records"):
        same = [sequences[name] == row[name] for name in ("layer", "head", "domain", "class")]
        own = sequences[np.logical_and.reduce(same)]
        interval = paired_interval(own["delta"].to_numpy())
        assert row["n_sequences"] == len(own) and row["n_queries"] == own["n_queries"].sum()
        assert (row["delta"], row["delta_low"], row["delta_high"]) == pytest.approx(
            (interval.value, interval.low, interval.high), nan_ok=True
        )
        same = [table[name] == row[name] for name in ("layer", "domain", "class")]
        others = table[np.logical_and.reduce(same) & (table["head"] != row["head"])]
        assert row["delta_layer"] == pytest.approx(others["delta"].mean())
        assert f"{row['mass']:.2f} of its attention" in row["evidence"] and f"{row['delta']:+.3f}" in row["evidence"]


def test_contrasts_pair_what_belongs_together(found: ActiveDormant) -> None:
    pairs, sequences = found.contrasts(), found.by_sequence()
    kinds = pairs.groupby("paired").size()
    assert kinds[True] == 8 * 2 * 3 and kinds[False] == 8 * 3  # classes within a domain, domains within a class
    for row in (pairs[pairs["paired"]].iloc[5], pairs[~pairs["paired"]].iloc[9]):
        ends = [(row["domain"], row["class"]), (row["other_domain"], row["other_class"])]
        values = []
        for domain, name in ends:
            own = sequences[(sequences["domain"] == domain) & (sequences["class"] == name)]
            own = own[(own["layer"] == row["layer"]) & (own["head"] == row["head"])]
            values.append(own.set_index("sequence")["mass"])
        if row["paired"]:
            interval = paired_interval((values[0] - values[1]).dropna().to_numpy())
            expected = interval.value, interval.low, interval.high
        else:
            difference = difference_intervals(*(value.to_numpy()[:, None] for value in values))
            expected = tuple(float(each[0]) for each in difference)
        measured = [row[f"mass_difference{end}"] for end in ("", "_low", "_high")]
        assert measured == pytest.approx(expected)


def test_an_active_dormant_head_needs_both_labels_and_both_intervals() -> None:
    rng = np.random.default_rng(0)
    cases = {0: (1.0, 0.5, "dormant"), 1: (1.0, 0.5, "idle"), 2: (0.0, 0.5, "dormant"), 3: (1.0, 0.0, "dormant")}
    heads, sequences = [], []
    for head, (delta, mass, label) in cases.items():
        for domain, sign in (("a", 1), ("b", 0)):
            heads.append((0, head, domain, "all", "active" if sign else label))
            for sequence in range(12):
                noise = rng.normal(scale=0.01, size=2)
                place = sequence + 12 * (1 - sign)
                sequences.append((0, head, domain, "all", place, sign * delta + noise[0], (1 - sign) * mass + noise[1]))
    keys = ["layer", "head", "domain", "class"]
    found = contrasts(
        pd.DataFrame(heads, columns=[*keys, "label"]),
        pd.DataFrame(sequences, columns=[*keys, "sequence", "delta", "mass"]),
    )
    # of the last two one measure does not differ, and its interval may miss 0 by chance only
    assert found.set_index("head")["active_dormant"].tolist()[:2] == [True, False]
    for head, name in ((2, "delta"), (3, "mass")):
        row = found.set_index("head").loc[head]
        holds_zero = row[f"{name}_difference_low"] <= 0 <= row[f"{name}_difference_high"]
        assert holds_zero and not row["active_dormant"]


def test_batches_change_no_number(tiny: TransformerBridge, domains: dict, found: ActiveDormant) -> None:
    other = find_active_dormant(tiny, domains, classes={"low": range(4, 100), "high": range(200, 260)}, batch_size=1)
    pd.testing.assert_frame_equal(other.by_sequence(), found.by_sequence(), rtol=1e-3, atol=2e-5)


def test_losses_by_head_set_are_those_of_the_intervention(tiny: TransformerBridge, domains: dict) -> None:
    batch = domains["one"].rows([0, 1, 2])
    sets = [[(1, 0)], [(0, 2), (1, 1)]]
    clean, changed = head_set_losses(tiny, batch, AblateHeads("all"), sets)
    for number, heads in enumerate(sets):
        with torch.no_grad(), replace(AblateHeads("all"), heads=tuple(heads))(tiny):
            logits = tiny(batch.ids)
        expected = -logits[:, :-1].log_softmax(-1).gather(-1, batch.ids[:, 1:, None])[..., 0]
        predicted = ~clean[:, :-1].isnan()
        torch.testing.assert_close(changed[number, :, :-1][predicted], expected[predicted], rtol=1e-4, atol=1e-4)
        assert torch.equal(changed[number].isnan(), clean.isnan())
    assert clean[2].isnan().sum() == 20 - 13  # a text of 14 tokens predicts 13


# ------------------------------------------------------------------ negatives, settings, files
def test_an_untrained_model_has_none_and_says_so(found: ActiveDormant) -> None:
    assert not found.contrasts()["active_dormant"].any()
    assert found.verdict[0].startswith(f"In none of {len(found.contrasts())} comparisons is a head ")


def test_thresholds_decide(bb1: ActiveDormant) -> None:
    strict = find_active_dormant(
        load("bb-1l"), classes=CLASSES, max_sequences=10, thresholds=Thresholds(effect=100.0), max_tokens=40
    )
    assert set(strict.to_dataframe()["by_ablation"]) == {"dormant"}
    assert strict.meta["settings"]["thresholds"]["effect"] == 100 and not strict.contrasts()["active_dormant"].any()
    assert set(strict.to_dataframe()["label"]) == {"dormant", "idle"}


def test_the_effect_that_matters_follows_the_spread_of_the_texts(bb1: ActiveDormant, found: ActiveDormant) -> None:
    """0.03 nats is much where texts hardly differ and nothing where they differ by whole nats."""
    for result in (bb1, found):
        rows = result.by_sequence().query("layer == 0 and head == 0").to_dict("records")
        for domain in {row["domain"] for row in rows}:
            sums: dict[int, list[float]] = {}
            for row in rows:
                if row["domain"] == domain:
                    held = sums.setdefault(row["sequence"], [0.0, 0.0])
                    held[0] += row["clean_loss"] * row["n_queries"]
                    held[1] += row["n_queries"]
            means = [total / n for total, n in sums.values()]
            middle = sum(means) / len(means)
            spread = math.sqrt(sum((mean - middle) ** 2 for mean in means) / (len(means) - 1))
            own = result.to_dataframe().query("domain == @domain")["effect_bound"]
            assert own.to_numpy() == pytest.approx(0.1 * spread)
    assert bb1.meta["settings"]["thresholds"]["effect"] is None


def test_it_comes_back_from_disk(bb1: ActiveDormant, tmp_path: Path) -> None:
    again = ActiveDormant.load(bb1.save(tmp_path / "result"))
    assert again.meta == bb1.meta and again.verdict == bb1.verdict
    for name, table in bb1.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table, check_dtype=False)
    assert again.meta["classes"] == {"trigger": sorted(TASK.trigger_ids)}
    assert {"sink_mass", "head_output_norm", "ablation_delta"} == set(again.meta["metrics"])
    assert again.meta["tokens"]["bos"]["position0"] == "<s>"
    (tmp_path / "result" / "contrasts.parquet").write_bytes(b"damaged")
    with pytest.raises(ResultError, match="damaged"):
        ActiveDormant.load(tmp_path / "result")


def test_one_text_is_one_domain_and_progress_is_told(tiny: TransformerBridge) -> None:
    heard = Heard()
    text = "It was the best of times, it was the worst of times. " * 6
    found = find_active_dormant(tiny, text, max_tokens=40, batch_size=3, progress=heard)
    table = found.to_dataframe()
    assert set(table["domain"]) == {"text"} and set(table["class"]) == {"all"}
    assert found.contrasts().empty and table["own_ratio"].isna().all() and table["norm_ratio"].notna().all()
    ((_, work, about),) = heard.begun
    assert work == len(set(found.by_sequence()["sequence"])) and about.startswith(f"{8 * work} ablations")
    assert heard.whole and len(heard.done) > 1
    assert "sequences" not in found.verdict[0] and found.verdict[0].startswith("No head is compared")


def test_inputs_that_cannot_be_used(tiny: TransformerBridge, domains: dict, tmp_path: Path) -> None:
    wrong = [{"other": [5]}, {"a": []}, {"": [5]}, {"a": [5], "b": [6, 5]}, {"a": [5, 5]}]
    for classes in wrong:
        with pytest.raises(InputError, match="class"):
            find_active_dormant(tiny, domains, classes=classes)
    for sink in ((), (-1,), (14,)):
        with pytest.raises(InputError, match="sink must be positions"):
            find_active_dormant(tiny, domains, sink=sink)
    with pytest.raises(UnsupportedArchitectureError, match="no attention heads"):
        find_active_dormant(load(families.build_checkpoint("mamba", tmp_path)), domains)


def test_another_sink_than_position_0(tiny: TransformerBridge, domains: dict) -> None:
    found = find_active_dormant(tiny, {"one": domains["one"]}, sink=(0, 3))
    row = found.by_sequence().set_index(["layer", "head", "sequence"]).loc[(1, 2, 0)]
    ids = domains["one"].ids[0]
    _, cache = tiny.run_with_cache(ids[None])
    pattern = cache["blocks.1.attn.hook_pattern"][0, 2, 1:-1].detach()
    assert row["mass"] == pytest.approx(float((pattern[:, 0] + pattern[:, 3]).mean()), abs=1e-5)
    expected = np.mean([(1 + (i >= 3)) / (i + 1) for i in range(1, len(ids) - 1)])
    assert row["null"] == pytest.approx(expected)
