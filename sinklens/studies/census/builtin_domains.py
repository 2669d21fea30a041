"""Built-in texts of two domains, prose and code, for what compares domains."""

import random
from dataclasses import replace

from transformer_lens.model_bridge import TransformerBridge

from sinklens.models.architecture import context_length
from sinklens.models.builtin import builtin_models, data_dir
from sinklens.models.source import source_of
from sinklens.models.tokens import BosChoice, to_batch
from sinklens.models.unused import Unused
from sinklens.passes.corpus import LENGTH, SEQUENCES, builtin_corpus
from sinklens.studies.census.domains import Domains, join_batches

TEXTS = {"prose": "shakespeare.txt", "code": "python.txt"}


def builtin_domains(
    model: TransformerBridge,
    *,
    bos: BosChoice = "auto",
    n_sequences: int = SEQUENCES,
    length: int | None = None,
    seed: int = 0,
) -> Domains:
    """Sequences of English drama and of Python source; of a built-in model with a task of its own, that task alone.

    The built-in ``tiny-llama`` was trained on neither text.

    Args:
        model: The bridge.
        bos: As for :func:`sinklens.tokenize`.
        n_sequences: At most so many of each domain.
        length: Tokens in each, BOS included; default 64 or the model's context if that is shorter.
        seed: Which sequences are drawn.

    Raises:
        InputError: ``n_sequences`` below 1, or texts that the model cannot tokenize.
    """
    source = source_of(model)
    recipe = builtin_models()[source.builtin].recipe if source is not None and source.builtin else {}
    if n_sequences < 1 or (data_dir() / "texts" / f"{recipe.get('task')}.json").is_file():
        corpus = builtin_corpus(model, bos=bos, n_sequences=n_sequences, length=length, seed=seed)
        return Domains(corpus.tokens, ("text",) * len(corpus.tokens), corpus.source)
    length = min(LENGTH, context_length(model) or LENGTH) if length is None else length
    batches = {}
    for name, file in TEXTS.items():
        text = (data_dir() / "texts" / file).read_text("utf-8")
        rows = to_batch(model, [text], bos=bos, max_tokens=length, split=True)
        chosen = sorted(random.Random(seed).sample(range(len(rows)), min(n_sequences, len(rows))))
        batches[name] = replace(rows.rows(chosen), unused=Unused())
    of = tuple(name for name, batch in batches.items() for _ in range(len(batch)))
    named = "built-in texts: shakespeare (prose: English drama, public domain) and python (code: PSF licence)"
    return Domains(join_batches([*batches.values()]), of, named)
