"""Heads that cannot do anything: what they attend to never reaches the residual stream."""

from transformer_lens.model_bridge import TransformerBridge

from sinklens.interventions.heads import Head
from sinklens.models.architecture import attention_layers, output_weights


def idle_heads(model: TransformerBridge) -> tuple[Head, ...]:
    """Heads whose ``W_O`` is 0 throughout, as ``(layer, head)``.

    Masking them changes no logit, whatever the way of masking, so they are random heads that are known to be harmless.
    Trained models have none; they are appended on purpose. A layer whose weights cannot be read (quantised) has none.

    >>> from sinklens import load
    >>> idle_heads(load("bb-3l"))
    ()
    """
    found: list[Head] = []
    for layer in sorted(attention_layers(model)):
        weights = output_weights(model, layer)
        if weights is not None:
            found += [(layer, head) for head, each in enumerate(weights) if not bool(each.any())]
    return tuple(found)
