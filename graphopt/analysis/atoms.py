"""The axis algebra: an axis is an atom, a product of axes, or a sum of axes; unifying two refines both.

    axis := atom(size) | product(axis, ...) | sum(axis, ...)

Reshape and Transpose make products (row-major, outermost first), Concat, Split and Slice make sums. A size is a tuple
with one entry for each assignment of the model's dynamic dims; an atom is *static* when all entries agree. Union-find
keeps one representative for axes that are proven to move together, so that a class of leaves is a set of units which
can be removed everywhere at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import accumulate, pairwise
from math import prod

import numpy as np

Size = tuple[int, ...]
MAX_REASONS = 8  #: reasons kept for each frozen axis; the first ones tell the story


class Atom:
    """One axis expression. ``kind`` is ``leaf``, ``product`` or ``sum``; ``parts`` is empty for a leaf."""

    __slots__ = ("kind", "link", "parts", "reasons", "size", "statistics")

    def __init__(self, size: Size, kind: str = "leaf", parts: tuple[Atom, ...] = ()) -> None:
        self.size = size
        self.kind = kind
        self.parts = parts
        self.link: Atom | None = None
        self.reasons: dict[str, None] = {}  # an ordered set
        self.statistics: dict[str, None] = {}  # another: what is computed from all members, and would change

    @property
    def static(self) -> bool:
        return len(set(self.size)) == 1

    @property
    def trivial(self) -> bool:
        """Size one at every assignment: carries no unit, and broadcasts."""
        return all(n == 1 for n in self.size)

    def __repr__(self) -> str:
        atom = find(self)
        if atom.kind == "leaf":
            return f"{atom.size[0] if atom.static else list(atom.size)}"
        return f"{atom.kind}({', '.join(map(repr, atom.parts))})"


def find(atom: Atom) -> Atom:
    """The representative of ``atom``'s class, with path compression."""
    root = atom
    while root.link is not None:
        root = root.link
    while atom.link is not None:
        atom.link, atom = root, atom.link
    return root


def product(parts: Sequence[Atom], assignments: int) -> Atom:
    """Row-major product; parts of size one are dropped, and a single part is itself."""
    real = [p for p in parts if not p.trivial]
    if len(real) == 1:
        return real[0]
    size = tuple(prod(p.size[k] for p in real) for k in range(assignments))
    return Atom(size, "product", tuple(real)) if real else Atom(size)


def concat(parts: Sequence[Atom]) -> Atom:
    """Sum of axes laid one after the other; empty parts are dropped, and a single part is itself."""
    real = [p for p in parts if any(p.size)]
    if len(real) == 1:
        return real[0]
    if not real:
        return parts[0]
    return Atom(tuple(map(sum, zip(*(p.size for p in real), strict=True))), "sum", tuple(real))


def factors(atoms: Iterable[Atom]) -> Iterator[Atom]:
    """The non-product, non-trivial representatives of ``atoms`` in row-major order."""
    stack = list(atoms)[::-1]
    while stack:
        atom = find(stack.pop())
        if atom.kind == "product":
            stack.extend(reversed(atom.parts))
        elif not atom.trivial:
            yield atom


def terms(atom: Atom) -> Iterator[Atom]:
    """The non-sum representatives of ``atom`` in order."""
    stack = [atom]
    while stack:
        atom = find(stack.pop())
        if atom.kind == "sum":
            stack.extend(reversed(atom.parts))
        else:
            yield atom


def leaves(atom: Atom) -> Iterator[Atom]:
    """All leaf representatives below ``atom``, with repetitions."""
    stack = [atom]
    while stack:
        atom = find(stack.pop())
        if atom.kind == "leaf":
            yield atom
        else:
            stack.extend(reversed(atom.parts))


def freeze(atom: Atom, reason: str, *, statistic: bool = False) -> None:
    """Record that members of ``atom`` cannot be removed independently, and why.

    With ``statistic`` it is a mean or a variance over them that stands in the way: they can leave one by one all the
    same, for those who accept that it is then taken over the members that stay.
    """
    root = find(atom)
    held = root.statistics if statistic else root.reasons
    if len(held) < MAX_REASONS:
        held[reason] = None


def inherit(atom: Atom, source: Atom) -> None:
    """``atom`` is frozen for whatever ``source`` is."""
    for reason in source.reasons:
        freeze(atom, reason)
    for reason in source.statistics:
        freeze(atom, reason, statistic=True)


def unify(a: Atom, b: Atom) -> None:
    """Make ``a`` and ``b`` one axis. Structures that have no common refinement are frozen with that reason."""
    a, b = find(a), find(b)
    if a is b or (a.trivial and b.trivial):
        return
    if a.size != b.size:
        _clash((a, b))
        return
    if a.kind == "leaf":
        _link(a, b)
    elif b.kind == "leaf":
        _link(b, a)
    else:
        if a.kind == b.kind == "product":
            align(a.parts, b.parts)
        elif a.kind == b.kind == "sum":
            _align_sums(a, b)
        elif a.kind == "product":
            _split_product(a, b)
        else:
            _split_product(b, a)
        a, b = find(a), find(b)
        if a is not b:
            # Either form describes the class; the sum shows where slices of different operands lie.
            _link(a, b) if b.kind == "sum" else _link(b, a)


