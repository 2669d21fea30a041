"""The census on models whose answer is known: a trained sink, a planted sink, and none."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import Census, load, scan, tokenize
from sinklens.capture import capture
from sinklens.detectors import sinks
from sinklens.errors import InputError, ResultError
from sinklens.interventions import MaskKeys, ScaleKeys
from tests import families, oracle
from tests.heard import Heard
from tests.ties import same_shares


def test_bb3_has_the_sink_the_drain_and_the_growth(bb3_census: Census) -> None:
    heads = bb3_census.heads.to_dataframe().set_index(["layer", "head"])
    best = heads.loc[(1, 0)]
    assert best["sink_position"] == 0 and best["sink_rate"] == 1 and best["is_sink"]
    assert best["ratio"] > 5
    assert best["drain_wo"] < 0.2 and best["delta_logit"] > 5
    layers = bb3_census.layers.to_dataframe().set_index("layer")
    assert layers.loc[0, "resid_norm_first"] > 1.7 * layers.loc[-1, "resid_norm_first"]
    text = " ".join(bb3_census.verdict)
    assert bb3_census.verdict[0].startswith("Position 0 ('<s>', the BOS) is an attention sink")
    assert "Value-state drain" in text and "residual peak at position 0" in text and "Growth" in text
    tokens = bb3_census.tokens.to_dataframe()
    first = tokens[tokens["position"] == 0]
    assert first["is_bos"].all() and (first["n_sink_heads"] >= 1).all()
    assert (tokens[tokens["position"].between(1, 40)]["n_sink_heads"] == 0).mean() > 0.95


def test_random_model_has_no_sink(tiny_directory: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=families.VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    bridge = TransformerBridge.boot_transformers(
        "random", hf_model=LlamaForCausalLM(config).eval(), tokenizer=load(tiny_directory).tokenizer, device="cpu"
    )
    ids = torch.randint(4, families.VOCAB, (20, 64), generator=torch.Generator().manual_seed(1))
    census = scan(bridge, tokens=ids)
    assert census.verdict[0].startswith("No attention sink")
    assert any(sentence.startswith("No residual peak") for sentence in census.verdict)
    assert any(sentence.startswith("No massive activation") for sentence in census.verdict)
    assert not census.heads.to_dataframe()["is_sink"].any()
    null = census.heads.to_dataframe()["null_first"]
    assert null.to_numpy() == pytest.approx(0.07412, abs=1e-5)


def test_census_equals_the_pure_functions_on_full_patterns(tiny: TransformerBridge) -> None:
    ids = families.random_ids(batch=5, pos=40)
    census = scan(tiny, tokens=ids, eps=0.25)
    table = census.sinks.to_dataframe()
    for record in oracle.full_patterns(tiny, ids):
        assert record is not None
        alpha = sinks.importance(record.pattern)
        rows = table[table["layer"] == record.layer].pivot(index="head", columns="position")
        np.testing.assert_allclose(rows["importance"].to_numpy(), alpha.mean(0).numpy(), atol=1e-5)
        rates = torch.tensor(rows["sink_rate"].to_numpy())
        same_shares(rates, sinks.sink_rate(alpha, 0.25), (alpha - 0.25).movedim(0, -1))
    np.testing.assert_allclose(
        rows["null"].to_numpy(), np.tile(sinks.uniform_importance(40).numpy(), (4, 1)), atol=1e-6
    )
    assert (table["ratio"] - table["importance"] / table["null"]).abs().max() < 1e-9


def test_tables_do_not_depend_on_batching_or_padding(tiny: TransformerBridge) -> None:
    ids = families.random_ids(batch=6, pos=40)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[2, :11] = False
    mask[5, :20] = False
    left = scan(tiny, tokens=tokenize(tiny, ids, attention_mask=mask), batch_size=6)
    ragged = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    one_by_one = scan(tiny, tokens=ragged, batch_size=1)
    assert left.tables.keys() == one_by_one.tables.keys()
    for name, table in left.tables.items():
        if name == "massive":  # ties in the order of equal magnitudes aside
            continue
        pd.testing.assert_frame_equal(table, one_by_one.tables[name], atol=2e-5, rtol=1e-4, obj=name)


def test_save_and_load_round_trip(bb3_census: Census, tmp_path: object) -> None:
    directory = bb3_census.save(f"{tmp_path}/census")
    again = Census.load(directory)
    assert again.meta == bb3_census.meta
    for name, table in bb3_census.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table)
    for name, kept in bb3_census.maps.items():
        np.testing.assert_array_equal(again.maps[name].values, kept.values)
        assert again.maps[name].tokens == kept.tokens
    assert again.to_markdown() == bb3_census.to_markdown()


def test_names_that_others_rely_on(bb3_census: Census) -> None:
    wanted = ["layer", "head", "position", "importance", "sink_rate", "null", "ratio"]
    table = bb3_census.sinks.to_dataframe()
    assert set(wanted) <= set(table.columns)
    assert len(table) == 3 * 1 * 64 and not table.duplicated(["layer", "head", "position"]).any()
    for metric in bb3_census.meta["metrics"].values():
        assert metric["version"] >= 1 and metric["definition"] and metric["source"]
    assert bb3_census.meta["tokens"]["bos"]["statement"]
    assert bb3_census.meta["tokens"]["bos"]["position0"] == "<s>"


def test_a_model_placed_by_accelerate_gives_the_same_numbers(tiny: TransformerBridge, tiny_directory: Path) -> None:
    spread = load(tiny_directory, device_map={"": "cpu"})
    ids = families.random_ids(batch=3, pos=30)
    expected, found = scan(tiny, tokens=ids), scan(spread, tokens=ids)
    for name, table in expected.tables.items():
        pd.testing.assert_frame_equal(found.tables[name], table, obj=name)


def test_output_gates_are_the_models_own(tmp_path: Path) -> None:
    model = load(families.build_checkpoint("qwen3_next", tmp_path))
    ids = families.random_ids(batch=2, pos=24)
    (record,) = [r for r in capture(model, tokenize(model, ids)) if r.path == "fast"]
    _, cache = model.run_with_cache(ids, names_filter="blocks.3.attn.hook_q_gate")
    gate = cache["blocks.3.attn.hook_q_gate"]
    expected = torch.sigmoid(gate.reshape(*ids.shape, model.cfg.n_heads, -1)).mean(-1).transpose(1, 2)
    torch.testing.assert_close(record.attention["gate"], expected)


def test_the_model_is_as_before(tiny: TransformerBridge) -> None:
    ids = families.random_ids(batch=2, pos=24)
    before = tiny(ids)
    modules = [id(module) for module in tiny.modules()]

    def boom(heard: Heard) -> None:
        raise RuntimeError("in the middle")

    scan(tiny, tokens=ids)
    with pytest.raises(RuntimeError, match="in the middle"):
        scan(tiny, tokens=ids, progress=Heard(boom))
    assert torch.equal(tiny(ids), before)
    assert [id(module) for module in tiny.modules()] == modules
    assert not any(point.fwd_hooks or point.bwd_hooks for point in tiny.hook_dict.values())
    assert not any("forward" in block.attn.__dict__ for block in tiny.blocks)


def test_hybrid_and_attention_free_models_say_not_applicable(tmp_path: object) -> None:
    hybrid = scan(load(families.build_checkpoint("qwen3_next", f"{tmp_path}/hybrid")), tokens=families.random_ids())
    layers = hybrid.layers.to_dataframe().set_index("layer")
    assert layers["attention"].tolist() == ["embedding", "none", "none", "none", "fast"]
    assert layers["sink_rate_first"].isna().tolist() == [True, True, True, True, False]
    assert set(hybrid.heads.to_dataframe()["layer"]) == {3}
    gates = hybrid.heads.to_dataframe()["gate"]
    assert gates.between(0, 1).all() and any("Output gates pass" in sentence for sentence in hybrid.verdict)
    mamba = scan(load(families.build_checkpoint("mamba", f"{tmp_path}/mamba")), tokens=families.random_ids())
    assert "not applicable" in mamba.verdict[0]
    assert len(mamba.sinks) == 0 and len(mamba.heads) == 0 and mamba.tokens.to_dataframe()["received"].isna().all()
    assert {"layer", "head", "position", "importance"} <= set(mamba.sinks.to_dataframe().columns)
    for census in (hybrid, mamba):
        census.save(f"{tmp_path}/saved")
        Census.load(f"{tmp_path}/saved")
        assert census.to_markdown()


def test_learned_sinks_are_reported_as_virtual(tmp_path: object) -> None:
    census = scan(load(families.build_checkpoint("gpt_oss", str(tmp_path))), tokens=families.random_ids())
    assert census.heads.to_dataframe()["missing_mass"].max() > 0.01
    assert any(sentence.startswith("Virtual sink") for sentence in census.verdict)


def test_fewer_detectors_give_fewer_tables(tiny: TransformerBridge) -> None:
    census = scan(tiny, tokens=families.random_ids(), detectors=["residual_peaks"])
    assert "sinks" not in census.tables and "residual_norms" in census.tables
    with pytest.raises(ResultError, match="residual_peaks"):
        _ = census.sinks
    with pytest.raises(InputError, match="sink_detector"):
        scan(tiny, tokens=families.random_ids(), detectors=["sink_detector"])


def test_inputs_that_cannot_be_used(tiny: TransformerBridge) -> None:
    with pytest.raises(InputError, match="too short to measure"):
        scan(tiny, tokens=[[5, 6, 7]])
    with pytest.raises(InputError, match="not both"):
        scan(tiny, "text", tokens=[[1] * 20])
    with pytest.raises(InputError, match="eps"):
        scan(tiny, tokens=families.random_ids(), eps=1.5)
    mixed = scan(tiny, tokens=[[5] * 4, list(range(5, 45))])
    assert mixed.meta["tokens"]["skipped"] == ["sequence 0: 4 tokens, fewer than 10"]
    assert mixed.meta["tokens"]["n_sequences"] == 1


def test_built_in_corpus_is_seeded_and_fits(bb3: TransformerBridge, tiny: TransformerBridge) -> None:
    from sinklens import builtin_corpus

    first, again, other = (builtin_corpus(bb3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.tokens.ids, again.tokens.ids) and not torch.equal(first.tokens.ids, other.tokens.ids)
    assert first.tokens.ids.shape == (100, 64) and "own task" in first.source
    assert "shakespeare" in builtin_corpus(tiny, n_sequences=5).source


# ------------------------------------------------------------------ under an intervention
def test_a_scan_under_an_intervention_measures_the_changed_model(bb3: TransformerBridge, bb3_census: Census) -> None:
    changed = scan(bb3, intervention=MaskKeys(0))
    before, after = bb3_census.heads.to_dataframe(), changed.heads.to_dataframe()
    assert float(before["importance_first"].max()) > 0.7
    assert float(after["importance_first"].max()) < 0.1  # only row 0 still sees key 0
    assert changed.meta["intervention"]["intervention"]["kind"] == "MaskKeys"
    assert any("MaskKeys" in sentence for sentence in changed.verdict)
    assert bb3_census.meta["intervention"] is None
    again = scan(bb3)
    pd.testing.assert_frame_equal(again.heads.to_dataframe(), before)


def test_an_identity_changes_no_number(bb3: TransformerBridge, bb3_census: Census) -> None:
    same = scan(bb3, intervention=ScaleKeys(0, 1.0))
    pd.testing.assert_frame_equal(same.heads.to_dataframe(), bb3_census.heads.to_dataframe(), rtol=1e-4, atol=1e-5)
    pd.testing.assert_frame_equal(
        same.residual_peaks.to_dataframe(), bb3_census.residual_peaks.to_dataframe(), rtol=1e-4, atol=1e-5
    )


def test_the_header_says_where_the_time_went(bb3_census: Census) -> None:
    parts = bb3_census.meta["seconds_by_part"]
    assert {*parts} == {"forward", "attention", "capture", "detectors", "tables", "rest"}
    assert min(parts.values()) > 0 and sum(parts.values()) == pytest.approx(bb3_census.meta["seconds"])
