"""dedup.exact: one of each group, keeper by rank, collisions told apart by their pixels."""

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curate.dedup.exact import REASONS, exact
from curate.measure.exact_hash import exact_hash
from curate.pool import Batch
from manifests.errors import Refusal
from tests.pools import assert_lawful, jpeg, picture_pool, png, pool_of


@settings(max_examples=80, deadline=None)
@given(data=st.data(), size=st.integers(1, 12))
def test_the_rule_by_brute_force(data, size):
    hashes = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    labels = data.draw(st.lists(st.sampled_from("xy"), min_size=size, max_size=size))
    pixels = data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    fixed = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=3)))
    order = data.draw(st.permutations(range(size)))
    codes = np.repeat(np.array(hashes, np.uint8)[:, None], 16, axis=1)
    pool = pool_of(pixels_hash=codes, label=labels, num_pixels=pa.array(pixels), order=order, fixed=fixed)

    got = exact(pool, hash=["pixels_hash", "label"], prefer=["num_pixels"], confirm=False)

    key = lambda i: (i not in fixed, -pixels[i], order[i])
    for i in range(size):
        group = [j for j in range(size) if (hashes[j], labels[j]) == (hashes[i], labels[i])]
        keeper = min(group, key=key)
        assert got.keep[i] == (i == keeper or i in fixed)
        assert got.keep[i] or got.witness[i] == keeper
        assert got.columns["exact_group"][i].as_py() == pool.uid[keeper].decode()
        assert got.columns["exact_size"][i] == len(group)
    assert_lawful(pool, got, REASONS)


def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (8, 8, 3)).astype(np.uint8) for _ in range(3)]


def test_pixels_that_differ_under_one_hash_stay_apart():
    one, two, three = pictures()
    files = [png(one), png(two), png(one), png(two), png(three), jpeg(one, 90)]
    pool = pool_of(pixels_hash=np.zeros((6, 16), np.uint8), payloads=files)

    assert exact(pool, confirm=False).keep.tolist() == [True, False, False, False, False, False]
    got = exact(pool)

    assert got.keep.tolist() == [True, True, False, False, True, True]
    assert got.witness.tolist() == [-1, -1, 0, 1, -1, -1]
    assert got.columns["exact_size"].tolist() == [2, 2, 2, 2, 1, 1]
    assert_lawful(pool, got, REASONS)


def test_another_format_of_the_same_pixels_is_a_copy():
    one = pictures()[0]
    bmp = io.BytesIO()
    Image.fromarray(one).save(bmp, "BMP")
    assert exact(picture_pool([png(one), bmp.getvalue()])).keep.tolist() == [True, False]


def test_what_cannot_be_decoded_equals_only_its_own_bytes():
    broken = [b"\x89PNG\r\n\x1a\nbroken", b"\x89PNG\r\n\x1a\nbroken", b"\x89PNG\r\n\x1a\nworse"]
    got = exact(pool_of(pixels_hash=np.zeros((3, 16), np.uint8), payloads=broken))
    assert got.keep.tolist() == [True, False, True]


@pytest.mark.parametrize("size", [1, 5])
def test_all_identical_keeps_the_smallest_uid(size):
    order = list(range(size))[::-1]
    got = exact(picture_pool([png(pictures()[0])] * size, order=order))
    assert got.keep.tolist() == [i == size - 1 for i in range(size)]


def test_none_dropped_where_all_differ():
    assert exact(picture_pool([png(p) for p in pictures()])).keep.all()
    assert len(exact(pool_of(pixels_hash=np.zeros((0, 16), np.uint8), payloads=[])).keep) == 0


@settings(max_examples=40, deadline=None)
@given(data=st.data(), size=st.integers(1, 10))
def test_any_columns_together(data, size):
    """Captions, hashes of mixed length, numbers and bools: equal where the tuples are."""
    rows = data.draw(
        st.lists(
            st.tuples(st.sampled_from(["", "a", "a\0", "é"]), st.sampled_from([b"", b"\0", b"\0\0", b"\xff"]), st.integers(0, 1)),
            min_size=size,
            max_size=size,
        )
    )
    caption, code, number = (list(column) for column in zip(*rows, strict=True))
    pool = pool_of(caption=caption, code=pa.array(code, pa.binary()), number=pa.array(number), kind=pa.array(caption).dictionary_encode())
    for names, key in (
        (["caption"], lambda r: r[0]),
        (["code"], lambda r: r[1]),
        (["caption", "code", "number"], lambda r: r),
        (["kind", "number"], lambda r: (r[0], r[2])),
    ):
        got = exact(pool, hash=names, confirm=False)
        keys = [key(row) for row in rows]
        assert got.keep.tolist() == [keys.index(k) == i for i, k in enumerate(keys)], names


