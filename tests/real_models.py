"""The real language models of the `real` tier: each is loaded once in a process, and a test without it is skipped."""

from functools import cache

import pytest
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import SinkLensError
from sinklens.models.load import load
from sinklens.models.real import real_model_path


def real_model(name: str) -> TransformerBridge:
    """The bridge of ``"smollm2"`` or ``"gemma3"``, shared: leave it as you found it. Skips where it is missing."""
    reason = why_missing(name)
    if reason is not None:
        pytest.skip(reason)
    return _loaded(name)


def why_missing(name: str) -> str | None:
    """Why a test on this model cannot run here, ``None`` when it can."""
    try:
        real_model_path(name)
    except SinkLensError as error:
        return str(error)
    return None


@cache
def _loaded(name: str) -> TransformerBridge:
    return load(real_model_path(name), device="cpu")
