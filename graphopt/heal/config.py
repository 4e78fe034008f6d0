"""What a user may say about a training: the parameters that every pass which trains has."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from graphopt.heal.budget import Budget
from graphopt.transform import ExistingFile, PassConfig, PassContext

if TYPE_CHECKING:
    from graphopt.heal.healing import Lecture


class TrainingConfig(PassConfig):
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
    teachers: tuple[ExistingFile, ...] = ()
    """Files that answer beside the original: the student learns the mean."""
    selective: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of each step's samples to learn from, e.g. 0.5: those whose outputs are farthest off."""
    layer_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance that a step leaves out a layer, so that the model can lose layers later."""
    outputs: dict[str, Literal["logits", "embedding", "numbers"]] = Field(default_factory=dict)
    """What an output is, by name, where its name and shape do not tell: decides its loss."""
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep the exponential moving average of the weights with this decay, e.g. 0.99, instead of the weights."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations on held-out inputs (20 in all) without improvement after which training ends early."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; "auto" is where the models run."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of a training step's products; the weights and the held-out loss stay float32. "auto": bfloat16 on CUDA."""
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
    def _has_what_it_starts_with(self) -> Self:
        if self.hint_share and not self.hint + self.attention:
            raise ValueError("hint_share needs hint or attention above 0: there is nothing else to start with")
        if self.resume and not (self.checkpoint and Path(self.checkpoint).is_file()):
            raise ValueError(f"resume: checkpoint {self.checkpoint}: no such file; leave out resume to start")
        return self

    def lecture(self, ctx: PassContext, *, tables: bool = False, trainable: Collection[str] | None = None) -> Lecture:
        """The same as ``heal`` takes it; the two arguments are its fields of these names."""
        from graphopt.heal.healing import Lecture
        from graphopt.heal.taps import Kind, Parts
        from graphopt.heal.trainer import Settings

        device = ("cuda" if ctx.provider == "cuda" else "cpu") if self.device == "auto" else self.device
        settings = Settings(
            Budget.parse(self.budget),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            batch=self.batch,
            average=self.average,
            patience=self.patience,
            seed=ctx.seed,
            device=device,
            hint_share=self.hint_share,
            selective=self.selective,
            layer_dropout=self.layer_dropout,
            bfloat16=self.precision == "bfloat16" or (self.precision == "auto" and device == "cuda"),
        )
        return Lecture(
            settings,
            Parts(self.temperature, self.alpha, self.relational, self.hint, self.attention),
            outputs={name: Kind(kind) for name, kind in self.outputs.items()},
            teachers=tuple(map(Path, self.teachers)),
            tables=tables,
            trainable=trainable,
            samples=self.samples,
            checkpoint=None if self.checkpoint is None else Path(self.checkpoint),
            resume=self.resume,
        )

    @staticmethod
    def pinned(lecture: Lecture, steps: int) -> dict[str, Any]:
        """The fields with which a replay goes through the same ``steps``."""
        precision = "bfloat16" if lecture.settings.bfloat16 else "float32"
        return {"budget": f"{steps}steps", "checkpoint": None, "resume": False, "precision": precision}


class QatConfig(TrainingConfig):
    """How to train what int8 will compute; the parameters of ``heal``."""

    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of a training step's products. bfloat16 keeps 8 bits itself, so that codes are turned by chance."""
