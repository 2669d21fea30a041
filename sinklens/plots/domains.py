"""Whose texts a figure through training draws."""

from typing import Final

import pandas as pd

from sinklens.errors import InputError

ALL: Final = "all"
"""The domain that stands for all of them together."""


def one_domain(table: pd.DataFrame, function: str) -> str:
    """All domains together where the table has such rows, else the only domain.

    Raises:
        InputError: It has several domains and none stands for all.
    """
    names = [str(name) for name in dict.fromkeys(table["domain"])]
    if ALL in names:
        return ALL
    if len(names) != 1:
        raise InputError(f"{function} draws one domain; choose it with domain=: {', '.join(names)}.")
    return names[0]
