"""`--memory`: how many workers fit, what is said and refused before any work, and what was held in the end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curate.measuring import LIBRARIES, WORKER_BYTES
from curate.recipe import Recipe
from curate.stages import DECISION
from manifests.errors import Refusal
from manifests.ledger import ROWS_A_FILE
from manifests.memory import Sampler, enough, family_bytes, left, size
from manifests.progress import record_event

ROW_BYTES, LEDGER_BYTES = 300, 350  # what a build holds for a row whatever the method: uid, columns, verdicts; for one that waits for its ledger file


def fitting_workers(workers: int, memory: int) -> int:
    """As many of `workers` as `memory` bytes hold beside this process, at least one: how many they are reaches no byte of the run."""
    room = memory - (family_bytes() or 0)
    return max(1, min(workers, room // WORKER_BYTES))


def shares(workers: int, memory: int) -> tuple[int, int]:
    """(bytes that each worker's batch may take beside the others', bytes for the single picture that takes more while others take their share).

    Half of what is left is shared out, so that large pictures do not wait for each other where there is memory enough.
    """
    left_over = memory - (family_bytes() or 0) - workers * LIBRARIES
    share = max(WORKER_BYTES - LIBRARIES, left_over // (2 * workers))
    return share, max(share, left_over - (workers - 1) * share)


def refuse_early(recipe: Recipe, rows: int, needs: list[tuple[str, int | None]], memory: int) -> str:
    """One line about the memory of a build, before it starts. Raises `Refusal` [does-not-fit] with the number that would do, where it is sure not to fit.

    rows     of the pool, counted or at least so many
    needs    (stage, bytes) of each decision where every row reaches it; None = not known before the measures
    Sure are the libraries, what is held for each row, and the first decision, which all rows reach; a later one may see fewer and is judged when it begins.
    """
    held = family_bytes() or 0
    beside = ROW_BYTES * rows + LEDGER_BYTES * min(rows, ROWS_A_FILE) + WORKER_BYTES
    least = held + beside
    if least > memory:
        raise Refusal("does-not-fit", "--memory", f"{size(memory)} for at least {rows:,} samples, {size(least)} are needed before any method",
                      cure=f"Give --memory {enough(beside)}")  # fmt: skip
    first = next((s.id for s in recipe.stages if s.kind == DECISION), None)
    for stage, needed in needs:
        if stage == first and needed is not None and needed > left(memory):
            raise Refusal("does-not-fit", stage, f"needs {size(needed)} for at least {rows:,} samples", f"--memory allows {size(left(memory))}",
                          f"Give --memory {enough(needed)}")  # fmt: skip
    most = max(((needed, stage) for stage, needed in needs if needed is not None), default=None)
    line = f"memory: {size(memory)} allowed, {size(held)} held"
    return line if most is None else f"{line}, {size(held + most[0])} at the peak, in {most[1]}, if all samples (at least {rows:,}) reach it"


@contextmanager
def held_under(memory: int, events: Path, quiet: bool) -> Iterator[None]:
    """Watch what the build and its workers hold while the block runs; the peak goes to `events` and to the terminal."""
    with Sampler() as held:
        try:
            yield
        finally:
            held.look()
            if held.peak is not None:
                record_event(events, "memory", peak=held.peak, allowed=memory)
                if not quiet:
                    sys.stderr.write(f"peak {size(held.peak)} of {size(memory)} allowed\n")
