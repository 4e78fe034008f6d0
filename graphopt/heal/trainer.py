"""Trains a student on lessons: AdamW, warm-up and cosine decay, clipping, an optional average, the best state kept."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphopt.autograd.module import OnnxModule
from graphopt.errors import UsageError
from graphopt.heal import checkpoint
from graphopt.heal.budget import Budget, learning_rate
from graphopt.heal.depth import LayerDropout
from graphopt.heal.lessons import Lesson, curriculum, epoch_steps, hardest
from graphopt.heal.objective import Objective, as_tensors
from graphopt.heal.pace import seconds_per_step
from graphopt.heal.taps import Tap
from graphopt.model.interrupts import InterruptGate

_FAR = 10**9  #: steps of a training in which a few at either end move next to nothing
_EVALUATIONS = 20  #: of the held-out loss over a whole training

Weights = dict[str, Tensor]
Values = dict[str, Tensor]
Report = Callable[[int, int, float, float], None]  #: step, total, loss, held-out loss


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train."""

    budget: Budget
    learning_rate: float = 2e-4
    warmup: float = 0.1  #: share of the steps
    weight_decay: float = 0.0
    clip: float = 1.0  #: largest norm of all gradients together
    batch: int = 32  #: samples a step
    average: float | None = None  #: decay of an exponential moving average that is evaluated and kept instead
    patience: int | None = None  #: evaluations without improvement after which training ends
    hint_share: float = 0.0  #: of the steps, which learn from hints and attention alone; the others from the outputs
    selective: float | None = None  #: share of a step's samples that is learned from
    layer_dropout: float = 0.0  #: chance of each layer to be left out in a step
    seed: int = 0
    device: str = "cpu"
    bfloat16: bool = False  #: products of a training step are computed in it; the weights stay float32


@dataclass
class Course:
    """How a training went: held-out losses by step; ``best`` is the step whose weights were kept, 0 for none."""

    steps: int
    held_out: dict[int, float] = field(default_factory=dict)
    best: int = 0

    @property
    def before(self) -> float:
        return self.held_out[0]

    @property
    def after(self) -> float:
        return self.held_out[self.best]


