"""What can be pruned from ordinary torch models, beside what Torch-Pruning can remove from the same models.

    python -m benchmarks.prunable FOLDER --tp PYTHON [--only NAME...] [--fresh]

Every model of ``benchmarks/zoo`` is exported by dynamo and by TorchScript into FOLDER. For each file, after
``cleanup``:

- the share of its weights' elements that belong to a prunable group (a tensor with several uses counts where all of
  them do), and that with the groups that only norms hold ("with hidden": what ``prune`` takes when it is asked to);
- both over Torch-Pruning's, counted on the torch model by ``zoo/torch_pruning_share.py``, which PYTHON (an interpreter
  that has torch-pruning, torch and transformers) runs: "ratio" with hidden to all of its groups, "exact ratio" without
  to those that do not run through a LayerNorm or RMSNorm either;
- what ``prune(ratio=0.3)`` removes, and the latency of its result over the original's, in interleaved rounds;
- the largest relative difference between outputs with random units masked and with the same units sliced away, at two
  input shapes: of all groups at once, and of some groups alone.

Measured rows are kept in FOLDER and not measured again unless ``--fresh`` says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import graphopt
from benchmarks import measuring
from benchmarks.groups import cleaned
from graphopt.analysis.axes import AxisAnalysis, Group
from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.model import clone_model, model_sizes
from graphopt.runtime import Session, symbolic_dims, synthetic_feed
from graphopt.runtime.latency import time_models
from graphopt.slicing import mask_units, slice_units

RATIO, TOLERANCE, LEAST = 0.3, 1e-5, 0.9
ALONE = 4  #: groups that are also masked and sliced by themselves
FIRST_SIZES = (2, 5)  #: size of the first free dim at the two shapes; further dims are one larger each
TIMED_SECONDS = 6.0
THEIR_SECONDS = 600  #: Torch-Pruning's time for one model
COLUMNS = (
    *("model", "exporter", "parameters", "prunable", "with hidden"),
    *("Torch-Pruning", "its exact", "ratio", "exact ratio"),
    *("groups", "removed at 0.3", "mask - slice", "mask - original", "latency", "remarks"),
)
REASONS_TOLD = 6

Row = dict[str, Any]


# -- shares ---------------------------------------------------------------------------------------------------------
def members(groups: Iterable[Group]) -> dict[tuple[ir.Node, int], dict[int, np.ndarray]]:
    """For each use of an initializer, by axis: which indices hold a unit of any of the groups."""
    found: dict[tuple[ir.Node, int], dict[int, np.ndarray]] = {}
    for group in groups:
        for touch in group.touches:
            axes = found.setdefault((touch.node, touch.index), {})
            held = group.positions(touch) >= 0
            axes[touch.axis] = axes[touch.axis] | held if touch.axis in axes else held
    return found


def prunable_elements(model: ir.Model, groups: Iterable[Group]) -> dict[str, tuple[int, int]]:
    """For each floating initializer: its elements that leave with some unit, and all its elements."""
    held = members(groups)
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point() or not value.uses():
            continue
        shape = tuple(int(n) for n in tensor.shape)
        kept = [_kept(shape, held.get((use.node, use.idx), {})) for use in value.uses()]
        if len(kept) == 1:
            stays = int(np.prod([np.count_nonzero(axis) for axis in kept[0]], dtype=np.int64))
        else:
            union = np.zeros(shape, dtype=bool)
            for axes in kept:
                union |= reduce(np.logical_and, np.meshgrid(*axes, indexing="ij", sparse=True), np.True_)
            stays = int(np.count_nonzero(union))
        found[name] = (int(tensor.size) - stays, int(tensor.size))
    return found


def _kept(shape: Sequence[int], held: Mapping[int, np.ndarray]) -> list[np.ndarray]:
    """Along each axis, the indices at which an element belongs to no unit."""
    return [~held[axis] if axis in held else np.ones(size, dtype=bool) for axis, size in enumerate(shape)]


def frozen(axes: AxisAnalysis) -> list[dict[str, Any]]:
    """The largest groups that cannot be pruned, with their reasons."""
    groups = sorted((g for g in axes.groups if not g.sliceable), key=lambda g: -g.parameters)[:REASONS_TOLD]
    return [
        {
            "group": g.name,
            "size": g.size,
            "parameters": g.parameters,
            "reasons": list(g.reasons[:3]),
            "touches": [f"{t.name}.{t.axis}" for t in g.touches[:4]],
        }
        for g in groups
    ]


def by_role(groups: Iterable[Group]) -> str:
    """``6 heads, 6 neurons``."""
    counts = Counter(group.role for group in groups)
    return ", ".join(f"{count} {role}" for role, count in sorted(counts.items())) or "none"


# -- masking and slicing --------------------------------------------------------------------------------------------
def feeds(model: ir.Model) -> list[dict[str, np.ndarray]]:
    """Ragged inputs at two assignments of the free dims."""
    dims = list(symbolic_dims(model))
    return [
        synthetic_feed(model, {dim: first + i for i, dim in enumerate(dims)}, seed=first, ragged=True)
        for first in FIRST_SIZES
    ]


def difference(a: Iterable[Mapping[str, np.ndarray]], b: Iterable[Mapping[str, np.ndarray]]) -> float:
    """Largest difference of any output, relative to that output's largest entry."""
    worst = 0.0
    for one, other in zip(a, b, strict=True):
        for name, array in one.items():
            if array.dtype.kind == "f":
                scale = max(float(np.abs(array).max(initial=0.0)), 1e-6)
                worst = max(worst, float(np.abs(array - other[name]).max(initial=0.0)) / scale)
    return worst


