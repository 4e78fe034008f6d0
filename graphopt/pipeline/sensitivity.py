"""What is lost when one site of a model alone is quantized or pruned, site by site."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel, Field, ValidationError

from graphopt.analysis.view import GraphView
from graphopt.errors import ModelError, UsageError
from graphopt.model import digest, open_model, source_path
from graphopt.pipeline.fidelity import mean_divergence
from graphopt.pipeline.inputs import Feed
from graphopt.pipeline.job import Setup
from graphopt.pipeline.optimize import prepare_recipe
from graphopt.pipeline.output import check_report, write_report
from graphopt.pipeline.registry import discover
from graphopt.pipeline.result import DataSource, ModelFacts
from graphopt.pipeline.setup import build_steps, set_up
from graphopt.pipeline.talk import Silent, Talk
from graphopt.pipeline.tasks import Metric, load_metric, score
from graphopt.pipeline.transaction import transact
from graphopt.probing.measuring import measure_variants
from graphopt.probing.variants import SiteVariant, WeightKind, prune_variants, weight_variants
from graphopt.runtime.dataset import Dataset
from graphopt.transform import Declined

WEIGHT_KINDS: tuple[WeightKind, ...] = get_args(WeightKind)
KINDS = (*WEIGHT_KINDS, "prune")
SAMPLES = 128  #: held-out inputs that every site is judged on
_FORMAT = 1


class SiteSensitivity(BaseModel):
    """A node with weights, or a group of units.

    ``loss``: mean ``1 - cosine`` of the outputs, or by how much the metric falls.
    """

    kind: str
    site: str
    tensor: str
    operator: str
    dims: list[int]
    layer: int | None = None
    saves: int
    loss: float


class Sensitivity(BaseModel):
    """What ``graphopt sensitivity`` prints; sites in graph order, those of each kind together."""

    model: ModelFacts
    measure: str  #: "divergence", or the metric's name
    baseline: float | None = None  #: the metric of the model as it is
    settings: dict[str, Any]
    data: DataSource
    sites: list[SiteSensitivity] = Field(default_factory=list)
    declined: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    resumed: int = 0  #: sites that the state file had already
    seconds: float = 0.0

    @property
    def ranked(self) -> list[SiteSensitivity]:
        """The most sensitive first."""
        return sorted(self.sites, key=lambda site: -site.loss)


def sensitivity(
    model: Path | str | ir.Model,
    *,
    kinds: Sequence[str] = ("int8",),
    mode: str = "dynamic",
    ratio: float = 0.5,
    samples: int = SAMPLES,
    data: str | Path | Dataset | None = None,
    metric: str | Metric | None = None,
    state: Path | str | None = None,
    talk: Talk | None = None,
    **fields: Any,
) -> Sensitivity:
    """Compress one site of ``model`` at a time and say what the outputs lose, on held-out inputs.

    Args:
        model: a file or an opened model; looked at as passes see it, after ``cleanup``.
        kinds: "int8": each product's weight and activation, and each table; "int4", "float16": each weight, alone;
            "prune": each group of units.
        mode: int8 with ranges found at run time, or fixed from calibration inputs.
        ratio: share of a group's units that is pruned.
        samples: held-out inputs that each site is judged on.
        data: inputs as the command line takes them, or a Dataset; without, they are synthetic.
        metric: ``module:function``, or the function; the loss is then what it falls by. Without one, the loss is the
            mean ``1 - cosine`` between the outputs, and one pass over the inputs serves a dozen sites.
        state: a JSON file that results are added to as they come, and read from by the next run of the same settings.
        fields: ``tokenizer``, ``limit``, ``provider``, ``threads``, ``seed`` as for ``optimize``.

    Raises UsageError, ModelError, MissingDependencyError.
    """
    started = time.perf_counter()
    talk = talk or Silent()
    _check(kinds, mode, ratio, samples)
    source = source_path(model) if isinstance(model, ir.Model) else Path(model)
    opened = model if isinstance(model, ir.Model) else open_model(model)
    setup = _prepare(opened, source, data, metric, fields, talk)
    base, ctx = setup.state.model, setup.bench.context
    if not ctx.can_run:
        raise ModelError(f"{source or 'the model'} does not run here, so nothing can be measured on it")
    named = metric if isinstance(metric, str) else getattr(metric, "__qualname__", "metric") if metric else None
    dataset = setup.inputs.batches("selection", samples)
    settings: dict[str, Any] = {
        "kinds": list(kinds),
        **({"mode": mode} if "int8" in kinds else {}),
        **({"ratio": ratio} if "prune" in kinds else {}),
        **({"samples": samples} if metric is None else {}),
    }
    report = Sensitivity(
        model=setup.input,
        measure=named or "divergence",
        settings=settings,
        data=DataSource(name=dataset.name, synthetic=setup.inputs.synthetic, samples=dataset.samples or samples),
        notes=list(setup.notes),
    )
    if setup.inputs.synthetic and metric is None:
        report.notes.append("synthetic inputs: they tell large from small, and no more; pass --data")
    key = {
        "format": _FORMAT,
        "model": digest(base),
        "measure": report.measure,
        "data": setup.inputs.dataset.name,
        "inputs": _content(setup.inputs.batches("selection", samples)),
        **settings,
        **{name: str(value) for name, value in sorted(fields.items()) if value is not None and name != "threads"},
    }
    memory = _Memory(Path(state) if state is not None else None, key, source)
    view = GraphView(base, provider=setup.bench.original.sessions.provider, example=ctx.example)
    variants: list[SiteVariant] = []
    declined: list[Declined] = []
    talk.step("looking for sites")
    for kind in WEIGHT_KINDS:
        if kind in kinds:
            found, left = weight_variants(base, ctx, kind, "static" if mode == "static" else "dynamic")
            variants, declined = variants + found, declined + left
    if "prune" in kinds:
        found, left = prune_variants(view, ctx, ratio)
        variants, declined = variants + found, declined + left
    report.declined = {item.site: item.reason for item in declined}
    report.resumed = sum(variant.key in memory.losses for variant in variants)
    if metric is not None:
        report.baseline = setup.bench.guard.reference_score()
    left_over = [variant for variant in variants if variant.key not in memory.losses]
    talk.step(f"measuring {len(left_over)} sites" + (f", {report.resumed} known" if report.resumed else ""))
    with talk.progress("sensitivity", len(left_over)) as bar:
        if metric is not None:
            for variant in left_over:
                memory.add({variant.key: _drop(setup, variant, metric, report)})
                bar.advance()
        else:

            def feeds() -> Iterator[Feed]:
                return iter(setup.inputs.batches("selection", samples))

            sessions = setup.bench.original.sessions
            for losses in measure_variants(base, left_over, feeds, sessions, mean_divergence, advance=bar.advance):
                memory.add(losses)
    layers = {node.name: layer.index for layer in view.structure.layers for node in layer.nodes}
    report.sites = [_row(variant, memory.losses[variant.key], layers) for variant in variants]
    if not variants:
        report.notes.append("nothing here can be compressed in this way; see declined")
    report.seconds = time.perf_counter() - started
    return report


def _content(feeds: Iterable[Feed]) -> str:
    """Hex sha256 of the inputs that sites are judged on: other contents under the same name are other inputs."""
    sha = hashlib.sha256()
    for feed in feeds:
        for name, array in sorted(feed.items()):
            sha.update(f"{name}{array.dtype}{array.shape}".encode())
            sha.update(str(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _check(kinds: Sequence[str], mode: str, ratio: float, samples: int) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UsageError(f"kinds {', '.join(unknown) or 'none'}: give one or more of {', '.join(KINDS)}")
    if mode not in ("dynamic", "static"):
        raise UsageError(f"mode {mode!r}: give dynamic or static")
    if not 0 < ratio < 1:
        raise UsageError(f"ratio {ratio:g}: give a share between 0 and 1")
    if samples < 1:
        raise UsageError(f"samples {samples}: give 1 or more")


def _prepare(
    model: ir.Model,
    source: Path | None,
    data: str | Path | Dataset | None,
    metric: str | Metric | None,
    fields: dict[str, Any],
    talk: Talk,
) -> Setup:
    """The cleaned model with its inputs; what cleanup does not manage stays as it is."""
    spec = str(data) if isinstance(data, str | Path) else None
    recipe = prepare_recipe("cleanup", **({"data": spec} if spec is not None else {}), **fields)
    steps = build_steps(recipe, discover(), talk)
    setup = set_up(
        model,
        source,
        recipe,
        steps,
        data=data if isinstance(data, Dataset) else None,
        metric=load_metric(metric) if metric is not None else None,
        dry_run=False,
        talk=talk,
    )
    for step in steps[len(setup.done) :]:
        assert step.transform is not None
        result, setup.state = transact(step.transform, setup.state, setup.bench)
        if result.reason:
            setup.notes.append(f"{step.name} {result.status}: {result.reason}")
    return setup


def _drop(setup: Setup, variant: SiteVariant, metric: str | Metric, report: Sensitivity) -> float:
    session = setup.bench.original.sessions.open(variant.build(), label=f"the model with only {variant.key} changed")
    assert report.baseline is not None
    return report.baseline - score(load_metric(metric), session, report.measure)


def _row(variant: SiteVariant, loss: float, layers: dict[str | None, int]) -> SiteSensitivity:
    within = {layers[node.name] for node in variant.nodes if node.name in layers}
    return SiteSensitivity(
        kind=variant.kind,
        site=variant.site,
        tensor=variant.tensor,
        operator=variant.operator,
        dims=list(variant.dims),
        layer=within.pop() if len(within) == 1 else None,
        saves=variant.saves,
        loss=loss,
    )


class _Memory:
    """Losses by key, and the file that they are kept in, written as a whole each time."""

    def __init__(self, path: Path | None, key: dict[str, Any], model: Path | None) -> None:
        self.path, self.key = path, key
        self.losses: dict[str, float] = {}
        if path is None:
            return
        check_report(path, model or path.with_name(""), option="--state")
        if not path.exists():
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            stored, losses = known["key"], {str(k): float(v) for k, v in known["losses"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise UsageError(
                f"--state {path} is no state of graphopt sensitivity ({error}); give another file"
            ) from error
        different = [name for name in {**key, **stored} if key.get(name) != stored.get(name)]
        if different:
            raise UsageError(
                f"--state {path} was made with another {', '.join(sorted(different))}; delete it or give another file"
            )
        self.losses = losses

    def add(self, losses: dict[str, float]) -> None:
        self.losses.update(losses)
        if self.path is not None:
            text = json.dumps({"key": self.key, "losses": self.losses}, indent=1)
            write_report(self.path, text, option="--state")
