"""What people hand over instead of texts, ids and models: each is measured right, or refused in one sentence."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

import sinklens
from sinklens import load, scan, sweep, tokenize
from sinklens.capture import capture
from sinklens.cli.texts import read_text
from sinklens.detectors.measure import measure
from sinklens.errors import InputError, SinkLensError
from sinklens.interventions import AblateHeads, massive_entries, mean_values
from sinklens.interventions.head_outputs import mean_outputs
from sinklens.models import as_bridge
from sinklens.models.bos import bos_facts
from sinklens.models.source import source_of
from sinklens.studies import measure_dynamics, measure_effects, text_scores
from sinklens.studies.census.run import DETECTORS
from tests.families import BOS, EOS, N_CTX, PAD, VOCAB, boot, boot_hf, byte_tokenizer, checkpoint, random_ids

A, B, C = byte_tokenizer()("abc")["input_ids"]
LENGTHS = (40, 30, 12)


@pytest.fixture(scope="module")
def tiny(zoo: Path) -> TransformerBridge:
    return load(checkpoint("llama", zoo), device="cpu")


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    """Three sequences of ordinary tokens."""
    return [row[:n].tolist() for row, n in zip(random_ids(3, 40), LENGTHS, strict=True)]


def padded(rows: list[list[int]], side: str, pad: int = PAD) -> BatchEncoding:
    """What a tokenizer with ``padding=True, return_tensors="pt"`` gives."""
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    ids = [[pad] * n + row if side == "left" else row + [pad] * n for n, row in zip(gaps, rows, strict=True)]
    mask = [
        [0] * n + [1] * len(row) if side == "left" else [1] * len(row) + [0] * n
        for n, row in zip(gaps, rows, strict=True)
    ]
    return BatchEncoding({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})


def real(batch: Any) -> list[list[int]]:
    return [ids[keep].tolist() for ids, keep in zip(batch.ids, batch.real, strict=True)]


# ------------------------------------------------------------------ padded ids
GIVEN: dict[str, Callable[[BatchEncoding], dict[str, Any]]] = {
    "encoding as tokens": lambda enc: {"tokens": enc},
    "encoding as texts": lambda enc: {"texts": enc},
    "dictionary as tokens": lambda enc: {"tokens": dict(enc)},
    "dictionary as texts": lambda enc: {"texts": dict(enc)},
    "ids and mask": lambda enc: {"tokens": enc["input_ids"], "attention_mask": enc["attention_mask"]},
    "boolean mask": lambda enc: {"tokens": enc["input_ids"], "attention_mask": enc["attention_mask"].bool()},
    "lists": lambda enc: {"tokens": {name: each.tolist() for name, each in enc.items()}},
    "ids as texts": lambda enc: {"texts": tokens_of(enc)},
}


def tokens_of(encoding: BatchEncoding) -> list[list[int]]:
    pairs = zip(encoding["input_ids"], encoding["attention_mask"].bool(), strict=True)
    return [ids[keep].tolist() for ids, keep in pairs]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", GIVEN)
def test_padding_with_its_mask_changes_nothing(
    how: str, side: str, tiny: TransformerBridge, rows: list[list[int]]
) -> None:
    plain = scan(tiny, tokens=rows, maps=0)
    found = scan(tiny, **GIVEN[how](padded(rows, side)), maps=0)
    assert found.tokens.to_dataframe()["token_id"].tolist() == [token for row in rows for token in row]
    for name in ("importance", "sink_rate"):
        torch.testing.assert_close(
            torch.tensor(found.sinks.to_dataframe()[name].to_numpy()),
            torch.tensor(plain.sinks.to_dataframe()[name].to_numpy()),
            atol=1e-5,
            rtol=0,
        )


@pytest.mark.parametrize("pad", [PAD, EOS])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_without_a_mask_is_refused(pad: int, side: str, tiny: TransformerBridge, rows: list[list[int]]) -> None:
    ids = padded(rows, side, pad)["input_ids"]
    end = "starts" if side == "left" else "ends"
    for given in (ids, ids.tolist(), ids.numpy(), {"input_ids": ids}):
        with pytest.raises(InputError, match=rf"Sequence 1 {end} with 10 x .*which is padding.*attention_mask"):
            scan(tiny, tokens=given)
    with pytest.raises(InputError, match="which is padding"):
        sweep(tiny, "zero", tokens=ids)
    with pytest.raises(InputError, match="which is padding"):
        measure_effects(tiny, {"a": AblateHeads(["L0H0"])}, ids)
    meant = tokenize(tiny, ids, attention_mask=torch.ones_like(ids))  # the way out
    assert real(meant) == ids.tolist()


def test_one_pad_before_some_of_the_texts_is_padding(tiny: TransformerBridge) -> None:
    with pytest.raises(InputError, match="Sequence 1 starts with 1 x '<pad>'"):
        tokenize(tiny, torch.tensor([[A, B, C], [PAD, A, B]]))


@pytest.mark.parametrize(
    "ids",
    [
        [[A, B, EOS], [A, B, C]],  # a text that ends, beside one that is cut
        [[EOS, A, B], [EOS, B, C]],  # EOS used as a BOS
        [[BOS, BOS, A]],  # a BOS that stands there twice
        [[PAD, A, B], [PAD, B, C]],  # on purpose: padding to the longest leaves one text without
        [[A, PAD, PAD, B]],  # inside
        [[EOS]],
    ],
)
def test_what_is_no_padding_is_taken(ids: list[list[int]], tiny: TransformerBridge) -> None:
    assert real(tokenize(tiny, ids)) == ids


# ------------------------------------------------------------------ forty odd inputs
BAD: dict[str, tuple[Callable[[TransformerBridge], Any], str]] = {
    "additive mask": (lambda m: tokenize(m, [[A, B]], attention_mask=[[-1e9, 0.0]]), "attention_mask holds -1e"),
    "4-D mask": (
        lambda m: tokenize(m, [[A, B]], attention_mask=torch.ones(1, 1, 2, 2)),
        "must have the shape of the ids",
    ),
    "mask of other width": (
        lambda m: tokenize(m, [[A, B]], attention_mask=[[1]]),
        r"shape \(1, 1\), ids have \(1, 2\)",
    ),
    "mask for texts": (lambda m: scan(m, "abc" * 9, attention_mask=[[1]]), "attention_mask goes with token ids"),
    "two masks": (
        lambda m: tokenize(m, {"input_ids": [[A]], "attention_mask": [[1]]}, attention_mask=[[1]]),
        "another beside it",
    ),
    "mask for a batch": (lambda m: scan(m, tokens=tokenize(m, "abc" * 9), attention_mask=[[1]]), "know their padding"),
    "input_ids missing": (lambda m: tokenize(m, {"attention_mask": [[1]]}), "got a mapping with 'attention_mask'"),
    "input_ids of None": (lambda m: tokenize(m, {"input_ids": None}), "under 'input_ids', got NoneType"),
    "texts by domain to tokenize": (lambda m: tokenize(m, {"prose": ["abc"]}), "texts by domain go to sinklens.scan"),
    "domain named by a number": (lambda m: scan(m, {1: "abc" * 9}), "Expected texts by domain"),
    "texts as tokens": (lambda m: scan(m, tokens=["abc" * 9]), "these are texts"),
    "a text as tokens": (lambda m: scan(m, tokens="abc" * 9), "these are texts"),
    "a path for a text": (lambda m: scan(m, Path("book.txt")), r"got the path book.txt.*read_text"),
    "bytes": (lambda m: scan(m, b"abc" * 9), "got bytes"),
    "a number": (lambda m: scan(m, 3), "got int"),
    "None in texts": (lambda m: scan(m, ["abc", None]), "not a mixture; number 1 is NoneType"),
    "half a token": (lambda m: scan(m, "abc" * 9, max_tokens=20.5), "max_tokens must be a whole number, got 20.5"),
    "no sequence": (
        lambda m: scan(m, "abc" * 9, max_sequences=0),
        "max_sequences must be at least 1",
    ),
    "no token of built-in texts": (lambda m: scan(m, max_tokens=0), "max_tokens must be at least 1, got 0"),
    "cut batch": (lambda m: scan(m, tokens=tokenize(m, "abc" * 9), max_tokens=5), "give max_tokens to tokenize"),
    "ids beyond the vocabulary": (lambda m: scan(m, tokens=[[VOCAB] * 20]), f"holds id {VOCAB}"),
    "float ids": (lambda m: scan(m, tokens=torch.ones(2, 20)), "Expected integer ids"),
    "an empty batch": (
        lambda m: measure_effects(m, {"a": AblateHeads(["L0H0"])}, tokenize(m, "abc").rows([])),
        "got none",
    ),
    "texts for effects": (lambda m: measure_effects(m, {"a": AblateHeads(["L0H0"])}, ["abc"]), "got texts"),
    "nothing for effects": (lambda m: measure_effects(m, {"a": AblateHeads(["L0H0"])}, None), "got NoneType"),
    "texts to capture": (lambda m: capture(m, ["abc"]), "got texts"),
    "a name to capture with": (lambda m: capture("tiny-llama", [[A]]), "Expected a loaded model, got str"),
    "an intervention by name": (lambda m: scan(m, "abc" * 9, intervention="zero"), "AblateHeads.*got 'zero'"),
    "a domain without texts": (lambda m: scan(m, {"a": "abc" * 9, "b": None}), "domain 'b' has no texts"),
    "a set of texts": (lambda m: scan(m, {"abc" * 9, "cba" * 9}), "a set, which has none"),
    "half a sequence": (lambda m: scan(m, "abc" * 9, max_sequences=2.5), "max_sequences must be a whole number"),
    "no seed": (lambda m: scan(m, "abc" * 9, seed=None), "seed must be a whole number"),
    "eps in words": (lambda m: scan(m, "abc" * 9, eps="0.3"), "eps must be a number, got '0.3'"),
    "sparse ids": (lambda m: tokenize(m, torch.ones(2, 20, dtype=torch.long).to_sparse()), "nested, sparse or meta"),
    "complex ids": (lambda m: tokenize(m, torch.ones(2, 20, dtype=torch.complex64)), "Expected integer ids"),
    "another model's tokens": (
        lambda m: massive_entries(m, tokenize(load("tiny-llama"), [[900] * 20])),
        "id 900",
    ),
    "no model": (lambda m: scan(None), "got builtins.NoneType"),
    "nothing to load": (lambda m: load(None), "name_or_path must be a text or a path, got None"),
    "nothing to open": (lambda m: sinklens.open(None), "directory must be a text or a path, got None"),
    "no detectors": (lambda m: measure(m, [[A] * 20], None), "detectors must be a text, a Detector or a list"),
    "no series": (lambda m: measure_dynamics(None), "a list of texts or paths, got None"),
    "a module": (lambda m: scan(torch.nn.Linear(2, 2)), "got torch.nn.modules.linear.Linear"),
    "tokenizer for a bridge": (lambda m: scan(m, "abc" * 9, tokenizer=m.tokenizer), "brings its own"),
    "tokenizer for a name": (lambda m: scan("tiny-llama", tokenizer="gpt2"), "tiny-llama brings its own"),
    "a name to tokenize with": (lambda m: tokenize("tiny-llama", "abc"), "a loaded model.*got 'tiny-llama'"),  # type: ignore[arg-type]
}


def test_no_detectors_named_are_the_usual_ones(tiny: TransformerBridge) -> None:
    found = scan(tiny, "abc" * 9, detectors=None)
    assert found.meta["settings"]["detectors"] == scan(tiny, "abc" * 9).meta["settings"]["detectors"]
    assert {*DETECTORS} <= {*found.meta["settings"]["detectors"]}


@pytest.mark.parametrize("what", BAD)
def test_it_is_refused_in_one_sentence(what: str, tiny: TransformerBridge) -> None:
    call, words = BAD[what]
    with pytest.raises(SinkLensError, match=words) as error:
        call(tiny)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_what_takes_a_batch_takes_an_encoding(tiny: TransformerBridge, rows: list[list[int]]) -> None:
    encoding, batch = padded(rows, "left"), tokenize(tiny, rows)
    assert mean_outputs(tiny, encoding) == mean_outputs(tiny, batch)
    assert mean_values(tiny, encoding) == mean_values(tiny, batch)
    assert len(capture(tiny, encoding)) == len(capture(tiny, batch))
    effects = [measure_effects(tiny, {"a": AblateHeads(["L0H0"])}, each).to_dataframe() for each in (encoding, batch)]
    assert effects[0].equals(effects[1])
    for call in (mean_outputs, mean_values, massive_entries, capture):
        with pytest.raises(InputError, match="which is padding"):
            call(tiny, encoding["input_ids"])  # type: ignore[operator]


def test_a_lone_encoding_is_one_sequence(tiny: TransformerBridge) -> None:
    assert real(tokenize(tiny, byte_tokenizer()("abc"))) == [[A, B, C]]
    assert real(tokenize(tiny, BatchEncoding({"input_ids": torch.tensor([A, B])}))) == [[A, B]]


def test_texts_may_come_one_by_one(tiny: TransformerBridge) -> None:
    assert real(tokenize(tiny, (each for each in ("ab", "c")))) == [[A, B], [C]]


def test_a_tokenizer_with_more_tokens_than_the_model(zoo: Path) -> None:
    model = boot.__wrapped__("llama", zoo)
    model.tokenizer.add_tokens(["<new>"])
    with pytest.raises(InputError, match=f"Text 1 holds id {VOCAB}; .* tokens that the model was never given"):
        tokenize(model, ["abc", "ab<new>"])


# ------------------------------------------------------------------ BOS of bridges that sinklens did not make
def without_bos(zoo: Path, directory: Path) -> Path:
    """The tiny Llama with a tokenizer that has an EOS and no BOS, as Qwen's."""
    path = directory / "model"
    boot_hf("llama", zoo).save_pretrained(path)
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    tokenizer.save_pretrained(path)
    return path


