"""What a reader opens: self-contained HTML reports."""

from sinklens.app.active_dormant_report import write_active_dormant_report
from sinklens.app.calibration_report import write_calibration_report
from sinklens.app.dynamics_report import write_dynamics_report
from sinklens.app.report import write_report
from sinklens.app.sweep_report import write_sweep_report

__all__ = [
    "write_active_dormant_report",
    "write_calibration_report",
    "write_dynamics_report",
    "write_report",
    "write_sweep_report",
]
