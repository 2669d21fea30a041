"""The header of a saved result, read from its file: declared in a schema, and bounded before anything is made of it."""

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sinklens.errors import ResultError

HEADER = "result.json"
ARRAYS = "arrays.safetensors"
DAMAGED = "damaged result"
MOST_BYTES, MOST_DEPTH = 64 * 2**20, 64
"""Of a header: its size, and how deep lists and objects may lie in each other."""

Count = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(max_length=10_000)]


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class FileFacts(_Schema):
    """A file beside the header: what it must be, and how many rows a table has."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    rows: Count | None = None


class ModelFacts(_Schema):
    """The model that a result is about."""

    name: Name | None = None
    architecture: Name | None = None
    n_layers: Annotated[int, Field(ge=0, le=10**5)] | None = None
    n_heads: Annotated[int, Field(ge=0, le=10**5)] | None = None
    n_kv_heads: Annotated[int, Field(ge=0, le=10**5)] | None = None
    d_vocab: Count | None = None
    n_ctx: Count | None = None
    n_params: Count | None = None
    dtype: Name | None = None
    dequantised_from: Name | None = None
    device: Name | None = None


class BosFacts(_Schema):
    """What stands at the beginning of its sequences."""

    statement: Name
    position0: Name | None = None


class TokenFacts(_Schema):
    """Its sequences."""

    n_sequences: Count
    max_length: Count
    min_length: Count
    source: Name | None = None
    bos: BosFacts


class MetricFacts(_Schema):
    """A definition."""

    definition: Name
    version: int | None = None
    source: Name | None = None


class Header(_Schema):
    """What every header holds; each kind of result has entries of its own besides."""

    format: Annotated[str, Field(max_length=100)]
    format_version: Count
    files: dict[Annotated[str, Field(pattern=r"^[\w.,+-]+\.(parquet|safetensors)$", max_length=200)], FileFacts]
    sinklens_version: Name | None = None
    created: Name | None = None
    model: ModelFacts | None = None
    tokens: TokenFacts | None = None
    metrics: dict[str, MetricFacts] = {}
    settings: dict[str, Any] = {}
    warnings: list[str] = []
    verdict: list[str] = []
    seconds: float | None = None


def is_file_of_result(name: str) -> bool:
    """Whether a name can be that of a result's table or arrays."""
    return name == ARRAYS or (name.endswith(".parquet") and Path(name).name == name)


def read_header(directory: Path) -> Header:
    """Read and check the header of a saved result.

    Raises:
        ResultError: None there, or one that is damaged, in one sentence that names the file.
    """
    return checked(directory / HEADER, read_json(directory / HEADER))


def read_json(path: Path) -> Any:
    """The content of a header: finite numbers alone, of a bounded size and depth.

    Raises:
        ResultError: It is missing or damaged.
    """
    try:
        if not path.is_file():
            if not path.parent.is_dir():
                there = "is a file" if path.parent.exists() else "does not exist"
                raise ResultError(f"{path.parent} {there}; expected a directory that sinklens saved.")
            raise ResultError(f"{path.parent} holds no {path.name}; expected a directory that sinklens saved.")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, and a header has at most {MOST_BYTES:,}")
        content = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
        if _depth(content) > MOST_DEPTH:
            raise ValueError("its entries are nested too deep")
    except RecursionError as error:
        raise ResultError(f"{path} is damaged (its entries are nested too deep); make it again.") from error
    except (ValueError, OSError) as error:
        raise ResultError(f"{path} is damaged ({str(error)[:200]}); make it again.") from error
    return content


def checked(path: Path, content: Any) -> Header:
    """A header as its schema declares it.

    Raises:
        ResultError: The first entry that is not.
    """
    try:
        return Header.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:100] or "all of it"
        raise ResultError(f"{path} is damaged ({where}: {first['msg'][:200]}); make it again.") from error


def kind_of(directory: Path) -> str | None:
    """``format`` of the result that lies there, also of a damaged one that still says it.

    Returns:
        ``None`` without a header, :data:`DAMAGED` where it does not tell.
    """
    path = directory / HEADER
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            told = re.match(rb'\s*{\s*"format"\s*:\s*"([^"\\]{1,100})"', file.read(300))  # it is written first
    except OSError:
        return DAMAGED
    return DAMAGED if told is None else told[1].decode("utf-8", "replace")


def refuse_newer(name: str, header: Any, newest: int) -> None:
    """Refuse a result that a newer sinklens saved.

    Args:
        name: What to call it.
        header: What it says about itself.
        newest: Newest ``format_version`` this sinklens reads.

    Raises:
        ResultError: It is newer.
    """
    if header["format_version"] > newest:
        raise ResultError(
            f"{name} was saved in format {header['format_version']} by sinklens {header.get('sinklens_version')}; this "
            f"version reads up to format {newest}. Update sinklens."
        )


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"it holds {text[:20]}, which is too large")
    return number


def _depth(content: Any) -> int:
    """How deep lists and objects lie in each other."""
    level, depth = [content], -1
    while level:
        inside = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level, depth = [each for some in inside for each in some], depth + 1
    return depth
