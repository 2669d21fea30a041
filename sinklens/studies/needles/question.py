"""What is hidden in a text, and how it is asked for."""

from dataclasses import dataclass, replace

from sinklens.errors import InputError

ASK = "\n\nBased on the content of the book, Question: {question}"
LEAD = "\nAnswer:"


@dataclass(frozen=True)
class Question:
    """A needle and its question.

    The prompt is ``opening + haystack with the needle + ask + lead``; the answer follows it.

    Attributes:
        needle: A sentence (or entry) that holds the answer.
        answer: The words to copy, a part of the needle that stands there once.
        ask: What follows the haystack.
        lead: The beginning of the answer that the prompt gives; with a chat template it opens the model's turn, unless
            the answer is ``whole``.
        opening: What stands before the haystack.
        whole: Whether the model is to give the whole needle, a complete sentence, as chat models do. The needle then
            stands in a line of its own, so that its first token is the one that begins an answer.

    Raises:
        InputError: The answer does not stand in the needle exactly once.
    """

    needle: str
    answer: str
    ask: str
    lead: str = LEAD
    opening: str = ""
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.answer.strip() or self.needle.count(self.answer) != 1:
            raise InputError(
                f"The answer must stand in the needle, once and word for word; {self.answer!r} does not in "
                f"{self.needle!r}."
            )

    @classmethod
    def about(cls, needle: str, question: str, answer: str) -> "Question":
        r"""A needle in a book and a question about it, in the words of the paper's prompt.

        >>> Question.about("The key is under a red stone.", "Where is the key?", "under a red stone").ask
        '\n\nBased on the content of the book, Question: Where is the key?'
        """
        return cls(needle.strip(), answer.strip(), ASK.format(question=question.strip()))

    def as_sentence(self) -> "Question":
        """The same question, to be answered with the needle's complete sentence, on a line of its own.

        >>> Question.about("The key is under a stone.", "Where is the key?", "under a stone").as_sentence().whole
        True
        """
        return replace(self, lead=f"{self.lead}\n", whole=True)
