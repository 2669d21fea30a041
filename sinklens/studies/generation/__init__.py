"""Sinks, drains and massive entries while a model generates."""
