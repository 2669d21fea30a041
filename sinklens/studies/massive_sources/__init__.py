"""Where massive activations come from: the layer and the weight that write them, and the model without that weight."""
