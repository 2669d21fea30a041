"""The built-in language model has the sink that its card says, on text it never saw; its untrained twin has none."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import sinklens
from sinklens.lab.language.figures import sink_heads
from sinklens.lab.language.measure import SinkFigures, sink_figures
from sinklens.lab.language.publish import TASK
from sinklens.lab.language.settings import LanguageSettings
from sinklens.lab.language.tokens import cut
from sinklens.lab.language.training import build_model
from sinklens.lab.report import read_measured
from sinklens.models.builtin import builtin_models, data_dir

FOLDER = data_dir() / "models" / "tiny-llama"
TOTAL = 16


def settings() -> LanguageSettings:
    return LanguageSettings(**json.loads((FOLDER / "recipe.json").read_text("utf-8"))["settings"])


def excerpt(name: str, length: int) -> torch.Tensor:
    """Rows of a built-in text, each behind a BOS."""
    from transformers import AutoTokenizer

    text = (data_dir() / "texts" / name).read_text("utf-8")
    ids = AutoTokenizer.from_pretrained(FOLDER)(text, add_special_tokens=False)["input_ids"]
    return cut(torch.tensor(ids), length, 100)[:, :-1]


def figures(folder: Path, text: str, length: int) -> SinkFigures:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return sink_figures(model, excerpt(text, length))


def test_it_is_listed_with_what_it_shows() -> None:
    model = builtin_models()["tiny-llama"]
    assert "heads rest on <s>" in model.shows and model.recipe["task"] == TASK
    assert model.recipe["parameters"] == sum(p.numel() for p in build_model(settings()).parameters())


def test_the_card_keeps_its_word_on_held_out_text() -> None:
    measured = read_measured(FOLDER)
    assert measured["prose.T64.sink_heads"] >= 0.2 * TOTAL and measured["prose.T256.sink_heads"] >= 1
    assert measured["prose.T64.max_over_median"] >= 50
    for domain in ("prose", "code"):
        assert measured[f"{domain}.loss"] < measured[f"{domain}.bigram_loss"] < measured[f"{domain}.unigram_loss"]
        assert measured[f"{domain}.T64.untrained_sink_heads"] == measured[f"{domain}.T256.untrained_sink_heads"] == 0


@pytest.mark.parametrize(("length", "least"), [(64, 0.2 * TOTAL), (256, 1)])
def test_the_sink_is_there_on_text_that_ships(length: int, least: float) -> None:
    found = figures(FOLDER, "shakespeare.txt", length)
    assert sink_heads(found) >= least and found.ratio >= 50


def test_the_untrained_twin_has_no_sink() -> None:
    first = FOLDER / "checkpoints" / "step-000000"
    for text in ("shakespeare.txt", "python.txt"):
        found = figures(first, text, 64)
        assert sink_heads(found) == 0 and found.ratio < 20
    twin = build_model(settings()).state_dict()
    stored = AutoModelForCausalLM.from_pretrained(first, dtype=torch.float32).state_dict()
    assert all(torch.equal(weight, twin[name].half().float()) for name, weight in stored.items())


def test_the_series_is_whole_and_small() -> None:
    recipe = json.loads((FOLDER / "recipe.json").read_text("utf-8"))
    assert [int(name[-6:]) for name in recipe["checkpoints"]] == list(settings().kept)
    for name in recipe["checkpoints"]:
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (FOLDER / name).iterdir()}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 40e6


def test_a_scan_finds_what_the_plain_measurement_finds() -> None:
    rows = excerpt("shakespeare.txt", 64)[:24]
    model = sinklens.load("tiny-llama", device="cpu")
    census = sinklens.scan(model, tokens=rows, maps=0)
    bos = census.sinks.to_dataframe().query("position == 0").sort_values(["layer", "head"])
    plain = sink_figures(AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32), rows)
    assert bos["importance"].tolist() == pytest.approx(plain.alpha.mean(0).flatten().tolist(), rel=1e-3)
    assert bos["sink_rate"].tolist() == pytest.approx(plain.rate.flatten().tolist(), abs=0.05)
