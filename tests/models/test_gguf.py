"""GGUF files: the model that a file holds, its provenance, and one sentence for whatever is wrong with it."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM
from typer.testing import CliRunner

from sinklens.cli import app
from sinklens.errors import MissingExtraError, SinkLensError
from sinklens.models.load import load
from sinklens.models.source import source_of
from sinklens.models.tokens import tokenize
from sinklens.studies import scan
from tests.families import boot_hf, checkpoint, random_ids
from tests.gguf_files import dequantised, write_gguf

TEXT = "The cat sat on the mat and looked at the moon. " * 3


@pytest.fixture
def llama(zoo: Path) -> Path:
    return checkpoint("llama", zoo)


def sentence(path: Path) -> str:
    with pytest.raises(SinkLensError) as error:
        load(path, device="cpu")
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


# ------------------------------------------------------------------ what loads
def test_a_file_of_floats_is_the_checkpoint(llama: Path, zoo: Path, tmp_path: Path) -> None:
    model = load(write_gguf(llama, tmp_path / "tiny.gguf"), device="cpu")
    ids = random_ids(2, 30)
    torch.testing.assert_close(model(ids), boot_hf("llama", zoo)(ids).logits, atol=1e-5, rtol=0)
    source = source_of(model)
    assert source is not None and source.quantisation is None and source.path == str(tmp_path / "tiny.gguf")


def test_a_file_is_parsed_once(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real vocabulary takes seconds to parse, and transformers would make the table of names for every module."""
    made: list[type] = []
    for kind in (gguf.GGUFReader, gguf.TensorNameMap):

        def counted(self: Any, *given: Any, kind: type = kind, usual: Any = kind.__init__) -> None:
            made.append(kind)
            usual(self, *given)

        monkeypatch.setattr(kind, "__init__", counted)
    file = write_gguf(llama, tmp_path / "model.gguf")
    load(file, device="cpu")
    assert made == [gguf.GGUFReader, gguf.TensorNameMap]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q4_0", "Q5_0"])
def test_quantised_weights_are_the_files(kind: str, llama: Path, tmp_path: Path) -> None:
    model = load(write_gguf(llama, tmp_path / "tiny.gguf", kind=kind), device="cpu")
    expected = LlamaForCausalLM.from_pretrained(llama, attn_implementation="eager")
    expected.load_state_dict(dequantised(llama, kind))
    ids = random_ids(1, 30)
    torch.testing.assert_close(model(ids), expected(ids).logits, atol=1e-5, rtol=0)
    source = source_of(model)
    assert source is not None and source.quantisation == kind
    assert {p.dtype for p in model.original_model.parameters()} == {torch.float32}


def test_a_file_goes_by_its_own_name_for_its_mixture(llama: Path, tmp_path: Path) -> None:
    named = write_gguf(llama, tmp_path / "a.gguf", kind="Q8_0", keys={"general.file_type": 7})
    wrong = write_gguf(llama, tmp_path / "b.gguf", kind="Q8_0", keys={"general.file_type": 15})  # Q4_K_M
    half = write_gguf(llama, tmp_path / "c.gguf", kind="F16", keys={"general.file_type": 1})
    for path, expected in ((named, "Q8_0"), (wrong, "Q8_0"), (half, None)):
        source = source_of(load(path, device="cpu"))
        assert source is not None and source.quantisation == expected


