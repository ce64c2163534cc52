"""dedup.perceptual: the star rule by brute force over real hashes and thumbnails, and its safety on photographs."""

import inspect
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from curate.dedup import perceptual as module
from curate.dedup.perceptual import MOVES, REASONS, perceptual
from curate.pool import Edges
from manifests.errors import Refusal
from manifests.images import decode
from manifests.likeness import thumbnail, trimmed
from manifests.star import star
from manifests.vectors.forecast import Size
from tests.pools import assert_lawful, jpeg, picture_pool, png, pool_of, turns
from tests.small_pool import crops

PICTURES = [pixels for pixels, _ in crops(24)]


def edit(pixels, kind):
    """A planted copy."""
    image = Image.fromarray(pixels)
    return {
        "jpeg": lambda: jpeg(pixels, 60),
        "half": lambda: png(np.asarray(image.resize((48, 48), Image.Resampling.LANCZOS))),
        "mirror": lambda: png(pixels[:, ::-1]),
        "turn": lambda: png(np.rot90(pixels)),
        "blur": lambda: png(np.asarray(image.filter(ImageFilter.GaussianBlur(1)))),
        "border": lambda: png(np.pad(pixels, ((9, 9), (9, 9), (0, 0)), constant_values=230)),
        "turned jpeg": lambda: jpeg(np.ascontiguousarray(np.rot90(pixels[:, ::-1], 3)), 60),
    }[kind]()


EDITS = ["jpeg", "half", "mirror", "turn", "blur", "border", "turned jpeg"]


def alike(pool, i, j, *, max_distance, max_rms, min_contrast, turned):
    """The score of a pair by the definition, or None where it is not alike."""
    found = []
    for x, y in product(looks_of(pool, i), looks_of(pool, j)):
        views = [look[0].reshape(8, 8) for look in (x, y)]
        bits = min(int(np.bitwise_count(p[0] ^ v).sum()) for p, q in (views, views[::-1]) for v in (q if turned else q[:1]))
        a, b = x[1], y[1]
        rms = min(np.sqrt(np.mean((a - t) ** 2)) for t in (turns(b) if turned else [b]))
        contrast = min(np.sqrt(np.mean((p - p.mean((0, 1))) ** 2)) for p in (a, b))
        score = rms * max(1.0, min_contrast / contrast if contrast else np.inf) if rms else 0.0
        if bits <= max_distance and score <= max_rms:
            found.append(score)
    return min(found, default=None)


def looks_of(pool, row):
    """(code, thumbnail) of a picture as it is and, where it has one, without its border."""
    picture = decode(next(iter(pool.payloads([row]))))
    whole, bare = pool.column("phash_views")[row], pool.column("phash_trimmed_views")[row]
    looks = [(whole, picture), (bare, trimmed(picture))][: 1 + (whole != bare).any()]
    return [(code, thumbnail(pixels, 32).astype(float)) for code, pixels in looks]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), size=st.integers(1, 9), turned=st.booleans())
def test_the_star_by_brute_force(data, size, turned):
    files = []
    for _ in range(size):
        picture = PICTURES[data.draw(st.integers(0, 2))]
        kind = data.draw(st.sampled_from(["", *EDITS]))
        files.append(edit(picture, kind) if kind else png(picture))
    order = data.draw(st.permutations(range(size)))
    fixed = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=2)))
    pool = picture_pool(files, order=order, fixed=fixed)
    limits = {"max_distance": 8, "max_rms": 9.0, "min_contrast": 40.0, "turned": turned}

    got = perceptual(pool, **limits)

    pixels = pool.column("inner_pixels")
    ranked = sorted(range(size), key=lambda i: (i not in fixed, -pixels[i], order[i]))
    kept = []
    for i in ranked:
        near = {j: alike(pool, i, j, **limits) for j in kept}
        near = {j: s for j, s in near.items() if s is not None}
        assert got.keep[i] == (not near or i in fixed)
        if got.keep[i]:
            kept.append(i)
            continue
        best = min(near.values())
        assert got.score[i] == pytest.approx(best, abs=1e-9)
        assert near[got.witness[i]] == pytest.approx(best, abs=1e-9)
        assert got.columns["perceptual_group"][i].as_py() == pool.uid[got.witness[i]].decode()
    assert_lawful(pool, got, REASONS)
    assert got.columns["perceptual_size"].sum() >= size


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), limit=st.sampled_from([2.0, 6.0, 12.0, 18.0]))
def test_edges_replay_any_limit_below_the_floor(seed, limit):
    rng = np.random.default_rng(seed)
    files = [edit(PICTURES[rng.integers(3)], EDITS[rng.integers(len(EDITS))]) for _ in range(12)]
    pool = picture_pool(files, order=rng.permutation(12).tolist())
    loose, direct = perceptual(pool, max_rms=0.5), perceptual(pool, max_rms=limit)
    order = np.lexsort((pool.uid_rank, -pool.column("inner_pixels")))
    rank = np.argsort(order)
    close = loose.edges.score <= limit
    keep, _, score = star(rank, [(loose.edges.a[close], loose.edges.b[close], -loose.edges.score[close])])

    assert keep.tolist() == direct.keep.tolist()
    assert np.allclose(-score[~keep], direct.score[~keep])
    assert (loose.edges.score <= 18).all()
    assert set(loose.edges.columns) == {"distance", "is_complete"}
    assert loose.edges.columns["is_complete"].all()


