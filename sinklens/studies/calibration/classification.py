"""Classification by the next token: prompts, the tokens that count as labels, and how a model answers."""

import inspect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import AttentionEngine, plan_for
from sinklens.errors import InputError
from sinklens.interventions import Intervention
from sinklens.models.tokens import BosChoice, TokenBatch, tokenize
from sinklens.passes.batches import equal_lengths
from sinklens.results.progress import Progress
from sinklens.studies.calibration.task_scores import TaskScores
from sinklens.wording import several

Label = tuple[int, ...]
"""Token ids that all stand for one answer."""


@dataclass(frozen=True)
class ClassificationTask:
    """Prompts that a model answers with its most likely next token.

    Attributes:
        prompts: Token ids; the answer is read after the last real token of each.
        labels: For each prompt its possible answers, each a tuple of the token ids that stand for it (spellings).
        answers: For each prompt which of its labels is right, counted from 0.

    Raises:
        InputError: Not one entry for each prompt, fewer than two labels, an id that stands for two labels of a prompt,
            or an answer that is none of them.
    """

    prompts: TokenBatch
    labels: tuple[tuple[Label, ...], ...]
    answers: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.prompts) == len(self.labels) == len(self.answers):
            raise InputError(
                f"A task needs labels and an answer for each prompt; got {several(len(self.prompts), 'prompt')}, "
                f"labels for {len(self.labels)} and answers for {len(self.answers)}."
            )
        for prompt, (labels, answer) in enumerate(zip(self.labels, self.answers, strict=True)):
            ids = [token for label in labels for token in label]
            if len(labels) < 2 or not all(labels):
                raise InputError(f"Prompt {prompt} needs at least two labels of at least one token each, got {labels}.")
            if len(set(ids)) < len(ids):
                raise InputError(f"A token of prompt {prompt} stands for two labels: {labels}.")
            if not 0 <= answer < len(labels):
                raise InputError(f"The answer of prompt {prompt} is label {answer}; it has {len(labels)}, from 0.")

    def __len__(self) -> int:
        return len(self.answers)

    def rows(self, indices: Sequence[int]) -> "ClassificationTask":
        """The task on some of its prompts."""
        return ClassificationTask(
            self.prompts.rows(indices),
            tuple(self.labels[index] for index in indices),
            tuple(self.answers[index] for index in indices),
        )

    def split(self, share: float = 0.5, *, seed: int = 0) -> tuple[list[int], list[int]]:
        """Two disjoint sets of prompts: one to choose on, one to report on.

        Equal prompts stay on one side, so nothing that was chosen on is reported on.

        Args:
            share: Of the prompts that are chosen on, about.
            seed: Which ones.

        Returns:
            Indices of the prompts to choose on and of those to report on, each in order.

        Raises:
            InputError: A share that leaves one side empty.
        """
        alike = defaultdict(list)
        for index, length in enumerate(self.prompts.lengths.tolist()):
            alike[tuple(self.prompts.ids[index, :length].tolist())].append(index)
        groups = list(alike.values())
        chosen: list[int] = []
        wanted = round(share * len(self)) if 0 < share < 1 else 0
        for place in np.random.default_rng(seed).permutation(len(groups)):
            if len(chosen) + len(groups[place]) <= wanted:
                chosen += groups[place]
        reported = sorted(set(range(len(self))) - set(chosen))
        if not chosen or not reported:
            raise InputError(
                f"share={share} of {len(self)} prompts ({len(groups)} different) leaves one side of the split empty."
            )
        return sorted(chosen), reported

    def shuffled(self, seed: int = 0) -> "ClassificationTask":
        """The same prompts with their right answers exchanged at random: a control on which nothing can be learned.

        Raises:
            InputError: Prompts with different numbers of labels, whose answers cannot be exchanged.
        """
        if len({len(labels) for labels in self.labels}) > 1:
            raise InputError("Only prompts with equally many labels can exchange their answers.")
        order = np.random.default_rng(seed).permutation(len(self))
        return ClassificationTask(self.prompts, self.labels, tuple(self.answers[index] for index in order))


