"""ONNX text models with seeded random weights, and the check that removing units equals masking them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir

from graphopt.analysis.axes import AxisAnalysis, Group
from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.model import clone_model, make_names_unique, signature
from graphopt.runtime.feeds import symbolic_dims, synthetic_feed
from graphopt.runtime.session import Session
from graphopt.slicing import mask_units, slice_units

TOLERANCE = 1e-5


def text_model(
    signature: str, weights: str, body: str, *, ints: str = "", opset: int = 18, seed: int = 0, scale: float = 1.0
) -> ir.Model:
    """A model from its signature ``(float[B, 4] x) => (float[B, 4] y)``, float weights ``W[4, 8] b[8]`` and body.

    ``ints`` lists int64 constants: ``shape = 0 0 8; axes = 1``; one in brackets, ``i = [3]``, is a scalar.
    """
    rng = np.random.default_rng(seed)
    tensors = []
    for name, dims in re.findall(r"(\w+)\[([\d, ]*)\]", weights):
        shape = tuple(int(n) for n in dims.split(",") if n.strip())
        array = rng.standard_normal(shape) / np.sqrt(max(shape[0], 1) if len(shape) > 1 else 1) * scale
        tensors.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    for part in filter(str.strip, ints.split(";")):
        name, _, numbers = part.partition("=")
        listed = np.array([int(n) for n in numbers.replace("[", " ").replace("]", " ").split()], dtype=np.int64)
        array = listed[0] if "[" in numbers else listed
        tensors.append(onnx.numpy_helper.from_array(np.asarray(array), name.strip()))
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "ai.onnx.ml" : 3, "custom" : 1]>'
    proto = onnx.parser.parse_model(f"{header}\nmodel {signature} {{\n{body}\n}}")
    proto.graph.initializer.extend(tensors)
    model = ir.from_proto(proto)
    make_names_unique(model)
    return model


def set_tensor(model: ir.Model, name: str, array: np.ndarray | np.generic) -> ir.Model:
    """Give an initializer other contents of the same or another type."""
    value = model.graph.initializers[name]
    value.const_value = ir.tensor(np.asarray(array), name=name)
    value.type = ir.TensorType(value.const_value.dtype)
    value.shape = ir.Shape(value.const_value.shape)
    return model


def analyse(model: ir.Model) -> AxisAnalysis:
    return GraphView(model).axes


def summary(axes: AxisAnalysis) -> list[tuple[str, int, tuple[str, ...]]]:
    """Prunable groups: role, size and the touched initializers with their axes, sorted."""
    return [(g.role, g.size, tuple(sorted(f"{t.name}.{t.axis}" for t in g.touches))) for g in axes.prunable]


def frozen(axes: AxisAnalysis, *touched: str) -> list[str]:
    """Reasons of the groups that touch all the named initializers' axes (``W1.1``) and cannot be pruned."""
    found = [g for g in axes.groups if set(touched) <= {f"{t.name}.{t.axis}" for t in g.touches}]
    assert found, f"no group touches {touched}"
    assert all(not g.prunable for g in found), [g.name for g in found if g.prunable]
    return [reason for g in found for reason in g.reasons]


def parameters(model: ir.Model) -> int:
    return sum(v.const_value.size for v in model.graph.initializers.values() if _counts(v))


def _counts(value: ir.Value) -> bool:
    assert value.const_value is not None
    return value.const_value.dtype not in (ir.DataType.INT64, ir.DataType.BOOL)


def feeds(model: ir.Model) -> list[dict[str, np.ndarray]]:
    """Batch 1, length 1, and ragged masks at other sizes."""
    dims = list(symbolic_dims(model))
    chosen = [dict.fromkeys(dims, 1), *({d: n + i for i, d in enumerate(dims)} for n in (2, 4))]
    return [synthetic_feed(model, sizes, seed=i, ragged=i > 0) for i, sizes in enumerate(chosen)]


