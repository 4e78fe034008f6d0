"""Train the rewritten graph against the original until it answers like it again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from graphopt.analysis.view import GraphView
from graphopt.heal.budget import Budget
from graphopt.transform import Change, Declined, Fidelity, Need, Order, Pass, PassConfig, PassContext, Plan

if TYPE_CHECKING:
    from graphopt.heal.healing import Lecture


class HealConfig(PassConfig):
    """How long to train, on what, and with which losses."""

    budget: str = "5m"
    """Training time (5m, 90s, 1h), turned into steps by timing a few, or steps (300steps), which replay exactly."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak of AdamW's rate; it rises over the first tenth and falls to zero in half a cosine."""
    batch: int = Field(default=32, ge=1)
    """Samples a step."""
    samples: int | None = Field(default=None, ge=1)
    """Most samples of the calibration inputs to learn from."""
    temperature: float = Field(default=2.0, gt=0)
    """Of the softened distributions, on logits."""
    alpha: float = Field(default=0.0, ge=0, le=1)
    """Share of the plain squared error on logits; the rest is distillation."""
    relational: float = Field(default=1.0, ge=0)
    """Weight of the similarities between the samples of a batch, on embeddings."""
    hint: float = Field(default=1.0, ge=0)
    """Weight of what goes into each layer that both models have, on the way to the outputs."""
    attention: float = Field(default=0.0, ge=0)
    """Weight of where each head looks, in each layer that both models have."""
    hint_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps, the first, that learn from hints and attention alone; the others from the outputs alone."""
    teachers: tuple[str, ...] = ()
    """Files that answer beside the original: the student learns the mean."""
    selective: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of each step's samples to learn from, e.g. 0.5: those whose outputs are farthest off."""
    layer_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance that a step leaves out a layer, so that the model can lose layers later."""
    outputs: dict[str, Literal["logits", "embedding", "numbers"]] = Field(default_factory=dict)
    """What an output is, by name, where its name and shape do not tell: decides its loss."""
    embeddings: bool = False
    """Train embedding tables too."""
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep the exponential moving average of the weights with this decay, e.g. 0.99, instead of the weights."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations on held-out inputs (20 in all) without improvement after which training ends early."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; "auto" is where the models run."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of a training step's products; the weights and the held-out loss stay float32. "auto": bfloat16 where fast."""
    checkpoint: str | None = None
    """File for the state of the training, written every half minute, on Ctrl-C and at the end; it is not removed."""
    resume: bool = False
    """Go on from ``checkpoint``; the end is that of an uninterrupted training."""

    @field_validator("budget")
    @classmethod
    def _is_a_budget(cls, value: str) -> str:
        Budget.parse(value)
        return value

    @model_validator(mode="after")
    def _has_what_it_starts_with(self) -> HealConfig:
        if self.hint_share and not self.hint + self.attention:
            raise ValueError("hint_share needs hint or attention above 0: there is nothing else to start with")
        return self


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
        lecture = self._lecture(ctx)
        healed = heal(student, ctx, lecture)
        course, notes = healed.course, list(healed.notes)
        precision = "bfloat16" if lecture.settings.bfloat16 else "float32"
        resolved = {"budget": f"{course.steps}steps", "checkpoint": None, "resume": False, "precision": precision}
        if not healed.changed:
            reason = f"{course.steps} steps on {healed.samples} samples did not get it nearer to the original"
            return Plan((), (Declined("model", reason),), tuple(notes), resolved=resolved)
        notes.append(f"best of {course.steps} steps: {course.best}; learned from {healed.samples} samples")
        kinds = ", ".join(f"{tap.label} as {tap.kind}" for tap in healed.taps if not tap.kind.on_the_way)
        number = Counter(tap.kind for tap in healed.taps)
        if number[Kind.HINT]:
            notes.append(f"{number[Kind.HINT]} hints: inputs of layers that the original has too")
        if number[Kind.ATTENTION]:
            notes.append(f"{number[Kind.ATTENTION]} attention maps, of layers that the original has too")
        change = Change(
            f"{len(healed.changed)} weights, by {kinds}",
            f"held-out loss {course.before:.4f}",
            f"held-out loss {course.after:.4f}",
        )
        return Plan((change,), notes=tuple(notes), resolved=resolved, rewritten=student)

    def _lecture(self, ctx: PassContext) -> Lecture:
        from graphopt.heal.healing import Lecture, fast_bfloat16
        from graphopt.heal.taps import Kind, Parts
        from graphopt.heal.trainer import Settings

        config = self.config
        device = ("cuda" if ctx.provider == "cuda" else "cpu") if config.device == "auto" else config.device
        settings = Settings(
            Budget.parse(config.budget),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            batch=config.batch,
            average=config.average,
            patience=config.patience,
            seed=ctx.seed,
            device=device,
            hint_share=config.hint_share,
            selective=config.selective,
            layer_dropout=config.layer_dropout,
            bfloat16=fast_bfloat16(device) if config.precision == "auto" else config.precision == "bfloat16",
        )
        return Lecture(
            settings,
            Parts(config.temperature, config.alpha, config.relational, config.hint, config.attention),
            outputs={name: Kind(kind) for name, kind in config.outputs.items()},
            teachers=tuple(map(Path, config.teachers)),
            tables=config.embeddings,
            samples=config.samples,
            checkpoint=None if config.checkpoint is None else Path(config.checkpoint),
            resume=config.resume,
        )