def test_copies_of_photographs_are_found_and_photographs_stay():
    files = [png(p) for p in PICTURES]
    plants = [(i, kind) for i in range(0, 24, 2) for kind in EDITS]
    pool = picture_pool(files + [edit(PICTURES[i], kind) for i, kind in plants])

    got = perceptual(pool)

    assert got.keep[:24].all()  # no photograph lost
    origin = [*range(24), *(i for i, _ in plants)]
    assert all(origin[got.witness[row]] == origin[row] for row in np.flatnonzero(~got.keep))
    assert (~got.keep[24:]).mean() > 0.85
    assert not perceptual(pool, turned=False).keep[24:][[kind == "half" for _, kind in plants]].any()
    assert perceptual(pool, turned=False).keep[24:][[kind in ("turn", "mirror") for _, kind in plants]].mean() > 0.9


def test_flat_pictures_that_differ_are_never_merged():
    rng = np.random.default_rng(0)
    skies = [np.clip(rng.normal((90, 140, 220), 2, (48, 48, 3)) + s, 0, 255).astype(np.uint8) for s in range(6)]
    skies += [np.full((48, 48, 3), grey, np.uint8) for grey in (0, 128, 129, 255)]
    pool = picture_pool([png(s) for s in skies])
    assert perceptual(pool, max_distance=64).keep.all()
    assert not perceptual(pool, max_distance=64, min_contrast=0).keep.all()  # what the stretch is for


@pytest.mark.parametrize("size", [1, 300])
def test_all_identical_is_one_group_in_linear_time(size):
    files = [png(PICTURES[0])] * size
    pool = picture_pool(files[:1]) if size == 1 else pool_of(
        payloads=files, inner_pixels=pa.array([1] * size),
        **{name: np.repeat(picture_pool(files[:1]).column(name), size, axis=0) for name in ("phash_views", "phash_trimmed_views")},
    )  # fmt: skip
    got = perceptual(pool)
    assert got.keep.tolist() == [True] + [False] * (size - 1)
    assert (got.witness[1:] == 0).all()
    assert len(got.edges.a) == size * (size - 1) // 2
    assert (got.columns["perceptual_size"] == size).all()


def test_at_the_pictures_own_size_nothing_is_resized():
    rng = np.random.default_rng(5)
    tile = rng.integers(0, 256, (28, 28)).astype(np.uint8)
    near = np.clip(tile.astype(int) + np.where(rng.random((28, 28)) < 0.5, 6, -6), 0, 255).astype(np.uint8)
    got = perceptual(picture_pool([png(tile), png(near)]), side=28, max_distance=64, turned=False)
    assert got.score[1] == pytest.approx(np.sqrt(np.mean((tile.astype(float) - near) ** 2)))


def test_the_larger_picture_is_kept():
    got = perceptual(picture_pool([edit(PICTURES[0], "half"), png(PICTURES[0])]))
    assert got.keep.tolist() == [False, True]


