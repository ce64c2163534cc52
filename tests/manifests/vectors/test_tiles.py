"""manifests.vectors.tiles: what float32 proposes holds everything that float64 could want, and float64 decides."""

import numpy as np
import pytest
from hypothesis import given, settings

from manifests.vectors import tiles
from manifests.vectors.store import Vectors, float32_error
from manifests.vectors.tiles import cosines, equal_rows, near_the_top, reaching
from tests.strategies import exact_unit_vectors, noisy_unit_vectors


@pytest.fixture(params=["cpu", "cpu:0"])
def device(request):
    """Also through torch, on its CPU."""
    return request.param


def test_what_reaches_a_floor(device):
    z = Vectors.of(noisy_unit_vectors(0, 90, 12, 5, 0.3))
    unit = z.unit(slice(0, 90))
    row, column, score = reaching(unit[:40], unit, 0.9, device)
    want = unit[:40] @ unit.T
    found = np.zeros(want.shape, bool)
    found[row, column] = True
    clear = np.abs(want - 0.9) > float32_error(12)
    np.testing.assert_array_equal(found[clear], (want >= 0.9)[clear])
    np.testing.assert_allclose(score, want[row, column], atol=1e-6)


@pytest.mark.parametrize("wide", [False, True])
def test_what_lies_near_the_top(device, wide):
    unit = Vectors.of(noisy_unit_vectors(1, 90, 12, 5, 0.3)).unit(slice(0, 90))
    reach = np.random.default_rng(0).uniform(0, 0.3, (30, 30)).astype(np.float32) if wide else None
    best, top, row, column, score = near_the_top(unit, unit[:30], 0.05, reach, device)
    want = unit @ unit[:30].T
    np.testing.assert_allclose(top, want.max(1), atol=1e-6)
    np.testing.assert_allclose(want[np.arange(90), best], want.max(1), atol=1e-6)
    short = want.max(1)[:, None] - want
    limit = reach[best] if wide else np.full(want.shape, 0.05)
    found = np.zeros(want.shape, bool)
    found[row, column] = True
    clear = np.abs(short - limit) > 1e-5
    np.testing.assert_array_equal(found[clear], (short <= limit)[clear])
    np.testing.assert_allclose(score, want[row, column], atol=1e-6)


@pytest.mark.parametrize("every", [1, 300])
def test_few_pairs_and_many_have_the_same_cosines(every):
    z = Vectors.of(noisy_unit_vectors(2, 200, 24, 9, 0.1))
    rows, columns = np.arange(0, 200, 2), np.arange(50, 170)
    r, c = np.divmod(np.arange(0, len(rows) * len(columns), every), len(columns))
    np.testing.assert_array_equal(cosines(z, rows, r, columns, c), z.cosine(rows[r], z, columns[c]))


@settings(deadline=None)
@given(z=exact_unit_vectors())
def test_equal_rows_are_those_of_the_same_bytes(z):
    first = equal_rows(Vectors.of(z))
    for i in range(len(z)):
        assert first[i] == next(j for j in range(len(z)) if (z[j] == z[i]).all())
    assert (equal_rows(Vectors.of(z), "cpu:0") == first).all()


def test_a_negative_zero_is_a_zero():
    z = np.zeros((4, 3))
    z[:, 0], z[1, 1], z[3, 2] = 1, -0.0, 0.5
    assert equal_rows(Vectors.of(z)).tolist() == equal_rows(Vectors.of(z), "cpu:0").tolist() == [0, 0, 0, 3]


def test_a_device_sums_the_same_bits():
    z = np.random.default_rng(0).integers(0, 1 << 16, (50, 7), dtype=np.uint16).view(np.float16)  # every sign and exponent
    factors = np.random.default_rng(1).integers(0, 1 << 63, 7, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    np.testing.assert_array_equal(tiles._sums(z, factors, "cpu:0"), tiles._sums(z, factors, "cpu"))
