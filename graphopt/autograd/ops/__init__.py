"""Torch functions of the operators, one family a file."""
