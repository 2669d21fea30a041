"""What two results differ in besides what is compared: read before the difference is believed."""

from collections.abc import Mapping
from typing import Any

from sinklens.app.dashboard.census_run import CensusRun
from sinklens.app.dashboard.run import Run


def differences(first: Run, second: Run) -> list[str]:
    """A sentence for each of model, dtype, weights, BOS, texts, lengths and threshold in which two results differ.

    Texts are compared by their token ids without a BOS; an intervention is not named, since it is what is compared.
    """
    a, b = first.model, second.model
    out = []
    shapes = [tuple(each.get(name) for name in ("n_layers", "n_heads")) for each in (a, b)]
    if a.get("name") != b.get("name"):
        out.append(f"The models differ: {a.get('name')} and {b.get('name')}.")
    elif shapes[0] != shapes[1]:
        out.append(f"The models have different shapes: {shapes[0]} and {shapes[1]} layers and heads.")
    for what, name in (("number types (dtype)", "dtype"), ("weights were dequantised differently", "dequantised_from")):
        if a.get(name) != b.get(name):
            said = f"The {what} differ" if name == "dtype" else f"The {what}"
            out.append(f"{said}: {a.get(name) or 'not at all'} and {b.get(name) or 'not at all'}.")
    out += _of_tokens(first, second)
    eps = [dict(each.meta.get("settings") or {}).get("eps") for each in (first, second)]
    if eps[0] != eps[1]:
        out.append(f"The thresholds of a sink differ: eps {eps[0]} and {eps[1]}.")
    return out


def _of_tokens(first: Run, second: Run) -> list[str]:
    a, b = (each.meta.get("tokens") for each in (first, second))
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return []
    out = []
    bos = [_bos(each) for each in (first, second)]
    if bos[0] != bos[1]:
        statements = [str(dict(each.get("bos") or {}).get("statement", "nothing")) for each in (a, b)]
        out.append(
            f"One has a BOS where the other has none, so positions are shifted: A: {statements[0]} B: {statements[1]}"
        )
    shifted = bos[0] != bos[1]
    one, other = _texts(first), _texts(second)
    if one is None or other is None:
        same = a.get("source") == b.get("source")
        longer = _lengths(first, a) != _lengths(second, b) and not (same and shifted)
        told = "" if same else f"The texts differ: {a.get('source')} and {b.get('source')}."
    else:
        longer, told = _of_texts(one, other, (str(a.get("source")), str(b.get("source"))), shifted=shifted)
    out += [told] if told else []
    if longer:
        out.append(f"The texts have different lengths: {_spoken(a)} and {_spoken(b)}; a sink rate depends on them.")
    return out


def _of_texts(
    first: list[list[int]], second: list[list[int]], sources: tuple[str, str], *, shifted: bool
) -> tuple[bool, str]:
    """Whether texts without their BOS have other lengths, and what they differ in besides.

    Texts are the same where one goes as the other does as far as both go. Two runs cut at the same number of tokens
    end a token apart when one of them begins with a BOS; that is no other length.
    """
    pairs = [(one, other, min(len(one), len(other))) for one, other in zip(first, second, strict=False)]
    if any(one[:common] != other[:common] for one, other, common in pairs):
        longer = [*map(len, first)] != [*map(len, second)] and not shifted
        if sources[0] != sources[1]:
            return longer, f"The texts differ: {sources[0]} and {sources[1]}."
        why = "; a text that is cut into pieces is cut elsewhere when a BOS takes a place in each" if shifted else ""
        return longer, f"The texts differ: their tokens are not the same, though both are {sources[0]}{why}."
    longer = any(max(len(one), len(other)) - common > shifted for one, other, common in pairs)
    if len(first) == len(second):
        return longer, ""
    more, less = ("A", "B") if len(first) > len(second) else ("B", "A")
    counts = sorted((len(first), len(second)))
    return longer, f"{less} has only the first {counts[0]} of the {counts[1]} texts of {more}."


def _bos(run: Run) -> Any:
    """Whether its texts begin with a BOS."""
    if isinstance(run, CensusRun) and len(run.tokens(0)) and "is_bos" in run.tokens(0):
        return bool(run.tokens(0)["is_bos"].iloc[0])
    return dict(dict(run.meta.get("tokens") or {}).get("bos") or {}).get("position0")


def _texts(run: Run) -> list[list[int]] | None:
    if not isinstance(run, CensusRun):
        return None
    out = []
    for sequence in range(len(run.lengths)):
        rows = run.tokens(sequence)
        kept = ~rows["is_bos"].astype(bool) if "is_bos" in rows else slice(None)
        out.append(rows["token_id"][kept].astype(int).tolist())
    return out


def _lengths(run: Run, tokens: Mapping[str, Any]) -> Any:
    return run.lengths if isinstance(run, CensusRun) else [tokens.get("min_length"), tokens.get("max_length")]


def _spoken(tokens: Mapping[str, Any]) -> str:
    low, high = tokens.get("min_length"), tokens.get("max_length")
    return (
        f"{tokens.get('n_sequences')} of {low} tokens"
        if low == high
        else (f"{tokens.get('n_sequences')} of {low} to {high} tokens")
    )
