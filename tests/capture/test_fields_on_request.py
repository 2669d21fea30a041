"""What consumers get on request: states, keys, head outputs, halves of a block, and the statistics they name."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens.attention import AttentionEngine, Entropy, KeySetMass, PooledMap
from sinklens.capture import LayerRecord, capture
from sinklens.capture.needs import joined
from sinklens.detectors.attention_entropy import EntropyDetector
from sinklens.detectors.delimiter import DelimiterDetector
from sinklens.detectors.local_global import LocalGlobalDetector
from sinklens.detectors.previous_token import PreviousTokenDetector
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions import AblateHeads
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
        self.wants: tuple[str, ...] = ()
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


@pytest.mark.parametrize("name", ["qwen3_next", "mamba"])
def test_a_gated_or_missing_head_has_no_output(name: str, zoo: Path) -> None:
    wishing = Wanting()
    wishing.wants = ("outputs",)
    capture(boot(name, zoo), tokenize(boot(name, zoo), random_ids(1, 12)), [wishing])
    assert all(value is None for value in wishing.outputs.values())


@pytest.mark.parametrize(
    ("name", "need", "why"),
    [("qwen3_next", "outputs", "a gate follows"), ("bloom", "keys", "do not show keys")],
)
def test_a_need_that_cannot_be_met_is_refused(name: str, need: str, why: str, zoo: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=f"Wanting needs the {need} .*{why}"):
        run(boot(name, zoo), need)
    with pytest.raises(InputError, match="asks for 'tokens'; a layer record can carry hidden, keys"):
        run(boot(name, zoo), "tokens")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_oss", "deepseek_v3"])
def test_keys_are_those_that_the_attention_function_gets(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    seen: dict[int, Tensor] = {}

    class Watch:
        def observe(self, call: Any) -> None:
            seen[call.layer] = call.key.clone()

    ids = random_ids(3, 24)
    with torch.no_grad(), AttentionEngine(bridge, path="fast", observers=[Watch()]):
        bridge(ids)
    keys: dict[int, Tensor] = {}

    class Keep:
        needs = ("keys",)

        def update(self, record: LayerRecord) -> None:
            if record.keys is not None:
                keys[record.layer] = record.keys.clone()

    capture(bridge, tokenize(bridge, ids), [Keep()])
    assert set(keys) == set(seen) != set()
    for layer, value in keys.items():
        torch.testing.assert_close(value, seen[layer], rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_outputs_under_an_intervention_are_the_changed_ones(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    plain = run(bridge, "outputs").outputs
    same = run(bridge, "outputs", intervention=AblateHeads(["L1H0"], how="zero")).outputs
    for layer in (0, 1):
        one, other = plain[layer], same[layer]
        assert one is not None and other is not None
        kept = [head for head in range(HEADS) if (layer, head) != (1, 0)]
        torch.testing.assert_close(other[:, kept], one[:, kept], rtol=1e-4, atol=1e-5)
    assert float(same[1][:, 0].abs().max()) == 0 < float(plain[1][:, 0].abs().max())  # type: ignore[index]


def test_what_halves_add_makes_the_block(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    gaps = []

    class Adds:
        needs = ("hidden", "halves")

        def update(self, record: LayerRecord) -> None:
            if record.halves is not None and record.hidden is not None:
                total = record.halves["before"] + record.halves["attention"] + record.halves["mlp"]
                gaps.append(float((total - record.hidden).abs().max()))

    capture(bridge, tokenize(bridge, random_ids(2, 24)), [Adds()])
    assert len(gaps) == 2 and max(gaps) < 1e-4


def test_a_statistic_that_two_ask_for_is_taken_once() -> None:
    """Key sets and targets of several consumers become one statistic; one name for two things is refused."""
    one, two = torch.zeros(1, 4, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    found = joined([Entropy, partial(KeySetMass, sets={"a": one}), Entropy, partial(KeySetMass, sets={"b": two})])
    assert found[0] is Entropy and len(found) == 2
    assert isinstance(found[1], partial) and set(found[1].keywords["sets"]) == {"a", "b"}
    with pytest.raises(InputError, match="the name 'a' for different tokens"):
        joined([partial(KeySetMass, sets={"a": one}), partial(KeySetMass, sets={"a": two})])
    repeated = [partial(PooledMap, sequences=(0,)), partial(PooledMap, sequences=(0,))]
    assert len(joined(repeated)) == 1 and len(joined([*repeated, partial(PooledMap, sequences=(1,))])) == 2


@pytest.mark.parametrize("make", [DelimiterDetector, LocalGlobalDetector, PreviousTokenDetector, EntropyDetector])
def test_what_a_detector_declares_is_measured(make: Any, zoo: Path) -> None:
    """Without being told, ``capture`` once gave these detectors nothing, and they answered with no rows."""
    bridge, detector = boot("llama", zoo), make()
    capture(bridge, tokenize(bridge, random_ids(2, 24)), [detector])
    assert len(detector.tables()["head_scores"]) == 2 * HEADS
