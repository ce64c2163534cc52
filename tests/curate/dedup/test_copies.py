"""dedup.copies: the star by brute force over verified pairs, candidates by brute force, crowds, resuming, replay, and its safety on photographs."""

from functools import cache
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from curate.dedup import copies as module
from curate.dedup.copies import REASONS, WRITES, change, copies
from curate.pool import Edges, Pool
from manifests.errors import Refusal
from manifests.registration import register
from manifests.seen import glance
from tests.pools import assert_lawful, jpeg, picture_pool, png, shuffled

PHOTOS = [
    np.ascontiguousarray(getattr(data, name)()[y : y + 200, x : x + 240, :3])
    for name in ("astronaut", "chelsea", "coffee")
    for y, x in ((0, 0), (90, 150))
]


def edited(photo, kind):
    """A planted copy as a file."""
    high, wide = photo.shape[:2]
    framed = np.full((high + 50, wide + 50, 3), 255, np.uint8)
    framed[25:-25, 25:-25] = photo
    boxed = photo.copy()
    boxed[20:100, 30:150] = (250, 220, 40)
    return {
        "jpeg": lambda: jpeg(photo, 50),
        "crop": lambda: jpeg(photo[15:180, 20:215], 90),
        "frame": lambda: png(framed),
        "box": lambda: png(boxed),
        "turn": lambda: png(np.rot90(photo)),
        "mirror": lambda: png(photo[:, ::-1]),
        "half": lambda: png(np.asarray(Image.fromarray(photo).resize((wide // 2, high // 2)))),
    }[kind]()


EDITS = ["jpeg", "crop", "frame", "box", "turn", "mirror", "half"]
FILES = {(i, kind): edited(PHOTOS[i], kind) if kind else png(PHOTOS[i]) for i in (0, 2, 4) for kind in ["", *EDITS]}
ALL = {"max_distance": 64}  # every pair is a candidate


def verified(files, order):
    """{(i, j): match} of all pairs, the smaller uid on the left, by the definition."""
    seen = [glance(file) for file in files]
    pairs = ((i, j) if order[i] < order[j] else (j, i) for i, j in combinations(range(len(files)), 2))
    return {(i, j): match for i, j in pairs if (match := register(seen[i], seen[j])) is not None}


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


@settings(max_examples=12, deadline=None)
@given(data=st.data(), size=st.integers(1, 6), min_score=st.sampled_from([0.3, 0.4, 0.7, 0.95]), min_area=st.sampled_from([0.35, 0.95]))
def test_the_star_by_brute_force(data, size, min_score, min_area):
    names = [data.draw(st.sampled_from(sorted(FILES))) for _ in range(size)]
    files = [FILES[name] for name in names]
    order = data.draw(st.permutations(range(size)))
    fixed = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=2)))
    pool = picture_pool(files, order=order, fixed=fixed)

    got = copies(pool, min_score=min_score, min_area=min_area, **ALL)

    found = verified(files, order)
    pixels = pool.column("inner_pixels")
    close = {p: m.score for p, m in found.items() if m.score >= min_score and max(area(m.left), area(m.right)) >= min_area}
    kept = []
    for i in sorted(range(size), key=lambda i: (i not in fixed, -pixels[i], order[i])):
        near = {j: close.get((i, j), close.get((j, i))) for j in kept if (i, j) in close or (j, i) in close}
        assert got.keep[i] == (not near or i in fixed)
        if got.keep[i]:
            kept.append(i)
            continue
        assert got.score[i] == max(near.values()) == near[got.witness[i]]
        assert got.columns["copies_group"][i].as_py() == pool.uid[got.witness[i]].decode()
    assert set(zip(got.edges.a.tolist(), got.edges.b.tolist(), strict=True)) == {p for p, m in found.items() if m.score >= 0.3}
    assert_lawful(pool, got, REASONS)
    assert set(got.columns) == set(WRITES)


def test_photographs_stay_and_their_copies_go_with_words():
    files = [png(p) for p in PHOTOS] + [FILES[0, kind] for kind in EDITS]
    got = copies(picture_pool(files), prefer=[], **ALL)
    assert got.keep[:6].all()
    assert not got.keep[6:].any()
    assert (got.witness[6:] == 0).all()
    said = dict(zip(EDITS, got.columns["copies_change"].to_pylist()[6:], strict=True))
    assert said["jpeg"] == said["half"] == "the whole picture"
    assert said["crop"].startswith("cropped to 6")
    assert said["frame"].startswith("set in a frame that it fills to 6")
    assert said["box"].endswith("% covered")
    assert said["turn"].startswith("turned 90° to the left")
    assert said["mirror"].startswith("mirrored")
    crop = [got.columns[f"copies_{e}"][6 + EDITS.index("crop")].as_py() for e in ("left", "top", "right", "bottom")]
    assert np.abs(np.array(crop) - [20 / 240, 15 / 200, 215 / 240, 180 / 200]).max() < 0.02
    assert got.columns["copies_turn"].to_pylist()[6 + EDITS.index("turn")] == 3
    assert got.columns["copies_change"].to_pylist()[:6] == [None] * 6
    assert got.columns["copies_size"].tolist() == [8, 1, 1, 1, 1, 1] + [8] * 7


def test_either_side_of_a_pair_says_what_happened():
    files = [png(PHOTOS[0]), png(np.rot90(PHOTOS[0][15:180, 20:215]))]
    for order in ([0, 1], [1, 0]):
        got = copies(picture_pool(files, order=order), **ALL)
        assert got.witness.tolist() == [-1, 0]
        assert got.columns["copies_turn"][1].as_py() == 3
        assert got.columns["copies_change"][1].as_py().startswith("turned 90° to the left, cropped to 67 %")
        assert got.columns["copies_left"][1].as_py() == pytest.approx(20 / 240, abs=0.02)


def test_the_words():
    assert change(0, 1, 1, 0) == "the whole picture"
    assert change(4, 0.8, 1, 0.24) == "mirrored, cropped to 80 %, 24 % covered"
    assert change(2, 1, 0.25, 0) == "turned 180°, set in a frame that it fills to 25 %"


def test_rows_in_another_order_give_the_same_verdicts():
    arguments = {"payloads": [FILES[key] for key in sorted(FILES)[:10]], "order": [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]}
    pool = picture_pool(**arguments)
    columns = {name: pool.column(name).copy() for name in ("phash_views", "phash_trimmed_views", "inner_pixels")}
    from tests.pools import pool_of

    def fates(pool):
        got = copies(pool, max_distance=30)
        witness = [pool.uid[w] if w >= 0 else None for w in got.witness]
        edges = sorted(zip(pool.uid[got.edges.a], pool.uid[got.edges.b], got.edges.score, strict=True))
        return edges, dict(zip(pool.uid, zip(got.keep, witness, got.columns["copies_change"].to_pylist(), strict=True), strict=True))

    whole = {**arguments, **columns}
    assert fates(pool_of(**whole)) == fates(pool_of(**shuffled(whole, [7, 2, 9, 0, 4, 1, 8, 3, 6, 5])))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), radius=st.sampled_from([0, 4, 10]))
