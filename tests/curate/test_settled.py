"""Rows that an earlier generation kept are not compared with each other again, and no verdict or new pair changes by that."""

import contextlib

import numpy as np
import pyarrow as pa
import pytest

from curate.dedup import all_pairs as module
from curate.dedup import copies as copies_module
from curate.dedup import exact as exact_module
from curate.dedup import mutual as mutual_module
from curate.dedup import perceptual as perceptual_module
from curate.dedup.all_pairs import all_pairs
from curate.dedup.copies import copies
from curate.dedup.exact import exact
from curate.dedup.mutual import mutual
from curate.dedup.perceptual import perceptual
from curate.dedup.semantic import semantic
from curate.dedup.semdedup import semdedup
from manifests.likeness import candidates
from manifests.vectors import copies as vector_copies
from manifests.vectors import products as products_module
from tests.pools import jpeg, picture_pool, png
from tests.small_pool import crops
from tests.strategies import noisy_unit_vectors, unit_pool


def pairs(edges, new):
    """The pairs with a new row, by row, and what was seen of them."""
    columns = [np.asarray(edges.columns[name]).tolist() for name in sorted(edges.columns)]
    found = zip(edges.a.tolist(), edges.b.tolist(), edges.score.tolist(), *columns, strict=True)
    return sorted(pair for pair in found if new[pair[0]] or new[pair[1]])


def assert_same(some, whole, settled):
    for name in ("keep", "witness", "score"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name))
    assert (~some.keep).any()
    assert some.keep[settled].all()
    assert pairs(some.edges, ~settled) == pairs(whole.edges, ~settled)
    assert len(some.edges.a) <= len(whole.edges.a)
    for name, values in whole.columns.items():
        found, wanted = (pa.array(v).filter(pa.array(~settled)).to_pylist() for v in (some.columns[name], values))
        assert found == wanted, name


