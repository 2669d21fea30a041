"""What a reader opens: the self-contained HTML report."""

from sinklens.app.report import write_report

__all__ = ["write_report"]
