"""Checkpoints of one model in training: how sink, drain, peak and loss come about; what ``sinklens dynamics`` runs."""

from sinklens.studies.dynamics.entry import measure_dynamics
from sinklens.studies.dynamics.result import Dynamics
from sinklens.studies.dynamics.series import Checkpoint, Series, find_series

__all__ = ["Checkpoint", "Dynamics", "Series", "find_series", "measure_dynamics"]
