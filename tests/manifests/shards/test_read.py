"""Readers of shards that stay open."""

import os

import pytest

from manifests.errors import Refusal
from manifests.shards.read import opened


def test_a_shard_stays_open_until_its_file_is_another(tmp_path):
    file = tmp_path / "00000.tar"
    file.write_bytes(b"first")
    reader = opened(str(file))
    assert opened(str(file)) is reader and bytes(reader.payload(0, 5)) == b"first"
    (tmp_path / "new").write_bytes(b"other")
    os.utime(tmp_path / "new", ns=(os.stat(file).st_atime_ns, os.stat(file).st_mtime_ns))  # of the same size and time
    (tmp_path / "new").replace(file)
    assert bytes(opened(str(file)).payload(0, 5)) == b"other"
    assert opened(str(file), version="a digest") is not opened(str(file))
    file.unlink()
    with pytest.raises(Refusal, match="no-such-file"):
        opened(str(file))
