"""A build, or an append, that logs its own publish moments and can be killed at one of them. Run as a script: log, kill-at ("moment path-part" or ""), then
recipe (or `append`), pool and run."""

import os
import signal
import sys
from pathlib import Path

import curate.asking
import curate.measuring
import curate.unfinished
import manifests.publish
from curate.appending import append
from curate.building import build


def main() -> None:
    """Build or append with workers=1; every moment goes to the log; the first that fits `kill_at` kills this process, as kill -9 does."""
    log, kill_at, recipe, pool, out = sys.argv[1:6]
    curate.asking.SCAN_SECONDS = 0.0  # publish every round of a scan, so that scans are hit too
    curate.measuring.BATCH_ROWS = curate.unfinished.ROWS = 4  # and each batch of a shard
    name, _, part = kill_at.partition(" ")

    def moment(what: str, path: Path) -> None:
        shown = str(path.relative_to(out)) if path.is_relative_to(out) else str(path)
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{what} {shown}\n")
        if kill_at and what == name and part in shown:
            os.kill(os.getpid(), signal.SIGKILL)

    manifests.publish.moment = moment
    if recipe == "append":
        append(out, pool=pool, workers=1, device="cpu", quiet=True)
    else:
        build(recipe, pool=pool, out=out, workers=1, device="cpu", quiet=True)


if __name__ == "__main__":
    main()
