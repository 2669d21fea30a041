"""Prompts of a needle test for a model."""

import math
from collections.abc import Sequence
from typing import Literal

from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.errors import InputError
from sinklens.models.architecture import context_length
from sinklens.models.builtin import data_dir
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.models.tokens import BosChoice, bos_prefix
from sinklens.studies.needles.depths import checked_depths
from sinklens.studies.needles.haystack import text_haystack
from sinklens.studies.needles.instance import Kind, NeedleInstance
from sinklens.studies.needles.needle_set import NeedleSet
from sinklens.studies.needles.prompts import PromptBuilder, Template, place
from sinklens.studies.needles.question import Question
from sinklens.studies.needles.random_needles import random_needle
from sinklens.studies.needles.text_needles import json_entries, natural_question, passkey_question

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LONGEST = 2048
CHARACTERS_PER_TOKEN = 8
"""A haystack is made so many times longer than the prompt has tokens; for longer tokens it is made again."""

BUILTIN_TEXT = "shakespeare.txt"

MOST_REPEATS = 10_000


@checked
def make_needles(
    model: TransformerBridge,
    kind: Kind = "random",
    *,
    lengths: Sequence[int] | None = None,
    depths: Sequence[float] = DEPTHS,
    repeats: int = 10,
    size: int = 8,
    shots: int = 3,
    text: str | None = None,
    questions: Sequence[Question] | None = None,
    template: Template | Literal["auto"] = "auto",
    sentence: bool | None = None,
    bos: BosChoice = "auto",
    seed: int = 0,
    source: str | None = None,
) -> NeedleSet:
    """Prompts with a needle at every length and depth, several times over.

    Kinds:

    - ``"random"``: random token ids; a key with values, and the key again at the end. Needs no tokenizer, and a small
      model with induction heads can answer it.
    - ``"passkey"``: words after "the third passkey to the vault".
    - ``"json"``: random 32-character keys with sentences, a key looked up at the end.
    - ``"natural"``: a sentence with question and answer, built in or your own.

    Args:
        model: The bridge whose vocabulary, tokenizer and context apply.
        kind: See above.
        lengths: Tokens of the prompts, from the BOS to the last one before the answer; default: the longest that
            fits the context (at most 2,048), a half, a quarter and an eighth of it, as far as the needle fits.
        depths: Where in the haystack, from 0 (its start) to 1 (its end). In a text the needle moves back to the end of
            a sentence.
        repeats: Prompts of each length and depth. Prompts of the same repeat share haystack, needle and question.
        size: Values of a random needle, words of a passkey.
        shots: Entries shown again before the question, for ``"json"``.
        text: The haystack; default: a built-in excerpt of Shakespeare.
        questions: Needles of your own for ``"natural"`` (see :meth:`Question.about`), taken in turn.
        template: ``"plain"``, ``"chat"`` for the tokenizer's chat template, or ``"auto"``: chat where it has one.
        sentence: Whether a natural needle is to be given back as a complete sentence, as chat models answer, instead
            of the answer's words after "Answer:"; default: in a chat template. Decoded text is judged by the answer's
            words either way.
        bos: As for :func:`sinklens.tokenize`.
        seed: Of all draws.
        source: What to call the haystack in the result.

    Raises:
        InputError: An unknown kind, a length without room for needle and question or beyond the context, a depth
            outside 0 to 1, or text that cannot be tokenized.

    >>> from sinklens import load
    >>> needles = make_needles(load("bb-3l"), lengths=(20, 40), depths=(0, 1), repeats=3, size=4)
    >>> len(needles), needles.instances[0]
    (12, NeedleInstance(kind='random', length=20, depth=0.0, repeat=0, ...
    """
    if repeats < 1 or size < 1 or shots < 0:
        raise InputError(f"repeats and size must be at least 1 and shots 0, got {repeats}, {size} and {shots}.")
    if repeats > MOST_REPEATS:
        raise InputError(f"repeats may be {MOST_REPEATS:,} at most, got {str(repeats)[:20]}.")
    if questions is not None and kind != "natural":
        raise InputError(f'Own questions go with kind="natural", not with {kind!r}.')
    if kind == "random" and (text is not None or template == "chat"):
        raise InputError('kind="random" draws token ids; it takes no text and no template.')
    if sentence and kind != "natural":
        raise InputError(f'Complete sentences go with kind="natural", not with {kind!r}.')
    if template == "auto":
        template = "chat" if kind != "random" and getattr(model.tokenizer, "chat_template", None) else "plain"
    whole = sentence if sentence is not None else template == "chat"
    depths = checked_depths(depths, lengths)
    notes: list[str] = []
    if kind == "random":
        prefix, statement = bos_prefix(model, bos)
        ordinary = ordinary_ids(model).tolist()
        chosen = _lengths(model, lengths, shortest=len(prefix) + size + 2, answer=size)
        cells = [(length, depth) for length in chosen for depth in depths]
        found: list[NeedleInstance] = []
        for repeat in range(repeats):
            options = {"repeat": repeat, "size": size, "seed": seed}
            found += random_needle(ordinary, prefix, cells, bos=statement, **options)
        source = f"random tokens, {len(ordinary)} different ones, seed {seed}"
        if chosen[-1] - len(prefix) - size - 2 > len(ordinary) - size - 1:
            notes.append("The longest haystacks have more tokens than the vocabulary, so tokens occur several times.")
    else:
        excerpt = (data_dir() / "texts" / BUILTIN_TEXT).read_text("utf-8") if text is None else text
        source = source or ("built-in excerpt of Shakespeare" if text is None else "text given by the caller")
        asks = _Asks(model, kind, excerpt, size, shots, questions, template, bos, seed, whole)
        first = asks.builders(repeats, max(lengths) if lengths else LONGEST)
        chosen = _lengths(
            model,
            lengths,
            shortest=max(builder.overhead for builder in first),
            answer=max(builder.answer_length for builder in first),
        )
        statement = first[0].bos
        cells = [(length, depth) for length in chosen for depth in depths]
        found, unlike = [], 0
        for repeat, builder in enumerate(first):
            placed, others = place(builder, kind, cells, repeat)
            found, unlike = found + placed, unlike + others
        short = min(len(each.ids) / each.length for each in found)
        if short < 0.9:
            notes.append(f"Some prompts are shorter than asked, by up to {1 - short:.0%}.")
        if unlike:
            notes.append(
                f"In {unlike} of {len(found)} prompts the tokenizer would write the answer with other tokens after the "
                "question than in the needle; the needle's are asked for."
            )
    found = [each for cell in cells for each in found if (each.length, each.depth) == cell]
    meta = {
        "kind": kind,
        "lengths": chosen,
        "depths": depths,
        "repeats": repeats,
        "size": size if kind in ("random", "passkey") else None,
        "shots": shots if kind == "json" else None,
        "template": template,
        "sentence": whole if kind == "natural" else None,
        "seed": seed,
        "source": source,
        "bos": {"asked": str(bos), "statement": statement},
        "own_questions": questions is not None,
        "notes": notes,
    }
    return NeedleSet(tuple(found), meta)


