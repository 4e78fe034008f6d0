"""Store weights in few bits and go on computing in float, where that does not hurt."""

from __future__ import annotations

from typing import ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.quantization.finding import WEIGHT_ONLY, find_sites
from graphopt.quantization.groups import Form, Method, Settings
from graphopt.quantization.nbits import STANDARD_OPSET, NBitsWriter
from graphopt.quantization.opset import raised_to
from graphopt.quantization.selection import ExclusionConfig, select
from graphopt.quantization.sites import Linear, Site, Table
from graphopt.quantization.weight_drafting import WeightDraft, WeightDrafter
from graphopt.transform import Change, Fidelity, Need, Order, Pass, PassConfig, PassContext, Plan


class WeightsConfig(ExclusionConfig):
    """Parameters of ``weights``."""

    bits: Literal[2, 4, 8] = 4
    """Bits of each weight of a product. A weight that would suffer more than ``max_error`` takes the next more."""

    block: Literal[16, 32, 64, 128, 256] = 128
    """Weights that share a scale. Smaller blocks are closer, bigger and slower."""

    method: Method = "gptq"
    """rtn: nearest; hqq: half-quadratic; awq: loud inputs come first; gptq: other weights make up for errors.

    The last two need data; without, rtn takes their place."""

    symmetric: bool = False
    """Zero is in the middle of the codes; false: where each block's zero point says, closer at hardly more bytes."""

    embeddings: Literal[0, 4, 8] = 4
    """Bits of the rows of embedding tables; 0: they stay float."""

    form: Form = "auto"
    """standard: DequantizeLinear with blocks (opset 21; 25 for 2 bits); contrib: MatMulNBits, for older consumers."""

    max_error: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of its output's variance, on held-out inputs, that a weight's codes may disturb; of a table, its rows'."""


class Weights(Pass[WeightsConfig]):
    """Quantize the weights of matrix products and embedding tables, not the activations.

    Matches:  MatMul, Gemm and FusedMatMul with a float32 or float16 weight ``W[K, N]``, bias included; Gather or Slice
              of rows of a table ``[R, D]``. Nested bodies too.
    Rewrites: ``MatMul(x, DequantizeLinear(W4[K, N], scale[K / block, N])) + bias``, which ONNX Runtime fuses to one
              MatMulNBits on loading, or that operator itself; rows of 4 bits: bytes gathered, taken apart, times the
              scales of their blocks; rows of 8 bits: ``Cast(Gather(T8)) * Gather(scale)``. A table that is a product's
              weight too is stored once, for GatherBlockQuantized and MatMulNBits.
    Score:    squared error of a site's output over its variance; above ``max_error``: more bits, in the end float.
    Raises:   nothing; what cannot be quantized is declined with its reason.
    """

    name: ClassVar[str] = "weights"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    order: ClassVar[Order] = Order.PRECISION
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    strength: ClassVar[str | None] = "max_error"
    weakest: ClassVar[float] = 0.0
    Config: ClassVar[type[PassConfig]] = WeightsConfig

    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """Pick sites, forms, grids and codes, with data also who takes more bits; count what loading fuses."""
        model, raised = view.model, list[str]()
        if self.config.form != "contrib":
            model, raised = raised_to(view.model, STANDARD_OPSET[self.config.bits])
        found, declined = find_sites(model, WEIGHT_ONLY)
        sites, left = select(found, self._verdict(model))
        declined = [*declined, *left]
        notes = raised if model is view.model else []
        if not sites:
            return Plan((), tuple(declined), ("nothing to quantize", *notes))
        settings = Settings(**self.config.model_dump(exclude={"exclude", "exclude_ops"}))
        draft = WeightDrafter(model, ctx, sites, settings).draft()
        changes = tuple(_change(site, draft) for site in draft.sites)
        declined = [*declined, *draft.declined]
        if not changes:
            return Plan((), tuple(declined), ("nothing to quantize", *notes, *draft.notes))
        return Plan(
            changes,
            tuple(declined),
            (*raised, *draft.notes, *_layout_notes(draft), *_loaded(model, ctx, draft)),
            resolved={"max_error": draft.max_error},
            payload=(model if model is not view.model else None, draft.choices),
        )

    def apply(self, editor: GraphEditor, plan: Plan) -> None:
        """Write the new nodes in the place of every planned site."""
        if not plan.empty:
            raised, choices = plan.payload
            if raised is not None:
                editor.adopt(raised)
            NBitsWriter.rewrite(editor, choices)

    def _verdict(self, model: ir.Model) -> _Verdict:
        return _Verdict(self.config, model)


