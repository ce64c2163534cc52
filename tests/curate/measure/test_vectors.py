"""measure.vectors: one unit vector a row, faults for what gives none."""

import numpy as np
import pytest
import torch

from curate.encoders import Encoder
from curate.measure import vectors as module
from curate.measure.vectors import vectors
from curate.pool import Batch
from tests.pools import jpeg, png
from tests.small_pool import crops

PICTURES = [pixels for pixels, _ in crops(5)]


def test_rows_are_unit_vectors_in_their_place():
    got = vectors(Batch([png(PICTURES[0]), b"broken", png(PICTURES[1])]), encoder="pixels:8")["vectors"]
    assert got.dtype == np.float16
    assert got.shape == (3, 192)
    assert np.linalg.norm(got[[0, 2]].astype(float), axis=1) == pytest.approx(1, abs=1e-3)
    assert not got[1].any()


def test_a_row_depends_on_its_picture_alone():
    files = [jpeg(p, 90) for p in PICTURES]
    together = vectors(Batch(files), encoder="pixels:8")["vectors"]
    alone = np.concatenate([vectors(Batch([f]), encoder="pixels:8")["vectors"] for f in files])
    assert np.array_equal(together, alone)


def test_a_batch_of_broken_files_still_has_a_width():
    batch = Batch([b"broken", None])
    assert vectors(batch, encoder="pixels:4")["vectors"].shape == (2, 48)
    assert batch.faults == ["undecodable", "no_payload"]


def test_no_direction_and_no_number_are_faults(monkeypatch):
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
    odd = Encoder("odd", 8, lambda x: rows[: len(x)], lambda p: p, 8)
    monkeypatch.setattr(module, "open_encoder", lambda spec, device: odd)
    batch = Batch([png(p[:8, :8]) for p in PICTURES[:4]])
    got = vectors(batch, encoder="odd")["vectors"]
    assert batch.faults == [None, "zero_vector", "not_finite", "not_finite"]
    assert got[0].tolist() == [1.0, 0.0]
    assert np.isfinite(got).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224"])
def test_a_gpu_gives_the_same_vectors_within_rounding(model, tmp_path):
    import timm

    torch.manual_seed(0)
    torch.save(timm.create_model(model).state_dict(), tmp_path / "net.pth")
    files = [png(p) for p in PICTURES] + [b"broken"] + [jpeg(p, 90) for p in PICTURES]
    here, there = (
        vectors(Batch(files, device=device), encoder=f"timm:{model}/{tmp_path}/net.pth")["vectors"].astype(float) for device in ("cpu", "cuda")
    )
    assert not there[len(PICTURES)].any()
    assert (1 - (here * there).sum(1)[np.linalg.norm(here, axis=1) > 0]).max() < 2e-3
    assert np.abs(here - there).max() < 0.02
