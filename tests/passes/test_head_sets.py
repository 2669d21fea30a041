"""Many sets of heads at once: equal to one forward pass for each set, on every family, with what can go wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import plan_for
from sinklens.detectors.registry import choose_detectors
from sinklens.errors import InputError
from sinklens.evidence.effects import Answers, Reference, predicted_rows
from sinklens.interventions import (
    AblateHeads,
    CalibrateSinks,
    Intervention,
    MaskKeys,
    RedistributeAttention,
    ScaleHeads,
    ScaleKeys,
    SteerAttention,
    ZeroWeights,
    mean_outputs,
)
from sinklens.models import load
from sinklens.models.tokens import TokenBatch, tokenize
from sinklens.passes.attribution import attribute_heads
from sinklens.passes.head_sets import head_set_losses, run_head_sets, tokens_per_pass
from tests.families import FAMILIES, boot
from tests.heard import Heard
from tests.ties import margin, same_shares

pytestmark = pytest.mark.usefixtures("no_gradients")

SETS = [[(0, 1)], [(1, 0)], [(1, 3)], [(0, 0), (1, 2)], [(0, 2), (0, 3)], [(1, 0), (1, 1), (1, 2), (1, 3)]]
FAST = "llama"


def batch_of(model: TransformerBridge, lengths: tuple[int, ...] = (40, 23, 31), seed: int = 3) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    return tokenize(model, [torch.randint(4, 200, (n,), generator=generator).tolist() for n in lengths])


def answers_for(batch: TokenBatch) -> Answers:
    return Answers(torch.tensor([5, -1, 30]), torch.tensor([7, 0, 9]), torch.tensor([8, 0, 11]))


def one_by_one(model: TransformerBridge, batch: TokenBatch, intervention: Any, sets: list[Any]) -> dict[str, Tensor]:
    """What each set changes, and ``margins`` ``[set batch pos]``: what decides each row of the top-1 agreement."""
    clean = model(batch.ids)
    reference = Reference(clean, batch, answers_for(batch))
    top1, counted = clean.argmax(-1), predicted_rows(batch)
    found = []
    for heads in sets:
        with intervention.on(heads)(model):
            changed = model(batch.ids)
        decisive = torch.minimum(margin(clean), margin(changed, top1)).where(counted, torch.nan)
        found.append(reference.compare(changed) | {"margins": decisive[None]})
    return {name: torch.cat([values[name] for values in found]) for name in found[0]}


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 2e-5) -> None:
    """Equal within a tolerance; where ``other`` has margins, the top-1 agreement but for near ties."""
    margins = other.get("margins")
    assert one.keys() == other.keys() - {"margins"}
    for name in one:
        if name == "top1_agreement" and margins is not None:
            same_shares(one[name], other[name], margins)
            continue
        torch.testing.assert_close(
            one[name],
            other[name],
            atol=tolerance,
            rtol=tolerance,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("name", list(FAMILIES))
def test_equals_a_pass_for_every_set(name: str, zoo: Path) -> None:
    model = boot(name, zoo)
    layers = sorted(layer.layer for layer in plan_for(model).layers if layer.path != "none")
    if not layers:
        with pytest.raises(Exception, match="attention"):
            run_head_sets(model, batch_of(model), AblateHeads("all"), [[(0, 0)]])
        return
    low, high = layers[0], layers[-1]
    sets = [[(low if layer == 0 else high, head) for layer, head in heads] for heads in SETS]
    batch = batch_of(model)
    ways: list[Any] = [AblateHeads("all", "zero")]
    if plan_for(model).path == "fast":
        ways += [AblateHeads("all", "uniform"), ScaleKeys(0, 0.2), AblateHeads("all") + ScaleKeys(0, 3.0)]
    for intervention in ways:
        measured = run_head_sets(model, batch, intervention, sets, answers=answers_for(batch), max_rows=6)
        same(measured.changed, one_by_one(model, batch, intervention, sets))
        assert bool((measured.changed["kl"].amax(1) > 1e-6).any()), "the ablations do nothing: the test has no teeth"


@pytest.mark.parametrize(
    "make",
    [
        lambda model, batch: AblateHeads("all", "mean", mean_outputs(model, batch)),
        lambda model, batch: MaskKeys((0, 4)),
        lambda model, batch: ScaleKeys(0, 4.0),
        lambda model, batch: SteerAttention(range(3, 9), 0.1),
        lambda model, batch: CalibrateSinks(alpha=1.5),
        lambda model, batch: CalibrateSinks(rule="absolute", threshold=0.05, sinks_from="prompt"),
        lambda model, batch: RedistributeAttention(
            range(1, 15), sinks=0, min_mass=0, rho=0, first_layer=0, spare_last=False
        ),
    ],
)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_other_interventions(name: str, make: Any, zoo: Path) -> None:
    model = boot(name, zoo)
    batch = batch_of(model)
    intervention = make(model, batch)
    measured = run_head_sets(model, batch, intervention, SETS, answers=answers_for(batch))
    assert measured.shared
    same(measured.changed, one_by_one(model, batch, intervention, SETS))


def test_copies_and_order_change_nothing(zoo: Path) -> None:
    model = boot(FAST, zoo)
    batch = batch_of(model)
    margins = {"margins": one_by_one(model, batch, AblateHeads("all"), SETS)["margins"]}
    alone = run_head_sets(model, batch, AblateHeads("all"), SETS, max_rows=1)
    heard = Heard()
    together = run_head_sets(model, batch, AblateHeads("all"), SETS, max_rows=100, progress=heard)
    same(alone.changed, together.changed | margins, 5e-6)
    assert heard.whole and heard.done
    turned = run_head_sets(model, batch, AblateHeads("all"), SETS[::-1])
    same({name: values.flip(0) for name, values in turned.changed.items()}, alone.changed | margins, 5e-6)


def test_no_effect_is_exactly_none(zoo: Path) -> None:
    model = boot(FAST, zoo)
    measured = run_head_sets(model, batch_of(model), ScaleKeys(0, 1.0), SETS, max_rows=1)
    torch.testing.assert_close(
        measured.changed["loss"], measured.clean["loss"].expand(len(SETS), -1), atol=1e-6, rtol=0
    )
    assert float(measured.changed["kl"].abs().max()) < 1e-6


@pytest.mark.parametrize("way", [ScaleKeys(0, 1.0), ScaleHeads("all", 1.0)], ids=["scores", "outputs"])
def test_half_precision_adds_no_effect(way: Intervention) -> None:
    """Two kernels would differ by 2e-4 nats here, as much as a weak head does."""
    model = load("tiny-llama", dtype="bfloat16")
    batch, sets = batch_of(model), [[(0, 1)], [(2, 3)], [(0, 0), (3, 1)]]
    measured = run_head_sets(model, batch, way, sets, max_rows=1)
    assert measured.shared and float(measured.changed["kl"].max()) < 1e-6
    clean, changed = head_set_losses(model, batch, way, sets, max_rows=1, consumers=choose_detectors("sinks"))
    torch.testing.assert_close(changed, clean.expand_as(changed), atol=1e-5, rtol=0, equal_nan=True)


def test_a_hook_of_your_own_is_not_skipped(zoo: Path) -> None:
    model = boot(FAST, zoo)
    batch = batch_of(model)
    model.add_hook("blocks.0.hook_out", lambda residual, hook: residual * 1.5)
    try:
        measured = run_head_sets(model, batch, AblateHeads("all"), SETS, answers=answers_for(batch))
        assert not measured.shared
        same(measured.changed, one_by_one(model, batch, AblateHeads("all"), SETS))
    finally:
        model.reset_hooks()


def test_a_model_that_cannot_go_on_from_the_middle(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a block that also depends on what an earlier block saw: skipping that one would change it
    model = boot(FAST, zoo)
    batch = batch_of(model)
    seen: list[Tensor] = []
    first, last = model.blocks[0].original_component, model.blocks[-1].original_component
    remember = first.register_forward_hook(lambda module, args, out: seen.append(_residual(out).mean()))
    depend = last.register_forward_hook(lambda module, args, out: _shifted(out, seen.pop() if seen else 0.5))
    try:
        measured = run_head_sets(model, batch, AblateHeads("all"), SETS, answers=answers_for(batch))
        assert not measured.shared
        same(measured.changed, one_by_one(model, batch, AblateHeads("all"), SETS))
    finally:
        remember.remove()
        depend.remove()


def _residual(returned: Any) -> Tensor:
    return returned[0] if isinstance(returned, tuple) else returned


def _shifted(returned: Any, by: Any) -> Any:
    shift = torch.zeros(32)
    shift[3] = by
    return (returned[0] + shift, *returned[1:]) if isinstance(returned, tuple) else returned + shift


def test_the_model_is_as_before_also_after_an_error(zoo: Path) -> None:
    model = boot(FAST, zoo)
    batch = batch_of(model)
    before = model(batch.ids)

    def stop(heard: Heard) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_head_sets(model, batch, AblateHeads("all", "uniform"), SETS, progress=Heard(stop))
    assert torch.equal(model(batch.ids), before)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks for block in model.blocks for module in [block])


def test_what_is_refused(zoo: Path) -> None:
    model = boot(FAST, zoo)
    batch = batch_of(model)
    with pytest.raises(InputError, match="cannot be restricted to heads"):
        run_head_sets(model, batch, ZeroWeights(["lm_head.weight[1]"]), SETS)
    with pytest.raises(InputError, match="L9H0 does not exist"):
        run_head_sets(model, batch, AblateHeads("all"), [[(9, 0)]])
    for nothing in ([], [[]]):
        with pytest.raises(InputError, match="at least one head"):
            run_head_sets(model, batch, AblateHeads("all"), nothing)


# ------------------------------------------------------------------ attribution patching
def small(model: TransformerBridge, scale: float) -> AblateHeads:
    """Mean ablation whose change of z is a given, small share of z's scale."""
    return AblateHeads(
        "all", "mean", {k: [scale * x for x in v] for k, v in mean_outputs(model, batch_of(model)).items()}
    )


