"""What a written model says about its own making.

Nothing here depends on time, place or speed, so that a replay writes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import onnx_ir as ir

import graphopt
from graphopt.model import set_provenance
from graphopt.pipeline.recipe import Recipe, Step
from graphopt.pipeline.result import Cause, PassResult, Status


def resolved_recipe(recipe: Recipe, passes: Sequence[PassResult], *, target: str) -> Recipe:
    """``recipe`` with every decision pinned: choices, final strengths, and what was left out and why.

    A pass that was rolled back for its speed must not be judged by speed again, so a replay keeps what was kept.
    """
    steps = []
    for item in passes:
        skip = item.reason if item.status is Status.SKIPPED else None
        if item.status is Status.ROLLED_BACK:
            skip = str(item.cause or Cause.FAILED)
        steps.append(Step(name=item.name, params=item.params if skip else item.resolved or item.params, skip=skip))
    fields = {
        **recipe.model_dump(),
        "passes": [step.model_dump() for step in steps],
        "cleanup": False,
        "target": target,
    }
    return Recipe.make(fields).override(keep_slower=True)


def sign(model: ir.Model, *, input_digest: str, resolved: Recipe, passes: Sequence[PassResult]) -> None:
    """Write version, input digest, resolved recipe and what each pass changed into the model's metadata."""
    changed = [{"name": item.name, "changed": len(item.changes)} for item in passes if item.status.kept]
    set_provenance(model, "version", graphopt.__version__)
    set_provenance(model, "input", input_digest)
    set_provenance(model, "recipe", json.dumps(resolved.portable(), sort_keys=True, separators=(",", ":")))
    set_provenance(model, "passes", json.dumps(changed, separators=(",", ":")))
