"""Quantization: which places of a graph can take it, the codes of their weights, the nodes that replace them."""