def test_the_same_picture_with_another_caption_stays():
    one, two, _ = pictures()
    pool = picture_pool([png(one), png(one), png(two), png(one)], caption=["a", "b", "a", "a"])
    assert exact(pool, hash=["pixels_hash", "caption"]).keep.tolist() == [True, True, True, False]


@pytest.mark.parametrize(("keeper", "kept"), [("uid", [False, False, True]), ("earliest", [True, False, False])])
def test_who_stays_of_equals(keeper, kept):
    pool = pool_of(code=np.zeros((3, 4), np.uint8), num_bytes=pa.array([5, 5, 5]), order=[9, 8, 7])
    assert exact(pool, hash=["code"], prefer=["num_bytes"], keeper=keeper, confirm=False).keep.tolist() == kept
    assert exact(
        pool_of(code=np.zeros((3, 4), np.uint8), num_bytes=[5, 6, 5]), hash=["code"], prefer=["num_bytes"], keeper=keeper, confirm=False
    ).keep[1]


def test_what_cannot_be_a_hash_is_refused():
    pool = pool_of(lists=[[1], [2]])
    for wrong in ([], ["lists"]):
        with pytest.raises(Refusal, match="bad-value"):
            exact(pool, hash=wrong)


def test_only_members_of_groups_are_read():
    asked = []
    pool = pool_of(pixels_hash=np.array([[1] * 16, [2] * 16, [1] * 16], np.uint8), payloads=[b"a", b"b", b"a"])
    read = pool._read
    pool._read = lambda rows: asked.extend(rows.tolist()) or read(rows)
    exact(pool)
    assert sorted(asked) == [0, 2]


@pytest.mark.parametrize("worth", [[None, 3.0, None, 5.0], [None, float("nan"), float("nan"), 1.0]])
def test_a_row_without_the_preferred_number_is_the_least_preferred(worth):
    """One of all stays, whatever is known of them; to be left unjudged would keep copies."""
    pool = pool_of(pixels_hash=np.zeros((4, 16), np.uint8), worth=pa.array(worth))
    assert exact(pool, prefer=["worth"], confirm=False).keep.tolist() == [False, False, False, True]


def test_text_is_no_number_to_prefer_by():
    with pytest.raises(Refusal, match=r"prefer: .*string.*\[bad-value\]"):
        exact(pool_of(pixels_hash=np.zeros((2, 16), np.uint8), worth=["a", "b"]), prefer=["worth"], confirm=False)


def saved(picture, kind, **how) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def files_that_look_alike_in_eight_bits() -> dict:
    """kind -> (a file, one that differs, one that is the same in other bytes)."""
    rng = np.random.default_rng(1)
    slice_ = rng.integers(0, 256, (8, 8)).astype(np.uint16) * 257  # all of 16 bits
    lesion = slice_.copy()
    lesion[2:5, 2:5] ^= 3
    rgba = rng.integers(0, 256, (8, 8, 4)).astype(np.uint8)
    rgba[:, :, 3] = 0
    other = rgba.copy()
    other[0, 0, :3] += 1
    rgb = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
    turned = Image.Exif()
    turned[274] = 6
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (0, 90, 200)]
    return {
        "sixteen bits": (saved(Image.fromarray(slice_), "PNG"), saved(Image.fromarray(lesion), "PNG"), saved(Image.fromarray(slice_), "TIFF")),
        "transparent": (saved(Image.fromarray(rgba), "PNG"), saved(Image.fromarray(other), "PNG"), saved(Image.fromarray(rgba), "PNG", compress_level=0)),
        "turned": (saved(rgb, "PNG"), saved(rgb, "PNG", exif=turned), saved(rgb, "PNG", compress_level=0)),
        "animated": (
            saved(frames[0], "PNG", save_all=True, append_images=[frames[1]]), saved(frames[0], "PNG", save_all=True, append_images=[frames[2]]), None,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["sixteen bits", "transparent", "turned", "animated"])
def test_what_eight_bits_of_the_first_frame_cannot_show_keeps_pictures_apart(kind):
    one, other, again = files_that_look_alike_in_eight_bits()[kind]
    files = [one, other] + [again] * (again is not None)
    pool = pool_of(pixels_hash=exact_hash(Batch(files))["pixels_hash"], payloads=files)
    assert len(np.unique(pool.column("pixels_hash"), axis=0)) == 1
    assert exact(pool).keep.tolist() == [True, True] + [False] * (again is not None)
