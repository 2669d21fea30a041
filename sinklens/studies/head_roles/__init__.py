"""Roles of attention heads by several criteria, in one table, with their agreement and files to exchange them."""

from sinklens.studies.head_roles.agreement import agreement
from sinklens.studies.head_roles.chance import Overlap, TopOverlap, auc, overlap, top_overlap
from sinklens.studies.head_roles.criteria import CRITERIA, USUAL, Criterion, dormant_scores, sink_scores
from sinklens.studies.head_roles.gates_file import Gates
from sinklens.studies.head_roles.read_scores import read_all, read_scores
from sinklens.studies.head_roles.result import Roles
from sinklens.studies.head_roles.retrieval_file import RetrievalRuns
from sinklens.studies.head_roles.role_file import HeadRoles, role_heads
from sinklens.studies.head_roles.rules import RULES, Rule
from sinklens.studies.head_roles.run import roles

__all__ = [
    "CRITERIA",
    "RULES",
    "USUAL",
    "Criterion",
    "Gates",
    "HeadRoles",
    "Overlap",
    "RetrievalRuns",
    "Roles",
    "Rule",
    "TopOverlap",
    "agreement",
    "auc",
    "dormant_scores",
    "overlap",
    "read_all",
    "read_scores",
    "role_heads",
    "roles",
    "sink_scores",
    "top_overlap",
]
