"""Models that the tests of needles share."""

import pytest
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load


@pytest.fixture(scope="session")
def induction() -> TransformerBridge:
    """The built-in model that answers random needles."""
    return load("induction-2l")


@pytest.fixture(scope="session")
def prose() -> TransformerBridge:
    """A small language model with a tokenizer of pieces of words."""
    return load("tiny-llama")
