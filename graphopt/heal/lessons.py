"""What is learned from: batches of inputs with the teacher's answers, their order, and which samples of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Lesson:
    """One batch: its inputs, the teacher's values by name, and how many samples it holds."""

    inputs: Arrays
    targets: Arrays
    rows: int

    @property
    def nbytes(self) -> int:
        return sum(int(a.nbytes) for a in (*self.inputs.values(), *self.targets.values()))

    @property
    def size(self) -> int:
        """Elements of the inputs: what the time of a run goes with."""
        return sum(int(a.size) for a in self.inputs.values())

    @property
    def undivided(self) -> str | None:
        """The name of a value that has no sample to each place of its first axis; None where all have."""
        if self.rows == 1:
            return None
        every = (*self.inputs.items(), *self.targets.items())
        return next((name for name, array in every if array.shape[:1] != (self.rows,)), None)

    def take(self, samples: Sequence[int]) -> Lesson:
        """These samples alone; a lesson of one sample is taken as a whole."""
        if self.rows == 1:
            return self
        inputs, targets = (
            {name: array[list(samples)] for name, array in arrays.items()} for arrays in (self.inputs, self.targets)
        )
        return Lesson(inputs, targets, len(samples))

    def cut(self, rows: int) -> list[Lesson]:
        """Lessons of at most ``rows`` samples, where samples can be told apart."""
        if self.rows <= rows or self.undivided is not None:
            return [self]
        return [self.take(range(start, min(start + rows, self.rows))) for start in range(0, self.rows, rows)]


def gather(pairs: Iterable[tuple[Arrays, Arrays]], most: int, rows: int | None = None) -> tuple[list[Lesson], bool]:
    """Lessons of at most ``most`` bytes together, and whether some inputs had to be left out for that.

    None has more than ``rows`` samples that can be told apart.
    """
    lessons: list[Lesson] = []
    used = 0
    for inputs, targets in pairs:
        lesson = Lesson(inputs, targets, _rows(inputs))
        used += lesson.nbytes
        if used > most and lessons:
            return lessons, True
        lessons.extend([lesson] if rows is None else lesson.cut(rows))
    return lessons, False


def _rows(inputs: Arrays) -> int:
    leading = {array.shape[0] if array.ndim else 1 for array in inputs.values()}
    return leading.pop() if len(leading) == 1 else 1


def curriculum(lessons: Sequence[Lesson], rows: int, seed: int) -> Iterator[list[int]]:
    """Endless steps, each the numbers of lessons that hold ``rows`` samples or a little more.

    Every epoch goes through all lessons in another order, which ``seed`` and the epoch alone decide: skipping the first
    steps gives what an interrupted run would have seen next.
    """
    epoch = 0
    while True:
        yield from epoch_steps(lessons, rows, seed, epoch)
        epoch += 1


def epoch_steps(lessons: Sequence[Lesson], rows: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """The steps of one epoch."""
    step: list[int] = []
    held = 0
    for index in np.random.default_rng((seed, epoch)).permutation(len(lessons)):
        step.append(int(index))
        held += lessons[index].rows
        if held >= rows:
            yield step
            step, held = [], 0
    if step:
        yield step


def hardest(lessons: Sequence[Lesson], losses: Sequence[Sequence[float]], share: float) -> list[Lesson]:
    """The share of all samples with the largest losses, one at least; ``losses`` has one for each sample."""
    places = [(loss, number, row) for number, own in enumerate(losses) for row, loss in enumerate(own)]
    kept = sorted(places, key=lambda place: -place[0])[: math.ceil(share * len(places))]
    chosen = [sorted(row for _, number, row in kept if number == index) for index in range(len(lessons))]
    return [lesson.take(rows) for lesson, rows in zip(lessons, chosen, strict=True) if rows]
