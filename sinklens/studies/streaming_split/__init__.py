"""Which KV heads need their whole cache: DuoAttention's gates, the split they give, and whether it holds up."""
