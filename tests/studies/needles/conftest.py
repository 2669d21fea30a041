"""Models that the tests of needles share."""

from pathlib import Path

import pytest
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny checkpoints of this session lie."""
    return tmp_path_factory.mktemp("needle-zoo")


@pytest.fixture(scope="session")
def induction() -> TransformerBridge:
    """The built-in model that answers random needles."""
    return load("induction-2l")


@pytest.fixture(scope="session")
def prose() -> TransformerBridge:
    """A small language model with a tokenizer of pieces of words."""
    return load("tiny-llama")
