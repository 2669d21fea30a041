"""The built-in induction model keeps the word of its card, measured again and by the rest of sinklens."""

import json
import math

import pytest
import torch
from transformers import LlamaForCausalLM

import sinklens
from sinklens.interventions import AblateHeads
from sinklens.lab.folders import read_recipe
from sinklens.lab.induction.measure import check_gates, gates, measure
from sinklens.lab.induction.publish import TASK
from sinklens.lab.induction.settings import InductionSettings
from sinklens.lab.report import read_measured
from sinklens.lab.streams import stream
from sinklens.lab.tasks import DistinctNeedle
from sinklens.lab.tasks.word_task import after_repeat
from sinklens.lab.tokenizer import words
from sinklens.models.builtin import builtin_models, data_dir
from tests.ties import same_figures

FOLDER = data_dir() / "models" / "induction-2l"
HEADS = [(1, head) for head in range(4)]


@pytest.fixture(scope="module")
def settings() -> InductionSettings:
    saved = read_recipe(FOLDER, TASK)
    assert saved is not None
    return InductionSettings(**saved)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(FOLDER).eval()


def test_it_is_listed_with_what_it_shows(settings: InductionSettings) -> None:
    entry = builtin_models()["induction-2l"]
    assert "4 of 8 heads are induction and retrieval heads" in entry.shows
    assert settings == InductionSettings() and entry.recipe["command"] == "sinklens lab train induction --out DIR"


def test_its_figures_pass_the_gates_and_are_what_is_measured_again(
    settings: InductionSettings, model: LlamaForCausalLM
) -> None:
    kept = read_measured(FOLDER)
    assert check_gates(kept) == []
    same_figures(measure(model, settings), kept, counted=("exact_match", "retrieval"))


def test_the_gates_hold_on_other_sequences_too(settings: InductionSettings, model: LlamaForCausalLM) -> None:
    measured = measure(model, settings, batch=48, seed=1)
    assert check_gates(measured) == []
    assert measured["retrieval_heads"] == measured["induction_heads"] == 4
    assert measured["exact_match.T512"] >= 0.75


def test_the_mlps_are_exactly_zero(model: LlamaForCausalLM) -> None:
    weights = [weight for name, weight in model.named_parameters() if ".mlp." in name]
    assert len(weights) == 6 and not any(weight.any() for weight in weights)


def test_every_kind_of_word_is_found_as_a_key(model: LlamaForCausalLM) -> None:
    """The needle asked for is behind a word of the first, second, third or last quarter of the vocabulary."""
    needles = DistinctNeedle(seq_len=100).draw(160, generator=stream(0, "test"))
    with torch.no_grad():
        said = model(needles.ids[:, :-1]).logits[:, -8:].argmax(-1)
    right = (said == needles.ids[:, -8:]).all(-1)
    quarter = needles.ids[:, -9] // 128
    for part in range(4):
        assert (quarter == part).sum() >= 20 and right[quarter == part].double().mean() >= 0.9


@pytest.mark.parametrize("how", ["uniform", "zero"])
def test_through_the_engine_masking_all_retrieval_heads_leaves_no_answer(how: str) -> None:
    bridge = sinklens.load("induction-2l", device="cpu")
    ids = DistinctNeedle(seq_len=67).sample(64, generator=stream(0, "test"))

    def exact() -> float:
        with torch.no_grad():
            said = bridge(ids[:, :-1])[:, -8:].argmax(-1)
        return (said == ids[:, -8:]).all(-1).double().mean().item()

    assert exact() >= 0.9
    with AblateHeads(HEADS, how=how)(bridge):  # type: ignore[arg-type]
        assert exact() < 0.05
    with AblateHeads(HEADS[:1], how=how)(bridge):  # type: ignore[arg-type]
        assert 0.3 < exact() < 1.0
    assert exact() >= 0.9


def test_several_seeds_stand_behind_every_gate() -> None:
    seeds = json.loads((FOLDER / "seeds.json").read_text("utf-8"))
    assert list(seeds) == ["0", "1", "2", "3", "4"]
    measured, card = read_measured(FOLDER), (FOLDER / "README.md").read_text("utf-8")
    for gate in gates(measured):
        values = [figures[gate.quantity] for figures in seeds.values()]
        assert seeds["0"][gate.quantity] == pytest.approx(measured[gate.quantity])
        assert f"{min(values):.3g} .. {max(values):.3g} |" in card
    for figures in seeds.values():
        assert check_gates(figures) == []


def test_a_scan_reads_its_own_task() -> None:
    model = sinklens.load("induction-2l", device="cpu")
    corpus = sinklens.builtin_corpus(model, n_sequences=20)
    ids = corpus.tokens.ids
    assert "induction, the model's own task" in corpus.source and ids.shape == (20, 64)
    assert (ids[:, 0] == 512).all() and corpus.tokens.bos_added_by == "sinklens"
    repeated = after_repeat(ids)
    assert repeated.any(1).all()
    with torch.no_grad():
        right = model(ids).argmax(-1)[:, :-1] == ids[:, 1:]
    assert right[repeated[:, :-1]].double().mean() > 0.98
    census = sinklens.scan(model, tokens=ids, maps=0)
    assert len(census.sinks.to_dataframe().query("position == 0")) == 8


def test_the_corpus_says_how_it_was_drawn_and_is_spelled_in_the_models_words() -> None:
    content = json.loads((data_dir() / "texts" / "induction.json").read_text("utf-8"))
    vocabulary = set(words(512))
    assert len(content["texts"]) == 200 and "seed 20261121" in content["about"]
    for text in content["texts"]:
        assert len(text.split()) == 127 and vocabulary.issuperset(text.split())


def test_it_is_complete_and_small() -> None:
    config = json.loads((FOLDER / "config.json").read_text("utf-8"))
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["intermediate_size"]) == (2, 4, 1)
    assert config["max_position_embeddings"] == 512 and not math.isnan(config["rms_norm_eps"])
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_500_000
