"""Files that are not what their names promise: bounded, held against each other, and refused in a sentence."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load, tokenize
from sinklens.cli.texts import read_text
from sinklens.errors import InputError, ModelLoadError, SinkLensError
from sinklens.models import reading
from sinklens.models.chat_template import check_chat_template
from sinklens.studies.needles.make import make_needles
from tests.edited import edit_json


def refused(path: Path) -> str:
    with pytest.raises(SinkLensError) as error:
        load(path, device="cpu")
    said = str(error.value)
    assert "\n" not in said and len(said) < 500
    return said


# ------------------------------------------------------------------ texts
def test_an_endless_text_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinklens.cli.texts.MOST_BYTES", 1000)
    with pytest.raises(InputError, match="/dev/zero has more than the 1,000 bytes"):
        read_text("/dev/zero")


def test_a_long_text_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 1000)
    (tmp_path / "long.txt").write_text("a" * 1001)
    (tmp_path / "fits.txt").write_text("a" * 1000)
    with pytest.raises(InputError, match="has 1,001 bytes, more than the 1,000 that are read"):
        read_text(str(tmp_path / "long.txt"))
    assert len(read_text(str(tmp_path / "fits.txt"))) == 1000


def test_what_is_no_file_is_named_and_nothing_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # a read would wait for a writer for ever
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, kind in (("pipe", "named pipe"), ("link", "named pipe"), ("", "directory")):
        with pytest.raises(InputError, match=f"it is a {kind}, expected a file"):
            read_text(str(tmp_path / name))
    (tmp_path / "text").write_text("abc")
    (tmp_path / "good").symlink_to(tmp_path / "text")
    assert read_text(str(tmp_path / "good")) == "abc"


def test_deep_json_is_an_error_like_others(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        reading.read_json(tmp_path / "deep.json")


# ------------------------------------------------------------------ configs
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_hidden_layers", 10**7, "num_hidden_layers=10,000,000; no more than 1,000"),
        ("num_hidden_layers", 10**30, "no more than"),
        ("vocab_size", 10**12, "vocab_size=1,000,000,000,000"),
        ("vocab_size", 10**7, "at least 320,001,600 parameters .* one of the two is another model's"),
        ("intermediate_size", 10**7, "one of the two is another model's"),
        ("num_attention_heads", 10**9, "num_attention_heads=1,000,000,000"),
        ("max_position_embeddings", 10**15, "max_position_embeddings"),
        ("hidden_size", 10**8, "hidden_size"),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_it_is_built(
    field: str, value: int, words: str, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []
    monkeypatch.setattr(TransformerBridge, "boot_transformers", lambda *args, **options: built.append(args))
    edit_json(llama / "config.json", **{field: value})
    with pytest.raises(ModelLoadError, match=words):
        load(llama)
    assert built == []


@pytest.mark.parametrize("text", ["[" * 200_000, "[1]", "3", "", "\0", '{"a": '])
def test_a_config_that_is_none(text: str, llama: Path) -> None:
    (llama / "config.json").write_text(text)
    assert "config.json" in refused(llama)


# ------------------------------------------------------------------ weights
def shards(llama: Path, target: str) -> Path:
    """An index that names ``target``, where the weights lie."""
    outside = llama / target if target else llama / "model-1.safetensors"
    outside.parent.mkdir(parents=True, exist_ok=True)
    names = load_file(llama / "model.safetensors")
    shutil.move(llama / "model.safetensors", outside)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, target or outside.name)}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    return llama


def test_shards_in_the_directory_load(llama: Path) -> None:
    assert load(shards(llama, ""), device="cpu").cfg.n_layers == 2


@pytest.mark.parametrize("target", ["../outside.safetensors", "below/../../outside.safetensors", "below/x.safetensors"])
def test_shards_elsewhere_are_not_read(target: str, llama: Path) -> None:
    (llama / "below").mkdir()
    assert "leads out of its directory" in refused(shards(llama, target))


def test_nor_by_an_absolute_path(llama: Path, tmp_path: Path) -> None:
    assert "leads out of its directory" in refused(shards(llama, str(tmp_path / "outside.safetensors")))


@pytest.mark.parametrize("text", ["[]", "{}", "[" * 200_000, '{"weight_map": 3}', '{"weight_map": {"a": 3}}', ""])
def test_an_index_that_is_none(text: str, llama: Path) -> None:
    (llama / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refused(llama)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_of_whole_numbers_are_refused(kind: str, dtype: torch.dtype, llama: Path) -> None:
    weights = load_file(llama / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].to(dtype)
    if kind == "safetensors":
        save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    else:
        (llama / "model.safetensors").unlink()
        torch.save(weights, llama / "pytorch_model.bin")
    assert f"{name} as" in refused(llama)


# ------------------------------------------------------------------ tokenizers
def change_tokenizer(llama: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads((llama / "tokenizer.json").read_text("utf-8"))
    change(content)
    (llama / "tokenizer.json").write_text(json.dumps(content))
    return llama


def test_a_tokenizer_with_ids_beyond_the_vocabulary(llama: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"]["vocab"] = {
            token: id if id < 50 else id + 10**6 for token, id in content["model"]["vocab"].items()
        }

    model = load(change_tokenizer(llama, change), device="cpu")
    with pytest.raises(InputError, match="tokens that the model was never given"):
        tokenize(model, "abc" * 9)


PANICS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a normaliser that is none": lambda content: content.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "a template with an unknown token": lambda content: content.update(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<zz>", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
}


@pytest.mark.parametrize("how", PANICS)
def test_a_tokenizer_that_panics(how: str, llama: Path) -> None:
    assert "gave up" in refused(change_tokenizer(llama, PANICS[how]))


def test_a_tokenizer_that_panics_at_a_text(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*args: Any, **options: Any) -> Any:
        raise type("PanicException", (BaseException,), {})("index out of bounds")

    model = load(llama, device="cpu")
    monkeypatch.setattr(type(model.tokenizer), "__call__", panic)
    with pytest.raises(InputError, match="gave up on it"):
        tokenize(model, "abc", bos="no")


# ------------------------------------------------------------------ chat templates
@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**11 }}",
        "{{ 'a' * 10**7 }}",
    ],
)
def test_a_chat_template_without_end(template: str, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinklens.models.chat_template.SECONDS", 1)
    model = load(llama, device="cpu")
    model.tokenizer.chat_template = template
    with pytest.raises(ModelLoadError, match="The chat template of this model takes more than"):
        make_needles(model, "passkey", lengths=[60], depths=[0.5], template="chat")


def test_a_chat_template_that_fails_and_one_that_does_not(llama: Path) -> None:
    model = load(llama, device="cpu")
    model.tokenizer.chat_template = "{{ raise_exception('not this role') }}"
    with pytest.raises(InputError, match=r"chat template of this model fails .*not this role"):
        make_needles(model, "passkey", lengths=[60], depths=[0.5], template="chat")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | trim | tojson }}{% endfor %}"
    check_chat_template(model.tokenizer)
