"""Loading: directories of every family, dtypes and devices, and one sentence for whatever is wrong."""

import importlib
import json
import logging
import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaForCausalLM
from transformers.utils import logging as hf_logging

from sinklens.errors import InputError, ModelLoadError, SinkLensError
from sinklens.models.builtin import BuiltinModel, builtin_models
from sinklens.models.load import load
from sinklens.models.source import source_of
from sinklens.models.tokens import tokenize
from tests.edited import edit_weights
from tests.families import FAMILIES, boot_hf, build_checkpoint, checkpoint, random_ids


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def sentence(path: Any, **options: Any) -> str:
    """What the user reads when this cannot be loaded."""
    with pytest.raises(SinkLensError) as error:
        load(path, **options)
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


# ------------------------------------------------------------------ what loads
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_loads_from_its_directory(name: str, zoo: Path) -> None:
    model = load(checkpoint(name, zoo), device="cpu")
    assert isinstance(model, TransformerBridge)
    assert not model.training and not model.original_model.training
    ids = random_ids(1, 20)
    torch.testing.assert_close(model(ids), boot_hf(name, zoo)(ids).logits, atol=1e-5, rtol=0)


def test_what_is_remembered_about_a_model(zoo: Path) -> None:
    path = checkpoint("llama", zoo)
    model = load(str(path), device="cpu")
    source = source_of(model)
    assert source is not None
    assert (source.name, source.path, source.builtin) == (str(path), str(path), None)
    assert (source.tokenizer_prepends_bos, source.bos_id) == (False, 0)
    bare = TransformerBridge.boot_transformers(str(path), device="cpu")
    assert source_of(bare) is None


@pytest.mark.parametrize("name", list(builtin_models()) or [pytest.param("", marks=pytest.mark.skip("no built-in"))])
def test_built_in_models(name: str) -> None:
    model = load(name, device="cpu")
    source = source_of(model)
    assert source is not None and source.builtin == source.name == name
    assert Path(source.path) == builtin_models()[name].path
    english = not name.startswith("induction")  # its words are a, b .. z, aa, ab .. sr
    batch = tokenize(model, "To be, or not to be" if english else "do be or no be")
    logits = model(batch.ids)
    assert logits.shape[:2] == batch.ids.shape and logits.isfinite().all()


def test_relative_and_home_paths(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama.parent)
    monkeypatch.setenv("HOME", str(llama.parent))
    for name in ("llama", "./llama", "~/llama", llama):
        source = source_of(load(name, device="cpu"))
        assert source is not None and Path(source.path) == llama


