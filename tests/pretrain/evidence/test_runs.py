"""A worker keeps what it freed; a seed goes on on the device that it was begun on."""

import subprocess
import sys

import pytest

from manifests.errors import Refusal
from pretrain.evidence.runs import Run, placed

MAPPED = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.mallopt.restype = ctypes.c_void_p
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc.mallinfo2.restype = Info
before = libc.mallinfo2().hblks
libc.malloc(ctypes.c_size_t(16 << 20))
print(libc.mallinfo2().hblks - before)
"""
WORKER = "from pretrain.evidence.runs import prepare_worker\nprepare_worker()\n"
TRAINING = """
from manifests.errors import Refusal
from pretrain.train import training
try:
    training(data=[], out="x", objective={}, samples_seen=0)
except Refusal:
    pass
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize(("start", "mapped"), [("", "1"), (WORKER, "0"), (TRAINING, "0")])
def test_large_memory_is_not_mapped_anew(start, mapped):
    assert subprocess.run([sys.executable, "-c", start + MAPPED], capture_output=True, text=True, check=True).stdout.split() == [mapped]


ROUND = {(arm, r): Run("look", arm, None, r, r, r) for arm in ("full", "kept") for r in (0, 1)}


@pytest.mark.parametrize(
    ("here", "asked", "begun", "device"),
    [
        (["cuda", "cpu"], "auto", "", "cuda"),
        (["cuda", "cpu"], "auto", "cpu", "cpu"),
        (["cuda", "cpu"], "auto", "cpu, cuda", "cuda"),  # one training of both
        (["cuda", "cpu"], "cuda", "cpu", "cuda"),  # told
        (["cpu"], "auto", "cuda", None),
        (["cpu"], "cpu", "cuda", "cpu"),
        (["cpu"], "cuda", "cuda", None),
    ],
)
def test_a_seed_goes_on_where_it_was_begun_and_the_next_wherever_it_is_fastest(here, asked, begun, device, monkeypatch):
    monkeypatch.setattr("pretrain.backbones.devices", lambda: here)
    anchor = Run(None, "untrained", None, 0, 0, 0)
    todo, done = [anchor, ROUND["kept", 0], ROUND["full", 1]], {ROUND["full", 0]: begun}
    if device is None:
        with pytest.raises(Refusal, match=r"device: (seed number 1 of look was begun on cuda.*--device cpu|there is no cuda here).*\[bad-value\]"):
            placed(todo, done, asked)
        return
    usual = here[0] if asked == "auto" else asked
    assert placed(todo, done, asked) == {anchor: usual, ROUND["kept", 0]: device, ROUND["full", 1]: usual}
