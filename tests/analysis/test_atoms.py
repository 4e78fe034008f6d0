"""The axis algebra alone: what unifying refines, and what an expression says about positions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis.atoms import (
    Atom,
    align,
    concat,
    coordinates,
    find,
    freeze,
    keep_mask,
    leaves,
    product,
    resized,
    unify,
)


def leaf(*size: int) -> Atom:
    return Atom(size if len(size) > 1 else size * 2)


def times(*parts: Atom) -> Atom:
    return product(parts, len(parts[0].size))


def shown(atom: Atom) -> str:
    return repr(find(atom))


def clean(*atoms: Atom) -> bool:
    return not any(part.reasons for atom in atoms for part in (find(atom), *leaves(atom)))


# -- building --------------------------------------------------------------------------------------
def test_products_drop_ones_and_sums_drop_nothings():
    a = leaf(5)
    assert times(leaf(1), a, leaf(1)) is a
    assert concat([leaf(0), a, leaf(0)]) is a
    assert times(leaf(1), leaf(1)).trivial
    assert concat([leaf(0), leaf(0)]).size == (0, 0)
    assert times(leaf(2), leaf(3)).size == (6, 6)
    assert concat([leaf(2), leaf(3, 4)]).size == (5, 6)


# -- refinement ------------------------------------------------------------------------------------
def test_a_leaf_takes_the_other_sides_structure():
    width, heads, dim = leaf(384), leaf(12), leaf(32)
    unify(width, times(heads, dim))
    assert shown(width) == "product(12, 32)"
    assert [find(p) for p in leaves(width)] == [find(heads), find(dim)]
    assert clean(width)


def test_two_factorisations_meet_in_a_common_one():
    a, b = [leaf(6), leaf(4)], [leaf(3), leaf(8)]
    align(a, b)
    assert [shown(x) for x in (*a, *b)] == ["product(3, 2)", "4", "3", "product(2, 4)"]
    assert next(itertools.islice(leaves(a[0]), 1, None)) is next(leaves(b[1]))
    assert clean(*a, *b)


def test_reshape_there_and_back_gives_one_class():
    width, heads, dim, back = leaf(24), leaf(4), leaf(6), leaf(24)
    batch, length = leaf(2, 3), leaf(7, 5)
    align([batch, length, width], [batch, length, heads, dim])
    align([batch, length, heads, dim], [batch, length, back])
    assert [find(x) for x in leaves(width)] == [find(x) for x in leaves(back)] == [find(heads), find(dim)]
    assert clean(width, back, batch, length)


def test_two_sums_refine_to_common_boundaries():
    a, b = [leaf(4), leaf(8)], [leaf(6), leaf(6)]
    unify(concat(a), concat(b))
    assert [shown(x) for x in (*a, *b)] == ["4", "sum(2, 6)", "sum(4, 2)", "6"]
    assert clean(*a, *b)


def test_the_same_leaf_twice_in_a_sum():
    """A bias for queries and keys alike: refining one occurrence refines the other."""
    half = leaf(8)
    cut = [leaf(3), leaf(5), leaf(8)]
    unify(concat([half, half]), concat(cut))
    assert shown(half) == "sum(3, 5)"
    assert shown(cut[2]) == "sum(3, 5)"
    assert [find(x) for x in leaves(cut[2])] == [find(cut[0]), find(cut[1])]


def test_batch_times_heads_with_dynamic_sizes():
    batch, heads, merged = leaf(2, 3), leaf(12), Atom((24, 36))
    align([batch, heads, leaf(7, 5)], [merged, leaf(7, 5)])
    assert [find(x) for x in leaves(merged)] == [find(batch), find(heads)]
    # and back, from a fresh tensor of the same merged size
    again, parts = Atom((24, 36)), [leaf(2, 3), leaf(12)]
    unify(again, merged)
    align([again], parts)
    assert find(parts[1]) is find(heads)
    assert clean(merged, *parts)


def test_heads_before_batch_is_another_order():
    heads, batch, merged = leaf(12), leaf(2, 3), Atom((24, 36))
    align([heads, batch], [merged])
    assert [find(x) for x in leaves(merged)] == [find(heads), find(batch)]


def test_a_static_size_is_never_divided_by_a_dynamic_one():
    """6 = 2 x 3 = 3 x 2 at the two assignments, but nothing static is made of a batch."""
    static, batch = leaf(6), leaf(2, 3)
    align([static], [batch, Atom((3, 2))])
    assert not clean(static)


# -- packed forms ----------------------------------------------------------------------------------
def test_packed_product_against_split_in_three():
    packed = times(three := leaf(3), heads := leaf(4), dim := leaf(5))
    parts = [leaf(20), leaf(20), leaf(20)]
    unify(packed, concat(parts))
    for part in parts:
        assert [find(x) for x in leaves(part)] == [find(heads), find(dim)]
    assert shown(three) == "sum(1, 1, 1)"
    assert clean(heads, dim)


def test_packed_product_is_the_same_whichever_side_comes_first():
    for flip in (False, True):
        packed, parts = times(leaf(3), leaf(4), leaf(5)), [leaf(20) for _ in range(3)]
        unify(*((concat(parts), packed) if flip else (packed, concat(parts))))
        tail = [list(leaves(p)) for p in parts]
        assert tail[0] == tail[1] == tail[2]


def test_grouped_queries_split_into_unequal_parts_of_whole_heads():
    packed = times(leaf(16), dim := leaf(5))  # 12 query heads, 2 key heads, 2 value heads
    parts = [leaf(60), leaf(10), leaf(10)]
    unify(packed, concat(parts))
    assert [shown(p) for p in parts] == ["product(12, 5)", "product(2, 5)", "product(2, 5)"]
    queries, keys, values = (next(leaves(p)) for p in parts)
    assert len({queries, keys, values}) == 3
    assert all(list(leaves(p))[1] is find(dim) for p in parts)


def test_a_split_through_a_head_freezes_that_head_and_what_heads_are_made_of():
    packed, parts = times(leaf(4), dim := leaf(6)), [leaf(9), leaf(15)]
    unify(packed, concat(parts))
    assert [shown(p) for p in parts] == ["sum(6, 3)", "sum(3, product(2, 6))"]
    assert dim.reasons
    whole = [x for p in parts for x in leaves(p) if not x.reasons]
    assert [x.size[0] for x in whole] == [2]
    assert whole[0] in leaves(packed)


def test_a_sum_cut_inside_a_product_of_another_sum():
    shuffled, rest, parts = times(leaf(7), leaf(4)), leaf(2), [leaf(15), leaf(15)]
    unify(concat([shuffled, rest]), concat(parts))
    assert [shown(p) for p in parts] == ["sum(product(3, 4), 3)", "sum(sum(1, product(3, 4)), 2)"]
    assert [[x.size[0] for x in leaves(p) if not x.reasons and not x.trivial] for p in parts] == [[3], [3, 2]]


# -- clashes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("left", "right"), [((4, 9), (6, 6)), ((5,), (7,)), ((2, 3), (4, 2)), ((6, 5), (15, 2))], ids=str
)
def test_what_has_no_common_refinement_freezes_every_leaf(left, right):
    xs, ys = [leaf(n) for n in left], [leaf(n) for n in right]
    unify(times(*xs), times(*ys))
    assert any(x.reasons for x in (*xs, *ys))
    whole = [find(x) for side in (xs, ys) for y in side for x in leaves(y)]
    assert all("do not refine" in " ".join(x.reasons) for x in whole if x.reasons)
    # what matched in front of the clash may stay free, what is behind it may not
    assert find(xs[-1]).reasons or all(x.reasons for x in leaves(xs[-1]))
    assert find(ys[-1]).reasons or all(y.reasons for y in leaves(ys[-1]))


def test_a_clash_reaches_leaves_below_a_side_that_is_forgotten():
    inner = [leaf(2), leaf(5)]
    kept, lost = times(leaf(4), leaf(15)), times(leaf(6), times(*inner))
    unify(kept, lost)
    assert all(find(x).reasons for x in inner)


def test_reasons_survive_unification():
    a, b, c = leaf(6), leaf(6), leaf(6)
    freeze(a, "first")
    unify(a, b)
    unify(b, c)
    freeze(c, "second")
    assert list(find(a).reasons) == ["first", "second"]


# -- reading: brute force --------------------------------------------------------------------------
@st.composite
def expressions(draw, most: int = 120):
    """An expression over up to three leaves, each of which may occur more than once."""
    pool = [Atom((n, n)) for n in draw(st.lists(st.integers(2, 5), min_size=1, max_size=3))]

    def build(depth: int) -> Atom:
        kind = draw(st.sampled_from(("leaf", "product", "sum"))) if depth else "leaf"
        if kind == "leaf":
            return draw(st.sampled_from(pool))
        parts = [build(depth - 1) for _ in range(draw(st.integers(2, 3)))]
        made = times(*parts) if kind == "product" else concat(parts)
        return made if made.size[0] <= most else parts[0]

    return build(2), pool


def positions(atom: Atom) -> list[list[tuple[Atom, int]]]:
    """For each position, the units it is made of: the definition, written out."""
    atom = find(atom)
    if atom.kind == "leaf":
        return [[(atom, i)] for i in range(atom.size[0])]
    parts = [positions(p) for p in atom.parts]
    if atom.kind == "sum":
        return [p for part in parts for p in part]
    return [[*itertools.chain(*chosen)] for chosen in itertools.product(*parts)]


@given(expressions(), st.data())
@settings(max_examples=150, deadline=None)
def test_keep_mask_and_resized_against_enumeration(drawn, data):
    atom, pool = drawn
    removed = {x: np.array(sorted(data.draw(st.sets(st.integers(0, x.size[0] - 1)))), dtype=np.int64) for x in pool}
    expected = [all(i not in removed[x] for x, i in units) for units in positions(atom)]
    assert keep_mask(atom, removed).tolist() == expected
    assert resized(atom, removed) == sum(expected)
    assert resized(atom, {}) == atom.size[0] == len(expected)


@given(expressions())
@settings(max_examples=150, deadline=None)
def test_coordinates_against_enumeration(drawn):
    atom, pool = drawn
    for x in pool:
        owners = [{i for y, i in units if y is x} for units in positions(atom)]
        occurrences = max(sum(y is x for y, _ in units) for units in positions(atom))
        if occurrences > 1:  # the leaf twice in one product: a position may belong to two units
            with pytest.raises(ValueError, match="two units"):
                coordinates(atom, x)
        else:
            assert coordinates(atom, x).tolist() == [next(iter(o), -1) for o in owners]


@given(st.permutations([2, 3, 5, 2]), st.data())
@settings(max_examples=60, deadline=None)
def test_any_two_groupings_of_the_same_factors_refine_to_them(sizes, data):
    def grouped() -> list[Atom]:
        cuts = sorted(data.draw(st.sets(st.integers(1, len(sizes) - 1))))
        return [leaf(int(np.prod(sizes[a:b]))) for a, b in itertools.pairwise([0, *cuts, len(sizes)])]

    finest = [leaf(n) for n in sizes]
    sides = [grouped() for _ in range(3)]
    for side in sides:
        align(side, finest)
    wanted = [find(x) for x in finest]
    assert all([y for x in side for y in leaves(x)] == wanted for side in sides)
    assert clean(*finest)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_any_two_cuts_of_one_axis_refine_to_both(sizes, data):
    total = sum(sizes)
    cuts = sorted(data.draw(st.sets(st.integers(1, total - 1), max_size=3))) if total > 1 else []
    first = [leaf(n) for n in sizes]
    second = [leaf(b - a) for a, b in itertools.pairwise([0, *cuts, total])]
    unify(concat(first), concat(second))
    edges = sorted({*itertools.accumulate(sizes), *cuts, total})
    finest = [x for atom in first for x in leaves(atom)]
    assert [x.size[0] for x in finest] == [b - a for a, b in itertools.pairwise([0, *edges])]
    units = [x for x in finest if not x.trivial]  # single members carry none, and are not related
    assert units == [x for atom in second for x in leaves(atom) if not x.trivial]
    assert clean(*first, *second)
