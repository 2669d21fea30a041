"""A published claim: what a paper says, the rule that judges it, and the function that measures it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from published.subject import Subject
from sinklens.evidence.bootstrap import Interval
from sinklens.lab.emergence.claims import Test

Kind = Literal["phenomena", "heads"]
Measure = Callable[[Subject], dict[str, Interval]]
REGISTRY: dict[str, "PublishedClaim"] = {}
"""All claims by key, in the order of the page; each file of claims adds its own on import."""


class NotTestableError(Exception):
    """The claim is about something that this model does not have; the text says what."""


@dataclass(frozen=True)
class PublishedClaim:
    """What a paper says, and how it is held against a model.

    Attributes:
        key: Short name, for ``--claims``.
        kind: Whether it is about phenomena (sinks, drains, massive activations) or about heads.
        source: Paper.
        says: The claim in plain words.
        reported: The paper's own figures, with where they were read.
        figures: What each measured figure means; those that no test names are nulls and controls.
        tests: The first is the claim itself, the others belong to it. Written before anything was measured with it.
        call: The public call that gives the figure.
        measure: From a model to its figures.
    """

    key: str
    kind: Kind
    source: str
    says: str
    reported: str
    figures: Mapping[str, str]
    tests: tuple[Test, ...]
    call: str
    measure: Measure

    @property
    def tested(self) -> tuple[str, ...]:
        """Figures that the verdict rests on."""
        return tuple(test.figure for test in self.tests)


def at_least(figure: str, holds: float, fails: float) -> Test:
    """The claim holds from ``holds`` on, and its opposite at ``fails`` and below."""
    return Test("", figure, ">=", holds, fails)


def at_most(figure: str, holds: float, fails: float) -> Test:
    """The claim holds up to ``holds``, and its opposite from ``fails`` on."""
    return Test("", figure, "<=", holds, fails)


def claim(
    key: str,
    source: str,
    *,
    kind: Kind = "phenomena",
    says: str,
    reported: str,
    figures: Mapping[str, str],
    tests: tuple[Test, ...],
    call: str,
) -> Callable[[Measure], Measure]:
    """Register the decorated function as the measurement of a claim."""

    def register(measure: Measure) -> Measure:
        REGISTRY[key] = PublishedClaim(key, kind, source, says, reported, figures, tests, call, measure)
        return measure

    return register