def outputs(model: ir.Model, fed: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    session = Session(model, optimize=False, threads=1)
    return [array for feed in fed for array in session.run(feed).values()]


def distance(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """Largest difference of any output, relative to that output's largest entry."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape, (x.shape, y.shape)
        if x.size and x.dtype.kind == "f":
            assert np.isfinite(x).all()
            worst = max(worst, float(np.abs(x - y).max()) / max(float(np.abs(x).max()), 1e-6))
    return worst


def rebuilt(model: ir.Model, removal: Mapping[str, Sequence[int]], edit: object) -> ir.Model:
    """A clone of ``model`` with the named groups' units sliced or masked."""
    clone = clone_model(model)
    axes = analyse(clone)
    by_name = {g.name: g for g in axes.groups}
    units = {by_name[name]: np.asarray(numbers) for name, numbers in removal.items()}
    edit(GraphEditor(clone), axes, units)  # type: ignore[operator]
    return clone


def check_removal(model: ir.Model, removal: Mapping[str, Sequence[int]], *, changes: bool = True) -> ir.Model:
    """Masked and sliced agree at every shape, the slice differs from the original, and weights are really gone.

    Exactly as many go as the group says, unless a weight is shared (copies may outweigh what went) or touched twice.
    """
    axes = analyse(model)
    before = {name: v.const_value.numpy().copy() for name, v in model.graph.initializers.items() if v.const_value}
    sliced, masked = rebuilt(model, removal, slice_units), rebuilt(model, removal, mask_units)
    fed = feeds(model)
    wanted, found = outputs(masked, fed), outputs(sliced, fed)
    assert distance(wanted, found) <= TOLERANCE, f"masked and sliced differ by {distance(wanted, found):.2e}: {removal}"
    if changes:
        assert distance(outputs(model, fed), found) > 10 * TOLERANCE, "nothing changed: this check cannot fail"
    assert signature(sliced) == signature(model)
    live = clone_model(model)
    GraphEditor(live).drop_dead()
    gone = parameters(live) - parameters(sliced)
    groups = [g for g in axes.groups if g.name in removal]
    if all(map(_counted_once, groups)):
        assert gone > 0
        if len(groups) == 1:
            told = round(groups[0].unit_parameters * len(removal[groups[0].name]))
            assert gone == told or (gone > told and not changes), "random graphs may lose what only a Shape read"
    assert all(np.array_equal(v.const_value.numpy(), before[n]) for n, v in model.graph.initializers.items())  # type: ignore[union-attr]
    return sliced


def _counted_once(group: Group) -> bool:
    touched = [t.name for t in group.touches]
    shared = any(len(t.value.uses()) > 1 or t.value.is_graph_output() for t in group.touches)
    return len(touched) == len(set(touched)) and not shared


def check_every_group(model: ir.Model, *, seed: int = 0, changes: bool = True) -> AxisAnalysis:
    """``check_removal`` for each sliceable group alone with random units, then for all of them at once."""
    rng = np.random.default_rng(seed)
    axes = analyse(model)
    removal = {g.name: _some(g, rng) for g in axes.groups if g.sliceable}
    for name, units in removal.items():
        check_removal(model, {name: units}, changes=changes)
    if len(removal) > 1:
        check_removal(model, removal, changes=changes)
    return axes


def _some(group: Group, rng: np.random.Generator) -> list[int]:
    count = int(rng.integers(1, group.size - group.least + 1))
    return sorted(rng.choice(group.size, size=count, replace=False).tolist())


def group_of(model: ir.Model, *touched: str, role: str | None = None) -> str:
    """Name of the only prunable group (of a role) that touches all the named axes (``W1.1``)."""
    found = [
        g.name
        for g in analyse(model).prunable
        if set(touched) <= {f"{t.name}.{t.axis}" for t in g.touches} and role in (None, g.role)
    ]
    assert len(found) == 1, found
    return found[0]
