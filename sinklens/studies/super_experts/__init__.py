"""Super experts of mixtures of experts: which they are, and the model without them."""
