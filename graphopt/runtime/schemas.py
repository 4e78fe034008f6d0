"""Which element types operators take and give: the standard's from onnx, the contributed ones' from ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx


@dataclass(frozen=True, slots=True)
class Parameter:
    """One formal input or output."""

    variable: str  #: "T": the type is that of all others with this name; "tensor(float)": it is fixed
    types: frozenset[str]  #: allowed, e.g. {"tensor(float)", "tensor(float16)"}


@dataclass(frozen=True, slots=True)
class OperatorSchema:
    """Formal inputs and outputs; the last one of a list may stand for any number (``variadic``)."""

    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]
    variadic_inputs: bool = False
    variadic_outputs: bool = False

    def input(self, index: int) -> Parameter | None:
        """What the standard says about one input."""
        return _at(self.inputs, index, self.variadic_inputs)

    def output(self, index: int) -> Parameter | None:
        """What the standard says about one output."""
        return _at(self.outputs, index, self.variadic_outputs)


def _at(parameters: tuple[Parameter, ...], index: int, variadic: bool) -> Parameter | None:
    if index < len(parameters):
        return parameters[index]
    return parameters[-1] if variadic and parameters else None


def operator_schema(domain: str, op_type: str, version: int) -> OperatorSchema | None:
    """The schema in force at ``version`` of the operator's domain; None for operators that neither knows."""
    if onnx.defs.has(op_type, version, domain):
        return _standard(domain, op_type, version)
    return _contributed().get((domain, op_type))


@functools.lru_cache(maxsize=4096)
def _standard(domain: str, op_type: str, version: int) -> OperatorSchema:
    schema = onnx.defs.get_schema(op_type, version, domain)
    return OperatorSchema(
        _parameters((p.type_str, p.types) for p in schema.inputs),
        _parameters((p.type_str, p.types) for p in schema.outputs),
        _is_variadic(schema.inputs),
        _is_variadic(schema.outputs),
    )


@functools.cache
def _contributed() -> Mapping[tuple[str, str], OperatorSchema]:
    """The operators that ONNX Runtime brings along, those it keeps in the standard's domain among them."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[tuple[str, str], tuple[int, OperatorSchema]] = {}
    for schema in state.get_all_operator_schema():
        known = found.get((schema.domain, schema.name))
        if known is not None and known[0] >= schema.since_version:
            continue
        found[schema.domain, schema.name] = (
            schema.since_version,
            OperatorSchema(
                _parameters((p.typeStr, p.types) for p in schema.inputs),
                _parameters((p.typeStr, p.types) for p in schema.outputs),
                _is_variadic(schema.inputs),
                _is_variadic(schema.outputs),
            ),
        )
    return {key: schema for key, (_, schema) in found.items()}


def _parameters(given: Iterable[tuple[str, Iterable[str]]]) -> tuple[Parameter, ...]:
    return tuple(Parameter(variable, frozenset(types)) for variable, types in given)


def _is_variadic(parameters: Any) -> bool:
    listed = list(parameters)
    return bool(listed) and listed[-1].option.name == "Variadic"
