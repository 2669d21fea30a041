"""Where a head counts as dormant: thresholds that can be checked before a model is loaded."""

from dataclasses import asdict, dataclass

from sinklens.errors import InputError


@dataclass(frozen=True)
class Thresholds:
    """Where the criteria draw their lines; between them a head is ``"unclear"``.

    Attributes:
        dormant_mass: Sink mass from which a head is dormant (Guo et al.'s heads have 0.7 to 0.97 on idle tokens).
        active_mass: Sink mass up to which it is active (Gu et al.'s eps).
        null_ratio: A dormant head gives the sink at least so many times what uniform attention would; below that it is
            active.
        norm: Ratio of output norms below which a head is dormant (to the layer's mean, and to its own largest); our
            choice, from it on the head is active.
        effect: Rise of the loss in nats that matters, the same everywhere; ``None`` takes it from ``spread``. (0.03 is
            the gate of the Bigram-Backcopy task for "zeroing attention leaves bigrams alone", where the loss is 2.2.)
        spread: Without ``effect``, how much of the spread of the loss matters: its standard deviation over the
            sequences of a domain. A tenth is half of what is called a small effect (Cohen's d of 0.2); our choice.

    Raises:
        InputError: Not ``0 < active_mass <= dormant_mass < 1``, or another threshold is not positive.
    """

    dormant_mass: float = 0.5
    active_mass: float = 0.3
    null_ratio: float = 2.0
    norm: float = 0.5
    effect: float | None = None
    spread: float = 0.1

    def __post_init__(self) -> None:
        positive = (self.null_ratio, self.norm, self.spread, 1.0 if self.effect is None else self.effect)
        if not 0 < self.active_mass <= self.dormant_mass < 1 or not min(positive) > 0:
            raise InputError(
                f"Expected 0 < active_mass <= dormant_mass < 1 and positive thresholds, got {asdict(self)}."
            )


THRESHOLDS = Thresholds()
