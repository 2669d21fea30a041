"""How well a split held up: conditions and sequences, saved and loaded."""

from dataclasses import dataclass

import pandas as pd

from sinklens.results.result import TableResult

FORMAT = "sinklens-split-check"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class SplitCheck(TableResult, format=FORMAT, newest=FORMAT_VERSION, needs=("conditions", "by_sequence")):
    """How well passkeys are answered under a split, next to full attention and to its controls.

    Attributes:
        meta: Model, texts with BOS provenance, the split, KV budget, definitions, settings.
        tables: ``conditions`` and ``by_sequence``.
    """

    def to_dataframe(self) -> pd.DataFrame:
        """One row per condition: ``full``, ``split``, ``split, compensated``, ``random 0``.., ``streaming``.

        Columns: condition, n_retrieval_kv, n_sequences; exact_match, accuracy, answer_loss; ``delta_...`` from full
        attention on the same texts with 95 % bootstrap intervals ``_low`` and ``_high``; ``kv_kept``, the share of
        cache entries kept at the end of the text.
        """
        return self.tables["conditions"].copy()

    def by_sequence(self) -> pd.DataFrame:
        """The three measures of every condition and sequence."""
        return self.tables["by_sequence"].copy()
