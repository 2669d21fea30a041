"""What is kept: the folder of a long run, and what a run leaves behind."""

from sinklens.results.run_folder import RunFolder

__all__ = ["RunFolder"]
