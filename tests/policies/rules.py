"""One small instance of every listed policy, and one whose budget is as large as any text here."""

from sinklens.policies import Policy
from sinklens.policies.alisa import Alisa
from sinklens.policies.attention_gate import AttentionGate
from sinklens.policies.block_sparse import BlockSparse
from sinklens.policies.block_top_k import BlockTopK
from sinklens.policies.cca import CCA
from sinklens.policies.coverage import Coverage
from sinklens.policies.d2o import D2O
from sinklens.policies.double_sparsity import DoubleSparsity
from sinklens.policies.fake_quant import FakeQuantKV
from sinklens.policies.flex_prefill import FlexPrefill
from sinklens.policies.full import Full
from sinklens.policies.h2o import H2O
from sinklens.policies.h2o_global import H2OGlobal
from sinklens.policies.head_split import HeadSplit
from sinklens.policies.hip import HiP
from sinklens.policies.hyper_attention import HyperAttention
from sinklens.policies.keyformer import Keyformer
from sinklens.policies.landmark import Landmark
from sinklens.policies.long_gen import LongGen
from sinklens.policies.long_heads import LongHeads
from sinklens.policies.low_rank_keys import LowRankKeys
from sinklens.policies.moa import MoA
from sinklens.policies.power_attention import PowerAttention
from sinklens.policies.quest import Quest
from sinklens.policies.razor import Razor
from sinklens.policies.recycled import Recycled
from sinklens.policies.retro_infer import RetroInfer
from sinklens.policies.routing import Routing
from sinklens.policies.s2_attention import S2Attention
from sinklens.policies.sea import SEA
from sinklens.policies.shadow_kv import ShadowKV
from sinklens.policies.shared_pattern import SharedPattern
from sinklens.policies.shifted_groups import ShiftedGroups
from sinklens.policies.sink_window import SinkWindow
from sinklens.policies.snap_kv import SnapKV
from sinklens.policies.sp_atten import SpAtten
from sinklens.policies.squeezed import Squeezed
from sinklens.policies.streaming_llm import StreamingLLM
from sinklens.policies.task_kv import TaskKV
from sinklens.policies.tidal_decode import TidalDecode
from sinklens.policies.token_select import TokenSelect
from sinklens.policies.top_k import TopK
from sinklens.policies.tova import TOVA
from sinklens.policies.tri_shape import TriShape
from sinklens.policies.vertical_slash import VerticalSlash

POS, PROMPT = 40, 22

SMALL: dict[str, Policy] = {
    "full": Full(),
    "sink_window": SinkWindow(2, 6),
    "tri_shape": TriShape(2, 6, dense=4, prompt=PROMPT),
    "top_k": TopK(7),
    "coverage": Coverage(0.6),
    "h2o": H2O(4, 4),
    "h2o_global": H2OGlobal(4, 4),
    "tova": TOVA(8),
    "keyformer": Keyformer(4, 4),
    "snap_kv": SnapKV(10, window=4, pool=3, prompt=PROMPT),
    "power_attention": PowerAttention(4, 2),
    "s2_attention": S2Attention(4, 2, 4),
    "long_gen": LongGen(2, 6),
    "moa": MoA({"L0H0": (0, 0.1), "L0H1": (0, 0.1), "L1H2": (0, 0.1)}, n_tokens=POS, shortest=1, step=4),
    "shifted_groups": ShiftedGroups(8, n_tokens=POS),
    "block_top_k": BlockTopK(4, 2),
    "quest": Quest(4, 2, dense_layers=0),
    "block_sparse": BlockSparse(8, 4, 2),
    "vertical_slash": VerticalSlash(4, 4, voters=6, first=1, recent=2, prompt=PROMPT),
    "flex_prefill": FlexPrefill(0.5, block=4, prompt=PROMPT),
    "double_sparsity": DoubleSparsity(6, channels=2, dense_layers=0, calibration=8),
    "tidal_decode": TidalDecode(6, first=0, correction=0, in_prompt=True),
    "alisa": Alisa(4, 4),
    "recycled": Recycled(5, every=8),
    "streaming_llm": StreamingLLM(2, 6),
    "head_split": HeadSplit(["L0H1", "L1H0"], 2, 6),
    "razor": Razor(["L0H1", "L1H0"], 2, 6),
    "shared_pattern": SharedPattern(0, last=2, size=2),
    "sp_atten": SpAtten(8),
    "token_select": TokenSelect(4, 1, 3),
    "long_heads": LongHeads(4, 4),
    "shadow_kv": ShadowKV(8, chunk=2, outliers=1, last=1, prompt=PROMPT),
    "fake_quant": FakeQuantKV(3),
    "low_rank_keys": LowRankKeys(2),
    "d2o": D2O(4, 4, 2, dense_first=0),
    "task_kv": TaskKV(4, 1, 4, least=1, beta=0.25, strongest=6, window=4, pool=3, prompt=PROMPT),
    "squeezed": Squeezed(0.6, 3, 4, prompt=PROMPT),
    "retro_infer": RetroInfer(0.3, 0.4, 3, 1, 3, segment=12, prompt=PROMPT),
    "hip": HiP(8, 2, 8, 1, 3, 0),
    "hyper_attention": HyperAttention(3, 3, 5, 3),
    "landmark": Landmark(5, 2),
    "cca": CCA(4, 6),
    "sea": SEA(6, 12),
    "routing": Routing(3, 12),
    "attention_gate": AttentionGate(),
}

