"""What one forward pass records: attention statistics, value norms, residual norms and peaks."""

from typing import TYPE_CHECKING

from sinklens.lazy import load_lazily

if TYPE_CHECKING:
    from sinklens.capture.record import LayerRecord
    from sinklens.capture.run import capture

__all__ = [
    "LayerRecord",
    "capture",
]

load_lazily(__name__)
