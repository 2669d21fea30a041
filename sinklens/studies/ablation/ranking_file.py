"""A ranking of heads from a file: a table with scores, a list of names, or a saved census or sweep."""

from pathlib import Path
from typing import Any

import pandas as pd

from sinklens.errors import InputError, ResultError
from sinklens.interventions.heads import Head, parse_head
from sinklens.models.reading import named_text
from sinklens.results.result import open_result
from sinklens.studies.ablation.result import Sweep
from sinklens.studies.ablation.variants import rank
from sinklens.studies.census.result import Census
from sinklens.studies.head_roles.read_scores import read_scores
from sinklens.studies.head_roles.result import Roles

SCORES = {"heads": "importance", "summary": "delta_loss"}
"""Tables of saved results that rank heads, and their usual column."""


def read_ranking(name: str) -> list[Head]:
    """Heads in order, the highest score first.

    Args:
        name: ``PATH`` or ``PATH:COLUMN``, with ``PATH:-COLUMN`` for the lowest first. The path is a CSV or Parquet
            table with the columns layer and head (or head, or variant, with names such as L5H1) and a score; a text
            file with a name in each line, the first one first; a head-role file or Retrieval_Head's scores
            (``.json``); or the directory of a saved census (by importance if no column is named), sweep (delta_loss,
            single heads of its first intervention) or roles (by any score).

    Raises:
        InputError: No such file or column, or something that is no head.
        ResultError: A damaged result.
    """
    path, column = _split(name)
    if not path.exists():
        raise InputError(f"There is no ranking {path}; expected a table, a list of heads, or a saved census or sweep.")
    if path.is_dir():
        table, usual = _saved(path)
        column = column or usual
    elif path.suffix == ".json":
        scores = read_scores(path)
        table = scores.frame[["layer", "head", *scores.scores]]
    elif path.suffix in (".csv", ".tsv", ".parquet"):
        table = _table(path)
    else:
        lines = named_text(path, "The ranking").split("\n")
        return [parse_head(line) for line in lines if line.strip() and not line.startswith("#")]
    heads = _heads(table, path)
    if column is None:
        known = [c for c in table.columns if c not in ("layer", "head", "variant") and table[c].dtype.kind in "fiub"]
        if len(known) > 1:
            raise InputError(
                f"{path} has several columns to rank by ({', '.join(known)}); name one: {path}:{known[0]}."
            )
        column = known[0] if known else None
    if column is None:
        return heads
    sign, column = (-1, column[1:]) if column.startswith("-") else (1, column)
    if column not in table or table[column].dtype.kind not in "fiub":
        raise InputError(f"{path} has no column of numbers {column!r}; it has {', '.join(map(str, table.columns))}.")
    return rank({head: sign * float(score) for head, score in zip(heads, table[column], strict=True)})


def _split(name: str) -> tuple[Path, str | None]:
    path, colon, column = name.rpartition(":")
    return (Path(path), column) if colon and column and not Path(name).exists() else (Path(name), None)


def _table(path: Path) -> pd.DataFrame:
    if path.suffix == ".tsv" and _holds_gates(path):
        raise InputError(
            f"{path} holds DuoAttention's gates of KV heads, which name no heads; make head-roles.json of it with "
            f"sinklens roles --import {path} --heads N --out DIR (N query heads a layer), and rank by that."
        )
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    except (OSError, ValueError) as error:
        raise InputError(f"The ranking {path} cannot be read: {' '.join(str(error).split())[:200]}.") from error


def _holds_gates(path: Path) -> bool:
    """Whether the first line is numbers instead of names of columns."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return bool([float(cell) for cell in file.readline().split("\t")])
    except (OSError, ValueError):
        return False


def _saved(path: Path) -> tuple[pd.DataFrame, str | None]:
    match open_result(path):
        case Census() as census:
            return census.heads.to_dataframe(), SCORES["heads"]
        case Sweep() as sweep:
            return sweep.ranking(), SCORES["summary"]
        case Roles() as roles:
            return roles.to_dataframe()[["layer", "head", *roles.criteria()["criterion"]]], None
        case other:
            raise ResultError(f"{path} holds a {other.format!r} without a ranking; name a census, a sweep or roles.")


def _heads(table: pd.DataFrame, path: Path) -> list[Head]:
    if {"layer", "head"} <= {*table.columns}:
        pairs: Any = zip(table["layer"].tolist(), table["head"].tolist(), strict=True)
        return [parse_head(pair) for pair in pairs]
    for column in ("head", "variant"):
        if column in table:
            return [parse_head(name) for name in table[column].tolist()]
    raise InputError(f"{path} names no heads; expected columns layer and head, or head with names such as L5H1.")
