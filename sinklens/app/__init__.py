"""What a reader opens: a self-contained HTML report of any result, and the dashboard.

``result.report(path)`` finds the writers that are registered here by the kind of the result.
"""

from sinklens.app.active_dormant_report import write_active_dormant_report
from sinklens.app.calibration_report import write_calibration_report
from sinklens.app.census_report import write_census_report
from sinklens.app.dynamics_report import write_dynamics_report
from sinklens.app.report import write_report
from sinklens.app.sweep_report import write_sweep_report
from sinklens.results.result import REPORTS

REPORTS.update(
    {
        "": write_report,
        "sinklens-active-dormant": write_active_dormant_report,
        "sinklens-calibration": write_calibration_report,
        "sinklens-census": write_census_report,
        "sinklens-dynamics": write_dynamics_report,
        "sinklens-sweep": write_sweep_report,
    }
)
