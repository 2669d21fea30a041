"""KV heads and the query heads that read them: what a cache holds against what a table of heads names."""

from collections.abc import Iterable

from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions.heads import Head, parse_head
from sinklens.models.architecture import attention_layers
from sinklens.wording import several


def kv_head_count(model: TransformerBridge) -> int:
    """KV heads of a layer: as many as query heads without grouping (MHA), fewer with it (GQA, MQA)."""
    return int(getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads)


def heads_of_kv(model: TransformerBridge, kv_heads: Iterable[object]) -> tuple[Head, ...]:
    """Every query head that reads one of these KV heads, in order.

    Query head h reads KV head ``h // (heads / kv_heads)``.

    Args:
        model: The bridge.
        kv_heads: KV heads as ``(layer, kv_head)``; none gives no head.

    Raises:
        InputError: The model has no such layer of attention, or fewer KV heads.
    """
    count, layers = kv_head_count(model), attention_layers(model)
    group = int(model.cfg.n_heads) // count
    found: set[Head] = set()
    for layer, kv_head in sorted({parse_head(head) for head in kv_heads}):
        if layer not in layers or kv_head >= count:
            raise InputError(
                f"KV head {kv_head} of layer {layer} does not exist in this model, which has "
                f"{several(count, 'KV head')} in each of the layers {', '.join(map(str, layers))}."
            )
        found |= {(layer, kv_head * group + place) for place in range(group)}
    return tuple(sorted(found))
