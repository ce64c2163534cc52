"""Inputs on which equality is exact, for hypothesis."""

import numpy as np
from hypothesis import strategies as st

from curate.pool import Pool
from manifests.vectors.store import Vectors


@st.composite
def exact_unit_vectors(draw: st.DrawFn, min_size: int = 1, max_size: int = 14, dim: int = 4) -> np.ndarray:
    """(n, dim) float64 unit vectors of one +-1 or four +-1/2: exact in float16, full of ties, their products multiples of 1/4."""
    rows = []
    for _ in range(draw(st.integers(min_size, max_size))):
        row = np.zeros(dim)
        if draw(st.booleans()):
            row[draw(st.integers(0, dim - 1))] = draw(st.sampled_from([-1.0, 1.0]))
        else:
            at = draw(st.permutations(range(dim)))[:4]
            row[at] = draw(st.lists(st.sampled_from([-0.5, 0.5]), min_size=4, max_size=4))
        rows.append(row)
    return np.array(rows) + 0.0


def uids(order: "np.ndarray | list[int]") -> np.ndarray:
    """(n,) `S32` uids whose order is `order`."""
    return np.array([f"{i:032x}" for i in order], dtype="S32")


def unit_pool(
    z: np.ndarray, order: "np.ndarray | list[int]", columns: dict | None = None, fixed: np.ndarray | None = None, memory: int = 1 << 30,
    device: str = "cpu",
) -> Pool:  # fmt: skip
    """A pool with the vector column "z" and uids in the order `order`."""
    return Pool(uids(order), columns, {"z": Vectors.of(z)}, fixed=fixed, memory=memory, device=device)


def noisy_unit_vectors(seed: int, n: int, dim: int, groups: int, spread: float) -> np.ndarray:
    """(n, dim) unit vectors around `groups` centres, exactly equal rows among them."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(groups, dim))[rng.integers(0, groups, n)] + spread * rng.normal(size=(n, dim)) * rng.integers(0, 3, (n, 1))
    return z / np.linalg.norm(z, axis=1, keepdims=True)
