"""The gates measure what they say, on planted figures, on random models and on the built-in ones."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

from sinklens.errors import InputError, ResultError
from sinklens.lab.architecture import build_model
from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.lab.folders import read_recipe
from sinklens.lab.gates import _attention, _attention_figures, check_gates, measure
from sinklens.lab.publish import TASK
from sinklens.lab.report import read_measured
from sinklens.lab.settings import BackcopySettings
from sinklens.lab.streams import stream
from sinklens.models.builtin import data_dir
from tests.ties import same_figures

BUILT_IN = [("bb-1l", 1), ("bb-3l", 3)]


@pytest.fixture(scope="module")
def random_model() -> OPTForCausalLM:
    return build_model(BackcopySettings.choose(2, d_model=16, seq_len=64)).eval()


def test_the_pattern_is_the_one_that_hugging_face_computes(random_model: OPTForCausalLM) -> None:
    ids = BigramBackcopy().sample(3, 64, stream(0, "test"))
    random_model.set_attn_implementation("eager")
    with torch.no_grad():
        eager = random_model(ids, output_attentions=True).attentions
        ours = list(_attention(random_model, ids))
    random_model.set_attn_implementation("sdpa")
    for (pattern, _scores, _values), expected in zip(ours, eager, strict=True):
        torch.testing.assert_close(pattern, expected[:, 0])


def test_planted_figures_come_back() -> None:
    length = 64
    trigger = torch.zeros(2, length, dtype=torch.bool)
    trigger[:, 2::4] = True
    pattern = torch.zeros(2, length, length)
    pattern[:, 0, 0] = 1.0
    pattern[0, 1:, 0], pattern[1, 1:, 0] = 0.5, 0.28
    pattern[:, :, 0][trigger] = 0.01
    scores = torch.full((2, length, length), 2.0)
    scores[:, :, 0] = 9.0
    # Neither the diagonal, nor the future, nor the first two rows, nor triggers may enter the margin.
    scores += torch.diag(torch.full((length,), 100.0)) + torch.ones(length, length).triu(1) * 50
    scores[:, 1], scores[:, 2::4, 0] = -1000.0, -1000.0
    values = torch.full((2, length), 4.0)
    values[:, 0] = 1.0
    figures = _attention_figures(pattern, scores, values, trigger)
    share = trigger[0].sum().item()
    alpha = [(1 + c * (length - 1 - share) + 0.01 * share) / length for c in (0.5, 0.28)]
    assert alpha[0] > 0.3 > alpha[1]
    expected = {
        "attn_bos_nontrigger": 0.39,
        "attn_bos_trigger": 0.01,
        "delta_logit": 7.0,
        "value_bos": 1.0,
        "value_others": 4.0,
        "drain_ratio": 0.25,
        "alpha_0": sum(alpha) / 2,
        "sink_rate": 0.5,
    }
    assert figures == pytest.approx(expected, abs=1e-5)


def test_an_untrained_model_fails_and_is_left_as_it_was(random_model: OPTForCausalLM) -> None:
    before = {name: weight.clone() for name, weight in random_model.state_dict().items()}
    # Hugging Face leaves hooks of its own behind when attentions are asked for.
    hooks = [dict(module._forward_hooks) for module in random_model.modules()]
    random_model.train()
    measured = measure(random_model, BigramBackcopy(), initial=random_model, batch=32)
    assert random_model.training
    random_model.eval()
    assert all(torch.equal(before[name], weight) for name, weight in random_model.state_dict().items())
    assert hooks == [dict(module._forward_hooks) for module in random_model.modules()]
    assert measured["L0.resid_bos_growth"] == measured["L1.resid_others_growth"] == 1.0
    assert measured["L0.sink_rate"] == 0.0
    assert len(check_gates(measured, 2)) >= 3
    assert "L0.resid_bos_growth is 1, expected >= 1.7" in check_gates(measured, 2)


def test_zeroing_is_what_the_weights_say(random_model: OPTForCausalLM) -> None:
    measured = measure(random_model, BigramBackcopy(), batch=16)
    with torch.no_grad():
        without = build_model(BackcopySettings.choose(2, d_model=16, seq_len=64)).eval()
        without.model.decoder.layers[1].self_attn.out_proj.weight.zero_()
        expected = measure(without, BigramBackcopy(), batch=16)
        assert measured["L1.no_attention_bigram"] == pytest.approx(expected["bigram_loss"], abs=1e-6)
        assert measured["L1.no_attention_backcopy"] == pytest.approx(expected["backcopy_loss"], abs=1e-6)
        without = build_model(BackcopySettings.choose(2, d_model=16, seq_len=64)).eval()
        without.model.decoder.layers[0].fc2.weight.zero_()
        expected = measure(without, BigramBackcopy(), batch=16)
        assert measured["L0.no_mlp_bigram"] == pytest.approx(expected["bigram_loss"], abs=1e-6)


def test_what_was_not_measured_fails_its_gate() -> None:
    assert len(check_gates({}, 1)) == 8
    assert len(check_gates({"L0.resid_bos_growth": math.nan}, 3)) == 4


def test_other_models_and_tasks_are_refused(random_model: OPTForCausalLM) -> None:
    with pytest.raises(InputError, match="with BOS"):
        measure(random_model, BigramBackcopy(bos=False))
    config = OPTConfig.from_dict(random_model.config.to_dict() | {"num_attention_heads": 2})
    with pytest.raises(InputError, match="not 2 heads"):
        measure(OPTForCausalLM(config), BigramBackcopy())


def test_figures_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"measured\.json"):
        read_measured(tmp_path)


@pytest.mark.parametrize(("name", "layers"), BUILT_IN)
def test_built_in_models_pass_their_gates_when_measured_again(name: str, layers: int) -> None:
    folder = data_dir() / "models" / name
    recipe = read_recipe(folder, TASK)
    assert recipe is not None
    settings = BackcopySettings(**recipe)
    model = OPTForCausalLM.from_pretrained(folder)
    measured = measure(model, settings.task, initial=build_model(settings))
    assert check_gates(measured, layers) == []
    same_figures(measured, read_measured(folder), counted=("sink_rate",))


@pytest.mark.parametrize(("name", "layers"), BUILT_IN)
def test_built_in_models_are_complete_and_small(name: str, layers: int) -> None:
    folder = data_dir() / "models" / name
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["num_hidden_layers"] == layers and config["pad_token_id"] is None
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
