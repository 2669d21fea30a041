"""A table of a saved result, bounded before it is read, with places that its model has."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from sinklens.errors import ResultError
from sinklens.results.header_file import Header

MOST_CELLS = 500_000_000
"""Rows times columns of a table: 4 GB."""
PLACES = ("layer", "head", "kv_head", "position", "channel", "sequence", "instance")
"""Columns that count something from 0; -1 stands for before the first layer, or for all."""


def read_table(path: Path, header: Header) -> pd.DataFrame:
    """Read a table whole.

    Raises:
        ResultError: It is no Parquet file, too large, of another length than the header says, or has a layer, head or
            other place that is no number or that the model does not have.
    """
    check_size(path, header)
    try:
        table: pd.DataFrame = pd.read_parquet(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ResultError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); make it again.") from error
    check_places(path, {str(name): _known(table[name]) for name in table if name in PLACES}, header)
    return table


def _known(column: pd.Series) -> np.ndarray:
    """The values of a column; a column of integers may have gaps, as a set of heads has no layer."""
    gaps = pd.api.types.is_integer_dtype(column.dtype) and column.hasnans
    return np.asarray(column.dropna() if gaps else column)


def check_size(path: Path, header: Header) -> None:
    """Refuse a table that is too large, or longer or shorter than the header says, before anything is made of it.

    Raises:
        ResultError: It is, or it is no Parquet file.
    """
    try:
        facts = pyarrow.parquet.read_metadata(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ResultError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); make it again.") from error
    if facts.num_rows * max(1, facts.num_columns) > MOST_CELLS:
        raise ResultError(
            f"{path} has {facts.num_rows:,} rows of {facts.num_columns:,} columns; at most {MOST_CELLS:,} cells are "
            "read. Make it again on fewer tokens."
        )
    rows = header.files[path.name].rows
    if rows is not None and rows != facts.num_rows:
        raise ResultError(f"{path} is damaged: it has {facts.num_rows:,} rows, not {rows:,}; make it again.")


def check_places(path: Path, columns: dict[str, np.ndarray], header: Header) -> None:
    """Refuse layers, heads and other places that are no whole numbers, or that the model does not have.

    Raises:
        ResultError: The first such column.
    """
    model = header.model
    most = {
        "layer": (model and model.n_layers) or 10**5,
        "head": (model and model.n_heads) or 10**5,
        "kv_head": (model and model.n_kv_heads) or 10**5,
        "position": 2**22,
    }
    for name, values in columns.items():
        if not len(values):
            continue
        limit = most.get(name, 2**31)
        if not (np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)):
            raise ResultError(f"{path} is damaged: its column {name} holds no numbers; make it again.")
        wrong = values[~((values >= -1) & (values <= limit) & (values == np.floor(values)))]
        if len(wrong):
            raise ResultError(
                f"{path} is damaged: its column {name} holds {wrong[0]}, and whole numbers from 0 to {limit:,} were "
                "expected; make it again."
            )