@pytest.mark.parametrize("name", list(FAMILIES))
def test_attribution_is_the_gradient(name: str, zoo: Path) -> None:
    """Against finite differences of the exact effect: scale the change of z by a small step."""
    model = boot(name, zoo)
    if plan_for(model).path == "none":
        return
    batch = batch_of(model)
    try:
        estimate = attribute_heads(model, batch, AblateHeads("all"))
    except Exception as error:  # refused with a reason, never wrong
        assert "fast path" in str(error) or "cannot be edited" in str(error)
        return
    attention = [layer.layer for layer in plan_for(model).layers if layer.path != "none"]
    step = 4e-4
    for layer, head in ((attention[0], 1), (attention[-1], 2)):
        exact = _step(model, batch, layer, head, step)
        torch.testing.assert_close(estimate[layer, head], exact / step, atol=8e-3, rtol=0.05)
    for layer in range(len(model.blocks)):
        assert bool(estimate[layer].isnan().all()) == (layer not in attention)


def _step(model: TransformerBridge, batch: TokenBatch, layer: int, head: int, step: float) -> Tensor:
    from sinklens.attention import AttentionEngine

    class Edit:
        def __init__(self, share: float) -> None:
            self.share = share

        def edit_output(self, shape: Any, output: Tensor) -> None:
            if shape.layer == layer:
                output[:, head] *= 1 - self.share

    reference = Reference(model(batch.ids), batch)
    losses = []
    for share in (step, -step):
        with AttentionEngine(model, path=plan_for(model).path, edits=[Edit(share)]):
            losses.append(reference.compare(model(batch.ids).double())["loss"][0])
    return (losses[0] - losses[1]) / 2


