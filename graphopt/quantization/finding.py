"""Finds the places of a graph whose weights can be quantized, and says of every other weight why it stays float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.model import walk_nodes
from graphopt.quantization.sites import MICROSOFT, Bias, Linear, Site, Table
from graphopt.transform import Declined

SMALLEST = 1024  #: elements; a smaller weight gains neither bytes nor time
NARROWEST = 16  #: elements; a table with shorter rows would hardly shrink, each row brings its own scale

_QUANTIZED = frozenset({"DequantizeLinear", "DequantizeWithOrder", "DequantizeBFP"})
_QUANTIZED_OPS = frozenset(
    {
        "MatMulInteger",
        "ConvInteger",
        "QLinearMatMul",
        "QLinearConv",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MatMulBnb4",
        "QAttention",
        "QGemm",
        "QOrderedMatMul",
        "GatherBlockQuantized",
        "DynamicQuantizeLSTM",
        "QEmbedLayerNormalization",
    }
)
_EMBEDDING = "its tables are inside one contrib op; run fuse before, which takes it apart"


@dataclass(frozen=True, slots=True)
class Scope:
    """What one pass can quantize: float types of weights, and why the weights of some operators stay float."""

    form: str  #: what an operator without a reason of its own lacks: "int8 form"
    dtypes: frozenset[ir.DataType]
    reasons: Mapping[str, str]

    @property
    def types(self) -> str:
        """``float32``; ``float16 and float32``."""
        return " and ".join(sorted(_type_name(dtype) for dtype in self.dtypes))


INT8 = Scope(
    "int8 form",
    frozenset({ir.DataType.FLOAT}),
    {
        "ConvTranspose": "there is no int8 ConvTranspose in ONNX Runtime's CPU provider",
        "GRU": "there is no int8 GRU in ONNX Runtime's CPU provider",
        "RNN": "there is no int8 RNN in ONNX Runtime's CPU provider",
        "Einsum": "ONNX Runtime has no int8 Einsum",
        "EmbedLayerNormalization": _EMBEDDING,
    },
)
_EVERY_RUN = "ONNX Runtime multiplies by blocked weights in MatMul and Gemm only; here every run would unpack them"
WEIGHT_ONLY = Scope(
    "product with blocked weights",
    frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16}),
    {
        "Conv": _EVERY_RUN,
        "ConvTranspose": _EVERY_RUN,
        "LSTM": _EVERY_RUN,
        "GRU": _EVERY_RUN,
        "RNN": _EVERY_RUN,
        "Einsum": _EVERY_RUN,
        "EmbedLayerNormalization": _EMBEDDING,
    },
)


def find_sites(model: ir.Model, scope: Scope = INT8) -> tuple[list[Site], list[Declined]]:
    """All sites of the main graph and of every nested body, in graph order, and what else holds weights."""
    sites: list[Site] = []
    declined: list[Declined] = []
    for node in walk_nodes(model):
        found = _examine(node, scope)
        if isinstance(found, str):
            declined.append(Declined(node.name or node.op_type, found))
        elif found is not None:
            sites += found if isinstance(found, list) else [found]
    return sites, declined


def _examine(node: ir.Node, scope: Scope) -> Site | list[Linear] | str | None:
    """The site that ``node`` is, or its two; or why it is none although it holds weights; or None: nothing to say."""
    kind = (node.domain, node.op_type)
    if node.op_type in _QUANTIZED_OPS:
        return "already quantized"
    if kind in (("", "MatMul"), (MICROSOFT, "FusedMatMul")):
        return _matmul(node, scope)
    if kind == ("", "Gemm"):
        return _gemm(node, scope)
    if kind in (("", "Gather"), ("", "Slice")):
        return _table(node, scope)
    if kind == (MICROSOFT, "Attention"):
        return _attention(node, scope)
    if kind == ("", "Conv") and "Conv" not in scope.reasons:
        return _conv(node, scope)
    if kind == ("", "LSTM") and "LSTM" not in scope.reasons:
        return _lstm(node, scope)
    large = [v for v in node.inputs if v is not None and _is_large_float(v)]
    if not large:
        return None
    if node.domain not in ("", MICROSOFT):
        return f"weights of the custom op {node.domain}.{node.op_type} are left alone"
    return scope.reasons.get(node.op_type, f"{node.op_type} has no {scope.form}")


def _is_large_float(value: ir.Value) -> bool:
    tensor = value.const_value
    return (
        tensor is not None
        and value.is_initializer()
        and tensor.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
        and len(tensor.shape) > 1
        and tensor.size >= SMALLEST
    )


def _weight(value: ir.Value, scope: Scope, *, axes: int = 2) -> tuple[ir.Value, bool] | str | None:
    """The initializer behind an operand, and whether it comes through a transposition; or why it cannot be used."""
    producer = value.producer()
    transposed = False
    if producer is not None:
        if producer.domain == "" and producer.op_type in _QUANTIZED:
            return "already quantized"
        if producer.op_type != "Transpose" or producer.domain != "" or producer.inputs[0] is None:
            return None
        perm = producer.attributes.get("perm")
        if perm is not None and list(perm.as_ints()) != [1, 0]:
            return None
        value, transposed = producer.inputs[0], True
    tensor = value.const_value
    if tensor is None or not value.is_initializer():
        return None
    if value.is_graph_input():
        return "the weight is a graph input, which the caller may override"
    if tensor.dtype not in scope.dtypes:
        if tensor.dtype.is_floating_point():
            return f"the weight is {_type_name(tensor.dtype)}; only {scope.types} weights are quantized"
        return None
    if axes > 2:
        return (value, False) if len(tensor.shape) >= axes and not transposed else None
    if len(tensor.shape) != 2 and tensor.size >= SMALLEST:
        return f"the weight has {len(tensor.shape)} axes; only matrices are quantized"
    if len(tensor.shape) != 2:
        return None
    if tensor.size < SMALLEST:
        return f"the weight has {tensor.size} elements, fewer than {SMALLEST}: nothing to gain"
    return value, transposed


def _matmul(node: ir.Node, scope: Scope) -> Linear | str | None:
    activation, operand = node.inputs[0], node.inputs[1]
    if activation is None or operand is None:
        return None
    found = _weight(operand, scope)
    if found is None:
        left = activation.const_value is not None and activation.is_initializer() and _is_large_float(activation)
        return "the weight is the left operand; ONNX Runtime's quantized kernels want it on the right" if left else None
    if isinstance(found, str):
        return found
    flags = _integers(node, "transA", "transB", "transBatchA", "transBatchB")
    if flags["transA"] or flags["transBatchA"] or flags["transBatchB"]:
        return "it transposes its activation, which no quantized kernel does"
    value, transposed = found
    return Linear(
        node,
        activation,
        value,
        transposed ^ bool(flags["transB"]),
        _float(node, "alpha"),
        _bias_after(node),
    )


def _gemm(node: ir.Node, scope: Scope) -> Linear | str | None:
    activation, operand = node.inputs[0], node.inputs[1]
    if activation is None or operand is None:
        return None
    found = _weight(operand, scope)
    if found is None or isinstance(found, str):
        return found
    flags = _integers(node, "transA", "transB")
    if flags["transA"]:
        return "it transposes its activation, which no quantized kernel does"
    value, transposed = found
    added = node.inputs[2] if len(node.inputs) > 2 else None
    bias: Bias | None
    if added is not None:
        beta = _float(node, "beta")
        if beta != 1.0 and (added.const_value is None or added.is_graph_input()):
            return f"it scales a computed addend by beta={beta}"
        bias = Bias(added, None, beta)
    else:
        bias = _bias_after(node)
    return Linear(node, activation, value, transposed ^ bool(flags["transB"]), _float(node, "alpha"), bias)


def _conv(node: ir.Node, scope: Scope) -> Linear | str | None:
    activation, operand = node.inputs[0], node.inputs[1]
    if activation is None or operand is None:
        return None
    found = _weight(operand, scope, axes=3)  # however small: codes then need not become floats between convolutions
    if found is None or isinstance(found, str):
        return found
    added = node.inputs[2] if len(node.inputs) > 2 else None
    if added is not None and (added.const_value is None or added.is_graph_input()):
        return "its bias is computed"
    return Linear(node, activation, found[0], transposed=True, bias=Bias(added, None) if added is not None else None)


def _lstm(node: ir.Node, scope: Scope) -> list[Linear] | str | None:
    """Its two products: of the inputs with W, and of the states with R."""
    activation, states = node.inputs[0], node.outputs[0]
    if activation is None or node.inputs[1] is None or node.inputs[2] is None:
        return None
    if _integers(node, "layout")["layout"]:
        return "layout=1; DynamicQuantizeLSTM knows no batch axis in front"
    products = []
    for operand, multiplied in ((node.inputs[1], activation), (node.inputs[2], states)):
        found = _weight(operand, scope, axes=3)
        if found is None or isinstance(found, str):
            return found
        if found[0].const_value is not None and found[0].const_value.size < SMALLEST:
            return f"its weight has {found[0].const_value.size} elements, fewer than {SMALLEST}: nothing to gain"
        products.append(Linear(node, multiplied, found[0], transposed=True))
    return products


def _attention(node: ir.Node, scope: Scope) -> Linear | str | None:
    activation, operand = node.inputs[0], node.inputs[1]
    if activation is None or operand is None:
        return None
    found = _weight(operand, scope)
    if found is None or isinstance(found, str):
        return found
    if found[1]:
        return "its weight is transposed in the graph"
    if "qkv_hidden_sizes" in node.attributes:
        return "QAttention knows no qkv_hidden_sizes"
    if len(node.inputs) > 2 and node.inputs[2] is None:
        return "QAttention needs a bias"
    if any(v is not None for v in node.inputs[4:]) or len(node.outputs) > 1:
        return "QAttention on the CPU knows no past state and no additive bias"
    return Linear(node, activation, found[0])


def _table(node: ir.Node, scope: Scope) -> Table | str | None:
    table = node.inputs[0]
    tensor = table.const_value if table is not None else None
    if table is None or tensor is None or not table.is_initializer() or not tensor.dtype.is_floating_point():
        return None
    shape = [int(d) for d in tensor.shape.numpy()]
    if len(shape) < 2 or shape[-1] == 1:
        return None
    if len(shape) != 2:
        return f"the table has {len(shape)} axes; only rows of a matrix are quantized"
    found = _weight(table, scope)
    if found is None or isinstance(found, str):
        return found
    if not _by_rows(node):
        return f"its {node.op_type} is not over rows alone"
    if shape[1] < NARROWEST:
        return f"its rows have {shape[1]} elements, fewer than {NARROWEST}: with a scale for each they hardly shrink"
    return Table(node, table)


def _by_rows(node: ir.Node) -> bool:
    if node.op_type == "Gather":
        return _integers(node, "axis")["axis"] in (0, -2)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = node.inputs[3].const_value
        return axes is not None and axes.numpy().reshape(-1).tolist() in ([0], [-2])
    starts = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return starts is not None and starts.size == 1


def _bias_after(node: ir.Node) -> Bias | None:
    """The constant vector that the node's only reader adds."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return None
    reader, index = uses[0].node, uses[0].idx
    if reader.domain != "" or reader.op_type not in ("Add", "Sum") or len(reader.inputs) != 2:
        return None
    if reader.graph is not node.graph:
        return None
    added = reader.inputs[1 - index]
    tensor = added.const_value if added is not None else None
    if added is None or tensor is None or not added.is_initializer() or added.is_graph_input():
        return None
    dims = [int(d) for d in tensor.shape.numpy()]
    if not dims or dims[-1] < 2 or any(d != 1 for d in dims[:-1]):
        return None
    return Bias(added, reader)


def _type_name(dtype: ir.DataType) -> str:
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(dtype.name, dtype.name.lower())


def _integers(node: ir.Node, *names: str) -> dict[str, int]:
    return {name: node.attributes[name].as_int() if name in node.attributes else 0 for name in names}


def _float(node: ir.Node, name: str) -> float:
    return node.attributes[name].as_float() if name in node.attributes else 1.0


def float_products(model: ir.Model) -> int:
    """How many products of two computed operands there are, attention's among them: they hold no weights."""
    count = 0
    for node in walk_nodes(model):
        if node.domain == "" and node.op_type in ("MatMul", "Attention"):
            count += all(v is not None and v.const_value is None for v in node.inputs[:2]) and not isinstance(
                _examine(node, INT8), Linear
            )
    return count
