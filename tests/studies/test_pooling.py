"""Vectors of texts: against loops, a planted massive sink that hides what the texts say, and without one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import open as open_result
from sinklens.errors import InputError
from sinklens.models.tokens import to_batch
from sinklens.studies import PoolingComparison, compare_pooling
from sinklens.studies.pooling.result import pooling_words
from sinklens.studies.pooling.run import _ranked, builtin_pairs
from sinklens.studies.pooling.vectors import cosines, pooled, read_states
from tests.passes.planted_sink import CHANNEL, SINK, planted_sink
from tests.real_models import real_model


def pairs(count: int = 8, pos: int = 12) -> list[tuple[list[int], list[int]]]:
    """A question is its document in another order; both begin with SINK."""
    draw = np.random.default_rng(0)
    words = draw.permutation(np.arange(10, 250))[: count * pos].reshape(count, pos)
    return [([SINK, *draw.permutation(each).tolist()], [SINK, *each.tolist()]) for each in words]


def massive(strength: float) -> TransformerBridge:
    """SINK is a sink of L1H0, and enters with an entry of 4000; by ``strength`` 0 it is a token like others."""
    model = planted_sink(strength)
    if strength:
        with torch.no_grad():
            model.embed.original_component.weight[SINK, CHANNEL] = 4000.0
    return model


@pytest.fixture(scope="module")
def model() -> TransformerBridge:
    return massive(12.0)


@pytest.fixture(scope="module")
def found(model: TransformerBridge) -> PoolingComparison:
    return compare_pooling(model, pairs(), layers=[0, 1], draws=3)


def test_a_planted_massive_sink_hides_the_texts_and_leaving_it_out_shows_them(found: PoolingComparison) -> None:
    table = found.summary().set_index(["layer", "pooling"])
    assert table.loc[(0, "sink_free"), "first"] == 1.0
    for name in ("mean", "random"):
        assert table.loc[(0, name), "others"] > 0.99 > 0.9 > table.loc[(0, "sink_free"), "others"]
    left = found.left_out
    assert set(left["position"]) == {0} and len(left) == 16 and left["is_massive"].all()
    assert found.verdict[0] == (
        f"16 of {16 * 13} positions are extreme (16 of them position 0): {left['is_sink'].sum()} sinks, 16 massive."
    )


def test_without_one_nothing_is_massive_and_leaving_out_is_leaving_out() -> None:
    none = compare_pooling(massive(0.0), pairs(), layers=[0], draws=3, sink_share=1.0)
    table = none.summary().set_index("pooling")
    assert none.left_out.empty and none.verdict[0].startswith("0 of 208 positions are extreme")
    columns = ["mrr", "own", "others"]
    for name in ("mean", "random"):  # none was left out, so all three are one
        assert table.loc[name, columns].tolist() == pytest.approx(table.loc["sink_free", columns].tolist())


@torch.no_grad()
def test_vectors_and_ranks_equal_loops(model: TransformerBridge, found: PoolingComparison) -> None:
    given = pairs()
    vectors: dict[str, list[list[float]]] = {"mean": [], "last": [], "sink_free": []}
    for pair in given:
        for ids in pair:
            states = model.run_with_cache(torch.tensor([ids]))[1]["blocks.1.hook_out"][0].double()
            alpha = model.run_with_cache(torch.tensor([ids]))[1]
            n = len(ids)
            sinks = []
            for k in range(n):
                heads = [
                    sum(float(alpha[f"blocks.{layer}.attn.hook_pattern"][0, head, t, k]) for t in range(k, n)) / (n - k)
                    for layer in range(2)
                    for head in range(4)
                ]
                if n - k >= 5 and sum(x > 0.3 for x in heads) >= 1:
                    sinks.append(k)
            kept = [t for t in range(n) if t not in sinks and t != 0]  # position 0 is massive
            vectors["mean"].append(np.mean([states[t].numpy() for t in range(n)], 0).tolist())
            vectors["last"].append(states[-1].tolist())
            vectors["sink_free"].append(np.mean([states[t].numpy() for t in kept], 0).tolist())
    ranks = found.ranks[found.ranks["layer"] == 1]
    for name, each in vectors.items():
        mine = ranks[ranks["pooling"] == name].sort_values("pair")
        for pair in range(len(given)):
            q = np.array(each[2 * pair])
            scores = [float(q @ np.array(d) / np.linalg.norm(q) / np.linalg.norm(d)) for d in each[1::2]]
            assert mine["own"].iloc[pair] == pytest.approx(scores[pair], abs=1e-5), (name, pair)
            assert mine["others"].iloc[pair] == pytest.approx((sum(scores) - scores[pair]) / 7, abs=1e-5)


def test_poolings_one_by_one() -> None:
    states = torch.arange(8, dtype=torch.float64).reshape(4, 2)
    out = np.array([True, False, False, False])
    rng = np.random.default_rng(0)
    assert pooled(states, out, "mean", rng).tolist() == [3.0, 4.0]
    assert pooled(states, out, "last", rng).tolist() == [6.0, 7.0]
    assert pooled(states, out, "sink_free", rng).tolist() == [4.0, 5.0] == pooled(states, out, "no_first", rng).tolist()
    drawn = {round(float(pooled(states, out, "random", np.random.default_rng(seed))[0]), 6) for seed in range(20)}
    assert drawn == {3.333333, 2.666667, 2.0}  # one of the other three is missing
    assert np.isnan(pooled(states, ~np.zeros(4, dtype=bool), "sink_free", rng)).all()
    assert _ranked(np.array([[0.5, 0.5, 0.1]]))[0][3] == 1.5
    assert np.isnan(_ranked(np.array([[0.5, np.nan]]))[0][3])
    assert cosines(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 0.0]]))[0, 0] == 1.0


def test_sentences_files_and_wrong_input(model: TransformerBridge, found: PoolingComparison, tmp_path: Path) -> None:
    ranks = found.ranks
    for layer, text in zip((0, 1), found.verdict[1:], strict=True):
        for name in ("mean", "last", "no_first", "sink_free", "random"):
            some = ranks[(ranks.layer == layer) & (ranks.pooling == name)]
            assert f"{name} {(1 / some['rank']).mean():.2f} (others' cosine {some['others'].mean():.2f})" in text
    found.save(tmp_path / "pooled")
    opened = open_result(tmp_path / "pooled")
    assert isinstance(opened, PoolingComparison)
    assert opened.verdict == pooling_words(ranks, found.left_out, found.meta["n_tokens"]) == found.verdict
    alone = compare_pooling(model, pairs(2), layers=[1], poolings=["last"])
    assert alone.verdict[1].endswith(f"chance {0.75:.2f}.") and len(builtin_pairs()) == 20
    states = read_states(model, to_batch(model, [pairs()[0][0], pairs()[0][1][:9]]), [1])
    assert [len(each) for each in states.extreme] == [len(each) for each in states.layers[1]] == [13, 9]
    for wrong in (
        {"pairs": pairs(1)}, {"layers": [2]}, {"layers": []}, {"poolings": ["max"]}, {"draws": 0}, {"sink_share": 0},
    ):  # fmt: skip
        with pytest.raises(InputError):
            compare_pooling(model, **{"pairs": pairs(2), **wrong})  # type: ignore[arg-type]


@pytest.mark.real
@pytest.mark.slow
def test_smollm2s_sinks_hide_what_a_mean_holds() -> None:
    table = compare_pooling(real_model("smollm2"), layers=[14, 21]).summary().set_index(["layer", "pooling"])
    for layer in (14, 21):
        assert table.loc[(layer, "sink_free"), "low"] > table.loc[(layer, "mean"), "high"]
        assert table.loc[(layer, "sink_free"), "low"] > table.loc[(layer, "random"), "high"]
        assert table.loc[(layer, "mean"), "others"] > 0.99
