"""What each figure draws from: a registry of figures, and the step from a result to the tables that they read."""

import html
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pandas as pd

from sinklens.arguments import check
from sinklens.errors import InputError, SinkLensError

CENSUS: Final = "sinklens-census"
SWEEP: Final = "sinklens-sweep"

MADE_BY: Final[Mapping[str, tuple[str, str]]] = {
    CENSUS: ("scan", "sinklens.scan(model)"),
    SWEEP: ("sweep", 'sinklens.sweep(model, "zero", ranking="own")'),
    "sinklens-effects": ("effects", 'measure_effects(model, {"no sink": MaskKeys(0)}, tokens)'),
    "sinklens-needles": ("needles", "measure_needles(model, make_needles(model))"),
    "sinklens-roles": ("roles", "find_roles(model)"),
    "sinklens-sink-causes": ("causes of sinks", "explain_sinks(model)"),
    "sinklens-generation": ("generation", 'follow_generation(model, "Once upon a time")'),
    "sinklens-extreme-tokens": ("extreme tokens", "find_extreme_tokens(model)"),
    "sinklens-factual-recall": ("factual recall", "trace_recall(model)"),
    "sinklens-injection": ("injection", "inject_tokens(model)"),
    "sinklens-near-far": ("near and far keys", 'near_far_costs(model, ["L0H0"])'),
    "sinklens-pooling": ("pooling", "compare_pooling(model)"),
    "sinklens-span-heads": ("heads of a span", "find_span_heads(model)"),
    "sinklens-massive-sources": ("sources of massive activations", "trace_massive(model)"),
    "sinklens-document-ranking": ("ranking of documents", "rank_documents(model)"),
    "sinklens-path-patching": ("paths", "patch_paths(model, clean, corrupted, correct, wrong)"),
    "sinklens-conflict-heads": ("memory and context heads", "find_conflict_heads(model)"),
    "sinklens-super-experts": ("super experts", "find_super_experts(model)"),
    "sinklens-policies": ("policies", 'compare_policies(model, ["sink_window", "h2o"], budgets=[0.5])'),
    "sinklens-streaming-gates": ("gates", "learn_gates(model)"),
    "sinklens-task-scores": ("task scores", 'evaluate_tasks(model, ["questions.jsonl"], {"no sink": MaskKeys(0)})'),
    "sinklens-active-dormant": ("active and dormant heads", "find_active_dormant(model)"),
    "sinklens-calibration": ("calibration", "choose_gamma(model, task)"),
    "sinklens-dynamics": ("dynamics", 'measure_dynamics("tiny-llama")'),
}
"""What the kinds of results are called, and a call that makes one; the calls beside ``scan`` and ``sweep`` are those of
:mod:`sinklens.studies`."""

Key = tuple[str, ...]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Figure:
    """A figure function and what it draws from.

    Attributes:
        draw: The function; its first argument may be a result.
        of: Kinds of results (their ``format``) that have its tables.
        needs: Tables by name, in the order of the function's first parameters; for each the columns that tell its rows
            apart. A table without such columns is no frame and is passed on as it is.
        wants: Tables among them that it can do without.
        made_by: The call that makes a table which no result of the kind holds, or not always.
        settings: Parameters that a result's header answers, with the path in it.
        many: Whether several results or tables by name are drawn together.
        whole: Titles under which the report and the dashboard show it for a whole result, each with its options.
    """

    draw: Callable[..., Any]
    of: tuple[str, ...]
    needs: Mapping[str, Key]
    wants: Collection[str]
    made_by: Mapping[str, str]
    settings: Mapping[str, str]
    many: bool
    whole: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """Of the function."""
        return self.draw.__name__

    @property
    def shows(self) -> str:
        """What it shows, in a line: the first of its docstring."""
        first = inspect.getdoc(self.draw) or self.name
        line = " ".join(first.split("\n\n")[0].split())
        for word in ("Draw ", "List ", "Write "):
            line = line.removeprefix(word)
        return f"{line[0].upper()}{line[1:]}"

    @property
    def call(self) -> str:
        """The whole call, from a model to the figure."""
        made = next((self.made_by[table] for table in self.needs if self._only_by_asking(table)), None)
        made = MADE_BY[self.of[0]][1] if made is None and self.of else made
        made = f"sinklens.{made}".replace("[..., ", "[") if str(made).startswith("scan(") else made
        return f"{made}.plot.{self.name}()" if self.of else f"plots.{self.name}(table)"

    def _only_by_asking(self, table: str) -> bool:
        """Whether no plain result of the kind has the table."""
        return table in self.made_by and table not in self.wants and table not in _PLAIN

    def can_draw(self, result: Any) -> bool:
        """Whether the result holds everything that is needed."""
        return _kind(result) in self.of and not self.missing(result)

    def missing(self, result: Any) -> list[str]:
        """Tables that it needs and the result does not hold."""
        held = {name: _held(result, name) for name in self.needs if name not in self.wants}
        return [name for name, one in held.items() if one is None or (isinstance(one, Mapping) and not one)]


