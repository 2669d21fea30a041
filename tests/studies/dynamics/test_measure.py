"""What one checkpoint shows, against the plainest code: whole patterns, plain torch, one sequence at a time."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load
from sinklens.evidence.bootstrap import paired_interval
from sinklens.lab.language.measure import mean_loss, sink_figures
from sinklens.models.builtin import builtin_models
from sinklens.studies.census.builtin_domains import builtin_domains
from sinklens.studies.census.domains import Domains, choose_domains
from sinklens.studies.dynamics.measure import measure_checkpoint
from tests.edited import edit_weights
from tests.heard import Heard
from tests.studies.dynamics.conftest import TEXTS

EPS = 0.3


@pytest.fixture(scope="module")
def model(made: Path) -> TransformerBridge:
    return load(str(made / "step-700"))


@pytest.fixture(scope="module")
def domains(model: TransformerBridge) -> Domains:
    """Two domains of other sizes, their sequences of unequal lengths."""
    texts = {name: [text[0][:length] for length in lengths] for (name, text), lengths in zip(
        TEXTS.items(), [(24, 18, 24, 13, 20, 22), (12, 30, 30)], strict=True
    )}  # fmt: skip
    return choose_domains(model, texts, bos="yes")


@pytest.fixture(scope="module")
def tables(model: TransformerBridge, domains: Domains) -> dict[str, pd.DataFrame]:
    return measure_checkpoint(model, domains, eps=EPS, batch_size=2)


def sequences(domains: Domains, name: str) -> list[Tensor]:
    return [
        domains.batch.ids[row, : int(domains.batch.lengths[row])]
        for row, of in enumerate(domains.of)
        if name in ("all", of)
    ]


def naive_heads(model: TransformerBridge, ids: Tensor) -> dict[tuple[int, int], dict[str, float]]:
    """Importance, margin and norms of position 0 of one sequence."""
    found = {}
    with torch.no_grad():
        _, cache = model.run_with_cache(ids[None])
    length, n_kv = len(ids), model.cfg.n_key_value_heads or model.cfg.n_heads
    for layer in range(model.cfg.n_layers):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0].double()
        value = cache[f"blocks.{layer}.attn.v.hook_out"][0].double().reshape(length, n_kv, -1)
        weights = (
            model.blocks[layer].attn.o.weight.detach().double().T.reshape(model.cfg.n_heads, -1, model.cfg.d_model)
        )
        for head in range(model.cfg.n_heads):
            v = value[:, head // (model.cfg.n_heads // n_kv)]
            written = (v @ weights[head]).norm(dim=-1)
            logs = pattern[head].log()  # scores up to a constant of the row
            margins = [float(logs[i, 0] - logs[i, 1 : i + 1].mean()) for i in range(1, length)]
            found[layer, head] = {
                "alpha": float(pattern[head, :, 0].mean()),
                "margin": float(np.mean(margins)),
                "v": float(v[0].norm()),
                "v_others": float(v[1:].norm(dim=-1).mean()),
                "wo": float(written[0]),
                "wo_others": float(written[1:].mean()),
            }
    return found


@pytest.mark.parametrize("name", ["all", "prose", "code"])
def test_heads_equal_whole_patterns(
    model: TransformerBridge, domains: Domains, tables: dict[str, pd.DataFrame], name: str
) -> None:
    rows = tables["heads"][tables["heads"]["domain"] == name].set_index(["layer", "head"])
    each = [naive_heads(model, ids) for ids in sequences(domains, name)]
    nulls = [np.mean(1 / np.arange(1, len(ids) + 1)) for ids in sequences(domains, name)]
    assert len(rows) == 8
    for place, row in rows.iterrows():
        own = pd.DataFrame([found[place] for found in each])  # type: ignore[index]
        assert row["importance_first"] == pytest.approx(own["alpha"].mean(), abs=1e-5)
        turned = (own["alpha"] - EPS).abs() < 1e-5  # near ties with the threshold
        assert row["sink_rate_first"] == pytest.approx((own["alpha"] > EPS).mean(), abs=1e-6 + turned.mean())
        assert row["delta_logit"] == pytest.approx(own["margin"].mean(), abs=1e-4)
        assert row["drain"] == pytest.approx(own["v"].mean() / own["v_others"].mean(), rel=1e-4)
        assert row["drain_wo"] == pytest.approx(own["wo"].mean() / own["wo_others"].mean(), rel=1e-4)
        assert row["null_first"] == pytest.approx(np.mean(nulls), rel=1e-5)
        sink = (own["alpha"] > EPS).mean() >= 0.5 and own["alpha"].mean() >= 2 * np.mean(nulls)
        assert row["is_sink_first"] == sink or turned.any()


@pytest.mark.parametrize("name", ["all", "prose", "code"])
def test_layers_and_losses_equal_plain_torch(
    model: TransformerBridge, domains: Domains, tables: dict[str, pd.DataFrame], name: str
) -> None:
    rows = tables["layers"][tables["layers"]["domain"] == name].set_index("layer")
    step = tables["steps"].set_index("domain").loc[name]
    losses, first, others, ratios = [], [], [], []
    for ids in sequences(domains, name):
        with torch.no_grad():
            logits, cache = model.run_with_cache(ids[None])
        losses.append(float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[1:])))
        states = [cache["blocks.0.hook_in"][0], *(cache[f"blocks.{layer}.hook_out"][0] for layer in range(2))]
        norms = [state.double().norm(dim=-1) for state in states]
        first.append([float(norm[0]) for norm in norms])
        others.append([float(norm[1:].mean()) for norm in norms])
        ratios.append([float(state.abs().max() / state.abs().flatten().median()) for state in states])
    assert rows["resid_norm_first"].to_numpy() == pytest.approx(np.mean(first, 0), rel=1e-5)
    assert rows["resid_ratio"].to_numpy() == pytest.approx(np.mean(first, 0) / np.mean(others, 0), rel=1e-5)
    assert rows["max_over_median"].to_numpy() == pytest.approx(np.mean(ratios, 0), rel=1e-5)
    assert step["resid_ratio"] == pytest.approx(rows["resid_ratio"].loc[0:].max())
    assert step["max_over_median_layer"] == rows["max_over_median"].loc[0:].idxmax()
    interval = paired_interval(np.array(losses))
    assert (step["loss"], step["loss_low"], step["loss_high"]) == pytest.approx(
        (interval.value, interval.low, interval.high), rel=1e-4, nan_ok=True
    )
    assert step["loss_uniform"] == pytest.approx(math.log(model.cfg.d_vocab)) and step["n_sequences"] == len(losses)


def test_steps_are_means_over_heads(tables: dict[str, pd.DataFrame]) -> None:
    for name, step in tables["steps"].set_index("domain").iterrows():
        heads = tables["heads"][tables["heads"]["domain"] == name]
        for column in ("importance_first", "sink_rate_first", "delta_logit", "drain", "drain_wo"):
            assert step[column] == pytest.approx(heads[column].mean())
        assert step["n_sink_heads"] == heads["is_sink_first"].sum() and step["n_heads"] == 8
        assert step["sink_head_share"] == pytest.approx(heads["is_sink_first"].mean())
        assert step["importance_first_max"] == heads["importance_first"].max()


def test_uniform_attention_is_its_own_null(made: Path, domains: Domains) -> None:
    found = measure_checkpoint(load(str(made / "step-0")), domains, eps=EPS)
    heads = found["heads"]
    assert heads["importance_first"].to_numpy() == pytest.approx(heads["null_first"].to_numpy(), rel=1e-5)
    assert heads["delta_logit"].abs().max() < 1e-5 and not heads["is_sink_first"].any()


def test_a_planted_peak_is_seen(series: Path, domains: Domains) -> None:
    def lengthen(weights: dict[str, Tensor]) -> None:
        weights["model.embed_tokens.weight"][0] *= 500  # the BOS

    edit_weights(series / "step-700", lengthen)
    model = load(str(series / "step-700"))
    plain = measure_checkpoint(load(str(series / "step-0")), domains, eps=EPS)["steps"]
    tables = measure_checkpoint(model, domains, eps=EPS)
    found, layers = tables["steps"], tables["layers"].set_index("layer")
    # the embedding has the highest ratio of all and is no block
    assert (
        layers.loc[-1, "resid_ratio"].min() > 1.5 * found["resid_ratio"].max()
        and (found["resid_ratio_layer"] == 0).all()
    )
    assert plain["resid_ratio"].max() < 3 and found["resid_ratio"].min() > 20
    assert found["max_over_median"].min() > 5 * plain["max_over_median"].max()


def test_batches_change_nothing(model: TransformerBridge, domains: Domains, tables: dict[str, pd.DataFrame]) -> None:
    heard = Heard()
    other = measure_checkpoint(model, domains, eps=EPS, batch_size=5, progress=heard)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(other[name], table, rtol=1e-4, atol=1e-6)
    assert heard.whole and len(heard.done) > 5


def test_one_domain_has_no_rows_of_all(model: TransformerBridge) -> None:
    found = measure_checkpoint(
        model, choose_domains(model, {"text": TEXTS["prose"]}, max_tokens=20, split=True), eps=EPS
    )
    assert set(found["heads"]["domain"]) == {"text"} and len(found["steps"]) == 1


@pytest.mark.parametrize("step", ["step-000000", "step-001346", "step-008000"])
def test_the_built_in_series_against_hooks_on_the_plain_model(step: str) -> None:
    path = builtin_models()["tiny-llama"].path / "checkpoints" / step
    model = load(str(path), dtype="float32")
    domains = builtin_domains(model, n_sequences=20)
    found = measure_checkpoint(model, domains, eps=EPS)
    from transformers import LlamaForCausalLM

    plain = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    for name in ("prose", "code"):
        ids = torch.stack(sequences(domains, name))
        figures = sink_figures(plain, ids)
        heads = found["heads"][found["heads"]["domain"] == name]
        assert heads["importance_first"].to_numpy() == pytest.approx(figures.alpha.mean(0).flatten().numpy(), abs=1e-4)
        assert heads["sink_rate_first"].to_numpy() == pytest.approx(figures.rate.flatten().numpy(), abs=0.051)
        assert heads["drain"].to_numpy() == pytest.approx(figures.drain.flatten().numpy(), rel=1e-3)
        if step != "step-000000":  # there the BOS does not hold the largest entry of every sequence
            layers = found["layers"][(found["layers"]["domain"] == name) & (found["layers"]["layer"] >= 0)]
            assert (layers["top_position"] == 0).all()
            assert layers["max_over_median"].to_numpy() == pytest.approx(figures.peak.mean(0).numpy(), rel=0.02)
        loss = found["steps"].set_index("domain").loc[name, "loss"]
        assert loss == pytest.approx(mean_loss(plain, ids), abs=1e-4)
