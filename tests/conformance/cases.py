"""The cases of ``onnx.backend.test``: models with inputs, from the generators and files of the installed package."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from onnx import TensorProto, numpy_helper

SUITES = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")
_DATA = Path(os.path.dirname(onnx.backend.test.__file__)) / "data"
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


@dataclass(frozen=True, slots=True)
class Case:
    """One model and one set of inputs: arrays and TensorProtos by name, lists for sequences, None for an optional."""

    name: str
    suite: str
    model: bytes
    feed: dict[str, Any]
    expected: tuple[Any, ...] | None = None  #: the outputs that the package says it should have

    @property
    def proto(self) -> onnx.ModelProto:
        return onnx.ModelProto.FromString(self.model)


@cache
def backend_cases() -> tuple[Case, ...]:
    """Every case, by suite and name. The inputs that the package draws at random are the same in each process."""
    return (*_node_cases(), *(case for suite in SUITES[1:-1] for case in _folder_cases(suite)), *_light_cases())


def _node_cases() -> Iterator[Case]:
    from onnx.backend.test.loader import load_node_model_tests

    state = np.random.get_state()  # noqa: NPY002 - the generators draw from the global state
    np.random.seed(0)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = load_node_model_tests()
    finally:
        np.random.set_state(state)  # noqa: NPY002
    for case in sorted(found, key=lambda item: item.name):
        assert case.model is not None and case.data_sets is not None
        names = [info.name for info in case.model.graph.input]
        given, made = case.data_sets[0]
        feed = dict(zip(names, given, strict=True))
        yield Case(case.name, "node", case.model.SerializeToString(), feed, tuple(made))


def _folder_cases(suite: str) -> Iterator[Case]:
    for folder in sorted(path for path in (_DATA / suite).iterdir() if path.is_dir()):
        data = (folder / "model.onnx").read_bytes()
        proto = onnx.ModelProto.FromString(data)
        feed = {}
        for index, info in enumerate(proto.graph.input):
            file = folder / "test_data_set_0" / f"input_{index}.pb"
            if file.exists():
                feed[info.name] = _read(file.read_bytes(), info.type)
        made = [folder / "test_data_set_0" / f"output_{index}.pb" for index in range(len(proto.graph.output))]
        expected = [_read(file.read_bytes(), info.type) for file, info in zip(made, proto.graph.output, strict=True)]
        yield Case(folder.name, suite, data, feed, tuple(expected))


def _read(data: bytes, kind: onnx.TypeProto) -> Any:
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return TensorProto.FromString(data)


def _light_cases() -> Iterator[Case]:
    """Known architectures whose weights are made by ConstantOfShape; inputs as the package's own runner makes them."""
    for file in sorted((_DATA / "light").glob("*.onnx")):
        data = file.read_bytes()
        proto = onnx.ModelProto.FromString(data)
        weights = {tensor.name for tensor in proto.graph.initializer}
        feed = {}
        for info in proto.graph.input:
            if info.name not in weights:
                dims = [dim.dim_value or 1 for dim in info.type.tensor_type.shape.dim]
                count = int(np.prod(dims))
                feed[info.name] = (np.arange(count).reshape(dims) / count).astype(np.float32)
        yield Case(file.stem, "light", data, feed)


def baked(case: Case) -> Case | None:
    """The case with its tensor inputs as initializers, which no caller can override; None when it has none."""
    proto = case.proto
    tensors = {name: value for name, value in case.feed.items() if value is not None and not isinstance(value, list)}
    if not tensors:
        return None
    kept = [info for info in proto.graph.input if info.name not in tensors]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    for name, value in tensors.items():
        tensor = proto.graph.initializer.add()
        tensor.CopyFrom(as_tensor(value))
        tensor.name = name
    proto.ir_version = max(proto.ir_version, 4)
    rest = {name: value for name, value in case.feed.items() if name not in tensors}
    return replace(case, name=f"{case.name}+baked", model=proto.SerializeToString(), feed=rest)


def as_tensor(value: Any) -> TensorProto:
    """A fed value as a TensorProto."""
    return value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value))


def is_random(proto: onnx.ModelProto) -> bool:
    """Whether the standard leaves the outputs to chance: a random operator, or Dropout in training, without a seed."""

    def unseeded(node: onnx.NodeProto) -> bool:
        training = node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2])
        return (training or node.op_type in _RANDOM) and not any(attr.name == "seed" for attr in node.attribute)

    pending = [proto.graph.node, *(function.node for function in proto.functions)]
    for nodes in pending:
        for node in nodes:
            if unseeded(node):
                return True
            pending.extend(attr.g.node for attr in node.attribute if attr.HasField("g"))
    return False