def test_what_does_not_fit_or_makes_no_sense_is_refused():
    pool = picture_pool([png(PICTURES[0])] * 2, memory=1000)
    with pytest.raises(Refusal, match=r"needs 48 MiB.*\[does-not-fit\]"):
        perceptual(pool)
    with pytest.raises(Refusal, match=r"thumbnails of 2 rows.*\[does-not-fit\]"):
        perceptual(picture_pool([png(PICTURES[0])] * 2, memory=90 << 20), side=4096)
    for wrong in ({"side": 30}, {"floor_rms": 3.0}, {"max_rms": -3.0}, {"max_distance": -1}, {"max_distance": 257}, {"min_contrast": -1.0}):
        with pytest.raises(Refusal, match="bad-value"):
            perceptual(pool, **wrong)
    with pytest.raises(Refusal, match=r"max_rms 30.*raise floor_rms too.*\[bad-value\]"):
        perceptual(pool, max_rms=30.0)
    with pytest.raises(Refusal) as refused:
        perceptual(pool, max_distance=-1)
    assert "raise" not in str(refused.value)


@pytest.mark.parametrize("views", ["phash_views", "phash256_views"])
@pytest.mark.parametrize("width", [0, 12])
def test_what_the_dry_run_shows_suffices_also_where_every_picture_has_a_border(views, width):
    files = [png(np.pad(p, ((width, width), (width, width), (0, 0)))) for p in PICTURES]
    asked = {"views": views, "trimmed": views.replace("_views", "_trimmed_views")}
    defaults = {name: p.default for name, p in inspect.signature(perceptual).parameters.items()}
    shown = module.forecast(Size(len(files), [], 0), **(defaults | asked)).memory
    assert perceptual(picture_pool(files, memory=shown), **asked).keep.all()
    with pytest.raises(Refusal, match="does-not-fit"):
        perceptual(picture_pool(files, memory=shown - 1), **asked)


def test_long_hashes_are_forecast_by_the_way_that_is_taken():
    """Where comparing 256 bits exactly takes longer than `exact_seconds`, their lowest 64 are compared, which takes far less."""
    asked = {"views": "phash256_views", "max_distance": 80, "turned": True, "loose_distance": 8}
    exact, loose = (module.forecast(Size(1_000_000, [], 0), exact_seconds=limit, **asked) for limit in (1e9, 3600.0))
    assert loose.seconds() < 3600 < exact.seconds() and loose.memory == exact.memory
    assert module.forecast(Size(1_000_000, [], 0), exact_seconds=0.0, **(asked | {"views": "phash_views", "max_distance": 8})).seconds() < 3600


def test_an_empty_pool_and_a_pool_of_strangers():
    assert len(perceptual(picture_pool([])).keep) == 0
    got = perceptual(picture_pool([png(p) for p in PICTURES]))
    assert got.keep.all()
    assert (got.columns["perceptual_size"] == 1).all()


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2]])
def test_the_nearest_kept_row_is_the_witness(order):
    rng = np.random.default_rng(2)
    middle = rng.integers(40, 200, (28, 28)).astype(np.uint8)
    step = np.where(rng.random((28, 28)) < 0.5, 1, -1)
    files = [png((middle + by * step).astype(np.uint8)) for by in (6, -8, 0)]  # 14 apart from each other, 6 and 8 from the middle
    got = perceptual(picture_pool(files, order=order), side=28, max_distance=64)
    assert got.keep.tolist() == [True, True, False]
    assert got.witness.tolist() == [-1, -1, 0]
    assert got.score[2] == 6.0


def subset_of(files, rows, order, fixed, **columns):
    """The pool of some of the rows, in their order."""
    inside = [row for row in rows if row in fixed]
    chosen = {name: [values[row] for row in rows] for name, values in columns.items()}
    return picture_pool([files[row] for row in rows], order=[order[row] for row in rows], fixed=[rows.index(row) for row in inside], **chosen)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), size=st.integers(2, 12))
