"""Every public function and figure with each argument in turn as it cannot be: one sentence that names the argument."""

import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sinklens import detectors, load, studies, tokenize
from sinklens.detectors import registry
from sinklens.errors import SinkLensError
from sinklens.interventions import CalibrateSinks, MaskKeys
from sinklens.plots.draws import FIGURES
from sinklens.policies import make_policy
from sinklens.results.result import Result, open_result
from sinklens.studies.conflict_heads.run import ConflictPrompt
from sinklens.studies.streaming_split.split import Split
from tests import families


@pytest.fixture(autouse=True)
def _registry_as_before() -> Iterator[None]:
    """The right call of ``register`` adds a detector that other tests would find."""
    yield
    registry._BUILT_IN.pop("mine", None)


BAD = (None, [], "", -1, math.nan, "nonsense")
TAKEN: dict[str, tuple[Any, ...]] = {
    "answer": ("", "nonsense", -1, []), "effect": (-1,), "maps": ([],), "title": ("", "nonsense"),
    "head": ("",), "beside": ([],), "layer": (-1,), "budgets": ([],), "continuation": ("nonsense",),
    "definition": ("", "nonsense"), "documents": ([],), "exclude": ([],), "gold": (-1,), "name": ("", "nonsense"),
    "out": ("nonsense",), "positions": ([], ""), "prompt": ("", "nonsense", []), "question": ("", "nonsense", []),
    "roles": ([],), "rules": ([],), "sinks": ([],), "source": ("", "nonsense"), "summary": ([],),
    "texts": ("nonsense",), "to": (-1,), "topic": ("", "nonsense", -1), "units": ([],), "version": (-1,),
}  # fmt: skip
"""What can be right by the argument's name: any text, nothing more to do, or what is judged where it is used."""
NOT_RUN = ("evaluate_tasks", "measure_dynamics", "trace_recall")
"""Their right calls are too long, or need an extra or a model that knows facts."""
ROOMS = ("", ".studies", ".interventions", ".policies", ".detectors")
SHORT = studies.GateSettings(steps=1, min_length=90, max_length=100, passkeys=2, value_len=4, lengths=1, batch=2)
H2O, TOVA = make_policy("h2o"), make_policy("tova")
IDS = torch.randint(3, 60, (4, 14), generator=torch.Generator().manual_seed(0))


@cache
def tiny() -> Any:
    """A layer with a head, and a vocabulary of 66 characters."""
    return load("bb-1l")


@pytest.fixture(scope="module", autouse=True)
def zoo_here(zoo: Path) -> None:
    """Where :func:`family` finds its models."""
    FAMILIES.append(zoo)


FAMILIES: list[Path] = []


def family(name: str) -> Any:
    return families.boot(name, FAMILIES[-1])


@cache
def batch() -> Any:
    return tokenize(tiny(), IDS)


@cache
def needles() -> Any:
    return studies.make_needles(tiny(), lengths=(20,), depths=(0.5,), repeats=2, size=2)


@cache
def scores() -> Any:
    return studies.pattern_scores(tiny(), block=8, repeats=2, n_sequences=1)


def task() -> Any:
    return studies.classification_task(tiny(), batch(), ["a", "b"], [0, 1, 0, 1])


def cut(start: int = 0, stop: int = 14) -> list[list[int]]:
    return IDS[:, start:stop].tolist()


def ranking() -> list[Any]:
    return [studies.RankingTask([row[:3], row[3:6]], row[6:8], 0, row[8:9]) for row in cut()]


CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "load": lambda: {"name_or_path": "bb-1l"},
    "open": lambda: {"directory": "tests/data/smollm2"},
    "builtin_corpus": lambda: {"model": tiny(), "n_sequences": 2, "length": 12},
    "tokenize": lambda: {"model": tiny(), "texts": ["abc"]},
    "scan": lambda: {"model": tiny(), "tokens": batch(), "max_sequences": 2, "detectors": ["sinks"]},
    "sweep": lambda: {
        "model": tiny(),
        "tokens": batch(),
        "heads": ["L0H0"],
        "controls": 0,
    },
    "attention_influence": lambda: {"model": tiny(), "heads": ["L0H0"], "batch": batch()},
    "check_split": lambda: {
        "model": tiny(),
        "split": Split(((0, 0),), (), 1, 0.5, None, (), "All."),
        "length": 100,
        "n_sequences": 2,
        "draws": 1,
        "settings": SHORT,
    },
    "choose_gamma": lambda: {"model": tiny(), "task": task(), "gammas": (0.5,), "controls": 1},
    "circuit_overlap": lambda: {"first": ["L0H0"], "second": ["L0H0"], "n_heads": 4},
    "classification_task": lambda: {"model": tiny(), "prompts": batch(), "labels": ["a", "b"], "answers": [0, 1, 0, 1]},
    "compare_policies": lambda: {"model": tiny(), "policies": ["h2o"], "tokens": batch(), "budgets": [4]},
    "compare_pooling": lambda: {
        "model": tiny(),
        "pairs": [(a, b) for a, b in zip(cut(0, 4), cut(4, 9), strict=True)],
        "draws": 1,
    },
    "copying_scores": lambda: {"model": tiny(), "n_tokens": 10},
    "evaluate_tasks": lambda: {
        "model": "tiny-llama",
        "tasks": ["tests/studies/evaluation/capitals.jsonl"],
        "limit": 1,
        "controls": 0,
    },
    "explain_sinks": lambda: {"model": tiny(), "tokens": batch(), "controls": 1, "top": 1},
    "filter_heads": lambda: {"model": tiny(), "task": task(), "intervention": CalibrateSinks(), "controls": 1},
    "find_active_dormant": lambda: {"model": tiny(), "texts": {"a": batch()}},
    "find_conflict_heads": lambda: {
        "model": tiny(),
        "prompts": [ConflictPrompt(row[:-3], *row[-3:]) for row in cut()],
        "top": 1,
        "controls": 1,
    },
    "find_extreme_tokens": lambda: {"model": tiny(), "tokens": batch()},
    "find_roles": lambda: {"model": tiny(), "scores": ["sinks"], "max_tokens": 12, "max_sequences": 2},
    "find_span_heads": lambda: {"model": family("llama"), "tasks": ranking(), "top": 1, "controls": 0},
    "find_super_experts": lambda: {"model": family("mixtral"), "tokens": IDS[:1], "controls": 1},
    "follow_generation": lambda: {"model": tiny(), "prompt": "abc", "max_new_tokens": 2},
    "follow_sinks": lambda: {"model": tiny(), "batch": batch(), "bound": 1},
    "head_importance": lambda: {"model": tiny(), "tokens": batch()},
    "heterogeneous_heads": lambda: {"model": tiny(), "tokens": batch()},
    "inject_tokens": lambda: {"model": tiny(), "tokens": batch(), "token": 64, "places": ["start"], "draws": 1},
    "learn_gates": lambda: {"model": tiny(), "settings": SHORT},
    "make_needles": lambda: {"model": tiny(), "lengths": (20,), "depths": (0.5,), "repeats": 1, "size": 2},
    "measure_dynamics": lambda: {"series": "tiny-llama", "texts": ["abcdefghijklm" * 3]},
    "measure_effects": lambda: {"model": tiny(), "interventions": {"a": MaskKeys(0)}, "batch": batch()},
    "measure_needles": lambda: {"model": tiny(), "needles": needles()},
    "near_far_costs": lambda: {"model": tiny(), "heads": ["L0H0"], "tokens": batch(), "window": 3, "controls": 1},
    "patch_paths": lambda: {
        "model": tiny(),
        "clean": IDS,
        "corrupted": IDS.flip(0),
        "correct": [5] * 4,
        "wrong": [6] * 4,
    },
    "pattern_scores": lambda: {"model": tiny(), "block": 8, "repeats": 2, "n_sequences": 1},
    "profile_heads": lambda: {"model": tiny(), "task": task(), "intervention": CalibrateSinks()},
    "rank_documents": lambda: {"model": tiny(), "tasks": ranking()[:2]},
    "razor_split": lambda: {"scores": scores()},
    "retrieval_scores": lambda: {"model": tiny(), "needles": needles()},
    "run_causal_check": lambda: {
        "model": tiny(),
        "ranking": ["L0H0"],
        "needles": needles(),
        "tokens": batch(),
        "controls": 1,
    },
    "score_needles": lambda: {"model": tiny(), "needles": needles()},
    "score_task": lambda: {"model": tiny(), "task": task()},
    "text_scores": lambda: {"model": tiny(), "tokens": batch()},
    "trace_massive": lambda: {"model": tiny(), "tokens": batch(), "controls": 1},
    "trace_recall": lambda: {"model": tiny(), "facts": [studies.Fact(row[:6], row[0], row[0] + 20) for row in cut()]},
    "control_entries": lambda: {"model": tiny(), "batch": batch(), "where": [(0, 1, 5)]},
    "find_sink_dims": lambda: {"model": load("bb-3l"), "batch": batch()},
    "massive_entries": lambda: {"model": tiny(), "batch": batch(), "absolute": 1, "ratio": 1},
    "mean_activations": lambda: {"model": tiny(), "batch": batch(), "where": [(0, 1, 5)]},
    "mean_outputs": lambda: {"model": tiny(), "batch": batch()},
    "mean_values": lambda: {"model": tiny(), "batch": batch()},
    "make_policy": lambda: {"text": "h2o", "keys": 4},
    "policies": dict,
    "measure": lambda: {"model": tiny(), "batch": batch(), "detectors": ["sinks"]},
    "register": lambda: {"kind": type("Mine", (detectors.Detector,), {"name": "mine"})},
    "Fact": lambda: {"prompt": "abc", "topic": "a", "answer": "b"},
    "GateSettings": dict,
    "RankingTask": lambda: {"documents": ["a", "b"], "question": "c"},
    "NeedleSet": lambda: {"instances": needles().instances},
    "AblateHeads": lambda: {"heads": ["L0H0"]},
    "CalibrateSinks": dict,
    "CompensatedWindow": lambda: {"window": 3},
    "EditValues": lambda: {"keys": 0},
    "FollowGaze": lambda: {"span": 2, "question": 3},
    "MaskKeys": lambda: {"keys": 0},
    "PaintScores": lambda: {"span": 2},
    "RedistributeAttention": lambda: {"target": 3, "sinks": 0},
    "ScaleHeads": lambda: {"heads": ["L0H0"]},
    "ScaleKeys": lambda: {"keys": 0, "gamma": 0.5},
    "SetActivations": lambda: {"where": [(0, 1, 5)]},
    "SlidingWindow": lambda: {"window": 3},
    "SteerAttention": lambda: {"span": 2},
    "ZeroWeights": lambda: {"weights": ["L0.down[0, 0]"]},
    "Both": lambda: {"parts": [H2O, TOVA]},
    "Either": lambda: {"parts": [H2O, TOVA]},
    "Then": lambda: {"parts": [H2O, TOVA]},
    "HeadMap": lambda: {"heads_to_policy": {"L0H0": H2O}},
    "LayerMap": lambda: {"layers_to_policy": {0: H2O}},
    "Phase": lambda: {"prefill": H2O},
    "Protect": lambda: {"policy": H2O},
    "HeadScores": lambda: {"frame": scores().to_dataframe(), "metrics": {}},
    "Metric": lambda: {"name": "a", "version": 1, "definition": "b", "source": "c"},
}
"""The smallest right call of each; a new name needs one."""