def test_no_bos_is_made_of_an_eos(zoo: Path, tmp_path: Path) -> None:
    model = TransformerBridge.boot_transformers(str(without_bos(zoo, tmp_path)), device="cpu")
    assert model.tokenizer.bos_token_id == EOS  # TransformerLens' doing
    batch = tokenize(model, "abc")
    assert real(batch) == [[A, B, C]] and batch.bos_id is None
    assert batch.statement == "The tokenizer has no BOS token, so none was prepended."
    with pytest.raises(InputError, match="needs a tokenizer with a BOS token and this one has none"):
        tokenize(model, "abc", bos="yes")


def test_nor_where_the_checkpoint_is_gone(zoo: Path, tmp_path: Path) -> None:
    model = TransformerBridge.boot_transformers(str(without_bos(zoo, tmp_path)), device="cpu")
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    assert bos_facts(model).bos_id is None and bos_facts(model).prepends is False  # it was made without one


def test_what_cannot_be_known_is_said(zoo: Path, tmp_path: Path) -> None:
    model = TransformerBridge.boot_transformers(str(without_bos(zoo, tmp_path)), device="cpu")
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    del model.tokenizer.init_kwargs["bos_token"]
    batch = tokenize(model, "abc")
    assert real(batch) == [[A, B, C]] and batch.bos_id is None
    assert "No BOS was prepended because it is not known whether the tokenizer has one" in batch.statement
    with pytest.raises(InputError, match="and here it is not known"):
        tokenize(model, "abc", bos="yes")


