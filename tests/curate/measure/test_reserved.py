"""What a measure writes, no column of a pool may be called."""

import inspect

from curate.stages import MEASURE, STAGES
from manifests.shards.columns import RESERVED
from manifests.signature import load


def test_every_column_of_a_measure_is_reserved():
    written = {name: getattr(inspect.getmodule(load(name, "curate")), "WRITES", {}) for name, stage in STAGES.items() if stage.kind == MEASURE}
    assert {f"{name}: {column}" for name, columns in written.items() for column in columns if column not in RESERVED} == set()
