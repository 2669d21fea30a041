"""Matrix entropy and its inequality: the card's exact checks, singular values, and every built-in model."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.capture import LayerRecord, capture
from sinklens.detectors.compression import (
    CompressionDetector,
    anisotropy,
    compression_inequality,
    matrix_entropy,
    spectrum,
)
from sinklens.errors import InputError
from sinklens.models.builtin import builtin_models
from sinklens.models.load import load
from sinklens.passes.corpus import builtin_corpus
from tests.detectors.records import Text, collate, random_texts

SHARES = (0.1, 1.0, 10.0, 1000.0, 1e6)


def states(c: float, shape: tuple[int, int] = (64, 128), seed: int = 0) -> Tensor:
    """Random rows, row 0 as long as makes ``M / R = c``."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rest = (x[1:] ** 2).sum()
    x[0] *= (c * rest).sqrt() / x[0].norm()
    return x


def by_svd(x: Tensor) -> tuple[float, float, float]:
    """Largest squared singular value, its share and the entropy, from the decomposition itself."""
    squares = np.linalg.svd(x.double().numpy(), compute_uv=False) ** 2
    p = squares / squares.sum()
    return squares[0], p[0], -sum(q * math.log(q) for q in p if q > 0)


# ------------------------------------------------------------------ check 1: the inequality
@pytest.mark.parametrize("c", SHARES)
@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (2, 3)])
def test_the_inequality_by_its_own_formula(c: float, shape: tuple[int, int]) -> None:
    x = states(c, shape)
    m, r = float(x[0] @ x[0]), float((x[1:] ** 2).sum())
    cosines = torch.nn.functional.cosine_similarity(x[1:], x[:1])
    alpha = float(((x[1:] ** 2).sum(1) * cosines**2).sum()) / r
    sides, (top, share, entropy) = compression_inequality(x), by_svd(x)
    assert m / r == pytest.approx(c)
    assert sides.top_bound.item() == pytest.approx(m + alpha * r, rel=1e-12)
    assert sides.anisotropy_bound.item() == pytest.approx((c + alpha) / (c + 1), rel=1e-12)
    assert sides.first_share.item() == pytest.approx(c / (c + 1))
    assert sides.top.item() == pytest.approx(top, rel=1e-12) and sides.anisotropy.item() == pytest.approx(share)
    assert top >= m + alpha * r - 1e-9 * top and share >= (c + alpha) / (c + 1) - 1e-9
    p, rank = (c + alpha) / (c + 1), min(shape)
    bound = math.log(rank)
    if p >= 1 / rank:
        bound = -p * math.log(p) - (1 - p) * math.log(1 - p) + (1 - p) * math.log(rank - 1)
    assert sides.entropy_bound.item() == pytest.approx(bound, abs=1e-9) and entropy <= bound + 1e-9
    assert sides.holds()


def test_the_card_s_figures() -> None:
    ten, thousand = (compression_inequality(states(c)) for c in (10.0, 1000.0))
    assert ten.anisotropy.item() == pytest.approx(0.9098, abs=2e-3)
    assert ten.entropy.item() == pytest.approx(0.654, abs=0.02)
    assert thousand.entropy.item() == pytest.approx(0.0117, abs=5e-4)
    huge = compression_inequality(states(1e12))
    assert huge.entropy.item() < 1e-9 and huge.anisotropy.item() > 1 - 1e-9


def test_a_broken_side_is_noticed() -> None:
    sides = compression_inequality(torch.stack([states(c) for c in SHARES]))
    assert sides.holds()
    for name, factor in (("top", 0.999), ("anisotropy", 0.999), ("entropy", 1.2)):
        changed = vars(sides) | {name: getattr(sides, name) * factor}
        assert not type(sides)(**changed).holds(), name


# ------------------------------------------------------------------ check 2: equality
def test_parallel_and_orthonormal_rows() -> None:
    parallel = torch.outer(torch.tensor([3.0, -1.0, 2.0, 0.5]), torch.randn(6)).double()
    sides = compression_inequality(parallel)
    assert sides.anisotropy_bound.item() == pytest.approx(1) and sides.anisotropy.item() == pytest.approx(1)
    assert matrix_entropy(parallel).item() == pytest.approx(0, abs=1e-12)
    orthonormal = torch.linalg.qr(torch.randn(20, 8, dtype=torch.float64)).Q.T * 2.5
    assert matrix_entropy(orthonormal).item() == pytest.approx(math.log(8))
    assert anisotropy(orthonormal).item() == pytest.approx(1 / 8)
    assert compression_inequality(orthonormal).entropy_bound.item() == pytest.approx(math.log(8))


# ------------------------------------------------------------------ check 3: Gram and decomposition
@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (9, 9), (1, 5), (5, 1)])
def test_gram_equals_decomposition_with_and_without_row_0(shape: tuple[int, int]) -> None:
    x = states(5.0, shape) if shape[0] > 1 else torch.randn(shape, dtype=torch.float64)
    _, share, entropy = by_svd(x)
    assert matrix_entropy(x).item() == pytest.approx(entropy, abs=1e-8)
    assert anisotropy(x).item() == pytest.approx(share, abs=1e-8)
    assert spectrum(x).shape == (min(shape),) and spectrum(x).sum().item() == pytest.approx(1)
    if shape[0] > 1:
        _, share, entropy = by_svd(x[1:])
        assert matrix_entropy(x, first_row=False).item() == pytest.approx(entropy, abs=1e-8)
        assert anisotropy(x, first_row=False).item() == pytest.approx(share, abs=1e-8)
    else:
        assert matrix_entropy(x, first_row=False).isnan() and anisotropy(x, first_row=False).isnan()