def test_a_bos_of_its_own_is_one(zoo: Path) -> None:
    facts = bos_facts(boot("llama", zoo))
    assert facts.bos_id == BOS and facts.prepends is False and "does not prepend one" in facts.why


# ------------------------------------------------------------------ models as people have them
def test_a_hugging_face_model_gives_the_numbers_of_its_checkpoint_and_stays_as_it_is(
    zoo: Path, rows: list[list[int]]
) -> None:
    path = checkpoint("llama", zoo)
    model = LlamaForCausalLM.from_pretrained(path, attn_implementation="sdpa").eval()
    names, config = [name for name, _ in model.named_modules()], copy.deepcopy(model.config.to_dict())
    before = model(torch.tensor(rows[:1])).logits
    expected = scan(str(path), tokens=rows, maps=0).sinks.to_dataframe()
    for tokenizer in (byte_tokenizer(), str(path), path, None):
        census = scan(model, tokens=rows, maps=0, tokenizer=tokenizer)
        torch.testing.assert_close(
            torch.tensor(census.sinks.to_dataframe()["importance"].to_numpy()),
            torch.tensor(expected["importance"].to_numpy()),
        )
    assert census.meta["model"]["origin"] == "a LlamaForCausalLM in memory, given by the caller"
    assert census.meta["model"]["path"] is None
    assert [name for name, _ in model.named_modules()] == names and model.config.to_dict() == config
    assert model.config._attn_implementation == "sdpa" and torch.equal(model(torch.tensor(rows[:1])).logits, before)


