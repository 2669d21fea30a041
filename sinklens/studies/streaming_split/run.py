"""DuoAttention's split of a model's KV heads, from start to end: texts, learning, progress on disk, the result."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import plan_for
from sinklens.errors import ResultError, UnsupportedArchitectureError
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.models.tokens import BosChoice, bos_prefix, tokenize
from sinklens.results import RunFolder
from sinklens.results.files import write_atomically
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.streaming_split.learn import Learner
from sinklens.studies.streaming_split.result import FORMAT, METRIC, WORK, StreamingGates
from sinklens.studies.streaming_split.settings import GateSettings

STATE = "gates-state.pt"
SAVES = 20
"""How often progress is written in the course of a run."""


@checked
def learn_gates(
    model: TransformerBridge,
    settings: GateSettings | None = None,
    *,
    bos: BosChoice = "auto",
    out: str | Path | None = None,
    restart: bool = False,
    progress: Progress = SILENT,
) -> StreamingGates:
    """Learn for every KV head how much it needs its whole cache: 1 for retrieval heads, 0 for streaming heads.

    ::

        gates = learn_gates(model)
        split = gates.retrieval_heads(sparsity=0.5)
        with torch.no_grad(), split.window(recent=64, sinks=4)(model):
            ...

    A gate alpha mixes the outputs of full and streaming attention of a KV head, ``alpha full + (1 - alpha) streaming``.
    Gates start at 1 and follow the gradient of ``distillation + reg_weight * regulariser``: the distance of the last
    hidden states of passkey answers from those of the unchanged model, and the size of the gates. Nothing else of the
    model changes. Texts are passkeys hidden among random ordinary tokens, drawn anew for every step.

    Where this differs from the authors: random tokens for a book as haystack (so no tokenizer and no text is needed,
    and every answer is unambiguous), keys and values of random tokens for sentences, shorter texts and fewer steps,
    several sequences in a step, and gates clamped once more at the end. What the paper and the released code do
    differently is in :class:`GateSettings`. In the released code the gated model mixes in the *teacher's* full
    attention; a deployed model has only its own (``full_outputs="own"``).

    Args:
        model: The bridge; it is the same afterwards.
        settings: Default: :class:`GateSettings` scaled to the model.
        bos: Whether texts start with the BOS, as for :func:`sinklens.tokenize`.
        out: Directory for progress and result. A run that was interrupted goes on there, a finished one is read.
        restart: Begin anew in ``out``.
        progress: Told after every step.

    Raises:
        InputError: Settings that do not fit the model, or too few ordinary tokens.
        UnsupportedArchitectureError: The model has no attention, or the engine's fast path is not exact for it.
        ResultError: ``out`` holds something else, or gates learned with other settings.

    Source: Xiao et al. (2025), DuoAttention, arXiv 2410.10819.

    Cost: each step a forward pass, and a forward and a backward pass of the gated model; memory of its activations, and
    of the head outputs of all layers with ``full_outputs="teacher"``.
    """
    plan = plan_for(model)
    if plan.path != "fast":
        why = (
            "has no attention heads"
            if plan.path == "none"
            else "is not measured on the fast path, which keeps gradients"
        )
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} {why}; its gates cannot be learned.")
    settings = (settings or GateSettings()).resolved(model)
    prefix, statement = bos_prefix(model, bos)
    vocabulary = ordinary_ids(model)
    learner = Learner(model, settings, vocabulary, prefix[0] if prefix else None)
    first = learner.draw(0)  # also refuses what cannot be drawn
    meta = _meta(learner, first.distinct, tokenize(model, first.ids), statement)
    if out is None:
        return _run(learner, meta, None, progress)
    folder = RunFolder(Path(out), FORMAT, WORK)
    folder.check()
    with folder.locked():
        if folder.finished and not restart:
            found = StreamingGates.load(out)
            folder.begin(meta["spec"], held=found.meta["spec"])
            return found
        folder.begin(meta["spec"], restart)
        folder.note()
        return _run(learner, meta, folder, progress)


def _run(learner: Learner, meta: dict[str, Any], folder: RunFolder | None, progress: Progress) -> StreamingGates:
    steps = learner.settings.steps
    if folder is not None:
        _resume(folder.parts / STATE, learner)
    progress.begin("Learning gates", steps)
    progress.skip(learner.step)
    every = max(1, steps // SAVES)
    while learner.step < steps:
        learner.advance()
        if folder is not None and learner.step < steps and learner.step % every == 0:
            _keep(folder.parts / STATE, learner)
        progress.advance()
    alphas = learner.gates.detach().clamp(0, 1).double().cpu().numpy()
    kv_heads = alphas.shape[1]
    gates = pd.DataFrame(
        {
            "layer": [layer for layer in learner.layers for _ in range(kv_heads)],
            "kv_head": [*range(kv_heads)] * len(learner.layers),
            "alpha": alphas.ravel(),
        }
    )
    found = StreamingGates(meta, {"gates": gates, "losses": pd.DataFrame(learner.losses)})
    if folder is not None:
        folder.complete(found)
    return found


def _meta(learner: Learner, distinct: bool, first: Any, statement: str) -> dict[str, Any]:
    settings, model = learner.settings, learner.model
    facts = header(model, first)
    facts["tokens"]["bos"]["statement"] = statement
    facts["tokens"] |= {
        "source": "passkeys among random ordinary tokens, drawn anew for every step",
        "n_sequences": settings.steps * settings.batch,
        "n_tokens": None,
        "min_length": settings.min_length,
        "max_length": settings.max_length,
        "vocabulary": len(learner.vocabulary),
        "distinct": distinct,
    }
    warnings = [] if distinct else ["The vocabulary is smaller than a text: haystack and values repeat tokens."]
    spec = {"model": facts["model"], "settings": settings.as_dict(), "bos_id": learner.bos_id}
    return {
        **facts,
        "settings": settings.as_dict(),
        "metrics": {METRIC.name: METRIC.as_dict()},
        "warnings": warnings,
        "spec": spec,
    }


def _keep(path: Path, learner: Learner) -> None:
    """Write what the next step needs."""
    buffer = io.BytesIO()
    state = {
        "gates": learner.gates.detach().cpu(),
        "optimiser": learner.optimiser.state_dict(),
        "losses": learner.losses,
    }
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def _resume(path: Path, learner: Learner) -> None:
    """Take up the progress that was written, if any."""
    if not path.is_file():
        return
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        gates, losses = state["gates"], list(state["losses"])
        if gates.shape != learner.gates.shape or len(losses) > learner.settings.steps:
            raise ValueError("it is that of another model")
    except Exception as error:  # torch raises many kinds for damaged files
        raise ResultError(
            f"{path} is damaged ({type(error).__name__}: {error}); start anew with restart=True."
        ) from error
    with torch.no_grad():
        learner.gates.copy_(gates)
    learner.optimiser.load_state_dict(state["optimiser"])
    learner.losses = losses
