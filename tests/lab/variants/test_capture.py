"""The lab's capture gives the records that the engine gives, and reads every variant as it says."""

import math

import pytest
import torch
from pandas.testing import assert_frame_equal
from transformers import OPTForCausalLM

import sinklens
from sinklens.capture import LayerRecord, capture
from sinklens.detectors.massive_activations import MassiveActivationDetector
from sinklens.detectors.residual_peaks import ResidualPeakDetector
from sinklens.detectors.sinks import SinkDetector
from sinklens.detectors.value_drains import ValueDrainDetector
from sinklens.errors import InputError
from sinklens.lab.gates import measure
from sinklens.lab.streams import stream
from sinklens.lab.tasks import Backcopy
from sinklens.lab.tasks.task import token_batch
from sinklens.lab.variants.attention import Attended
from sinklens.lab.variants.capture import capture_variant
from sinklens.lab.variants.catalogue import VARIANTS
from sinklens.lab.variants.decoder import Decoder, DecoderSettings
from sinklens.lab.variants.measure import measure_decoder
from sinklens.lab.variants.queries import QueryClasses, statistics
from sinklens.lab.variants.weights import proxy
from sinklens.models.builtin import data_dir
from sinklens.models.tokens import TokenBatch
from tests.lab.variants.twin import twin

TASK = Backcopy(seq_len=24)


def sequences(length: int = 24, batch: int = 4) -> TokenBatch:
    return token_batch(TASK, TASK.sample(batch, length, stream(0, "test")))


def random_decoder(attention: str, **changes: int) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderSettings(66, 24, attention, d_model=16, heads=2, **changes)).eval()


@pytest.mark.parametrize("length", [24, 128])
def test_records_are_those_of_the_engine(length: int) -> None:
    original = OPTForCausalLM.from_pretrained(data_dir() / "models" / "bb-3l").eval()
    batch = sequences(length)
    ours, theirs = capture_variant(twin(original), batch), capture(sinklens.load("bb-3l"), batch)
    assert [record.layer for record in ours] == [record.layer for record in theirs] == [-1, 0, 1, 2]
    for one, other in zip(ours, theirs, strict=True):
        assert set(one.attention) == set(other.attention)
        for name, expected in other.attention.items():
            close = dict(atol=2e-3, rtol=2e-3, equal_nan=True)
            torch.testing.assert_close(one.attention[name], expected, **close, msg=lambda m, n=name: f"{n}: {m}")
        assert one.residual is not None and other.residual is not None
        torch.testing.assert_close(one.residual.norm, other.residual.norm, atol=1e-2, rtol=1e-3)
        if other.values is not None:
            assert one.values is not None
            torch.testing.assert_close(one.values.output, other.values.output, atol=1e-2, rtol=1e-3)


def test_figures_are_those_of_the_gates() -> None:
    original = OPTForCausalLM.from_pretrained(data_dir() / "models" / "bb-1l").eval()
    task = Backcopy(seq_len=64)
    expected, found = measure(original, task, batch=64), measure_decoder(twin(original), task, batch=64)
    names = {
        "backcopy_loss": "loss_backcopy",
        "bigram_loss": "loss_bigram",
        "bigram_excess": "excess_bigram",
        "L0.attn_bos_nontrigger": "L0.mass_first_bigram",
        "L0.attn_bos_trigger": "L0.mass_first_backcopy",
        "L0.delta_logit": "L0.margin_bigram",
        "L0.alpha_0": "L0.importance_first",
        "L0.sink_rate": "L0.sink_rate_first",
        "L0.no_attention_backcopy": "L0.no_attention_backcopy",
        "L0.no_attention_bigram_change": "L0.no_attention_bigram_rise",
        "L0.resid_bos": "L0.resid_first",
        "L0.drain_ratio": "L0.drain_first",
    }
    assert not any("missing_mass" in name for name in found)  # a softmax misses nothing: not applicable
    for theirs, ours in names.items():
        assert found[ours] == pytest.approx(expected[theirs], rel=2e-3, abs=2e-4), ours


