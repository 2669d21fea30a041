"""Every intervention and policy as a form: its dataclass fields become controls."""

import inspect
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, Final, Literal, Union, get_args, get_origin

from sinklens.errors import InputError
from sinklens.interventions.base import Composition, Intervention
from sinklens.policies import Policy, policies

TAKEN: Final = ("outputs", "means")
"""Fields that are taken from the tokens in hand instead of being typed."""

_HEADS: Final = ("heads", "full")
_KEYS: Final = ("keys", "span", "summary", "question", "target", "sinks", "sink_dims")
_FIRST: Final = {"keys": "0", "span": "0", "question": "1", "gamma": "0.5", "window": "32", "target": "0"}
"""What is tried first where a field has no default of its own."""
_KINDS: Final = {int: "whole number", float: "number"}


@dataclass(frozen=True)
class Field:
    """One control of a form.

    Attributes:
        name: Of the dataclass's field.
        kind: ``"heads"``, ``"kv_heads"``, ``"keys"``, ``"entries"``, ``"weights"``, ``"choice"``,
            ``"flag"``, ``"number"``, ``"whole number"`` or ``"json"``.
        default: As typed; what is left empty counts as this.
        options: Of a choice.
        optional: Whether it may be left empty.
        help: What the docstring says of it.
    """

    name: str
    kind: str
    default: str = ""
    options: tuple[str, ...] = ()
    optional: bool = False
    help: str = ""


@dataclass(frozen=True)
class Method:
    """An intervention or policy that can be tried.

    Attributes:
        name: What the address calls it.
        label: What the list shows.
        kind: Its class.
        fields: Its controls.
        says: The first sentence of its docstring.
    """

    name: str
    label: str
    kind: type[Intervention]
    fields: tuple[Field, ...]
    says: str

    @property
    def looks_ahead(self) -> str:
        """Why its loss says nothing, for a policy whose choice for a row depends on later tokens; else empty."""
        scope = getattr(self.kind, "scope", "causal")
        return "" if scope == "causal" else f"This rule chooses with tokens that come later (scope: {scope})"


@cache
def methods() -> dict[str, Method]:
    """All of them by name: interventions first, then policies."""
    found = {}
    for kind in sorted(_interventions(), key=lambda each: each.__name__):
        found[kind.__name__] = _method(kind.__name__, kind.__name__, kind)
    for name, policy in policies().items():
        if name != "full":
            found[name] = _method(name, f"{policy.__name__} (policy)", policy)
    return found


def method(name: str) -> Method:
    """One of them.

    Raises:
        InputError: There is none of that name.
    """
    found = methods().get(name)
    if found is None:
        raise InputError(f"There is no intervention {name[:60]!r}; choose one of the list.")
    return found


