"""THE TABLE: every stage, in the order of the documentation. Name -> kind, version, and where it gives the same bytes.

`name` is a path: `dedup.exact` is `curate/dedup/exact.py`, function `exact`. Raise `version` when a stage's values change;
golden digests (`tests/golden/stage_digests.json`) fail when that is forgotten. Nothing is imported before a stage runs.
"""

from dataclasses import dataclass

MEASURE, DECISION = "measure", "decision"
ANY_MACHINE, SAME_DEVICE = "any machine", "same device class"  # SAME_DEVICE: an encoder, or key points; equal within tolerance elsewhere


@dataclass(frozen=True)
class Stage:
    """One row of the table. `needs_device`: runs an encoder, after the others, in one process on the device (on CUDA in several)."""

    kind: str
    version: int
    same_bytes: str = ANY_MACHINE
    needs_device: bool = False


STAGES = {
    "measure.index": Stage(MEASURE, 2),
    "measure.quality": Stage(MEASURE, 1),
    "measure.exact_hash": Stage(MEASURE, 1),
    "measure.perceptual_hash": Stage(MEASURE, 3),
    "measure.difference_hash": Stage(MEASURE, 1),
    "measure.vectors": Stage(MEASURE, 1, SAME_DEVICE, needs_device=True),
    "keep.where": Stage(DECISION, 1),
    "keep.list": Stage(DECISION, 1),
    "dedup.exact": Stage(DECISION, 2),
    "dedup.perceptual": Stage(DECISION, 4),
    "dedup.copies": Stage(DECISION, 5, SAME_DEVICE),
    "dedup.all_pairs": Stage(DECISION, 2),
    "dedup.semantic": Stage(DECISION, 3),
    "dedup.semdedup": Stage(DECISION, 2),
    "dedup.mutual": Stage(DECISION, 2),
    "leakage.images": Stage(DECISION, 6, SAME_DEVICE),
    "labels.neighbours": Stage(DECISION, 1),
    "reduce.redundancy": Stage(DECISION, 2),
    "reduce.series": Stage(DECISION, 1),
    "reduce.information": Stage(DECISION, 1),
    "reduce.density": Stage(DECISION, 1),
    "reduce.prototypes": Stage(DECISION, 2),
    "reduce.hierarchical": Stage(DECISION, 2),
    "select.random": Stage(DECISION, 1),
    "select.stratified": Stage(DECISION, 1),
    "select.kcenter": Stage(DECISION, 1),
    "select.facility_location": Stage(DECISION, 1),
}
