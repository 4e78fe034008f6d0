"""The module that executes an ONNX graph with torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace as changed
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from graphopt.autograd.frozen import FrozenNode
from graphopt.autograd.peephole import faster
from graphopt.autograd.program import CONTEXT, HOST_CONTEXT, Program, Schedule, execute
from graphopt.autograd.types import Context, exact, from_array, is_float
from graphopt.errors import UsageError

Replacement = Callable[[Any], Any]
_SCHEDULES = 32  #: schedules kept, one for each set of outputs and replacements asked for
_HOST = torch.device("cpu")


class OnnxModule(nn.Module):
    """An ONNX graph as a torch module, made by ``to_torch``.

    Parameters and buffers are named like the initializers they come from; torch allows no dot in such a name, so ``.``
    is written ``%2E`` and ``%`` is written ``%25``. ``weights()`` gives them by their ONNX names.

    Intermediate values can be returned, and replaced by a function of themselves, by their ONNX names: see ``forward``
    and ``replacing``.
    """

    def __init__(
        self,
        program: Program,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        slots: Mapping[int, str],
        aliases: Mapping[str, str],
        interface: tuple[Mapping[str, ir.DataType | None], Mapping[str, ir.DataType | None]],
        defaults: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self._program = program
        # entered directly: register_parameter refuses names like "type" that are attributes of every module
        self._parameters.update({escaped(name): parameter for name, parameter in parameters.items()})
        self._buffers.update({escaped(name): buffer for name, buffer in buffers.items()})
        self._slots = {slot: escaped(name) for slot, name in slots.items()}
        self._aliases = dict(aliases)
        self._input_types, self._output_types = dict(interface[0]), dict(interface[1])
        self._defaults = dict(defaults)
        self._replacements: dict[str, Replacement] = {}
        self._schedules: dict[Any, tuple[Schedule, Mapping[str, int]]] = {}
        self._template = program.template()
        self.register_buffer("%precision", torch.zeros((), dtype=torch.float32), persistent=False)
        self._uniform = False

    @property
    def input_names(self) -> list[str]:
        """The inputs a caller must give."""
        return [name for name in self._input_types if name not in self._defaults]

    @property
    def output_names(self) -> list[str]:
        """The graph's own outputs, in order."""
        return list(self._output_types)

    @property
    def value_names(self) -> list[str]:
        """Every value that can be returned or replaced: inputs, weights, and what the nodes make."""
        return list(self._program.named)

    @property
    def frozen_nodes(self) -> list[str]:
        """Nodes of the main graph that run in ONNX Runtime, because their operator has no torch rule."""
        return [step.label for step in self._program.steps if isinstance(step.call, FrozenNode)]

    def weights(self) -> dict[str, nn.Parameter]:
        """The trained parameters by the names of their initializers; tied initializers map to one parameter."""
        found = {original(name): value for name, value in self._parameters.items() if value is not None}
        return {**found, **{alias: found[name] for alias, name in self._aliases.items() if name in found}}

    def uniform(self, dtype: torch.dtype) -> OnnxModule:
        """Compute all of the graph's floats in ``dtype``, in place: float32 training of a float16 file, for one."""
        self.to(dtype)
        self._uniform = True
        return self

    def forward(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        replace: Mapping[str, Replacement] | None = None,
    ) -> dict[str, Any]:
        """The values named in ``outputs`` (default: the graph's outputs), by name.

        ``inputs`` are tensors (or numpy arrays) by input name, on the module's device. ``outputs`` may name any value
        of the main graph; only the nodes they need are run. ``replace`` gives functions by value name: everything that
        reads the value reads the function's result instead; gradients flow through it.

        Raises UsageError for an unknown or missing name or a wrong element type, ModelError when an operator fails.
        """
        functions = {**self._replacements, **replace} if replace else self._replacements
        schedule, results = self._scheduled(None if outputs is None else tuple(outputs), tuple(functions))
        precision = self._buffers["%precision"]
        assert precision is not None
        kind = precision.dtype if self._uniform or precision.dtype is not torch.float32 else None
        ctx = Context(precision.device, kind, functions)
        values = self._template.copy()
        values[CONTEXT] = ctx
        values[HOST_CONTEXT] = ctx if ctx.device == _HOST else changed(ctx, device=_HOST)
        self._fill(values, inputs, ctx)
        execute(schedule, values)
        found = {name: values[slot] for name, slot in results.items()}
        return self._as_declared(found, ctx) if outputs is None else found

    @contextmanager
    def replacing(self, replace: Mapping[str, Replacement]) -> Iterator[None]:
        """Inside the ``with``, every forward applies these functions; see ``forward``."""
        before = self._replacements
        for name in replace:
            self._program.slot(name)
        self._replacements = {**before, **replace}
        try:
            yield
        finally:
            self._replacements = before

    # -- one run --------------------------------------------------------------------------------------------------
    def _scheduled(
        self, wanted: tuple[str, ...] | None, replaced: tuple[str, ...]
    ) -> tuple[Schedule, Mapping[str, int]]:
        """The steps of a run, and the slots of what it returns."""
        key = (wanted, replaced)
        if key not in self._schedules:
            while len(self._schedules) >= _SCHEDULES:
                del self._schedules[next(iter(self._schedules))]
            slot = self._program.slot
            results = self._program.outputs if wanted is None else {name: slot(name) for name in wanted}
            taken = {name: slot(name) for name in replaced}
            self._schedules[key] = self._program.schedule(list(results.values()), taken, faster), results
        return self._schedules[key]

    def _fill(self, values: list[Any], inputs: Mapping[str, Any], ctx: Context) -> None:
        parameters, buffers = self._parameters, self._buffers
        for slot, name in self._slots.items():
            held = parameters.get(name)
            values[slot] = held if held is not None else buffers.get(name)
            if values[slot] is None:
                values[slot] = getattr(self, name)  # a parametrization
        for name, slot in self._program.inputs.items():
            if name in inputs:
                values[slot] = self._given(name, inputs[name], ctx)
            elif name not in self._defaults:
                raise UsageError(f"the module needs input {name!r}; given: {', '.join(inputs) or 'nothing'}")
            else:
                values[slot] = self._given(name, self._defaults[name], ctx)

    def _given(self, name: str, value: Any, ctx: Context) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            value = from_array(np.asarray(value))
            value = value.to(ctx.device) if isinstance(value, Tensor) else value
        kind = self._input_types[name]
        if not isinstance(value, Tensor) or kind is None:
            return value
        expected = ctx.dtype(kind)
        if value.dtype is expected:
            return value
        if not (value.is_floating_point() and expected.is_floating_point):
            raise UsageError(f"input {name!r} must be {expected}, found {value.dtype}")
        return value.to(expected)

    def _as_declared(self, found: dict[str, Any], ctx: Context) -> dict[str, Any]:
        """Outputs in the graph's types; they were computed in others where torch lacks a type or under autocast."""
        for name, kind in self._output_types.items():
            value = found[name]
            if kind is None or not isinstance(value, Tensor):
                continue
            expected = ctx.dtype(kind) if is_float(kind) else exact(kind)
            if expected is not None and value.dtype is not expected:
                found[name] = value.to(expected)
        return found


def escaped(name: str) -> str:
    """An initializer's name as torch takes it; every name has another."""
    return name.replace("%", "%25").replace(".", "%2E")


def original(name: str) -> str:
    """The initializer's name that ``escaped`` made ``name`` from."""
    return name.replace("%2E", ".").replace("%25", "%")
