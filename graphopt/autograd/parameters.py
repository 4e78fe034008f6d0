"""Which weights are trained: by the place they take in the operators that read them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
import onnx_ir as ir

from graphopt.autograd.rules import find_op
from graphopt.autograd.types import is_float
from graphopt.editing import walk_nodes
from graphopt.errors import UsageError
from graphopt.model import all_graphs
from graphopt.model.tensors import tensor_identity

Choice = Callable[[ir.Value], bool] | Collection[str]

#: Inputs that are weights wherever they come as constants; ``*`` stands for every input after the data.
_WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "Attention": (1, 2),  # com.microsoft
    "BatchNormalization": (1, 2),  # not the statistics
    "BiasGelu": (1,),
    "BiasSplitGelu": (1,),
    "CausalConvWithState": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "Einsum": tuple(range(8)),
    "EmbedLayerNormalization": (2, 3, 4, 5, 6),
    "FastGelu": (1,),
    "FusedConv": (1, 2),
    "FusedGemm": (0, 1, 2),
    "FusedMatMul": (0, 1),
    "GRU": (1, 2, 3),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MultiHeadAttention": (3,),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4),
    "SkipSimplifiedLayerNormalization": (2, 3),
}
_NEWEST = 1 << 30
#: Operators under which a weight is still the same weight.
_MOVING = frozenset(
    [
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
        "QuantizeLinear",
        "DequantizeLinear",
    ]
)
#: Elementwise operators through which a bias or a scale reaches an activation.
_COMBINING = frozenset(["Add", "Div", "Mul", "Sub", "Sum"])


def trained_weights(model: ir.Model, choice: Choice | None) -> list[list[ir.Value]]:
    """The weights to train; each inner list is one parameter, the initializers tied to it share one storage.

    Raises UsageError for a name that is no weight, or a weight whose type cannot be trained.
    """
    candidates = list(_candidates(model))
    if choice is None:
        chosen = default_trainable(model)
        picked = [value for value in candidates if value.name in chosen]
    elif callable(choice):
        picked = [value for value in candidates if choice(value)]
    else:
        unknown = set(choice) - {value.name or "" for value in candidates}
        if unknown:
            raise UsageError(
                f"no weight named {sorted(unknown)[0]!r} that could be trained (float, and no graph input)"
            )
        picked = [value for value in candidates if value.name in set(choice)]
    groups: dict[tuple[object, ...], list[ir.Value]] = {}
    for value in picked:
        tensor = weight_tensor(value)
        shape = tuple(tensor.shape.numpy())
        groups.setdefault((*tensor_identity(tensor), shape, tensor.dtype), []).append(value)
    return list(groups.values())


def weight_tensor(value: ir.Value) -> ir.TensorProtocol:
    """What an initializer or the output of a Constant node holds."""
    producer = value.producer()
    if producer is not None:
        return producer.attributes["value"].as_tensor()
    assert value.const_value is not None
    return value.const_value


def _candidates(model: ir.Model) -> Iterator[ir.Value]:
    """Float weights of all scopes; one that is a graph input belongs to the caller."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None and not value.is_graph_input() and is_float(value.const_value.dtype):
                yield value
        for node in graph:
            holds = node.op_type == "Constant" and not node.domain and "value" in node.attributes
            if holds and is_float(node.attributes["value"].as_tensor().dtype):
                yield node.outputs[0]


def default_trainable(model: ir.Model) -> set[str]:
    """Names of the weights that ``to_torch`` trains unless told otherwise.

    These are float initializers (and Constants) that operators read as weights: matrices, filters, embedding tables,
    normalisation scales, and biases and scales of more than one element that are added to or multiplied with what
    depends on such a weight. Not among them: statistics of BatchNormalization, ranges of QuantizeLinear, epsilons and
    other single numbers, masks, tables of rotary positions, inputs with a default.
    """
    weights = {value: frozenset([value]) for value in _candidates(model)}  # value -> the weights it is a view of
    trained: set[ir.Value] = set()
    depends: set[ir.Value] = set()  # activations that depend on a trained weight
    for node in walk_nodes(model):
        views = [weights.get(value, frozenset()) if value is not None else frozenset() for value in node.inputs]
        if _is_view(node, views):
            weights.update(dict.fromkeys(node.outputs, frozenset().union(*views)))
            continue
        found: set[ir.Value] = set()
        for index in _weight_inputs(node, views, depends):
            found |= views[index]
        trained |= found
        rule = find_op(node.domain, node.op_type, _NEWEST)
        if rule is not None and not rule.differentiable:  # shapes and comparisons carry no gradient on
            continue
        if found or any(value in depends or views[i] & trained for i, value in enumerate(node.inputs)):
            depends.update(node.outputs)
    return {value.name for value in trained if value.name}


def _is_view(node: ir.Node, views: list[frozenset[ir.Value]]) -> bool:
    """Whether the output is nothing but weights in another form; Concat may put them beside activations."""
    if node.op_type == "Concat":
        return all(views)
    return node.op_type in _MOVING and bool(views) and bool(views[0])


def _weight_inputs(node: ir.Node, views: list[frozenset[ir.Value]], depends: set[ir.Value]) -> Iterator[int]:
    """Inputs of ``node`` that it reads as trained weights."""
    present = [index for index, view in enumerate(views) if view]
    if not present:
        return
    if node.op_type == "MatMul":
        if not _readers(node.outputs[0]) <= {"Cos", "Sin"}:  # else the frequencies of rotary positions
            yield from present
    elif node.op_type in ("Gather", "GatherND"):
        if 0 in present and not _readers(node.outputs[0]) <= {"Mul"}:  # else cosines and sines of positions
            yield 0
    elif node.op_type in _COMBINING or node.op_type == "Concat":
        others = any(value in depends for value in node.inputs)
        yield from (index for index in present if others and _is_bias(views[index]))
    else:
        known = _WEIGHT_INPUTS.get(node.op_type, ())
        if node.op_type == "Attention" and not node.domain:
            known = ()
        yield from (index for index in present if index in known)


def _is_bias(views: frozenset[ir.Value]) -> bool:
    """More than one element, and no mask: those are zero or one other number, or hold huge ones."""
    for value in views:
        tensor = weight_tensor(value)
        if tensor.size <= 1:
            return False
        array = np.asarray(tensor.numpy()).astype(np.float32)
        if not np.isfinite(array).all() or float(np.abs(array).max()) >= _HUGE:
            return False
        if tensor.size > 2 and len(kinds := np.unique(array)) == 2 and 0.0 in kinds:
            return False
    return True


_HUGE = 1e4  #: magnitude from which an added number stands for minus infinity


def _readers(value: ir.Value) -> set[str]:
    """Operators that read a value, through what only moves or scales it; {"none"} where it is an output."""
    pending, seen, readers = [value], set(), set()
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            readers.add("none")
        for use in value.uses():
            if use.node in seen:
                continue
            seen.add(use.node)
            if use.node.op_type in _MOVING or _scales(use.node):
                pending.extend(use.node.outputs)
            else:
                readers.add(use.node.op_type)
    return readers


def _scales(node: ir.Node) -> bool:
    """Whether the node multiplies with a single number, as encoders do with their embeddings."""
    return node.op_type == "Mul" and any(
        value is not None and value.const_value is not None and value.const_value.size == 1 for value in node.inputs
    )
