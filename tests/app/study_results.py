"""A small result of every study whose report has parts, with something to say in each of them; made once a process."""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch

from sinklens.models.as_bridge import as_bridge
from sinklens.studies import (
    compare_pooling,
    explain_sinks,
    find_conflict_heads,
    find_extreme_tokens,
    find_span_heads,
    find_super_experts,
    follow_generation,
    inject_tokens,
    patch_paths,
    rank_documents,
    trace_massive,
)
from tests import families
from tests.passes.planted_sink import SINK, planted_sink, planted_super_weight, sink_ids
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
}


@cache
def made(kind: str) -> Any:
    """The result of a kind (its ``format``)."""
    return RESULTS[kind]()
