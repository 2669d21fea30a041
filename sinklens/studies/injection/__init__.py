"""Tokens put into a text: whether they become its sink."""
