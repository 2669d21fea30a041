"""How sinks, drains, peaks and loss come about over a series of checkpoints."""

from dataclasses import dataclass

import pandas as pd

from sinklens.results.result import Result
from sinklens.studies.dynamics.sentences import dynamics_sentences

FORMAT, WORK = "sinklens-dynamics", "measurement"
PARTS = ("steps", "heads", "layers")
TABLES = (*PARTS, "checkpoints")


@dataclass(frozen=True)
class Dynamics(
    Result,
    format=FORMAT,
    title="Dynamics of checkpoints",
    newest=1,
    needs=TABLES,
    header=("spec", "settings", "series"),
):
    """What a series of checkpoints shows on the same tokens, by training step.

    :meth:`to_dataframe` gives one row per measured step and domain (``"all"``: all domains together).

    Columns: step, name; ``sink_rate_first`` (mean over heads of the share of sequences whose importance of position
    0 exceeds eps), ``sink_head_share`` and ``n_sink_heads`` of ``n_heads`` (rate at least 0.5 and importance at
    least twice the null), ``importance_first`` with ``null_first``, ``importance_first_max`` (strongest head);
    ``delta_logit``, ``drain`` (``|v|``) and ``drain_wo`` (``|W_O v|``), means over heads; ``resid_ratio`` (norm of
    position 0 over the others') and ``max_over_median``, the highest of any block, with the block in ``..._layer``;
    ``loss`` in nats with its 95 % interval over sequences (``loss_low``, ``loss_high``) and ``loss_uniform``, that
    of guessing; ``n_sequences``. NaN where not applicable.

    Attributes:
        meta: Series, model, tokens with BOS provenance, definitions, settings, warnings.
        tables: By name, see the methods.
    """

    def heads(self) -> pd.DataFrame:
        """One row per step, domain and head: importance and sink rate of position 0, logit margin, value norms."""
        return self.tables["heads"].copy()

    def layers(self) -> pd.DataFrame:
        """One row per step, domain and layer (-1 = before the first block): sink rate, residual norms, max / median."""
        return self.tables["layers"].copy()

    def checkpoints(self) -> pd.DataFrame:
        """One row per checkpoint: step, name, tokens trained on (where known), ``measured``, else the ``reason``."""
        return self.tables["checkpoints"].copy()

    @property
    def domains(self) -> list[str]:
        """Domains of the tables; ``"all"`` first where there are several."""
        return list(dict.fromkeys(self.tables["steps"]["domain"]))

    @property
    def verdict(self) -> list[str]:
        """What grew when, in sentences; and which checkpoints are missing."""
        return dynamics_sentences(self.tables["steps"], self.tables["checkpoints"], self.meta["settings"]["eps"])
