"""What is on the screen, as one value that goes into the page's address and comes back from it."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlencode

from sinklens.errors import InputError
from sinklens.interventions.heads import Head, head_name, parse_head

METHODS: Final = ("none", "scale", "ablate")
HOW: Final = ("zero", "uniform", "mean")
COLOURS: Final = ("head", "all")
GAMMA: Final = (0.01, 100.0)
_LONGEST: Final = 400


def gamma_of(exponent: object) -> float:
    """The factor that a slider from ``log10`` of its ends stands for, with four digits.

    >>> gamma_of(-1), gamma_of(None)
    (0.1, 1.0)

    Raises:
        InputError: No number, or one beyond the slider's ends.
    """
    try:
        power = 0.0 if exponent is None or exponent == "" else float(exponent)  # type: ignore[arg-type]
        gamma = float(f"{10**power:.4g}")
    except (TypeError, ValueError, OverflowError):
        gamma = math.nan
    if not GAMMA[0] <= gamma <= GAMMA[1]:
        raise InputError(f"gamma lies between {GAMMA[0]:g} and {GAMMA[1]:g}, got 10 to the power {str(exponent)[:20]}.")
    return gamma


@dataclass(frozen=True)
class State:
    """Everything that a reload brings back; anything else on the page follows from it.

    Attributes:
        run: Name of the result shown, relative to the opened folder (``"."`` is the folder itself) or ``live-1``.
        compare: Name of the result beside it, empty for none.
        score: What the layer x head grid colours, empty for the result's first.
        head: Chosen head such as ``L5H1``, empty for none.
        sequence: Index of the sequence whose tokens are shown.
        token: Position of the chosen token, ``None`` for none.
        log: Logarithmic colours of the attention map.
        colours: The strip of tokens is coloured by what the chosen head (``"head"``) or all heads (``"all"``) give.
        region: Exact rows of a pooled map, ``"first-last:first-last"`` of queries and keys; empty for the whole map.
        table: What is opened under "everything in this result".
        method: Intervention to try: ``"none"``, ``"scale"`` (keys) or ``"ablate"`` (heads).
        heads: Its heads, as typed.
        keys: Its keys, as typed.
        gamma: Its factor on the keys' attention.
        how: Its kind of ablation.
    """

    run: str = ""
    compare: str = ""
    score: str = ""
    head: str = ""
    sequence: int = 0
    token: int | None = None
    log: bool = False
    colours: str = "head"
    region: str = ""
    table: str = ""
    method: str = "none"
    heads: str = ""
    keys: str = "0"
    gamma: float = 1.0
    how: str = "zero"

    def to_query(self) -> str:
        """The address's part from ``?`` on; what has its default is left out.

        >>> State(run="demo", head="L1H0", token=0).to_query()
        '?run=demo&head=L1H0&token=0'
        """
        default = State()
        chosen = {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != getattr(default, field.name)
        }
        if "log" in chosen:
            chosen["log"] = 1
        if "gamma" in chosen:
            chosen["gamma"] = f"{self.gamma:.4g}"
        return f"?{urlencode(chosen)}" if chosen else ""

    @classmethod
    def from_query(cls, query: str | None) -> Self:
        """Read an address; what makes no sense in it keeps its default.

        >>> State.from_query("?run=demo&head=l1h0&token=-3&gamma=nan&method=explode")
        State(run='demo', compare='', score='', head='L1H0', sequence=0, token=None, log=False, colours='head', \
region='', table='', method='none', heads='', keys='0', gamma=1.0, how='zero')
        """
        try:
            given = {name: values[-1][:_LONGEST] for name, values in parse_qs((query or "").lstrip("?")).items()}
        except ValueError:
            given = {}
        return cls.from_mapping(given)

    @classmethod
    def from_mapping(cls, given: object) -> Self:
        """Read what the page sends back, with the same checks as an address."""
        values: dict[str, Any] = {}
        if not isinstance(given, dict):
            return cls()
        for name in ("run", "compare", "score", "region", "table", "heads", "keys"):
            if isinstance(given.get(name), str):
                values[name] = given[name][:_LONGEST]
        for name, allowed in (("method", METHODS), ("how", HOW), ("colours", COLOURS)):
            if given.get(name) in allowed:
                values[name] = given[name]
        for name in ("sequence", "token"):
            number = _index(given.get(name))
            if number is not None:
                values[name] = number
        values["log"] = str(given.get("log", "")).lower() in ("1", "true")
        try:
            values["head"] = head_name(parse_head(given.get("head")))
        except InputError:
            values["head"] = ""
        try:
            gamma = float(given.get("gamma", 1.0))
            if GAMMA[0] <= gamma <= GAMMA[1]:
                values["gamma"] = gamma
        except (TypeError, ValueError, OverflowError):
            pass
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON for the page's own store."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def change(self, **changes: Any) -> Self:
        """This state with some fields changed; a choice that belonged to another head or result is dropped.

        >>> State(run="a", head="L1H0", region="0-9:0-9").change(head="L1H1").region
        ''
        """
        if any(name in changes and changes[name] != getattr(self, name) for name in ("run", "head", "sequence")):
            changes = {"region": "", **changes}
        return replace(self, **changes)

    @property
    def pair(self) -> Head | None:
        """Layer and head chosen."""
        return parse_head(self.head) if self.head else None

    @property
    def window(self) -> tuple[int, int, int, int] | None:
        """First query, end of queries, first key and end of keys of :attr:`region`; ``None`` without a usable one."""
        return parse_region(self.region)


def parse_region(text: str) -> tuple[int, int, int, int] | None:
    """First and end (one past the last) of queries and of keys.

    >>> parse_region("10-19:0-9"), parse_region("9-3:0-1"), parse_region("")
    ((10, 20, 0, 10), None, None)
    """
    try:
        rows, keys = text.split(":")
        (q0, q1), (k0, k1) = (tuple(int(part) for part in span.split("-")) for span in (rows, keys))
    except ValueError:
        return None
    return (q0, q1 + 1, k0, k1 + 1) if 0 <= q0 <= q1 and 0 <= k0 <= k1 else None


def _index(value: Any) -> int | None:
    """An integer from 0, or ``None``."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number < 10_000_000 else None
