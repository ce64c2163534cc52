"""What was measured of a shard that is not whole yet: a file every thousand rows, so that a build that was killed goes on from the last of them."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.pool import Columns
from manifests.publish import publish_table, published_digest

ROWS = 1000  # rows of a file, at least: it ends with a batch, so that an encoder sees the same batches again
Pieces = dict[str, list[Columns]]  # the columns of each stage, batch by batch
Faults = dict[str, list[str | None]]


@dataclass
class Unfinished:
    """The files of one shard in `folder`, whose `key` says what they were made of; `rows` and `files` so far, and `taken` batches that are in them."""

    folder: Path
    key: str
    rows: int = 0
    files: int = 0
    taken: dict[str, int] = field(default_factory=dict)

    def restore(self, pieces: Pieces, faults: Faults) -> int:
        """Append what is there to `pieces` and `faults`, and tell how many rows it is. What another key made is not ours."""
        while published_digest(self._next()) == self._made_of() and (table := _whole(self._next())) is not None:
            for stage in pieces:
                own = [name for name in table.column_names if name.startswith(f"{stage}/")]
                pieces[stage].append({name.removeprefix(f"{stage}/"): _plain(table[name]) for name in own if name != f"{stage}/"})
                faults[stage].extend(table[f"{stage}/"].to_pylist())
            self._took(pieces, table.num_rows)
        return self.rows

    def save(self, pieces: Pieces, faults: Faults) -> None:
        """Publish what is not in the files yet, where it is enough."""
        rows = max(map(len, faults.values()))
        if rows - self.rows < ROWS:
            return
        columns: dict[str, pa.ChunkedArray] = {}
        for stage, batches in pieces.items():
            new = [pa.table({f"{stage}/{name}": _arrow(values) for name, values in batch.items()}) for batch in batches[self.taken.get(stage, 0) :]]
            whole = pa.concat_tables(new, promote_options="permissive")
            columns |= dict(zip(whole.column_names, whole.columns, strict=True))
            columns[f"{stage}/"] = pa.chunked_array([pa.array(faults[stage][self.rows : rows], pa.string())])
        publish_table(self._next(), pa.table(columns), self._made_of())
        self._took(pieces, rows - self.rows)

    def remove(self) -> None:
        """The shard is whole, in its own parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _next(self) -> Path:
        return self.folder / f"{self.files:05d}.parquet"

    def _made_of(self) -> str:
        return f"{self.key} from row {self.rows}"

    def _took(self, pieces: Pieces, rows: int) -> None:
        self.rows, self.files = self.rows + rows, self.files + 1
        self.taken = {stage: len(batches) for stage, batches in pieces.items()}


def _whole(file: Path) -> pa.Table | None:
    """All of a file; None where it is damaged: it is measured again and written anew."""
    try:
        return pq.read_table(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError):
        return None


def _arrow(values: "np.ndarray | pa.Array") -> pa.Array:
    """Numpy as Arrow: (b,) as it is, (b, w) as lists of w."""
    if isinstance(values, pa.Array):
        return values
    array = np.asarray(values)
    return pa.array(array) if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _plain(column: pa.ChunkedArray) -> "np.ndarray | pa.Array":
    """(b, w) as numpy again, all else as Arrow: a measure may give either."""
    array = column.combine_chunks()
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, array.type.list_size) if pa.types.is_fixed_size_list(array.type) else array
