"""Task scores without the harness, which the tests' environment need not have: documents of known scores."""

import pandas as pd

from sinklens.studies.evaluation.result import CLEAN, TaskScores, summarise_documents

CONDITIONS = pd.DataFrame(
    [(CLEAN, "unchanged", None), ("h2o", "change", None), ("h2o, random 1", "control", "h2o")],
    columns=["condition", "kind", "of"],
)
RIGHT = {CLEAN: (1, 1, 1, 0, 1, 1), "h2o": (1, 1, 0, 0, 1, 1), "h2o, random 1": (0, 1, 0, 0, 1, 0)}


def task_scores() -> TaskScores:
    """Six documents, unchanged, under a rule and under its random keys."""
    rows = [(name, "capitals", doc, "acc", float(x)) for name, own in RIGHT.items() for doc, x in enumerate(own)]
    documents = pd.DataFrame(rows, columns=["condition", "task", "doc", "metric", "value"])
    tables = {"scores": summarise_documents(documents, CONDITIONS, 0), "documents": documents}
    return TaskScores({"conditions": {}, "spec": {}, "settings": {}}, tables)
