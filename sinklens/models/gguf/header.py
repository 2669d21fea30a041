"""The header of one GGUF file: its keys and the table of its tensors, without the tensors."""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from sinklens.errors import ModelLoadError

# Value types of the format by number: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
MOST_AXES = 4
LONGEST_LIST = 10_000  # lists of numbers up to here are kept (a window per layer), longer ones (scores) are not


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file: its name, ggml's number of its type, its number of elements and where it starts."""

    name: str
    kind: int
    elements: int
    offset: int


@dataclass(frozen=True)
class Header:
    """Metadata by key (a list of strings as its length), the tensors, and where their data begins."""

    metadata: dict[str, Any]
    tensors: tuple[TensorEntry, ...]
    data_start: int


def read_header(path: Path) -> Header:
    """Read a file's header, some milliseconds for any size of model.

    Raises:
        ModelLoadError: The file is not GGUF, of a version that is not known, or cut short within its header.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelLoadError(f"{path} is no GGUF file: it does not begin with the letters GGUF.")
        try:
            (version,) = _numbers(file, "I")
            if version not in VERSIONS:
                raise ModelLoadError(f"{path} is GGUF version {version}; versions 2 and 3 can be read.")
            n_tensors, n_keys = _numbers(file, "QQ")
            metadata = dict(_key_and_value(file) for _ in range(n_keys))
            tensors = tuple(_tensor(file) for _ in range(n_tensors))
        except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
            raise ModelLoadError(
                f"{path} is cut short or damaged: its header ends or breaks after {file.tell():,} of "
                f"{path.stat().st_size:,} bytes. Fetch it again."
            ) from error
        alignment = int(metadata.get("general.alignment", 32))
        return Header(metadata, tensors, -(-file.tell() // alignment) * alignment)


def _numbers(file: BinaryIO, kinds: str) -> tuple[Any, ...]:
    layout = struct.Struct(f"<{kinds}")
    return layout.unpack(file.read(layout.size))


def _string(file: BinaryIO) -> str:
    (length,) = _numbers(file, "Q")
    raw = file.read(length)
    if len(raw) < length:
        raise struct.error("the file ends within a string")
    return raw.decode("utf-8")


def _key_and_value(file: BinaryIO) -> tuple[str, Any]:
    key = _string(file)
    (kind,) = _numbers(file, "I")
    return key, _value(file, kind)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _numbers(file, NUMBERS[kind])[0]
    inner, count = _numbers(file, "IQ")
    if inner == STRING:
        for _ in range(count):
            _string(file)
        return count
    if count <= LONGEST_LIST:
        return list(_numbers(file, NUMBERS[inner] * count))
    size = struct.calcsize(f"<{NUMBERS[inner]}") * count
    if len(file.read(size)) < size:
        raise struct.error("the file ends within a list")
    return count


def _tensor(file: BinaryIO) -> TensorEntry:
    name = _string(file)
    (n_axes,) = _numbers(file, "I")
    if n_axes > MOST_AXES:
        raise struct.error(f"a tensor of {n_axes} axes")
    shape = _numbers(file, "Q" * n_axes)
    kind, offset = _numbers(file, "IQ")
    return TensorEntry(name, kind, prod(shape), offset)
