"""What the outputs lose when one place of a model is changed: variants, and one pass over the data for many of them."""
