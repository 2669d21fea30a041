"""Figures of the gallery that show what else heads do: documents ranked, paths, conflicts, experts."""

from gallery_figures import Entry, whole

STUDIES = [
    Entry("document_ranks", "Attention as a retriever", "Where the question is a copy of one of five documents, "
          "word overlap must find it, and chance not.", whole("document_ranks", run="ranking", table="ranks"),
          of=("toys",)),
    Entry("path_effects", "Paths between heads", "What a head hands on of what tells two prompts apart; 1 is all.",
          whole("path_effects", run="paths", table="paths"), of=("toys",)),
    Entry("conflict_sides", "Memory heads and context heads", "Below the diagonal a head argues for what the prompt "
          "says, above it for what the model knows.", whole("conflict_sides", run="conflict", table="heads"),
          of=("real",)),
    Entry("super_experts", "Super experts of a mixture", "A random mixture of experts in which one was planted.",
          whole("super_experts", run="mixture", table="experts"), of=("toys",)),
]  # fmt: skip
"""In the order of the page."""
