"""curate.pool: the orders that every decision shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.pool import Pool


@given(st.lists(st.text("01f", min_size=6, max_size=14), max_size=40))
@pytest.mark.parametrize("width", [6, 14, 32])
def test_uids_stand_in_the_order_of_their_bytes_equal_ones_as_they_come(width, found):
    uid = np.array([text.encode()[:width] for text in found], f"S{width}")
    rank = Pool(uid).uid_rank
    assert np.argsort(rank).tolist() == sorted(range(len(uid)), key=lambda row: (uid[row].ljust(width, b"\0"), row))


def test_protected_rows_come_first_then_the_larger_then_the_uid():
    pool = Pool(np.array([b"d", b"c", b"b", b"a"]), {"size": np.array([1, 2, 2, 9])}, fixed=np.array([True, False, False, False]))
    assert np.argsort(pool.keeper_order(["size"])).tolist() == [0, 3, 2, 1]
