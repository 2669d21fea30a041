"""Does a split hold up: passkeys answered with full attention for the retrieval heads alone."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention.turns import turn
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.controls import random_head_sets
from sinklens.evidence.log_probs import log_probs
from sinklens.interventions import CompensatedWindow, Intervention, SlidingWindow
from sinklens.interventions.heads import Head
from sinklens.interventions.kv_groups import heads_of_kv
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.models.tokens import BosChoice, bos_prefix, tokenize
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.results.result import Result
from sinklens.studies.streaming_split import sentences
from sinklens.studies.streaming_split.kv_budget import kv_budget, measure_kv_bytes
from sinklens.studies.streaming_split.learn import stream
from sinklens.studies.streaming_split.passkeys import Passkeys, draw_passkeys
from sinklens.studies.streaming_split.settings import GateSettings
from sinklens.studies.streaming_split.split import Split, kv_name

FORMAT = "sinklens-split-check"


@dataclass(frozen=True)
class SplitCheck(Result, format=FORMAT, title="Check of a split", newest=1, needs=("conditions", "by_sequence")):
    """How well passkeys are answered under a split, next to full attention and to its controls.

    :meth:`to_dataframe` gives one row per condition: ``full``, ``split``, ``split, compensated``, ``random 0``..,
    ``streaming``.

    Columns: condition, n_retrieval_kv, n_sequences; exact_match, accuracy, answer_loss; ``delta_...`` from full
    attention on the same texts with 95 % bootstrap intervals ``_low`` and ``_high``; ``kv_kept``, the share of cache
    entries kept at the end of the text.

    Attributes:
        meta: Model, texts with BOS provenance, the split, KV budget, definitions, settings.
        tables: ``conditions`` and ``by_sequence``.
    """

    @property
    def verdict(self) -> list[str]:
        """What is left of the answers under the split, beside its controls."""
        return [*sentences.check(self.tables["conditions"]), *self.meta["controls"]["notes"]]

    def by_sequence(self) -> pd.DataFrame:
        """The three measures of every condition and sequence."""
        return self.tables["by_sequence"].copy()


CHECK = 1 << 31
"""Place of the check's random stream, where no step of a run draws."""
METRICS = {
    "exact_match": "share of questions whose values are all the likeliest token, each given the right ones before it",
    "accuracy": "share of values that are the likeliest token",
    "answer_loss": "mean -log p of the values, in nats",
}


@checked
@torch.no_grad()
def check_split(
    model: TransformerBridge,
    split: Split,
    settings: GateSettings | None = None,
    *,
    length: int | None = None,
    n_sequences: int = 64,
    draws: int = 10,
    compensated: bool = True,
    bos: BosChoice = "auto",
    seed: int = 1,
    progress: Progress = SILENT,
) -> SplitCheck:
    """Answer passkeys with full attention in the retrieval heads, and sinks and recent tokens in all others.

    Controls: full attention everywhere, nowhere, and in as many random KV heads (of the same layers where they are
    enough, none of them a retrieval head). The mask holds for the whole text, the prompt included, as in a prefill that
    streams by itself.

    Args:
        model: The bridge.
        split: From :meth:`StreamingGates.retrieval_heads` or :func:`split_gates`.
        settings: Passkeys, sinks and recent tokens; default: those scaled to the model.
        length: Tokens of a text; default: the longest of ``settings``.
        n_sequences: Texts.
        draws: Random sets of KV heads.
        compensated: Whether to try the split with a compensation token too.
        bos: As for :func:`sinklens.tokenize`.
        seed: Of texts, random sets and bootstrap; another one than the gates were learned with.
        progress: Told after each condition.

    Raises:
        InputError: Settings that do not fit the model.

    Cost: a forward pass of all texts for each condition.
    """
    settings = (settings or GateSettings()).resolved(model)
    sinks, recent = int(settings.sinks or 0), int(settings.recent or 1)
    prefix, statement = bos_prefix(model, bos)
    texts = draw_passkeys(
        ordinary_ids(model),
        length=length or int(settings.max_length or 0),
        passkeys=int(settings.passkeys or 1),
        value_len=settings.value_len,
        batch=n_sequences,
        generator=stream(seed, CHECK),
        bos_id=prefix[0] if prefix else None,
        depths=settings.depths,
    )
    pool = [*split.retrieval_kv, *split.streaming_kv]
    conditions: dict[str, tuple[Intervention | None, int]] = {"full": (None, len(pool))}
    random = None
    if split.streaming_kv:
        kept = len(split.retrieval_kv)
        conditions["split"] = split.window(recent, sinks), kept
        if compensated:
            conditions["split, compensated"] = split.compensated_window(recent, sinks), kept
        if split.retrieval_kv:
            random = random_head_sets(pool, split.retrieval_kv, draws=draws, seed=seed)
            for number, others in enumerate(random.sets):
                streaming = heads_of_kv(model, set(pool) - set(others))
                conditions[f"random {number}"] = SlidingWindow(recent, sinks, streaming), kept
    conditions["streaming"] = SlidingWindow(recent, sinks), 0
    frames = []
    progress.begin("Answering passkeys", len(conditions))
    for name, (intervention, _) in conditions.items():
        frames.append(_answers(model, texts, intervention, settings.batch).assign(condition=name))
        progress.advance()
    by_sequence = pd.concat(frames, ignore_index=True)[["condition", "sequence", *METRICS]]
    n_tokens = texts.ids.shape[1]
    rows = []
    for name, (intervention, kept) in conditions.items():
        budget = kv_budget(
            n_tokens,
            kept,
            len(pool) - kept,
            sinks=sinks,
            recent=recent,
            compensation=isinstance(intervention, CompensatedWindow),
        )
        rows.append(_summary(by_sequence, name, seed) | {"n_retrieval_kv": kept, "kv_kept": budget.fraction})
    meta = _meta(model, split, settings, texts, statement)
    bytes_kept = measure_kv_bytes(model, texts.ids[:1], split.streaming_kv, sinks=sinks, recent=recent)
    meta["kv_bytes"] = {"kept": bytes_kept.kept, "full": bytes_kept.full, "fraction": bytes_kept.fraction}
    meta["controls"] = {"draws": 0 if random is None else len(random), "notes": [] if random is None else random.notes}
    return SplitCheck(meta, {"conditions": pd.DataFrame(rows), "by_sequence": by_sequence})


