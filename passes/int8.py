"""Store weights as int8 and multiply in int8, where that is faster and does not hurt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import onnx_ir as ir
from pydantic import Field, field_validator, model_validator

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.errors import UsageError
from graphopt.heal.config import QatConfig
from graphopt.quantization.drafting import Draft, Drafter
from graphopt.quantization.finding import find_sites, float_products
from graphopt.quantization.fusion import fusion_notes
from graphopt.quantization.gelu import tanh_notes
from graphopt.quantization.grids import Grid
from graphopt.quantization.opset import raised_to
from graphopt.quantization.ranges import RangeMethod
from graphopt.quantization.rescaling import rescaled
from graphopt.quantization.selection import ExclusionConfig, select
from graphopt.quantization.sites import Site, Table
from graphopt.quantization.targets import Target, target_named
from graphopt.quantization.weights import INT8_GRID, REDUCED_GRID, Codes
from graphopt.quantization.writer import Int8Writer
from graphopt.transform import Change, Declined, Fidelity, Need, Order, Pass, PassConfig, PassContext, Plan

if TYPE_CHECKING:
    from graphopt.heal.quantized import Trained

_FASTER = 0.98  #: static replaces dynamic below this ratio of their latencies
_DYNAMIC_OPSET, _STATIC_OPSET = 11, 13


class Int8Config(ExclusionConfig):
    """Parameters of ``int8``."""

    mode: Literal["auto", "dynamic", "static"] = "auto"
    """Activation ranges: found at run time, or fixed from calibration inputs; auto takes the faster on this machine.

    What is emitted for another machine cannot be timed here: auto then takes what the target's kernels do best."""

    activations: Literal["auto", "asymmetric", "symmetric"] = "auto"
    """Codes of static activations: uint8 with a zero point, or int8 around zero; auto: as the target wants them."""

    per_channel: bool = True
    """A scale for each column of a weight, instead of one for the whole of it."""

    smallest: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Elements that the weight of a MatMul or Gemm must have; auto: as many as the target's kernels need to gain time.

    0 saves the bytes of small ones, too, and takes longer than float. What convolutions put out as codes costs nothing
    to read, so products of that are never too small."""

    embeddings: bool = True
    """Store the rows of embedding tables as int8, too."""

    balance: float = Field(default=0.2, ge=0.0, le=1.0)
    """Scale down an activation's outlier channels, and the weights up, where that brings the error down to this share.

    Costs a Mul, or nothing where weights before can take it. 0: never; 0.5: often, some 4 % slower and much closer."""

    calibration: RangeMethod = RangeMethod.MSE
    """How static ranges are chosen from what calibration inputs show."""

    max_error: float = Field(default=0.05, ge=0.0, le=1.0)
    """A site stays float when int8 disturbs more than this share of its output's variance, on held-out inputs."""

    reduce_range: Literal["auto"] | bool = "auto"
    """Weights of 7 bits, for x86 CPUs without VNNI, whose kernels overflow on 8; auto: if the target is such a CPU."""

    correct_bias: bool = True
    """Take what int8 adds to a static site's output on average off its bias, where that lowers the error."""

    standard: bool = False
    """Write a static MatMul with a bias in standard operators, too: for other runtimes, some 5 % slower on a CPU."""

    qat: QatConfig | bool = False
    """Train the static form as int8 computes it against the original; true, or parameters of heal: {"budget": "2m"}."""

    @field_validator("qat")
    @classmethod
    def _is_a_training(cls, value: QatConfig | bool) -> QatConfig | bool:
        return QatConfig() if value is True else value

    @model_validator(mode="after")
    def _asks_for_static_ranges(self) -> Self:
        if self.mode == "dynamic" and self.activations == "symmetric":
            raise ValueError(
                "activations=symmetric needs mode=static or auto: ranges found at run time give uint8 codes"
            )
        if self.mode == "dynamic" and self.qat:
            raise ValueError("qat trains static ranges, and mode=dynamic has none; leave mode out, or say static")
        return self

    def form(self, target: Target) -> Target:
        """What to write for ``target`` under these parameters.

        Raises UsageError for codes that the target does not take.
        """
        row = target
        if self.activations == "asymmetric" and not target.zero_points:
            raise UsageError(f"activations=asymmetric: {target.name} takes zero point 0 only; leave it at auto")
        if self.activations != "auto":
            symmetric = self.activations == "symmetric"
            row = replace(row, activations=Grid(target.activations.bits, symmetric=symmetric))
        if self.reduce_range != "auto":
            row = replace(row, weights=REDUCED_GRID if self.reduce_range else INT8_GRID)
        if self.smallest != "auto":
            row = replace(row, least=self.smallest, narrowest=0)
        fused = row.fused and not self.standard and not row.activations.symmetric  # slow on int8, probes/avx2_forms.py
        return replace(row, fused=fused)


