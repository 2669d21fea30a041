"""What a model makes of a needle: its tokens, their probabilities and ranks, and where its heads looked."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """The answer rows of one instance; step t is predicted from the prompt and the t answer tokens before.

    Attributes:
        produced: Most likely token of each step, ``[step]``.
        log_prob: Log-probability in nats of the answer's token, ``[step]``.
        rank: 1 + how many tokens have a higher logit than the answer's, ``[step]``.
        top_key: Strongest key of each step's query, ``[layer head step]``, layers with attention in order; -1 where a
            row has no weight; ``None`` when it was not asked for.
    """

    produced: Int[Tensor, " step"]
    log_prob: Float[Tensor, " step"]
    rank: Int[Tensor, " step"]
    top_key: Int[Tensor, "layer head step"] | None = None

    def correct(self, answer: tuple[int, ...]) -> Tensor:
        """Which steps produce the answer's token, ``[step]``.

        All of them: then greedy decoding gives the answer too, since each step's prompt is what it decoded so far.
        """
        return self.produced == torch.tensor(answer)


def read_outcome(
    logits: Float[Tensor, "step d_vocab"],
    answer: tuple[int, ...],
    top_key: Int[Tensor, "layer head step"] | None = None,
) -> Outcome:
    """An outcome from the logits of the answer rows, in fp32.

    Example:
        >>> found = read_outcome(torch.tensor([[0.0, 2.0, 1.0]]), (2,))
        >>> found.produced.tolist(), found.rank.tolist(), round(found.log_prob.item(), 3)
        ([1], [2], -1.408)
    """
    logits = logits.float()
    target = torch.tensor(answer, device=logits.device)[:, None]
    chosen = logits.gather(-1, target)
    log_prob = (chosen - logits.logsumexp(-1, keepdim=True))[:, 0]
    rank = 1 + (logits > chosen).sum(-1)
    keys = None if top_key is None else top_key.cpu()
    return Outcome(logits.argmax(-1).cpu(), log_prob.cpu(), rank.cpu(), keys)
