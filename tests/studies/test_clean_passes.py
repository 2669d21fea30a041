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
from sinklens.studies.active_dormant.run import find_active_dormant
from sinklens.studies.census.domains import choose_domains
from sinklens.studies.dynamics.measure import measure_checkpoint
from sinklens.studies.head_roles.run import find_roles
from tests import families
from tests.studies.clean_passes import CleanPasses, watched

BATCH = families.random_ids(3, 20)
ONCE: dict[str, Callable[[TransformerBridge], Any]] = {
    "scan": lambda model: scan(model, tokens=BATCH),
    "effects": lambda model: measure_effects(model, {"a": MaskKeys(0), "b": MaskKeys(1)}, tokenize(model, BATCH)),
    "sweep": lambda model: sweep(model, "zero", tokens=BATCH, batch_size=2),
    "roles by text": lambda model: find_roles(model, texts=[BATCH_TEXT], scores=["text"], max_tokens=20),
}
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


def test_a_sweep_runs_once_for_each_way(model: TransformerBridge) -> None:
    """A pass goes on from a residual stream that is kept for one way alone; means take one pass more."""
    assert most(model, lambda each: sweep(each, ["zero", "uniform"], tokens=BATCH))[0] == 2
    assert most(model, lambda each: sweep(each, "mean", tokens=BATCH))[0] == 2


def test_a_checkpoint_runs_once_for_its_tables_and_once_for_its_loss(model: TransformerBridge) -> None:
    """The pass that is looked at makes logits of the last token alone."""
    domains = choose_domains(model, {"one": [BATCH_TEXT]}, split=True, max_tokens=20, max_sequences=4)
    assert most(model, lambda each: measure_checkpoint(each, domains, eps=0.3))[0] == 2


def test_active_dormant_runs_once_to_look_and_once_to_go_on_from(model: TransformerBridge) -> None:
    assert most(model, lambda each: find_active_dormant(each, [BATCH_TEXT], max_tokens=20))[0] == 2


def test_needles_run_once(model: TransformerBridge) -> None:
    needles = make_needles(model, lengths=(48,), depths=(0.5,), repeats=2)
    assert most(model, lambda each: retrieval_scores(each, needles, keep="all"))[0] <= 1


def test_it_counts(model: TransformerBridge) -> None:
    assert most(model, lambda each: (each(BATCH), each(BATCH[:1]))) == (2, 4)
