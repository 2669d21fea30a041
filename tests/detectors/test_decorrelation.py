"""The BOS decorrelation measure: the card's checks on the loss, and the detector against it."""

import math

import pandas as pd
import pytest
import torch
from torch import Tensor

from sinklens.capture import capture
from sinklens.detectors.bos_similarity import bos_cosine
from sinklens.detectors.decorrelation import DecorrelationDetector, decorrelation_loss
from sinklens.errors import InputError
from sinklens.models.load import load
from sinklens.passes.corpus import builtin_corpus
from tests.detectors.records import collate, passes, random_texts


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ the loss
def test_aligned_orthogonal_and_random_tokens() -> None:
    along = torch.tensor([3.0, 0.0, 4.0])
    aligned = torch.stack([along, 2 * along, -along, 0.1 * along])
    assert decorrelation_loss(aligned[None, None]).item() == pytest.approx(1)
    assert decorrelation_loss(torch.eye(5)[None, None]).item() == 0
    assert decorrelation_loss(gaussian(3, 8, 200, 64)).item() == pytest.approx(1 / 64, rel=0.1)


def test_the_square_forgets_the_sign_and_the_cosine_does_not() -> None:
    hidden = torch.tensor([[1.0, 0.0], [-0.95, math.sqrt(1 - 0.95**2)]])
    assert decorrelation_loss(hidden[None, None]).item() == pytest.approx(0.95**2)
    assert bos_cosine(hidden)[1].item() == pytest.approx(-0.95)


def test_means_and_not_sums() -> None:
    hidden = gaussian(2, 3, 10, 8)
    loss = decorrelation_loss(hidden)
    assert decorrelation_loss(hidden.repeat(2, 1, 1, 1)).item() == pytest.approx(loss.item())
    assert decorrelation_loss(hidden.repeat(1, 2, 1, 1)).item() == pytest.approx(loss.item())
    longer = torch.cat([hidden, hidden[:, :, 1:]], 2)
    assert decorrelation_loss(longer).item() == pytest.approx(loss.item())


def test_padding_is_left_out() -> None:
    hidden = gaussian(2, 2, 6, 8)
    real = torch.ones(2, 6, dtype=torch.bool)
    real[1, 3:] = False
    cosines = torch.nn.functional.cosine_similarity(hidden, hidden[:, :, :1], dim=-1) ** 2
    by_layer = [torch.cat([layer[0, 1:], layer[1, 1:3]]).mean() for layer in cosines]
    assert decorrelation_loss(hidden, real).item() == pytest.approx(torch.stack(by_layer).mean().item())


def test_a_state_of_length_zero_has_finite_loss_and_gradient() -> None:
    with torch.enable_grad():
        hidden = gaussian(1, 1, 5, 4)
        hidden[0, 0, 2] = 0
        hidden.requires_grad_()
        loss = decorrelation_loss(hidden)
        loss.backward()
    assert loss.isfinite() and hidden.grad is not None and hidden.grad.isfinite().all()
    assert hidden.grad.abs().max() > 0


def test_descent_turns_the_tokens_away() -> None:
    with torch.enable_grad():
        hidden = gaussian(1, 1, 8, 16)
        hidden[0, 0, 7] = 3 * hidden[0, 0, 0]
        hidden += 0.01 * gaussian(1, 1, 8, 16, seed=1)
        hidden.requires_grad_()
        optimizer = torch.optim.SGD([hidden], lr=20.0)
        for _ in range(200):
            optimizer.zero_grad()
            decorrelation_loss(hidden).backward()
            optimizer.step()
    assert bos_cosine(hidden[0, 0])[1:].abs().max() ** 2 < 0.1


@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 1, 3, 4), (1, 2, 1, 4)])
def test_what_has_no_loss_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        decorrelation_loss(torch.ones(shape))


# ------------------------------------------------------------------ the detector
def loss_of(found: dict[str, pd.DataFrame]) -> float:
    """The loss that the layers make together."""
    table = found["decorrelation"]
    return float(table.loc[table["in_loss"].astype(bool), "bos_cosine_sq"].mean())


@pytest.mark.parametrize("sizes", [(4,), (2, 2)])
def test_the_detector_gives_the_loss(sizes: tuple[int, ...]) -> None:
    texts = random_texts((9, 4, 1, 12))
    detector = DecorrelationDetector()
    for records in passes(texts, sizes):
        for record in records:
            detector.update(record)
    found = detector.tables()
    assert found["decorrelation"]["layer"].tolist() == [-1, 0, 1]
    assert found["decorrelation"]["in_loss"].tolist() == [False, True, False]  # neither embedding nor last block
    assert (found["decorrelation"]["n_tokens"] == 8 + 3 + 11).all() and found["decorrelation"]["null"].tolist() == [
        1 / 6
    ] * 3
    hidden = torch.zeros(1, 4, 12, 6)
    real = torch.zeros(4, 12, dtype=torch.bool)
    for row, text in enumerate(texts):
        hidden[0, row, : len(text)], real[row, : len(text)] = text.hidden[1], True
    assert loss_of(found) == pytest.approx(decorrelation_loss(hidden, real).item(), rel=1e-5)
    cosines = torch.cat([bos_cosine(text.hidden[1])[1:] for text in texts])
    assert found["decorrelation"].loc[1, "bos_cosine"] == pytest.approx(cosines.mean().item(), rel=1e-4)


def test_one_block_or_one_token_has_none() -> None:
    model = load("bb-1l")
    detector = DecorrelationDetector()
    capture(model, builtin_corpus(model, n_sequences=3).tokens, [detector])
    assert math.isnan(loss_of(detector.tables())) and len(detector.tables()["decorrelation"]) == 2
    single = DecorrelationDetector()
    for record in collate(random_texts((1,))):
        single.update(record)
    assert single.tables()["decorrelation"]["bos_cosine_sq"].isna().all() and math.isnan(loss_of(single.tables()))
