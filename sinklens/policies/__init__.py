"""KV-cache and sparse-attention rules, one a file: each says which earlier tokens a head may still read."""

from sinklens.policies.account import Account
from sinklens.policies.base import Both, Either, Policy, Then
from sinklens.policies.composed import HeadMap, LayerMap, Phase, Protect
from sinklens.policies.registry import make_policy, policies
from sinklens.policies.view import View

__all__ = [
    "Account",
    "Both",
    "Either",
    "HeadMap",
    "LayerMap",
    "Phase",
    "Policy",
    "Protect",
    "Then",
    "View",
    "make_policy",
    "policies",
]
