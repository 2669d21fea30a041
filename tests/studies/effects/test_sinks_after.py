"""Where the sink goes: a model whose sink is built in by hand, the built-in ones, and what is saved of it."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import Census, load, scan, tokenize
from sinklens.errors import InputError, ResultError
from sinklens.interventions import Intervention, MaskKeys, ScaleKeys
from sinklens.passes.corpus import builtin_corpus
from sinklens.studies import Effects, follow_sinks, measure_effects
from tests import families, oracle
from tests.studies.census.verdict.evidence import Evidence, refute
from tests.studies.census.verdict.topics import TOPICS


@pytest.fixture
def planted(tmp_path: Path) -> tuple[TransformerBridge, torch.Tensor]:
    """A model where every head looks at three marked tokens, each ten times as much as at the next.

    Queries are one constant direction (their weights are 0 but for a bias), and keys along it are read off the token:
    so the scores of keys are known, whatever the layer. With the first marked key hidden, the second one is the sink.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=families.VOCAB, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, rope_theta=1e12, tie_word_embeddings=False,
    )  # fmt: skip
    network = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        marked = {10: 1.0, 11: 0.8, 12: 0.6}
        embedding = network.model.embed_tokens.weight
        embedding.mul_(0.1)[:, 0] = 0
        for token, size in marked.items():
            embedding[token] = 0
            embedding[token, 0] = 1.0
            embedding[token, 1] = math.sqrt(1 / size**2 - 1)  # the norm before attention then leaves ``size``
        for layer in network.model.layers:
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.q_proj.bias.zero_()[15::16] = 8.0  # the slowest rotation
            layer.self_attn.k_proj.bias.zero_()
            layer.self_attn.k_proj.weight.zero_()[15::16, 0] = 1.5
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model = TransformerBridge.boot_transformers(
        "planted", hf_model=network, tokenizer=load(families.build_checkpoint("qwen2", tmp_path)).tokenizer,
        device="cpu",
    )  # fmt: skip
    ids = torch.randint(20, families.VOCAB, (4, 40), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, 3], ids[:, 5] = 10, 11, 12
    return model, ids


def test_the_planted_sink_moves_to_the_second_and_third_token(planted: tuple[TransformerBridge, torch.Tensor]) -> None:
    model, ids = planted
    found = measure_effects(model, {"no 0": MaskKeys(0), "no 0 and 3": MaskKeys((0, 3))}, tokenize(model, ids))
    assert [each.rsplit("; ", 1)[1] for each in found.verdict[2:]] == [
        "the sink moved from position 0 to position 3.",
        "the sink moved from position 0 to position 5.",
    ]
    first = found.sinks_after.set_index(["intervention", "position"]).loc["no 0"]
    assert first["n_sink_heads_before"].to_dict() == {0: 4, 3: 0}
    assert first["n_sink_heads"].to_dict() == {0: 0, 3: 4}
    summary = found.summary().set_index("intervention")
    assert summary.loc["no 0 and 3", ["sink_position_before", "sink_position"]].tolist() == [0, 5]


def test_following_masks_all_of_them(planted: tuple[TransformerBridge, torch.Tensor]) -> None:
    model, ids = planted
    found = follow_sinks(model, tokenize(model, ids))
    assert found.intervention == MaskKeys((0, 3, 5)) and found.n_left == 0
    assert found.table[["round", "n_masked", "position", "n_sink_heads"]].to_numpy().tolist() == [
        [0, 0, 0, 4],
        [1, 1, 3, 4],
        [2, 2, 5, 4],
    ]
    assert Intervention.from_json(found.intervention.to_json()) == found.intervention
    bounded = follow_sinks(model, tokenize(model, ids), bound=2)
    assert bounded.intervention == MaskKeys((0, 3)) and bounded.n_left == 4
    with pytest.raises(InputError, match="bound must be at least 1"):
        follow_sinks(model, tokenize(model, ids), bound=0)
    with pytest.raises(InputError, match="shorter than the 10 tokens"):
        follow_sinks(model, tokenize(model, ids[:, :6]))


def test_without_a_sink_there_is_nothing_to_follow(tiny: TransformerBridge) -> None:
    with pytest.raises(InputError, match="none to mask"):
        follow_sinks(tiny, tokenize(tiny, families.random_ids(4, 40)))


