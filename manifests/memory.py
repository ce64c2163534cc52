"""Private memory: how much this process and its workers hold (RssAnon; mapped files do not count), and what the C library does with freed pieces."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SAMPLES_A_SECOND = 5.0
SHARE = 0.8
UNTOLD = 256 << 20  # what a process is taken to hold where the system does not tell


def keep_freed(most: int = 1 << 30) -> None:
    """From now on glibc reuses up to `most` bytes of this process's freed memory instead of giving them back, which costs a quarter of the time in
    page faults where large buffers are made again and again; elsewhere nothing happens. Safe to call twice."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, most)
        mallopt(M_TRIM_THRESHOLD, most)


def left(limit: int) -> int:
    """Bytes that one decision may use where this process and its workers are to stay under `limit`: `SHARE` of what they do not hold yet.

    The rest is for what stands beside the method: its verdicts as a table, the pieces that are being written.
    """
    give_back()
    return max(0, int(SHARE * (limit - (family_bytes() or UNTOLD))))


def enough(needed: int) -> str:
    """The `--memory` with which `needed` bytes are left for a decision, given what is held now: `left` turned round, and a little more."""
    whole = (family_bytes() or UNTOLD) + int(needed / SHARE) + (32 << 20)
    return f"{-(-whole // (64 << 20)) * 64}MiB" if whole < 4 << 30 else f"{-(-whole // (1 << 30))}GiB"


def size(count: float) -> str:
    """Bytes for a reader: 512 MiB, 3.2 GiB."""
    return f"{count / (1 << 20):,.0f} MiB" if count < 1 << 30 else f"{count / (1 << 30):,.1f} GiB"


def give_back() -> None:
    """Hand freed memory back to the system now: what comes next is counted against `--memory` without it."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def private_bytes(process: int | None = None) -> int | None:
    """Private bytes of a process (default: this one), 0 for one that has ended; None where the system does not tell."""
    try:
        with open(f"/proc/{process or 'self'}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None if process is None else 0
    return None if process is None else 0  # a process that is ending has no such line


def family_bytes() -> int | None:
    """Private bytes of this process and of all that it started, and those started; None where the system does not tell."""
    own = private_bytes()
    return None if own is None else own + sum(private_bytes(child) or 0 for child in started_by(os.getpid()))


def started_by(process: int) -> Iterator[int]:
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread, or the process, has ended meanwhile
            for child in listed.read_text(encoding="ascii").split():
                yield int(child)
                yield from started_by(int(child))


class Sampler:
    """Looks at `family_bytes` five times a second while its `with` block runs. `peak`: the most it saw; None where the system does not tell."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> "Sampler":
        self.look()
        if self.peak is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self.look()

    def look(self) -> None:
        """One sample, now."""
        held = family_bytes()
        if held is not None:
            self.peak = max(self.peak or 0, held)

    def _watch(self) -> None:
        while not self._ended.wait(1 / SAMPLES_A_SECOND):
            self.look()