LARGE: dict[str, Policy] = {
    "full": Full(),
    "sink_window": SinkWindow(0, POS),
    "tri_shape": TriShape(0, POS, prompt=PROMPT),
    "top_k": TopK(POS),
    "coverage": Coverage(1.0),
    "h2o": H2O(POS, 1),
    "h2o_global": H2OGlobal(POS, 1),
    "tova": TOVA(POS),
    "keyformer": Keyformer(POS, 1),
    "snap_kv": SnapKV(POS, window=4, prompt=PROMPT),
    "power_attention": PowerAttention(POS, 1),
    "s2_attention": S2Attention(4, POS, 4),
    "long_gen": LongGen(0, POS),
    "moa": MoA({"L0H0": (0, 1)}, n_tokens=4 * POS),
    "shifted_groups": ShiftedGroups(4 * POS, n_tokens=2**20),
    "block_top_k": BlockTopK(4, POS),
    "quest": Quest(4, POS),
    "block_sparse": BlockSparse(8, 4, POS),
    "vertical_slash": VerticalSlash(POS, POS, prompt=PROMPT),
    "flex_prefill": FlexPrefill(1.0, tau=0.0, prompt=PROMPT),
    "double_sparsity": DoubleSparsity(POS),
    "tidal_decode": TidalDecode(POS, in_prompt=True),
    "alisa": Alisa(POS, 1),
    "recycled": Recycled(POS, every=8),
    "streaming_llm": StreamingLLM(2, POS),
    "head_split": HeadSplit("all"),
    "razor": Razor("all"),
    "shared_pattern": SharedPattern(0, size=1),
    "sp_atten": SpAtten(POS),
    "token_select": TokenSelect(POS),
    "long_heads": LongHeads(4, POS),
    "shadow_kv": ShadowKV(POS, chunk=2, outliers=1, last=1, prompt=PROMPT),
    "fake_quant": FakeQuantKV(16),
    "low_rank_keys": LowRankKeys(1000),
    "d2o": D2O(POS, 1),
    "task_kv": TaskKV(POS, prompt=PROMPT),
    "squeezed": Squeezed(0.0, prompt=PROMPT),
    "retro_infer": RetroInfer(1.0, prompt=PROMPT),
    "hip": HiP(2 * POS, 2, 8, dense_layers=0),
    "hyper_attention": HyperAttention(3, 3, POS),
    "landmark": Landmark(POS + 1),
    "cca": CCA(4, POS),
    "sea": SEA(POS),
    "routing": Routing(3, 2 * POS),
    "attention_gate": AttentionGate(0.0),
}

MOST: dict[str, int] = {
    "sink_window": 8, "top_k": 7, "h2o": 9, "h2o_global": 9, "tova": 9, "keyformer": 9, "s2_attention": 16,
    "block_top_k": 12, "quest": 12, "tidal_decode": 6, "alisa": 8, "streaming_llm": 9, "sp_atten": 9,
    "token_select": 8, "long_heads": 16, "sea": 11, "landmark": 14,
}  # fmt: skip
"""Keys that the small instance may read at most in any row of any head (of the layers that it cuts)."""
