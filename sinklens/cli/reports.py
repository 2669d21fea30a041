"""The report that belongs to a saved result."""

from pathlib import Path
from typing import Any


def write_report_of(directory: Path, target: Path) -> Path:
    """Write the report of whatever kind of result lies in a directory.

    Raises:
        ResultError: No result with a report there, a damaged one, or a file that cannot be written.
    """
    from sinklens import app
    from sinklens.results.tables import kind_of
    from sinklens.studies.ablation.result import FORMAT as SWEEP
    from sinklens.studies.ablation.result import Sweep
    from sinklens.studies.active_dormant.result import FORMAT as ACTIVE_DORMANT
    from sinklens.studies.active_dormant.result import ActiveDormant
    from sinklens.studies.calibration.result import FORMAT as CALIBRATION
    from sinklens.studies.calibration.result import Calibration
    from sinklens.studies.census.result import FORMAT as CENSUS
    from sinklens.studies.census.result import Census
    from sinklens.studies.dynamics.result import FORMAT as DYNAMICS
    from sinklens.studies.dynamics.result import Dynamics

    kinds: dict[str, tuple[Any, Any]] = {
        CENSUS: (Census, app.write_report),
        SWEEP: (Sweep, app.write_sweep_report),
        ACTIVE_DORMANT: (ActiveDormant, app.write_active_dormant_report),
        CALIBRATION: (Calibration, app.write_calibration_report),
        DYNAMICS: (Dynamics, app.write_dynamics_report),
    }
    result, write = kinds.get(kind_of(directory) or "", kinds[CENSUS])  # whose loading says what is wrong here
    path: Path = write(result.load(directory), target)
    return path