@checked
def classification_task(
    model: TransformerBridge,
    prompts: TokenBatch | Sequence[str] | Sequence[Sequence[int]] | Tensor,
    labels: Sequence[Any],
    answers: Sequence[int],
    *,
    bos: BosChoice = "auto",
) -> ClassificationTask:
    """Make a task of texts and label words.

    ::

        task = classification_task(model, ["Great film. It was", ...], [" good", " bad"], [0, ...])

    Args:
        model: The bridge, for its tokenizer.
        prompts: Texts, token ids, or a :class:`TokenBatch`.
        labels: The labels of all prompts. Each is a text, a token id, or a list of several that mean the same. A text
            is taken as it is: most tokenizers want the space before the word.
        answers: For each prompt which label is right, counted from 0.
        bos: As for :func:`sinklens.tokenize`.

    Raises:
        InputError: A label that is not one token of this model (two labels may share their last or first piece, so no
            piece of a label stands for it), or what :class:`ClassificationTask` refuses.
    """
    batch = prompts if isinstance(prompts, TokenBatch) else tokenize(model, prompts, bos=bos)
    ids = tuple(_label_ids(model, label) for label in labels)
    return ClassificationTask(batch, (ids,) * len(batch), tuple(int(answer) for answer in answers))


def _label_ids(model: TransformerBridge, label: Any) -> Label:
    spellings = [label] if isinstance(label, str | int) else list(label)
    found = []
    for spelling in spellings:
        if isinstance(spelling, str):
            tokenizer: Any = model.tokenizer
            if tokenizer is None:
                raise InputError(f"The model has no tokenizer for the label {spelling!r}; give its token id.")
            tokens = tokenizer(spelling, add_special_tokens=False)["input_ids"]
            if len(tokens) != 1:
                raise InputError(
                    f"The label {spelling!r} is {several(len(tokens), 'token')} of this model; take a label that is "
                    f"one token (often with a space before it), or give the id of the token to look for."
                )
            found.append(int(tokens[0]))
        else:
            found.append(int(spelling))
    if any(not 0 <= token < int(model.cfg.d_vocab) for token in found):
        raise InputError(f"The label {label!r} is no token of this model, which has {model.cfg.d_vocab}.")
    return tuple(found)


class Scorer(Protocol):
    """Lets a model answer a task, as :func:`score_task` does."""

    def __call__(
        self,
        model: TransformerBridge,
        task: ClassificationTask,
        intervention: Intervention | None = None,
        *,
        batch_size: int = 8,
    ) -> TaskScores:
        """The answers."""
        ...


@checked
@torch.no_grad()
def score_task(
    model: TransformerBridge,
    task: ClassificationTask,
    intervention: Intervention | None = None,
    *,
    batch_size: int = 8,
) -> TaskScores:
    """Let the model answer every prompt, unchanged or under an intervention.

    Prompts of one length run together, so there is never padding. The unchanged model goes through the same engine, so
    that a change without effect changes no bit. Of several equally likely tokens the first counts.

    Args:
        model: The bridge; it is the same afterwards.
        task: Prompts and labels.
        intervention: A change of the model.
        batch_size: Prompts in one forward pass.

    Cost: one forward pass for each prompt; logits of the last position only, where the model allows that.
    """
    device, path = next(model.parameters()).device, plan_for(model).path
    accepted = inspect.signature(type(model.original_model).forward).parameters
    options = {name: value for name, value in (("use_cache", False), ("logits_to_keep", 1)) if name in accepted}
    valid, correct = np.zeros(len(task), dtype=bool), np.zeros(len(task), dtype=bool)
    entropy = np.zeros(len(task))
    for indices in equal_lengths(task.prompts, batch_size):
        ids = task.prompts.rows(indices).ids.to(device)
        with AttentionEngine(model, path=path) if intervention is None else intervention(model):
            logits = model(ids, **options)[:, -1].float()
        entropy[indices] = torch.special.entr(logits.softmax(-1)).sum(-1).double().cpu().numpy()
        for index, token in zip(indices, logits.argmax(-1).tolist(), strict=True):
            labels = task.labels[index]
            valid[index] = any(token in label for label in labels)
            correct[index] = token in labels[task.answers[index]]
    return TaskScores(valid, correct, entropy)


def tell(progress: Progress, score: Scorer, task: ClassificationTask) -> None:
    """Tell that a task was answered, now or (as :class:`KeptScores` knows) by an earlier run."""
    (progress.advance if getattr(score, "fresh", True) else progress.skip)(len(task))