def test_a_given_tokenizer_decides_about_the_bos_and_stays_as_it_is(zoo: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    model = as_bridge(boot_hf("llama", zoo), tokenizer=tokenizer)
    assert tokenize(model, "abc").statement == "The tokenizer has no BOS token, so none was prepended."
    assert tokenizer.bos_token is None
    source = source_of(model)
    assert source is not None and source.bos_id is None and not source.path


def test_a_model_without_tokenizer_takes_ids(zoo: Path, rows: list[list[int]]) -> None:
    hf = copy.deepcopy(boot_hf("llama", zoo))
    hf.config._name_or_path = hf.name_or_path = ""
    assert len(scan(hf, tokens=rows, maps=0).heads.to_dataframe())
    with pytest.raises(InputError, match="no tokenizer, so text cannot be used"):
        scan(hf, "abc" * 9)


def test_workers_cannot_load_a_model_in_memory(zoo: Path, rows: list[list[int]]) -> None:
    with pytest.raises(InputError, match="Workers load the model themselves"):
        sweep(boot_hf("llama", zoo), "zero", tokens=rows, heads=["L0H0"], executor="processes:2")


def test_a_path_is_a_model(zoo: Path, rows: list[list[int]]) -> None:
    path = checkpoint("llama", zoo)
    assert len(scan(path, tokens=rows, maps=0).heads.to_dataframe()) == 8
    assert len(sweep(path, "zero", tokens=rows, heads=["L0H0"], controls=1).ranking()) == 1


def test_adapters_must_be_merged(zoo: Path) -> None:
    class PeftModelForCausalLM(torch.nn.Module):
        pass

    PeftModelForCausalLM.__module__ = "peft.peft_model"
    with pytest.raises(InputError, match=r"holds adapters .*merge_and_unload\(\)"):
        scan(PeftModelForCausalLM())  # type: ignore[arg-type]

    class Linear(torch.nn.Linear):
        pass

    Linear.__module__ = "peft.tuners.lora.layer"
    inside = copy.deepcopy(boot_hf("llama", zoo))
    inside.model.layers[0].mlp.up_proj = Linear(32, 48)
    with pytest.raises(InputError, match="LlamaForCausalLM holds adapters"):
        scan(inside)


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda hf: torch.nn.DataParallel(hf), "pass the model inside, its .module"),
        (lambda hf: torch.compile(hf), "pass the model that was compiled, model._orig_mod"),
    ],
)
def test_wrapped_models_are_named(wrap: Callable[[Any], Any], words: str, zoo: Path) -> None:
    with pytest.raises(InputError, match=words):
        scan(wrap(boot_hf("llama", zoo)))


