"""Models by built-in name, local directory, GGUF file or hub id, as plain TransformerLens bridges."""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.errors import InputError, ModelLoadError, SinkLensError
from sinklens.models.bos import tokenizer_bos
from sinklens.models.gguf import GgufFile, load_gguf, read_gguf_file
from sinklens.models.locate import check_kind, locate, near_matches
from sinklens.models.panics import no_panics
from sinklens.models.quiet import quietly
from sinklens.models.rope import forget_lengths
from sinklens.models.source import ModelSource, remember_source
from sinklens.models.torch_state import usual_torch
from sinklens.models.weights import exact_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@checked
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
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputError(f"Expected a model's name or where it lies, got {type(name_or_path).__name__}.")
    name = os.fspath(name_or_path)
    path, builtin, revision = locate(name)
    at_revision: dict[str, Any] = {} if revision is None else {"revision": revision}
    target = None if device_map is not None else _device(device)
    gguf = read_gguf_file(Path(path)) if Path(path).is_file() else None
    with quietly(is_local=Path(path).exists()), exact_weights():
        try:
            if gguf is not None:
                wanted = _dtype(dtype or "float32")
                model, (bos_id, tokenizer_prepends) = _boot_gguf(gguf, wanted, target, device_map)
            else:
                check_kind(path, at_revision)
                wanted = _dtype(dtype) if dtype is not None else _stored_dtype(path, trust_remote_code, at_revision)
                model = _boot(
                    path,
                    device=target,
                    dtype=wanted,
                    device_map=device_map,
                    trust_remote_code=trust_remote_code,
                    **at_revision,
                )
                bos_id, tokenizer_prepends = _shipped_bos(path, trust_remote_code, at_revision)
        except SinkLensError:
            raise
        except Exception as error:
            raise ModelLoadError(_explain(name, path, error)) from error
    model.eval()
    forget_lengths(model.original_model)
    _refuse_nan(model, path)
    where = path if revision is None else name
    quantisation = None if gguf is None else gguf.quantisation
    remember_source(model, ModelSource(name, where, builtin, tokenizer_prepends, bos_id, quantisation))
    return model


@no_panics()
def _boot(path: str, **options: Any) -> TransformerBridge:
    return TransformerBridge.boot_transformers(path, **options)


@no_panics()
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
            f"nor is it in the local cache. {near_matches(name)}"
        )
    return f"{name!r} is no built-in model or local directory, and the hub answered: {text[:300]} {near_matches(name)}"


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


@no_panics()
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
