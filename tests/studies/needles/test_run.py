"""Answer rows against dense patterns, on every family: whole passes, shared beginnings, batches, interventions."""

import warnings
from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load
from sinklens.attention import plan_for
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions import AblateHeads, CalibrateSinks, Intervention, MaskKeys, ScaleKeys, SlidingWindow
from sinklens.models.architecture import attention_layers
from sinklens.studies import NeedleSet, make_needles, score_needles
from sinklens.studies.needles.decode import decode_needle
from sinklens.studies.needles.engine import reading
from sinklens.studies.needles.instance import NeedleInstance
from sinklens.studies.needles.outcome import Outcome
from sinklens.studies.needles.run import run_needles
from tests import families
from tests.interventions import reference
from tests.ties import same_choice, same_ranks

WITH_ATTENTION = [name for name, family in families.FAMILIES.items() if family.path != "none"]
LENGTHS, DEPTHS, SIZE = (20, 60), (0.0, 0.4), 3
KEY_TIE = 1e-5  # of a weight; the patterns of random models are flat


@pytest.fixture(scope="module")
def bridges(zoo: Path) -> dict[str, TransformerBridge]:
    return {}


def bridge_of(name: str, zoo: Path, bridges: dict[str, TransformerBridge]) -> TransformerBridge:
    if name not in bridges:
        bridges[name] = load(families.build_checkpoint(name, zoo / name))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plan_for(bridges[name])
    return bridges[name]


def run(model: TransformerBridge, needles: object, **options: object) -> dict[int, Outcome]:
    found: dict[int, Outcome] = {}
    run_needles(model, needles.instances, found.update, **options)  # type: ignore[attr-defined, arg-type]
    return dict(sorted(found.items()))


def assert_right(
    model: TransformerBridge, each: NeedleInstance, found: Outcome, intervention: Intervention | None = None
) -> None:
    """The outcome is what a pass with dense patterns says, up to near ties of tokens or keys."""
    ids = torch.tensor([each.fed])
    with torch.no_grad():
        if intervention is None:
            logits, cache = model.run_with_cache(ids)
            patterns = {layer: cache[f"blocks.{layer}.attn.hook_pattern"] for layer in attention_layers(model)}
        else:
            logits = reference.under(model, intervention, ids)
            patterns = reference.patterns(model, ids, intervention)
    rows, answer = logits[0, -SIZE:].double().log_softmax(-1), torch.tensor(each.answer)
    torch.testing.assert_close(found.log_prob.double(), rows.gather(-1, answer[:, None])[:, 0], atol=1e-4, rtol=0)
    same_choice(found.produced, rows)
    same_ranks(found.rank, rows, answer)
    assert found.top_key is not None
    for place, layer in enumerate(sorted(patterns)):
        same_choice(found.top_key[place], patterns[layer][0, :, -SIZE:], KEY_TIE)


def assert_same(
    model: TransformerBridge,
    needles: NeedleSet,
    left: dict[int, Outcome],
    right: dict[int, Outcome],
    intervention: Intervention | None = None,
) -> None:
    assert left.keys() == right.keys()
    for number, one in left.items():
        other = right[number]
        torch.testing.assert_close(one.log_prob, other.log_prob, atol=1e-5, rtol=0)
        assert one.top_key is not None and other.top_key is not None
        pairs = ((one.rank, other.rank), (one.produced, other.produced), (one.top_key, other.top_key))
        if not all(torch.equal(*pair) for pair in pairs):  # only near ties may differ: both are right then
            for outcome in (one, other):
                assert_right(model, needles.instances[number], outcome, intervention)


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_equals_dense_patterns_however_it_runs(name: str, zoo: Path, bridges: dict[str, TransformerBridge]) -> None:
    model = bridge_of(name, zoo, bridges)
    needles = make_needles(model, lengths=LENGTHS, depths=DEPTHS, repeats=2, size=SIZE)
    whole = run(model, needles, share=False)
    for number, outcome in list(whole.items())[::3]:
        assert_right(model, needles.instances[number], outcome)
    assert_same(model, needles, run(model, needles, share=True), whole)
    assert_same(model, needles, run(model, needles, share=False, max_tokens=1), whole)


INTERVENTIONS: dict[str, Intervention] = {
    "uniform in one layer": AblateHeads(["L1H0", "L1H3"], "uniform"),
    "zero everywhere": AblateHeads(["L0H1", "L1H2"], "zero"),
    "window": SlidingWindow(8, sinks=1),
    "keys": MaskKeys(keys=(0,)) + ScaleKeys(keys=(2,), gamma=3.0),
    "reaches back": CalibrateSinks(),
}


