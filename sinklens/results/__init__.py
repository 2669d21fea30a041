"""What is kept: results, tables, files, and the folder of a long run."""

from sinklens.results.result import Result
from sinklens.results.run_folder import RunFolder
from sinklens.results.table import Table

__all__ = ["Result", "RunFolder", "Table"]
