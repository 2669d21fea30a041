"""Loading runs nothing that comes with a checkpoint and starts no other program."""

import builtins
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources.transformers import helpers as tl_helpers
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    dynamic_module_utils,
)

from sinklens.errors import ModelLoadError
from sinklens.models.load import load
from sinklens.models.quiet import _no_installs
from sinklens.models.tokens import tokenize
from tests.edited import edit_json
from tests.families import N_CTX, VOCAB, byte_tokenizer, checkpoint, random_ids

IDS = random_ids(1, 12)


# ------------------------------------------------------------------ code of the checkpoint
@pytest.fixture
def marker(llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that exists once the checkpoint's code has run. Whoever is asked at the terminal says yes."""
    path = llama / "marker"
    (llama / "evil.py").write_text(
        f"open({str(path)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class EvilConfig(LlamaConfig):\n    model_type = 'evil'\n"
        "class EvilModel(LlamaForCausalLM):\n    config_class = EvilConfig\n"
        "class EvilTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    monkeypatch.setattr(builtins, "input", lambda *prompt: "y")
    # what does run is copied below this folder and put on the path
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(llama.parent / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


AUTO_MAP = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}


def test_the_marker_works(llama: Path, marker: Path) -> None:
    edit_json(llama / "config.json", model_type="evil", auto_map=AUTO_MAP)
    AutoConfig.from_pretrained(llama, trust_remote_code=True)
    assert marker.exists()


def test_a_checkpoint_with_its_own_architecture_is_refused(llama: Path, marker: Path) -> None:
    edit_json(llama / "config.json", model_type="evil", architectures=["EvilModel"], auto_map=AUTO_MAP)
    for options in ({}, {"dtype": "float32"}):
        with pytest.raises(ModelLoadError, match="comes with its own modelling code, which is not run unless") as error:
            load(llama, **options)
        assert "trust_remote_code=True" in str(error.value)
    assert not marker.exists()


def test_trusted_code_runs_and_the_checkpoint_keeps_its_dtype(llama: Path, marker: Path) -> None:
    expected = load(llama, device="cpu", dtype="bfloat16")(IDS)
    edit_json(llama / "config.json", model_type="evil", auto_map=AUTO_MAP, dtype="bfloat16")
    model = load(llama, device="cpu", trust_remote_code=True)
    assert marker.exists()
    assert type(model.original_model).__name__ == "EvilModel" and model.cfg.dtype == torch.bfloat16
    assert torch.equal(model(IDS), expected)


def test_code_for_a_known_config_is_refused(llama: Path, marker: Path) -> None:
    # transformers knows the config, so it would ask for leave only when it comes to the model class
    edit_json(
        llama / "config.json",
        model_type="t5",
        d_model=32,
        auto_map={"AutoModelForCausalLM": "evil.EvilModel"},
    )
    with pytest.raises(ModelLoadError, match="its own modelling code"):
        load(llama)
    assert not marker.exists()


def test_code_for_a_known_architecture_is_ignored(llama: Path, marker: Path) -> None:
    expected = load(llama, device="cpu")(IDS)
    edit_json(llama / "config.json", auto_map=AUTO_MAP)
    assert torch.equal(load(llama, device="cpu")(IDS), expected)  # transformers' own LlamaForCausalLM
    assert not marker.exists()


def test_code_for_a_tokenizer_is_not_run(llama: Path, marker: Path) -> None:
    edit_json(
        llama / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": [None, "evil.EvilTokenizer"]},
    )
    try:
        load(llama, device="cpu")
    except ModelLoadError as error:
        assert "trust_remote_code=True" in str(error)
    assert not marker.exists()


# ------------------------------------------------------------------ pickles
class Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin"])
def test_pickled_weights_execute_nothing(name: str, llama: Path) -> None:
    ran = llama / "ran"
    weights = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    torch.save(weights | {"payload": Payload(ran)}, llama / name)
    if name != "pytorch_model.bin":
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        (llama / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match="pickled weights with more in them than tensors") as error:
        load(llama)
    assert "weights_only" not in str(error.value)  # torch's message explains how to run the payload
    assert not ran.exists()
    torch.load(llama / name, weights_only=False)
    assert ran.exists()  # it was armed


# ------------------------------------------------------------------ other programs
@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Programs that something tried to start."""
    calls: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        calls.append(args)
        raise OSError("no programs here")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, refuse)
    for name in ("system", "popen", "posix_spawn", "fork", "execv", "execve"):
        monkeypatch.setattr(os, name, refuse, raising=False)
    return calls


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """A tiny LLaVA whose image processor is missing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=16,
        )
        text = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=N_CTX,
        )
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=VOCAB - 1)
        LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_a_multimodal_model_loads_without_installing_anything(
    llava: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # not installed, on any machine
    model = load(llava, device="cpu")
    assert started == []
    assert model.processor is None
    batch = tokenize(model, "the language model inside is measured")
    assert model(batch.ids).isfinite().all()
    # the danger is real: without sinklens, pip is called
    TransformerBridge.boot_transformers(str(llava), device="cpu")
    assert started and "torchvision" in str(started)


def test_a_language_model_starts_no_program(zoo: Path, started: list[Any]) -> None:
    load(checkpoint("gpt2", zoo), device="cpu")
    assert started == []


def test_the_installer_is_switched_off_inside_and_back_afterwards(started: list[Any]) -> None:
    original = tl_helpers._ensure_torchvision
    with _no_installs():
        assert tl_helpers._ensure_torchvision is not original
        assert tl_helpers._ensure_torchvision() is False
    assert tl_helpers._ensure_torchvision is original
    with pytest.raises(RuntimeError), _no_installs():
        raise RuntimeError
    assert tl_helpers._ensure_torchvision is original
    assert started == []


@pytest.mark.parametrize("broken", [False, True])
def test_loading_restores_the_installer_and_the_question(broken: bool, llama: Path) -> None:
    before = (tl_helpers._ensure_torchvision, dynamic_module_utils.TIME_OUT_REMOTE_CODE)
    if broken:
        (llama / "model.safetensors").write_bytes(b"not weights")
        with pytest.raises(ModelLoadError):
            load(llama)
    else:
        load(llama, device="cpu")
    assert (tl_helpers._ensure_torchvision, dynamic_module_utils.TIME_OUT_REMOTE_CODE) == before


def test_the_names_that_are_switched_off_exist() -> None:
    # patching an attribute that a later version renames would protect nothing
    assert callable(tl_helpers._ensure_torchvision)
    assert isinstance(transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE, int)