@pytest.mark.parametrize("change", INTERVENTIONS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_interventions_change_what_the_model_does(
    name: str, change: str, zoo: Path, bridges: dict[str, TransformerBridge]
) -> None:
    model = bridge_of(name, zoo, bridges)
    needles = make_needles(model, lengths=LENGTHS, depths=DEPTHS, repeats=2, size=SIZE)
    intervention = INTERVENTIONS[change]
    shared = run(model, needles, intervention=intervention)
    alone = run(model, needles, intervention=intervention, share=False, max_tokens=1)
    assert_same(model, needles, shared, alone, intervention)
    clean = run(model, needles)
    assert any(not torch.allclose(clean[i].log_prob, shared[i].log_prob, atol=1e-4) for i in clean)
    each = needles.instances[5]
    with torch.no_grad(), intervention(model):
        rows = model(torch.tensor([each.fed]))[0, -SIZE:].log_softmax(-1)
    expected = rows.gather(-1, torch.tensor(each.answer)[:, None])[:, 0]
    torch.testing.assert_close(shared[5].log_prob, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gpt_oss", "falcon_alibi", "qwen3_next", "deepseek_v3"])
def test_one_pass_gives_what_decoding_token_by_token_gives(
    name: str, zoo: Path, bridges: dict[str, TransformerBridge]
) -> None:
    """The tokens that greedy decoding produces, fed at once: same keys, same tokens, same probabilities."""
    model = bridge_of(name, zoo, bridges)
    needles = make_needles(model, lengths=(40,), depths=(0.5,), repeats=3, size=6)
    for each in needles.instances:
        slow = decode_needle(model, each, steps=6)
        fed = torch.tensor([[*each.ids, *slow.produced.tolist()[:-1]]])
        with reading(model) as reader:
            logits, keys, _ = reader.run(fed, 6)
        assert keys is not None and slow.top_key is not None
        log_probs = logits[0].log_softmax(-1)
        same_choice(slow.produced, log_probs)
        if not torch.equal(keys[:, 0], slow.top_key):  # two keys with the same weight, as far as rounding can tell
            _, cache = model.run_with_cache(fed)
            for place, layer in enumerate(sorted(attention_layers(model))):
                pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -6:]
                same_choice(keys[place, 0], pattern, KEY_TIE)
                same_choice(slow.top_key[place], pattern, KEY_TIE)
        torch.testing.assert_close(log_probs.amax(-1), slow.log_prob, atol=1e-5, rtol=0)


def test_short_form_has_the_same_numbers(zoo: Path, bridges: dict[str, TransformerBridge]) -> None:
    model = bridge_of("llama", zoo, bridges)
    needles = make_needles(model, lengths=LENGTHS, depths=DEPTHS, repeats=2, size=SIZE)
    frame, outcomes = score_needles(model, needles), run(model, needles)
    assert frame["instance"].tolist() == list(range(len(needles)))
    for row in frame.to_dict("records"):
        outcome = outcomes[row["instance"]]
        correct = outcome.correct(needles.instances[row["instance"]].answer)
        assert row["exact"] == bool(correct.all()) and row["correct"] == pytest.approx(correct.double().mean().item())
        assert row["log_prob"] == pytest.approx(outcome.log_prob.double().mean().item(), abs=1e-5)
        assert row["rank"] == outcome.rank.max()


def test_a_model_without_attention_is_scored_without_keys(zoo: Path, bridges: dict[str, TransformerBridge]) -> None:
    model = bridge_of("mamba", zoo, bridges)
    needles = make_needles(model, lengths=(20,), depths=(0, 1), repeats=2, size=SIZE)
    assert score_needles(model, needles)["log_prob"].notna().all()
    with pytest.raises(UnsupportedArchitectureError, match="no retrieval heads"):
        run(model, needles)


def test_prompts_of_another_model_are_refused(zoo: Path, bridges: dict[str, TransformerBridge]) -> None:
    model = bridge_of("llama", zoo, bridges)
    foreign = make_needles(load("induction-2l"), lengths=(60,), depths=(0,), repeats=1)
    with pytest.raises(InputError, match="make them for this model"):
        run(model, foreign)
    with pytest.raises(InputError, match="at least one needle"):
        run_needles(model, [], lambda found: None)


def test_the_model_is_what_it_was_also_after_an_error(zoo: Path, bridges: dict[str, TransformerBridge]) -> None:
    model = bridge_of("llama", zoo, bridges)
    needles = make_needles(model, lengths=LENGTHS, depths=DEPTHS, repeats=1, size=SIZE)
    ids = torch.tensor([needles.instances[0].fed])
    with torch.no_grad():
        before = model(ids)

    def fail(found: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_needles(model, needles.instances, fail)
    with torch.no_grad():
        assert torch.equal(model(ids), before)
    assert not any("forward" in attention.__dict__ for attention in attention_layers(model).values())
    assert run(model, needles)


def test_no_tensor_grows_with_the_square_of_the_prompt(induction: TransformerBridge) -> None:
    needles = make_needles(induction, lengths=(500,), depths=(0, 0.5, 1), repeats=1)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else [out]:
                if isinstance(each, torch.Tensor):
                    largest = max(largest, each.numel())
            return out

    run_needles(induction, needles.instances[:1], lambda found: None)  # plans and checks are made
    with Watch():
        run_needles(induction, needles.instances, lambda found: None)
    assert largest < 500 * 512  # hidden states and logits of a few rows, no head's 500 x 500
