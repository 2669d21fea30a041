"""Heads whose output depends on a span of the prompt, and the span emphasised through them."""
