"""Two small scans of SmolLM2-135M that are committed, for tests of what people see on a real model without having it.

``python -m tests.small_run`` measures them again.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sinklens.models import tokenize
from sinklens.studies import Census, scan
from sinklens.studies.census.run import DETECTORS

DATA: Final = Path(__file__).parent / "data"
"""A folder of results: what ``sinklens dashboard tests/data`` opens."""
LENGTH: Final = 12
TEXTS: Final = (
    "The old lighthouse keeper counted the ships every evening, and every morning he counted them again.",
    "Rain fell on the roof of the market. The baker closed the door, and the bread went on cooling.",
)
RUNS: Final = {"smollm2": ("auto", DETECTORS), "smollm2-with-bos": ("yes", ["sinks"])}
"""Names, who puts a BOS there, and the detectors; the second is for comparing and holds sinks alone."""


def measured(model: Any, name: str) -> Census:
    """One of the runs; where the model lies on this machine is left out."""
    bos, detectors = RUNS[name]
    tokens = tokenize(model, list(TEXTS), bos=bos, max_tokens=LENGTH)
    census = scan(model, tokens=tokens, maps=2, detectors=detectors, source="two short texts")
    path = Path(str(census.meta["model"]["path"])).name
    return replace(census, meta=census.meta | {"model": census.meta["model"] | {"path": path}})


def main() -> None:
    """Write both."""
    from tests.real_models import real_model

    for name in RUNS:
        measured(real_model("smollm2"), name).save(DATA / name)


if __name__ == "__main__":
    main()
