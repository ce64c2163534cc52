"""Spawned processes on this machine: tasks in, results in task order. A task that fails for want of memory or of a file is tried once more."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, count, islice
from typing import Any

from manifests.errors import Refusal
from manifests.memory import keep_freed
from manifests.processes import end_with_parent

KEPT = 128 << 20  # bytes of freed memory that a worker keeps for its next batch
POLL = 0.25  # seconds between two looks at what the running tasks have told
Watch = Callable[[int], None]

_ALONE: AbstractContextManager | None = None  # the lock that the workers of one pool share
_TOLD: Any = []  # units that each running task has told: memory that the workers of one pool share. Each task has a place of its own, so there is no lock
_TELL: Watch | None = None  # who hears what the running task of this process tells


def map_tasks(function: Callable[[Any], Any], tasks: Iterable[Any], *, workers: int, watch: Watch | None = None) -> Iterator[Any]:
    """`function(task)` of every task, in task order; at most `2 * workers` run or wait at once, and no further task is taken from `tasks` before.

    With one worker everything runs in this process. Otherwise processes are spawned (never forked: OpenMP may have run)
    with one thread each. Raises what a task raised twice; a worker that dies twice at one task is a `Refusal` [does-not-fit].

    watch    hears now and then how many units all tasks together have done, as they `tell`: for progress, nothing else
    """
    source = iter(tasks)
    handed_out = deque(islice(source, 2))  # and not yet answered
    if workers <= 1 or len(handed_out) <= 1:
        yield from _here(function, chain(handed_out, source), watch)
        return
    done = deaths = told = 0
    while handed_out:
        try:
            for result, so_far in _run(function, handed_out, source, workers, watch, told):
                done, deaths, told = done + 1, 0, so_far
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


def tell(more: int) -> None:
    """Say that so many more units of the running task are done."""
    if _TELL is not None:
        _TELL(more)


@contextmanager
def alone() -> Iterator[None]:
    """While the block runs no other worker is in such a block: for what needs much memory, so that all workers together need it once."""
    with _ALONE or nullcontext():
        yield


def _here(function: Callable[[Any], Any], tasks: Iterable[Any], watch: Watch | None) -> Iterator[Any]:
    """Results in order, by this process."""
    global _TELL
    told = 0

    def hear(more: int) -> None:
        nonlocal told
        told += more
        if watch is not None:
            watch(told)

    for task in tasks:
        before, _TELL = _TELL, hear
        try:
            result = function(task)
        finally:
            _TELL = before
        yield result


def _run(
    function: Callable[[Any], Any], handed_out: deque[Any], source: Iterator[Any], workers: int, watch: Watch | None, told: int
) -> Iterator[tuple[Any, int]]:
    """Results in order, each with what all answered tasks have told, those before this call included; `handed_out` loses the tasks that are answered and gains
    those that are taken from `source`.
    """
    context = multiprocessing.get_context("spawn")
    places = context.RawArray("q", 2 * workers)  # no more tasks run or wait at once, and they follow each other
    turn = count()
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(context.Lock(), places)) as executor:
        waiting: deque[tuple[Future, Any, int]] = deque()

        def submit(task: Any) -> None:
            place = next(turn) % len(places)
            waiting.append((executor.submit(_task, function, task, place), task, place))

        for task in handed_out:
            submit(task)
        try:
            while True:
                for task in islice(source, max(0, 2 * workers - len(waiting))):
                    handed_out.append(task)
                    submit(task)
                if not waiting:
                    return
                future, task, place = waiting.popleft()
                while watch is not None and not wait([future], POLL).done:
                    watch(told + sum(places))
                result = _result(future, function, task, place, executor)
                told, places[place] = told + places[place], 0
                if watch is not None:
                    watch(told + sum(places))
                handed_out.popleft()
                yield result, told
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _result(future: Future, function: Callable[[Any], Any], task: Any, place: int, executor: ProcessPoolExecutor) -> Any:
    try:
        return future.result()
    except (OSError, MemoryError):
        return executor.submit(_task, function, task, place).result()


def _task(function: Callable[[Any], Any], task: Any, place: int) -> Any:
    global _TELL
    _TOLD[place] = 0  # a task that is tried again begins again

    def hear(more: int) -> None:
        _TOLD[place] += more

    _TELL = hear
    return function(task)


def _begin(lock: AbstractContextManager, told: Any) -> None:
    global _ALONE, _TOLD
    _ALONE, _TOLD = lock, told
    end_with_parent()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    keep_freed(KEPT)
