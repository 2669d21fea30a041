"""Rotary frequencies that follow the longest text: every text is measured as if it were alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from sinklens.models.load import load
from sinklens.models.rope import forward_passes, length_types
from sinklens.models.tokens import tokenize
from sinklens.studies import scan
from tests.families import VOCAB, boot, byte_tokenizer, enliven, random_ids

SIZE = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 256, "pad_token_id": 3, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": (
        "Phi3Config",
        {"original_max_position_embeddings": 64,
         "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                             "long_factor": [1.0, 3.0, 8.0, 20.0], "original_max_position_embeddings": 64}},
    ),
    "dynamic": (
        "LlamaConfig",
        {"max_position_embeddings": 64, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=ROPES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param)
    config_class, fields = ROPES[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, config_class)(**SIZE | fields)
        model = transformers.AutoModelForCausalLM.from_config(config)
    enliven(model)
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def texts() -> list[list[int]]:
    return [random_ids(1, length, seed=length)[0].tolist() for length in (40, 60, 110, 50, 90, 90, 30)]


def test_every_text_is_measured_as_if_alone(directory: Path) -> None:
    rows = texts()
    model = load(directory, device="cpu")
    model.original_model.config.max_position_embeddings = 256
    together = scan(model, tokens=tokenize(model, rows), batch_size=8).tables["massive"]
    for index, row in enumerate(rows):
        fresh = load(directory, device="cpu")
        fresh.original_model.config.max_position_embeddings = 256
        alone = scan(fresh, tokens=tokenize(fresh, [row])).tables["massive"]
        ours = together[together["sequence"] == index]
        np.testing.assert_allclose(
            ours.groupby("layer")["value"].apply(lambda v: v.abs().max()),
            alone.groupby("layer")["value"].apply(lambda v: v.abs().max()),
            rtol=1e-4,
        )


def test_a_short_text_differs_beside_a_long_one(directory: Path) -> None:
    # the fault that the test above guards against is real in plain transformers
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    short, long = random_ids(1, 40, seed=1), random_ids(1, 110, seed=2)
    padded = torch.cat([short, torch.full((1, 70), 3)], dim=1)
    with torch.no_grad():
        alone = model(short).logits
        beside = model(torch.cat([padded, long])).logits[:1, :40]
    assert (alone - beside).abs().max() > 1e-2


def test_no_memory_of_a_longer_text(directory: Path) -> None:
    ids, longer = random_ids(1, 90, seed=3), random_ids(1, 120, seed=4)
    model = load(directory, device="cpu")
    with torch.no_grad():
        first = model(ids)
        model(longer)
        assert torch.equal(model(ids), first)


def test_passes_keep_the_order_and_the_lengths_apart(directory: Path) -> None:
    model = load(directory, device="cpu")
    model.original_model.config.max_position_embeddings = 256
    batch = tokenize(model, texts())
    slices = list(forward_passes(model, batch, 8))
    assert [i for chosen in slices for i in range(len(batch))[chosen]] == list(range(len(batch)))
    (kind, original) = next(iter(length_types(model).items()))
    assert original == 64
    for chosen in slices:
        lengths = batch.lengths[chosen].tolist()
        if kind == "longrope":
            assert len({length > 64 for length in lengths}) == 1
        else:
            assert len({max(length, 64) for length in lengths}) == 1
    assert max(chosen.stop - chosen.start for chosen in slices) == 2
    assert all(chosen.stop - chosen.start == 1 for chosen in forward_passes(model, batch, 1))


def test_other_models_run_in_full_batches(tmp_path_factory: pytest.TempPathFactory) -> None:
    model: TransformerBridge = boot("llama", tmp_path_factory.mktemp("zoo"))
    batch = tokenize(model, texts())
    assert not length_types(model)
    assert list(forward_passes(model, batch, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
