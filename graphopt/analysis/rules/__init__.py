"""The rule table: one rule for each op family says how the axes of its inputs and outputs relate.

``RULES`` maps ``(domain, op_type)`` to a rule. An op without a rule freezes every axis it touches and is reported.
"""

from graphopt.analysis.rules import (
    attention,
    control,
    convolution,
    elementwise,
    experts,
    indexing,
    linear,
    normalization,
    pooling,
    qlinear,
    quantization,
    recurrent,
    resampling,
    shaping,
)
from graphopt.analysis.rules.context import RULES, NodeAxes, Rule, rule

__all__ = [
    "RULES",
    "NodeAxes",
    "Rule",
    "attention",
    "control",
    "convolution",
    "elementwise",
    "experts",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "qlinear",
    "quantization",
    "recurrent",
    "resampling",
    "rule",
    "shaping",
]
