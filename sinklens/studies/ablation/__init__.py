"""Many sets of heads x interventions x texts, resumable, on one process or many: what ``sinklens ablate`` runs."""

from sinklens.studies.ablation.entry import sweep
from sinklens.studies.ablation.result import Sweep

__all__ = ["Sweep", "sweep"]
