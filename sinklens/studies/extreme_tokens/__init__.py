"""Which tokens of a corpus are extreme, in which channels of which layers: for training and quantisation code."""
