"""Which sequences an experiment runs on: texts, ids, or a built-in corpus."""

from collections.abc import Sequence

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.experiments.corpus import builtin_corpus
from sinklens.models.tokens import BosChoice, TokenBatch, tokenize


def choose_sequences(
    model: TransformerBridge,
    texts: str | Sequence[str] | None,
    tokens: TokenBatch | Tensor | Sequence[Sequence[int]] | None,
    bos: BosChoice,
    max_tokens: int | None,
    split: bool,
    seed: int,
    source: str | None,
    max_sequences: int | None,
) -> tuple[TokenBatch, str]:
    """The sequences that the arguments of :func:`~sinklens.scan` name, and what to call their source.

    Raises:
        InputError: Texts and tokens at once, less than one sequence, or text that cannot be tokenized.
    """
    if texts is not None and tokens is not None:
        raise InputError("Pass either texts or tokens, not both.")
    if max_sequences is not None and max_sequences < 1:
        raise InputError(f"max_sequences must be at least 1, got {max_sequences}.")
    if tokens is not None:
        batch = tokens if isinstance(tokens, TokenBatch) else tokenize(model, tokens, max_tokens=max_tokens)
        source = source or "token ids given by the caller"
    elif texts is not None:
        batch = tokenize(model, texts, bos=bos, max_tokens=max_tokens, split=split)
        source = source or "texts given by the caller"
    else:
        corpus = builtin_corpus(model, bos=bos, length=max_tokens, n_sequences=max_sequences or 100, seed=seed)
        batch, source = corpus.tokens, source or corpus.source
    if max_sequences is not None and len(batch) > max_sequences:
        batch = batch.rows(slice(0, max_sequences))
    return batch, source
