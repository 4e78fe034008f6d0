"""What a form saves: seconds, by timing models in which all places of a kind have it or go without."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from graphopt.mixing.forms import Form
from graphopt.mixing.places import Place, assigned
from graphopt.transform import PassContext

_SECONDS = 1.5  #: of timing, for each model
_NOISE = 0.002  #: share of a run that a kind of place must save: what is less cannot be told from nothing


def seconds_saved(
    model: ir.Model, ctx: PassContext, places: Sequence[Place], forms: Collection[Form]
) -> dict[tuple[str, str], float]:
    """By place and form: how much sooner a run ends with it, on the timing shapes; negative where it ends later.

    A form is timed where every place that can take it has it, beside models in which one kind of place is as it was:
    neighbours decide whether ONNX Runtime fuses a node, and in a good result most neighbours are quantized.
    """
    found: dict[tuple[str, str], float] = {}
    timed = [form for form in forms if form.computes]
    for form in timed:
        able = [place for place in places if form.name in place.forms]
        kinds: dict[tuple[object, ...], list[Place]] = {}
        for place in able:
            kinds.setdefault(place.kind, []).append(place)
        models = {"all": assigned(model, able, [form], dict.fromkeys((p.name for p in able), form.name))}
        for number, kind in enumerate(kinds.values()):
            without = {place.name: form.name for place in able if place not in kind}
            models[str(number)] = assigned(model, able, [form], without)
        seconds = ctx.latency(models, seconds=_SECONDS * len(models)) if able else {}
        for number, kind in enumerate(kinds.values()):
            saved = seconds[str(number)] - seconds["all"]
            saved = 0.0 if abs(saved) < _NOISE * seconds["all"] else saved
            found.update({(place.name, form.name): saved / len(kind) for place in kind})
    return found