def public() -> dict[str, Any]:
    """What can be called, by name. Results are made by the others, and by these alone the rest is not made by users."""
    found: dict[str, Any] = {}
    for room in ROOMS:
        module = importlib.import_module(f"sinklens{room}")
        found |= {name: getattr(module, name) for name in module.__all__}
    inner = {"Account", "Detector", "Intervention", "MassiveEntries", "Measurement", "Policy", "TokenBatch", "View"}
    kinds = {name for name, each in found.items() if inspect.isclass(each) and issubclass(each, Result | SinkLensError)}
    return {name: each for name, each in found.items() if callable(each) and name not in inner | kinds}


@cache
def called(name: str) -> Any:
    """What the right call gives."""
    return public()[name](**CALLS[name]())


def taken(name: str, value: Any, parameter: inspect.Parameter) -> bool:
    """Whether there is nothing to say about a value of an argument of this name."""
    return (
        value is parameter.default
        or (value is None and "None" in str(parameter.annotation))
        or any(value is each or (type(each) is type(value) and each == value) for each in TAKEN.get(name, ()))
    )


def complaints(function: Callable[..., Any], right: dict[str, Any], names: list[str]) -> list[str]:
    """Bad values that went through, or ended in another error."""
    wrong, parameters = [], inspect.signature(function).parameters
    for name, value in ((name, value) for name in names for value in BAD):
        if taken(name, value, parameters[name]):
            continue
        try:
            function(**{**right, name: value})
            wrong.append(f"{name}={value!r} was taken")
        except SinkLensError:
            pass
        except Exception as error:
            wrong.append(f"{name}={value!r}: {type(error).__name__}: {error}")
    return wrong


def test_every_public_function_has_a_right_call() -> None:
    assert public().keys() == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_argument_is_told_in_a_sentence(name: str) -> None:
    if name not in NOT_RUN:
        called(name)
    function = public()[name]
    assert complaints(function, CALLS[name](), [*inspect.signature(function).parameters]) == []


def test_a_bad_option_of_a_figure_is_told_in_a_sentence() -> None:
    results = [open_result("tests/data/smollm2")]
    results += [called(name) for name in CALLS if name not in NOT_RUN]
    wrong = []
    for name, figure in FIGURES.items():
        result = next((each for each in results if figure.can_draw(each)), None)
        first, *options = inspect.signature(figure.draw).parameters
        wrong += [f"{name}: {each}" for each in complaints(figure.draw, {}, [first])]
        right = "" if result is None else figure.draw(result)  # a table is text
        if getattr(right, "data", right):
            wrong += [f"{name}: {each}" for each in complaints(figure.draw, {first: result}, options)]
    assert wrong == []
