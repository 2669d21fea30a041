"""A small Llama trained on text of several domains, with a BOS at position 0 of every sequence."""