def test_hash_candidates_by_brute_force(seed, radius):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (6, 8, 8)).astype(np.uint8)
    views = base[rng.integers(0, 6, 14)].copy()
    views[:, 0, 0] ^= rng.integers(0, 4, 14).astype(np.uint8)
    views[:, 3] = views[rng.permutation(14), 0]
    pool = picture_pool([png(PHOTOS[0])] * 14, order=rng.permutation(14).tolist())
    pool._table = pool._table.set_column(0, "views", pa.array([v.tobytes() for v in views.reshape(14, 64)], pa.binary(64)))
    a, b = module._joined(pool, (np.empty(0, np.int64),) * 2, module._by_hash(pool, pool.uid_rank, "views", radius)[:2])
    near = lambda i, j: min(int(np.bitwise_count(views[x, 0] ^ v).sum()) for x, y in ((i, j), (j, i)) for v in views[y]) <= radius
    expected = {(i, j) if pool.uid_rank[i] < pool.uid_rank[j] else (j, i) for i, j in combinations(range(14), 2) if near(i, j)}
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == expected


def test_vectors_propose_what_no_hash_proposes():
    files = [png(PHOTOS[0]), FILES[0, "crop"], png(PHOTOS[1]), FILES[2, "frame"], png(PHOTOS[2])]
    z = np.eye(8)[[0, 0, 1, 2, 2]] + 0.05 * np.random.default_rng(0).normal(size=(5, 8))
    pool = picture_pool(files, vectors={"z": z / np.linalg.norm(z, axis=1, keepdims=True)})
    tight = {"hashes": ["phash_views"], "max_distance": 0}
    assert copies(pool, **tight).keep.all()
    got = copies(pool, **tight, vectors=["z"], k=1, prefer=[])
    assert got.keep.tolist() == [True, False, True, True, False]
    assert copies(pool, **tight, vectors=["z"], k=0).keep.all()
    assert copies(pool, **tight, vectors=["z"], k=4, min_cosine=0.999).keep.all()


