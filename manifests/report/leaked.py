"""What `leakage.images` saw of a dropped row and a test picture that it shows as a verified copy: the words, and both laid alike as `dedup.copies` has them."""

from typing import Any

from manifests.leaks import BOXES, EDGES, what_happened
from manifests.report.copies import Box, Change
from manifests.report.panel import Inquiry, in_list
from manifests.run import Run

COPIED = f"""SELECT uid, pool, test, turn, covered, {", ".join(BOXES)} FROM leaks WHERE reason = 'copied_leak' AND uid IN {{uids}}"""


class WithTests(Run):
    """A run that reads the samples of its evaluation pools too: in place of a shard they have (pool, uid)."""

    def payload(self, shard: str | tuple[str, str], offset: int, size: int) -> bytes:
        """The bytes of a sample's image; `KeyError` where an evaluation pool has it no more."""
        if isinstance(shard, str):
            return super().payload(shard, offset, size)
        found = self.evaluation_payload(*shard)
        if found is None:
            raise KeyError(shard)
        return found


def leaked(row: dict[str, Any], pair: dict[str, Any]) -> Change:
    """What was done to a test picture, seen from it; `row` of the ledger, `pair` of the view `leaks`."""
    test = {"shard": (pair["pool"], pair["test"]), "offset": 0, "size": 0}
    return Change(what_happened(pair), row, test, int(pair["turn"]), _box(pair, "a"), _box(pair, "b"))


def _box(pair: dict[str, Any], side: str) -> Box:
    left, top, right, bottom = (pair[f"{side}_{edge}"] for edge in EDGES)
    return left, top, right, bottom


def leaked_changes(inquiry: Inquiry, rows: list[dict[str, Any]]) -> dict[int, Change]:
    """The change of each of the ledger rows that were dropped as a verified copy of a test picture, by its place in `rows`."""
    wanted = {
        (row["uid"], row["witness_pool"], row["witness"]): at
        for at, row in enumerate(rows)
        if row["drop_reason"] == "copied_leak" and row["witness_pool"]
    }
    if not wanted or not inquiry.has("leaks"):
        return {}
    pairs = inquiry.look_up(COPIED.format(uids=in_list(sorted({uid for uid, _, _ in wanted}))))
    found = {(pair["uid"], pair["pool"], pair["test"]): pair for pair in pairs if pair["turn"] is not None}
    return {at: leaked(rows[at], found[key]) for key, at in wanted.items() if key in found}
