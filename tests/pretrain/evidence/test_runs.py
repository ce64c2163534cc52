"""A worker keeps what it freed."""

import subprocess
import sys

import pytest

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
