"""sinklens: attention sinks, value-state drains and residual peaks of transformers, and how they emerge."""