def test_a_fold_over_the_stored_pairs_of_any_rows_is_a_run_on_these_rows(data, size):
    kinds = [data.draw(st.sampled_from(["", "", *EDITS])) for _ in range(size)]
    files = [edit(PICTURES[data.draw(st.integers(0, 2))], kind) if kind else png(PICTURES[data.draw(st.integers(0, 1))]) for kind in kinds]
    order = data.draw(st.permutations(range(size)))
    fixed = data.draw(st.sets(st.integers(0, size - 1), max_size=2))
    taste = [data.draw(st.integers(0, 2)) for _ in range(size)]
    rows = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
    moved = {"max_rms": data.draw(st.sampled_from([4.0, 12.0, 18.0])), "prefer": data.draw(st.sampled_from([["inner_pixels"], ["taste"], []]))}
    moved["keeper"] = data.draw(st.sampled_from(["uid", "earliest"]))
    assert set(moved) == set(MOVES)
    edges = perceptual(picture_pool(files, order=order)).edges

    direct_pool = subset_of(files, rows, order, fixed, taste=taste)
    direct = perceptual(direct_pool, **moved)
    place = np.full(size, -1)
    place[rows] = np.arange(len(rows))
    live = (place[edges.a] >= 0) & (place[edges.b] >= 0)
    stored = Edges(place[edges.a[live]], place[edges.b[live]], edges.score[live], {k: np.asarray(v)[live] for k, v in edges.columns.items()})
    folded_pool = subset_of(files, rows, order, fixed, taste=taste)
    folded_pool._edges, folded_pool._read = stored, None  # no picture is read
    folded = perceptual(folded_pool, **moved)

    assert folded.keep.tolist() == direct.keep.tolist()
    assert folded.witness.tolist() == direct.witness.tolist()
    assert np.array_equal(folded.score, direct.score, equal_nan=True)
    assert folded.columns["perceptual_group"].equals(direct.columns["perceptual_group"])


@settings(max_examples=15, deadline=None)
@given(data=st.data(), size=st.integers(2, 12))
def test_a_crowd_whose_pairs_are_too_many_gives_the_same_verdicts_and_says_so(data, size):
    files = [png(PICTURES[0]) if data.draw(st.booleans()) else edit(PICTURES[0], data.draw(st.sampled_from(EDITS))) for _ in range(size)]
    arguments = {"order": data.draw(st.permutations(range(size))), "fixed": sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=2)))}
    whole = perceptual(picture_pool(files, **arguments))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "limit_of", lambda rows, most: 2)
        few = perceptual(picture_pool(files, **arguments))
    assert few.keep.tolist() == whole.keep.tolist()
    assert few.score[~few.keep].tolist() == whole.score[~whole.keep].tolist()
    if len(whole.edges.a) > 2:
        assert not few.edges.columns["is_complete"].any()
        assert len(few.edges.a) <= len(whole.edges.a)


def test_a_border_is_seen_through_and_does_not_count_as_resolution():
    framed = [png(np.pad(p, ((w, w), (w, w), (0, 0)), constant_values=c)) for p, w, c in zip(PICTURES, (3, 8, 15), (0, 255, 60), strict=False)]
    pool = picture_pool([*framed, *(png(p) for p in PICTURES[:3])], order=[1, 2, 3, 0, 4, 5])
    got = perceptual(pool)
    assert got.keep.tolist() == [False, True, True, True, False, False]  # as large within: the smaller uid
    assert np.nanmax(got.score) == 0
    without = perceptual(pool, trimmed="phash_views")
    assert without.keep.sum() > 3


@pytest.mark.parametrize(
    ("prefer", "keeper", "kept"), [(["num_bytes"], "uid", 1), ([], "earliest", 0), ([], "uid", 2), (["taste", "num_bytes"], "uid", 2)]
)
def test_who_stays(prefer, keeper, kept):
    pool = picture_pool([jpeg(PICTURES[0], q) for q in (90, 92, 88)], order=[5, 6, 4], num_bytes=[20, 30, 10], taste=[1, 1, 2])
    assert np.flatnonzero(perceptual(pool, prefer=prefer, keeper=keeper).keep).tolist() == [kept]


def long(**more):
    return {"views": "phash256_views", "trimmed": "phash256_trimmed_views", "max_distance": 40, **more}