class _Verdict:
    """Why a site stays float, going by the parameters, the opset and where it is."""

    def __init__(self, config: WeightsConfig, model: ir.Model) -> None:
        self._config, self._graph = config, model.graph
        self._opset = model.graph.opset_imports.get("", 1)
        self._excluded = config.excluded

    def __call__(self, site: Site) -> str | None:
        if (reason := self._excluded(site)) is not None:
            return reason
        if isinstance(site, Table):
            return None if self._config.embeddings else "embeddings=0"
        if site.packed_attention:
            return "its projections are inside one contrib op; run fuse before, which takes it apart"
        if self._config.form != "standard":
            return None
        needed = STANDARD_OPSET[self._config.bits]
        if self._opset < needed:
            return f"form=standard needs opset {needed}, the model has {self._opset}"
        if site.node.graph is not self._graph:
            return "it is in a nested body, where ONNX Runtime does not open form=standard; form=auto has one for it"
        return None


def _change(site: Site, draft: WeightDraft) -> Change:
    codes, tensor = draft.choices.codes[site.name], site.weight.const_value
    assert tensor is not None
    sharing = [s for s in draft.sites if s.weight is site.weight]
    first = next(s for s in sharing if draft.choices.codes[s.name] is codes)
    saves = 0 if first is not site else (tensor.nbytes if sharing[0] is site else 0) - codes.nbytes
    kind = {"FLOAT": "float32", "FLOAT16": "float16"}[tensor.dtype.name]
    before = f"{site.node.op_type} with {kind} {list(tensor.shape.numpy())}"
    what = "weight" if isinstance(site, Linear) else "rows"
    scales = f"a scale for each {codes.grid.block}" if codes.grid.block else "a scale for each"
    zeros = ", with zero points" if codes.zero is not None else ""
    form = " (com.microsoft)" if site.name in draft.choices.contrib else ""
    return Change(site.name, before, f"int{codes.grid.bits} {what}, {scales}{zeros}{form}", saves)


def _layout_notes(draft: WeightDraft) -> list[str]:
    """What is not as it was asked for: blocks that do not come out even."""
    codes = draft.choices.codes
    linear = [site for site in draft.sites if isinstance(site, Linear)]
    uneven = [s for s in linear if s.width % codes[s.name].grid.block]
    if not uneven:
        return []
    return [f"the last block is shorter than the others in {len(uneven)} weights (e.g. {uneven[0].width} inputs)"]


def _loaded(model: ir.Model, ctx: PassContext, draft: WeightDraft) -> list[str]:
    """How many of the standard products ONNX Runtime fuses when it loads the result."""
    linear = [s for s in draft.sites if isinstance(s, Linear) and s.node.graph is model.graph]
    standard = [s for s in linear if s.name not in draft.choices.contrib]
    if not standard or not ctx.can_run:
        return []
    result = NBitsWriter.written(model, draft.choices)
    before = sum(node.op_type == "MatMulNBits" for node in result.graph)
    fused = sum(node.op_type == "MatMulNBits" for node in ctx.loaded(result).graph) - before
    if fused >= len(standard):
        return [f"ONNX Runtime fuses all {len(standard)} products to MatMulNBits when it loads the file"]
    return [f"ONNX Runtime fuses {fused} of {len(standard)} products to MatMulNBits; the others unpack in every run"]
