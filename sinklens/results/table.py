"""A finished table of a result."""

from dataclasses import dataclass, field

import pandas as pd


@dataclass(frozen=True)
class Table:
    """A finished table; ``to_dataframe()`` gives a copy that is yours to change."""

    name: str
    frame: pd.DataFrame = field(repr=False)

    def to_dataframe(self) -> pd.DataFrame:
        """The table as a pandas DataFrame."""
        return self.frame.copy()

    def __len__(self) -> int:
        return len(self.frame)
