"""Which KV heads need their whole cache: DuoAttention's gates, the split they give, and whether it holds up."""

from sinklens.studies.streaming_split.check import SplitCheck, check_split
from sinklens.studies.streaming_split.passkeys import Passkeys, draw_passkeys
from sinklens.studies.streaming_split.result import StreamingGates
from sinklens.studies.streaming_split.run import streaming_split
from sinklens.studies.streaming_split.settings import GateSettings
from sinklens.studies.streaming_split.split import Split, kv_name, split_gates

__all__ = [
    "GateSettings",
    "Passkeys",
    "Split",
    "SplitCheck",
    "StreamingGates",
    "check_split",
    "draw_passkeys",
    "kv_name",
    "split_gates",
    "streaming_split",
]
