"""Policies in words whose heads come from a head-role file."""

import re
from pathlib import Path

from sinklens.interventions.heads import head_name
from sinklens.studies.head_roles.role_file import role_heads


def read_role_fields(text: str) -> tuple[str, str]:
    """A label, and the policy in words with the heads that a field such as ``full=head-roles.json:retrieval`` names.

    Args:
        text: As for :func:`~sinklens.policies.make_policy`; a field may name a file that ends in ``.json``, with the
            role after a colon (default: retrieval).

    Returns:
        The text with file names in place of paths, and the text with heads, as in ``head_split:full=L1H0+L2H3``. Both
        are the text itself where it names no file.

    Raises:
        InputError: No such file or role, or no head has it.
        ResultError: A damaged file.

    >>> read_role_fields("head_split:full=L1H0,sinks=2")
    ('head_split:full=L1H0,sinks=2', 'head_split:full=L1H0,sinks=2')
    """
    name, colon, fields = text.partition(":")
    labels, words = [], []
    for field in fields.split(","):
        key, sign, value = field.partition("=")
        found = role_heads(value, "retrieval") if re.search(r"\.json(:|$)", value) else None
        labels.append(field if found is None else f"{key}{sign}{Path(value).name}")
        words.append(field if found is None else f"{key}{sign}{'+'.join(map(head_name, found))}")
    return f"{name}{colon}{','.join(labels)}", f"{name}{colon}{','.join(words)}"
