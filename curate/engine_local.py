"""Spawned processes on this machine: tasks in, results in task order. A failed task is retried once, then named."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from manifests.errors import Refusal
from manifests.memory import keep_freed


def default_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_tasks(function: Callable[[Any], Any], tasks: Sequence[Any], *, workers: int) -> Iterator[Any]:
    """`function(task)` of every task, in task order; at most `2 * workers` run or wait at once.

    With one worker everything runs in this process. Otherwise processes are spawned (never forked: OpenMP may have run)
    with one thread each. Raises what a task raised twice; a worker that dies twice at one task is a `Refusal` [does-not-fit].
    """
    if workers <= 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    position = 0
    attempts: dict[int, int] = {}
    while position < len(tasks):
        try:
            for result in _run(function, tasks[position:], workers):
                yield result
                position += 1
        except BrokenProcessPool as error:
            attempts[position] = attempts.get(position, 0) + 1
            if attempts[position] > 1:
                raise Refusal(
                    "does-not-fit",
                    f"task {position + 1} of {len(tasks)}",
                    "its worker died twice (out of memory?)",
                    cure="Run again with fewer --workers; what is finished is kept",
                ) from error


def _run(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    with ProcessPoolExecutor(min(workers, len(tasks)), multiprocessing.get_context("spawn"), initializer=_one_thread) as executor:
        waiting: list[Future] = []
        submitted = 0
        try:
            for index in range(len(tasks)):
                while submitted < len(tasks) and len(waiting) < 2 * workers:
                    waiting.append(executor.submit(function, tasks[submitted]))
                    submitted += 1
                yield _result(waiting.pop(0), function, tasks[index], executor)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _result(future: Future, function: Callable[[Any], Any], task: Any, executor: ProcessPoolExecutor) -> Any:
    try:
        return future.result()
    except (OSError, MemoryError):
        return executor.submit(function, task).result()


def _one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    keep_freed()