class Int8(Pass[Int8Config]):
    """Quantize matrix products, convolutions and embedding tables to int8.

    Matches:  MatMul, Gemm, FusedMatMul and packed Attention with a float32 weight ``W[K, N]``, bias included; Conv, of
              any number of groups (static only); LSTM (dynamic only); Gather or Slice of rows of a float32 table
              ``[R, D]``. Nested bodies too, where values cannot be observed and are dynamic.
    Rewrites: dynamic: ``Cast(MatMulInteger(DynamicQuantizeLinear(x), W8)) * (scale_x * scale_W) + bias``, one
              DynamicQuantizeLinear for all readers of ``x``; static: QuantizeLinear / DequantizeLinear pairs around the
              float op, on a CPU MatMulIntegerToFloat for a MatMul with a bias; what lies between convolutions stays in
              codes as far as ONNX Runtime has integer kernels (see ``quantization.regions``), and a GELU that only
              codes see is computed by tanh; tables:
              ``Cast(Gather(T8)) * Gather(scale)``. A weight is quantized once for all its readers. With ``qat`` weights
              of static products, their scales, biases and norms are trained first; see ``heal.quantized``.
    Score:    squared error of a site's output over its variance; sites above ``max_error`` stay float.
              What is written is a row of ``quantization.targets``.
    Raises:   UsageError for codes that the target does not take, and for ``qat`` when its checkpoint cannot be used;
              MissingDependencyError for ``qat`` without torch. What cannot be quantized or trained is declined with its
              reason.
    """

    name: ClassVar[str] = "int8"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    order: ClassVar[Order] = Order.PRECISION
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    strength: ClassVar[str | None] = "max_error"
    weakest: ClassVar[float] = 0.0
    Config: ClassVar[type[PassConfig]] = Int8Config

    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """Pick the sites, the codes of their weights and, with data, gains, ranges and the sites that stay float."""
        target = target_named(ctx.target)
        form = self.config.form(target)
        model, raised = raised_to(view.model, _STATIC_OPSET)
        found, declined = find_sites(model)
        sites, left = select(found, self._verdict(model, form))
        if sites and self.config.balance and ctx.has_data and ctx.can_run:
            scaled, count = rescaled(model, ctx, lambda m: select(find_sites(m)[0], self._verdict(m, form))[0])
            if count:
                model, raised = scaled, [*raised, f"channels of {count} activations scaled by the weights around them"]
                found, declined = find_sites(model)
                sites, left = select(found, self._verdict(model, form))
        declined = [*declined, *left]
        if not sites:
            return Plan((), tuple(declined), ("nothing to quantize", *(raised if model is view.model else ())))
        drafter = Drafter(
            model,
            ctx,
            sites,
            target=form,
            per_channel=self.config.per_channel,
            balance=self.config.balance,
            calibration=self.config.calibration,
            max_error=self.config.max_error,
            correct_bias=self.config.correct_bias,
        )
        draft, notes = self._resolve(drafter)
        resolved: dict[str, Any] = {}
        if isinstance(self.config.qat, QatConfig):
            trained = self._trained(drafter, draft, self.config.qat)
            draft, model = trained.draft, trained.model
            notes, declined = [*notes, *trained.notes], [*declined, *trained.declined]
            resolved["qat"] = {**self.config.qat.model_dump(), **trained.pinned} if draft.mode == "static" else False
        changes = [_change(site, draft) for site in draft.sites]
        reduced = form.weights.bits < 8
        if reduced:
            notes.append(f"weights of 7 bits (reduce_range): kernels of {ctx.target} add uint8 x int8 in 16 bits")
        if products := float_products(model):
            notes.append(f"{products} products of two computed operands (attention) stay float: they hold no weights")
        notes += tanh_notes(draft.sites, draft.choices)
        if draft.sites and ctx.can_run and target.on_cpu:
            notes += fusion_notes(ctx.loaded(Int8Writer.written(model, draft.choices)), draft.sites)
        return Plan(
            tuple(changes),
            (*declined, *draft.declined),
            (*raised, *notes, *draft.notes),
            resolved={**self._pinned(draft, reduced), **resolved},
            payload=(model if model is not view.model else None, draft.choices),
        )

    def apply(self, editor: GraphEditor, plan: Plan) -> None:
        """Write int8 nodes in the place of every planned site."""
        if not plan.empty:
            raised, choices = plan.payload
            if raised is not None:
                editor.adopt(raised)
            Int8Writer.rewrite(editor, choices)

    def _verdict(self, model: ir.Model, form: Target) -> _Verdict:
        return _Verdict(self.config, form, model.graph.opset_imports.get("", 1))

    def _pinned(self, draft: Draft, reduced: bool) -> dict[str, object]:
        pinned: dict[str, object] = {"mode": draft.mode, "max_error": draft.max_error, "reduce_range": reduced}
        if draft.mode == "dynamic" and self.config.activations == "symmetric":
            pinned["activations"] = "auto"  # there were no static ones
        return pinned

    def _resolve(self, drafter: Drafter) -> tuple[Draft, list[str]]:
        """The draft of the mode asked for; for ``auto`` the faster one here that is good enough."""
        mode, ctx, target = self.config.mode, drafter.ctx, drafter.target
        asked = "activations=symmetric" if self.config.activations == "symmetric" else "mode=static"
        if mode == "auto" and (self.config.activations == "symmetric" or not target.dynamic):
            mode = "static"
        if not drafter.measurable:
            why = "the model cannot be run here" if ctx.has_data else "no data"
            if not target.dynamic:
                return drafter.draft("dynamic"), [f"{why}: {target.name} takes static ranges only"]
            notes = [f"{why}: dynamic, outlier channels not balanced, no site kept float for its error"]
            if mode == "static" or self.config.qat:
                asked = "qat" if self.config.qat and self.config.mode == "auto" else asked
                notes.append(f"{asked} needs data to calibrate on; dynamic is used instead")
            return drafter.draft("dynamic"), notes
        opset = drafter.model.graph.opset_imports.get("", 1)
        if mode != "dynamic" and opset < _STATIC_OPSET:
            return drafter.draft("dynamic"), [f"opset {opset} has no per-channel DequantizeLinear: dynamic is used"]
        if mode == "dynamic" and not target.dynamic:
            return drafter.draft("static"), [f"{target.name} has no kernels for mode=dynamic; static is used instead"]
        if self.config.qat:  # trained first: the guard is asked about what comes of it
            return drafter.draft("static", guarded=False), []
        if mode != "auto":
            return drafter.draft(mode), []
        if not ctx.native:
            return drafter.draft(target.auto), [f"auto: {target.auto}; nothing is timed, as this is no {target.name}"]
        drafts = {m: drafter.draft(m) for m in ("dynamic", "static")}
        if not any(draft.sites for draft in drafts.values()):
            return drafts["dynamic"], []
        models = {m: Int8Writer.written(drafter.model, draft.choices) for m, draft in drafts.items()}
        seconds = ctx.latency(models)
        ratio = seconds["static"] / seconds["dynamic"]
        weakened = drafts["static"].max_error < drafts["dynamic"].max_error
        chosen = "static" if ratio < _FASTER and not weakened else "dynamic"
        return drafts[chosen], [f"auto: {chosen}; static takes {ratio:.2f} x the time of dynamic here"]

    def _trained(self, drafter: Drafter, draft: Draft, training: QatConfig) -> Trained:
        from graphopt.heal.quantized import Trained, train_draft

        if draft.mode == "dynamic":
            reason = "its ranges are dynamic, which finds them in every run: there is none to train for"
            return Trained(draft, drafter.model, declined=[Declined("qat", reason)])
        return train_draft(drafter, draft, training)


