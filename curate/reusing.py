"""Take over from another run what it has measured and decided: by hard links, and only what this run has not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from manifests.publish import publish


def link_run(other: Path, root: Path, link: Callable[[Path, Path], None] = os.link, wanted: Callable[[Path], bool] = lambda path: True) -> None:
    """Hard-link (or copy) the vectors, edges, cache and then the parts of another run that this run has not; digests decide later whether they serve.

    wanted    which of the files, by their path in the run
    """
    kinds = ("vectors", "edges", "cache", "evaluations", "parts")
    found = [source for kind in kinds for source in sorted((other / kind).rglob("*")) if source.is_file() and not source.name.startswith(".")]
    found = [source for source in found if wanted(source.relative_to(other))]
    for source in sorted(found, key=lambda s: "parts" in s.relative_to(other).parts[:-1]):
        target = root / source.relative_to(other)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            link(source.resolve(), target)
        except OSError:
            _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as given:
        publish(target, lambda file: shutil.copyfileobj(given, file))
