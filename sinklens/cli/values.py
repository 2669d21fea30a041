"""What options mean, where a value has parts: numbers, NAME=VALUE, files of interventions."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sinklens.errors import InputError
from sinklens.interventions.json_form import content_of
from sinklens.models.reading import named_json, named_text

Number = TypeVar("Number", int, float)


def names(text: str | None) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def numbers(text: str | None, kind: Callable[[str], Number], option: str, example: str) -> list[Number] | None:
    """Numbers with commas between them, None where the option is not given.

    Raises:
        InputError: Something else stands there.
    """
    if text is None:
        return None
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"{option} takes numbers such as {example}; got {text!r}.") from None


def pairs(given: Iterable[str] | None, what: str, example: str, *, once: bool = False) -> list[tuple[str, str]]:
    """What stands before and behind the first = of each; with ``once`` no two have the same before it.

    Raises:
        InputError: One has no =, or nothing on a side, or a name comes again.
    """
    found: list[tuple[str, str]] = []
    for each in given or []:
        name, equals, value = each.partition("=")
        if not equals or not name.strip() or not value:
            raise InputError(f"{what} is written {example}; got {each!r}.")
        found.append((name.strip(), value))
        if once and name.strip() in [other for other, _ in found[:-1]]:
            raise InputError(f"{what} is written {example}; got {name.strip()} twice.")
    return found


def interventions(files: Iterable[Path] | None) -> dict[str, Any]:
    """Interventions from files that their ``to_json()`` wrote, by the files' names.

    Raises:
        InputError: A file that cannot be read, or holds something else.
    """
    texts = intervention_texts(files)
    if not texts:
        return {}
    from sinklens.interventions import Intervention

    return {name: Intervention.from_json(text) for name, text in texts.items()}


def intervention_texts(files: Iterable[Path] | None) -> dict[str, str]:
    """What such files hold, by their names, of the right outer form: as much as can be told without torch.

    Raises:
        InputError: A file that cannot be read, or holds something else.
    """
    found = {}
    for path in files or []:
        found[path.stem] = named_text(path, "The intervention")
        try:
            content_of(found[path.stem])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return found


def records(path: Path, names: Sequence[str], option: str) -> list[dict[str, str]]:
    """Objects of texts from a JSON file: a list in which each has these names and no others.

    Raises:
        InputError: A file that cannot be read, or holds something else.
    """
    found = named_json(path, f"The file of {option}")
    form = "{" + ", ".join(f'"{name}": TEXT' for name in names) + "}"
    if not isinstance(found, list) or not found:
        raise InputError(f"{option} takes a JSON list of {form}; {path} holds none.")
    for number, each in enumerate(found):
        texts = isinstance(each, dict) and all(isinstance(value, str) and value for value in each.values())
        if not texts or {*each} != {*names}:
            raise InputError(f"{option} takes a JSON list of {form}; entry {number} of {path} is another.")
    return found
