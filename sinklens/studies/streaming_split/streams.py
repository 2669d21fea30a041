"""Random streams that differ for every seed and every place in a run."""

import numpy as np
import torch


def stream(seed: int, *place: int) -> torch.Generator:
    """A generator for one place of a run, such as a step.

    torch's CPU generator looks at no more than 32 bits of a seed, so seed and place are hashed into that many.

    >>> first, second = stream(0, 7), stream(1, 7)
    >>> first.initial_seed() == stream(0, 7).initial_seed(), first.initial_seed() == second.initial_seed()
    (True, False)
    """
    (state,) = np.random.SeedSequence([seed, *place]).generate_state(1)
    return torch.Generator().manual_seed(int(state))
