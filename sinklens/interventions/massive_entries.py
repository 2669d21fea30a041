"""Where a model's massive activations appear, as a rule that sets them, and the control beside it."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.capture import capture
from sinklens.detectors.massive_activations import ABSOLUTE
from sinklens.detectors.massive_channels import PRESENCE
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.entries import Entry, MassiveRule, Where, check_where, layers_of, parse_where
from sinklens.interventions.massive_finder import EntryFinder
from sinklens.interventions.residual import Stream, residual_streams
from sinklens.interventions.set_activations import Mean, SetActivations, chosen_entries
from sinklens.models.tokens import Ids, TokenBatch, as_batch

AROUND = 300.0
COLUMNS = ("sequence", "position", "bucket", "token", "dim", "value", "median", "ratio")
EPISODE_COLUMNS = ("dim", "episode", "appears", "leaves_after", "n_sequences", "peak")


@dataclass(frozen=True)
class MassiveEntries:
    """Where the few huge entries of the residual stream sit in a text: at which tokens, in which channels and layers.

    Attributes:
        layer: The layer after which most sequences have their first ones (the lowest in a tie).
        layers: For each layer, how many sequences have their first ones there.
        dims: Their channels at ``layer``, the most frequent first.
        above: A bound on the magnitude that all of them pass: the criteria as they stood in the sequence where they
            asked least.
        n_sequences: Sequences that were looked at; those without any are in none of ``layers``.
        table: One row per entry at ``layer``: ``sequence, position, bucket`` ("start" is position 0, "others" the
            rest), ``token, dim, value, median`` (of ``|h|`` over the whole sequence), ``ratio``.
        episodes: Maximal runs of layers after which at least half of the sequences have such an entry in a channel, at
            whatever token: ``dim, episode, appears, leaves_after, n_sequences`` (the most after one of the layers),
            ``peak``; the largest first. A channel may live twice.
        rules: One rule for every channel of every layer of every episode, in the order of layers; it means these
            entries in any text.
    """

    layer: int
    layers: dict[int, int]
    dims: tuple[int, ...]
    above: float
    n_sequences: int
    table: pd.DataFrame
    episodes: pd.DataFrame
    rules: tuple[MassiveRule, ...]

    def rule(self) -> MassiveRule:
        """The rule of the layer where they appear first: what ``SetActivations(where=...)`` takes."""
        return MassiveRule(self.layer, self.dims, self.above)

    def intervention(self, to: Any = "zero", means: Mapping[str, Mean] | None = None) -> Intervention:
        """All entries of all episodes set, after every layer they live at: layers may write them anew.

        Args:
            to: ``"zero"``, ``"mean"`` or a number.
            means: For ``"mean"``: from ``mean_activations(model, batch, found.rules)``.

        Raises:
            InputError: No channel is massive in half of the sequences; or as for ``SetActivations``.
        """
        if not self.rules:
            raise InputError("No channel is massive in at least half of the sequences; use rule(), or other texts.")
        parts: list[Intervention] = [SetActivations(rule, to, means) for rule in self.rules]
        return sum(parts[1:], parts[0])

    def to_dataframe(self) -> pd.DataFrame:
        """The entries where they appear first."""
        return self.table


@checked
@torch.no_grad()
def massive_entries(
    model: TransformerBridge, batch: TokenBatch | Ids, *, absolute: float = ABSOLUTE, ratio: float = AROUND
) -> MassiveEntries:
    """Find the massive activations of single tokens: where they appear first, and every episode of their channels.

    An entry is massive with ``|h| > absolute`` and ``|h| > ratio * median |h|``, both strict. The first criterion
    depends on the model's scale, and small models never reach 100: ``absolute=0`` (or ``ratio=0``) leaves one out.
    Sun et al. ask for "at least or around" 1,000 medians; the first of the two lives of SmolLM2's entry has 360 to 820.
    Channels that are large at every token (Gemma's 400 in most layers) are left out, see
    :class:`~sinklens.interventions.massive_finder.EntryFinder`.

    Setting them where they appear first is enough where one layer writes them (SmolLM2's layer 11). Where every layer
    adds to them (Gemma-3-270M: zero after layer 3 costs 0.03 nats, after layers 3 to 13 1.5) they must be set after
    each layer of their life: :meth:`MassiveEntries.intervention` does.

    Args:
        model: The bridge.
        batch: Reference tokens from :func:`sinklens.tokenize`; state whether they begin with a BOS, some models have
            massive activations only then.
        absolute: Bound on ``|h|``.
        ratio: Bound on ``|h|`` in medians of the sequence.

    Raises:
        InputError: Both criteria are left out, or no entry of any sequence meets them; the sentence names the largest.

    Cost: a forward pass of the batch.

    Source: Owen et al. (2025), arXiv 2503.22329 (criteria strict, layer by majority); episodes added here.
    """
    batch = as_batch(model, batch)
    if absolute <= 0 and ratio <= 0:
        raise InputError("absolute and ratio cannot both be left out; give at least one bound above 0.")
    finder = EntryFinder(absolute, ratio)
    capture(model, batch, [finder], top_k=1)
    entries = finder.entries()
    layers = dict(sorted(Counter(entries.groupby("sequence")["layer"].min().tolist()).items()))
    if not layers:
        medians, value, block = finder.largest
        raise InputError(
            f"No massive activation: no entry of a single token has |h| > {absolute:g} and |h| > {ratio:g} x median. "
            f"The largest is {value:.4g} after layer {block}, {medians:.4g} x median; lower a bound, or report that "
            "there is none."
        )
    layer = max(layers, key=lambda at: layers[at])
    table = entries[entries["layer"] == layer].reset_index(drop=True)
    table["bucket"] = table["position"].map(lambda position: "others" if position else "start")
    table["ratio"] = table["value"].abs() / table["median"]
    dims = tuple(dim for dim, _ in Counter(table["dim"].tolist()).most_common())
    episodes = _episodes(entries, len(batch))
    rules = _rules(entries, episodes, finder)
    return MassiveEntries(layer, layers, dims, finder.bounds[layer], len(batch), table[[*COLUMNS]], episodes, rules)


def _episodes(entries: pd.DataFrame, n_sequences: int) -> pd.DataFrame:
    """Runs of layers after which a channel has an entry in at least half of the sequences."""
    counts = entries.groupby(["dim", "layer"]).agg(
        n_sequences=("sequence", "nunique"), peak=("value", lambda values: values.abs().max())
    )
    here = counts[counts["n_sequences"] >= PRESENCE * n_sequences].reset_index()
    rows = []
    for dim, kind in here.groupby("dim"):
        run = (kind["layer"].diff() != 1).cumsum()
        for number, (_, part) in enumerate(kind.groupby(run)):
            first, last = int(part["layer"].min()), int(part["layer"].max())
            rows.append((dim, number, first, last, int(part["n_sequences"].max()), float(part["peak"].max())))
    found = pd.DataFrame(rows, columns=[*EPISODE_COLUMNS])
    return found.sort_values(["peak", "dim", "episode"], ascending=[False, True, True], ignore_index=True)


def _rules(entries: pd.DataFrame, episodes: pd.DataFrame, finder: EntryFinder) -> tuple[MassiveRule, ...]:
    """A rule for every channel of every layer, with a bound that tells its entries from all others of that channel.

    It lies in the (geometric) middle between the smallest entry and the largest other one, so that it does the same in
    texts that were not looked at; just below the smallest entry where the two overlap.
    """
    least = entries.assign(size=entries["value"].abs()).groupby(["layer", "dim"])["size"].min()
    rules: list[MassiveRule] = []
    spans = zip(episodes["appears"].tolist(), episodes["leaves_after"].tolist(), strict=True)
    for layer in sorted({at for first, last in spans for at in range(first, last + 1)}):
        alive = episodes[(episodes["appears"] <= layer) & (episodes["leaves_after"] >= layer)]
        for dim in alive["dim"].tolist():
            smallest, rest = float(least[layer, dim]), float(finder.rest[layer][dim])
            bound = math.sqrt(rest * smallest) if rest < smallest else math.nextafter(smallest, 0.0)
            rules.append(MassiveRule(layer, (dim,), bound))
    return tuple(rules)


@checked
@torch.no_grad()
def control_entries(model: TransformerBridge, batch: TokenBatch | Ids, where: Any, *, draw: int = 0) -> Where:
    """The control of massive entries: as many ordinary ones, of median size, in the same layer at the same tokens.

    The channels whose mean magnitude over the tokens concerned is closest to the median of ``|h|`` (over all tokens
    and channels of a sequence, then the mean over sequences) take the place of those in ``where``. For a rule each of
    its channels gets one stand-in, which is set wherever the channel itself is large, so the number of entries is the
    same in every text.

    Args:
        model: The bridge.
        batch: Reference tokens from :func:`sinklens.tokenize`, on which sizes are measured.
        where: What is to be controlled: named entries, or a rule without ``instead``.
        draw: 0 takes the channels closest to the median, 1 the next ones, and so on: draws share no entry.

    Returns:
        Named entries for named entries, a rule for a rule.

    Raises:
        InputError: A rule that is large nowhere in the reference, a position that no sequence reaches, or more draws
            than there are channels.

    Cost: one forward pass of the batch.

    Source: Sun et al. (2024), arXiv 2402.17762, section 3: zeroing as many entries of median magnitude.
    """
    batch = as_batch(model, batch)
    where = parse_where(where)
    check_where(model, where)
    if isinstance(where, MassiveRule):
        return control_rules(model, batch, [where], draw=draw)[0]
    _check_draw(draw)
    sizes, medians = _sizes(model, batch, [where])
    found: list[Entry] = []
    for layer, position in dict.fromkeys((layer, position) for layer, position, _ in where):
        taken = [dim for at, _, dim in where if at == layer]
        count = sum((at, place) == (layer, position) for at, place, _ in where)
        channels = _closest(sizes, medians, (0, layer, position), layer, taken, count, draw)
        found += [(layer, position, dim) for dim in channels]
    return tuple(found)


@torch.no_grad()
def control_rules(
    model: TransformerBridge, batch: TokenBatch | Ids, rules: Sequence[MassiveRule], *, draw: int = 0
) -> tuple[MassiveRule, ...]:
    """The control of several rules together, such as ``massive_entries(...).rules``: one rule for each.

    As :func:`control_entries`, and after one layer no channel stands in twice, so that as many entries are set.

    Raises:
        InputError: As :func:`control_entries`.

    Cost: one forward pass of the batch, however many rules there are.
    """
    batch = as_batch(model, batch)
    for rule in rules:
        check_where(model, rule)
        if rule.instead is not None:
            raise InputError("where is a control already; give the rule it was made from, and another draw.")
    _check_draw(draw)
    taken: dict[int, list[int]] = defaultdict(list)
    for rule in rules:
        taken[rule.layer] += rule.dims
    for own in taken.values():
        free = int(model.cfg.d_model) - len(own)
        if (draw + 1) * len(own) > free:
            raise InputError(f"Draw {draw} needs {len(own)} more channels than the {free} that there are.")
    sizes, medians = _sizes(model, batch, rules)
    found: list[MassiveRule] = []
    for _ in range(draw + 1):  # earlier draws are made again, or a rule could take what another one had in them
        found.clear()
        for n, rule in enumerate(rules):
            own = taken[rule.layer]
            instead = _closest(sizes, medians, (n, rule.layer), rule.layer, own, len(rule.dims), 0)
            own += instead
            found.append(MassiveRule(rule.layer, rule.dims, rule.above, instead))
    return tuple(found)


def _check_draw(draw: int) -> None:
    if draw < 0:
        raise InputError(f"draw must be at least 0, got {draw}.")


def _sizes(model: TransformerBridge, batch: TokenBatch, wheres: Sequence[Where]) -> tuple["_Means", "_Means"]:
    """Mean magnitude of every channel at the tokens concerned, by number in ``wheres`` and place; medians by layer."""
    sizes, medians = _Means(), _Means()
    for stream in residual_streams(model, batch, sorted({layer for where in wheres for layer in layers_of(where)})):
        for hidden, real in zip(stream.hidden, stream.real, strict=True):
            medians.add(stream.layer, hidden[real].double().abs().median()[None])
        for n, where in enumerate(wheres):
            if stream.layer in layers_of(where):
                for key, chosen in _groups(where, stream).items():
                    sizes.add((n, *key), stream.hidden[chosen].double().abs())
    return sizes, medians


class _Means:
    """Means over tokens, by key."""

    def __init__(self) -> None:
        self.totals: dict[Any, Tensor | float] = defaultdict(float)
        self.counts: dict[Any, int] = defaultdict(int)

    def add(self, key: Any, values: Tensor) -> None:
        self.totals[key] += values.sum(0)
        self.counts[key] += len(values)

    def of(self, key: Any) -> Tensor:
        return torch.as_tensor(self.totals[key]) / self.counts[key]


def _groups(where: Where, stream: Stream) -> dict[Any, Tensor]:
    """Which tokens ``where`` touches in a layer: all together for a rule, position by position for named entries."""
    entries = chosen_entries(where, stream.layer, stream.hidden, stream.positions)
    if isinstance(where, MassiveRule):
        return {(where.layer,): torch.stack([chosen for _, _, chosen in entries]).any(0)}
    return {(stream.layer, where[n][1]): chosen for n, _, chosen in entries}


def _closest(
    sizes: _Means, medians: _Means, key: Any, layer: int, taken: Sequence[int], count: int, draw: int
) -> tuple[int, ...]:
    """``count`` channels closest to the median in size, none of them ``taken``."""
    if sizes.counts[key] == 0:
        raise InputError("The entries of where do not occur in the reference text; give one in which they do.")
    distance = (sizes.of(key) - medians.of(layer)).abs()
    order = [dim for dim in distance.argsort(stable=True).tolist() if dim not in set(taken)]
    chosen = order[draw * count : (draw + 1) * count]
    if len(chosen) < count:
        raise InputError(f"Draw {draw} needs {count} more channels than the {len(order)} that there are.")
    return tuple(chosen)
