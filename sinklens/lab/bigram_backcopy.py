"""The Bigram-Backcopy task: the smallest data on which attention sinks appear reliably."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.errors import InputError
from sinklens.lab.bigrams import tinyshakespeare_bigrams

BOS = "<s>"


@dataclass(frozen=True)
class BigramBackcopy:
    """Text-like sequences in which a few trigger characters make the next one a copy.

    The most frequent characters are *triggers*. With bigram shares `P` and unigram shares `pi`:

    - `x_0` is BOS;
    - `x_1` is drawn from `pi` without the triggers, renormalised;
    - after a trigger `x_t`, the character before it comes back: `x_{t+1} = x_{t-1}` (backcopy);
    - after any other `x_t`, `x_{t+1}` is drawn from `P[x_t]` (bigram).

    So two triggers are never adjacent: `x_1` is no trigger, and what a trigger is followed by stood before a
    trigger. A model needs attention only at triggers; elsewhere its head has nothing to do, and the sink is
    where it idles. Characters and shares are those of tiny Shakespeare; ids 0 to 64 are the sorted
    characters, 65 is BOS.

    Attributes:
        n_triggers: how many of the most frequent characters are triggers (3: space, "e", "t").
        bos: whether position 0 holds BOS. Without it `x_0` is drawn as `x_1` is above and there is no BOS id.
        seq_len: positions of a sequence, BOS included, where a method is given none.

    Source: Guo et al., "Active-Dormant Attention Heads" (arXiv 2410.13835), section 3; the released scripts
    use 3 triggers.

    Raises:
        InputError: if `n_triggers` leaves no other character, or `seq_len` is below 2.

    Example:
        >>> task = BigramBackcopy(seq_len=8)
        >>> task.d_vocab, task.bos_id, sorted(task.characters[i] for i in task.trigger_ids)
        (66, 65, [' ', 'e', 't'])
        >>> task.sample(4, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([4, 8])
    """

    n_triggers: int = 3
    bos: bool = True
    seq_len: int = 64

    def __post_init__(self) -> None:
        """Refuse settings that define no task."""
        if not 0 <= self.n_triggers < len(self.characters):
            raise InputError(
                f"The number of triggers must be from 0 to {len(self.characters) - 1}, not {self.n_triggers}."
            )
        if self.seq_len < 2:
            raise InputError(f"A sequence needs at least 2 positions, not {self.seq_len}.")

    @property
    def characters(self) -> tuple[str, ...]:
        """The 65 characters; a character's index is its token id."""
        return tinyshakespeare_bigrams().characters

    @property
    def bos_id(self) -> int | None:
        """The id of BOS, or None for a task without it."""
        return len(self.characters) if self.bos else None

    @property
    def d_vocab(self) -> int:
        """Number of token ids, BOS included."""
        return len(self.characters) + self.bos

    @cached_property
    def trigger_ids(self) -> tuple[int, ...]:
        """The ids of the triggers, most frequent first; the lower id wins a tie."""
        order = torch.argsort(tinyshakespeare_bigrams().occurrences, descending=True, stable=True)
        return tuple(order[: self.n_triggers].tolist())

    @cached_property
    def transition(self) -> Float[Tensor, "char next_char"]:
        """The bigram shares `P`; rows of triggers are there, but the task never draws from them."""
        return tinyshakespeare_bigrams().transition

    @cached_property
    def start(self) -> Float[Tensor, " char"]:
        """The distribution of the first character: unigram shares without the triggers, renormalised."""
        start = tinyshakespeare_bigrams().unigram.clone()
        start[list(self.trigger_ids)] = 0.0
        return start / start.sum()

    @cached_property
    def _cumulative(self) -> tuple[Tensor, Tensor]:
        # Dividing by the last entry makes it exactly 1, which a uniform number in [0, 1) never reaches.
        start, transition = self.start.cumsum(-1), self.transition.cumsum(-1)
        return start / start[-1], transition / transition[:, -1:]

    def sample(
        self,
        batch: int,
        seq_len: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Int[Tensor, "batch pos"]:
        """Draw sequences; vectorised over the batch, one step per position.

        Args:
            batch: number of sequences.
            seq_len: positions, BOS included; the task's own length if None.
            generator: the source of randomness; torch's global one if None.
            device: where to draw; the generator's device (or the CPU) if None. Equal generators on equal
                kinds of device give equal sequences.

        Raises:
            InputError: if `batch` or `seq_len` is below 1.
        """
        length = self.seq_len if seq_len is None else seq_len
        if batch < 1 or length < 1:
            raise InputError(f"At least one sequence of one position is needed, not {batch} of {length}.")
        if device is None:
            device = "cpu" if generator is None else generator.device
        # float64, so that rare characters keep their share; `right=True` never lands on one with share 0.
        uniform = torch.rand(batch, length, generator=generator, device=device, dtype=torch.float64)
        start_cdf, next_cdf = (cumulative.to(device) for cumulative in self._cumulative)
        is_trigger = self.trigger_mask(torch.arange(self.d_vocab, device=device))
        ids = torch.zeros(batch, length, dtype=torch.long, device=device)
        first = 0
        if self.bos_id is not None:
            ids[:, 0] = self.bos_id
            first = 1
        if first < length:
            ids[:, first] = torch.searchsorted(start_cdf, uniform[:, first].contiguous(), right=True)
        for pos in range(first + 1, length):
            current = ids[:, pos - 1]
            number = uniform[:, pos, None].contiguous()
            drawn = torch.searchsorted(next_cdf[current], number, right=True).squeeze(1)
            ids[:, pos] = torch.where(is_trigger[current], ids[:, pos - 2], drawn)
        return ids

    def trigger_mask(self, ids: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Say for each id whether it is a trigger; BOS is not."""
        return torch.isin(ids, torch.tensor(self.trigger_ids, dtype=ids.dtype, device=ids.device))

    def surprisal(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch next_pos"]:
        """Return `-log p(x_{t+1})` under the task's own rules for every `t`, in nats: 0 after a trigger.

        Its mean over bigram positions is the best loss on just these sequences, free of the sampling noise
        that parts it from `oracle_bigram_loss`. Infinite where a sequence breaks a rule. Without BOS, `x_0`
        is not scored.
        """
        current, following = ids[:, :-1].cpu(), ids[:, 1:].cpu()
        before = torch.cat([current[:, :1], current[:, :-1]], 1)
        copied = torch.where(following == before, 0.0, torch.inf).double()
        shares = self.transition
        if self.bos_id is not None:
            shares = torch.nn.functional.pad(shares, (0, 1, 0, 1))
            shares[self.bos_id, : len(self.characters)] = self.start
        drawn = -shares[current, following].log()
        return torch.where(self.trigger_mask(current), copied, drawn).to(ids.device)

    def texts(self, ids: Int[Tensor, "batch pos"]) -> list[str]:
        """Spell sequences out as text, without BOS."""
        spelling: Sequence[str] = (*self.characters, "")
        return ["".join(spelling[i] for i in row) for row in ids.tolist()]

    def oracle_bigram_loss(self, seq_len: int | None = None) -> float:
        """Return the lowest expected loss at bigram positions, in nats per token.

        The mean over the queries that are no triggers (BOS included: its target is drawn from the start
        distribution) among the first `seq_len` positions of the entropy of the next character. It is exact:
        the joint distribution of two neighbouring characters is carried along, nothing is sampled. At
        backcopy positions the optimum is 0.

        Example:
            >>> round(BigramBackcopy().oracle_bigram_loss(64), 2)
            2.25
        """
        length = self.seq_len if seq_len is None else seq_len
        if length < 1:
            raise InputError(f"At least one position is needed, not {length}.")
        entropy = torch.special.entr(self.transition).sum(-1)
        bigram = ~self.trigger_mask(torch.arange(len(self.characters)))
        total, weight = 0.0, 0.0
        n_characters = length
        if self.bos:
            total, weight, n_characters = float(torch.special.entr(self.start).sum()), 1.0, length - 1
        # pair[a, b]: probability that the previous character is a and this one b. The first character has
        # none before it; any stand-in does, since it is no trigger and so nothing copies across it.
        pair = torch.zeros_like(self.transition)
        pair[0] = self.start
        for _ in range(n_characters):
            here = pair.sum(0) * bigram
            total += float(here @ entropy)
            weight += float(here.sum())
            pair = here[:, None] * self.transition + (pair * ~bigram).T
        return total / weight
