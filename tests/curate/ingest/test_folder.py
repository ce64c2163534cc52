"""An image folder becomes a pool: every file is a row or is counted, whatever it is called and however it is linked."""

import contextlib
import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.ingest.folder import folder
from curate.ingest.ingest import ingest
from curate.ingest.pack import Unreadable, keys_of, pack
from manifests.errors import Refusal
from manifests.shards.index import index_shard
from manifests.shards.pool_yaml import open_pool
from tests.curate.ingest.pictures import files, members, picture, put, sidecar


def make(root, names):
    for i, name in enumerate(names):
        put(root / name, picture(i))
    return root


def run(source, to, **options):
    return ingest(str(source), to=to, quiet=True, **options)


def test_sub_folders_are_classes_and_bytes_are_untouched(tmp_path):
    source = make(tmp_path / "src", ["dog/1.png", "cat/b/2.png", "cat/1.png"])
    summary = run(source, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    assert (summary["samples"], summary["labelled"], pool.classes) == (3, 3, ("cat", "dog"))
    assert members(tmp_path / "pool") == {
        "cat_1.png": picture(2), "cat_1.cls": b"0", "cat_b_2.png": picture(1), "cat_b_2.cls": b"0", "dog_1.png": picture(0), "dog_1.cls": b"1",
    }  # fmt: skip
    rows = index_shard(pool.shards[0], classes=pool.classes).table
    assert rows["path"].to_pylist() == ["cat/1.png", "cat/b/2.png", "dog/1.png"]
    assert rows["label_name"].to_pylist() == ["cat", "cat", "dog"]
    assert rows["fault"].null_count == 3


def test_a_flat_folder_has_no_labels(tmp_path):
    run(make(tmp_path / "src", ["1.png", "2.png"]), tmp_path / "pool")
    assert set(members(tmp_path / "pool")) == {"1.png", "2.png"}
    assert open_pool(tmp_path / "pool").classes == ()


def test_a_picture_beside_the_classes_has_no_label(tmp_path):
    summary = run(make(tmp_path / "src", ["1.png", "cat/2.png"]), tmp_path / "pool")
    assert summary["labelled"] == 1
    assert set(members(tmp_path / "pool")) == {"1.png", "cat_2.png", "cat_2.cls"}


@pytest.mark.parametrize(
    "name", ["08", "1e-3", "on", "null", "~", "0x1F", "1_000", "true", "- a", "a: b", "#x", "'q\"", "naïve", "日本", "12:30", "2026-01-01"]
)
def test_any_class_name_comes_back_as_it_was(tmp_path, name):
    run(make(tmp_path / name / "src", [f"{name}/1.png", "zz/2.png"]), tmp_path / name / name)
    assert open_pool(tmp_path / name / name).classes == tuple(sorted([name, "zz"], key=str.encode))
    assert open_pool(tmp_path / name / name).name == name


ODD = [b"a b.png", b"a.b.c.png", b"caf\xe9.png", "naïve.png".encode(), "日本/犬.png".encode(), b"UPPER.PNG", b"-dash.png", b"new\nline.png", b"tab\t.png", b"q'u\"o.png",
       b"back\\slash.png", b"x" * 200 + b".png", b"a_b.png", b"a/b.png", b"a.png", b"a.jpg", b"%41.png", b"*?.png", b"..two.png", b"trail .png", b"__dunder.png", b"n\xff\xfe/\xff.png"]  # fmt: skip


def test_every_odd_name_is_a_row_with_a_safe_key_and_its_path(tmp_path):
    root = os.fsencode(tmp_path / "src")
    taken = [name for name in ODD if not name.startswith(b".")]  # `..two.png` is hidden
    for i, name in enumerate([*taken, b"..two.png"]):
        os.makedirs(os.path.dirname(root + b"/" + name), exist_ok=True)
        with open(root + b"/" + name, "wb") as file:
            file.write(picture(i))
    summary = run(tmp_path / "src", tmp_path / "pool")
    rows = sidecar(tmp_path / "pool")
    assert summary["samples"] == len(taken) == rows.num_rows
    assert summary["skipped"] == {"hidden": 1}
    paths = {name.decode("utf-8", "backslashreplace"): i for i, name in enumerate(taken)}
    held = members(tmp_path / "pool")
    for key, path in zip(rows["key"].to_pylist(), rows["path"].to_pylist(), strict=True):
        assert re.fullmatch(r"(?!__)[A-Za-z0-9_-]{1,90}", key)
        found = [data for name, data in held.items() if name.rsplit(".", 1)[0] == key and not name.endswith(".cls")]
        assert found == [picture(paths.pop(path))]
    assert not paths
    indexed = index_shard(open_pool(tmp_path / "pool").shards[0])
    assert indexed.table["key"].to_pylist() == rows["key"].to_pylist()
    assert not indexed.damage


@given(st.lists(st.binary(min_size=1, max_size=30).filter(lambda b: b"\0" not in b), unique=True, max_size=12), st.randoms())
def test_keys_are_safe_unique_and_know_no_position(paths, random):
    keys = dict(zip(paths, keys_of(paths), strict=True))
    assert len(set(keys.values())) == len(paths)
    assert all(re.fullmatch(r"(?!__)[A-Za-z0-9_-]{1,90}", key) for key in keys.values())
    mixed = list(paths)
    random.shuffle(mixed)
    assert dict(zip(mixed, keys_of(mixed), strict=True)) == keys


def test_a_name_made_to_look_like_another_key_gets_its_own():
    first = [b"a.png", b"a.jpg"]
    trap = keys_of(first)[0].encode() + b".png"
    keys = keys_of([*first, trap])
    assert len(set(keys)) == 3
    assert keys[:2] == keys_of(first)


def test_hard_links_are_copies_and_stay_two_samples(tmp_path):
    source = make(tmp_path / "src", ["1.png"])
    os.link(source / "1.png", source / "2.png")
    summary = run(source, tmp_path / "pool")
    assert summary["samples"] == 2
    assert not {"links_followed", "links_left_out"} & set(summary)


def test_the_order_in_which_the_disk_lists_files_is_irrelevant(tmp_path, monkeypatch):
    names = [f"{c}/{i}.png" for c in "ba" for i in range(9)]
    run(make(tmp_path / "src", names), tmp_path / "one", samples_per_shard=5)
    other = tmp_path / "other"
    for name in reversed(names):
        put(other / name, picture(names.index(name)))
    listed = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: contextlib.nullcontext(list(listed(path))[::-1]))
    run(other, tmp_path / "two", samples_per_shard=5)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len(files(tmp_path / "one")) == 2 * 4 + 1


