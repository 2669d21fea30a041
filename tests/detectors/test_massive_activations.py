"""Massive activations: criteria to the digit, plants in a model, sinks told apart from them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sinklens.capture import LayerRecord, capture
from sinklens.detectors.massive_activations import MassiveActivationDetector, massive_masks
from sinklens.detectors.sinks import SinkDetector
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch, tokenize
from tests.detectors.records import D_MODEL, WINDOWS, Text, collate, passes, random_texts
from tests.families import BOS, EOS, PAD, VOCAB, byte_tokenizer, random_ids

LAYERS = range(-1, len(WINDOWS))


# ------------------------------------------------------------------ criteria
def hidden(median: float, largest: float, shape: tuple[int, ...] = (4, 8)) -> Tensor:
    """Entries of this magnitude with random signs, and one larger one at token 0, channel 3."""
    signs = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    values = median * signs
    values[..., 0, 3] = largest
    return values


def test_absolute_threshold_is_strict() -> None:
    for largest, expected in ((100.0, 0), (-100.0, 0), (100.00001, 1), (-100.00001, 1), (math.inf, 1)):
        assert massive_masks(hidden(1.0, largest)).absolute.sum() == expected


@pytest.mark.parametrize("median", [0.25, 0.5, 4.0, 0.3, 0.7, 0.1])
def test_relative_threshold_is_strict_and_exact(median: float) -> None:
    median = torch.tensor(median).item()  # as fp32 holds it
    edge = torch.tensor(1000 * median, dtype=torch.float64)
    at = torch.tensor(edge.item())
    above, below = torch.nextafter(at, torch.tensor(math.inf)), torch.nextafter(at, torch.tensor(0.0))
    for value in (at, above, below):
        expected = bool(value.double() > edge)
        assert massive_masks(hidden(median, value.item())).relative.sum() == int(expected)
    if median in (0.25, 0.5, 4.0):  # the bound itself is a number of fp32
        assert not bool(at.double() > edge)


def test_the_criteria_are_separate() -> None:
    masks = massive_masks(hidden(1.0, 500.0))
    assert masks.absolute.sum() == 1 and masks.relative.sum() == 0  # large, in a large model
    masks = massive_masks(hidden(0.01, 50.0))
    assert masks.absolute.sum() == 0 and masks.relative.nonzero().tolist() == [[0, 3]]  # a small model's
    masks = massive_masks(hidden(0.1, 50.0), absolute=40, ratio=400)
    assert masks.absolute.sum() == masks.relative.sum() == 1


def test_scaling_a_model_moves_only_the_absolute_criterion() -> None:
    values = hidden(0.2, 300.0)
    small, large = massive_masks(values / 10), massive_masks(values * 10)
    assert torch.equal(small.relative, large.relative) and small.relative.sum() == 1
    assert small.absolute.sum() == 0 and large.absolute.sum() == 1


def test_the_median_is_global_not_per_token() -> None:
    # medians by token are 0.1, 0.1, 0.1 and 10: the median of all is 0.1, the mean of medians 2.6
    values = torch.full((4, 9), 0.1)
    values[3] = 10.0
    values[3, 5] = 150.0
    assert massive_masks(values).relative.nonzero().tolist() == [[3, 5]]
    # the other way round: tiny entries at the token in question, large ones elsewhere
    values = torch.full((4, 9), 10.0)
    values[3] = 0.1
    values[3, 5] = 150.0
    assert massive_masks(values).relative.sum() == 0


def test_the_median_of_an_even_count_is_the_lower_middle() -> None:
    values = torch.tensor([[0.1, 0.1, 0.3, 250.0]])  # lower middle 0.1, numpy's mean of both 0.2
    assert massive_masks(values, ratio=2400).relative.sum() == 1
    assert massive_masks(values, ratio=2600).relative.sum() == 0
    values = torch.tensor([[0.1, 0.1, 0.3, 0.3, 250.0]])
    assert massive_masks(values, ratio=900).relative.sum() == 0  # odd: the middle


def test_every_sequence_has_its_own_median() -> None:
    values = torch.stack([hidden(0.01, 50.0), hidden(1.0, 50.0)])
    masks = massive_masks(values)
    assert masks.relative.nonzero().tolist() == [[0, 0, 3]]
    nested = massive_masks(values[None, :, None])
    assert nested.relative.shape == (1, 2, 1, 4, 8)
    assert torch.equal(nested.relative[0, :, 0], masks.relative)


def test_arrays_lists_and_half_precision() -> None:
    values = hidden(0.25, -500.0)
    expected = massive_masks(values)
    for same in (values.numpy(), values.tolist(), values.double(), values.bfloat16(), values.half()):
        masks = massive_masks(same)
        assert torch.equal(masks.absolute, expected.absolute)
        assert torch.equal(masks.relative, expected.relative)
    # fp64 is not rounded to fp32 first
    assert massive_masks(hidden(1.0, 0.0).double() + 99.0000000001).absolute.any()
    assert massive_masks(torch.ones(3, 3, dtype=torch.int64) * 200).absolute.all()


@pytest.mark.parametrize("bad", [torch.ones(3), torch.ones(0, 4), torch.ones(2, 4, 0), 1.0])
def test_hidden_states_without_tokens_or_channels_are_refused(bad: Any) -> None:
    with pytest.raises(InputError, match=r"Expected hidden states \[..., pos, d_model\], got shape"):
        massive_masks(bad)


# ------------------------------------------------------------------ streaming
def detect(
    records: Sequence[Sequence[LayerRecord]], detector: MassiveActivationDetector | None = None
) -> dict[str, pd.DataFrame]:
    detector = detector or MassiveActivationDetector()
    for layers in records:
        for record in layers:
            detector.update(record)
    return detector.tables()


def naive_entries(texts: Sequence[Text], k: int) -> pd.DataFrame:
    rows = []
    for sequence, text in enumerate(texts):
        for layer in LAYERS:
            h = text.hidden[layer + 1]
            magnitudes = sorted(h.abs().flatten().tolist())
            median = magnitudes[(len(magnitudes) - 1) // 2]
            masks = massive_masks(h)
            places = sorted(
                ((p, c) for p in range(len(text)) for c in range(D_MODEL)),
                key=lambda place: -abs(h[place].item()),
            )
            for position, channel in places[:k]:
                rows.append(
                    {
                        "sequence": sequence,
                        "layer": layer,
                        "position": position,
                        "token": f"t{text.ids[position]}",
                        "channel": channel,
                        "value": h[position, channel].item(),
                        "median": median,
                        "ratio": abs(h[position, channel].item()) / median,
                        "absolute": masks.absolute[position, channel].item(),
                        "relative": masks.relative[position, channel].item(),
                    }
                )
    return pd.DataFrame(rows)


def planted_texts(lengths: Sequence[int], plants: Sequence[tuple[int, int, int, int, float]]) -> list[Text]:
    """Random texts with entries ``(sequence, layer, position, channel, value)``."""
    texts = [replace(t, hidden=tuple(h.clone() for h in t.hidden)) for t in random_texts(lengths)]
    for text in texts:
        for h in text.hidden:
            h /= h.abs().max()  # at most 1, so nothing is massive unless planted
    for sequence, layer, position, channel, value in plants:
        texts[sequence].hidden[layer + 1][position, channel] = value
    return texts


PLANTS = [(0, 0, 0, 2, 5000.0), (0, 1, 0, 2, -6000.0), (1, 1, 0, 2, 4000.0), (2, 0, 6, 5, 150.0)]


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (1, 1, 1)])
def test_entries_equal_a_loop_on_ragged_batches(sizes: tuple[int, ...]) -> None:
    texts = planted_texts([9, 4, 12], PLANTS)
    found = detect(passes(texts, sizes))
    pd.testing.assert_frame_equal(found["massive"], naive_entries(texts, 3), rtol=1e-6, check_dtype=False)


def test_layers_summarise_sequences() -> None:
    texts = planted_texts([9, 4, 12], PLANTS)
    found = detect(passes(texts, (2, 1)))["layers"].set_index("layer")
    for layer in LAYERS:
        slices = [text.hidden[layer + 1].abs() for text in texts]
        largest, medians = [h.max().item() for h in slices], [h.flatten().median().item() for h in slices]
        row = found.loc[layer]
        assert row["max_abs"] == pytest.approx(np.mean(largest))
        assert row["median_abs"] == pytest.approx(np.mean(medians))
        ratio = np.mean([a / b for a, b in zip(largest, medians, strict=True)])
        assert row["max_over_median"] == pytest.approx(ratio, rel=1e-6)
        masks = [massive_masks(text.hidden[layer + 1]) for text in texts]
        assert row["n_massive_absolute"] == pytest.approx(np.mean([m.absolute.any(1).sum() for m in masks]))
        assert row["n_massive_ratio"] == pytest.approx(np.mean([m.relative.any(1).sum() for m in masks]))
    assert found.loc[1, ["top_position", "top_channel"]].tolist() == [0, 2]  # in two of three sequences
    assert found.loc[1, "top_token"] == "t0"
    assert found.loc[0, "n_massive_absolute"] == pytest.approx(2 / 3)


def test_massive_tokens_are_counted_beyond_the_entries_that_are_kept() -> None:
    plants = [(0, 0, position, 1, 2e4 + position) for position in range(7)]
    found = detect([collate(planted_texts([12], plants), top_k=3)])
    assert found["layers"].set_index("layer").loc[0, "n_massive_absolute"] == 7
    assert found["massive"]["absolute"].sum() == 3


def test_the_embedding_has_no_episode() -> None:
    found = detect([collate(planted_texts([6], [(0, -1, 0, 2, 9000.0)]))])
    assert found["massive_episodes"].empty
    assert found["massive"]["absolute"].sum() == 1 and found["layers"]["n_massive_absolute"].tolist() == [1, 0, 0]


def test_ties() -> None:
    # two places with the largest entry in two sequences each: the earlier one
    plants = [(0, 1, 5, 1, 9000.0), (1, 1, 2, 3, 9000.0), (2, 1, 5, 1, 9000.0), (3, 1, 2, 3, 9000.0)]
    found = detect([collate(planted_texts([9] * 4, plants))])["layers"].set_index("layer")
    assert found.loc[1, ["top_position", "top_channel"]].tolist() == [2, 3]
    # entries of equal magnitude and opposite sign are both kept
    texts = planted_texts([4], [(0, 0, 1, 1, 9000.0), (0, 0, 2, 2, -9000.0)])
    table = detect([collate(texts)])["massive"]
    top = table[(table["layer"] == 0) & table["absolute"]]
    assert sorted(top["value"]) == [-9000.0, 9000.0]


def test_a_silent_layer_has_no_ratio() -> None:
    texts = [replace(t, hidden=tuple(h.clone() for h in t.hidden)) for t in random_texts([5])]
    texts[0].hidden[1][:] = 0
    texts[0].hidden[1][2, 2] = 5.0  # a median of 0: infinitely larger, and no number
    found = detect([collate(texts)])
    top = found["massive"][(found["massive"]["layer"] == 0) & (found["massive"]["value"] == 5)]
    assert top["ratio"].isna().all() and top["relative"].item()
    assert math.isnan(found["layers"].set_index("layer").loc[0, "max_over_median"])


def test_few_entries_leave_no_filler_rows() -> None:
    found = detect([collate(planted_texts([1], []), top_k=20)])["massive"]
    assert len(found) == 3 * D_MODEL  # one token, fewer entries than were asked for
    assert (found["position"] == 0).all() and found["value"].notna().all()


def test_bounds_are_settings_and_must_agree_to_merge() -> None:
    texts = planted_texts([9], [(0, 0, 0, 2, 60.0)])
    assert detect([collate(texts)])["massive"]["absolute"].sum() == 0
    assert detect([collate(texts)], MassiveActivationDetector(absolute=50))["massive"]["absolute"].sum() == 1
    for other in (MassiveActivationDetector(absolute=50), MassiveActivationDetector(ratio=10)):
        with pytest.raises(InputError, match=r"with different .* cannot be merged"):
            MassiveActivationDetector().merge(other)


def test_halves_merge_into_the_whole_in_any_order() -> None:
    texts = planted_texts([9, 4, 12], PLANTS)
    whole = detect([collate(texts)])
    first, second = passes(texts, (1, 2))
    for halves in ((first, second), (second, first)):
        one, two = MassiveActivationDetector(), MassiveActivationDetector()
        detect([halves[0]], one)
        detect([halves[1]], two)
        one.merge(two)
        found = one.tables()
        for name, frame in whole.items():
            pd.testing.assert_frame_equal(found[name], frame)


@pytest.mark.parametrize(
    ("largest", "absolute", "relative"),
    [(100.0, 0, 0), (100.00001, 1, 0), (-250.0, 1, 0), (-250.00002, 1, 1)],
)
def test_the_detector_is_strict_too(largest: float, absolute: int, relative: int) -> None:
    h = hidden(0.25, largest, (4, D_MODEL))
    found = detect([collate([replace(random_texts([4])[0], hidden=(h, h, h))])])
    assert found["massive"]["absolute"].sum() == 3 * absolute and found["massive"]["relative"].sum() == 3 * relative
    assert found["layers"]["n_massive_absolute"].tolist() == [absolute] * 3
    assert found["layers"]["n_massive_ratio"].tolist() == [relative] * 3


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 50))
def test_detector_and_masks_agree(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    texts = planted_texts([6], [])
    h = scale * torch.randn(6, D_MODEL, generator=generator)
    h[2, 1] = 1000 * h.abs().flatten().median()  # near the bound, on either side of it
    h[0, 0] = 100.0
    texts = [replace(texts[0], hidden=(h, h, h))]
    masks = massive_masks(h)
    for row in detect([collate(texts)])["massive"].itertuples():
        assert row.absolute == masks.absolute[row.position, row.channel]
        assert row.relative == masks.relative[row.position, row.channel]


# ------------------------------------------------------------------ plants in a model
N_LAYERS, D = 4, 64
IDS = {"vocab_size": VOCAB, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}


def wrap(hf_model: Any, directory: Path) -> TransformerBridge:
    hf_model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    bridge = TransformerBridge.boot_transformers(str(directory), device="cpu", dtype=torch.float32)
    bridge.eval()
    return bridge


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """A randomly initialised Llama as it comes, 4 blocks of width 64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            **IDS,
            hidden_size=D,
            intermediate_size=128,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
        )
        return wrap(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def concentrated(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """A GPT-2 whose every query carries a constant that only the key of position 0 answers to.

    Position 0 differs by three units in one channel of its embedding, nothing more.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(**IDS, n_embd=D, n_layer=N_LAYERS, n_head=4, n_positions=128)
        model = GPT2LMHeadModel(config)
    width = D // 4
    with torch.no_grad():
        model.transformer.wpe.weight[0, 5] = 3.0
        for block in model.transformer.h:
            for head in range(4):
                block.attn.c_attn.bias[head * width] = 8.0  # query
                block.attn.c_attn.weight[5, D + head * width] = 1.0  # key
    return wrap(model, tmp_path_factory.mktemp("gpt2"))


def plant(model: TransformerBridge, block: int, position: int = 0, channel: int = 7) -> list[tuple[str, Callable]]:
    def add(tensor: Tensor, hook: Any) -> Tensor:
        tensor = tensor.clone()
        tensor[:, position, channel] += 500
        return tensor

    return [(f"blocks.{block}.hook_out", add)]


def measure(
    model: TransformerBridge, hooks: list[tuple[str, Callable]], batch: TokenBatch | None = None
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    batch = tokenize(model, random_ids(3, 64)) if batch is None else batch
    massive, sinks = MassiveActivationDetector(), SinkDetector()
    with model.hooks(fwd_hooks=hooks):
        capture(model, batch, [massive, sinks], batch_size=2)
    return massive.tables(), sinks.tables()["sinks"]


@pytest.mark.parametrize("block", range(N_LAYERS))
def test_a_planted_activation_is_found_from_its_block_on(llama: TransformerBridge, block: int) -> None:
    found, _ = measure(llama, plant(llama, block))
    for criterion in ("absolute", "relative"):
        massive = found["massive"][found["massive"][criterion]]
        places = set(massive[["layer", "position", "channel"]].itertuples(index=False, name=None))
        assert places == {(layer, 0, 7) for layer in range(block, N_LAYERS)}
        assert len(massive) == 3 * (N_LAYERS - block)  # in each of the three sequences
        life = found["massive_episodes"][found["massive_episodes"]["criterion"] == criterion]
        names = ["bucket", "channel", "episode", "appears", "leaves_after", "n_sequences", "n_sequences_least", "n_of"]
        assert life[names].to_numpy().tolist() == [["start", 7, 0, block, N_LAYERS - 1, 3, 3, 3]]
        assert not life["everywhere"].any()
    expected = [0.0] * (block + 1) + [1.0] * (N_LAYERS - block)
    assert found["layers"]["n_massive_absolute"].tolist() == found["layers"]["n_massive_ratio"].tolist() == expected
    largest = found["layers"].set_index("layer").loc[block:]
    assert (largest["top_position"] == 0).all() and (largest["top_channel"] == 7).all()
    np.testing.assert_allclose(largest["max_abs"], 500, rtol=0.01)


def test_a_plant_at_a_later_token_of_a_ragged_batch(llama: TransformerBridge) -> None:
    ids = random_ids(3, 40)
    batch = tokenize(llama, [ids[0].tolist(), ids[1, :12].tolist(), ids[2, :25].tolist()])
    found, _ = measure(llama, plant(llama, 1, position=20, channel=3), batch)
    massive = found["massive"][found["massive"]["absolute"]]
    assert set(massive["sequence"]) == {0, 2}  # at position 20 the second sequence is padding
    assert set(massive[["position", "channel"]].itertuples(index=False, name=None)) == {(20, 3)}


def test_no_false_positives_without_a_plant(llama: TransformerBridge) -> None:
    found, _ = measure(llama, [])
    assert not found["massive"][["absolute", "relative"]].any(axis=None)
    assert found["massive_episodes"].empty
    assert (found["layers"][["n_massive_absolute", "n_massive_ratio"]] == 0).all(axis=None)
    assert found["layers"]["max_over_median"].between(3, 12).all()  # measured elsewhere: 5.6 to 9.0


def test_attention_sinks_and_massive_activations_are_told_apart(
    llama: TransformerBridge, concentrated: TransformerBridge
) -> None:
    massive, sinks = measure(concentrated, [])
    first = sinks[sinks["position"] == 0]
    assert (first["sink_rate"] == 1).all() and first["importance"].min() > 0.9
    assert not massive["massive"][["absolute", "relative"]].any(axis=None)

    massive, sinks = measure(llama, plant(llama, 1))
    first = sinks[sinks["position"] == 0]
    assert (first["sink_rate"] == 0).all() and first["ratio"].between(0.5, 2).all()
    assert massive["massive"]["absolute"].any() and massive["massive"]["relative"].any()
