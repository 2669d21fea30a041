"""Heads that work on one kind of text or token and rest on another."""
