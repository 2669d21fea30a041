"""How far changed predictions are from the clean ones: loss, KL, top-1 agreement and logit differences of answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch
from sinklens.wording import several

NO_ANSWER = -1
"""Position of a sequence that has no answer to compare."""

_CHUNK = {"cpu": 2**18}  # logits in hand at once: what stays in a CPU's cache, else a quarter of a gigabyte
_CHUNK_ELSEWHERE = 2**26


@dataclass(frozen=True)
class Answers:
    """A right and a wrong next token for each sequence: the model is asked how much more likely it finds the right.

    ``logit_diff = logits[position, correct] - logits[position, wrong]``, in nats of log-odds.

    Attributes:
        position: Row whose logits are read, so the answer stands at ``position + 1``, ``[batch]``; -1 where a sequence
            has no answer (its logit difference is NaN).
        correct: Token id of the right answer, ``[batch]``.
        wrong: Token id of the wrong one, ``[batch]``.

    Raises:
        InputError: Not three integer tensors of one length, or a position below -1.
    """

    position: Int[Tensor, " batch"]
    correct: Int[Tensor, " batch"]
    wrong: Int[Tensor, " batch"]

    def __post_init__(self) -> None:
        for name in ("position", "correct", "wrong"):
            value = torch.as_tensor(getattr(self, name))
            if value.ndim != 1 or value.is_floating_point() or value.dtype == torch.bool:
                raise InputError(
                    f"Answers.{name} must be integers [batch], one a sequence; got {tuple(value.shape)} {value.dtype}."
                )
            object.__setattr__(self, name, value.long())
        if not len(self.position) == len(self.correct) == len(self.wrong):
            lengths = f"{len(self.position)}, {len(self.correct)} and {len(self.wrong)}"
            raise InputError(f"Answers need one position, correct and wrong id for each sequence; got {lengths}.")
        if len(self.position) and int(self.position.min()) < NO_ANSWER:
            raise InputError("Answers.position counts from 0, or is -1 where a sequence has no answer.")

    def __len__(self) -> int:
        return len(self.position)

    def rows(self, indices: Sequence[int] | slice) -> "Answers":
        """The answers of some sequences, as :meth:`TokenBatch.rows` picks them."""
        chosen = range(len(self))[indices] if isinstance(indices, slice) else indices
        index = torch.tensor([*chosen], dtype=torch.long)
        return Answers(self.position[index], self.correct[index], self.wrong[index])

    def check(self, batch: TokenBatch, d_vocab: int) -> None:
        """Refuse answers that do not fit the tokens.

        Raises:
            InputError: Another number of sequences, a position beyond a sequence's end, or an id beyond the vocabulary.
        """
        if len(self) != len(batch):
            raise InputError(
                f"There are answers for {several(len(self), 'sequence')} and {several(len(batch), 'sequence')}."
            )
        asked = self.position != NO_ANSWER
        late = asked & (self.position >= batch.lengths.cpu())
        if bool(late.any()):
            first = int(late.nonzero()[0])
            raise InputError(
                f"The answer of sequence {first} is read at position {int(self.position[first])}, and the sequence has "
                f"{int(batch.lengths[first])} tokens."
            )
        ids = torch.cat([self.correct[asked], self.wrong[asked]])
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= d_vocab):
            raise InputError(f"Answer ids must be from 0 to {d_vocab - 1}; got {int(ids.min())} to {int(ids.max())}.")


def predicted_rows(batch: TokenBatch) -> Bool[Tensor, "batch pos"]:
    """Rows whose next token counts in a loss.

    Row t counts when t and t+1 are real tokens and t+1 is not the BOS: a BOS opens a sequence and is given, never
    predicted (where a packed row holds a second one, what it predicts counts and it itself does not). The last row of
    a sequence has no next token. Other special tokens, EOS among them, count: a model is trained to predict them.
    """
    counted = torch.zeros_like(batch.real)
    counted[:, :-1] = batch.real[:, :-1] & batch.real[:, 1:] & ~batch.bos[:, 1:]
    return counted


class Reference:
    """The clean model's predictions on one batch, to compare changed ones with.

    Per sequence, over the rows that :func:`predicted_rows` counts (mean of row values summed in fp64; NaN for a
    sequence where no row counts):

    - ``loss = mean_t -log p(x_{t+1})`` in nats per predicted token;
    - ``kl = mean_t sum_v p_clean(v) (log p_clean(v) - log p_changed(v))`` in nats;
    - ``top1_agreement``: share of rows where the clean model's most likely token has the highest changed logit too
      (with a tie, one of the highest);
    - ``logit_diff`` of :class:`Answers`, NaN where there is none.

    What depends on the clean side alone is computed once, here. Half-precision logits are widened to fp32 a piece
    at a time.

    Args:
        logits: The clean model's, ``[batch pos d_vocab]``.
        batch: The tokens they belong to.
        answers: For the logit differences.
        among: Rows that may count at all, ``[batch pos]``; default: all.

    Attributes:
        clean: ``[batch]`` each: ``"loss"``, ``"logit_diff"`` and ``"n_tokens"``, the number of predicted tokens.

    Raises:
        InputError: Shapes that do not belong together, or answers that do not fit the tokens.

    Cost: keeps one fp32 probability per clean logit of a counted row; beside it no more than one piece of the logits
    exists twice. A comparison passes over the changed logits about three times within a processor's cache.
    """

    clean: dict[str, Tensor]

    @torch.no_grad()
    def __init__(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        batch: TokenBatch,
        answers: Answers | None = None,
        among: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        if logits.ndim != 3 or logits.shape[:2] != batch.ids.shape:
            raise InputError(
                f"Expected logits [batch pos d_vocab] of tokens {tuple(batch.ids.shape)}, got {tuple(logits.shape)}."
            )
        if answers is not None:
            answers.check(batch, logits.shape[-1])
        device = logits.device
        self._shape = logits.shape
        counted = predicted_rows(batch)
        self._counted = (counted if among is None else counted & among.to(counted.device)).to(device)
        self._rows = self._counted.flatten().nonzero().flatten()
        self._targets = batch.ids.to(device).flatten()[self._rows + 1]
        self._n_tokens = self._counted.sum(1)
        self._answers = None if answers is None else _OnDevice(answers, device)
        self._pieces = _pieces(self._rows, logits.shape[-1])

        n_rows = len(self._rows)
        self._probabilities = torch.empty(n_rows, logits.shape[-1], device=device)
        self._negative_entropy = torch.empty(n_rows, device=device)
        self._top1 = torch.empty(n_rows, dtype=torch.long, device=device)
        self._hides_tokens = False
        loss = torch.empty(1, n_rows, device=device)
        flat = logits.flatten(0, 1)
        for piece, rows in self._pieces:
            log_probs = flat[rows].log_softmax(-1, dtype=torch.float32)
            loss[0, piece] = -log_probs.gather(-1, self._targets[piece, None])[:, 0]
            self._top1[piece] = log_probs.argmax(-1)
            self._hides_tokens |= bool((log_probs == -math.inf).any())
            probabilities = torch.exp(log_probs, out=self._probabilities[piece])
            self._negative_entropy[piece] = torch.linalg.vecdot(probabilities, _finite(log_probs))
        self.clean = {
            "loss": self._mean(loss)[0],
            "logit_diff": self._logit_diff(logits[None])[0],
            "n_tokens": self._n_tokens,
        }

    @torch.no_grad()
    def compare(self, logits: Float[Tensor, "variant_batch pos d_vocab"]) -> dict[str, Float[Tensor, "variant batch"]]:
        """The four measures of one or several changed runs on the same tokens.

        Args:
            logits: Changed logits, variant by variant: all sequences of the first, then all of the second, ...

        Returns:
            ``loss``, ``kl``, ``top1_agreement`` and ``logit_diff``, each ``[variant batch]`` in fp32.

        Raises:
            InputError: The logits are not those of a whole number of variants of the clean batch.
        """
        n_batch, n_pos, d_vocab = self._shape
        if logits.ndim != 3 or logits.shape[1:] != (n_pos, d_vocab) or n_batch == 0 or len(logits) % n_batch:
            raise InputError(
                f"Expected changed logits [variant*{n_batch} {n_pos} {d_vocab}] of the clean batch, "
                f"got {tuple(logits.shape)}."
            )
        n_variants = len(logits) // n_batch
        by_row = {name: logits.new_empty(n_variants, len(self._rows), dtype=torch.float32) for name in _BY_ROW}
        by_variant = logits.view(n_variants, n_batch * n_pos, d_vocab)
        for piece, rows in self._pieces:  # the outer loop, so that the clean side of a piece is read once
            for variant in range(n_variants):
                log_probs = by_variant[variant, rows].log_softmax(-1, dtype=torch.float32)
                by_row["loss"][variant, piece] = -log_probs.gather(-1, self._targets[piece, None])[:, 0]
                at_top1 = log_probs.gather(-1, self._top1[piece, None])[:, 0]
                by_row["top1_agreement"][variant, piece] = (at_top1 == log_probs.amax(-1)).float()
                # where neither gives a token any probability, 0 * -inf would be NaN
                both = _finite(log_probs) if self._hides_tokens else log_probs
                cross = torch.linalg.vecdot(self._probabilities[piece], both)
                by_row["kl"][variant, piece] = self._negative_entropy[piece] - cross
        means = {name: self._mean(rows) for name, rows in by_row.items()}
        means["kl"] = means["kl"].clamp(min=0)  # equal predictions differ by rounding, in either direction
        return {**means, "logit_diff": self._logit_diff(logits.view(n_variants, *self._shape))}

    def _mean(self, by_row: Float[Tensor, "variant row"]) -> Float[Tensor, "variant batch"]:
        """Mean over each sequence's counted rows; a sequence without one has no mean."""
        full = by_row.new_zeros(len(by_row), self._counted.numel(), dtype=torch.float64)
        full[:, self._rows] = by_row.double()
        return (full.view(len(by_row), *self._counted.shape).sum(-1) / self._n_tokens).float()

    def _logit_diff(self, logits: Float[Tensor, "variant batch pos d_vocab"]) -> Float[Tensor, "variant batch"]:
        if self._answers is None:
            return logits.new_full(logits.shape[:2], math.nan, dtype=torch.float32)
        return self._answers.logit_diff(logits)