def test_what_is_no_decoder_is_refused(zoo: Path) -> None:
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 50,
    }
    bert = BertForMaskedLM(BertConfig(**small)).eval()
    t5 = T5ForConditionalGeneration(
        T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, vocab_size=50)
    ).eval()
    headless = LlamaModel(boot_hf("llama", zoo).config).eval()
    for model in (bert, t5, headless):
        with pytest.raises(SinkLensError, match=f"{type(model).__name__} is no text decoder"):
            scan(model, tokens=[[5] * 20])


# ------------------------------------------------------------------ the state of torch and of the model
def test_training_mode_is_named(zoo: Path, rows: list[list[int]]) -> None:
    bridge, hf = boot.__wrapped__("llama", zoo), copy.deepcopy(boot_hf("llama", zoo))
    for model in (bridge, hf):
        model.train()
        with pytest.raises(InputError, match=r"training mode.*Call model.eval\(\) first"):
            scan(model, tokens=rows)
        model.eval()
    bridge.original_model.model.layers[1].train()
    for call in (
        lambda: scan(bridge, tokens=rows),
        lambda: capture(bridge, tokenize(bridge, rows)),
        lambda: measure_effects(bridge, {"a": AblateHeads(["L0H0"])}, rows),
        lambda: sweep(bridge, "zero", tokens=rows),
    ):
        with pytest.raises(InputError, match=r"training mode \(first in .*1"):
            call()


@pytest.mark.parametrize("state", ["float64", "bfloat16", "float16", "autocast", "meta device", "inference"])
def test_global_settings_of_torch_change_nothing(state: str, tiny: TransformerBridge, rows: list[list[int]]) -> None:
    expected = scan(tiny, tokens=rows)
    effects = measure_effects(tiny, {"a": AblateHeads(["L0H0"])}, rows)
    dtype = torch.get_default_dtype()
    try:
        if state in ("float64", "bfloat16", "float16"):
            torch.set_default_dtype(getattr(torch, state))
        if state == "meta device":
            torch.set_default_device("meta")
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=state == "autocast"),
            torch.inference_mode(state == "inference"),
        ):
            found = scan(tiny, tokens=rows)
            again = measure_effects(tiny, {"a": AblateHeads(["L0H0"])}, rows)
            assert torch.is_autocast_enabled("cpu") == (state == "autocast")
        if state in ("float64", "bfloat16", "float16"):
            assert torch.get_default_dtype() == getattr(torch, state)  # and it is the caller's again
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
    assert found.verdict == expected.verdict
    for name in ("sinks", "layers", "value_drains"):
        left, right = found.tables[name].select_dtypes("number"), expected.tables[name].select_dtypes("number")
        assert (left - right).abs().fillna(0).to_numpy().max() == 0, name
    assert again.to_dataframe().equals(effects.to_dataframe())


