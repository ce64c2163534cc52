import numpy as np
import pytest
import torch

from pretrain.machine import numbers, sent, settled, side_by_side


def test_threads_and_cudnn_are_as_before_afterwards():
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark
    with settled(1):
        assert (torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark) == (1, True, False)
    assert (torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark) == before


def test_rows_become_plain_numbers():
    rows = [{"step": 3, "loss": torch.tensor(0.1), "lr": 0.5}, {"step": 4, "loss": torch.tensor(2.0), "judged": torch.tensor(7)}]
    assert numbers(rows) == [{"step": 3, "loss": torch.tensor(0.1).item(), "lr": 0.5}, {"step": 4, "loss": 2.0, "judged": 7}]


def test_an_array_arrives_as_it_is():
    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    assert np.array_equal(sent(array, "cpu").numpy(), array)
    assert side_by_side(6, "cpu") == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_gives_the_same_numbers():
    values = torch.rand(5)
    there = [{"a": value.cuda(), "b": value, "n": 1, "whole": torch.tensor(9, device="cuda")} for value in values]
    here = [{"a": value.item(), "b": value.item(), "n": 1, "whole": 9.0} for value in values]
    assert numbers(there) == here
    array = np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), np.uint8)
    assert np.array_equal(sent(array, "cuda").cpu().numpy(), array)
    assert 1 <= side_by_side(1000, "cuda") < 1000
