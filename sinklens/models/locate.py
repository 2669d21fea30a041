"""Where a model is, by the name that the user gave, and what must lie there."""

import contextlib
import difflib
import json
from pathlib import Path
from typing import Any

from sinklens.errors import ModelLoadError
from sinklens.models.builtin import builtin_models
from sinklens.models.checkpoint_files import check_sizes, check_weight_files
from sinklens.models.kind import refuse_other_kinds
from sinklens.models.reading import read_json

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")
LONGEST_NAME = 60
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "merges.txt")


def locate(name: str) -> tuple[str, str | None, str | None]:
    """Directory or hub id to read, the built-in name if it is one, and the hub's revision if one is named.

    Checks what a local directory must hold.
    """
    builtins = builtin_models()
    if name in builtins:
        return str(builtins[name].path), name, None
    path = Path(name).expanduser()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long for this system, a loop of links, a zero byte
        shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
        raise ModelLoadError(
            f"{shown!r} is no model's name and no path that can be looked at: {getattr(error, 'strerror', error)}."
        ) from error
    if path.is_dir():
        _check_directory(path)
        # absolute, because TransformerLens takes a bare "gpt2-small" for an alias of a hub model
        return str(path.absolute()), None, None
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelLoadError(
                f"{name} is a file; expected a Hugging Face model directory that holds config.json, or a GGUF file."
            )
        return str(path.absolute()), None, None
    repository, at, revision = name.partition("@")
    if at and (not repository or not revision or repository in builtins or Path(repository).is_dir()):
        raise ModelLoadError(
            f"{name} names no revision of a hub model; expected ORG/MODEL@REVISION, or the directory of a checkpoint."
        )
    parts = Path(repository).parts
    if path.is_absolute() or name.startswith((".", "~")) or name.lower().endswith(".gguf") or len(parts) > 2:
        raise ModelLoadError(f"There is no directory or file {name}. {near_matches(name)}")
    return repository, None, revision or None


def _check_directory(path: Path) -> None:
    """Config, kind of model, weights and tokenizer, in this order: an image model has no tokenizer to miss."""
    _refuse_adapter(path)
    if not (path / "config.json").is_file():
        raise ModelLoadError(f"{path} has no config.json; expected a Hugging Face model directory.")
    try:
        config = read_json(path / "config.json")
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{path / 'config.json'} is not a valid JSON file: {' '.join(str(error).split())[:200]}."
        ) from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path / 'config.json'} is no config: expected an object, got a {type(config).__name__}.")
    refuse_other_kinds(config, str(path))
    if not any(any(path.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        raise ModelLoadError(
            f"{path} has no weights; expected model.safetensors (or sharded safetensors, or pytorch_model.bin)."
        )
    check_weight_files(path, config)
    weights = {file for pattern in ("*.safetensors", "pytorch_model*.bin") for file in path.glob(pattern)}
    check_sizes(config, str(path), sum(file.stat().st_size for file in weights))
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        raise ModelLoadError(
            f"{path} has no tokenizer; expected tokenizer.json (or tokenizer.model, vocab.json). Save the tokenizer "
            "next to the weights with tokenizer.save_pretrained."
        )


def check_kind(repository: str, at_revision: dict[str, Any]) -> None:
    """The same of a model on the hub, whose config is read first; a directory's was read already."""
    from transformers import PretrainedConfig

    if Path(repository).is_dir():
        return
    with contextlib.suppress(OSError, ValueError):  # told by the loading proper
        config, _ = PretrainedConfig.get_config_dict(repository, **at_revision)
        refuse_other_kinds(config, repository)
        check_sizes(config, repository)


def _refuse_adapter(path: Path) -> None:
    """A LoRA or another adapter is no model: say whose it is and how the two become one."""
    config_path = path / "adapter_config.json"
    weights = [file for pattern in WEIGHT_PATTERNS for file in path.glob(pattern)]
    if not config_path.is_file() or any(not file.name.startswith("adapter_model") for file in weights):
        return
    base = "BASE"
    with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        base = json.loads(config_path.read_text(encoding="utf-8")).get("base_model_name_or_path") or base
    raise ModelLoadError(
        f"{path} holds an adapter for {base} and no model; merge the two, then load the result: "
        f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {str(path)!r})"
        ".merge_and_unload().save_pretrained(OUT), and the tokenizer's save_pretrained(OUT)."
    )


def near_matches(name: str) -> str:
    """Which built-in models there are, the likely ones first, in words."""
    known = list(builtin_models())
    near = difflib.get_close_matches(Path(name).name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}Built-in models: {', '.join(known)}."