def test_attribution_of_weights_and_answers(zoo: Path) -> None:
    model = boot(FAST, zoo)
    batch = batch_of(model)
    uniform = attribute_heads(model, batch, AblateHeads(["L1H2"], "uniform"))
    assert int(uniform.isnan().all(-1).sum()) == uniform.shape[0] * uniform.shape[1] - 1
    exact = run_head_sets(model, batch, AblateHeads("all", "uniform"), [[(1, 2)]])
    assert bool((uniform[1, 2] != 0).all())
    assert exact.changed["loss"].shape == (1, 3)
    logits = attribute_heads(model, batch, AblateHeads("all"), answers=answers_for(batch), metric="logit_diff")
    assert bool(logits[:, :, 1].isnan().all()) and not bool(logits[:, :, [0, 2]].isnan().any())
    with pytest.raises(InputError, match="needs answers"):
        attribute_heads(model, batch, AblateHeads("all"), metric="logit_diff")
    with pytest.raises(InputError, match="has no heads"):
        attribute_heads(model, batch, ZeroWeights(["lm_head.weight[1]"]))


def test_attribution_without_trainable_parameters(zoo: Path) -> None:
    model = boot(FAST, zoo)
    batch = batch_of(model)
    expected = attribute_heads(model, batch, AblateHeads("all"))
    flags = [p.requires_grad for p in model.parameters()]
    for p in model.parameters():
        p.requires_grad_(False)
    try:
        torch.testing.assert_close(attribute_heads(model, batch, AblateHeads("all")), expected)
    finally:
        for p, flag in zip(model.parameters(), flags, strict=True):
            p.requires_grad_(flag)
    assert all(p.grad is None for p in model.parameters())


def test_interventions_that_read_the_residual_stream_are_run_plainly(zoo: Path) -> None:
    model = boot(FAST, zoo)
    batch = batch_of(model)

    class Listening(AblateHeads):
        def hooks(self, positions: Any) -> Any:
            return [("blocks.0.hook_in", lambda residual, hook: None)]

    measured = run_head_sets(model, batch, Listening("all"), SETS, answers=answers_for(batch))
    assert not measured.shared
    plain: Intervention = AblateHeads("all")
    same(measured.changed, run_head_sets(model, batch, plain, SETS, answers=answers_for(batch)).changed)


def test_the_logits_of_a_pass_are_bounded_on_a_gpu() -> None:
    """A pass of 65,536 tokens of a vocabulary of 128k would hold 16.8 GB of them."""
    for d_vocab, item in ((128256, 2), (128256, 4), (262144, 2)):
        assert 1 < tokens_per_pass("cuda", d_vocab, item) <= 2**31 / (d_vocab * item)
    assert tokens_per_pass("cuda", 1000, 4) == 1 << 16  # a small vocabulary leaves the tokens
    assert tokens_per_pass("cpu", 128256, 2) == tokens_per_pass("mps", 128256, 2) == 4096
    assert tokens_per_pass("cuda", 10**12, 4) == 1


def test_default_rows_follow_the_logits(monkeypatch: pytest.MonkeyPatch, zoo: Path) -> None:
    from sinklens.passes import head_sets

    model = boot("llama", zoo)
    batch = batch_of(model)
    monkeypatch.setattr(head_sets, "tokens_per_pass", lambda *_: 2 * len(batch) * batch.ids.shape[1])
    assert head_sets._prepare(model, batch, AblateHeads("all"), SETS, None)[1] == 2
