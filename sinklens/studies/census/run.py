"""The main job: all detectors on one pass over some texts, joined into a census."""

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import ReceivedMass, plan_for
from sinklens.attention.plan import AttentionPlan
from sinklens.capture import capture
from sinklens.capture.finite import NonFinite
from sinklens.capture.heap import ROWS, give_back
from sinklens.capture.memory import plan_memory
from sinklens.capture.run import Consumer
from sinklens.detectors.active_dormant import MASS
from sinklens.detectors.base import Detector
from sinklens.detectors.extreme_tokens import ExtremeTokenDetector
from sinklens.detectors.measure import measure
from sinklens.detectors.registry import choose_detectors, default_detectors
from sinklens.detectors.sinks import (
    EPS,
    EPS_SWEEP,
    MIN_QUERIES,
    MIN_SHARE,
    SINK_HEAD_RATE,
    SINK_HEAD_RATIO,
    SinkDetector,
    shortest_length,
    uniform_importance,
)
from sinklens.errors import InputError
from sinklens.interventions import Intervention
from sinklens.models.architecture import norm_after_attention, quantised_layers
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.given_ids import is_encoding
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.sequences import choose_sequences, without_short
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress, Share
from sinklens.studies.census.domains import DomainJoin, Domains, DomainTexts, choose_domains
from sinklens.studies.census.joins import Example, choose_maps, join_tables, sinks_by_layer
from sinklens.studies.census.record_sequences import RecordSequences
from sinklens.studies.census.result import Census
from sinklens.studies.census.verdict import describe
from sinklens.studies.effects.sinks_after import sinks_after
from sinklens.wording import several

DETECTORS = default_detectors()
"""What a scan runs unless told otherwise: together a few per cent of its time each."""


