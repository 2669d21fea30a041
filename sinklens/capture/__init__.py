"""What one forward pass records: attention statistics, value norms, residual norms and peaks."""

from sinklens.capture.memory import MemoryPlan, plan_memory
from sinklens.capture.record import LayerRecord, ResidualNorms, ValueNorms
from sinklens.capture.residual import residual_norms
from sinklens.capture.run import Consumer, capture, standard_statistics
from sinklens.capture.values import output_factor, value_norms

__all__ = [
    "Consumer",
    "LayerRecord",
    "MemoryPlan",
    "ResidualNorms",
    "ValueNorms",
    "capture",
    "output_factor",
    "plan_memory",
    "residual_norms",
    "standard_statistics",
    "value_norms",
]
