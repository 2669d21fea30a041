"""Text in, probabilities out: what an evaluation asks of a model, under an intervention or as it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, plan_for
from sinklens.errors import InputError
from sinklens.evidence.log_probs import log_probs
from sinklens.interventions import Intervention
from sinklens.models.architecture import context_length
from sinklens.models.chat_template import check_chat_template
from sinklens.models.tokens import BosChoice, bos_prefix
from sinklens.policies import Policy


class TextScorer:
    """Answers an evaluation's three questions: how likely a continuation is, how likely a text, what is written next.

    Passes hold sequences of one length, so nothing is padded. A policy that is fixed at the prompt's end is fixed one
    token before the continuation, so that its first token is already predicted from what is left. Contexts that are too
    long lose their beginning.

    Args:
        model: The bridge, with a tokenizer.
        intervention: What is changed; ``None``: nothing, in the same engine.
        bos: As for :func:`sinklens.tokenize`; what it adds stands before every context.
        batch_size: Sequences in one forward pass.

    Raises:
        InputError: No tokenizer, or an intervention that does not fit the model.
    """

    def __init__(
        self, model: TransformerBridge, intervention: Intervention | None, bos: BosChoice = "auto", batch_size: int = 8
    ) -> None:
        if model.tokenizer is None:
            raise InputError("Tasks are text, and this model has no tokenizer.")
        if intervention is not None:
            intervention.check(model)
        self.model, self.intervention, self.batch_size = model, intervention, batch_size
        self.prefix, self.statement = bos_prefix(model, bos)
        self.limit = context_length(model)
        self.path = plan_for(model).path

    def encode(self, text: str) -> list[int]:
        """Token ids without special ones."""
        return list(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context with what stands before it, and of its continuation, which takes the spaces between them."""
        kept = context.rstrip()
        whole, first = self.encode(context + continuation), self.encode(kept)
        before, after = self._begun(whole[: len(first)]), whole[len(first) :]
        if not after:
            raise InputError(f"The continuation {continuation!r} has no token of its own after {context[-40:]!r}.")
        if not before:  # something has to predict the first token
            before, after = after[:1], after[1:]
        room = self._room(len(after))
        if len(before) > room:
            before = self.prefix + before[len(before) - room + len(self.prefix) :]
        return before, after

    def chat(self, turns: Sequence[Mapping[str, str]], answer: bool = True) -> str:
        """A conversation in the tokenizer's chat template.

        Args:
            turns: Each with ``role`` and ``content``.
            answer: Whether the assistant is to speak next; else the last turn is left open for more of its words.

        Raises:
            InputError: The tokenizer has no chat template.
            ModelLoadError: A template that does not end.
        """
        tokenizer = self.model.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("The tokenizer of this model has no chat template; evaluate it without (--no-chat).")
        check_chat_template(tokenizer)
        return str(
            tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=answer, continue_final_message=not answer
            )
        )

    def log_likelihoods(
        self, pairs: Sequence[tuple[str, str]], done: Callable[[int], None] = lambda count: None
    ) -> list[tuple[float, bool]]:
        """Sum of log-probabilities of each continuation in nats, and whether each of its tokens is the likeliest.

        Args:
            pairs: Context and continuation.
            done: Told after each pass how many it answered.
        """
        encoded = [self.pair(*each) for each in pairs]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for numbers in self._batches(encoded):
            first = len(encoded[numbers[0]][0])
            ids = torch.tensor([[*encoded[n][0], *encoded[n][1]] for n in numbers])
            logits = self._logits(ids[:, :-1], first)[:, first - 1 :].float()
            target = ids[:, first:].to(logits.device)
            chosen = log_probs(logits, target).double().sum(-1)
            greedy = (logits.argmax(-1) == target).all(-1)
            for at, n in enumerate(numbers):
                found[n] = float(chosen[at]), bool(greedy[at])
            done(len(numbers))
        return found

    def rolling(self, text: str) -> float:
        """Sum of log-probabilities of a text in nats; pieces of the model's length, each predicted from its own."""
        ids, total = self.encode(text), 0.0
        begin = self.prefix or ids[:1]
        rest = ids if self.prefix else ids[1:]
        room = self._room(1) - len(begin)
        for at in range(0, len(rest), room):
            piece = torch.tensor([[*(begin if at == 0 or self.prefix else rest[at - 1 : at]), *rest[at : at + room]]])
            n = len(rest[at : at + room])
            logits = self._logits(piece[:, :-1], 1)[0, -n:]
            total += float(log_probs(logits, piece[0, -n:]).double().sum())
        return total

    def generate(self, context: str, until: Sequence[str], max_tokens: int = 128) -> str:
        """What greedy decoding writes after a context, up to the first of some strings."""
        ids = self._begun(self.encode(context))
        ids = self.prefix + ids[max(len(self.prefix), len(ids) - self._room(max_tokens)) :]
        stop = getattr(self.model.tokenizer, "eos_token_id", None)
        written: list[int] = []
        with torch.no_grad(), self._changed(len(ids)):
            new, cache = torch.tensor([ids]), None
            for _ in range(max_tokens):
                out: Any = self.model.original_model(
                    new.to(self._device()), past_key_values=cache, use_cache=True, return_dict=True
                )
                token = int(out.logits[0, -1].argmax())
                if token == stop:
                    break
                written.append(token)
                text = str(self.model.tokenizer.decode(written))
                if any(end and end in text for end in until):
                    break
                new, cache = torch.tensor([[token]]), out.past_key_values
        text = str(self.model.tokenizer.decode(written))
        for end in until:
            text = text.split(end)[0] if end else text
        return text

    def _begun(self, ids: list[int]) -> list[int]:
        """Ids with what stands before every context, once: a chat template may have written it already."""
        return ids if self.prefix and ids[: len(self.prefix)] == self.prefix else self.prefix + ids

    def _batches(self, encoded: Sequence[tuple[list[int], list[int]]]) -> Iterator[list[int]]:
        def sizes(n: int) -> tuple[int, int]:
            return len(encoded[n][0]), len(encoded[n][1])

        for _, same in groupby(sorted(range(len(encoded)), key=sizes), sizes):
            numbers = list(same)
            yield from (numbers[at : at + self.batch_size] for at in range(0, len(numbers), self.batch_size))

    @torch.no_grad()
    def _logits(self, ids: torch.Tensor, prompt: int) -> torch.Tensor:
        with self._changed(prompt - 1):
            found: torch.Tensor = self.model(ids.to(self._device()))
        return found

    def _changed(self, prompt: int) -> AbstractContextManager[Any]:
        if self.intervention is None:
            return AttentionEngine(self.model, path=self.path)
        change = self.intervention
        if isinstance(change, Policy) and change.prompt is None:
            change = replace(change, prompt=max(1, prompt))
        return change(self.model)

    def _room(self, after: int) -> int:
        room = (self.limit or 1 << 30) - after
        if room < len(self.prefix) + 1:
            raise InputError(f"A continuation of {after} tokens does not fit a model of {self.limit}.")
        return room

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device
