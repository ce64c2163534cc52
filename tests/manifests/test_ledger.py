"""The law, and the selection in DataComp's subset form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import Refusal
from manifests.ledger import law, read_selection, write_selection


@given(st.lists(st.binary(min_size=16, max_size=16).map(bytes.hex), unique=True, max_size=50))
def test_a_selection_reads_back_sorted(tmp_path_factory, uids):
    path = tmp_path_factory.mktemp("selection") / "s.npy"
    write_selection(path, uids)
    assert read_selection(path) == sorted(uids)
    assert np.load(path).dtype == np.dtype("u8,u8")


def test_the_law_refuses_a_row_too_few():
    law({"rows": 5, "kept": 2, "dropped": 2, "quarantined": 1}, "run")
    with pytest.raises(Refusal) as caught:
        law({"rows": 5, "kept": 2, "dropped": 2, "quarantined": 0}, "run")
    assert caught.value.exit_code == 4
