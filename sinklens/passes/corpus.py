"""Built-in texts that fit a model, so that everything can be tried offline."""

import json
import random
from dataclasses import dataclass, replace

from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.errors import InputError
from sinklens.models.architecture import context_length
from sinklens.models.builtin import builtin_models, data_dir
from sinklens.models.source import source_of
from sinklens.models.tokens import BosChoice, TokenBatch, to_batch
from sinklens.models.unused import Unused

SEQUENCES = 100
LENGTH = 64


@dataclass(frozen=True)
class Corpus:
    """Tokens of a built-in corpus and what to call it."""

    tokens: TokenBatch
    source: str


@checked
def builtin_corpus(
    model: TransformerBridge,
    *,
    bos: BosChoice = "auto",
    n_sequences: int = SEQUENCES,
    length: int | None = None,
    seed: int = 0,
) -> Corpus:
    """Sequences for a scan without texts: the model's own task for a built-in model, Shakespeare for any other.

    The defaults (100 sequences of 64 tokens) are those of Gu et al. 2025.

    Args:
        model: The bridge.
        bos: As for :func:`sinklens.tokenize`.
        n_sequences: How many sequences, at most.
        length: Tokens in each, BOS included; default 64 or the model's context if that is shorter.
        seed: Which sequences are drawn.
    """
    if n_sequences < 1:
        raise InputError(f"n_sequences must be at least 1, got {n_sequences}.")
    limit = context_length(model)
    length = min(LENGTH, limit or LENGTH) if length is None else length
    source = source_of(model)
    recipe = builtin_models()[source.builtin].recipe if source is not None and source.builtin else {}
    task = data_dir() / "texts" / f"{recipe.get('task')}.json"
    draw = random.Random(seed)
    if task.is_file():
        texts = json.loads(task.read_text("utf-8"))["texts"]
        chosen = [texts[index] for index in sorted(draw.sample(range(len(texts)), min(n_sequences, len(texts))))]
        rows = to_batch(model, chosen, bos=bos, max_tokens=length)
        return Corpus(replace(rows, unused=Unused()), f"built-in corpus {recipe['task']}, the model's own task")
    text = (data_dir() / "texts" / "shakespeare.txt").read_text("utf-8")
    rows = to_batch(model, [text], bos=bos, max_tokens=length, split=True)
    index = sorted(draw.sample(range(len(rows)), min(n_sequences, len(rows))))
    return Corpus(
        replace(rows.rows(index), unused=Unused()), "built-in corpus shakespeare (English drama, public domain)"
    )
