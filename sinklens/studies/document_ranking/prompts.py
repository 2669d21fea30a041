"""Documents and a question as one prompt, and what it shows."""

import json
import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import check_fields
from sinklens.attention import AttentionShape, Block, Statistic
from sinklens.capture import capture
from sinklens.capture.record import LayerRecord
from sinklens.errors import InputError
from sinklens.interventions import Intervention
from sinklens.models.builtin import data_dir
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.models.tokens import BosChoice, TokenBatch, bos_prefix, to_batch

Words = str | Sequence[int]


@dataclass(frozen=True)
class RankingTask:
    """Documents and a question about one of them: texts, or ids throughout.

    Attributes:
        documents: Two or more.
        question: What is asked.
        gold: Number of the document that holds the answer, if it is known.
        answer: What it says; for context use.
    """

    documents: Sequence[Words]
    question: Words
    gold: int | None = None
    answer: Words | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def builtin_tasks(n_documents: int = 6, seed: int = 0) -> list[RankingTask]:
    """Twenty questions, each with the invented sentence that answers it among others; no content word is shared."""
    facts = json.loads((data_dir() / "needles" / "paraphrased.json").read_text("utf-8"))["facts"]
    tasks = []
    for number, fact in enumerate(facts):
        draw = random.Random(f"{seed}/ranking/{number}")
        documents = draw.sample([each["document"] for each in facts if each is not fact], n_documents - 1)
        gold = draw.randrange(n_documents)
        documents.insert(gold, fact["document"])
        tasks.append(RankingTask(documents, fact["question"], gold, fact["answer"]))
    return tasks


@dataclass
class Prompt:
    """Ids of a prompt and where its parts stand.

    Attributes:
        ids: All of them.
        spans: Of each document.
        question: Of the question.
        answer: Of the answer; empty without one.
    """

    ids: list[int] = field(default_factory=list)
    spans: list[slice] = field(default_factory=list)
    question: slice = field(default_factory=lambda: slice(0))
    answer: slice = field(default_factory=lambda: slice(0))


def make_prompt(
    model: TransformerBridge,
    documents: Sequence[Words],
    question: Words,
    answer: Words | None,
    bos: BosChoice,
    reverse: bool = False,
) -> Prompt:
    """Instruction, numbered documents, question and answer; of ids the documents and the question alone.

    With ``reverse`` the last document comes first; the spans stay in the order of ``documents``.
    """
    made = Prompt([*bos_prefix(model, bos)[0]])

    def add(part: Words) -> slice:
        start = len(made.ids)
        made.ids += to_batch(model, part, bos="no").ids[0].tolist() if isinstance(part, str) else [*part]
        return slice(start, len(made.ids))

    texts = isinstance(question, str)
    if texts:
        add("Here are some paragraphs:")
    for number, document in enumerate(reversed(documents) if reverse else documents):
        if texts:
            add(f"\n\n[{number + 1}]")
        made.spans.append(add(f" {document}" if texts else document))
    if reverse:
        made.spans.reverse()
    if texts:
        add("\n\nPlease find information that is relevant to the following query in the paragraphs above.\n\nQuery:")
    made.question = add(f" {question}" if texts else question)
    if answer is not None:
        if texts:
            add("\nAnswer:")
        made.answer = add(f" {answer}" if texts else answer)
    return made


def blank_question(model: TransformerBridge, task: RankingTask, seed: int) -> Words:
    """A content-free question: ``N/A``, or of ids as many ordinary ones that stand nowhere in the task."""
    if isinstance(task.question, str):
        return "N/A"
    used = {each for part in (*task.documents, task.question) for each in part}
    free = [each for each in ordinary_ids(model).tolist() if each not in used]
    if not free:
        raise InputError("Every ordinary id stands in the documents, so no content-free question can be made of ids.")
    return random.Random(f"{seed}/blank").choices(free, k=len(task.question))


def words_of(part: Words) -> frozenset[object]:
    """Different words in lower case, or ids."""
    return frozenset(re.findall(r"\w+", part.lower())) if isinstance(part, str) else frozenset(part)


class RowsMass(Statistic):
    """Attention that sets of query rows give to each key, mean over rows; ``rows_<name>``, ``[1 head k_pos]``."""

    def __init__(self, shape: AttentionShape, sets: dict[str, slice]) -> None:
        super().__init__(shape)
        self.sets = sets
        self.sums = {name: shape.zeros(shape.batch, shape.heads, shape.k_padded) for name in sets}
        self._sums = ()

    def update(self, block: Block) -> None:
        """Add the rows of the block that are in a set."""
        for name, rows in self.sets.items():
            first, last = max(rows.start, block.rows.start), min(rows.stop, block.rows.stop)
            if first < last:
                some = block.pattern[:, first - block.rows.start : last - block.rows.start].sum(1)
                self.sums[name][block.sequence, block.heads, block.keys] += some / (rows.stop - rows.start)

    def compute(self) -> dict[str, Tensor]:
        """By set."""
        return {f"rows_{name}": each[..., : self.shape.k_pos] for name, each in self.sums.items()}


class RowSums:
    """Sums over the chosen heads of all layers, and of the last layer alone; a detector of a pass."""

    needs = ()

    def __init__(self, sets: dict[str, slice], heads: Collection[tuple[int, int]] | None) -> None:
        self.sets, self.heads = sets, heads
        self.total: dict[str, Any] = {}
        self.final: dict[str, Tensor] = {}

    def statistics(self, batch: TokenBatch) -> list[Any]:
        """What a capture has to measure."""
        return [partial(RowsMass, sets=self.sets)]

    def update(self, record: LayerRecord) -> None:
        """Take a layer of a capture."""
        masses = {name: record.attention.get(f"rows_{name}") for name in self.sets}
        self.add(record.layer, {name: mass[0] for name, mass in masses.items() if mass is not None})

    def add(self, of_layer: int, masses: dict[str, Tensor]) -> None:
        """Add a layer's masses ``[head k_pos]`` by set."""
        for name, mass in masses.items():
            each = mass.double().cpu()
            if self.heads is not None:
                each = each[[head for layer, head in sorted(self.heads) if layer == of_layer]]
            self.total[name] = self.total.get(name, 0) + each.sum(0)
            if len(each):
                self.final[name] = each.sum(0)


def attention_from(
    model: TransformerBridge,
    ids: Sequence[int],
    sets: dict[str, slice],
    heads: Collection[tuple[int, int]] | None,
    intervention: Intervention | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Attention that sets of rows of one prompt give to each key: sums over layers and heads, and of the last layer."""
    sums = RowSums(sets, heads)
    capture(model, [list(ids)], [sums], batch_size=1, top_k=1, intervention=intervention)
    return sums.total, sums.final
