"""Checkpoints of one model in training: how sink, drain, peak and loss come about; what ``sinklens dynamics`` runs."""
