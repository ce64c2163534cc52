"""Rows that an earlier generation kept are not compared with each other again, and no verdict or new pair changes by that."""

import numpy as np
import pytest

from curate.dedup import all_pairs as module
from curate.dedup.all_pairs import all_pairs
from tests.strategies import noisy_unit_vectors, unit_pool


def pairs(edges, new):
    """The pairs with a new row, by row."""
    found = zip(edges.a.tolist(), edges.b.tolist(), edges.score.tolist(), strict=True)
    return sorted((min(a, b), max(a, b), score) for a, b, score in found if new[a] or new[b])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("protected", [0.0, 0.1])
def test_all_pairs_compares_the_new_rows_alone(seed, protected, monkeypatch):
    z = noisy_unit_vectors(seed, 400, 16, 60, 0.02)
    z[380:384] = z[:4]  # new copies of old rows have the pairs of these
    rng = np.random.default_rng(seed)
    uid, settled = rng.permutation(400), np.arange(400) < 360
    fixed = settled | (rng.random(400) < protected)
    monkeypatch.setattr(module, "BLOCK", 8)
    multiply, work = np.matmul, []
    monkeypatch.setattr(module.np, "matmul", lambda a, b, **more: work.append(len(a) * b.shape[1]) or multiply(a, b, **more))
    given = {"vectors": "z", "min_cosine": 0.97, "floor_cosine": 0.9}
    whole = all_pairs(unit_pool(z, uid, fixed=fixed), **given)
    everything = sum(work)
    pool = unit_pool(z, uid, fixed=fixed)
    pool.settled = settled
    work.clear()
    some = all_pairs(pool, **given)
    assert sum(work) < (0.6 if not protected else 0.95) * everything
    for name in ("keep", "witness", "score"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name))
    assert (~some.keep).any()
    assert pairs(some.edges, ~settled) == pairs(whole.edges, ~settled)
