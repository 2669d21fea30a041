"""What a checkpoint directory says of itself, held against its files before anything is built or allocated."""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sinklens.errors import ModelLoadError
from sinklens.models.weights import BUFFERS

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = ("hidden_size", "n_embd", "d_model")
INNER = ("intermediate_size", "n_inner", "ffn_dim")
LIMITS = {
    **dict.fromkeys(LAYERS, 1_000),
    **dict.fromkeys(WIDTHS, 1_000_000),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads", "head_dim"), 100_000),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 100_000),
    **dict.fromkeys(INNER, 100_000_000),
    **dict.fromkeys(("vocab_size",), 100_000_000),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 1_000_000_000),
}
"""Beyond these a config is a mistake: the largest models stay well below."""

MOST_PARAMETERS_PER_BYTE = 16  # of the files; even weights of one bit have but 8
MOST_HEADER_BYTES = 100 * 2**20  # the limit of the safetensors format


def check_sizes(config: Mapping[str, Any], where: str, bytes_there: int | None = None) -> None:
    """Refuse sizes in a config that no model has, or that its weights cannot fill.

    Args:
        config: As read from ``config.json``.
        where: Directory or hub id.
        bytes_there: Size of the weights, if they are here.

    Raises:
        ModelLoadError: One sentence with the size.
    """
    for part in (config, config.get("text_config")):
        if not isinstance(part, Mapping):
            continue
        for name, most in LIMITS.items():
            value = part.get(name)
            if isinstance(value, int) and value > most:
                raise ModelLoadError(
                    f"The config of {where} asks for {name}={value:,}; no more than {most:,} is built. It is damaged, "
                    "or not meant to be loaded."
                )
        width, layers, words = _one(part, WIDTHS), _one(part, LAYERS), _one(part, ("vocab_size",))
        # the embedding, one feed-forward matrix, and in each layer a norm's gains
        least = width * (words + _one(part, INNER) + layers)
        if bytes_there is not None and least > MOST_PARAMETERS_PER_BYTE * bytes_there:
            raise ModelLoadError(
                f"The config of {where} asks for at least {least:,} parameters (width {width:,}, {layers:,} layers, "
                f"vocabulary {words:,}) and its weights have {bytes_there:,} bytes: they are cut off, or "
                "one of the two is another model's."
            )


def check_weight_files(directory: Path, config: Mapping[str, Any]) -> None:
    """Refuse an index of shards that leads out of the directory, and weights that are no floating-point numbers.

    Raises:
        ModelLoadError: One sentence with the file and what it holds.
    """
    for index in directory.glob("*.index.json"):
        _check_index(index)
    if config.get("quantization_config"):
        return  # integers are codes there
    for file in sorted(directory.glob("*.safetensors")):
        _refuse_integers(file, _safetensors_dtypes(file))
    for file in sorted(directory.glob("pytorch_model*.bin")):
        _refuse_integers(file, _pickled_dtypes(file))


def _one(part: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return max((value for name in names if isinstance(value := part.get(name), int)), default=0)


def _check_index(index: Path) -> None:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ModelLoadError(f"The list of weight files {index} is no JSON; download it again.") from None
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise ModelLoadError(f"The list of weight files {index} has no weight_map of names and files.")
    for file in sorted(set(files.values())):
        if Path(file).name != file or "\\" in file:
            raise ModelLoadError(
                f"The list of weight files {index} leads out of its directory, to {file}; nothing is read from there."
            )


def _refuse_integers(file: Path, dtypes: Iterator[tuple[str, str]]) -> None:
    for name, dtype in dtypes:
        if not BUFFERS.search(name) and name.endswith((".weight", ".bias")):
            raise ModelLoadError(
                f"{file} holds {name} as {dtype}, expected floating-point weights: they would be cut to whole numbers "
                "or codes be taken for weights. Save the model in float32, bfloat16 or float16."
            )


def _safetensors_dtypes(file: Path) -> Iterator[tuple[str, str]]:
    """Tensors of a safetensors file that are no floating-point numbers, from its header alone."""
    try:
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(size)) if size <= MOST_HEADER_BYTES else {}
        found = [(name, str(each["dtype"])) for name, each in header.items() if name != "__metadata__"]
    except (OSError, ValueError, RecursionError, struct.error, KeyError, TypeError, AttributeError):
        return  # told by the loading proper
    yield from ((name, dtype) for name, dtype in sorted(found) if not dtype.startswith(("F", "BF")))


def _pickled_dtypes(file: Path) -> Iterator[tuple[str, str]]:
    import torch  # here: a place that is wrong is told before torch is loaded

    try:
        found = torch.load(file, map_location="meta", weights_only=True, mmap=True)
        tensors = [(str(name), each) for name, each in found.items() if isinstance(each, torch.Tensor)]
    except Exception:  # told by the loading proper
        return
    yield from ((name, str(each.dtype)) for name, each in sorted(tensors) if not each.dtype.is_floating_point)
