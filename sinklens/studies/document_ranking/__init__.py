"""Attention as a retriever: which document answers a question, by where the question looks."""
