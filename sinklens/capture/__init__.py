"""What one forward pass records: attention statistics, value norms, residual norms and peaks."""

from sinklens.capture.record import LayerRecord
from sinklens.capture.run import capture

__all__ = [
    "LayerRecord",
    "capture",
]