def test_what_is_left_out_is_counted_by_kind(tmp_path):
    source = make(tmp_path / "src", ["1.png", "2.png"])
    for name in ("note.txt", "b.TXT", "film.mp4", "README", ".DS_Store", ".git/x.png", "__MACOSX/._1.png"):
        put(source / name, b"x" * 40)
    os.mkfifo(source / "pipe")
    summary = run(source, tmp_path / "pool")
    assert summary["samples"] == 2
    assert summary["skipped"] == {"hidden": 3, "mp4": 1, "no extension": 1, "not a file": 1, "txt": 2}


def test_a_picture_without_an_extension_is_known_by_its_first_bytes(tmp_path):
    put(tmp_path / "src" / "IMG_0001", picture(1, "JPEG"))
    put(tmp_path / "src" / "photo.backup", picture(2, "WEBP"))
    put(tmp_path / "src" / "scan.jfif", picture(3, "JPEG"))
    assert run(tmp_path / "src", tmp_path / "pool")["samples"] == 3
    assert sorted(name.rsplit(".", 1)[-1] for name in members(tmp_path / "pool")) == ["jpg", "jpg", "webp"]


def test_a_wrong_extension_stays_and_an_empty_file_is_a_row(tmp_path):
    put(tmp_path / "src" / "a.jpg", picture(1, "PNG"))
    put(tmp_path / "src" / "b.jpg", b"")
    put(tmp_path / "src" / "c.jpg", b"not a picture")
    run(tmp_path / "src", tmp_path / "pool")
    assert members(tmp_path / "pool") == {"a.jpg": picture(1, "PNG"), "b.jpg": b"", "c.jpg": b"not a picture"}
    assert index_shard(open_pool(tmp_path / "pool").shards[0]).table["fault"].to_pylist() == [None, "zero_bytes", None]


def test_links_are_resolved_once_and_counted(tmp_path):
    source = make(tmp_path / "src", ["real/z.png", "real/y.png"])
    outside = make(tmp_path / "outside", ["o.png", "deep/p.png"])
    (source / "a_link.png").symlink_to("real/z.png")  # sorts before the real file, which still wins
    (source / "b_link.png").symlink_to("a_link.png")
    (source / "broken.png").symlink_to("nowhere.png")
    (source / "real" / "loop").symlink_to("..")
    (source / "self").symlink_to("self")
    (source / "again").symlink_to("real")
    (source / "o1.png").symlink_to(outside / "o.png")
    (source / "o2.png").symlink_to(outside / "o.png")
    (source / "out").symlink_to(outside)
    (source / "text.txt").symlink_to(put(tmp_path / "outside" / "t.txt", b"x"))
    summary = run(source, tmp_path / "pool")
    assert summary["samples"] == 4
    assert sidecar(tmp_path / "pool")["path"].to_pylist() == ["o1.png", "out/deep/p.png", "real/y.png", "real/z.png"]
    assert summary["links_followed"] == {"to folders out of the source": 1, "to pictures out of the source": 1}
    assert summary["links_left_out"] == {"broken": 2, "to a folder already walked": 2, "to a picture already taken": 4}


