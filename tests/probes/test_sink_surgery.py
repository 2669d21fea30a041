"""Surgery on sinks: the rows against plain hooks, the case without massive entries, and Sun et al.'s table."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens import builtin_corpus, load
from sinklens.studies import measure_effects

ROOT = Path(__file__).parents[2]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "probes"))
    return importlib.import_module("sink_surgery")


def losses(model: TransformerBridge, ids: Tensor, hooks: list[Any]) -> float:
    with torch.no_grad():
        logits = model.run_with_hooks(ids[None], fwd_hooks=hooks)[0, :-1].double().log_softmax(-1)
    return -float(logits.gather(1, ids[1:, None]).mean())


def test_the_rows_are_those_of_plain_hooks(probe: Any) -> None:
    model = load("tiny-llama", device="cpu")
    reference, measured_on = probe.halves(builtin_corpus(model, length=32).tokens.rows(range(12)))
    surgery = probe.plan(model, reference, absolute=100, ratio=50, draws=2)
    effects = measure_effects(model, surgery.operations, measured_on)
    table = probe.table_of(effects, surgery).set_index("intervention")
    operation = surgery.operations["massive entries to 0"]
    rules = [part.where for part in getattr(operation, "parts", (operation,))]

    def zeroing(rule: Any) -> tuple[str, Any]:
        def zero(hidden: Tensor, hook: object) -> Tensor:
            hidden = hidden.clone()
            for dim in rule.dims:
                hidden[..., dim][hidden[..., dim].abs() > rule.above] = 0
            return hidden

        return f"blocks.{rule.layer}.hook_out", zero

    hooks = [zeroing(rule) for rule in rules]
    plain = [losses(model, row, hooks) - losses(model, row, []) for row in measured_on.ids]
    assert table.loc["massive entries to 0", "delta_loss"] == pytest.approx(sum(plain) / len(plain), abs=2e-4)
    controls = [float(table.loc[name, "delta_loss"]) for name in surgery.controls["massive entries to 0"]]
    assert len(controls) == 2 and abs(max(controls, key=abs)) < table.loc["massive entries to 0", "delta_loss"]
    for sentence in probe.sentences(table.reset_index(), surgery):
        row = table.loc[sentence.split(":")[0]]
        assert f"loss {row['clean_loss']:.3f} to {row['loss']:.3f}, {row['delta_loss']:+.3f}" in sentence.replace(
            "-0.000", "+0.000"
        )
        assert f"{row['control_low']:+z.3f}" in sentence and "nan" not in sentence
    page = probe.markdown(effects, surgery, "tiny-llama", "texts")
    assert all(f"| {name} |" in page for name in surgery.operations) and probe.in_words(rules) in page


def test_a_model_without_massive_entries_says_so(probe: Any) -> None:
    model = load("tiny-llama", device="cpu")
    reference, measured_on = probe.halves(builtin_corpus(model, length=24).tokens.rows(range(4)))
    surgery = probe.plan(model, reference, absolute=100, ratio=1000, draws=2)
    assert not any("entries" in name for name in surgery.operations) and "No massive activation" in surgery.entries
    effects = measure_effects(model, surgery.operations, measured_on)
    page = probe.markdown(effects, surgery, "tiny-llama", "texts")
    assert "none is changed" in page and "nan" not in page  # two sequences: no interval anywhere


@pytest.mark.slow  # several passes with hundreds of rules
@pytest.mark.real
def test_the_table_of_sun_et_al_on_a_real_model(probe: Any, smollm2: TransformerBridge) -> None:
    reference, measured_on = probe.halves(builtin_corpus(smollm2, length=48).tokens.rows(range(12)))
    surgery = probe.plan(smollm2, reference, absolute=100, ratio=1000, draws=1)
    table = probe.table_of(measure_effects(smollm2, surgery.operations, measured_on), surgery)
    change = table.set_index("intervention")["delta_loss"]
    assert change["massive entries to 0"] > 3, "destroyed"
    assert abs(change["massive entries to mean"]) < 0.2 and abs(change["median entries to 0, draw 1"]) < 0.1
    assert 0 < change["sink key hidden"] < 1, "the sink moves to the next position"


def test_entries_of_many_blocks_are_told_in_runs(probe: Any) -> None:
    def rule(layer: int, dims: tuple[int, ...], above: float) -> Any:
        return SimpleNamespace(layer=layer, dims=dims, above=above)

    rules = [rule(2, (7,), 1500), rule(3, (7,), 2570.4), rule(5, (7,), 800), rule(6, (7, 9), 900)]
    assert probe.in_words(rules) == (
        "after layers 2 to 3 channel 7 with |h| above 1,500 to 2,570, layer by layer; after layer 5 channel 7 with |h| "
        "above 800; after layer 6 channels 7, 9 with |h| above 900"
    )
