"""Previous-token, duplicate-token, induction and echo scores of every head from one pass over repeated tokens."""

import json
from typing import Any

import pandas as pd

from sinklens.arguments import checked
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.measure import measure
from sinklens.detectors.razor_selection import ECHO_SHARE, INDUCTION_SHARE, razor_selection
from sinklens.errors import UnsupportedArchitectureError
from sinklens.interventions import Intervention
from sinklens.models.architecture import attention_layers
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.torch_state import usual_torch
from sinklens.passes.repeated_tokens import repeated_tokens
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress

DETECTORS = ("previous_token", "duplicate_token", "induction", "echo", "razor_induction")
BLOCK, REPEATS, SEQUENCES = 64, 4, 8


@checked
@usual_torch()
def pattern_scores(
    model: AnyModel,
    *,
    tokenizer: Any = None,
    block: int = BLOCK,
    repeats: int = REPEATS,
    n_sequences: int = SEQUENCES,
    seed: int = 0,
    distinct: bool = True,
    bos: bool | None = None,
    induction_share: float = INDUCTION_SHARE,
    echo_share: float = ECHO_SHARE,
    batch_size: int | None = None,
    intervention: Intervention | None = None,
    progress: Progress = SILENT,
) -> HeadScores:
    """Score how much every head attends to the token before, to copies of its own token, or to what followed these.

    ::

        found = pattern_scores("induction-2l")
        print(found.to_dataframe().nlargest(5, "induction"))

    Each score stands beside what uniform attention would score (``_null``) and its standard deviation over sequences
    (``_sd``). A score says where a head looks on random tokens, not what it does: previous-token heads of one model
    can be idle, and roles such as "S-inhibition" cannot be read off patterns at all.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        tokenizer: For a Hugging Face model.
        block: Tokens in the repeated block (RazorAttention: 2,500). Scaled down to the model's context, and said so.
        repeats: How often it stands there. ``duplicate_token`` and ``induction`` are read in the second block alone,
            ``echo`` and ``razor_induction`` in all blocks but the first.
        n_sequences: Sequences, each with a block of its own.
        seed: Of the draws.
        distinct: Draw a block's tokens without repetition (RazorAttention's released code: with).
        bos: Whether a BOS stands first; ``None``: if the model has one.
        induction_share: Share of KV heads that RazorAttention keeps for induction.
        echo_share: Share that it keeps for echo.
        batch_size: Sequences per forward pass; default: what fits the memory.
        intervention: Measure the model under this change.
        progress: Told after every layer, in sequences times layers.

    Returns:
        Columns ``layer, head, kv_head``; ``previous_token, duplicate_token, induction, echo, razor_induction``, each
        with ``_null`` and ``_sd``; ``razor_induction_kv`` and ``echo_kv``, the largest of the KV group; ``razor``, what
        RazorAttention would keep the KV head for (``"induction"``, ``"echo"``, ``"both"`` or ``""``); ``n_sequences``.
        Layers without attention have no rows.

    Raises:
        InputError: A probe that cannot be made, see :func:`~sinklens.passes.repeated_tokens.repeated_tokens`.
        UnsupportedArchitectureError: The model has no attention heads, or no exact way to measure them is known.

    Cost: one forward pass; two numbers per query, head and score for one layer at a time.
    """
    model = as_bridge(model, tokenizer=tokenizer)
    if not attention_layers(model):
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads to score.")
    probe = repeated_tokens(
        model, block=block, repeats=repeats, n_sequences=n_sequences, seed=seed, distinct=distinct, bos=bos
    )
    found = measure(
        model,
        probe.batch,
        DETECTORS,
        batch_size=batch_size,
        intervention=intervention,
        progress=progress,
        repeats=probe.repeats,
    )
    frame, metrics = found.tables["head_scores"], found.metrics
    frame["n_sequences"] = frame["previous_token_n"]
    frame = frame.drop(columns=[f"{name}_n" for name in metrics])
    selection = razor_selection(frame, induction_share=induction_share, echo_share=echo_share)
    chosen = selection.table.rename(
        columns={"razor_induction": "razor_induction_kv", "echo": "echo_kv", "chosen_by": "razor"}
    )
    frame = frame.merge(chosen, on=["layer", "kv_head"], how="left", validate="many_to_one")
    settings = {
        "block": probe.repeats.block,
        "block_asked": block,
        "repeats": repeats,
        "prefix": probe.repeats.prefix,
        "n_sequences": n_sequences,
        "seed": seed,
        "distinct": distinct,
        "induction_share": induction_share,
        "echo_share": echo_share,
    }
    meta: dict[str, Any] = {
        **header(model, probe.batch),
        "probe": "repeated random tokens",
        "settings": settings,
        "intervention": None if intervention is None else json.loads(intervention.to_json()),
        "warnings": [*probe.notes, *selection.warnings],
    }
    return HeadScores(_ordered(frame, list(metrics)), metrics, meta)


def _ordered(frame: pd.DataFrame, scores: list[str]) -> pd.DataFrame:
    """Keys, then every score with its null and spread, then the rest."""
    first = ["layer", "head", "kv_head", *(f"{name}{end}" for name in scores for end in ("", "_null", "_sd"))]
    return frame[[*first, *(name for name in frame if name not in first)]]
