"""Memory heads and context heads: which argue for what the model knows, and which for what the prompt says."""
