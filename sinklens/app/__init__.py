"""What a reader opens: self-contained HTML reports."""

from sinklens.app.report import write_report
from sinklens.app.sweep_report import write_sweep_report

__all__ = ["write_report", "write_sweep_report"]