class _Verdict:
    """Why a site stays float, going by the parameters and the opset."""

    def __init__(self, config: Int8Config, form: Target, opset: int) -> None:
        self._config, self._form, self._opset = config, form, opset
        self._excluded = config.excluded

    def __call__(self, site: Site) -> str | None:
        if (reason := self._excluded(site)) is not None:
            return reason
        if (reason := self._form.objection(site)) is not None:
            return reason
        if isinstance(site, Table):
            return None if self._config.embeddings else "embeddings=false"
        if self._opset < _DYNAMIC_OPSET:
            return f"opset {self._opset} has no DynamicQuantizeLinear; convert to opset {_DYNAMIC_OPSET} or later"
        tensor = site.weight.const_value
        return None if tensor is not None and tensor.size else "its weight is empty"


def _change(site: Site, draft: Draft) -> Change:
    codes: Codes = draft.choices.codes[site.name]
    tensor = site.weight.const_value
    assert tensor is not None
    first = next(s for s in draft.sites if s.weight is site.weight)
    saves = tensor.nbytes - codes.nbytes if first is site else 0
    before = f"{site.node.op_type} with float32 {list(tensor.shape.numpy())}"
    if isinstance(site, Table):
        return Change(site.name, before, "int8 rows, a scale for each", saves)
    name = site.activation.name or ""
    chosen = None if site.always_dynamic else draft.choices.ranges.get(name)
    kind = "dynamic uint8" if chosen is None else f"static {np.dtype(chosen.grid.dtype).name}"
    balanced = ", balanced" if name in draft.choices.gains else ""
    scales = "a scale" if len(codes.scale) == 1 else "a scale for each column"
    return Change(site.name, before, f"int8 weight, {scales}; {kind} activation{balanced}", saves)
