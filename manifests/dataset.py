"""The kept samples of a run as a map-style dataset, read from the pool without copying. Fits `torch.utils.data.DataLoader`."""

from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from manifests.images import decode
from manifests.schema import KEPT

if TYPE_CHECKING:
    from manifests.run import Run

COLUMNS = ["uid", "key", "shard", "offset", "size", "label", "caption", "weight", "status"]


class KeptSamples:
    """`len(d)` kept samples; `d[i]` is {uid, key, image (h, w, 3) uint8, label, caption, weight}. `transform` is applied to the image."""

    def __init__(self, run: "Run", transform: Any = None) -> None:
        self.run, self.transform = run, transform
        ledger = run.ledger(COLUMNS)
        self.rows = ledger.filter(pc.equal(ledger["status"], KEPT)).drop_columns(["status"])

    def __len__(self) -> int:
        return self.rows.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows.slice(index, 1).to_pylist()[0]
        image = decode(self.run.payload(row.pop("shard"), row.pop("offset"), row.pop("size")))
        return {**row, "image": self.transform(image) if self.transform else image}
