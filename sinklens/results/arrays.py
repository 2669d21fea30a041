"""Arrays of a saved result, left on disk until they are used."""

import json
import struct
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from sinklens.errors import ResultError

_TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as read-only views of it: pages are read when they are used.

    Raises:
        ResultError: It is no such file, or one whose arrays do not fit into it.
    """
    try:
        with safe_open(path, framework="np"):  # checks that shapes, types and offsets are those of the file
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            described = json.loads(file.read(length))
        described.pop("__metadata__", None)
        found = {}
        for name, each in described.items():
            kind, shape, start = _TYPES[each["dtype"]], tuple(each["shape"]), 8 + length + each["data_offsets"][0]
            found[name] = np.empty(shape, kind) if 0 in shape else np.memmap(path, kind, "r", start, shape)
        return found
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ResultError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); make it again.") from error
