"""Verdicts against their own tables: every sentence is taken apart and recomputed by other code.

How it works, and how to add a topic:

- ``evidence.py``: the tables as plain rows, and how printed numbers, heads and layers are read back.
- ``checks/<topic>.py``: a ``TOPIC``: how to write its sentences, what generated tables look like, and for every
  sentence it may write one regular expression and one function that recomputes what the groups say, in plain loops.
- ``topics.py``: the table of all topics. Add yours there.
- ``test_generated.py`` writes a thousand verdicts of generated tables; ``test_mutations.py`` changes each number and
  name of a sentence and wants it refuted; ``test_models.py`` takes the built-in and the real models. A sentence that no
  expression matches in full, or two do, is refuted.
"""
