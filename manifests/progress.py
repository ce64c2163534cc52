"""Progress of long work: a line on the terminal with rate and time left, a row a second in `events.jsonl`."""

import json
import sys
import time
from pathlib import Path
from typing import Any


def span(seconds: float) -> str:
    """`seconds` for a reader: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """Counts `advance(n)` up to `total` units of `unit`; writes to stderr at most four times a second, one line a step off a terminal."""

    def __init__(self, what: str, total: int, unit: str = "samples", events: Path | None = None, quiet: bool = False) -> None:
        self.what, self.total, self.unit, self.events, self.quiet = what, total, unit, events, quiet
        self.done = 0
        self.started = time.monotonic()
        self._drawn = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._draw(final=True)

    def advance(self, count: int = 1) -> None:
        """Count `count` more units."""
        self.done += count
        self._show()

    def reach(self, done: int) -> None:
        """Count up to `done` units, at most all of them; fewer than before are as many."""
        self.done = max(self.done, min(done, self.total))
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        interval = 0.25 if sys.stderr.isatty() else 10.0
        if now - max(self._drawn, self.started if not sys.stderr.isatty() else 0.0) >= interval:
            self._drawn = now
            self._draw()

    def _draw(self, final: bool = False) -> None:
        elapsed = time.monotonic() - self.started
        rate = self.done / elapsed if elapsed > 0 else 0.0
        if self.events is not None:
            record_event(self.events, "progress", what=self.what, done=self.done, total=self.total, seconds=round(elapsed, 3))
        if self.quiet:
            return
        left = "" if final or not rate else f", {span((self.total - self.done) / rate)} left"
        speed = f"{rate:,.0f}/s" if rate >= 1 or not rate else f"{1 / rate:,.1f} s each"
        line = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {speed}, {span(elapsed)}{left}"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{line}" + ("\n" if final else ""))
        elif final or self.done < self.total:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def record_event(path: Path, event: str, **values: Any) -> None:
    """Append one row to `events.jsonl` (outside any promise of equal bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"time": round(time.time(), 3), "event": event, **values}) + "\n")
