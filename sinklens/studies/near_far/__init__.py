"""Heads that see near keys alone, or far ones alone: what each costs."""
