"""Low precision may say too much of a cosine, never too little of its own error."""

import numpy as np
import pytest

from manifests.vectors import products
from manifests.vectors.products import OnCpu, OnDevice
from manifests.vectors.store import Vectors
from tests.strategies import noisy_unit_vectors


def vectors(kind: str) -> Vectors:
    if kind == "noise":
        return Vectors.of(noisy_unit_vectors(0, 90, 48, 5, 0.02))
    if kind == "one value":  # every rounding goes the same way
        return Vectors.of(np.full((60, 1021), 1021**-0.5))
    rng = np.random.default_rng(0)
    z = 10.0 ** -rng.integers(0, 7, (80, 32)) * rng.choice([-1, 1], (80, 32))  # down to what float16 cannot tell from zero
    return Vectors.of(z / np.linalg.norm(z, axis=1, keepdims=True))


@pytest.mark.parametrize("kind", ["noise", "one value", "wide"])
@pytest.mark.parametrize("make", [lambda z: OnCpu(z, 7), lambda z: OnDevice(z, "cpu:0")], ids=["cpu", "device"])
@pytest.mark.parametrize("floor", [-1.0, 0.9, 0.999])
def test_no_pair_above_the_floor_is_left_out_and_none_is_off_by_more_than_the_error(monkeypatch, make, kind, floor):
    monkeypatch.setattr(products, "BLOCK", 13)
    monkeypatch.setattr(products, "WIDE", 29)
    z = vectors(kind)
    made, n = make(z), len(z)
    a, b = np.divmod(np.arange(n * n), n)
    exact = z.cosine(a, z, b).reshape(n, n)
    for columns in (np.arange(n), np.flatnonzero(np.arange(n) % 3)):
        seen, rows = np.full((n, n), -9.0), np.arange(n)
        for start in range(0, n, 7):
            for tile in made.tiles(rows[start : start + 7], columns, floor):
                seen[np.ix_(rows[start : start + 7][tile.at], tile.columns)] = tile.scores
        told = seen > -9
        assert told[:, columns][exact[:, columns] >= floor].all()
        assert (abs(seen - exact)[told] <= made.error).all()


@pytest.mark.parametrize("make", [lambda z: OnCpu(z, 90), lambda z: OnDevice(z, "cpu:0")], ids=["cpu", "device"])
def test_a_triangle_holds_each_pair_once_and_no_row_with_itself(make):
    z = vectors("noise")
    made, rows = make(z), np.arange(20, 61)
    seen = np.full((90, 90), -2.0)
    for tile in made.triangle(rows, 0.9):
        seen[np.ix_(rows[tile.at], tile.columns)] = tile.scores
    a, b = np.nonzero(seen >= 0.9)
    assert (a > b).all()
    later, earlier = np.tril_indices(41, -1)
    later, earlier = later + 20, earlier + 20
    near = z.cosine(later, z, earlier) >= 0.9
    assert near.any() and (seen[later[near], earlier[near]] >= 0.9 - made.error).all()


def test_a_device_without_room_is_sent_the_blocks(monkeypatch):
    z = vectors("noise")
    whole = scores_of(OnDevice(z, "cpu:0"))
    monkeypatch.setattr(products, "HELD", 0.0)
    sent = OnDevice(z, "cpu:0")
    assert sent.held is None
    np.testing.assert_array_equal(scores_of(sent), whole)


def scores_of(made: OnDevice) -> np.ndarray:
    (tile,) = made.tiles(np.arange(8), np.arange(90), -1.0)
    return tile.scores
