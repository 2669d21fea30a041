"""Head scores from files of several kinds, told apart by their content."""

from collections.abc import Sequence
from pathlib import Path

from sinklens.detectors.head_scores import HeadScores
from sinklens.errors import InputError
from sinklens.models.reading import read_json
from sinklens.studies.head_roles.gates_file import TABLE, Gates
from sinklens.studies.head_roles.join import model_sizes
from sinklens.studies.head_roles.retrieval_file import RetrievalRuns
from sinklens.studies.head_roles.role_file import FORMAT, RoleFile


def read_scores(path: str | Path, *, n_heads: int | None = None) -> HeadScores:
    """Scores that others published, or that sinklens wrote.

    Reads Retrieval_Head's ``head_score/*.json``, DuoAttention's ``full_attention_heads.tsv`` (or the directory that
    holds it), and sinklens' own head-role files.

    Args:
        path: The file or directory.
        n_heads: Query heads of a layer, to spread the gates of KV heads over; default: as many as the gates.

    Raises:
        InputError: No such file, another kind of file, or something in it is wrong.
        ResultError: A head-role file that is damaged or of a newer format.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no file of head scores {path}; check the path.")
    if path.is_dir() and not (path / TABLE).is_file():
        raise InputError(f"The directory {path} holds no {TABLE}; name the file itself.")
    if path.is_dir() or path.suffix == ".tsv":
        return Gates.read(path).scores(n_heads)
    if path.suffix == ".json":
        return RoleFile.read(path).scores if _is_role_file(path) else RetrievalRuns.read(path).scores()
    raise InputError(
        f"{path} is of no known kind; expected a .json (Retrieval_Head's scores or sinklens' head roles) or a .tsv of "
        "DuoAttention's gates."
    )


def check_files(names: Sequence[str]) -> None:
    """Refuse what :func:`read_all` could not read, whatever the model.

    Raises:
        InputError: What :func:`read_scores` raises.
    """
    for name in names:
        read_scores(_named(name)[1])


def read_all(
    names: Sequence[str], *, sizes: tuple[int, int, int] | None = None, n_heads: int | None = None
) -> dict[str, HeadScores]:
    """Several such files of one model, by name, checked to be of the same sizes.

    Args:
        names: ``FILE`` or ``NAME=FILE``; without a name it is the file's (the directory's for DuoAttention's).
        sizes: Layers, heads and KV heads of the model they must be of, when it is there.
        n_heads: Query heads of a layer, when neither the model nor a file says.

    Raises:
        InputError: What :func:`read_scores` raises, a name twice, or scores of other sizes.
    """
    found: dict[str, HeadScores] = {}
    given = [_named(name) for name in names]
    # gates last: how many query heads share one is known from the others
    for name, path in sorted(given, key=lambda item: item[1].is_dir() or item[1].suffix == ".tsv"):
        label = name or (path if path.is_dir() else path.parent if path.name == TABLE else path).stem
        if label in found:
            label = label if name else path.name
            if label in found:
                raise InputError(f"Two files are called {label!r}; give them names, as in mine=FILE.")
        known = n_heads if sizes is None else sizes[1]
        known = known or (model_sizes([*found.values()])[1] if found else None)
        found[label] = read_scores(path, n_heads=known)
        _check_sizes(label, found, sizes)
    return found


def _named(name: str) -> tuple[str, Path]:
    label, equals, path = name.partition("=")
    return (label.strip(), Path(path)) if equals and not Path(name).exists() else ("", Path(name))


def _check_sizes(label: str, found: dict[str, HeadScores], sizes: tuple[int, int, int] | None) -> None:
    layers, heads, kv_heads = model_sizes([found[label]])
    if sizes is not None:
        shared = "kv_head" in found[label].frame
        other = (layers, heads) != sizes[:2] or (shared and kv_heads != sizes[2])
        if other:
            raise InputError(
                f"{label} is of {layers} layers x {heads} heads ({kv_heads} KV heads), and the model has {sizes[0]} x "
                f"{sizes[1]} ({sizes[2]}); give a table of the same model."
            )
        return
    first = next(iter(found))
    there = model_sizes([found[first]])
    if (layers, heads) != there[:2]:
        raise InputError(
            f"{label} is of {layers} layers x {heads} heads and {first} of {there[0]} x {there[1]}; tables of one "
            "model can be compared (--query-heads says how many query heads share gates)."
        )


def _is_role_file(path: Path) -> bool:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT
