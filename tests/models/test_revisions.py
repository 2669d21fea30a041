"""Revisions of hub models after an ``@``: what is read, what is remembered, and what is no revision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import ModelLoadError
from sinklens.models.load import load
from sinklens.models.locate import locate
from sinklens.models.source import source_of
from tests.families import checkpoint


def test_the_revision_reaches_config_weights_and_tokenizer(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = str(checkpoint("llama", zoo))
    asked: list[tuple[str, str | None]] = []
    boot = TransformerBridge.boot_transformers

    def booted(name: str, *, revision: str | None = None, **options: Any) -> Any:
        asked.append((name, revision))
        return boot(local, **options)

    from transformers import AutoConfig, AutoTokenizer

    for kind in (AutoConfig, AutoTokenizer):
        original = kind.from_pretrained

        def read(name: str, *words: Any, original: Any = original, **options: Any) -> Any:
            if name == "org/model":
                asked.append((name, options.pop("revision", None)))
                name = local
            return original(name, *words, **options)

        monkeypatch.setattr(kind, "from_pretrained", read)
    monkeypatch.setattr(TransformerBridge, "boot_transformers", booted)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = load("org/model@step1000")
    assert asked == [("org/model", "step1000")] * 3
    source = source_of(model)
    assert source is not None and source.name == source.path == "org/model@step1000" and source.builtin is None
    asked.clear()
    load("org/model")
    assert [revision for _, revision in asked] == [None] * 3


@pytest.mark.parametrize("name", ["bb-1l@step1", "org/model@", "@step1"])
def test_what_is_no_revision(name: str) -> None:
    with pytest.raises(ModelLoadError, match="names no revision of a hub model"):
        load(name)


def test_a_directory_has_no_revisions_but_may_have_an_at_in_its_name(zoo: Path, tmp_path: Path) -> None:
    place = tmp_path / "model@home"
    place.symlink_to(checkpoint("llama", zoo))
    assert torch.is_tensor(next(load(str(place)).parameters()))
    with pytest.raises(ModelLoadError, match="names no revision of a hub model"):
        load(f"{tmp_path}@step1")


def test_a_revision_that_cannot_be_had_is_one_sentence() -> None:
    with pytest.raises(ModelLoadError) as error:
        load("org/model@step1000")
    assert "'org/model@step1000'" in str(error.value) and "\n" not in str(error.value)


def test_located_names() -> None:
    assert locate("org/model@refs/pr/1") == ("org/model", None, "refs/pr/1")
    assert locate("org/model") == ("org/model", None, None)
