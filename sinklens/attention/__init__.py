"""The engine: exact attention by blocks of rows, measured and edited, never T x T."""

from typing import TYPE_CHECKING

from sinklens.lazy import load_lazily

if TYPE_CHECKING:
    from sinklens.attention.block import AttentionShape, Block
    from sinklens.attention.engine import AttentionEngine
    from sinklens.attention.kernel import AttentionCall, Edit
    from sinklens.attention.maps import FullMap, PooledMap
    from sinklens.attention.observer import Observer
    from sinklens.attention.plan import plan_for
    from sinklens.attention.statistics import (
        Distance,
        Entropy,
        KeySetMass,
        MissingMass,
        ReceivedMass,
        Statistic,
        StatisticFactory,
        TopKey,
    )
    from sinklens.attention.target_mass import TargetMass

__all__ = [
    "AttentionCall",
    "AttentionEngine",
    "AttentionShape",
    "Block",
    "Distance",
    "Edit",
    "Entropy",
    "FullMap",
    "KeySetMass",
    "MissingMass",
    "Observer",
    "PooledMap",
    "ReceivedMass",
    "Statistic",
    "StatisticFactory",
    "TargetMass",
    "TopKey",
    "plan_for",
]

load_lazily(__name__)
