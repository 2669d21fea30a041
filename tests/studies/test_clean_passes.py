"""How often each command runs a text through the unchanged model: once, but for the exceptions stated here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load, scan, sweep, tokenize
from sinklens.attention import plan_for
from sinklens.interventions import MaskKeys
from sinklens.studies import make_needles, measure_effects, retrieval_scores
from sinklens.studies.ablation import layout
from sinklens.studies.active_dormant.run import find_active_dormant
from sinklens.studies.census.domains import Domains, choose_domains
from sinklens.studies.dynamics.measure import measure_checkpoint
from sinklens.studies.head_roles.run import find_roles
from tests import families
from tests.studies.clean_passes import CleanPasses, watched

BATCH = families.random_ids(3, 20)
ONCE: dict[str, Callable[[TransformerBridge], Any]] = {
    "scan": lambda model: scan(model, tokens=BATCH),
    "effects": lambda model: measure_effects(model, {"a": MaskKeys(0), "b": MaskKeys(1)}, tokenize(model, BATCH)),
    "sweep": lambda model: sweep(model, "zero", tokens=BATCH, batch_size=2),
    "sweep two ways": lambda model: sweep(model, ["zero", "uniform"], tokens=BATCH),
    "roles by text": lambda model: find_roles(
        model, texts=[BATCH_TEXT], scores=["sinks", "text", "task_kv"], max_tokens=20
    ),
    "active-dormant": lambda model: find_active_dormant(model, [BATCH_TEXT], max_tokens=20),
    "checkpoint": lambda model: measure_checkpoint(model, in_domains(model), eps=0.3),
}


def in_domains(model: TransformerBridge) -> Domains:
    return choose_domains(model, {"one": [BATCH_TEXT]}, split=True, max_tokens=20, max_sequences=4)


BATCH_TEXT = "It was the best of times, it was the worst of times. " * 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    found = load(families.build_checkpoint("llama", Path(tmp_path_factory.mktemp("clean"))))
    plan_for(found)  # the engine compares itself with the bridge once for every model
    return found


def most(model: TransformerBridge, call: Callable[[TransformerBridge], Any]) -> tuple[int, int]:
    with watched(CleanPasses(model)) as passes:
        call(model)
    counts = passes.counts()
    return max(counts.values()), sum(counts.values())


@pytest.mark.parametrize("name", ONCE)
def test_each_text_runs_once(name: str, model: TransformerBridge) -> None:
    assert most(model, ONCE[name])[0] == 1


def test_a_mean_takes_one_pass_more(model: TransformerBridge) -> None:
    """What a head is replaced with is its mean over all texts, so all of them run before the first is changed.

    To go on from that pass, the states of every text would have to be kept until then.
    """
    assert most(model, lambda each: sweep(each, ["mean", "zero"], tokens=BATCH))[0] == 2


def test_the_own_ranking_takes_one_pass_more(model: TransformerBridge) -> None:
    """It is known when every text was swept, and what was kept of the first is gone by then."""
    assert most(model, lambda each: sweep(each, "zero", tokens=BATCH, ranking="own", top=[2], controls=2))[0] == 2


def test_parts_of_a_sweep_share_a_pass(model: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CLEAN_PASSES", 1)
    monkeypatch.setattr(layout, "PART_SECONDS", 0.0)
    found: list[Any] = []
    call = lambda each: found.append(sweep(each, ["zero", "uniform"], tokens=BATCH, batch_size=2))  # noqa: E731
    assert most(model, call)[0] == 1
    assert found[0].meta["settings"]["passes"] == 1 and found[0].meta["settings"]["chunk"] == 2


def test_needles_run_once(model: TransformerBridge) -> None:
    needles = make_needles(model, lengths=(48,), depths=(0.5,), repeats=2)
    assert most(model, lambda each: retrieval_scores(each, needles, keep="all"))[0] <= 1


def test_it_counts(model: TransformerBridge) -> None:
    assert most(model, lambda each: (each(BATCH), each(BATCH[:1]))) == (2, 4)
