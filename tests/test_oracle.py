"""The oracle against numbers worked out by hand on a 3 x 3 pattern, and against the models of the zoo."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import oracle
from tests.families import BROKEN, FAMILIES, boot, boot_hf, padding_mask, random_ids

pytestmark = pytest.mark.usefixtures("no_gradients")

LN2, LN3 = math.log(2), math.log(3)
NAN = math.nan
CAUSAL = oracle.visible_keys(torch.ones(1, 3), None)
PATTERN = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.25, 0.25]], dtype=torch.float64)[None, None]
POS, N_PAD = 24, 5
IDS = random_ids(pos=POS)
WITH_ATTENTION = [name for name, family in FAMILIES.items() if family.attention_layers]


def _equals(value: Tensor, expected: Sequence[float] | Sequence[Sequence[float]], tolerance: float = 1e-12) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(value.double().reshape(wanted.shape), wanted, atol=tolerance, rtol=0, equal_nan=True)


# ------------------------------------------------------------------ by hand
def test_mask_by_hand() -> None:
    real = torch.tensor([[0, 1, 1, 1]])
    _equals(oracle.visible_keys(real, None), [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]])
    _equals(oracle.visible_keys(real, 2), [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])


def test_keys_by_hand() -> None:
    _equals(oracle.received_mass(PATTERN, CAUSAL), [1.75, 1.0, 0.25])
    _equals(oracle.visible_queries(CAUSAL), [3, 2, 1])
    _equals(oracle.null_mass(CAUSAL), [1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3])
    _equals(oracle.importance(PATTERN, CAUSAL), [1.75 / 3, 1.0 / 2, 0.25])


def test_queries_by_hand() -> None:
    quarter = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    _equals(oracle.entropy(PATTERN, CAUSAL), [0, quarter, 1.5 * LN2])
    _equals(oracle.distance(PATTERN, CAUSAL), [0, 0.25, 1.25])
    _equals(oracle.mass_on(PATTERN, CAUSAL, torch.tensor([[True, False, True]])), [1, 0.25, 0.75])
    _equals(oracle.missing_mass(PATTERN, CAUSAL), [0, 0, 0])
    key, weight = oracle.top_key(PATTERN, CAUSAL)
    _equals(key, [0, 1, 0])
    _equals(weight, [1, 0.75, 0.5])


def test_a_sink_that_takes_half_of_a_row() -> None:
    half = PATTERN * torch.tensor([1.0, 0.5, 1.0])[:, None]
    _equals(oracle.missing_mass(half, CAUSAL), [0, 0.5, 0])
    _equals(oracle.received_mass(half, CAUSAL), [1.625, 0.625, 0.25])
    for conditional in (oracle.entropy, oracle.distance, oracle.margins):
        _equals(conditional(half, CAUSAL), conditional(PATTERN, CAUSAL).flatten().tolist())


def test_margins_by_hand() -> None:
    # row 1: s0 - s1 = -ln 3; row 2: s = ln 1/2, ln 1/4, ln 1/4; row 0 sees one key only
    by_hand = [(-LN3 + LN2) / 2, (LN3 - LN2 / 2) / 2, -LN2 / 2]
    _equals(oracle.margins(PATTERN, CAUSAL), by_hand)
    scores = PATTERN.log() + torch.tensor([5.0, -2.0, 0.5])[:, None]  # the log-sum-exp of each row cancels
    _equals(oracle.margins(PATTERN, CAUSAL, scores), by_hand)


def test_margin_of_a_key_that_nobody_else_accompanies_is_undefined() -> None:
    alone = oracle.visible_keys(torch.ones(1, 3), 1)
    assert oracle.margins(torch.eye(3, dtype=torch.float64)[None, None], alone).isnan().all()


def test_pooled_map_by_hand() -> None:
    _equals(oracle.pooled_map(PATTERN, CAUSAL, 2), [[1.0, NAN], [0.5, 0.25]])
    _equals(oracle.pooled_map(PATTERN, CAUSAL, 3), [[1.0]])
    _equals(oracle.pooled_map(PATTERN, CAUSAL, 1), [[1, NAN, NAN], [0.25, 0.75, NAN], [0.5, 0.25, 0.25]])


def test_padding_by_hand() -> None:
    visible = oracle.visible_keys(torch.tensor([[0, 1, 1]]), None)
    pattern = torch.tensor([[1 / 3] * 3, [0, 1, 0], [0, 0.25, 0.75]], dtype=torch.float64)[None, None]
    _equals(oracle.received_mass(pattern, visible), [0, 1.25, 0.75])
    _equals(oracle.importance(pattern, visible), [NAN, 0.625, 0.75])
    _equals(oracle.visible_queries(visible), [0, 2, 1])
    _equals(oracle.null_mass(visible), [0, 1.5, 0.5])
    _equals(oracle.distance(pattern, visible), [NAN, 0, 0.25])
    _equals(oracle.entropy(pattern, visible)[..., :2], [NAN, 0])
    _equals(oracle.missing_mass(pattern, visible), [NAN, 0, 0])
    _equals(oracle.top_key(pattern, visible)[0], [-1, 1, 2])
    _equals(oracle.margins(pattern, visible), [NAN, -LN3, LN3])
    _equals(oracle.pooled_map(pattern, visible, 2), [[1, NAN], [0.25, 0.75]])


def test_window_by_hand() -> None:
    visible = oracle.visible_keys(torch.ones(1, 3), 2)
    pattern = torch.tensor([[1, 0, 0], [0.25, 0.75, 0], [0, 0.5, 0.5]], dtype=torch.float64)[None, None]
    _equals(oracle.visible_queries(visible), [2, 2, 1])
    _equals(oracle.null_mass(visible), [1.5, 1.0, 0.5])
    _equals(oracle.importance(pattern, visible), [1.25 / 3, 1.25 / 2, 0.5])
    _equals(oracle.margins(pattern, visible), [-LN3, LN3 / 2, 0])


# ------------------------------------------------------------------ on the zoo
@pytest.mark.parametrize("name", FAMILIES)
def test_the_mask_read_from_the_config_is_the_models(name: str, zoo: Path) -> None:
    family = FAMILIES[name]
    windows = {layer: family.windows[layer] for layer in family.attention_layers}
    assert oracle.attention_layers(boot_hf(name, zoo).config) == windows
    for mask in (None, padding_mask(2, POS, N_PAD, "left"), padding_mask(2, POS, N_PAD, "right")):
        layers = oracle.full_patterns(boot(name, zoo), IDS, mask)
        assert [layer is not None for layer in layers] == [i in windows for i in range(family.n_layers)]
        for layer in filter(None, layers):
            assert torch.equal(layer.pattern > 0, layer.visible[:, None].expand_as(layer.pattern))
            assert (layer.scores is None) == (family.scores == "pattern")


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_left_padding_only_moves_the_pattern(name: str, zoo: Path) -> None:
    padded = oracle.full_patterns(boot(name, zoo), IDS, padding_mask(2, POS, N_PAD, "left"))
    alone = oracle.full_patterns(boot(name, zoo), IDS[1:, N_PAD:])
    for layer, reference in zip(filter(None, padded), filter(None, alone), strict=True):
        inside = layer.pattern[1, :, N_PAD:, N_PAD:]
        torch.testing.assert_close(inside, reference.pattern[0], atol=1e-5, rtol=0)
        assert not layer.pattern[1, :, :N_PAD].any()
        assert not layer.pattern[1, :, :, :N_PAD].any()


@pytest.mark.parametrize("name", [name for name in WITH_ATTENTION if FAMILIES[name].scores == "live"])
def test_margins_need_no_scores(name: str, zoo: Path) -> None:
    layer = next(filter(None, oracle.full_patterns(boot(name, zoo), IDS[:1, :12])))
    from_scores = oracle.margins(layer.pattern, layer.visible, layer.scores)
    torch.testing.assert_close(oracle.margins(layer.pattern, layer.visible), from_scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_values_from_weights_are_those_of_the_hooks(name: str, zoo: Path) -> None:
    family, bridge = FAMILIES[name], boot(name, zoo)
    mask = padding_mask(2, POS, N_PAD, "left")
    _, cache = bridge.run_with_cache(IDS, attention_mask=mask)
    layers = oracle.value_norms(boot_hf(name, zoo), IDS, mask)
    assert [layer is not None for layer in layers] == [i in family.attention_layers for i in range(len(layers))]
    for layer in filter(None, layers):
        value = cache[f"blocks.{layer.layer}.attn.hook_v"].double()
        value = value.transpose(1, 2) if family.hook_v == "head" else value
        heads = value.repeat_interleave(4 // family.kv_heads, 2)
        written = torch.einsum("bphd,hdm->bphm", heads, bridge.blocks[layer.layer].attn.W_O.double())
        pads = mask == 0
        for got, hooked in (
            (layer.value, value),
            (layer.norm, value.norm(dim=-1)),
            (layer.wo_norm, written.norm(dim=-1)),
        ):
            assert got[pads].isnan().all()
            torch.testing.assert_close(got[~pads], hooked[~pads], atol=1e-4, rtol=1e-4)


def test_values_of_falcon_40b_show_where_the_bridge_goes_wrong(zoo: Path) -> None:
    (name,) = BROKEN
    _, cache = boot(name, zoo).run_with_cache(IDS)
    layer = oracle.value_norms(boot_hf(name, zoo), IDS)[0]
    assert layer is not None
    hooked = cache["blocks.0.attn.hook_v"].double()
    # HF's rows are q q k v q q k v; the bridge takes the last two blocks for values
    torch.testing.assert_close(hooked[..., 1, :], layer.value[..., 1, :], atol=1e-5, rtol=0)
    assert (hooked[..., 0, :] - layer.value[..., 0, :]).abs().max() > 0.1
