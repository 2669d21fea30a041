"""Choosing an intervention on one half of labelled prompts and reporting it on the other (ACT, ZeroTuning)."""
