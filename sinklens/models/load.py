"""Models by built-in name, local directory, GGUF file or hub id, as plain TransformerLens bridges."""

import contextlib
import difflib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources.transformers import helpers as tl_helpers
from transformers import dynamic_module_utils

from sinklens.errors import InputError, ModelLoadError, SinkLensError
from sinklens.models.bos import tokenizer_bos
from sinklens.models.builtin import builtin_models
from sinklens.models.gguf import GgufFile, load_gguf, read_gguf_file
from sinklens.models.source import ModelSource, remember_source
from sinklens.models.torch_state import usual_torch

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "merges.txt")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@usual_torch()
def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, str | int] | None = None,
    trust_remote_code: bool = False,
) -> TransformerBridge:
    """Load a model as a TransformerLens bridge, in evaluation mode.

    Args:
        name_or_path: A built-in name (see ``sinklens models``), a local Hugging Face directory, a GGUF file
            (``model.gguf``, or any part of a split one), or a hub id, with a revision (branch, tag or commit) after an
            ``@``: ``EleutherAI/pythia-160m@step1000``. Only a hub id touches the network.
        device: ``"auto"`` (CUDA if there is one, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` or a torch dtype; default: as the checkpoint is stored,
            and float32 for a GGUF file, whose weights are dequantised.
        device_map: Spread the model over several devices with accelerate (``"auto"``, ``"balanced"`` or an explicit
            map); replaces ``device``.
        trust_remote_code: Run modelling code that comes with the checkpoint. Off: such a checkpoint is refused.

    Returns:
        A :class:`TransformerBridge`; nothing about it is specific to sinklens.

    Raises:
        ModelLoadError: The model does not exist, lacks weights or a tokenizer, holds NaN, or cannot be reached.
        InputError: A device or dtype that this machine does not have.

    Loading never starts a subprocess: TransformerLens would install torchvision for some multimodal models, which is
    prevented here. Pickled weights go through torch's weights-only loader.
    """
    name = os.fspath(name_or_path)
    path, builtin, revision = _locate(name)
    at_revision: dict[str, Any] = {} if revision is None else {"revision": revision}
    target = None if device_map is not None else _device(device)
    quick = _quick_when_offline(is_local=Path(path).exists())
    gguf = read_gguf_file(Path(path)) if Path(path).is_file() else None
    with _no_installs(), _no_questions(), _no_bars(), quick, _missing_weights() as missing:
        try:
            if gguf is not None:
                model, (bos_id, tokenizer_prepends) = _boot_gguf(gguf, _dtype(dtype or "float32"), target, device_map)
            else:
                model = TransformerBridge.boot_transformers(
                    path,
                    device=target,
                    dtype=_dtype(dtype) if dtype is not None else _stored_dtype(path, trust_remote_code, at_revision),
                    device_map=device_map,
                    trust_remote_code=trust_remote_code,
                    **at_revision,
                )
                bos_id, tokenizer_prepends = _shipped_bos(path, trust_remote_code, at_revision)
        except SinkLensError:
            raise
        except Exception as error:
            raise ModelLoadError(_explain(name, path, error)) from error
    if missing:
        raise ModelLoadError(
            f"The weights in {path} are incomplete: {', '.join(missing[:3])} would be random numbers. "
            "Expected a complete checkpoint; download or save it again."
        )
    model.eval()
    _refuse_nan(model, path)
    where = path if revision is None else name
    quantisation = None if gguf is None else gguf.quantisation
    remember_source(model, ModelSource(name, where, builtin, tokenizer_prepends, bos_id, quantisation))
    return model


def _boot_gguf(
    file: GgufFile, dtype: torch.dtype, device: torch.device | None, device_map: Any
) -> tuple[TransformerBridge, tuple[int | None, bool]]:
    """Bridge of a GGUF file, and the BOS of its tokenizer as shipped."""
    hf_model, tokenizer = load_gguf(file, dtype=dtype, device_map=device_map)
    if device is not None:
        hf_model.to(device)
    bos = tokenizer_bos(tokenizer)  # before TransformerLens changes it
    # with a model and a tokenizer in hand TransformerLens reads nothing from the place it is told
    return TransformerBridge.boot_transformers(str(file.path), hf_model=hf_model, tokenizer=tokenizer, dtype=dtype), bos


def _locate(name: str) -> tuple[str, str | None, str | None]:
    """Directory or hub id to read, the built-in name if it is one, and the hub's revision if one is named.

    Checks what a local directory must hold.
    """
    builtins = builtin_models()
    if name in builtins:
        return str(builtins[name].path), name, None
    path = Path(name).expanduser()
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
    if path.is_absolute() or name.startswith((".", "~")) or len(parts) > 2:
        raise ModelLoadError(f"There is no directory or file {name}. {_near_matches(name)}")
    return repository, None, revision or None


