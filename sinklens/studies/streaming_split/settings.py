"""How gates are learned: the paper's numbers, scaled to what a model's context and one machine allow."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import check_fields
from sinklens.errors import InputError
from sinklens.interventions.heads import as_index
from sinklens.models.architecture import context_length

Reduction = Literal["mean", "sum"]
Labels = Literal["answers", "questions_and_answers"]
FullOutputs = Literal["teacher", "own"]
LONGEST = 1024


@dataclass(frozen=True)
class GateSettings:
    """How streaming and retrieval heads are told apart by :func:`~sinklens.studies.learn_gates`.

    What is ``None`` follows from the model's context, see :meth:`resolved`; the result records the numbers. In brackets
    what the authors used on Llama-2-7B and kin.

    Attributes:
        steps: Optimiser steps [2,000].
        lr: AdamW's learning rate at its height, without weight decay [0.02].
        reg_weight: Factor on the regulariser [0.05].
        regulariser: ``"mean"`` of all gates, as the released code has it, or their ``"sum"``, as the paper's Eq. 2: by
            the number of gates stronger. The released gates were made with the mean.
        distillation: ``"mean"`` of the squared differences over channels and labelled rows (code), or their ``"sum"``,
            averaged over sequences (paper's Eq. 1).
        labels: Rows whose last hidden state is compared: those of the ``"answers"`` (paper: the passkey tokens), or of
            ``"questions_and_answers"`` (released code).
        full_outputs: Where the gated model's full attention comes from: ``"teacher"`` as in the released code, that is
            from the unchanged model's own queries, keys and values, or ``"own"``, from those of the gated model, which
            is what runs after deployment.
        sinks: First tokens that a streaming head sees [128].
        recent: Most recent tokens that it sees, the query included [256].
        min_length: Shortest text [1,000].
        max_length: Longest text [the model's context].
        lengths: How many lengths, evenly spaced [50].
        passkeys: Keys in a text [10].
        value_len: Tokens of a value [32 words].
        depths: Smallest and largest depth of a needle [0.05, 0.95].
        batch: Sequences of a step [1].
        seed: Of the texts and of their order.

    Raises:
        InputError: A number out of range, or an unknown word.
    """

    steps: int = 200
    lr: float = 0.02
    reg_weight: float = 0.05
    regulariser: Reduction = "mean"
    distillation: Reduction = "mean"
    labels: Labels = "answers"
    full_outputs: FullOutputs = "teacher"
    sinks: int | None = None
    recent: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    lengths: int = 10
    passkeys: int | None = None
    value_len: int = 8
    depths: tuple[float, float] = (0.05, 0.95)
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        least = {"sinks": 0, "seed": 0}
        for name in [
            "steps",
            "sinks",
            "recent",
            "min_length",
            "max_length",
            "lengths",
            "passkeys",
            "value_len",
            "batch",
            "seed",
        ]:
            value = getattr(self, name)
            if value is not None and as_index(value) < least.get(name, 1):
                raise InputError(f"{name} must be an integer from {least.get(name, 1)}, got {value!r}.")
        for name in ("lr", "reg_weight"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} must be a number from 0, got {value!r}.")
        object.__setattr__(self, "depths", tuple(self.depths))

    def resolved(self, model: TransformerBridge) -> "GateSettings":
        """The settings with every number that depends on the model filled in.

        The longest text is the model's context, at most 1,024 tokens; the shortest a quarter of it. A streaming head
        sees a sixteenth of the longest text (8 to 256 tokens) and half as many sinks, the authors' proportion. Keys and
        values take at most a quarter of the shortest text, and there are at most ten.

        Raises:
            InputError: Texts beyond the model's context, or no text longer than what a streaming head sees.
        """
        context = context_length(model)
        longest = self.max_length or min(context or LONGEST, LONGEST)
        if context is not None and longest > context:
            raise InputError(f"max_length={longest} is longer than the model's context of {context} tokens.")
        recent = self.recent or min(256, max(8, longest // 16))
        sinks = min(128, recent // 2) if self.sinks is None else self.sinks
        shortest = self.min_length or min(longest, max(longest // 4, 2 * (sinks + recent)))
        passkeys = self.passkeys or min(10, max(1, shortest // (8 * (1 + self.value_len))))
        if shortest > longest:
            raise InputError(f"min_length={shortest} is longer than max_length={longest}.")
        if longest <= sinks + recent:
            raise InputError(
                f"No text is longer than the {sinks} sinks and {recent} recent tokens that a streaming head sees, so "
                f"streaming changes nothing; use texts of more than {sinks + recent} tokens, or fewer of those."
            )
        return replace(self, sinks=sinks, recent=recent, min_length=shortest, max_length=longest, passkeys=passkeys)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "depths": list(self.depths)}

    def text_lengths(self) -> list[int]:
        """The lengths that texts have, evenly spaced; only once resolved."""
        low, high = int(self.min_length or 0), int(self.max_length or 0)
        steps = max(1, self.lengths - 1)
        return sorted({low + (high - low) * step // steps for step in range(steps + 1)} if self.lengths > 1 else {high})

    def rate(self, step: int) -> float:
        """Learning rate of a step: up over the first fifth, down over the last, never below a tenth.

        >>> settings = GateSettings(steps=100)
        >>> [round(settings.rate(step), 4) for step in (0, 9, 19, 50, 90, 99)]
        [0.002, 0.01, 0.02, 0.02, 0.01, 0.002]
        """
        fifth = max(1, self.steps // 5)
        return self.lr * min(1.0, max((step + 1) / fifth, 0.1), max((self.steps - step) / fifth, 0.1))
