"""A budget over groups and generations: largest remainders, fractions of all that came, what is used already."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.budgets import calls, shared_out
from curate.pool import Share
from curate.recipe import parse_recipe

groups_with_use = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8)


def stage(line: str):
    return parse_recipe(f"format: 1\nstages:\n  - {line}\n", "test").stages[0]


def text(*names: str) -> np.ndarray:
    return np.array(names, object)


def by_hand(total: int, sizes: list[int], used: list[int]) -> list[int]:
    """One group after another is fixed at what it has used, until none of the others' shares lies below that."""
    fixed: set[int] = set()
    while len(fixed) < len(sizes):
        rest = max(total - sum(used[g] for g in fixed), 0)
        free = [g for g in range(len(sizes)) if g not in fixed]
        everyone = sum(sizes[g] for g in free)
        exact = {g: Fraction(min(rest, everyone) * sizes[g], max(everyone, 1)) for g in free}
        share = {g: int(exact[g]) for g in free}
        for g in sorted(free, key=lambda g: (share[g] - exact[g], g))[: min(rest, everyone) - sum(share.values())]:
            share[g] += 1
        below = {g for g in free if share[g] < used[g]}
        if not below:
            return [share.get(g, used[g]) for g in range(len(sizes))]
        fixed |= below
    return used


@given(total=st.integers(0, 120), groups=groups_with_use)
def test_a_count_is_shared_out_above_what_is_used(total, groups):
    sizes, used = [size for size, _ in groups], [min(use, size) for size, use in groups]
    found = shared_out(total, np.array(sizes), np.array(used)).tolist()
    assert found == by_hand(total, sizes, used)
    assert all(share >= use for share, use in zip(found, used, strict=True))
    assert sum(found) == max(min(total, sum(sizes)), sum(found) if sum(used) > total else 0)


def test_equal_remainders_go_to_the_earlier_group_whatever_the_last_bit_of_a_quotient_says():
    """Of 200,000 draws like these float64 tells equal remainders apart in 850."""
    rng = np.random.default_rng(0)
    for _ in range(3000):
        sizes = rng.integers(0, 40, rng.integers(2, 9))
        total = int(rng.integers(0, sizes.sum() + 1))
        assert shared_out(total, sizes, np.zeros(len(sizes), int)).tolist() == by_hand(total, sizes.tolist(), [0] * len(sizes)), (total, sizes)


def test_groups_come_in_sorted_order_and_their_rows_in_the_order_of_the_pool():
    names = np.random.default_rng(1).choice(["b", "a", "dd", "c"], 200).astype(object)
    found = calls(stage("select.random: {keep: 0.5, within: label}"), names, np.zeros(200, bool), text("e"))
    assert [name for name, _, _ in found] == ["a", "b", "c", "dd"]
    assert all(local.tolist() == np.flatnonzero(names == name).tolist() for name, local, _ in found)


def test_a_fraction_is_of_the_rows_that_came_before_too():
    (plain,) = calls(stage("select.random: {keep: 0.5}"), text("", "", ""), np.array([True, False, False]), text("", "", ""))
    assert plain[2]["keep"] == Share(count=3)
    (first,) = calls(stage("select.random: {keep: 0.5}"), text("", "", ""), np.zeros(3, bool), text())
    assert first[2]["keep"] == Share(fraction=0.5)


def test_a_fraction_within_groups_is_of_each_group():
    found = calls(stage("select.random: {keep: 0.5, within: label}"), text("b", "a", "b"), np.zeros(3, bool), text("b", "b", "c", "c"))
    assert [(name, local.tolist(), p["keep"]) for name, local, p in found] == [("a", [1], Share(fraction=0.5)), ("b", [0, 2], Share(count=2))]


def test_a_count_within_groups_is_of_all_groups_that_came():
    found = calls(
        stage("select.random: {keep: 4, within: label}"), text("a", "a", "b", "b"), np.array([True, False, False, False]), text("c", "c", "c", "c")
    )
    assert [(name, p["keep"].count) for name, _, p in found] == [("a", 1), ("b", 1)]  # two are c's


@pytest.mark.parametrize("given", ["keep: 4", "keep: 0.5"])
def test_no_rows_are_one_call_without_groups_and_none_with_them(given):
    assert len(calls(stage(f"select.random: {{{given}}}"), text(), np.zeros(0, bool), text())) == 1
    assert calls(stage(f"select.random: {{{given}, within: label}}"), text(), np.zeros(0, bool), text()) == []