def test_a_directory_named_like_a_hub_model_is_still_that_directory(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TransformerLens knows "gpt2-small" and "llama-7b" as aliases of models on the hub
    monkeypatch.chdir(llama.parent)
    llama.rename("gpt2-small")
    assert load("gpt2-small", device="cpu").cfg.architecture == "LlamaForCausalLM"


def test_a_built_in_name_wins_over_a_directory(llama: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_built_ins(monkeypatch, **{"llama": checkpoint("gpt2", zoo)})
    monkeypatch.chdir(llama.parent)
    assert load("llama", device="cpu").cfg.architecture == "GPT2LMHeadModel"
    assert load("./llama", device="cpu").cfg.architecture == "LlamaForCausalLM"


def test_sharded_and_pickled_weights_load(llama: Path, tmp_path: Path) -> None:
    expected = load(llama, device="cpu")(random_ids(1, 8))
    model = LlamaForCausalLM.from_pretrained(llama)
    sharded = Path(shutil.copytree(llama, tmp_path / "sharded"))
    (sharded / "model.safetensors").unlink()
    model.save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    pickled = Path(shutil.copytree(llama, tmp_path / "pickled"))
    torch.save(load_file(llama / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for path in (sharded, pickled):
        assert torch.equal(load(path, device="cpu")(random_ids(1, 8)), expected)
    next(sharded.glob("*-00002-of-*.safetensors")).unlink()
    assert "could not be loaded" in sentence(sharded)


def test_device_map(llama: Path) -> None:
    expected = load(llama, device="cpu")(random_ids(1, 8))
    assert torch.equal(load(llama, device_map={"": "cpu"})(random_ids(1, 8)), expected)


# ------------------------------------------------------------------ dtypes and devices
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_checkpoint_keeps_its_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    path = build_checkpoint("llama", tmp_path, dtype=dtype)
    model = load(path, device="cpu")
    assert {p.dtype for p in model.original_model.parameters()} == {dtype}
    assert model.cfg.dtype == dtype
    stored = load_file(path / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.original_model.get_input_embeddings().weight, stored)


@pytest.mark.parametrize("wanted", ["float32", torch.float32, "float16", torch.float64])
def test_another_dtype_on_request(wanted: str | torch.dtype, tmp_path: Path) -> None:
    path = build_checkpoint("llama", tmp_path, dtype=torch.bfloat16)
    expected = wanted if isinstance(wanted, torch.dtype) else getattr(torch, wanted)
    assert {p.dtype for p in load(path, dtype=wanted).original_model.parameters()} == {expected}


def test_a_config_that_names_no_dtype_gives_fp32(llama: Path) -> None:
    edit_config(llama, dtype=None, torch_dtype=None)
    assert "dtype" not in json.loads((llama / "config.json").read_text("utf-8"))
    assert load(llama, device="cpu").cfg.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float8", "double", 16, ""])
def test_unknown_dtypes_are_refused(dtype: Any, llama: Path) -> None:
    with pytest.raises(
        InputError, match=r"expected one of float32, bfloat16, float16|must be a text or a dtype, got 16"
    ):
        load(llama, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_dtypes_without_fractions_are_refused(dtype: torch.dtype, llama: Path) -> None:
    with pytest.raises(InputError, match=r"Expected a floating-point dtype such as torch.float32, got"):
        load(llama, dtype=dtype)


def test_cuda_without_cuda(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(InputError, match='torch sees no CUDA GPU here; use "cpu" or "auto"'):
            load(llama, device=device)
    assert load(llama, device="auto").cfg.device == "cpu"


def test_a_gpu_that_does_not_exist(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r'"cuda:3" was asked for; this machine has 1 GPU\(s\)'):
        load(llama, device="cuda:3")


def test_other_devices(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    for device in ("mps", "meta"):
        with pytest.raises(InputError, match=f'Device "{device}" was asked for, but torch has none here'):
            load(llama, device=device)
    with pytest.raises(InputError, match="Unknown device 'gpu'"):
        load(llama, device="gpu")


# ------------------------------------------------------------------ what does not load
def test_a_file_instead_of_a_directory(llama: Path) -> None:
    assert "is a file; expected a Hugging Face model directory" in sentence(llama / "model.safetensors")


def test_a_directory_without_config(tmp_path: Path) -> None:
    assert f"{tmp_path} has no config.json" in sentence(tmp_path)


def test_a_directory_without_weights(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    assert "has no weights; expected model.safetensors" in sentence(llama)


def test_a_directory_without_tokenizer(llama: Path) -> None:
    (llama / "tokenizer.json").unlink()
    text = sentence(llama)
    assert "has no tokenizer; expected tokenizer.json" in text and "save_pretrained" in text


def test_damaged_files(llama: Path) -> None:
    config, weights = (llama / "config.json").read_text("utf-8"), (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "could not be loaded" in sentence(llama)
    (llama / "model.safetensors").write_bytes(weights)
    (llama / "tokenizer.json").write_text("{")
    assert "could not be loaded" in sentence(llama)
    (llama / "config.json").write_text(config[:20])
    assert "not a valid JSON" in sentence(llama)
    (llama / "config.json").write_text('{"model_type": "nonsense"}')
    assert "nonsense" in sentence(llama)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_numbers(value: float, llama: Path) -> None:
    def damage(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][3, :2] = value

    edit_weights(llama, damage)
    with pytest.raises(ModelLoadError, match="holds 2 NaN or infinite weights"):
        load(llama)
    assert "(first in model.layers.1.mlp.up_proj.weight)" in sentence(llama)


def test_opposite_infinities_do_not_cancel(llama: Path) -> None:
    def damage(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"][:2] = torch.tensor([float("inf"), float("-inf")])

    edit_weights(llama, damage)
    assert "holds 2 NaN or infinite weights (first in model.norm.weight)" in sentence(llama)


def test_large_weights_are_numbers(tmp_path: Path) -> None:
    # their sum overflows half precision, the weights do not
    path = build_checkpoint("llama", tmp_path, dtype=torch.float16)

    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"][:] = 6e4

    edit_weights(path, enlarge)
    load(path, device="cpu")


# ------------------------------------------------------------------ names
def pretend_built_ins(monkeypatch: pytest.MonkeyPatch, **paths: Path) -> None:
    models = {name: BuiltinModel(name, path, "", {}, {}) for name, path in paths.items()}
    module = importlib.import_module("sinklens.models.locate")
    monkeypatch.setattr(module, "builtin_models", lambda: models)


def test_unknown_names_get_a_near_match(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_built_ins(monkeypatch, **{"bb-3l": tmp_path, "bb-1l": tmp_path, "other": tmp_path})
    text = sentence("bb-3")
    assert "'bb-3' is no built-in model and no local directory" in text and "offline" in text
    assert "Did you mean bb-3l or bb-1l?" in text and "Built-in models: bb-3l, bb-1l, other." in text
    text = sentence("nobody/has-this-model")
    assert "Did you mean" not in text and "Built-in models" in text


def test_paths_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_built_ins(monkeypatch, **{"bb-3l": tmp_path})
    for path in (tmp_path / "bb-3", "./bb-3", "~/bb-3", "some/deep/bb-3"):
        text = sentence(path)
        assert f"There is no directory or file {path}. Did you mean bb-3l?" in text


def test_offline_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []

    def unreachable(host: Any, *args: Any, **kwargs: Any) -> NoReturn:
        looked_up.append(host)
        raise socket.gaierror("no name server")

    def connect(*args: Any) -> NoReturn:
        raise AssertionError("connected to something")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(socket.socket, "connect", connect)
    assert "cannot be reached (offline?)" in sentence("nobody/has-this-model")
    assert looked_up == ["huggingface.co"]  # once, and no retries
    assert constants.HF_HUB_OFFLINE is False


def test_a_local_directory_looks_up_no_name(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("used the network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load(llama, device="cpu")


# ------------------------------------------------------------------ traces
@pytest.mark.parametrize("damaged", [False, True])
def test_loading_leaves_no_trace(damaged: bool, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("transformers.modeling_utils")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.ERROR)
    before = (logger.level, logger.propagate, list(logger.handlers), torch.get_rng_state().tolist())
    monkeypatch.setattr(hf_logging, "_tqdm_active", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if damaged:
        (llama / "model.safetensors").write_bytes(b"not weights")
        sentence(llama)
    else:
        load(llama, device="cpu")
    after = (logger.level, logger.propagate, list(logger.handlers), torch.get_rng_state().tolist())
    assert after == before
    assert hf_logging.is_progress_bar_enabled()
