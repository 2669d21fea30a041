"""The emergence table: which changes of attention, training and data grow a sink, and what the papers say."""

from sinklens.lab.emergence.cell import run_cell
from sinklens.lab.emergence.claims import CLAIMS
from sinklens.lab.emergence.conditions import CONDITIONS, Condition, choose_conditions
from sinklens.lab.emergence.judge import judge
from sinklens.lab.emergence.report import markdown
from sinklens.lab.emergence.table import run_table, summarise

__all__ = [
    "CLAIMS",
    "CONDITIONS",
    "Condition",
    "choose_conditions",
    "judge",
    "markdown",
    "run_cell",
    "run_table",
    "summarise",
]
