"""Operators without a torch rule, run in ONNX Runtime one node at a time; no gradient passes through them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.autograd.types import Context, from_array, to_array
from graphopt.errors import ModelError, UsageError
from graphopt.runtime.session import Session

_IR_VERSION = 10


class FrozenNode:
    """One node as a function of tensors. Its session is made when the types of its inputs are first seen.

    Raises ModelError where ONNX Runtime has no kernel, or where a gradient would have to pass.
    """

    def __init__(self, node: ir.Node, opsets: Mapping[str, int], label: str) -> None:
        self.node = node
        self.opsets = dict(opsets)
        self.label = label
        self._sessions: dict[tuple[Any, ...], Session] = {}

    def __deepcopy__(self, memo: Any) -> FrozenNode:
        return self

    def __call__(self, ctx: Context, *values: Any) -> Any:
        if any(isinstance(v, Tensor) and v.requires_grad for v in values):
            raise ModelError(f"{self.label} has no torch rule, and a gradient would have to pass through it")
        feed = {f"x{i}": self._given(i, value) for i, value in enumerate(values) if value is not None}
        kinds = tuple((name, _kind(value)) for name, value in feed.items())
        if kinds not in self._sessions:
            self._sessions[kinds] = self._session(kinds)
        try:
            found = self._sessions[kinds].run(feed)
        except UsageError as error:
            raise ModelError(f"{self.label} has no torch rule, and ONNX Runtime refuses it: {error}") from error
        results = tuple(_received(found[name], ctx) if name in found else None for name in self._result_names())
        return results if len(results) > 1 else results[0]

    def _given(self, index: int, value: Any) -> Any:
        """A value as ONNX Runtime takes it: in the type that the graph declares, where it does."""
        if isinstance(value, list):
            return [self._given(index, item) for item in value]
        array = to_array(value) if isinstance(value, Tensor) else np.asarray(value)
        declared = self.node.inputs[index]
        kind = declared.dtype if declared is not None else None
        return array if kind in (None, ir.DataType.STRING) else array.astype(kind.numpy(), copy=False)

    def _result_names(self) -> list[str]:
        return [f"y{i}" if value.name else "" for i, value in enumerate(self.node.outputs)]

    def _session(self, kinds: tuple[Any, ...]) -> Session:
        given = {name: ir.Value(name=name, type=kind) for name, kind in kinds}
        inputs = [given.get(f"x{i}") for i in range(len(self.node.inputs))]
        outputs = [ir.Value(name=name) for name in self._result_names()]
        attributes = list(self.node.attributes.values())
        copy = ir.Node(self.node.domain, self.node.op_type, inputs, attributes, outputs=outputs, name="frozen")
        graph = ir.Graph(
            list(given.values()),
            [value for value in outputs if value.name],
            nodes=[copy],
            opset_imports=self.opsets,
            name=self.node.name or self.node.op_type,
        )
        return Session(ir.Model(graph, ir_version=_IR_VERSION), threads=1, label=self.label)


def _kind(value: Any) -> ir.TypeProtocol:
    if isinstance(value, list):
        inner = _kind(value[0]) if value else ir.TensorType(ir.DataType.FLOAT)
        return ir.SequenceType(inner)
    if value.dtype.kind in "OUS":
        return ir.TensorType(ir.DataType.STRING)
    return ir.TensorType(ir.DataType.from_numpy(value.dtype))


def _received(value: Any, ctx: Context) -> Any:
    if isinstance(value, list):
        return [_received(item, ctx) for item in value]
    made = from_array(np.asarray(value))
    if not isinstance(made, Tensor):
        return made
    if made.is_floating_point() and ctx.precision is not None:
        made = made.to(ctx.precision)
    return made.to(ctx.device) if ctx.device != torch.device("cpu") else made
