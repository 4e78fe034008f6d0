"""Check 2: the same groups and layers in every export, and slicing a unit away equals masking it.

    python -m models.minilm.variants exports
    python -m benchmarks.groups exports

For every ``.onnx`` file of the folder: the prunable groups by role and the layers after ``cleanup``; what
``prune(ratio=0.25)`` says it removes against what its result lacks; and the largest difference between outputs with a
quarter of all units masked and with the same units sliced away, at several shapes with ragged masks. Files named like
the tiny models of ``tests/models/tiny.py`` are held to those models' own numbers; all others to MiniLM's.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir

import graphopt
from benchmarks import measuring
from graphopt.analysis.axes import Group
from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.errors import GraphoptError
from graphopt.model import clone_model, model_sizes, open_model
from graphopt.passes.cleanup import Cleanup
from graphopt.runtime import Session, symbolic_dims, synthetic_feed
from graphopt.runtime.dims import dim_role
from graphopt.runtime.inputs import input_facts
from graphopt.runtime.limits import max_length
from graphopt.slicing import mask_units, slice_units
from graphopt.transform import PassContext

SHAPES = ((1, 1), (1, 16), (3, 7), (16, 128))
RATIO, TOLERANCE = 0.25, 1e-5
_TINY = ({"heads": {4: 2}, "neurons": {160: 2}}, 2)
_GROUPED = ({"heads": {2: 4}, "neurons": {160: 2}}, 2)  # per layer: 2 key-value heads, and 2 query heads in each
#: role -> unit count -> number of groups, and the number of layers, by the first word of the file's name. In T5 a table
#: of relative positions ties the heads of all layers of a stack together, and cross-attention shares one bias too.
EXPECTED: dict[str, tuple[dict[str, dict[int, int]], int]] = {
    "": ({"heads": {12: 6}, "neurons": {1536: 6}}, 6),
    "bert": _TINY,
    "refused": _TINY,
    "gpt2": ({"heads": {4: 2}, "neurons": {256: 2}}, 2),
    "llama": _GROUPED,
    "qwen3": _GROUPED,
    "t5": ({"heads": {4: 3}, "neurons": {128: 4}}, 4),
    "whisper": ({"heads": {4: 6}, "neurons": {128: 4}}, 4),
}


def cleaned(path: Path) -> ir.Model:
    """The model as passes see it."""
    model = open_model(path)
    step = Cleanup()
    step.apply(GraphEditor(model), step.plan(GraphView(model), cast(PassContext, None)))
    return model


def sizes_by_role(groups: tuple[Group, ...]) -> dict[str, dict[int, int]]:
    """role -> unit count -> number of groups."""
    found: dict[str, Counter[int]] = {}
    for group in groups:
        if group.role in ("heads", "neurons"):
            found.setdefault(group.role, Counter())[group.size] += 1
    return {role: dict(sorted(counts.items())) for role, counts in found.items()}


def feeds(model: ir.Model, session: Session) -> dict[str, measuring.Feed]:
    """Ragged inputs at the shapes of the check; a length that the model does not take is halved until it does."""
    facts = {fact.name: fact for fact in input_facts(model)}
    roles = {name: dim_role(name, places, facts) for name, places in symbolic_dims(model).items()}
    longest = max_length(model) or 512
    found = {}
    for batch, length in SHAPES:
        length = min(length, longest)
        while True:
            sizes = {name: batch if role == "batch" else length for name, role in roles.items()}
            feed = synthetic_feed(model, sizes, seed=batch + length, ragged=True)
            try:
                session.run(feed)
                break
            except GraphoptError:
                length //= 2
                if not length:
                    raise
        found[f"{batch}x{length}"] = feed
    return found


def mask_against_slice(model: ir.Model, view: GraphView) -> tuple[float, float]:
    """Largest difference between masking and slicing a random quarter of the units of every group.

    Beside it what masking itself does to the outputs, without which a difference of 0 would say nothing.
    """
    rng = np.random.default_rng(0)
    groups = view.axes.by_role("heads", "neurons")
    removal = {g: rng.choice(g.size, max(1, g.size // 4), replace=False) for g in groups if g.size > 1}
    masked, sliced = (clone_model(model) for _ in range(2))
    for copy, act in ((masked, mask_units), (sliced, slice_units)):
        own = GraphView(copy)
        by_name = {group.name: group for group in own.axes.groups}
        editor = GraphEditor(copy)
        act(editor, own.axes, {by_name[group.name]: units for group, units in removal.items()})
        editor.drop_dead()
    sessions = [Session(one, threads=1) for one in (masked, sliced, model)]
    worst = effect = 0.0
    for feed in feeds(model, sessions[2]).values():
        expected, found, original = (session.run(feed) for session in sessions)
        for name, array in expected.items():
            worst = max(worst, float(np.abs(array - found[name]).max(initial=0.0)))
            effect = max(effect, float(np.abs(array - original[name]).max(initial=0.0)))
    return worst, effect


def pruned(path: Path, before: tuple[Group, ...]) -> tuple[str, str, float]:
    """What prune says it left, what it left, and the share of the prunable parameters that went."""
    result = graphopt.optimize(path, f"prune(ratio={RATIO})", metric=measuring.open_guard, max_drop=1.0, threads=1)
    step = next(item for item in result.passes if item.name == "prune")
    if not step.status.kept:
        return f"{step.status}: {step.reason}", "nothing", 0.0
    said = {group.name: group.size for group in before}
    for change in step.changes:
        if change.before[0].isdigit():  # the others are refits
            said[change.site.split(" ")[0]] = int(change.after.split(" ")[0])
    after = GraphView(result.model).axes.by_role("heads", "neurons")
    left = {group.name: group.size for group in after}
    for role in ("heads", "neurons"):  # the last unit of a group is an axis of one, which the analysis does not list
        gone = sum(g.role == role for g in before) - sum(g.role == role for g in after)
        left |= {f"{role}.single{number}": 1 for number in range(gone)}
    total = sum(group.parameters for group in before)
    removed = step.parameters_before - model_sizes(result.model).parameters
    return _total(said), _total(left), removed / total


def _total(sizes: dict[str, int]) -> str:
    found: Counter[str] = Counter()
    for name, size in sizes.items():
        found[name.partition(".")[0]] += size
    return ", ".join(f"{count} {role}" for role, count in sorted(found.items()))


def measure(path: Path, report: measuring.Report) -> None:
    """One row, and its verdicts."""
    family = path.name.partition("-")[0]
    groups, layers = EXPECTED.get(family, EXPECTED[""])
    model = cleaned(path)
    view = GraphView(model)
    found, count = sizes_by_role(view.axes.by_role("heads", "neurons")), len(view.structure.layers)
    difference, effect = mask_against_slice(model, view)
    said, left, share = pruned(path, view.axes.by_role("heads", "neurons"))
    report.add(path.stem, _listed(found), count, said, left, share, difference, effect)
    name = path.stem
    report.expect(found == groups and count == layers, f"{name}: {_listed(found)}; {count} layers")
    report.expect(said == left, f"{name}: prune says that {said} remain, and they do")
    report.expect(abs(share - RATIO) <= 0.02, f"{name}: {share:.1%} of the prunable parameters gone, {RATIO:.0%} asked")
    same = difference <= TOLERANCE < effect
    report.expect(
        same, f"{name}: masking and slicing differ by {difference:.1e}, and by {effect:.2g} from the original"
    )


def _listed(found: dict[str, dict[int, int]]) -> str:
    return "; ".join(f"{n} x {size} {role}" for role, sizes in found.items() for size, n in sizes.items()) or "none"


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of ONNX files")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="files whose names contain one of these")
    arguments = parser.parse_args()
    columns = (
        "export",
        "prunable groups",
        "layers",
        "prune says",
        "prune left",
        "share removed",
        "mask - slice",
        "mask - original",
    )
    settings: dict[str, Any] = {"ratio": RATIO, "shapes": SHAPES, "tolerance": TOLERANCE}
    report = measuring.Report("Groups, layers and slicing on every export", columns, settings)
    paths = [p for p in sorted(arguments.folder.glob("*.onnx")) if any(w in p.name for w in arguments.only or [""])]
    report.expect(bool(paths), f"{len(paths)} exports found")
    for path in paths:
        try:
            measure(path, report)
        except GraphoptError as error:
            report.add(path.stem, f"error: {error}", *[None] * 7)
            report.expect(False, f"{path.stem}: {error}")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