def vector_case(seed, protected):
    """Vectors, uids, and which rows are settled and fixed."""
    z = noisy_unit_vectors(seed, 400, 16, 60, 0.02)
    z[380:384] = z[:4]  # new copies of old rows have the pairs of these
    rng = np.random.default_rng(seed)
    uid, settled = rng.permutation(400), np.arange(400) < 360
    return z, uid, settled, settled | (rng.random(400) < protected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("protected", [0.0, 0.1])
def test_all_pairs_compares_the_new_rows_alone(seed, protected, monkeypatch):
    z, uid, settled, fixed = vector_case(seed, protected)
    monkeypatch.setattr(module, "BLOCK", 8)
    multiply, work = np.matmul, []
    monkeypatch.setattr(products_module.np, "matmul", lambda a, b, **more: work.append(len(a) * b.shape[1]) or multiply(a, b, **more))
    given = {"vectors": "z", "min_cosine": 0.97, "floor_cosine": 0.9}
    whole = all_pairs(unit_pool(z, uid, fixed=fixed), **given)
    everything = sum(work)
    pool = unit_pool(z, uid, fixed=fixed)
    pool.settled = settled
    work.clear()
    assert_same(all_pairs(pool, **given), whole, settled)
    assert sum(work) < (0.6 if not protected else 0.95) * everything


IN_CELLS = {
    "one cell": (semantic, {"min_cosine": 0.97, "floor_cosine": 0.9}),
    "cells": (semantic, {"min_cosine": 0.97, "floor_cosine": 0.9, "clusters": 6, "keeper": "nearest"}),
    "a crowd": (semantic, {"min_cosine": 0.97, "floor_cosine": 0.97, "clusters": 6, "max_edges": 1}),
    "a share": (semantic, {"min_cosine": 0.97, "floor_cosine": 0.9, "keep": None, "clusters": 6, "recall": 1.0, "keeper": "uid"}),
    "the paper's rule": (semdedup, {"min_cosine": 0.97, "floor_cosine": 0.9, "clusters": 6}),
    "the paper's rule in a crowd": (semdedup, {"min_cosine": 0.97, "floor_cosine": 0.9, "clusters": 6, "max_edges": 1}),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("protected", [0.0, 0.1])
@pytest.mark.parametrize("case", IN_CELLS)
def test_cells_compare_the_new_rows_alone(seed, protected, case, monkeypatch):
    z, uid, settled, fixed = vector_case(seed, protected)
    method, given = IN_CELLS[case]
    is_crowd = given.get("max_edges") == 1
    monkeypatch.setattr(vector_copies, "FEW", 0 if is_crowd else vector_copies.FEW)
    tiles, work = vector_copies._tiles, []

    def counted(vectors, rows, columns, *more, **named):
        work.append(len(rows) * len(columns))
        return tiles(vectors, rows, columns, *more, **named)

    monkeypatch.setattr(vector_copies, "_tiles", counted)
    whole = method(unit_pool(z, uid, fixed=fixed), vectors="z", **given)
    everything = sum(work)
    pool = unit_pool(z, uid, fixed=fixed)
    pool.settled = settled
    work.clear()
    some = method(pool, vectors="z", **given)
    if is_crowd:  # which pairs are written of a crowd is another matter; the verdicts are the same
        np.testing.assert_array_equal(some.keep, whole.keep)
        np.testing.assert_array_equal(some.score, whole.score)
        np.testing.assert_array_equal(some.witness, whole.witness)
        return
    assert_same(some, whole, settled)
    assert sum(work) < 0.5 * everything


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("protected", [0.0, 0.1])
def test_mutual_asks_for_new_rows_and_their_nearest(seed, protected, monkeypatch):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(300, 8))
    z[280:] = z[rng.integers(0, 280, 20)] + 0.1 * rng.normal(size=(20, 8)) * rng.integers(0, 3, (20, 1))  # copies, and some a little off
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    uid, settled = rng.permutation(300), np.arange(300) < 270
    fixed = settled | (rng.random(300) < protected)
    asked, knn = [], mutual_module.knn
    monkeypatch.setattr(mutual_module, "knn", lambda queries, *more, **named: asked.append(len(queries)) or knn(queries, *more, **named))
    given = {"vectors": "z", "min_cosine": 0.8, "margin": 0.02, "floor_cosine": 0.5}
    whole = mutual(unit_pool(z, uid, fixed=fixed), **given)
    everything = sum(asked)
    pool = unit_pool(z, uid, fixed=fixed)
    pool.settled = settled
    asked.clear()
    some = mutual(pool, **given)
    assert sum(asked) < 0.5 * everything
    for name in ("keep", "witness", "score"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name))
    assert (~some.keep).any()
    pool._edges = some.edges  # another margin is a fold over the pairs that were written
    moved, anew = mutual(pool, **{**given, "margin": 0.2}), mutual(unit_pool(z, uid, fixed=fixed), **{**given, "margin": 0.2})
    np.testing.assert_array_equal(moved.keep, anew.keep)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("turned", [False, True])
def test_candidates_are_those_with_a_new_code(seed, turned):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (40, 16)).astype(np.uint8)
    for known in (rng.random(40) < 0.7, np.ones(40, bool), np.zeros(40, bool)):
        a, b, distance = candidates(codes, None, 3, turned=turned)
        new = ~(known[a] & known[b])
        for found, wanted in zip(candidates(codes, None, 3, turned=turned, known=known), (a, b, distance), strict=True):
            np.testing.assert_array_equal(found, wanted[new])


def photographs(seed):
    """Files of six pictures and copies of them in any order, and which are settled: alike ones among them, as if they had been protected."""
    rng = np.random.default_rng(seed)
    pictures = [pixels for pixels, _ in crops(6)]
    edits = [png, lambda p: jpeg(p, 50), lambda p: png(np.rot90(p)), lambda p: png(p[:, ::-1]), lambda p: png(np.pad(p, ((9, 9), (9, 9), (0, 0))))]
    files = [edits[rng.integers(len(edits))](pictures[rng.integers(6)]) for _ in range(24)]
    return files, rng.permutation(24).tolist(), np.arange(24) < 17


def picture_cases(seed, protected):
    files, order, settled = photographs(seed)
    fixed = np.flatnonzero(settled | (np.random.default_rng(seed).random(24) < protected)).tolist()
    whole, some = picture_pool(files, order=order, fixed=fixed), picture_pool(files, order=order, fixed=fixed)
    some.settled = settled
    return whole, some, settled


