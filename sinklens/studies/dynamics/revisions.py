"""Which revisions of a hub model hold its checkpoints."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from sinklens.errors import InputError, ModelLoadError


def choose_revisions(repository: str, wanted: Sequence[str] | None) -> tuple[list[str], bool]:
    """Revisions by name or pattern.

    Args:
        repository: Hub id.
        wanted: Names are taken as they are; those with ``*`` or ``?`` stand for the branches and tags of the hub that
            match, or offline for those in the local cache. ``None``: the checkpoints that TransformerLens knows.

    Returns:
        The revisions, and whether some come from a pattern (so that other branches may be among them).

    Raises:
        InputError: Nothing matches, or nothing is known about the model.
        ModelLoadError: The hub cannot be asked.
    """
    if not wanted:
        return _known(repository), False
    chosen: list[str] = []
    patterns = [name for name in wanted if "*" in name or "?" in name]
    there = _listed(repository) if patterns else []
    for name in wanted:
        matching = [each for each in there if fnmatchcase(each, name)] if name in patterns else [name]
        if not matching:
            raise InputError(
                f"No revision of {repository} matches {name}; there are {', '.join(there[:12]) or 'none'}."
            )
        chosen += matching
    return list(dict.fromkeys(chosen)), bool(patterns)


def _known(repository: str) -> list[str]:
    """Steps by TransformerLens' conventions (``checkpoint_value``)."""
    from transformer_lens.model_bridge.sources.transformers import helpers
    from transformer_lens.tools.model_registry.checkpoints import get_checkpoint_labels

    for prefix, form in helpers._CHECKPOINT_REVISION_FORMATS.items():
        if repository.startswith(prefix):
            labels, _ = get_checkpoint_labels(repository)
            return [form.format(value=label) for label in labels]
    raise InputError(
        f"Nothing is known about the checkpoints of {repository}; name revisions, as in {repository}@step0,step1000 or "
        "--revisions 'step*'."
    )


def _listed(repository: str) -> list[str]:
    """Branches and tags on the hub; those in the local cache where it cannot be reached."""
    from huggingface_hub import HfApi, constants

    try:
        refs = HfApi().list_repo_refs(repository)
        return [each.name for each in (*refs.branches, *refs.tags)]
    except Exception as error:  # offline, no such model, no right to see it: the hub's client has no class for all
        folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs"
        cached = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        if cached:
            return cached
        raise ModelLoadError(
            f"The hub cannot be asked for the revisions of {repository} ({' '.join(str(error).split())[:200]}), and "
            "none is in the local cache; name them without * and ?."
        ) from error
