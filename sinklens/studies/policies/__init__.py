"""What each KV-cache and sparse-attention rule would have kept, and what it costs."""
