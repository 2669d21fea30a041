"""Counts how often a text runs through a model unchanged, whatever a study calls that."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge


class CleanPasses:
    """Passes through all blocks that end as the unchanged model's do, by text.

    A pass that goes on from a kept residual stream runs only the later blocks and is none.

    Attributes:
        texts: Every row of ids that was embedded.
        ends: What the last block put out, row by row.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self.model = model
        self.texts: dict[tuple[int, ...], None] = {}
        self.ends: list[Tensor] = []
        self.begun = False

    def counts(self) -> dict[tuple[int, ...], int]:
        """How many clean passes each text went through to the end."""
        found = {}
        for text in self.texts:
            before = len(self.ends)
            with watched(self), torch.no_grad():
                self.model.original_model(torch.tensor([text]))
            (clean,) = self.ends[before:]
            del self.ends[before:]
            found[text] = sum(
                end.shape == clean.shape and bool(torch.allclose(end, clean, rtol=1e-4, atol=1e-5)) for end in self.ends
            )
        return found


@contextmanager
def watched(passes: CleanPasses) -> Iterator[CleanPasses]:
    """Listen to the embedding, the first block's MLP and the last block."""
    blocks: Any = max(
        (module for module in passes.model.original_model.modules() if isinstance(module, nn.ModuleList)), key=len
    )

    def begun(*_: Any) -> None:
        passes.begun = True

    def embedded(_: Any, given: tuple[Tensor, ...], __: Any) -> None:
        ids, passes.begun = given[0], False
        if ids.ndim == 2:
            passes.texts |= dict.fromkeys(tuple(row) for row in ids.tolist())

    def ended(_: Any, __: Any, out: Any) -> None:
        if not passes.begun:
            return
        passes.begun = False
        hidden = out[0] if isinstance(out, tuple) else out
        passes.ends += [row.detach().float().cpu() for row in hidden]

    embedding = passes.model.original_model.get_input_embeddings()
    handles = [embedding.register_forward_hook(embedded), blocks[-1].register_forward_hook(ended)]
    handles.append(blocks[0].mlp.register_forward_hook(begun))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()