_BY_ROW = ("loss", "kl", "top1_agreement")


@torch.no_grad()
def token_losses(logits: Float[Tensor, "batch pos d_vocab"], batch: TokenBatch) -> Float[Tensor, "batch pos"]:
    """How badly each token is predicted: at row t ``-log p(x_{t+1})``, in nats.

    NaN at rows that :func:`predicted_rows` leaves out.

    The row is that of the *predicting* token, so ``losses[ids == trigger]`` are the losses after the triggers.

    Raises:
        InputError: Logits of other tokens.
    """
    if logits.ndim != 3 or logits.shape[:2] != batch.ids.shape:
        raise InputError(
            f"Expected logits [batch pos d_vocab] of tokens {tuple(batch.ids.shape)}, got {tuple(logits.shape)}."
        )
    rows = predicted_rows(batch).flatten().nonzero().flatten().to(logits.device)
    targets = batch.ids.to(logits.device).flatten()
    losses = logits.new_full((batch.ids.numel(),), math.nan, dtype=torch.float32)
    flat = logits.flatten(0, 1)
    for piece, chosen in _pieces(rows, logits.shape[-1]):
        log_probs = flat[chosen].log_softmax(-1, dtype=torch.float32)
        losses[chosen] = -log_probs.gather(-1, targets[rows[piece] + 1, None])[:, 0]
    return losses.view(batch.ids.shape)


