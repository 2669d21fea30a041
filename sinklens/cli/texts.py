"""Texts as the commands take them: files or standard input, with or without a domain."""

import codecs
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from sinklens.errors import InputError
from sinklens.models.reading import MOST_BYTES, readable


def read_texts(names: Sequence[str]) -> list[str] | dict[str, list[str]]:
    """The texts of ``FILE`` options in a list, or of ``DOMAIN=FILE`` options by domain.

    A file whose own name holds ``=`` wins over a domain.

    Raises:
        InputError: Some have a domain and some have none, or a text cannot be used.
    """
    split = [("", name) if Path(name).exists() else _domain(name) for name in names]
    plain = [name for domain, name in split if not domain]
    if 0 < len(plain) < len(split):
        raise InputError(f"Give every --text a domain, as in code=FILE, or none; {plain[0]} has none.")
    by_domain: dict[str, list[str]] = {}
    for domain, name in split:
        by_domain.setdefault(domain, []).append(read_text(name))
    return by_domain[""] if plain else by_domain


def _domain(name: str) -> tuple[str, str]:
    """Domain (empty without one) and file."""
    match = re.fullmatch(r"\s*([^=/\\\s][^=/\\]*)=(.+)", name, re.DOTALL)
    return (match[1].strip(), match[2]) if match else ("", name)


def read_text(name: str) -> str:
    """A text file or standard input, refused with a sentence when it is missing, in UTF-16, binary or empty."""
    label = "standard input" if name == "-" else name
    try:
        raw = sys.stdin.buffer.read(MOST_BYTES + 1) if name == "-" else _bytes(Path(name))
    except FileNotFoundError as error:
        raise InputError(f"There is no text file {name}; check the path given to --text.") from error
    except OSError as error:
        raise InputError(f"Cannot read {name}: {error.strerror}; --text takes a text file or -.") from error
    if len(raw) > MOST_BYTES:
        raise InputError(f"{label} has more than the {MOST_BYTES:,} bytes that are read; cut it.")
    wide = _wide_encoding(raw)
    if wide:
        raise InputError(
            f"{label} is {wide} text; --text takes UTF-8. Save it as UTF-8, or convert it: iconv -f {wide} -t UTF-8."
        )
    if b"\0" in raw:
        raise InputError(f"{label} is a binary file; --text takes UTF-8 text.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{label} is not UTF-8 text (byte {error.start}: {error.reason}); convert it, or name another file."
        ) from error
    if not text.strip():
        raise InputError(f"{label} is empty; expected some text.")
    return text


def _bytes(path: Path) -> bytes:
    if path.is_char_device():  # /dev/stdin and the like: read as far as a file is
        with path.open("rb") as device:
            return device.read(MOST_BYTES + 1)
    return readable(path).read_bytes()


def _wide_encoding(raw: bytes) -> str:
    """The name of a wide Unicode encoding, by its byte-order mark or by where its zero bytes are; else empty."""
    for name, mark in (("UTF-32", codecs.BOM_UTF32_LE), ("UTF-32", codecs.BOM_UTF32_BE)):  # before UTF-16: FF FE both
        if raw.startswith(mark):
            return name
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    start = raw[:4096]
    zeros = [start[place::4].count(0) / max(1, len(start[place::4])) for place in range(4)]
    # text of mostly Latin letters has a zero in every other byte, or three of four
    for name, places in (("UTF-32LE", (1, 2, 3)), ("UTF-32BE", (0, 1, 2)), ("UTF-16LE", (1, 3)), ("UTF-16BE", (0, 2))):
        rest = [zeros[place] for place in range(4) if place not in places]
        if min(zeros[place] for place in places) > 0.7 and max(rest) < 0.1:
            return name
    return ""
