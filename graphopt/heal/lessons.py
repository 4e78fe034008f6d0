"""What is learned from: batches of inputs with the teacher's answers, and the order in which they come."""

from __future__ import annotations

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


def gather(pairs: Iterable[tuple[Arrays, Arrays]], most: int) -> tuple[list[Lesson], bool]:
    """Lessons of at most ``most`` bytes together, and whether some inputs had to be left out for that."""
    lessons: list[Lesson] = []
    used = 0
    for inputs, targets in pairs:
        lesson = Lesson(inputs, targets, _rows(inputs))
        used += lesson.nbytes
        if used > most and lessons:
            return lessons, True
        lessons.append(lesson)
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
        epoch += 1