def mask_against_slice(model: ir.Model, view: GraphView) -> tuple[float, float]:
    """The largest difference over all groups at once and ``ALONE`` single ones; beside it what masking all does."""
    rng = np.random.default_rng(0)
    groups = [g for g in view.axes.groups if g.sliceable]
    units = {g.name: rng.choice(g.size, int(rng.integers(1, g.size - g.least + 1)), replace=False) for g in groups}
    alone = rng.permutation(list(units))[:ALONE]
    removals = [units, *({name: units[name]} for name in alone)] if units else []
    fed = feeds(model)
    original = _outputs(model, fed)
    worst = effect = 0.0
    for number, removal in enumerate(removals):
        masked, sliced = (_outputs(_edited(model, act, removal), fed) for act in (mask_units, slice_units))
        worst = max(worst, difference(masked, sliced))
        effect = effect if number else difference(original, masked)
    return worst, effect


def _edited(model: ir.Model, act: Any, removal: Mapping[str, np.ndarray]) -> ir.Model:
    copy = clone_model(model)
    axes = GraphView(copy).axes
    editor = GraphEditor(copy)
    act(editor, axes, {group: removal[group.name] for group in axes.groups if group.name in removal})
    editor.drop_dead()
    return copy


def _outputs(model: ir.Model, fed: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    session = Session(model, threads=1)
    return [session.run(feed) for feed in fed]


# -- one file -------------------------------------------------------------------------------------------------------
def measure(path: Path) -> Row:
    """Everything about one file that does not need Torch-Pruning."""
    model = cleaned(path)
    view = GraphView(model)
    groups = [group for group in view.axes.groups if group.sliceable]
    elements = prunable_elements(model, groups)
    exact = prunable_elements(model, view.axes.prunable)
    total = sum(size for _, size in elements.values())
    row: Row = {
        "parameters": total,
        "share": sum(held for held, _ in exact.values()) / total,
        "with_hidden": sum(held for held, _ in elements.values()) / total,
        "groups": by_role(groups),
        "frozen": frozen(view.axes),
        "unknown_ops": view.axes.unknown_ops,
        "left": dict(sorted(((n, s - h) for n, (h, s) in elements.items() if h < s), key=lambda i: -i[1])[:12]),
    }
    row["error"], row["effect"] = mask_against_slice(model, view)
    result = graphopt.optimize(path, f"prune(ratio={RATIO})", metric=measuring.open_guard, max_drop=1.0, threads=1)
    step = next(item for item in result.passes if item.name == "prune")
    row["status"] = str(step.status)
    if not step.status.kept:
        return {**row, "removed": f"{step.status}: {step.reason}", "gone": 0.0, "latency": None}
    row["gone"] = 1 - model_sizes(result.model).parameters / step.parameters_before
    row["removed"] = f"{row['gone']:.1%} of the parameters in {len(step.changes)} places"
    sessions = {"original": Session(path, threads=1), "pruned": Session(result.model, threads=1)}
    fed = {f"shape {number}": feed for number, feed in enumerate(feeds(model))}
    row["latency"] = time_models(sessions, fed, rounds=200, budget_seconds=TIMED_SECONDS).ratio("pruned")
    return row


def theirs(name: str, folder: Path, python: Path | None, fresh: bool) -> Row | None:
    """Torch-Pruning's numbers for one model, measured before or now; None without an interpreter that has it."""
    kept = folder / f"{name}.torch-pruning.json"
    if kept.exists() and not fresh:
        found: Row = json.loads(kept.read_text(encoding="utf-8"))
        return found
    if python is None:
        return None
    command = [str(python), "-m", "benchmarks.zoo.torch_pruning_share", name]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(command, capture_output=True, text=True, env=threads, timeout=THEIR_SECONDS)
    except subprocess.TimeoutExpired:
        return {"failure": f"Torch-Pruning took more than {THEIR_SECONDS} s"}
    if run.returncode:
        return {"failure": f"Torch-Pruning: {(run.stderr.strip().splitlines() or ['no message'])[-1]}"}
    kept.write_text(run.stdout, encoding="utf-8")
    found = json.loads(run.stdout)
    return found


def kept_or_measured(path: Path, fresh: bool) -> Row:
    """The row of one file; a failure is a row too, and is tried again the next time."""
    kept = path.with_suffix(".row.json")
    if kept.exists() and not fresh:
        found: Row = json.loads(kept.read_text(encoding="utf-8"))
        return found
    try:
        row = measure(path)
    except Exception as error:  # one model must not end the table; the failure is a verdict
        return {"failure": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    kept.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    return row


def judge(name: str, exporter: str, row: Row, other: Row | None, report: measuring.Report) -> None:
    """One line of the table and its verdicts."""
    stem = f"{name}-{exporter}"
    if "failure" in row:
        report.add(name, exporter, *[None] * (len(COLUMNS) - 3), row["failure"])
        report.expect(False, f"{stem}: {row['failure']}")
        return
    remarks = [f"{count} {op} without a rule" for op, count in row["unknown_ops"].items()]
    shares: list[float | None] = [None, None]
    if other is not None and "failure" in other:
        remarks.append(other["failure"])
    elif other is not None:
        shares = [other[key] / other["parameters"] for key in ("prunable", "exact")]
        if not other["prunable"]:
            remarks.append("; ".join(f"Torch-Pruning {where}: {why}" for where, why in other["broken"].items()))
    mine = (row["with_hidden"], row["share"])
    ratios = [share / its if its else None for share, its in zip(mine, shares, strict=True)]
    if ratios[0] is not None and ratios[0] < LEAST:
        remarks += [f"{f['group']} ({f['parameters']:,}): {f['reasons'][0]}" for f in row["frozen"][:1]]
    report.add(
        name, exporter, row["parameters"], row["share"], row["with_hidden"], *shares, *ratios, row["groups"],
        row["removed"], row["error"], row["effect"], row["latency"], "; ".join(remarks),
    )  # fmt: skip
    if ratios[0] is not None:
        report.expect(ratios[0] >= LEAST, f"{stem}: {ratios[0]:.3f} of Torch-Pruning's share")
    report.expect(row["gone"] > 0, f"{stem}: {row['removed']} removed")
    same = row["error"] <= TOLERANCE < row["effect"]
    report.expect(same, f"{stem}: masked and sliced differ by {row['error']:.1e}, masking changes {row['effect']:.1e}")
    if row["latency"] is not None:
        report.expect(row["latency"] < 1, f"{stem}: latency {row['latency']:.3f} of the original's")


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("folder", type=Path, help="exports and measured rows")
    parser.add_argument("--tp", type=Path, metavar="PYTHON", help="interpreter with torch-pruning")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="models of the zoo")
    parser.add_argument("--fresh", action="store_true", help="measure rows again")
    arguments = parser.parse_args()
    from benchmarks.zoo.catalogue import ZOO
    from benchmarks.zoo.exporting import EXPORTERS, exported

    unknown = sorted(set(arguments.only) - set(ZOO))
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}; there are: {', '.join(ZOO)}")
    settings = {"ratio": RATIO, "tolerance": TOLERANCE, "sizes": FIRST_SIZES}
    report = measuring.Report("Prunable share beside Torch-Pruning's", COLUMNS, settings)
    rows: dict[str, Row] = {}
    for name in arguments.only or ZOO:
        other = theirs(name, arguments.folder, arguments.tp, arguments.fresh)
        for exporter in EXPORTERS:
            path, told = exported(name, exporter, arguments.folder)
            if path is None:
                report.add(name, exporter, *[None] * (len(COLUMNS) - 3), told)
                continue
            row = rows[path.stem] = kept_or_measured(path, arguments.fresh)
            judge(name, exporter, row, other, report)
    report.details["measured"] = rows
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