def align(xs: Sequence[Atom], ys: Sequence[Atom]) -> None:
    """Unify two row-major factor lists of equal total size (what Reshape does to whole shapes)."""
    left, right = deque(factors(xs)), deque(factors(ys))
    while left and right:
        x, y = _pop(left), _pop(right)
        if x is None or y is None:
            if x is not None:
                left.appendleft(x)
            if y is not None:
                right.appendleft(y)
            break
        if x is y:
            continue
        if x.size == y.size:
            unify(x, y)
        elif (rest := _quotient(x.size, y.size)) is not None:
            if not _peel(x, y, rest, left, right):
                return _clash([x, y, *left, *right])
        elif (rest := _quotient(y.size, x.size)) is not None:
            if not _peel(y, x, rest, right, left):
                return _clash([x, y, *left, *right])
        else:
            return _clash([x, y, *left, *right])
    remainder = [atom for atom in (*left, *right) if not find(atom).trivial]
    if remainder:
        _clash(remainder)
    return None


def _pop(queue: deque[Atom]) -> Atom | None:
    """The next factor, re-read because an earlier step may have refined it; None when only trivial ones remain."""
    while queue:
        atom = find(queue.popleft())
        if atom.kind == "product":
            queue.extendleft(reversed(list(factors(atom.parts))))
        elif not atom.trivial:
            return atom
    return None


def _peel(big: Atom, small: Atom, rest: Size, bigs: deque[Atom], smalls: deque[Atom]) -> bool:
    """Match ``small`` against the outer part of ``big``, whose remainder of size ``rest`` goes back to its queue."""
    if big.kind == "leaf":
        outer, inner = Atom(small.size), Atom(rest)
        big.kind, big.parts = "product", (outer, inner)
        unify(outer, small)
        bigs.appendleft(inner)
        return True
    group = [small]  # a sum is not refined by one factor: gather factors until they cover it
    size = small.size
    while size != big.size:
        following = _pop(smalls)
        if following is None:
            return False
        group.append(following)
        size = tuple(s * f for s, f in zip(size, following.size, strict=True))
        if any(s > b for s, b in zip(size, big.size, strict=True)):
            return False
    unify(big, product(group, len(big.size)))
    return True


def _align_sums(a: Atom, b: Atom) -> None:
    """Refine two sums to common boundaries."""
    left, right = deque(terms(a)), deque(terms(b))
    while left and right:
        x, y = find(left.popleft()), find(right.popleft())
        if x.size == y.size:
            unify(x, y)
            continue
        if all(n > m for n, m in zip(y.size, x.size, strict=True)):
            x, y, left, right = y, x, right, left
        if not all(n > m for n, m in zip(x.size, y.size, strict=True)):
            return _clash([x, y, *left, *right])
        rest = tuple(n - m for n, m in zip(x.size, y.size, strict=True))
        if x.kind == "leaf":
            head, tail = Atom(y.size), Atom(rest)
            x.kind, x.parts = "sum", (head, tail)
            unify(head, y)
            left.appendleft(tail)
        else:  # a product: gather the other side's terms until they cover it
            group, size = [y], y.size
            while right and any(s < n for s, n in zip(size, x.size, strict=True)):
                group.append(find(right.popleft()))
                size = tuple(map(sum, zip(size, group[-1].size, strict=True)))
            if all(s > n for s, n in zip(size, x.size, strict=True)):  # the last term reaches beyond: cut it there
                last = group.pop()
                over = tuple(s - n for s, n in zip(size, x.size, strict=True))
                head, tail = Atom(tuple(n - o for n, o in zip(last.size, over, strict=True))), Atom(over)
                unify(last, concat([head, tail]))
                group.append(head)
                right.appendleft(tail)
            elif size != x.size:
                return _clash([x, *group, *left, *right])
            unify(x, concat(group))
    return None


def _split_product(whole: Atom, total: Atom) -> None:
    """Unify product(A, R) with sum(S1, S2, ...): A becomes a sum whose members tell which slice they lie in.

    Covers packed projections: product(3, heads, dim) against a Split in three, and product(queries + keys + values,
    dim) against a Split into unequal parts of whole heads.
    """
    outer, *inner = factors(whole.parts)
    stride = tuple(prod(f.size[k] for f in inner) for k in range(len(whole.size)))
    pieces = list(terms(total))
    counts = [_quotient(piece.size, stride) for piece in pieces]
    if any(c is None for c in counts):
        if not all(atom.static for atom in (outer, *inner, *pieces)):
            return _clash([whole, total])
        return _cut_through(outer, inner, stride[0], pieces)
    members = [Atom(c) for c in counts if c is not None]
    for piece, member in zip(pieces, members, strict=True):
        unify(piece, product([member, *inner], len(whole.size)))
    if len(members) > 1:
        unify(outer, concat(members))
        for member in members:
            if member.trivial:
                freeze(member, "selects one slice of a packed tensor")
    return None


