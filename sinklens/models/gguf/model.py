"""A GGUF file as an ordinary Hugging Face model and tokenizer, its weights dequantised."""

import contextlib
import copy
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import torch

from sinklens.errors import ModelLoadError
from sinklens.models.gguf.agreement import check_agreement
from sinklens.models.gguf.file import GgufFile
from sinklens.models.kind import refuse_other_kinds
from sinklens.wording import several

ROPE_FACTORS = "rope_freqs.weight"
# Tensors that llama.cpp computes from the config or keeps for its own use.
UNUSED_BY_DESIGN = ("rope_freqs.weight", ".attn_rot_embd", ".rope_freqs")


def load_gguf(
    file: GgufFile,
    *,
    dtype: torch.dtype = torch.float32,
    device_map: str | dict[str, str | int] | None = None,
) -> tuple[Any, Any]:
    """Dequantise a file into a Hugging Face causal language model, and build its tokenizer.

    Args:
        file: The checked file.
        dtype: Of the weights, which are dequantised in float32 and then cast.
        device_map: As for accelerate; the CPU without one.

    Returns:
        Model and tokenizer, as ``from_pretrained`` would give them for an ordinary directory.

    Raises:
        ModelLoadError: An architecture that transformers cannot read from GGUF, tensors of the file that the model has
            no place for, or a model whose config is not what the file states.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    _check_architecture(file)
    place = {"pretrained_model_name_or_path": str(file.path.parent), "gguf_file": file.path.name}
    with _each_thing_once(file), _no_bar():
        model: Any = AutoModelForCausalLM.from_pretrained(
            **place,
            dtype=dtype,
            device_map=device_map,
            attn_implementation="eager",
            # without it transformers keeps the blocks packed and fetches kernels for them from the hub
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(**place)
        if ROPE_FACTORS in file.tensors:
            _apply_rope_factors(file, model)
        # its weights are plain floats now, and whoever asks (saving, casting, moving) must not think otherwise
        model.config.__dict__.pop("quantization_config", None)
        model.__dict__.pop("hf_quantizer", None)
        model.config.architectures = [type(model).__name__]  # the file names none, and TransformerLens chooses by it
        check_agreement(file, model.config)
        _refuse_unused(file, model)
    return model, tokenizer


def _check_architecture(file: GgufFile) -> None:
    from transformers.integrations.gguf.utils import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    name = file.architecture
    if name.startswith(("t5", "umt5")):
        refuse_other_kinds({"model_type": name.removesuffix("encoder")}, str(file.path))
    # as in load_gguf_checkpoint, which knows some architectures by transformers' name
    known = {name, name.replace("-", "_"), name.replace("moe", "_moe")}
    new = is_gguf_arch_supported(name)
    if not new and not known & set(GGUF_SUPPORTED_ARCHITECTURES):
        raise ModelLoadError(
            f"{file.path} is of llama.cpp's architecture {name!r}, which transformers cannot read from GGUF; expected "
            f"one of {', '.join(sorted(GGUF_SUPPORTED_ARCHITECTURES))}. Load the original Hugging Face directory."
        )
    if new and len(file.parts) > 1:
        raise ModelLoadError(
            f"{file.path} is split into {several(len(file.parts), 'file')}, which transformers cannot read for the "
            f"architecture {name!r}; join them first: llama-gguf-split --merge {file.path.name} joined.gguf."
        )


def _refuse_unused(file: GgufFile, model: Any) -> None:
    """Name the tensors of the file that found no place in the model: transformers drops them in silence."""
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    if is_gguf_arch_supported(file.architecture):
        return  # read as any checkpoint is: what is unexpected stands in the loading report
    kind: Any = reading.TENSOR_PROCESSORS.get(file.architecture, reading.TensorProcessor)
    processor = kind(config=model.config.to_dict())
    used = set(reading.get_gguf_hf_weights_map(model, processor))
    # experts are stacked under names that the processor resolves by itself
    unused = [
        name
        for name in file.tensors
        if name not in used and "_exps" not in name and not any(part in name for part in UNUSED_BY_DESIGN)
    ]
    if unused:
        raise ModelLoadError(
            f"{file.path} holds {len(unused)} tensors that transformers' {type(model).__name__} has no place for "
            f"({', '.join(unused[:3])}), so its numbers would be another model's; load the original Hugging Face "
            "directory instead."
        )


def _apply_rope_factors(file: GgufFile, model: Any) -> None:
    """Divide the rotary frequencies by the factors that Llama 3.1 and later models keep as a tensor.

    transformers leaves the tensor out, and the model would rotate as Llama 3.0 does.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize

    tensor = next(tensor for tensor in GGUFReader(file.path).tensors if tensor.name == ROPE_FACTORS)
    factors = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).flatten()
    found = [module for module in model.modules() if isinstance(getattr(module, "inv_freq", None), torch.Tensor)]
    fitting = [module for module in found if module.inv_freq.shape == factors.shape]
    if not fitting or len(fitting) < len(found):
        raise ModelLoadError(
            f"{file.path} holds {len(factors)} rotary factors that fit no rotary embedding of "
            f"{type(model).__name__}; load the original Hugging Face directory instead."
        )
    for module in fitting:
        module.inv_freq = module.inv_freq / factors.to(module.inv_freq)
        if isinstance(getattr(module, "original_inv_freq", None), torch.Tensor):
            module.original_inv_freq = module.inv_freq.clone()


@contextlib.contextmanager
def _each_thing_once(file: GgufFile) -> Iterator[None]:
    """Do once what transformers does three to eight hundred times, and show it the tensors of all parts.

    It opens and parses the file for the weights, the config and the tokenizer, and makes the table of llama.cpp's names
    anew for every module of the model: two thirds of the time that loading takes.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reading

    usual: Any = gguf.GGUFReader

    class Reader(usual):  # type: ignore[misc]
        """Reads plain arrays: slices of a memory map cost three times as much, and there are millions."""

        @property
        def data(self) -> np.ndarray[Any, Any]:
            return self._data

        @data.setter
        def data(self, mapped: np.ndarray[Any, Any]) -> None:
            self._data = mapped.view(np.ndarray)

    opened: Any = Reader

    @cache
    def read() -> Any:
        reader = opened(file.path)
        for part in file.parts[1:]:
            reader.tensors += opened(part).tensors
        return reader

    parse: Any = reading.load_gguf_checkpoint

    @cache
    def parsed(path: str) -> Any:
        return parse(path)

    def parse_once(path: Any, return_tensors: bool = False, **more: Any) -> Any:
        return parse(path, return_tensors, **more) if return_tensors else copy.deepcopy(parsed(str(path)))

    with (
        mock.patch.object(gguf, "GGUFReader", lambda *_: read()),
        mock.patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
        mock.patch.object(reading, "load_gguf_checkpoint", parse_once),
    ):
        yield


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    """Switch off the progress bar of dequantising, which asks nobody."""
    from transformers import modeling_gguf_pytorch_utils as reading

    with mock.patch.object(reading, "tqdm", lambda tensors, **_: tensors):
        yield
