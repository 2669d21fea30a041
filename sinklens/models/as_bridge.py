"""A bridge out of what people have: a name, a path, a bridge, or a Hugging Face model with its tokenizer."""

import copy
import os
from typing import Any
from unittest import mock

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources.transformers import source as tl_source
from transformers import PreTrainedModel

from sinklens.errors import InputError, ModelLoadError, SinkLensError, UnsupportedArchitectureError
from sinklens.models.bos import tokenizer_bos
from sinklens.models.load import load
from sinklens.models.parts import parts_of
from sinklens.models.source import ModelSource, remember_source
from sinklens.models.torch_state import usual_torch

AnyModel = TransformerBridge | PreTrainedModel | str | os.PathLike[str]
"""What measurements take for a model; see :func:`as_bridge`."""


def as_bridge(model: AnyModel, *, tokenizer: Any = None) -> TransformerBridge:
    """Turn a model, whichever way it is given, into the TransformerLens bridge that sinklens measures.

    ::

        census = scan(AutoModelForCausalLM.from_pretrained(path), texts, tokenizer=AutoTokenizer.from_pretrained(path))

    Args:
        model: A bridge (returned as it is), a name or path for :func:`sinklens.load`, or a Hugging Face model. The
            latter stays as it was: the bridge is built around a copy of its modules that shares the weights.
        tokenizer: For a Hugging Face model: its tokenizer, or where that lies. Default: the tokenizer beside the
            checkpoint that the model came from, where it is on this machine; without one only token ids can be used.

    Raises:
        InputError: Something else, adapters that are not merged, a model in training mode, or a tokenizer beside a
            model that has its own.
        ModelLoadError: A name or path that cannot be loaded, or no tokenizer where one was named.
        UnsupportedArchitectureError: No text decoder with a language-model head.

    Cost: for a Hugging Face model a fraction of a second, and no memory for weights.
    """
    if tokenizer is not None and not isinstance(model, PreTrainedModel):
        named = model if isinstance(model, str) else type(model).__name__
        raise InputError(f"tokenizer goes with a Hugging Face model; {named} brings its own.")
    if isinstance(model, str | os.PathLike):
        return load(model)
    if isinstance(model, TransformerBridge):
        check_evaluates(model)
        return model
    _refuse_adapters(model)
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            "Expected a name or path, a TransformerBridge or a Hugging Face model, got "
            f"{type(model).__module__}.{type(model).__name__}{_hint(model)}."
        )
    check_evaluates(model)
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} is no text decoder with a language-model head; load it with AutoModelForCausalLM, "
            "if it is one. Encoders and encoder-decoder models are not measured."
        )
    found = _find_tokenizer(model, tokenizer)
    bos_id, prepends = (None, False) if found is None else tokenizer_bos(found)
    bridge = _wrap(model, found)
    kind = type(model).__name__
    name = str(getattr(model, "name_or_path", "") or kind)
    origin = f"a {kind} in memory, given by the caller"
    whose = "the tokenizer beside the checkpoint" if tokenizer is None else "the given tokenizer"
    remember_source(bridge, ModelSource(name, "", None, prepends, bos_id, origin=origin, whose_tokenizer=whose))
    return bridge


def check_evaluates(model: torch.nn.Module) -> None:
    """Refuse a model in training mode, whose dropout would be measured.

    Raises:
        InputError: One sentence that names the first such part.
    """
    roots = (model, getattr(model, "original_model", model))
    for root in roots if any(part.training for part in parts_of(*roots)) else ():
        for name, part in root.named_modules():
            if part.training:
                where = f" (first in {name.replace('_original_component.', '')})" if name else ""
                raise InputError(
                    f"The model is in training mode{where}: dropout and the like would be measured with it. Call "
                    "model.eval() first."
                )


def _refuse_adapters(model: Any) -> None:
    named = any(each.__module__.split(".")[0] == "peft" for each in type(model).__mro__)
    inside = isinstance(model, torch.nn.Module) and any(
        type(part).__module__.split(".")[0] == "peft" for part in model.modules()
    )
    if named or inside or getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(
            f"{type(model).__name__} holds adapters (LoRA and the like) beside its weights; merge them first: pass "
            "copy.deepcopy(model).merge_and_unload() and its tokenizer."
        )


def _hint(model: Any) -> str:
    if hasattr(model, "_orig_mod"):
        return "; pass the model that was compiled, model._orig_mod"
    if hasattr(model, "model") and hasattr(model, "tokenizer"):
        return "; pass its .model, with tokenizer=its .tokenizer"
    if hasattr(model, "module"):
        return "; pass the model inside, its .module"
    return ""


def _find_tokenizer(model: PreTrainedModel, tokenizer: Any) -> Any:
    """A copy of the given tokenizer, or the one that lies beside the checkpoint."""
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return copy.deepcopy(tokenizer)  # TransformerLens will change it
    if tokenizer is not None and not isinstance(tokenizer, str | os.PathLike):
        raise InputError(f"Expected a Hugging Face tokenizer or its path, got {type(tokenizer).__name__}.")
    place = os.fspath(tokenizer) if tokenizer is not None else str(getattr(model, "name_or_path", "") or "")
    if not place:
        return None
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if tokenizer is None:
            return None
        raise ModelLoadError(
            f"There is no tokenizer in {place} ({' '.join(str(error).split())[:200]}); pass the tokenizer itself, or a "
            "directory that holds it."
        ) from error


def _wrap(model: PreTrainedModel, tokenizer: Any) -> TransformerBridge:
    """A bridge around a copy of the modules that shares parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    if tokenizer is not None:  # else TransformerLens would read another copy from its path, told to prepend the BOS
        tokenizer.init_kwargs = {**tokenizer.init_kwargs, "add_bos_token": True}
        tokenizer.init_kwargs.setdefault("name_or_path", "")
    parameter = next(model.parameters())
    try:
        inner = copy.deepcopy(model, shared)
        with usual_torch(), mock.patch.object(tl_source, "skip_tokenizer_for_modality", lambda cfg: True):
            bridge: TransformerBridge = TransformerBridge.boot_transformers(
                str(getattr(model, "name_or_path", "") or type(model).__name__),
                hf_model=inner,
                tokenizer=tokenizer,
                device=parameter.device,
                dtype=parameter.dtype,
            )
    except SinkLensError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"TransformerLens cannot wrap this {type(model).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    bridge.eval()
    return bridge