class Trainer:
    """One training of ``module``, whose parameters end as the best that was seen on ``held``."""

    def __init__(
        self,
        module: OnnxModule,
        lessons: Sequence[Lesson],
        held: Sequence[Lesson],
        objective: Objective,
        settings: Settings,
        depth: LayerDropout | None = None,
    ) -> None:
        self.module = module.to(settings.device)
        self.lessons, self.held, self.settings = lessons, held, settings
        self.objective, self.depth = objective.to(settings.device), depth
        self._hinted = settings.hint_share if objective.on_the_way else 0.0
        mixed = next(filter(None, (lesson.undivided for lesson in lessons)), None) if settings.selective else None
        if mixed is not None:
            raise UsageError(
                f"selective={settings.selective:g}: samples of {mixed!r} are not on its first axis; leave selective out"
            )
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.parameters.update((f"objective.{name}", p) for name, p in objective.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        kind = settings.device.partition(":")[0]
        self._autocast = torch.autocast(kind, torch.bfloat16, enabled=settings.bfloat16)

    # -- the whole training ---------------------------------------------------------------------------------------
    def run(
        self,
        *,
        report: Report | None = None,
        path: Path | None = None,
        resume: bool = False,
        fingerprint: str = "",
        save_every: float = 30.0,
    ) -> Course:
        """Train, and leave the best weights in the module.

        ``path`` is where the state goes every ``save_every`` seconds, and when the training is interrupted; ``resume``
        goes on from there, and ends with the weights of an uninterrupted training.
        """
        if resume:
            assert path is not None
            state = checkpoint.load(path, fingerprint)
            done, course = self._restore(state), Course(state["steps"], state["held_out"], state["best"])
            best, average = state["best_weights"], state["average"]
        else:
            total = self.settings.budget.steps or self.settings.budget.in_steps(self._seconds_per_step())
            done, course = 0, Course(total, {0: self.evaluate()})
            best, average = self._weights(), self._weights() if self.settings.average is not None else None
        total = course.steps
        every = max(1, total // _EVALUATIONS)
        order = itertools.islice(curriculum(self.lessons, self.settings.batch, self.settings.seed), done, None)
        saved, loss, held_out = time.monotonic(), float("nan"), course.held_out[max(course.held_out)]

        def keep() -> None:
            if path is not None:
                state = {
                    "step": done,
                    "steps": total,
                    "held_out": course.held_out,
                    "best": course.best,
                    "best_weights": best,
                    "average": average,
                    "weights": self._weights(),
                    "optimizer": self.optimizer.state_dict(),
                }
                checkpoint.save(path, fingerprint, state)

        with InterruptGate() as gate:
            gate.close()  # Ctrl-C waits for the end of a step: half of one must not be saved
            try:
                while done < total and not self._hopeless(course, done, every):
                    loss = self._step(done, total, next(order))
                    if average is not None:
                        self._blend(average)
                    done += 1
                    if done % every == 0 or done == total:
                        held_out = course.held_out[done] = self._evaluated(average)
                        if held_out < course.after:
                            course.best, best = done, (dict(average) if average is not None else self._weights())
                            best = {name: value.clone() for name, value in best.items()}
                    if report is not None:
                        report(done, total, loss, held_out)
                    if time.monotonic() - saved > save_every:
                        keep()
                        saved = time.monotonic()
                    if gate.pending:
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                keep()
                raise
        keep()  # whoever writes the result removes it: until then a training of hours is not lost
        self._load(best)
        return course

    def _hopeless(self, course: Course, done: int, every: int) -> bool:
        """Without a better model for as long as there is patience for; what only steers may make none."""
        patience, since = self.settings.patience, max(course.best, round(self._hinted * course.steps))
        return patience is not None and done - since >= patience * every

    # -- one step -------------------------------------------------------------------------------------------------
    def _step(self, step: int, total: int, numbers: Sequence[int]) -> float:
        rate = learning_rate(step, total, self.settings.learning_rate, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        batch = [self.lessons[number] for number in numbers]
        skipped = self.depth.draw(step) if self.depth is not None else frozenset()
        taps = self._taps(step, total, skipped)
        if self.settings.selective is not None:
            losses = [self._by_sample(lesson, skipped) for lesson in batch]
            batch = hardest(batch, losses, self.settings.selective)
        rows = sum(lesson.rows for lesson in batch)
        mean = 0.0
        for lesson in batch:
            with self._autocast:
                found = self._found(lesson, taps, skipped)
            loss = self._loss(lesson, found, taps) * (lesson.rows / rows)
            if loss.requires_grad:  # a hint has no weight before it when all layers there are skipped
                loss.backward()  # type: ignore[no-untyped-call]
            mean += float(loss.detach())
        nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        self.optimizer.step()
        return mean

    def _taps(self, step: int, total: int, skipped: Collection[str]) -> list[Tap]:
        """What a step learns from: first what only steers, then the outputs; without ``hint_share`` all at once."""
        objective, taps = self.objective, self.objective.taps
        if self._hinted:
            taps = objective.on_the_way if step < round(self._hinted * total) else objective.outputs
        if self.depth is not None:
            taps = self.depth.reached(taps, skipped)
        return taps or objective.outputs  # all that steers may be in layers that are skipped

    def _found(self, lesson: Lesson, taps: Sequence[Tap], skipped: Collection[str]) -> Values:
        names = list(dict.fromkeys(tap.student for tap in taps))
        replace = self.depth.replacements(skipped) if self.depth is not None else None
        found: Values = self.module(as_tensors(lesson.inputs, self.settings.device), names, replace)
        return found

    def _loss(self, lesson: Lesson, found: Values, taps: Sequence[Tap]) -> Tensor:
        device = self.settings.device
        wanted, inputs = as_tensors(lesson.targets, device), as_tensors(lesson.inputs, device)
        loss: Tensor = self.objective(found, wanted, inputs, taps)
        return loss

    def _by_sample(self, lesson: Lesson, skipped: Collection[str]) -> list[float]:
        device = self.settings.device
        with torch.no_grad():
            with self._autocast:
                found = self._found(lesson, self.objective.outputs, skipped)
            wanted, inputs = as_tensors(lesson.targets, device), as_tensors(lesson.inputs, device)
            return self.objective.by_sample(found, wanted, inputs, lesson.rows)

    def evaluate(self) -> float:
        """The loss of the outputs alone on the held-out lessons, in full precision; the mean over their samples.

        Where layers are left out in training, they are here too, in every other lesson, always the same.
        """
        total, outputs = 0.0, self.objective.outputs
        with torch.no_grad():
            for number, lesson in enumerate(self.held):
                skipped = self.depth.draw(_FAR + number) if self.depth is not None and number % 2 else frozenset()
                total += float(self._loss(lesson, self._found(lesson, outputs, skipped), outputs)) * lesson.rows
        return total / sum(lesson.rows for lesson in self.held)

    def _evaluated(self, average: Weights | None) -> float:
        if average is None:
            return self.evaluate()
        own = self._weights()
        self._load(average)
        try:
            return self.evaluate()
        finally:
            self._load(own)

    def _seconds_per_step(self) -> float:
        """What a step takes here on average, from some at the ends of a training, whose effect is undone."""
        before, blank = self._weights(), self.optimizer.state_dict()
        steps = list(epoch_steps(self.lessons, self.settings.batch, self.settings.seed, 0))
        sizes = [sum(self.lessons[number].size for number in step) for step in steps]
        budget, taken = self.settings.budget.seconds or 0.0, 0.0
        for share, first in ((self._hinted, 0), (1.0 - self._hinted, _FAR - _FAR // 1000)):
            if share:
                timed = partial(self._timed, steps, first)
                taken += share * seconds_per_step(timed, sizes, budget)
        self._load(before)
        self.optimizer.load_state_dict(blank)
        return taken

    def _timed(self, steps: Sequence[Sequence[int]], first: int, number: int) -> None:
        self._step(first + number, _FAR, steps[number % len(steps)])

    # -- weights --------------------------------------------------------------------------------------------------
    def _weights(self) -> Weights:
        return {name: p.detach().clone().cpu() for name, p in self.parameters.items()}

    def _load(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def _blend(self, average: Weights) -> None:
        decay = self.settings.average
        assert decay is not None
        for name, parameter in self.parameters.items():
            average[name].lerp_(parameter.detach().cpu(), 1.0 - decay)

    def _restore(self, state: dict[str, Any]) -> int:
        self._load(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
