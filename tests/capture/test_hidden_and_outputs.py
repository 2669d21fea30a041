"""What consumers get on request: the residual stream itself, and the size of what every head writes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens.capture import LayerRecord, capture
from sinklens.errors import InputError
from sinklens.interventions import ScaleKeys
from sinklens.models.architecture import output_weights
from sinklens.models.tokens import tokenize
from tests import oracle
from tests.attention.test_engine import unchanged
from tests.families import HEADS, boot, boot_hf, random_ids

pytestmark = pytest.mark.filterwarnings("ignore:.*measured through the bridge's hooks")
FAMILIES = ("llama", "gpt2", "gemma2", "gpt_oss", "falcon", "bloom", "deepseek_v3")


class Wanting:
    """A consumer that asks for some fields and keeps copies of them."""

    def __init__(self, *needs: str) -> None:
        self.needs = needs
        self.hidden: dict[int, Tensor | None] = {}
        self.outputs: dict[int, Tensor | None] = {}

    def update(self, record: LayerRecord) -> None:
        self.hidden[record.layer] = None if record.hidden is None else record.hidden.clone()
        self.outputs[record.layer] = record.outputs


def run(bridge: Any, *needs: str, **options: Any) -> Wanting:
    ids = random_ids(3, 24)
    rows = [ids[0].tolist(), ids[1, :11].tolist(), ids[2].tolist()]
    consumer = Wanting(*needs)
    with unchanged(bridge):
        capture(bridge, tokenize(bridge, rows), [consumer], **options)
    return consumer


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_are_the_norms_of_pattern_times_value_times_w_o(name: str, zoo: Path) -> None:
    bridge, hf = boot(name, zoo), boot_hf(name, zoo)
    ids = random_ids(3, 24)
    found = run(bridge, "outputs").outputs
    patterns = oracle.full_patterns(bridge, ids)
    values = {each.layer: each.value for each in oracle.value_norms(hf, ids)}
    for layer, pattern in enumerate(patterns):
        assert pattern is not None
        weights, measured = output_weights(bridge, layer), found[layer]
        assert weights is not None and measured is not None and measured.shape == (3, HEADS, 24)
        value = values[layer].repeat_interleave(HEADS // values[layer].shape[2], 2).transpose(1, 2)
        expected = (pattern.pattern @ value @ weights.double()).norm(dim=-1)
        for row, length in enumerate((24, 11, 24)):  # causal: what follows the end of a text changes nothing before it
            torch.testing.assert_close(
                measured[row, :, :length].double(), expected[row, :, :length], rtol=2e-4, atol=2e-5
            )
    assert found[-1] is None


def test_hidden_is_the_residual_stream_after_every_block(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    ids = random_ids(3, 24)
    _, cache = bridge.run_with_cache(ids)
    found = run(bridge, "hidden", batch_size=3).hidden
    names = {-1: "blocks.0.hook_in", 0: "blocks.0.hook_out", 1: "blocks.1.hook_out"}
    for layer, name in names.items():
        hidden = found[layer]
        assert hidden is not None
        torch.testing.assert_close(hidden[[0, 2]], cache[name][[0, 2]], rtol=1e-4, atol=1e-4)


def test_nothing_is_handed_out_unasked(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    for needs, expected in (((), (True, True)), (("hidden",), (False, True)), (("outputs",), (True, False))):
        found = run(bridge, *needs)
        assert (found.hidden[0] is None, found.outputs[0] is None) == expected
    for record in capture(bridge, tokenize(bridge, random_ids(1, 12))):
        assert record.hidden is None and record.outputs is None


def test_a_gated_or_missing_head_has_no_output(zoo: Path) -> None:
    assert all(value is None for value in run(boot("qwen3_next", zoo), "outputs").outputs.values())
    assert all(value is None for value in run(boot("mamba", zoo), "outputs").outputs.values())


def test_outputs_change_no_other_number(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    batch = tokenize(bridge, random_ids(2, 30))
    plain: list[LayerRecord] = capture(bridge, batch)
    kept: list[LayerRecord] = []

    class Keep(Wanting):
        def update(self, record: LayerRecord) -> None:
            kept.append(record)

    capture(bridge, batch, [Keep("outputs")])
    for one, other in zip(plain, kept, strict=True):
        assert one.attention.keys() == other.attention.keys()
        for name, value in one.attention.items():
            torch.testing.assert_close(other.attention[name], value, equal_nan=True, msg=name)


def test_outputs_and_an_intervention_do_not_go_together(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    with pytest.raises(InputError, match="not measured under an intervention"):
        run(bridge, "outputs", intervention=ScaleKeys(0, 2.0))
    assert run(bridge, "hidden", intervention=ScaleKeys(0, 2.0)).hidden[1] is not None
    assert not math.isnan(float(run(bridge, "hidden").hidden[1].sum()))  # type: ignore[union-attr]
