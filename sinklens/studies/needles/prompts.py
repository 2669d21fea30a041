"""From a haystack and a question to prompts of given lengths and depths, with exact token spans."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.models.chat_template import check_chat_template
from sinklens.models.tokens import BosChoice, bos_prefix
from sinklens.studies.needles.haystack import Haystack
from sinklens.studies.needles.instance import Kind, NeedleInstance
from sinklens.studies.needles.question import Question

Template = Literal["plain", "chat"]
"""A prompt as plain text, or in the tokenizer's chat template."""

ATTEMPTS = 6

Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class _Built:
    """A prompt with so many haystack tokens."""

    text: str
    ids: list[int]
    offsets: Offsets
    context: tuple[int, int]
    needle: tuple[int, int]
    answer: tuple[int, int]

    def tokens(self, characters: tuple[int, int]) -> tuple[int, int]:
        """Positions of the tokens that hold any of these characters."""
        first, stop = characters
        inside = [number for number, (a, b) in enumerate(self.offsets) if a < b and b > first and a < stop]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)


class PromptBuilder:
    """Builds the prompts of one repeat: one haystack and one question at many lengths and depths.

    Spans are known by construction: the character where the answer stands in the text is known, and the tokenizer's
    own offsets say which tokens hold it. The whole prompt is tokenized at once, as the model would see it.

    Args:
        model: The bridge whose tokenizer applies.
        haystack: At least as long as the longest prompt.
        question: What is hidden in it.
        template: ``"plain"`` or ``"chat"`` (the tokenizer's chat template, haystack and question in one user message).
        bos: As for :func:`sinklens.tokenize`; a chat template that writes the BOS itself gets no second one.

    Raises:
        InputError: No tokenizer, none that says where its tokens stand, or no chat template.
    """

    def __init__(
        self,
        model: TransformerBridge,
        haystack: Haystack,
        question: Question,
        template: Template = "plain",
        bos: BosChoice = "auto",
    ) -> None:
        self.tokenizer: Any = model.tokenizer
        if self.tokenizer is None:
            raise InputError("The model has no tokenizer, so there is no text to hide a needle in; use kind='random'.")
        if template not in ("plain", "chat"):
            raise InputError(f'template must be "plain" or "chat", got {template!r}.')
        if template == "chat" and not getattr(self.tokenizer, "chat_template", None):
            raise InputError('This model\'s tokenizer has no chat template; use template="plain".')
        if template == "chat":
            check_chat_template(self.tokenizer)
        self.haystack, self.question, self.template = haystack, question, template
        self.prefix, self.bos = bos_prefix(model, bos)
        first = getattr(self.tokenizer, "bos_token", None)
        if template == "chat" and first and self._render("")[0].startswith(first):
            self.prefix, self.bos = [], "The chat template writes the BOS."

    @cached_property
    def overhead(self) -> int:
        """Tokens of a prompt without any haystack."""
        return len(self._build(0, 0.0).ids)

    @cached_property
    def answer_length(self) -> int:
        """Tokens of the answer in the prompt without haystack."""
        built = self._build(0, 0.0)
        first, stop = built.tokens(built.answer)
        return stop - first

    @property
    def haystack_tokens(self) -> int:
        """Tokens of the whole haystack."""
        return len(self._haystack_offsets)

    @cached_property
    def _haystack_offsets(self) -> Offsets:
        return self._encode(self.haystack.text)[1]

    def instance(self, kind: Kind, length: int, depth: float, repeat: int) -> NeedleInstance:
        """The prompt that comes closest to ``length`` tokens from below, its needle at the last place before ``depth``.

        Raises:
            InputError: ``length`` has no room for needle and question, or the haystack is too short.
        """
        if length < self.overhead:
            raise InputError(
                f"A prompt of {length} tokens has no room for the needle and the question, which take {self.overhead}; "
                f"use lengths from {self.overhead} on."
            )
        best, asked, tried = self._build(0, depth), length - self.overhead, set[int]()
        for _ in range(ATTEMPTS):
            if asked in tried or not 0 <= asked <= len(self._haystack_offsets):
                break
            tried.add(asked)
            built = self._build(asked, depth)
            missing = length - len(built.ids)
            if 0 <= missing < length - len(best.ids):
                best = built
            if missing == 0:
                break
            asked += missing
        return self._instance(best, kind, length, depth, repeat)

    def writes_answer_alike(self, instance: NeedleInstance) -> bool:
        """Whether the tokenizer writes the answer after the question with the tokens that stand in the needle."""
        blank = "" if self.question.lead.endswith('"') or self.question.whole else " "
        copied = self.question.needle if self.question.whole else self.question.answer
        ids, _ = self._encode(f"{instance.text}{blank}{copied}")
        return tuple(ids[len(instance.ids) - len(self.prefix) :]) == instance.answer

    def _build(self, count: int, depth: float) -> _Built:
        """The prompt with the first ``count`` tokens of the haystack (fewer where it is cut at places only)."""
        ends = [0, *(end for _, end in self._haystack_offsets[:count])] if count else [0]
        cut = self.haystack.cut(ends[-1])
        if depth >= 1:
            place = cut
        else:
            place = min(self.haystack.last_place(ends[math.floor(depth * (len(ends) - 1))]), cut)
        before, after = self.haystack.text[:place], self.haystack.text[place:cut]
        gap = "\n" if self.question.whole else " "  # a sentence that is copied whole has a line of its own
        lead = gap if before and (self.question.whole or not before[-1].isspace()) else ""
        if after and self.question.whole:
            after = after.lstrip()
        tail = gap if after and not after[0].isspace() and not self.question.needle.endswith("\n") else ""
        context = f"{before}{lead}{self.question.needle}{tail}{after}"
        text, start = self._render(context)
        ids, offsets = self._encode(text)
        shift = len(self.prefix)
        needle = start + len(before) + len(lead)
        copied = self.question.needle if self.question.whole else self.question.answer
        answer = needle + self.question.needle.index(copied)
        return _Built(
            text,
            [*self.prefix, *ids],
            [*[(0, 0)] * shift, *offsets],
            (start, start + len(context)),
            (needle, needle + len(self.question.needle.rstrip())),
            (answer, answer + len(copied)),
        )

    def _instance(self, built: _Built, kind: Kind, length: int, depth: float, repeat: int) -> NeedleInstance:
        span, needle = built.tokens(built.answer), built.tokens(built.needle)
        context = built.tokens(built.context)
        filler = (context[1] - context[0]) - (needle[1] - needle[0])
        return NeedleInstance(
            kind=kind,
            length=length,
            depth=depth,
            repeat=repeat,
            ids=tuple(built.ids),
            answer=tuple(built.ids[slice(*span)]),
            span=span,
            needle=needle,
            depth_got=(needle[0] - context[0]) / filler if filler else math.nan,
            bos=self.bos,
            text=built.text,
            answer_text=self.question.answer,
        )

    def _render(self, context: str) -> tuple[str, int]:
        """The prompt's text, and the character where the context starts."""
        question = self.question
        body = f"{question.opening}{context}{question.ask}"
        if self.template == "plain":
            return f"{body}{question.lead}", len(question.opening)
        messages = [{"role": "user", "content": body}]
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # whatever the template of this checkpoint does
            said = " ".join(str(error).split())[:200]
            raise InputError(f'The chat template of this model fails ({said}); use template="plain".') from error
        at = text.find(body)
        if at < 0:  # some templates strip the message
            at = text.find(body.strip()) - (len(body) - len(body.lstrip()))
        if body.strip() not in text:
            raise InputError('The chat template changes the message, so the needle is lost; use template="plain".')
        return f"{text}{'' if question.whole else question.lead.lstrip()}", at + len(question.opening)

    def _encode(self, text: str) -> tuple[list[int], Offsets]:
        if not text:
            return [], []
        try:
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            return list(found["input_ids"]), [(int(a), int(b)) for a, b in found["offset_mapping"]]
        except (NotImplementedError, ValueError, KeyError) as error:
            raise InputError(
                "This model's tokenizer does not say where its tokens stand in the text (offsets), so needles in text "
                "cannot be located; use kind='random'."
            ) from error
        except Exception as error:  # the tokenizers library has no class of its own for a character it does not know
            raise InputError(
                f"The prompt cannot be tokenized: {error}. Every character must be in the vocabulary of this model; "
                "kind='random' needs no text."
            ) from error


def place(
    builder: PromptBuilder, kind: Kind, cells: Sequence[tuple[int, float]], repeat: int
) -> tuple[list[NeedleInstance], int]:
    """One repeat at every length and depth, and how many would be answered with other tokens than the needle's."""
    found = [builder.instance(kind, length, depth, repeat) for length, depth in cells]
    unlike = sum(not builder.writes_answer_alike(each) for each in found)
    return found, unlike
