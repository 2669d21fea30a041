"""Statistics on a GPU: fused attention gives output and log-sum-exp, one extra pass over the scores all the rest."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.attention.delta_logit import DeltaLogit
from sinklens.attention.fused_lse import fused_lse
from sinklens.attention.kernel import AttentionCall, is_plain
from sinklens.attention.launch import Sums, launch
from sinklens.attention.maps import PooledMap
from sinklens.attention.score_form import ScoreForm, form_of
from sinklens.attention.statistics import (
    Distance,
    Entropy,
    KeySetMass,
    MissingMass,
    ReceivedMass,
    Statistic,
    TopKey,
)

MOST_SETS = 8
"""Key sets that one pass takes."""

_GIVEN = (ReceivedMass, Entropy, Distance, TopKey, MissingMass, DeltaLogit, KeySetMass, PooledMap)
_OF_ROWS = (Entropy, Distance, TopKey, KeySetMass)


def usable(device: torch.device) -> str:
    """Why the kernels cannot run on this device; empty when they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    if device.type != "cuda":
        return f"Triton has no kernels for {device.type}"
    if torch.version.cuda is None:
        return "this torch is not built for CUDA"
    major = torch.cuda.get_device_capability(device)[0]
    return "" if major >= 8 else f"the GPU is of compute capability {major}, the kernels need 8"


def form_for(call: AttentionCall, statistics: Sequence[Statistic], edits: Sequence[Any]) -> ScoreForm | str:
    """The closed form of a call that the pass takes, or why it does not take it."""
    for statistic in statistics:
        if type(statistic) not in _GIVEN:
            return f"{type(statistic).__name__} is measured block by block"
    if sum(len(s.names) for s in statistics if isinstance(s, KeySetMass)) > MOST_SETS:
        return f"more than {MOST_SETS} key sets"
    if sum(isinstance(s, PooledMap) for s in statistics) > 1 or sum(isinstance(s, KeySetMass) for s in statistics) > 1:
        return "a statistic is asked for twice"
    if call.query.shape[-1] > 256:
        return "heads wider than 256"
    return form_of(call, edits)


def attend_with_pass(
    call: AttentionCall, form: ScoreForm, statistics: Sequence[Statistic]
) -> Float[Tensor, "batch head q_pos d_value"]:
    """Attention output of one layer, and its statistics from one more pass over the scores.

    Args:
        call: Query, key, value and what shapes the scores.
        form: From :func:`form_for`.
        statistics: Objects made for ``call.shape``, of the kinds that :func:`form_for` takes.

    Cost: a fused forward and half of its attention again; memory O(batch head (q_pos + k_pos)).
    """
    shape = form.shape
    out, lse = fused_lse(call, form)
    total = lse
    if call.sink_logits is not None:
        sink = call.sink_logits.float()[:, None]
        out = (out.float() * torch.sigmoid(lse - sink)[..., None]).to(out.dtype)
        total = torch.logaddexp(lse, sink)
    real = torch.ones(shape.batch, shape.q_pos, device=shape.device) if call.real is None else call.real.float()
    weight = real * (form.n_visible > 0)
    left = list(statistics)
    if is_plain(call) and form.change.shift is None and form.change.limits is None:
        left = [s for s in left if not s.take_plain(call.query, call.key, call.scaling, real)]
    if left:
        found = _passed(call, form, lse, total, weight, left)
        for statistic in left:
            statistic._row_weight.copy_(weight)
            _GIVE[type(statistic)](statistic, found)
    return out


def _passed(
    call: AttentionCall, form: ScoreForm, lse: Tensor, total: Tensor, weight: Tensor, statistics: Sequence[Statistic]
) -> Sums:
    """Launch the kernels."""
    members = next((s._members for s in statistics if isinstance(s, KeySetMass)), None)
    maps = next((s for s in statistics if isinstance(s, PooledMap)), None)
    margin = any(isinstance(s, DeltaLogit) for s in statistics) and not form.change.hides
    others = (form.n_visible - 1).clamp(min=1)
    column = weight * (form.n_visible > 1) * form.n_visible / others
    return launch(
        call,
        form,
        lse=lse.contiguous(),
        total=total.contiguous(),
        weight=weight.contiguous(),
        column=column.contiguous(),
        members=None if members is None else members[..., : form.shape.k_pos].contiguous(),
        sequences=() if maps is None else tuple(maps.sequences),
        of_rows=any(isinstance(s, _OF_ROWS) for s in statistics),
        of_keys=any(isinstance(s, ReceivedMass) for s in statistics) or margin,
        margin=margin,
        repeatable=torch.are_deterministic_algorithms_enabled(),
    )


# ------------------------------------------------------------------ what each statistic takes from the pass
def _received(statistic: Any, found: Sums) -> None:
    form, width = found.form, found.form.shape.k_pos
    uniform = found.weight / form.n_visible.clamp(min=1)
    real = 1.0 if form.keys is None else form.keys
    statistic.mass[..., :width] = found.mass
    statistic.queries[..., :width] = form.spread(found.weight) * real
    statistic.null_mass[..., :width] = form.spread(uniform) * real


def _entropy(statistic: Any, found: Sums) -> None:
    statistic.entropy.copy_(_of_rows(found.rows["entropy"], found))
    statistic.null.copy_(found.form.n_visible.clamp(min=1).log())


def _distance(statistic: Any, found: Sums) -> None:
    statistic.distance.copy_(_of_rows(found.rows["distance"], found))


def _of_rows(value: Tensor, found: Sums) -> Tensor:
    """NaN where an edit hides every key of a row: there is nothing to average over."""
    return value.masked_fill(found.lse == -torch.inf, torch.nan)


def _top(statistic: Any, found: Sums) -> None:
    statistic.weight.copy_(found.rows["top_weight"])
    statistic.index.copy_(found.top_key.clamp(min=0))


def _missing(statistic: Any, found: Sums) -> None:
    statistic.missing.copy_(1 - found.kept)


def _sets(statistic: Any, found: Sums) -> None:
    statistic.sets_mass.copy_(found.sets)


def _delta(statistic: Any, found: Sums) -> None:
    form, width = found.form, found.form.shape.k_pos
    if form.change.hides:
        statistic.total.fill_(torch.nan)
        return
    others = (form.n_visible - 1).clamp(min=1)
    weight = found.weight * (form.n_visible > 1)
    spread = form.spread(found.rows["row_sum"] * (weight / others)[:, None])
    real = 1.0 if form.keys is None else form.keys
    statistic.total[..., :width] = found.columns - spread * (real if form.keys is None else form.keys[:, None])
    statistic.count[..., :width] = form.spread(weight) * real


def _maps(statistic: Any, found: Sums) -> None:
    statistic.seen.copy_((found.pooled >= 0).any(1))
    statistic.maps.copy_(found.pooled.clamp(min=0))


_GIVE: dict[type, Callable[[Any, Sums], None]] = {
    ReceivedMass: _received,
    Entropy: _entropy,
    Distance: _distance,
    TopKey: _top,
    MissingMass: _missing,
    KeySetMass: _sets,
    DeltaLogit: _delta,
    PooledMap: _maps,
}