def test_nothing_is_said_of_nan(zoo: Path, rows: list[list[int]]) -> None:
    model, token = boot.__wrapped__("llama", zoo), rows[1][-1]
    model.original_model.get_input_embeddings().weight.data[token] = float("nan")
    sequence = next(index for index, row in enumerate(rows) if token in row)
    place = rf"in the embedding, first in sequence {sequence} at position {rows[sequence].index(token)} "
    with pytest.raises(InputError, match=place + r".*look for damaged weights"):
        text_scores(model, tokens=rows)
    model = boot.__wrapped__("llama", zoo)
    model.original_model.model.layers[1].mlp.down_proj.weight.data[3, 4] = float("nan")
    with pytest.raises(InputError, match=r"NaN or infinite logits for .* use intact weights"):
        text_scores(model, tokens=rows)


def test_float16_that_overflows_is_named(zoo: Path, rows: list[list[int]]) -> None:
    model = load(checkpoint("llama", zoo), device="cpu", dtype="float16")
    unusual = next(token for token in rows[2] if token not in rows[0] + rows[1])
    model.original_model.get_input_embeddings().weight.data[unusual] *= 1e8  # beyond 65,504
    with pytest.raises(InputError, match=r"in the embedding, first in sequence 2 .*load the model with bfloat16"):
        text_scores(model, tokens=rows)


def test_loading_does_not_depend_on_the_default_dtype(zoo: Path, rows: list[list[int]]) -> None:
    expected = scan(load(checkpoint("llama", zoo), device="cpu"), tokens=rows, maps=0).sinks.to_dataframe()
    torch.set_default_dtype(torch.float64)
    try:
        found = scan(load(checkpoint("llama", zoo), device="cpu"), tokens=rows, maps=0).sinks.to_dataframe()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.equals(expected)


# ------------------------------------------------------------------ files
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_wide_encodings_are_named(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("Once upon a time there was a caf\u00e9 by the sea.\n" * 3, encoding=encoding)
    with pytest.raises(
        InputError, match=rf"is {encoding[:6].upper()}\w* text; .*UTF-8.*iconv -f {encoding[:6].upper()}"
    ):
        read_text(str(file))


@pytest.mark.parametrize(
    "content", [bytes(range(256)) * 4, b"PK\x03\x04" + bytes(40) + b"word/document.xml", b"ab\0cd"]
)
def test_what_is_binary_is_called_so(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "book.docx"
    file.write_bytes(content)
    with pytest.raises(InputError, match="is a binary file"):
        read_text(str(file))


# ------------------------------------------------------------------ long texts
def test_a_long_text_is_split_and_everything_is_accounted_for(tiny: TransformerBridge) -> None:
    text = "abcdefghij" * 700
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        census = scan(tiny, text, max_tokens=64, maps=0)
    tokens = census.meta["tokens"]
    assert tokens["n_sequences"] == 100  # of 109 and a piece of 24 tokens
    assert tokens["n_tokens"] + tokens["dropped"] == len(text)
    assert tokens["unused"]["undrawn_sequences"] == 9 and tokens["unused"]["remainders"] == 24
    assert (
        "Measured 100 of 109 sequences. Not used: 576 tokens of 9 sequences that max_sequences left out; 24 tokens of "
        "last pieces shorter than half a sequence." in census.meta["warnings"]
    )


def test_sequences_are_drawn_from_the_whole_text(tiny: TransformerBridge) -> None:
    text = "".join(chr(97 + n // 400) for n in range(26 * 400))  # 400 x a, 400 x b, ...
    first, again, other = (scan(tiny, text, max_tokens=40, max_sequences=20, seed=n, maps=0) for n in (0, 0, 1))
    seen = [found.tokens.to_dataframe()["token"].tolist() for found in (first, again, other)]
    assert seen[0] == seen[1] != seen[2]
    assert len({*seen[0]}) > 8 and max(seen[0]) > "t" and seen[0] == sorted(seen[0])


def test_what_tokenize_cuts_off_it_says(tiny: TransformerBridge) -> None:
    with pytest.warns(UserWarning, match="372 tokens beyond the longest sequence of 128 are cut off; split=True keeps"):
        batch = tokenize(tiny, "a" * 500)
    assert batch.unused.cut == 500 - N_CTX == batch.dropped
