"""What `sinklens roles` runs, saves and prints."""

from pathlib import Path
from typing import Any

from sinklens.cli.running import load_model
from sinklens.errors import InputError
from sinklens.results.show_progress import ShowProgress
from sinklens.wording import several

SHOWN = 24


def measure_roles(
    progress: ShowProgress,
    model: str,
    loading: dict[str, Any],
    files: list[str],
    causal: str | None,
    words: dict[str, Any],
    options: dict[str, Any],
) -> tuple[Any, Any]:
    """The roles of a model's heads, and the causal check where one is asked for."""
    from sinklens.studies.causal_check.run import run_causal_check
    from sinklens.studies.head_roles.read_scores import read_all
    from sinklens.studies.head_roles.run import find_roles as run

    bridge = load_model(progress, model, **loading)
    n_kv_heads = int(getattr(bridge.cfg, "n_key_value_heads", None) or bridge.cfg.n_heads)
    given = read_all(files, sizes=(len(bridge.blocks), int(bridge.cfg.n_heads), n_kv_heads))
    found = run(bridge, given=given, progress=progress, **words, **options)
    if causal is None:
        return found, None
    ranking, size = _tested(found, causal)
    texts = {name: value for name, value in words.items() if value is not None}
    return found, run_causal_check(bridge, ranking, top=[size], seed=options["seed"], progress=progress, **texts)


def causal_parts(causal: str) -> tuple[str, int | None]:
    """The score, and how many heads, of ``SCORE[:K]``.

    Raises:
        InputError: It is written otherwise.
    """
    score, colon, size = causal.partition(":")
    if not score or (colon and not (size.isdecimal() and int(size))):
        raise InputError(f"--causal takes SCORE or SCORE:K, such as retrieval:10; got {causal!r}.")
    return score, int(size) if colon else None


def _tested(found: Any, causal: str) -> tuple[list[Any], int]:
    """The ranking that ``SCORE[:K]`` names, and how many of its heads are masked."""
    score, size = causal_parts(causal)
    ranking = found.ranking(score)
    if size is not None:
        return ranking, size
    criteria = found.criteria().set_index("criterion")
    count = criteria.loc[score, "n_labelled"]
    if not count == count or not count:
        raise InputError(f"No head is labelled by {score}; say how many to mask, as in --causal {score}:4.")
    return ranking, int(count)


def save_roles(found: Any, check: Any, out: Path, only_files: bool) -> list[str]:
    """Tables, figures and head-roles.json; the lines that say where they are."""
    from sinklens.plots import head_roles, retrieval_join, save_figure

    if only_files:
        found.save(out)
    roles_file = found.head_roles().write(out / "head-roles.json")
    fig = head_roles(found.to_dataframe(), found.criteria(), found.agreement())
    save_figure(fig, out / "roles.html", found.agreement())
    join = found.retrieval_join()
    if join is not None:
        save_figure(retrieval_join(join.heads), out / "retrieval_join.html", join.heads)
    lines = [f"Figure: {out / 'roles.html'}", f"Head roles: {roles_file}", f"Tables: {out}"]
    if check is not None:
        check.save(out / "causal")
        lines.insert(2, f"Causal check: {out / 'causal'}")
    return lines


def print_roles(found: Any, check: Any, saved: list[str]) -> None:
    """The sentences, the heads with the most roles, and where retrieval heads stand among others."""
    from sinklens.cli import printing

    model = found.meta["model"]
    printing.say_model(model, f"{several(model['n_kv_heads'], 'KV head')} a layer.")
    printing.say_verdict(found.verdict + (check.verdict if check is not None else []))
    _print_heads(found)
    join = found.retrieval_join()
    if join is not None:
        _print_join(join)
    printing.say_notes(found.meta["warnings"] + (check.meta["warnings"] if check is not None else []))
    printing.say_saved(saved)


def _print_heads(found: Any) -> None:
    """The heads with the most roles, and as many criteria as fit: those that label heads first."""
    from sinklens.cli import printing

    heads, criteria = found.to_dataframe(), found.criteria()
    roles = [str(role) for role in criteria["role"].dropna()]
    counts = sum((heads[f"is_{role}"].fillna(False).astype(int) for role in roles), start=0 * heads["layer"])
    order = heads.assign(_count=counts).sort_values(["_count", "layer", "head"], ascending=[False, True, True])
    role_of = dict(zip(criteria["criterion"], criteria["role"], strict=True))
    named = sorted((str(name) for name in role_of), key=lambda name: not isinstance(role_of[name], str))
    rows = []
    for row in order.head(SHOWN).to_dict("records"):
        cells = []
        for name in named:
            role = role_of[name]
            mark = "*" if isinstance(role, str) and row[f"is_{role}"] is True else ""
            cells.append(printing.cell(float(row[name])) + mark)
        rows.append([f"L{row['layer']}H{row['head']}", *cells])
    printing.say_table(
        ["head", *named],
        rows,
        f"Heads with the most roles ({min(SHOWN, len(order))} of {len(order)})",
        "* = labelled by the score's rule; n/a = not applicable",
        left=["head"],
        where="roles.csv (--out DIR)",
    )


def _print_join(join: Any) -> None:
    """The strongest retrieval heads with their ranks by the other scores."""
    from sinklens.cli import printing
    from sinklens.studies.head_roles.retrieval_join import strongest

    rows = strongest(join)
    shown = [
        [f"L{row['layer']}H{row['head']}", *(f"{row[name]:.2f} ({row[f'rank_{name}']:g})" for name in join.scores)]
        for row in rows.head(SHOWN).to_dict("records")
    ]
    printing.say_table(
        ["head", *join.scores],
        shown,
        f"Retrieval heads among sink and induction heads ({min(SHOWN, len(rows))} of {len(join.heads)})",
        "in brackets the rank among all heads, ties at their mean rank",
        left=["head"],
    )
