"""keep.where against the same rule in Python, nulls kept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.keep.where import REASONS, where
from manifests.errors import Refusal
from tests.pools import assert_lawful, pool_of


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=1, max_size=12), data=st.data())
def test_a_row_is_dropped_when_the_expression_is_false_and_only_then(values, data):
    fixed = data.draw(st.sets(st.integers(0, len(values) - 1)))
    pool = pool_of(width=values, fixed=sorted(fixed))

    got = where(pool, keep="width > 0")

    assert got.keep.tolist() == [v is None or v > 0 or i in fixed for i, v in enumerate(values)]
    assert got.columns["where_holds"].to_pylist() == [None if v is None else v > 0 for v in values]
    assert_lawful(pool, got, REASONS)
    assert got.score is got.threshold is got.witness is None


def test_a_null_can_be_dropped_by_asking_for_it():
    pool = pool_of(width=[1, None])
    assert where(pool, keep="width IS NOT NULL AND width > 0").keep.tolist() == [True, False]


def test_none_dropped_and_all_dropped():
    assert where(pool_of(width=[1, 2]), keep="true").keep.all()
    assert not where(pool_of(width=[1, 2]), keep="false").keep.any()
    assert len(where(pool_of(width=[]), keep="true").keep) == 0


def test_a_bad_expression_is_refused_by_name():
    with pytest.raises(Refusal, match=r"keep\.where: keep.*\[bad-sql\]"):
        where(pool_of(width=[1]), keep="width >")
