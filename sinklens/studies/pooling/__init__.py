"""Texts as vectors: which positions of a layer to average."""