def test_another_dtype(llama: Path, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf", kind="Q8_0")
    model = load(path, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in model.original_model.parameters()} == {torch.bfloat16}
    assert model.cfg.dtype == torch.bfloat16


def test_biases_of_qwen2(zoo: Path, tmp_path: Path) -> None:
    path = write_gguf(checkpoint("qwen2", zoo), tmp_path / "qwen.gguf", architecture="qwen2")
    ids = random_ids(1, 20)
    expected = boot_hf("qwen2", zoo)(ids).logits
    torch.testing.assert_close(load(path, device="cpu")(ids), expected, atol=1e-5, rtol=0)


def test_a_split_file_is_joined(llama: Path, tmp_path: Path) -> None:
    whole = load(write_gguf(llama, tmp_path / "whole.gguf"), device="cpu")
    first = write_gguf(llama, tmp_path / "split.gguf", parts=3)
    ids = random_ids(1, 20)
    for part in sorted(tmp_path.glob("split-*.gguf")):
        assert torch.equal(load(part, device="cpu")(ids), whole(ids))
    assert first.name == "split-00001-of-00003.gguf"


def test_rotary_factors_are_applied(llama: Path, tmp_path: Path) -> None:
    # Llama 3.1 keeps them as a tensor, which transformers leaves out
    config = AutoConfig.from_pretrained(llama)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config.rope_parameters |= scaling | {"original_max_position_embeddings": 16}
    expected = LlamaForCausalLM.from_pretrained(llama, config=config, attn_implementation="eager")
    plain = LlamaForCausalLM.from_pretrained(llama, attn_implementation="eager")
    factors = plain.model.rotary_emb.inv_freq / expected.model.rotary_emb.inv_freq
    assert factors.max() > 2
    path = write_gguf(llama, tmp_path / "llama31.gguf", tensors={"rope_freqs.weight": factors.numpy()})
    ids = random_ids(1, 60)
    assert (plain(ids).logits - expected(ids).logits).abs().max() > 1e-2
    torch.testing.assert_close(load(path, device="cpu")(ids), expected(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_bos_is_what_the_file_says(add_bos: bool, llama: Path, tmp_path: Path) -> None:
    model = load(write_gguf(llama, tmp_path / "tiny.gguf", add_bos=add_bos), device="cpu")
    batch = tokenize(model, "abc")
    assert batch.tokens[0] == (("<s>",) if add_bos else ()) + ("a", "b", "c")
    assert ("A BOS was prepended" in batch.statement) is add_bos


def test_the_result_names_the_quantisation(llama: Path, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf", kind="Q4_1")
    census = scan(load(path, device="cpu"), TEXT, max_tokens=32)
    assert census.meta["model"]["name"] == "tiny.gguf"
    assert census.meta["model"]["dequantised_from"] == "Q4_1"
    assert "float32 (dequantised from Q4_1)" in census.to_markdown()


def test_the_command_reads_it(llama: Path, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf", kind="Q4_1")
    (tmp_path / "text.txt").write_text(TEXT)
    shown = CliRunner().invoke(app, ["scan", str(path), "--text", str(tmp_path / "text.txt"), "--max-tokens", "32"])
    assert shown.exit_code == 0, shown.output
    assert "dequantised from Q4_1" in " ".join(shown.stdout.split())


# ------------------------------------------------------------------ what does not load
def test_what_is_no_gguf_file(llama: Path, tmp_path: Path) -> None:
    fake = Path(shutil.copy(llama / "model.safetensors", tmp_path / "fake.gguf"))
    assert "is no GGUF file: it does not begin with the letters GGUF" in sentence(fake)
    assert "There is no directory or file" in sentence(tmp_path / "absent.gguf")
    (tmp_path / "old.gguf").write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(40))
    assert "GGUF version 1; versions 2 and 3 can be read" in sentence(tmp_path / "old.gguf")


def test_a_file_that_is_cut_short(llama: Path, tmp_path: Path) -> None:
    whole = write_gguf(llama, tmp_path / "whole.gguf").read_bytes()
    short = tmp_path / "short.gguf"
    for size in (4, 20, 100, 1000, 5000):
        short.write_bytes(whole[:size])
        assert "cut short or damaged" in sentence(short)
    short.write_bytes(whole[:-1000])
    assert f"is cut short: its header promises {len(whole):,} bytes" in sentence(short)


def test_a_missing_part(llama: Path, tmp_path: Path) -> None:
    first = write_gguf(llama, tmp_path / "split.gguf", parts=3)
    second = tmp_path / "split-00002-of-00003.gguf"
    second.unlink()
    text = sentence(first)
    assert "one of 3 parts of a split model" in text and f"{second.name} is not in {tmp_path}" in text
    alone = Path(shutil.copy(first, tmp_path / "renamed.gguf"))
    assert "one of 3 parts of a split model and was renamed" in sentence(alone)


def test_an_architecture_that_cannot_be_read(llama: Path, tmp_path: Path) -> None:
    text = sentence(write_gguf(llama, tmp_path / "rwkv.gguf", architecture="rwkv6"))
    assert "architecture 'rwkv6', which transformers cannot read from GGUF; expected one of" in text and "llama" in text


def test_a_quantisation_that_cannot_be_read(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf", kind="Q8_0")
    raw = path.read_bytes()
    name = b"blk.0.attn_q.weight"
    at = raw.index(name) + len(name) + 4 + 2 * 8  # after the number of axes and the axes
    for number, shown in ((41, "Q1_0"), (99, "number 99"), (26, "I32")):
        path.write_bytes(raw[:at] + number.to_bytes(4, "little") + raw[at + 4 :])
        text = sentence(path)
        assert f"stores blk.0.attn_q.weight in ggml's type {shown}, which cannot be dequantised here" in text
        assert "Q4_K" in text


def test_a_file_without_a_tokenizer(llama: Path, tmp_path: Path) -> None:
    assert "holds no tokenizer" in sentence(write_gguf(llama, tmp_path / "tiny.gguf", tokenizer=False))


def test_without_the_package(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else found(name, *a))
    with pytest.raises(MissingExtraError, match=r"needs the package gguf: pip install 'sinklens\[gguf\]'"):
        load(path)


def test_tensors_without_a_place(llama: Path, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf", tensors={"blk.0.attn_q.bias": np.ones(32, dtype=np.float32)})
    text = sentence(path)
    assert "1 tensors that transformers' LlamaForCausalLM has no place for (blk.0.attn_q.bias)" in text


def test_a_missing_tensor(llama: Path, tmp_path: Path) -> None:
    whole = write_gguf(llama, tmp_path / "tiny.gguf")
    keys: dict[str, Any] = {"block_count": 3}
    path = write_gguf(llama, tmp_path / "deeper.gguf", keys=keys)
    assert whole.is_file()
    assert "incomplete" in sentence(path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, "states rope.scaling.type = yarn"),
        ({"attention.sliding_window": 16}, "states attention.sliding_window = 16"),
        ({"logit_scale": 0.5}, "states logit_scale = 0.5"),
        ({"expert_count": 4}, "states expert_count = 4"),
    ],
)
def test_what_transformers_leaves_out_of_the_config(
    keys: dict[str, Any], said: str, llama: Path, tmp_path: Path
) -> None:
    text = sentence(write_gguf(llama, tmp_path / "tiny.gguf", keys=keys))
    assert said in text and "would be another model's" in text


@pytest.mark.parametrize(
    "keys", [{"rope.scaling.type": "none"}, {"attention.sliding_window": 4096}, {"logit_scale": 1.0}]
)
def test_keys_that_change_nothing(keys: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    load(write_gguf(llama, tmp_path / "tiny.gguf", keys=keys), device="cpu")


def test_every_type_that_gguf_reads_is_offered() -> None:
    from sinklens.models.gguf.file import readable_types

    names = {kind.name for kind in readable_types()}
    assert {"F32", "F16", "BF16", "Q4_0", "Q4_K", "Q6_K", "Q8_0", "IQ4_XS"} <= names
    assert not names & {"I8", "I32", "Q8_K"}
    for kind in readable_types():
        size = gguf.GGML_QUANT_SIZES[kind][1]
        assert gguf.quants.dequantize(np.zeros((1, size), dtype=np.uint8), kind).dtype == np.float32
