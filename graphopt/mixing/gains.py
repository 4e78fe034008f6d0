"""What a form saves: seconds, by timing models in which all groups of a kind have it or go without."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from graphopt.mixing.forms import Form
from graphopt.mixing.site_groups import SiteGroup, assigned
from graphopt.transform import PassContext

_SECONDS = 1.5  #: of timing, for each model
_NOISE = 0.002  #: share of a run that a kind of group must save: what is less cannot be told from nothing


def seconds_saved(
    model: ir.Model, ctx: PassContext, groups: Sequence[SiteGroup], forms: Collection[Form]
) -> dict[tuple[str, str], float]:
    """By group and form: how much sooner a run ends with it, on the timing shapes; negative where it ends later.

    A form is timed where every group that can take it has it, beside models in which one kind of group is as it was:
    neighbours decide whether ONNX Runtime fuses a node, and in a good result most neighbours are quantized.
    """
    found: dict[tuple[str, str], float] = {}
    timed = [form for form in forms if form.computes]
    for form in timed:
        able = [group for group in groups if form.name in group.forms]
        kinds: dict[tuple[object, ...], list[SiteGroup]] = {}
        for group in able:
            kinds.setdefault(group.kind, []).append(group)
        models = {"all": assigned(model, able, [form], dict.fromkeys((p.name for p in able), form.name))}
        for number, kind in enumerate(kinds.values()):
            without = {group.name: form.name for group in able if group not in kind}
            models[str(number)] = assigned(model, able, [form], without)
        seconds = ctx.latency(models, seconds=_SECONDS * len(models)) if able else {}
        for number, kind in enumerate(kinds.values()):
            saved = seconds[str(number)] - seconds["all"]
            saved = 0.0 if abs(saved) < _NOISE * seconds["all"] else saved
            found.update({(group.name, form.name): saved / len(kind) for group in kind})
    return found
