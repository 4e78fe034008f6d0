"""What the outputs lose when one site of a model is changed: variants, and one pass over the data for many of them."""
