"""Look a corpus through for extreme tokens, part by part, on one process, several, or a cluster."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.detectors.massive_activations import ABSOLUTE
from sinklens.errors import InputError
from sinklens.interventions.massive_entries import AROUND
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.load import load
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.sequences import choose_sequences
from sinklens.results import RunFolder
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.ablation.executor_name import check_executor
from sinklens.studies.ablation.executors import loading_here, parse_executor
from sinklens.studies.ablation.recipe import ModelRecipe, model_identity
from sinklens.studies.extreme_tokens.chunk import ENTRY_COLUMNS, Chunk, ChunkJob
from sinklens.studies.extreme_tokens.result import FORMAT, WORK, ExtremeTokens, assemble
from sinklens.wording import several

CHUNK_TOKENS = 16_384


@checked
@usual_torch()
@torch.no_grad()
def find_extreme_tokens(
    model: AnyModel,
    texts: str | Sequence[str] | None = None,
    *,
    tokens: TokenBatch | Ids | None = None,
    attention_mask: Any = None,
    absolute: float = ABSOLUTE,
    ratio: float = AROUND,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    max_sequences: int | None = None,
    out: str | Path | None = None,
    restart: bool = False,
    executor: str = "serial",
    loading: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    chunk_tokens: int = CHUNK_TOKENS,
    seed: int = 0,
    progress: Progress = SILENT,
) -> ExtremeTokens:
    """Find the tokens of a corpus that hold massive entries: a mask, and channels with thresholds for every layer.

    ::

        found = find_extreme_tokens("path/to/llama", texts, max_tokens=256, out="runs/extreme", executor="processes:2")
        found.mask, found.channels_of(11)

    An entry counts as in :func:`~sinklens.interventions.massive_entries`: above both bounds and far above its channel's
    median over the sequence, so that channels that are large everywhere flag nobody. Long texts are cut into sequences
    of ``max_tokens``.

    With ``out`` every finished part is kept, and the same call goes on after any interruption.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        texts: One or several texts; default: a built-in corpus that fits the model.
        tokens: Instead of texts: a :class:`TokenBatch`, a tokenizer's output, a tensor ``[batch pos]`` or lists of ids.
        attention_mask: For ids: 1 at real tokens.
        absolute: Bound on ``|h|``; 0 leaves it out, as small models need.
        ratio: Bound on ``|h|`` in medians of the sequence.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest sequence.
        max_sequences: Draw at most this many sequences; default: all of given texts, 100 of the built-in ones.
        out: Directory for the work and the result.
        restart: Throw away what ``out`` holds of another or an unfinished search.
        executor: ``"serial"``, ``"processes:N"``, or the address of a Dask scheduler, as for :func:`sinklens.sweep`.
        loading: What :func:`sinklens.load` takes beside the name, for a model given by name and for workers.
        batch_size: Sequences in one forward pass.
        chunk_tokens: Tokens of a part: what an interruption costs at most, for each worker.
        seed: Which sequences are drawn.
        progress: Told in tokens.

    Raises:
        InputError: Texts or numbers that cannot be used, or an unknown executor.
        ResultError: ``out`` holds something else, another search, or is in use.

    Cost: a forward pass without logits, and O(pos d_model) per layer. Memory: the ids of the corpus (8 bytes a token),
    its mask, and one row per massive entry.
    """
    started = time.perf_counter()
    folder = None if out is None else RunFolder(Path(out), FORMAT, WORK)
    if folder is not None:
        folder.check()
    check_executor(executor)
    if (absolute <= 0 and ratio <= 0) or batch_size < 1 or chunk_tokens < 1:
        raise InputError(
            "Expected a bound above 0 (absolute or ratio), batch_size and chunk_tokens from 1; got "
            f"{absolute}, {ratio}, {batch_size}, {chunk_tokens}."
        )
    loading = dict(loading or {})
    if isinstance(model, str | os.PathLike):
        model = load(model, **loading_here(executor, loading))
    model = as_bridge(model)
    given = sys.maxsize if texts is not None and max_sequences is None else max_sequences
    batch, source = choose_sequences(model, texts, tokens, bos, max_tokens, True, seed, None, given, attention_mask)
    jobs = cut(batch, absolute, ratio, batch_size, chunk_tokens)
    settings = {"absolute": absolute, "ratio": ratio, "chunk_tokens": chunk_tokens, "batch_size": batch_size}
    spec = {"model": model_identity(model), "settings": settings, "parts": [job.key() for job in jobs]}
    if folder is None:
        return _search(model, batch, source, jobs, spec, executor, loading, None, progress, started)
    with folder.locked():
        if folder.finished and not restart:
            finished = ExtremeTokens.load(folder.directory)
            folder.begin(spec, held=finished.meta["spec"])
            folder.tidy()
            return finished
        folder.begin(spec, restart)
        folder.note()
        return _search(model, batch, source, jobs, spec, executor, loading, folder, progress, started)


def cut(batch: TokenBatch, absolute: float, ratio: float, batch_size: int, chunk_tokens: int) -> list[ChunkJob]:
    """Consecutive sequences of about so many tokens, whole forward passes each."""
    jobs: list[ChunkJob] = []
    lengths, start = batch.lengths.tolist(), 0
    while start < len(batch):
        stop, held = start, 0
        while stop < len(batch) and (stop == start or held < chunk_tokens):
            held += sum(lengths[stop : stop + batch_size])
            stop = min(stop + batch_size, len(batch))
        part = Chunk(len(jobs), start, held)
        jobs.append(ChunkJob(part, batch.rows(slice(start, stop)), absolute, ratio, batch_size))
        start = stop
    return jobs


def _search(
    model: TransformerBridge,
    batch: TokenBatch,
    source: str,
    jobs: list[ChunkJob],
    spec: dict[str, Any],
    executor: str,
    loading: Mapping[str, Any],
    folder: RunFolder | None,
    progress: Progress,
    started: float,
) -> ExtremeTokens:
    kept = {job.part.number: None if folder is None else folder.load(job.part.name, job.key()) for job in jobs}
    frames = {number: part.tables["entries"] for number, part in kept.items() if part is not None}
    missing = [job for job in jobs if job.part.number not in frames]
    total = sum(job.part.tokens for job in jobs)
    before = f", {len(frames)} of them finished before" if frames else ""
    about = f"{several(total, 'token')} of {several(len(batch), 'sequence')} in {several(len(jobs), 'part')}{before}."
    progress.begin("Looking for extreme tokens", total, about)
    progress.skip(total - sum(job.part.tokens for job in missing))
    shares: dict[int, float] = {}
    sizes = {job.part.number: job.part.tokens for job in jobs}

    def shared(number: int, share: float) -> None:
        told, shares[number] = shares.get(number, 0.0), share
        progress.advance((share - told) * sizes[number])

    if missing:
        runner = parse_executor(executor, model)
        recipe, keys = ModelRecipe.of(model, loading), {job.part.number: job.key() for job in missing}
        try:
            with closing(runner.run(missing, recipe, shared)) as results:
                for part, table in results:
                    if folder is not None:
                        folder.save(part.name, {"entries": table}, keys[part.number])
                    frames[part.number] = table
                    shared(part.number, 1.0)
        finally:
            runner.close()
    found = [frames[job.part.number] for job in jobs if len(frames[job.part.number])]
    entries = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*ENTRY_COLUMNS])
    mask = np.zeros(tuple(batch.ids.shape), dtype=bool)
    mask[entries["sequence"].to_numpy(int), entries["position"].to_numpy(int)] = True
    meta = header(
        model,
        batch,
        source,
        settings=spec["settings"] | {"executor": executor},
        spec=spec,
        n_tokens=total,
        seconds=time.perf_counter() - started,
        warnings=[batch.unused.sentence(len(batch))] if batch.unused else [],
    )
    arrays = {"mask": mask, "lengths": batch.lengths.numpy()}
    result = ExtremeTokens(meta, assemble(entries, total), arrays)
    if folder is not None:
        folder.complete(result)
    return result