def test_growth_is_against_the_untrained_model_and_losses_leave_out_the_prefix() -> None:
    trained, initial = random_decoder("k-bias", prefix=6, layers=2), random_decoder("relu", prefix=6, layers=2)
    found = measure_decoder(trained, TASK, initial=initial, batch=16)
    before = measure_decoder(initial, TASK, batch=16)
    assert "L0.resid_growth" not in before
    for layer in range(2):
        growth = found[f"L{layer}.resid_first"] / before[f"L{layer}.resid_first"]
        assert found[f"L{layer}.resid_growth"] == pytest.approx(growth)
        assert found[f"L{layer}.resid_ratio"] == pytest.approx(
            found[f"L{layer}.resid_first"] / found[f"L{layer}.resid_others"]
        )
    ids = TASK.sample(16, 25, stream(0, "measure"))
    with torch.no_grad():
        logits = trained(ids[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    late = loss.view(16, 24)[:, 5:]
    trigger = TASK.trigger_mask(ids[:, 5:-1])
    assert found["loss_backcopy"] == pytest.approx(late[trigger].mean().item(), rel=1e-5)
    assert found["loss_bigram"] == pytest.approx(late[~trigger].mean().item(), rel=1e-5)


def test_what_a_head_writes_is_told_by_class() -> None:
    model = random_decoder("sigmoid")
    found = measure_decoder(model, TASK, batch=8)
    ids = TASK.sample(8, 25, stream(0, "measure"))
    seen: list[Attended] = []
    model(ids[:, :-1], lambda layer, a, hidden: seen.extend([a] if a else []))
    trigger = TASK.trigger_mask(ids[:, 1:-1])
    norm, weights = seen[0].output.norm(dim=-1)[:, 1:], seen[0].weights[:, :, 1:, 0].mean(1)
    share = proxy(seen[0].weights)[:, :, 1:, 0].mean(1)
    for name, members in (("backcopy", trigger), ("bigram", ~trigger)):
        assert found[f"L0.output_norm_{name}"] == pytest.approx(norm[members].mean().item(), rel=1e-4)
        assert found[f"L0.amount_first_{name}"] == pytest.approx(weights[members].mean().item(), rel=1e-4)
        assert found[f"L0.mass_first_{name}"] == pytest.approx(share[members].mean().item(), rel=1e-4)
    to_triggers = (proxy(seen[0].weights) * TASK.trigger_mask(ids[:, None, None, :-1])).sum(-1).mean(1)[:, 1:]
    assert found["L0.mass_triggers_bigram"] == pytest.approx(to_triggers[~trigger].mean().item(), rel=1e-4)
    assert not any("missing" in name for name in found)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_goes_through_every_detector(name: str) -> None:
    model, batch = random_decoder(name, layers=2), sequences()
    detectors = [SinkDetector(), ValueDrainDetector(), ResidualPeakDetector(), MassiveActivationDetector()]
    assert capture_variant(model, batch, detectors) == []
    sinks, drains, peaks, _massive = (detector.tables() for detector in detectors)
    seen: dict[int, Attended] = {}
    model(batch.ids, lambda layer, attended, hidden: seen.update({} if attended is None else {layer: attended}))
    read = proxy(seen[1].weights) if VARIANTS[name].row_sum == "free" else seen[1].weights
    table = sinks["sinks"].query("layer == 1 and head == 1 and position == 0")
    assert table["importance"].item() == pytest.approx(read[:, 1, :, 0].mean().item(), rel=1e-4)
    assert math.isnan(table["delta_logit"].item()) == (not VARIANTS[name].from_scores)
    drain = drains["value_drains"].query("layer == 1 and head == 1 and position == 0")
    written = torch.einsum("bkd,dm->bkm", seen[1].value[:, 1], model.attentions[1].output_weights[1]).norm(dim=-1)
    ratio = written[:, 0].mean() / written[:, 1:].mean()
    assert drain["drain_wo"].item() == pytest.approx(ratio.item(), rel=1e-4)
    assert len(peaks["layers"]) == 3


def test_the_size_of_a_pass_changes_nothing() -> None:
    model, batch = random_decoder("sigmoid", layers=2), sequences(batch=5)
    tables = []
    for size in (2, 64):
        sinks, meter = SinkDetector(), QueryClasses(TASK.classes(batch.ids.repeat(1, 2)[:, :25]), torch.ones(24).bool())
        capture_variant(model, batch, [sinks, meter], batch_size=size, statistics=statistics)
        tables.append((sinks.tables()["sinks"], meter.compute()))
    assert_frame_equal(tables[0][0], tables[1][0])
    assert tables[0][1] == pytest.approx(tables[1][1], nan_ok=True)


def test_missing_mass_is_what_real_keys_do_not_get() -> None:
    (record,) = [r for r in capture_variant(random_decoder("softmax1"), sequences()) if r.layer == 0]
    seen: list[Attended] = []
    random_decoder("softmax1")(sequences().ids, lambda layer, a, hidden: seen.extend([a] if a else []))
    torch.testing.assert_close(record.attention["missing_mass"], 1 - seen[0].weights.sum(-1), atol=1e-5, rtol=1e-4)
    assert record.attention["missing_mass"].min() > 0.01


def test_gates_are_recorded() -> None:
    gated = capture_variant(random_decoder("element-gate"), sequences())[1]
    assert gated.attention["gate"].shape == (4, 2, 24)
    assert "gate" not in capture_variant(random_decoder("softmax"), sequences())[1].attention


def test_queries_are_told_apart_by_class_and_by_what_they_see() -> None:
    batch = sequences(4, batch=1)
    classes = {"a": torch.tensor([[True, False, True, True]]), "b": torch.tensor([[False, True, False, False]])}
    meter = QueryClasses(classes, torch.tensor([True, True, True, False]))
    first = torch.tensor([[[1.0, 0.5, 0.25, 0.0]]])
    margin = torch.tensor([[[math.nan, math.nan, 2.0, 4.0]]])
    meter.update(LayerRecord(0, batch, 0, "lab", {"mass_first": first, "margin": margin}))
    found = meter.compute()
    assert found["L0.mass_first_a"] == 0.25 and found["L0.mass_first_b"] == 0.5  # query 3 does not see key 0
    assert found["L0.margin_a"] == 3.0 and math.isnan(found["L0.margin_b"])
    assert "L0.gate_a" not in found


def test_margins_leave_out_the_query_itself_and_hidden_keys() -> None:
    model = random_decoder("softmax", window=4)
    batch = sequences()
    (_, record) = capture_variant(model, batch, statistics=statistics)
    seen: list[Attended] = []
    model(batch.ids, lambda layer, a, hidden: seen.extend([a] if a else []))
    scores, margin = seen[0].scores, record.attention["margin"]
    assert scores is not None
    expected = scores[0, 1, 3, 0] - scores[0, 1, 3, 1:3].mean()
    assert margin[0, 1, 3].item() == pytest.approx(expected.item(), abs=1e-4)
    assert margin[0, 1, :2].isnan().all() and margin[0, 1, 4:].isnan().all()


def test_wrong_input_is_refused() -> None:
    model = random_decoder("softmax")
    with pytest.raises(InputError, match="weights or proxy"):
        capture_variant(model, sequences(), reading="shares")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1"):
        capture_variant(model, sequences(), batch_size=0)
    batch = sequences()
    batch.real[0, -1] = False
    with pytest.raises(InputError, match="without padding"):
        capture_variant(model, batch)
    with pytest.raises(InputError, match="65 ids"):
        measure_decoder(model, Backcopy(bos=False, seq_len=24))
