"""Results in task order from spawned processes; a failed task is retried once, then named."""

import os
import signal

import pytest

from curate.engine_local import map_tasks
from manifests.errors import Refusal


def square(task):
    return task * task


def once_broken(path):
    """Fails the first time it is called for a path."""
    if not os.path.exists(path):
        open(path, "w").close()
        raise OSError("a hiccup of the disk")
    return path


def deadly(task):
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def refuse(task):
    raise Refusal("bad-value", "task", str(task))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_task_order(workers):
    assert list(map_tasks(square, list(range(9)), workers=workers)) == [i * i for i in range(9)]


def test_a_hiccup_is_retried(tmp_path):
    paths = [str(tmp_path / f"{i}") for i in range(3)]
    assert list(map_tasks(once_broken, paths, workers=2)) == paths


def test_a_worker_that_dies_twice_is_named():
    with pytest.raises(Refusal) as caught:
        list(map_tasks(deadly, [0, 1, 2], workers=2))
    assert caught.value.slug == "does-not-fit"
    assert "task" in str(caught.value)


def test_a_refusal_comes_back_whole():
    with pytest.raises(Refusal) as caught:
        list(map_tasks(refuse, [1, 2], workers=2))
    assert caught.value.slug == "bad-value"
