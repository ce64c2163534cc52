"""The law, and the selection in DataComp's subset form."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import Refusal
from manifests.ledger import law, read_selection, selected, write_selection


@settings(deadline=None)
@given(st.lists(st.binary(min_size=16, max_size=16).map(bytes.hex), unique=True, max_size=50))
def test_a_selection_reads_back_sorted(tmp_path_factory, uids):
    path = tmp_path_factory.mktemp("selection") / "s.npy"
    write_selection(path, uids)
    assert read_selection(path) == sorted(uids)
    assert np.load(path).dtype == np.dtype("u8,u8")


A, B, C, OWN = "0" * 31 + "a", "0" * 31 + "b", "f" * 32, ["1" * 32, "3" * 32, "2" * 32]


@pytest.mark.parametrize(
    ("source_uids", "wanted"),
    [
        ([C, A, B], [A, B, C]),
        ([C, A, A], sorted(OWN)),
        ([C, None, A], sorted(OWN)),
        ([C, "its own", A], sorted(OWN)),
        ([C, A.upper(), B], sorted(OWN)),
        ([None, None, None], sorted(OWN)),
    ],
)
@pytest.mark.parametrize("files", [1, 3])
def test_the_pools_own_ids_are_chosen_by_where_every_kept_row_has_another(tmp_path, source_uids, wanted, files):
    rows = [*({"uid": own, "source_uid": s, "status": "kept"} for own, s in zip(OWN, source_uids, strict=True)),
            {"uid": "4" * 32, "source_uid": A, "status": "dropped"}]  # fmt: skip
    table = pa.Table.from_pylist(rows, pa.schema([("uid", pa.string()), ("source_uid", pa.string()), ("status", pa.string())]))
    parts = [table.slice(0, 1), table.slice(1, 1), table.slice(2)] if files == 3 else [table]
    write_selection(tmp_path / "s.npy", selected(parts))
    assert read_selection(tmp_path / "s.npy") == wanted


def test_no_kept_row_is_an_empty_selection_and_a_damaged_uid_is_told():
    assert len(selected([])) == 0
    rows = pa.table({"uid": ["1" * 31 + " "], "source_uid": pa.nulls(1, pa.string()), "status": ["kept"]})
    with pytest.raises(ValueError, match="hex|buffer size"):
        selected([rows])


def test_the_law_refuses_a_row_too_few():
    law({"rows": 5, "kept": 2, "dropped": 2, "quarantined": 1}, "run")
    with pytest.raises(Refusal) as caught:
        law({"rows": 5, "kept": 2, "dropped": 2, "quarantined": 0}, "run")
    assert caught.value.exit_code == 4
