"""OV copying: small circuits whose eigenvalues are known, whole circuits in fp64, folded norms, and built-in models."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinklens.detectors.ov_copying import eigen_copying, top1_copying
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.studies import copying_scores
from sinklens.studies.head_scores.copying_scores import _folded
from tests import families


@given(seed=st.integers(0, 999))
def test_the_small_product_has_the_circuit_s_eigenvalues(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    w_e, w_v, w_o, w_u = (
        torch.randn(*size, generator=draw, dtype=torch.float64) for size in ((30, 8), (8, 3), (3, 8), (8, 30))
    )
    circuit = w_e @ w_v @ w_o @ w_u
    values = torch.linalg.eigvals(circuit)
    expected = values.real.sum() / values.abs().sum()
    assert eigen_copying(w_v, w_o, w_u @ w_e) == pytest.approx(expected.item(), abs=1e-5)
    hits = (circuit.argmax(-1) == torch.arange(30)).double().mean().item()
    assert top1_copying(w_e, w_v, w_o, w_u, chunk=7) == pytest.approx(hits)
    some = torch.tensor([3, 11, 29])
    hits = (circuit[some].argmax(-1) == some).double().mean().item()
    assert top1_copying(w_e, w_v, w_o, w_u, some) == pytest.approx(hits)
    scaled = eigen_copying(5 * w_v, w_o / 5, w_u @ w_e)
    assert scaled == pytest.approx(eigen_copying(w_v, w_o, w_u @ w_e), abs=1e-9)


def test_a_head_that_writes_nothing_copies_nothing() -> None:
    eye, zero = torch.eye(4), torch.zeros(4, 4)
    assert math.isnan(eigen_copying(eye, zero, eye)) and math.isnan(top1_copying(eye, eye, zero, eye))
    assert eigen_copying(eye, eye, eye.roll(1, 0)) == pytest.approx(0, abs=1e-12)  # a shift turns and copies nothing


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_neox", "olmo2"])
def test_folding_is_the_norm_without_bias_and_scale(name: str, zoo: Path) -> None:
    model = families.boot(name, zoo)
    block = model.blocks[0]
    norms = [block._modules.get("ln1"), block._modules.get("ln1_post"), model.ln_final]
    assert sum(norm is not None for norm in norms) >= 2 - (name == "olmo2")
    rows = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for norm in norms:
        if norm is None:
            continue
        module = norm.original_component
        with torch.no_grad():
            linear = (module(rows[None]) - module(-rows[None]))[0] / 2  # the bias falls out
            folded = _folded(norm, rows)
        ratio = linear / folded
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-4)
        assert (ratio > 0).all()
    assert torch.equal(_folded(None, rows), rows)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_s_heads_equal_whole_circuits(name: str, zoo: Path) -> None:
    model = families.boot(name, zoo)
    frame = copying_scores(model, n_tokens=10_000).frame.set_index(["layer", "head"])
    known = [i for i in range(len(model.tokenizer)) if i not in set(model.tokenizer.all_special_ids)]
    inner = model.original_model
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            e = _folded(block.ln1, inner.get_input_embeddings().weight).double()
            u = _folded(model.ln_final, inner.get_output_embeddings().weight).double().T
            v, o = block.attn.W_V.double(), block.attn.W_O.double()
            group = 4 // len(v)
            for head in range(4):
                circuit = e @ v[head // group] @ o[head] @ u
                values = torch.linalg.eigvals(circuit)
                eigen = (values.real.sum() / values.abs().sum()).item()
                assert frame.loc[(layer, head), "ov_eigen"] == pytest.approx(eigen, abs=2e-3)
                hits = (circuit.argmax(-1)[known] == torch.tensor(known)).double().mean().item()
                assert frame.loc[(layer, head), "ov_top1"] == pytest.approx(hits, abs=2 / 256)


def test_bands_on_the_induction_model() -> None:
    # card standard-head-scores, table (d): the full circuit of induction heads is at .97 or more, top-1 at .7 or more
    found = copying_scores("induction-2l", n_tokens=300)
    second = found.frame[found.frame["layer"] == 1]
    assert (second["ov_eigen"] >= 0.97).all() and (second["ov_top1"] >= 0.7).all()
    assert np.allclose(found.frame["ov_top1_null"], 1 / 513) and found.meta["warnings"] == []
    assert found.meta["settings"]["n_tokens"] == 300


def test_what_has_no_circuit_is_refused(zoo: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="no attention heads"):
        copying_scores(families.boot("mamba", zoo))
    with pytest.raises(InputError, match="n_tokens"):
        copying_scores("bb-1l", n_tokens=0)
