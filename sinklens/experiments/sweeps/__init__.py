"""Many sets of heads x interventions x texts, resumable, on one process or many: what ``sinklens ablate`` runs."""

from sinklens.experiments.sweeps.entry import sweep
from sinklens.experiments.sweeps.plan import SweepPlan
from sinklens.experiments.sweeps.result import Sweep

__all__ = ["Sweep", "SweepPlan", "sweep"]
