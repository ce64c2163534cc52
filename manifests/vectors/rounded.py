"""What each row adds to a sum of highest similarities, at most: from a table of all pairs, a byte each, read where a product would be made again.

Rows of the table that came closer tell what every other row lost, in whole numbers, so that bounds never drift; float32 sharpens those of the highest.
"""

from collections.abc import Iterator

import cv2
import numpy as np

STRIP, WIDE = 256, 512  # rows and columns of a tile that is made at once
AT_ONCE = 64  # rows of the table that are summed at once, and lie in a cache
FEW, NEAR = 16, 0.97  # how many of the highest bounds are sharpened at once, and how near to the highest they are at first
MOST_STEPS = 1024  # of a cosine of 1: finer ones come near to the error of float32


class Rounded:
    """Gains, the sums over all rows of weight * max(similarity - best, 0), with similarity (1 + cos) / 2: never less than they are.

    table    (n, n) uint8: each cosine in steps from the lowest best one on, rounded up; lower ones are 0
    floor    (n,) uint8: `best` in the same steps, rounded down
    gain     (n,) float64: what the table above `floor` comes to
    """

    def __init__(self, unit: np.ndarray, weight: np.ndarray, error: float, best: np.ndarray) -> None:
        """`unit` (d, n) float32, rows of length one, whose products are off by `error` at most; `weight` (n,) whole numbers; `best` (n,) float64."""
        cv2.setNumThreads(1)  # the engine's workers share the machine
        self.unit, self.weight, self.error, n = np.ascontiguousarray(unit.T), weight, error, len(best)
        self.copies = weight.astype(np.int64)
        self.base = min(2 * float(best.min()) - 1, 1 - 255 / MOST_STEPS)
        self.steps = 255 / (1 - self.base)
        self.table, self._room = np.empty((n, n), np.uint8), np.empty((AT_ONCE, n), np.uint8)
        up = 0.5 + 2.0**-8 + self.steps * (error - self.base)  # what rounding to the nearest must not lose, and float32 may
        for first in range(0, n, STRIP):
            i = slice(first, min(first + STRIP, n))
            for j in right_of(i, n, WIDE):
                cosine = unit[:, i].T @ unit[:, j]
                tile = cv2.addWeighted(cosine, self.steps, cosine, 0, up, dtype=cv2.CV_8U)
                self.table[i, j] = tile
                if j != i:
                    self.table[j, i] = cv2.transpose(tile)
        self.fresh = np.zeros(n, bool)  # whose bound float32 has sharpened since the last pick
        self.floor = self._down(best)
        rows = np.repeat(np.arange(n), self.copies)
        self._left = self._between(rows, self.floor[rows], np.full(len(rows), 255, np.uint8))
        self.gain = self._left / (2 * self.steps)

    def _down(self, best: np.ndarray) -> np.ndarray:
        """(m,) uint8: similarities in steps, rounded down: 255 is 1 alone, and what is above any other has a step more in the table."""
        return ((2 * best - 1 - self.base) * self.steps).astype(np.uint8)

    def _between(self, rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """(n,) steps that each row of the table has between `low` and `high` (m,) of `rows`, all together."""
        total = np.full(len(self.table), -int(low.sum(dtype=np.int64)))
        for first in range(0, len(rows), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            held = np.take(self.table, rows[some], 0, out=self._room[: len(rows[some])], mode="clip")
            np.clip(held, low[some, None], high[some, None], out=held)
            total += cv2.reduce(held, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[0]
        return total

    def highest(self, best: np.ndarray, upper: np.ndarray) -> int:
        """The row with the highest bound, made from `best`; of equals the first."""
        while not self.fresh[row := int(upper.argmax())] and upper[row] > 0:
            could = np.flatnonzero((upper >= upper[self.fresh].max(initial=NEAR * upper[row])) & ~self.fresh)
            if len(could) > 2 * FEW:
                could = could[np.argpartition(-upper[could], FEW)[:FEW]]
            upper[could] = np.minimum(upper[could], self._gains(could, best))
            self.fresh[could] = True
        return row

    def _gains(self, could: np.ndarray, best: np.ndarray) -> np.ndarray:
        """(m,) what each of a few rows would add, at most, by float32: off by the error of those alone that may come closer."""
        gain, near = np.zeros(len(could)), np.flatnonzero(self.table[could].max(0) > self.floor)
        for some in pieces(len(near), 8192):
            at = near[some]
            above = self.unit[at] @ self.unit[could].T
            above -= (2 * best[at, None] - 1 - self.error).astype(np.float32)
            gain += self.weight[at] @ np.maximum(above, 0, out=above) * (0.5 + len(at) * 2.0**-24)
        return gain

    def moved(self, rows: np.ndarray, best: np.ndarray, upper: np.ndarray) -> None:
        """`rows` came closer, as near as `best`: lower `upper` of all by what this takes from them."""
        rows = np.repeat(rows, self.copies[rows])
        floor = self._down(best[rows])
        rows, floor = rows[at := floor > self.floor[rows]], floor[at]
        self._left -= self._between(rows, self.floor[rows], floor)
        self.floor[rows], self.fresh[:] = floor, False
        self.gain = self._left / (2 * self.steps)
        np.minimum(upper, self.gain, out=upper)

    def rows(self, row: int, best: np.ndarray) -> np.ndarray:
        """Who may come closer by a pick of `row`."""
        return np.flatnonzero(self.table[row] > self.floor)


def pieces(stop: int, width: int, start: int = 0) -> Iterator[slice]:
    """`start` to `stop` in pieces of `width` at most, all of about the same length."""
    count = -(-(stop - start) // width)
    for piece in range(count):
        yield slice(start + piece * (stop - start) // count, start + (piece + 1) * (stop - start) // count)


def right_of(strip: slice, stop: int, width: int) -> Iterator[slice]:
    """`strip` itself, and what is right of it, in pieces: with all strips each pair of rows comes once, but for the pairs inside a strip."""
    yield strip
    yield from pieces(stop, width, strip.stop)
