"""A checkpoint's weights are its config's: what is missing, of another shape or dropped is named."""

import logging
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as hf_logging

from sinklens.errors import ModelLoadError
from sinklens.models.load import load
from tests.edited import edit_json, edit_weights
from tests.families import FAMILIES, checkpoint, random_ids


def sentence(path: Path) -> str:
    with pytest.raises(ModelLoadError) as error:
        load(path, device="cpu")
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


@pytest.mark.parametrize(
    "gone",
    [
        ("lm_head.weight",),
        ("model.norm.weight",),
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"),
    ],
)
def test_incomplete_weights(gone: tuple[str, ...], llama: Path) -> None:
    edit_weights(llama, lambda w: [w.pop(name) for name in gone])
    text = sentence(llama)
    assert "incomplete" in text and "random numbers" in text
    assert gone[0].split(".")[-2] in text


def test_incomplete_weights_are_noticed_however_quiet_transformers_is(llama: Path) -> None:
    edit_weights(llama, lambda w: w.pop("lm_head.weight"))
    verbosity = hf_logging.get_verbosity()
    try:
        hf_logging.set_verbosity(logging.CRITICAL)
        assert "incomplete" in sentence(llama)
    finally:
        hf_logging.set_verbosity(verbosity)


# ------------------------------------------------------------------ what is dropped
def test_biases_that_the_config_does_not_ask_for(llama: Path) -> None:
    # with attention_bias the same weights give other logits; without it they were dropped in silence
    biases = {f"model.layers.{i}.self_attn.{p}_proj.bias": torch.ones(32) for i in range(2) for p in "qo"}
    edit_weights(llama, lambda w: w.update(biases))
    text = sentence(llama)
    assert "holds weights that its config does not use and LlamaForCausalLM would drop" in text
    assert "model.layers.0.self_attn.o_proj.bias" in text and "and 1 more" in text


def test_layers_that_the_config_does_not_ask_for(llama: Path) -> None:
    edit_json(llama / "config.json", num_hidden_layers=1)
    text = sentence(llama)
    assert "would drop: model.layers.1.input_layernorm.weight" in text and "more" in text


@pytest.mark.parametrize("name", ["model.norm.bias", "lm_head.bias", "model.layers.1.self_attn.q_norm.weight"])
def test_other_weights_of_the_models_own_modules(name: str, llama: Path) -> None:
    edit_weights(llama, lambda w: w.update({name: torch.ones(8)}))
    assert f"would drop: {name}" in sentence(llama)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "model.position_ids"],
)
def test_buffers_of_older_versions_are_no_weights(name: str, llama: Path) -> None:
    expected = load(llama, device="cpu")(random_ids(1, 8))
    edit_weights(llama, lambda w: w.update({name: torch.ones(4)}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load(llama, device="cpu")(random_ids(1, 8)), expected)


def test_causal_masks_that_gpt2_once_saved(zoo: Path, tmp_path: Path) -> None:
    gpt2 = Path(shutil.copytree(checkpoint("gpt2", zoo), tmp_path / "gpt2"))
    mask = torch.ones(1, 1, 128, 128).tril()
    edit_weights(gpt2, lambda w: w.update({"transformer.h.0.attn.bias": mask}))
    load(gpt2, device="cpu")


def test_what_belongs_to_no_module_is_named(llama: Path) -> None:
    edit_weights(llama, lambda w: w.update({"reward_head.weight": torch.ones(3)}))
    with pytest.warns(UserWarning, match=r"no place for: reward_head.weight. They are not used"):
        load(llama, device="cpu")


def test_weights_of_another_shape(llama: Path) -> None:
    edit_json(llama / "config.json", intermediate_size=50)
    text = sentence(llama)
    assert "do not fit its config: model.layers.0.mlp." in text and "in the checkpoint and [" in text
    assert "50" in text and "(and 5 more)" in text


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_is_refused_by_mistake(name: str, zoo: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*holds weights.*")
        load(checkpoint(name, zoo), device="cpu")