def _pieces(rows: Int[Tensor, " chosen"], d_vocab: int) -> list[tuple[slice, slice | Tensor]]:
    """Chosen rows of logits in pieces: where each lies among the chosen rows, and how to index the logits with it."""
    step = max(1, _CHUNK.get(rows.device.type, _CHUNK_ELSEWHERE) // max(1, d_vocab))
    numbers = rows.tolist()
    pieces: list[tuple[slice, slice | Tensor]] = []
    for start in range(0, len(numbers), step):
        stop = min(start + step, len(numbers))
        first, last = numbers[start], numbers[stop - 1]
        unbroken = last - first == stop - 1 - start
        # rows without a gap are read where they lie, others are copied together
        pieces.append((slice(start, stop), slice(first, last + 1) if unbroken else rows[start:stop]))
    return pieces


class _OnDevice:
    """Answers beside the logits they are read from."""

    def __init__(self, answers: Answers, device: torch.device) -> None:
        self.asked = (answers.position != NO_ANSWER).to(device)
        # where nothing is asked, any valid index does
        self.position = answers.position.clamp(min=0).to(device)
        self.correct = torch.where(self.asked, answers.correct.to(device), 0)
        self.wrong = torch.where(self.asked, answers.wrong.to(device), 0)
        self.sequence = torch.arange(len(answers), device=device)

    def logit_diff(self, logits: Float[Tensor, "variant batch pos d_vocab"]) -> Float[Tensor, "variant batch"]:
        correct = logits[:, self.sequence, self.position, self.correct].float()
        wrong = logits[:, self.sequence, self.position, self.wrong].float()
        return torch.where(self.asked, correct - wrong, math.nan)


def _finite(log_probs: Tensor) -> Tensor:
    return log_probs.clamp(min=torch.finfo(torch.float32).min)
