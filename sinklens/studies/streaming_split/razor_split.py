"""RazorAttention's split: KV heads with an induction or echo head keep everything, the others a compensated window."""

from sinklens.detectors.head_scores import HeadScores
from sinklens.errors import InputError
from sinklens.studies.streaming_split.split import Split


def razor_split(scores: HeadScores, column: str = "razor") -> Split:
    """The split that a selection of heads gives: a KV head is kept whole when any of its query heads is selected.

    ::

        split = razor_split(pattern_scores(model))
        window = razor_window(n_tokens, shortest=64)
        with torch.no_grad(), split.compensated_window(recent=window, sinks=4)(model):
            ...

    Args:
        scores: With the columns ``layer``, ``head``, ``kv_head`` and the selection, such as
            :func:`~sinklens.studies.head_scores.pattern_scores` gives them.
        column: The selection: empty, missing or False for heads that are not selected.

    Raises:
        InputError: A column is missing.

    Source: Tang et al. (2025), RazorAttention, arXiv 2407.15891.
    """
    frame = scores.frame
    missing = [name for name in ("kv_head", column) if name not in frame]
    if missing:
        raise InputError(
            f"A split needs the columns kv_head and {column}, and {', '.join(missing)} is not there; "
            "take the scores from pattern_scores."
        )
    selected = frame[column].fillna("").astype(bool)
    keys = [(int(layer), int(kv_head)) for layer, kv_head in zip(frame["layer"], frame["kv_head"], strict=True)]
    kept = {key for key, chosen in zip(keys, selected, strict=True) if chosen}
    everyone = sorted(set(keys))
    group = len(frame) // len(everyone)
    retrieval = tuple(key for key in everyone if key in kept)
    streaming = tuple(key for key in everyone if key not in kept)
    statement = (
        f"{len(retrieval)} of {len(everyone)} KV heads are kept whole, because {int(selected.sum())} query heads are "
        f"selected ({column})."
    )
    return Split(retrieval, streaming, group, float("nan"), None, (), statement)