class _Asks:
    """Prompt builders of the kinds that need text."""

    def __init__(
        self,
        model: TransformerBridge,
        kind: Kind,
        text: str,
        size: int,
        shots: int,
        questions: Sequence[Question] | None,
        template: Template,
        bos: BosChoice,
        seed: int,
        whole: bool,
    ) -> None:
        self.model, self.kind, self.text, self.questions = model, kind, text, questions
        self.size, self.shots, self.template, self.bos, self.seed = size, shots, template, bos, seed
        self.whole = whole

    def builders(self, repeats: int, longest: int) -> list[PromptBuilder]:
        """One for each repeat, with a haystack of at least ``longest`` tokens."""
        return [self._builder(repeat, longest) for repeat in range(repeats)]

    def _builder(self, repeat: int, longest: int) -> PromptBuilder:
        characters = longest * CHARACTERS_PER_TOKEN
        while True:
            if self.kind == "json":
                haystack, question = json_entries(self.text, characters, repeat, shots=self.shots, seed=self.seed)
            else:
                haystack = text_haystack(self.text, characters, repeat=repeat, seed=self.seed)
                if self.kind == "passkey":
                    question = passkey_question(repeat, size=self.size, seed=self.seed)
                else:
                    question = natural_question(repeat, self.questions)
                    question = question.as_sentence() if self.whole else question
            builder = PromptBuilder(self.model, haystack, question, self.template, self.bos)
            if builder.haystack_tokens >= longest:
                return builder
            characters *= 2


def _lengths(model: TransformerBridge, lengths: Sequence[int] | None, *, shortest: int, answer: int) -> list[int]:
    """The lengths asked for, checked, or the default ones."""
    context = context_length(model)
    room = math.inf if context is None else context - answer + 1  # the last answer token is never fed
    if lengths is None:
        longest = int(min(room, LONGEST))
        chosen = [longest // part for part in (8, 4, 2, 1) if longest // part >= shortest]
        if not chosen:
            raise InputError(
                f"The needle, its question and its answer take {shortest + answer} tokens and this model's context has "
                f"{context}; use a smaller size or another kind."
            )
        return chosen
    chosen = sorted({int(length) for length in lengths})
    if chosen[0] < shortest:
        raise InputError(
            f"A prompt of {chosen[0]} tokens has no room for the needle and the question, which take {shortest}; use "
            f"lengths from {shortest} on."
        )
    if chosen[-1] > room:
        raise InputError(
            f"A prompt of {chosen[-1]} tokens with an answer of {answer} is longer than the model's context of "
            f"{context}; use lengths up to {room}."
        )
    return chosen
