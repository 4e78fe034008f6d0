"""The op table: one torch function for each ONNX operator, found by domain, name and opset version."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
MICROSOFT = "com.microsoft"
#: Keyword parameters of a rule that are no attributes: see ``op``.
_SPECIAL = ("version", "wanted", "simulated", "types")


@dataclass(frozen=True, slots=True)
class Op:
    """How one operator is executed.

    The function's positional parameters are the operator's inputs in order (an absent optional one is None, or left
    out), its keyword-only parameters the attributes, with the standard's defaults.
    """

    domain: str
    name: str
    since: int  #: the first opset version that this rule is right for
    call: Callable[..., Any]
    inputs: tuple[str, ...] = ()  #: positional parameters, without the context
    variadic: bool = False
    context: bool = False  #: the function takes the ``Context`` first
    attributes: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()  #: attributes without a default
    special: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()  #: attributes that do not change the result
    host: frozenset[str] = frozenset()  #: inputs that the function takes as Python numbers or lists of them
    differentiable: bool = True  #: False: no gradient passes, so what lies below depends on no trained weight
    foldable: bool = True  #: False: running it twice gives two results
    measures: bool = False  #: the outputs are facts about shapes, and stay in host memory


@dataclass(slots=True)
class _Versions:
    rules: list[Op] = field(default_factory=list)


_TABLE: dict[tuple[str, str], _Versions] = {}


def op(
    names: str,
    *,
    domain: str = "",
    since: int = 1,
    host: str = "",
    ignored: str = "",
    inputs: int | None = None,
    attributes: str = "",
    differentiable: bool = True,
    foldable: bool = True,
    measures: bool = False,
) -> Callable[[Function], Function]:
    """Enter a function for the operators ``names`` (separated by spaces) into the table.

    ``host`` names the positional parameters to be given as Python numbers, ``ignored`` attributes without effect here.
    ``inputs`` states the number of positional parameters of a builtin whose signature cannot be read. A first parameter
    called ``ctx`` receives the ``Context``. Keyword parameters are attributes, but for some that are filled in:
    ``version`` (opset of the operator's domain), ``wanted`` (which outputs the node has, as a tuple of bools),
    ``simulated`` (whether integers are to be carried in floats, with a gradient), ``types`` (of the inputs' elements,
    None where the graph does not say). ``attributes`` names those that a ``**`` parameter takes.

    A function of one output returns it; one of several returns a tuple, of which what a node does not name is dropped.
    """

    def enter(function: Function) -> Function:
        facts = _facts(function) if inputs is None else _builtin(inputs)
        facts["attributes"] |= frozenset(attributes.split())
        for name in names.split():
            rule = Op(
                domain,
                name,
                since,
                function,
                ignored=frozenset(ignored.split()),
                host=frozenset(host.split()),
                differentiable=differentiable,
                foldable=foldable,
                measures=measures,
                **facts,
            )
            unknown = rule.host - set(rule.inputs)
            if unknown:
                raise TypeError(f"rule for {name}: no input named {', '.join(sorted(unknown))}")
            found = _TABLE.setdefault((domain, name), _Versions()).rules
            found.append(rule)
            found.sort(key=lambda entry: entry.since, reverse=True)
        return function

    return enter


def _facts(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = list(inspect.signature(function).parameters.values())
    context = bool(parameters) and parameters[0].name == "ctx"
    positional = [p for p in parameters[context:] if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return {
        "inputs": tuple(p.name for p in positional),
        "variadic": any(p.kind is p.VAR_POSITIONAL for p in parameters),
        "context": context,
        "attributes": frozenset(p.name for p in keywords if p.name not in _SPECIAL),
        "required": frozenset(p.name for p in keywords if p.default is p.empty and p.name not in _SPECIAL),
        "special": frozenset(p.name for p in keywords if p.name in _SPECIAL),
    }


def _builtin(count: int) -> dict[str, Any]:
    return {"inputs": tuple(f"x{i}" for i in range(count)), "attributes": frozenset()}


def elementwise(functions: Mapping[str, Callable[..., Any]], *, inputs: int = 1, differentiable: bool = True) -> None:
    """Enter functions of ``inputs`` tensors without attributes."""
    for name, function in functions.items():
        op(name, inputs=inputs, differentiable=differentiable)(function)


def find_op(domain: str, name: str, version: int) -> Op | None:
    """The rule for an operator at one opset version of its domain; None where there is none."""
    found = _TABLE.get(("" if domain == "ai.onnx" else domain, name))
    return next((rule for rule in found.rules if rule.since <= version), None) if found else None


def supported_ops() -> Iterator[tuple[str, str, int]]:
    """``(domain, name, first opset version)`` of every rule, sorted."""
    return iter(sorted((*key, rule.since) for key, entry in _TABLE.items() for rule in entry.rules))
