"""What keepset writes, others read: tarfile, webdataset and open_clip's own training pipeline, sample for sample and byte for byte."""

import functools
import io
import tarfile
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from curate.ingest.ingest import ingest
from manifests.shards.index import index_shard, uids
from manifests.shards.pool_yaml import open_pool
from manifests.shards.write import ShardTask, layout, write_shard_task, write_sizes
from tests.curate.ingest.pictures import picture, put

N = 10


def caption(i):
    return f"picture {i}, naïve 犬"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Shards as `curate ingest` packs them from a table."""
    here = tmp_path_factory.mktemp("packed")
    lines = [f'img/{i}.{"jpg" if i % 2 else "png"},"{caption(i)}",{"ab"[i % 2]}' for i in range(N)]
    for i in range(N):
        put(here / "img" / f"{i}.{'jpg' if i % 2 else 'png'}", picture(i, "JPEG" if i % 2 else "PNG", 16))
    put(here / "t.csv", ("path,caption,label\n" + "\n".join(lines)).encode())
    ingest(str(here / "t.csv"), to=here / "pool", samples_per_shard=4, quiet=True)
    return here / "pool" / "shards"


@pytest.fixture(scope="module")
def written(packed, tmp_path_factory):
    """The same samples as the shard writer writes them for a run, shuffled."""
    pool, seen, rows = open_pool(packed.parent), {}, []
    for shard in pool.shards:
        table = index_shard(shard, classes=pool.classes).table
        rows.append(
            table.append_column("uid", pa.array(uids(table, seen)[0].astype("U32"), pa.string())).append_column(
                "shard", pa.array([shard.id] * table.num_rows)
            )
        )
    whole = pa.concat_tables(rows)
    order, out_shard, _ = layout(N, per_shard=6, seed=3)
    here, sizes = tmp_path_factory.mktemp("written") / "shards", {}
    for number in range(int(out_shard.max()) + 1):
        mine = whole.take(pa.array([i for i in order if out_shard[i] == number]))
        sizes[f"{number:05d}.tar"] = mine.num_rows
        write_shard_task(ShardTask(here / f"{number:05d}.tar", mine, {s.id: s.url for s in pool.shards}, "0" * 64))
    write_sizes(here / "sizes.json", sizes)
    return here


@pytest.fixture(params=["packed", "written"])
def shards(request):
    return request.getfixturevalue(request.param)


def tars(shards):
    return sorted(str(p) for p in shards.glob("*.tar"))


def expected():
    return sorted((picture(i, "JPEG" if i % 2 else "PNG", 16), caption(i), i % 2) for i in range(N))


def test_tarfile(shards):
    found = []
    for path in tars(shards):
        with tarfile.open(path) as tar:
            held = {m.name: tar.extractfile(m).read() for m in tar}
        for name in held:
            key, ending = name.split(".")
            if ending in ("jpg", "png"):
                found.append((held[name], held[f"{key}.txt"].decode(), int(held[f"{key}.cls"])))
    assert sorted(found) == expected()


def test_webdataset(shards):
    import webdataset as wds

    samples = list(wds.WebDataset(tars(shards), shardshuffle=False))
    assert sorted((s.get("jpg") or s["png"], s["txt"].decode(), int(s["cls"])) for s in samples) == expected()
    assert len({s["__key__"] for s in samples}) == N


@pytest.mark.parametrize("is_train", [True, False], ids=["train", "validation"])
def test_open_clip(shards, is_train, monkeypatch):
    from open_clip_train import data as open_clip_data

    # webdataset 1.0 marks the end of each shard with an empty sample, over which open_clip 3.3's own grouping stumbles whoever wrote the shard (open_clip #935)
    monkeypatch.setattr(open_clip_data, "tar_file_expander", functools.partial(open_clip_data.tar_file_expander, eof_value=None))
    urls = "::".join(tars(shards))
    args = SimpleNamespace(
        train_data=urls, val_data=urls, train_num_samples=None, val_num_samples=N, train_data_upsampling_factors=None, dataset_resampled=False,
        seed=0, batch_size=1, workers=0, world_size=1,
    )  # fmt: skip
    seen = []

    def tokenize(text):
        seen.append(text)
        return [len(text)]

    data = open_clip_data.get_wds_dataset(args, preprocess_img=np.asarray, is_train=is_train, tokenizer=tokenize)
    pictures = [np.asarray(image)[0] for image, _ in data.dataloader]
    assert data.dataloader.num_samples == N  # in training from sizes.json
    assert sorted(seen) == sorted(caption(i) for i in range(N))
    decoded = sorted(np.asarray(Image.open(io.BytesIO(p)).convert("RGB")).tobytes() for p, _, _ in expected())
    assert sorted(p.tobytes() for p in pictures) == decoded
