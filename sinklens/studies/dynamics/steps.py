"""The training step that a checkpoint's name tells."""

import re

_STEP = re.compile(r"(?:steps?|checkpoint|ckpt|chkpt|iter(?:ation)?|updates?)[-_=]*(\d+)([kKmM](?![a-zA-Z]))?")
_TOKENS = re.compile(r"tokens?[-_=]*(\d+(?:\.\d+)?)([KMBT])?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def parse_step(name: str) -> int | None:
    """Step in the name of a folder or revision: the number after "step", "checkpoint", "iter", else the only one.

    ``None`` where there is no number, or several and none of them is named.

    Example:
        >>> [parse_step(name) for name in ("step-000125", "checkpoint-500", "step1000-tokens4B", "ckpt_20k", "007")]
        [125, 500, 1000, 20000, 7]
        >>> [parse_step(name) for name in ("main", "v1-2")]
        [None, None]
    """
    named = _STEP.search(name.lower())
    if named is not None:
        return int(named[1]) * _UNITS[(named[2] or "").lower()]
    numbers = re.findall(r"\d+", name)
    return int(numbers[0]) if len(numbers) == 1 else None


def parse_tokens(name: str) -> int | None:
    """Tokens trained on, where the name tells them.

    Example:
        >>> parse_tokens("step1000-tokens4B"), parse_tokens("stage1-step500-tokens2.5B"), parse_tokens("step1000")
        (4000000000, 2500000000, None)
    """
    found = _TOKENS.search(name)
    return None if found is None else round(float(found[1]) * _UNITS[(found[2] or "").lower()])