def _answers(model: TransformerBridge, texts: Passkeys, intervention: Intervention | None, batch: int) -> pd.DataFrame:
    parts = []
    for start in range(0, len(texts.ids), batch):
        ids = texts.ids[start : start + batch].to(next(model.parameters()).device)
        answers = texts.answers[start : start + batch, 1:].to(ids.device)
        with turn(model) if intervention is None else intervention(model):
            logits: Tensor = model(ids)[:, :-1]
        n = len(ids)
        chosen = logits[answers].float()  # each sequence has as many, in order
        wanted = ids[:, 1:][answers]
        right = (chosen.argmax(-1) == wanted).view(n, -1)
        loss = -log_probs(chosen, wanted).view(n, -1)
        by_question = right.unflatten(1, (-1, texts.value_len))
        parts.append(
            pd.DataFrame(
                {
                    "sequence": range(start, start + n),
                    "exact_match": by_question.all(-1).double().mean(1).cpu().numpy(),
                    "accuracy": right.double().mean(1).cpu().numpy(),
                    "answer_loss": loss.double().mean(1).cpu().numpy(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _summary(table: pd.DataFrame, name: str, seed: int) -> dict[str, Any]:
    own = table[table["condition"] == name].set_index("sequence")
    full = table[table["condition"] == "full"].set_index("sequence")
    row: dict[str, Any] = {"condition": name, "n_sequences": len(own)}
    row |= {measure: float(own[measure].mean()) for measure in METRICS}
    for measure in METRICS:
        interval = paired_interval((own[measure] - full[measure]).to_numpy(), seed=seed)
        row |= {
            f"delta_{measure}": interval.value,
            f"delta_{measure}_low": interval.low,
            f"delta_{measure}_high": interval.high,
        }
    return row


def _meta(
    model: TransformerBridge, split: Split, settings: GateSettings, texts: Passkeys, statement: str
) -> dict[str, Any]:
    facts = header(model, tokenize(model, texts.ids))
    facts["tokens"]["bos"]["statement"] = statement
    facts["tokens"] |= {"source": "passkeys among random ordinary tokens", "distinct": texts.distinct}

    def names(heads: tuple[Head, ...]) -> list[str]:
        return [kv_name(head) for head in heads]

    return {
        **facts,
        "split": {
            "retrieval_kv": names(split.retrieval_kv),
            "streaming_kv": names(split.streaming_kv),
            "statement": split.statement,
            "tied": names(split.tied),
        },
        "settings": settings.as_dict(),
        "metrics": {name: {"version": 1, "definition": text} for name, text in METRICS.items()},
    }
