"""Bigram-Backcopy as a task of the lab: any set of triggers, with or without BOS."""

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.errors import InputError
from sinklens.lab.bigram_backcopy import BigramBackcopy


@dataclass(frozen=True)
class Backcopy(BigramBackcopy):
    """Characters that follow each other as in a text, but after a trigger the one before it comes back (Guo et al.).

    Attributes:
        triggers: the characters that are triggers; the ``n_triggers`` most frequent ones if None.

    Raises:
        InputError: if a trigger is no character of the text or named twice, or no other character is left.

    Example:
        >>> task = Backcopy(triggers="aq")
        >>> [task.characters[i] for i in task.trigger_ids]
        ['a', 'q']
    """

    triggers: str | None = None

    def __post_init__(self) -> None:
        """Refuse settings that define no task."""
        super().__post_init__()
        if self.triggers is None:
            return
        unknown = sorted(set(self.triggers) - set(self.characters))
        if unknown or len(set(self.triggers)) < len(self.triggers):
            raise InputError(f"Triggers are different characters of tiny Shakespeare; {self.triggers!r} are not.")
        if len(self.triggers) >= len(self.characters):
            raise InputError("At least one character must be no trigger.")

    @cached_property
    def trigger_ids(self) -> tuple[int, ...]:
        """The ids of the triggers, in the order given, or most frequent first."""
        if self.triggers is None:
            return super().trigger_ids
        return tuple(self.characters.index(character) for character in self.triggers)

    def classes(self, ids: Int[Tensor, "batch pos"]) -> dict[str, Bool[Tensor, "batch q_pos"]]:
        """Return which queries are followed by a copy ("backcopy") and which by a drawn character ("bigram")."""
        trigger = self.trigger_mask(ids[:, :-1])
        return {"backcopy": trigger, "bigram": ~trigger}
