"""Sizes for the dynamic dims of a model's inputs: their names, sensible defaults, and consistent alternatives."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.runtime.inputs import InputFacts, Kind, input_dims

BATCH, LENGTH, PAST, IMAGE = 2, 8, 3, 32
_UNNAMED = re.compile(r"^(?P<input>.*)\[(?P<axis>\d+)\]$")


def symbolic_dims(model: ir.Model) -> dict[str, list[tuple[str, int]]]:
    """Names of the dynamic dims and where they stand, as ``(input, axis)``.

    A dim without a name is called ``<input>[<axis>]``. A dim that is a sum or product of others ("past + seq") is not
    listed; its parts are.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers or not isinstance(value.type, ir.TensorType):
            continue
        for axis, dim in enumerate(input_dims(value)):
            if isinstance(dim, str):
                for part in dim_symbols(dim):
                    found.setdefault(part, []).append((value.name or "", axis))
    return found


def dim_symbols(dim: str) -> tuple[str, ...]:
    """The free names in a dim: itself, or the parts of an expression."""
    tree = _expression(dim)
    if tree is None:
        return (dim,)
    return tuple(dict.fromkeys(n.id for n in ast.walk(tree) if isinstance(n, ast.Name)))


def dim_size(dim: int | str, sizes: Mapping[str, int]) -> int:
    """The concrete size of a dim under an assignment of all free names."""
    if isinstance(dim, int):
        return dim
    if dim in sizes:
        return sizes[dim]
    tree = _expression(dim)
    if tree is None:
        raise UsageError(f"no size given for dim {dim!r}")
    return _evaluate(tree, sizes)


def _expression(dim: str) -> ast.expr | None:
    """``dim`` as arithmetic over names, or None when it is one name (whatever characters that has)."""
    try:
        tree = ast.parse(dim, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(tree, ast.BinOp):
        return None
    allowed = (ast.BinOp, ast.Name, ast.Constant, ast.operator, ast.expr_context)
    parts = list(ast.walk(tree))
    if not all(isinstance(p, allowed) for p in parts):
        return None
    if not all(isinstance(p.value, int) for p in parts if isinstance(p, ast.Constant)):
        return None
    kinds = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv)
    return tree if all(isinstance(p.op, kinds) for p in parts if isinstance(p, ast.BinOp)) else None


def _evaluate(tree: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(tree, ast.Name):
        if tree.id not in sizes:
            raise UsageError(f"no size given for dim {tree.id!r}")
        return sizes[tree.id]
    if isinstance(tree, ast.Constant):
        return int(tree.value)  # type: ignore[arg-type]
    assert isinstance(tree, ast.BinOp)
    left, right = _evaluate(tree.left, sizes), _evaluate(tree.right, sizes)
    if isinstance(tree.op, ast.Add):
        return left + right
    if isinstance(tree.op, ast.Sub):
        return left - right
    return left * right if isinstance(tree.op, ast.Mult) else left // max(right, 1)


def dim_role(name: str, places: Sequence[tuple[str, int]], facts: Mapping[str, InputFacts]) -> str:
    """ "batch", "length", "past", "total" or "image": what a dim most likely counts."""
    lower = name.lower()
    if _UNNAMED.match(name) is None:
        if "past" in lower or "cache" in lower:
            return "total" if "+" in lower or "total" in lower else "past"
        if "total" in lower:
            return "total"
        if "batch" in lower or lower in {"n", "b", "bs"}:
            return "batch"
        if any(word in lower for word in ("seq", "len", "time", "token", "frame", "step")):
            return "length"
        if any(word in lower for word in ("height", "width")) or lower in {"h", "w"}:
            return "image"
    axes = [axis for _, axis in places]
    first = facts.get(places[0][0]) if places else None
    if "past" in places[0][0].lower() and axes[0] == 2:
        return "past"
    if axes and all(axis == 0 for axis in axes):
        scalar_row = first is not None and len(first.dims) == 1 and first.kind in (Kind.IDS, Kind.POSITIONS)
        return "length" if scalar_row else "batch"
    if first is not None and len(first.dims) == 4 and axes[0] in (2, 3) and first.kind in (Kind.NORMAL, Kind.RANGE):
        return "image"
    return "length"


def default_sizes(
    model: ir.Model, facts: Sequence[InputFacts], given: Mapping[str, int] | None = None
) -> dict[str, int]:
    """A size for every free dim: the given ones, and for the rest what fits their roles and the given ones."""
    return next(size_candidates(model, facts, given))


def size_candidates(
    model: ir.Model, facts: Sequence[InputFacts], given: Mapping[str, int] | None = None
) -> Iterator[dict[str, int]]:
    """Assignments worth a try, the likeliest first; sizes in ``given`` stay as they are."""
    fixed = dict(given or {})
    by_name = {f.name: f for f in facts}
    free = symbolic_dims(model)
    roles = {name: dim_role(name, places, by_name) for name, places in free.items()}

    def known(role: str, default: int) -> int:
        return next((fixed[n] for n, r in roles.items() if r == role and n in fixed), default)

    batch, length, past = known("batch", BATCH), known("length", LENGTH), known("past", PAST)
    table = {"batch": batch, "length": length, "past": past, "total": past + length, "image": IMAGE}
    variants = [
        table,
        {**table, "total": length, "past": 0},
        {**table, "length": 1, "total": past + 1},
        *({**table, "image": size} for size in (64, 224, 256, 299, 512)),
        {**table, "batch": 1},
        dict.fromkeys(table, length) | {"batch": batch},
        dict.fromkeys(table, 1),
    ]
    tried: list[dict[str, int]] = []
    for variant in variants:
        sizes = {name: fixed.get(name, variant[role]) for name, role in roles.items()}
        sizes |= {name: size for name, size in fixed.items() if name not in sizes}
        if sizes not in tried:
            tried.append(sizes)
            yield sizes
