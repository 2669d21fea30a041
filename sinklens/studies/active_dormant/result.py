"""Heads that are at work on one kind of text or token and dormant on another, with the evidence."""

from dataclasses import dataclass

import pandas as pd

from sinklens.results.result import Result
from sinklens.studies.active_dormant.sentences import active_dormant_sentences

FORMAT = "sinklens-active-dormant"
TABLES = ("heads", "contrasts", "agreement", "by_sequence")


@dataclass(frozen=True)
class ActiveDormant(Result, format=FORMAT, title="Active and dormant heads", newest=1, needs=TABLES):
    """Heads that are active on one kind of text or token and dormant on another, with the evidence.

    :meth:`to_dataframe` gives one row per head, domain and token class.

    Columns: layer, head, domain, class, n_sequences, n_queries; ``mass`` with its ``null``; ``norm``,
    ``norm_ratio``, ``own_ratio``; ``clean_loss`` and ``delta`` (its rise without the head, in nats) with
    ``delta_low`` and ``delta_high``, ``delta_layer``, the mean rise of the layer's other heads, as a control, and
    ``effect_bound``, the rise from which an effect matters there (see :class:`Thresholds`);
    the state by each criterion ``by_mass, by_norm, by_own_norm, by_ablation`` (missing where not applicable);
    ``label`` and the ``evidence`` for it in words. See :func:`~sinklens.detectors.active_dormant.head_label`.

    Attributes:
        meta: Model, tokens with BOS provenance, domains, classes, thresholds, definitions.
        tables: By name, see the properties.
    """

    def contrasts(self) -> pd.DataFrame:
        """One row per head and pair of domains (same class) or classes (same domain).

        ``mass_difference`` and ``delta_difference``, first minus second, with 95 % bootstrap intervals (``_low``,
        ``_high``; ``paired`` by sequence for two classes of one domain); ``active_dormant``: labelled active on one and
        dormant on the other, and both intervals exclude no difference.
        """
        return self.tables["contrasts"].copy()

    def agreement(self) -> pd.DataFrame:
        """How often two criteria agree; see :func:`~sinklens.detectors.active_dormant.agreement`."""
        return self.tables["agreement"].copy()

    def by_sequence(self) -> pd.DataFrame:
        """Mass, norm and rise of the loss of every head, domain, class and sequence."""
        return self.tables["by_sequence"].copy()

    @property
    def verdict(self) -> list[str]:
        """Which heads are active here and dormant there, in sentences; an honest negative when none is shown to be."""
        return active_dormant_sentences(self.tables["heads"], self.tables["contrasts"])
