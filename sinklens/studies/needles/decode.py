"""The slow way: greedy decoding, a token at a time, with the strongest keys of every step."""

from collections.abc import Callable, Sequence

import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions import Intervention
from sinklens.studies.needles.answers import rouge1_recall, stems
from sinklens.studies.needles.engine import reading
from sinklens.studies.needles.instance import NeedleInstance
from sinklens.studies.needles.outcome import Outcome

MAX_STEPS = 50
"""Tokens after which the paper's decoding stops."""


def decode_needle(
    model: TransformerBridge,
    instance: NeedleInstance,
    *,
    steps: int = MAX_STEPS,
    intervention: Intervention | None = None,
    keys: bool = True,
    stop: Callable[[Sequence[int]], bool] | None = None,
) -> Outcome:
    """Decode greedily after a prompt with a KV cache, as the paper's released code does.

    Args:
        model: The bridge.
        instance: Whose prompt to answer.
        steps: Most tokens to produce.
        intervention: A change of the model under which it decodes.
        keys: Whether to find the strongest key of every step.
        stop: Whether the last of the produced tokens ends the answer (it is still part of it). Default:
            :func:`ends_answer` for needles in text; random tokens decode as long as the answer is.

    Returns:
        As many steps as tokens were produced, at least one. ``log_prob`` and ``rank`` are those of the produced tokens.

    Raises:
        InputError: ``steps`` below 1.

    Cost: one pass over the prompt and one of a single token per step.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}.")
    if instance.answer_text is None:
        steps = min(steps, len(instance.answer))
    ends = stop or (ends_answer(model) if instance.answer_text is not None else lambda tokens: False)
    produced: list[int] = []
    log_probs: list[float] = []
    tops = []
    with reading(model, intervention, keys) as reader:
        cache, ids = reader.new_cache(), torch.tensor([instance.ids])
        for _ in range(steps):
            logits, top_key, cache = reader.run(ids, 1, cache, keep=True)
            row = logits[0, -1].float()
            token = int(row.argmax())
            produced.append(token)
            log_probs.append(float(row.log_softmax(-1)[token]))
            if top_key is not None:
                tops.append(top_key[:, 0])
            if ends(produced):
                break
            ids = torch.tensor([[token]])
    top = torch.cat(tops, -1) if tops else None
    ones = torch.ones(len(produced), dtype=torch.long)
    return Outcome(torch.tensor(produced), torch.tensor(log_probs), ones, top)


def ends_answer(model: TransformerBridge) -> Callable[[Sequence[int]], bool]:
    """Whether the last token ends an answer: a special token, or a line break (the paper's stop) after some text.

    Chat models often begin with a line break, and end a turn with a token that is not their EOS.
    """
    tokenizer = model.tokenizer
    special = {*getattr(tokenizer, "all_special_ids", ())}

    def ends(tokens: Sequence[int]) -> bool:
        if tokens[-1] in special:
            return True
        return tokenizer is not None and "\n" in written(model, tokens).lstrip()

    return ends


def written(model: TransformerBridge, tokens: Sequence[int]) -> str:
    """Produced tokens as text without special tokens; token ids where the model has no tokenizer."""
    if model.tokenizer is None:
        return " ".join(map(str, tokens))
    return str(model.tokenizer.decode(list(tokens), skip_special_tokens=True))


def recall_of(model: TransformerBridge, instance: NeedleInstance, produced: list[int]) -> float:
    """ROUGE-1 recall of the answer in what was produced: of stemmed words, or of ids where the needle has no text."""
    if instance.answer_text is None or model.tokenizer is None:
        return rouge1_recall(instance.answer, produced)
    return rouge1_recall(stems(instance.answer_text), stems(written(model, produced)))