def test_counts_equal_whole_patterns(tiny: TransformerBridge) -> None:
    batch = tokenize(tiny, families.random_ids(4, 32))
    found = measure_effects(tiny, {"half": ScaleKeys(0, 40.0)}, batch, batch_size=3).sinks_after
    for suffix, change in (("_before", None), ("", ScaleKeys(0, 40.0))):
        largest = 0.0
        for layer, record in enumerate(oracle.full_patterns(tiny, batch.ids)):
            assert record is not None
            weights = record.pattern.double()
            if change is not None and layer > 0:
                continue  # deeper layers read a changed stream; layer 0 reads the same one
            if change is not None:
                weights[..., 0] *= 40.0
                weights /= weights.sum(-1, keepdim=True)
            largest = max(largest, weights[..., 0].mean(-1).mean(0).max().item())
        own = found[found["position"] == 0][f"importance{suffix}"].item()
        assert own >= largest - 1e-5
        assert own == pytest.approx(largest, abs=1e-5) or suffix == ""


def test_effects_keep_it(bb3: TransformerBridge, tmp_path: Path) -> None:
    batch = builtin_corpus(bb3, n_sequences=6).tokens
    found = measure_effects(bb3, {"no 0": MaskKeys(0), "same": ScaleKeys(0, 1.0)}, batch)
    again = Effects.load(found.save(tmp_path / "effects"))
    pd.testing.assert_frame_equal(again.sinks_after, found.sinks_after)
    assert again.verdict == found.verdict
    assert found.verdict[3].endswith("position 0 still has the most.")
    evidence = Evidence.of({"sinks_after": found.sinks_after}, {})
    assert [refute(each, evidence, TOPICS) for each in found.verdict[2:]] == [None, None]
    for name, said in zip(("no 0", "same"), found.verdict[:2], strict=True):
        rows = [row for row in found.table.to_dict("records") if row["intervention"] == name]
        before, after, kl, same = (
            sum(row[column] for row in rows) / len(rows) for column in ("clean_loss", "loss", "kl", "top1_agreement")
        )
        assert said.startswith(f"{name}: the loss changes by {after - before:+z.3f} [")
        assert said.endswith(
            f"] nats a token, from {before:.3f} to {after:.3f}; KL {kl:z.3f} nats, the same first choice for "
            f"{same:.0%} of tokens (mean of {len(rows)} texts)."
        )
    old = Effects(found.meta, {"effects": found.table}, found.arrays)  # as an older version saved it
    assert old.verdict == found.verdict[:2] and old.summary()["sink_position"].isna().all()


def test_short_sequences_are_left_out(bb3: TransformerBridge) -> None:
    ids = builtin_corpus(bb3, n_sequences=4).tokens.ids
    rows = [ids[0].tolist(), ids[1, :5].tolist(), ids[2].tolist()]
    mixed = measure_effects(bb3, {"no 0": MaskKeys(0)}, tokenize(bb3, rows)).sinks_after
    long = measure_effects(bb3, {"no 0": MaskKeys(0)}, tokenize(bb3, [rows[0], rows[2]])).sinks_after
    pd.testing.assert_frame_equal(mixed, long)
    none = measure_effects(bb3, {"no 0": MaskKeys(0)}, tokenize(bb3, [rows[1]]))
    assert none.sinks_after.empty and len(none.verdict) == 1
    nothing = measure_effects(bb3, {"no 0": MaskKeys(0)}, tokenize(bb3, [rows[1][:1]]))
    assert nothing.verdict == ["no 0: no token is predicted, so there is no loss to compare."]


def test_a_scan_under_an_intervention_says_it(bb3: TransformerBridge, bb3_census: Census) -> None:
    census = scan(bb3, max_sequences=12, intervention=MaskKeys(0), maps=0)
    clean = scan(bb3, max_sequences=12, maps=0).heads.to_dataframe()
    rows = census.sinks_after.to_dataframe().set_index("position")
    assert rows.loc[0, "n_sink_heads_before"] == (clean["is_sink"] & clean["sink_position"].eq(0)).sum()
    assert rows["n_sink_heads"].sum() == census.heads.to_dataframe()["is_sink"].sum()
    (sentence,) = (each for each in census.verdict if each.startswith("Under "))
    assert refute(sentence, Evidence.of(census.tables, census.meta["settings"]), TOPICS) is None
    with pytest.raises(ResultError, match="without an intervention"):
        _ = bb3_census.sinks_after
