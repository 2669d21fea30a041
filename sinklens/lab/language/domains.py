"""Domains of text read from files, with a part of each held out."""

import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sinklens.errors import InputError
from sinklens.models.reading import readable

SUFFIXES = (".txt", ".py")
STDLIB_DOMAIN = "code"
SOURCES = "SOURCES.md"
# Tests, generated tables, help texts and programs that only look like the rest.
STDLIB_LEFT_OUT = {
    "site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "__phello__",
    "ensurepip",
}  # fmt: skip
LONGEST, SHORTEST = 32_000, 2_000


@dataclass(frozen=True)
class Domain:
    """The documents of one domain.

    Attributes:
        name: the folder's or file's name.
        train: documents to train on.
        held_out: documents that are never trained on.
        files: number of files they come from.
        digest: SHA-256 of all documents in order, first 16 hexadecimal digits.
    """

    name: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    files: int
    digest: str


def read_domains(data: Path | None, *, python_stdlib: bool = False, held_out: float = 0.05) -> list[Domain]:
    """Read every domain of a folder: each sub-folder with .txt or .py files, each such file beside them.

    Args:
        data: the folder; None if the standard library is all.
        python_stdlib: add the running Python's own standard library as domain "code", without its tests,
            `encodings`, `idlelib`, `lib2to3` and `pydoc_data`.
        held_out: share of the characters to hold out, see `split`.

    Returns:
        The domains by name.

    Raises:
        InputError: if there is no such folder or no domain in it, a file is not UTF-8, a domain has fewer than
            two documents, or the name "code" is taken.
    """
    files: dict[str, list[Path]] = {}
    if data is not None:
        if not data.is_dir():
            raise InputError(f"A folder with texts was expected, but {data} is {_what(data)}.")
        for entry in sorted(data.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found = sorted(path for path in entry.rglob("*") if _counts(path, entry))
                if not found:
                    raise InputError(f"The folder {entry} is to be a domain, but holds no .txt or .py file.")
                files[entry.name] = found
            elif entry.suffix in SUFFIXES:
                if entry.stem in files:
                    raise InputError(f"Two domains of {data} are called {entry.stem!r}; rename one.")
                files[entry.stem] = [entry]
    texts = {name: [_read(path) for path in paths] for name, paths in files.items()}
    if python_stdlib:
        if STDLIB_DOMAIN in texts:
            raise InputError(f"{data} already has a domain {STDLIB_DOMAIN!r}; rename it or leave --python-stdlib away.")
        texts[STDLIB_DOMAIN] = _stdlib()
    if not texts:
        raise InputError(
            f"No domain was found in {data}; expected sub-folders or files with .txt or .py texts, as in "
            "DIR/prose/a.txt."
            if data is not None
            else "No texts were given; expected a folder of domains (--data) or --python-stdlib."
        )
    return [split(name, texts[name], held_out) for name in sorted(texts)]


def read_sources(data: Path | None) -> str:
    """Read SOURCES.md of a folder, in which its owner says what the texts are; empty if there is none."""
    path = None if data is None else data / SOURCES
    return "" if path is None or not path.is_file() else _read(path)


def split(name: str, texts: Iterable[str], held_out: float = 0.05) -> Domain:
    r"""Cut texts into documents and hold some of them out.

    A text of up to 32,000 characters is a document; a longer one is cut at line ends into such. (A domain so
    small that its held-out share would be fewer than four of them has shorter ones, of at least 2,000.) A document
    that occurs twice counts once. The held-out ones are those whose SHA-256 comes first, until they hold the
    wanted share of the characters: neither the files' names nor their order matters, and a copy of a
    held-out document is never trained on.

    Raises:
        InputError: if there are fewer than two documents.

    Example:
        >>> domain = split("prose", ["one\n", "two\n", "one\n"], held_out=0.5)
        >>> domain.train, domain.held_out
        (('one\n',), ('two\n',))
    """
    texts = list(texts)
    size = int(min(LONGEST, max(SHORTEST, held_out * sum(map(len, texts)) / 4)))
    documents = list(dict.fromkeys(document for text in texts for document in _documents(text, size)))
    if len(documents) < 2:
        raise InputError(
            f"The domain {name!r} has {len(documents)} documents of up to {size:,} characters, but needs at least "
            "two, one of them to be held out; give more text."
        )
    digests = {document: hashlib.sha256(document.encode()).hexdigest() for document in documents}
    wanted, out = held_out * sum(map(len, documents)), set[str]()
    for document in sorted(documents, key=digests.__getitem__)[: len(documents) - 1]:
        if sum(map(len, out)) >= wanted:
            break
        out.add(document)
    everything = hashlib.sha256("".join(digests[document] for document in documents).encode()).hexdigest()
    return Domain(
        name,
        tuple(document for document in documents if document not in out),
        tuple(document for document in documents if document in out),
        len(texts),
        everything[:16],
    )


def _counts(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix in SUFFIXES and path.is_file() and not hidden


def _what(path: Path) -> str:
    return "a file" if path.exists() else "not there"


def _documents(text: str, longest: int) -> list[str]:
    if not text.strip():
        return []
    documents, lines, size = [], list[str](), 0
    for line in text.splitlines(keepends=True):
        # A single line may be longer than a document; it is then cut where it must.
        for start in range(0, len(line), longest):
            piece = line[start : start + longest]
            if size + len(piece) > longest:
                documents.append("".join(lines))
                lines, size = [], 0
            lines.append(piece)
            size += len(piece)
    documents.append("".join(lines))
    return documents


def _read(path: Path) -> str:
    try:
        return readable(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); convert it or take it away.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def _stdlib() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if STDLIB_LEFT_OUT.isdisjoint(parts) and not parts[0].startswith("config-"):
            try:
                texts.append(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError):
                continue  # a few old files are in other encodings
    if not texts:
        raise InputError(f"No sources of Python's standard library were found in {root}; give code by --data.")
    return texts
