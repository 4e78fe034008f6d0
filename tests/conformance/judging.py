"""One case through the forms of the exact passes: what may not change, and whether it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.interop import NoMeasurements
from graphopt.model import clone_model, digest, open_model
from graphopt.passes.cleanup import Cleanup
from graphopt.passes.fuse import Fuse
from graphopt.passes.prune import Prune
from graphopt.transform import Pass
from tests.conformance.cases import Case, is_random
from tests.conformance.running import difference, run

FORMS = ("cleanup", "cleanup,fuse", "prune(ratio=0)")


@dataclass
class Verdict:
    """What became of one case: a reason why it was skipped, or of each form that failed."""

    case: str
    skipped: str | None = None
    failures: dict[str, str] = field(default_factory=dict)
    unstable: bool = False  #: the original's own outputs depend on ONNX Runtime's optimisation level


def judge(case: Case, folder: Path, forms: Callable[[Path], dict[str, bytes | str]]) -> Verdict:
    """Run the original, then every form that ``forms`` makes of its file (a string is the reason why it made none)."""
    verdict = Verdict(case.name)
    proto = case.proto
    if is_random(proto):
        verdict.skipped = "random by specification"
        return verdict
    try:
        expected = run(case.model, case.feed)
    except Exception as error:
        verdict.skipped = f"ONNX Runtime: {reason(error)}"
        return verdict
    valid = _check(case.model) is None
    source = folder / "model.onnx"
    source.write_bytes(case.model)
    for form, made in forms(source).items():
        fault = made if isinstance(made, str) else _fault(case, proto, made, expected, valid, verdict)
        if fault:
            verdict.failures[form] = fault
    if source.read_bytes() != case.model:
        verdict.failures["file"] = "the input file was changed"
    return verdict


def _fault(
    case: Case, before: onnx.ModelProto, made: bytes, expected: list[Any], valid: bool, verdict: Verdict
) -> str | None:
    after = onnx.ModelProto.FromString(made)
    for what in ("input", "output"):
        if _interface(before, what) != _interface(after, what):
            return f"the graph's {what}s were changed"
    if valid and (complaint := _check(made)):
        return f"checker: {complaint}"
    try:
        found = run(made, case.feed)
    except Exception as error:
        return f"does not run: {reason(error)}"
    fault = difference(expected, found)
    if fault and difference(expected, plain := run(case.model, case.feed, optimize=False)):
        verdict.unstable = True
        fault = difference(plain, found) and fault
    return fault


def _interface(proto: onnx.ModelProto, what: str) -> list[tuple[str, bytes]]:
    """Names and types with their dims; an input that has a default is none a caller must give."""
    weights = {tensor.name for tensor in proto.graph.initializer} if what == "input" else set()
    infos = getattr(proto.graph, what)
    return [(info.name, info.type.SerializeToString(deterministic=True)) for info in infos if info.name not in weights]


def _check(model: bytes) -> str | None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        return reason(error)
    return None


def reason(error: BaseException) -> str:
    """The first line of an error, without what differs from case to case."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# -- this project's forms --------------------------------------------------------------------------------------------
def own_forms(source: Path) -> dict[str, bytes | str]:
    """The three forms, pass by pass, without the pipeline around them."""
    try:
        opened = open_model(source)
    except Exception as error:
        return dict.fromkeys(FORMS, f"cannot be opened: {reason(error)}")
    made: dict[str, bytes | str] = {}
    model = opened
    for form, step in (("cleanup", Cleanup()), ("cleanup,fuse", Fuse()), ("prune(ratio=0)", Prune(ratio=0))):
        try:
            if isinstance(step, Prune):
                made[form] = _pruned_by_nothing(step, opened)
            else:
                model = _applied(step, model)
                made[form] = _bytes(model)
        except Exception as error:
            made[form] = f"fails: {type(error).__name__}: {reason(error)}"
    return made


def _applied(step: Pass[Any], model: ir.Model) -> ir.Model:
    before = digest(model)
    plan = step.plan(GraphView(model), NoMeasurements(model))
    assert digest(model) == before, f"{step.name}: plan edited the model"
    if plan.empty:
        return model
    result = clone_model(model)
    editor = GraphEditor(result)
    step.apply(editor, plan)
    editor.drop_dead()
    assert digest(result) != before, f"{step.name} claims a change and made none"
    return result


def _pruned_by_nothing(step: Prune, model: ir.Model) -> bytes | str:
    plan = step.plan(GraphView(model), NoMeasurements(model))
    if not plan.empty or not plan.declined:
        return "is not a no-op with a reason"
    return _bytes(model)


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()
