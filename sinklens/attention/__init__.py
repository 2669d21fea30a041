"""The engine: exact attention by blocks of rows, measured and edited, never T x T."""

from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.distance_outside import DistanceOutside
from sinklens.attention.engine import AttentionEngine
from sinklens.attention.fused import fused
from sinklens.attention.future_influence import FutureInfluence
from sinklens.attention.kernel import AttentionCall, Edit, attend
from sinklens.attention.last_rows import last_rows
from sinklens.attention.maps import FullMap, PooledMap
from sinklens.attention.observer import Observer
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
from sinklens.attention.target_mass import TargetMass
from sinklens.attention.windowed_distance import WindowedDistance

__all__ = [
    "AttentionCall",
    "AttentionEngine",
    "AttentionPlan",
    "AttentionShape",
    "Block",
    "DeltaLogit",
    "Distance",
    "DistanceOutside",
    "Edit",
    "Entropy",
    "FullMap",
    "FutureInfluence",
    "KeySetMass",
    "LayerPlan",
    "MissingMass",
    "Observer",
    "PooledMap",
    "ReceivedMass",
    "Statistic",
    "StatisticFactory",
    "TargetMass",
    "TopKey",
    "WindowedDistance",
    "attend",
    "fused",
    "last_rows",
    "plan_for",
]