_PLAIN: Final = ("state_norms", "channel_profile", "lifecycle")
"""Tables of every scan with its default detectors, that others may lack."""

FIGURES: dict[str, Figure] = {}
"""By name of the function; :func:`draws` fills it."""


def draws(
    *of: str,
    needs: Mapping[str, Key],
    wants: Collection[str] = (),
    made_by: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    many: bool = False,
    whole: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Callable[Concatenate[Any, P], R]], Callable[Concatenate[Any, P], R]]:
    """Register a figure, and let its first argument be a result, one of its tables or a DataFrame.

    A result gives every table that was not passed and the settings that its header knows. A table with several rows
    where the figure draws one is refused: whichever row came last would be drawn. See :class:`Figure` for the
    arguments::

        @draws("sinklens-census", needs={"heads": ("layer", "head")})
        def my_figure(heads: pd.DataFrame) -> go.Figure: ...


        my_figure(census)
        census.plot.my_figure()
    """

    def register(function: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
        signature = inspect.signature(function)
        parameters = dict(zip(needs, signature.parameters, strict=False))

        @wraps(function)
        def drawing(*args: Any, **kwargs: Any) -> R:
            given = signature.bind_partial(*args, **kwargs)
            source = given.arguments.get(next(iter(signature.parameters)))
            if _is_result(source, figure):
                _fill(given.arguments, source, figure, parameters)
            for table, parameter in parameters.items():
                needed = parameter in given.arguments and table not in figure.wants
                if (value := given.arguments.get(parameter)) is not None or needed:
                    given.arguments[parameter] = _read(value, table, figure)
            for name, value in given.arguments.items():
                hint = signature.parameters[name]
                check(name, value, hint.annotation, optional=hint.default is not hint.empty)
            return function(*given.args, **given.kwargs)

        figure = FIGURES[function.__name__] = Figure(
            drawing, of, needs, wants, made_by or {}, settings or {}, many, whole or {}
        )
        return drawing

    return register


class Drawings:
    """The figures of one result: ``census.plot.sink_heatmap()``; ``dir(census.plot)`` lists what it can draw.

    Printed, it says what each of them shows, and which call makes what the others need.
    """

    def __init__(self, result: Any) -> None:
        self._result = result

    def __dir__(self) -> list[str]:
        return sorted(figure.name for figure in self._of_kind() if figure.can_draw(self._result))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kind = _kind(self._result)
        if name not in FIGURES or kind not in FIGURES[name].of:
            raise AttributeError(f"A {kind} has no figure {name!r}; it can draw {', '.join(dir(self)) or 'none'}.")
        drawing = partial(FIGURES[name].draw, self._result)
        drawing.__doc__ = FIGURES[name].draw.__doc__
        return drawing

    def __repr__(self) -> str:
        rows = self._rows()
        width = max((len(name) for name, _, _ in rows), default=0)
        lines = [
            f"  {name:<{width}}  {shows}{'' if call is None else f' (needs {call})'}" for name, shows, call in rows
        ]
        return "\n".join([self._headline(), *lines])

    def _repr_html_(self) -> str:
        left, rows = "<td style='text-align:left'>", []
        for name, shows, call in self._rows():
            needs = f" <i>needs <code>{html.escape(call)}</code></i>" if call else ""
            rows.append(f"<tr>{left}<code>{name}()</code></td>{left}{html.escape(shows)}{needs}</td></tr>")
        return f"{html.escape(self._headline())}<table>{''.join(rows)}</table>"

    def _headline(self) -> str:
        drawn = dir(self)
        return f"{len(drawn)} figures of this result, as .plot.{drawn[0]}():" if drawn else "No figures of this result."

    def _rows(self) -> list[tuple[str, str, str | None]]:
        """Name, what it shows, and for what it cannot draw the call that it needs; those that it can draw first."""
        drawn = {*dir(self)}
        ordered = sorted(self._of_kind(), key=lambda figure: (figure.name not in drawn, figure.name))
        return [
            (
                figure.name,
                figure.shows,
                None if figure.name in drawn else next(iter(figure.made_by.values()), figure.call),
            )
            for figure in ordered
        ]

    def _of_kind(self) -> list[Figure]:
        kind = _kind(self._result)
        return [figure for figure in FIGURES.values() if kind in figure.of]


def one_row_each(table: pd.DataFrame, key: Key, function: str) -> None:
    """Stop with one sentence when several rows of a table belong to one mark of a figure.

    Nothing is said of a table without the key's first column (that is another mistake); further ones may be missing.

    Raises:
        InputError: Naming such a place, the number of its rows and what tells them apart.
    """
    first, *more = key
    own = [first, *(name for name in more if name in table.columns)]
    if first not in table.columns or not (twice := table.duplicated(own, keep=False)).any():
        return
    _, same = next(iter(table[twice].groupby(own, sort=False, dropna=False)))
    values = {name: same[name].iloc[0] for name in own}
    place = ", ".join(f"{name} {value}" for name, value in values.items() if not pd.isna(value))
    differ = [str(name) for name in table.columns if name not in own and same[name].nunique(dropna=False) > 1]
    apart = f", which differ in {differ[0]}" if differ else ""
    raise InputError(
        f"{function} draws one row for each {', '.join(own)}, but got {len(same)} rows for {place}{apart}; pass the "
        "result itself, or the rows of one of them."
    )


def _kind(result: Any) -> str | None:
    """The ``format`` of a result."""
    found: str | None = getattr(result, "format", None)
    return found


def _is_result(source: Any, figure: Figure) -> bool:
    """Whether it holds tables; some small results have only an attribute of the name."""
    if source is None or isinstance(source, pd.DataFrame | Mapping):
        return False
    return isinstance(getattr(source, "tables", None), Mapping) or hasattr(source, next(iter(figure.needs)))


def _held(result: Any, table: str) -> Any:
    """A table of a result, or its attribute or method of that name; None where it has none."""
    tables = getattr(result, "tables", {})
    if table in tables:
        return tables[table]
    try:
        return getattr(result, table, None)
    except SinkLensError:  # a census has a property for every table, also for those that were not made
        return None


def _fill(arguments: dict[str, Any], result: Any, figure: Figure, parameters: Mapping[str, str]) -> None:
    """Put a result's tables and settings where no argument was given."""
    arguments.pop(next(iter(parameters.values())))
    for table, parameter in parameters.items():
        if parameter in arguments:
            continue
        found = _held(result, table)
        if found is not None:
            arguments[parameter] = found() if callable(found) else found
        elif table not in figure.wants:
            have = ", ".join(getattr(result, "tables", {})) or "no tables"
            make = f"; {figure.made_by[table]} makes it" if table in figure.made_by else f"; {_whose(figure)} has it"
            raise InputError(f"{figure.name} draws the table {table}, but this result has {have}{make}.")
    for parameter, path in figure.settings.items():
        value: Any = getattr(result, "meta", {})
        for step in path.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        if value is not None:
            arguments.setdefault(parameter, value)


def _whose(figure: Figure) -> str:
    """The kinds of results that a figure draws."""
    return f"a result of the kind {' or '.join(figure.of)}" if figure.of else "a result"


def _read(value: Any, table: str, figure: Figure) -> Any:
    """A frame in which every row has its own mark."""
    key = figure.needs[table]
    if not key:
        return value
    if figure.many and isinstance(value, Mapping):
        return {
            name: _read(_held(one, table) if _is_result(one, figure) else one, table, figure)
            for name, one in value.items()
        }
    if callable(getattr(value, "to_dataframe", None)):
        value = value.to_dataframe()
    if not isinstance(value, pd.DataFrame):
        raise InputError(
            f"{figure.name} draws {_whose(figure)} or its table {table} as a DataFrame, not {type(value).__name__}."
        )
    one_row_each(value, key, figure.name)
    return value
