"""Numeric order, and walks by group."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from manifests.series import natural_rank, walks


def texts(*values: str) -> np.ndarray:
    return np.array(values, object)


def test_text_is_ordered_by_its_numbers():
    names = texts("ct/slice 10", "ct/slice 2", "ct/slice 02", "ct/slice 100", "ct/slice", "a12b3", "a12b20", "a2b99")
    assert natural_rank(names).tolist() == [5, 4, 4, 6, 3, 1, 2, 0]


@given(st.lists(st.integers(0, 10**30)))
def test_whole_numbers_as_text_are_ordered_as_numbers(numbers):
    expected = {n: i for i, n in enumerate(sorted(set(numbers)))}
    assert natural_rank(np.array([f"{n:04d}" for n in numbers], object)).tolist() == [expected[n] for n in numbers]


def test_numbers_are_ordered_as_numbers():
    assert natural_rank(np.array([2.5, -10.0, 2.5, 1.0])).tolist() == [2, 0, 2, 1]
    assert natural_rank(np.array([10, 9, 2])).tolist() == [2, 1, 0]


def test_no_run_of_digits_is_too_long():
    assert natural_rank(texts("9" * 6000, "1" + "0" * 6000, "")).tolist() == [1, 2, 0]


def test_walks():
    group, order = texts("b", "a", "b", "a", "b"), np.array([2, 7, 1, 7, 3])
    rank, rows = walks(group, order, np.array([0, 4, 1, 3, 2]), np.array([False, False, False, False, True]))
    assert [r.tolist() for r in rows] == [[3, 1], [4, 2, 0]]
    assert rank.tolist() == [4, 1, 3, 0, 2]
    codes = np.array([[0, 1], [0, 0], [0, 1], [0, 0], [0, 1]], np.uint8)  # a fixed binary
    assert [r.tolist() for r in walks(codes, codes, np.arange(5), np.zeros(5, bool))[1]] == [[1, 3], [0, 2, 4]]
    assert walks(group[:0], order[:0], order[:0], order[:0].astype(bool))[1] == []
