"""Half precision: what rounding does to weights, which nodes can compute in it, and the Casts between them."""
