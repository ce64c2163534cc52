"""Spawned processes on this machine: tasks in, results in task order. A failed task is retried once, then named."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, islice
from typing import Any

from manifests.errors import Refusal
from manifests.memory import keep_freed

KEPT = 128 << 20  # bytes of freed memory that a worker keeps for its next batch
_ALONE: AbstractContextManager | None = None  # the lock that the workers of one pool share


def default_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_tasks(function: Callable[[Any], Any], tasks: Iterable[Any], *, workers: int) -> Iterator[Any]:
    """`function(task)` of every task, in task order; at most `2 * workers` run or wait at once, and no further task is taken from `tasks` before.

    With one worker everything runs in this process. Otherwise processes are spawned (never forked: OpenMP may have run)
    with one thread each. Raises what a task raised twice; a worker that dies twice at one task is a `Refusal` [does-not-fit].
    """
    source = iter(tasks)
    handed_out = deque(islice(source, 2))  # and not yet answered
    if workers <= 1 or len(handed_out) <= 1:
        yield from map(function, chain(handed_out, source))
        return
    done = deaths = 0
    while handed_out:
        try:
            for result in _run(function, handed_out, source, workers):
                done, deaths = done + 1, 0
                yield result
        except BrokenProcessPool as error:
            deaths += 1
            if deaths > 1:
                raise Refusal(
                    "does-not-fit",
                    f"task {done + 1}",
                    "its worker died twice (out of memory?)",
                    cure="Run again with fewer --workers; what is finished is kept",
                ) from error


@contextmanager
def alone() -> Iterator[None]:
    """While the block runs no other worker is in such a block: for what needs much memory, so that all workers together need it once."""
    with _ALONE or nullcontext():
        yield


def _run(function: Callable[[Any], Any], handed_out: deque[Any], source: Iterator[Any], workers: int) -> Iterator[Any]:
    """Results in order; `handed_out` loses the tasks that are answered and gains those that are taken from `source`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(context.Lock(),)) as executor:
        waiting = deque(executor.submit(function, task) for task in handed_out)
        try:
            while True:
                for task in islice(source, max(0, 2 * workers - len(waiting))):
                    handed_out.append(task)
                    waiting.append(executor.submit(function, task))
                if not waiting:
                    return
                result = _result(waiting.popleft(), function, handed_out[0], executor)
                handed_out.popleft()
                yield result
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _result(future: Future, function: Callable[[Any], Any], task: Any, executor: ProcessPoolExecutor) -> Any:
    try:
        return future.result()
    except (OSError, MemoryError):
        return executor.submit(function, task).result()


def _begin(lock: AbstractContextManager) -> None:
    global _ALONE
    _ALONE = lock
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    keep_freed(KEPT)
