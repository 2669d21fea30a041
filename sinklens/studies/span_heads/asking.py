"""Which document a model names when it is asked for the sentence that matters (AutoPASTA)."""

import random
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.models.tokens import BosChoice, to_batch
from sinklens.studies.document_ranking.prompts import RankingTask, make_prompt, words_of

ASK = '\n\nThe one sentence in the paragraphs above that answers the query is: "'
TOKENS = 24


@torch.no_grad()
def asked_document(model: TransformerBridge, task: RankingTask, bos: BosChoice = "auto", seed: int = 0) -> int:
    """The document with most of the words of what the model says, greedily and in at most 24 tokens; ties at random.

    The paper maps the model's sentence to the context by a sentence encoder; here by the share of its different words.
    """
    ids = make_prompt(model, task.documents, task.question, None, bos).ids
    texts = isinstance(task.question, str)
    if texts:
        ids = ids + to_batch(model, ASK, bos="no").ids[0].tolist()
    start = torch.tensor([ids], device=next(model.parameters()).device)
    options: Any = {"do_sample": False, "return_type": "tokens", "verbose": False}
    whole: Any = model.generate(start, max_new_tokens=TOKENS, **options)
    made = whole[0, len(ids) :].tolist()
    said = words_of(str(model.tokenizer.decode(made)).partition('"')[0] if texts else made)
    shares = [len(said & words_of(each)) / max(1, len(said)) for each in task.documents]
    best = [number for number, share in enumerate(shares) if share == max(shares)]
    return random.Random(f"{seed}/asked").choice(best)
