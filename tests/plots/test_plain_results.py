"""Every registered figure draws the result that it is named after, as a plain call makes it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
import transformers

import sinklens
import sinklens.plots
from sinklens.detectors import measure
from sinklens.interventions import MaskKeys
from sinklens.models.as_bridge import as_bridge
from sinklens.models.tokens import TokenBatch
from sinklens.passes.corpus import builtin_corpus
from sinklens.plots.draws import CENSUS, FIGURES, SWEEP
from sinklens.studies import (
    GateSettings,
    RankingTask,
    choose_gamma,
    classification_task,
    compare_policies,
    compare_pooling,
    explain_sinks,
    find_active_dormant,
    find_conflict_heads,
    find_extreme_tokens,
    find_roles,
    find_span_heads,
    find_super_experts,
    follow_generation,
    inject_tokens,
    learn_gates,
    make_needles,
    measure_dynamics,
    measure_effects,
    measure_needles,
    near_far_costs,
    patch_paths,
    rank_documents,
    trace_massive,
    trace_recall,
)
from sinklens.studies.conflict_heads.run import ConflictPrompt
from tests.families import byte_tokenizer
from tests.plots.scored import task_scores
from tests.studies.test_factual_recall import facts, planted
from tests.studies.test_span_heads import tasks as span_tasks

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # small runs say that they are small
    pytest.mark.xdist_group("plain_results"),  # the results are made once
]
assert sinklens.plots.sink_heatmap  # every figure has registered itself
REGISTERED = sorted(name for name, figure in FIGURES.items() if figure.of)


@cache
def model() -> Any:
    return sinklens.load("bb-1l")


@cache
def tokens() -> TokenBatch:
    return builtin_corpus(model(), n_sequences=6).tokens


def calibrated() -> Any:
    prompts = builtin_corpus(model(), n_sequences=8).tokens
    return choose_gamma(model(), classification_task(model(), prompts, [5, 6], [0, 1] * 4), controls=2)


def needled(model: Any) -> Any:
    return measure_needles(model, make_needles(model, lengths=[48], repeats=1))


def mixture() -> Any:
    """A tiny mixture of experts, random as it comes."""
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return as_bridge(transformers.MixtralForCausalLM(config).eval())


def patched() -> Any:
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12]]
    return patch_paths(
        "induction-2l", prompts, [[5, 6, 7, 9], [9, 10, 11, 8]], [20, 21], [30, 31], receivers=["logits"]
    )


def conflicts() -> Any:
    prompts = [ConflictPrompt([5 + at, 6, 7, 8], 20, 21, 22) for at in range(4)]
    return find_conflict_heads(model(), prompts, top=1, controls=1)


def recalled() -> Any:
    return trace_recall(
        as_bridge(planted(), tokenizer=byte_tokenizer()), facts(), controls=0
    )  # a model that knows some


MAKERS: dict[str, Callable[[], Any]] = {
    CENSUS: lambda: sinklens.scan(model(), tokens=tokens()),
    SWEEP: lambda: sinklens.sweep(model(), "zero", tokens=tokens(), ranking="own", controls=3),
    "sinklens-effects": lambda: measure_effects(model(), {"no sink": MaskKeys(0)}, tokens()),
    "sinklens-needles": lambda: needled(sinklens.load("induction-2l")),
    "sinklens-roles": lambda: find_roles(
        "induction-2l",
        scores=("retrieval", "pattern", "sinks"),
        max_sequences=2,
        options={"retrieval": {"repeats": 1, "lengths": [48]}},
    ),
    "sinklens-sink-causes": lambda: explain_sinks(model(), tokens=tokens(), controls=0, donors=False, top=2),
    "sinklens-generation": lambda: follow_generation("tiny-llama", "Once upon a time", max_new_tokens=3),
    "sinklens-extreme-tokens": lambda: find_extreme_tokens("tiny-llama", absolute=0, ratio=20, max_sequences=2),
    "sinklens-factual-recall": recalled,
    "sinklens-injection": lambda: inject_tokens("tiny-llama", places=["middle"], draws=1, max_sequences=2),
    "sinklens-near-far": lambda: near_far_costs(model(), ["L0H0"], tokens=tokens(), window=4, controls=0),
    "sinklens-pooling": lambda: compare_pooling("tiny-llama", layers=[1], poolings=["mean", "sink_free"]),
    "sinklens-span-heads": lambda: find_span_heads("induction-2l", span_tasks(4), top=2, controls=0),
    "sinklens-massive-sources": lambda: trace_massive("tiny-llama", max_sequences=2),
    "sinklens-document-ranking": lambda: rank_documents(
        "induction-2l", tasks=[RankingTask([[5, 6, 7], [8, 9, 10]], [8, 9, 10], 1)]
    ),
    "sinklens-path-patching": patched,
    "sinklens-conflict-heads": conflicts,
    "sinklens-super-experts": lambda: find_super_experts(mixture(), tokens=[[1, 2, 3, 4, 5, 6]], controls=1),
    "sinklens-streaming-gates": lambda: learn_gates(
        sinklens.load("induction-2l"), GateSettings(steps=1, sinks=1, recent=4, min_length=32, max_length=40, batch=2)
    ),
    "sinklens-task-scores": task_scores,
    "sinklens-policies": lambda: compare_policies(model(), ["sink_window", "h2o"], tokens=tokens(), budgets=[8]),
    "sinklens-active-dormant": lambda: find_active_dormant(model(), max_sequences=3),
    "sinklens-calibration": calibrated,
    "sinklens-dynamics": lambda: measure_dynamics("tiny-llama", steps=[0, 8000], max_sequences=2),
}  # fmt: skip
SPECIAL: dict[str, Callable[[], Any]] = {
    "compression": lambda: sinklens.scan(model(), tokens=tokens(), detectors=["compression"]),
    "domain_differences": lambda: sinklens.scan(model(), {"a": tokens().rows([0, 1]), "b": tokens().rows([2, 3])}),
}
"""What a plain call leaves out, because it is slow or about texts of several kinds."""


@cache
def made(kind: str) -> Any:
    return (MAKERS | SPECIAL)[kind]()


def test_every_kind_of_result_is_made_here() -> None:
    assert {*MAKERS} == {kind for figure in FIGURES.values() for kind in figure.of}
    # the others draw a probe's table, which no result holds
    assert {name for name, figure in FIGURES.items() if not figure.of} <= {
        "sink_emergence",
        "role_growth",
        "token_classes",
    }


@pytest.mark.parametrize("name", REGISTERED)
def test_a_figure_draws_a_plain_result_and_completion_lists_it(name: str) -> None:
    for kind in FIGURES[name].of:
        result = made(name if name in SPECIAL else kind)
        drawn = getattr(sinklens.plots, name)(result)
        assert drawn if isinstance(drawn, str) else drawn.data or "Not " in drawn.layout.annotations[0].text
        if hasattr(result, "plot"):  # small results without tables have none
            assert name in dir(result.plot)
            again = getattr(result.plot, name)()
            assert isinstance(again, str) or again.to_json() == drawn.to_json()


@pytest.mark.parametrize("name", ["state_norms", "lifecycle", "massive_map"])
def test_a_measurement_is_drawn_as_a_scan_is(name: str) -> None:
    table = "channel_profile" if name == "massive_map" else name
    drawn: go.Figure = getattr(sinklens.plots, name)(measure(model(), tokens(), table))
    assert drawn.data and drawn.layout.title.text == getattr(sinklens.plots, name)(made(CENSUS)).layout.title.text
