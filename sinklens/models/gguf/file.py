"""What a GGUF file holds, checked before anything is loaded from it."""

import importlib.util
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sinklens.errors import MissingExtraError, ModelLoadError
from sinklens.models.gguf.header import Header, read_header

PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, or all parts of a split one.

    Attributes:
        parts: Its files in order; the first has the metadata.
        metadata: Keys and values of the header; lists of strings are left as their length.
        tensors: Type by tensor name, such as ``{"token_embd.weight": "Q8_0"}``.
        quantisation: ``"Q4_K_M"`` and the like; ``None`` when every tensor is stored as plain floats.
    """

    parts: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, str]
    quantisation: str | None

    @property
    def path(self) -> Path:
        """The file, of a split one its first part."""
        return self.parts[0]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, such as ``"llama"``."""
        return str(self.metadata.get("general.architecture", "unknown"))


def read_gguf_file(path: Path) -> GgufFile:
    """Read and check the header of a GGUF file; of a split one any part may be named.

    Raises:
        MissingExtraError: The extra ``gguf`` is not installed.
        ModelLoadError: Not a GGUF file, cut short, a part missing, a type of tensor that cannot be read, no tokenizer.
    """
    missing = [name for name in ("gguf", "sentencepiece") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{path.name} is a GGUF file, which needs the package {' and '.join(missing)}: "
            "pip install 'sinklens[gguf]'."
        )
    parts = _parts(path)
    headers = [read_header(part) for part in parts]
    kinds = [_types(part, header) for part, header in zip(parts, headers, strict=True)]
    metadata = headers[0].metadata
    if len(parts) == 1 and int(metadata.get("split.count", 1)) > 1:
        raise ModelLoadError(
            f"{path} is one of {metadata['split.count']} parts of a split model and was renamed; expected all parts in "
            "one folder under names like MODEL-00001-of-00003.gguf."
        )
    if "tokenizer.ggml.tokens" not in metadata:
        raise ModelLoadError(
            f"{parts[0]} holds no tokenizer (no tokenizer.ggml.tokens in its header); convert the model again together "
            "with its tokenizer, or load its Hugging Face directory."
        )
    sizes: Counter[str] = Counter()
    for header, named in zip(headers, kinds, strict=True):
        for tensor in header.tensors:
            sizes[named[tensor.name]] += tensor.elements
    tensors = {name: kind for named in kinds for name, kind in named.items()}
    return GgufFile(parts, metadata, tensors, _quantisation(metadata, sizes))


def _parts(path: Path) -> tuple[Path, ...]:
    """All parts of a split file, or the file alone."""
    match = PART.match(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    parts = tuple(path.with_name(f"{match['stem']}-{n:05d}-of-{match['count']}.gguf") for n in range(1, count + 1))
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelLoadError(
            f"{path.name} is one of {count} parts of a split model, and {', '.join(missing[:3])} "
            f"{'is' if len(missing) == 1 else 'are'} not in {path.parent}; put all parts into one folder."
        )
    return parts


def _types(path: Path, header: Header) -> dict[str, str]:
    """Name of each tensor's type, after checking that it can be read and that the file is whole."""
    from gguf.constants import GGML_QUANT_SIZES

    by_number = {kind.value: kind for kind in readable_types()}
    found, end = {}, 0
    for tensor in header.tensors:
        kind = by_number.get(tensor.kind)
        if kind is None:
            raise ModelLoadError(
                f"{path} stores {tensor.name} in ggml's type {_type_name(tensor.kind)}, which cannot be dequantised "
                f"here; expected one of {', '.join(sorted(kind.name for kind in by_number.values()))}."
            )
        block, size = GGML_QUANT_SIZES[kind]
        end = max(end, header.data_start + tensor.offset + tensor.elements // block * size)
        found[tensor.name] = str(kind.name)
    on_disk = path.stat().st_size
    if on_disk < end:
        raise ModelLoadError(
            f"{path} is cut short: its header promises {end:,} bytes and there are {on_disk:,}. Fetch it again."
        )
    return found


@cache
def readable_types() -> tuple[Any, ...]:
    """The types of tensor that the installed ``gguf`` can turn into floats, found by trying one block of each."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    found = []
    for kind in GGMLQuantizationType:
        if kind.name.startswith("I") and kind.name[1:].isdigit():
            continue  # whole numbers hold no weights
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind)
    return tuple(found)


def _type_name(number: int) -> str:
    from gguf.constants import GGMLQuantizationType

    known = {kind.value: kind.name for kind in GGMLQuantizationType}
    return str(known.get(number, f"number {number}"))


def _quantisation(metadata: dict[str, Any], elements: Counter[str]) -> str | None:
    """The file's own name for its mixture of types, or the type of most quantised weights where it has none.

    A file that was quantised again may keep the old number; its name counts only if its type is in the file.
    """
    from gguf.constants import LlamaFileType

    quantised = [(count, kind) for kind, count in elements.items() if kind not in PLAIN]
    if not quantised:
        return None
    number = metadata.get("general.file_type")
    if number in {kind.value for kind in LlamaFileType}:
        name = LlamaFileType(number).name.removeprefix("MOSTLY_")
        if any(name.startswith(kind) for _, kind in quantised):
            return name
    return max(quantised)[1]