@checked
@usual_torch()
def scan(
    model: AnyModel,
    texts: str | Sequence[str] | DomainTexts | None = None,
    *,
    tokens: TokenBatch | Ids | None = None,
    attention_mask: Any = None,
    tokenizer: Any = None,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    split: bool = True,
    max_sequences: int | None = None,
    batch_size: int | None = None,
    detectors: str | Detector | Sequence[str | Detector] | None = None,
    eps: float = EPS,
    maps: int = 6,
    seed: int = 0,
    source: str | None = None,
    intervention: Intervention | None = None,
    progress: Progress = SILENT,
) -> Census:
    """Find attention sinks, value drains, residual peaks and massive activations in one pass.

    Args:
        model: A bridge, a name or path for :func:`sinklens.load`, or a Hugging Face model with its ``tokenizer``; see
            :func:`~sinklens.models.as_bridge`. It is the same afterwards.
        texts: One or several texts, a sequence each; default: a built-in corpus that fits the model (100 sequences
            of 64 tokens). Or texts by domain, ``{"prose": [...], "code": [...]}``: then the census has a table
            ``domains`` of how every head differs between them.
        tokens: Instead of texts: a :class:`TokenBatch`, what a Hugging Face tokenizer gives (``input_ids`` with
            ``attention_mask``), an id tensor ``[batch pos]`` or lists of ids.
        attention_mask: For ids: 1 at real tokens. Ids that begin or end with padding are refused without it.
        tokenizer: For a Hugging Face model: its tokenizer, or where that lies.
        bos: ``"auto"`` (as the checkpoint's tokenizer does), ``"yes"`` or ``"no"``; ids are taken as they are.
        max_tokens: Longest sequence; default: the model's context.
        split: Cut long texts into sequences of ``max_tokens``; False drops what is beyond. Rows of ids are never split.
        max_sequences: Draw at most this many sequences (of each domain) from all over the texts; default: 100, and all
            of given tokens. The census says how many tokens were not used, and why.
        batch_size: Sequences per forward pass; default: what fits the memory.
        detectors: Names, see :func:`~sinklens.detectors.registry.all_detectors` (default: :data:`DETECTORS`), and
            :class:`~sinklens.detectors.base.Detector` objects of your own: the census then holds their tables, metrics
            and sentences. ``"compression"`` is slow and has to be asked for.
        eps: Threshold of the sink rate.
        maps: For how many heads the example sequence's attention map is kept.
        seed: Which sequences are drawn.
        source: What to call the texts in the provenance.
        intervention: Measure the model under this change, such as ``AblateHeads(["L1H0"])``; it is named in the header
            and the verdict, and a table ``sinks_after`` says where the sink went (one more pass, without it).
        progress: Told the memory plan, then after every layer, in sequences times layers.

    Returns:
        A :class:`Census`; with the detector ``sinks`` also every head's numbers on each text, of as many texts as 128
        MiB hold, see :meth:`~sinklens.Census.sequence`.

    Raises:
        InputError: No usable sequence (each needs at least as many tokens as make ``eps`` meaningful, 10 for 0.3), ids
            with padding and no mask, a model in training mode, activations that are NaN, an unknown detector, or
            two that give one table.
        UnsupportedArchitectureError: No exact way to measure the model is known, or a detector needs what it lacks.

    Cost: one forward pass, its attention about twice as slow as fused attention; memory O(tokens) on the fast path.
    """
    _check_eps(eps)
    wanted = DETECTORS if detectors is None else detectors
    given = [wanted] if isinstance(wanted, str | Detector) else list(wanted)
    chosen = choose_detectors(given, joined=True, eps=eps)
    started = time.perf_counter()
    model = as_bridge(model, tokenizer=tokenizer)
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        plan = plan_for(model, nonfinite=True)
    notes += [str(w.message) for w in caught if "sinklens" in str(w.filename) or "measured through" in str(w.message)]
    domains: Domains | None = None
    if isinstance(texts, Mapping) and not is_encoding(texts):
        if tokens is not None:
            raise InputError("Pass either texts or tokens, not both; a domain may be given as a TokenBatch.")
        if attention_mask is not None:
            raise InputError("attention_mask goes with tokens; a domain may be given as a tokenizer's whole output.")
        domains = choose_domains(
            model,
            texts,
            bos=bos,
            max_tokens=max_tokens,
            split=split,
            max_sequences=max_sequences,
            seed=seed,
            source=source,
        )
        batch, source = domains.batch, domains.source
    else:
        batch, source = choose_sequences(
            model, texts, tokens, bos, max_tokens, split, seed, source, max_sequences, attention_mask
        )
    usable, skipped = usable_sequences(batch, eps)
    if skipped:
        batch = without_short(batch, usable)
        domains = replace(domains.rows(usable), batch=batch) if domains is not None else None
    notes += dict.fromkeys(length_notes(batch, eps) + (domains.notes() if domains is not None else []))
    notes += [] if intervention is None else [f"Measured under an intervention: {intervention}."]
    with_drains = any(detector.name == "value_drains" for detector in chosen)
    if with_drains and (coded := quantised_layers(model)):
        notes.append(
            f"|W_O v| is not known in {len(coded)} of {len(plan.layers)} layers: their weights are quantised "
            f"({', '.join(sorted(set(coded.values())))}), so value drains there are those of |v| alone; load the model "
            "without quantisation for both."
        )
    with_sinks = any(detector.name == "sinks" for detector in chosen)
    compared = intervention is not None and with_sinks
    memory = plan_memory(model, len(batch), batch.ids.shape[1], batch_size)
    records = len(batch) * (len(model.blocks) + 1)
    progress.begin("Scanning layers", records * (2 if compared else 1), str(memory))

    if all(detector.name != ExtremeTokenDetector.name for detector in chosen):
        attention = any(detector.statistics(batch) for detector in chosen)
        chosen.append(ExtremeTokenDetector(eps, MIN_QUERIES, attention))
    example = Example(with_maps=with_sinks and maps > 0)
    differences = DomainJoin(domains.of, eps, seed) if domains is not None and with_sinks else None
    each_text = RecordSequences(batch, len(model.blocks), int(model.cfg.n_heads)) if with_sinks else None
    beside: list[Consumer] = [each for each in (example, differences, each_text) if each is not None]
    nonfinite = NonFinite()
    found = measure(
        model,
        batch,
        chosen,
        batch_size=memory.batch_size,
        beside=beside,
        intervention=intervention,
        nonfinite=nonfinite,
        progress=Share(progress, records),
        keep=False,
    )
    tables = join_tables(found.tables) | {"profile": example.profile()}
    if not compared:
        found.tables.clear()  # parts of large tables, which were joined
    if sum(map(len, tables.values())) >= ROWS:
        give_back()
    if domains is not None:
        tables["tokens"].insert(1, "domain", [domains.of[sequence] for sequence in tables["tokens"]["sequence"]])
    if differences is not None:
        tables["domains"] = differences.table()
    if compared:
        before, only = SinkDetector(eps), [ReceivedMass]
        capture(
            model,
            batch,
            [before],
            batch_size=memory.batch_size,
            statistics=lambda *_: only,
            nonfinite=nonfinite,
            progress=Share(progress, records),
        )
        tables["sinks_after"] = sinks_after(before.tables(), {str(intervention): found.tables})
    tables = nonfinite.mask(tables)
    tables["layers"] = _layers(model, plan, tables)
    unsound = [nonfinite.sentence(sum(layer.path != "none" for layer in plan.layers) * int(model.cfg.n_heads))]
    settings = {
        "detectors": [each if isinstance(each, str) else each.name for each in given],
        "eps": eps,
        "eps_sweep": list(dict.fromkeys((eps, *EPS_SWEEP))),
        "min_queries": MIN_QUERIES,
        "min_share": MIN_SHARE,
        "sink_head_rate": SINK_HEAD_RATE,
        "sink_head_ratio": SINK_HEAD_RATIO,
        "max_tokens": max_tokens,
        "batch_size": memory.batch_size,
        "seed": seed,
    }
    metrics = [*found.metrics.values(), *([] if differences is None else [MASS])]
    kept = choose_maps(example, tables.get("heads"), batch, maps)
    meta = {
        **header(
            model,
            batch,
            source,
            plan=plan,
            tokens={"skipped": list(skipped)} | ({"domains": domains.facts()} if domains is not None else {}),
        ),
        "metrics": {metric.name: metric.as_dict() for metric in metrics},
        "settings": settings,
        "intervention": None if intervention is None else json.loads(intervention.to_json()),
        "warnings": notes,
        "verdict": (unsound if nonfinite else [])
        + describe(tables, settings, found.detectors)
        + ([] if intervention is None else [f"All under {intervention}."]),
        "seconds": (total := time.perf_counter() - started),
        "seconds_by_part": found.seconds | {"rest": total - sum(found.seconds.values())},
    }
    return Census.of(meta, tables, kept, {} if each_text is None else each_text.arrays(nonfinite))


