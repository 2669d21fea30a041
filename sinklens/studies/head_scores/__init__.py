"""Scores of every head: what it attends to, copies, writes and carries."""
