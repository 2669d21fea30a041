"""What can be measured about heads: each entry runs one measurement and gives its scores."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.detectors.active_dormant import ABLATION, MASS
from sinklens.detectors.base import Metric
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.measure import Measurement
from sinklens.detectors.registry import choose_detectors
from sinklens.detectors.sinks import EPS
from sinklens.detectors.sinks import METRIC as SINK_SCORE
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions.heads import Head
from sinklens.models.tokens import BosChoice, TokenBatch
from sinklens.passes.corpus import LENGTH, SEQUENCES
from sinklens.passes.sequences import without_short
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.active_dormant.result import ActiveDormant
from sinklens.studies.active_dormant.run import find_active_dormant
from sinklens.studies.census.joins import join_tables
from sinklens.studies.census.run import length_notes, scan, usable_sequences
from sinklens.studies.head_scores.head_importance import head_importance
from sinklens.studies.head_scores.heterogeneous_heads import heterogeneous_heads, offsets_pass
from sinklens.studies.head_scores.pattern_scores import pattern_scores
from sinklens.studies.head_scores.scoring_pass import ScoringPass
from sinklens.studies.head_scores.text_scores import text_pass, text_scores
from sinklens.studies.needles.answers import Keep
from sinklens.studies.needles.grid import score_needles
from sinklens.studies.needles.make import make_needles
from sinklens.studies.needles.retrieval_scores import Procedure, retrieval_scores
from sinklens.studies.streaming_split.run import learn_gates
from sinklens.studies.streaming_split.settings import GateSettings

SINK_DETECTORS = ("sinks", "value_drains")
SINK_EVIDENCE = ("sink_position", "sink_rate", "null", "ratio", "is_sink", "drain", "drain_wo")


@dataclass(frozen=True)
class Criterion:
    """One measurement of all heads.

    Attributes:
        name: What ``scores=`` and ``--scores`` call it.
        about: What it measures, in a few words.
        slow: Whether it takes much longer than a few forward passes; such a one runs only when it is named.
        on_texts: Whether it runs on the caller's texts (``texts``, ``bos``, ``max_tokens``, ``max_sequences``); the
            others make their own input.
        scores: The scores that count as criteria; others that it gives stand beside them as evidence.
        measure: From the model and the measurement's own options to scores.
        plan: From the model, chosen sequences, their source and how they were chosen to the pass that the measurement
            needs with its usual options, where it needs one and others may look at it, too.
        tokens: About how many tokens it runs through the model on its usual input, before any head is changed.
        by_head: How many it runs besides for every head of the model, half a forward pass each.
        usual: Of how many texts that is, where it runs on texts.
    """

    name: str
    about: str
    slow: bool
    on_texts: bool
    scores: tuple[str, ...]
    measure: Callable[..., HeadScores]
    tokens: int = 6_400
    by_head: int = 0
    usual: int = SEQUENCES
    plan: Callable[..., ScoringPass] | None = None

    def work(self, n_heads: int, n_tokens: int | None, *, all_texts: bool) -> float:
        """About how many tokens it runs through the model in all.

        Args:
            n_heads: Heads of the model.
            n_tokens: Tokens of the chosen texts, where there are some.
            all_texts: Whether it takes all of them, whatever it usually takes.
        """
        usual = LENGTH * self.usual
        mine = usual if n_tokens is None or not self.on_texts else n_tokens if all_texts else min(n_tokens, usual)
        return (self.tokens + self.by_head * n_heads / 2) * mine / usual

    def run(self, model: TransformerBridge, options: Mapping[str, Any], progress: Progress = SILENT) -> HeadScores:
        """Measure, with what :meth:`only_scores` says."""
        return self.only_scores(self.measure(model, **options, progress=progress))

    def only_scores(self, found: HeadScores) -> HeadScores:
        """Near copies of a score (other forms of it) are left out of ``metrics`` and stay in the table."""
        kept = {name: metric for name, metric in found.metrics.items() if name in self.scores}
        return HeadScores(found.frame, kept or found.metrics, found.meta)


def sink_scores(heads: pd.DataFrame, score: Metric, facts: Mapping[str, Any]) -> HeadScores:
    """Importance of each head's strongest key; the label needs a sink rate and twice the uniform null.

    The rate stands beside it as evidence: it saturates (many heads of a real model have 1.00) and ranks nothing.

    Args:
        heads: The table of a census.
        score: Definition of a sink's score.
        facts: Tokens, settings and warnings.

    Raises:
        UnsupportedArchitectureError: No layer of the model has softmax attention.
    """
    if heads.empty:
        raise UnsupportedArchitectureError("No layer of this model has softmax attention, so no head can be a sink.")
    metric = Metric("importance", score.version, score.definition, score.source)
    kept = [name for name in SINK_EVIDENCE if name in heads]
    frame = heads[["layer", "head", "importance", *kept]].rename(columns={"null": "sink_null", "ratio": "sink_ratio"})
    return HeadScores(frame, {"importance": metric}, facts)


def dormant_scores(found: ActiveDormant) -> HeadScores:
    """Mass on the sink and rise of the loss when the head is zeroed, on the first domain and token class.

    Columns beside the two scores: ``sink_null`` of the mass, the interval of the rise, and the ``label``.
    """
    table = found.to_dataframe()
    first = table.iloc[0]
    table = table[(table["domain"] == first["domain"]) & (table["class"] == first["class"])]
    names = {"mass": "sink_mass", "null": "sink_mass_null", "delta": "zero_ablation"}
    names |= {"delta_low": "zero_ablation_low", "delta_high": "zero_ablation_high"}
    frame = table.rename(columns=names)[["layer", "head", *names.values(), "by_ablation", "label"]]
    metrics = {"sink_mass": MASS, "zero_ablation": ABLATION}
    facts = {name: found.meta[name] for name in ("tokens", "settings", "warnings")}
    return HeadScores(frame.reset_index(drop=True), metrics, facts | {"on": f"{first['domain']}, {first['class']}"})


def _sinks(model: TransformerBridge, **options: Any) -> HeadScores:
    usual: dict[str, Any] = {"detectors": SINK_DETECTORS, "maps": 0}
    census = scan(model, **usual | options)
    facts = {name: census.meta[name] for name in ("tokens", "settings", "warnings")}
    return sink_scores(census.heads.to_dataframe(), SINK_SCORE, facts)


def _sinks_pass(model: TransformerBridge, batch: TokenBatch, source: str, **words: Any) -> ScoringPass:
    """The same numbers from a pass that others look at, too."""
    usable, skipped = usable_sequences(batch, EPS)
    if skipped:
        batch = without_short(batch, usable)

    def score(found: Measurement) -> HeadScores:
        facts = header(model, batch, source, tokens={"skipped": skipped})
        settings = {"detectors": [*SINK_DETECTORS], "eps": EPS, **words}
        told = {"tokens": facts["tokens"], "settings": settings, "warnings": length_notes(batch, EPS)}
        return sink_scores(join_tables(found.tables)["heads"], SINK_SCORE, told)

    return ScoringPass(batch, choose_detectors(SINK_DETECTORS, joined=True, eps=EPS), score)


def _task_kv(model: TransformerBridge, *, max_sequences: int | None = None, **options: Any) -> HeadScores:
    """On as many sequences as the others."""
    return heterogeneous_heads(model, max_sequences=max_sequences, **options)


def _offsets_pass(model: TransformerBridge, batch: TokenBatch, source: str, **_: Any) -> ScoringPass:
    return offsets_pass(model, batch, source)


def _active_dormant(model: TransformerBridge, **options: Any) -> HeadScores:
    return dormant_scores(find_active_dormant(model, **options))


def _retrieval(
    model: TransformerBridge,
    *,
    keep: Keep | None = None,
    procedure: Procedure = "teacher",
    progress: Progress = SILENT,
    **needles: Any,
) -> HeadScores:
    """Random needles; passkeys for a model with a tokenizer that answers no random needle (most language models)."""
    if keep is None and "kind" not in needles and model.tokenizer is not None:
        tried = make_needles(model, lengths=[48], depths=[0.5], repeats=4)
        if not score_needles(model, tried)["exact"].any():
            usual: dict[str, Any] = {"lengths": [256], "depths": [0.1, 0.5, 0.9]}
            try:
                passkeys = make_needles(model, "passkey", **usual | needles)
            except InputError:  # a vocabulary of other words
                passkeys = None
            if passkeys is not None:
                return retrieval_scores(model, passkeys, keep="share", procedure=procedure, progress=progress)
    keep = keep or "exact"
    return retrieval_scores(model, make_needles(model, **needles), keep=keep, procedure=procedure, progress=progress)


def _streaming(
    model: TransformerBridge,
    *,
    bos: BosChoice = "auto",
    progress: Progress = SILENT,
    **settings: Any,
) -> HeadScores:
    return learn_gates(model, GateSettings(**settings), bos=bos, progress=progress).heads


CRITERIA: Mapping[str, Criterion] = {
    each.name: each
    for each in (
        Criterion(
            "retrieval", "copies the answer of a needle (Wu et al.)", False, False, ("retrieval",), _retrieval, 8_500
        ),
        Criterion(
            "pattern",
            "previous, duplicate, induction and echo stripes on repeated tokens",
            False,
            False,
            ("previous_token", "duplicate_token", "induction", "echo", "razor_induction"),
            pattern_scores,
            2_100,
        ),
        Criterion(
            "sinks",
            "attention on one key (importance)",
            False,
            True,
            ("importance",),
            _sinks,
            plan=_sinks_pass,
        ),
        Criterion(
            "text",
            "entropy, distance and delimiters on text",
            False,
            True,
            ("entropy", "distance_without_sink", "delimiter_mass"),
            text_scores,
            plan=text_pass,
        ),
        Criterion(
            "task_kv",
            "heads whose output lies far from their layer's (Task-KV)",
            False,
            True,
            ("written_offset",),
            _task_kv,
            plan=_offsets_pass,
        ),
        Criterion("streaming", "DuoAttention's learned gates", True, False, ("streaming_gate",), _streaming, 400_000),
        Criterion(
            "importance",
            "write norm, AttentionInfluence, direct logit attribution",
            True,
            True,
            ("write_norm", "attention_influence", "direct_logit"),
            head_importance,
            4_100,
            2_050,
            32,
        ),
        Criterion(
            "active_dormant",
            "sink mass and zero ablation (Guo et al.)",
            True,
            True,
            ("sink_mass", "zero_ablation"),
            _active_dormant,
            12_800,
            12_800,
        ),
    )
}
"""All measurements by name, in the order of the table's columns."""

USUAL = tuple(name for name, each in CRITERIA.items() if not each.slow)
"""What runs unless the caller names others."""


def missing_scores(criterion: Criterion, heads: Iterable[Head], reason: str) -> HeadScores:
    """NaN for every head, in the place of scores that could not be measured."""
    frame = pd.DataFrame([*heads], columns=["layer", "head"]).assign(**dict.fromkeys(criterion.scores, math.nan))
    metrics = {name: Metric(name, 0, f"not measured: {reason}", "") for name in criterion.scores}
    return HeadScores(frame, metrics, {"failed": reason})
