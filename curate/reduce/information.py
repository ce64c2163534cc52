"""Thin out slices of a volume by what they tell of each other: mutual information of grey levels, and an entropy floor for blank slices."""

import numpy as np
import pyarrow as pa

from curate.pool import Column, Edges, Pool, State, Verdicts
from manifests.errors import Refusal
from manifests.images import Window
from manifests.information import could_reach, entropy, grey_levels, shared, spread
from manifests.series import walks
from manifests.star import star
from manifests.vectors.forecast import Size, listed, require
from manifests.vectors.forecast import information as of_groups

REASONS = ("low_entropy", "redundant")
WRITES = {"information_entropy": pa.float64()}
MOVES = {"min_nmi": "floor_nmi", "min_entropy": "", "order": ""}
GROWS = "equal where each keeper is in the older part"
PAIRS = 1 << 18  # compared in one round: some seconds that a crash may cost


def forecast(size: Size, **_: object) -> None:
    """Nothing: it follows from the sizes of the groups, which show only then."""


def information(
    pool: Pool,
    *,
    group: Column,
    order: Column = Column("key"),  # noqa: B008
    min_nmi: float = 0.5,
    min_entropy: float = 0.0,
    side: int = 64,
    window: Window | None = None,
    floor_nmi: float = 0.3,
) -> Verdicts:
    """Keep of each volume or video only slices that share little information with every kept one before them.

    Decides     a row whose grey levels hold fewer than `min_entropy` bits is dropped ("low_entropy"): `score` is its entropy, `threshold` min_entropy, no
                witness. The others of each group are walked in the numeric order of `order`: a row is kept unless a *kept* row before it has a normalised
                mutual information of at least `min_nmi`, else it is dropped ("redundant"). `witness` is the kept row before it with the highest (of equals
                the first in the walk), `score` that value, `threshold` min_nmi. NMI = 2 I(A;B) / (H(A) + H(B)) over the joint histogram of 64 x 64 grey
                levels of the two pictures at side x side; two pictures of one grey each have 1. Rows of two groups never meet. In text every run of digits
                counts as a number. Protected rows come first in their group's walk, and all of them stay. A row whose picture cannot be read is kept,
                unjudged.
    Guarantee   exact in whole numbers: the same verdicts on every machine; every redundant row has a kept one before it with at least min_nmi
    Source      one of the families that Less is More (Wolf et al. 2024) tried on CT; we found neither its formula nor its threshold, so both are ours.
                Hashing (`reduce.series`) did best there. A value found on one kind of volume means little on another: on four MRI volumes as much was kept as
                by Hash-6 at 0.35 to 0.46; 0.5 keeps 1.3 to 2.4 times as much, and 0.6 about half of all slices
    group       the column that says what belongs together: a patient, a volume, a video
    order       the column whose numeric order is walked: a slice number, a time, or a file name that ends in one
    min_nmi     0 to 1
    min_entropy   bits, 0 to 6; 0 = off. A CT slice of air alone has well below 1
    side        pictures are compared at side x side, 8 to 256; fewer pixels fill the joint histogram worse, which raises every value
    window      [centre, width]: which stored values become black to white in pictures with more than 8 bits of grey, such as [1064, 400]; null = the whole
                range
    floor_nmi   pairs down to this are written as edges, so that min_nmi can be moved later without the pictures; at most min_nmi
    Writes      information_entropy: float64, bits of the 64 grey levels
    Cost        one full-scale decode a row, and about 30 microseconds for each pair of a group whose entropies let it reach floor_nmi; side^2 bytes a row of
                the largest group, 24 bytes on disk and 120 at work for each pair that reaches floor_nmi
    Errors      bad-value; does-not-fit
    """
    if not (0 <= floor_nmi <= min_nmi <= 1 and 0 <= min_entropy <= 6 and 8 <= side <= 256):
        given = f"min_nmi {min_nmi}, floor_nmi {floor_nmi}, min_entropy {min_entropy}, side {side}"
        raise Refusal("bad-value", "reduce.information", given, "0 <= floor_nmi <= min_nmi <= 1, an entropy of 0 to 6 bits, a side of 8 to 256")
    rank, groups = walks(pool.column(group), pool.column(order), pool.uid_rank, pool.fixed)
    edges = pool.edges(lambda: _find(pool, groups, side, window, floor_nmi))

    own = edges.a == edges.b  # every readable row stands once with itself, for its entropy
    bits = np.full(len(pool), np.nan)
    bits[edges.a[own]] = np.asarray(edges.columns["entropy"])[own]
    blank = (bits < min_entropy) & ~pool.fixed
    near = ~own & (edges.score >= min_nmi) & ~blank[edges.a] & ~blank[edges.b]
    keep, witness, score = star(rank, [(edges.a[near], edges.b[near], edges.score[near])], fixed=pool.fixed)
    return Verdicts(
        keep=keep & ~blank, reason=np.where(blank, "low_entropy", "redundant"), score=np.where(blank, bits, score),
        threshold=np.where(blank, min_entropy, min_nmi), witness=witness, columns={"information_entropy": bits}, unjudged=np.isnan(bits) & ~pool.fixed,
        edges=edges,
    )  # fmt: skip


def _find(pool: Pool, groups: list[np.ndarray], side: int, window: Window | None, floor: float) -> Edges:
    """Each row with itself, and the pairs of each group that reach `floor`."""
    require("reduce.information", of_groups([len(rows) for rows in groups], side), pool.memory)
    pairs = np.cumsum([0] + [len(rows) * (len(rows) - 1) // 2 for rows in groups]) // PAIRS
    rounds = np.split(np.arange(len(groups)), np.flatnonzero(np.diff(pairs[:-1])) + 1) if groups else []

    def compare(state: State) -> State:
        done, *found = state
        more = [_compare(pool, groups[g], side, window, floor) for g in rounds[int(done[0])]]
        found = [np.concatenate(column) for column in zip(found, *more, strict=True)]
        require("reduce.information", listed(len(found[0])), pool.memory)
        return done + 1, *found

    nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0)
    _, a, b, score, bits = pool.scan("groups", compare, (np.zeros(1, np.int64), *nothing), rounds=len(rounds))
    return Edges(a, b, score, {"entropy": bits})


def _compare(pool: Pool, rows: np.ndarray, side: int, window: Window | None, floor: float) -> tuple[np.ndarray, ...]:
    """(a, b, score, the lower entropy) of one group; only its thumbnails are held."""
    in_shards = np.sort(rows)
    levels, readable = grey_levels(pool.payloads(in_shards), len(rows), side, window)
    rows, levels = in_shards[readable], levels[readable]
    sums = spread(levels)
    bits = entropy(sums, side * side)
    found = [(rows, rows, np.ones(len(rows)), bits)]
    for row in range(len(rows) - 1):
        others = np.arange(row + 1, len(rows))
        others = others[could_reach(sums, row, others, side * side, floor)]
        score = shared(levels, sums, row, others)
        near = others[score >= floor]
        found.append((np.full(len(near), rows[row]), rows[near], score[score >= floor], np.minimum(bits[row], bits[near])))
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))
