"""Where massive activations come from: the block and the weight that write them, and the model without that weight."""
