"""How well a split held up: conditions and sequences, saved and loaded."""

from dataclasses import dataclass

import pandas as pd

from sinklens.results.result import Result

FORMAT = "sinklens-split-check"


@dataclass(frozen=True)
class SplitCheck(Result, format=FORMAT, title="Check of a split", newest=1, needs=("conditions", "by_sequence")):
    """How well passkeys are answered under a split, next to full attention and to its controls.

    :meth:`to_dataframe` gives one row per condition: ``full``, ``split``, ``split, compensated``, ``random 0``..,
    ``streaming``.

    Columns: condition, n_retrieval_kv, n_sequences; exact_match, accuracy, answer_loss; ``delta_...`` from full
    attention on the same texts with 95 % bootstrap intervals ``_low`` and ``_high``; ``kv_kept``, the share of cache
    entries kept at the end of the text.

    Attributes:
        meta: Model, texts with BOS provenance, the split, KV budget, definitions, settings.
        tables: ``conditions`` and ``by_sequence``.
    """

    def by_sequence(self) -> pd.DataFrame:
        """The three measures of every condition and sequence."""
        return self.tables["by_sequence"].copy()
