"""Words, Holm, looks, sentences: by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from pretrain.evidence.intervals import ALPHA, Arm, contrast
from pretrain.evidence.verdict import (
    BETTER,
    CANNOT_TELL,
    NOT_WORSE,
    WORSE,
    Claims,
    Question,
    claims_of,
    decide,
    holm,
    next_alpha,
    points,
    shifted,
    standing,
    word,
)


@pytest.mark.parametrize(
    ("lo", "hi", "margin", "expected"),
    [
        (0.1, 0.5, 1.0, (BETTER, "")),
        (-0.5, 0.5, 1.0, (NOT_WORSE, "")),
        (-0.8, -0.2, 1.0, (NOT_WORSE, "measurably lower, within the margin")),
        (-3.0, -1.5, 1.0, (WORSE, "")),
        (-2.0, 0.5, 1.0, (CANNOT_TELL, "")),
        (-2.0, -0.5, 1.0, (CANNOT_TELL, "lower than the reference, size open")),
        (-0.5, 0.5, 0.0, (CANNOT_TELL, "")),
        (-0.5, -0.1, 0.0, (WORSE, "")),
        (0.1, 0.5, 0.0, (BETTER, "")),
        (0.0, 0.5, 0.0, (CANNOT_TELL, "")),
        (-1.0, 0.5, 1.0, (CANNOT_TELL, "")),
    ],
)
def test_word_by_position(lo, hi, margin, expected):
    assert word(claims_of(lo, hi, margin), hi, margin) == expected


@given(st.floats(-2, 2), st.floats(0, 2), st.floats(0, 2), st.floats(0, 1))
def test_narrowing_an_interval_never_overturns_a_proved_word(middle, half, margin, shrink):
    before = word(claims_of(middle - half, middle + half, margin), middle + half, margin)[0]
    after = word(claims_of(middle - half * shrink, middle + half * shrink, margin), middle + half * shrink, margin)[0]
    opposite = {BETTER: {WORSE, NOT_WORSE, CANNOT_TELL}, NOT_WORSE: {WORSE, CANNOT_TELL}, WORSE: {BETTER, NOT_WORSE, CANNOT_TELL}, CANNOT_TELL: set()}
    assert after not in opposite[before]


def test_two_looks_that_contradict_each_other_say_nothing():
    assert word(Claims(not_worse=True, worse=True), -0.1, 0.5) == (CANNOT_TELL, "two looks contradict each other")


def test_holm_by_hand():
    assert holm([0.01, 0.02, 0.03], 0.03) == [True, False, False]  # 0.01 <= 0.03 / 3, but 0.02 > 0.03 / 2: nothing after it falls
    assert holm([0.03, 0.01, 0.014], 0.03) == [True, True, True]
    assert holm([0.020, 0.001], 0.025) == [True, True]
    assert holm([], 0.05) == [] and holm([0.025], 0.025) == [True] and holm([float("nan")], 0.05) == [False]


def test_holm_is_statsmodels():
    for p in np.random.default_rng(0).random((4, 6)) * 0.05:
        assert holm(p.tolist(), 0.05) == multipletests(p, alpha=0.05, method="holm")[0].tolist()


def test_looks_spend_five_per_cent_and_no_more():
    spent: dict[int, float] = {}
    for runs in (3, 5, 10):
        spent[runs] = next_alpha(spent, runs, [3, 5, 10])
    assert list(spent.values()) == pytest.approx([ALPHA, ALPHA / 2, ALPHA / 2])
    spent = {}
    for runs in range(3, 1000):
        spent[runs] = next_alpha(spent, runs, [3])
    assert sum(spent.values()) == pytest.approx(0.05, abs=1e-4)


def test_undeclared_looks_take_only_what_is_not_reserved():
    assert next_alpha({}, 3, [3, 5, 10]) == ALPHA
    assert next_alpha({3: ALPHA}, 4, [3, 5, 10]) == 0  # all of the second 2.5 % is promised to 5 and 10
    assert next_alpha({3: ALPHA}, 5, [3, 5, 10]) == ALPHA / 2
    assert next_alpha({5: ALPHA}, 10, [3, 5, 10]) == ALPHA / 2  # the look at 3 was skipped
    assert next_alpha({3: ALPHA, 5: ALPHA / 2, 10: ALPHA / 2}, 12, [3, 5, 10]) == 0
    assert next_alpha({5: ALPHA}, 7, [5]) == ALPHA / 2 and next_alpha({5: ALPHA, 7: ALPHA / 2}, 9, [5]) == ALPHA / 6


def test_a_first_look_that_is_not_declared_takes_no_more_than_a_later_one():
    assert next_alpha({}, 4, [10]) == ALPHA / 2  # its runs may be chosen by their means; the declared look keeps its 2.5 %
    assert next_alpha({4: ALPHA / 2}, 7, [10]) == ALPHA / 6 and next_alpha({4: ALPHA / 2, 7: ALPHA / 6}, 10, [10]) == ALPHA
    assert next_alpha({}, 4, [5, 10]) == 0 and next_alpha({}, 3, [5]) == ALPHA / 2  # all is reserved where two are still to come
    assert next_alpha({}, 4, [3, 5, 10]) == pytest.approx(ALPHA / 2) and next_alpha({}, 12, [3, 5, 10]) == ALPHA / 2
    assert next_alpha({4: ALPHA / 2}, 5, [3, 5, 10]) == ALPHA and next_alpha({4: ALPHA / 2, 5: ALPHA}, 10, [3, 5, 10]) == pytest.approx(ALPHA / 2)


@given(st.lists(st.integers(3, 30), min_size=1, max_size=5, unique=True).map(sorted), st.lists(st.integers(3, 40), max_size=12))
def test_any_order_of_looks_stays_within_five_per_cent(declared, made):
    spent = {}
    for runs in made:
        if runs not in spent:
            alpha = next_alpha(spent, runs, declared)
            assert alpha >= 0
            if alpha:
                spent[runs] = alpha
    assert sum(spent.values()) <= 0.05 + 1e-12


def question(shift, seed, margin=0.01, spread=0.002):
    rng = np.random.default_rng(seed)
    a, b = (np.repeat(m + spread * rng.normal(size=(5, 1)), 40, 1) for m in (0.8 + shift, 0.8))
    difference = contrast([Arm((a,)), Arm((b,))], [1, -1])
    return Question(difference, shifted(difference, margin) if margin else None, margin)


def test_shifting_the_difference_is_moving_the_bound():
    q = question(-0.005, 1)
    assert q.inside is not None and np.isclose(q.inside.p_above(0), q.difference.p_above(-0.01))
    alone = decide([q], ALPHA, [Claims()])[0][0]
    assert alone == claims_of(float(q.difference.lo), float(q.difference.hi), 0.01)


def test_holm_over_a_family_and_the_star():
    family = [question(0.003, 1, 0), question(0.0, 2, 0), question(0.0, 3, 0), question(0.0, 4, 0)]
    p = [q.p_values()[0] for q in family]
    assert ALPHA / 4 < p[0] < ALPHA < min(p[1:])  # the case that the star is for
    (alone, after), *_ = decide(family, ALPHA, [Claims()] * 4)
    assert alone.better and not after.better


def test_what_still_stands_is_counted_claim_by_claim():
    family = [question(0.02, 1), question(0.0, 2), question(-0.03, 3), Question(question(0.05, 1).difference, None, 0.0, "one random draw")]
    fallen = [holm([q.p_values()[claim] for q in family[:3]], ALPHA) for claim in range(3)]
    assert standing(family, ALPHA) == tuple(3 - sum(column) for column in fallen) and standing(family[3:], ALPHA) == (0, 0, 0)
    assert standing(family, 1e-12) == (3, 3, 3)


def test_a_proved_word_stays_and_a_barred_question_proves_nothing():
    q = question(0.0, 2, 0)
    assert decide([q], ALPHA, [Claims(better=True)])[0][1].better
    barred = Question(question(0.05, 1, 0).difference, None, 0.0, "one random draw")
    assert decide([barred], ALPHA, [Claims()])[0] == (Claims(), Claims())


def test_points():
    assert points(-0.0021) == "−0.21" and points(0.014, digits=1) == "+1.4" and points(0.008, signed=False) == "0.80" and points(-0.000001) == "0.00"
