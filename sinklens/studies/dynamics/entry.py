"""Measure a series of checkpoints on the same tokens, one after the other, going on where an earlier run stopped."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.detectors.sinks import EPS, shortest_length
from sinklens.errors import InputError
from sinklens.models.tokens import BosChoice
from sinklens.models.torch_state import usual_torch
from sinklens.passes.sequences import without_short
from sinklens.results import RunFolder
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.census.builtin_domains import builtin_domains
from sinklens.studies.census.domains import Domains, DomainTexts, by_domain_of, choose_domains
from sinklens.studies.dynamics.result import FORMAT, WORK, Dynamics
from sinklens.studies.dynamics.run import DynamicsRun
from sinklens.studies.dynamics.series import Series, find_series
from sinklens.studies.head_roles.criteria import CRITERIA


@checked
@usual_torch()
def measure_dynamics(
    series: Series | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    texts: DomainTexts | str | Sequence[str] | None = None,
    *,
    revisions: str | Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    split: bool = True,
    max_sequences: int = 100,
    eps: float = EPS,
    roles: Sequence[str] = (),
    batch_size: int | None = None,
    loading: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    restart: bool = False,
    seed: int = 0,
    source: str | None = None,
    progress: Progress = SILENT,
) -> Dynamics:
    r"""Follow sink rate, logit margin, value drain, residual peak and loss through training.

    ::

        dynamics = measure_dynamics("tiny-llama")  # its nine checkpoints on the built-in prose and code
        print(*dynamics.verdict, sep="\n")
        measure_dynamics("EleutherAI/pythia-160m", steps=[0, 512, 1000, 143000], out="runs/pythia")

    Every checkpoint sees the same ids: each one's own tokenizer must give them for the texts. One that cannot be loaded
    is listed as missing, and the others are measured. With ``out`` finished checkpoints are kept there and the same
    call goes on after any interruption; more checkpoints can join a finished result, other settings are refused.

    Args:
        series: What :func:`~sinklens.studies.dynamics.series.find_series` takes: a directory of checkpoint folders,
            a built-in name, a hub id with revisions, or several of them.
        texts: Texts (or tokens) by domain, or one or several texts; default: built-in prose and code, of which the
            built-in ``tiny-llama`` saw neither.
        revisions: Of a hub id.
        steps: Only these steps.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest sequence; default: the model's context (64 for the built-in texts).
        split: Cut long texts into sequences of ``max_tokens``.
        max_sequences: Draw at most this many sequences of each domain from all over its texts.
        eps: Threshold of the sink rate.
        roles: Also every head's scores and roles by these criteria of :func:`~sinklens.studies.find_roles`, such as
            ``["pattern", "text", "retrieval"]``, each on its own input.
        batch_size: Sequences in one forward pass; default: what fits the memory.
        loading: What :func:`sinklens.load` takes beside the name: ``device``, ``dtype``, ``trust_remote_code``.
        out: Directory for the work and the result; without it nothing is saved.
        restart: Throw away what ``out`` holds of another or an unfinished measurement.
        seed: Of built-in texts and bootstrap.
        source: What to call the texts in the provenance.
        progress: Told the plan, then in checkpoints.

    Raises:
        InputError: No such series, texts that cannot be used, or a checkpoint with another tokenizer or architecture.
        ModelLoadError: No checkpoint can be loaded.
        ResultError: ``out`` holds something else or another measurement, or is in use.

    Source: after the training dynamics of Guo et al. 2024 (arXiv 2410.13835) and Gu et al. 2025 (arXiv 2410.10781).

    Cost: per checkpoint loading it and about one forward pass over the sequences, and what the criteria of roles
    take; one model in memory at a time.
    """
    started = time.perf_counter()
    if isinstance(series, Series):
        chosen = series if steps is None else series.at(steps)
    else:
        chosen = find_series(series, revisions=revisions, steps=steps)
    shortest = shortest_length(eps)

    def read(model: TransformerBridge) -> Domains:
        if texts is None:
            domains = builtin_domains(model, bos=bos, length=max_tokens, n_sequences=max_sequences, seed=seed)
        else:
            limits = {"max_tokens": max_tokens, "split": split, "max_sequences": max_sequences, "seed": seed}
            domains = choose_domains(model, by_domain_of(texts), bos=bos, source=source, **limits)  # type: ignore[arg-type]
        enough = [index for index, length in enumerate(domains.batch.lengths.tolist()) if length >= shortest]
        if not enough:
            raise InputError(f"No sequence has the {shortest} tokens that eps={eps} needs to mean anything.")
        return replace(domains.rows(enough), batch=without_short(domains.batch, enough))

    if out is not None:
        RunFolder(Path(out), FORMAT, WORK).check()
    if unknown := [name for name in roles or () if name not in CRITERIA]:
        raise InputError(f"Unknown criteria {', '.join(unknown)}; expected some of {', '.join(CRITERIA)}.")
    settings: dict[str, Any] = {"eps": eps, "max_tokens": max_tokens, "max_sequences": max_sequences, "seed": seed}
    if roles:
        settings["roles"] = list(dict.fromkeys(roles))
    run = DynamicsRun(chosen, read, settings, dict(loading or {}), batch_size, progress)
    result = run.to(None if out is None else Path(out), restart)
    result.meta.setdefault("seconds", time.perf_counter() - started)
    return result
