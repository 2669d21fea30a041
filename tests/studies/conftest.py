"""Models and censuses shared by the tests of studies and the command line."""

from pathlib import Path

import pytest
from transformer_lens.model_bridge import TransformerBridge

from sinklens import Census, load, scan
from tests import families


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """A random Llama, with attention far from uniform."""
    return load(families.build_checkpoint("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="session")
def bb3() -> TransformerBridge:
    """The built-in 3-layer Bigram-Backcopy model."""
    return load("bb-3l")


@pytest.fixture(scope="session")
def bb3_census(bb3: TransformerBridge) -> Census:
    """Its census on its own task."""
    return scan(bb3)


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory for the command line."""
    return families.build_checkpoint("llama", tmp_path_factory.mktemp("checkpoint"))
