"""Built-in needles of words: passkeys, JSON entries and sentences."""

import itertools
import json
import random
from collections.abc import Sequence

from sinklens.errors import InputError
from sinklens.models.builtin import data_dir
from sinklens.studies.needles.haystack import Haystack, sentence_ends
from sinklens.studies.needles.question import Question

WORDS = (
    *("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett", "kilo", "lima"),
    *("mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor", "whiskey"),
    *("xray", "yankee", "zulu"),
)
"""The spelling alphabet."""

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")

PASSKEY = "Remember this sequence of words, it's the {ordinal} passkey to the vault: {words}."
PASSKEY_ASK = "\n\nBased on the content of the book, what is the {ordinal} passkey to the vault?"
PASSKEY_LEAD = "\nPasskey: it's the {ordinal} passkey to the vault:"

JSON_KEY, JSON_WORDS = 32, 12
JSON_ASK = "}\n\nThe same entries once more, some of them:"


def passkey_question(repeat: int, *, size: int, seed: int) -> Question:
    """Words of the spelling alphabet as a passkey, after DuoAttention's synthetic task (arXiv 2410.10819).

    Args:
        repeat: Number of the repeat; with ``seed`` it determines ordinal and words.
        size: Words of the passkey. Up to 26 all differ.
        seed: Of the draws.

    Example:
        >>> passkey_question(0, size=3, seed=0).answer.count(" ")
        2
    """
    draw = random.Random(f"{seed}/passkey/{repeat}")
    ordinal = ORDINALS[repeat % len(ORDINALS)]
    words = " ".join(draw.sample(WORDS, size) if size <= len(WORDS) else draw.choices(WORDS, k=size))
    ask, lead = PASSKEY_ASK.format(ordinal=ordinal), PASSKEY_LEAD.format(ordinal=ordinal)
    return Question(PASSKEY.format(ordinal=ordinal, words=words), words, ask, lead)


def json_entries(
    text: str, characters: int, repeat: int, *, shots: int = 3, seed: int = 0
) -> tuple[Haystack, Question]:
    """A JSON object of random 32-character keys and sentences of a text, and one entry more to be looked up.

    After AttentionInfluence's proxy task (arXiv 2505.07293): the prompt ends with a few entries of the object again
    (its first ones) and the key that is asked for. Sentences are cut after 12 words and stand without their last stop.

    Args:
        text: Where sentences come from; used again with other keys when there are too few.
        characters: Least length of the object.
        repeat: Number of the repeat; with ``seed`` it determines keys and which sentences.
        shots: Entries repeated before the one that is asked for.
        seed: Of the draws.

    Raises:
        InputError: Fewer than two sentences of three words.
    """
    draw = random.Random(f"{seed}/json/{repeat}")
    sentences = _short_sentences(text)
    if len(sentences) < 2:
        raise InputError("JSON needles need a text with at least two sentences of three words; give a longer one.")
    draw.shuffle(sentences)
    chosen, *others = sentences

    def entry(sentence: str) -> str:
        key = "".join(draw.choices("0123456789abcdef", k=JSON_KEY))
        return f'"{key}": "{sentence}'

    lines: list[str] = []
    while sum(map(len, lines)) < characters or len(lines) < shots:
        lines.append(entry(others[len(lines) % len(others)]))
    needle = entry(chosen)
    full = "".join(f'{line}",\n' for line in lines)
    places = [0]
    for line in lines:
        places.append(places[-1] + len(line) + len('",\n'))
    begun, answer = needle[: JSON_KEY + 5], needle[JSON_KEY + 5 :]
    again = "".join(f'{line}"\n' for line in lines[:shots])
    question = Question(f'{needle}",\n', answer, JSON_ASK, f"\n{again}{begun}", opening="{\n")
    return Haystack(full, tuple(places), whole=True), question


def _short_sentences(text: str) -> list[str]:
    """Different sentences of a text in one line each: letters and marks that JSON need not escape."""
    ends = [0, *sentence_ends(text)]
    found = []
    for start, stop in itertools.pairwise(ends):
        words = text[start:stop].split()[:JSON_WORDS]
        sentence = " ".join(words).rstrip(".!?,;:\"'")
        if len(words) >= 3 and not {'"', "\\"} & set(sentence):
            found.append(sentence)
    return list(dict.fromkeys(found))


def natural_questions() -> list[Question]:
    """The built-in sentences with question and answer, in our own words (``data/needles``)."""
    content = json.loads((data_dir() / "needles" / "natural.json").read_text("utf-8"))
    return [Question.about(each["needle"], each["question"], each["answer"]) for each in content["needles"]]


def natural_question(repeat: int, own: Sequence[Question] | None) -> Question:
    """The needle of a repeat: the built-in or the caller's own ones in turn."""
    questions = natural_questions() if own is None else list(own)
    if not questions:
        raise InputError("Expected at least one needle with question and answer, got none.")
    return questions[repeat % len(questions)]
