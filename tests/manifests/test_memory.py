"""What is held is seen, with what was started; and `enough` is `left` turned round."""

import subprocess
import sys
import time

import numpy as np
import pytest

from manifests import memory
from manifests.memory import Sampler, enough, family_bytes, left, private_bytes

pytestmark = pytest.mark.skipif(private_bytes() is None, reason="this system does not tell")
MIB = 1 << 20
CHILD = "b = bytearray(b'x') * (80 << 20); print('held', flush=True); input()"


def test_what_is_held_shows_and_what_is_mapped_does_not(tmp_path):
    (tmp_path / "file").write_bytes(bytes(64 * MIB))
    before = private_bytes()
    mapped = np.memmap(tmp_path / "file", np.uint8, "r")
    assert int(mapped.sum()) == 0
    assert private_bytes() - before < 16 * MIB
    held = np.ones(64 * MIB, np.uint8)
    assert private_bytes() - before > 48 * MIB
    del held


def test_the_sampler_sees_a_peak_that_has_gone_and_the_children():
    before = family_bytes()
    with Sampler() as quiet:
        pass
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with Sampler() as seen:
        assert child.stdout.readline() == b"held\n"
        time.sleep(3 / memory.SAMPLES_A_SECOND)
        child.communicate(b"\n")
    assert quiet.peak < before + 40 * MIB
    assert seen.peak > before + 70 * MIB
    assert family_bytes() < before + 40 * MIB
    assert private_bytes(child.pid) == 0


def test_a_system_that_does_not_tell_is_silent(monkeypatch):
    monkeypatch.setattr(memory, "private_bytes", lambda process=None: None)
    with Sampler() as held:
        pass
    assert held.peak is None
    assert 0 < left(1 << 30) < 1 << 30


@pytest.mark.parametrize("needed", [0, 1, 100 * MIB, 3 << 30, 40 << 30])
def test_what_is_said_to_be_enough_is_enough(needed):
    said = enough(needed)
    number, unit = int(said[:-3]), {"MiB": MIB, "GiB": 1 << 30}[said[-3:]]
    assert left(number * unit) >= needed
    assert left(number * unit) <= 1.3 * needed + (2 << 30 if unit > MIB else 160 * MIB)


def test_nothing_is_left_where_more_is_held():
    assert left(1 * MIB) == 0