def _check_directory(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ModelLoadError(f"{path} has no config.json; expected a Hugging Face model directory.")
    if not any(any(path.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        raise ModelLoadError(
            f"{path} has no weights; expected model.safetensors (or sharded safetensors, or pytorch_model.bin)."
        )
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        raise ModelLoadError(
            f"{path} has no tokenizer; expected tokenizer.json (or tokenizer.model, vocab.json). Save the tokenizer "
            "next to the weights with tokenizer.save_pretrained."
        )


def _near_matches(name: str) -> str:
    known = list(builtin_models())
    near = difflib.get_close_matches(Path(name).name, known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}Built-in models: {', '.join(known)}."


def _explain(name: str, path: str, error: Exception) -> str:
    """One sentence for whatever transformers or TransformerLens raised."""
    text = " ".join(str(error).split())
    if Path(path).exists():
        if "trust_remote_code" in text or "custom code" in text:
            return (
                f"{path} comes with its own modelling code, which is not run unless you pass --trust-remote-code "
                "(trust_remote_code=True)."
            )
        if "Weights only load failed" in text:
            return (
                f"{path} holds pickled weights with more in them than tensors, which could run code and is not read; "
                "expected safetensors, or a pytorch_model.bin with tensors alone."
            )
        return f"The model in {path} could not be loaded: {text[:400]}"
    if any(sign in text for sign in ("connect", "offline", "resolve", "Offline", "Max retries", "cached files")):
        return (
            f"{name!r} is no built-in model and no local directory, and the model hub cannot be reached (offline?) "
            f"nor is it in the local cache. {_near_matches(name)}"
        )
    return f"{name!r} is no built-in model or local directory, and the hub answered: {text[:300]} {_near_matches(name)}"


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise InputError(f'Unknown device {device!r}; expected "auto", "cpu", "cuda" or "cuda:N".') from error
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f'Device "{device}" was asked for, but torch sees no CUDA GPU here; use "cpu" or "auto".')
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise InputError(f'Device "{device}" was asked for; this machine has {torch.cuda.device_count()} GPU(s).')
    backend: Any = getattr(torch, parsed.type, None)
    if parsed.type != "cpu" and not (hasattr(backend, "is_available") and backend.is_available()):
        raise InputError(f'Device "{device}" was asked for, but torch has none here; use "cpu" or "auto".')
    return parsed


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype asked for."""
    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            raise InputError(f"Expected a floating-point dtype such as torch.float32, got {dtype}.")
        return dtype
    if dtype not in DTYPES:
        raise InputError(f"Unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _stored_dtype(path: str, trust_remote_code: bool, at_revision: dict[str, Any]) -> torch.dtype:
    """The dtype that the config names, float32 where it names none."""
    from transformers import AutoConfig

    with contextlib.suppress(Exception):  # a bad config is reported by the loading proper
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **at_revision)
        if isinstance(stored := getattr(config, "dtype", None), torch.dtype):
            return stored
    return torch.float32


def _shipped_bos(path: str, trust_remote_code: bool, at_revision: dict[str, Any]) -> tuple[int | None, bool]:
    """BOS of the tokenizer in a directory or on the hub, read anew.

    TransformerLens loads its own copy with a BOS forced on, and makes EOS (or an id of its own) the BOS of a tokenizer
    that has none.
    """
    from transformers import AutoTokenizer

    return tokenizer_bos(AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, **at_revision))


def _refuse_nan(model: TransformerBridge, path: str) -> None:
    for name, parameter in model.original_model.named_parameters():
        if parameter.is_meta:
            continue  # moved to disk by accelerate
        # the sum is cheap and NaN or inf survive it; only then look at every entry (a sum may overflow by itself)
        if not bool(torch.isfinite(parameter.detach().sum())) and not bool(torch.isfinite(parameter).all()):
            bad = int((~torch.isfinite(parameter)).sum())
            clean = name.replace("_original_component.", "")
            raise ModelLoadError(
                f"{path} holds {bad} NaN or infinite weights (first in {clean}); every number measured on it would "
                "be meaningless. Use an intact checkpoint."
            )


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Switch off transformers' own progress bars for weights, which would garble ours."""
    from transformers.utils import logging as hf_logging

    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def _no_installs() -> Iterator[None]:
    """Keep TransformerLens from running ``pip install torchvision`` when a multimodal processor does not load."""
    with mock.patch.object(tl_helpers, "_ensure_torchvision", lambda: False):
        yield


@contextlib.contextmanager
def _no_questions() -> Iterator[None]:
    """Keep transformers from asking at the terminal whether to run a checkpoint's code: only the argument decides."""
    with mock.patch.object(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0):
        yield


@contextlib.contextmanager
def _quick_when_offline(*, is_local: bool) -> Iterator[None]:
    """Skip the hub's retries (half a minute) when it certainly cannot be reached; the cache still works."""
    from huggingface_hub import constants

    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if not is_local and not proxied and not constants.HF_HUB_OFFLINE:
        host = constants.ENDPOINT.split("://", 1)[-1].split("/", 1)[0].split(":", 1)[0]
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
                yield
            return
    yield


@contextlib.contextmanager
def _missing_weights() -> Iterator[list[str]]:
    """Collect the parameters that transformers initialised at random because the checkpoint lacks them."""
    missing: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for line in record.getMessage().splitlines():
                if "MISSING" in line and "|" in line:
                    missing.append(line.split("|", 1)[0].strip())

    logger = logging.getLogger("transformers.modeling_utils")
    level, propagate, handler = logger.level, logger.propagate, Collector()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield missing
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
