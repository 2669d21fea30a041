"""The engine: exact attention by blocks of rows, measured and edited, never T x T."""

from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.engine import AttentionEngine
from sinklens.attention.kernel import AttentionCall, Edit, attend
from sinklens.attention.maps import FullMap, PooledMap
from sinklens.attention.plan import AttentionPlan, LayerPlan, plan_for
from sinklens.attention.statistics import (
    DeltaLogit,
    Distance,
    Entropy,
    KeySetMass,
    MissingMass,
    ReceivedMass,
    Statistic,
    StatisticFactory,
    TopKey,
)

__all__ = [
    "AttentionCall",
    "AttentionEngine",
    "AttentionPlan",
    "AttentionShape",
    "Block",
    "DeltaLogit",
    "Distance",
    "Edit",
    "Entropy",
    "FullMap",
    "KeySetMass",
    "LayerPlan",
    "MissingMass",
    "PooledMap",
    "ReceivedMass",
    "Statistic",
    "StatisticFactory",
    "TopKey",
    "attend",
    "plan_for",
]
