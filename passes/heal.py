"""Train the rewritten graph against the original until it answers like it again."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from graphopt.analysis.view import GraphView
from graphopt.heal.config import TrainingConfig
from graphopt.transform import Change, Declined, Fidelity, Need, Order, Pass, PassConfig, PassContext, Plan


class HealConfig(TrainingConfig):
    """How long to train, on what, and with which losses."""

    embeddings: bool = False
    """Train embedding tables too."""


class Heal(Pass[HealConfig]):
    """Distil the model against the original on unlabelled inputs; only weights change.

    Matches:  float weights that operators read as such (matrices, filters, biases, scales).
    Rewrites: their values. Student and teacher are compared where they end: logits by softened KL divergence (before a
              final Softmax), embeddings by direction, size and the similarities within a batch, other numbers by
              squared error. The weights kept are those with the least loss on held-out inputs.
    Declines: to train without real inputs, and what did not get better on held-out inputs.
    Raises:   PassError when torch and ONNX Runtime do not agree on the model, UsageError for a teacher with other
              inputs or outputs than the original.
    """

    name: ClassVar[str] = "heal"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    order: ClassVar[Order] = Order.STRUCTURE
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    idempotent: ClassVar[bool] = False
    revalues: ClassVar[bool] = True
    Config: ClassVar[type[PassConfig]] = HealConfig

    def plan(self, view: GraphView, ctx: PassContext) -> Plan:
        """Train a clone; the plan carries it when it got better."""
        if not ctx.has_data or not ctx.can_run:
            why = "needs inputs to learn from: give --data" if ctx.can_run else "cannot run the original here"
            return Plan(declined=(Declined("model", why),))
        from graphopt.heal.healing import heal
        from graphopt.heal.taps import Kind

        student = view.clone()
        lecture = self.config.lecture(ctx, tables=self.config.embeddings)
        healed = heal(student, ctx, lecture)
        course, notes = healed.course, list(healed.notes)
        resolved = self.config.pinned(lecture, course.steps)
        if not healed.changed:
            reason = f"{course.steps} steps on {healed.samples} samples did not get it nearer to the original"
            return Plan((), (Declined("model", reason),), tuple(notes), resolved=resolved)
        notes.append(f"best of {course.steps} steps: {course.best}; learned from {healed.samples} samples")
        kinds = ", ".join(f"{tap.label} as {tap.kind}" for tap in healed.taps if not tap.kind.on_the_way)
        number = Counter(tap.kind for tap in healed.taps)
        if number[Kind.HINT]:
            notes.append(f"hints: {number[Kind.HINT]}, inputs of layers that the original has too")
        if number[Kind.ATTENTION]:
            notes.append(f"attention maps: {number[Kind.ATTENTION]}, of layers that the original has too")
        change = Change(
            f"{len(healed.changed)} weights, by {kinds}",
            f"held-out loss {course.before:.4f}",
            f"held-out loss {course.after:.4f}",
        )
        return Plan((change,), notes=tuple(notes), resolved=resolved, rewritten=student)