def given(chosen: Method, typed: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of the class from what was typed; fields at their default are left out unless they are needed.

    Raises:
        InputError: A field that cannot be read, in one sentence that names it.

    >>> given(method("MaskKeys"), {"keys": "0, 2-4", "spare_self": "no"})
    {'keys': [0, 2, 3, 4], 'spare_self': False}
    """
    out: dict[str, Any] = {}
    required = {
        each.name for each in fields(chosen.kind) if each.default is MISSING and each.default_factory is MISSING
    }
    for field in chosen.fields:
        text = typed.get(field.name, "").strip() or (field.default if field.name in required else "")
        if not text or (text == field.default and field.name not in required):
            if field.name in required:
                raise InputError(f"{chosen.label} needs {field.name}; {_EXAMPLES[field.kind]}.")
            continue
        out[field.name] = _read(field, text)
    return out


def build(chosen: Method, typed: Mapping[str, str], taken: Callable[[str, dict[str, Any]], Any]) -> Intervention:
    """The intervention that a form describes.

    Args:
        chosen: Its method.
        typed: Its fields.
        taken: Gives the value of a field of :data:`TAKEN`, from its name and the other arguments; ``None`` for none.

    Raises:
        InputError: What was typed does not make one.
    """
    arguments = given(chosen, typed)
    for each in fields(chosen.kind):
        if each.name in TAKEN and (value := taken(each.name, arguments)) is not None:
            arguments[each.name] = value
    try:
        return chosen.kind(**arguments)
    except TypeError as error:
        raise InputError(f"{chosen.label}: {error}.") from None


def described(chosen: Method, typed: Mapping[str, str]) -> str:
    """The method with its fields, in one line.

    >>> described(method("ScaleKeys"), {"keys": "0", "gamma": "0.25"})
    'ScaleKeys(keys=0, gamma=0.25)'
    """
    shown = []
    for field in chosen.fields:
        text = typed.get(field.name, "").strip() or field.default
        if text and (text != field.default or not field.optional):
            shown.append(f"{field.name}={text}")
    return f"{chosen.kind.__name__}({', '.join(shown)})"


def as_python(chosen: Method, typed: Mapping[str, str], batch: str = "batch") -> tuple[str, list[str]]:
    """The expression that makes it, and the names that it needs from :mod:`sinklens.interventions`.

    >>> as_python(method("MaskKeys"), {"keys": "0"})
    ('MaskKeys(keys=[0])', ['MaskKeys'])
    """
    arguments = given(chosen, typed)
    parts, names = [f"{name}={value!r}" for name, value in arguments.items()], [chosen.kind.__name__]
    helper = source_of_taken(chosen.kind.__name__, arguments)
    if helper:
        field, function = helper
        more = {"outputs": f", heads={arguments.get('heads', 'all')!r}", "means": ""}[field]
        if function == "mean_activations":
            more = f", {arguments['where']!r}"
        parts.append(f"{field}={function}(model, {batch}{more})")
        names.append(function)
    return f"{chosen.kind.__name__}({', '.join(parts)})", names


def source_of_taken(kind: str, arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """Which field is taken from tokens, and by which function; ``None`` where none is needed."""
    if kind == "AblateHeads" and arguments.get("how") in ("mean", "resample"):
        return "outputs", "mean_outputs" if arguments["how"] == "mean" else "prompt_outputs"
    if arguments.get("to") == "mean":
        return "means", "mean_values" if kind == "EditValues" else "mean_activations"
    return None


_EXAMPLES: Final = {
    "heads": "write heads such as L0H1 or L0H1,L2H3, or all",
    "kv_heads": "write KV heads such as L0KV1, or all",
    "keys": "write positions from 0, such as 0 or 0,5,10-12",
    "entries": "write entries as layer:position:channel, such as 1:0:447, with commas between",
    "weights": "write weights such as model.layers.2.mlp.down_proj.weight[507, 1081], with semicolons between",
    "choice": "choose one",
    "flag": "choose yes or no",
    "number": "write a number such as 0.5",
    "whole number": "write a whole number",
    "json": "write it as JSON",
}


def numbers_from(text: str) -> list[int]:
    """Positions from text with commas and ranges.

    Raises:
        InputError: It is something else.

    >>> numbers_from("0, 5, 10-12")
    [0, 5, 10, 11, 12]
    """
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        plain = first.isdecimal() and first.isascii() and (not dash or (last.isdecimal() and last.isascii()))
        if not plain or len(part) > 20 or not 0 <= int(last or first) - int(first) <= 100_000:
            raise InputError(f"Positions are counted from 0 and written such as 0 or 0,5,10-12; got {text[:40]!r}.")
        found |= set(range(int(first), int(last or first) + 1))
    return sorted(found)


def _read(field: Field, text: str) -> Any:
    try:
        if field.kind in ("heads", "kv_heads"):
            return text if text == "all" else [part.strip() for part in text.split(",") if part.strip()]
        if field.kind == "weights":
            return [part.strip() for part in text.split(";") if part.strip()]
        if field.kind == "keys":
            return numbers_from(text)
        if field.kind == "entries":
            return [tuple(int(number) for number in part.split(":")) for part in text.replace(" ", "").split(",")]
        if field.kind == "flag":
            return {"yes": True, "no": False}[text]
        if field.kind == "whole number":
            if len(text) > 9:
                raise ValueError
            return int(text)
        if field.kind == "number":
            return float(text)
        if field.kind == "json":
            return json.loads(text)
    except InputError:
        raise
    except (ValueError, KeyError, RecursionError):
        raise InputError(f"{field.name}: {_EXAMPLES[field.kind]}; got {text[:40]!r}.") from None
    if field.options and text not in field.options:
        raise InputError(f"{field.name}: expected one of {', '.join(field.options)}; got {text[:40]!r}.")
    return text


def _interventions() -> list[type[Intervention]]:
    import sinklens.interventions as home

    every = [getattr(home, name) for name in home.__all__]
    kinds = [each for each in every if inspect.isclass(each) and issubclass(each, Intervention)]
    return [kind for kind in kinds if not inspect.isabstract(kind) and kind is not Composition]


def _method(name: str, label: str, kind: type[Intervention]) -> Method:
    text = inspect.getdoc(kind) or ""
    helps = _helps(text)
    hints = inspect.get_annotations(kind, eval_str=True) | {each.name: each.type for each in fields(kind)}
    controls = []
    for each in fields(kind):
        if each.name in TAKEN or (issubclass(kind, Policy) and each.name == "prompt" and kind.scope != "prompt"):
            continue
        controls.append(_field(each, hints[each.name], helps.get(each.name, "")))
    return Method(name, label, kind, tuple(controls), text.split("\n\n")[0].replace("\n", " "))


def _field(each: Any, hint: Any, said: str) -> Field:
    options, optional = _unioned(hint)
    default = "" if each.default is MISSING or each.default is None else each.default
    text = {True: "yes", False: "no"}[default] if isinstance(default, bool) else _written(default)
    known: dict[str, Any] = {
        "default": text or _FIRST.get(each.name, ""),
        "optional": optional or text != "",
        "help": said,
    }
    if each.name in _HEADS:
        return Field(each.name, "heads", **known)
    if each.name == "kv_heads":
        return Field(each.name, "kv_heads", **known)
    if each.name in _KEYS and int not in options:
        return Field(each.name, "keys", **known)
    if each.name == "weights":
        return Field(each.name, "weights", **known)
    if each.name == "where":
        return Field(each.name, "entries", **known)
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    if choices:
        return Field(each.name, "choice", options=tuple(map(str, choices)), **known)
    if bool in options:
        return Field(each.name, "flag", options=("yes", "no"), **known)
    return Field(each.name, next((_KINDS[option] for option in options if option in _KINDS), "json"), **known)


def _unioned(hint: Any) -> tuple[list[Any], bool]:
    """The types that a field may have, and whether it may be left out."""
    parts = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]
    return [part for part in parts if part is not type(None)], type(None) in parts


def _written(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return json.dumps(default) if isinstance(default, Mapping) else str(default)


def _helps(text: str) -> dict[str, str]:
    """What a docstring's section Args says of each field."""
    found: dict[str, str] = {}
    name = ""
    for line in text.partition("Args:")[2].splitlines():
        if line.strip() and not line.startswith(" "):
            break  # the next section
        head, colon, rest = line.strip().partition(": ")
        if colon and line.startswith("    ") and not line.startswith("     "):
            name, found[head] = head, rest
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return {name: said.replace("``", "").replace("`", "") for name, said in found.items()}
