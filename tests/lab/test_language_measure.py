"""Baselines against counting by hand; sinks against planted ones and against the engine."""

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import sinklens
from sinklens.capture.run import capture
from sinklens.detectors.sinks import SinkDetector
from sinklens.detectors.value_drains import ValueDrainDetector
from sinklens.lab.language.figures import bigram_loss, unigram_loss
from sinklens.lab.language.measure import SinkFigures, mean_loss, sink_figures
from sinklens.lab.language.settings import LanguageSettings
from sinklens.lab.language.tokens import Streams
from sinklens.lab.language.training import build_model, curve_csv, curve_row
from sinklens.lab.streams import stream
from tests.ties import same_shares

VOCAB = 12


def by_hand(train: list[int], rows: list[list[int]]) -> tuple[float, float]:
    """Unigram and Kneser-Ney losses from dictionaries, one target at a time."""
    words, pairs = Counter(train), Counter(pairwise(train))
    times = Counter(pairs.values())
    discount = times[1] / (times[1] + 2 * times[2]) if times[1] else 0.5
    unigram, bigram = [], []
    for row in rows:
        for place, word in enumerate(row[1:], start=1):
            frequency = (words[word] + 1) / (len(train) + VOCAB)
            unigram.append(-math.log(frequency))
            before = row[place - 1]
            seen = sum(count for (first, _), count in pairs.items() if first == before)
            lower = (sum(second == word for _, second in pairs) + 1) / (len(pairs) + VOCAB)
            kinds = sum(first == before for first, _ in pairs)
            if place == 1:
                p = frequency
            elif not seen:
                p = lower
            else:
                p = max(pairs[before, word] - discount, 0) / seen + discount * kinds / seen * lower
            bigram.append(-math.log(p))
    return sum(unigram) / len(unigram), sum(bigram) / len(bigram)


@pytest.mark.parametrize("size", [2, 30, 400])
def test_baselines_equal_counting_by_hand(size: int) -> None:
    draw = stream(0, "baselines", size)
    train = (torch.rand(size, generator=draw) ** 2 * (VOCAB - 2)).int() + 1  # token 11 is never seen
    rows = torch.randint(1, VOCAB, (5, 9), generator=draw)
    rows[:, 0] = 0
    unigram, bigram = by_hand(train.tolist(), rows.tolist())
    assert unigram_loss(train, rows, VOCAB) == pytest.approx(unigram)
    assert bigram_loss(train, rows, VOCAB) == pytest.approx(bigram)


def test_bigram_probabilities_add_up_to_one() -> None:
    train = torch.randint(1, VOCAB - 1, (60,), generator=stream(0, "sum"))
    for before in range(1, VOCAB):
        # of two targets, the first is the same for all
        rows = torch.tensor([[0, before, after] for after in range(VOCAB)])
        first = -unigram_loss(train, rows[:1, :2], VOCAB)
        losses = [2 * bigram_loss(train, row[None], VOCAB) + first for row in rows]
        assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)


def small(**changes: int) -> LlamaForCausalLM:
    settings = LanguageSettings(layers=2, heads=2, d_model=16, d_mlp=24, vocab=257, **changes)
    return build_model(settings).eval()


def test_the_model_is_by_seed_and_ties_its_embeddings() -> None:
    before = torch.get_rng_state()
    first, again, other = small(), small(), small(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    weights = [model.model.layers[1].mlp.up_proj.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert first.lm_head.weight is first.model.embed_tokens.weight


def test_a_planted_peak_and_drain_are_found() -> None:
    model = small()
    with torch.no_grad():
        # The BOS alone writes 100 into channel 3: only it has the embedding that channel 5 carries.
        model.model.embed_tokens.weight[:, 5] = 0
        model.model.embed_tokens.weight[0] = 0
        model.model.embed_tokens.weight[0, 3] = 100
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[:, 3] = 0  # values do not read it
    ids = torch.randint(1, 257, (3, 20), generator=stream(0, "ids"))
    ids[:, 0] = 0
    figures = sink_figures(model, ids, batch=2)
    assert figures.alpha.shape == (3, 2, 2) and figures.peak.shape == (3, 2) and figures.drain.shape == (2, 2)
    assert figures.ratio > 500 and (figures.drain < 0.2).all()
    bare = sink_figures(model, ids[:, 1:])
    assert bare.ratio < 20


def test_rates_are_taken_per_sequence_with_a_strict_threshold() -> None:
    alpha = torch.tensor([0.1, 0.3, 0.30001, 0.9]).view(4, 1, 1)
    ones = torch.ones(4, 1, 1)
    figures = SinkFigures(alpha, ones[..., 0], ones, ones * 4)
    assert figures.rate.item() == 0.5 and figures.drain.item() == 0.25


def test_measuring_changes_nothing_about_the_model() -> None:
    model = small().train()
    ids = torch.randint(1, 257, (2, 9))
    sink_figures(model, ids)
    mean_loss(model, ids)
    assert model.training and model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in model.modules())


def test_the_loss_is_the_mean_over_all_targets_whatever_the_batch() -> None:
    model, ids = small(), torch.randint(1, 257, (5, 9), generator=stream(0, "loss"))
    wanted = model(ids[:, :-1]).logits.flatten(0, 1)
    wanted = torch.nn.functional.cross_entropy(wanted, ids[:, 1:].flatten()).item()
    assert mean_loss(model, ids, batch=2) == pytest.approx(wanted, abs=1e-5)


def test_figures_equal_the_engines(trained_lm: Path) -> None:
    bridge = sinklens.load(trained_lm, device="cpu")
    text = " sink drain peak the of head BOS" * 20
    tokens = sinklens.tokenize(bridge, [text] * 2 + [text[5:]], max_tokens=64)
    model = LlamaForCausalLM.from_pretrained(trained_lm, dtype=torch.float32)
    figures = sink_figures(model, tokens.ids)
    sinks, drains = SinkDetector(), ValueDrainDetector()
    residuals = {}
    for record in capture(bridge, tokens):
        sinks.update(record)
        drains.update(record)
        residuals[record.layer] = record.residual
    bos = sinks.tables()["sinks"].query("position == 0").sort_values(["layer", "head"])
    assert figures.alpha.mean(0).flatten().tolist() == pytest.approx(bos["importance"].tolist(), rel=1e-4)
    margins = (figures.alpha - 0.3).flatten(1).T  # [head sequence]
    same_shares(figures.rate.flatten().double(), torch.tensor(bos["sink_rate"].to_numpy()), margins)
    table = drains.tables()["value_drains"].query("position == 0").sort_values(["layer", "head"])
    assert figures.drain.flatten().tolist() == pytest.approx(table["drain"].tolist(), rel=1e-4)
    for layer in range(2):
        peak = residuals[layer].token_max[:, 0] / residuals[layer].median
        torch.testing.assert_close(figures.peak[:, layer], peak, atol=1e-4, rtol=1e-3)


def test_a_row_of_the_curve_names_every_domain() -> None:
    tokens = torch.randint(1, 257, (200,), generator=stream(0, "curve"))
    row = curve_row(small(), [Streams("a", tokens, tokens), Streams("b", tokens, tokens)], 0, 1_234_567_890, math.nan)
    assert row["a.loss"] == row["b.loss"] == pytest.approx(math.log(257), abs=0.1)
    header, line = curve_csv([row]).decode().splitlines()
    assert header.startswith("step,tokens,train_loss,a.loss,a.heads,a.alpha_0,a.max_over_median,b.loss")
    assert line.startswith("0,1234567890,,5.5")