@pytest.mark.parametrize("source", ["hash", "vectors"])
def test_of_a_crowd_of_equals_one_stays(source):
    files = [png(PHOTOS[0])] * 40 + [png(PHOTOS[2])] * 3
    order = list(range(42, -1, -1))
    pool = picture_pool(files, order=order, vectors={"z": np.eye(2)[[0] * 40 + [1] * 3]})
    pool._table = pool._table.append_column("quality", pa.array([1] + [0] * 42))  # the last by uid is the first to be kept
    chosen = {"hash": {}, "vectors": {"hashes": [], "vectors": ["z"], "k": 3}}[source]
    got = copies(pool, prefer=["quality"], **chosen)
    assert np.flatnonzero(got.keep).tolist() == [0, 42]
    assert len(got.edges.a) < 200 if source == "vectors" else len(got.edges.a) < 250


@cache
def seen_once(file):
    return glance(file)


@cache
def match_of(left, right):
    """Of two of FILES, by name: their match where it is a copy down to the floor."""
    match = register(seen_once(FILES[left]), seen_once(FILES[right]))
    return match if match is not None and match.score >= 0.3 else None


@settings(max_examples=25, deadline=None)
@given(data=st.data(), size=st.integers(2, 22), codes=st.integers(1, 3), crowd=st.integers(1, 4), min_score=st.sampled_from([0.4, 0.75]))
def test_in_a_crowd_the_verdicts_are_those_of_all_pairs(data, size, codes, crowd, min_score):
    """Codes 0, 1, 2 with two bits between neighbours and four between 0 and 2: within 2 bits not all are near."""
    names = data.draw(st.lists(st.sampled_from(sorted(FILES)), min_size=size, max_size=size))
    code = data.draw(st.lists(st.integers(0, codes - 1), min_size=size, max_size=size))
    order = data.draw(st.permutations(range(size)))
    fixed = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=2)))
    pool = picture_pool([FILES[name] for name in names], order=order, fixed=fixed)
    bits = [bytes([(1 << 2 * c) - 1]) * 64 for c in code]  # 0, 3, 15 in every byte
    pool._table = pool._table.append_column("crowded", pa.array(bits, pa.binary(64)))
    radius, name_of = 16, {id(seen_once(FILES[name])): name for name in FILES}  # bits of 64: two in each of eight bytes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CROWD", crowd)
        patch.setattr(module, "STEPS", 0)  # the crowd alone proposes
        patch.setattr(module, "glance", lambda file: seen_once(bytes(file)))  # each pair is compared once in all examples
        patch.setattr(module, "register", lambda left, right: match_of(name_of[id(left)], name_of[id(right)]))
        got = copies(pool, hashes=["crowded"], max_distance=radius, min_score=min_score)

    pixels = pool.column("inner_pixels")
    near = {}
    for i, j in combinations(range(size), 2):
        i, j = (i, j) if order[i] < order[j] else (j, i)
        match = match_of(names[i], names[j]) if abs(code[i] - code[j]) < 2 else None
        if match is not None and match.score >= min_score and max(area(match.left), area(match.right)) >= 0.35:
            near[i, j] = near[j, i] = match.score
    kept = []
    for i in sorted(range(size), key=lambda i: (i not in fixed, -pixels[i], order[i])):
        scores = {j: near[i, j] for j in kept if (i, j) in near}
        assert got.keep[i] == (not scores or i in fixed)
        if got.keep[i]:
            kept.append(i)
        else:
            assert got.score[i] == max(scores.values()) == scores[got.witness[i]]
    if got.edges.columns["is_complete"].all():
        found = set(zip(got.edges.a.tolist(), got.edges.b.tolist(), strict=True))
        pairs = {(i, j) if order[i] < order[j] else (j, i) for i, j in combinations(range(size), 2) if abs(code[i] - code[j]) < 2}
        assert found == {(i, j) for i, j in pairs if match_of(names[i], names[j]) is not None}


