"""Least-squares refit of what reads a pruned axis: gradient-free recovery from streamed moments.

After units are gone, the consumer ``Y = X W + b`` no longer receives what they carried. Refit solves for the W and b
that give back the ORIGINAL graph's Y from the REWRITTEN graph's X, front to back, so that errors do not add up. With
nothing but the mean of what is lost, b alone is shifted (*mean fold*). Memory is O(K^2), whatever the sample count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.errors import PassError
from graphopt.importance import Consumer, Moments
from graphopt.lowering import POSITIONS, WIDEST, Lowering, attribute
from graphopt.transform import PassContext

#: Ridge strengths tried, as a share of the mean diagonal of the inputs' covariance; held-out inputs choose.
RIDGES = (1e-6, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
ROWS_PER_WEIGHT = 12  #: rows of patches gathered for each row of a convolution's weight, where there are so many
HELD_OUT = 5  #: every fifth calibration sample judges the candidates, and is then fitted too


@dataclass(frozen=True, eq=False, slots=True)
class Patch:
    """New parameters for one contraction: a weight (None: unchanged) and what its output is shifted by."""

    node: str
    weight: np.ndarray | None  #: by channel, see ``lowering.py``
    shift: np.ndarray  #: [N]
    method: str  #: "refit" with its ridge, or "mean fold"
    errors: tuple[float, float] = (
        np.nan,
        np.nan,
    )  #: mean squared error of the output on held-out inputs: as sliced, now


@dataclass(frozen=True, slots=True)
class Refit:
    """What was found for a chain of sites."""

    patches: tuple[Patch, ...]
    left: tuple[tuple[str, str], ...]  #: sites without a patch, and why
    divergence: tuple[float, float]  #: of the model's outputs on held-out inputs, before and after


class Pairs:
    """Streamed joint moments of inputs ``x[K]`` and targets ``y[N]``."""

    def __init__(self, width: int, outputs: int) -> None:
        self.count = 0
        self.x = np.zeros(width)
        self.y = np.zeros(outputs)
        self.xx = np.zeros((width, width))
        self.xy = np.zeros((width, outputs))
        self.yy = 0.0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Rows ``x[..., K]`` with their targets ``y[..., N]``."""
        x = np.ascontiguousarray(x.reshape(-1, x.shape[-1]), dtype=np.float32)
        y = np.ascontiguousarray(y.reshape(-1, y.shape[-1]), dtype=np.float32)
        self.count += len(x)
        self.x += x.sum(axis=0, dtype=np.float64)
        self.y += y.sum(axis=0, dtype=np.float64)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += float(np.einsum("tn,tn->", y, y, dtype=np.float64))

    def __add__(self, other: Pairs) -> Pairs:
        """The moments of both sets of rows."""
        both = Pairs(len(self.x), len(self.y))
        for name in ("count", "x", "y", "xx", "xy", "yy"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """``Cov(x, x)`` and ``Cov(x, y)``."""
        n = max(self.count, 1)
        return self.xx / n - np.outer(self.x, self.x) / n**2, self.xy / n - np.outer(self.x, self.y) / n**2

    def shift(self, W: np.ndarray) -> np.ndarray:
        """The bias that makes ``x W + b`` right on average."""
        return np.asarray((self.y - self.x @ W) / max(self.count, 1))

    def error(self, W: np.ndarray, b: np.ndarray) -> float:
        """Mean squared error of ``x W + b`` on these rows, summed over outputs."""
        n = max(self.count, 1)
        fit = float(np.einsum("kn,kn->", W, self.xx @ W)) - 2 * float(np.einsum("kn,kn->", W, self.xy))
        offset = 2 * float(b @ (self.x @ W - self.y)) + n * float(b @ b)
        return (self.yy + fit + offset) / n


def solve(pairs: Pairs, start: np.ndarray, ridge: float) -> np.ndarray:
    """``argmin_W  E|x W - y|^2 + ridge * mean_diagonal * |W - start|^2`` over centred rows; few rows change little."""
    xx, xy = pairs.centred()
    strength = ridge * max(float(np.trace(xx)) / len(xx), 1e-12)
    return np.asarray(start + np.linalg.solve(xx + strength * np.eye(len(xx)), xy - xx @ start))


def refit_from_moments(
    consumer: Consumer, moments: Moments, removed: np.ndarray, columns: np.ndarray | None = None
) -> Patch:
    """The refit of one consumer when its inputs are those of the unpruned graph: no further run is needed.

    ``columns`` are the output channels that stay, where some go with the same units.
    A convolution's taps are solved for one by one, as if neighbouring positions had nothing to do with each other.
    """
    gone = np.isin(consumer.units, removed)
    kept = ~gone
    W, H = consumer.matrix(), moments.inverse()
    weight = np.asarray(W[kept] - H[np.ix_(kept, gone)] @ np.linalg.solve(H[np.ix_(gone, gone)], W[gone]))
    taps = consumer.lowering.taps
    shift = np.asarray(moments.mean @ W - moments.mean[kept] @ weight).reshape(-1, taps).sum(axis=1)
    if columns is not None:
        weight = weight.reshape(len(weight), -1, taps)[:, columns].reshape(len(weight), -1)
        shift = shift[columns]
    return Patch(consumer.node.name or "", weight, shift, "refit")


def gather_pairs(original: ir.Model, rewritten: ir.Model, ctx: PassContext, site: Site) -> tuple[Pairs, Pairs]:
    """Inputs of one contraction in ``rewritten`` with the outputs that the same one has in ``original``.

    One run over the calibration split gives both the rows to fit and, every ``HELD_OUT``-th sample, rows to judge by.
    Where the output joins a residual stream, the target makes up for that stream's own error as well:
    ``y = output_original + skip_original - skip_rewritten``. What the contraction itself adds to its product (a third
    operand) stays as it is, so it is not part of the target. Output channels that are lost have no target.

    Raises PassError when the split is empty or the values are not finite.
    """
    lowering = _lowering(rewritten, site.node)
    skips = [site.skip] if site.skip else []
    wanted = [site.activation, *skips, *([site.output] if site.adds else [])]
    start = lowering.by_patch()
    fit, judge = (Pairs(*start.shape) for _ in range(2))
    limit = _samples(lowering)
    seen = 0
    both = zip(
        ctx.observe(original, [site.output, *skips], limit=limit),
        ctx.observe(rewritten, wanted, limit=limit),
        strict=True,
    )
    for number, (before, after) in enumerate(both):
        whole = site.kept(before[site.output], lowering)
        x = lowering.patches(after[site.activation], whole.shape, number)
        if site.skip:
            whole = np.broadcast_to(whole + (site.kept(before[site.skip], lowering) - after[site.skip]), whole.shape)
        y = lowering.targets(whole, number)
        if site.adds:
            y = y - (lowering.targets(after[site.output], number) - x @ start)
        held = np.arange(seen, seen + len(x)) % HELD_OUT == HELD_OUT - 1
        fit.add(x[~held], y[~held])
        judge.add(x[held], y[held])
        seen += len(x)
    if not seen or not np.isfinite(fit.yy + judge.yy):
        raise PassError(f"{site.node}: no finite inputs to refit on")
    return fit, judge if judge.count else fit


def _samples(lowering: Lowering) -> int | None:
    """How many samples are enough: every sample of a convolution has many positions, and maps are large."""
    return max(64, ROWS_PER_WEIGHT * lowering.width // POSITIONS) if lowering.convolves else None


@dataclass(frozen=True, eq=False, slots=True)
class Site:
    """One contraction to refit, by names that the original and the rewritten graph share."""

    node: str
    activation: str
    output: str
    skip: str | None  #: the residual stream its output is added to
    adds: bool = False  #: whether it adds an operand to the product itself
    columns: np.ndarray | None = None  #: the original's output channels that the rewritten graph still has; None: all

    @classmethod
    def of(cls, lowering: Lowering, columns: np.ndarray | None = None) -> Site:
        """Read a contraction and what its output is added to."""
        node = lowering.node
        adds = node.op_type in ("Gemm", "Conv") and len(node.inputs) > 2 and node.inputs[2] is not None
        return cls(node.name or "", lowering.activation, lowering.output, _residual(node), adds, columns)

    def kept(self, array: np.ndarray, lowering: Lowering) -> np.ndarray:
        """The channels of an output, or of what is added to it, that are still there; one that broadcasts is whole."""
        axis = 1 if lowering.convolves else array.ndim - 1
        if self.columns is None or array.shape[axis] == 1:
            return array
        return array.take(self.columns, axis=axis)


def _residual(node: ir.Node) -> str | None:
    """The other operand of the Add (or Sum, or fused skip) that an output reaches through bias Adds alone."""
    value: ir.Value = node.outputs[0]
    for _ in range(3):
        uses = list(value.uses())
        if len(uses) != 1:
            return None
        reader = uses[0].node
        if reader.op_type in ("Add", "Sum"):
            others = [v for v in reader.inputs if v is not None and v is not value]
            if len(others) != 1:
                return None
            if others[0].const_value is None:
                return others[0].name
            value = reader.outputs[0]
        elif reader.op_type in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"):
            other = reader.inputs[1 - uses[0].idx] if uses[0].idx < 2 else None
            return other.name if other is not None else None
        else:
            return None
    return None


def apply_patch(editor: GraphEditor, patch: Patch) -> None:
    """Write a patch into the model: the weight in its stored orientation, the shift into the nearest bias."""
    lowering = _lowering(editor.model, patch.node)
    node, tensor = lowering.node, lowering.weight.const_value
    assert tensor is not None
    if patch.weight is not None:
        array = lowering.stored(patch.weight).astype(tensor.dtype.numpy())
        editor.set_initializer(lowering.weight, array, uses=[(node, 1)])
    shift_output(editor, node, patch.shift)


def shift_output(editor: GraphEditor, node: ir.Node, shift: np.ndarray) -> None:
    """Add ``shift[N]`` to a contraction's output: into the bias it already has, else as a new Add."""
    output = node.outputs[0]
    slots: list[tuple[ir.Node, int]] = []
    beta = attribute(node, "beta", 1.0)
    if node.op_type in ("Gemm", "Conv") and len(node.inputs) > 2 and node.inputs[2] is not None and beta:
        slots.append((node, 2))
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output():
        reader, index = uses[0]
        if reader.op_type == "Add":
            slots.append((reader, 1 - index))
        elif reader.op_type in ("BiasGelu", "FastGelu") and index == 0 and len(reader.inputs) > 1:
            slots.append((reader, 1))
        elif reader.op_type == "SkipLayerNormalization" and len(reader.inputs) > 4:
            slots.append((reader, 4))
    for holder, index in slots:
        bias = holder.inputs[index]
        if bias is None or bias.const_value is None or not bias.is_initializer():
            continue
        array = bias.const_value.numpy()
        if array.shape == shift.shape:
            scaled = shift / beta if holder is node else shift
            editor.set_initializer(bias, (array + scaled).astype(array.dtype), uses=[(holder, index)])
            return
    weight = node.inputs[1]
    dtype = weight.const_value.dtype.numpy() if weight is not None and weight.const_value is not None else np.float32
    value = editor.add_initializer(f"{node.name}/shift", shift.astype(dtype))
    if node.op_type == "Conv":
        node.resize_inputs(3)
        node.replace_input_with(2, value)
        return
    readers = list(output.uses())
    (shifted,) = editor.insert_node("Add", [output, value], after=node, name=f"{node.name}/shift_add")
    if output.is_graph_output():
        editor.replace_uses(output, shifted)
        added = shifted.producer()
        if added is not None:
            added.replace_input_with(0, output)
        return
    for use in readers:
        use.node.replace_input_with(use.idx, shifted)


def refit_sites(
    original: ir.Model, rewritten: ir.Model, ctx: PassContext, sites: Sequence[Site], *, refit: bool = True
) -> Refit:
    """Patches for ``sites``, front to back; ``rewritten`` is edited as they are found.

    Each site keeps the best of {refit at some ridge, mean fold, nothing} on held-out inputs: by the error of its own
    output, since at the model's outputs the sites that are still to come would drown what this one does. At the end all
    patches together must bring the model's outputs nearer to the original's, else none is kept.
    """
    patches: list[Patch] = []
    left: list[tuple[str, str]] = []
    before = ctx.divergence(rewritten)
    bare = rewritten.clone()
    with ctx.progress("refit", len(sites)) as bar:
        for site in sites:
            unfit = _unfit(_lowering(rewritten, site.node))
            if unfit:
                left.append((site.node, f"kept as sliced: {unfit}"))
                bar.advance()
                continue
            patch = _best_patch(original, rewritten, ctx, site, refit)
            if patch is not None:
                apply_patch(GraphEditor(rewritten), patch)
                patches.append(patch)
            else:
                left.append((site.node, "kept as sliced: no refit helped on held-out inputs"))
            bar.advance()
    after = ctx.divergence(rewritten)
    if patches and after >= before:
        rewritten.graph = bare.graph
        reason = f"refit dropped: all together moved the outputs' divergence from {before:.4f} to {after:.4f}"
        return Refit((), tuple((site.node, reason) for site in sites), (before, before))
    return Refit(tuple(patches), tuple(left), (before, after))


def _unfit(lowering: Lowering) -> str:
    """Why a contraction is not refitted; empty when it can be."""
    width, elements = lowering.width, prod(lowering.shape)
    if width > WIDEST:
        return f"its {width} rows are more than the {WIDEST} refit can hold"
    if elements > WIDEST**2:
        return f"its {elements} elements are more than the {WIDEST**2} refit can hold"
    if len(lowering.weight.uses()) > 1:
        return "its weight is read elsewhere as well, and a refit would store it twice"
    return ""


def _best_patch(original: ir.Model, rewritten: ir.Model, ctx: PassContext, site: Site, refit: bool) -> Patch | None:
    fit, judge = gather_pairs(original, rewritten, ctx, site)
    everything = fit + judge if judge is not fit else fit
    start = _lowering(rewritten, site.node).by_patch()
    as_sliced = judge.error(start, np.zeros(start.shape[1]))
    fold = Patch(
        site.node, None, everything.shift(start), "mean fold", (as_sliced, judge.error(start, fit.shift(start)))
    )
    if refit:
        errors = {ridge: judge.error(W := solve(fit, start, ridge), fit.shift(W)) for ridge in RIDGES}
        ridge = min(errors, key=errors.__getitem__)
        if errors[ridge] < min(fold.errors):
            W = solve(everything, start, ridge)
            weight = _lowering(rewritten, site.node).from_patch(W)
            return Patch(site.node, weight, everything.shift(W), f"refit (ridge {ridge:g})", (as_sliced, errors[ridge]))
    return fold if fold.errors[1] < as_sliced else None


def _lowering(model: ir.Model, node_name: str) -> Lowering:
    node = next(n for n in model.graph if n.name == node_name)
    lowering = Lowering.of(node)
    if lowering is None:
        raise ValueError(f"{node_name!r} is no contraction with a weight")
    return lowering
