"""Needles in haystacks: prompts with a known answer somewhere in them, and which heads find it."""
