"""Path patching: what one head hands to another, and what a set of heads is needed and enough for."""
