"""A small result of every study whose report has parts, with something to say in each of them; made once a process."""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch

from sinklens import load, tokenize
from sinklens.interventions import AblateHeads, MaskKeys
from sinklens.models.as_bridge import as_bridge
from sinklens.policies.h2o import H2O
from sinklens.policies.sink_window import SinkWindow
from sinklens.studies import (
    GateSettings,
    check_split,
    compare_policies,
    compare_pooling,
    explain_sinks,
    find_conflict_heads,
    find_extreme_tokens,
    find_roles,
    find_span_heads,
    find_super_experts,
    follow_generation,
    inject_tokens,
    learn_gates,
    make_needles,
    measure_effects,
    measure_needles,
    near_far_costs,
    patch_paths,
    rank_documents,
    run_causal_check,
    trace_massive,
    trace_recall,
)
from tests import families
from tests.passes.planted_sink import SINK, planted_sink, planted_super_weight, sink_ids
from tests.plots.scored import task_scores
from tests.studies import test_factual_recall as recall
from tests.studies.test_conflict_heads import planted, prompts
from tests.studies.test_pooling import massive, pairs
from tests.studies.test_span_heads import tasks
from tests.studies.test_super_experts import small


def _corpus() -> torch.Tensor:
    ids = sink_ids(9, 20)
    ids[3, 7] = ids[8, 0] = SINK
    return ids


def _generated() -> Any:
    ids = sink_ids(1, 30)[0].tolist()
    return follow_generation(planted_super_weight(), [[9, *ids[1:6]]], continuation=[*ids[6:11], SINK, *ids[11:]])


def _paths() -> Any:
    clean, corrupted = [[5, 6, 7, 8], [9, 10, 11, 12]], [[5, 6, 7, 9], [9, 10, 11, 8]]
    receivers = ["logits", "L1H0.k"]
    return patch_paths("induction-2l", clean, corrupted, [20, 21], [30, 31], receivers=receivers, heads=["L0H0"])


_TEXTS = torch.randint(4, 500, (5, 24), generator=torch.Generator().manual_seed(0))
_GATES = GateSettings(steps=2, sinks=1, recent=4, min_length=32, max_length=40, value_len=3, batch=2)


@cache
def _induction() -> Any:
    return load("induction-2l")


def _short_needles() -> Any:
    return make_needles(_induction(), lengths=[24], depths=[0.5], repeats=2, size=2)


def _split() -> Any:
    split = made("sinklens-streaming-gates").retrieval_heads(sparsity=0.75)
    return check_split(_induction(), split, _GATES, n_sequences=2, draws=5)


def _causal() -> Any:
    options: dict[str, Any] = {"ways": ["zero"], "controls": 2, "patching": True, "tokens": _TEXTS}
    return run_causal_check(_induction(), ["L1H0", "L1H1"], top=[1], needles=_short_needles(), **options)


def _policies() -> Any:
    rules = {"recent": SinkWindow(0, 5), "window": SinkWindow(1, 5), "h2o": H2O(3, 3)}
    needles = make_needles(load("tiny-llama"), lengths=[24], depths=[0.5], repeats=2, size=2)
    return compare_policies("tiny-llama", rules, tokens=_TEXTS, prompt=10, needles=needles)


RESULTS: Final[dict[str, Callable[[], Any]]] = {
    "sinklens-sink-causes": lambda: explain_sinks(planted_sink(), tokens=sink_ids(6, 20), controls=2, top=2),
    "sinklens-massive-sources": lambda: trace_massive(planted_super_weight(), tokens=sink_ids(6, 20)),
    "sinklens-generation": _generated,
    "sinklens-extreme-tokens": lambda: find_extreme_tokens(planted_super_weight(), tokens=_corpus()),
    "sinklens-document-ranking": lambda: rank_documents("induction-2l", tasks=tasks(4)),
    "sinklens-path-patching": _paths,
    "sinklens-conflict-heads": lambda: find_conflict_heads(
        as_bridge(planted(), tokenizer=families.byte_tokenizer()), prompts(), top=1, controls=2
    ),
    "sinklens-super-experts": lambda: find_super_experts(
        small("mixtral", (0, 2)), tokens=families.random_ids(6, 20), controls=1
    ),
    "sinklens-injection": lambda: inject_tokens(
        planted_sink(), tokens=sink_ids(6, 12), token=SINK, places=["middle"], draws=1
    ),
    "sinklens-pooling": lambda: compare_pooling(massive(12.0), pairs(), layers=[0, 1], draws=2),
    "sinklens-span-heads": lambda: find_span_heads("induction-2l", tasks(), top=2, controls=2),
    "sinklens-roles": lambda: find_roles(
        _induction(),
        scores=("retrieval", "pattern", "sinks"),
        max_sequences=4,
        max_tokens=24,
        options={"retrieval": {"lengths": [24], "repeats": 2}},
    ),
    "sinklens-causal-check": _causal,
    "sinklens-streaming-gates": lambda: learn_gates(_induction(), _GATES),
    "sinklens-split-check": _split,
    "sinklens-near-far": lambda: near_far_costs(_induction(), ["L1H2"], tokens=_TEXTS, window=4, controls=2),
    "sinklens-factual-recall": lambda: trace_recall(
        as_bridge(recall.planted(), tokenizer=families.byte_tokenizer()), recall.facts(), top=1, controls=2
    ),
    "sinklens-needles": lambda: measure_needles(
        _induction(), _short_needles(), interventions={"a": AblateHeads(["L1H0"]), "b: 1": MaskKeys(0)}, generate=2
    ),
    "sinklens-policies": _policies,
    "sinklens-effects": lambda: measure_effects(
        _induction(), {"no key 0": MaskKeys(0), "a: b": AblateHeads(["L0H0"])}, tokenize(_induction(), _TEXTS)
    ),
    "sinklens-task-scores": task_scores,
}


@cache
def made(kind: str) -> Any:
    """The result of a kind (its ``format``)."""
    return RESULTS[kind]()