def test_rotation_scale_and_precision_change_nothing() -> None:
    x = states(1e8)
    rotation = torch.linalg.qr(torch.randn(128, 128, dtype=torch.float64)).Q
    for changed in (x @ rotation, 7 * x, x.numpy()):
        assert matrix_entropy(changed).item() == pytest.approx(matrix_entropy(x).item(), abs=1e-12)
    assert matrix_entropy(x.float()).item() == pytest.approx(matrix_entropy(x).item(), abs=1e-7)


# ------------------------------------------------------------------ check 4: squares, and what is refused
def test_shares_are_of_squared_singular_values() -> None:
    x = torch.diag(torch.tensor([2.0, 1.0]))
    assert spectrum(x).tolist() == pytest.approx([0.8, 0.2])
    assert matrix_entropy(x).item() == pytest.approx(0.5004, abs=1e-4)  # 0.6365 without the squares


def test_zeros_are_not_applicable() -> None:
    assert matrix_entropy(torch.zeros(3, 4)).isnan() and anisotropy(torch.zeros(3, 4)).isnan()
    first = torch.randn(3, 4)
    first[0] = 0
    sides = compression_inequality(first)
    assert sides.anisotropy_bound.isnan() and not sides.anisotropy.isnan() and sides.holds()


@pytest.mark.parametrize("bad", [torch.ones(4), torch.ones(0, 4), torch.ones(4, 0)])
def test_what_is_no_matrix_is_refused(bad: Tensor) -> None:
    for function in (spectrum, matrix_entropy, anisotropy, compression_inequality):
        with pytest.raises(InputError, match="hidden states"):
            function(bad)


# ------------------------------------------------------------------ detector
@pytest.mark.parametrize("sizes", [(4,), (2, 2), (1, 3)])
def test_detector_equals_the_functions_on_ragged_batches(sizes: tuple[int, ...]) -> None:
    texts: list[Text] = random_texts((9, 4, 1, 12))  # longer and shorter than the 6 channels
    detector, start = CompressionDetector(), 0
    for size in sizes:
        for record in collate(texts[start : start + size], start):
            detector.update(record)
        start += size
    found = detector.tables()
    rows = found["compression_sequences"].set_index(["sequence", "layer"])
    for sequence, text in enumerate(texts):
        for layer in (-1, 0, 1):
            hidden, row = text.hidden[layer + 1], rows.loc[(sequence, layer)]
            assert row["entropy"] == pytest.approx(by_svd(hidden)[2], abs=1e-8)
            assert row["anisotropy"] == pytest.approx(by_svd(hidden)[1])
            assert row["entropy_null"] == pytest.approx(math.log(min(len(text), 6)))
            sides = compression_inequality(hidden)
            assert row["entropy_bound"] == pytest.approx(sides.entropy_bound.item(), abs=1e-9)
            assert row["anisotropy_bound"] == pytest.approx(sides.anisotropy_bound.item())
            assert row["first_share"] == pytest.approx(sides.first_share.item())
            if len(text) == 1:
                assert math.isnan(row["entropy_others"]) and math.isnan(row["entropy_others_null"])
            else:
                assert row["entropy_others"] == pytest.approx(by_svd(hidden[1:])[2], abs=1e-8)
                assert row["anisotropy_others"] == pytest.approx(by_svd(hidden[1:])[1])
    means = found["compression_sequences"].groupby("layer")["entropy_others"].mean()
    np.testing.assert_allclose(found["compression"]["entropy_others"], means)
    assert (found["compression"]["n_sequences"] == 4).all()


# ------------------------------------------------------------------ every built-in model
class _Inequality:
    """Checks the inequality on every layer and sequence of a run."""

    needs = ("hidden",)

    def __init__(self) -> None:
        self.layers: set[int] = set()
        self.tightest = math.inf

    def update(self, record: LayerRecord) -> None:
        assert record.hidden is not None
        for sequence, length in enumerate(record.batch.lengths.tolist()):
            sides = compression_inequality(record.hidden[sequence, :length])
            assert sides.holds(), (record.layer, sequence)
            assert sides.entropy_bound.isfinite().all()
            self.tightest = min(self.tightest, float(sides.anisotropy - sides.anisotropy_bound))
        self.layers.add(record.layer)


@pytest.fixture(params=sorted(builtin_models()))
def builtin(request: pytest.FixtureRequest) -> Iterator[TransformerBridge]:
    return load(request.param)


@pytest.mark.parametrize("bos", ["auto", "no"])
def test_the_inequality_holds_on_every_built_in_model(builtin: TransformerBridge, bos: str) -> None:
    check = _Inequality()
    capture(builtin, builtin_corpus(builtin, bos=bos, n_sequences=8).tokens, [check])  # type: ignore[arg-type]
    assert check.layers == set(range(-1, len(builtin.blocks)))
    assert 0 <= check.tightest < 0.9  # it says something


def test_without_the_mlp_s_write_to_position_0_only_that_stream_changes_at_once() -> None:
    model = load("bb-3l")
    batch = builtin_corpus(model, n_sequences=4).tokens

    def states_after_block_0() -> Tensor:
        kept = []
        hooks = [("blocks.0.hook_out", lambda value, hook: kept.append(value.clone()) and None)]
        model.run_with_hooks(batch.ids, fwd_hooks=hooks)
        return kept[0]

    def silence(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[:, 0] = 0
        return value

    before = states_after_block_0()
    with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_out", silence)]):
        after = states_after_block_0()
    assert torch.equal(before[:, 1:], after[:, 1:])
    shares = [compression_inequality(hidden).first_share for hidden in (before, after)]
    assert (shares[1] < 0.95 * shares[0]).all()  # this MLP makes position 0 longer