def _layers(model: TransformerBridge, plan: AttentionPlan, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per layer: how it is measured, its sinks, and what the detectors say of it."""
    layers = pd.DataFrame({"layer": range(-1, len(model.blocks))})
    layers["attention"] = ["embedding"] + [layer.path for layer in plan.layers]
    layers["window"] = pd.array([None] + [layer.window for layer in plan.layers], dtype="Int64")
    posts = [None if each.path == "none" else norm_after_attention(model, each.layer) for each in plan.layers]
    layers["norm_after_attention"] = pd.array([None, *posts], dtype="boolean")
    if "heads" in tables:
        layers = layers.merge(sinks_by_layer(tables["heads"]), on="layer", how="left")
    return layers.merge(tables["layers"], on="layer", how="left") if "layers" in tables else layers


def _check_eps(eps: Any) -> None:
    if not isinstance(eps, int | float) or not 0 < eps < 1:
        raise InputError(f"eps must lie between 0 and 1, got {eps!r}: the importance from which a key is a sink.")


def usable_sequences(batch: TokenBatch, eps: float) -> tuple[list[int], list[str]]:
    """Which sequences are long enough for the threshold to mean anything, and a line about each that is not."""
    need = shortest_length(eps)
    long_enough = batch.lengths >= need
    if not bool(long_enough.any()):
        longest = int(batch.lengths.max())
        floor = float(uniform_importance(longest)[0])
        raise InputError(
            f"The longest of {several(len(batch), 'sequence')} has {several(longest, 'token')}, too short to measure: "
            f"uniform attention alone gives its first key an importance of {floor:.2f}, above eps={eps}. Use at least "
            f"{need} tokens (64 or more to compare with published numbers)."
        )
    short = (~long_enough).nonzero().flatten().tolist()
    skipped = [f"sequence {index}: {several(int(batch.lengths[index]), 'token')}, fewer than {need}" for index in short]
    return long_enough.nonzero().flatten().tolist(), skipped


def length_notes(batch: TokenBatch, eps: float) -> list[str]:
    """What the lengths and the number of sequences do to a sink rate."""
    notes = []
    shortest = int(batch.lengths.min())
    floor = float(uniform_importance(shortest)[0])
    if floor > eps / 2:
        notes.append(
            f"The shortest sequence has {several(shortest, 'token')}, where uniform attention gives key 0 an "
            f"importance of {floor:.2f}, more than half of eps={eps}: read the ratio to the null, not the rate."
        )
    if batch.unused:
        notes.append(batch.unused.sentence(len(batch)))
    if len(batch) < 10:
        notes.append(f"Sink rates are shares of only {several(len(batch), 'sequence')}; 100 are usual.")
    return notes
