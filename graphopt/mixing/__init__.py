"""Which form each weight of a model takes: float, half precision, int8, four bits, under bounds for the whole of it."""
