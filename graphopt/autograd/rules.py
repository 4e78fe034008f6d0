"""The filled op table: importing this module enters the rules of every family."""

from graphopt.autograd.ops import (
    attention,
    contrib_attention,
    control,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resampling,
    sequences,
    shaping,
    signal,
)
from graphopt.autograd.table import find_op, op, supported_ops

__all__ = [
    "attention",
    "contrib_attention",
    "control",
    "convolution",
    "elementwise",
    "find_op",
    "indexing",
    "linear",
    "normalization",
    "op",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "resampling",
    "sequences",
    "shaping",
    "signal",
    "supported_ops",
]