def test_strangers_of_one_hash_all_meet_also_where_some_have_met():
    pool, asked = picture_pool([png(PHOTOS[0])] * 6), []
    nothing = Edges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))

    def verified(name, a, b):
        asked.extend(zip(a.tolist(), b.tolist(), strict=True))
        return nothing

    crowd = np.zeros(6, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    met = np.zeros(5, np.int64), np.arange(1, 6)  # all have met the first
    looked, _, cut = module._crowds_met(pool, pool.uid_rank, "crowd", [crowd], met, nothing, verified, lambda _: np.ones(6, bool))
    assert sorted(asked) == list(combinations(range(1, 6), 2))
    assert sorted(zip(*(x.tolist() for x in looked), strict=True)) == list(combinations(range(6), 2))
    assert cut == 0


def test_a_crowd_meets_few_and_says_where_more_are_kept(monkeypatch):
    looked = []
    real = module._verified
    monkeypatch.setattr(module, "_verified", lambda *args: looked.append(len(args[3])) or real(*args))
    monkeypatch.setattr(module, "CROWD", 2)
    files = [png(p) for p in PHOTOS] * 8 + [FILES[0, "crop"]]
    pool = picture_pool(files)
    pool._table = pool._table.append_column("crowded", pa.array([bytes(64)] * len(files), pa.binary(64)))
    got = copies(pool, hashes=["crowded"])
    assert np.flatnonzero(got.keep).tolist() == list(range(6))
    assert got.witness[-1] == 0
    assert not got.edges.columns["is_complete"].any()
    assert sum(looked) < 49 * 12 < 49 * 48 / 2  # 6 kept ones and up to STEPS neighbours' neighbours each, not all pairs
    monkeypatch.setattr(module, "KEPT", 2)
    with pytest.warns(UserWarning, match=r"4. rows have a hash like that of more than 2 kept pictures"):
        cut = copies(pool, hashes=["crowded"])
    assert cut.keep.sum() > 6


def test_neighbours_of_neighbours_by_brute_force():
    rng = np.random.default_rng(4)
    pairs = np.unique(np.sort(rng.integers(0, 12, (16, 2)), axis=1), axis=0)
    a, b = pairs[pairs[:, 0] != pairs[:, 1]].T
    rank = rng.permutation(12)
    near = {i: sorted({*b[a == i].tolist(), *a[b == i].tolist()}, key=lambda j: rank[j]) for i in range(12)}
    expected = {frozenset((i, x)) for i in range(12) for d in near[i] for x in near[d][: module.STEPS] if x != i}
    found = {frozenset(p) for p in zip(*(x.tolist() for x in module._two_steps(a, b, rank)), strict=True) if p[0] != p[1]}
    assert found == expected


class Stubborn:
    """A keeper that is killed after so many saves."""

    def __init__(self, saves):
        self.saved, self.left = {}, saves

    def load(self, name):
        return self.saved.get(name)

    def save(self, name, round, state):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.saved[name] = round, tuple(np.array(a) for a in state)

    def due(self):
        return True


def test_a_killed_decision_goes_on_and_memory_reaches_no_verdict(monkeypatch):
    files = [FILES[key] for key in sorted(FILES)]
    whole = copies(picture_pool(files), **ALL)
    monkeypatch.setattr(module, "PAIRS", 7)
    monkeypatch.setattr(module, "BYTES", 1 << 24)  # so that no more than 14 pictures are held
    for saves in (0, 1, 5, 20):
        keeper = Stubborn(saves)
        pool = picture_pool(files)
        pool._keeper = keeper
        with pytest.raises(KeyboardInterrupt):
            copies(pool, **ALL)
        keeper.left = 1000
        got = copies(pool, **ALL)
        assert got.keep.tolist() == whole.keep.tolist()
        assert got.edges.score.tolist() == whole.edges.score.tolist()
        assert all(got.edges.columns[name].tolist() == values.tolist() for name, values in whole.edges.columns.items())


@pytest.mark.parametrize("min_score", [0.4, 0.6, 0.9])
def test_edges_replay_without_a_picture(min_score):
    files = [FILES[key] for key in sorted(FILES)]
    pool = picture_pool(files)
    loose, direct = copies(pool, **ALL), copies(pool, min_score=min_score, **ALL)
    bare = Pool(pool.uid, pool.table, edges=loose.edges)
    again = copies(bare, min_score=min_score, **ALL)
    assert again.keep.tolist() == direct.keep.tolist()
    assert again.witness.tolist() == direct.witness.tolist()
    assert again.columns["copies_change"].to_pylist() == direct.columns["copies_change"].to_pylist()


def test_a_picture_that_cannot_be_decoded_is_kept():
    pool = picture_pool([png(PHOTOS[0])] * 3)
    payloads = [png(PHOTOS[0]), b"\xff\xd8\xff broken", png(PHOTOS[0])]
    pool._read = lambda rows: iter([payloads[row] for row in rows.tolist()])
    assert copies(pool).keep.tolist() == [True, True, False]


def test_what_does_not_fit_or_makes_no_sense_is_refused():
    with pytest.raises(Refusal, match="does-not-fit"):
        copies(picture_pool([png(PHOTOS[0])] * 2, memory=1000))
    pool = picture_pool([png(PHOTOS[0])] * 2)
    for wrong in ({"min_score": 0.1}, {"floor_score": 0.9}, {"min_area": 0.1}, {"k": -1}, {"max_distance": 65}, {"min_cosine": 2.0}):
        with pytest.raises(Refusal, match="bad-value"):
            copies(pool, **wrong)
    pool._table = pool._table.append_column("short", pa.array([b"abc"] * 2, pa.binary(3)))
    for no_hash_of_eight_turns in ("short", "pixels_hash", "inner_pixels"):
        with pytest.raises(Refusal, match=r"hashes.*bytes wide.*\[bad-value\]"):
            copies(pool, hashes=[no_hash_of_eight_turns])


def test_an_empty_pool_and_a_pool_of_strangers():
    assert len(copies(picture_pool([])).keep) == 0
    got = copies(picture_pool([png(p) for p in PHOTOS]), **ALL)
    assert got.keep.all()
    assert (got.columns["copies_size"] == 1).all()
