"""All prompts of a needle test through the model, one teacher-forced pass each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions import Intervention
from sinklens.studies.needles.engine import Reader, reading
from sinklens.studies.needles.instance import NeedleInstance
from sinklens.studies.needles.outcome import Outcome, read_outcome
from sinklens.studies.needles.passes import TOKENS_PER_PASS, Step, may_share, plan_passes

Deliver = Callable[[dict[int, Outcome]], None]


def run_needles(
    model: TransformerBridge,
    instances: Sequence[NeedleInstance],
    deliver: Deliver,
    *,
    intervention: Intervention | None = None,
    keys: bool = True,
    share: bool = True,
    max_tokens: int | None = None,
) -> None:
    """Run prompt and answer of every instance through the model and hand on what the answer rows say.

    One pass takes the prompt with all answer tokens but the last; row t of its last K rows predicts answer token t.
    Only those rows' logits and strongest keys are taken. Where greedy decoding gives the answer, these are the numbers
    of decoding it token by token. Prompts with a common beginning share it through a KV cache (see
    :func:`~sinklens.studies.needles.passes.plan_passes`).

    Args:
        model: The bridge; it is the same afterwards, also after an exception.
        instances: From :func:`make_needles`.
        deliver: Receives the outcomes of each finished pass by instance number.
        intervention: A change of the model under which all is run.
        keys: Whether to find the strongest keys of the answer rows.
        share: Whether prompts share their beginnings where that is exact, and the last layer runs for the answer rows
            alone. Without it every prompt is one whole forward pass.
        max_tokens: Most tokens of a forward pass, all sequences together; default: 4,096 on a CPU, 65,536 on a GPU.

    Raises:
        InputError: No instance, an id outside the vocabulary, or an intervention that does not fit the model.
        UnsupportedArchitectureError: Keys of a model without attention.

    Cost: a forward pass with fused attention, and O(K pos) for the strongest keys; memory of the KV cache, no
    ``pos x pos`` tensor.
    """
    check_instances(model, instances)
    limit = max_tokens or TOKENS_PER_PASS.get(next(model.parameters()).device.type, TOKENS_PER_PASS["cpu"])
    with reading(model, intervention, keys) as reader:
        shared = share and may_share(intervention) and reader.caches()
        for chain in plan_passes(instances, share=shared, max_tokens=limit):
            _run_chain(reader, chain, instances, deliver, reader.new_cache() if shared else None)


def _run_chain(
    reader: Reader, chain: Sequence[Step], instances: Sequence[NeedleInstance], deliver: Deliver, cache: Any
) -> None:
    held = 0
    for step in chain:
        if cache is not None and held > step.keep:
            cache.crop(step.keep - held)
        held = step.total
        ids = torch.tensor([instances[number].fed[step.keep :] for number in step.members])
        logits, top_key, _ = reader.run(ids, step.rows, cache)
        found = {}
        for place, number in enumerate(step.members):
            own = None if top_key is None else top_key[:, place]
            found[number] = read_outcome(logits[place], instances[number].answer, own)
        deliver(found)


def check_instances(model: TransformerBridge, instances: Sequence[NeedleInstance]) -> None:
    """Refuse prompts that this model cannot take.

    Raises:
        InputError: No instance, or an id outside the vocabulary.
    """
    if not instances:
        raise InputError("Expected at least one needle instance, got none.")
    largest = max(max(each.ids) for each in instances)
    if largest >= int(model.cfg.d_vocab) or min(min(each.ids) for each in instances) < 0:
        raise InputError(
            f"The prompts hold id {largest} and this model's vocabulary has ids 0 to {model.cfg.d_vocab - 1}; make "
            "them for this model."
        )