def test_long_hashes_exactly_and_by_their_lowest_frequencies():
    files = [png(p) for p in PICTURES] + [edit(PICTURES[i], kind) for i in range(0, 24, 3) for kind in EDITS]
    pool = picture_pool(files)
    exact = perceptual(pool, **long())
    codes = pool.column("phash256_views").reshape(len(files), 8, 32)
    for a, b, bits in zip(exact.edges.a, exact.edges.b, exact.edges.columns["distance"], strict=True):
        assert bits <= min(int(np.bitwise_count(codes[x, 0] ^ v).sum()) for x, y in ((a, b), (b, a)) for v in codes[y])
    with pytest.warns(UserWarning, match=r"64 lowest frequencies.*Measured recall (1\.0000|0\.\d{4}): of \d+ pairs") as said:
        loose = perceptual(picture_pool(files), **long(exact_seconds=0.0, loose_distance=10))
    pairs, some = ({*zip(got.edges.a.tolist(), got.edges.b.tolist(), strict=True)} for got in (exact, loose))
    assert some <= pairs
    recall = float(str(said[0].message).split("recall ")[1].split(":")[0])
    assert recall > 0.9
    assert len(some) >= 0.9 * len(pairs)
    assert (loose.keep >= exact.keep).all()
    nothing = picture_pool(files)
    with pytest.warns(UserWarning, match="Measured recall"):
        assert len(perceptual(nothing, **long(exact_seconds=0.0, loose_distance=0)).edges.a) < len(pairs)


def test_hashes_of_mixed_or_wrong_length_are_refused():
    mixed = pool_of(payloads=[b"", b""], inner_pixels=[1, 1], mixed=pa.array([b"1" * 64, b"1" * 256], pa.binary()), odd=np.zeros((2, 40), np.uint8))
    short = picture_pool([png(PICTURES[0])] * 2)
    for pool, views, bare in ((mixed, "mixed", "mixed"), (mixed, "odd", "odd"), (short, "phash_views", "phash256_trimmed_views")):
        with pytest.raises(Refusal, match="bad-value"):
            perceptual(pool, views=views, trimmed=bare)


def texture(seed: int) -> np.ndarray:
    soft = gaussian_filter(np.random.default_rng(seed).normal(size=(80, 80)), 4)
    return np.clip(soft / soft.std() * 20 + 128, 0, 255).astype(np.uint8)[:, :, None].repeat(3, 2)


@pytest.mark.parametrize("max_edges", [1, 16])
def test_a_crowd_of_like_frames_has_the_verdicts_of_all_pairs_from_few(monkeypatch, max_edges):
    """Pictures in like frames, what lies within them, and near copies: rows that share one look do not share the other."""
    rng, how = np.random.default_rng(3), {"max_distance": 64, "prefer": []}
    for trial in range(6):
        files = []
        for picture in (texture(10 * trial + i) for i in range(4)):
            framed = np.full((200, 200, 3), 255, np.uint8)
            framed[60:140, 60:140] = picture
            noisy = np.clip(picture.astype(int) + rng.integers(-6, 7, picture.shape), 0, 255).astype(np.uint8)
            files += [png(framed), png(picture), png(noisy)]
        files = [files[i] for i in rng.permutation(len(files))]
        monkeypatch.undo()
        whole = perceptual(picture_pool(files), **how)
        monkeypatch.setattr(module, "limit_of", lambda rows, most: 1)
        few = perceptual(picture_pool(files), **how, max_edges=max_edges)
        for name in ("keep", "witness", "score"):
            np.testing.assert_array_equal(getattr(few, name), getattr(whole, name))
        assert whole.edges.columns["is_complete"].all() and not few.edges.columns["is_complete"].any()
        assert len(few.edges.a) <= (max_edges + 1) * len(files)
        assert max_edges > 1 or len(few.edges.a) < len(whole.edges.a)


def inked(seed: int, ink: int, size: int = 96) -> np.ndarray:
    """(h, w, 4): a motif of soft blots in one ink on a transparent ground."""
    blots = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 8)
    alpha = np.where(blots > 0, 255, 0).astype(np.uint8)
    return np.dstack([np.full((size, size, 3), ink, np.uint8), alpha])


def test_white_ink_on_a_transparent_ground_is_seen():
    white, black = [png(inked(seed, 255)) for seed in range(3)], png(inked(0, 0))
    flattened = png(np.where(inked(0, 0)[:, :, 3:] > 0, 0, 255).astype(np.uint8).repeat(3, 2))
    nothing = png(np.full((96, 96, 3), 255, np.uint8))
    mirrored = png(np.ascontiguousarray(inked(1, 255)[:, ::-1]))
    verdicts = perceptual(picture_pool([*white, nothing, black, flattened, mirrored]))
    assert verdicts.keep.tolist() == [True, True, True, True, True, False, False]
    assert verdicts.witness[5:].tolist() == [4, 1]
