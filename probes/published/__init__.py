"""Published claims about sinks, massive activations and heads, each a small function that measures it on a model."""