def reads(pool):
    """How many pictures are asked for from now on."""
    asked, read = [], pool._read
    pool._read = lambda rows: asked.extend(np.asarray(rows).tolist()) or read(rows)
    return asked


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("protected", [0.0, 0.3])
@pytest.mark.parametrize("max_edges", [1, 16])
def test_perceptual_compares_the_new_pictures_alone(seed, protected, max_edges, monkeypatch):
    whole, some, settled = picture_cases(seed, protected)
    differences, compared = perceptual_module.differences, []
    monkeypatch.setattr(
        perceptual_module, "differences", lambda left, a, right, b, **more: compared.append(len(a)) or differences(left, a, right, b, **more)
    )
    expected = perceptual(whole, max_edges=max_edges)
    everything = sum(compared)
    compared.clear()
    found = perceptual(some, max_edges=max_edges)
    assert_same(found, expected, settled)
    assert sum(compared) < everything


def test_perceptual_compares_no_two_known_pictures_of_one_hash_with_a_new_one(monkeypatch):
    pixels = crops(1)[0][0]
    pool = picture_pool([png(pixels), jpeg(pixels, 90), jpeg(pixels, 70), jpeg(pixels, 50)], order=range(4), fixed=[0, 1, 2])
    for name in ("phash_views", "phash_trimmed_views"):
        at = pool._table.column_names.index(name)
        pool._table = pool._table.set_column(at, name, pa.array([pool.column("phash_views")[0].tobytes()] * 4, pa.binary(64)))
    pool.settled = np.arange(4) < 3
    differences, compared = perceptual_module.differences, []
    monkeypatch.setattr(
        perceptual_module, "differences", lambda left, a, right, b, **more: compared.append(len(a)) or differences(left, a, right, b, **more)
    )
    asked = reads(pool)
    assert perceptual(pool).keep.tolist() == [True, True, True, False]
    assert (sum(compared), sorted(set(asked))) == (3, [0, 1, 2, 3])
    asked.clear()
    pool.settled = np.ones(4, bool)
    pool.fixed = np.ones(4, bool)
    assert perceptual(pool).keep.all()
    assert not asked


@pytest.mark.parametrize("exact_seconds", [0.0, 3600.0])
def test_perceptual_of_long_hashes_leaves_known_pairs_out_too(exact_seconds):
    whole, some, settled = picture_cases(1, 0.0)
    given = {"views": "phash256_views", "trimmed": "phash256_trimmed_views", "max_distance": 64, "exact_seconds": exact_seconds}
    saying = contextlib.nullcontext if exact_seconds else lambda: pytest.warns(UserWarning, match=r"Measured recall 1\.0000: of [1-9]")
    with saying():
        expected = perceptual(whole, **given)
    with saying():
        found = perceptual(some, **given)
    assert_same(found, expected, settled)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("protected", [0.0, 0.3])
@pytest.mark.parametrize("by", ["hash", "vectors"])
def test_copies_register_no_two_known_pictures(seed, protected, by, monkeypatch):
    whole, some, settled = picture_cases(seed, protected)
    given = {"max_distance": 12}
    if by == "vectors":
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(24, 8))
        for pool in (whole, some):
            pool._vectors["z"] = unit_pool(z / np.linalg.norm(z, axis=1, keepdims=True), range(24)).vectors("z")
        given = {"hashes": [], "vectors": ["z"], "k": 4, "min_cosine": -1.0}
    register, seen = copies_module.register, []
    monkeypatch.setattr(copies_module, "register", lambda left, right: seen.append(1) or register(left, right))
    expected = copies(whole, **given)
    everything = len(seen)
    seen.clear()
    found = copies(some, **given)
    assert_same(found, expected, settled)
    assert len(seen) < everything


def test_exact_reads_no_group_of_known_pictures():
    picture = crops(2)[0][0]
    files = [png(picture), png(picture), jpeg(crops(2)[1][0], 90), jpeg(crops(2)[1][0], 90), png(picture[:, ::-1])]
    pool = picture_pool(files, order=range(5), fixed=[0, 1, 2])
    pool.settled = np.arange(5) < 3
    asked = reads(pool)
    found = exact(pool)
    assert found.keep.tolist() == [True, True, True, False, True]
    assert sorted(asked) == [2, 3]
    assert exact_module.REASONS == ("exact_duplicate",)
