"""Int8: which places of a graph can be quantized, the codes of their weights, and the nodes that replace them."""
