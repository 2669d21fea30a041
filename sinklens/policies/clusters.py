"""Keys by likeness: the k-means that rules about clusters share."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sinklens.policies.view import View


def cluster_keys(key: Float[Tensor, "group k_pos d"], count: int, rounds: int = 10) -> Int[Tensor, "group k_pos"]:
    """Number of every key's cluster: k-means on keys of length 1, begun from keys at even distances.

    >>> cluster_keys(torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.1], [0.0, 1.0]]]), 2)
    tensor([[0, 1, 0, 1]])
    """
    unit = torch.nn.functional.normalize(key, dim=-1)
    count = min(count, key.shape[1])
    centre = unit[:, torch.linspace(0, key.shape[1] - 1, count, device=key.device).long()]
    label = (unit @ centre.mT).argmax(-1)
    for _ in range(rounds):
        sums = torch.zeros_like(centre).scatter_add_(1, label[..., None].expand_as(unit), unit)
        centre = torch.where(sums.norm(dim=-1, keepdim=True) > 0, torch.nn.functional.normalize(sums, dim=-1), centre)
        label = (unit @ centre.mT).argmax(-1)
    return label


def cluster_prompt(
    view: View, stop: int, per_cluster: int, segment: int | None = None
) -> tuple[Int[Tensor, "head key"], Float[Tensor, "head cluster d_head"], Float[Tensor, "head cluster"]]:
    """Clusters of the text's first ``stop`` keys per KV head: each key's, their mean keys, their sizes; kept in state.

    Args:
        view: Rows that stand behind those keys.
        stop: Keys, from position 0.
        per_cluster: Keys for each cluster; one that loses all its keys has size 0.
        segment: Keys that are clustered together, those after them apart; default: all.
    """
    if "clusters" not in view.state:
        start = int((view.keys < 0).sum())
        key = view.by_group(view.key[:, start : start + stop])[:, 0]
        labels, count = [], 0
        for part in key.split(segment or stop, 1):
            labels.append(cluster_keys(part, -(-part.shape[1] // per_cluster)) + count)
            count += min(-(-part.shape[1] // per_cluster), part.shape[1])
        label = torch.cat(labels, 1)
        member = torch.nn.functional.one_hot(label, count).to(key)
        size = member.sum(1)
        mean = torch.einsum("gkc,gkd->gcd", member, key) / size.clamp(min=1)[..., None]
        view.state["clusters"] = tuple(view.to_heads(x) for x in (label, mean, size))
    label, mean, size = view.state["clusters"]
    return label, mean, size


def spread_clusters(values: Tensor, label: Int[Tensor, "head key"], view: View, other: float) -> Tensor:
    """What clusters have, for every key in sight: ``[head q_pos cluster]`` to ``[head q_pos k_pos]``.

    Args:
        values: By cluster.
        label: Cluster of the first keys of the text.
        view: The rows.
        other: What keys without a cluster have.
    """
    inside = (view.keys >= 0) & (view.keys < label.shape[1])
    of_key = label[:, view.keys.clamp(0, label.shape[1] - 1)]
    found = values.gather(-1, of_key[:, None].expand(-1, values.shape[1], -1))
    return torch.where(inside, found, torch.full_like(found, other))