@pytest.mark.parametrize("turned", [False, True])
def test_the_order_of_listing_does_not_choose_among_hard_links_behind_a_link(tmp_path, monkeypatch, turned):
    source, outside = make(tmp_path / "src", ["1.png"]), make(tmp_path / "outside", ["b.png"])
    os.link(outside / "b.png", outside / "a.png")
    (source / "out").symlink_to(outside)
    scandir = os.scandir

    @contextlib.contextmanager
    def listed(place):
        with scandir(place) as found:
            yield sorted(found, key=lambda entry: entry.name, reverse=turned)

    monkeypatch.setattr(os, "scandir", listed)
    run(source, tmp_path / "pool")
    assert sidecar(tmp_path / "pool")["path"].to_pylist() == ["1.png", "out/a.png"]


def test_links_to_folders_that_hold_the_source_end(tmp_path):
    source = make(tmp_path / "a" / "src", ["1.png"])
    (source / "up").symlink_to(tmp_path)
    (source / "root").symlink_to("/")
    summary = run(source, tmp_path / "pool")
    assert summary["samples"] == 1
    assert summary["links_left_out"] == {"to a folder already walked": 2}
    assert "links_followed" not in summary


def test_a_file_that_goes_between_listing_and_reading_stays_as_an_empty_row(tmp_path):
    source = make(tmp_path / "src", ["1.png", "2.png", "3.png"])
    samples = folder(source)
    (source / "2.png").unlink()
    summary = pack(samples, tmp_path / "pool", source="x", quiet=True)
    assert summary["unreadable"] == 1
    assert summary["first_unreadable"] == [{"row": 1, "name": "2.png", "fault": "missing"}]
    assert members(tmp_path / "pool")["2.png"] == b""
    assert sidecar(tmp_path / "pool")["ingest_fault"].to_pylist() == [None, "missing", None]
    assert index_shard(open_pool(tmp_path / "pool").shards[0]).table["fault"].to_pylist() == [None, "missing", None]


def test_a_folder_without_a_picture_is_refused_with_what_it_holds(tmp_path):
    put(tmp_path / "src" / "note.txt", b"x")
    put(tmp_path / "src" / ".hidden", b"x")
    (tmp_path / "src" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(Refusal) as refused:
        run(tmp_path / "src", tmp_path / "pool")
    said = "holds no picture (skipped: hidden 1, txt 1; links left out: broken 1); a pool has at least one sample [empty-pool]"
    assert str(refused.value) == f"{tmp_path / 'src'}: {said}"


@pytest.mark.parametrize("written", ["{}", "{}/", "{}/../src", "src", "./src", "src/"])
def test_the_source_itself_is_no_place_for_the_pool(tmp_path, monkeypatch, written):
    source = make(tmp_path / "src", ["1.png"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match=r"^--to: .*src is the source itself; .*Give another --to \[bad-value\]"):
        run("src/", Path(written.format(source)))
    assert sorted(p.name for p in source.iterdir()) == ["1.png"]
    assert run("src", source / "pool")["samples"] == run("src", source / "pool")["samples"] == 1


def test_captions_from_the_text_file_beside_a_picture(tmp_path):
    source = make(tmp_path / "src", ["1.png", "2.png"])
    put(source / "1.txt", "Ein Hund, schön.\n".encode())
    run(source, tmp_path / "pool", caption="txt")
    assert members(tmp_path / "pool") == {"1.png": picture(0), "1.txt": "Ein Hund, schön.".encode(), "2.png": picture(1)}


def test_a_caption_that_cannot_be_read_is_counted(tmp_path, monkeypatch):
    source = make(tmp_path / "src", ["1.png"])
    put(source / "1.txt", b"words")

    def closed(place):
        raise Unreadable("Permission denied")

    monkeypatch.setattr("curate.ingest.folder._read", closed)  # the tests may run as root, whom no permission stops
    samples = folder(source, caption="txt")
    assert samples.captions == [None]
    assert samples.counts["skipped"] == {"unreadable caption": 1}


def test_the_pool_may_lie_inside_the_source(tmp_path):
    source = make(tmp_path / "src", ["1.png"])
    assert run(source, source / "pool")["samples"] == 1
    assert run(source, source / "pool")["shards_packed"] == 0


@pytest.mark.parametrize(
    ("spoil", "slug"),
    [
        (lambda s: shutil.rmtree(s), "no-such-file"),
        (lambda s: put(s / "1.txt", b"words") and (s / "1.png").unlink(), "empty-pool"),
        (lambda s: put(s / "pool.yaml", b"format: 1\n"), "bad-value"),
    ],
    ids=["gone", "no picture", "a pool"],
)
def test_what_is_no_folder_of_pictures_is_refused(tmp_path, spoil, slug):
    source = make(tmp_path / "src", ["1.png"])
    spoil(source)
    with pytest.raises(Refusal) as error:
        run(source, tmp_path / "pool")
    assert error.value.slug == slug


def test_an_option_that_means_nothing_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"--label.*\[bad-value\]"):
        run(make(tmp_path / "src", ["1.png"]), tmp_path / "pool", label="x")
