"""What is on the screen, as one value that goes into the page's address and comes back from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlencode

from sinklens.errors import InputError
from sinklens.interventions.heads import Head, head_name, parse_head

OF: Final = ("texts", "text")
COLOURS: Final = ("head", "all")
LOOKS: Final = ("map", "layer", "lines")
ROLES: Final = ("query", "key")
_LONGEST: Final = 400
_MOST_FIELDS: Final = 24
_FIELD: Final = "f."
"""Before the names of an intervention's fields in the address."""


@dataclass(frozen=True)
class State:
    """Everything that a reload brings back; anything else on the page follows from it.

    Attributes:
        run: Name of the result shown, relative to the opened folder (``"."`` is the folder itself) or ``live-1``.
        compare: Name of the result beside it, empty for none.
        score: What the layer x head grid colours, empty for the result's first.
        head: Chosen head such as ``L5H1``, empty for none.
        of: Whether numbers per head are means over all ``"texts"``, or those of the one ``"text"`` that is shown.
        sequence: Index of the text (sequence) whose tokens, maps and token panel are shown.
        token: Position of the chosen token, ``None`` for none.
        log: Logarithmic colours of the attention map.
        colours: The strip of tokens is coloured by what the chosen head (``"head"``) or all heads (``"all"``) give.
        region: Exact rows of a pooled map, ``"first-last:first-last"`` of queries and keys; empty for the whole map.
        table: What is opened under "everything in this result".
        look: Attention of the chosen head as a ``"map"`` or in ``"lines"``, or maps of all heads of its ``"layer"``.
        role: Whether lines go from the chosen token as a ``"query"`` to what it reads, or to it as a ``"key"``.
        method: Intervention to try, such as ``"MaskKeys"`` or ``"h2o"``; empty for none.
        fields: Its fields as typed, by name.
    """

    run: str = ""
    compare: str = ""
    score: str = ""
    of: str = "texts"
    head: str = ""
    sequence: int = 0
    token: int | None = None
    log: bool = False
    colours: str = "head"
    region: str = ""
    table: str = ""
    look: str = "map"
    role: str = "query"
    method: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    def to_query(self) -> str:
        """The address's part from ``?`` on; what has its default is left out.

        >>> State(run="demo", head="L1H0", token=0).to_query()
        '?run=demo&head=L1H0&token=0'
        """
        default = State()
        chosen = {
            each.name: value
            for each in fields(self)
            if (value := getattr(self, each.name)) != getattr(default, each.name)
        }
        if "log" in chosen:
            chosen["log"] = 1
        chosen |= {f"{_FIELD}{name}": text for name, text in chosen.pop("fields", {}).items()}
        return f"?{urlencode(chosen)}" if chosen else ""

    @classmethod
    def from_query(cls, query: str | None) -> Self:
        """Read an address; what makes no sense in it keeps its default.

        >>> State.from_query("?run=demo&head=l1h0&token=-3&method=MaskKeys&f.keys=0")
        State(run='demo', compare='', score='', of='texts', head='L1H0', sequence=0, token=None, log=False, \
colours='head', region='', table='', look='map', role='query', method='MaskKeys', fields={'keys': '0'})
        """
        try:
            given = {name: values[-1][:_LONGEST] for name, values in parse_qs((query or "").lstrip("?")).items()}
        except ValueError:
            given = {}
        typed = {name.removeprefix(_FIELD): text for name, text in given.items() if name.startswith(_FIELD)}
        return cls.from_mapping(given | {"fields": typed})

    @classmethod
    def from_mapping(cls, given: object) -> Self:
        """Read what the page sends back, with the same checks as an address."""
        values: dict[str, Any] = {}
        if not isinstance(given, dict):
            return cls()
        for name in ("run", "compare", "score", "region", "table"):
            if isinstance(given.get(name), str):
                values[name] = given[name][:_LONGEST]
        for name, allowed in (("of", OF), ("colours", COLOURS), ("look", LOOKS), ("role", ROLES)):
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
        if _is_name(given.get("method")):
            values["method"] = given["method"]
        typed = given.get("fields")
        if isinstance(typed, dict):
            kept = [(k, v[:_LONGEST]) for k, v in typed.items() if _is_name(k) and isinstance(v, str)]
            values["fields"] = dict(kept[:_MOST_FIELDS])
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON for the page's own store."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"fields": dict(self.fields)}

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
    def text(self) -> int | None:
        """The text that numbers per head are of by itself; ``None`` for means over all texts."""
        return self.sequence if self.of == "text" else None

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


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 60 and value.isidentifier()


def _index(value: Any) -> int | None:
    """An integer from 0, or ``None``."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number < 10_000_000 else None