def _cut_through(outer: Atom, inner: Sequence[Atom], stride: int, pieces: Sequence[Atom]) -> None:
    """Unify product(outer, inner...), ``stride`` positions for each outer member, with pieces that end inside members.

    A member that is cut through stays, and so does everything inside a member, as the halves lie in two pieces; the
    other members lie in one piece each. Covers shuffled channels that are split in two, product(29, 4) as 58 + 58.
    """
    reason = "cut inside a member of a product"
    assignments = len(outer.size)
    ends = list(accumulate(piece.size[0] for piece in pieces))
    marks = sorted({0, *(end // stride for end in ends), *(-(-end // stride) for end in ends)})
    members = {low: Atom((high - low,) * assignments) for low, high in pairwise(marks)}
    cut = {end // stride for end in ends if end % stride}
    for atom in (*inner, *(members[number] for number in cut)):
        freeze(atom, reason)
    position = 0
    for piece, end in zip(pieces, ends, strict=True):
        parts = []
        while position < end:
            number = position // stride
            if number in cut:
                size = min(end, (number + 1) * stride) - position
                parts.append(Atom((size,) * assignments))
                freeze(parts[-1], reason)
            else:
                size = members[number].size[0] * stride
                parts.append(product([members[number], *inner], assignments))
            position += size
        unify(piece, concat(parts))
    unify(outer, concat(list(members.values())))


def _quotient(numerator: Size, denominator: Size) -> Size | None:
    """Element-wise exact quotient, or None; a static size is never divided by a dynamic one."""
    if any(d == 0 or n % d for n, d in zip(numerator, denominator, strict=True)):
        return None
    if len(set(numerator)) == 1 and len(set(denominator)) > 1:
        return None
    return tuple(n // d for n, d in zip(numerator, denominator, strict=True))


def _link(child: Atom, parent: Atom) -> None:
    child.link = parent
    inherit(parent, child)


def _clash(atoms: Iterable[Atom]) -> None:
    """No common refinement: everything involved is frozen, down to the leaves, as one side is about to be forgotten."""
    involved = [find(a) for a in atoms]
    shown = " with ".join(repr(a) for a in involved[:2])
    for atom in involved:
        for part in (atom, *leaves(atom)):
            freeze(part, f"axis structures do not refine each other: {shown}")


# -- reading an expression after the analysis ---------------------------------------------------------------------
def resized(atom: Atom, removed: Mapping[Atom, Sized], assignment: int = 0) -> int:
    """Size of ``atom`` after removing ``removed[leaf]`` (unit numbers) from its leaves."""
    atom = find(atom)
    if atom.kind == "leaf":
        return atom.size[assignment] - len(removed.get(atom, ()))
    sizes = [resized(p, removed, assignment) for p in atom.parts]
    return prod(sizes) if atom.kind == "product" else sum(sizes)


def coordinates(atom: Atom, leaf: Atom) -> np.ndarray:
    """For each position along a static axis, which unit of ``leaf`` it belongs to; -1 where it belongs to none.

    Raises ValueError when a position belongs to two units (the leaf occurs twice in one product).
    """

    def combine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        outer, inner = np.repeat(a, len(b)), np.tile(b, len(a))
        if np.any((outer >= 0) & (inner >= 0)):
            raise ValueError("a position belongs to two units")
        return np.asarray(np.maximum(outer, inner))

    return _fold(
        atom,
        lambda a: np.arange(a.size[0]) if a is leaf else np.full(a.size[0], -1),
        combine,
    )


def keep_mask(atom: Atom, removed: Mapping[Atom, np.ndarray]) -> np.ndarray:
    """For each position along a static axis, whether it survives removing ``removed[leaf]`` from the leaves."""

    def survives(leaf: Atom) -> np.ndarray:
        mask = np.ones(leaf.size[0], dtype=bool)
        mask[removed.get(leaf, np.empty(0, dtype=np.int64))] = False
        return mask

    return _fold(atom, survives, lambda a, b: np.asarray(np.repeat(a, len(b)) & np.tile(b, len(a))))


def _fold(
    atom: Atom, at_leaf: Callable[[Atom], np.ndarray], combine: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Evaluate an expression bottom-up to one entry for each position."""
    atom = find(atom)
    if atom.kind == "leaf":
        return at_leaf(atom)
    parts = [_fold(p, at_leaf, combine) for p in atom.parts]
    if atom.kind == "sum":
        return np.concatenate(parts)
    whole = parts[0]
    for part in parts[1:]:
        whole = combine(whole, part)
    return whole
